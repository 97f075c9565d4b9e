//! Where the inputs of latent steps come from while training, and which of them leave early.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::latent::{Correction, LatentBatch, Rollout, SlotLabel};

/// Where the inputs of latent steps come from in stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Feeding {
    /// The teacher, in every batch (arXiv 2505.18962, section 2.2).
    TeacherForced,
    /// The student itself, in every batch.
    FreeRunning,
    /// The teacher at first, the student at last, and between them a share of batches that rises
    /// linearly. The student's states are inputs only: nothing is propagated back through them.
    Ramp {
        /// Fraction of all steps up to which every batch is the teacher's.
        start: f64,
        /// Fraction of all steps from which every batch is the student's.
        end: f64,
    },
    /// The student, with the teacher's state in place of each that the head reads wrongly; the
    /// student alone towards the end. An extension of the paper: the schedule follows from what the
    /// student can do.
    Corrected {
        /// Fraction of all steps from which nothing is corrected any more.
        until: f64,
    },
}

impl Default for Feeding {
    fn default() -> Self {
        Self::Corrected { until: 0.7 }
    }
}

/// Whether some latent steps leave early in stage 1 already, so that later steps learn to live
/// without their keys and values. An extension of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExitDropout {
    /// As printed.
    Never,
    /// In some batches in which the student feeds itself, padding leaves at boundary 1, and
    /// independent steps do with a probability `independent min(1, 2u)`, `u` uniform per batch.
    Late {
        /// Fraction of all steps before which there is none.
        start: f64,
        /// Share of those batches after that.
        share: f64,
        /// Greatest probability with which an independent step leaves.
        independent: f64,
    },
}

impl Default for ExitDropout {
    fn default() -> Self {
        Self::Late {
            start: 0.75,
            share: 0.5,
            independent: 0.0,
        }
    }
}

impl Feeding {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Ramp { start, end } if !(0.0 <= *start && start <= end && *end <= 1.0) => Some((
                "feeding",
                format!("0 <= start <= end <= 1 does not hold for {start} and {end}"),
            )),
            Self::Corrected { until } if !(0.0..=1.0).contains(until) => {
                Some(("feeding", format!("until {until} must lie in [0, 1]")))
            }
            _ => None,
        }
    }
}

impl ExitDropout {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Late {
                start,
                share,
                independent,
            } => [
                ("start", start),
                ("share", share),
                ("independent", independent),
            ]
            .into_iter()
            .find(|(_, value)| !(0.0..=1.0).contains(*value))
            .map(|(key, value)| ("exit_dropout", format!("{key} {value} must lie in [0, 1]"))),
            Self::Never => None,
        }
    }
}

/// The rollout of optimizer step `step` of `steps`: a function of the seed, the same for all parts of
/// the step.
pub fn rollout(feeding: Feeding, exits: ExitDropout, seed: u64, step: u64, steps: u64) -> Rollout {
    let mut draws = generator(seed, step, b"rollouts");
    let [first, second] = [uniform(&mut draws), uniform(&mut draws)];
    let exit_seed = draws.next_u64();
    let done = step as f64 / steps.max(1) as f64;
    let free = match feeding {
        Feeding::TeacherForced => 0.0,
        Feeding::FreeRunning | Feeding::Corrected { .. } => 1.0,
        Feeding::Ramp { start, .. } if done < start => 0.0,
        Feeding::Ramp { end, .. } if done >= end => 1.0,
        Feeding::Ramp { start, end } => (done - start) / (end - start),
    };
    if first >= free {
        return Rollout::TeacherForced;
    }
    Rollout::Student {
        correction: match feeding {
            Feeding::Corrected { until } if done < until => Correction::WhereWrong,
            _ => Correction::Never,
        },
        exits: match exits {
            ExitDropout::Late { start, share, .. } if done >= start && second < share => {
                Some(exit_seed)
            }
            _ => None,
        },
    }
}

/// The rollout of stage 2: the student's own states, exits drawn anew in every step.
pub fn exits_drawn(seed: u64, step: u64) -> Rollout {
    Rollout::Student {
        correction: Correction::Never,
        exits: Some(generator(seed, step, b"shortcut").next_u64()),
    }
}

/// The boundary at which each latent step of `[batch, slots]` leaves, if it is to leave early.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    slots: usize,
    boundaries: Vec<Option<usize>>,
}

impl Leaves {
    /// From a decision per row and latent step; the last one of a row stays.
    pub fn new(
        batch: &LatentBatch,
        mut decide: impl FnMut(Option<SlotLabel>) -> Option<usize>,
    ) -> Self {
        let slots = batch.slots;
        let boundaries = (0..batch.batch)
            .flat_map(|row| (0..slots).map(move |slot| (row, slot)))
            .map(|(row, slot)| {
                let label = batch.labels[row * (slots + 1) + slot + 1];
                decide(label).filter(|_| !batch.is_last(row, slot))
            })
            .collect();
        Self { slots, boundaries }
    }

    /// Exit dropout of stage 1; independent steps leave with a probability of at most `independent`.
    pub fn dropout(batch: &LatentBatch, seed: u64, independent: f64) -> Self {
        let mut draws = generator(seed, 0, b"dropouts");
        let probability = independent * (2.0 * uniform(&mut draws)).min(1.0);
        Self::new(batch, |label| {
            let draw = uniform(&mut draws);
            match label {
                Some(SlotLabel::Padding) => Some(1),
                Some(SlotLabel::Independent) if draw < probability => Some(1),
                _ => None,
            }
        })
    }

    /// Whether a latent step that stands at `boundary` leaves there.
    pub fn leaves(&self, row: usize, slot: usize, boundary: usize) -> bool {
        // A step that entered above the boundary meant for it leaves where it is.
        self.boundaries[row * self.slots + slot].is_some_and(|leave| boundary >= leave)
    }
}

/// A stream of its own for every step and purpose; the key is written out, because the expansion of
/// a 64-bit seed is not promised to stay the same between library versions.
pub fn generator(seed: u64, step: u64, purpose: &[u8; 8]) -> ChaCha8Rng {
    let mut key = *b"................latent, v 1.....";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&step.to_le_bytes());
    key[24..].copy_from_slice(purpose);
    ChaCha8Rng::from_seed(key)
}

/// A number in [0, 1).
pub fn uniform(draws: &mut ChaCha8Rng) -> f64 {
    (draws.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
