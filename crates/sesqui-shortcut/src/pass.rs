//! The hard staircase in one masked parallel pass, with gradients or without.

use burn::tensor::{Bool, Int, Tensor, TensorData};
use sesqui_model::{LatentTransformer, SequenceContext, Visibility};

use crate::config::KeyValueRule;
use crate::plan::{EntryPosition, ExitPlan, Slot};
use crate::shortcuts::Shortcuts;

/// A batch of sequences with latent steps in the same columns of all rows.
#[derive(Clone, Debug)]
pub struct StaircaseInputs {
    /// `H_0` with positions, `[batch, seq, d_model]`. A slot that enters above the bottom may hold
    /// anything finite.
    pub embedded: Tensor<3>,
    /// Position ids `[batch, seq]`.
    pub positions: Tensor<2, Int>,
    /// Row-major `[batch, seq]`: `false` marks a pad.
    pub real: Vec<bool>,
    /// Column of the first slot.
    pub first_slot: usize,
}

/// What [`staircase_pass`] computed.
#[derive(Clone, Debug)]
pub struct StaircasePass {
    /// `[batch, seq, d_model]` before the final norm. A slot that left early holds the state with
    /// which it left.
    pub hidden: Tensor<3>,
    /// Boundary and router logits `[batch, slots]`, upwards, for every boundary of early exits at
    /// which some slot stood. Only routers get a gradient from them. Empty without shortcuts.
    pub router_logits: Vec<(usize, Tensor<2>)>,
    /// For each entry of `router_logits`, row-major `[batch, slots]`: whether the slot stood at
    /// that boundary, `enter <= boundary <= leave`. Other logits mean nothing.
    pub reached: Vec<Vec<bool>>,
}

/// Runs all columns at once, each slot through its own layers only.
///
/// Before layer `l`, slots that enter there take over the state of the slot before, through the
/// adapter of the boundary at which that one left (without shortcuts as it is), plus, if the plan says
/// so, their own learned position. A slot is then computed, and seen by later columns, in the layers that it runs;
/// `key_values` adds what is seen above. Columns that are no slots run every layer.
///
/// A full plan without pads gives the same bits as [`sesqui_model::Transformer::run_layers`].
///
/// # Panics
///
/// If plan, shortcuts and inputs do not belong to the same shape.
pub fn staircase_pass(
    model: &LatentTransformer,
    shortcuts: Option<&Shortcuts>,
    inputs: StaircaseInputs,
    plan: &ExitPlan,
    key_values: KeyValueRule,
) -> StaircasePass {
    let [batch, seq, _] = inputs.embedded.dims();
    let layers = model.backbone.layers.len();
    assert_eq!(
        [plan.batch(), plan.layers(), inputs.real.len()],
        [batch, layers, batch * seq],
        "rows and layers of the plan, cells of `real`"
    );
    assert!(
        inputs.first_slot + plan.slots() <= seq,
        "{} slots from column {} on do not fit into {seq}",
        plan.slots(),
        inputs.first_slot
    );
    let StaircaseInputs {
        embedded,
        positions,
        real,
        first_slot,
    } = inputs;
    let stairs = Stairs {
        model,
        shortcuts,
        plan,
        positions,
        first_slot,
    };
    let mut pass = StaircasePass {
        hidden: embedded,
        router_logits: Vec::new(),
        reached: Vec::new(),
    };
    let mut last: Option<(Vec<bool>, SequenceContext)> = None;
    for layer in 0..layers {
        if layer > 0 {
            pass.hidden = stairs.enter(pass.hidden, layer);
            stairs.ask_router(&mut pass, layer);
        }
        let seen = stairs.seen(&real, layer, key_values);
        let context = match last.take() {
            Some((before, context)) if before == seen => context,
            _ => {
                let visibility =
                    Visibility::causal_padded(&seen, [batch, seq], &pass.hidden.device());
                model.backbone.context(stairs.positions.clone(), visibility)
            }
        };
        let computed = model
            .backbone
            .run_layers(layer..layer + 1, pass.hidden.clone(), &context);
        pass.hidden = match stairs.idle(&pass.hidden, layer) {
            Some(idle) => computed.mask_where(idle, pass.hidden),
            None => computed,
        };
        last = Some((seen, context));
    }
    pass
}

/// What stays the same from layer to layer.
struct Stairs<'a> {
    model: &'a LatentTransformer,
    shortcuts: Option<&'a Shortcuts>,
    plan: &'a ExitPlan,
    positions: Tensor<2, Int>,
    first_slot: usize,
}

impl Stairs<'_> {
    /// `hidden` `[batch, seq, d_model]` after the slots that enter at `boundary` took over.
    fn enter(&self, mut hidden: Tensor<3>, boundary: usize) -> Tensor<3> {
        let [batch, _, d_model] = hidden.dims();
        let (first, others) = (self.first_slot, self.plan.slots().saturating_sub(1));
        for entering in self.waves(boundary) {
            let left = hidden.clone().narrow(1, first, others);
            let adapted = match self.shortcuts {
                Some(shortcuts) => {
                    let left_at = self.plan.landing().left_at(boundary);
                    shortcuts.adapt(left_at, left, 0..others)
                }
                None => left,
            };
            let entered = match self.plan.entry_position() {
                EntryPosition::EveryEntry => {
                    let positions = self.positions.clone().narrow(1, first + 1, others);
                    self.model.backbone.with_positions(adapted, positions)
                }
                EntryPosition::CycleStart => adapted,
            };
            let entering = mask(entering, &entered);
            let waiting = hidden.clone().narrow(1, first + 1, others);
            hidden = hidden.slice_assign(
                [0..batch, first + 1..first + 1 + others, 0..d_model],
                waiting.mask_where(entering, entered),
            );
        }
        hidden
    }

    /// Which slots take over at `boundary`, row-major `[batch, slots - 1]` from the second slot on.
    /// A slot that takes over from one which itself only just did, and ran no layer, comes one wave
    /// later.
    fn waves(&self, boundary: usize) -> Vec<Vec<bool>> {
        let (batch, slots) = (self.plan.batch(), self.plan.slots());
        let mut waves: Vec<Vec<bool>> = Vec::new();
        for row in 0..batch {
            let mut wave = 0;
            for slot in 1..slots {
                if self.plan.slot(row, slot).enter != boundary {
                    wave = 0;
                    continue;
                }
                if wave == waves.len() {
                    waves.push(vec![false; batch * (slots - 1)]);
                }
                waves[wave][row * (slots - 1) + slot - 1] = true;
                wave += 1;
            }
        }
        waves
    }

    /// Adds the router's logits at `boundary`, where some slot stands there.
    fn ask_router(&self, pass: &mut StaircasePass, boundary: usize) {
        let Some(shortcuts) = self.shortcuts else {
            return;
        };
        let (batch, slots) = (self.plan.batch(), self.plan.slots());
        let stands = |slot: &Slot| (slot.enter..=slot.leave).contains(&boundary);
        let reached: Vec<bool> = self.plan.cells().iter().map(stands).collect();
        let exits = self.plan.landing().exits(self.plan.layers());
        if !exits.contains(&boundary) || !reached.contains(&true) {
            return;
        }
        let states = pass.hidden.clone().narrow(1, self.first_slot, slots);
        let logits = shortcuts.routers[boundary].logits(states.detach());
        pass.router_logits
            .push((boundary, logits.reshape([batch, slots])));
        pass.reached.push(reached);
    }

    /// Row-major `[batch, seq]`: which columns later ones see in `layer`.
    fn seen(&self, real: &[bool], layer: usize, key_values: KeyValueRule) -> Vec<bool> {
        let mut seen = real.to_vec();
        self.each_idle(
            layer,
            real.len() / self.plan.batch().max(1),
            |column, slot| {
                let filled = key_values == KeyValueRule::Fill && slot.leave <= layer;
                seen[column] &= filled;
            },
        );
        seen
    }

    /// Mask `[batch, seq, d_model]` of the columns that keep their state in `layer`; none if every
    /// slot runs it.
    fn idle(&self, hidden: &Tensor<3>, layer: usize) -> Option<Tensor<3, Bool>> {
        let [batch, seq, _] = hidden.dims();
        let mut idle = vec![false; batch * seq];
        self.each_idle(layer, seq, |column, _| idle[column] = true);
        idle.contains(&true).then(|| mask(idle, hidden))
    }

    /// Calls `visit` with the index in row-major `[batch, seq]` of every slot that does not run
    /// `layer`.
    fn each_idle(&self, layer: usize, seq: usize, mut visit: impl FnMut(usize, Slot)) {
        for row in 0..self.plan.batch() {
            for slot in (0..self.plan.slots()).filter(|&slot| !self.plan.runs(row, slot, layer)) {
                visit(
                    row * seq + self.first_slot + slot,
                    self.plan.slot(row, slot),
                );
            }
        }
    }
}

/// `cells`, row-major over the first two dimensions of `like`, repeated along the last.
fn mask(cells: Vec<bool>, like: &Tensor<3>) -> Tensor<3, Bool> {
    let [rows, columns, d_model] = like.dims();
    let data = TensorData::new(cells, [rows, columns, 1]);
    Tensor::<3, Bool>::from_data(data, &like.device()).expand([rows, columns, d_model])
}
