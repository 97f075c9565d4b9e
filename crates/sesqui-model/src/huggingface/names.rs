//! Which tensor of a checkpoint is which parameter of ours.

use crate::config::{Family, ModelConfig};

/// One of our parameters and the tensors it is put together from, side by side along its last
/// dimension.
pub(super) struct Entry {
    pub path: String,
    pub shape: Vec<usize>,
    pub sources: Vec<Source>,
}

/// A tensor of a checkpoint.
pub(super) struct Source {
    pub name: String,
    pub shape: Vec<usize>,
    /// Written as `[out, in]`, as PyTorch's linear layers are; GPT-2's are `[in, out]`.
    pub transposed: bool,
}

/// Every parameter of a model of this shape, in no particular order.
pub(super) fn entries(config: &ModelConfig, vocabulary: usize) -> Vec<Entry> {
    match config.family {
        Family::Gpt2 => gpt2(config, vocabulary),
        Family::Llama => llama(config, vocabulary),
    }
}

/// The name without the prefix that some exports of GPT-2 carry.
pub(super) fn canonical(name: &str, family: Family) -> &str {
    match family {
        Family::Gpt2 => name.strip_prefix("transformer.").unwrap_or(name),
        Family::Llama => name,
    }
}

/// Names under which a tensor may be stored.
pub(super) fn spellings(name: &str) -> [String; 2] {
    [name.to_owned(), format!("transformer.{name}")]
}

/// Constants that old exports wrote out beside the weights.
pub(super) fn is_buffer(name: &str) -> bool {
    name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || name.ends_with(".rotary_emb.inv_freq")
}

fn plain(path: String, name: String, shape: &[usize]) -> Entry {
    Entry {
        path,
        shape: shape.to_vec(),
        sources: vec![Source {
            name,
            shape: shape.to_vec(),
            transposed: false,
        }],
    }
}

fn transposed(path: String, d_input: usize, parts: &[(String, usize)]) -> Entry {
    Entry {
        path,
        shape: vec![d_input, parts.iter().map(|(_, width)| width).sum()],
        sources: parts
            .iter()
            .map(|(name, width)| Source {
                name: name.clone(),
                shape: vec![*width, d_input],
                transposed: true,
            })
            .collect(),
    }
}

fn gpt2(config: &ModelConfig, vocabulary: usize) -> Vec<Entry> {
    let (d, wide) = (config.d_model, config.d_feed_forward());
    let mut entries = vec![
        plain(
            "token_embedding.weight".into(),
            "wte.weight".into(),
            &[vocabulary, d],
        ),
        plain(
            "position_embedding.weight".into(),
            "wpe.weight".into(),
            &[config.context, d],
        ),
        plain("final_norm.Layer.gamma".into(), "ln_f.weight".into(), &[d]),
        plain("final_norm.Layer.beta".into(), "ln_f.bias".into(), &[d]),
    ];
    for layer in 0..config.layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("h.{layer}"));
        for (norm, name) in [("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")] {
            for (part, suffix) in [("gamma", "weight"), ("beta", "bias")] {
                entries.push(plain(
                    format!("{ours}.{norm}.Layer.{part}"),
                    format!("{theirs}.{name}.{suffix}"),
                    &[d],
                ));
            }
        }
        for (linear, name, [input, output]) in [
            ("attention.query_key_value", "attn.c_attn", [d, 3 * d]),
            ("attention.output", "attn.c_proj", [d, d]),
            ("feed_forward.Gelu.up", "mlp.c_fc", [d, wide]),
            ("feed_forward.Gelu.down", "mlp.c_proj", [wide, d]),
        ] {
            let (path, name) = (format!("{ours}.{linear}"), format!("{theirs}.{name}"));
            entries.push(plain(
                format!("{path}.weight"),
                format!("{name}.weight"),
                &[input, output],
            ));
            entries.push(plain(
                format!("{path}.bias"),
                format!("{name}.bias"),
                &[output],
            ));
        }
    }
    if !config.tied_head {
        entries.push(transposed(
            "head.weight".into(),
            d,
            &[("lm_head.weight".into(), vocabulary)],
        ));
    }
    entries
}

fn llama(config: &ModelConfig, vocabulary: usize) -> Vec<Entry> {
    let (d, wide, head) = (config.d_model, config.d_feed_forward(), config.d_head());
    let (query, key_value) = (config.heads * head, config.key_value_heads() * head);
    let mut entries = vec![
        plain(
            "token_embedding.weight".into(),
            "model.embed_tokens.weight".into(),
            &[vocabulary, d],
        ),
        plain(
            "final_norm.RootMeanSquare.gamma".into(),
            "model.norm.weight".into(),
            &[d],
        ),
    ];
    for layer in 0..config.layers {
        let (ours, theirs) = (format!("layers.{layer}"), format!("model.layers.{layer}"));
        for (norm, name) in [
            ("attention_norm", "input_layernorm"),
            ("feed_forward_norm", "post_attention_layernorm"),
        ] {
            entries.push(plain(
                format!("{ours}.{norm}.RootMeanSquare.gamma"),
                format!("{theirs}.{name}.weight"),
                &[d],
            ));
        }
        let attention = |part: &str| format!("{theirs}.self_attn.{part}_proj.weight");
        let feed_forward = |part: &str| format!("{theirs}.mlp.{part}_proj.weight");
        entries.push(transposed(
            format!("{ours}.attention.query_key_value.weight"),
            d,
            &[
                (attention("q"), query),
                (attention("k"), key_value),
                (attention("v"), key_value),
            ],
        ));
        entries.push(transposed(
            format!("{ours}.attention.output.weight"),
            query,
            &[(attention("o"), d)],
        ));
        entries.push(transposed(
            format!("{ours}.feed_forward.SwiGlu.gate_up.weight"),
            d,
            &[(feed_forward("gate"), wide), (feed_forward("up"), wide)],
        ));
        entries.push(transposed(
            format!("{ours}.feed_forward.SwiGlu.down.weight"),
            wide,
            &[(feed_forward("down"), d)],
        ));
    }
    if !config.tied_head {
        entries.push(transposed(
            "head.weight".into(),
            d,
            &[("lm_head.weight".into(), vocabulary)],
        ));
    }
    entries
}
