//! Kills and Ctrl-C: however a run is cut up, it ends as if it had not been.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{files, program, root, said, succeed};

/// Small enough for seconds, with checkpoints, validations and all kinds of stages to be cut up.
const EXPERIMENT: &str = r#"
data = { kind = "arith-dag", train_per_length = 60, validation_per_length = 2, test_per_length = 4 }
model = { layers = 2, d_model = 32, heads = 2 }
evaluation = { timing_questions = 2, max_tokens = 8 }
positions = "aligned"

[[stages]]
name = "no_cot"
objective = { kind = "no-cot" }
batches = { grouping = "by-length" }
training = { steps = 60, accumulation = 2, validate_every = 25, checkpoints = { every = 7, keep_last = 2, keep_at = [20] } }

[[stages]]
name = "cot"
objective = { kind = "cot" }
initialize = { kind = "stage", stage = "no_cot" }
batches = { grouping = "by-length" }
training = { steps = 60, accumulation = 2, validate_every = 25, checkpoints = { every = 4, keep_last = 3 } }

[[stages]]
name = "latent"
initialize = { kind = "stage", stage = "cot" }
batches = { grouping = "by-length", length_exponent = 2 }
training = { steps = 40, accumulation = 2, validate_every = 15, checkpoints = { every = 6, keep_last = 2 } }

[stages.objective]
kind = "align"
latents = { positions = { kind = "strided", offset = 5, stride = 7 } }
feeding = { kind = "corrected", until = 0.3 }
exit_dropout = { kind = "late", start = 0.5, share = 0.5, independent = 0.5 }

[[stages]]
name = "system15"
objective = { kind = "shortcut" }
initialize = { kind = "stage", stage = "latent" }
batches = { grouping = "by-length" }
training = { steps = 30, accumulation = 2, validate_every = 12, checkpoints = { every = 5, keep_last = 2 } }

[[stages]]
name = "joint"
initialize = { kind = "stage", stage = "cot" }
batches = { grouping = "by-length" }
training = { steps = 20, accumulation = 2, validate_every = 8, checkpoints = { every = 3, keep_last = 2 } }

[stages.objective]
kind = "joint"
align = { latents = { positions = { kind = "strided", offset = 5, stride = 7 } } }
shortcut = { trains = "everything", shortcuts = { adapter = { dropout = 0.1 } } }

[[stages]]
name = "coconut"
initialize = { kind = "stage", stage = "cot" }
batches = { grouping = "by-length" }
training = { steps = 16, accumulation = 2, validate_every = 6, checkpoints = { every = 3, keep_last = 2 } }

[stages.objective]
kind = "curriculum"
schedule = { kind = "staged", first = 0, updates = 3 }
uniform_probability = 0.3
positions = { kind = "strided", offset = 5, stride = 7 }

[[stages]]
name = "icot"
objective = { kind = "icot", remove_per = 3, updates = 2, removal_smoothing = 1.0 }
initialize = { kind = "stage", stage = "cot" }
batches = { grouping = "by-length" }
training = { steps = 16, accumulation = 2, validate_every = 6, checkpoints = { every = 3, keep_last = 2 } }
"#;

const KILLS: u64 = 10;

/// The command for a run in its own folder below that of the experiment.
fn arguments(run: &Path) -> Vec<String> {
    let file = run.with_file_name("experiment.toml");
    let paths = [file.to_str().unwrap(), run.to_str().unwrap()];
    let words = [
        "--renderer",
        "plain",
        "--config",
        paths[0],
        "--run",
        paths[1],
    ];
    words.map(str::to_owned).into()
}

fn start(run: &Path) -> Child {
    let mut command = program("train");
    command
        .args(arguments(run))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until `metrics.jsonl` has `rows` rows; false when the program ends before.
pub fn reaches(child: &mut Child, run: &Path, rows: usize) -> bool {
    let patience = Instant::now() + Duration::from_secs(100);
    loop {
        let text = std::fs::read(run.join("metrics.jsonl")).unwrap_or_default();
        if text.iter().filter(|&&byte| byte == b'\n').count() >= rows {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < patience, "never got to {rows} rows");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The rows less what a clock says.
fn rows(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let timeless = text.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let fields = row.as_object_mut().unwrap();
        fields.remove("tokens_per_second");
        fields.remove("elapsed_seconds").unwrap();
        row
    });
    timeless.collect()
}

pub fn assert_same(found: &Path, expected: &Path, what: &str) {
    let rows = [rows(found), rows(expected)];
    assert_eq!(rows[0].len(), rows[1].len(), "{what}: rows");
    for (found, expected) in rows[0].iter().zip(&rows[1]) {
        assert_eq!(found, expected, "{what}");
    }
    let [found, expected] = [found, expected].map(|run| files(&run.join("checkpoints")));
    let names =
        |files: &std::collections::BTreeMap<_, _>| -> Vec<_> { files.keys().cloned().collect() };
    assert_eq!(names(&found), names(&expected), "{what}: files");
    for (path, bytes) in &expected {
        assert!(found[path] == *bytes, "{what}: {} differs", path.display());
    }
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn killed_and_interrupted_runs_end_like_uninterrupted_ones() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("experiment.toml"), EXPERIMENT).unwrap();
    let whole = folder.path().join("whole");
    let words = arguments(&whole);
    succeed(
        "train",
        &words.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    // By itself a run directory stands for what the run was started with.
    let alone = ["--renderer", "none", "--run", whole.to_str().unwrap()];
    assert!(succeed("train", &alone).contains("icot"));
    let total = rows(&whole).len();
    let checkpoints = files(&whole.join("checkpoints"));
    for last in [
        "no_cot/step-00000060",
        "cot/step-00000060",
        "latent/step-00000040",
        "system15/step-00000030",
        "joint/step-00000020",
        "coconut/step-00000016",
        "icot/step-00000016",
    ] {
        for file in ["model.bpk", "optimizer.bpk", "state.json"] {
            let path = Path::new(last).join(file);
            assert!(checkpoints.contains_key(&path), "{}", path.display());
        }
    }

    // Moments are rows of the metrics, spread over the run, and some milliseconds after: in a step,
    // in a validation, in a checkpoint.
    let killed = folder.path().join("killed");
    let mut seed = 20_260_301;
    for kill in 0..KILLS {
        let spacing = total as u64 / (KILLS + 1);
        let moment = spacing * kill + random(&mut seed) % spacing + 1;
        let mut child = start(&killed);
        let there = reaches(&mut child, &killed, moment as usize);
        std::thread::sleep(Duration::from_micros(random(&mut seed) % 20_000));
        child.kill().unwrap();
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&ended.stderr);
        assert!(there, "kill {kill}: ended before row {moment}: {error}");
        assert_eq!(
            ended.status.signal(),
            Some(9),
            "kill {kill} at row {moment}: {error}"
        );
    }
    let words = arguments(&killed);
    succeed(
        "train",
        &words.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert_same(&killed, &whole, "killed ten times");

    let stopped = folder.path().join("stopped");
    let mut child = start(&stopped);
    assert!(reaches(&mut child, &stopped, total * 3 / 5));
    let signal = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(signal.unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{out}");
    let resume = out
        .lines()
        .find_map(|line| line.strip_prefix("resume with: "))
        .unwrap();
    let resumed = said(Command::new("sh").args(["-c", resume]).current_dir(root()));
    assert_eq!(resumed.code, Some(0), "{resume}: {}", resumed.error);
    assert!(
        resumed.out.contains("resuming after step"),
        "{}",
        resumed.out
    );
    assert_same(&stopped, &whole, "stopped by Ctrl-C");
}
