//! The early-exit loss and the compute term, against the paper's figures and plain loops.

use burn::tensor::{Device, Tensor, TensorData};
use sesqui_shortcut::early_exit::{
    Composed, Scale, Target, compute_term, early_exit_loss, exit_weights,
};
use sesqui_shortcut::soft::{local_composition, slot_states};
use sesqui_shortcut::{EarlyExitConfig, SoftConfig, soft_pass};

use crate::support::{
    Batch, D_MODEL, FAMILIES, Random, Setup, assert_close, plain, tracked, values,
};

const LABELS: [Option<bool>; 6] = [Some(true), None, Some(false), Some(false), None, None];

/// `S_l` for twelve layers, to three decimals, as worked out by hand from Eq. 11.
#[test]
fn weights_of_twelve_layers() {
    let expected = [
        0.013, 0.038, 0.077, 0.128, 0.192, 0.269, 0.359, 0.462, 0.577, 0.705, 0.846, 1.0,
    ];
    let easy = exit_weights(12, false);
    assert_close("not critical", &easy, &expected, 5e-4);
    let hard = exit_weights(12, true);
    assert_close("critical", &hard, &expected.map(|share| 1.0 - share), 5e-4);
    assert_eq!((easy[11], hard[11]), (1.0, 0.0));
    assert_eq!(exit_weights(1, false), [1.0]);
}

fn random_states(layers: usize, random: &mut Random, device: &Device) -> Vec<Tensor<3>> {
    (0..layers)
        .map(|_| {
            let data = TensorData::new(random.values(6 * D_MODEL), [2, 3, D_MODEL]);
            Tensor::from_data(data, device)
        })
        .collect()
}

#[test]
fn losses_match_loops() {
    let mut random = Random(30);
    let composed = random_states(4, &mut random, &plain());
    let targets = random_states(4, &mut random, &plain());
    let [ours, theirs] =
        [&composed, &targets].map(|states| states.iter().cloned().map(values).collect::<Vec<_>>());
    for target in [Target::SameLayer, Target::FinalLayer] {
        for scale in [Scale::Mean, Scale::Sum] {
            let mut expected = 0.0;
            for layer in 0..4 {
                let other = &theirs[if target == Target::SameLayer {
                    layer
                } else {
                    3
                }];
                for (slot, label) in LABELS.iter().enumerate() {
                    let Some(critical) = *label else { continue };
                    let share = ((layer + 1) * (layer + 2)) as f64 / 20.0;
                    let weight = if critical { 1.0 - share } else { share };
                    let error: f64 = (slot * D_MODEL..(slot + 1) * D_MODEL)
                        .map(|i| f64::from(ours[layer][i] - other[i]).powi(2))
                        .sum();
                    expected += weight * error / D_MODEL as f64;
                }
            }
            // Three labelled slots in four layers; both rows have a label.
            expected /= if scale == Scale::Mean { 12.0 } else { 2.0 };
            for which in [Composed::Local, Composed::Propagated] {
                let config = EarlyExitConfig {
                    composed: which,
                    target,
                    scale,
                };
                let found = values(early_exit_loss(&composed, &targets, &LABELS, config));
                // A sum of 200 terms near 1.
                assert_close(&format!("{config:?}"), &found, &[expected], 1e-5);
            }
        }
    }
}

/// Gates that are shut cost nothing, whichever way the states are composed.
#[test]
fn shut_gates_have_no_loss() {
    for family in FAMILIES {
        let setup = Setup::new(family, 3, 0, &plain()).shut();
        let batch = Batch::new(2, 3, false, &mut Random(31));
        let config = SoftConfig::default();
        let states = slot_states(&setup.model, batch.inputs(&plain()), 3);
        let local = local_composition(&setup.shortcuts, &states, config);
        let inputs = batch.inputs(&plain());
        let pass = soft_pass(&setup.model, &setup.shortcuts, inputs, 3, config);
        for composed in [local.composed, pass.composed] {
            let config = EarlyExitConfig::default();
            let loss = early_exit_loss(&composed, &states[1..], &LABELS, config);
            assert_eq!(values(loss), [0.0]);
        }
        // Of three labelled slots two are not critical, and all run every layer.
        let term = values(compute_term(&pass.router_weights, &LABELS));
        assert_close("compute", &term, &[2.0 / 3.0], 1e-6);
    }
}

/// Gates that are open cost no compute; between, the term is the mean over layers and slots.
#[test]
fn the_compute_term_is_a_mean_over_labelled_slots() {
    let weights = |layers: [[f32; 6]; 2]| -> Vec<Tensor<3>> {
        layers
            .iter()
            .map(|layer| Tensor::from_data(TensorData::new(layer.to_vec(), [2, 3, 1]), &plain()))
            .collect()
    };
    let term = |layers| values(compute_term(&weights(layers), &LABELS))[0];
    assert_eq!(term([[1.0; 6]; 2]), 0.0);
    let found = term([
        [0.9, 0.1, 0.5, 0.25, 0.0, 0.0],
        [0.2, 0.1, 1.0, 0.75, 0.0, 0.0],
    ]);
    assert_close(
        "compute",
        &[found],
        &[(0.5 + 0.75 + 0.0 + 0.25) / 6.0],
        1e-6,
    );
}

/// Without labels there is nothing to learn from, and nothing to divide by.
#[test]
fn without_labels_there_is_no_loss() {
    let mut random = Random(32);
    let states = random_states(3, &mut random, &plain());
    let targets = random_states(3, &mut random, &plain());
    for scale in [Scale::Mean, Scale::Sum] {
        let config = EarlyExitConfig {
            scale,
            ..EarlyExitConfig::default()
        };
        assert_eq!(
            values(early_exit_loss(&states, &targets, &[None; 6], config)),
            [0.0]
        );
    }
    let weights = vec![Tensor::<3>::zeros([2, 3, 1], &plain()); 3];
    assert_eq!(values(compute_term(&weights, &[None; 6])), [0.0]);
}

/// Targets stand still; slots without a label pull at nothing.
#[test]
fn gradients_reach_labelled_states_only() {
    let mut random = Random(33);
    let leaves = |states: Vec<Tensor<3>>| -> Vec<Tensor<3>> {
        states.into_iter().map(Tensor::require_grad).collect()
    };
    let composed = leaves(random_states(3, &mut random, &tracked()));
    let targets = leaves(random_states(3, &mut random, &tracked()));
    let config = EarlyExitConfig::default();
    let gradients = early_exit_loss(&composed, &targets, &LABELS, config).backward();
    for (layer, (states, target)) in composed.iter().zip(&targets).enumerate() {
        let still = target.grad(&gradients).map(values).unwrap_or_default();
        assert!(still.iter().all(|&x| x == 0.0), "layer {layer}");
        let gradient = values(states.grad(&gradients).unwrap());
        for (slot, gradient) in gradient.chunks(D_MODEL).enumerate() {
            // The last layer weighs nothing for a critical slot.
            let pulls = LABELS[slot].is_some_and(|critical| !critical || layer < 2);
            let what = format!("layer {layer}, slot {slot}");
            assert_eq!(gradient.iter().any(|&x| x != 0.0), pulls, "{what}");
        }
    }
}
