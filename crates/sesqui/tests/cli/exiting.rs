//! Early exit of tokens, from experiment files to tables.

use std::path::Path;

use sesqui_run::Summary;

use crate::runs::json;
use crate::support::{run, succeed, trained};

fn summary(at: &Path) -> Summary {
    let text = std::fs::read_to_string(at.join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn models_with_losses_below_the_last_layer_are_asked_both_ways() {
    for (name, labels) in [
        ("lite", "confidence 0.9"),
        ("layerskip", "self-speculative 2x4"),
    ] {
        let file = format!("experiments/arith-dag/{name}.toml");
        let out = succeed("train", &["--smoke", "--dry-run", "--config", &file]);
        let expected = format!("stage {name}: 20 steps");
        assert!(out.contains(&expected), "{name}: {out}");

        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("run");
        let out = trained(name, &at);
        let found = summary(&at);
        let methods: Vec<&str> = found.rows.iter().map(|row| &*row.method).collect();
        let both = |stage: &str| [stage.to_owned(), format!("{stage}, {labels}")];
        assert_eq!(methods, [both("cot"), both(name)].concat(), "{out}");
        for rows in found.rows.chunks(2) {
            let (all, exit) = (&rows[0], &rows[1]);
            match name {
                // The same answers, and rejected drafts beside.
                "layerskip" => {
                    assert_eq!((exit.accuracy, exit.tokens), (all.accuracy, all.tokens));
                    assert!(exit.layer_calls >= all.layer_calls, "{out}");
                    assert!(exit.flops > all.flops);
                }
                _ => assert!(exit.tokens > 0.0),
            }
        }
        assert_eq!(
            out.contains(" drafted tokens accepted"),
            name == "layerskip",
            "{out}"
        );
        let answers = at.join(format!("eval/{name}_token-exit_test.jsonl"));
        let answers = std::fs::read_to_string(answers).unwrap();
        assert_eq!(answers.contains("\"drafted\":"), name == "layerskip");
        // Both parts of the loss, and the accuracy.
        let metrics = std::fs::read_to_string(at.join("metrics.jsonl")).unwrap();
        let row = metrics
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|row| row["stage"] == name && row["split"] == "validation")
            .unwrap();
        for part in ["last", "below"] {
            assert!(row["values"][part].as_f64().unwrap() > 0.0, "{row}");
        }
        if name == "lite" {
            flags(&at);
        } else {
            // Nothing left to do.
            assert_eq!(trained(name, &at).lines().last(), out.lines().last());
        }
    }
}

/// Every kind on a run, one row beside the plain one for each.
fn flags(at: &Path) {
    let path = at.to_str().unwrap();
    let few = ["--questions", "6", "--timing-questions", "2"];
    let stage = [path, "--stage", "lite", "--split", "validation"];
    let asked = [
        "--token-exit",
        "fixed=[1,3]",
        "--token-exit",
        "confidence={threshold=[0,1], from=1}",
        "--token-exit",
        "self-speculative={layer=1,drafts=3}",
    ];
    let out = succeed("evaluate", &[&stage[..], &few, &asked].concat());
    let files: Vec<_> = out
        .lines()
        .filter_map(|line| line.strip_prefix("written: "))
        .filter_map(|line| line.strip_suffix(" and .jsonl"))
        .map(|line| json(Path::new(line)))
        .collect();
    let of = |row: usize, key: &str| files[row]["summary"][key].clone();
    let methods: Vec<_> = (0..files.len()).map(|row| of(row, "method")).collect();
    assert_eq!(
        methods,
        [
            "lite",
            "lite, exit at layer 1",
            "lite, exit at layer 3",
            "lite, confidence 0",
            "lite, confidence 1",
            "lite, self-speculative 1x3",
        ],
        "{out}"
    );
    let number = |row: usize, key: &str| of(row, key).as_f64().unwrap();
    for same in [2, 4, 5] {
        for key in ["accuracy", "tokens"] {
            assert_eq!(number(same, key), number(0, key), "{out}");
        }
    }
    assert_eq!(number(2, "flops"), number(0, "flops"));
    // Leaving after the first layer always: what is run above it is the question alone.
    assert_eq!(number(3, "tokens"), number(1, "tokens"));
    assert_eq!(number(3, "layer_calls"), number(1, "layer_calls"));
    assert!(number(3, "flops") > number(1, "flops"));
    // Asking after every layer and leaving nowhere.
    assert_eq!(number(4, "layer_calls"), number(0, "layer_calls"));
    assert!(number(4, "flops") > number(0, "flops"));
    assert!((0..6).all(|row| number(row, "total_ms") > 0.0));
    for part in ["McNemar's exact test", "drafted tokens accepted"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    // As configured, without a flag.
    let out = succeed("evaluate", &[&stage[..], &few].concat());
    assert!(out.contains("lite, confidence 0.9"), "{out}");

    let question = [path, "--stage", "lite", "--question", "a=3+5;b=a*2;"];
    let one = ["--token-exit", "fixed=1"];
    let shallow = succeed("generate", &[&question[..], &one].concat());
    let one = ["--token-exit", "fixed=3"];
    let deep = succeed("generate", &[&question[..], &one].concat());
    let calls = |out: &str, times: usize| {
        let line = |start: &str| {
            let line = out.lines().find(|line| line.starts_with(start)).unwrap();
            let number = line.split_whitespace().nth(1).unwrap();
            number.parse::<usize>().unwrap()
        };
        assert_eq!(line("work"), times * line("tokens"), "{out}");
    };
    let one = ["--token-exit", "self-speculative=1"];
    let drafted = succeed("generate", &[&question[..], &one].concat());
    assert!(drafted.contains(" tokens drafted, "), "{drafted}");
    calls(&shallow, 1);
    calls(&deep, 3);

    let words = &stage[..];
    for (program, arguments, part) in [
        (
            "evaluate",
            [words, &["--token-exit", "fixed=4"]].concat(),
            "--token-exit: layer: of stage lite: there is no layer 4; give 1 to 3",
        ),
        (
            "evaluate",
            [words, &["--token-exit", "fixed=0"]].concat(),
            "layer: must be at least 1",
        ),
        (
            "evaluate",
            [words, &["--token-exit", "confidence=2"]].concat(),
            "threshold: 2 is not in [0, 1]; 1 runs every layer",
        ),
        (
            "evaluate",
            [
                words,
                &["--token-exit", "self-speculative={layer=1,drafts=0}"],
            ]
            .concat(),
            "drafts: must be at least 1",
        ),
        (
            "evaluate",
            [
                words,
                &["--set", "reasoning.token_exit={kind=\"fixed\",layer=9}"],
            ]
            .concat(),
            "reasoning.token_exit.layer: of stage lite: there is no layer 9",
        ),
        (
            "generate",
            [&question[..], &["--token-exit", "fixed=[1,2]"]].concat(),
            "--token-exit: 2 exits; one question is answered in one",
        ),
    ] {
        let refused = run(program, &arguments);
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(refused.error.contains(part), "{part}: {}", refused.error);
    }
}

#[test]
fn exits_that_cannot_be_are_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("run");
    for (set, part) in [
        (
            "reasoning.token_exit={kind=\"fixed\",layer=0}",
            "reasoning.token_exit.layer: must be at least 1",
        ),
        (
            "reasoning.token_exit={kind=\"self-speculative\",layer=5,drafts=2}",
            "reasoning.token_exit.layer: of stage cot: there is no layer 5; give 1 to 4, the last",
        ),
        (
            "reasoning.token_exit.threshold=-0.5",
            "reasoning.token_exit.threshold: -0.5 is not in [0, 1]",
        ),
        (
            "stages.lite.objective.layer_dropout=1.0",
            "stages.lite.objective.layer_dropout: 1 is not in [0, 1)",
        ),
        (
            "stages.lite.objective.curriculum={kind=\"rotational\",every=0}",
            "stages.lite.objective.curriculum.every: must be at least 1",
        ),
    ] {
        let refused = run(
            "train",
            &[
                "--config",
                "experiments/arith-dag/lite.toml",
                "--run",
                at.to_str().unwrap(),
                "--set",
                set,
            ],
        );
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(refused.error.contains(part), "{part}: {}", refused.error);
        assert!(!at.exists());
    }
}
