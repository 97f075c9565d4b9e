//! A backbone that is fed its own states instead of tokens.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::initialize::{constant, parameter};
use crate::transformer::Transformer;

/// How a state becomes the input of the next latent step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Feedback {
    /// As it is (Coconut, arXiv 2412.06769; System-1.5 Reasoning, section 2.2).
    State,
    /// Through a trained linear map that starts as a multiple of the identity: states after the
    /// final norm are several times as long as embeddings.
    Linear {
        /// The multiple.
        scale: f64,
    },
}

impl Default for Feedback {
    fn default() -> Self {
        Self::Linear { scale: 0.25 }
    }
}

/// A transformer that can reason in latent steps.
#[derive(Module, Debug)]
pub struct LatentTransformer {
    /// The transformer.
    pub backbone: Transformer,
    /// `[d_model] -> [d_model]`, from a state to an input embedding; absent where states are fed
    /// back as they are.
    pub feedback: Option<Linear>,
}

impl LatentTransformer {
    /// Adds the feedback map to `backbone`.
    pub fn new(backbone: Transformer, feedback: &Feedback, device: &Device) -> Self {
        let d_model = backbone.config().d_model;
        let feedback = match feedback {
            Feedback::State => None,
            Feedback::Linear { scale } => {
                let mut identity = vec![0.0f32; d_model * d_model];
                identity
                    .iter_mut()
                    .step_by(d_model + 1)
                    .for_each(|value| *value = *scale as f32);
                let data = TensorData::new(identity, [d_model, d_model]);
                Some(Linear {
                    weight: parameter(Tensor::from_data(data, device)),
                    bias: Some(constant(0.0, d_model, device)),
                })
            }
        };
        Self { backbone, feedback }
    }

    /// Inputs of latent steps, without positions: `states` `[batch, steps, d_model]` are outputs of
    /// earlier positions after the final norm.
    pub fn latent_embeddings(&self, states: Tensor<3>) -> Tensor<3> {
        match &self.feedback {
            Some(map) => map.forward(states),
            None => states,
        }
    }

    /// `H_0` of latent steps at `positions` `[batch, steps]`: `[batch, steps, d_model]`.
    pub fn latent_inputs(&self, states: Tensor<3>, positions: Tensor<2, Int>) -> Tensor<3> {
        self.backbone
            .with_positions(self.latent_embeddings(states), positions)
    }
}

/// Position ids of latent steps, counted from the position `start` that the first token after the
/// question would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SlotPositions {
    /// One after another: slot `i` at `start + i`.
    #[default]
    Contiguous,
    /// Where tokens of a chain of thought stood whose steps are `stride` tokens long: slot `i` at
    /// `start + offset + stride i`.
    Strided {
        /// Which token of a step the slot stands for.
        offset: u32,
        /// Tokens of a step.
        stride: u32,
    },
}

impl SlotPositions {
    /// Position id of `slot`, counted from 0.
    pub fn slot_position(&self, start: i32, slot: usize) -> i32 {
        match *self {
            Self::Contiguous => start.saturating_add(narrow(slot)),
            Self::Strided { offset, stride } => start
                .saturating_add(narrow(offset as usize))
                .saturating_add(narrow((stride as usize).saturating_mul(slot))),
        }
    }

    /// Position id of the first token after `slots` slots.
    pub fn answer_position(&self, start: i32, slots: usize) -> i32 {
        match *self {
            Self::Contiguous => start.saturating_add(narrow(slots)),
            Self::Strided { stride, .. } => {
                start.saturating_add(narrow((stride as usize).saturating_mul(slots)))
            }
        }
    }
}

/// Far outside every context rather than wrapped around.
fn narrow(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
