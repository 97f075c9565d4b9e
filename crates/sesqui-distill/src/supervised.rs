//! Supervised fine-tuning: next-token prediction on the chain of thought and the answer, or on the
//! answer alone. Which of the two is in the batch's weights.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_model::Transformer;
use sesqui_trainer::StepOutput;

use crate::loss::{hidden_states, next_token_loss};

/// A backbone under supervised fine-tuning.
#[derive(Module, Debug)]
pub struct Supervised {
    /// The model being trained.
    pub backbone: Transformer,
}

impl Supervised {
    /// Trains `backbone`.
    pub fn new(backbone: Transformer) -> Self {
        Self { backbone }
    }

    fn loss(&self, batch: &SequenceBatch) -> Tensor<1> {
        let hidden = hidden_states(&self.backbone, batch);
        next_token_loss(&self.backbone, hidden, batch)
    }
}

fn output(loss: Tensor<1>, batch: &SequenceBatch) -> StepOutput {
    StepOutput {
        names: &["loss"],
        losses: loss,
        tokens: batch.tokens,
    }
}

impl TrainStep for Supervised {
    type Input = SequenceBatch;
    type Output = StepOutput;

    fn step(&self, batch: SequenceBatch) -> TrainOutput<StepOutput> {
        let loss = self.loss(&batch);
        let gradients = loss.backward();
        TrainOutput::new(self, gradients, output(loss.inner(), &batch))
    }
}

impl InferenceStep for Supervised {
    type Input = SequenceBatch;
    type Output = StepOutput;

    fn step(&self, batch: SequenceBatch) -> StepOutput {
        output(self.loss(&batch), &batch)
    }
}
