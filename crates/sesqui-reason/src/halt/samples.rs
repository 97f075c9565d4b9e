//! Several noisy trajectories of every question, which go on until they agree and then vote.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sesqui_model::{KvCache, LatentTransformer};
use sesqui_shortcut::{ExitRule, Handed, KeyValueRule, Last, Walk};

use crate::decode::{DecodedRow, prefill};
use crate::halt::config::SamplesRule;
use crate::halt::{HaltTrace, Halting, Round, SampleTrace};
use crate::latent::{LatentDecoded, LatentDecoding, LatentRow, answers, finish_pending};
use crate::prompt::Prompt;
use crate::refine::AuxiliaryWork;

/// Latent reasoning of `rule.samples` trajectories of every row of `prompt`, which is read once. Row
/// `samples * question + sample` of the walk is one of them.
pub(crate) fn sampled(
    model: &LatentTransformer,
    exits: ExitRule<'_>,
    key_values: KeyValueRule,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
    (halting, rule): (&Halting<'_>, &SamplesRule),
    device: &Device,
) -> LatentDecoded {
    let backbone = &model.backbone;
    let samples = rule.samples;
    let clock = Instant::now();
    let (cache, hidden) = prefill(backbone, prompt, 0, device);
    let rows: Vec<usize> = (0..prompt.batch * samples).collect();
    let questions: Vec<usize> = rows.iter().map(|row| row / samples).collect();
    let cache = cache.fork(&questions, plan.latent_steps, device);
    let states = picked(backbone.final_norm(hidden), &questions);
    finish_pending(device);
    let prefill = clock.elapsed();

    let clock = Instant::now();
    let keys: Vec<u64> = (0..prompt.batch)
        .map(|row| question_key(prompt, row))
        .collect();
    let mut walk = Walk::new(model, cache, states, exits, key_values)
        .with_landing(plan.landing)
        .with_entry_position(plan.entry_position);
    let mut traces = vec![SampleTrace::default(); prompt.batch];
    let ask = Ask {
        model,
        halting,
        plan,
        samples,
        device,
    };
    for slot in 0..plan.latent_steps {
        if walk.is_over() {
            break;
        }
        disturb(&mut walk, rule, &keys, slot);
        let at = |row: &usize| plan.slot_positions[row / samples][slot];
        let positions: Vec<i32> = rows.iter().map(at).collect();
        let (steps, last) = (slot + 1, slot + 1 == plan.latent_steps);
        walk.step(&positions, Last::All(last));
        if last || steps < rule.start {
            continue;
        }
        // All trajectories of a question are compared at once, or not yet.
        let together = |question: &usize| {
            let mut own = question * samples..(question + 1) * samples;
            own.all(|row| !walk.has_stopped(row) && walk.at_top(row))
        };
        let asked: Vec<usize> = (0..prompt.batch).filter(together).collect();
        if asked.is_empty() {
            continue;
        }
        let rounds = ask.round(walk.cache(), walk.states(), &asked, steps, true);
        for (question, round) in asked.into_iter().zip(rounds) {
            if round.entropy <= rule.threshold {
                let own: Vec<usize> = (question * samples..(question + 1) * samples).collect();
                walk.stop(&own);
            }
            traces[question].rounds.push(round);
        }
    }
    let mut states: Vec<Tensor<3>> = walk.inputs().to_vec();
    states.push(walk.states());
    let open: Vec<usize> = (0..prompt.batch)
        .filter(|question| !walk.has_stopped(question * samples))
        .collect();
    finish_pending(device);
    let reasoning = clock.elapsed();

    let clock = Instant::now();
    if !open.is_empty() {
        let (cache, newest, steps) = (walk.cache(), walk.states(), plan.latent_steps);
        let rounds = ask.round(cache, newest, &open, steps, false);
        for (question, round) in open.into_iter().zip(rounds) {
            traces[question].rounds.push(round);
        }
    }
    let answer = clock.elapsed();
    let (handed, reads) = (walk.handed().to_vec(), walk.reads());
    let (_, slots) = walk.into_parts();
    for (trace, slots) in traces.iter_mut().zip(slots.chunks(samples)) {
        trace.trajectories = slots.to_vec();
    }
    let decoded = voted(traces, states, handed, samples);
    LatentDecoded {
        prefill,
        reasoning,
        answer,
        reads,
        ..decoded
    }
}

/// The decoded batch out of what the trajectories did, without times. Of the states, those of each
/// question's winner.
fn voted(
    mut traces: Vec<SampleTrace>,
    states: Vec<Tensor<3>>,
    handed: Vec<Vec<Handed>>,
    samples: usize,
) -> LatentDecoded {
    let mut rows = Vec::with_capacity(traces.len());
    let mut winners = Vec::with_capacity(traces.len());
    for (question, trace) in traces.iter_mut().enumerate() {
        let answers = trace.rounds.last().map_or(&[][..], |round| &round.answers);
        trace.winner = winner(answers);
        winners.push(question * samples + trace.winner);
        let answer = answers.get(trace.winner).cloned().unwrap_or_default();
        rows.push(LatentRow {
            tokens: answer.tokens,
            stopped: answer.stopped,
            slots: trace.trajectories[trace.winner].clone(),
            auxiliary: AuxiliaryWork::default(),
            halt: HaltTrace::None,
        });
    }
    for (row, trace) in rows.iter_mut().zip(traces) {
        row.halt = HaltTrace::Samples(trace);
    }
    let handed = handed.into_iter().map(|slot| {
        slot.into_iter()
            .filter_map(|handed| won(&handed, &winners))
            .collect()
    });
    LatentDecoded {
        rows,
        prefill: Duration::ZERO,
        reasoning: Duration::ZERO,
        answer: Duration::ZERO,
        decoding_steps: Vec::new(),
        states: states
            .into_iter()
            .map(|states| picked(states, &winners))
            .collect(),
        unrefined: Vec::new(),
        handed: handed.collect(),
        reads: 0,
    }
}

/// Of trajectories that left early together those that answer, as rows of questions.
fn won(handed: &Handed, winners: &[usize]) -> Option<Handed> {
    let mut rows = Vec::new();
    let mut places = Vec::new();
    for (question, winner) in winners.iter().enumerate() {
        if let Some(place) = handed.rows.iter().position(|row| row == winner) {
            rows.push(question);
            places.push(place);
        }
    }
    (!rows.is_empty()).then(|| Handed {
        states: picked(handed.states.clone(), &places),
        rows,
    })
}

/// Whoever asks all trajectories of some questions for their answers.
struct Ask<'a> {
    model: &'a LatentTransformer,
    halting: &'a Halting<'a>,
    plan: &'a LatentDecoding<'a>,
    samples: usize,
    device: &'a Device,
}

impl Ask<'_> {
    /// The answers of `questions` after `steps` steps, from a copy of `cache`; `states` are the newest.
    fn round(
        &self,
        cache: &KvCache,
        states: Tensor<3>,
        questions: &[usize],
        steps: usize,
        decides: bool,
    ) -> Vec<Round> {
        let (samples, plan) = (self.samples, self.plan);
        let own = |question: &usize| question * samples..(question + 1) * samples;
        let rows: Vec<usize> = questions.iter().flat_map(own).collect();
        let more = plan.answer_start.len() + plan.decoding.max_tokens;
        let mut fork = cache.fork(&rows, more, self.device);
        let at = |row: &usize| self.halting.answer_after[row / samples][steps - 1];
        let positions: Vec<i32> = rows.iter().map(at).collect();
        let states = picked(states, &rows);
        let backbone = &self.model.backbone;
        let (found, _) = answers(backbone, &mut fork, states, plan, &positions, self.device);
        let whole = |row: &DecodedRow| DecodedRow {
            tokens: [plan.answer_start, &row.tokens].concat(),
            stopped: row.stopped,
        };
        found
            .chunks(samples)
            .map(|own| {
                let answers: Vec<DecodedRow> = own.iter().map(whole).collect();
                Round {
                    after: steps,
                    entropy: disagreement(&answers),
                    answers,
                    decides,
                }
            })
            .collect()
    }
}

/// Adds noise to what step `slot` feeds; nothing where there is none to add.
fn disturb(walk: &mut Walk<'_>, rule: &SamplesRule, keys: &[u64], slot: usize) {
    if rule.noise == 0.0 {
        return;
    }
    let states = walk.states();
    let shape = states.dims();
    let mut values = Vec::with_capacity(shape[0] * shape[2]);
    for &key in keys {
        for sample in 0..rule.samples {
            values.extend(noise(rule.seed, key, sample, slot, shape[2]));
        }
    }
    let drawn = Tensor::<3>::from_data(TensorData::new(values, shape), &states.device());
    let size = states.clone().powi_scalar(2).mean_dim(2).sqrt();
    walk.replace_states(states + drawn * size * rule.noise);
}

/// A fixed hash (FNV-1a, 64 bits) of a question's token ids: what it is asked beside, and how far it is
/// padded, does not matter.
fn question_key(prompt: &Prompt, row: usize) -> u64 {
    let cells = row * prompt.seq..(row + 1) * prompt.seq;
    let real = cells.filter(|&cell| prompt.real[cell]);
    let bytes = real.flat_map(|cell| prompt.ids[cell].to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `count` standard normal numbers for one sample's step `slot` of the question with hash `key`, by Box and
/// Muller (1958) on the host: the same on every device and in every batch.
pub fn noise(seed: u64, key: u64, sample: usize, slot: usize, count: usize) -> Vec<f32> {
    let mut bytes = [0; 32];
    let parts = [seed, key, sample as u64, slot as u64];
    for (place, part) in bytes.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&part.to_le_bytes());
    }
    let mut random = ChaCha8Rng::from_seed(bytes);
    let mut uniform = || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform();
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(count);
    values
}

/// How often each distinct answer was given, in the order of their first samples.
fn counts<T: PartialEq>(answers: &[T]) -> Vec<(usize, usize)> {
    let mut counts: Vec<(usize, usize)> = Vec::new();
    for (sample, answer) in answers.iter().enumerate() {
        match counts
            .iter_mut()
            .find(|(first, _)| answers[*first] == *answer)
        {
            Some((_, count)) => *count += 1,
            None => counts.push((sample, 1)),
        }
    }
    counts
}

/// Entropy, in nats, of the shares of distinct answers (semantic entropy, with equal token ids as equal
/// meaning); 0 where all agree.
pub fn disagreement<T: PartialEq>(answers: &[T]) -> f64 {
    let all = answers.len() as f64;
    let shares = counts(answers)
        .into_iter()
        .map(|(_, count)| count as f64 / all);
    // 0 rather than -0 where all agree.
    shares
        .map(|share| -share * share.ln())
        .sum::<f64>()
        .max(0.0)
}

/// The first sample that gave the commonest answer, of equally common ones the one first given.
pub fn winner<T: PartialEq>(answers: &[T]) -> usize {
    let best = |best: (usize, usize), next: (usize, usize)| match next.1 > best.1 {
        true => next,
        false => best,
    };
    let counted = counts(answers).into_iter();
    counted.reduce(best).map_or(0, |(first, _)| first)
}

/// `rows` of `states` `[batch, 1, d_model]`, in this order.
fn picked(states: Tensor<3>, rows: &[usize]) -> Tensor<3> {
    let order: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let order = Tensor::<1, Int>::from_data(order.as_slice(), &states.device());
    states.select(0, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_by_hand() {
        let answers =
            |ids: &[u32]| -> Vec<Vec<u32>> { ids.iter().map(|&id| vec![9, id]).collect() };
        let ln2 = std::f64::consts::LN_2;
        for (ids, entropy, first) in [
            (&[4, 4, 4][..], 0.0, 0),
            (&[4], 0.0, 0),
            (&[5, 4, 4, 5], ln2, 0),
            (&[5, 4, 4, 6], 1.5 * ln2, 1),
            (&[6, 5, 4, 7], 2.0 * ln2, 0),
        ] {
            let found = disagreement(&answers(ids));
            assert!((found - entropy).abs() < 1e-12, "{ids:?}: {found}");
            assert!(found.is_sign_positive());
            assert_eq!(winner(&answers(ids)), first, "{ids:?}");
        }
        assert_eq!(winner::<u32>(&[]), 0);
    }

    #[test]
    fn noise_is_standard_normal_and_differs_by_everything() {
        let n = 100_000;
        let drawn = noise(1, 2, 3, 4, n);
        let mean = drawn.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let square = drawn.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        // Standard errors are 0.0032 and 0.0045; five of each.
        assert!(
            mean.abs() < 0.016 && (square - 1.0).abs() < 0.023,
            "{mean}, {square}"
        );
        assert_eq!(drawn[..7], noise(1, 2, 3, 4, 7));
        for (seed, key, sample, slot) in [(2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)] {
            assert_ne!(drawn[..7], noise(seed, key, sample, slot, 7));
        }
    }
}
