//! The soft composition that the paper trains (arXiv 2505.18962, Eq. 1 to 5).

use std::ops::Range;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use sesqui_model::{LatentTransformer, Visibility};

use crate::pass::StaircaseInputs;
use crate::shortcuts::Shortcuts;

/// How layers, depth shortcuts and step shortcuts are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftConfig {
    /// What stands beside the router's weight where both shortcuts arrive.
    pub branches: Branches,
    /// Which shortcuts there are.
    pub paths: Paths,
    /// What a step shortcut reads.
    pub step_source: StepSource,
}

/// What `w` multiplies where both shortcuts arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Branches {
    /// Their mean: adapters start as the identity, and inference follows one of them only.
    #[default]
    Mean,
    /// Their sum, as Eq. 5 is printed.
    Sum,
}

/// Which shortcuts are mixed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paths {
    /// Depth and step shortcuts (Eq. 5). The first slot has no step before it: depth alone.
    #[default]
    Both,
    /// Depth shortcuts alone (Eq. 1).
    Depth,
    /// Step shortcuts alone (Eq. 4). The first slot runs its layers unmixed.
    Step,
}

/// Which state of the slot before is `h_{l,t-1}` of Eq. 4 and 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepSource {
    /// Its composed state at boundary `l`: a scan over the slots in each layer.
    #[default]
    Composed,
    /// What layer `l` itself gave it: all slots at once.
    Layer,
}

/// What [`soft_pass`] computed.
#[derive(Clone, Debug)]
pub struct SoftPass {
    /// `[batch, seq, d_model]` before the final norm.
    pub hidden: Tensor<3>,
    /// Composed states of the slots after layers 1 to L, `[batch, slots, d_model]` each.
    pub composed: Vec<Tensor<3>>,
    /// `w_l` for layers 1 to L, `[batch, slots, 1]` each.
    pub router_weights: Vec<Tensor<3>>,
}

/// What [`local_composition`] computed.
#[derive(Clone, Debug)]
pub struct LocalComposition {
    /// Composed states of the slots after layers 1 to L, `[batch, slots, d_model]` each.
    pub composed: Vec<Tensor<3>>,
    /// `w_l` for layers 1 to L, `[batch, slots, 1]` each.
    pub router_weights: Vec<Tensor<3>>,
}

/// Runs every layer on every column and composes the states of the slots after each (Eq. 5):
/// composed states, and keys and values made from them, are what the next layer sees.
///
/// `slots`, at least 1, is the number of slots from `inputs.first_slot` on.
///
/// # Panics
///
/// If slots, shortcuts and inputs do not belong to the same shape.
pub fn soft_pass(
    model: &LatentTransformer,
    shortcuts: &Shortcuts,
    inputs: StaircaseInputs,
    slots: usize,
    config: SoftConfig,
) -> SoftPass {
    let [batch, _, d_model] = inputs.embedded.dims();
    let first_slot = inputs.first_slot;
    let place = [0..batch, first_slot..first_slot + slots, 0..d_model];
    let (mut composed, mut router_weights) = (Vec::new(), Vec::new());
    let hidden = each_layer(model, inputs, |layer, before, computed| {
        let mixture = Mixture::new(
            shortcuts,
            layer,
            before.narrow(1, first_slot, slots),
            computed.clone().narrow(1, first_slot, slots),
            config,
        );
        let states = match config.step_source {
            StepSource::Composed => mixture.scan(),
            StepSource::Layer => mixture.parallel(),
        };
        router_weights.push(mixture.weights);
        composed.push(states.clone());
        computed.slice_assign(place.clone(), states)
    });
    SoftPass {
        hidden,
        composed,
        router_weights,
    }
}

/// The right-hand side of Eq. 5 as it is printed, where plain `h` are states of the model without
/// shortcuts: nothing composed reaches another layer or slot, and `config.step_source` plays no part.
///
/// `student` are the slots' states at boundaries 0 to L, `[batch, slots, d_model]` each, as
/// [`slot_states`] returns them.
pub fn local_composition(
    shortcuts: &Shortcuts,
    student: &[Tensor<3>],
    config: SoftConfig,
) -> LocalComposition {
    let (composed, router_weights) = student
        .windows(2)
        .enumerate()
        .map(|(layer, states)| {
            let (before, after) = (states[0].clone(), states[1].clone());
            let mixture = Mixture::new(shortcuts, layer, before, after, config);
            (mixture.parallel(), mixture.weights)
        })
        .unzip();
    LocalComposition {
        composed,
        router_weights,
    }
}

/// States of `slots` slots at boundaries 0 to L, `[batch, slots, d_model]` each, in a pass without
/// shortcuts.
pub fn slot_states(
    model: &LatentTransformer,
    inputs: StaircaseInputs,
    slots: usize,
) -> Vec<Tensor<3>> {
    let first_slot = inputs.first_slot;
    let mut states = vec![inputs.embedded.clone().narrow(1, first_slot, slots)];
    each_layer(model, inputs, |_, _, computed| {
        states.push(computed.clone().narrow(1, first_slot, slots));
        computed
    });
    states
}

/// Runs all layers on all columns; `after(layer, before, computed)` decides what the next one gets,
/// `[batch, seq, d_model]` all three.
fn each_layer(
    model: &LatentTransformer,
    inputs: StaircaseInputs,
    mut after: impl FnMut(usize, Tensor<3>, Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let mut hidden = inputs.embedded;
    let [batch, seq, _] = hidden.dims();
    let visibility = Visibility::causal_padded(&inputs.real, [batch, seq], &hidden.device());
    let context = model.backbone.context(inputs.positions, visibility);
    for layer in 0..model.backbone.layers.len() {
        let computed = model
            .backbone
            .run_layers(layer..layer + 1, hidden.clone(), &context);
        hidden = after(layer, hidden, computed);
    }
    hidden
}

/// One layer's terms of Eq. 5.
struct Mixture<'a> {
    /// `f_l(h_{l-1,t})`, `[batch, slots, d_model]`.
    through: Tensor<3>,
    /// `g_{l-1}(h_{l-1,t})`, `[batch, slots, d_model]`.
    depth: Tensor<3>,
    shortcuts: &'a Shortcuts,
    /// `l` of `g_l`, the adapter of step shortcuts.
    boundary: usize,
    /// `w_{l,t}`, `[batch, slots, 1]`.
    weights: Tensor<3>,
    config: SoftConfig,
}

impl<'a> Mixture<'a> {
    /// Terms of layer `layer`, from 0, between the states `before` and `through` it.
    fn new(
        shortcuts: &'a Shortcuts,
        layer: usize,
        before: Tensor<3>,
        through: Tensor<3>,
        config: SoftConfig,
    ) -> Self {
        let slots = 0..before.dims()[1];
        Self {
            through,
            weights: shortcuts.routers[layer].forward(before.clone()),
            depth: shortcuts.adapt(layer, before, slots),
            shortcuts,
            boundary: layer + 1,
            config,
        }
    }

    /// `g_l` of the states `previous` of the slots before `slots`.
    fn step(&self, previous: Tensor<3>, slots: &Range<usize>) -> Tensor<3> {
        let before = slots.start - 1..slots.end - 1;
        self.shortcuts.adapt(self.boundary, previous, before)
    }

    /// All slots at once; step shortcuts read what the layer gave.
    fn parallel(&self) -> Tensor<3> {
        let slots = self.through.dims()[1];
        if slots == 1 || self.config.paths == Paths::Depth {
            return self.over(0..slots, None);
        }
        let previous = self.through.clone().narrow(1, 0, slots - 1);
        Tensor::cat(
            vec![self.over(0..1, None), self.over(1..slots, Some(previous))],
            1,
        )
    }

    /// Slot by slot; step shortcuts read what was composed.
    fn scan(&self) -> Tensor<3> {
        if self.config.paths == Paths::Depth {
            return self.parallel();
        }
        let mut states: Vec<Tensor<3>> = Vec::new();
        for slot in 0..self.through.dims()[1] {
            states.push(self.over(slot..slot + 1, states.last().cloned()));
        }
        Tensor::cat(states, 1)
    }

    /// Composed states of `slots`; `previous` are the states `h_{l,t-1}` of the slots before them.
    fn over(&self, slots: Range<usize>, previous: Option<Tensor<3>>) -> Tensor<3> {
        let cut = |all: &Tensor<3>| all.clone().narrow(1, slots.start, slots.len());
        let shortcut = match (self.config.paths, previous) {
            (Paths::Step, None) => return cut(&self.through),
            (Paths::Step, Some(previous)) => self.step(previous, &slots),
            (Paths::Depth, _) | (Paths::Both, None) => cut(&self.depth),
            (Paths::Both, Some(previous)) => {
                let both = cut(&self.depth) + self.step(previous, &slots);
                match self.config.branches {
                    Branches::Mean => both.mul_scalar(0.5),
                    Branches::Sum => both,
                }
            }
        };
        let weights = cut(&self.weights);
        shortcut * weights.clone() + cut(&self.through) * weights.neg().add_scalar(1.0)
    }
}
