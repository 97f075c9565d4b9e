//! A curriculum from words to thoughts: in stage `s` the first `s` steps of the chain of thought are gone,
//! and thoughts stand in their place (Coconut, arXiv 2412.06769, section 3).
//!
//! A thought is a latent step. What it is fed tells Coconut from its controls ([`Thought`]). The steps that
//! are left, and the answer, are trained by cross-entropy, and that loss is propagated back through all
//! thoughts. What else may teach them: the same weights on the chain of thought (CODI, [`Distillation`]), and
//! a decoder that has to say the steps that are gone (SIM-CoT, [`StepSupervision`]).

mod objective;
mod pass;
mod rows;
mod teaching;

use serde::{Deserialize, Serialize};
use sesqui_dataset::encode::EncodedProblem;
use sesqui_model::latent::{Continuation, Feedback, LatentOrder, SlotPositions};

use crate::rollout::{generator, uniform};

pub use objective::Curriculum;
pub use pass::{ThoughtStates, thought_pass};
pub use rows::{Replaced, ThoughtBatch, ThoughtProblem};
pub use teaching::{Distillation, StateScale, StepSupervision, dictated, distillation_loss};

/// A curriculum as a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CurriculumConfig {
    /// What stands in place of a step.
    pub thought: Thought,
    /// Steps that thoughts can stand for: the greatest stage. 0: as many as the longest chain of thought of
    /// the training split has.
    pub stages: usize,
    /// Thoughts for each step that is gone.
    pub thoughts_per_step: usize,
    /// Which stage an update belongs to.
    pub schedule: StageSchedule,
    /// What becomes of steps beyond the greatest stage.
    pub remainder: Remainder,
    /// Thoughts of problems that have fewer steps than the stage takes away.
    pub padding: ThoughtPadding,
    /// Share of rows whose stage is drawn, each of all stages alike, whatever stage it is.
    pub uniform_probability: f64,
    /// Position ids of thoughts, and with them of the text after.
    pub positions: SlotPositions,
    /// What follows the thoughts when the model is asked.
    pub continuation: Continuation,
    /// When the optimizer forgets its moments.
    pub reset_optimizer: ResetOptimizer,
    // What follows is written out only where it is set: the configuration of a run that is older stays the
    // same, and the run can be resumed.
    /// In which order thoughts are computed.
    #[serde(skip_serializing_if = "LatentOrder::is_sequential")]
    pub order: LatentOrder,
    /// Whether the chain of thought teaches.
    #[serde(skip_serializing_if = "Distillation::is_none")]
    pub distillation: Distillation,
    /// Whether thoughts must say the steps that they stand for.
    #[serde(skip_serializing_if = "StepSupervision::is_none")]
    pub step_supervision: StepSupervision,
}

/// What stands in place of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Thought {
    /// The model's newest state, as it is: a continuous thought.
    #[default]
    State,
    /// The same through a trained linear map, which starts as a multiple of the identity; not in the
    /// paper.
    Linear {
        /// The multiple.
        scale: f64,
    },
    /// The same through a trained map with a hidden layer (CODI, arXiv 2502.21074).
    Projection {
        /// Its width; 0 stands for that of the model.
        #[serde(default)]
        width: usize,
    },
    /// A trained vector: a pause token (arXiv 2310.02226).
    Pause,
    /// The state of the question's last token: a pause vector that depends on the question.
    FirstState,
    /// Nothing: steps go, and nothing takes their place.
    None,
}

impl Thought {
    /// Whether a thought is made of the state before it.
    pub fn is_recurrent(self) -> bool {
        match self {
            Self::State | Self::Linear { .. } | Self::Projection { .. } => true,
            Self::Pause | Self::FirstState | Self::None => false,
        }
    }

    /// What latent steps are fed; `None` where there are none.
    pub fn feedback(self) -> Option<Feedback> {
        match self {
            Self::State => Some(Feedback::State),
            Self::Linear { scale } => Some(Feedback::Linear { scale }),
            Self::Projection { width } => Some(Feedback::Projection { width }),
            Self::Pause => Some(Feedback::Pause),
            Self::FirstState => Some(Feedback::FirstState),
            Self::None => None,
        }
    }
}

/// Which stage an update belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StageSchedule {
    /// Stage after stage; the last one lasts to the end.
    Staged {
        /// The stage to begin with; 0 is the whole chain of thought.
        #[serde(default = "one")]
        first: usize,
        /// Updates for each stage; 0 divides all of them evenly.
        #[serde(default)]
        updates: u64,
    },
    /// The last stage from the first update on: no curriculum.
    Last,
}

fn one() -> usize {
    1
}

impl Default for StageSchedule {
    fn default() -> Self {
        Self::Staged {
            first: 1,
            updates: 0,
        }
    }
}

/// What becomes of the steps that no stage puts thoughts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// A last stage more takes them away too, without further thoughts.
    #[default]
    Removed,
    /// They stay in words.
    Kept,
}

/// Thoughts of a problem that has fewer steps than its stage takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThoughtPadding {
    /// As many as if it had them.
    #[default]
    Maximum,
    /// As many as it has steps for.
    None,
}

/// When the optimizer forgets its moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetOptimizer {
    /// Before the first update of every stage but the first, and only there.
    #[default]
    AtStages,
    /// Never.
    Never,
}

impl Default for CurriculumConfig {
    fn default() -> Self {
        Self {
            thought: Thought::default(),
            stages: 0,
            thoughts_per_step: 1,
            schedule: StageSchedule::default(),
            remainder: Remainder::default(),
            padding: ThoughtPadding::default(),
            uniform_probability: 0.0,
            positions: SlotPositions::default(),
            continuation: Continuation::Text,
            reset_optimizer: ResetOptimizer::default(),
            order: LatentOrder::default(),
            distillation: Distillation::default(),
            step_supervision: StepSupervision::default(),
        }
    }
}

impl CurriculumConfig {
    /// What is wrong with the settings, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        let fail = |key: &str, reason: String| Some((key.to_owned(), reason));
        if self.thoughts_per_step == 0 {
            let reason = "must be at least 1; for no thoughts at all set thought.kind = \"none\"";
            return fail("thoughts_per_step", reason.to_owned());
        }
        if !(0.0..=1.0).contains(&self.uniform_probability) {
            let reason = format!("{} is not in [0, 1]", self.uniform_probability);
            return fail("uniform_probability", reason);
        }
        match self.thought {
            Thought::Linear { scale } if !scale.is_finite() => {
                return fail("thought.scale", format!("{scale} is not a number"));
            }
            Thought::None if self.positions != SlotPositions::Contiguous => {
                let reason = "without thoughts text follows the question; leave it out";
                return fail("positions", reason.to_owned());
            }
            Thought::None if self.continuation != Continuation::Text => {
                let reason = "without thoughts the model writes all by itself; leave it out";
                return fail("continuation", reason.to_owned());
            }
            _ => {}
        }
        if let Some((key, reason)) = self.teaching_problem() {
            return fail(&key, reason);
        }
        match (self.positions, self.schedule) {
            (SlotPositions::Strided { stride: 0, .. }, _) => {
                let reason = "stride must be at least 1: thoughts need places of their own";
                fail("positions", reason.to_owned())
            }
            (_, StageSchedule::Staged { first, .. }) if self.stages > 0 && first > self.stages => {
                let reason = format!("{first} is beyond the last of {} stages", self.stages);
                fail("schedule.first", reason)
            }
            _ => None,
        }
    }

    /// What is wrong with how thoughts are computed and taught, if anything.
    fn teaching_problem(&self) -> Option<(String, String)> {
        let fail = |key: &str, reason: &str| Some((key.to_owned(), reason.to_owned()));
        match self.order {
            LatentOrder::Jacobi { iterations: 0 } => {
                return fail(
                    "order.iterations",
                    "must be at least 1; for one thought after another set order.kind = \"sequential\"",
                );
            }
            LatentOrder::Jacobi { .. } if !self.thought.is_recurrent() => {
                return fail(
                    "order",
                    "what these thoughts are fed does not change from one iteration to the next; leave it out",
                );
            }
            _ => {}
        }
        if !self.distillation.is_none() && self.thought == Thought::None {
            return fail(
                "distillation",
                "there are no thoughts to be taught; leave it out",
            );
        }
        if !self.step_supervision.is_none() && !self.thought.is_recurrent() {
            let reason = "these thoughts are fed nothing that could hold a step; set thought.kind to \"state\", \
                          \"linear\" or \"projection\"";
            return fail("step_supervision", reason);
        }
        let problem = self
            .distillation
            .problem()
            .or(self.step_supervision.problem());
        problem.map(|(key, reason)| (key.to_owned(), reason))
    }

    /// The curriculum of `updates` updates on `problems`.
    pub fn plan<'a>(
        &self,
        problems: impl IntoIterator<Item = &'a EncodedProblem>,
        updates: u64,
    ) -> CurriculumPlan {
        let steps = problems.into_iter().map(|problem| problem.steps.len());
        let longest = steps.max().unwrap_or(0).max(1);
        let stages = match self.stages {
            0 => longest,
            stages => stages,
        };
        let last = match self.remainder {
            Remainder::Removed if longest > stages => stages + 1,
            Remainder::Removed | Remainder::Kept => stages,
        };
        let (first, per_stage) = match self.schedule {
            StageSchedule::Last => (last, u64::MAX),
            StageSchedule::Staged { first, updates: 0 } => {
                let first = first.min(last);
                (first, (updates / (last - first + 1) as u64).max(1))
            }
            StageSchedule::Staged { first, updates } => (first.min(last), updates),
        };
        CurriculumPlan {
            stages,
            last,
            first,
            per_stage,
            thoughts_per_step: match self.thought {
                Thought::None => 0,
                _ => self.thoughts_per_step,
            },
            padding: self.padding,
            uniform_probability: self.uniform_probability,
            reset_optimizer: self.reset_optimizer,
        }
    }

    /// Settings that are counted in updates, for a training of `now` updates instead of `before`.
    pub fn rescale(&mut self, before: u64, now: u64) {
        if let StageSchedule::Staged { updates, .. } = &mut self.schedule
            && *updates > 0
        {
            *updates = (*updates * now / before.max(1)).max(1);
        }
    }
}

/// A curriculum, settled for a training split and a number of updates.
#[derive(Clone, Debug, PartialEq)]
pub struct CurriculumPlan {
    /// Steps that thoughts stand for at most.
    stages: usize,
    /// The last stage: that, or one more, in which no step is left.
    last: usize,
    first: usize,
    /// Updates for each stage but the last.
    per_stage: u64,
    thoughts_per_step: usize,
    padding: ThoughtPadding,
    uniform_probability: f64,
    reset_optimizer: ResetOptimizer,
}

impl CurriculumPlan {
    /// The last stage.
    pub fn last(&self) -> usize {
        self.last
    }

    /// Stages that some row may be in.
    pub fn visited(&self) -> std::ops::RangeInclusive<usize> {
        let first = match self.uniform_probability > 0.0 {
            true => 0,
            false => self.first,
        };
        first..=self.last
    }

    /// The stage of update `update`, counted from 0.
    pub fn stage_of(&self, update: u64) -> usize {
        let further = usize::try_from(update / self.per_stage).unwrap_or(usize::MAX);
        self.first.saturating_add(further).min(self.last)
    }

    /// The stage that a model is in after `updates` updates: that of the last of them.
    pub fn stage_after(&self, updates: u64) -> usize {
        self.stage_of(updates.saturating_sub(1))
    }

    /// Thoughts of stage `stage`, those of padding included.
    pub fn thoughts(&self, stage: usize) -> usize {
        stage.min(self.stages) * self.thoughts_per_step
    }

    /// Thoughts of the last stage.
    pub fn most_thoughts(&self) -> usize {
        self.thoughts(self.last)
    }

    /// What stage `stage` makes of a problem with `steps` steps.
    pub fn replaced(&self, stage: usize, steps: usize) -> Replaced {
        let places = match self.padding {
            ThoughtPadding::Maximum => stage,
            ThoughtPadding::None => stage.min(steps),
        };
        Replaced {
            steps: match stage > self.stages {
                true => steps,
                false => stage.min(steps),
            },
            thoughts: self.thoughts(places),
        }
    }

    /// From which update on there are how many thoughts, ascending.
    pub fn growth(&self) -> Vec<(u64, usize)> {
        let mut growth: Vec<(u64, usize)> = Vec::new();
        for stage in self.first..=self.last {
            let from = self.per_stage.saturating_mul((stage - self.first) as u64);
            let thoughts = self.thoughts(stage);
            if growth.last().is_none_or(|(_, before)| *before != thoughts) {
                growth.push((from, thoughts));
            }
        }
        growth
    }

    /// Whether the optimizer forgets its moments before update `update`.
    pub fn resets(&self, update: u64) -> bool {
        match self.reset_optimizer {
            ResetOptimizer::Never => false,
            ResetOptimizer::AtStages => {
                update > 0 && self.stage_of(update) != self.stage_of(update - 1)
            }
        }
    }

    /// The stages of the `rows` rows of update `update`: a function of the seed.
    pub fn stages_of_rows(&self, seed: u64, update: u64, rows: usize) -> Vec<usize> {
        let scheduled = self.stage_of(update);
        let mut draws = generator(seed, update, b"curricul");
        let mut stage = || {
            let [share, drawn] = [uniform(&mut draws), uniform(&mut draws)];
            match share < self.uniform_probability {
                true => (drawn * (self.last + 1) as f64) as usize,
                false => scheduled,
            }
        };
        (0..rows).map(|_| stage()).collect()
    }
}
