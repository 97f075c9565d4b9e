//! Initial weights, drawn on the host so that every backend starts from the same bytes.
//!
//! Burn's own initialisers are lazy and draw on the device they end up on, with that device's
//! generator: the same seed would give other weights on CUDA than on CPU.

use burn::module::{Param, ParamId};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::config::{Initialization, ModelConfig};

/// A stream of initial weights; the order in which tensors are drawn is part of its meaning.
pub struct Initializer {
    random: ChaCha8Rng,
    embedding: f64,
    matrix: f64,
    output: f64,
    spare: Option<f64>,
}

/// Which standard deviation a matrix gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token and position embeddings.
    Embedding,
    /// Matrices that read the residual stream, and the head.
    Input,
    /// Matrices that write into the residual stream.
    Output,
}

impl Initializer {
    /// A stream for `config` from `seed`.
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        let (embedding, matrix) = match config.initialization {
            Initialization::Fixed { standard_deviation } => {
                (standard_deviation, standard_deviation)
            }
            Initialization::Scaled { embedding, matrix } => {
                (embedding, matrix / (config.d_model as f64).sqrt())
            }
        };
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            embedding,
            matrix,
            output: matrix / (2.0 * config.layers as f64).sqrt(),
            spare: None,
        }
    }

    /// An embedding table `[entries, d_model]`.
    pub fn embedding(&mut self, entries: usize, d_model: usize, device: &Device) -> Embedding {
        Embedding {
            weight: self.matrix([entries, d_model], Role::Embedding, device),
        }
    }

    /// A linear map `[d_input] -> [d_output]`; Burn stores the weight as `[d_input, d_output]`.
    pub fn linear(
        &mut self,
        [d_input, d_output]: [usize; 2],
        bias: bool,
        role: Role,
        device: &Device,
    ) -> Linear {
        Linear {
            weight: self.matrix([d_input, d_output], role, device),
            bias: bias.then(|| constant(0.0, d_output, device)),
        }
    }

    fn matrix(&mut self, shape: [usize; 2], role: Role, device: &Device) -> Param<Tensor<2>> {
        let deviation = match role {
            Role::Embedding => self.embedding,
            Role::Input => self.matrix,
            Role::Output => self.output,
        };
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|_| (self.normal() * deviation) as f32)
            .collect();
        parameter(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Standard normal by Box and Muller (1958), two at a time.
    fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let mut uniform = || ((self.random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let radius = (-2.0 * uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// A trainable vector of one value, `[size]`.
pub(crate) fn constant(value: f32, size: usize, device: &Device) -> Param<Tensor<1>> {
    parameter(Tensor::from_data(
        TensorData::new(vec![value; size], [size]),
        device,
    ))
}

/// A trainable parameter that is initialised now.
pub(crate) fn parameter<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    let mut parameter = Param::from_tensor(value);
    parameter.id = ParamId::new();
    parameter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_unit_variance() {
        let mut stream = Initializer::new(&ModelConfig::default(), 7);
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        // Standard errors are 0.0022 and 0.0032; five of each.
        assert!(mean.abs() < 0.011, "{mean}");
        assert!((variance - 1.0).abs() < 0.016, "{variance}");
    }
}
