//! Supervised fine-tuning with next-token losses after layers below the last, through the final norm and the
//! head that all share: LITE (arXiv 2310.18581), LayerSkip (arXiv 2404.16710). Layers are counted from 0.
//!
//! Which layers have a loss and which rows skip which layer is settled by the batches, so that a step is a
//! function of its batch.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_model::{SequenceContext, Transformer, Visibility};
use sesqui_trainer::{Batches, StepOutput};

use crate::align::{learned, with_total};
use crate::batches::SequenceBatches;
use crate::loss::next_token_loss;
use crate::rollout::{generator, uniform};

/// Losses below the last layer as a setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyExitConfig {
    /// What the loss after each layer weighs.
    pub weights: ExitWeights,
    /// In which updates a layer below the last has its loss.
    pub curriculum: ExitCurriculum,
    /// The greatest probability with which a row skips a layer, that of the last; below it
    /// `exp(l ln 2 / (L - 1)) - 1` of it for layer `l` of `L` (LayerSkip, section 4.1.1). Validation skips none.
    pub layer_dropout: f64,
}

/// Weights of the losses after each layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExitWeights {
    /// LITE: 1 for the last layer, and the same for every layer below it.
    Even {
        /// Of all layers below the last together.
        below: f64,
    },
    /// LayerSkip, section 4.1.2: `scale (0 + 1 + … + l)` for layer `l`, and for the last `L - 1` more than
    /// the layer before it; nothing for the first; divided by the sum over the layers that have a loss in the update.
    LayerSkip {
        /// How much layers below the last count.
        scale: f64,
    },
}

/// When layers below the last have a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExitCurriculum {
    /// In every update.
    #[default]
    None,
    /// In update `t` layers `l` with `l - t` divisible by `every` (LayerSkip's rotational one).
    Rotational {
        /// One of so many layers at a time.
        every: u64,
    },
    /// From the top downwards, one layer more every `T / 2L` of `T` updates (LayerSkip's gradual one).
    Gradual,
}

impl Default for ExitWeights {
    fn default() -> Self {
        Self::Even { below: 1.0 }
    }
}

impl EarlyExitConfig {
    /// What is wrong with the settings, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        let fail = |key: &str, reason: String| Some((key.to_owned(), reason));
        let (key, weight) = match self.weights {
            ExitWeights::Even { below } => ("weights.below", below),
            ExitWeights::LayerSkip { scale } => ("weights.scale", scale),
        };
        if !(weight >= 0.0 && weight.is_finite()) {
            return fail(key, format!("{weight} is no weight; give 0 or more"));
        }
        if self.curriculum == (ExitCurriculum::Rotational { every: 0 }) {
            return fail("curriculum.every", "must be at least 1".to_owned());
        }
        match self.layer_dropout {
            share if (0.0..1.0).contains(&share) => None,
            share => fail("layer_dropout", format!("{share} is not in [0, 1)")),
        }
    }

    /// The same settled for a model of `layers` layers and a training of `updates` updates.
    pub fn plan(&self, layers: usize, updates: u64) -> EarlyExitPlan {
        EarlyExitPlan {
            config: self.clone(),
            layers,
            updates,
        }
    }
}

/// Losses below the last layer, settled for a model and a number of updates.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlyExitPlan {
    config: EarlyExitConfig,
    layers: usize,
    updates: u64,
}

impl EarlyExitPlan {
    /// Weights of the losses after each layer in update `update`, counted from 0; 0 where there is none.
    pub fn weights(&self, update: u64) -> Vec<f64> {
        self.weighed(|layer| self.has_loss(layer, update))
    }

    /// The same with all layers at once: those of validation.
    pub fn all_weights(&self) -> Vec<f64> {
        self.weighed(|_| true)
    }

    fn weighed(&self, has_loss: impl Fn(usize) -> bool) -> Vec<f64> {
        let last = self.layers - 1;
        let sum = |layer: usize| (layer * (layer + 1) / 2) as f64;
        let weight = |layer: usize| match self.config.weights {
            _ if layer < last && !has_loss(layer) => 0.0,
            ExitWeights::Even { .. } if layer == last => 1.0,
            ExitWeights::Even { below } => below / last as f64,
            ExitWeights::LayerSkip { .. } if last == 0 => 1.0,
            ExitWeights::LayerSkip { scale } if layer == last => {
                last as f64 + scale * sum(last - 1)
            }
            ExitWeights::LayerSkip { scale } => scale * sum(layer),
        };
        let weights: Vec<f64> = (0..=last).map(weight).collect();
        match self.config.weights {
            ExitWeights::Even { .. } => weights,
            ExitWeights::LayerSkip { .. } => {
                let total: f64 = weights.iter().sum();
                weights.iter().map(|weight| weight / total).collect()
            }
        }
    }

    /// Whether `layer`, below the last, has a loss in update `update`.
    fn has_loss(&self, layer: usize, update: u64) -> bool {
        match self.config.curriculum {
            ExitCurriculum::None => true,
            ExitCurriculum::Rotational { every } => layer as u64 % every == update % every,
            ExitCurriculum::Gradual => {
                let begun = 2 * self.layers as u64 * update / self.updates.max(1);
                layer as u64 + begun >= self.layers as u64 - 1
            }
        }
    }

    /// Which of the layers each of the `rows` rows of update `update` runs, `[rows, layers]` row-major: a
    /// function of the seed.
    pub fn runs(&self, seed: u64, update: u64, rows: usize) -> Vec<bool> {
        let most = self.config.layer_dropout;
        if most == 0.0 || self.layers == 1 {
            return vec![true; rows * self.layers];
        }
        let last = (self.layers - 1) as f64;
        let mut draws = generator(seed, update, b"layerskp");
        let cells = (0..rows).flat_map(|_| 0..self.layers);
        cells
            .map(|layer| {
                let share = (layer as f64 * std::f64::consts::LN_2 / last).exp() - 1.0;
                uniform(&mut draws) >= most * share
            })
            .collect()
    }
}

/// A batch of words, with what each layer does in it.
#[derive(Clone, Debug, PartialEq)]
pub struct EarlyExitBatch {
    /// The words.
    pub words: SequenceBatch,
    /// Weights of the losses after each layer, `[layers]`; 0 where there is none.
    pub weights: Vec<f64>,
    /// `[batch, layers]` row-major: whether the row runs the layer.
    pub runs: Vec<bool>,
}

impl EarlyExitBatch {
    /// The words as validation reads them: every layer has its loss, and none is skipped.
    pub fn whole(words: SequenceBatch, plan: &EarlyExitPlan) -> Self {
        Self {
            weights: plan.all_weights(),
            runs: vec![true; words.batch * plan.layers],
            words,
        }
    }
}

/// [`SequenceBatches`] with what each layer does: a function of `(seed, step)` and the row's place in the step.
#[derive(Debug)]
pub struct EarlyExitBatches {
    words: SequenceBatches,
    plan: EarlyExitPlan,
    seed: u64,
}

impl EarlyExitBatches {
    /// `words` with what `plan` says.
    pub fn new(words: SequenceBatches, plan: EarlyExitPlan, seed: u64) -> Self {
        Self { words, plan, seed }
    }
}

impl Batches<EarlyExitBatch> for EarlyExitBatches {
    fn batch(&self, index: u64) -> Result<EarlyExitBatch, String> {
        let words = self.words.batch(index)?;
        let (update, _) = self.words.order().place(index);
        let (rows, part) = self.words.order().within_step(index);
        let runs = self.plan.runs(self.seed, update, rows.len());
        let layers = self.plan.layers;
        Ok(EarlyExitBatch {
            words,
            weights: self.plan.weights(update),
            runs: runs[part.start * layers..part.end * layers].to_vec(),
        })
    }

    fn per_epoch(&self) -> u64 {
        self.words.per_epoch()
    }

    fn rows(&self, index: u64) -> String {
        self.words.rows(index)
    }
}

/// A backbone that can be left early.
#[derive(Module, Debug)]
pub struct EarlyExit {
    /// The model being trained.
    pub backbone: Transformer,
}

impl EarlyExit {
    /// The loss that is minimised, that of the last layer, and those of the layers below, weighed and added
    /// up.
    const NAMES: &[&str] = &["loss", "last", "below"];

    /// Trains `backbone`.
    pub fn new(backbone: Transformer) -> Self {
        Self { backbone }
    }

    /// Nats per token, `[3]`, in the order of the names.
    fn losses(&self, batch: &EarlyExitBatch) -> Tensor<1> {
        let (backbone, words) = (&self.backbone, &batch.words);
        let device = &backbone.device();
        let upload = |values: &[i32]| -> Tensor<2, Int> {
            let shape = [words.batch, words.seq];
            Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let positions = upload(&words.position_ids);
        // Rows are padded on the right, as in supervised fine-tuning.
        let visibility = Visibility::causal(words.seq, device);
        let pass = Pass {
            backbone,
            context: backbone.context(positions.clone(), visibility.clone()),
            positions: positions.clone(),
            visibility,
            device,
        };
        let layers = backbone.layers.len();
        let mut hidden = backbone.embed(upload(&words.input_ids), positions);
        let mut below: Option<Tensor<1>> = None;
        for layer in 0..layers {
            let runs = batch.runs.iter().skip(layer).step_by(layers);
            let rows: Vec<usize> = (0..)
                .zip(runs)
                .filter(|(_, runs)| **runs)
                .map(|(row, _)| row)
                .collect();
            hidden = pass.layer(layer, hidden, &rows);
            let weight = batch.weights[layer];
            if layer + 1 < layers && weight > 0.0 {
                let loss = next_token_loss(backbone, hidden.clone(), words).mul_scalar(weight);
                below = Some(match below {
                    Some(sum) => sum + loss,
                    None => loss,
                });
            }
        }
        let last = next_token_loss(backbone, hidden, words);
        let (weight, below) = match below {
            Some(sum) => (1.0, sum),
            None => (0.0, Tensor::zeros([1], device)),
        };
        with_total(vec![(batch.weights[layers - 1], last), (weight, below)])
    }
}

/// A pass in which rows skip layers.
struct Pass<'a> {
    backbone: &'a Transformer,
    /// Of all rows.
    context: SequenceContext,
    /// `[batch, seq]`.
    positions: Tensor<2, Int>,
    visibility: Visibility,
    device: &'a Device,
}

impl Pass<'_> {
    /// Runs `layer` on `rows`, ascending, of `hidden` `[batch, seq, d_model]`; the others stay as they are.
    fn layer(&self, layer: usize, hidden: Tensor<3>, rows: &[usize]) -> Tensor<3> {
        let [batch, ..] = hidden.dims();
        if rows.is_empty() {
            return hidden;
        }
        let (backbone, layer) = (self.backbone, layer..layer + 1);
        if rows.len() == batch {
            return backbone.run_layers(layer, hidden, &self.context);
        }
        let list = |rows: Vec<i32>| Tensor::<1, Int>::from_data(rows.as_slice(), self.device);
        // Behind the batch as it was stand the rows that ran.
        let mut order: Vec<i32> = (0..batch as i32).collect();
        for (place, &row) in (batch as i32..).zip(rows) {
            order[row] = place;
        }
        let rows = list(rows.iter().map(|&row| row as i32).collect());
        let positions = self.positions.clone().select(0, rows.clone());
        let context = backbone.context(positions, self.visibility.clone());
        let ran = backbone.run_layers(layer, hidden.clone().select(0, rows), &context);
        Tensor::cat(vec![hidden, ran], 0).select(0, list(order))
    }
}

impl TrainStep for EarlyExit {
    type Input = EarlyExitBatch;
    type Output = StepOutput;

    fn step(&self, batch: EarlyExitBatch) -> TrainOutput<StepOutput> {
        learned(self, Self::NAMES, self.losses(&batch), batch.words.tokens)
    }
}

impl InferenceStep for EarlyExit {
    type Input = EarlyExitBatch;
    type Output = StepOutput;

    fn step(&self, batch: EarlyExitBatch) -> StepOutput {
        StepOutput {
            names: Self::NAMES,
            losses: self.losses(&batch),
            tokens: batch.words.tokens,
        }
    }
}
