//! Hugging Face folders that do not fit, and what is said about them.

use safetensors::tensor::Dtype;
use serde_json::json;
use sesqui_model::{Family, huggingface};

use crate::folder::{Stored, Tensors, edit_config, edit_tensors, refused, saved};
use crate::support::{plain, tiny};

#[test]
fn tensors_that_do_not_fit_are_named() {
    type Edit = fn(&mut Tensors);
    let cases: [(Family, Edit, &str); 9] = [
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
                tensors.insert(
                    "model.layers.3.mlp.up_proj.weight".into(),
                    Stored::zeros(&[27, 16]),
                );
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
                let tensor = Stored {
                    dtype: Dtype::I32,
                    ..Stored::zeros(&[16])
                };
                tensors.insert("model.norm.weight".into(), tensor);
            },
            "FILE: tensor model.norm.weight is I32; float32, bfloat16 and float16 are read",
        ),
        // A tied head is written out but is not the embedding.
        (
            Family::Llama,
            |tensors| drop(tensors.insert("lm_head.weight".into(), Stored::zeros(&[13, 16]))),
            "FILE: lm_head.weight and model.embed_tokens.weight differ, but config.json ties them; \
             set tie_word_embeddings to false",
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
    let error = huggingface::load(folder.path(), &plain())
        .unwrap_err()
        .to_string();
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
        (
            Family::Gpt2,
            json!({ "n_layer": null }),
            "FILE: n_layer is null, not a whole number",
        ),
        (
            Family::Gpt2,
            json!({ "n_embd": 16.5 }),
            "FILE: n_embd is 16.5, not a whole number",
        ),
        (
            Family::Gpt2,
            json!({ "n_inner": -1 }),
            "FILE: n_inner is -1, not a whole number",
        ),
        (
            Family::Gpt2,
            json!({ "vocab_size": "13" }),
            "FILE: vocab_size is \"13\", not a whole number",
        ),
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
        (
            Family::Llama,
            json!({ "mlp_bias": true }),
            "FILE: mlp_bias = true is not supported",
        ),
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
        (
            json!({}),
            "FILE: model_type is missing; \"gpt2\" and \"llama\" are supported",
        ),
        (
            json!({ "model_type": "llama" }),
            "FILE: num_hidden_layers is missing",
        ),
    ] {
        let folder = saved(&tiny(Family::Llama));
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        refused(folder.path(), "config.json", expected);
    }
}
