//! A head that says from the first state how many latent steps a question needs.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use sesqui_model::ModelConfig;
use sesqui_model::initialize::{Initializer, Role};

use crate::router::{HostGate, normalised};

/// Logits over numbers of latent steps: `f(norm(h^0))`, `f` linear or with one hidden layer, `h^0` the
/// state after the final norm of the question's last token. A latent form of learned lengths (LAPO, arXiv
/// 2507.15758), with all lengths enumerated instead of sampled.
#[derive(Module, Debug)]
pub struct StepHead {
    /// `[d_model] -> [hidden]`, where there is a hidden layer.
    pub hidden: Option<Linear>,
    /// `[d_model or hidden] -> [steps]`; output `k` stands for `k + 1` latent steps.
    pub output: Linear,
}

impl StepHead {
    /// A head over 1 to `steps` latent steps that finds all of them equally likely; `hidden` is the width
    /// of its hidden layer, 0 for none. Weights are drawn from `seed`.
    pub fn new(
        hidden: usize,
        steps: usize,
        model: &ModelConfig,
        seed: u64,
        device: &Device,
    ) -> Self {
        let mut weights = Initializer::new(model, seed);
        let d_model = model.d_model;
        let layer =
            (hidden > 0).then(|| weights.linear([d_model, hidden], true, Role::Input, device));
        let width = if hidden > 0 { hidden } else { d_model };
        let mut output = weights.linear([width, steps], true, Role::Input, device);
        output.weight = Param::from_tensor(output.weight.val().zeros_like());
        Self {
            hidden: layer,
            output,
        }
    }

    /// Logits `[batch, seq, steps]` of states `[batch, seq, d_model]`.
    pub fn logits(&self, states: Tensor<3>) -> Tensor<3> {
        let normed = normalised(states);
        let features = match &self.hidden {
            Some(hidden) => relu(hidden.forward(normed)),
            None => normed,
        };
        self.output.forward(features)
    }

    /// The same head for states that were read to the host, as for routers.
    pub fn on_host(&self) -> HostStepHead {
        HostStepHead(HostGate::new(self.hidden.as_ref(), &self.output))
    }
}

/// A [`StepHead`] whose weights are on the host.
#[derive(Clone, Debug)]
pub struct HostStepHead(HostGate);

impl HostStepHead {
    /// Probability of each number of latent steps, 1 first, after one state of `d_model` values.
    pub fn probabilities(&self, state: &[f32]) -> Vec<f64> {
        let logits = self.0.logits(state);
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = logits
            .iter()
            .map(|logit| f64::from(logit - greatest).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    /// Operations of one question.
    pub fn flops(&self) -> f64 {
        self.0.flops()
    }
}
