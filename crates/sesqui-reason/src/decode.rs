//! Greedy decoding.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
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
    let context = model.config().context;
    prompt.validate(model.vocabulary(), context)?;
    let clock = Instant::now();
    let batch = prompt.batch;
    let layers = 0..model.layers.len();
    let mut cache = KvCache::new(
        model.config(),
        batch,
        prompt.seq + decoding.max_tokens,
        device,
    );
    let (ids, positions) = prompt.tensors(device);
    let embedded = model.embed(ids, positions.clone());
    let hidden = model.run_layers_cached(
        layers.clone(),
        embedded,
        positions,
        &prompt.real,
        &mut cache,
    );
    let mut next = read_argmax(model, hidden.narrow(1, prompt.seq - 1, 1));
    let prefill = clock.elapsed();

    let mut rows = vec![DecodedRow::default(); batch];
    let mut live = vec![true; batch];
    let mut steps = Vec::new();
    for step in 0..=decoding.max_tokens {
        for row in 0..batch {
            let position = prompt.next_position[row] as usize + step;
            if live[row] && next[row] == decoding.stop {
                rows[row].stopped = true;
                live[row] = false;
            }
            live[row] &= step < decoding.max_tokens && position < context;
            if live[row] {
                rows[row].tokens.push(next[row]);
            }
        }
        if !live.iter().any(|&live| live) {
            break;
        }
        let clock = Instant::now();
        let ids: Vec<i32> = next.iter().map(|&token| token as i32).collect();
        let positions: Vec<i32> = prompt
            .next_position
            .iter()
            // An ended row may be past the last position; nobody sees what it does there.
            .map(|&first| (first + step as i32).min(context as i32 - 1))
            .collect();
        let upload = |values: Vec<i32>| {
            Tensor::<2, Int>::from_data(TensorData::new(values, [batch, 1]), device)
        };
        let positions = upload(positions);
        let embedded = model.embed(upload(ids), positions.clone());
        let hidden =
            model.run_layers_cached(layers.clone(), embedded, positions, &live, &mut cache);
        next = read_argmax(model, hidden);
        steps.push(clock.elapsed());
    }
    Ok(Decoded {
        rows,
        prefill,
        steps,
    })
}

/// The most likely token after `hidden` `[batch, 1, d_model]`, read to the host.
fn read_argmax(model: &Transformer, hidden: Tensor<3>) -> Vec<u32> {
    let logits = model.head(model.final_norm(hidden));
    logits
        .argmax(2)
        .into_data()
        .iter::<i64>()
        .map(|token| token as u32)
        .collect()
}
