//! Ending latent reasoning before its last step, row by row. No parameter changes.
//!
//! A row that has stopped takes part in no layer of the steps after. A row is looked at only where its
//! newest state came from the top: one that left its step early has handed on a state from inside the
//! layers, which nobody could read an answer from, and finishes that cycle first. After the last step there
//! is nothing to decide, and nobody looks.

mod config;
mod probe;
mod samples;

use sesqui_kernels::read;
use sesqui_shortcut::{HostStepHead, SlotTrace, Walk};

pub use config::{EntropyRule, Gain, HaltConfig, LearnedRule, Over, Pick, SamplesRule};
pub use probe::entropy;
pub(crate) use samples::sampled;
pub use samples::{disagreement, noise, winner};

use crate::decode::DecodedRow;
use crate::latent::LatentDecoding;
use crate::prompt::PromptError;
use probe::Watch;

/// What ends latent reasoning early.
#[derive(Clone, Copy, Debug)]
pub struct Halting<'a> {
    /// When.
    pub config: &'a HaltConfig,
    /// The head that [`HaltConfig::Learned`] asks.
    pub head: Option<&'a HostStepHead>,
    /// For each row the position id of its first token after the latent steps, after 1, 2, … steps; as
    /// many as there are steps.
    pub answer_after: &'a [Vec<i32>],
}

/// How it was decided when a row stops.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum HaltTrace {
    /// Nobody asked.
    #[default]
    None,
    /// Every look at the answer that it would give.
    Probes(Vec<Probe>),
    /// The head was asked once.
    Predicted {
        /// The number of steps picked, no more than there were to run.
        steps: usize,
        /// Probability of each number of steps, 1 first.
        probabilities: Vec<f64>,
    },
    /// Trajectories were compared.
    Samples(SampleTrace),
}

/// One look at the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Latent steps before it.
    pub after: usize,
    /// Entropy of the answer's first token, in nats.
    pub entropy: f64,
}

/// What the trajectories of a question did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleTrace {
    /// The steps of each.
    pub trajectories: Vec<Vec<SlotTrace>>,
    /// Their answers, each time they were asked.
    pub rounds: Vec<Round>,
    /// The one whose answer is given, from 0.
    pub winner: usize,
}

/// The answers of all trajectories of a question at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Latent steps before it.
    pub after: usize,
    /// Entropy, in nats, of the distinct answers.
    pub entropy: f64,
    /// Token ids, those that open the answer included, without the stop token.
    pub answers: Vec<DecodedRow>,
    /// Whether it decided about going on; if not, it came after the last step and is the answer.
    pub decides: bool,
}

impl Halting<'_> {
    /// Checks the configuration, and positions against `batch` rows of `plan`; `context` positions and
    /// `vocabulary` tokens are there.
    pub(crate) fn validate(
        &self,
        plan: &LatentDecoding<'_>,
        batch: usize,
        (context, vocabulary): (usize, usize),
    ) -> Result<(), PromptError> {
        let wrong = |reason: String| Err(PromptError::Halting(reason));
        if let Some((key, reason)) = self.config.problem() {
            return wrong(format!("{key}: {reason}"));
        }
        if plan.latent_steps == 0 {
            return wrong("there is no latent step to stop before; ask for one or more".to_owned());
        }
        if let (HaltConfig::Learned(_), None) = (self.config, self.head) {
            return wrong("it needs a trained head".to_owned());
        }
        if let HaltConfig::Entropy(EntropyRule { over, .. }) = self.config {
            let outside = match over {
                Over::Tokens { ids } => ids.iter().find(|id| **id as usize >= vocabulary),
                _ => None,
            };
            if let Some(id) = outside {
                return wrong(format!("over.ids: the model has no token {id}"));
            }
        }
        let (rows, steps) = (self.answer_after.len(), plan.latent_steps);
        if rows != batch || self.answer_after.iter().any(|row| row.len() != steps) {
            return wrong(format!(
                "there must be a position of the answer for each of {batch} rows and {steps} steps"
            ));
        }
        // One past the last position is fine for a token that is chosen but not fed.
        let limit = (context + 1).saturating_sub(plan.answer_start.len());
        let outside = |at: &&i32| !usize::try_from(**at).is_ok_and(|at| at < limit);
        match self.answer_after.iter().flatten().find(outside) {
            Some(at) => wrong(format!("answer position {at} is outside 0..{limit}")),
            None => Ok(()),
        }
    }
}

/// Decides for one batch.
pub(crate) enum Halter<'a> {
    /// All rows run all steps.
    Never,
    /// By looking at answers.
    Watching(Watch<'a>),
    /// By what the head said: for each row the number of steps, and the probabilities.
    Told(Vec<(usize, Vec<f64>)>),
}

impl<'a> Halter<'a> {
    /// For the rows of `walk`, of which no step was run yet. Reads their states to the host where a head
    /// is asked.
    pub(crate) fn new(
        halting: Option<&Halting<'a>>,
        plan: &LatentDecoding<'_>,
        walk: &Walk<'_>,
    ) -> Self {
        let Some(halting) = halting else {
            return Self::Never;
        };
        match (halting.config, halting.head) {
            (HaltConfig::Entropy(rule), _) => {
                Self::Watching(Watch::new(rule, halting.answer_after))
            }
            (HaltConfig::Learned(rule), Some(head)) => {
                let states = walk.states();
                let d_model = states.dims()[2];
                let values: Vec<f32> = read(states).iter::<f32>().collect();
                let told = values.chunks_exact(d_model).map(|state| {
                    let probabilities = head.probabilities(state);
                    let steps = rule.pick.steps(&probabilities).min(plan.latent_steps);
                    (steps, probabilities)
                });
                Self::Told(told.collect())
            }
            _ => Self::Never,
        }
    }

    /// Of which rows step `slot`, from 0, is known to be the last before it runs; `None` where that goes
    /// for all or none.
    pub(crate) fn last(&self, slot: usize, is_last: bool) -> Option<Vec<bool>> {
        match self {
            Self::Told(told) if !is_last => {
                Some(told.iter().map(|(steps, _)| slot + 1 >= *steps).collect())
            }
            _ => None,
        }
    }

    /// Stops rows after step `slot`, from 0, which is not the last.
    pub(crate) fn after(&mut self, slot: usize, walk: &mut Walk<'_>, answer_start: &[u32]) {
        let rows = match self {
            Self::Never => return,
            Self::Watching(watch) => watch.look(slot + 1, walk, answer_start),
            Self::Told(told) => {
                let done = |row: &usize| slot + 1 >= told[*row].0;
                (0..told.len()).filter(done).collect()
            }
        };
        walk.stop(&rows);
    }

    /// How often the decisions read from the device.
    pub(crate) fn reads(&self) -> usize {
        match self {
            Self::Never => 0,
            Self::Watching(watch) => watch.reads(),
            // All rows at once, before the first step.
            Self::Told(_) => 1,
        }
    }

    /// How it was decided, for each of `rows` rows.
    pub(crate) fn into_traces(self, rows: usize) -> Vec<HaltTrace> {
        match self {
            Self::Never => vec![HaltTrace::None; rows],
            Self::Watching(watch) => watch.into_traces(),
            Self::Told(told) => told
                .into_iter()
                .map(|(steps, probabilities)| HaltTrace::Predicted {
                    steps,
                    probabilities,
                })
                .collect(),
        }
    }
}
