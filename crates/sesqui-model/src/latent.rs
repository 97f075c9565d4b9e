//! A backbone that is fed its own states instead of tokens.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sesqui_kernels::linear;

use crate::initialize::{Initializer, Role, constant, parameter};
use crate::layer::gelu_tanh;
use crate::layer_norm::LayerNorm;
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
    /// The newest state through two trained linear maps with GELU between them and a layer norm behind
    /// (CODI, arXiv 2502.21074, section 3).
    Projection {
        /// Width between the two; 0 stands for that of the model.
        width: usize,
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
    /// The same with a hidden layer; absent where there is none.
    pub projection: Option<Projection>,
    /// `[d_model]`, the input of every latent step; absent where states are fed.
    pub pause: Option<Param<Tensor<1>>>,
    #[module(skip)]
    source: Source,
}

/// From a state to an input embedding through a hidden layer: `norm(down(gelu(up(state))))`.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[d_model] -> [width]`.
    pub up: Linear,
    /// `[width] -> [d_model]`.
    pub down: Linear,
    /// Over `d_model`; its gain starts as the standard deviation of token embeddings, so that what is fed
    /// is as long as what the model knows.
    pub norm: LayerNorm,
}

impl Projection {
    fn new(backbone: &Transformer, width: usize, seed: u64, device: &Device) -> Self {
        let config = backbone.config();
        let d_model = config.d_model;
        let width = if width == 0 { d_model } else { width };
        let mut weights = Initializer::new(config, seed);
        let up = weights.linear([d_model, width], true, Role::Input, device);
        let down = weights.linear([width, d_model], true, Role::Input, device);
        let table = backbone.token_embedding.weight.val().detach();
        let deviation = table.square().mean().sqrt().reshape([1]).expand([d_model]);
        Self {
            up,
            down,
            norm: LayerNorm::new(
                parameter(deviation.detach()),
                constant(0.0, d_model, device),
                config.norm_epsilon,
            ),
        }
    }

    /// Input embeddings `[batch, steps, d_model]` of `states`, as many.
    pub fn forward(&self, states: Tensor<3>) -> Tensor<3> {
        let hidden = gelu_tanh(linear(&self.up, states));
        self.norm.forward(linear(&self.down, hidden))
    }
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
    /// Adds to `backbone` whatever `feedback` trains, drawn from `seed` where it is drawn.
    pub fn new(backbone: Transformer, feedback: &Feedback, seed: u64, device: &Device) -> Self {
        let d_model = backbone.config().d_model;
        let mut student = Self {
            backbone,
            feedback: None,
            projection: None,
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
            Feedback::Projection { width } => {
                let projection = Projection::new(&student.backbone, *width, seed, device);
                student.projection = Some(projection);
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
        match (&self.pause, &self.feedback, &self.projection) {
            (Some(pause), ..) => {
                let [batch, steps, d_model] = states.dims();
                let pause = pause.val().reshape([1, 1, d_model]);
                pause.expand([batch, steps, d_model])
            }
            (None, Some(map), _) => map.forward(states),
            (None, None, Some(projection)) => projection.forward(states),
            (None, None, None) => states,
        }
    }

    /// `H_0` of latent steps at `positions` `[batch, steps]`: `[batch, steps, d_model]`.
    pub fn latent_inputs(&self, states: Tensor<3>, positions: Tensor<2, Int>) -> Tensor<3> {
        self.backbone
            .with_positions(self.latent_embeddings(states), positions)
    }
}

/// In which order latent steps are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LatentOrder {
    /// One after another, each fed the state of the one before.
    #[default]
    Sequential,
    /// All at once, several times over, each fed what the one before it came to the last time: Jacobi
    /// iterations (PCCoT, arXiv 2506.18582). The first time all are fed the state of the question's last
    /// token. After as many times as there are latent steps this is the same as one after another.
    Jacobi {
        /// How many times, the last of which the answer sees.
        iterations: usize,
    },
}

impl LatentOrder {
    /// Whether it is one after another.
    pub fn is_sequential(&self) -> bool {
        *self == Self::Sequential
    }

    /// How often each of `steps` latent steps is computed. More often than there are steps changes
    /// nothing, and is not done.
    pub fn passes(self, steps: usize) -> usize {
        match self {
            Self::Sequential => 1,
            Self::Jacobi { iterations } => iterations.clamp(1, steps.max(1)),
        }
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
