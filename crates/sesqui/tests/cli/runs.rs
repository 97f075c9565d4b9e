//! One run from training to export, as the README tells it.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use serde_json::Value;
use sesqui::experiment::{Experiment, Initialize, Objective};
use sesqui::opened::Opened;
use sesqui::start::Lineage;
use sesqui_distill::align::Teacher;
use sesqui_model::{Transformer, Visibility, huggingface};
use sesqui_run::{RunPaths, Summary};

use crate::asking::{evaluations, grid, questions};
use crate::compared::comparisons;
use crate::halting::{head, rules};
use crate::likelihood::labels;
use crate::refining::refinements;
use crate::starts;
use crate::support::{files, run, succeed};

const JOINT: &str = "experiments/arith-dag/joint.toml";

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn dry_run_shows_the_run_and_leaves_nothing() {
    let out = succeed("train", &["--smoke", "--dry-run"]);
    for part in [
        "[[stages]]",
        "tokenizer",
        "stage cot: 20 steps",
        "before training: loss",
        "\nlatent: extends the paper by latent steps that hold the answer ready, ",
        "\nsystem15: extends the paper by staircase loss, ",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let out = succeed("train", &["--smoke", "--dry-run", "--config", JOINT]);
    for part in [
        "stage joint: 20 steps",
        "before training: loss",
        "align/read_out",
        "shortcut/routers",
        "parameters in routers and adapters",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

/// The first batch of stage 1 is fed as the stage says.
#[test]
fn a_dry_run_feeds_latent_steps_as_training_will() {
    let losses = |feeding: &str| {
        let feeding = format!("stages.latent.objective.feeding={{ kind = \"{feeding}\" }}");
        let out = succeed("train", &["--smoke", "--dry-run", "--set", &feeding]);
        let (_, latent) = out.split_once("stage latent: ").unwrap();
        let line = latent.lines().nth(2).unwrap();
        assert!(line.starts_with("before training: loss "), "{line}");
        line.to_owned()
    };
    assert_ne!(losses("teacher-forced"), losses("free-running"));
}

#[test]
fn a_run_can_be_trained_evaluated_asked_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("first");
    let path = at.to_str().unwrap();
    let train = ["--smoke", "--renderer", "plain", "--run", path];
    let trained = succeed("train", &train);
    for part in [
        "no_cot",
        "accuracy %",
        "MFLOPs, reasoning",
        "\nsystem15: extends the paper by staircase loss, routers that learn padding\n",
        "Interval: Wilson",
        "McNemar's exact test",
        "Measured on test: choose nothing by a test set",
        "run directory: ",
    ] {
        assert!(trained.contains(part), "{part}: {trained}");
    }

    // The summary, by its schema and by its names.
    let summary = Summary::read(&at.join("summary.json")).unwrap();
    let methods: Vec<&str> = summary.rows.iter().map(|row| row.method.as_str()).collect();
    assert_eq!(methods, ["no_cot", "cot", "latent", "system15"]);
    for row in &summary.rows {
        assert_eq!(
            (row.dataset.as_str(), row.split.as_str(), row.n),
            ("arith-dag", "test", 20)
        );
        assert!(
            at.join("checkpoints")
                .join(&row.checkpoint)
                .join("model.bpk")
                .is_file()
        );
        assert!((0.0..=1.0).contains(&row.accuracy) && row.ci_low <= row.accuracy);
        assert!(row.accuracy <= row.ci_high && row.flops > 0.0 && row.total_ms > 0.0);
    }
    let raw = json(&at.join("summary.json"));
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(
        keys(&raw),
        ["schema", "run", "variant", "config_hash", "rows"]
    );
    assert_eq!(
        keys(&raw["rows"][0]),
        [
            "method",
            "dataset",
            "split",
            "n",
            "accuracy",
            "ci_low",
            "ci_high",
            "tokens",
            "latent_steps",
            "layer_calls",
            "flops",
            "reason_flops",
            "reason_ms",
            "total_ms",
            "seed",
            "checkpoint",
        ]
    );

    // The same command again finds everything done, and changes no checkpoint.
    let before = files(&at.join("checkpoints"));
    let again = succeed("train", &train);
    assert!(again.contains("resuming after step 20"), "{again}");
    assert!(files(&at.join("checkpoints")) == before);
    let rows = Summary::read(&at.join("summary.json")).unwrap().rows;
    assert_eq!(rows[1].accuracy, summary.rows[1].accuracy);

    evaluations(&at, &summary);
    grid(path);
    starts::checkpoints(&at, folder.path());
    thresholds_of_one_are_the_student(&at);
    refinements(&at);
    rules(&at);
    head(&at, folder.path());
    questions(path);
    comparisons(&at, folder.path());
    labels(&at, folder.path());
    export(&at, folder.path());
    joint(&folder.path().join("joint"));
}

/// Stage 2 leaves the student as it is: under no exit its answers, and what they cost, are the student's
/// byte for byte, and so are its weights.
fn thresholds_of_one_are_the_student(at: &Path) {
    let path = at.to_str().unwrap();
    // Not beside the evaluations of the run, which others compare.
    let apart = at.with_file_name("students");
    let apart = apart.to_str().unwrap();
    let answers = |stage: &str, more: &[&str]| {
        let words = [
            path,
            "--stage",
            stage,
            "--timing-questions",
            "0",
            "--out",
            apart,
        ];
        let out = succeed("evaluate", &[&words[..], more].concat());
        let file = out
            .lines()
            .find_map(|line| line.strip_prefix("written: ")?.strip_suffix(" and .jsonl"));
        std::fs::read(Path::new(file.unwrap()).with_extension("jsonl")).unwrap()
    };
    let student = answers("latent", &[]);
    assert_eq!(student.iter().filter(|&&byte| byte == b'\n').count(), 20);
    assert!(answers("system15", &["--exit-threshold", "1"]) == student);
    assert!(answers("system15", &["--exit-threshold", "0"]) != student);

    let weights = |stage: &str| {
        let file = at.join(format!("checkpoints/{stage}/step-00000020/model.bpk"));
        let reader = burn_pack::Reader::from_file(file).unwrap();
        let names = reader.tensor_names().into_iter();
        let tensors = names.map(|name| (name.to_owned(), reader.tensor_data(name).unwrap()));
        tensors.collect::<std::collections::BTreeMap<String, Vec<u8>>>()
    };
    let (student, shortcuts) = (weights("latent"), weights("system15"));
    let backbone = |name: &&String| name.starts_with("student.backbone.");
    assert!(student.keys().filter(backbone).count() > 20);
    assert!(shortcuts.len() > student.len());
    for (name, bytes) in &student {
        assert!(shortcuts[name] == *bytes, "{name}");
    }
}

/// Both stages at once leave a model like any other with shortcuts.
fn joint(at: &Path) {
    let path = at.to_str().unwrap();
    let train = [
        "--smoke",
        "--renderer",
        "plain",
        "--run",
        path,
        "--config",
        JOINT,
    ];
    let trained = succeed("train", &train);
    assert!(trained.contains("joint"), "{trained}");
    let metrics = std::fs::read_to_string(at.join("metrics.jsonl")).unwrap();
    let rows: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|row: &Value| row["stage"] == "joint")
        .collect();
    assert_eq!(rows.len(), 20 + 2);
    for row in &rows {
        let values = &row["values"];
        let [total, align, shortcut] = [&row["loss"], &values["align"], &values["shortcut"]]
            .map(|value| value.as_f64().unwrap());
        // Numbers of order 10 in 32 bits, means of several.
        assert!((total - align - shortcut).abs() < 1e-5, "{row}");
        let validation = row["split"] == "validation";
        assert_eq!(
            values.get("layer_calls_saved").is_some(),
            validation,
            "{row}"
        );
    }
    let again = succeed("train", &train);
    assert!(again.contains("resuming after step 20"), "{again}");

    let words = ["--stage", "joint", "--timing-questions", "0"];
    let grid = ["--exit-threshold", "0,1", "--latent-steps", "1,6"];
    let out = succeed("evaluate", &[&[path], &words[..], &grid].concat());
    assert!(out.contains("exit threshold \\ latent steps"), "{out}");
    let asked = [path, "--question", "a=3+5;b=a*2;", "--exit-threshold", "0"];
    let out = succeed("generate", &asked);
    assert!(
        out.contains("handed on to the next step at layer 1"),
        "{out}"
    );
    let words = [path, "--stage", "cot", "--exit-threshold", "0"];
    let refused = run("evaluate", &words);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    assert!(
        refused.error.contains("or take stage joint"),
        "{}",
        refused.error
    );
}

/// Stage 2 has the teacher that stage 1 had: the model it started from, or with shared weights the
/// student as trained, also where only a copy of its checkpoint is left.
#[test]
fn stage_2_is_taught_by_the_teacher_of_stage_1() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("run");
    let set = |key: &str| ["--set".to_owned(), key.to_owned()];
    let mut words = [
        "--smoke",
        "--renderer",
        "plain",
        "--run",
        at.to_str().unwrap(),
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend(set("stages.latent.objective.teacher=shared"));
    // Too few for problems of five and six steps.
    words.extend(set("stages.latent.objective.latents.count=4"));
    for stage in ["no_cot", "cot", "latent", "system15"] {
        words.extend(set(&format!("stages.{stage}.training.steps=2")));
        words.extend(set(&format!("stages.{stage}.batches.too_long=skip")));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let out = succeed("train", &words);
    // Each stage says so once.
    for stage in ["latent", "system15"] {
        let said = out.lines().filter(|line| {
            line.starts_with(&format!("{stage}: 6 validation questions need more "))
        });
        let said: Vec<&str> = said.collect();
        assert!(
            matches!(said[..], [line] if line.contains("than 4 latent steps or 128 positions")),
            "{out}"
        );
    }

    let device = Device::flex();
    let weights = |model: &Transformer| {
        let weight = model.token_embedding.weight.val();
        weight.into_data().iter::<f32>().collect::<Vec<f32>>()
    };
    let of = |stage: &str| {
        let opened = Opened::find(&at, Some(stage)).unwrap();
        weights(opened.load(&device).unwrap().backbone())
    };
    let (cot, student) = (of("cot"), of("latent"));
    assert_ne!(cot, student);

    let opened = Opened::find(&at, Some("latent")).unwrap();
    let taught = |experiment: &Experiment| {
        let lineage = Lineage {
            experiment,
            paths: &RunPaths::new(&at),
            vocabulary: opened.tokenizer.vocab_size(),
        };
        let stage = experiment.stage("system15").unwrap();
        weights(&lineage.teacher(stage, &device).unwrap())
    };
    let mut experiment = opened.experiment.clone();
    assert_eq!(taught(&experiment), student);

    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for (name, bytes) in files(&opened.folder) {
        std::fs::write(copy.join(name), bytes).unwrap();
    }
    experiment.stages[3].initialize = Initialize::Checkpoint { path: copy };
    assert_eq!(taught(&experiment), student);

    let mut frozen = opened.experiment.clone();
    let Objective::Align(config) = &mut frozen.stages[2].objective else {
        panic!()
    };
    config.teacher = Teacher::Frozen;
    assert_eq!(taught(&frozen), cot);
}

/// What is exported loads as a Hugging Face folder and computes the same.
fn export(at: &Path, folder: &Path) {
    let out = folder.join("exported");
    let words = [
        at.to_str().unwrap(),
        "--stage",
        "cot",
        "--out",
        out.to_str().unwrap(),
    ];
    let export = [&["export"], &words[..]].concat();
    let said = succeed("prepare", &export);
    assert!(said.contains("position ids are aligned"), "{said}");
    let names: Vec<_> = files(&out).into_keys().collect();
    assert_eq!(
        names,
        ["config.json", "model.safetensors", "tokenizer.json"].map(std::path::PathBuf::from)
    );
    assert_eq!(
        run("prepare", &export).code,
        Some(2),
        "it must not write over anything"
    );

    let device = Device::flex();
    let opened = Opened::find(at, Some("cot")).unwrap();
    let original = opened.load(&device).unwrap();
    let exported = huggingface::load(&out, &device).unwrap();
    let logits = |model: &Transformer| {
        let ids = Tensor::<2, Int>::from_data([[5, 3, 7, 4]], &device);
        let positions = Tensor::<2, Int>::from_data([[0, 1, 2, 3]], &device);
        let logits = model.forward(ids, positions, Visibility::causal(4, &device));
        logits.into_data().iter::<f32>().collect::<Vec<f32>>()
    };
    assert_eq!(logits(original.backbone()), logits(&exported));
    let tokenizer = sesqui_dataset::tokenizer::Tokenizer::load(&out.join("tokenizer.json"), None);
    assert_eq!(
        tokenizer.unwrap().hash().unwrap(),
        opened.tokenizer.hash().unwrap()
    );

    // And a stage can start from it.
    let start = format!(
        "stages.cot.initialize={{ kind = \"hugging-face\", path = {:?} }}",
        out.to_str().unwrap()
    );
    let run = folder.join("second");
    let run = run.to_str().unwrap();
    succeed(
        "train",
        &[
            "--smoke",
            "--renderer",
            "none",
            "--run",
            run,
            "--set",
            &start,
        ],
    );
}
