//! A head that learns how many latent steps a question needs, over a model whose weights do not move.
//!
//! LAPO (arXiv 2507.15758) learns lengths by reinforcement. There are so few numbers of latent steps that
//! all of them can be tried: the label of a question is the smallest number after which its answer is right,
//! the most where none is, and the head learns it from the state before the first step, by cross-entropy.

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};
use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::BatchConfig;
use sesqui_model::latent::LatentTransformer;
use sesqui_shortcut::{Shortcuts, StepHead};
use sesqui_trainer::{Batches, StepOutput};

use crate::align::learned;
use crate::batches::StepOrder;

/// The stage as a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HaltStageConfig {
    /// Training questions, spread over the split, that every number of steps is tried on; 0 means all.
    pub questions: usize,
    /// Width of the head's hidden layer; 0 for none.
    pub hidden: usize,
}

impl Default for HaltStageConfig {
    fn default() -> Self {
        Self {
            questions: 5_000,
            hidden: 32,
        }
    }
}

/// A student, its shortcuts if it has some, and the head that is trained.
#[derive(Module, Debug)]
pub struct Halt {
    /// The student; stays as it is, bit for bit.
    pub student: LatentTransformer,
    /// Its routers and adapters; stay as they are.
    pub shortcuts: Option<Shortcuts>,
    /// What is trained.
    pub head: StepHead,
}

const NAMES: &[&str] = &["loss", "hits"];

impl Halt {
    /// `head` over a frozen model.
    pub fn new(student: LatentTransformer, shortcuts: Option<Shortcuts>, head: StepHead) -> Self {
        Self {
            student: student.no_grad(),
            shortcuts: shortcuts.map(Shortcuts::no_grad),
            head,
        }
    }

    /// Mean cross-entropy of the labels, and the share of questions whose label is the likeliest number:
    /// `[2]`.
    fn losses(&self, batch: &HaltBatch) -> Tensor<1> {
        let device = self.head.output.weight.val().device();
        let labels: Vec<i32> = batch.labels.iter().map(|&label| label as i32 - 1).collect();
        let rows = labels.len();
        let labels = Tensor::<1, Int>::from_data(labels.as_slice(), &device);
        let logits = self.head.logits(batch.states(&device));
        let steps = logits.dims()[2];
        let logits = logits.reshape([rows, steps]);
        let picked = logits.clone().detach().argmax(1).reshape([rows]);
        let hits = picked.equal(labels.clone()).float().mean();
        let likely = log_softmax(logits, 1).gather(1, labels.reshape([rows, 1]));
        Tensor::cat(vec![likely.mean().neg(), hits], 0)
    }
}

/// Questions with their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HaltBatch {
    /// States before the first latent step, `[rows, d_model]` row-major.
    pub states: Vec<f32>,
    /// The smallest sufficient number of latent steps of each, from 1.
    pub labels: Vec<usize>,
}

impl HaltBatch {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    fn states(&self, device: &Device) -> Tensor<3> {
        let rows = self.rows();
        let width = self.states.len() / rows.max(1);
        let data = TensorData::new(self.states.clone(), [rows, 1, width]);
        Tensor::from_data(data, device)
    }

    /// The questions `rows`.
    fn pick(&self, rows: &[u32]) -> Self {
        let width = self.states.len() / self.rows().max(1);
        let state = |&row: &u32| &self.states[row as usize * width..][..width];
        Self {
            states: rows
                .iter()
                .flat_map(|row| state(row).iter().copied())
                .collect(),
            labels: rows.iter().map(|&row| self.labels[row as usize]).collect(),
        }
    }
}

/// Batches of labelled questions.
#[derive(Debug)]
pub struct HaltBatches {
    all: HaltBatch,
    identities: Vec<String>,
    order: StepOrder,
}

impl HaltBatches {
    /// Batches of `all`; `identities` name the questions in error reports; `lengths` are theirs in tokens,
    /// by which rows may be grouped. The rows of one step come in `parts` batches.
    ///
    /// # Errors
    ///
    /// When there is nothing to make batches of, or there are fewer rows in a step than parts.
    pub fn new(
        all: HaltBatch,
        identities: Vec<String>,
        lengths: Vec<usize>,
        config: &BatchConfig,
        parts: u64,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        Ok(Self {
            order: StepOrder::new(config, seed, lengths, parts)?,
            all,
            identities,
        })
    }
}

impl Batches<HaltBatch> for HaltBatches {
    fn batch(&self, index: u64) -> Result<HaltBatch, String> {
        Ok(self.all.pick(&self.order.rows(index)))
    }

    fn per_epoch(&self) -> u64 {
        self.order.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        let rows = self.order.rows(index);
        let names = rows
            .iter()
            .filter_map(|&row| self.identities.get(row as usize));
        names.cloned().collect::<Vec<_>>().join(", ")
    }
}

impl TrainStep for Halt {
    type Input = HaltBatch;
    type Output = StepOutput;

    fn step(&self, batch: HaltBatch) -> TrainOutput<StepOutput> {
        learned(self, NAMES, self.losses(&batch), batch.rows())
    }
}

impl InferenceStep for Halt {
    type Input = HaltBatch;
    type Output = StepOutput;

    fn step(&self, batch: HaltBatch) -> StepOutput {
        StepOutput {
            names: NAMES,
            losses: self.losses(&batch),
            tokens: batch.rows(),
        }
    }
}
