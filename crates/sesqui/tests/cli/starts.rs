//! What a stage may start from, refused before anything is trained.

use std::path::Path;

use crate::support::{files, run, succeed};

const STAGE_2: &str = "experiments/arith-dag/stage2.toml";

/// Stage 2 over a checkpoint of the run in `at`: what does not fit it, and a teacher that is not there.
pub fn checkpoints(at: &Path, folder: &Path) {
    let student = at.join("checkpoints/latent/step-00000020");
    let start = |path: &Path| {
        format!("stages.system15.initialize={{ kind = \"checkpoint\", path = {path:?} }}")
    };
    let dry = |path: &Path, set: &[&str]| {
        let start = start(path);
        let words = ["--smoke", "--dry-run", "--config", STAGE_2, "--set", &start];
        let set = set.iter().flat_map(|set| ["--set", set]);
        run("train", &words.into_iter().chain(set).collect::<Vec<_>>())
    };
    let fits = dry(&student, &[]);
    assert_eq!(fits.code, Some(0), "{}", fits.error);

    let alone = folder.join("alone");
    copy(&student, &alone);
    // A run of which only the student is left.
    let orphan = folder.join("orphan");
    let step = orphan.join("checkpoints/latent/step-00000020");
    copy(&student, &step);
    std::fs::copy(at.join("config.toml"), orphan.join("config.toml")).unwrap();

    let words = at.join("checkpoints/cot/step-00000020");
    let shown = |path: &Path| path.display().to_string();
    for (path, set, parts) in [
        (
            &student,
            &["model.heads=2"][..],
            vec![
                "error: stages.system15.initialize.path: the model in ".to_owned(),
                format!(
                    "another shape than [model]; copy its [model] section from {}",
                    shown(&student.join("config.toml"))
                ),
            ],
        ),
        (
            &student,
            &["tokenizer.model=byte-pair"],
            vec![
                format!(
                    "error: stage system15: {} was trained with another tokenizer (",
                    shown(&student)
                ),
                "use its tokenizer, its data, or another checkpoint".to_owned(),
            ],
        ),
        (
            &student,
            &["positions=contiguous"],
            vec![
                format!(
                    "error: stages.system15.initialize.path: {} was trained with the position ids ",
                    shown(&student)
                ),
                "aligned".to_owned(),
                ", this run has ".to_owned(),
                format!(
                    "take `positions` and [data] from {}, or another checkpoint",
                    shown(&student.join("config.toml"))
                ),
            ],
        ),
        (
            &words,
            &[],
            vec![format!(
                "error: stages.system15.initialize.path: {} was trained with objective cot, but \
                 shortcuts are learned over an aligned student; give a checkpoint of objective align",
                shown(&words)
            )],
        ),
        (
            &alone,
            &[],
            vec![format!(
                "error: stages.system15.initialize.path: {} lies in no run directory, where the \
                 student's teacher would be; give a checkpoint in a run that has its teacher",
                shown(&alone)
            )],
        ),
        (
            &step,
            &[],
            vec![format!(
                "error: stages.system15.initialize.path: the teacher of {} is what stage cot left, and ",
                shown(&step)
            )],
        ),
    ] {
        let refused = dry(path, set);
        assert_eq!(refused.code, Some(2), "{set:?}: {}", refused.error);
        for part in parts {
            assert!(refused.error.contains(&part), "{part}: {}", refused.error);
        }
        assert_eq!(refused.out, "");
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        std::fs::write(to.join(name), bytes).unwrap();
    }
}

/// Only `config.json` of a Hugging Face folder is read to see whether it fits.
#[test]
fn a_folder_is_looked_at_before_earlier_stages_are_trained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    let shape = |vocabulary: usize| {
        let shape = format!(
            r#"{{ "model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 128,
                  "vocab_size": {vocabulary} }}"#
        );
        std::fs::write(folder.path().join("config.json"), shape).unwrap();
    };
    let start =
        format!("stages.latent.initialize={{ kind = \"hugging-face\", path = \"{path}\" }}");
    let dry = |set: &str| {
        let words = ["--smoke", "--dry-run", "--set", &start, "--set", set];
        let said = run("train", &words);
        (said.code, said.error)
    };
    shape(5);
    let (code, error) = dry("seed=1");
    assert_eq!(code, Some(2), "{error}");
    let few = format!(
        "error: stages.latent.initialize.path: {path} has 5 token embeddings, the tokenizer makes "
    );
    let remedy = " ids; use the tokenizer that belongs to the model\n";
    assert!(
        error.starts_with(&few) && error.ends_with(remedy),
        "{error}"
    );
    shape(100);
    let expected = "error: stages.system15.objective.landing: \"next-boundary\" leaves no exit in a model \
                    of 2 layers, it needs three or more; start from a model with more, or set it to \
                    \"same-boundary\"\n";
    let landing = "stages.system15.objective.landing=next-boundary";
    assert_eq!(dry(landing), (Some(2), expected.to_owned()));
}

/// `--smoke` leaves as many layers as the staircase needs.
#[test]
fn a_smoke_run_keeps_a_layer_that_an_adapter_stands_in_for() {
    let landing = "stages.system15.objective.landing=next-boundary";
    let out = succeed("train", &["--smoke", "--dry-run", "--set", landing]);
    assert!(out.contains("\n3 layers, "), "{out}");
    let out = succeed("train", &["--smoke", "--dry-run"]);
    assert!(out.contains("\n2 layers, "), "{out}");
}
