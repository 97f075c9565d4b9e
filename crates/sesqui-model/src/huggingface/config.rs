//! `config.json`, old and new spellings.

use std::path::Path;

use serde_json::{Value, json};

use super::CheckpointError;
use crate::config::{Family, Initialization, ModelConfig, RopeScaling};

/// The shape and the vocabulary size that `path` describes.
pub(super) fn read(path: &Path) -> Result<(ModelConfig, usize), CheckpointError> {
    let text = std::fs::read_to_string(path).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    })?;
    let format = |reason: String| CheckpointError::Format {
        path: path.to_owned(),
        reason,
    };
    let json: Value = serde_json::from_str(&text).map_err(|error| format(error.to_string()))?;
    parse(&json).map_err(format)
}

fn parse(json: &Value) -> Result<(ModelConfig, usize), String> {
    let base = ModelConfig {
        // Never used: every weight is about to be read.
        initialization: Initialization::Fixed {
            standard_deviation: 0.02,
        },
        ..ModelConfig::default()
    };
    let config = match json.get("model_type").and_then(Value::as_str) {
        Some("gpt2") => {
            let activation = json
                .get("activation_function")
                .and_then(Value::as_str)
                .unwrap_or("gelu_new");
            if !matches!(activation, "gelu_new" | "gelu_pytorch_tanh") {
                return Err(format!(
                    "activation_function {activation:?} is not supported; gelu_new is"
                ));
            }
            for (key, usual) in [
                ("scale_attn_by_inverse_layer_idx", false),
                ("scale_attn_weights", true),
            ] {
                if flag(json, key, usual)? != usual {
                    return Err(format!("{key} = {} is not supported", !usual));
                }
            }
            ModelConfig {
                family: Family::Gpt2,
                layers: size(json, "n_layer")?,
                d_model: size(json, "n_embd")?,
                heads: size(json, "n_head")?,
                d_feed_forward: optional_size(json, "n_inner")?,
                context: size(json, "n_positions")?,
                tied_head: flag(json, "tie_word_embeddings", true)?,
                norm_epsilon: number(json, "layer_norm_epsilon")?.unwrap_or(1e-5),
                ..base
            }
        }
        Some("llama") => {
            for key in ["attention_bias", "mlp_bias"] {
                if flag(json, key, false)? {
                    return Err(format!("{key} = true is not supported"));
                }
            }
            let activation = json
                .get("hidden_act")
                .and_then(Value::as_str)
                .unwrap_or("silu");
            if activation != "silu" {
                return Err(format!(
                    "hidden_act {activation:?} is not supported; silu is"
                ));
            }
            let (rope_theta, rope_scaling) = rope(json)?;
            let config = ModelConfig {
                family: Family::Llama,
                layers: size(json, "num_hidden_layers")?,
                d_model: size(json, "hidden_size")?,
                heads: size(json, "num_attention_heads")?,
                key_value_heads: optional_size(json, "num_key_value_heads")?,
                d_feed_forward: size(json, "intermediate_size")?,
                context: size(json, "max_position_embeddings")?,
                tied_head: flag(json, "tie_word_embeddings", false)?,
                norm_epsilon: number(json, "rms_norm_eps")?.unwrap_or(1e-6),
                rope_theta,
                rope_scaling,
                ..base
            };
            match optional_size(json, "head_dim")? {
                0 => {}
                width if config.heads > 0 && width * config.heads == config.d_model => {}
                width => {
                    return Err(format!(
                        "head_dim {width} is not hidden_size / num_attention_heads; such models are not supported"
                    ));
                }
            }
            config
        }
        Some(other) => {
            return Err(format!(
                "model_type {other:?} is not supported; \"gpt2\" and \"llama\" are"
            ));
        }
        None => {
            return Err("model_type is missing; \"gpt2\" and \"llama\" are supported".to_owned());
        }
    };
    Ok((config, size(json, "vocab_size")?))
}

/// Base and scaling of the rotary frequencies: new files keep both under `rope_parameters`, older
/// ones have `rope_theta` at the top and `rope_scaling` beside it.
fn rope(json: &Value) -> Result<(f64, RopeScaling), String> {
    let nested = json
        .get("rope_parameters")
        .filter(|value| value.is_object());
    let scaling = nested.or_else(|| json.get("rope_scaling").filter(|value| value.is_object()));
    let theta = match nested
        .map(|value| number(value, "rope_theta"))
        .transpose()?
        .flatten()
    {
        Some(theta) => theta,
        None => number(json, "rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(scaling) = scaling else {
        return Ok((theta, RopeScaling::None));
    };
    let kind = ["rope_type", "type"]
        .iter()
        .find_map(|key| scaling.get(key).and_then(Value::as_str))
        .unwrap_or("default");
    let need = |key| number(scaling, key)?.ok_or_else(|| format!("rope scaling lacks {key}"));
    match kind {
        "default" => Ok((theta, RopeScaling::None)),
        "llama3" => Ok((
            theta,
            RopeScaling::Llama3 {
                factor: need("factor")?,
                low_frequency_factor: need("low_freq_factor")?,
                high_frequency_factor: need("high_freq_factor")?,
                original_context: size(scaling, "original_max_position_embeddings")?,
            },
        )),
        other => Err(format!(
            "rope type {other:?} is not supported; \"default\" and \"llama3\" are"
        )),
    }
}

fn flag(json: &Value, key: &str, default: bool) -> Result<bool, String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| format!("{key} is {value}, not true or false")),
    }
}

fn number(json: &Value, key: &str) -> Result<Option<f64>, String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| format!("{key} is {value}, not a number")),
    }
}

fn size(json: &Value, key: &str) -> Result<usize, String> {
    match json.get(key) {
        Some(value) => value
            .as_u64()
            .map(|size| size as usize)
            .ok_or_else(|| format!("{key} is {value}, not a whole number")),
        None => Err(format!("{key} is missing")),
    }
}

fn optional_size(json: &Value, key: &str) -> Result<usize, String> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(_) => size(json, key),
    }
}

/// `config.json` as Hugging Face transformers reads it.
pub(super) fn to_json(config: &ModelConfig, vocabulary: usize) -> String {
    let json = match config.family {
        Family::Gpt2 => json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "n_layer": config.layers,
            "n_embd": config.d_model,
            "n_head": config.heads,
            "n_inner": config.d_feed_forward(),
            "n_positions": config.context,
            "layer_norm_epsilon": config.norm_epsilon,
            "tie_word_embeddings": config.tied_head,
            "vocab_size": vocabulary,
        }),
        Family::Llama => json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "num_hidden_layers": config.layers,
            "hidden_size": config.d_model,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_value_heads(),
            "head_dim": config.d_head(),
            "intermediate_size": config.d_feed_forward(),
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm_epsilon,
            "rope_parameters": rope_json(config),
            "tie_word_embeddings": config.tied_head,
            "vocab_size": vocabulary,
        }),
    };
    format!("{json:#}\n")
}

fn rope_json(config: &ModelConfig) -> Value {
    match config.rope_scaling {
        RopeScaling::None => json!({ "rope_type": "default", "rope_theta": config.rope_theta }),
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => json!({
            "rope_type": "llama3",
            "rope_theta": config.rope_theta,
            "factor": factor,
            "low_freq_factor": low_frequency_factor,
            "high_freq_factor": high_frequency_factor,
            "original_max_position_embeddings": original_context,
        }),
    }
}
