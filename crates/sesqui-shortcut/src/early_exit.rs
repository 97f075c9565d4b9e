//! The early-exit loss of stage 2 (arXiv 2505.18962, Eq. 10 and 11).

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Readings of Eq. 10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyExitConfig {
    /// Which composed states are compared; whoever computes them has to follow it.
    pub composed: Composed,
    /// What they are compared with.
    pub target: Target,
    /// How the terms are added up.
    pub scale: Scale,
}

/// What `h^1.5_{l,t}` is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Composed {
    /// States of the student without shortcuts, as Eq. 5 is printed: see
    /// [`crate::soft::local_composition`].
    #[default]
    Local,
    /// Composed states of the layer below: see [`crate::soft::soft_pass`].
    Propagated,
}

/// Which state of the student is the target of layer `l`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The one after the same layer, as in Eq. 10.
    #[default]
    SameLayer,
    /// The one after the last layer, as in the sentence before Eq. 10.
    FinalLayer,
}

/// How terms are added up. Either way the squared error is a mean over the dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Mean over layers and labelled slots, so that the weight of the loss means the same at any
    /// depth and length.
    #[default]
    Mean,
    /// Sum over layers and slots, as printed, and the mean over rows that have a labelled slot.
    Sum,
}

/// `e_{l,t}` for layers 1 to `layers` (Eq. 11): the price of not being what the full path gives,
/// rising with depth where a step is not critical, falling where it is.
pub fn exit_weights(layers: usize, critical: bool) -> Vec<f64> {
    let all = (layers * (layers + 1)) as f64;
    (1..=layers)
        .map(|layer| {
            let share = (layer * (layer + 1)) as f64 / all;
            if critical { 1.0 - share } else { share }
        })
        .collect()
}

/// `L_ee` (Eq. 10), `[1]`; zero where no slot has a label.
///
/// `composed` and `targets` are states of the slots after layers 1 to L, `[batch, slots, d_model]`
/// each, the targets those of the student without shortcuts; no gradient goes into them. `critical`
/// is row-major `[batch, slots]`, `None` for a slot that has no label and no weight.
///
/// # Panics
///
/// If there are no layers, or the numbers of layers or slots differ.
pub fn early_exit_loss(
    composed: &[Tensor<3>],
    targets: &[Tensor<3>],
    critical: &[Option<bool>],
    config: EarlyExitConfig,
) -> Tensor<1> {
    let layers = composed.len();
    assert_eq!(layers, targets.len(), "layers of states and of targets");
    let slots = composed[0].dims()[1];
    let [easy, hard] = [false, true].map(|critical| exit_weights(layers, critical));
    let terms = composed.iter().enumerate().map(|(layer, states)| {
        let target = match config.target {
            Target::SameLayer => &targets[layer],
            Target::FinalLayer => &targets[layers - 1],
        };
        let difference = states.clone() - target.clone().detach();
        let error = (difference.clone() * difference).mean_dim(2);
        let weights = critical.iter().map(|label| match label {
            None => 0.0,
            Some(false) => easy[layer],
            Some(true) => hard[layer],
        });
        (error * per_slot(weights, states)).sum()
    });
    let labelled = match config.scale {
        Scale::Mean => layers * critical.iter().flatten().count(),
        Scale::Sum => critical
            .chunks(slots.max(1))
            .filter(|row| row.iter().any(Option::is_some))
            .count(),
    };
    total(terms).div_scalar(labelled.max(1) as f64)
}

/// Mean over layers and slots that count of `(1 - w)(1 - c)`, `[1]`: the cost of running a layer for a
/// slot that is not critical; zero where no slot counts.
///
/// **An extension**: the paper's losses never reward leaving early.
///
/// `router_weights` are `w` of layers 1 to L, `[batch, slots, 1]` each; `critical` is row-major
/// `[batch, slots]`, `None` for a slot that does not count. More slots may count than have a label in
/// [`early_exit_loss`]: one that is no step costs as much as one that is.
///
/// # Panics
///
/// If there are no layers, or the numbers of slots differ.
pub fn compute_term(router_weights: &[Tensor<3>], critical: &[Option<bool>]) -> Tensor<1> {
    let counted = per_slot(
        critical
            .iter()
            .map(|&label| f64::from(u8::from(label == Some(false)))),
        &router_weights[0],
    );
    let terms = router_weights
        .iter()
        .map(|weights| (weights.clone().neg().add_scalar(1.0) * counted.clone()).sum());
    let all = router_weights.len() * critical.iter().flatten().count();
    total(terms).div_scalar(all.max(1) as f64)
}

/// `values`, row-major `[batch, slots]`, as `[batch, slots, 1]` beside `states`.
fn per_slot(values: impl Iterator<Item = f64>, states: &Tensor<3>) -> Tensor<3> {
    let [batch, slots, _] = states.dims();
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    Tensor::from_data(TensorData::new(values, [batch, slots, 1]), &states.device())
}

fn total(terms: impl Iterator<Item = Tensor<1>>) -> Tensor<1> {
    let terms: Vec<Tensor<1>> = terms.collect();
    Tensor::cat(terms, 0).sum()
}
