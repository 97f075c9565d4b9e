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
    let found: Vec<_> = table.iter().map(|row| (row.path.clone(), row.shape.clone())).collect();
    assert_eq!(found, expected);
    assert_eq!(table.iter().map(|row| row.count()).sum::<usize>(), model.num_params());
}

#[test]
fn parameter_counts_are_these() {
    use sesqui_model::Family::{Gpt2, Llama};
    let default = ModelConfig::default();
    let cases = [
        // 92 of context stand for 5,888: 28 * 64 + 128 * 64 + 4 * 49,984 + 2 * 64.
        (default.clone(), 210_048),
        // The longest synthetic sequence fits 84 positions: the 207 thousand of the recipe.
        (ModelConfig { context: 84, ..default.clone() }, 207_232),
        (ModelConfig { tied_head: false, ..default.clone() }, 211_840),
        // 28 * 64 + 4 * (2 * 64 + 4 * 64 * 64 + 3 * 64 * 176) + 64.
        (ModelConfig { family: Llama, ..default.clone() }, 203_072),
        (ModelConfig { family: Llama, key_value_heads: 2, ..default.clone() }, 186_688),
    ];
    for (config, expected) in cases {
        let model = Transformer::new(&config, VOCABULARY, 0, &plain()).unwrap();
        assert_eq!(model.num_params(), expected, "{config:?}");
    }
    assert_eq!(default.family, Gpt2);
}

/// One layer and narrow, so that the whole form can be read here.
#[test]
fn the_printed_form_is_this() {
    let config = ModelConfig { layers: 1, d_model: 8, heads: 2, context: 4, ..Default::default() };
    let model = Transformer::new(&config, 3, 0, &plain()).unwrap();
    assert_eq!(model.to_string(), "");
}
