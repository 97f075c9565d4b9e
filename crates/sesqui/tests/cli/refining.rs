//! Refined latents, as the programs show them on a run that was trained.

use std::path::Path;

use serde_json::Value;

use crate::runs::json;
use crate::support::{run, succeed};

/// Variants of refinement in one table, plain latents first.
pub fn refinements(at: &Path) {
    let path = at.to_str().unwrap();
    let words = ["--questions", "10", "--timing-questions", "0"];
    let variants = [
        "residual=0.5",
        "contrastive=0.3, residual=0.5",
        r#"contrastive={ direction=0.9, context="shared" }"#,
        r#"contrastive={ direction="mean" }"#,
        r#"contrastive={ direction="differentiated", sign="printed", inner_steps=2 }"#,
    ];
    let mut arguments = vec![
        path,
        "--stage",
        "system15",
        // What routers of twenty steps say is chance: below 1 they may let every latent step leave.
        "--set",
        "reasoning.exit_threshold=1",
        "--set",
        "reasoning.references.questions=9",
    ];
    arguments.extend(words);
    variants
        .iter()
        .for_each(|variant| arguments.extend(["--refine", variant]));
    let out = succeed("evaluate", &arguments);
    let labels = [
        "system15",
        "system15, residual 0.5",
        "system15, residual 0.5, contrastive 0.3",
        "system15, contrastive 0.03, gated 0.9, shared context",
        "system15, contrastive 0.03, mean direction",
        "system15, contrastive 0.03, printed sign, differentiated, 2 times",
    ];
    let summaries: Vec<Value> = out
        .lines()
        .filter_map(|line| line.strip_prefix("written: "))
        .filter_map(|line| line.strip_suffix(" and .jsonl"))
        .map(|line| json(Path::new(line)))
        .map(|file| file["summary"].clone())
        .collect();
    let methods: Vec<&str> = summaries
        .iter()
        .map(|row| row["method"].as_str().unwrap())
        .collect();
    assert_eq!(methods, labels, "{out}");
    let calls = |row: usize| summaries[row]["layer_calls"].as_f64().unwrap();
    let flops = |row: usize| summaries[row]["reason_flops"].as_f64().unwrap();
    // Blending and a fixed direction run nothing more, two models do.
    assert!(flops(2) > flops(1) && calls(2) > calls(1));
    assert!(flops(5) > flops(2), "{out}");
    for part in [
        "refinement: strong ",
        "checkpoints/cot/step-00000020, ",
        "calibrated on ",
        " latents of validation questions, rank 1",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    refinement_grid(path);
    let asked = [path, "--stage", "latent", "--question", "a=3+5;b=a*2;"];
    let out = succeed(
        "generate",
        &[&asked[..], &["--refine", "residual=0.5"]].concat(),
    );
    let moved = out
        .lines()
        .filter(|line| line.contains("   moved by "))
        .count();
    // Every latent that is fed, the first of which has none before it.
    assert_eq!(moved, 6, "{out}");
    assert!(out.contains("   moved by 0.000 of "), "{out}");
    let alone = at.join("checkpoints/cot/step-00000020");
    let alone = alone.to_str().unwrap();
    let same = format!("contrastive=1, references={{ strong='{alone}', weak='{alone}' }}");
    let gated = format!(
        "contrastive={{ direction=\"mean\" }}, references={{ strong='{alone}', weak='{alone}' }}"
    );
    let out = succeed("generate", &[&asked[..], &["--refine", &same]].concat());
    assert_eq!(out.matches("   moved by 0.000 of ").count(), 6, "{out}");
    let refused = run(
        "generate",
        &[
            path,
            "--stage",
            "cot",
            "--question",
            "?",
            "--refine",
            "residual=1",
        ],
    );
    assert_eq!(refused.code, Some(2), "{}", refused.error);
    assert!(
        refused.error.contains("there are no latents to refine"),
        "{}",
        refused.error
    );
    for (variant, part) in [
        ("residual=2", "residual.alpha: 2 is not in [0, 1]"),
        (
            "contrastive=1, references={ weak='runs/none' }",
            "runs/none is not a checkpoint folder",
        ),
        (&gated, "agree on every one of "),
        ("residual=[0, 1]", "2 ways of refining"),
        ("residual=0.5, contrast=1", "unknown field `contrast`"),
    ] {
        let refused = run("generate", &[&asked[..], &["--refine", variant]].concat());
        assert_eq!(refused.code, Some(2), "{}", refused.error);
        assert!(refused.error.contains(part), "{}", refused.error);
    }
}

/// Two lists of numbers are a grid: a row for each pair, each beside plain latents, and a picture.
fn refinement_grid(path: &str) {
    let words = [
        path,
        "--stage",
        "latent",
        "--questions",
        "8",
        "--timing-questions",
        "0",
    ];
    let grid = "residual=[0, 1], contrastive=[0, 0.2]";
    let out = succeed("evaluate", &[&words[..], &["--refine", grid]].concat());
    let written = |ending: &str| {
        let mut lines = out
            .lines()
            .filter_map(|line| line.strip_prefix("written: "));
        let line = lines.find(|line| line.ends_with(ending));
        std::fs::read_to_string(line.unwrap_or_else(|| panic!("{out}"))).unwrap()
    };
    let text = written(".refine.jsonl");
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let numbers = |row: &Value| {
        let number = |part: &str, key: &str| row["refine"][part][key].as_f64();
        (number("residual", "alpha"), number("contrastive", "size"))
    };
    let found: Vec<_> = rows.iter().map(numbers).collect();
    let pair = |alpha, size| (Some(alpha), Some(size));
    let (first, second) = (
        [pair(0.0, 0.0), pair(0.0, 0.2)],
        [pair(1.0, 0.0), pair(1.0, 0.2)],
    );
    assert_eq!(found, [&[(None, None)][..], &first, &second].concat());
    // Nothing blended and nothing moved is plain decoding.
    assert!(rows[0]["comparison"].is_null());
    let same = &rows[1]["comparison"];
    assert_eq!(
        (&same["won"], &same["lost"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    let picture = written(".refine.svg");
    for part in ["memory rate", "step size: 0.2", "+0 −0, p 1.00"] {
        assert!(picture.contains(part), "{part}: {picture}");
    }
}
