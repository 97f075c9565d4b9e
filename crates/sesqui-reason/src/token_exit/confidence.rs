//! A token leaves after the first layer that is sure enough.

use std::time::Instant;

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_kernels::read;
use sesqui_model::{KvCache, Transformer};

use super::{Drafts, ExitDecoded, ExitRow, TokenRun};
use crate::decode::{Decoding, Progress, read_argmax};
use crate::prompt::{Prompt, PromptError};

/// The last token of the prompt leaves as those that are generated do; what is before it runs all layers.
pub(super) fn decode(
    model: &Transformer,
    prompt: &Prompt,
    decoding: Decoding,
    (threshold, from): (f64, usize),
    device: &Device,
) -> Result<ExitDecoded, PromptError> {
    let context = model.config().context;
    prompt.validate(model.vocabulary(), context)?;
    let leaving = Leaving {
        model,
        threshold,
        from,
        device,
    };
    let clock = Instant::now();
    let capacity = prompt.seq + decoding.max_tokens;
    let mut cache = model.cache(prompt.batch, capacity);
    before_the_last(model, prompt, &mut cache, device);
    let last = |list: &[i32]| -> Vec<i32> {
        let rows = list.chunks_exact(prompt.seq);
        rows.map(|row| row[prompt.seq - 1]).collect()
    };
    let all: Vec<usize> = (0..prompt.batch).collect();
    let (ids, positions) = (last(&prompt.ids), last(&prompt.positions));
    let asked = leaving.token(&all, ids, positions, &mut cache);
    let prefill = clock.elapsed();

    let mut progress = Progress::new(&prompt.next_position, context, decoding);
    let mut runs = vec![Vec::new(); prompt.batch];
    let mut chosen_after = vec![vec![0]; prompt.batch];
    for (row, (token, _)) in asked.iter().enumerate() {
        progress.take(row, *token);
    }
    let mut steps = Vec::new();
    while !progress.has_ended() {
        let clock = Instant::now();
        let live: Vec<usize> = (0..prompt.batch)
            .filter(|&row| progress.live[row])
            .collect();
        let newest = live.iter().filter_map(|&row| {
            let token = progress.rows[row].tokens.last();
            token.map(|&token| token as i32)
        });
        let (ids, positions) = (
            newest.collect(),
            live.iter().map(|&row| progress.newest(row)).collect(),
        );
        let found = leaving.token(&live, ids, positions, &mut cache);
        steps.push(clock.elapsed());
        for (&row, (token, run)) in live.iter().zip(found) {
            runs[row].push((progress.rows[row].tokens.len() - 1, run));
            chosen_after[row].push(steps.len());
            progress.take(row, token);
        }
    }
    let rows = progress.rows.into_iter().zip(asked).zip(runs);
    let rows = rows.zip(chosen_after);
    Ok(ExitDecoded {
        rows: rows
            .map(
                |(((decoded, (_, question_end)), runs), chosen_after)| ExitRow {
                    decoded,
                    question_end,
                    runs,
                    chosen_after,
                    drafts: Drafts::default(),
                },
            )
            .collect(),
        prompt_layers: model.layers.len(),
        prefill,
        steps,
    })
}

/// Runs all columns of the prompt but the last through all layers.
fn before_the_last(model: &Transformer, prompt: &Prompt, cache: &mut KvCache, device: &Device) {
    let columns = prompt.seq - 1;
    if columns == 0 {
        return;
    }
    let (ids, positions) = prompt.tensors(device);
    let positions = positions.narrow(1, 0, columns);
    let embedded = model.embed(ids.narrow(1, 0, columns), positions.clone());
    let rows = prompt.real.chunks_exact(prompt.seq);
    let real: Vec<bool> = rows.flat_map(|row| &row[..columns]).copied().collect();
    let layers = 0..model.layers.len();
    model.run_layers_cached(layers, embedded, positions, &real, cache);
}

struct Leaving<'a> {
    model: &'a Transformer,
    threshold: f64,
    from: usize,
    device: &'a Device,
}

impl Leaving<'_> {
    /// Runs one token of each of `rows`, ascending, up to where it leaves: the token that follows, and what
    /// was run. Every layer holds an entry of every one of them then.
    fn token(
        &self,
        rows: &[usize],
        ids: Vec<i32>,
        positions: Vec<i32>,
        cache: &mut KvCache,
    ) -> Vec<(u32, TokenRun)> {
        let (model, layers) = (self.model, self.model.layers.len());
        let upload = |values: Vec<i32>| {
            let shape = [values.len(), 1];
            Tensor::<2, Int>::from_data(TensorData::new(values, shape), self.device)
        };
        let mut positions = upload(positions);
        let mut hidden = model.embed(upload(ids), positions.clone());
        let mut found = vec![(0, TokenRun::default()); rows.len()];
        // Places in `rows` that have not left.
        let mut inside: Vec<usize> = (0..rows.len()).collect();
        for layer in 1..=layers {
            let running: Vec<usize> = inside.iter().map(|&place| rows[place]).collect();
            hidden = model.run_layer_rows(layer - 1, hidden, positions.clone(), &running, cache);
            if layer < self.from.min(layers) {
                continue;
            }
            let heads = layer + 1 - self.from.min(layers);
            let said = self.read(&hidden, layer == layers);
            let (mut leave, mut stay) = (Vec::new(), Vec::new());
            for (index, (token, sure)) in said.into_iter().enumerate() {
                match sure {
                    true => leave.push(index),
                    false => stay.push(index),
                }
                let run = TokenRun {
                    layers: layer,
                    filled: layers - layer,
                    heads,
                };
                found[inside[index]] = (token, run);
            }
            if !leave.is_empty() && layer < layers {
                let leaving: Vec<usize> = leave.iter().map(|&index| running[index]).collect();
                let (state, at) = self.select(&hidden, &positions, &leave);
                model.fill_rows(layer..layers, state, at, &leaving, cache);
            }
            if stay.is_empty() {
                break;
            }
            (hidden, positions) = self.select(&hidden, &positions, &stay);
            inside = stay.into_iter().map(|index| inside[index]).collect();
        }
        found
    }

    /// The likeliest token after each of `hidden` `[rows, 1, d_model]`, and whether it is likely enough;
    /// after the last layer it is.
    fn read(&self, hidden: &Tensor<3>, last: bool) -> Vec<(u32, bool)> {
        let normed = self.model.final_norm(hidden.clone());
        if last {
            let tokens = read_argmax(self.model, normed).into_iter();
            return tokens.map(|token| (token, true)).collect();
        }
        let logits = self.model.head(normed);
        // One read for both: as a float every id is exact.
        let tokens = logits.clone().argmax(2).float();
        let probabilities = softmax(logits, 2).max_dim(2);
        let both = read(Tensor::cat(vec![tokens, probabilities], 2));
        let both: Vec<f32> = both.iter::<f32>().collect();
        let rows = both.chunks_exact(2);
        rows.map(|row| (row[0] as u32, f64::from(row[1]) > self.threshold))
            .collect()
    }

    /// Some rows of states `[rows, 1, d_model]` and positions `[rows, 1]`.
    fn select(
        &self,
        hidden: &Tensor<3>,
        positions: &Tensor<2, Int>,
        indices: &[usize],
    ) -> (Tensor<3>, Tensor<2, Int>) {
        if indices.len() == hidden.dims()[0] {
            return (hidden.clone(), positions.clone());
        }
        let indices: Vec<i32> = indices.iter().map(|&index| index as i32).collect();
        let indices = Tensor::<1, Int>::from_data(indices.as_slice(), self.device);
        (
            hidden.clone().select(0, indices.clone()),
            positions.clone().select(0, indices),
        )
    }
}
