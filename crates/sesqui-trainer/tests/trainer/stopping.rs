//! When validations happen and when they end a training.

use sesqui_trainer::{EarlyStopping, Stop};

use crate::support::{Setup, rows_of};

fn validated(setup: &Setup) -> (Vec<u64>, sesqui_trainer::State) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = setup.run(folder.path()).unwrap();
    assert_eq!(outcome.stop, Stop::Finished);
    let steps: Vec<u64> = rows_of(folder.path(), "validation")
        .iter()
        .map(|row| row.step)
        .collect();
    // Wherever it ends, the end is validated and saved.
    assert_eq!(steps.last(), Some(&outcome.state.step));
    let saved = setup.checkpoints(folder.path()).latest().unwrap().unwrap();
    assert_eq!(saved, outcome.state);
    assert!(saved.finished);
    assert_eq!(rows_of(folder.path(), "train").len() as u64, saved.step);
    (steps, saved)
}

#[test]
fn validations_come_every_few_steps_and_after_the_last() {
    let table: [(u64, &[u64]); 5] = [
        (0, &[10]),
        (1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (3, &[3, 6, 9, 10]),
        (5, &[5, 10]),
        (50, &[10]),
    ];
    for (validate_every, steps) in table {
        let mut setup = Setup::new();
        setup.config.validate_every = validate_every;
        assert_eq!(validated(&setup).0, steps, "every {validate_every}");
    }
}

#[test]
fn a_validation_row_holds_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    Setup::new().run(folder.path()).unwrap();
    let row = &rows_of(folder.path(), "validation")[1];
    assert_eq!(
        (row.stage.as_str(), row.step, row.tokens),
        ("linear", 6, 24)
    );
    let names: Vec<&str> = row.values.keys().map(String::as_str).collect();
    assert_eq!(names, ["accuracy", "error"]);
    assert_eq!(row.values["accuracy"], 0.06);
    assert!(row.loss.unwrap() > 0.0 && row.learning_rate.is_none());
}

#[test]
fn rules_of_early_stopping() {
    type Accuracy = fn(u64) -> Option<f64>;
    let rising: Accuracy = |step| Some(0.1 * step as f64);
    let level: Accuracy = |_| Some(0.5);
    // 0.5, 0.4, 0.6, 0.6, 0.5: the tie counts as no new best.
    let wavering: Accuracy = |step| {
        [0.5, 0.4, 0.6, 0.6, 0.5]
            .get(step as usize / 2 - 1)
            .copied()
    };
    let silent: Accuracy = |_| None;
    let reached = |accuracy| EarlyStopping::Reached { accuracy };
    let stalled = |patience| EarlyStopping::Stalled { patience };
    let table = [
        // rule, accuracies after steps 2, 4, ..., last step, best step, validations since
        (EarlyStopping::Never, level, 10, 2, 4),
        (reached(0.4), rising, 4, 4, 0),
        (reached(0.45), rising, 6, 6, 0),
        (reached(0.6), level, 10, 2, 4),
        (stalled(1), rising, 10, 10, 0),
        (stalled(1), level, 4, 2, 1),
        (stalled(3), level, 8, 2, 3),
        (stalled(1), wavering, 4, 2, 1),
        (stalled(2), wavering, 10, 6, 2),
        (stalled(1), silent, 10, 0, 0),
    ];
    for (rule, accuracy, last, best, since) in table {
        let mut setup = Setup {
            accuracy,
            ..Setup::new()
        };
        setup.config.validate_every = 2;
        setup.config.early_stopping = rule;
        let (_, state) = validated(&setup);
        assert_eq!(
            (state.step, state.best_step, state.stalled),
            (last, best, since),
            "{rule:?}"
        );
        assert_eq!(
            state.best_accuracy,
            (best > 0).then(|| accuracy(best)).flatten()
        );
    }
}
