//! What teaches thoughts beside the text that follows them: the chain of thought, or the steps themselves.

use burn::nn::loss::{Reduction, SmoothL1LossConfig};
use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sesqui_kernels::cross_entropy;
use sesqui_model::{Transformer, Visibility};

use super::ThoughtBatch;
use super::pass::ThoughtStates;
use crate::student::{constant_like, gather};

/// Whether the chain of thought teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Distillation {
    /// It does not.
    #[default]
    None,
    /// The same weights read the chain of thought, which they go on learning, and the state of the token
    /// before the answer is brought to what it is there, in every layer (CODI, arXiv 2502.21074, section 3).
    Codi {
        /// Weight of the loss on the chain of thought: `alpha`.
        #[serde(default = "one")]
        teacher: f64,
        /// Weight of the smooth L1 loss between the states: `gamma`. No gradient goes into the chain of
        /// thought through it.
        #[serde(default = "one")]
        states: f64,
        /// What the difference of a layer is divided by.
        #[serde(default)]
        scale: StateScale,
    },
}

fn one() -> f64 {
    1.0
}

/// What the loss between the states of a layer is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateScale {
    /// The standard deviation of the teacher's states of the batch in that layer.
    #[default]
    StandardDeviation,
    /// Nothing.
    One,
}

impl Distillation {
    /// Whether nothing is distilled.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let Self::Codi {
            teacher, states, ..
        } = *self
        else {
            return None;
        };
        let weights = [
            ("distillation.teacher", teacher),
            ("distillation.states", states),
        ];
        weights.into_iter().find_map(|(key, weight)| {
            let wrong = !weight.is_finite() || weight < 0.0;
            wrong.then(|| (key, format!("{weight} is not a weight; give 0 or more")))
        })
    }
}

/// Whether thoughts must say the steps that they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StepSupervision {
    /// They need not.
    #[default]
    None,
    /// A second model, which starts as a copy of the backbone and is dropped after training, reads what the
    /// thoughts of a step were fed and has to say that step (SIM-CoT, arXiv 2509.20317).
    Decoder {
        /// Weight of its loss.
        #[serde(default = "one")]
        weight: f64,
    },
}

impl StepSupervision {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        match *self {
            Self::Decoder { weight } if !weight.is_finite() || weight <= 0.0 => {
                let reason = format!("{weight} is not a weight; give more than 0");
                Some(("step_supervision.weight", reason))
            }
            Self::Decoder { .. } | Self::None => None,
        }
    }
}

/// Mean over layers of the smooth L1 distance between the student's and the teacher's states before the
/// answer, `[1]`. Gradients reach the student's side alone.
///
/// `chain` are the teacher's states after each layer, `[batch, chain, d_model]`. Those of the last layer are
/// compared after the final norm, all others before it.
pub fn distillation_loss(
    backbone: &Transformer,
    student: &ThoughtStates,
    chain: &[Tensor<3>],
    batch: &ThoughtBatch,
    scale: StateScale,
) -> Tensor<1> {
    let after = batch.first_slot + batch.slots;
    let text = batch.seq - after;
    // Columns of the text alone.
    let cells: Vec<i32> = batch
        .answer_cells
        .iter()
        .map(|&cell| {
            let (row, column) = (cell as usize / batch.seq, cell as usize % batch.seq);
            (row * text + column - after) as i32
        })
        .collect();
    let loss = SmoothL1LossConfig::new().init();
    let layers = backbone.layers.len();
    let mut sum: Option<Tensor<1>> = None;
    for (layer, (found, wanted)) in student.text.iter().zip(chain).enumerate() {
        let mut found = gather(found.clone(), &cells);
        let mut wanted = gather(wanted.clone(), &batch.chain_answer_cells);
        if layer + 1 == layers {
            let normed = |states: Tensor<2>| -> Tensor<2> {
                backbone.final_norm(states.unsqueeze_dim(0)).squeeze_dim(0)
            };
            (found, wanted) = (normed(found), normed(wanted));
        }
        let wanted = constant_like(wanted, &found.device());
        let distance = loss.forward_with_reduction(found, wanted.clone(), Reduction::Mean);
        let distance = match scale {
            StateScale::One => distance,
            StateScale::StandardDeviation => {
                let values = wanted.shape().num_elements();
                let spread = wanted.reshape([1, values]).var(1).sqrt().reshape([1]);
                distance / spread
            }
        };
        sum = Some(match sum {
            Some(sum) => sum + distance,
            None => distance,
        });
    }
    let sum = sum.unwrap_or_else(|| Tensor::zeros([1], &student.hidden.device()));
    sum.div_scalar(layers as f64)
}

/// A step that is gone, and the thoughts that stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dictated<'a> {
    /// Row of the batch.
    pub row: usize,
    /// Its first thought.
    pub first: usize,
    /// Its tokens.
    pub tokens: &'a [i32],
}

/// The steps of a batch that thoughts stand for, `thoughts_per_step` for each.
pub fn dictated(batch: &ThoughtBatch, thoughts_per_step: usize) -> Vec<Dictated<'_>> {
    let mut found = Vec::new();
    for (row, steps) in batch.gone.iter().enumerate() {
        for (step, tokens) in steps.iter().enumerate() {
            let first = step * thoughts_per_step;
            let stands = first + thoughts_per_step <= batch.thoughts[row];
            if stands && !tokens.is_empty() {
                found.push(Dictated { row, first, tokens });
            }
        }
    }
    found
}

/// Cross-entropy of the steps that thoughts stand for, mean nats per token, `[1]`: `decoder` reads what the
/// thoughts of a step were fed, of `fed` `[batch, slots, d_model]`, then the step. Thoughts that stand for no
/// step have none to say.
pub(super) fn dictation_loss(
    decoder: &Transformer,
    fed: &Tensor<3>,
    batch: &ThoughtBatch,
    thoughts_per_step: usize,
) -> Tensor<1> {
    let device = fed.device();
    let steps = dictated(batch, thoughts_per_step);
    let Some(longest) = steps.iter().map(|step| step.tokens.len()).max() else {
        return Tensor::zeros([1], &device);
    };
    let (rows, width) = (steps.len(), thoughts_per_step);
    let seq = width + longest - 1;
    let upload = |values: Vec<i32>, shape: [usize; 2]| {
        Tensor::<2, Int>::from_data(TensorData::new(values, shape), &device)
    };
    let thoughts: Vec<i32> = steps
        .iter()
        .flat_map(|step| {
            let first = step.row * batch.slots + step.first;
            (first..first + width).map(|cell| cell as i32)
        })
        .collect();
    let d_model = decoder.config().d_model;
    let mut inputs = vec![gather(fed.clone(), &thoughts).reshape([rows, width, d_model])];
    if longest > 1 {
        let ids: Vec<i32> = steps
            .iter()
            .flat_map(|step| {
                let said = step.tokens.iter().copied();
                // Behind its last token but one nobody looks.
                said.chain(std::iter::repeat(0)).take(longest - 1)
            })
            .collect();
        inputs.push(decoder.token_embeddings(upload(ids, [rows, longest - 1])));
    }
    let positions: Vec<i32> = (0..seq as i32).collect();
    let positions = upload(positions.repeat(rows), [rows, seq]);
    let embedded = decoder.with_positions(Tensor::cat(inputs, 1), positions.clone());
    let context = decoder.context(positions, Visibility::causal(seq, &device));
    let hidden = decoder.run_layers(0..decoder.layers.len(), embedded, &context);
    let (mut cells, mut targets) = (Vec::new(), Vec::new());
    for (row, step) in steps.iter().enumerate() {
        for (offset, &token) in step.tokens.iter().enumerate() {
            cells.push((row * seq + width - 1 + offset) as i32);
            targets.push(token);
        }
    }
    let normed = decoder.final_norm(gather(hidden, &cells).unsqueeze_dim(0));
    let logits = decoder.head(normed);
    let vocabulary = decoder.vocabulary();
    let weights = vec![1.0; targets.len()];
    cross_entropy(
        logits.reshape([targets.len(), vocabulary]),
        &targets,
        &weights,
    )
}
