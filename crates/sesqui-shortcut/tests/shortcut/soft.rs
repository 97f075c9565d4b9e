//! The soft composition against 64-bit loops over slots, and against the plain model.

use burn::tensor::{Tensor, TensorData};
use sesqui_model::{KvCache, Visibility};
use sesqui_shortcut::soft::{Branches, Paths, StepSource, local_composition, slot_states};
use sesqui_shortcut::{SoftConfig, soft_pass};

use crate::support::{
    Batch, D_MODEL, FAMILIES, Random, Setup, assert_close, plain, plain_adapter, plain_router,
    plain_sigmoid, values, wide,
};

/// Layers run in 32 bits on either side, from states that differ by the roundings of a composition
/// done in 64 bits on one of them; values are at most 6, measured 1.1e-6.
const FROM_LOOPS: f64 = 1e-5;

fn configs() -> Vec<SoftConfig> {
    let mut configs = Vec::new();
    for branches in [Branches::Mean, Branches::Sum] {
        for paths in [Paths::Both, Paths::Depth, Paths::Step] {
            for step_source in [StepSource::Composed, StepSource::Layer] {
                configs.push(SoftConfig {
                    branches,
                    paths,
                    step_source,
                });
            }
        }
    }
    configs
}

/// Eq. 5 for one cell, as it is printed but for the options: `through` is `f_l(h_{l-1,t})`, `before`
/// is `h_{l-1,t}`, `previous` is `h_{l,t-1}`, `layer` counts from 1.
fn compose(
    setup: &Setup,
    config: SoftConfig,
    layer: usize,
    before: &[f64],
    through: &[f64],
    previous: Option<&[f64]>,
) -> (Vec<f64>, f64) {
    let shortcuts = &setup.shortcuts;
    let w = plain_sigmoid(plain_router(&shortcuts.routers[layer - 1], before));
    let depth = plain_adapter(&shortcuts.adapters[layer - 1], before);
    let step = previous.map(|previous| plain_adapter(&shortcuts.adapters[layer], previous));
    let composed = (0..D_MODEL)
        .map(|i| {
            let shortcut = match (config.paths, &step) {
                (Paths::Depth, _) | (Paths::Both, None) => depth[i],
                (Paths::Step, Some(step)) => step[i],
                (Paths::Step, None) => return through[i],
                (Paths::Both, Some(step)) if config.branches == Branches::Sum => depth[i] + step[i],
                (Paths::Both, Some(step)) => (depth[i] + step[i]) / 2.0,
            };
            shortcut * w + through[i] * (1.0 - w)
        })
        .collect();
    (composed, w)
}

struct Expected {
    hidden: Vec<f64>,
    /// Per layer, slot after slot.
    composed: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
}

/// The soft pass of one row, one column at a time within each layer.
fn loops(setup: &Setup, row: &Batch, config: SoftConfig) -> Expected {
    let (seq, backbone) = (row.shape[1], &setup.model.backbone);
    let mut cache = KvCache::new(backbone.config(), 1, seq, &plain());
    let mut hidden: Vec<Vec<f64>> = row.embedded.chunks(D_MODEL).map(wide).collect();
    let (mut composed, mut weights) = (Vec::new(), Vec::new());
    for layer in 1..=setup.layers() {
        let (mut states, mut gates) = (Vec::new(), Vec::new());
        let mut previous: Option<Vec<f64>> = None;
        for (column, state) in hidden.iter_mut().enumerate() {
            let before = state.clone();
            let narrow: Vec<f32> = before.iter().map(|&x| x as f32).collect();
            let position = vec![row.positions[column]];
            let through = wide(&values(backbone.run_layers_cached(
                layer - 1..layer,
                Tensor::from_data(TensorData::new(narrow, [1, 1, D_MODEL]), &plain()),
                Tensor::from_data(TensorData::new(position, [1, 1]), &plain()),
                &[true],
                &mut cache,
            )));
            if !(row.first_slot..row.first_slot + row.slots).contains(&column) {
                *state = through;
                continue;
            }
            let previous_state = previous.as_deref();
            let (composed_state, w) =
                compose(setup, config, layer, &before, &through, previous_state);
            previous = Some(match config.step_source {
                StepSource::Composed => composed_state.clone(),
                StepSource::Layer => through,
            });
            states.extend(composed_state.clone());
            gates.push(w);
            *state = composed_state;
        }
        composed.push(states);
        weights.push(gates);
    }
    Expected {
        hidden: hidden.concat(),
        composed,
        weights,
    }
}

/// Every setting, with pads on both sides, each row against loops in which it is alone.
#[test]
fn soft_passes_match_loops() {
    for family in FAMILIES {
        let setup = Setup::new(family, 3, 0, &plain());
        let batch = Batch::new(3, 3, false, &mut Random(20));
        for config in configs() {
            let what = format!("{family:?}, {config:?}");
            let inputs = batch.inputs(&plain());
            let pass = soft_pass(&setup.model, &setup.shortcuts, inputs, 3, config);
            let hidden = values(pass.hidden);
            let composed: Vec<Vec<f32>> = pass.composed.into_iter().map(values).collect();
            let weights: Vec<Vec<f32>> = pass.router_weights.into_iter().map(values).collect();
            assert_eq!([composed.len(), weights.len()], [3, 3]);
            for row in 0..3 {
                let expected = loops(&setup, &batch.row(row), config);
                let found = batch.of_row(&hidden, row);
                assert_close(&what, &found, &expected.hidden, FROM_LOOPS);
                for layer in 0..3 {
                    let found = &composed[layer][row * 3 * D_MODEL..][..3 * D_MODEL];
                    assert_close(&what, found, &expected.composed[layer], FROM_LOOPS);
                    let found = &weights[layer][row * 3..][..3];
                    assert_close(&what, found, &expected.weights[layer], FROM_LOOPS);
                }
            }
        }
    }
}

/// The states of the plain model, and Eq. 5 over them cell by cell.
#[test]
fn local_compositions_match_loops() {
    let setup = Setup::new(FAMILIES[0], 3, 8, &plain());
    let batch = Batch::new(2, 3, false, &mut Random(21));
    let states = slot_states(&setup.model, batch.inputs(&plain()), 3);
    assert_eq!(states.len(), 4);
    let inputs = batch.inputs(&plain());
    let visibility = Visibility::causal_padded(&batch.real, batch.shape, &plain());
    let context = setup.model.backbone.context(inputs.positions, visibility);
    for (boundary, states) in states.iter().enumerate() {
        let hidden = batch.inputs(&plain()).embedded;
        let hidden = setup
            .model
            .backbone
            .run_layers(0..boundary, hidden, &context);
        let expected = values(hidden.narrow(1, batch.first_slot, 3));
        assert_eq!(values(states.clone()), expected, "boundary {boundary}");
    }
    let cells: Vec<Vec<Vec<f64>>> = states
        .iter()
        .map(|states| values(states.clone()).chunks(D_MODEL).map(wide).collect())
        .collect();
    for config in configs() {
        let local = local_composition(&setup.shortcuts, &states, config);
        for layer in 1..=3 {
            let (mut expected, mut weights) = (Vec::new(), Vec::new());
            for cell in 0..2 * 3 {
                let previous = (cell % 3 > 0).then(|| cells[layer][cell - 1].as_slice());
                let (before, through) = (&cells[layer - 1][cell], &cells[layer][cell]);
                let (state, w) = compose(&setup, config, layer, before, through, previous);
                expected.extend(state);
                weights.push(w);
            }
            let what = format!("{config:?}, layer {layer}");
            let found = values(local.composed[layer - 1].clone());
            assert_close(&what, &found, &expected, FROM_LOOPS);
            let found = values(local.router_weights[layer - 1].clone());
            assert_close(&what, &found, &weights, FROM_LOOPS);
        }
    }
}

/// Gates that are shut leave the plain model, to the bit.
#[test]
fn shut_gates_change_no_bit() {
    for family in FAMILIES {
        let setup = Setup::new(family, 3, 0, &plain()).shut();
        let batch = Batch::new(2, 3, false, &mut Random(22));
        let states = slot_states(&setup.model, batch.inputs(&plain()), 3);
        let inputs = batch.inputs(&plain());
        let visibility = Visibility::causal_padded(&batch.real, batch.shape, &plain());
        let context = setup.model.backbone.context(inputs.positions, visibility);
        let expected = setup
            .model
            .backbone
            .run_layers(0..3, inputs.embedded, &context);
        let expected = values(expected);
        for config in configs() {
            let inputs = batch.inputs(&plain());
            let pass = soft_pass(&setup.model, &setup.shortcuts, inputs, 3, config);
            assert_eq!(values(pass.hidden), expected, "{family:?}, {config:?}");
            let local = local_composition(&setup.shortcuts, &states, config);
            for (layer, state) in states.iter().skip(1).enumerate() {
                let state = values(state.clone());
                assert_eq!(values(pass.composed[layer].clone()), state, "{config:?}");
                assert_eq!(values(local.composed[layer].clone()), state, "{config:?}");
            }
        }
    }
}

/// One slot has no step before it: every reading of the sum gives the depth shortcut.
#[test]
fn a_single_slot_has_depth_only() {
    let setup = Setup::new(FAMILIES[0], 3, 0, &plain());
    let batch = Batch::new(2, 1, true, &mut Random(23));
    let run = |config| {
        let inputs = batch.inputs(&plain());
        values(soft_pass(&setup.model, &setup.shortcuts, inputs, 1, config).hidden)
    };
    let depth = run(SoftConfig {
        paths: Paths::Depth,
        ..SoftConfig::default()
    });
    for config in configs().into_iter().filter(|c| c.paths == Paths::Both) {
        assert_eq!(run(config), depth, "{config:?}");
    }
}
