//! Training batches by number.

use std::ops::Range;

use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::{BatchConfig, BatchOrder, SequenceBatch};
use sesqui_dataset::encode::{EncodedProblem, PositionLayout, Sequence, Supervision, sequence};
use sesqui_model::Transformer;
use sesqui_model::latent::SlotPositions;
use sesqui_trainer::Batches;

use crate::curriculum::{CurriculumPlan, ThoughtBatch, ThoughtProblem};
use crate::icot::IcotPlan;
use crate::joint::JointBatch;
use crate::latent::{LatentBatch, LatentProblem, Rollout};
use crate::lessons::Lessons;

/// The rows of a step, cut into equal parts: part `index % parts` of step `index / parts`.
#[derive(Debug)]
pub struct StepOrder {
    order: BatchOrder,
    parts: u64,
}

impl StepOrder {
    /// An order over rows of these `lengths` in tokens.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of, or fewer rows in a step than parts.
    pub fn new(
        config: &BatchConfig,
        seed: u64,
        lengths: Vec<usize>,
        parts: u64,
    ) -> Result<Self, DatasetError> {
        let order = BatchOrder::new(config, seed, lengths)?;
        if (order.batch_size() as u64) < parts {
            return Err(DatasetError::Config(format!(
                "a step of {} rows cannot be computed in {parts} parts; lower \
                 training.accumulation",
                order.batch_size()
            )));
        }
        Ok(Self { order, parts })
    }

    /// The rows of batch `index`, counted from 0 over the whole of training.
    pub fn rows(&self, index: u64) -> Vec<u32> {
        let (rows, part) = self.within_step(index);
        rows[part].to_vec()
    }

    /// The rows of the whole step that batch `index` is a part of, and which of them are the batch: what
    /// is drawn row by row must not depend on the number of parts.
    pub fn within_step(&self, index: u64) -> (Vec<u32>, Range<usize>) {
        let (step, part) = self.place(index);
        let rows = self.order.batch_at(step);
        let cut = |part: u64| (rows.len() as u64 * part / self.parts) as usize;
        let part = cut(part)..cut(part + 1);
        (rows, part)
    }

    /// Step and part of batch `index`.
    pub fn place(&self, index: u64) -> (u64, u64) {
        (index / self.parts, index % self.parts)
    }

    /// Batches per pass over the data.
    pub fn per_epoch(&self) -> u64 {
        self.order.batches_per_epoch() * self.parts
    }
}

/// Sequences in an order that is a function of `(seed, batch number)`.
#[derive(Debug)]
pub struct SequenceBatches {
    sequences: Vec<Sequence>,
    identities: Vec<String>,
    order: StepOrder,
    pad: u32,
}

impl SequenceBatches {
    /// Batches of `sequences`; `identities` name their problems in error reports. The rows of one step
    /// come in `parts` batches.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of, or there are fewer rows in a step than parts.
    pub fn new(
        sequences: Vec<Sequence>,
        identities: Vec<String>,
        config: &BatchConfig,
        parts: u64,
        seed: u64,
        pad: u32,
    ) -> Result<Self, DatasetError> {
        let lengths = sequences
            .iter()
            .map(|sequence| sequence.ids.len())
            .collect();
        let order = StepOrder::new(config, seed, lengths, parts)?;
        Ok(Self {
            sequences,
            identities,
            order,
            pad,
        })
    }

    /// Which rows come when.
    pub fn order(&self) -> &StepOrder {
        &self.order
    }
}

impl Batches<SequenceBatch> for SequenceBatches {
    fn batch(&self, index: u64) -> Result<SequenceBatch, String> {
        SequenceBatch::collate(&self.sequences, &self.order.rows(index), self.pad)
            .map_err(|error| error.to_string())
    }

    fn per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        named(&self.identities, &self.order.rows(index))
    }
}

/// Problems with their latent steps, in an order that is a function of `(seed, batch number)`, and
/// with a rollout that is one of `(seed, step)`.
pub struct LatentBatches {
    problems: Vec<LatentProblem>,
    identities: Vec<String>,
    order: StepOrder,
    positions: SlotPositions,
    pad: u32,
    rollout: Box<dyn Fn(u64) -> Rollout + Send + Sync>,
    lessons: Option<Lessons>,
}

impl LatentBatches {
    /// Batches of `problems`; `identities` name them in error reports; `rollout` says for each
    /// optimizer step how latent steps get their inputs. The rows of one step come in `parts`
    /// batches.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of, or there are fewer rows in a step than parts.
    pub fn new(
        problems: Vec<LatentProblem>,
        identities: Vec<String>,
        config: &BatchConfig,
        parts: u64,
        seed: u64,
        positions: SlotPositions,
        pad: u32,
        rollout: impl Fn(u64) -> Rollout + Send + Sync + 'static,
    ) -> Result<Self, DatasetError> {
        let lengths = problems.iter().map(LatentProblem::length).collect();
        Ok(Self {
            order: StepOrder::new(config, seed, lengths, parts)?,
            problems,
            identities,
            positions,
            pad,
            rollout: Box::new(rollout),
            lessons: None,
        })
    }

    /// The problems, in the order of the training split.
    pub fn problems(&self) -> &[LatentProblem] {
        &self.problems
    }

    /// Lets `teacher`, off the autodiff tape, read every problem, once for all batches, as [`Lessons::new`] does.
    ///
    /// # Errors
    ///
    /// When a problem does not fit a batch.
    pub fn keep_lessons(
        &mut self,
        teacher: &Transformer,
        goes_on: &(dyn Fn(usize) -> bool + Sync),
    ) -> Result<(), DatasetError> {
        self.lessons = Lessons::new(teacher, &self.problems, self.pad, goes_on)?;
        Ok(())
    }
}

impl Batches<LatentBatch> for LatentBatches {
    fn batch(&self, index: u64) -> Result<LatentBatch, String> {
        let (step, part) = self.order.place(index);
        let rollout = (self.rollout)(step).of_part(part);
        let rows = self.order.rows(index);
        let batch = LatentBatch::collate(&self.problems, &rows, &self.positions, self.pad, rollout);
        let batch = batch.map_err(|error| error.to_string())?;
        let kept = |lessons: &Lessons| lessons.of(&self.problems, &rows, batch.slots + 1);
        Ok(LatentBatch {
            lesson: self.lessons.as_ref().map(kept),
            ..batch
        })
    }

    fn per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        named(&self.identities, &self.order.rows(index))
    }
}

/// [`LatentBatches`] for both stages at once, with a rollout of its own for the second.
pub struct JointBatches {
    align: LatentBatches,
    rollout: Box<dyn Fn(u64) -> Rollout + Send + Sync>,
}

impl JointBatches {
    /// `align` are the batches of stage 1; `rollout` says for each optimizer step how latent steps get
    /// their inputs in stage 2.
    pub fn new(
        align: LatentBatches,
        rollout: impl Fn(u64) -> Rollout + Send + Sync + 'static,
    ) -> Self {
        Self {
            align,
            rollout: Box::new(rollout),
        }
    }
}

impl Batches<JointBatch> for JointBatches {
    fn batch(&self, index: u64) -> Result<JointBatch, String> {
        let (step, part) = self.align.order.place(index);
        let rollout = (self.rollout)(step).of_part(part);
        Ok(JointBatch::new(self.align.batch(index)?, rollout))
    }

    fn per_epoch(&self) -> u64 {
        self.align.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        self.align.rows(index)
    }
}

/// Problems of a curriculum, in an order that is a function of `(seed, batch number)`, each in a stage that
/// is one of `(seed, step)`.
#[derive(Debug)]
pub struct ThoughtBatches {
    problems: Vec<ThoughtProblem>,
    order: StepOrder,
    plan: CurriculumPlan,
    seed: u64,
    positions: SlotPositions,
    pad: u32,
}

impl ThoughtBatches {
    /// Batches of `problems`; `plan` says in which stage each row of a step is. The rows of one step come in
    /// `parts` batches, ordered by the length of the whole chain of thought.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of, or there are fewer rows in a step than parts.
    pub fn new(
        problems: Vec<ThoughtProblem>,
        config: &BatchConfig,
        parts: u64,
        seed: u64,
        plan: CurriculumPlan,
        positions: SlotPositions,
        pad: u32,
    ) -> Result<Self, DatasetError> {
        let lengths = problems.iter().map(ThoughtProblem::length).collect();
        Ok(Self {
            order: StepOrder::new(config, seed, lengths, parts)?,
            problems,
            plan,
            seed,
            positions,
            pad,
        })
    }
}

impl Batches<ThoughtBatch> for ThoughtBatches {
    fn batch(&self, index: u64) -> Result<ThoughtBatch, String> {
        let (step, _) = self.order.place(index);
        let (rows, part) = self.order.within_step(index);
        let stages = self.plan.stages_of_rows(self.seed, step, rows.len());
        let laid_out = rows[part.clone()].iter().zip(&stages[part]);
        let rows: Vec<_> = laid_out
            .map(|(&row, &stage)| {
                let steps = self.problems[row as usize].steps();
                (row, self.plan.replaced(stage, steps))
            })
            .collect();
        ThoughtBatch::collate(&self.problems, &rows, &self.positions, self.pad)
            .map_err(|error| error.to_string())
    }

    fn per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        let rows = self.order.rows(index);
        let names = rows.iter().map(|&row| self.problems[row as usize].id());
        names.collect::<Vec<_>>().join(", ")
    }
}

/// How much of a chain of thought is left where nothing takes the place of what is gone.
#[derive(Clone, Debug)]
pub enum Cuts {
    /// Whole steps go, stage by stage.
    Steps(CurriculumPlan),
    /// Tokens go.
    Tokens(IcotPlan),
}

impl Cuts {
    /// What is left of `problems`, the rows of update `update`.
    pub fn left(
        &self,
        seed: u64,
        update: u64,
        problems: &[&EncodedProblem],
    ) -> Vec<EncodedProblem> {
        let rows = problems.len();
        match self {
            Self::Steps(plan) => {
                let stages = plan.stages_of_rows(seed, update, rows);
                let rows = problems.iter().zip(stages);
                rows.map(|(problem, stage)| without_steps(plan, problem, stage))
                    .collect()
            }
            Self::Tokens(plan) => {
                let removed = plan.removed_of_rows(seed, update, rows);
                let rows = problems.iter().zip(removed);
                rows.map(|(problem, removed)| plan.cut(problem, removed))
                    .collect()
            }
        }
    }

    /// What is left of `problem` for a model after `updates` updates, nothing drawn.
    pub fn left_after(&self, updates: u64, problem: &EncodedProblem) -> EncodedProblem {
        match self {
            Self::Steps(plan) => without_steps(plan, problem, plan.stage_after(updates)),
            Self::Tokens(plan) => plan.cut(problem, plan.removed_after(updates)),
        }
    }

    /// Whether the optimizer forgets its moments before update `update`.
    pub fn resets(&self, update: u64) -> bool {
        match self {
            Self::Steps(plan) => plan.resets(update),
            Self::Tokens(plan) => plan.resets(update),
        }
    }
}

fn without_steps(plan: &CurriculumPlan, problem: &EncodedProblem, stage: usize) -> EncodedProblem {
    let gone = plan.replaced(stage, problem.steps.len()).steps;
    problem.with_steps(|number| number >= gone)
}

/// Problems in words, in an order that is a function of `(seed, batch number)`, of whose chains of thought
/// less is left from step to step.
#[derive(Debug)]
pub struct CutBatches {
    problems: Vec<EncodedProblem>,
    order: StepOrder,
    seed: u64,
    layout: PositionLayout,
    pad: u32,
    cuts: Cuts,
}

impl CutBatches {
    /// Batches of `problems`, cut as `cuts` says. The rows of one step come in `parts` batches, ordered by
    /// the length of the whole chain.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of, or there are fewer rows in a step than parts.
    pub fn new(
        problems: Vec<EncodedProblem>,
        config: &BatchConfig,
        parts: u64,
        seed: u64,
        cuts: Cuts,
        layout: PositionLayout,
        pad: u32,
    ) -> Result<Self, DatasetError> {
        let length = |problem: &EncodedProblem| problem.length(Supervision::ChainOfThought);
        let lengths = problems.iter().map(length).collect();
        Ok(Self {
            order: StepOrder::new(config, seed, lengths, parts)?,
            problems,
            seed,
            layout,
            pad,
            cuts,
        })
    }
}

impl Batches<SequenceBatch> for CutBatches {
    fn batch(&self, index: u64) -> Result<SequenceBatch, String> {
        let (step, _) = self.order.place(index);
        let (rows, part) = self.order.within_step(index);
        let problems = rows.iter().map(|&row| &self.problems[row as usize]);
        let problems: Vec<&EncodedProblem> = problems.collect();
        let left = self.cuts.left(self.seed, step, &problems);
        let batch = words(&left[part.clone()], self.layout, self.pad);
        let mut batch = batch.map_err(|error| error.to_string())?;
        batch.problems = rows[part].to_vec();
        Ok(batch)
    }

    fn per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        let rows = self.order.rows(index);
        let names = rows.iter().map(|&row| &*self.problems[row as usize].id);
        names.collect::<Vec<_>>().join(", ")
    }
}

/// One batch of `problems` in words: whatever is left of their chains of thought, and the answer.
///
/// # Errors
///
/// When there are none, or a question is longer than an aligned layout allows.
pub fn words(
    problems: &[EncodedProblem],
    layout: PositionLayout,
    pad: u32,
) -> Result<SequenceBatch, DatasetError> {
    let sequences = problems
        .iter()
        .map(|problem| sequence(problem, Supervision::ChainOfThought, layout))
        .collect::<Result<Vec<Sequence>, _>>()?;
    let rows: Vec<u32> = (0..sequences.len() as u32).collect();
    SequenceBatch::collate(&sequences, &rows, pad)
}

fn named(identities: &[String], rows: &[u32]) -> String {
    let names: Vec<&str> = rows
        .iter()
        .filter_map(|&row| identities.get(row as usize).map(String::as_str))
        .collect();
    names.join(", ")
}
