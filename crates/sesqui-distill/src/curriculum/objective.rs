//! What a step of a curriculum minimises.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sesqui_model::latent::LatentOrder;
use sesqui_model::{LatentTransformer, Transformer};
use sesqui_trainer::StepOutput;

use super::pass::{ThoughtStates, thought_pass};
use super::teaching::{Distillation, StepSupervision, dictation_loss, distillation_loss};
use super::{CurriculumConfig, ThoughtBatch};
use crate::align::{learned, with_total};
use crate::loss::{layer_states, next_token_loss};
use crate::student::{gather, token_loss};

/// A student under a curriculum.
#[derive(Module, Debug)]
pub struct Curriculum {
    /// The student.
    pub student: LatentTransformer,
    /// Says the steps that thoughts stand for; no part of the model that is asked.
    pub decoder: Option<Transformer>,
    #[module(skip)]
    terms: Terms,
}

/// What is minimised.
#[derive(Clone, Debug)]
struct Terms {
    order: LatentOrder,
    thoughts_per_step: usize,
    distillation: Distillation,
    supervision: StepSupervision,
}

impl Curriculum {
    /// Trains `student` as `config` says.
    pub fn new(student: LatentTransformer, config: &CurriculumConfig) -> Self {
        let decoder = match config.step_supervision {
            StepSupervision::None => None,
            StepSupervision::Decoder { .. } => Some(student.backbone.clone().map(&mut Apart)),
        };
        Self {
            student,
            decoder,
            terms: Terms {
                order: config.order,
                thoughts_per_step: config.thoughts_per_step,
                distillation: config.distillation,
                supervision: config.step_supervision,
            },
        }
    }

    fn names(&self) -> &'static [&'static str] {
        match (&self.terms.distillation, &self.decoder) {
            (Distillation::None, None) => &["loss"],
            (Distillation::None, Some(_)) => &["loss", "text", "steps"],
            (Distillation::Codi { .. }, None) => &["loss", "text", "teacher", "states"],
            (Distillation::Codi { .. }, Some(_)) => &["loss", "text", "teacher", "states", "steps"],
        }
    }

    /// The total first, then its parts where there are several, `[names]`.
    fn losses(&self, batch: &ThoughtBatch) -> Tensor<1> {
        let states = thought_pass(&self.student, batch, self.terms.order);
        let mut parts = vec![(1.0, self.text_loss(&states, batch))];
        if let Distillation::Codi {
            teacher,
            states: weight,
            scale,
        } = self.terms.distillation
        {
            let backbone = &self.student.backbone;
            let chain = layer_states(backbone, &batch.chain);
            let distance = distillation_loss(backbone, &states, &chain, batch, scale);
            let top = chain.last().unwrap_or(&states.hidden).clone();
            parts.push((teacher, next_token_loss(backbone, top, &batch.chain)));
            parts.push((weight, distance));
        }
        if let (Some(decoder), StepSupervision::Decoder { weight }, Some(fed)) =
            (&self.decoder, self.terms.supervision, &states.fed)
        {
            let loss = dictation_loss(decoder, fed, batch, self.terms.thoughts_per_step);
            parts.push((weight, loss));
        } else if self.decoder.is_some() {
            parts.push((0.0, Tensor::zeros([1], &states.hidden.device())));
        }
        match parts.len() {
            1 => parts.remove(0).1,
            _ => with_total(parts),
        }
    }

    /// Cross-entropy of the text after the thoughts, mean nats per token, `[1]`.
    fn text_loss(&self, states: &ThoughtStates, batch: &ThoughtBatch) -> Tensor<1> {
        let picked = gather(states.hidden.clone(), &batch.loss_cells).unsqueeze_dim(0);
        let normed = self.student.backbone.final_norm(picked).squeeze_dim(0);
        let weights = vec![1.0; batch.targets.len()];
        token_loss(&self.student, normed, &batch.targets, &weights)
    }
}

/// Copies weights, so that what becomes of one copy is nothing to the other.
struct Apart;

impl ModuleMapper for Apart {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let asked = param.is_require_grad();
        let (_, tensor, mapper) = param.consume();
        let tensor = tensor.detach().set_require_grad(asked);
        Param::from_mapped_value(ParamId::new(), tensor, mapper)
    }
}

impl TrainStep for Curriculum {
    type Input = ThoughtBatch;
    type Output = StepOutput;

    fn step(&self, batch: ThoughtBatch) -> TrainOutput<StepOutput> {
        learned(self, self.names(), self.losses(&batch), batch.tokens)
    }
}

impl InferenceStep for Curriculum {
    type Input = ThoughtBatch;
    type Output = StepOutput;

    fn step(&self, batch: ThoughtBatch) -> StepOutput {
        StepOutput {
            names: self.names(),
            losses: self.losses(&batch),
            tokens: batch.tokens,
        }
    }
}
