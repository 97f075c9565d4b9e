//! What the default model looks like.

use burn::module::Module;
use sesqui_model::{ModelConfig, Transformer, parameters};

use crate::support::plain;

/// Size of the synthetic task's vocabulary.
const VOCABULARY: usize = 28;

#[test]
fn the_default_model_has_these_parameters() {
    let model = Transformer::new(&ModelConfig::default(), VOCABULARY, 0, &plain()).unwrap();
    let layer = |index: usize| {
        [
            ("attention_norm.Layer.gamma", vec![64]),
            ("attention_norm.Layer.beta", vec![64]),
            ("attention.query_key_value.weight", vec![64, 192]),
            ("attention.query_key_value.bias", vec![192]),
            ("attention.output.weight", vec![64, 64]),
            ("attention.output.bias", vec![64]),
            ("feed_forward_norm.Layer.gamma", vec![64]),
            ("feed_forward_norm.Layer.beta", vec![64]),
            ("feed_forward.Gelu.up.weight", vec![64, 256]),
            ("feed_forward.Gelu.up.bias", vec![256]),
            ("feed_forward.Gelu.down.weight", vec![256, 64]),
            ("feed_forward.Gelu.down.bias", vec![64]),
        ]
        .map(|(path, shape)| (format!("layers.{index}.{path}"), shape))
    };
    let mut expected = vec![
        ("token_embedding.weight".to_owned(), vec![28, 64]),
        ("position_embedding.weight".to_owned(), vec![128, 64]),
    ];
    expected.extend((0..4).flat_map(layer));
    expected.push(("final_norm.Layer.gamma".to_owned(), vec![64]));
    expected.push(("final_norm.Layer.beta".to_owned(), vec![64]));
    let table = parameters::table(&model);
    let found: Vec<_> = table
        .iter()
        .map(|row| (row.path.clone(), row.shape.clone()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(
        table.iter().map(|row| row.count()).sum::<usize>(),
        model.num_params()
    );
}

#[test]
fn parameter_counts_are_these() {
    use sesqui_model::Family::Llama;
    let default = ModelConfig::default();
    let cases = [
        // 28 * 64 + 128 * 64 + 4 * 49,984 + 2 * 64.
        (default.clone(), 210_048),
        // The longest synthetic sequence fits 84 positions: the 207 thousand of the recipe.
        (
            ModelConfig {
                context: 84,
                ..default.clone()
            },
            207_232,
        ),
        (
            ModelConfig {
                tied_head: false,
                ..default.clone()
            },
            211_840,
        ),
        // 28 * 64 + 4 * (2 * 64 + 4 * 64 * 64 + 3 * 64 * 176) + 64.
        (
            ModelConfig {
                family: Llama,
                ..default.clone()
            },
            203_072,
        ),
        (
            ModelConfig {
                family: Llama,
                key_value_heads: 2,
                ..default.clone()
            },
            186_688,
        ),
    ];
    for (config, expected) in cases {
        let model = Transformer::new(&config, VOCABULARY, 0, &plain()).unwrap();
        assert_eq!(model.num_params(), expected, "{config:?}");
    }
}

/// One layer and narrow, so that the whole form can be read here.
#[test]
fn the_printed_form_is_this() {
    let config = ModelConfig {
        layers: 1,
        d_model: 8,
        heads: 2,
        context: 4,
        ..Default::default()
    };
    let model = Transformer::new(&config, 3, 0, &plain()).unwrap();
    assert_eq!(model.to_string(), PRINTED);
}

const PRINTED: &str = "\
Transformer {
  token_embedding: Embedding {n_embedding: 3, d_model: 8, params: 24}
  position_embedding: Embedding {n_embedding: 4, d_model: 8, params: 32}
  layers: Vec<0..1> {
    0: Layer {
      attention_norm: Layer {
        _0: LayerNorm {d_model: 8, epsilon: 0.00001, bias: true, params: 16}
        params: 16
      }
      attention: Attention {
        query_key_value: Linear {d_input: 8, d_output: 24, bias: true, params: 216}
        output: Linear {d_input: 8, d_output: 8, bias: true, params: 72}
        heads: 2
        key_value_heads: 2
        d_head: 4
        params: 288
      }
      feed_forward_norm: Layer {
        _0: LayerNorm {d_model: 8, epsilon: 0.00001, bias: true, params: 16}
        params: 16
      }
      feed_forward: Gelu {
        _0: GeluFeedForward {
          up: Linear {d_input: 8, d_output: 32, bias: true, params: 288}
          down: Linear {d_input: 32, d_output: 8, bias: true, params: 264}
          params: 552
        }
        params: 552
      }
      precision: F32
      params: 872
    }
  }
  final_norm: Layer {
    _0: LayerNorm {d_model: 8, epsilon: 0.00001, bias: true, params: 16}
    params: 16
  }
  head: None
  config: ModelConfig { family: Gpt2, layers: 1, d_model: 8, heads: 2, key_value_heads: 0, \
d_feed_forward: 0, context: 4, tied_head: true, norm_epsilon: 1e-5, rope_theta: 10000.0, \
rope_scaling: None, initialization: Scaled { embedding: 0.3, matrix: 0.6 } }
  precision: F32
  params: 944
}";
