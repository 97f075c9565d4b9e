//! The rivals that go through a curriculum, from their files to answers after any number of thoughts.

use std::path::Path;

use serde_json::Value;
use sesqui::trained::LatentSettings;
use sesqui_model::Continuation;
use sesqui_run::Summary;

use crate::support::{run, succeed, trained};

const FILES: [(&str, &str); 10] = [
    ("coconut", "coconut"),
    ("no-thought", "no_thought"),
    ("without-curriculum", "without_curriculum"),
    ("pause", "pause"),
    ("question-pause", "question_pause"),
    ("pause-thought", "pause_thought"),
    ("icot", "icot"),
    ("codi", "codi"),
    ("sim-cot", "sim_cot"),
    ("pccot", "pccot"),
];

fn file(name: &str) -> String {
    format!("experiments/arith-dag/{name}.toml")
}

/// Validations of a stage: step, and a value, if it is there.
fn validations(run: &Path, stage: &str, value: &str) -> Vec<(u64, Option<f64>)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let of = |row: Value| {
        let here = row["stage"] == stage && row["split"] == "validation";
        here.then(|| (row["step"].as_u64().unwrap(), row["values"][value].as_f64()))
    };
    rows.filter_map(of).collect()
}

#[test]
fn every_rival_runs_from_its_file() {
    for (name, stage) in FILES {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("run");
        let path = at.to_str().unwrap();
        let file = file(name);
        let out = succeed("train", &["--smoke", "--dry-run", "--config", &file]);
        let expected = format!("stage {stage}: 20 steps");
        assert!(out.contains(&expected), "{name}: {out}");
        trained(name, &at);
        let summary = std::fs::read_to_string(at.join("summary.json")).unwrap();
        let summary: Summary = serde_json::from_str(&summary).unwrap();
        let row = summary.rows.iter().find(|row| row.method == stage).unwrap();
        let latents = match name {
            "no-thought" | "icot" => 0.0,
            _ => 6.0,
        };
        assert_eq!(row.latent_steps, latents, "{name}");
        let (value, expected) = match name {
            // A token after each update, of 42.
            "icot" => ("removed_tokens", [9.0, 19.0]),
            "without-curriculum" | "pause" | "question-pause" | "codi" | "pccot" => {
                ("curriculum_stage", [6.0; 2])
            }
            // Three updates to each of six stages.
            _ => ("curriculum_stage", [4.0, 6.0]),
        };
        let expected: Vec<_> = [10, 20].into_iter().zip(expected.map(Some)).collect();
        assert_eq!(validations(&at, stage, value), expected, "{name}");

        let words = [
            "--timing-questions",
            "0",
            "--questions",
            "5",
            "--stage",
            stage,
        ];
        let grid = [&[path][..], &words, &["--latent-steps", "0,1"]].concat();
        if latents == 0.0 {
            let refused = run("evaluate", &grid);
            assert_eq!(refused.code, Some(2), "{name}: {}", refused.error);
            let expected = "its model takes no latent steps; leave the flag out";
            assert!(refused.error.contains(expected), "{}", refused.error);
            succeed("generate", &[path, "--split", "test", "--index", "3"]);
        } else if name != "coconut" {
            succeed("evaluate", &grid);
            succeed("generate", &[path, "--split", "test", "--index", "3"]);
            // Nothing that is fed could be refined, unless it is the newest state.
            let refine = ["--refine", "residual=0.5"];
            let out = succeed("evaluate", &[&[path][..], &words, &refine].concat());
            let reason = match name {
                "pause" | "pause-thought" | "question-pause" => {
                    Some("feeds back no state that could be refined")
                }
                "pccot" => Some("computes its latent steps all at once"),
                _ => None,
            };
            match reason {
                Some(reason) => assert!(out.contains(reason), "{name}: {out}"),
                None => assert!(out.contains(&format!("{stage}, residual")), "{name}: {out}"),
            }
            if let "codi" | "sim-cot" | "pccot" = name {
                taught(&at, name, stage, &words);
            }
        } else {
            thoughts(&at, &words);
        }
    }
}

/// A trained Coconut, asked after any number of thoughts, and what its checkpoints know.
fn thoughts(at: &Path, words: &[&str]) {
    let path = at.to_str().unwrap();
    let cells = |arguments: &[&str]| -> Vec<Value> {
        let out = succeed("evaluate", &[&[path], words, arguments].concat());
        let written = out.lines().find_map(|line| line.strip_prefix("written: "));
        let picture = Path::new(written.unwrap());
        let text = std::fs::read_to_string(picture.with_extension("jsonl")).unwrap();
        let cells = text.lines().map(|line| serde_json::from_str(line).unwrap());
        cells.collect()
    };
    let found = |cells: &[Value], key: &str| -> Vec<f64> {
        let of = |cell: &Value| cell["summary"][key].as_f64().unwrap();
        cells.iter().map(of).collect()
    };
    // Two layers. What is written before the answer opens is reasoning as well: here, most likely, up to
    // the limit of tokens.
    let written = cells(&["--latent-steps", "0,1,6"]);
    let steps: Vec<u64> = written
        .iter()
        .map(|cell| cell["latent_steps"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 1, 6]);
    assert_eq!(found(&written, "latent_steps"), [0.0, 1.0, 6.0]);
    let answered = cells(&[
        "--latent-steps",
        "0,1,6",
        "--set",
        "reasoning.continuation=answer",
        // Too few tokens to open the answer again, up to where all would be reasoning.
        "--set",
        "evaluation.max_tokens=1",
    ]);
    assert_eq!(found(&answered, "layer_calls"), [0.0, 2.0, 12.0]);
    let beyond = found(&written, "layer_calls");
    for (written, answered) in beyond.iter().zip([0.0, 2.0, 12.0]) {
        assert!(*written >= answered, "{beyond:?}");
    }

    let out = succeed(
        "generate",
        &[path, "--question", "a=3+5;b=a*2;", "--latent-steps", "0"],
    );
    assert!(out.contains("; 0 latent steps"), "{out}");

    // Nobody can look at an answer that is not fed; with the marker one can.
    let halt = ["--halt", "entropy=0.1"];
    let out = succeed("evaluate", &[&[path], words, &halt[..]].concat());
    assert!(out.contains("coconut writes on by itself"), "{out}");
    let answer = ["--set", "reasoning.continuation=answer"];
    let out = succeed("evaluate", &[&[path], words, &halt, &answer].concat());
    assert!(out.contains("coconut, entropy 0.1"), "{out}");
    let refused = run(
        "generate",
        &[&[path, "--question", "a=1+1;"], &halt[..]].concat(),
    );
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    let out = succeed(
        "evaluate",
        &[&[path], words, &["--refine", "residual=0.5"]].concat(),
    );
    assert!(out.contains("coconut, residual"), "{out}");

    let last = at.join("checkpoints/coconut/step-00000020");
    let settings = LatentSettings::read(&last).unwrap();
    assert_eq!((settings.count, settings.kept()), (6, 0));
    assert_eq!(settings.continuation, Continuation::Text);
    let growth = (1..7).map(|steps| (3 * (steps as u64 - 1), steps));
    assert_eq!(settings.growth, growth.collect::<Vec<_>>());
    // A checkpoint reasons with as many thoughts as it had learned by then.
    for (updates, steps) in [(1, 1), (3, 1), (4, 2), (14, 5), (20, 6)] {
        assert_eq!(settings.clone().after(updates).count, steps, "{updates}");
    }
    let kept = at.join("checkpoints/coconut/step-00000015");
    assert_eq!(LatentSettings::read(&kept).unwrap(), settings);
    // Another stage may go on from its backbone, and from that of a token model.
    let start = format!("stages.coconut.initialize={{ kind = \"checkpoint\", path = {last:?} }}");
    let words = [
        "--smoke",
        "--dry-run",
        "--config",
        &file("coconut"),
        "--set",
        &start,
    ];
    succeed("train", &words);
}

/// What teaches leaves its losses in the metrics and nothing in the model that is asked; latent steps in
/// either order.
fn taught(at: &Path, name: &str, stage: &str, words: &[&str]) {
    let path = at.to_str().unwrap();
    let present = |value| {
        validations(at, stage, value)
            .iter()
            .all(|(_, found)| found.is_some())
    };
    let losses = ["text", "teacher", "states", "steps"].map(present);
    let expected = match name {
        "sim-cot" => [true, false, false, true],
        _ => [true, true, true, false],
    };
    assert_eq!(losses, expected, "{name}");
    let calls = |order: &str| -> f64 {
        let set = format!("reasoning.order={order}");
        let answer = "reasoning.continuation=answer";
        let out = at.parent().unwrap().join("asked");
        // Too few tokens to open the answer again, up to where all would be reasoning.
        let few = "evaluation.max_tokens=1";
        let out_of = out.to_str().unwrap();
        let asked = [
            "--set", &set, "--set", answer, "--set", few, "--out", out_of,
        ];
        succeed("evaluate", &[&[path], words, &asked].concat());
        let file = std::fs::read_dir(&out)
            .unwrap()
            .map(|file| file.unwrap().path());
        let mut file = file.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let text = std::fs::read_to_string(file.next().unwrap()).unwrap();
        std::fs::remove_dir_all(&out).unwrap();
        let found: Value = serde_json::from_str(&text).unwrap();
        found["summary"]["layer_calls"].as_f64().unwrap()
    };
    // Six latent steps, two layers.
    assert_eq!(calls("{ kind = \"sequential\" }"), 12.0, "{name}");
    assert_eq!(
        calls("{ kind = \"jacobi\", iterations = 2 }"),
        24.0,
        "{name}"
    );
    let trained = if name == "pccot" { 36.0 } else { 12.0 };
    assert_eq!(calls("{ kind = \"as-trained\" }"), trained, "{name}");
}

/// What cannot be is refused before anything is trained.
#[test]
fn settings_that_make_no_sense_are_refused() {
    for (name, set, expected) in [
        (
            "coconut",
            "stages.coconut.objective.thoughts_per_step=0",
            "stages.coconut.objective.thoughts_per_step: must be at least 1; for no thoughts at all set \
             thought.kind = \"none\"",
        ),
        (
            "coconut",
            "stages.coconut.objective.thoughts_per_step=12",
            "stages.coconut.objective: with up to 72 thoughts problem arith-dag/train/",
        ),
        (
            "coconut",
            "stages.coconut.objective.thought.kind=none",
            "stages.coconut.objective.positions: without thoughts text follows the question; leave it out",
        ),
        (
            "coconut",
            "reasoning.latent_steps=40",
            "with reasoning.latent_steps = 40 it needs ",
        ),
        (
            "codi",
            "stages.codi.objective.distillation.states=-1",
            "stages.codi.objective.distillation.states: -1 is not a weight; give 0 or more",
        ),
        (
            "pause",
            "stages.pause.objective.step_supervision={ kind = \"decoder\" }",
            "stages.pause.objective.step_supervision: these thoughts are fed nothing that could hold a step",
        ),
        (
            "pccot",
            "stages.pccot.objective.order.iterations=0",
            "stages.pccot.objective.order.iterations: must be at least 1",
        ),
        (
            "pccot",
            "reasoning={ order = { kind = \"jacobi\", iterations = 2 }, halt = { kind = \"entropy\" } }",
            "reasoning.order: nothing can be refined or stopped between latent steps",
        ),
        (
            "icot",
            "stages.icot.objective.updates=0",
            "stages.icot.objective.updates: must be at least 1",
        ),
        (
            "default",
            "stages.latent.objective.latents.feedback={ kind = \"pause\" }",
            "stages.latent.objective.latents.feedback: what latent steps are fed is aligned to the teacher",
        ),
    ] {
        let refused = run("train", &["--smoke", "--config", &file(name), "--set", set]);
        assert_eq!(refused.code, Some(2), "{set}: {}", refused.error);
        assert!(refused.error.contains(expected), "{set}: {}", refused.error);
        assert_eq!(refused.out, "");
    }
}
