//! A study from its file to its table: shared stages, a stop, two processes at once, ways of asking, a run
//! that fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use sesqui_run::{Invocation, StudyDirectory};

use crate::resume::{assert_same, reaches};
use crate::support::{files, program, root, run, said, succeed};

pub const STUDY: &str = "experiments/studies/arith-dag.toml";
const METHODS: [&str; 5] = ["no-cot", "cot", "latent", "system15", "joint"];
const RUNS: [&str; 2] = ["arith-dag_seed-1", "arith-dag_seed-2"];

/// The shipped study, small, in `at`.
pub fn arguments(at: &Path) -> Vec<&str> {
    let words = [
        "--smoke",
        "--renderer",
        "plain",
        "--study",
        STUDY,
        "--set",
        "seeds=[1,2]",
        "--run",
    ];
    [&words[..], &[at.to_str().unwrap()]].concat()
}

fn report(at: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(at.join("study.json")).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().unwrap()
}

#[test]
fn a_study_is_trained_once_and_tabled_however_it_is_cut_up() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let said = succeed("train", &arguments(&whole));
    for part in [
        "cot, latent, system15, joint",
        "arith-dag_seed-2  not begun",
        "range of seeds",
        "with ancestors: steps",
        "accuracy %, latent steps",
        "paired with cot",
        "2 pooled",
        "Interval: Wilson",
        "study directory: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    rows(&whole);
    written(&whole);

    // The same command again finds everything done and finds the same.
    let before = files(&whole);
    let again = succeed("train", &arguments(&whole));
    assert!(again.contains("arith-dag_seed-2  finished"), "{again}");
    assert!(files(&whole) == before);
    // A run of a study is a run.
    let runs = RUNS.map(|name| whole.join("runs").join(name));
    let paths = runs.each_ref().map(|run| run.to_str().unwrap());
    assert!(succeed("compare", &paths).contains("2 pooled"));
    let dry = succeed("train", &[&arguments(&whole)[..], &["--dry-run"]].concat());
    for part in ["[[data_sets.methods]]", "finished", "arith-dag, "] {
        assert!(dry.contains(part), "{part}: {dry}");
    }

    let cut = folder.path().join("cut");
    cut_up(&cut);
    for name in RUNS {
        let place = |at: &Path| at.join("runs").join(name);
        assert_same(&place(&cut), &place(&whole), name);
    }
    // Everything but times and where it was made.
    let timeless = |at: &Path| {
        let pooled = list(&report(at), "pooled").clone();
        let strip = |mut row: Value| {
            let fields = row.as_object_mut().unwrap();
            for key in ["reason_ms", "total_ms"] {
                fields.remove(key).unwrap();
            }
            for cost in ["own", "with_ancestors"] {
                fields[cost].as_object_mut().unwrap().remove("seconds");
            }
            row
        };
        pooled.into_iter().map(strip).collect::<Vec<_>>()
    };
    assert_eq!(timeless(&cut), timeless(&whole));

    grows(&cut);

    // Another study does not go on in this directory, and nothing of it changes.
    let before = files(&whole);
    let other = [&arguments(&whole)[..], &["--set", "latent_steps=[1]"]].concat();
    let refused = run("train", &other);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    let part = "holds another study (old → new):\n  latent_steps: [] → [1]";
    assert!(refused.error.contains(part), "{}", refused.error);
    assert!(files(&whole) == before);
}

/// A finished study that gets a method more trains that alone.
fn grows(at: &Path) {
    let text = std::fs::read_to_string(root().join(STUDY)).unwrap();
    let wider = at.parent().unwrap().join("wider.toml");
    let method = "\n[[data_sets.methods]]\nname = \"coconut\"\nstage = \"coconut\"\n\
                  config = \"experiments/arith-dag/coconut.toml\"\n";
    std::fs::write(&wider, text + method).unwrap();
    let runs = RUNS.map(|name| at.join("runs").join(name));
    let trained = |run: &Path| {
        let kept = files(&run.join("checkpoints"));
        let kept: BTreeMap<_, _> = kept.into_iter().collect();
        kept
    };
    let before = runs.each_ref().map(|run| trained(run));
    let mut asked = arguments(at);
    let place = asked.iter().position(|word| *word == STUDY).unwrap();
    asked[place] = wider.to_str().unwrap();
    let said = succeed("train", &asked);
    assert!(
        said.contains("the study grows by data_sets.arith-dag.methods.coconut"),
        "{said}"
    );
    let report = report(at);
    assert_eq!(list(&report, "unfinished").len(), 0);
    let pooled = list(&report, "pooled").iter();
    let methods = pooled
        .filter(|row| row["asked"].is_null())
        .map(|row| row["method"].clone());
    let methods: Vec<_> = methods.collect();
    let expected: Vec<&str> = METHODS.into_iter().chain(["coconut"]).collect();
    assert_eq!(methods, expected);
    for (run, before) in runs.iter().zip(before) {
        let after = trained(run);
        assert!(
            before
                .iter()
                .all(|(path, bytes)| after.get(path) == Some(bytes))
        );
        assert!(after.len() > before.len());
    }
    // It does not shrink again.
    let back = run("train", &arguments(at));
    assert_eq!(back.code, Some(2), "{}", back.error);
    assert!(back.error.contains("holds another study"), "{}", back.error);
}

/// `study.json`: every method with every seed and pooled, its numbers of latent steps, its training.
fn rows(at: &Path) {
    let report = report(at);
    assert_eq!(report["schema"], 1);
    assert_eq!(list(&report, "unfinished").len(), 0);
    let rows = list(&report, "rows");
    // Three latent methods with 0 to 6 steps, the last as they are asked anyway.
    assert_eq!(rows.len(), 2 * (5 + 3 * 6));
    let pooled = list(&report, "pooled");
    assert_eq!(pooled.len(), 5 + 3 * 6);
    let mut accuracy: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for row in rows {
        assert_eq!(
            (&row["dataset"], &row["n"]),
            (&"arith-dag".into(), &20.into())
        );
        let key = (row["method"].to_string(), row["asked"].to_string());
        let found = accuracy.entry(key).or_default();
        found.push(row["accuracy"].as_f64().unwrap());
    }
    for row in pooled {
        let key = (row["method"].to_string(), row["asked"].to_string());
        let number = |key: &str| row[key].as_f64().unwrap();
        let [one, two] = accuracy[&key][..] else {
            panic!("{key:?}: not two seeds")
        };
        assert!((number("accuracy") - (one + two) / 2.0).abs() < 1e-12);
        assert_eq!(number("lowest"), one.min(two));
        assert_eq!(number("highest"), one.max(two));
        assert!(number("ci_low") <= number("accuracy") && number("accuracy") <= number("ci_high"));
        assert_eq!(row["n"], 40);
        if let Some(steps) = row["asked"].as_f64() {
            assert_eq!(number("latent_steps"), steps, "{row}");
        }
    }
    let asked = |row: &&Value| row["asked"].is_null();
    let names: Vec<&Value> = pooled
        .iter()
        .filter(asked)
        .map(|row| &row["method"])
        .collect();
    assert_eq!(names, METHODS);

    // Each seed, then both.
    let paired = list(&report, "paired");
    assert_eq!(paired.len(), 4 * 3);
    assert!(paired.iter().all(|row| row["reference"] == "cot"));
    let seeds = paired.iter().map(|row| list(row, "seeds").len());
    assert_eq!(seeds.collect::<Vec<_>>(), [1, 1, 2].repeat(4));

    let cost = |method: &str, of: &str, key: &str| {
        let found = pooled.iter().filter(asked);
        let mut found = found.filter(|row| row["method"] == method);
        found.next().unwrap()[of][key].as_f64().unwrap()
    };
    for key in ["steps", "tokens", "flops", "seconds"] {
        // One chain of thought, counted for each that starts from it.
        let chain = cost("cot", "own", key);
        assert_eq!(cost("cot", "with_ancestors", key), chain);
        for (method, before) in [
            ("no-cot", 0.0),
            ("joint", chain),
            ("latent", chain),
            ("system15", chain + cost("latent", "own", key)),
        ] {
            let all = cost(method, "own", key) + before;
            let found = cost(method, "with_ancestors", key);
            assert!((found - all).abs() <= 1e-9 * all, "{method}, {key}");
        }
    }
    // Three forward passes of 2 layers of width 32 for each token: their matrices, and on top of them
    // attention within at most 128 positions and the head of 32 tokens.
    for method in ["no-cot", "cot"] {
        let matrices = 3.0 * cost(method, "own", "tokens") * 2.0 * (24.0 * 32.0 * 32.0);
        let rest =
            3.0 * cost(method, "own", "tokens") * (2.0 * 4.0 * 32.0 * 128.0 + 2.0 * 32.0 * 32.0);
        let found = cost(method, "own", "flops");
        assert!(
            matrices < found && found < matrices + rest,
            "{method}: {found}"
        );
    }
    assert!(cost("latent", "own", "flops") > 0.0);
}

/// The files of a study, and that each stage was trained once for each seed.
fn written(at: &Path) {
    let text = std::fs::read_to_string(at.join("study.md")).unwrap();
    for part in [
        "```sh\ncargo run --release --bin train -- --smoke",
        "commit",
        "| arith-dag test | `system15` | 1, 2 | 40 | ",
        "| data | latent steps | 0 | 1 | 2 | 3 | 4 | 5 | 6 |",
        "Beside `cot` on the same questions",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for picture in ["pareto_flops.svg", "pareto_ms.svg"] {
        let svg = std::fs::read_to_string(at.join(picture)).unwrap();
        assert!(svg.contains("\narith-dag test, 2 seeds\n"), "{svg}");
        for method in METHODS {
            assert!(svg.contains(&format!("\n{method}\n")), "{method}: {svg}");
        }
    }
    let study = StudyDirectory::at(at);
    for name in RUNS {
        let run = study.run(name).unwrap();
        let folders = std::fs::read_dir(run.folder().join("checkpoints")).unwrap();
        let mut stages: Vec<String> = folders
            .map(|folder| folder.unwrap().file_name().into_string().unwrap())
            .collect();
        stages.sort();
        assert_eq!(stages, ["cot", "joint", "latent", "no_cot", "system15"]);
        assert!(run.summary().is_file());
    }
}

/// Stopped in the first run, then gone on with by two processes at once.
fn cut_up(at: &Path) {
    let start = |command: &mut Command| -> Child {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().unwrap()
    };
    let first = at.join("runs").join(RUNS[0]);
    let mut child = start(program("train").args(arguments(at)));
    assert!(reaches(&mut child, &first, 30));
    let signal = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(signal.unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{out}");
    let resume = out
        .lines()
        .find_map(|line| line.strip_prefix("resume with: "));
    let resume = resume.unwrap();
    let dry = said(
        Command::new("sh")
            .args(["-c", &format!("{resume} --dry-run")])
            .current_dir(root()),
    );
    assert!(dry.out.contains("saved after step"), "{}", dry.out);

    let both = [
        start(Command::new("sh").args(["-c", resume]).current_dir(root())),
        start(program("train").args(arguments(at))),
    ];
    for child in both {
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{error}");
    }
    let study = StudyDirectory::at(at);
    let starts = RUNS.map(|name| {
        let run = study.run(name).unwrap();
        Invocation::read(&run.invocation()).unwrap().len()
    });
    // The one that was stopped twice, the other once: nobody trained what somebody else did.
    assert_eq!(starts, [2, 1]);
    assert_eq!(list(&report(at), "unfinished").len(), 0);
}

/// Ways of asking one trained model, and two data sets.
const WAYS: &str = r#"
seeds = [3]
reference = "latent"
latent_steps = [2]

[[data_sets]]
name = "ten"
set = ["evaluation.max_tokens=30"]
methods = [
    { name = "latent", config = "experiments/arith-dag/default.toml", stage = "latent" },
    { name = "never", config = "experiments/arith-dag/default.toml", stage = "system15", set = ["reasoning.exit_threshold=1.0"] },
    { name = "always", config = "experiments/arith-dag/default.toml", stage = "system15", set = ["reasoning.exit_threshold=0.0"] },
    { name = "refined", config = "experiments/arith-dag/default.toml", stage = "latent", set = ["reasoning.refine.contrastive={ kind = \"search\", size = 0.3 }"] },
    { name = "halting", config = "experiments/arith-dag/default.toml", stage = "latent", set = ["reasoning.halt={ kind = \"entropy\", threshold = inf }"] },
]

[[data_sets]]
name = "seven"
set = ["data.modulus=7"]
methods = [
    { name = "cot", config = "experiments/arith-dag/default.toml", stage = "cot" },
    { name = "latent", config = "experiments/arith-dag/default.toml", stage = "latent" },
]
"#;

/// One model is trained for all ways of asking it, and each way is what it is elsewhere.
#[test]
fn methods_that_differ_in_reasoning_share_their_model() {
    let folder = tempfile::tempdir().unwrap();
    let (file, at) = (folder.path().join("ways.toml"), folder.path().join("at"));
    std::fs::write(&file, WAYS).unwrap();
    let (file, path) = (file.to_str().unwrap(), at.to_str().unwrap());
    let words = [
        "--smoke",
        "--renderer",
        "none",
        "--study",
        file,
        "--run",
        path,
    ];
    let said = succeed("train", &words);
    assert!(
        said.contains("latent, never, always, refined, halting"),
        "{said}"
    );
    assert!(said.contains("refinement: strong"), "{said}");

    let report = report(&at);
    let pooled = list(&report, "pooled");
    let find = |dataset: &str, method: &str, asked: Value| {
        let mut rows = pooled.iter();
        rows.find(|row| {
            (&row["dataset"], &row["method"], &row["asked"])
                == (&dataset.into(), &method.into(), &asked)
        })
    };
    let row = |method: &str| find("ten", method, Value::Null).unwrap();
    let number = |method: &str, key: &str| row(method)[key].as_f64().unwrap();
    // No exit is the student; each step after one layer but the last, which runs the other; one step.
    assert_eq!(row("never")["correct"], row("latent")["correct"]);
    assert_eq!(number("never", "layer_calls"), 12.0);
    assert!(number("always", "layer_calls") < 12.0);
    assert_eq!(number("halting", "latent_steps"), 1.0);
    assert!(number("refined", "layer_calls") >= 12.0);
    assert_eq!(row("always")["own"], row("never")["own"]);
    for method in ["latent", "never", "always", "refined"] {
        assert!(find("ten", method, 2.into()).is_some(), "{method}");
    }
    // A rule of its own decides how many steps; words take none.
    assert!(find("ten", "halting", 2.into()).is_none());
    assert!(find("seven", "cot", 2.into()).is_none());
    assert!(find("seven", "latent", Value::Null).is_some());

    let svg = std::fs::read_to_string(at.join("pareto_flops.svg")).unwrap();
    assert!(svg.contains("\nten test, one seed\n") && svg.contains("\nseven test, one seed\n"));
    let folders = std::fs::read_dir(at.join("runs")).unwrap();
    let mut runs: Vec<_> = folders.map(|run| run.unwrap().file_name()).collect();
    runs.sort();
    assert_eq!(runs, ["seven_seed-3", "ten_seed-3"]);
}

/// A run that fails is told; the others go on, and so does it, once it can.
#[test]
fn one_failure_leaves_the_other_runs() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("study");
    let words = "data_sets.arith-dag.methods=[{ name = \"cot\", stage = \"cot\", config = \
                 \"experiments/arith-dag/default.toml\" }]";
    let words = [&arguments(&at)[..], &["--set", words]].concat();
    succeed("train", &words);
    let study = StudyDirectory::at(&at);
    let [first, second] = RUNS.map(|name| study.run(name).unwrap());
    let whole = std::fs::read(first.metrics()).unwrap();
    std::fs::write(first.metrics(), "{}\n").unwrap();
    let records = [&first, &second].map(|run| run.folder().join("study/record.json"));
    for file in &records {
        std::fs::remove_file(file).unwrap();
    }

    let failed = run("train", &words);
    assert_eq!(failed.code, Some(1), "{}", failed.error);
    let told = "error: 1 of 2 runs failed: arith-dag_seed-1; what they had is kept, the same command goes on\n";
    assert_eq!(failed.error, told);
    for part in [
        "arith-dag_seed-1 failed: ",
        "metrics.jsonl:1: not a row",
        "Not finished: arith-dag_seed-1.",
    ] {
        assert!(failed.out.contains(part), "{part}: {}", failed.out);
    }
    assert_eq!(records.each_ref().map(|file| file.is_file()), [false, true]);
    assert_eq!(list(&report(&at), "unfinished"), &["arith-dag_seed-1"]);
    assert_eq!(list(&report(&at), "rows").len(), 1);

    std::fs::write(first.metrics(), whole).unwrap();
    succeed("train", &words);
    assert_eq!(list(&report(&at), "rows").len(), 2);
}
