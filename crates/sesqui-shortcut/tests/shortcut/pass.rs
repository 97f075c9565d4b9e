//! The parallel staircase against the plain model, and against one cell at a time.

use burn::tensor::{Int, Tensor, TensorData};
use sesqui_model::{KvCache, Visibility};
use sesqui_shortcut::{
    EntryPosition, ExitPlan, KeyValueRule, Landing, Shortcuts, Slot, staircase_pass,
};

use crate::support::{
    Batch, CLOSE, D_MODEL, FAMILIES, Random, Setup, assert_close, plain, tracked, values,
};

const RULES: [KeyValueRule; 2] = [KeyValueRule::Holes, KeyValueRule::Fill];
const LANDINGS: [Landing; 2] = [Landing::SameBoundary, Landing::NextBoundary];
const ENTRIES: [EntryPosition; 2] = [EntryPosition::EveryEntry, EntryPosition::CycleStart];

fn random_plan(batch: &Batch, layers: usize, landing: Landing, random: &mut Random) -> ExitPlan {
    ExitPlan::from_exits(batch.shape[0], batch.slots, layers, landing, |_, _, _| {
        random.below(2) == 1
    })
}

/// What one row gives when it is run one column, one slot and one layer at a time: a layer's cache
/// holds what ran that layer, so nothing has to be masked.
struct OneByOne<'a> {
    setup: &'a Setup,
    shortcuts: Option<&'a Shortcuts>,
    cache: KvCache,
    /// Final states, column by column.
    hidden: Vec<f32>,
    /// Slot, boundary and router logit wherever a slot stood.
    logits: Vec<(usize, usize, f32)>,
}

impl<'a> OneByOne<'a> {
    fn run(
        setup: &'a Setup,
        shortcuts: Option<&'a Shortcuts>,
        row: &Batch,
        slots: &[Slot],
        (landing, entry): (Landing, EntryPosition),
        rule: KeyValueRule,
    ) -> Self {
        let layers = setup.layers();
        let config = setup.model.backbone.config();
        let mut run = Self {
            setup,
            shortcuts,
            cache: KvCache::new(config, 1, row.shape[1], &plain()),
            hidden: Vec::new(),
            logits: Vec::new(),
        };
        let mut left: Option<(usize, Tensor<3>)> = None;
        for (column, &position) in row.positions.iter().enumerate() {
            let position = Tensor::from_data(TensorData::new(vec![position], [1, 1]), &plain());
            let given = row.embedded[column * D_MODEL..][..D_MODEL].to_vec();
            let given = Tensor::from_data(TensorData::new(given, [1, 1, D_MODEL]), &plain());
            let slot = column.checked_sub(row.first_slot);
            let Some((index, &Slot { enter, leave })) =
                slot.and_then(|index| slots.get(index).map(|slot| (index, slot)))
            else {
                let hidden =
                    (0..layers).fold(given, |hidden, layer| run.layer(layer, hidden, &position));
                run.hidden.extend(values(hidden));
                continue;
            };
            let mut hidden = match left.take().filter(|_| enter > 0) {
                Some((boundary, state)) => {
                    let state = match shortcuts {
                        Some(shortcuts) => shortcuts.adapters[boundary].forward(state),
                        None => state,
                    };
                    match entry {
                        EntryPosition::EveryEntry => {
                            setup.model.backbone.with_positions(state, position.clone())
                        }
                        EntryPosition::CycleStart => state,
                    }
                }
                None => given,
            };
            run.stand(index, enter, landing, &hidden);
            for layer in enter..leave {
                hidden = run.layer(layer, hidden, &position);
                run.stand(index, layer + 1, landing, &hidden);
            }
            if rule == KeyValueRule::Fill {
                for layer in leave..layers {
                    run.layer(layer, hidden.clone(), &position);
                }
            }
            run.hidden.extend(values(hidden.clone()));
            left = Some((leave, hidden));
        }
        run
    }

    fn layer(&mut self, layer: usize, hidden: Tensor<3>, position: &Tensor<2, Int>) -> Tensor<3> {
        self.setup.model.backbone.run_layers_cached(
            layer..layer + 1,
            hidden,
            position.clone(),
            &[true],
            &mut self.cache,
        )
    }

    fn stand(&mut self, slot: usize, boundary: usize, landing: Landing, hidden: &Tensor<3>) {
        if let Some(shortcuts) = self.shortcuts
            && landing.exits(self.setup.layers()).contains(&boundary)
        {
            let logit = values(shortcuts.routers[boundary].logits(hidden.clone()))[0];
            self.logits.push((slot, boundary, logit));
        }
    }
}

/// Nothing skipped and nothing padded: the bits of the plain model; with pads those of the plain
/// model with pads.
#[test]
fn full_plans_change_no_bit() {
    for device in [plain(), tracked()] {
        for family in FAMILIES {
            let setup = Setup::new(family, 3, 0, &device);
            let backbone = &setup.model.backbone;
            for even in [true, false] {
                let batch = Batch::new(3, 2, even, &mut Random(10));
                let inputs = batch.inputs(&device);
                let visibility = match even {
                    true => Visibility::causal(batch.shape[1], &device),
                    false => Visibility::causal_padded(&batch.real, batch.shape, &device),
                };
                let context = backbone.context(inputs.positions.clone(), visibility);
                let expected = values(backbone.run_layers(0..3, inputs.embedded, &context));
                let plan = ExitPlan::full(3, 2, 3);
                for rule in RULES {
                    for shortcuts in [None, Some(&setup.shortcuts)] {
                        let inputs = batch.inputs(&device);
                        let pass = staircase_pass(&setup.model, shortcuts, inputs, &plan, rule);
                        assert_eq!(values(pass.hidden), expected, "{family:?}, {rule:?}");
                    }
                }
            }
        }
    }
}

/// Random staircases, with pads on both sides: final states, and what the routers say, are those of
/// a run of one cell at a time. Rows of a batch do not touch each other, since there each row is
/// alone.
#[test]
fn staircases_match_one_cell_at_a_time() {
    let (mut exits, mut empty) = (0, 0);
    for family in FAMILIES {
        for layers in [3, 4] {
            let setup = Setup::new(family, layers, 0, &plain());
            for landing in LANDINGS {
                for rule in RULES {
                    for shortcuts in [None, Some(&setup.shortcuts)] {
                        let mut random = Random(11 + layers as u64);
                        let batch = Batch::new(3, 4, false, &mut random);
                        let plan = random_plan(&batch, layers, landing, &mut random);
                        exits += plan.cells().iter().filter(|s| s.leave < layers).count();
                        empty += plan.cells().iter().filter(|s| s.enter == s.leave).count();
                        for entry in ENTRIES {
                            let plan = plan.clone().with_entry_position(entry);
                            check(&setup, shortcuts, &batch, &plan, rule);
                        }
                    }
                }
            }
        }
    }
    assert!(
        exits > 30 && empty > 5,
        "{exits} exits, {empty} without a layer"
    );
}

/// The corner that random plans rarely meet: several slots in a row that run no layer.
#[test]
fn states_pass_through_slots_that_run_nothing() {
    for family in FAMILIES {
        let setup = Setup::new(family, 3, 0, &plain());
        let batch = Batch::new(2, 4, false, &mut Random(12));
        let plan = ExitPlan::from_exits(2, 4, 3, Landing::SameBoundary, |row, slot, boundary| {
            row == 0 && boundary == 2 || row == 1 && slot > 0 && boundary == 1
        });
        assert_eq!([plan.layer_calls(0), plan.layer_calls(1)], [3, 6]);
        for (rule, entry) in RULES.into_iter().zip(ENTRIES) {
            let plan = plan.clone().with_entry_position(entry);
            check(&setup, Some(&setup.shortcuts), &batch, &plan, rule);
        }
    }
}

fn check(
    setup: &Setup,
    shortcuts: Option<&Shortcuts>,
    batch: &Batch,
    plan: &ExitPlan,
    rule: KeyValueRule,
) {
    let what = format!(
        "{:?}, {rule:?}, {plan:?}",
        setup.model.backbone.config().family
    );
    let pass = staircase_pass(&setup.model, shortcuts, batch.inputs(&plain()), plan, rule);
    let hidden = values(pass.hidden);
    let logits: Vec<(usize, Vec<f32>)> = pass
        .router_logits
        .into_iter()
        .map(|(boundary, logits)| (boundary, values(logits)))
        .collect();
    let slots = plan.slots();
    for (row, cells) in plan.cells().chunks(slots).enumerate() {
        let run = OneByOne::run(
            setup,
            shortcuts,
            &batch.row(row),
            cells,
            (plan.landing(), plan.entry_position()),
            rule,
        );
        assert_close(&what, &batch.of_row(&hidden, row), &run.hidden, CLOSE);
        let mut found = Vec::new();
        for slot in 0..slots {
            for ((boundary, logits), reached) in logits.iter().zip(&pass.reached) {
                if reached[row * slots + slot] {
                    found.push((slot, *boundary, logits[row * slots + slot]));
                }
            }
        }
        let places = |logits: &[(usize, usize, f32)]| -> Vec<_> {
            logits
                .iter()
                .map(|&(slot, boundary, _)| (slot, boundary))
                .collect()
        };
        let numbers = |logits: &[(usize, usize, f32)]| -> Vec<f32> {
            logits.iter().map(|&(_, _, logit)| logit).collect()
        };
        assert_eq!(places(&found), places(&run.logits), "{what}");
        assert_close(&what, &numbers(&found), &numbers(&run.logits), CLOSE);
    }
}

/// What stands in the column of a slot that enters above the bottom does not matter, to the bit.
#[test]
fn inputs_of_slots_that_enter_above_count_for_nothing() {
    let setup = Setup::new(sesqui_model::Family::Gpt2, 4, 0, &plain());
    let mut random = Random(13);
    let batch = Batch::new(3, 4, true, &mut random);
    let plan = random_plan(&batch, 4, Landing::SameBoundary, &mut random);
    let mut other = batch.clone();
    for (cell, slot) in plan.cells().iter().enumerate() {
        let column = batch.first_slot + cell % 4;
        let start = (cell / 4 * batch.shape[1] + column) * D_MODEL;
        if slot.enter > 0 {
            other.embedded[start..start + D_MODEL].fill(1e4);
        }
    }
    assert_ne!(batch.embedded, other.embedded);
    for rule in RULES {
        let [found, expected] = [&other, &batch].map(|batch| {
            let inputs = batch.inputs(&plain());
            let shortcuts = Some(&setup.shortcuts);
            values(staircase_pass(&setup.model, shortcuts, inputs, &plan, rule).hidden)
        });
        assert_eq!(found, expected, "{rule:?}");
    }
}

/// A slot that left holds the very bits with which it left.
#[test]
fn leaving_states_are_kept_to_the_bit() {
    let setup = Setup::new(sesqui_model::Family::Gpt2, 4, 0, &plain());
    let batch = Batch::new(2, 2, true, &mut Random(14));
    let plan = ExitPlan::from_exits(2, 2, 4, Landing::SameBoundary, |_, _, boundary| {
        boundary == 2
    });
    let inputs = batch.inputs(&plain());
    let context = setup.model.backbone.context(
        inputs.positions.clone(),
        Visibility::causal(batch.shape[1], &plain()),
    );
    let half = setup
        .model
        .backbone
        .run_layers(0..2, inputs.embedded, &context);
    for rule in RULES {
        let inputs = batch.inputs(&plain());
        let pass = staircase_pass(&setup.model, Some(&setup.shortcuts), inputs, &plan, rule);
        // Columns up to the first slot see no other slot.
        assert_eq!(
            values(pass.hidden.narrow(1, batch.first_slot, 1)),
            values(half.clone().narrow(1, batch.first_slot, 1)),
            "{rule:?}"
        );
    }
}
