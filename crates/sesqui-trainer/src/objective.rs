//! The seam between the loop and what a step means.

use burn::module::ModuleDisplay;
use burn::tensor::Tensor;
use burn::train::{InferenceStep, ItemLazy, LearnerModel, TrainStep};

/// What a step reports: its losses, still on the device but off the autodiff tape.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// Names of `losses`, the first being the sum that was minimised.
    pub names: &'static [&'static str],
    /// `[names.len()]`, so that one read fetches all.
    pub losses: Tensor<1>,
    /// Real (unpadded) tokens in the batch.
    pub tokens: usize,
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, burn_std::ExecutionError> {
        Ok(self)
    }
}

/// A Burn learner whose steps report [`StepOutput`]s. Implemented by implementing Burn's
/// [`TrainStep`] and [`InferenceStep`].
pub trait Objective:
    LearnerModel
    + ModuleDisplay
    + TrainStep<Output = StepOutput>
    + InferenceStep<Input = <Self as TrainStep>::Input, Output = StepOutput>
{
}

impl<M> Objective for M where
    M: LearnerModel
        + ModuleDisplay
        + TrainStep<Output = StepOutput>
        + InferenceStep<Input = <M as TrainStep>::Input, Output = StepOutput>
{
}

/// Where batches come from: a pure function of their number, so that resuming needs no more.
pub trait Batches<B> {
    /// Batch number `index`, counted from 0 over the whole of training.
    ///
    /// # Errors
    ///
    /// A sentence about what is wrong with the data.
    fn batch(&self, index: u64) -> Result<B, String>;

    /// Batches per pass over the data, for display.
    fn per_epoch(&self) -> u64;

    /// Which rows are in batch `index`, for the report of a step that went wrong.
    fn rows(&self, index: u64) -> String;
}
