//! Tiny models and tiny data.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_dataset::Problem;
use sesqui_dataset::encode::{
    EncodedProblem, PositionLayout, Sequence, Supervision, TextFormat, encode_all, sequence,
};
use sesqui_dataset::generate::arith_dag::{ArithDag, generate};
use sesqui_dataset::split::Part;
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
use sesqui_eval::Task;
use sesqui_model::{Family, Initialization, ModelConfig, Transformer};
use sesqui_reason::Prompt;

pub const FAMILIES: [Family; 2] = [Family::Gpt2, Family::Llama];
/// Vocabulary of models that never see data.
pub const VOCABULARY: usize = 20;

/// A small shape with weights large enough that the next token depends on the whole row.
pub fn shape(family: Family, context: usize) -> ModelConfig {
    ModelConfig {
        family,
        layers: 2,
        d_model: 16,
        heads: 4,
        key_value_heads: if family == Family::Llama { 2 } else { 0 },
        context,
        tied_head: false,
        initialization: Initialization::Scaled {
            embedding: 1.0,
            matrix: 2.0,
        },
        ..ModelConfig::default()
    }
}

pub fn model(family: Family, context: usize, seed: u64, device: &Device) -> Transformer {
    Transformer::new(&shape(family, context), VOCABULARY, seed, device).unwrap()
}

/// The CPU.
pub fn plain() -> Device {
    Device::flex()
}

/// The CPU with gradients.
pub fn tracked() -> Device {
    Device::flex().autodiff()
}

pub fn integers(values: &[i32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Questions without answers: ids and positions per row.
pub type Questions = Vec<(Vec<i32>, Vec<i32>)>;

/// `lengths.len()` rows of fixed pseudo-random tokens; row `r` leaves a gap of `gaps[r]` positions
/// before its last token.
pub fn questions(lengths: &[usize], gaps: &[i32]) -> Questions {
    lengths
        .iter()
        .zip(gaps)
        .enumerate()
        .map(|(row, (&length, &gap))| {
            let ids = (0..length).map(|column| ((row * 7 + column * column * 3 + 5) % 19) as i32);
            let mut positions: Vec<i32> = (0..length as i32).collect();
            positions[length - 1] += gap;
            (ids.collect(), positions)
        })
        .collect()
}

/// A prompt padded on the left to `width`, with `pad` at the pads.
pub fn prompt(questions: &Questions, width: usize, pad: i32) -> Prompt {
    let mut prompt = Prompt {
        batch: questions.len(),
        seq: width,
        ids: Vec::new(),
        positions: Vec::new(),
        real: Vec::new(),
        next_position: Vec::new(),
    };
    for (ids, positions) in questions {
        let pads = width - ids.len();
        prompt
            .ids
            .extend(std::iter::repeat_n(pad, pads).chain(ids.iter().copied()));
        prompt
            .positions
            .extend(std::iter::repeat_n(0, pads).chain(positions.iter().copied()));
        prompt.real.extend((0..width).map(|column| column >= pads));
        prompt.next_position.push(positions.last().unwrap() + 1);
    }
    prompt
}

/// Problems with all that is needed to train on them and to score them.
pub struct Exercises {
    pub problems: Vec<Problem>,
    pub encoded: Vec<EncodedProblem>,
    pub tokenizer: Tokenizer,
    pub format: TextFormat,
}

impl Exercises {
    /// `count` arithmetic problems of two and of three steps, shortest first.
    pub fn new(count: usize) -> Self {
        let config = ArithDag {
            min_steps: 2,
            max_steps: 3,
            train_per_length: count.div_ceil(2),
            ..ArithDag::default()
        };
        let mut problems = generate(&config, Part::Train, 3).unwrap();
        problems.truncate(count);
        let texts = problems.iter().flat_map(|problem| {
            let steps = problem.steps.iter().map(|step| step.text.as_str());
            steps.chain([problem.question.as_str(), problem.answer.as_str()])
        });
        let trained = TokenizerConfig::default();
        let tokenizer = Tokenizer::from_config(&trained, Path::new(""), texts).unwrap();
        let format = TextFormat::default();
        let encoded = encode_all(&tokenizer, &format, &problems).unwrap();
        Self {
            problems,
            encoded,
            tokenizer,
            format,
        }
    }

    pub fn task(&self) -> Task<'_> {
        Task {
            dataset: "arith-dag",
            split: "train",
            problems: &self.problems,
            encoded: &self.encoded,
            tokenizer: &self.tokenizer,
            format: &self.format,
            layout: PositionLayout::Contiguous,
        }
    }

    pub fn sequences(&self, supervision: Supervision) -> Vec<Sequence> {
        self.encoded
            .iter()
            .map(|problem| sequence(problem, supervision, PositionLayout::Contiguous).unwrap())
            .collect()
    }
}
