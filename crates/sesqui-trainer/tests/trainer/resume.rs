//! An interrupted training ends in the same bytes as an uninterrupted one.

use sesqui_trainer::checkpoint::load_state;
use sesqui_trainer::{EarlyStopping, Stop};

use crate::support::{Flaw, Setup, Stopper, assert_same_files, difference, files, timeless_rows};

/// Trains once in one go and once through `interruptions`, and compares what is left.
fn check(setup: &Setup, interruptions: &[Stopper]) {
    let what = format!("{interruptions:?}");
    let (straight, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = setup.run(straight.path()).unwrap();
    for &stopper in interruptions {
        let outcome = Setup {
            stopper,
            ..setup.clone()
        }
        .run(broken.path())
        .unwrap();
        assert_eq!(outcome.stop, Stop::Interrupted, "{what}");
        assert!(!outcome.state.finished);
    }
    let found = setup.run(broken.path()).unwrap();
    assert_eq!(
        (found.stop, &found.state),
        (Stop::Finished, &expected.state),
        "{what}"
    );
    assert_eq!(found.model.values(), expected.model.values(), "{what}");
    assert_eq!(
        timeless_rows(broken.path()),
        timeless_rows(straight.path()),
        "{what}"
    );
    let last =
        |folder: &tempfile::TempDir| setup.checkpoints(folder.path()).path(expected.state.step);
    let names: Vec<String> = files(&last(&broken)).into_keys().collect();
    assert_eq!(
        names,
        ["config.toml", "model.bpk", "optimizer.bpk", "state.json"]
    );
    assert_same_files(&last(&broken), &last(&straight), &what);
}

#[test]
fn from_every_step() {
    let setup = Setup::new();
    for step in 1..setup.config.steps {
        check(&setup, &[Stopper::InBatch(step)]);
    }
    check(&setup, &[Stopper::BeforeTheFirst]);
    check(&setup, &[Stopper::InValidation(3)]);
    check(
        &setup,
        &[
            Stopper::InBatch(1),
            Stopper::InBatch(5),
            Stopper::InValidation(6),
        ],
    );
}

#[test]
fn with_accumulation() {
    let mut setup = Setup::new();
    setup.config.accumulation = 3;
    for step in [1, 4, 9] {
        check(&setup, &[Stopper::InBatch(step)]);
    }
}

#[test]
fn with_device_noise_in_the_step() {
    let mut setup = Setup {
        noise: 0.3,
        ..Setup::new()
    };
    for accumulation in [1, 3] {
        setup.config.accumulation = accumulation;
        for step in [1, 5, 8] {
            check(&setup, &[Stopper::InBatch(step)]);
        }
    }
    // The noise is there, and it is a function of the seed.
    let weights = |setup: &Setup| {
        setup
            .run(tempfile::tempdir().unwrap().path())
            .unwrap()
            .model
            .values()
    };
    let noisy = weights(&setup);
    assert!(
        difference(
            &noisy,
            &weights(&Setup {
                noise: 0.0,
                ..setup.clone()
            })
        ) > 1e-3
    );
    assert!(
        difference(
            &noisy,
            &weights(&Setup {
                seed: 8,
                ..setup.clone()
            })
        ) > 1e-3
    );
}

#[test]
fn with_a_frozen_part() {
    let setup = Setup {
        frozen: 1,
        ..Setup::new()
    };
    check(&setup, &[Stopper::InBatch(2), Stopper::InBatch(6)]);
    let folder = tempfile::tempdir().unwrap();
    Setup {
        stopper: Stopper::InBatch(5),
        ..setup.clone()
    }
    .run(folder.path())
    .unwrap();
    let (before, after) = (
        setup.model().values(),
        setup.run(folder.path()).unwrap().model.values(),
    );
    let frozen = setup.widths[0] * setup.widths[1] + setup.widths[1];
    assert_eq!(
        before[..frozen],
        after[..frozen],
        "weight decay or a step reached a frozen part"
    );
    assert!(difference(&before[frozen..], &after[frozen..]) > 1e-3);
}

/// Resumed in the middle, and just where the moments are dropped, with a checkpoint there or before.
#[test]
fn with_an_optimizer_that_forgets() {
    let setup = Setup {
        resets: |step| step == 4 || step == 7,
        ..Setup::new()
    };
    for step in [3, 4, 5, 7, 8] {
        check(&setup, &[Stopper::InBatch(step)]);
    }
    check(&setup, &[Stopper::InBatch(4), Stopper::InBatch(7)]);
}

#[test]
fn with_the_memory_of_early_stopping() {
    let mut setup = Setup::new();
    // Best after 3, then two validations without a new best: stops after 9.
    setup.accuracy = |step| Some(if step == 3 { 0.5 } else { 0.4 });
    setup.config.steps = 30;
    setup.config.early_stopping = EarlyStopping::Stalled { patience: 2 };
    check(&setup, &[Stopper::InBatch(7)]);
    check(&setup, &[Stopper::InValidation(6)]);
}

#[test]
fn after_a_crash_between_checkpoints() {
    let setup = Setup::new();
    let (straight, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    setup.run(straight.path()).unwrap();
    for lost in [2, 6] {
        // Batch 6 belongs to step 7: steps 5 and 6 have rows but no checkpoint.
        let flaw = Flaw::Missing(lost);
        Setup {
            flaw,
            ..setup.clone()
        }
        .run(broken.path())
        .unwrap_err();
    }
    setup.run(broken.path()).unwrap();
    assert_eq!(timeless_rows(broken.path()), timeless_rows(straight.path()));
    let folder = |run: &tempfile::TempDir| run.path().join("checkpoints");
    assert_same_files(&folder(&broken), &folder(&straight), "after a crash");
}

#[test]
fn of_a_finished_stage_changes_nothing() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    let first = setup.run(folder.path()).unwrap();
    let before = files(folder.path());
    let second = setup.run(folder.path()).unwrap();
    assert_eq!(files(folder.path()), before);
    assert_eq!(first.model.values(), second.model.values());
    assert_eq!((first.state, Stop::Finished), (second.state, second.stop));
}

#[test]
fn a_stop_during_the_last_step_comes_too_late() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        stopper: Stopper::InBatch(10),
        ..Setup::new()
    };
    let outcome = setup.run(folder.path()).unwrap();
    assert_eq!(
        (outcome.stop, outcome.state.finished),
        (Stop::Finished, true)
    );
    let saved = load_state(&setup.checkpoints(folder.path()).path(10)).unwrap();
    assert_eq!(saved, outcome.state);
    assert_eq!((saved.step, saved.next_batch, saved.tokens), (10, 10, 40));
}
