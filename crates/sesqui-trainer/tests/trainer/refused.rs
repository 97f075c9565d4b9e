//! What stops a training with an error, and what the error says.

use sesqui_trainer::checkpoint::load_model;
use sesqui_trainer::{CheckpointError, FitError};

use crate::support::{Flaw, Setup, files, rows_of, timeless_rows};

#[test]
fn a_loss_that_is_no_number_names_step_and_rows_and_leaves_the_checkpoints() {
    // The second value overflows in the square of the gradient only: the loss is still finite.
    for (value, what) in [
        (f32::NAN, "loss"),
        (f32::INFINITY, "loss"),
        (1e12, "the gradient norm"),
    ] {
        let mut setup = Setup::one_map();
        setup.config.accumulation = 2;
        let folder = tempfile::tempdir().unwrap();
        let flawed = Setup {
            flaw: Flaw::Value(13, value),
            ..setup.clone()
        };
        let checkpoints = setup.checkpoints(folder.path());
        let error = flawed.run(folder.path()).unwrap_err();
        let FitError::NotFinite {
            stage,
            step,
            what: found,
            rows,
            value,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((stage.as_str(), *step, found.as_str()), ("linear", 7, what));
        assert_eq!(rows, "rows of batch 12; rows of batch 13");
        assert!(!value.is_finite());
        let message = error.to_string();
        assert!(
            message.contains("step 7") && message.contains("batch 13"),
            "{message}"
        );
        assert_eq!(checkpoints.steps().unwrap(), [4]);
        assert_eq!(
            rows_of(folder.path(), "train").len(),
            6,
            "no row of the failed step"
        );
        let before = files(&checkpoints.path(4));
        flawed.run(folder.path()).unwrap_err();
        assert_eq!(files(&checkpoints.path(4)), before);

        // With the data repaired it goes on as if nothing had happened.
        let whole = tempfile::tempdir().unwrap();
        let expected = setup.run(whole.path()).unwrap();
        let found = setup.run(folder.path()).unwrap();
        assert_eq!(found.model.values(), expected.model.values());
        assert_eq!(timeless_rows(folder.path()), timeless_rows(whole.path()));
    }
}

#[test]
fn a_frozen_model_has_nothing_to_train() {
    for accumulation in [1, 2] {
        let mut setup = Setup::new();
        setup.frozen = setup.widths.len() - 1;
        setup.config.accumulation = accumulation;
        let folder = tempfile::tempdir().unwrap();
        let error = setup.run(folder.path()).unwrap_err();
        assert!(matches!(error, FitError::NothingToTrain { .. }), "{error}");
        assert!(error.to_string().contains("stage linear"), "{error}");
        assert!(setup.checkpoints(folder.path()).steps().unwrap().is_empty());
    }
}

#[test]
fn a_batch_that_cannot_be_made_names_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let error = Setup {
        flaw: Flaw::Missing(2),
        ..Setup::new()
    }
    .run(folder.path())
    .unwrap_err();
    assert_eq!(error.to_string(), "stage linear, step 3: batch 2 is lost");
}

#[test]
fn resuming_with_another_seed_is_refused() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    setup.run(folder.path()).unwrap();
    let before = files(folder.path());
    let error = Setup {
        seed: 8,
        ..setup.clone()
    }
    .run(folder.path())
    .unwrap_err();
    let FitError::OtherSeed {
        found: 7,
        wanted: 8,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_model_of_another_shape_is_refused_by_parameter() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    setup.run(folder.path()).unwrap();
    for (widths, parameter) in [
        (vec![3, 5, 6, 2], "maps.1.weight"),
        (vec![3, 5, 4, 2, 2], "maps.3.weight"),
        (vec![3, 5, 2], "maps.1.weight"),
    ] {
        let other = Setup {
            widths: widths.clone(),
            ..setup.clone()
        };
        let error = other.run(folder.path()).unwrap_err();
        let content = matches!(error, FitError::Checkpoint(CheckpointError::Content { .. }));
        assert!(content, "{widths:?}: {error}");
        let message = error.to_string();
        let named = message.contains(parameter) && message.contains("step-00000010/model.bpk");
        assert!(named, "{widths:?}: {message}");
    }
    // More parameters in the checkpoint than in the model.
    let path = setup.checkpoints(folder.path()).path(10);
    let fewer = Setup {
        widths: vec![3, 5, 4],
        ..setup.clone()
    };
    let message = load_model(&path, fewer.model()).unwrap_err().to_string();
    assert!(message.contains("maps.2.weight"), "{message}");
}

#[test]
fn a_damaged_checkpoint_is_an_error() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    setup.run(folder.path()).unwrap();
    let latest = setup.checkpoints(folder.path()).path(10);
    for name in ["model.bpk", "optimizer.bpk", "state.json"] {
        let path = latest.join(name);
        let whole = std::fs::read(&path).unwrap();
        let damages = [
            ("missing", None),
            ("empty", Some(Vec::new())),
            ("cut", Some(whole[..whole.len() / 2].to_vec())),
            ("cut by a little", Some(whole[..whole.len() - 3].to_vec())),
            ("garbage", Some(vec![0xa5; whole.len()])),
        ];
        for (damage, bytes) in damages {
            match bytes {
                None => std::fs::remove_file(&path).unwrap(),
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            }
            let error = setup.run(folder.path()).unwrap_err();
            assert!(
                matches!(error, FitError::Checkpoint(_)),
                "{name} {damage}: {error}"
            );
            let message = error.to_string();
            assert!(
                message.contains(&format!("step-00000010/{name}")),
                "{damage}: {message}"
            );
        }
        std::fs::write(&path, whole).unwrap();
    }
    setup.run(folder.path()).unwrap();
}

#[test]
fn a_checkpoint_of_another_layout_is_refused() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    setup.run(folder.path()).unwrap();
    let path = setup.checkpoints(folder.path()).path(10).join("state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"schema\": 1", "\"schema\": 2"),
        ("\"step\"", "\"steps\""),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let message = setup.run(folder.path()).unwrap_err().to_string();
        assert!(message.contains("state.json"), "{message}");
    }
}
