//! The shapes that Sesqui's side and PyTorch's have in common, and what is timed on ours.

pub mod work;

use burn::tensor::Device;
use sesqui_dataset::batch::SequenceBatch;
use sesqui_model::{Initialization, ModelConfig, ModelConfigError, Precision, Transformer};
use sesqui_reason::Prompt;

/// A model and the batch it is trained on; `benches/peers/README.md` has the same table.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Name of the shape.
    pub name: &'static str,
    /// The backbone.
    pub model: ModelConfig,
    /// Token ids.
    pub vocabulary: usize,
    /// Rows of a training batch.
    pub batch: usize,
    /// Tokens of a training row.
    pub seq: usize,
    /// Of products in layers and head.
    pub precision: Precision,
}

impl Shape {
    /// 3.45 M parameters, untied head.
    pub fn small_gpt() -> Self {
        Self {
            name: "small-gpt",
            model: ModelConfig {
                d_model: 256,
                context: 128,
                tied_head: false,
                initialization: Initialization::Fixed {
                    standard_deviation: 0.02,
                },
                ..ModelConfig::default()
            },
            vocabulary: 512,
            batch: 32,
            seq: 64,
            precision: Precision::F32,
        }
    }

    /// The quick start's model, 0.21 M parameters, on rows of its mean length and more.
    pub fn arith_dag() -> Self {
        Self {
            name: "arith-dag",
            model: ModelConfig {
                context: 72,
                ..ModelConfig::default()
            },
            vocabulary: 34,
            batch: 32,
            seq: 72,
            precision: Precision::F32,
        }
    }

    /// GPT-2 small, 124 M parameters, on short rows.
    pub fn gpt2_small() -> Self {
        Self {
            name: "gpt2-small",
            model: ModelConfig {
                layers: 12,
                d_model: 768,
                heads: 12,
                context: 1024,
                initialization: Initialization::Fixed {
                    standard_deviation: 0.02,
                },
                ..ModelConfig::default()
            },
            vocabulary: 50_257,
            batch: 4,
            seq: 128,
            precision: Precision::F32,
        }
    }

    /// Of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::small_gpt(), Self::arith_dag(), Self::gpt2_small()];
        all.into_iter().find(|shape| shape.name == name)
    }

    /// The model, from a fixed seed.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built.
    pub fn transformer(&self, device: &Device) -> Result<Transformer, ModelConfigError> {
        let model = Transformer::new(&self.model, self.vocabulary, 1, device)?;
        Ok(model.with_precision(self.precision))
    }

    /// A full batch of arbitrary tokens with a target at every position, in equal `parts`.
    pub fn training_parts(&self, parts: usize) -> Vec<SequenceBatch> {
        (0..parts).map(|_| self.rows(self.batch / parts)).collect()
    }

    fn rows(&self, batch: usize) -> SequenceBatch {
        let cells = batch * self.seq;
        SequenceBatch {
            batch,
            seq: self.seq,
            input_ids: self.tokens(cells, 0),
            position_ids: (0..cells).map(|cell| (cell % self.seq) as i32).collect(),
            real: vec![true; cells],
            target_ids: self.tokens(cells, 1),
            loss_weights: vec![1.0; cells],
            problems: (0..batch as u32).collect(),
            tokens: cells,
        }
    }

    /// A prompt of `seq` arbitrary tokens for `batch` rows.
    pub fn prompt(&self, batch: usize, seq: usize) -> Prompt {
        let cells = batch * seq;
        Prompt {
            batch,
            seq,
            ids: self.tokens(cells, 0),
            positions: (0..cells).map(|cell| (cell % seq) as i32).collect(),
            real: vec![true; cells],
            next_position: vec![seq as i32; batch],
        }
    }

    fn tokens(&self, n: usize, shift: usize) -> Vec<i32> {
        (0..n)
            .map(|cell| ((7919 * (cell + shift)) % self.vocabulary) as i32)
            .collect()
    }
}
