//! Hugging Face folders, out and in again.

use burn::tensor::{bf16, f16};
use safetensors::tensor::Dtype;
use serde_json::json;
use sesqui_model::{Family, Initialization, ModelConfig, RopeScaling, Visibility, huggingface};

use crate::folder::{Stored, Tensors, VOCABULARY, edit_config, edit_tensors, logits, names, saved};
use crate::support::{self, Values, integers, plain, row_positions, shaken, tiny};

fn shapes() -> Vec<ModelConfig> {
    let (gpt2, llama) = (tiny(Family::Gpt2), tiny(Family::Llama));
    let rope_scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 16,
    };
    vec![
        gpt2.clone(),
        ModelConfig {
            d_feed_forward: 0,
            tied_head: false,
            norm_epsilon: 0.01,
            ..gpt2
        },
        llama.clone(),
        ModelConfig {
            d_feed_forward: 0,
            tied_head: false,
            rope_theta: 77.5,
            ..llama.clone()
        },
        ModelConfig {
            key_value_heads: 0,
            rope_scaling,
            ..llama
        },
    ]
}

#[test]
fn what_was_saved_is_loaded_bit_for_bit() {
    for config in shapes() {
        let model = shaken(&config, VOCABULARY, 31, &plain());
        let folder = tempfile::tempdir().unwrap();
        huggingface::save(&model, folder.path()).unwrap();
        let loaded = huggingface::load(folder.path(), &plain()).unwrap();
        assert_eq!(
            support::parameters(&loaded),
            support::parameters(&model),
            "{config:?}"
        );
        assert_eq!(logits(&loaded), logits(&model), "{config:?}");
        // Defaults are written out and the initial distribution is not part of a checkpoint.
        let expected = ModelConfig {
            d_feed_forward: config.d_feed_forward(),
            key_value_heads: match config.family {
                Family::Gpt2 => 0,
                Family::Llama => config.key_value_heads(),
            },
            initialization: Initialization::Fixed {
                standard_deviation: 0.02,
            },
            ..config
        };
        assert_eq!(loaded.config(), &expected);
        assert_eq!(loaded.vocabulary(), VOCABULARY);
        assert_eq!(
            names(folder.path()),
            ["config.json", "model.safetensors"],
            "left behind"
        );
    }
}

#[test]
fn a_model_loaded_for_training_has_gradients() {
    let folder = saved(&tiny(Family::Llama));
    let model = huggingface::load(folder.path(), &support::tracked()).unwrap();
    let ids = integers(&[1, 2, 3], [1, 3], &support::tracked());
    let positions = row_positions(0, 3, &support::tracked());
    let visibility = Visibility::causal(3, &support::tracked());
    let gradients = model
        .forward(ids, positions, visibility)
        .powi_scalar(2)
        .sum()
        .backward();
    let found = support::gradients(&model, &gradients);
    assert_eq!(found.len(), support::parameters(&model).len());
}

#[test]
fn half_precision_is_widened_exactly() {
    for config in [tiny(Family::Gpt2), tiny(Family::Llama)] {
        let model = shaken(&config, VOCABULARY, 32, &plain());
        let expected = support::parameters(&model);
        type Half = (Dtype, fn(f32) -> [u8; 2], fn(f32) -> f32);
        let halves: [Half; 2] = [
            (
                Dtype::F16,
                |x| f16::from_f32(x).to_le_bytes(),
                |x| f16::from_f32(x).to_f32(),
            ),
            (
                Dtype::BF16,
                |x| bf16::from_f32(x).to_le_bytes(),
                |x| bf16::from_f32(x).to_f32(),
            ),
        ];
        for (dtype, bytes, rounded) in halves {
            let folder = tempfile::tempdir().unwrap();
            huggingface::save(&model, folder.path()).unwrap();
            edit_tensors(folder.path(), |tensors| {
                for tensor in tensors.values_mut() {
                    let values = tensor.bytes.as_chunks().0.iter();
                    tensor.bytes = values.flat_map(|&x| bytes(f32::from_le_bytes(x))).collect();
                    tensor.dtype = dtype;
                }
            });
            let loaded = huggingface::load(folder.path(), &plain()).unwrap();
            let expected: Values = expected
                .iter()
                .map(|(path, values)| {
                    (
                        path.clone(),
                        values.iter().map(|&value| rounded(value)).collect(),
                    )
                })
                .collect();
            assert_eq!(support::parameters(&loaded), expected, "{dtype:?}");
        }
    }
}

#[test]
fn other_spellings_are_read() {
    type Edit = fn(&mut Tensors);
    let prefixed: Edit = |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| (format!("transformer.{name}"), tensor))
            .collect();
    };
    let gpt2_buffers: Edit = |tensors| {
        tensors.insert("h.0.attn.bias".into(), Stored::zeros(&[1, 1, 48, 48]));
        tensors.insert("h.2.attn.masked_bias".into(), Stored::zeros(&[]));
    };
    let gpt2_head: Edit = |tensors| {
        tensors.insert("lm_head.weight".into(), tensors["wte.weight"].clone());
    };
    let llama_buffers: Edit = |tensors| {
        tensors.insert(
            "model.layers.1.self_attn.rotary_emb.inv_freq".into(),
            Stored::zeros(&[2]),
        );
    };
    let cases = [
        ("with the prefix", Family::Gpt2, prefixed),
        ("with buffers", Family::Gpt2, gpt2_buffers),
        ("with the tied head written out", Family::Gpt2, gpt2_head),
        ("with buffers", Family::Llama, llama_buffers),
    ];
    for (what, family, edit) in cases {
        let folder = saved(&tiny(family));
        let expected = logits(&huggingface::load(folder.path(), &plain()).unwrap());
        edit_tensors(folder.path(), edit);
        let loaded = huggingface::load(folder.path(), &plain()).unwrap();
        assert_eq!(logits(&loaded), expected, "{family:?} {what}");
    }
}

#[test]
fn older_configurations_are_read() {
    let top = json!({ "rope_theta": 500.0, "rope_parameters": null });
    let scaled = json!({
        "rope_theta": 500.0,
        "rope_parameters": null,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0,
            "original_max_position_embeddings": 24,
        },
    });
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 2.0,
        original_context: 24,
    };
    for (edit, scaling) in [(top, RopeScaling::None), (scaled, llama3)] {
        let folder = saved(&tiny(Family::Llama));
        edit_config(folder.path(), &edit);
        let loaded = huggingface::load(folder.path(), &plain()).unwrap();
        assert_eq!(loaded.config().rope_theta, 500.0);
        assert_eq!(loaded.config().rope_scaling, scaling);
    }
}
