//! What a step computes, against plain loops in 64 bits.
//!
//! Tolerances: weights are of order one and a step moves them by at most the learning rate. A 32-bit
//! sum over 12 rows errs by some 1e-7 of a gradient of order one. AdamW divides the gradient by its
//! own size, so that relative errors pass to the update unchanged: 1e-7 of 0.05, times three steps.
//! The rounding of the weights themselves, 6e-8 per step, outweighs that. `CLOSE` is ten times the
//! sum of both; a wrong bias correction, decay or factor shows at 1e-4 or more.

use sesqui_trainer::TrainingConfig;
use sesqui_trainer::schedule::{Decay, Schedule};

use crate::support::{ROWS, Rows, Setup, WIDTHS, difference, rows_of};

const CLOSE: f64 = 2e-6;

/// Where the host's arithmetic ended.
struct Reference {
    weights: Vec<f64>,
    losses: Vec<f64>,
    norms: Vec<f64>,
    rates: Vec<f64>,
}

/// Loss and gradient of one affine map, weight `[3, 2]` row-major then bias `[2]`.
fn gradient(weights: &[f64], batch: &Rows) -> (f64, Vec<f64>) {
    let [inputs, outputs] = WIDTHS;
    let rows = batch.inputs.len() / inputs;
    let cells = (rows * outputs) as f64;
    let (mut loss, mut gradient) = (0.0, vec![0.0; weights.len()]);
    for row in 0..rows {
        let x = &batch.inputs[row * inputs..(row + 1) * inputs];
        for column in 0..outputs {
            let mut value = weights[inputs * outputs + column];
            for (index, x) in x.iter().enumerate() {
                value += f64::from(*x) * weights[index * outputs + column];
            }
            let error = value - f64::from(batch.targets[row * outputs + column]);
            loss += error * error / cells;
            for (index, x) in x.iter().enumerate() {
                gradient[index * outputs + column] += 2.0 * error * f64::from(*x) / cells;
            }
            gradient[inputs * outputs + column] += 2.0 * error / cells;
        }
    }
    (loss, gradient)
}

/// AdamW as Loshchilov and Hutter (arXiv 1711.05101) write it, after clipping by the whole norm, begun anew
/// before every step that `resets`.
fn reference(
    config: &TrainingConfig,
    resets: fn(u64) -> bool,
    start: &[f32],
    rates: &[f64],
) -> Reference {
    let (beta_1, beta_2) = (f64::from(config.beta_1), f64::from(config.beta_2));
    let (epsilon, decay) = (f64::from(config.epsilon), f64::from(config.weight_decay));
    let mut weights: Vec<f64> = start.iter().map(|&weight| weight.into()).collect();
    let (mut first, mut second) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    let mut time = 0;
    for (step, rate) in rates.iter().enumerate() {
        let begin = step as u64 * config.accumulation;
        let batch = Rows::joined(begin..begin + config.accumulation);
        let (loss, mut gradient) = gradient(&weights, &batch);
        let norm = gradient.iter().map(|part| part * part).sum::<f64>().sqrt();
        if config.clip_norm > 0.0 && norm > config.clip_norm {
            gradient
                .iter_mut()
                .for_each(|part| *part *= config.clip_norm / norm);
        }
        if resets(step as u64) {
            first.fill(0.0);
            second.fill(0.0);
            time = 0;
        }
        time += 1;
        for index in 0..weights.len() {
            let part = gradient[index];
            first[index] = beta_1 * first[index] + (1.0 - beta_1) * part;
            second[index] = beta_2 * second[index] + (1.0 - beta_2) * part * part;
            let mean = first[index] / (1.0 - beta_1.powi(time));
            let square = second[index] / (1.0 - beta_2.powi(time));
            weights[index] *= 1.0 - rate * decay;
            weights[index] -= rate * mean / (square.sqrt() + epsilon);
        }
        losses.push(loss);
        norms.push(norm);
    }
    Reference {
        weights,
        losses,
        norms,
        rates: rates.to_vec(),
    }
}

fn check(setup: &Setup, rates: &[f64], what: &str) {
    let folder = tempfile::tempdir().unwrap();
    let outcome = setup.run(folder.path()).unwrap();
    let start = setup.model().values();
    let expected = reference(&setup.config, setup.resets, &start, rates);
    let rows = rows_of(folder.path(), "train");
    let column = |pick: fn(&sesqui_run::MetricRow) -> Option<f64>| -> Vec<f64> {
        rows.iter().map(|row| pick(row).unwrap()).collect()
    };
    for (name, found, expected) in [
        ("loss", column(|row| row.loss), &expected.losses),
        ("norm", column(|row| row.gradient_norm), &expected.norms),
        ("rate", column(|row| row.learning_rate), &expected.rates),
    ] {
        let off = difference(&found, expected);
        assert!(off <= CLOSE, "{what}: {name} {found:?} is not {expected:?}");
    }
    let off = difference(&outcome.model.values(), &expected.weights);
    assert!(off <= CLOSE, "{what}: weights differ by {off:e}");
    let tokens: Vec<u64> = rows.iter().map(|row| row.tokens).collect();
    let per_step = ROWS as u64 * setup.config.accumulation;
    let counted: Vec<u64> = (1..=rates.len() as u64)
        .map(|step| step * per_step)
        .collect();
    assert_eq!(tokens, counted, "{what}");
}

fn three_steps() -> Setup {
    let mut setup = Setup::one_map();
    setup.config.steps = 3;
    setup.config.weight_decay = 0.3;
    setup.config.clip_norm = 0.0;
    setup.config.learning_rate = Schedule {
        peak: 0.05,
        warm_up_steps: 0,
        decay: Decay::Constant,
    };
    setup
}

#[test]
fn three_steps_of_adamw_with_weight_decay() {
    let mut setup = three_steps();
    check(&setup, &[0.05; 3], "plain");
    setup.config.weight_decay = 0.0;
    check(&setup, &[0.05; 3], "no decay");
    setup.config.accumulation = 3;
    check(&setup, &[0.05; 3], "accumulated");
}

#[test]
fn an_optimizer_that_forgets_begins_anew() {
    let kept = three_steps();
    let forgotten = |resets| Setup {
        resets,
        ..kept.clone()
    };
    check(
        &forgotten(|step| step == 1),
        &[0.05; 3],
        "before the second",
    );
    check(&forgotten(|step| step == 2), &[0.05; 3], "before the third");
    check(&forgotten(|_| true), &[0.05; 3], "always");
    let weights = |setup: &Setup| {
        let outcome = setup.run(tempfile::tempdir().unwrap().path()).unwrap();
        outcome.model.values()
    };
    let moved = difference(&weights(&kept), &weights(&forgotten(|step| step == 2)));
    assert!(moved > 100.0 * CLOSE, "{moved:e}");
    // There is nothing to forget before the first.
    assert_eq!(weights(&kept), weights(&forgotten(|step| step == 0)));
}

#[test]
fn the_whole_gradient_is_clipped() {
    let mut setup = three_steps();
    // AdamW forgets the gradient's size unless epsilon is large beside it.
    setup.config.epsilon = 1.0;
    check(&setup, &[0.05; 3], "no clipping");
    for accumulation in [1, 3] {
        setup.config.accumulation = accumulation;
        for clip_norm in [0.01, 0.3, 100.0] {
            setup.config.clip_norm = clip_norm;
            check(
                &setup,
                &[0.05; 3],
                &format!("clipped to {clip_norm}, {accumulation} batches"),
            );
        }
    }
}

#[test]
fn the_schedule_is_what_the_rows_say_and_the_optimizer_uses() {
    let mut setup = three_steps();
    setup.config.steps = 6;
    setup.config.learning_rate = Schedule {
        peak: 0.06,
        warm_up_steps: 2,
        decay: Decay::Linear {
            start: 0.5,
            end: 0.1,
        },
    };
    // Half the peak, the peak until half of the steps, then down the line to a tenth after the end.
    check(&setup, &[0.03, 0.06, 0.06, 0.06, 0.042, 0.024], "linear");
}

#[test]
fn accumulated_batches_are_one_batch() {
    let mut accumulated = Setup::new();
    accumulated.config.accumulation = 3;
    let joined = Setup {
        joined: 3,
        ..Setup::new()
    };
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (left_outcome, right_outcome) = (
        accumulated.run(left.path()).unwrap(),
        joined.run(right.path()).unwrap(),
    );
    // Ten steps through three maps: every step adds what the file's head says.
    let off = difference(&left_outcome.model.values(), &right_outcome.model.values());
    assert!(off <= 4.0 * CLOSE, "weights differ by {off:e}");
    let moved = difference(&left_outcome.model.values(), &accumulated.model().values());
    assert!(moved > 0.05, "nothing was learned: {moved}");
    assert_eq!(left_outcome.state.tokens, right_outcome.state.tokens);
    assert_eq!(
        (
            left_outcome.state.next_batch,
            right_outcome.state.next_batch
        ),
        (30, 10)
    );
    for (left, right) in rows_of(left.path(), "train")
        .iter()
        .zip(rows_of(right.path(), "train"))
    {
        let pair = |row: &sesqui_run::MetricRow| {
            [
                row.loss.unwrap(),
                row.values["error"],
                row.gradient_norm.unwrap(),
            ]
        };
        let off = difference(&pair(left), &pair(&right));
        assert!(off <= 4.0 * CLOSE, "step {}: differs by {off:e}", left.step);
    }
}

#[test]
fn workers_change_no_bit() {
    let train = |workers: usize| {
        let mut setup = Setup::new();
        setup.config.accumulation = 4;
        setup.workers = workers;
        let folder = tempfile::tempdir().unwrap();
        let outcome = setup.run(folder.path()).unwrap();
        let norms: Vec<f64> = rows_of(folder.path(), "train")
            .iter()
            .map(|row| row.gradient_norm.unwrap())
            .collect();
        (outcome.model.values(), norms)
    };
    let alone = train(1);
    // Two rounds of two; a round of three and one of one; more workers than parts.
    for workers in [2, 3, 7] {
        assert_eq!(train(workers), alone, "{workers} workers");
    }
}
