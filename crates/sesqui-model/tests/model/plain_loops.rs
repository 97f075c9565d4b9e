//! Both families in plain loops over 64-bit floats, written from the architectures' definitions
//! (GPT-2: Radford et al. 2019; Llama: Touvron et al. 2023 and the RoPE scaling of Llama 3.1).
//!
//! One position at a time, every layer with its own list of keys and values. Only the layout of
//! the parameters is shared with the crate: `[d_input, d_output]`, and queries, keys, values (gate,
//! up) side by side.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::ops::Range;

use sesqui_model::{Family, ModelConfig, RopeScaling, Transformer};

use crate::support;

/// A model as lists of numbers.
pub struct PlainLoops {
    pub parameters: BTreeMap<String, Vec<f64>>,
    config: ModelConfig,
    key_value_heads: usize,
    d_head: usize,
}

/// Keys and values of each layer in order of appending.
#[derive(Clone)]
pub struct PlainCache(Vec<Vec<(Vec<f64>, Vec<f64>)>>);

impl PlainLoops {
    pub fn new(model: &Transformer) -> Self {
        let config = model.config().clone();
        let parameters = support::parameters(model)
            .into_iter()
            .map(|(path, values)| (path, values.into_iter().map(f64::from).collect()))
            .collect();
        Self {
            parameters,
            key_value_heads: match config.key_value_heads {
                0 => config.heads,
                some => some,
            },
            d_head: config.d_model / config.heads,
            config,
        }
    }

    pub fn cache(&self) -> PlainCache {
        PlainCache(vec![Vec::new(); self.config.layers])
    }

    /// `H_0` of one token.
    pub fn embed(&self, id: i64, position: i64) -> Vec<f64> {
        let token = self.row("token_embedding.weight", id).to_vec();
        self.with_position(&token, position)
    }

    pub fn with_position(&self, input: &[f64], position: i64) -> Vec<f64> {
        match self.config.family {
            Family::Gpt2 => add(input, self.row("position_embedding.weight", position)),
            Family::Llama => input.to_vec(),
        }
    }

    /// Runs layers `range` on one position.
    pub fn run(
        &self,
        range: Range<usize>,
        hidden: &[f64],
        position: i64,
        cache: &mut PlainCache,
    ) -> Vec<f64> {
        range.fold(hidden.to_vec(), |hidden, layer| {
            self.layer(layer, &hidden, position, &mut cache.0[layer])
        })
    }

    pub fn final_norm(&self, hidden: &[f64]) -> Vec<f64> {
        self.norm("final_norm", hidden)
    }

    pub fn head(&self, normed: &[f64]) -> Vec<f64> {
        if !self.config.tied_head {
            return self.linear("head", normed);
        }
        let table = &self.parameters["token_embedding.weight"];
        table
            .chunks(self.config.d_model)
            .map(|token| dot(token, normed))
            .collect()
    }

    /// States after the final norm, one per token.
    pub fn states(&self, ids: &[i64], positions: &[i64], cache: &mut PlainCache) -> Vec<Vec<f64>> {
        ids.iter()
            .zip(positions)
            .map(|(&id, &position)| {
                let hidden = self.embed(id, position);
                self.final_norm(&self.run(0..self.config.layers, &hidden, position, cache))
            })
            .collect()
    }

    /// Logits, one row per token.
    pub fn logits(&self, ids: &[i64], positions: &[i64]) -> Vec<Vec<f64>> {
        let states = self.states(ids, positions, &mut self.cache());
        states.iter().map(|state| self.head(state)).collect()
    }

    fn layer(
        &self,
        index: usize,
        hidden: &[f64],
        position: i64,
        cache: &mut Vec<(Vec<f64>, Vec<f64>)>,
    ) -> Vec<f64> {
        let path = |part: &str| format!("layers.{index}.{part}");
        let normed = self.norm(&path("attention_norm"), hidden);
        let attended = self.attention(&path("attention"), &normed, position, cache);
        let hidden = add(hidden, &attended);
        let normed = self.norm(&path("feed_forward_norm"), &hidden);
        let fed = match self.config.family {
            Family::Gpt2 => {
                let up = self.linear(&path("feed_forward.Gelu.up"), &normed);
                let activated: Vec<f64> = up.into_iter().map(gelu_tanh).collect();
                self.linear(&path("feed_forward.Gelu.down"), &activated)
            }
            Family::Llama => {
                let joint = self.linear(&path("feed_forward.SwiGlu.gate_up"), &normed);
                let (gate, up) = joint.split_at(joint.len() / 2);
                let gated: Vec<f64> = gate
                    .iter()
                    .zip(up)
                    .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                    .collect();
                self.linear(&path("feed_forward.SwiGlu.down"), &gated)
            }
        };
        add(&hidden, &fed)
    }

    fn attention(
        &self,
        path: &str,
        normed: &[f64],
        position: i64,
        cache: &mut Vec<(Vec<f64>, Vec<f64>)>,
    ) -> Vec<f64> {
        let (heads, width) = (self.config.heads, self.d_head);
        let joint = self.linear(&format!("{path}.query_key_value"), normed);
        let (queries, rest) = joint.split_at(heads * width);
        let (keys, values) = rest.split_at(self.key_value_heads * width);
        let (queries, keys) = match self.config.family {
            Family::Gpt2 => (queries.to_vec(), keys.to_vec()),
            Family::Llama => (self.rotate(queries, position), self.rotate(keys, position)),
        };
        cache.push((keys, values.to_vec()));
        let mut attended = Vec::with_capacity(heads * width);
        for head in 0..heads {
            let query = &queries[head * width..(head + 1) * width];
            let shared = head / (heads / self.key_value_heads);
            let part = shared * width..(shared + 1) * width;
            let scores: Vec<f64> = cache
                .iter()
                .map(|(keys, _)| dot(query, &keys[part.clone()]) / (width as f64).sqrt())
                .collect();
            let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> = scores
                .iter()
                .map(|score| (score - greatest).exp())
                .collect();
            let total: f64 = exponentials.iter().sum();
            for dimension in part {
                attended.push(
                    exponentials
                        .iter()
                        .zip(cache.iter())
                        .map(|(weight, (_, values))| weight / total * values[dimension])
                        .sum(),
                );
            }
        }
        self.linear(&format!("{path}.output"), &attended)
    }

    /// Dimension `i` of a head turns together with dimension `i + d_head / 2`.
    fn rotate(&self, x: &[f64], position: i64) -> Vec<f64> {
        let half = self.d_head / 2;
        let mut rotated = Vec::with_capacity(x.len());
        for head in x.chunks(self.d_head) {
            for dimension in 0..self.d_head {
                let pair = dimension % half;
                let angle = position as f64 * self.frequency(pair);
                let partner = if dimension < half {
                    -head[pair + half]
                } else {
                    head[pair]
                };
                rotated.push(head[dimension] * angle.cos() + partner * angle.sin());
            }
        }
        rotated
    }

    fn frequency(&self, pair: usize) -> f64 {
        let exponent = 2.0 * pair as f64 / self.d_head as f64;
        let frequency = 1.0 / self.config.rope_theta.powf(exponent);
        let RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } = self.config.rope_scaling
        else {
            return frequency;
        };
        let original_context = original_context as f64;
        let wavelength = 2.0 * PI / frequency;
        if wavelength < original_context / high_frequency_factor {
            frequency
        } else if wavelength > original_context / low_frequency_factor {
            frequency / factor
        } else {
            let smooth = (original_context / wavelength - low_frequency_factor)
                / (high_frequency_factor - low_frequency_factor);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }

    fn norm(&self, path: &str, x: &[f64]) -> Vec<f64> {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / x.len() as f64;
        let (path, center) = match self.config.family {
            Family::Gpt2 => (format!("{path}.Layer"), mean(&mut x.iter().copied())),
            Family::Llama => (format!("{path}.RootMeanSquare"), 0.0),
        };
        let spread = mean(&mut x.iter().map(|value| (value - center).powi(2)));
        let scale = 1.0 / (spread + self.config.norm_epsilon).sqrt();
        let gain = &self.parameters[&format!("{path}.gamma")];
        let bias = self.parameters.get(&format!("{path}.beta"));
        (0..x.len())
            .map(|index| {
                (x[index] - center) * scale * gain[index] + bias.map_or(0.0, |bias| bias[index])
            })
            .collect()
    }

    fn linear(&self, path: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.parameters[&format!("{path}.weight")];
        let width = weight.len() / x.len();
        let mut result = match self.parameters.get(&format!("{path}.bias")) {
            Some(bias) => bias.clone(),
            None => vec![0.0; width],
        };
        for (x, row) in x.iter().zip(weight.chunks(width)) {
            for (result, weight) in result.iter_mut().zip(row) {
                *result += x * weight;
            }
        }
        result
    }

    fn row(&self, path: &str, index: i64) -> &[f64] {
        let width = self.config.d_model;
        &self.parameters[path][index as usize * width..(index as usize + 1) * width]
    }
}

/// `-ln softmax(logits)[target]`.
pub fn cross_entropy(logits: &[f64], target: i64) -> f64 {
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - greatest).exp()).sum();
    greatest + total.ln() - logits[target as usize]
}

/// GELU in its tanh form (Hendrycks and Gimpel 2016).
pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn add(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter()
        .zip(right)
        .map(|(left, right)| left + right)
        .collect()
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(left, right)| left * right)
        .sum()
}
