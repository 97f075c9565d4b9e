//! `compare` on a run that was trained, called from the test that trains it.

use std::path::Path;

use serde_json::Value;

use crate::support::{run, succeed};

/// A run beside itself, stage by stage and file by file; pooled; and what cannot be compared.
pub fn comparisons(at: &Path, folder: &Path) {
    let path = at.to_str().unwrap();
    let out = folder.join("pairs.json");
    let file = out.to_str().unwrap();
    let text = succeed("compare", &[path, "--out", file]);
    assert!(text.contains("choose nothing by a test set"), "{text}");
    let rows = comparisons_in(&out);
    let names: Vec<&Value> = rows.iter().map(|row| &row["method"]).collect();
    assert_eq!(names, ["no_cot", "latent", "system15"]);
    for row in &rows {
        assert_eq!(
            (&row["reference"], &row["split"]),
            (&"cot".into(), &"test".into())
        );
        let (won, lost) = (ids(&row["won"]), ids(&row["lost"]));
        let difference = (won.len() as f64 - lost.len() as f64) / 20.0;
        assert_eq!(row["difference"], difference);
        assert!(won.iter().all(|id| !lost.contains(id)));
        let p = row["p"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&p), "{row}");
    }

    // The same through files, the other way round.
    let eval = |name: &str| at.join("eval").join(name).to_str().unwrap().to_owned();
    let (cot, latent) = (eval("cot_test.json"), eval("latent_test.jsonl"));
    succeed("compare", &[&cot, "--against", &latent, "--out", file]);
    let turned = comparisons_in(&out);
    assert_eq!(turned.len(), 1);
    assert_eq!(turned[0]["won"], rows[1]["lost"]);
    assert_eq!(turned[0]["p"], rows[1]["p"]);

    // Beside itself nothing differs; twice the same run shares its questions.
    succeed("compare", &[path, "--against", path, "--out", file]);
    for row in comparisons_in(&out) {
        assert_eq!((ids(&row["won"]).len(), row["p"].as_f64()), (0, Some(1.0)));
    }
    let text = succeed("compare", &[path, path, "--reference", "latent"]);
    assert!(
        text.contains("2 pooled") && text.contains("40 of 40 pooled answers"),
        "{text}"
    );

    let evaluated = [path, "--split", "validation", "--timing-questions", "0"];
    let elsewhere = folder.join("validation");
    let there = ["--stage", "cot", "--out", elsewhere.to_str().unwrap()];
    let said = succeed("evaluate", &[&evaluated[..], &there].concat());
    let validation = said
        .lines()
        .find_map(|line| line.strip_prefix("written: ")?.strip_suffix(" and .jsonl"))
        .unwrap();
    let missing = folder.join("nothing");
    let missing = missing.to_str().unwrap();
    for (arguments, part) in [
        (
            &[validation, "--against", &cot][..],
            "nothing to compare: cot on validation beside cot on test",
        ),
        (
            &[&cot],
            "nothing to compare in cot on test; name the method",
        ),
        (
            &[path, "--reference", "cto"],
            "nothing to compare in no_cot on test, cot on test",
        ),
        (
            &[path, "--against", path, path],
            "--against: 2 paths for 1; give one for each",
        ),
        (
            &[missing],
            "nothing.json; an evaluation is a .json and a .jsonl",
        ),
        (
            &[folder.to_str().unwrap()],
            "neither an evaluation nor a finished run",
        ),
    ] {
        let refused = run("compare", arguments);
        assert_eq!(refused.code, Some(2), "{arguments:?}: {}", refused.error);
        assert!(
            refused.error.contains(part),
            "{arguments:?}: {}",
            refused.error
        );
    }
}

fn comparisons_in(file: &Path) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(
        (&json["schema"], &json["draws"]),
        (&1.into(), &10_000.into())
    );
    json["comparisons"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<&str> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| id.as_str().unwrap()).collect()
}
