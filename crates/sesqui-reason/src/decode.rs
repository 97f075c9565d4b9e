//! Greedy decoding.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_kernels::read;
use sesqui_model::{KvCache, Transformer};

use crate::prompt::{Prompt, PromptError};

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// Ends a row; not part of what it generated.
    pub stop: u32,
    /// Greatest number of tokens per row.
    pub max_tokens: usize,
}

/// What a batch generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// One entry per prompt row.
    pub rows: Vec<DecodedRow>,
    /// Time from the start until the prompt's last logits were read.
    pub prefill: Duration,
    /// Time of each decoding step, all rows together.
    pub steps: Vec<Duration>,
}

/// What one row generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodedRow {
    /// Token ids, without the stop token.
    pub tokens: Vec<u32>,
    /// Whether the stop token came, rather than a limit.
    pub stopped: bool,
}

/// Decodes greedily, all rows in step. One host read per step: the new tokens.
///
/// A row ends at its stop token, at `max_tokens`, or where positions run out. Ended rows ride along
/// unseen until all have ended.
///
/// # Errors
///
/// When the prompt does not fit the model.
pub fn greedy(
    model: &Transformer,
    prompt: &Prompt,
    decoding: Decoding,
    device: &Device,
) -> Result<Decoded, PromptError> {
    prompt.validate(model.vocabulary(), model.config().context)?;
    let clock = Instant::now();
    let (mut cache, hidden) = prefill(model, prompt, decoding.max_tokens, device);
    let next = read_argmax(model, model.final_norm(hidden));
    let prefill = clock.elapsed();
    let first = &prompt.next_position;
    let (rows, steps) = go_on(model, &mut cache, next, first, decoding, device);
    Ok(Decoded {
        rows,
        prefill,
        steps,
    })
}

/// Runs the prompt: the cache, with room for `more` entries, and the hidden states of the last
/// column `[batch, 1, d_model]`.
pub(crate) fn prefill(
    model: &Transformer,
    prompt: &Prompt,
    more: usize,
    device: &Device,
) -> (KvCache, Tensor<3>) {
    let mut cache = model.cache(prompt.batch, prompt.seq + more);
    let (ids, positions) = prompt.tensors(device);
    let embedded = model.embed(ids, positions.clone());
    let layers = 0..model.layers.len();
    let hidden = model.run_layers_cached(layers, embedded, positions, &prompt.real, &mut cache);
    (cache, hidden.narrow(1, prompt.seq - 1, 1))
}

/// Goes on greedily with the tokens `next`, one per row, of which the first stands at position
/// `first`: what each row generated, and the time of each step.
pub(crate) fn go_on(
    model: &Transformer,
    cache: &mut KvCache,
    mut next: Vec<u32>,
    first: &[i32],
    decoding: Decoding,
    device: &Device,
) -> (Vec<DecodedRow>, Vec<Duration>) {
    let mut progress = Progress::new(first, model.config().context, decoding);
    let mut steps = Vec::new();
    loop {
        for (row, &token) in next.iter().enumerate() {
            progress.take(row, token);
        }
        if progress.has_ended() {
            break;
        }
        let clock = Instant::now();
        let ids: Vec<i32> = next.iter().map(|&token| token as i32).collect();
        let positions = (0..next.len()).map(|row| progress.newest(row)).collect();
        let normed = feed(model, cache, ids, positions, &progress.live, device);
        next = read_argmax(model, normed);
        steps.push(clock.elapsed());
    }
    (progress.rows, steps)
}

/// How far the rows of a batch are.
pub(crate) struct Progress<'a> {
    first: &'a [i32],
    context: usize,
    decoding: Decoding,
    pub(crate) rows: Vec<DecodedRow>,
    /// Whether a row has not ended yet.
    pub(crate) live: Vec<bool>,
}

impl<'a> Progress<'a> {
    /// Nothing generated yet; the first token of each row stands at position `first`.
    pub(crate) fn new(first: &'a [i32], context: usize, decoding: Decoding) -> Self {
        Self {
            first,
            context,
            decoding,
            rows: vec![DecodedRow::default(); first.len()],
            live: vec![true; first.len()],
        }
    }

    /// Gives `row` its next token, unless it has ended. It ends at its stop token, at the limit, or where
    /// positions run out.
    pub(crate) fn take(&mut self, row: usize, token: u32) {
        if self.live[row] && token == self.decoding.stop {
            self.rows[row].stopped = true;
            self.live[row] = false;
        }
        self.live[row] &= self.left(row) > 0;
        if self.live[row] {
            self.rows[row].tokens.push(token);
        }
    }

    /// How many tokens `row` can still be given.
    pub(crate) fn left(&self, row: usize) -> usize {
        let taken = self.rows[row].tokens.len();
        let positions = self.context.saturating_sub(self.first[row] as usize);
        self.decoding.max_tokens.min(positions) - taken
    }

    /// Position of the newest token of `row`, or some position where it has none: nobody sees what an ended
    /// row does there.
    pub(crate) fn newest(&self, row: usize) -> i32 {
        let at = self.first[row] + self.rows[row].tokens.len() as i32 - 1;
        at.clamp(0, self.context as i32 - 1)
    }

    /// Whether all rows have ended.
    pub(crate) fn has_ended(&self) -> bool {
        !self.live.iter().any(|&live| live)
    }
}

/// Runs tokens, row-major `[batch, queries]` like their positions and `real`; returns the last
/// column's states after the final norm, `[batch, 1, d_model]`.
pub(crate) fn feed(
    model: &Transformer,
    cache: &mut KvCache,
    ids: Vec<i32>,
    positions: Vec<i32>,
    real: &[bool],
    device: &Device,
) -> Tensor<3> {
    let shape = [cache.batch(), ids.len() / cache.batch()];
    let upload =
        |values: Vec<i32>| Tensor::<2, Int>::from_data(TensorData::new(values, shape), device);
    let positions = upload(positions);
    let embedded = model.embed(upload(ids), positions.clone());
    let layers = 0..model.layers.len();
    let hidden = model.run_layers_cached(layers, embedded, positions, real, cache);
    model.final_norm(hidden.narrow(1, shape[1] - 1, 1))
}

/// The most likely token after each of `normed` `[batch, seq, d_model]`, row-major, read to the host.
pub(crate) fn read_argmax(model: &Transformer, normed: Tensor<3>) -> Vec<u32> {
    read(model.head(normed).argmax(2))
        .iter::<i64>()
        .map(|token| token as u32)
        .collect()
}
