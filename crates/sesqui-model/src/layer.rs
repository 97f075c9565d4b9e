//! One transformer layer `f_l`.

use burn::module::Module;
use burn::nn::{Linear, RmsNorm};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor};
pub use sesqui_kernels::gelu_tanh;
use sesqui_kernels::{linear, rms_norm};

use crate::attention::{Attention, Rotary};
use crate::cache::Admission;
use crate::config::{Family, ModelConfig};
use crate::initialize::{Initializer, Role, constant};
use crate::layer_norm::LayerNorm;
use crate::mask::Visibility;
use crate::precision::Precision;

/// The norm of a family.
#[derive(Module, Debug)]
pub enum Norm {
    /// Mean and variance, with gain and bias (Ba et al. 2016).
    Layer(LayerNorm),
    /// Root mean square, with gain (Zhang and Sennrich 2019).
    RootMeanSquare(RmsNorm),
}

impl Norm {
    /// A norm over `d_model` that starts as the identity gain.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let gamma = constant(1.0, config.d_model, device);
        match config.family {
            Family::Gpt2 => Self::Layer(LayerNorm::new(
                gamma,
                constant(0.0, config.d_model, device),
                config.norm_epsilon,
            )),
            Family::Llama => Self::RootMeanSquare(RmsNorm {
                gamma,
                epsilon: config.norm_epsilon,
            }),
        }
    }

    /// Normalises the last dimension of `[batch, seq, d_model]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::RootMeanSquare(norm) => rms_norm(x, norm.gamma.val(), norm.epsilon),
        }
    }
}

/// The position-wise part of a layer.
#[derive(Module, Debug)]
pub enum FeedForward {
    /// `down(gelu(up(x)))`.
    Gelu(GeluFeedForward),
    /// `down(silu(gate(x)) * up(x))`.
    SwiGlu(SwiGluFeedForward),
}

/// GPT-2's feed-forward part.
#[derive(Module, Debug)]
pub struct GeluFeedForward {
    /// `[d_model] -> [d_feed_forward]`.
    pub up: Linear,
    /// `[d_feed_forward] -> [d_model]`.
    pub down: Linear,
}

/// Llama's feed-forward part, gate and up in one map.
#[derive(Module, Debug)]
pub struct SwiGluFeedForward {
    /// `[d_model] -> [2 d_feed_forward]`: gate, then up.
    pub gate_up: Linear,
    /// `[d_feed_forward] -> [d_model]`.
    pub down: Linear,
}

impl FeedForward {
    fn new(config: &ModelConfig, weights: &mut Initializer, device: &Device) -> Self {
        let (d_model, width) = (config.d_model, config.d_feed_forward());
        match config.family {
            Family::Gpt2 => Self::Gelu(GeluFeedForward {
                up: weights.linear([d_model, width], true, Role::Input, device),
                down: weights.linear([width, d_model], true, Role::Output, device),
            }),
            Family::Llama => Self::SwiGlu(SwiGluFeedForward {
                gate_up: weights.linear([d_model, 2 * width], false, Role::Input, device),
                down: weights.linear([width, d_model], false, Role::Output, device),
            }),
        }
    }

    /// Position-wise map of `[batch, seq, d_model]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gelu(part) => linear(&part.down, gelu_tanh(linear(&part.up, x))),
            Self::SwiGlu(part) => {
                let joint = linear(&part.gate_up, x);
                let width = joint.dims()[2] / 2;
                let gate = joint.clone().narrow(2, 0, width);
                linear(&part.down, silu(gate) * joint.narrow(2, width, width))
            }
        }
    }
}

/// One pre-norm layer: attention, then the feed-forward part, each added to the residual stream.
#[derive(Module, Debug)]
pub struct Layer {
    /// Norm before attention.
    pub attention_norm: Norm,
    /// Self-attention.
    pub attention: Attention,
    /// Norm before the feed-forward part.
    pub feed_forward_norm: Norm,
    /// Position-wise part.
    pub feed_forward: FeedForward,
    /// Of the products in both halves.
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Layer {
    /// A new layer.
    pub fn new(config: &ModelConfig, weights: &mut Initializer, device: &Device) -> Self {
        let bias = config.family == Family::Gpt2;
        Self {
            attention_norm: Norm::new(config, device),
            attention: Attention::new(config, bias, weights, device),
            feed_forward_norm: Norm::new(config, device),
            feed_forward: FeedForward::new(config, weights, device),
            precision: Precision::F32,
        }
    }

    /// `h_l = f_l(h_{l-1})`, `[batch, seq, d_model]` in and out.
    pub fn forward(
        &self,
        hidden: Tensor<3>,
        rotary: Option<&Rotary>,
        visibility: &Visibility,
        cache: Option<Admission<'_>>,
    ) -> Tensor<3> {
        let precision = self.precision;
        let normed = precision.narrow(self.attention_norm.forward(hidden.clone()));
        let attended = self.attention.forward(normed, rotary, visibility, cache);
        let hidden = hidden + precision.widen(attended);
        let normed = precision.narrow(self.feed_forward_norm.forward(hidden.clone()));
        hidden + precision.widen(self.feed_forward.forward(normed))
    }
}
