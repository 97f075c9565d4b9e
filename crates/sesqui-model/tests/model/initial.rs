//! New models: which shapes there are and how their weights are drawn.

use sesqui_model::{Family, Initialization, ModelConfig, Transformer};

use crate::support::{self, plain, tiny};

const VOCABULARY: usize = 13;

#[test]
fn shapes_that_cannot_be_built_are_refused() {
    let (gpt2, llama) = (tiny(Family::Gpt2), tiny(Family::Llama));
    let cases = [
        (
            ModelConfig {
                layers: 0,
                ..gpt2.clone()
            },
            "model.layers: must be at least 1",
        ),
        (
            ModelConfig {
                d_model: 0,
                ..gpt2.clone()
            },
            "model.d_model: must be at least 1",
        ),
        (
            ModelConfig {
                heads: 0,
                ..gpt2.clone()
            },
            "model.heads: must be at least 1",
        ),
        (
            ModelConfig {
                context: 0,
                ..gpt2.clone()
            },
            "model.context: must be at least 1",
        ),
        (
            ModelConfig {
                heads: 3,
                ..gpt2.clone()
            },
            "model.heads: d_model = 16 is not a multiple of heads = 3",
        ),
        (
            ModelConfig {
                key_value_heads: 2,
                ..gpt2
            },
            "model.key_value_heads: GPT-2 has as many key/value heads as query heads; \
             leave it at 0 or use family = \"llama\"",
        ),
        (
            ModelConfig {
                key_value_heads: 8,
                ..llama.clone()
            },
            "model.key_value_heads: heads = 4 is not a multiple of key_value_heads = 8",
        ),
        (
            ModelConfig {
                d_model: 12,
                ..llama
            },
            "model.heads: rotary positions need an even head width, this is 3",
        ),
    ];
    for (config, expected) in cases {
        let error = Transformer::new(&config, VOCABULARY, 0, &plain()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn weights_follow_the_seed() {
    for config in [tiny(Family::Gpt2), tiny(Family::Llama)] {
        let draw = |seed, device| {
            let model = Transformer::new(&config, VOCABULARY, seed, &device).unwrap();
            support::parameters(&model)
        };
        let first = draw(5, plain());
        assert_eq!(draw(5, plain()), first, "same seed");
        assert_eq!(
            draw(5, support::tracked()),
            first,
            "same seed, with gradients"
        );
        let other = draw(6, plain());
        for (path, values) in &first {
            let constant =
                path.ends_with("gamma") || path.ends_with("beta") || path.ends_with("bias");
            let start = if path.ends_with("gamma") { 1.0 } else { 0.0 };
            assert_eq!(
                constant,
                values.iter().all(|&value| value == start),
                "{path}"
            );
            assert_eq!(constant, other[path] == *values, "other seed, {path}");
        }
    }
}

/// Standard deviations as documented, five standard errors wide: the estimate from `n` draws has
/// one of `1 / sqrt(2 n)` of itself.
#[test]
fn weights_have_the_documented_spread() {
    let scaled = Initialization::Scaled {
        embedding: 0.3,
        matrix: 0.6,
    };
    let fixed = Initialization::Fixed {
        standard_deviation: 0.02,
    };
    let root = 64f64.sqrt();
    for (initialization, embedding, matrix) in [(scaled, 0.3, 0.6 / root), (fixed, 0.02, 0.02)] {
        for family in [Family::Gpt2, Family::Llama] {
            let config = ModelConfig {
                family,
                initialization,
                tied_head: false,
                ..ModelConfig::default()
            };
            let model = Transformer::new(&config, 100, 8, &plain()).unwrap();
            let mut matrices = 0;
            for (path, values) in support::parameters(&model) {
                let expected = if path.contains("embedding") {
                    embedding
                } else if path.ends_with("output.weight") || path.ends_with("down.weight") {
                    matrix / (2.0 * config.layers as f64).sqrt()
                } else if path.ends_with("weight") {
                    matrix
                } else {
                    continue;
                };
                let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
                let found = (squares / values.len() as f64).sqrt();
                let tolerance = 5.0 / (2.0 * values.len() as f64).sqrt();
                let ratio = found / expected;
                assert!(
                    (ratio - 1.0).abs() < tolerance,
                    "{family:?} {path}: {ratio} of {expected}"
                );
                matrices += 1;
            }
            assert_eq!(matrices, if family == Family::Gpt2 { 19 } else { 18 });
        }
    }
}
