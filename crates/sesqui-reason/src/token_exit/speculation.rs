//! The first layers draft tokens, the others verify them in one pass over the same cache.

use std::time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_model::{KvCache, Transformer};

use super::{Drafts, ExitDecoded, ExitRow, TokenRun};
use crate::decode::{Decoding, Progress, prefill, read_argmax};
use crate::prompt::{Prompt, PromptError};

pub(super) fn decode(
    model: &Transformer,
    prompt: &Prompt,
    decoding: Decoding,
    (layer, drafts): (usize, usize),
    device: &Device,
) -> Result<ExitDecoded, PromptError> {
    let context = model.config().context;
    prompt.validate(model.vocabulary(), context)?;
    let (batch, most) = (prompt.batch, decoding.max_tokens);
    let drafts = drafts.min(most);
    // Every live row keeps a token of every round at least, so there are no more rounds than tokens. What a
    // round adds for good is what the luckiest row keeps; the last round may add drafts that none keeps.
    let room = most.saturating_mul(batch.min(drafts + 1)) + drafts;
    let clock = Instant::now();
    let (cache, hidden) = prefill(model, prompt, room, device);
    let mut next = read_argmax(model, model.final_norm(hidden));
    let prefill = clock.elapsed();

    let mut speculation = Speculation {
        model,
        layer,
        drafts,
        stop: decoding.stop,
        cache,
        device,
    };
    let whole = TokenRun {
        layers: model.layers.len(),
        filled: 0,
        heads: 1,
    };
    let mut progress = Progress::new(&prompt.next_position, context, decoding);
    let row = ExitRow {
        decoded: Default::default(),
        question_end: whole,
        runs: Vec::new(),
        chosen_after: vec![0],
        drafts: Drafts::default(),
    };
    let mut rows = vec![row; batch];
    let mut steps = Vec::new();
    loop {
        for (row, &token) in next.iter().enumerate() {
            progress.take(row, token);
        }
        if progress.has_ended() {
            break;
        }
        let clock = Instant::now();
        let verdicts = speculation.round(&progress);
        steps.push(clock.elapsed());
        for (row, verdict) in verdicts.into_iter().enumerate() {
            let Some(verdict) = verdict else { continue };
            let found = &mut rows[row];
            let place = progress.rows[row].tokens.len() - 1;
            for offset in 0..verdict.fed {
                let asked = usize::from(offset < verdict.drafted.len());
                let run = TokenRun {
                    heads: 1 + asked,
                    ..whole
                };
                found.runs.push((place + offset, run));
            }
            found.drafts.drafted += verdict.drafted.len();
            found.drafts.accepted += verdict.agreed;
            let chosen = std::iter::repeat_n(steps.len(), verdict.kept().len() + 1);
            found.chosen_after.extend(chosen);
            for &token in verdict.kept() {
                progress.take(row, token);
            }
            next[row] = verdict.next;
        }
    }
    for (row, decoded) in rows.iter_mut().zip(progress.rows) {
        row.decoded = decoded;
    }
    Ok(ExitDecoded {
        rows,
        prompt_layers: model.layers.len(),
        prefill,
        steps,
    })
}

struct Speculation<'a> {
    model: &'a Transformer,
    layer: usize,
    drafts: usize,
    stop: u32,
    /// Holds, in all layers alike, what the rows have fed and kept.
    cache: KvCache,
    device: &'a Device,
}

/// What became of a row in a round.
struct Verdict {
    /// What was drafted after its newest token; a stop token is the last.
    drafted: Vec<u32>,
    /// How many of these the whole model says too.
    agreed: usize,
    /// Tokens that were run: the newest, and drafts that are no stop token.
    fed: usize,
    /// What the whole model says after the last of those that it agrees with.
    next: u32,
}

impl Verdict {
    /// Drafts that the row keeps; a stop token it is given as its next.
    fn kept(&self) -> &[u32] {
        &self.drafted[..self.agreed.min(self.fed - 1)]
    }
}

impl Speculation<'_> {
    /// Drafts and verifies once for every row that has not ended.
    fn round(&mut self, progress: &Progress<'_>) -> Vec<Option<Verdict>> {
        let start = self.cache.lengths()[0];
        let (drafted, states, positions) = self.draft(progress);
        let columns = states.len();
        let fed: Vec<usize> = drafted.iter().map(|drafted| self.fed(drafted)).collect();
        let real: Vec<bool> = (0..progress.rows.len())
            .flat_map(|row| {
                let fed = if progress.live[row] { fed[row] } else { 0 };
                (0..columns).map(move |column| column < fed)
            })
            .collect();
        let layers = self.layer..self.model.layers.len();
        let (states, positions) = (Tensor::cat(states, 1), Tensor::cat(positions, 1));
        let cache = &mut self.cache;
        let hidden = self
            .model
            .run_layers_cached(layers, states, positions, &real, cache);
        let said = read_argmax(self.model, self.model.final_norm(hidden));
        let verdicts = drafted.into_iter().zip(said.chunks_exact(columns));
        let verdicts = verdicts.enumerate().map(|(row, (drafted, said))| {
            progress.live[row].then(|| {
                let same = drafted.iter().zip(said).take_while(|(one, two)| one == two);
                let agreed = same.count();
                let verdict = Verdict {
                    // After a stop token nothing was asked: the row ends with it.
                    next: if agreed < fed[row] {
                        said[agreed]
                    } else {
                        self.stop
                    },
                    agreed,
                    fed: fed[row],
                    drafted,
                };
                let kept = start + 1 + verdict.kept().len();
                self.cache.forget(row, kept..start + verdict.fed);
                verdict
            })
        });
        let verdicts = verdicts.collect();
        self.cache.trim();
        verdicts
    }

    /// Tokens of a row that are run where these are drafted.
    fn fed(&self, drafted: &[u32]) -> usize {
        match drafted.last() {
            Some(token) if *token == self.stop => drafted.len(),
            _ => drafted.len() + 1,
        }
    }

    /// What the first layers say after the newest token of each row, one token after the other; their states
    /// `[batch, 1, d_model]` and positions `[batch, 1]` by column.
    fn draft(
        &mut self,
        progress: &Progress<'_>,
    ) -> (Vec<Vec<u32>>, Vec<Tensor<3>>, Vec<Tensor<2, Int>>) {
        let batch = progress.rows.len();
        let mut drafted = vec![Vec::new(); batch];
        let mut open = progress.live.clone();
        let mut newest: Vec<u32> = (0..batch)
            .map(|row| progress.rows[row].tokens.last().copied().unwrap_or(0))
            .collect();
        let (mut states, mut at) = (Vec::new(), Vec::new());
        loop {
            let column = states.len() as i32;
            let context = self.model.config().context as i32;
            let positions: Vec<i32> = (0..batch)
                .map(|row| (progress.newest(row) + column).min(context - 1))
                .collect();
            let ids = newest.iter().map(|&token| token as i32).collect();
            let upload = |values: Vec<i32>| {
                Tensor::<2, Int>::from_data(TensorData::new(values, [batch, 1]), self.device)
            };
            let positions = upload(positions);
            let embedded = self.model.embed(upload(ids), positions.clone());
            let cache = &mut self.cache;
            let hidden = self.model.run_layers_cached(
                0..self.layer,
                embedded,
                positions.clone(),
                &open,
                cache,
            );
            states.push(hidden.clone());
            at.push(positions);
            for row in 0..batch {
                let most = self.drafts.min(progress.left(row));
                open[row] &= drafted[row].len() < most;
            }
            if !open.iter().any(|&open| open) {
                return (drafted, states, at);
            }
            newest = read_argmax(self.model, self.model.final_norm(hidden));
            for row in 0..batch {
                if open[row] {
                    drafted[row].push(newest[row]);
                    open[row] = newest[row] != self.stop;
                }
            }
            if !open.iter().any(|&open| open) {
                return (drafted, states, at);
            }
        }
    }
}
