//! What the soft composition of stage 2 pulls at, and what validation makes of both losses.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use burn::train::{InferenceStep, TrainStep};
use sesqui_distill::align::with_total;
use sesqui_distill::latent::Correction;
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::shortcut::{CompositionConfig, ShortcutLoss, StaircaseConfig, StudentInputs};
use sesqui_distill::{Rollout, Shortcut, ShortcutStageConfig};
use sesqui_shortcut::early_exit::Composed;
use sesqui_shortcut::{EarlyExitConfig, ShortcutConfig, Shortcuts};

use crate::by_hand::{FAMILIES, Models, all};
use crate::support::{LAYERS, gradients, measured, plain, tracked, values};

const READINGS: [Composed; 2] = [Composed::Local, Composed::Propagated];

fn composition(composed: Composed, beta: f64, gamma: f64) -> CompositionConfig {
    CompositionConfig {
        early_exit: EarlyExitConfig {
            composed,
            ..EarlyExitConfig::default()
        },
        beta,
        gamma,
        ..CompositionConfig::default()
    }
}

fn model(models: &Models, loss: ShortcutLoss) -> Shortcut {
    let config = ShortcutStageConfig {
        loss,
        ..ShortcutStageConfig::default()
    };
    Shortcut::new(
        models.student.clone(),
        models.shortcuts.clone(),
        &models.teacher,
        &config,
    )
}

/// Path and gradient of every parameter that is pulled at.
fn pulled(models: &Models, config: CompositionConfig) -> Vec<(String, Vec<f32>)> {
    let model = model(models, ShortcutLoss::Composition(config));
    let grads = TrainStep::step(&model, all(exits_drawn(1, 1))).grads;
    let mut found = gradients(&model, &grads);
    found.retain(|(_, gradient)| gradient.iter().any(|x| *x != 0.0));
    found
}

fn paths(found: &[(String, Vec<f32>)]) -> Vec<&str> {
    found.iter().map(|(path, _)| path.as_str()).collect()
}

/// Routers `0..routers` and adapters `0..adapters`, in the order of the parameters.
fn shortcuts_below(routers: usize, adapters: usize) -> Vec<String> {
    let both = |kind: &str, number: usize, parts: [&str; 2]| {
        parts.map(|part| format!("shortcuts.{kind}.{number}.{part}"))
    };
    let routers = (0..routers).flat_map(|at| both("routers", at, ["output.weight", "output.bias"]));
    let adapters = (0..adapters).flat_map(|at| both("adapters", at, ["down.weight", "up.weight"]));
    routers.chain(adapters).collect()
}

/// The answer sees keys and values of the latent steps in each layer, made of what was composed below
/// it: nothing that is composed after the last layer. Eq. 10 compares there too.
#[test]
fn the_answer_pulls_below_the_top_and_the_early_exit_loss_everywhere() {
    for family in FAMILIES {
        let models = Models::new(family, &tracked());
        for composed in READINGS {
            let answer = pulled(&models, composition(composed, 0.0, 0.0));
            assert_eq!(
                paths(&answer),
                shortcuts_below(LAYERS - 1, LAYERS),
                "{family:?}"
            );
            let both = pulled(&models, composition(composed, 1.0, 0.0));
            assert_eq!(
                paths(&both),
                shortcuts_below(LAYERS, LAYERS + 1),
                "{family:?}, {composed:?}"
            );
            let moved = answer.iter().filter(|part| !both.contains(part));
            assert_eq!(moved.count(), answer.len(), "{family:?}, {composed:?}");
        }
    }
}

/// Printed as it is, Eq. 10 knows no path from one gate to the next: what two of them change is the sum
/// of what each of them does. Where composed states go on, it is not.
///
/// Losses of order 1 carry 1e-7 each, four of them meet.
#[test]
fn gates_of_the_local_reading_do_not_meet() {
    let models = Models::new(FAMILIES[0], &plain());
    let early_exit = |composed, lower: f32, upper: f32| {
        let mut models = models.clone();
        for (router, by) in [(0, lower), (LAYERS - 1, upper)] {
            let output = &mut models.shortcuts.routers[router].output;
            output.bias = output
                .bias
                .take()
                .map(|bias| bias.map(|bias| bias.add_scalar(by)));
        }
        let loss = ShortcutLoss::Composition(composition(composed, 1.0, 0.0));
        let model = model(&models, loss);
        f64::from(values(InferenceStep::step(&model, all(exits_drawn(1, 1))).losses)[2])
    };
    let [local, propagated] = READINGS.map(|composed| {
        let changes = [(-1.0, 0.0), (0.0, -1.0), (-1.0, -1.0)].map(|(lower, upper)| {
            early_exit(composed, lower, upper) - early_exit(composed, 0.0, 0.0)
        });
        assert!(
            changes.iter().all(|change| change.abs() > 1e-3),
            "{changes:?}"
        );
        (changes[2] - changes[1] - changes[0]).abs()
    });
    measured("local", local);
    measured("propagated", propagated);
    assert!(
        local < 1e-6 && propagated > 1e-3,
        "{local:e}, {propagated:e}"
    );
}

/// Fresh gates all say sigmoid(0.85). Latent steps come to four labelled steps, of which two are not
/// critical, and to eight outputs that hold the answer ready; none of those is critical.
#[test]
fn the_compute_term_pulls_only_if_it_is_asked_for() {
    let mut models = Models::new(FAMILIES[0], &tracked());
    let shape = models.teacher.config().clone();
    models.shortcuts = Shortcuts::new(&ShortcutConfig::default(), &shape, 2, &tracked());
    let without = pulled(&models, composition(Composed::Local, 0.0, 0.0));
    let with = pulled(&models, composition(Composed::Local, 0.0, 2.0));
    let top = format!("shortcuts.routers.{}.output.bias", LAYERS - 1);
    assert!(
        !paths(&without).contains(&top.as_str()),
        "{:?}",
        paths(&without)
    );
    let gradient = with.iter().find(|(path, _)| *path == top).unwrap().1[0];
    let w = 1.0 / (1.0 + (-0.85f64).exp());
    let easy = 10.0 / 12.0;
    // d/db of 2 (1 - w) (1 - c), the mean over layers and latent steps.
    let slope = -2.0 * w * (1.0 - w) * easy / LAYERS as f64;
    measured(
        "slope of the compute term",
        (f64::from(gradient) - slope).abs(),
    );
    assert!(
        (f64::from(gradient) - slope).abs() < 1e-6,
        "{gradient}, {slope}"
    );

    let losses = |gamma| {
        let loss = ShortcutLoss::Composition(composition(Composed::Local, 0.5, gamma));
        let losses = values(
            TrainStep::step(&model(&models, loss), all(exits_drawn(1, 1)))
                .item
                .losses,
        );
        losses.into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    for gamma in [0.0, 2.0] {
        let [total, answer, early_exit, compute] = losses(gamma)[..] else {
            panic!("four losses");
        };
        // Numbers of order 3 in 32 bits.
        assert!((compute - (1.0 - w) * easy).abs() < 1e-6, "{compute}");
        assert!((total - answer - 0.5 * early_exit - gamma * compute).abs() < 1e-6);
    }
}

/// Steepest entries of a router's and of an adapter's gradient against central differences.
///
/// The parts of the loss are of order 3 and carry 2e-7 each; over twice the step of 1e-2 that is 3e-5.
/// Third derivatives times the square of the step add about 1e-4 of the slope. Measured 3e-5 at worst.
#[test]
fn gradients_of_the_composition_are_slopes() {
    const STEP: f32 = 1e-2;
    for family in FAMILIES {
        let (here, there) = (
            Models::new(family, &plain()),
            Models::new(family, &tracked()),
        );
        for composed in READINGS {
            for inputs in [StudentInputs::TeacherForced, StudentInputs::FreeRunning] {
                let config = CompositionConfig {
                    inputs,
                    ..composition(composed, 1.0, 0.5)
                };
                let found = pulled(&there, config.clone());
                for path in [
                    "shortcuts.routers.1.output.weight",
                    "shortcuts.adapters.1.up.weight",
                ] {
                    let gradient = &found.iter().find(|(name, _)| name == path).unwrap().1;
                    let at = (0..gradient.len())
                        .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
                        .unwrap();
                    let loss = |by: f32| {
                        let mut models = here.clone();
                        let weight = match path.contains("router") {
                            true => &mut models.shortcuts.routers[1].output.weight,
                            false => &mut models.shortcuts.adapters[1].up.weight,
                        };
                        *weight = weight.clone().map(|weight| {
                            let (mut moved, shape, device) =
                                (values(weight.clone()), weight.dims(), weight.device());
                            moved[at] += by;
                            Tensor::from_data(TensorData::new(moved, shape), &device)
                        });
                        let model = model(&models, ShortcutLoss::Composition(config.clone()));
                        let losses =
                            values(InferenceStep::step(&model, all(exits_drawn(1, 1))).losses);
                        f64::from(losses[1]) + f64::from(losses[2]) + 0.5 * f64::from(losses[3])
                    };
                    let slope = (loss(STEP) - loss(-STEP)) / f64::from(2.0 * STEP);
                    let off = (f64::from(gradient[at]) - slope).abs();
                    let what = format!("{family:?}, {composed:?}, {inputs:?}, {path}, {slope:.3}");
                    measured(&what, off);
                    assert!(slope.abs() > 5e-3, "{what}: too flat to tell");
                    assert!(off < 1e-4 + 1e-3 * slope.abs(), "{what}: {}", gradient[at]);
                }
            }
        }
    }
}

#[test]
fn parts_of_weight_0_are_reported_and_not_learned() {
    let leaf = |x: f32| Tensor::<1>::from_data([x], &tracked()).require_grad();
    let (kept, dropped) = (leaf(3.0), leaf(f32::INFINITY));
    let total = with_total(vec![
        (2.0, kept.clone() * 5.0),
        (0.0, dropped.clone() * 7.0),
    ]);
    assert_eq!(values(total.clone()), [30.0, 15.0, f32::INFINITY]);
    // Not even the reported parts are on the tape.
    let gradients = total.sum().backward();
    assert_eq!(values(kept.grad(&gradients).unwrap()), [10.0]);
    assert!(dropped.grad(&gradients).is_none());
    let nothing = with_total(vec![(0.0, kept.clone()), (0.0, kept)]);
    assert_eq!(values(nothing), [0.0, 3.0, 3.0]);
}

/// A batch without a seed for exits, as validation has them, is left to the routers at the threshold
/// that is asked at, whatever training draws from.
#[test]
fn validation_asks_the_routers() {
    let mut models = Models::new(FAMILIES[0], &tracked());
    let shape = models.teacher.config().clone();
    // Fresh gates say 0.70.
    models.shortcuts = Shortcuts::new(&ShortcutConfig::default(), &shape, 2, &tracked());
    let fresh = |thresholds: &[f64]| {
        let staircase = StaircaseConfig {
            thresholds: thresholds.to_vec(),
            ..StaircaseConfig::default()
        };
        model(&models, ShortcutLoss::Staircase(staircase))
    };
    let losses =
        |model: Shortcut, rollout| values(InferenceStep::step(&model.valid(), all(rollout)).losses);
    let own = Rollout::Student {
        correction: Correction::Never,
        exits: None,
    };
    let never = losses(fresh(&[0.1]), own);
    for model in [fresh(&[0.1]).asked_at(0.71), fresh(&[0.9]).asked_at(1.0)] {
        assert_eq!(losses(model.clone(), own), never);
        assert_eq!(losses(model, Rollout::TeacherForced), never);
    }
    let always = losses(fresh(&[1.0]).asked_at(0.69), own);
    assert!(
        always[1..3].iter().zip(&never[1..3]).all(|(a, b)| a != b),
        "{always:?}, {never:?}"
    );
}
