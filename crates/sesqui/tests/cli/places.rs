//! Where things are computed: devices on a command line, the jobs of a study, and what a profile says.

use std::path::Path;
use std::process::Command;

use sesqui_run::rows::read_rows;
use sesqui_run::{MetricRow, StudyDirectory};

use crate::resume::assert_same;
use crate::study::{STUDY, arguments};
use crate::support::{root, run, said, succeed};

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
        "cot: 20 steps, ms per step: batches ",
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
    let said = train(&at("kept"), &[]);
    for stage in ["latent", "system15"] {
        let line = format!("{stage}: the teacher reads 200 problems once");
        assert!(said.contains(&line), "{line}: {said}");
    }
    let each = "teacher_states={kind=\"each-step\"}";
    let (latent, system15) = (
        format!("stages.latent.{each}"),
        format!("stages.system15.{each}"),
    );
    let said = train(&at("each"), &["--set", &latent, "--set", &system15]);
    assert!(!said.contains("the teacher reads"), "{said}");
    assert_eq!(losses(&at("kept")), losses(&at("each")));
}

#[test]
fn narrow_floats_and_recomputing_train_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("run");
    let said = train(
        &at,
        &[
            "--set",
            "precision=f16",
            "--set",
            "stages.latent.training.recompute=memory-bound",
        ],
    );
    assert!(said.contains("system15"), "{said}");
    let frozen = std::fs::read_to_string(at.join("config.toml")).unwrap();
    assert!(frozen.contains("precision = \"f16\""), "{frozen}");
    let at = at.to_str().unwrap();
    for more in [&[][..], &["--set", "precision=f32"]] {
        let said = succeed(
            "evaluate",
            &[&[at, "--timing-questions", "0"], more].concat(),
        );
        assert!(said.contains("system15"), "{said}");
    }
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
