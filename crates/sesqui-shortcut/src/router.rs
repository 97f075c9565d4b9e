//! The gate that says how ready a state is to leave.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{Device, Tensor};
use sesqui_kernels::read;
use sesqui_model::initialize::{Initializer, Role};

use crate::config::RouterConfig;

/// Keeps the norm of a constant state finite.
const EPSILON: f64 = 1e-5;

/// `w = sigmoid(f(norm(h)))` (Eq. 2), `f` linear or with one hidden layer.
#[derive(Module, Debug)]
pub struct Router {
    /// `[d_model] -> [hidden]`, where there is a hidden layer.
    pub hidden: Option<Linear>,
    /// `[d_model or hidden] -> [1]`.
    pub output: Linear,
}

impl Router {
    /// A gate that says `sigmoid(bias)` to every state.
    pub fn new(
        config: &RouterConfig,
        d_model: usize,
        weights: &mut Initializer,
        device: &Device,
    ) -> Self {
        let hidden = (config.hidden > 0)
            .then(|| weights.linear([d_model, config.hidden], true, Role::Input, device));
        let width = if config.hidden > 0 {
            config.hidden
        } else {
            d_model
        };
        let mut output = weights.linear([width, 1], true, Role::Input, device);
        output.weight = Param::from_tensor(output.weight.val().zeros_like());
        output.bias = output
            .bias
            .map(|bias| Param::from_tensor(bias.val().full_like(config.bias)));
        Self { hidden, output }
    }

    /// Logits `[batch, seq, 1]` of states `[batch, seq, d_model]`.
    pub fn logits(&self, states: Tensor<3>) -> Tensor<3> {
        let normed = normalised(states);
        let features = match &self.hidden {
            Some(hidden) => relu(hidden.forward(normed)),
            None => normed,
        };
        self.output.forward(features)
    }

    /// Weights `w` `[batch, seq, 1]` in (0, 1).
    pub fn forward(&self, states: Tensor<3>) -> Tensor<3> {
        sigmoid(self.logits(states))
    }

    /// The same gate for states that were read to the host: at these sizes a dozen operations on a
    /// device cost more than the read that has to follow them anyway.
    pub fn on_host(&self) -> HostRouter {
        HostRouter(HostGate::new(self.hidden.as_ref(), &self.output))
    }
}

/// States `[batch, seq, d_model]` with mean 0 and variance 1.
pub(crate) fn normalised(states: Tensor<3>) -> Tensor<3> {
    let centred = states.clone() - states.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    centred / variance.add_scalar(EPSILON).sqrt()
}

/// A [`Router`] whose weights are on the host.
#[derive(Clone, Debug)]
pub struct HostRouter(HostGate);

impl HostRouter {
    /// `w` of one state of `d_model` values.
    pub fn weight(&self, state: &[f32]) -> f32 {
        let logit = self.0.logits(state)[0];
        1.0 / (1.0 + (-logit).exp())
    }
}

/// A linear map of a normalised state, with a hidden layer or without, on the host.
#[derive(Clone, Debug)]
pub(crate) struct HostGate {
    hidden: Option<HostLinear>,
    output: HostLinear,
}

#[derive(Clone, Debug)]
struct HostLinear {
    inputs: usize,
    /// `[outputs, inputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl HostLinear {
    fn new(linear: &Linear) -> Self {
        let values = |tensor: Tensor<1>| -> Vec<f32> { read(tensor).iter::<f32>().collect() };
        let [inputs, outputs] = linear.weight.dims();
        Self {
            inputs,
            weight: values(linear.weight.val().transpose().reshape([inputs * outputs])),
            bias: match &linear.bias {
                Some(bias) => values(bias.val()),
                None => vec![0.0; outputs],
            },
        }
    }

    fn forward(&self, input: &[f32]) -> Vec<f32> {
        self.weight
            .chunks_exact(self.inputs)
            .zip(&self.bias)
            .map(|(row, bias)| bias + dot(row, input))
            .collect()
    }
}

impl HostGate {
    pub(crate) fn new(hidden: Option<&Linear>, output: &Linear) -> Self {
        Self {
            hidden: hidden.map(HostLinear::new),
            output: HostLinear::new(output),
        }
    }

    /// One value for each output.
    pub(crate) fn logits(&self, state: &[f32]) -> Vec<f32> {
        let n = state.len() as f32;
        let mean = state.iter().sum::<f32>() / n;
        let centred: Vec<f32> = state.iter().map(|value| value - mean).collect();
        let variance = dot(&centred, &centred) / n;
        let scale = 1.0 / (variance + EPSILON as f32).sqrt();
        let normed: Vec<f32> = centred.iter().map(|value| value * scale).collect();
        let features = match &self.hidden {
            Some(hidden) => {
                let mut features = hidden.forward(&normed);
                features
                    .iter_mut()
                    .for_each(|value| *value = value.max(0.0));
                features
            }
            None => normed,
        };
        self.output.forward(&features)
    }

    /// Operations of one call, a multiplication and an addition counted as two, maps alone.
    pub(crate) fn flops(&self) -> f64 {
        let maps = self.hidden.iter().chain([&self.output]);
        maps.map(|map| 2.0 * map.weight.len() as f64).sum()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
