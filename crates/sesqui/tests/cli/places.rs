//! Where things are computed: devices on a command line, the jobs of a study, and what a profile says.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sesqui_run::rows::read_rows;
use sesqui_run::{MetricRow, StudyDirectory};

use crate::resume::assert_same;
use crate::study::{STUDY, arguments};
use crate::support::{files, root, run, said, succeed};

fn train(at: &Path, more: &[&str]) -> String {
    let small = [
        "--smoke",
        "--renderer",
        "plain",
        "--run",
        at.to_str().unwrap(),
    ];
    succeed("train", &[&small[..], more].concat())
}

#[test]
fn devices_change_no_bit_and_a_profile_counts_reads() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let said = train(&at("one"), &["--devices", "0", "--profile"]);
    for part in [
        "backend    cpu 0\n",
        "cot: 20 steps, ms per step: beforehand 0.00, batches ",
        // Losses and norm, together.
        "1.00 reads from the device per step",
        "no_cot, test: ",
        "reads from the device per batch of questions",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = train(&at("two"), &["--devices", "0,1"]);
    assert!(said.contains("backend    cpu 0, 1\n"), "{said}");
    assert_same(&at("two"), &at("one"), "two workers");
    let said = train(&at("three"), &["--devices", "2,0,1", "--backend", "auto"]);
    for part in [
        "cuda: not compiled in",
        "2 of 3 devices compute; raise training.accumulation",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// Losses by stage and step.
fn losses(run: &Path) -> Vec<(String, u64, Option<f64>)> {
    let rows = read_rows::<MetricRow>(&run.join("metrics.jsonl"))
        .unwrap()
        .0;
    let losses = rows.into_iter().map(|row| (row.stage, row.step, row.loss));
    losses.collect()
}

#[test]
fn a_teacher_that_reads_every_problem_once_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // A fortieth of these, so that each problem is read six times.
    let few = ["--set", "data.train_per_length=800"];
    let said = train(&at("kept"), &few);
    for stage in ["latent", "system15"] {
        let line = format!("{stage}: the teacher reads 100 problems once");
        assert!(said.contains(&line), "{line}: {said}");
    }
    let each = "teacher_states={kind=\"each-step\"}";
    let (latent, system15) = (
        format!("stages.latent.{each}"),
        format!("stages.system15.{each}"),
    );
    let each = ["--set", &latent, "--set", &system15];
    let said = train(&at("each"), &[&few[..], &each].concat());
    assert!(!said.contains("the teacher reads"), "{said}");
    assert_eq!(losses(&at("kept")), losses(&at("each")));
}

/// Rounding of 16-bit floats, and of operations that are not fused, shows in losses and does not change what is learned.
#[test]
fn narrow_floats_and_recomputing_train_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    train(&at("wide"), &[]);
    let expected = losses(&at("wide"));
    for (name, set, most) in [
        // An f16 has 11 bits of significand, and 20 steps take many roundings.
        (
            "narrow",
            &["precision=f16", "reasoning.latent_steps=2"][..],
            5e-2,
        ),
        (
            "again",
            &["stages.latent.training.recompute=memory-bound"],
            1e-4,
        ),
    ] {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        train(&at(name), &set);
        let found = losses(&at(name));
        assert_eq!(found.len(), expected.len());
        let pairs = expected.iter().zip(&found);
        let differences = pairs.filter_map(|(expected, found)| {
            let (expected, found) = (expected.2?, found.2?);
            Some((expected - found).abs() / expected)
        });
        let worst = differences.fold(0.0, f64::max);
        assert!(worst > 0.0 && worst <= most, "{name}: {worst}");
    }
    // Another file says which data, not how the model is asked.
    let (narrow, other) = (at("narrow"), at("wide").join("config.toml"));
    let out = at("out");
    for more in [&[][..], &["--set", "precision=f32"]] {
        let arguments = [
            narrow.to_str().unwrap(),
            "--config",
            other.to_str().unwrap(),
            "--timing-questions",
            "0",
            "--out",
            out.to_str().unwrap(),
        ];
        succeed("evaluate", &[&arguments[..], more].concat());
    }
    let written = files(&out).into_iter();
    let written = written.filter(|(path, _)| path.extension().is_some_and(|kind| kind == "json"));
    let mut steps = Vec::new();
    for (path, bytes) in written {
        let found: Value = serde_json::from_slice(&bytes).unwrap();
        if path.display().to_string().contains("latent_") {
            steps.push(found["summary"]["latent_steps"].as_f64().unwrap());
        }
    }
    assert_eq!(steps, [2.0, 2.0]);
}

/// A scheduler's tasks, one after the other, are the study.
#[test]
fn the_jobs_of_a_study_are_the_study() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("study");
    let mut words = arguments(&at);
    words.extend(["--emit", "jobs"]);
    let script = succeed("train", &words);
    for part in [
        "#SBATCH --array=0-1\n",
        "set -- arith-dag_seed-1 arith-dag_seed-2\n",
        "xargs -P 2",
    ] {
        assert!(script.contains(part), "{part}: {script}");
    }
    assert!(!at.exists(), "printing jobs writes nothing");
    let refused = run("train", &["--study", STUDY, "--emit", "jobs"]);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    let reason = "name the study directory with --run";
    assert!(refused.error.contains(reason), "{}", refused.error);
    let file = folder.path().join("jobs.sh");
    std::fs::write(&file, script).unwrap();
    let runs = StudyDirectory::at(&at);
    for (task, there) in [("1", [false, true]), ("0", [true, true])] {
        let mut shell = Command::new("sh");
        shell.arg(&file).current_dir(root());
        let said = said(shell.env("SLURM_ARRAY_TASK_ID", task));
        assert_eq!(said.code, Some(0), "{}{}", said.out, said.error);
        let found = ["arith-dag_seed-1", "arith-dag_seed-2"]
            .map(|run| runs.run(run).unwrap().summary().is_file());
        assert_eq!(found, there, "task {task}");
    }
    let report = std::fs::read_to_string(at.join("study.md")).unwrap();
    assert!(report.contains("| `system15` | 1, 2 |"), "{report}");
}
