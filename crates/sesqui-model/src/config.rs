//! The model section of an experiment.

use serde::{Deserialize, Serialize};

/// Shape of a transformer. The vocabulary is not part of it: the tokenizer decides that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "snake_case")]
pub struct ModelConfig {
    /// Which published architecture the layers follow.
    pub family: Family,
    /// Number of layers `L`.
    pub layers: usize,
    /// Width of the hidden state.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; 0 means as many as query heads.
    pub key_value_heads: usize,
    /// Width of the feed-forward part; 0 means `4 d_model` (GPT-2) or `8/3 d_model` rounded up to
    /// a multiple of 8 (Llama).
    pub d_feed_forward: usize,
    /// Greatest number of positions.
    pub context: usize,
    /// Whether the head shares the token embedding.
    pub tied_head: bool,
    /// Added to the variance in the norms.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies (Llama only).
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies (Llama only).
    pub rope_scaling: RopeScaling,
    /// Distribution of the initial weights.
    pub initialization: Initialization,
}

/// How rotary frequencies are stretched beyond the context a model was first trained with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Llama 3.1 and 3.2: long wavelengths are divided, short ones kept, those between blended.
    Llama3 {
        /// Divisor of the long wavelengths' frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are long.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high` are short.
        high_frequency_factor: f64,
        /// Positions of the first training.
        original_context: usize,
    },
}

/// Published architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Learned positions, pre-LayerNorm, biases, GELU in its tanh form (Radford et al. 2019).
    Gpt2,
    /// Rotary positions, RMSNorm, SwiGLU, grouped-query attention (Touvron et al. 2023).
    Llama,
}

/// Distribution of the initial weights. Norms start at one, biases at zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Initialization {
    /// GPT-2: normal with this standard deviation everywhere, output projections divided by
    /// `sqrt(2 L)`. Made for widths around 768.
    Fixed {
        /// Standard deviation.
        standard_deviation: f64,
    },
    /// Embeddings normal with `embedding`, matrices with `matrix / sqrt(d_model)`, output
    /// projections further divided by `sqrt(2 L)`. Trains about twice as fast at width 64.
    Scaled {
        /// Standard deviation of token and position embeddings.
        embedding: f64,
        /// Standard deviation of matrices times `sqrt(d_model)`.
        matrix: f64,
    },
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            family: Family::Gpt2,
            layers: 4,
            d_model: 64,
            heads: 4,
            key_value_heads: 0,
            d_feed_forward: 0,
            context: 128,
            tied_head: true,
            norm_epsilon: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            initialization: Initialization::Scaled {
                embedding: 0.3,
                matrix: 0.6,
            },
        }
    }
}

/// A shape that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model.{key}: {reason}")]
pub struct ModelConfigError {
    /// The offending key.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub reason: String,
}

impl ModelConfig {
    /// Key/value heads after defaults.
    pub fn key_value_heads(&self) -> usize {
        if self.key_value_heads == 0 {
            self.heads
        } else {
            self.key_value_heads
        }
    }

    /// Feed-forward width after defaults.
    pub fn d_feed_forward(&self) -> usize {
        match (self.d_feed_forward, self.family) {
            (0, Family::Gpt2) => 4 * self.d_model,
            (0, Family::Llama) => (8 * self.d_model).div_ceil(3).next_multiple_of(8),
            (width, _) => width,
        }
    }

    /// Width of one head.
    pub fn d_head(&self) -> usize {
        self.d_model / self.heads
    }

    /// Rotary frequencies in radians per position, one per pair of head dimensions.
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        let d_head = self.d_head();
        (0..d_head / 2)
            .map(|pair| {
                let frequency = self.rope_theta.powf(-2.0 * pair as f64 / d_head as f64);
                match self.rope_scaling {
                    RopeScaling::None => frequency,
                    RopeScaling::Llama3 {
                        factor,
                        low_frequency_factor: low,
                        high_frequency_factor: high,
                        original_context,
                    } => {
                        let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        frequency * (keep + (1.0 - keep) / factor)
                    }
                }
            })
            .collect()
    }

    /// Checks what building would trip over.
    ///
    /// # Errors
    ///
    /// Names the key, what is wrong with it and what to change.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        let fail = |key, reason: String| Err(ModelConfigError { key, reason });
        for (key, value) in [
            ("layers", self.layers),
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("context", self.context),
        ] {
            if value == 0 {
                return fail(key, "must be at least 1".to_owned());
            }
        }
        if !self.d_model.is_multiple_of(self.heads) {
            return fail(
                "heads",
                format!(
                    "d_model = {} is not a multiple of heads = {}",
                    self.d_model, self.heads
                ),
            );
        }
        if !self.heads.is_multiple_of(self.key_value_heads()) {
            return fail(
                "key_value_heads",
                format!(
                    "heads = {} is not a multiple of key_value_heads = {}",
                    self.heads,
                    self.key_value_heads()
                ),
            );
        }
        match self.family {
            Family::Gpt2 if self.key_value_heads() != self.heads => fail(
                "key_value_heads",
                "GPT-2 has as many key/value heads as query heads; leave it at 0 or use family = \"llama\"".to_owned(),
            ),
            Family::Llama if !self.d_head().is_multiple_of(2) => fail(
                "heads",
                format!("rotary positions need an even head width, this is {}", self.d_head()),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfits_are_named() {
        let base = ModelConfig::default();
        assert_eq!(base.validate(), Ok(()));
        let cases = [
            (
                ModelConfig {
                    layers: 0,
                    ..base.clone()
                },
                "layers",
            ),
            (
                ModelConfig {
                    heads: 5,
                    ..base.clone()
                },
                "heads",
            ),
            (
                ModelConfig {
                    key_value_heads: 2,
                    ..base.clone()
                },
                "key_value_heads",
            ),
            (
                ModelConfig {
                    family: Family::Llama,
                    key_value_heads: 3,
                    ..base.clone()
                },
                "key_value_heads",
            ),
            (
                ModelConfig {
                    family: Family::Llama,
                    d_model: 12,
                    heads: 4,
                    ..base.clone()
                },
                "heads",
            ),
        ];
        for (config, key) in cases {
            assert_eq!(config.validate().unwrap_err().key, key);
        }
    }

    #[test]
    fn feed_forward_width_follows_the_family() {
        assert_eq!(ModelConfig::default().d_feed_forward(), 256);
        assert_eq!(
            ModelConfig {
                family: Family::Llama,
                ..ModelConfig::default()
            }
            .d_feed_forward(),
            176
        );
    }
}
