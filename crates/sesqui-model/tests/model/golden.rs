//! Against Hugging Face transformers: weights, activations and gradients of two tiny models that
//! an independent implementation computed in float32.
//!
//! The tolerances are those that came with the files: 2e-4 on states and logits (values of order
//! one, through three layers whose sums run in another order), 1e-3 of the largest entry on
//! gradients. What was seen is at most 1e-6 and 1.2e-6.

use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor};
use safetensors::SafeTensors;
use sesqui_model::huggingface;
use sesqui_model::{Family, KvCache, Transformer, Visibility};

use crate::support::{self, Values, assert_close, integers, plain, row_positions, tracked, values};

const ACTIVATIONS: f64 = 2e-4;
const GRADIENTS: f64 = 1e-3;

#[test]
fn gpt2() {
    check("gpt2-tiny");
}

#[test]
fn llama() {
    check("llama-tiny");
}

fn check(name: &str) {
    let variable = "SESQUI_GOLDEN";
    let root = std::env::var_os(variable).map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../../shared/golden"
            ))
        },
        PathBuf::from,
    );
    if !support::available(&root, variable) {
        return;
    }
    let golden = Golden::open(&root.join(name));
    golden.check_activations();
    golden.check_gradients();
    golden.check_greedy();
    golden.check_latent_feedback();
}

struct Golden {
    folder: PathBuf,
    bytes: Vec<u8>,
    model: Transformer,
}

impl Golden {
    fn open(folder: &std::path::Path) -> Self {
        Self {
            folder: folder.to_owned(),
            bytes: std::fs::read(folder.join("golden.safetensors")).unwrap(),
            model: huggingface::load(folder, &plain()).unwrap(),
        }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let data = self.file().tensor(name).unwrap().data().to_vec();
        data.as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let data = self.file().tensor(name).unwrap().data().to_vec();
        data.as_chunks()
            .0
            .iter()
            .map(|&bytes| i64::from_le_bytes(bytes))
            .collect()
    }

    fn batch(&self, device: &Device) -> Batch {
        let shape = self.file().tensor("input_ids").unwrap().shape().to_vec();
        let shape = [shape[0], shape[1]];
        let real: Vec<bool> = self
            .integers("attention_mask")
            .iter()
            .map(|&bit| bit == 1)
            .collect();
        assert!(real.contains(&false), "the batch is meant to hold pads");
        let ids = self.integers("input_ids");
        Batch {
            positions: integers(&self.integers("position_ids"), shape, device),
            visibility: Visibility::causal_padded(&real, shape, device),
            tokens: integers(&ids, shape, device),
            ids,
            real,
            shape,
        }
    }

    fn check_activations(&self) {
        let (model, batch) = (&self.model, self.batch(&plain()));
        let compare = |name: &str, found: Tensor<3>| {
            let found = batch.at_real(&values(found));
            let expected = batch.at_real(&self.floats(name));
            assert_close(&self.what(name), &found, &expected, ACTIVATIONS);
        };
        let context = model.context(batch.positions.clone(), batch.visibility.clone());
        let mut hidden = model.embed(batch.tokens.clone(), batch.positions.clone());
        compare("hidden.0", hidden.clone());
        let layers = model.layers.len();
        for layer in 0..layers {
            hidden = model.run_layers(layer..layer + 1, hidden, &context);
            if layer + 1 < layers {
                compare(&format!("hidden.{}", layer + 1), hidden.clone());
            }
        }
        let normed = model.final_norm(hidden);
        compare(&format!("hidden.{layers}"), normed.clone());
        compare("logits", model.head(normed));
        let (ids, positions) = (batch.tokens.clone(), batch.positions.clone());
        compare(
            "logits",
            model.forward(ids, positions, batch.visibility.clone()),
        );
    }

    fn check_gradients(&self) {
        let model = huggingface::load(&self.folder, &tracked()).unwrap();
        let batch = self.batch(&tracked());
        let logits = model.forward(
            batch.tokens.clone(),
            batch.positions.clone(),
            batch.visibility.clone(),
        );
        let loss = batch.next_token_loss(logits);
        let found = values(loss.clone());
        assert_close(
            &self.what("loss"),
            &found,
            &self.floats("loss"),
            ACTIVATIONS,
        );
        let found = hugging_face(&model, &support::gradients(&model, &loss.backward()));

        let file = self.file();
        let mut expected: Vec<&str> = file
            .names()
            .into_iter()
            .filter_map(|name| name.strip_prefix("grad."))
            .collect();
        expected.sort_unstable();
        assert_eq!(
            found.keys().map(String::as_str).collect::<Vec<_>>(),
            expected
        );
        let mut worst = 0.0f64;
        for (name, found) in &found {
            let expected = self.floats(&format!("grad.{name}"));
            let scale = expected
                .iter()
                .fold(0.0f64, |scale, &x| scale.max(f64::from(x).abs()));
            let difference = support::difference(found, &expected) / scale;
            assert!(
                difference <= GRADIENTS,
                "gradient of {name}: {difference:e} of {scale:e}"
            );
            worst = worst.max(difference);
        }
        support::measured(&self.what("gradients"), worst);
    }

    fn check_greedy(&self) {
        let (model, device) = (&self.model, plain());
        let prompt = self.integers("prompt_row0");
        let expected = self.integers("greedy12");

        let mut ids = prompt.clone();
        for _ in 0..expected.len() {
            let tokens = integers(&ids, [1, ids.len()], &device);
            let positions = row_positions(0, ids.len(), &device);
            let logits = model.forward(tokens, positions, Visibility::causal(ids.len(), &device));
            ids.push(greatest(&values(last(logits))));
        }
        assert_eq!(
            ids[prompt.len()..],
            expected,
            "{}",
            self.what("greedy without a cache")
        );

        let mut cache = KvCache::new(model.config(), 1, prompt.len() + expected.len(), &device);
        let tokens = integers(&prompt, [1, prompt.len()], &device);
        let mut state = self.step(model.token_embeddings(tokens), 0, &mut cache);
        let mut found = Vec::new();
        while found.len() < expected.len() {
            let next = greatest(&values(model.head(state)));
            let token = integers(&[next], [1, 1], &device);
            let position = prompt.len() + found.len();
            state = self.step(model.token_embeddings(token), position, &mut cache);
            found.push(next);
        }
        assert_eq!(found, expected, "{}", self.what("greedy with a cache"));
    }

    fn check_latent_feedback(&self) {
        let (model, device) = (&self.model, plain());
        let prompt = self.integers("prompt_row0");
        let tokens = integers(&prompt, [1, prompt.len()], &device);
        let embedded = model.token_embeddings(tokens);

        let mut inputs = embedded.clone();
        let mut fed = Vec::new();
        let mut state = self.whole(inputs.clone());
        for _ in 0..4 {
            fed.extend(values(state.clone()));
            inputs = Tensor::cat(vec![inputs, state], 1);
            state = self.whole(inputs.clone());
        }
        self.compare_latents("whole sequence", &fed, state);

        let mut cache = KvCache::new(model.config(), 1, prompt.len() + 4, &device);
        let mut fed = Vec::new();
        let mut state = self.step(embedded, 0, &mut cache);
        for index in 0..4 {
            fed.extend(values(state.clone()));
            state = self.step(state, prompt.len() + index, &mut cache);
        }
        self.compare_latents("cached", &fed, state);
    }

    fn compare_latents(&self, how: &str, fed: &[f32], state: Tensor<3>) {
        let what = |name: &str| format!("{}, {how}", self.what(name));
        let name = "latent_feedback4";
        assert_close(&what(name), fed, &self.floats(name), ACTIVATIONS);
        let name = "logits_after_latents";
        let logits = values(self.model.head(state));
        assert_close(&what(name), &logits, &self.floats(name), ACTIVATIONS);
    }

    /// The last state after the final norm of a whole sequence.
    fn whole(&self, inputs: Tensor<3>) -> Tensor<3> {
        let (seq, device) = (inputs.dims()[1], inputs.device());
        let positions = row_positions(0, seq, &device);
        let context = self
            .model
            .context(positions.clone(), Visibility::causal(seq, &device));
        last(
            self.model
                .states(self.model.with_positions(inputs, positions), &context),
        )
    }

    /// The same of inputs that come after what the cache holds.
    fn step(&self, inputs: Tensor<3>, position: usize, cache: &mut KvCache) -> Tensor<3> {
        let (model, seq) = (&self.model, inputs.dims()[1]);
        let positions = row_positions(position, position + seq, &inputs.device());
        let hidden = model.run_layers_cached(
            0..model.layers.len(),
            model.with_positions(inputs, positions.clone()),
            positions,
            &vec![true; seq],
            cache,
        );
        model.final_norm(last(hidden))
    }

    fn what(&self, name: &str) -> String {
        format!("{} {name}", self.folder.file_name().unwrap().display())
    }
}

struct Batch {
    ids: Vec<i64>,
    tokens: Tensor<2, Int>,
    positions: Tensor<2, Int>,
    visibility: Visibility,
    real: Vec<bool>,
    shape: [usize; 2],
}

impl Batch {
    fn at_real(&self, values: &[f32]) -> Vec<f32> {
        let rows = values.chunks(values.len() / self.real.len());
        rows.zip(&self.real)
            .filter(|(_, real)| **real)
            .flat_map(|(row, _)| row.to_vec())
            .collect()
    }

    /// Mean cross-entropy over targets whose predecessor is a real token.
    fn next_token_loss(&self, logits: Tensor<3>) -> Tensor<1> {
        let [batch, seq] = self.shape;
        let [.., vocabulary] = logits.dims();
        let (mut from, mut targets) = (Vec::new(), Vec::new());
        for row in 0..batch {
            for cell in row * seq..(row + 1) * seq - 1 {
                if self.real[cell] {
                    from.push(cell as i64);
                    targets.push(self.ids[cell + 1]);
                }
            }
        }
        let device = logits.device();
        let count = from.len();
        let from = integers(&from, [1, count], &device).reshape([count]);
        let logits = logits.reshape([batch * seq, vocabulary]).select(0, from);
        let targets = integers(&targets, [count, 1], &device);
        burn::tensor::activation::log_softmax(logits, 1)
            .gather(1, targets)
            .mean()
            .neg()
    }
}

fn last(states: Tensor<3>) -> Tensor<3> {
    let [_, seq, _] = states.dims();
    states.narrow(1, seq - 1, 1)
}

fn greatest(logits: &[f32]) -> i64 {
    let index = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    index.unwrap() as i64
}

/// Our gradients under Hugging Face's names and in its layout.
fn hugging_face(model: &Transformer, ours: &Values) -> Values {
    let (config, mut theirs) = (model.config(), Values::new());
    let d = config.d_model;
    for (path, values) in ours {
        let parts: Vec<&str> = path.split('.').collect();
        match (config.family, parts.as_slice()) {
            (Family::Gpt2, ["layers", layer, rest @ ..]) => {
                let name = match rest {
                    ["attention_norm", _, part] => format!("ln_1.{}", norm_part(part)),
                    ["feed_forward_norm", _, part] => format!("ln_2.{}", norm_part(part)),
                    ["attention", "query_key_value", part] => format!("attn.c_attn.{part}"),
                    ["attention", "output", part] => format!("attn.c_proj.{part}"),
                    ["feed_forward", _, "up", part] => format!("mlp.c_fc.{part}"),
                    ["feed_forward", _, "down", part] => format!("mlp.c_proj.{part}"),
                    _ => panic!("{path}"),
                };
                theirs.insert(format!("transformer.h.{layer}.{name}"), values.clone());
            }
            (Family::Gpt2, ["token_embedding", _]) => {
                theirs.insert("transformer.wte.weight".into(), values.clone());
            }
            (Family::Gpt2, ["position_embedding", _]) => {
                theirs.insert("transformer.wpe.weight".into(), values.clone());
            }
            (Family::Gpt2, ["final_norm", _, part]) => {
                theirs.insert(
                    format!("transformer.ln_f.{}", norm_part(part)),
                    values.clone(),
                );
            }
            (Family::Llama, ["layers", layer, rest @ ..]) => {
                let mut insert = |name: &str, values: Vec<f32>| {
                    theirs.insert(format!("model.layers.{layer}.{name}.weight"), values);
                };
                match rest {
                    ["attention_norm", ..] => insert("input_layernorm", values.clone()),
                    ["feed_forward_norm", ..] => {
                        insert("post_attention_layernorm", values.clone());
                    }
                    ["attention", "query_key_value", _] => {
                        let per_head = d / config.heads;
                        let (query, shared) = (d, config.key_value_heads * per_head);
                        insert("self_attn.q_proj", columns(values, d, 0, query));
                        insert("self_attn.k_proj", columns(values, d, query, shared));
                        insert(
                            "self_attn.v_proj",
                            columns(values, d, query + shared, shared),
                        );
                    }
                    ["attention", "output", _] => {
                        insert("self_attn.o_proj", columns(values, d, 0, d));
                    }
                    ["feed_forward", _, "gate_up", _] => {
                        let wide = values.len() / d / 2;
                        insert("mlp.gate_proj", columns(values, d, 0, wide));
                        insert("mlp.up_proj", columns(values, d, wide, wide));
                    }
                    ["feed_forward", _, "down", _] => {
                        insert("mlp.down_proj", columns(values, values.len() / d, 0, d));
                    }
                    _ => panic!("{path}"),
                }
            }
            (Family::Llama, ["token_embedding", _]) => {
                theirs.insert("model.embed_tokens.weight".into(), values.clone());
            }
            (Family::Llama, ["final_norm", ..]) => {
                theirs.insert("model.norm.weight".into(), values.clone());
            }
            (Family::Llama, ["head", _]) => {
                let all = columns(values, d, 0, values.len() / d);
                theirs.insert("lm_head.weight".into(), all);
            }
            _ => panic!("{path}"),
        }
    }
    theirs
}

fn norm_part(ours: &str) -> &'static str {
    match ours {
        "gamma" => "weight",
        "beta" => "bias",
        other => panic!("{other}"),
    }
}

/// Columns `start..start + count` of a matrix with `rows` rows, as rows.
fn columns(matrix: &[f32], rows: usize, start: usize, count: usize) -> Vec<f32> {
    let width = matrix.len() / rows;
    (start..start + count)
        .flat_map(|column| (0..rows).map(move |row| matrix[row * width + column]))
        .collect()
}
