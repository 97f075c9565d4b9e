//! What a forward pass costs, counted from shapes.

use crate::config::{Family, ModelConfig};

/// Floating-point operations of parts of a model; a multiplication and an addition count as two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops<'a> {
    config: &'a ModelConfig,
    vocabulary: usize,
}

impl<'a> Flops<'a> {
    /// Counts for a model of this shape.
    pub fn new(config: &'a ModelConfig, vocabulary: usize) -> Self {
        Self { config, vocabulary }
    }

    /// Matrix-vector products of one layer for one position, without attention: what System-1.5
    /// Reasoning (arXiv 2505.18962, appendix B) counts, less its dot products.
    pub fn layer(&self) -> f64 {
        let config = self.config;
        let (d, head) = (config.d_model as f64, config.d_head() as f64);
        let joint = (config.heads + 2 * config.key_value_heads()) as f64 * head;
        let feed_forward = config.d_feed_forward() as f64
            * match config.family {
                Family::Gpt2 => 2.0,
                Family::Llama => 3.0,
            };
        2.0 * d * (joint + config.heads as f64 * head + feed_forward)
    }

    /// Attention of one layer for one query that sees `keys` keys: scores and weighted sum.
    pub fn attention(&self, keys: usize) -> f64 {
        4.0 * (self.config.heads * self.config.d_head() * keys) as f64
    }

    /// The head, for one position.
    pub fn head(&self) -> f64 {
        2.0 * (self.config.d_model * self.vocabulary) as f64
    }

    /// Keys and values of one layer for one position that does not run it.
    pub fn key_values(&self) -> f64 {
        let config = self.config;
        4.0 * (config.d_model * config.key_value_heads() * config.d_head()) as f64
    }

    /// All layers for positions `from..to` of a sequence, each seeing all before it and itself.
    pub fn layers(&self, from: usize, to: usize) -> f64 {
        let layers = self.config.layers as f64;
        (from..to)
            .map(|position| layers * (self.layer() + self.attention(position + 1)))
            // An empty sum of floats is -0, which a table would show.
            .fold(0.0, |sum, operations| sum + operations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_layer_is_24_d_squared() {
        let config = ModelConfig {
            d_model: 768,
            heads: 12,
            layers: 12,
            ..ModelConfig::default()
        };
        let flops = Flops::new(&config, 50_257);
        assert_eq!(flops.layer(), 24.0 * 768.0 * 768.0);
        assert_eq!(flops.attention(10), 4.0 * 768.0 * 10.0);
        assert_eq!(
            flops.layers(0, 2),
            12.0 * (2.0 * flops.layer() + 4.0 * 768.0 * 3.0)
        );
    }
}
