//! What a step of a curriculum computes: thoughts one after another on the tape, then the text.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sesqui_model::latent::Source;
use sesqui_model::{KvCache, LatentTransformer, Visibility};
use sesqui_trainer::StepOutput;

use super::ThoughtBatch;
use crate::align::learned;
use crate::student::{gather, token_loss};

const NAMES: &[&str] = &["loss"];

/// A student under a curriculum.
#[derive(Module, Debug)]
pub struct Curriculum {
    /// The student.
    pub student: LatentTransformer,
}

impl Curriculum {
    /// Trains `student`.
    pub fn new(student: LatentTransformer) -> Self {
        Self { student }
    }

    /// Cross-entropy of the text after the thoughts, mean nats per token, `[1]`.
    fn loss(&self, batch: &ThoughtBatch) -> Tensor<1> {
        let hidden = thought_pass(&self.student, batch);
        let picked = gather(hidden, &batch.loss_cells).unsqueeze_dim(0);
        let normed = self.student.backbone.final_norm(picked).squeeze_dim(0);
        let weights = vec![1.0; batch.targets.len()];
        token_loss(&self.student, normed, &batch.targets, &weights)
    }
}

/// States before the final norm of a whole batch, `[batch, seq, d_model]`; at pads, and at thoughts that a
/// row does not have, anything.
///
/// Nothing is detached: under autodiff, a loss on the text reaches whatever a thought was made of.
pub fn thought_pass(student: &LatentTransformer, batch: &ThoughtBatch) -> Tensor<3> {
    let pass = Pass {
        student,
        batch,
        device: student.backbone.token_embedding.weight.val().device(),
    };
    match student.source() {
        _ if batch.slots == 0 => pass.at_once(),
        Source::Nothing => pass.at_once(),
        Source::Newest => pass.in_turns(1),
        Source::First => pass.in_turns(batch.slots),
    }
}

struct Pass<'a> {
    student: &'a LatentTransformer,
    batch: &'a ThoughtBatch,
    device: Device,
}

impl Pass<'_> {
    /// All columns together, where no thought waits for a state.
    fn at_once(&self) -> Tensor<3> {
        let (batch, backbone) = (self.batch, &self.student.backbone);
        let shape = [batch.batch, batch.seq];
        let after = batch.first_slot + batch.slots;
        let mut parts = vec![self.text(0..batch.first_slot)];
        if batch.slots > 0 {
            let d_model = backbone.config().d_model;
            let nothing = Tensor::zeros([batch.batch, batch.slots, d_model], &self.device);
            parts.push(self.thoughts(nothing, batch.first_slot..after));
        }
        if after < batch.seq {
            parts.push(self.text(after..batch.seq));
        }
        let visibility = Visibility::causal_padded(&batch.real, shape, &self.device);
        let context = backbone.context(self.upload(&batch.positions, 0..batch.seq), visibility);
        backbone.run_layers(0..backbone.layers.len(), Tensor::cat(parts, 1), &context)
    }

    /// The question, then thoughts, `width` at a time, each fed what came before, then the text, over a
    /// cache on the tape.
    fn in_turns(&self, width: usize) -> Tensor<3> {
        let (batch, backbone) = (self.batch, &self.student.backbone);
        let (first, after) = (batch.first_slot, batch.first_slot + batch.slots);
        let config = backbone.config();
        let mut cache = KvCache::new(config, batch.batch, batch.seq, &self.device);
        let mut run = |embedded: Tensor<3>, columns: Range<usize>| {
            let real = batch.columns(&batch.real, columns.clone());
            let positions = self.upload(&batch.positions, columns);
            let layers = 0..backbone.layers.len();
            backbone.run_layers_cached(layers, embedded, positions, &real, &mut cache)
        };
        let state = |hidden: &Tensor<3>| {
            let last = hidden.dims()[1] - 1;
            backbone.final_norm(hidden.clone().narrow(1, last, 1))
        };
        let question = run(self.text(0..first), 0..first);
        let asked = state(&question);
        let (mut newest, mut parts) = (asked.clone(), vec![question]);
        for start in (first..after).step_by(width.max(1)) {
            let columns = start..(start + width).min(after);
            let fed = self.student.fed(&asked, &newest).clone();
            let [rows, _, d_model] = fed.dims();
            let fed = fed.expand([rows, columns.len(), d_model]);
            let hidden = run(self.thoughts(fed, columns.clone()), columns);
            newest = state(&hidden);
            parts.push(hidden);
        }
        if after < batch.seq {
            parts.push(run(self.text(after..batch.seq), after..batch.seq));
        }
        Tensor::cat(parts, 1)
    }

    /// `H_0` of columns of tokens.
    fn text(&self, columns: Range<usize>) -> Tensor<3> {
        let ids = self.upload(&self.batch.ids, columns.clone());
        let positions = self.upload(&self.batch.positions, columns);
        self.student.backbone.embed(ids, positions)
    }

    /// `H_0` of columns of thoughts that are fed `states` `[batch, columns, d_model]`.
    fn thoughts(&self, states: Tensor<3>, columns: Range<usize>) -> Tensor<3> {
        let positions = self.upload(&self.batch.positions, columns);
        self.student.latent_inputs(states, positions)
    }

    fn upload(&self, list: &[i32], columns: Range<usize>) -> Tensor<2, Int> {
        let shape = [self.batch.batch, columns.len()];
        let values = self.batch.columns(list, columns);
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}

impl TrainStep for Curriculum {
    type Input = ThoughtBatch;
    type Output = StepOutput;

    fn step(&self, batch: ThoughtBatch) -> TrainOutput<StepOutput> {
        learned(self, NAMES, self.loss(&batch), batch.tokens)
    }
}

impl InferenceStep for Curriculum {
    type Input = ThoughtBatch;
    type Output = StepOutput;

    fn step(&self, batch: ThoughtBatch) -> StepOutput {
        StepOutput {
            names: NAMES,
            losses: self.loss(&batch),
            tokens: batch.tokens,
        }
    }
}
