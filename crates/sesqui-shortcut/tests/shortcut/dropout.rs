//! Dropout in adapters: which values of which slot it hides, in either pass.

use burn::tensor::{Tensor, TensorData};
use sesqui_model::Family;
use sesqui_shortcut::soft::{Paths, StepSource};
use sesqui_shortcut::{
    AdapterConfig, ExitPlan, KeyValueRule, Landing, ShortcutConfig, Shortcuts, SoftConfig,
    soft_pass, staircase_pass,
};

use crate::support::{
    Batch, D_MODEL, Random, Setup, assert_close, plain, plain_adapter, values, wide,
};

const LAYERS: usize = 3;
const SLOTS: usize = 3;
const ROWS: usize = 2;

fn setup() -> Setup {
    Setup::new(Family::Gpt2, LAYERS, 0, &plain())
}

/// Every adapter sees `seen(boundary, slot)` times a slot's state.
fn masked(setup: &Setup, seen: impl Fn(usize, usize) -> f32) -> Shortcuts {
    let mask = |boundary| {
        let row = (0..SLOTS).flat_map(|slot| vec![seen(boundary, slot); D_MODEL]);
        let all: Vec<f32> = row.collect::<Vec<f32>>().repeat(ROWS);
        Tensor::from_data(TensorData::new(all, [ROWS, SLOTS, D_MODEL]), &plain())
    };
    let masks = (0..=LAYERS).map(mask).collect();
    setup.shortcuts.clone().dropped(masks)
}

/// `g(h) = h + (alpha / rank) B A (mask h)`: the state itself is never hidden.
#[test]
fn an_adapter_reads_what_the_mask_leaves() {
    let setup = setup();
    let mut random = Random(50);
    let shape = [ROWS, SLOTS, D_MODEL];
    let kept = 1.0 / (1.0 - 0.2);
    let mask: Vec<f32> = (0..shape.iter().product())
        .map(|_| if random.below(5) == 0 { 0.0 } else { kept })
        .collect();
    let upload = |values: &[f32], shape| {
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), &plain())
    };
    let masks = vec![upload(&mask, shape); LAYERS + 1];
    let shortcuts = setup.shortcuts.clone().dropped(masks);
    // The last two slots of both rows.
    let states = random.values(ROWS * 2 * D_MODEL);
    for boundary in 0..=LAYERS {
        let hidden = upload(&states, [ROWS, 2, D_MODEL]);
        let found = values(shortcuts.adapt(boundary, hidden, 1..3));
        let adapter = &setup.shortcuts.adapters[boundary];
        let expected: Vec<f64> = (0..ROWS * 2)
            .flat_map(|cell| {
                let state = wide(&states[cell * D_MODEL..][..D_MODEL]);
                let place = ((cell / 2) * SLOTS + 1 + cell % 2) * D_MODEL;
                let read = state.iter().zip(&mask[place..][..D_MODEL]);
                let read: Vec<f64> = read.map(|(x, &mask)| x * f64::from(mask)).collect();
                let read_alone = plain_adapter(adapter, &read);
                let update = read_alone.iter().zip(&read).map(|(g, x)| g - x);
                state
                    .iter()
                    .zip(update)
                    .map(|(x, u)| x + u)
                    .collect::<Vec<f64>>()
            })
            .collect();
        // Values up to 3, sums of 20 products.
        assert_close("adapter", &found, &expected, 1e-5);
    }
}

/// All states of a soft pass along `paths`.
fn soft(setup: &Setup, shortcuts: &Shortcuts, paths: Paths) -> Vec<f32> {
    let batch = Batch::new(ROWS, SLOTS, false, &mut Random(51));
    let config = SoftConfig {
        paths,
        step_source: StepSource::Composed,
        ..SoftConfig::default()
    };
    let inputs = batch.inputs(&plain());
    values(soft_pass(&setup.model, shortcuts, inputs, SLOTS, config).hidden)
}

/// All states of a staircase in which the first slot leaves at 1, the second enters and leaves there,
/// and the third goes on to the top.
fn stairs(setup: &Setup, shortcuts: &Shortcuts) -> Vec<f32> {
    let batch = Batch::new(ROWS, SLOTS, false, &mut Random(52));
    let landing = Landing::SameBoundary;
    let plan = ExitPlan::from_exits(ROWS, SLOTS, LAYERS, landing, |_, _, boundary| boundary == 1);
    let inputs = batch.inputs(&plain());
    let rule = KeyValueRule::Holes;
    values(staircase_pass(&setup.model, Some(shortcuts), inputs, &plan, rule).hidden)
}

#[test]
fn masks_of_ones_change_no_bit_and_masks_of_zeros_leave_the_identity() {
    let setup = setup();
    let mut identity = setup.shortcuts.clone();
    for adapter in &mut identity.adapters {
        adapter.up.weight = adapter.up.weight.clone().map(|weight| weight.zeros_like());
    }
    let (open, shut) = (masked(&setup, |_, _| 1.0), masked(&setup, |_, _| 0.0));
    for paths in [Paths::Both, Paths::Depth, Paths::Step] {
        let whole = soft(&setup, &setup.shortcuts, paths);
        assert_eq!(soft(&setup, &open, paths), whole, "{paths:?}");
        let nothing = soft(&setup, &identity, paths);
        assert_eq!(soft(&setup, &shut, paths), nothing, "{paths:?}");
        assert_ne!(whole, nothing, "{paths:?}");
    }
    let whole = stairs(&setup, &setup.shortcuts);
    assert_eq!(stairs(&setup, &open), whole);
    let nothing = stairs(&setup, &identity);
    assert_eq!(stairs(&setup, &shut), nothing);
    assert_ne!(whole, nothing);
}

/// A mask belongs to the slot whose state is read, and to the boundary where it is read.
#[test]
fn each_slot_has_its_own_mask() {
    let setup = setup();
    let hiding = |boundary: usize, slot: usize| {
        masked(&setup, move |at, of| {
            if (at, of) == (boundary, slot) {
                0.0
            } else {
                1.0
            }
        })
    };
    let whole = stairs(&setup, &setup.shortcuts);
    for boundary in 0..=LAYERS {
        for slot in 0..SLOTS {
            // Slots 0 and 1 are read at boundary 1; nobody comes after the last one.
            let read = boundary == 1 && slot < SLOTS - 1;
            let found = stairs(&setup, &hiding(boundary, slot));
            assert_eq!(found != whole, read, "staircase, {boundary}, slot {slot}");
        }
    }
    for (paths, boundaries, slots) in [
        // Depth shortcuts read every slot below each layer, step shortcuts above each layer every slot
        // that has one after it.
        (Paths::Depth, 0..LAYERS, 0..SLOTS),
        (Paths::Step, 1..LAYERS + 1, 0..SLOTS - 1),
    ] {
        let whole = soft(&setup, &setup.shortcuts, paths);
        for boundary in 0..=LAYERS {
            for slot in 0..SLOTS {
                let read = boundaries.contains(&boundary) && slots.contains(&slot);
                let found = soft(&setup, &hiding(boundary, slot), paths);
                assert_eq!(found != whole, read, "{paths:?}, {boundary}, slot {slot}");
            }
        }
    }
}

#[test]
fn rates_that_hide_everything_are_named() {
    let problem = |dropout| {
        let adapter = AdapterConfig {
            dropout,
            ..AdapterConfig::default()
        };
        let config = ShortcutConfig {
            adapter,
            ..ShortcutConfig::default()
        };
        config.problem().map(|(key, _)| key)
    };
    for rate in [0.0, 0.1, 0.99] {
        assert_eq!(problem(rate), None, "{rate}");
    }
    for rate in [-0.1, 1.0, f64::NAN] {
        assert_eq!(problem(rate), Some("adapter.dropout"), "{rate}");
    }
}
