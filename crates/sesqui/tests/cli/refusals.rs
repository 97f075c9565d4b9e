//! What cannot be done: exit code 2, nothing on standard output, one sentence that helps.

use std::path::Path;

use crate::support::run;

/// Program, arguments, standard error without `error: `; `DIR` stands for an empty folder.
const REFUSALS: &[(&str, &[&str], &str)] = &[
    (
        "train",
        &["--devices", "0,0"],
        "--devices: 0 is named twice",
    ),
    (
        "train",
        &["--host", "ws://gpu:3000"],
        "--host: --backend cpu computes on this machine; add --backend remote",
    ),
    (
        "train",
        &[
            "--study",
            "experiments/studies/arith-dag.toml",
            "--only",
            "seed-1",
        ],
        "--only seed-1: the study has the runs arith-dag_seed-1, arith-dag_seed-2, arith-dag_seed-3",
    ),
    (
        "train",
        &["--set", "stages.cot.training.step=5"],
        "--set stages.cot.training.step=5: unknown key `stages.1.training.step`; did you mean \
         `stages.1.training.steps`?\n  valid keys in `stages.1.training`: accumulation, beta_1, \
         beta_2, checkpoints, clip_norm, early_stopping, epsilon, learning_rate, log_every, recompute, \
         steps, validate_every, weight_decay",
    ),
    (
        "train",
        &["--set", "stages.cot.training.epsilon=0"],
        "stages.cot.training.epsilon: 0 is not above 0",
    ),
    (
        "train",
        &["--set", "stages.cot.training.clip_norm=-1"],
        "stages.cot.training.clip_norm: -1 is not 0 or more",
    ),
    (
        "train",
        &["--set", "stages.cot.teacher_states={kind=\"each-step\"}"],
        "stages.cot.teacher_states: objective cot has no frozen teacher; leave it out",
    ),
    (
        "train",
        &["--set", "positions=algned"],
        "--set positions=algned: `positions` cannot be `algned`; did you mean `aligned`?\n  valid \
         values: aligned, contiguous",
    ),
    (
        "train",
        &["--set", "model.layers=two"],
        "--set model.layers=two: `model.layers` must be a whole number, 0 or more, but is the \
         string \"two\"",
    ),
    (
        "train",
        &["--set", "model.layers=0"],
        "model.layers: must be at least 1",
    ),
    (
        "train",
        &["--set", "stages.cto.training.steps=5"],
        "--set stages.cto.training.steps=5: `stages` has no element `cto`; did you mean `cot`?",
    ),
    (
        "train",
        &[
            "--set",
            "stages.cot.initialize={ kind = \"stage\", stage = \"nocot\" }",
        ],
        "stages.cot.initialize.stage: no earlier stage is called \"nocot\"; there are: no_cot",
    ),
    (
        "train",
        &[
            "--set",
            "stages.cot.initialize={ kind = \"checkpoint\", path = \"DIR\" }",
        ],
        "the start of stage cot\n  because: DIR is not a checkpoint folder (it has no \
         state.json); give \
         <run>/checkpoints/<stage>/step-…",
    ),
    (
        "train",
        &[
            "--set",
            "reasoning.refine.residual={ kind = \"blend\", alpha = 2.0 }",
        ],
        "reasoning.refine.residual.alpha: 2 is not in [0, 1]; 0 is plain decoding",
    ),
    (
        "train",
        &[
            "--set",
            "reasoning.references.weak={ kind = \"early\", low = 0.7, high = 0.6 }",
        ],
        "reasoning.references.weak: 0.7 to 0.6 is no range of shares within [0, 1]",
    ),
    (
        "train",
        &[
            "--set",
            "reasoning.halt={ kind = \"learned\", pick = { kind = \"cumulative\", probability = 2.0 } }",
        ],
        "reasoning.halt.pick.probability: 2 is not in (0, 1]; 1 takes all steps",
    ),
    (
        "train",
        &[
            "--set",
            "reasoning.halt={ kind = \"samples\" }",
            "--set",
            "reasoning.refine.residual={ kind = \"blend\", alpha = 0.5 }",
        ],
        "reasoning.halt: samples cannot be refined; leave out [reasoning.refine] or halt",
    ),
    (
        "train",
        &["--set", "reasoning.halt={ kind = \"learned\" }"],
        "reasoning.halt: no stage learns a head; add one with objective halt",
    ),
    (
        "train",
        &[
            "--config",
            "experiments/arith-dag/halting.toml",
            "--set",
            "stages.halt.initialize.kind=scratch",
        ],
        "stages.halt.initialize: it starts from scratch, but when to halt is learned over a model that \
         takes latent steps; put a stage with objective align or shortcut or joint before it and start \
         from that",
    ),
    (
        "train",
        &["--set", "stages.system15.initialize.stage=cot"],
        "stages.system15.initialize: cot has objective cot, but shortcuts are learned over an \
         aligned student; start from latent",
    ),
    (
        "train",
        &["--set", "stages.latent.initialize.kind=scratch"],
        "stages.latent.initialize: it starts from scratch, but it learns from a chain-of-thought \
         model; start from cot",
    ),
    (
        "train",
        &["--set", "stages.latent.objective.latents.count=4"],
        "problem arith-dag/train/n6/199 needs 6 latent steps, there are 4; raise latents.count, \
         or set it to 0",
    ),
    (
        "train",
        &[
            "--set",
            "stages.latent.objective.latents.positions={ kind = \"strided\", offset = 5, stride = \
             20 }",
        ],
        "stages.latent.objective.latents: with 6 latent steps problem arith-dag/train/n2/0 needs \
         160 positions, the model's context has 128; lower latents.count or latents.positions, \
         raise model.context, or set batches.too_long = \"skip\"",
    ),
    (
        "train",
        &["--set", "reasoning.latent_steps=60"],
        "reasoning.latent_steps: validation question arith-dag/validation/n2/0: with \
         reasoning.latent_steps = 60 it needs 460 positions, the model has 128; take fewer, or \
         raise model.context",
    ),
    // Training problems that are too long may be left out, questions may not.
    (
        "train",
        &[
            "--set",
            "stages.latent.objective.latents.positions={ kind = \"strided\", offset = 5, stride = \
             20 }",
            "--set",
            "stages.latent.batches.too_long=skip",
        ],
        "stages.latent.objective.latents: validation question arith-dag/validation/n2/0: with 6 \
         latent steps, as trained, it needs 160 positions, the model has 128; lower latents.count \
         or latents.positions, or raise model.context",
    ),
    (
        "train",
        &["--set", "stages.system15.objective.loss.answer=-3"],
        "stages.system15.objective.loss.answer: -3 is not a weight; give 0 or more",
    ),
    (
        "train",
        &["--set", "stages.system15.objective.loss.thresholds=[7]"],
        "stages.system15.objective.loss.thresholds: 7 is not in [0, 1]",
    ),
    (
        "train",
        &[
            "--set",
            "stages.system15.objective.shortcuts.adapter.dropout=1",
        ],
        "stages.system15.objective.shortcuts.adapter.dropout: 1 is not in [0, 1); 0 hides nothing",
    ),
    (
        "train",
        &[
            "--config",
            "experiments/arith-dag/joint.toml",
            "--set",
            "stages.joint.objective.shortcut.trains=shortcuts",
        ],
        "stages.joint.objective.shortcut.trains: joint learning moves all weights; set it to \
         \"everything\"",
    ),
    (
        "train",
        &[
            "--config",
            "experiments/arith-dag/joint.toml",
            "--set",
            "stages.joint.initialize.kind=scratch",
        ],
        "stages.joint.initialize: it starts from scratch, but it learns from a chain-of-thought \
         model; start from cot",
    ),
    (
        "train",
        &["--set", "stages.latent.batches.length_exponent=17"],
        "stages.latent.batches.length_exponent: above 16 hardly any but the longest rows are left",
    ),
    (
        "evaluate",
        &["DIR", "--latent-steps", "0", "--halt", "entropy=0.1"],
        "--latent-steps 0: there is no latent step for --halt to stop before; leave one out",
    ),
    (
        "train",
        &["--set", "reasoning.exit_threshold=1.5"],
        "reasoning.exit_threshold: 1.5 is not in [0, 1]; 1 runs every layer",
    ),
    (
        "train",
        &[
            "--set",
            "model.layers=2",
            "--set",
            "stages.system15.objective.landing=next-boundary",
        ],
        "stages.system15.objective.landing: \"next-boundary\" leaves no exit in a model of 2 layers, it \
         needs three or more; raise model.layers, or set it to \"same-boundary\"",
    ),
    (
        "train",
        &[
            "--config",
            "experiments/arith-dag/joint.toml",
            "--set",
            "model.layers=1",
            "--set",
            "stages.joint.objective.shortcut.landing=next-boundary",
        ],
        "stages.joint.objective.shortcut.landing: \"next-boundary\" leaves no exit in a model of 1 \
         layers, it needs three or more; raise model.layers, or set it to \"same-boundary\"",
    ),
    #[cfg(unix)]
    (
        "train",
        &["--config", "DIR/nope.toml"],
        "cannot read DIR/nope.toml: No such file or directory (os error 2)",
    ),
    #[cfg(not(feature = "cuda"))]
    (
        "train",
        &["--backend", "cuda"],
        "--backend cuda is not compiled in; build with `cargo run --release --features cuda --bin \
         train -- --backend cuda`",
    ),
    (
        "train",
        &["--set", "data={ kind = \"gsm8k\" }", "--data-root", "DIR"],
        "gsm8k needs DIR/gsm8k/train.jsonl, which is not there; get it from \
         https://github.com/openai/grade-school-math at commit \
         3101c7d5072418e28b9008a6636bde82a006892c, path grade_school_math/data/train.jsonl; check \
         with `cargo run --release --bin prepare -- verify gsm8k`",
    ),
    (
        "evaluate",
        &["DIR"],
        "DIR is neither a run directory nor a checkpoint folder",
    ),
    (
        "generate",
        &["DIR/nothing", "--question", "?"],
        "DIR/nothing is neither a run directory nor a checkpoint folder",
    ),
    (
        "prepare",
        &["export", "DIR", "--out", "DIR/out"],
        "DIR is neither a run directory nor a checkpoint folder",
    ),
    (
        "prepare",
        &["verify", "gsm9k"],
        "no data set `gsm9k`; known are aqua-rat, gpt2-tokenizer, gsm-hard, gsm8k, gsm8k-aug, \
         math-word-problems, mathqa, multiplication, prontoqa, prosqa, strategyqa",
    ),
    (
        "prepare",
        &["labels", "--split", "tset"],
        "--split tset: arith-dag has train, validation, test",
    ),
];

#[test]
fn refusals_say_what_to_do() {
    let mut wrong = Vec::new();
    for (name, arguments, expected) in REFUSALS {
        let folder = tempfile::tempdir().unwrap();
        let here = |text: &str| text.replace("DIR", &folder.path().display().to_string());
        let mut words: Vec<String> = arguments.iter().map(|word| here(word)).collect();
        // A refusal that fails to come must not leave a run in the source tree.
        if *name == "train" {
            words.extend(["--smoke".to_owned(), "--run".to_owned(), here("DIR/run")]);
        }
        let said = run(name, &words.iter().map(String::as_str).collect::<Vec<_>>());
        let expected = format!("error: {}\n", here(expected));
        if said.code != Some(2) || said.error != expected {
            wrong.push(format!(
                "{words:?}, code {:?}:\n{}{expected}",
                said.code, said.error
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "found, then expected:\n{}",
        wrong.join("\n")
    );
}

/// The positions of a model that starts from a folder are those of the folder, also where the latent
/// stage starts from a stage that starts from it. Only `config.json` is read to find out.
#[test]
fn latent_steps_must_fit_the_folder_that_the_model_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let shape = r#"{ "model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 40,
                     "vocab_size": 100 }"#;
    std::fs::write(folder.path().join("config.json"), shape).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    for stage in ["latent", "cot"] {
        let start =
            format!("stages.{stage}.initialize={{ kind = \"hugging-face\", path = \"{path}\" }}");
        let said = run("train", &["--smoke", "--dry-run", "--set", &start]);
        assert_eq!(said.code, Some(2), "{}{}", said.out, said.error);
        for part in [
            "error: stages.latent.objective.latents: with 6 latent steps problem arith-dag/train/",
            "positions, the model's context has 40; lower latents.count or latents.positions, give ",
            &format!("stages.{stage}.initialize.path a model with more, or set"),
        ] {
            assert!(said.error.contains(part), "{part}: {}", said.error);
        }
    }
}

#[test]
fn a_run_goes_on_only_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("run");
    let path = at.to_str().unwrap();
    let start = |set: &str| {
        let tiny = "stages.cot.training.steps=1";
        run(
            "train",
            &[
                "--smoke",
                "--renderer",
                "none",
                "--run",
                path,
                "--set",
                tiny,
                "--set",
                set,
            ],
        )
    };
    assert_eq!(start("seed=1").code, Some(0));
    let refused = start("seed=2");
    let expected = format!(
        "error: {path} was started with another configuration (old → new):\n  seed: 1 → 2\na run \
         resumes only unchanged: use `--config {path}/config.toml`, or choose another run \
         directory\n"
    );
    assert_eq!((refused.code, refused.error), (Some(2), expected));
}

#[test]
fn verify_tells_missing_from_present() {
    let folder = tempfile::tempdir().unwrap();
    let verify = |root: &Path| {
        run(
            "prepare",
            &["verify", "gsm8k", "--data-root", root.to_str().unwrap()],
        )
    };
    let missing = verify(folder.path());
    assert_eq!(missing.code, Some(1), "{}", missing.error);
    let lines: Vec<&str> = missing.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", missing.out);
    for (line, file) in lines.iter().zip(["train.jsonl", "test.jsonl"]) {
        let expected = format!(
            "gsm8k/{file}: missing; get it from https://github.com/openai/grade-school-math at \
             commit 3101c7d5072418e28b9008a6636bde82a006892c, path grade_school_math/data/{file}"
        );
        assert_eq!(*line, expected);
    }
    let counts = "0 files as pinned, 2 missing or different, 0 not pinned";
    assert!(lines[2].ends_with(counts), "{}", lines[2]);

    std::fs::create_dir(folder.path().join("gsm8k")).unwrap();
    std::fs::write(folder.path().join("gsm8k/test.jsonl"), "{}\n").unwrap();
    let cut = verify(folder.path());
    assert!(
        cut.out.contains("gsm8k/test.jsonl: 3 bytes instead of "),
        "{}",
        cut.out
    );

    // With the data at hand: everything is as pinned.
    if let Some(root) = std::env::var_os("SESQUI_DATA") {
        let intact = verify(Path::new(&root));
        assert_eq!(intact.code, Some(0), "{}", intact.out);
        assert!(
            intact.out.contains("gsm8k/test.jsonl: ok\n"),
            "{}",
            intact.out
        );
    } else {
        assert!(std::env::var_os("CI").is_none(), "SESQUI_DATA is not set");
    }
}

#[test]
fn generated_problems_and_label_counts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("problems.jsonl");
    let arguments = [
        "generate",
        "--split",
        "test",
        "--limit",
        "5",
        "--out",
        file.to_str().unwrap(),
    ];
    let said = run("prepare", &arguments);
    assert_eq!(said.code, Some(0), "{}", said.error);
    let text = std::fs::read_to_string(&file).unwrap();
    let problems: Vec<sesqui_dataset::Problem> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let corpus = sesqui_dataset::DatasetConfig::default()
        .load(None, 1, Default::default())
        .unwrap();
    assert_eq!(problems, corpus.tests[0].problems[..5]);

    let counted = run("prepare", &["labels", "--split", "test"]);
    assert_eq!(counted.code, Some(0), "{}", counted.error);
    for part in [
        "arith-dag test: 1000 problems",
        "ground truth",
        "operand match agrees",
    ] {
        assert!(counted.out.contains(part), "{part}: {}", counted.out);
    }
}
