//! Hugging Face folders in and out, what is refused, and initial weights.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use sesqui_model::{
    Family, Initialization, ModelConfig, RopeScaling, Transformer, Visibility, huggingface,
};

use crate::support::{self, Values, integers, plain, row_positions, shaken, tiny, values};

const VOCABULARY: usize = 13;

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
        ModelConfig { d_feed_forward: 0, tied_head: false, norm_epsilon: 0.01, ..gpt2 },
        llama.clone(),
        ModelConfig { d_feed_forward: 0, tied_head: false, rope_theta: 77.5, ..llama.clone() },
        ModelConfig { key_value_heads: 0, rope_scaling, ..llama },
    ]
}

#[test]
fn what_was_saved_is_loaded_bit_for_bit() {
    for config in shapes() {
        let model = shaken(&config, VOCABULARY, 31, &plain());
        let folder = tempfile::tempdir().unwrap();
        huggingface::save(&model, folder.path()).unwrap();
        let loaded = huggingface::load(folder.path(), &plain()).unwrap();
        assert_eq!(support::parameters(&loaded), support::parameters(&model), "{config:?}");
        assert_eq!(logits(&loaded), logits(&model), "{config:?}");
        // Defaults are written out and the initial distribution is not part of a checkpoint.
        let expected = ModelConfig {
            d_feed_forward: config.d_feed_forward(),
            key_value_heads: match config.family {
                Family::Gpt2 => 0,
                Family::Llama => config.key_value_heads(),
            },
            initialization: Initialization::Fixed { standard_deviation: 0.02 },
            ..config
        };
        assert_eq!(loaded.config(), &expected);
        assert_eq!(loaded.vocabulary(), VOCABULARY);
        assert_eq!(names(folder.path()), ["config.json", "model.safetensors"], "left behind");
    }
}

#[test]
fn a_model_loaded_for_training_has_gradients() {
    let folder = saved(&tiny(Family::Llama));
    let model = huggingface::load(folder.path(), &support::tracked()).unwrap();
    let ids = integers(&[1, 2, 3], [1, 3], &support::tracked());
    let positions = row_positions(0, 3, &support::tracked());
    let visibility = Visibility::causal(3, &support::tracked());
    let gradients = model.forward(ids, positions, visibility).powi_scalar(2).sum().backward();
    let found = support::gradients(&model, &gradients);
    assert_eq!(found.len(), support::parameters(&model).len());
}

#[test]
fn half_precision_is_widened_exactly() {
    for config in [tiny(Family::Gpt2), tiny(Family::Llama)] {
        let model = shaken(&config, VOCABULARY, 32, &plain());
        let expected = support::parameters(&model);
        let halves: [(Dtype, fn(f32) -> [u8; 2], fn(f32) -> f32); 2] = [
            (Dtype::F16, |x| f16::from_f32(x).to_le_bytes(), |x| f16::from_f32(x).to_f32()),
            (Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes(), |x| bf16::from_f32(x).to_f32()),
        ];
        for (dtype, bytes, rounded) in halves {
            let folder = tempfile::tempdir().unwrap();
            huggingface::save(&model, folder.path()).unwrap();
            edit_tensors(folder.path(), |tensors| {
                for tensor in tensors.values_mut() {
                    let values = tensor.bytes.as_chunks().0.iter();
                    tensor.bytes =
                        values.flat_map(|&x| bytes(f32::from_le_bytes(x))).collect();
                    tensor.dtype = dtype;
                }
            });
            let loaded = huggingface::load(folder.path(), &plain()).unwrap();
            let expected: Values = expected
                .iter()
                .map(|(path, values)| {
                    (path.clone(), values.iter().map(|&value| rounded(value)).collect())
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
        tensors.insert("model.layers.1.self_attn.rotary_emb.inv_freq".into(), Stored::zeros(&[2]));
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

#[test]
fn tensors_that_do_not_fit_are_named() {
    type Edit = fn(&mut Tensors);
    let cases: [(Family, Edit, &str); 8] = [
        (
            Family::Gpt2,
            |tensors| drop(tensors.remove("h.1.attn.c_attn.bias")),
            "FILE has no tensor h.1.attn.c_attn.bias, which this model needs as [48]",
        ),
        (
            Family::Llama,
            |tensors| drop(tensors.remove("model.layers.2.self_attn.k_proj.weight")),
            "FILE has no tensor model.layers.2.self_attn.k_proj.weight, which this model needs as [8, 16]",
        ),
        (
            Family::Llama,
            |tensors| {
                tensors.insert("zzz".into(), Stored::zeros(&[2]));
                tensors.insert("model.layers.3.mlp.up_proj.weight".into(), Stored::zeros(&[27, 16]));
            },
            "FILE holds tensors that this model has no place for: model.layers.3.mlp.up_proj.weight, zzz",
        ),
        (
            Family::Gpt2,
            |tensors| drop(tensors.insert("h.0.attn.rotation".into(), Stored::zeros(&[2]))),
            "FILE holds tensors that this model has no place for: h.0.attn.rotation",
        ),
        // Same number of values, so that only the shape tells.
        (
            Family::Gpt2,
            |tensors| drop(tensors.insert("h.0.mlp.c_fc.weight".into(), Stored::zeros(&[27, 16]))),
            "FILE: tensor h.0.mlp.c_fc.weight is [27, 16], this model needs [16, 27]",
        ),
        (
            Family::Llama,
            |tensors| {
                let tensor = Stored::zeros(&[16, 27]);
                tensors.insert("model.layers.0.mlp.gate_proj.weight".into(), tensor);
            },
            "FILE: tensor model.layers.0.mlp.gate_proj.weight is [16, 27], this model needs [27, 16]",
        ),
        (
            Family::Gpt2,
            |tensors| drop(tensors.insert("wpe.weight".into(), Stored::zeros(&[49, 16]))),
            "FILE: tensor wpe.weight is [49, 16], this model needs [48, 16]",
        ),
        (
            Family::Llama,
            |tensors| {
                let tensor = Stored { dtype: Dtype::I32, ..Stored::zeros(&[16]) };
                tensors.insert("model.norm.weight".into(), tensor);
            },
            "FILE: tensor model.norm.weight is I32; float32, bfloat16 and float16 are read",
        ),
    ];
    for (family, edit, expected) in cases {
        let folder = saved(&tiny(family));
        edit_tensors(folder.path(), edit);
        refused(folder.path(), "model.safetensors", expected);
    }
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(
        folder.path(),
        "config.json",
        "cannot access FILE: No such file or directory (os error 2)",
    );
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    refused(
        folder.path(),
        "config.json",
        "FILE: EOF while parsing an object at line 1 column 1",
    );
    let folder = saved(&tiny(Family::Gpt2));
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, [0; 4]).unwrap();
    let error = huggingface::load(folder.path(), &plain()).unwrap_err().to_string();
    let start = format!("{}: not a safetensors file: ", path.display());
    assert!(error.starts_with(&start), "{error}");
    std::fs::remove_file(path).unwrap();
    refused(
        folder.path(),
        "model.safetensors",
        "cannot access FILE: No such file or directory (os error 2)",
    );
}

#[test]
fn configurations_that_are_not_understood_are_refused() {
    let cases = [
        (
            Family::Gpt2,
            json!({ "model_type": "bert" }),
            "FILE: model_type \"bert\" is not supported; \"gpt2\" and \"llama\" are",
        ),
        (
            Family::Gpt2,
            json!({ "activation_function": "gelu" }),
            "FILE: activation_function \"gelu\" is not supported; gelu_new is",
        ),
        (
            Family::Gpt2,
            json!({ "scale_attn_by_inverse_layer_idx": true }),
            "FILE: scale_attn_by_inverse_layer_idx = true is not supported",
        ),
        (
            Family::Gpt2,
            json!({ "scale_attn_weights": false }),
            "FILE: scale_attn_weights = false is not supported",
        ),
        (Family::Gpt2, json!({ "n_layer": null }), "FILE: n_layer is null, not a whole number"),
        (Family::Gpt2, json!({ "n_embd": 16.5 }), "FILE: n_embd is 16.5, not a whole number"),
        (Family::Gpt2, json!({ "n_inner": -1 }), "FILE: n_inner is -1, not a whole number"),
        (Family::Gpt2, json!({ "vocab_size": "13" }), "FILE: vocab_size is \"13\", not a whole number"),
        (
            Family::Gpt2,
            json!({ "layer_norm_epsilon": "1e-5" }),
            "FILE: layer_norm_epsilon is \"1e-5\", not a number",
        ),
        (
            Family::Gpt2,
            json!({ "tie_word_embeddings": "no" }),
            "FILE: tie_word_embeddings is \"no\", not true or false",
        ),
        (
            Family::Gpt2,
            json!({ "n_head": 5 }),
            "model.heads: d_model = 16 is not a multiple of heads = 5",
        ),
        (
            Family::Llama,
            json!({ "attention_bias": true }),
            "FILE: attention_bias = true is not supported",
        ),
        (Family::Llama, json!({ "mlp_bias": true }), "FILE: mlp_bias = true is not supported"),
        (
            Family::Llama,
            json!({ "hidden_act": "gelu" }),
            "FILE: hidden_act \"gelu\" is not supported; silu is",
        ),
        (
            Family::Llama,
            json!({ "head_dim": 8 }),
            "FILE: head_dim 8 is not hidden_size / num_attention_heads; such models are not supported",
        ),
        (
            Family::Llama,
            json!({ "rope_parameters": { "rope_type": "yarn" } }),
            "FILE: rope type \"yarn\" is not supported; \"default\" and \"llama3\" are",
        ),
        (
            Family::Llama,
            json!({ "rope_parameters": null, "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            "FILE: rope type \"linear\" is not supported; \"default\" and \"llama3\" are",
        ),
        (
            Family::Llama,
            json!({ "rope_parameters": { "rope_type": "llama3", "factor": 2.0 } }),
            "FILE: rope scaling lacks low_freq_factor",
        ),
        (
            Family::Llama,
            json!({ "rope_parameters": { "rope_type": "default", "rope_theta": "1e4" } }),
            "FILE: rope_theta is \"1e4\", not a number",
        ),
        (
            Family::Llama,
            json!({ "num_key_value_heads": 3 }),
            "model.key_value_heads: heads = 4 is not a multiple of key_value_heads = 3",
        ),
    ];
    for (family, edit, expected) in cases {
        let folder = saved(&tiny(family));
        edit_config(folder.path(), &edit);
        refused(folder.path(), "config.json", expected);
    }
    for (config, expected) in [
        (json!({}), "FILE: model_type is missing; \"gpt2\" and \"llama\" are supported"),
        (json!({ "model_type": "llama" }), "FILE: num_hidden_layers is missing"),
    ] {
        let folder = saved(&tiny(Family::Llama));
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        refused(folder.path(), "config.json", expected);
    }
}

#[test]
fn shapes_that_cannot_be_built_are_refused() {
    let (gpt2, llama) = (tiny(Family::Gpt2), tiny(Family::Llama));
    let cases = [
        (ModelConfig { layers: 0, ..gpt2.clone() }, "model.layers: must be at least 1"),
        (ModelConfig { d_model: 0, ..gpt2.clone() }, "model.d_model: must be at least 1"),
        (ModelConfig { heads: 0, ..gpt2.clone() }, "model.heads: must be at least 1"),
        (ModelConfig { context: 0, ..gpt2.clone() }, "model.context: must be at least 1"),
        (
            ModelConfig { heads: 3, ..gpt2.clone() },
            "model.heads: d_model = 16 is not a multiple of heads = 3",
        ),
        (
            ModelConfig { key_value_heads: 2, ..gpt2 },
            "model.key_value_heads: GPT-2 has as many key/value heads as query heads; \
             leave it at 0 or use family = \"llama\"",
        ),
        (
            ModelConfig { key_value_heads: 8, ..llama.clone() },
            "model.key_value_heads: heads = 4 is not a multiple of key_value_heads = 8",
        ),
        (
            ModelConfig { d_model: 12, ..llama },
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
        assert_eq!(draw(5, support::tracked()), first, "same seed, with gradients");
        let other = draw(6, plain());
        for (path, values) in &first {
            let constant = path.ends_with("gamma") || path.ends_with("beta") || path.ends_with("bias");
            let start = if path.ends_with("gamma") { 1.0 } else { 0.0 };
            assert_eq!(constant, values.iter().all(|&value| value == start), "{path}");
            assert_eq!(constant, other[path] == *values, "other seed, {path}");
        }
    }
}

/// Standard deviations as documented, five standard errors wide: the estimate from `n` draws has
/// one of `1 / sqrt(2 n)` of itself.
#[test]
fn weights_have_the_documented_spread() {
    let scaled = Initialization::Scaled { embedding: 0.3, matrix: 0.6 };
    let fixed = Initialization::Fixed { standard_deviation: 0.02 };
    let root = 64f64.sqrt();
    for (initialization, embedding, matrix) in
        [(scaled, 0.3, 0.6 / root), (fixed, 0.02, 0.02)]
    {
        for family in [Family::Gpt2, Family::Llama] {
            let config =
                ModelConfig { family, initialization, tied_head: false, ..ModelConfig::default() };
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
                assert!((ratio - 1.0).abs() < tolerance, "{family:?} {path}: {ratio} of {expected}");
                matrices += 1;
            }
            assert_eq!(matrices, if family == Family::Gpt2 { 19 } else { 18 });
        }
    }
}

fn saved(config: &ModelConfig) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    huggingface::save(&shaken(config, VOCABULARY, 33, &plain()), folder.path()).unwrap();
    folder
}

fn logits(model: &Transformer) -> Vec<f32> {
    let ids = integers(&[1, 2, 3, 12, 0], [1, 5], &plain());
    values(model.forward(ids, row_positions(0, 5, &plain()), Visibility::causal(5, &plain())))
}

fn refused(folder: &Path, file: &str, expected: &str) {
    let error = huggingface::load(folder, &plain()).unwrap_err().to_string();
    let path = folder.join(file);
    assert_eq!(error.replace(&path.display().to_string(), "FILE"), expected);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

type Tensors = BTreeMap<String, Stored>;

#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn zeros(shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

fn edit_tensors(folder: &Path, edit: impl Fn(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, view)| {
            let bytes = view.data().to_vec();
            (name.to_owned(), Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes })
        })
        .collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn edit_config(folder: &Path, edit: &Value) {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in edit.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
}
