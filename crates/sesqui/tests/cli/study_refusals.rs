//! Studies that cannot be carried out: exit code 2 before anything is written, and what is told beforehand.

use crate::study::{STUDY, arguments};
use crate::support::{run, succeed};

/// Settings of the shipped study, standard error without `error: `.
const REFUSALS: &[(&[&str], &str)] = &[
    (
        &["reference=cto"],
        "reference: there is no method \"cto\"; data set arith-dag has no-cot, cot, latent, system15, joint",
    ),
    (
        &["reference=\"\""],
        "reference: name the method that others are compared with; data set arith-dag has no-cot, cot, \
         latent, system15, joint",
    ),
    (
        &["seeds=[]"],
        "seeds: there is none; give one or more, for example [1, 2, 3]",
    ),
    (
        &["seeds=[1,2,1]"],
        "seeds: 1 is there twice; give each seed once",
    ),
    (
        &["data_sets.arith-dag.methods.latent.name=cot"],
        "data_sets.arith-dag.methods.2.name: \"cot\" is taken",
    ),
    (
        &["data_sets.arith-dag.methods.latent.name=a b"],
        "data_sets.arith-dag.methods.2.name: \"a b\" becomes a file name: use letters, digits, `_` and `-`",
    ),
    (
        &["data_sets.arith-dag.methods=[]"],
        "data_sets.arith-dag.methods: there is none; add a [[data_sets.methods]]",
    ),
    (
        &["data_sets=[]"],
        "data_sets: there is nothing to study; add a [[data_sets]] with methods",
    ),
    (
        &["data_sets.arith-dag.methods.latent.stage=latnet"],
        "data_sets.arith-dag.methods.latent\n  because: stage: experiments/arith-dag/default.toml has no \
         stage \"latnet\"; it has no_cot, cot, latent, system15",
    ),
    (
        &["data_sets.arith-dag.methods.latent.set=[\"seed=7\"]"],
        "data_sets.arith-dag: set \"seed=7\": seeds are those of the study, `seeds`",
    ),
    (
        &["data_sets.arith-dag.methods.latent.set=[\"model.layers=two\"]"],
        "data_sets.arith-dag.methods.latent\n  because: --set model.layers=two: `model.layers` must be a \
         whole number, 0 or more, but is the string \"two\"",
    ),
    (
        &["data_sets.arith-dag.methods.latent.set=[\"evaluation.questions=7\"]"],
        "data_sets.arith-dag: no-cot and latent differ in evaluation.questions: 0 → 7; methods of one data \
         set share data, bad_rows and evaluation: set them in `set` of the data set, or make two data sets",
    ),
    (
        &["data_sets.arith-dag.methods.latent.set=[\"reasoning.halt={ kind = \\\"learned\\\" }\"]"],
        "data_sets.arith-dag.methods.latent\n  because: reasoning.halt: no stage learns a head; add one with \
         objective halt",
    ),
];

/// Nothing is trained, nothing is written.
#[test]
fn a_study_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("study");
    let refused = |set: &[&str]| {
        let set = set.iter().flat_map(|set| ["--set", set]);
        let words: Vec<&str> = arguments(&at).into_iter().chain(set).collect();
        let refused = run("train", &words);
        assert_eq!(
            refused.code,
            Some(2),
            "{set:?}: {}",
            refused.error,
            set = words
        );
        assert_eq!(refused.out, "");
        assert!(!at.exists());
        refused.error
    };
    for (set, expected) in REFUSALS {
        assert_eq!(refused(set), format!("error: {expected}\n"), "{set:?}");
    }
    let error = refused(&["latent_steps=[60]"]);
    assert!(error.contains("run arith-dag_seed-1\n"), "{error}");
    assert!(error.contains("method latent"), "{error}");
    let error = refused(&["data_sets.arith-dag.method=[]"]);
    assert!(
        error.contains("did you mean `data_sets.0.methods`?"),
        "{error}"
    );

    let both = run("train", &["--study", STUDY, "--config", STUDY]);
    assert_eq!(both.code, Some(2));
    assert!(both.error.contains("cannot be used with"), "{}", both.error);
}

/// What cannot share a run is told, and where.
#[test]
fn other_surroundings_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("study");
    let wide = "data_sets.arith-dag.methods.joint.set=[\"model.d_model=32\"]";
    let words = [&arguments(&at)[..], &["--dry-run", "--set", wide]].concat();
    let said = succeed("train", &words);
    for part in [
        "arith-dag.1_seed-2  not begun",
        "arith-dag.2_seed-1  not begun",
        "arith-dag.2: a run of its own for joint, because of model.d_model; what it has in common",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!at.exists());
}
