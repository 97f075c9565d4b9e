//! Training batches by number.

use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::{BatchConfig, BatchOrder, SequenceBatch};
use sesqui_dataset::encode::Sequence;
use sesqui_model::latent::SlotPositions;
use sesqui_trainer::Batches;

use crate::joint::JointBatch;
use crate::latent::{LatentBatch, LatentProblem, Rollout};

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
        let rows = self.order.batch_at(index / self.parts);
        let cut = |part: u64| (rows.len() as u64 * part / self.parts) as usize;
        let part = index % self.parts;
        rows[cut(part)..cut(part + 1)].to_vec()
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
        })
    }
}

impl Batches<LatentBatch> for LatentBatches {
    fn batch(&self, index: u64) -> Result<LatentBatch, String> {
        let (step, part) = self.order.place(index);
        let rollout = (self.rollout)(step).of_part(part);
        let rows = self.order.rows(index);
        LatentBatch::collate(&self.problems, &rows, &self.positions, self.pad, rollout)
            .map_err(|error| error.to_string())
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

fn named(identities: &[String], rows: &[u32]) -> String {
    let names: Vec<&str> = rows
        .iter()
        .filter_map(|&row| identities.get(row as usize).map(String::as_str))
        .collect();
    names.join(", ")
}
