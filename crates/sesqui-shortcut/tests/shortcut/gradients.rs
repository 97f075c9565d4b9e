//! Where gradients go, and that those of the soft composition are right.

use burn::tensor::{Tensor, TensorData};
use sesqui_model::Family;
use sesqui_shortcut::{ExitPlan, KeyValueRule, Landing, SoftConfig, soft_pass, staircase_pass};

use crate::support::{
    Batch, D_MODEL, FAMILIES, Random, Setup, greatest_gradients, measured, plain, tracked, values,
};

const RULES: [KeyValueRule; 2] = [KeyValueRule::Holes, KeyValueRule::Fill];

/// Two rows of four slots and three layers; somebody leaves at boundaries 1 and 2, nobody at the top
/// but where it must be.
fn plan() -> ExitPlan {
    ExitPlan::from_exits(2, 4, 3, Landing::SameBoundary, |row, slot, boundary| {
        boundary == 1 + (row + slot) % 2
    })
}

fn touched(gradients: &[(String, f32)]) -> Vec<&str> {
    let touched = gradients.iter().filter(|(_, greatest)| *greatest > 0.0);
    touched.map(|(path, _)| path.as_str()).collect()
}

/// States pull at the backbone and at the adapters that were used, never at a router; logits pull at
/// the routers that were asked, and at nothing else.
#[test]
fn routers_learn_from_their_logits_and_nothing_else_does() {
    for family in FAMILIES {
        let setup = Setup::new(family, 3, 8, &tracked());
        let batch = Batch::new(2, 4, false, &mut Random(40));
        for rule in RULES {
            let pass = || {
                let inputs = batch.inputs(&tracked());
                staircase_pass(&setup.model, Some(&setup.shortcuts), inputs, &plan(), rule)
            };
            let gradients = (pass().hidden.powf_scalar(2.0)).sum().backward();
            let backbone = greatest_gradients(&setup.model.backbone.layers, &gradients);
            assert_eq!(touched(&backbone).len(), backbone.len(), "{family:?}");
            let shortcuts = greatest_gradients(&setup.shortcuts, &gradients);
            assert_eq!(
                touched(&shortcuts),
                [
                    "adapters.1.down.weight",
                    "adapters.1.up.weight",
                    "adapters.2.down.weight",
                    "adapters.2.up.weight"
                ],
                "{family:?}, {rule:?}"
            );

            let logits = pass().router_logits.into_iter();
            let logits: Vec<Tensor<1>> = logits.map(|(_, logits)| logits.sum()).collect();
            let gradients = Tensor::cat(logits, 0).sum().backward();
            assert_eq!(
                touched(&greatest_gradients(&setup.model, &gradients)),
                [""; 0]
            );
            let shortcuts = greatest_gradients(&setup.shortcuts, &gradients);
            let of_routers: Vec<&str> = shortcuts
                .iter()
                .map(|(path, _)| path.as_str())
                .filter(|path| path.starts_with("routers.1") || path.starts_with("routers.2"))
                .collect();
            assert_eq!(touched(&shortcuts), of_routers, "{family:?}, {rule:?}");
            assert_eq!(of_routers.len(), 8);
        }
    }
}

/// Pads, and the columns of slots that take over a state, get a gradient of exactly zero.
#[test]
fn of_inputs_that_do_not_count_is_zero() {
    let setup = Setup::new(Family::Llama, 3, 0, &tracked());
    let batch = Batch::new(2, 4, false, &mut Random(41));
    let plan = plan();
    for rule in RULES {
        let mut inputs = batch.inputs(&tracked());
        let leaf = inputs.embedded.require_grad();
        inputs.embedded = leaf.clone();
        let pass = staircase_pass(&setup.model, Some(&setup.shortcuts), inputs, &plan, rule);
        let seq = batch.shape[1];
        // The state of a pad is nobody's concern.
        let real: Vec<f32> = batch
            .real
            .iter()
            .map(|&real| f32::from(u8::from(real)))
            .collect();
        let real = Tensor::from_data(TensorData::new(real, [2, seq, 1]), &tracked());
        let gradients = (pass.hidden.powf_scalar(2.0) * real).sum().backward();
        let gradient = values(leaf.grad(&gradients).unwrap());
        for (cell, gradient) in gradient.chunks(D_MODEL).enumerate() {
            let slot = (cell % seq)
                .checked_sub(batch.first_slot)
                .filter(|&slot| slot < 4);
            let above = slot.is_some_and(|slot| plan.slot(cell / seq, slot).enter > 0);
            let counts = batch.real[cell] && !above;
            let what = format!("{rule:?}, cell {cell}");
            assert_eq!(gradient.iter().any(|&x| x != 0.0), counts, "{what}");
        }
    }
}

/// Gradients of a random weighting of all final states, against central differences: for the entries
/// of one adapter and of one router that matter most.
///
/// The step is 1e-2. States carry errors of about 3e-7; weighted and added up in 64 bits over the
/// 300 or so of them this is some 5e-6, over twice the step 3e-4 at worst, against gradients near 1.
/// Third derivatives times the square of the step are smaller. Measured 1.3e-4 at worst.
#[test]
fn of_the_soft_composition_match_differences() {
    const STEP: f32 = 1e-2;
    const TOLERANCE: f64 = 1e-3;
    for family in FAMILIES {
        let batch = Batch::new(2, 3, false, &mut Random(42));
        let weights = Random(43).values(batch.embedded.len());
        let config = SoftConfig::default();
        let loss = |setup: &Setup| -> f64 {
            let inputs = batch.inputs(&plain());
            let hidden = soft_pass(&setup.model, &setup.shortcuts, inputs, 3, config).hidden;
            let pairs = values(hidden).into_iter().zip(&weights);
            pairs
                .map(|(x, &weight)| f64::from(x) * f64::from(weight))
                .sum()
        };

        let setup = Setup::new(family, 3, 0, &tracked());
        let inputs = batch.inputs(&tracked());
        let hidden = soft_pass(&setup.model, &setup.shortcuts, inputs, 3, config).hidden;
        let data = TensorData::new(weights.clone(), hidden.dims());
        let gradients = (hidden * Tensor::from_data(data, &tracked()))
            .sum()
            .backward();
        for parameter in [Parameter::Adapter, Parameter::Router] {
            let gradient = parameter.of(&setup).grad(&gradients).unwrap();
            let shape = gradient.dims();
            let gradient = values(gradient);
            let mut order: Vec<usize> = (0..gradient.len()).collect();
            order.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
            let scale = f64::from(gradient[order[0]].abs());
            let mut worst = 0.0f64;
            for &entry in order.iter().take(4) {
                let at = |step: f32| {
                    let mut nudge = vec![0.0; gradient.len()];
                    nudge[entry] = step;
                    let nudge = Tensor::from_data(TensorData::new(nudge, shape), &plain());
                    let mut setup = Setup::new(family, 3, 0, &plain());
                    parameter.add(&mut setup, nudge);
                    loss(&setup)
                };
                let expected = (at(STEP) - at(-STEP)) / (2.0 * f64::from(STEP));
                worst = worst.max((f64::from(gradient[entry]) - expected).abs() / scale);
            }
            let what = format!("{family:?}, {parameter:?}, greatest {scale:.1}");
            measured(&what, worst);
            assert!(worst <= TOLERANCE, "{what}: {worst:e}");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Parameter {
    Adapter,
    Router,
}

impl Parameter {
    fn of(self, setup: &Setup) -> Tensor<2> {
        match self {
            Self::Adapter => setup.shortcuts.adapters[1].up.weight.val(),
            Self::Router => setup.shortcuts.routers[1].output.weight.val(),
        }
    }

    fn add(self, setup: &mut Setup, nudge: Tensor<2>) {
        let place = match self {
            Self::Adapter => &mut setup.shortcuts.adapters[1].up.weight,
            Self::Router => &mut setup.shortcuts.routers[1].output.weight,
        };
        *place = place.clone().map(|weight| weight + nudge);
    }
}
