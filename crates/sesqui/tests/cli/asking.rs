//! What a trained run is asked: all questions again, grids of thresholds, one question at a time.

use std::path::Path;

use serde_json::Value;
use sesqui_run::Summary;

use crate::runs::json;
use crate::support::{files, program, run, said, succeed};

/// `evaluate` finds what the training run found, and writes beside it.
pub fn evaluations(at: &Path, summary: &Summary) {
    let path = at.to_str().unwrap();
    let before = files(&at.join("eval"));
    let out = succeed("evaluate", &[path, "--timing-questions", "2"]);
    for part in ["cot after step 20: ", "accuracy %", "McNemar's exact test"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let after = files(&at.join("eval"));
    assert!(before.iter().all(|(path, bytes)| after[path] == *bytes));
    assert_eq!(after.len(), before.len() + 2 * summary.rows.len());
    for line in out
        .lines()
        .filter_map(|line| line.strip_prefix("written: "))
    {
        let file = line.strip_suffix(" and .jsonl").unwrap();
        let found = json(Path::new(file))["summary"].clone();
        let row = summary
            .rows
            .iter()
            .find(|row| found["method"] == row.method.as_str())
            .unwrap();
        assert_eq!(found["accuracy"], row.accuracy);
        assert_eq!(found["checkpoint"], row.checkpoint.as_str());
        let answers = std::fs::read_to_string(Path::new(file).with_extension("jsonl")).unwrap();
        assert_eq!(answers.lines().count(), 20);
    }

    // A checkpoint knows its run, also by a path that does not show it.
    let inside = said(
        program("evaluate")
            .args(["step-00000020", "--timing-questions", "0"])
            .current_dir(at.join("checkpoints/cot")),
    );
    assert!(
        inside.out.contains("written: "),
        "{}{}",
        inside.out,
        inside.error
    );
    let after = files(&at.join("eval"));

    // Other questions, elsewhere.
    let elsewhere = at.parent().unwrap().join("elsewhere");
    let checkpoint = at.join("checkpoints").join(&summary.rows[1].checkpoint);
    let arguments = [
        checkpoint.to_str().unwrap(),
        "--split",
        "validation",
        "--split",
        "test",
        "--questions",
        "5",
        "--timing-questions",
        "0",
        "--set",
        "data.test_per_length=3",
        "--out",
        elsewhere.to_str().unwrap(),
    ];
    succeed("evaluate", &arguments);
    assert_eq!(files(&elsewhere).len(), 4);
    assert_eq!(files(&at.join("eval")).len(), after.len());

    // Longer programs than the model was trained on do not fit its aligned positions.
    let longer = [
        "evaluation.questions=0",
        "data.min_steps=5",
        "data.max_steps=9",
    ];
    let mut arguments = vec![path, "--stage", "cot", "--timing-questions", "0"];
    longer
        .iter()
        .for_each(|set| arguments.extend(["--set", set]));
    let refused = run("evaluate", &arguments);
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    assert!(
        refused.error.contains("always starts at position"),
        "{}",
        refused.error
    );
    arguments.extend(["--too-long", "skip"]);
    let out = succeed("evaluate", &arguments);
    assert!(
        out.contains("questions left out as too long; the first, "),
        "{out}"
    );
}

/// The file of cells that `evaluate` says it wrote; the picture beside it is named first.
fn written_cells(out: &str) -> &str {
    out.lines()
        .filter_map(|line| line.strip_prefix("written: "))
        .find(|file| file.ends_with(".jsonl"))
        .unwrap()
}

fn json_rows(file: &str) -> Vec<Value> {
    std::fs::read_to_string(file)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Both thresholds over a grid.
pub fn grid(path: &str) {
    let words = [
        "--stage",
        "system15",
        "--questions",
        "10",
        "--timing-questions",
        "0",
    ];
    let lists = ["--exit-threshold", "0,1", "--latent-steps", "1,3,6"];
    let out = succeed("evaluate", &[&[path], &words[..], &lists].concat());
    for part in [
        "exit threshold \\ latent steps",
        "system15 on arith-dag test, 10 questions\n(a test set: choose no threshold by this",
        "system15 exit_threshold=0 latent_steps=3",
        "McNemar's exact test",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let file = written_cells(&out);
    let picture = std::fs::read_to_string(file.replace(".jsonl", ".svg")).unwrap();
    assert!(
        picture.contains("12.00 calls") && picture.contains("a test set"),
        "{picture}"
    );
    let cells = json_rows(file);
    let calls: Vec<(f64, u64, f64)> = cells
        .iter()
        .map(|cell| {
            let calls = cell["summary"]["layer_calls"].as_f64().unwrap();
            let threshold = cell["exit_threshold"].as_f64().unwrap();
            (threshold, cell["latent_steps"].as_u64().unwrap(), calls)
        })
        .collect();
    // Two layers: at threshold 0 one cycle however many steps, at 1 all layers of every step.
    let expected = [
        (0.0, 1, 2.0),
        (0.0, 3, 2.0),
        (0.0, 6, 2.0),
        (1.0, 1, 2.0),
        (1.0, 3, 6.0),
        (1.0, 6, 12.0),
    ];
    assert_eq!(calls, expected);
    // Without routers there is no threshold, and nothing is measured twice.
    let words = [
        path,
        "--questions",
        "5",
        "--timing-questions",
        "0",
        "--stage",
    ];
    let lists = ["--exit-threshold", "0,0.5,1", "--latent-steps", "1,6"];
    let out = succeed("evaluate", &[&words[..], &["latent"], &lists].concat());
    assert!(
        out.contains("latent has no routers: ") && out.contains("\n no routers "),
        "{out}"
    );
    let cells = json_rows(written_cells(&out));
    let steps = cells.iter().map(|cell| cell["latent_steps"].as_u64());
    assert_eq!(steps.collect::<Vec<_>>(), [Some(1), Some(6)]);
    assert!(cells.iter().all(|cell| cell["exit_threshold"].is_null()));

    // Reasoning in words has neither; among all stages of a run it is measured as it is.
    for flag in [["--exit-threshold", "0,1"], ["--latent-steps", "2"]] {
        let refused = run("evaluate", &[&words[..], &["cot"], &flag].concat());
        let expected = format!(
            "error: {}: stage cot has objective cot, its model takes no latent steps; leave the flag \
             out, or take stage latent or system15\n",
            flag[0]
        );
        assert_eq!((refused.code, refused.error), (Some(2), expected));
    }
    let all = [&words[..5], &["--exit-threshold", "0,1"]].concat();
    let out = succeed("evaluate", &all);
    let table = out
        .lines()
        .filter(|line| line.contains(" arith-dag   test ") && line.contains(" 5 "));
    assert_eq!(table.count(), 3, "{out}");
    assert!(out.contains("system15 on arith-dag test"), "{out}");

    let latent = [path, "--stage", "latent", "--timing-questions", "0"];
    for (asked, said) in [
        (["--latent-steps", "90"], "with --latent-steps 90 it needs "),
        (
            ["--set", "reasoning.latent_steps=80"],
            "with reasoning.latent_steps = 80 it needs ",
        ),
    ] {
        let refused = run("evaluate", &[&latent[..], &asked].concat());
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(
            refused.error.contains(said) && refused.error.contains("positions, the model has 128"),
            "{}",
            refused.error
        );
        assert!(
            refused.error.contains("--too-long skip"),
            "{}",
            refused.error
        );
        // Positions are aligned: where one question does not fit, none does.
        let skipped = [&latent[..], &asked, &["--too-long", "skip"]].concat();
        let refused = run("evaluate", &skipped);
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(
            refused
                .error
                .contains("none of 20 questions fits the model")
                && refused.error.contains(said),
            "{}",
            refused.error
        );
    }
}

/// One question at a time, of a split and of the command line.
pub fn questions(path: &str) {
    let out = succeed(
        "generate",
        &[path, "--question", "a=3+5;b=a*2;", "--max-tokens", "6"],
    );
    for part in [
        "question   a=3+5;b=a*2;\n",
        "reasoning  ",
        "answer     ",
        "parsed     ",
        "prefill",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let out = succeed(
        "generate",
        &[path, "--stage", "no_cot", "--split", "test", "--index", "3"],
    );
    assert!(out.contains("expected   "), "{out}");
    let out = succeed("generate", &[path, "--question", "a=3+5;b=?a*é;"]);
    assert!(out.contains("read as unknown: ?é"), "{out}");
    // The last stage reasons in latent steps; at threshold 0 every one but the last leaves at once.
    let asked = [path, "--question", "a=3+5;b=a*2;"];
    let out = succeed(
        "generate",
        &[&asked[..], &["--exit-threshold", "0"]].concat(),
    );
    for part in [
        "question's end    layers 0..2   reads ",
        "latent step 1     layers 0..1   router 1: 0.",
        "latent step 2     layers 1..1   router 1: 0.",
        "handed on to the next step at layer 1, reads ",
        "latent step 6     layers 1..2   reads ",
        "6 latent steps",
        // Two layers once, in one cycle.
        "work       2 layer calls of reasoning; MFLOPs: ",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let whole = ["--exit-threshold", "1", "--latent-steps", "2"];
    let out = succeed("generate", &[&asked[..], &whole].concat());
    assert!(
        out.contains("latent step 2     layers 0..2   reads "),
        "{out}"
    );
    assert!(!out.contains("latent step 3"), "{out}");
    for (arguments, part) in [
        (&["--question", " "][..], "error: --question is empty"),
        (
            &["--split", "test", "--index", "25"],
            "arith-dag test has 25 questions, 0 to 24",
        ),
        (
            &["--split", "tset", "--index", "0"],
            "--split tset: arith-dag has test, validation",
        ),
        (
            &["--question", &"a=1+1;".repeat(30)],
            "the question does not fit the model: ",
        ),
        (
            &["--question", "a=1+1;", "--exit-threshold", "2"],
            "--exit-threshold: 2 is not in [0, 1]",
        ),
        (
            &["--question", "a=1+1;", "--latent-steps", "40"],
            "the question does not fit the model: with --latent-steps 40 it needs ",
        ),
        (
            &[
                "--stage",
                "cot",
                "--question",
                "?",
                "--exit-threshold",
                "0.5",
            ],
            "--exit-threshold: stage cot has objective cot, its model takes no latent steps; ",
        ),
        (
            &[
                "--stage",
                "no_cot",
                "--question",
                "?",
                "--latent-steps",
                "2",
            ],
            "--latent-steps: stage no_cot has objective no-cot, its model takes no latent steps; ",
        ),
        (
            &["--stage", "cto", "--question", "?"],
            "--stage cto: the run has the stages no_cot, cot, latent, system15",
        ),
    ] {
        let refused = run("generate", &[&[path], arguments].concat());
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(refused.error.contains(part), "{}", refused.error);
    }
}
