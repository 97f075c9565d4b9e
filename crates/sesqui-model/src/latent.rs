//! A backbone that is fed its own states instead of tokens.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::initialize::{constant, parameter};
use crate::transformer::Transformer;

/// What a latent step is fed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Feedback {
    /// The newest state, as it is (Coconut, arXiv 2412.06769; System-1.5 Reasoning, section 2.2).
    State,
    /// The newest state through a trained linear map that starts as a multiple of the identity: states
    /// after the final norm are several times as long as embeddings.
    Linear {
        /// The multiple.
        scale: f64,
    },
    /// A trained vector, the same in every latent step of every question (pause tokens, arXiv
    /// 2310.02226). It starts as the mean of the token embeddings.
    Pause,
    /// The state of the question's last token, in every latent step: a pause vector that depends on the
    /// question and on nothing that came of it.
    FirstState,
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
    /// `[d_model]`, the input of every latent step; absent where states are fed.
    pub pause: Option<Param<Tensor<1>>>,
    #[module(skip)]
    source: Source,
}

/// Where the input of a latent step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The state of the position before it: latent steps come one after another.
    Newest,
    /// The state of the question's last position.
    First,
    /// No state at all.
    Nothing,
}

impl LatentTransformer {
    /// Adds to `backbone` whatever `feedback` trains.
    pub fn new(backbone: Transformer, feedback: &Feedback, device: &Device) -> Self {
        let d_model = backbone.config().d_model;
        let mut student = Self {
            backbone,
            feedback: None,
            pause: None,
            source: Source::Newest,
        };
        match feedback {
            Feedback::State => {}
            Feedback::Linear { scale } => {
                let mut identity = vec![0.0f32; d_model * d_model];
                identity
                    .iter_mut()
                    .step_by(d_model + 1)
                    .for_each(|value| *value = *scale as f32);
                let data = TensorData::new(identity, [d_model, d_model]);
                student.feedback = Some(Linear {
                    weight: parameter(Tensor::from_data(data, device)),
                    bias: Some(constant(0.0, d_model, device)),
                });
            }
            Feedback::Pause => {
                let embeddings = student.backbone.token_embedding.weight.val();
                let mean = embeddings.detach().mean_dim(0).reshape([d_model]);
                student.pause = Some(parameter(mean.detach()));
                student.source = Source::Nothing;
            }
            Feedback::FirstState => student.source = Source::First,
        }
        student
    }

    /// Where the inputs of latent steps come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Of the states after the question, `first`, and of the newest ones, those that the next latent step
    /// is fed; where it is fed none, any.
    pub fn fed<'t>(&self, first: &'t Tensor<3>, newest: &'t Tensor<3>) -> &'t Tensor<3> {
        match self.source {
            Source::First => first,
            Source::Newest | Source::Nothing => newest,
        }
    }

    /// Inputs of latent steps, without positions: `states` `[batch, steps, d_model]` are outputs of
    /// earlier positions after the final norm.
    pub fn latent_embeddings(&self, states: Tensor<3>) -> Tensor<3> {
        match (&self.pause, &self.feedback) {
            (Some(pause), _) => {
                let [batch, steps, d_model] = states.dims();
                let pause = pause.val().reshape([1, 1, d_model]);
                pause.expand([batch, steps, d_model])
            }
            (None, Some(map)) => map.forward(states),
            (None, None) => states,
        }
    }

    /// `H_0` of latent steps at `positions` `[batch, steps]`: `[batch, steps, d_model]`.
    pub fn latent_inputs(&self, states: Tensor<3>, positions: Tensor<2, Int>) -> Tensor<3> {
        self.backbone
            .with_positions(self.latent_embeddings(states), positions)
    }
}

/// What follows the last latent step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Continuation {
    /// The marker before the answer is fed, then the answer is decoded.
    #[default]
    Answer,
    /// The last state chooses a token, and the model writes on by itself: steps that it still says in
    /// words, marker, answer.
    Text,
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
