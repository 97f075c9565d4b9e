//! Problems written out, models of both families, and one row at a time without pads, without a
//! cache and without the code under test.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_dataset::encode::{EncodedProblem, PositionLayout};
use sesqui_distill::latent::Padding;
use sesqui_distill::{LatentBatch, LatentConfig, LatentProblem, Rollout};
use sesqui_model::{Family, Feedback, LatentTransformer, ModelConfig, Transformer, Visibility};
use sesqui_shortcut::{ShortcutConfig, Shortcuts};

use crate::support::{D_MODEL, LAYERS, RESULTS, shaken, values};

pub const FAMILIES: [Family; 2] = [Family::Gpt2, Family::Llama];
pub const VOCABULARY: usize = 20;
/// Latent steps: as many as the longest of the problems needs.
pub const COUNT: usize = 4;
/// Position of the first token after a question.
pub const START: i32 = 9;
pub const PAD: u32 = 18;
pub const EQUALS: u32 = 11;

/// Problems of two, four and one steps, after questions of six, nine and four tokens, with an answer
/// marker of two tokens; nobody labelled the last one.
pub fn problems() -> Vec<EncodedProblem> {
    let problem =
        |id: &str, question: &[u32], steps: &[[u32; 3]], critical, answer: &[u32]| EncodedProblem {
            id: id.to_owned(),
            question: question.to_vec(),
            question_end: 1,
            steps: steps
                .iter()
                .map(|&[a, b, result]| vec![12, a, 10, b, EQUALS, result, 13])
                .collect(),
            answer_start: vec![16, 14],
            answer: answer.to_vec(),
            critical,
        };
    let (easy, hard) = (Some(false), Some(true));
    vec![
        problem(
            "first",
            &[1, 10, 2, 14, 3, 15],
            &[[1, 2, 3], [3, 4, 7]],
            vec![easy, hard],
            &[7, 17],
        ),
        problem(
            "second",
            &[5, 10, 6, 14, 7, 10, 8, 14, 15],
            &[[5, 6, 1], [7, 8, 5], [2, 4, 6], [1, 6, 7]],
            vec![easy, easy, easy, hard],
            &[1, 2, 17],
        ),
        problem("third", &[9, 10, 4, 15], &[[9, 4, 3]], vec![None], &[3, 17]),
    ]
}

pub fn layout() -> PositionLayout {
    PositionLayout::Aligned {
        question_length: START as usize,
    }
}

pub fn latents(padding: Padding) -> Vec<LatentProblem> {
    let config = LatentConfig {
        padding,
        ..LatentConfig::default()
    };
    let latent = |problem: &EncodedProblem| {
        LatentProblem::new(problem, &config, COUNT, Some(EQUALS), layout()).unwrap()
    };
    problems().iter().map(latent).collect()
}

pub fn batch(padding: Padding, rows: &[u32], rollout: Rollout) -> LatentBatch {
    LatentBatch::collate(&latents(padding), rows, &RESULTS, PAD, rollout).unwrap()
}

/// All three rows, with as many latent steps each.
pub fn all(rollout: Rollout) -> LatentBatch {
    batch(Padding::Answer, &[0, 1, 2], rollout)
}

/// A student, the teacher it is unlike, and shortcuts that are no identity.
#[derive(Clone)]
pub struct Models {
    pub student: LatentTransformer,
    pub teacher: Transformer,
    pub shortcuts: Shortcuts,
}

impl Models {
    pub fn new(family: Family, device: &Device) -> Self {
        let config = ModelConfig {
            family,
            layers: LAYERS,
            d_model: D_MODEL,
            heads: 2,
            key_value_heads: if family == Family::Llama { 1 } else { 0 },
            context: 64,
            tied_head: family == Family::Gpt2,
            ..ModelConfig::default()
        };
        let backbone = |seed| Transformer::new(&config, VOCABULARY, seed, device).unwrap();
        let student = LatentTransformer::new(backbone(1), &Feedback::default(), 0, device);
        let shortcuts = Shortcuts::new(&ShortcutConfig::default(), &config, 2, device);
        Self {
            student: shaken(student, 3),
            teacher: shaken(backbone(4), 5),
            shortcuts: shaken(shortcuts, 6),
        }
    }

    /// One row of these models.
    pub fn alone<'a>(&'a self, problem: &'a EncodedProblem) -> Alone<'a> {
        Alone {
            models: self,
            problem,
        }
    }
}

/// One problem by itself, off the autodiff tape.
pub struct Alone<'a> {
    models: &'a Models,
    problem: &'a EncodedProblem,
}

/// Sum and number of what a loss is the mean of.
pub type Sum = [f64; 2];

impl Alone<'_> {
    /// Question, steps, marker and answer.
    pub fn ids(&self) -> Vec<u32> {
        let problem = self.problem;
        let pieces = [&problem.question].into_iter().chain(&problem.steps);
        let pieces = pieces.chain([&problem.answer_start, &problem.answer]);
        pieces.flatten().copied().collect()
    }

    /// Where the states stand that the outputs have to match: at the fifth of the seven tokens of
    /// each step, and at the second of the marker before the answer.
    fn places(&self) -> Vec<usize> {
        let (question, steps) = (self.problem.question.len(), self.problem.steps.len());
        let mut places: Vec<usize> = (0..steps).map(|step| question + 7 * step + 4).collect();
        places.resize(COUNT + 1, question + 7 * steps + 1);
        places
    }

    /// What the chain of thought says after each of [`Alone::places`].
    pub fn read_out(&self) -> Vec<u32> {
        let ids = self.ids();
        self.places().iter().map(|place| ids[place + 1]).collect()
    }

    fn question_positions(&self) -> Vec<i32> {
        let last = self.problem.question.len() as i32 - 1;
        (0..last).chain([START - 1]).collect()
    }

    /// The teacher's states over the chain of thought, after the final norm.
    fn chain(&self) -> Vec<Vec<f32>> {
        let teacher = &self.models.teacher;
        let ids = self.ids();
        let mut positions = self.question_positions();
        positions.extend((0..(ids.len() - positions.len()) as i32).map(|at| START + at));
        run(teacher, vec![embed(teacher, &ids, &positions)], &positions)
    }

    /// The teacher's states at [`Alone::places`].
    pub fn wanted(&self) -> Vec<Vec<f32>> {
        let chain = self.chain();
        self.places()
            .iter()
            .map(|&place| chain[place].clone())
            .collect()
    }

    /// The student's states after the final norm over the question, latent steps that are fed
    /// `inputs`, and, if all are there, what is read of the answer.
    pub fn student(&self, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let student = &self.models.student;
        let mut positions = self.question_positions();
        let mut parts = vec![embed(&student.backbone, &self.problem.question, &positions)];
        if !inputs.is_empty() {
            // The recipe counts slots from 1: P + 7 (t - 1) + 6, the question's end being at P.
            let slots: Vec<i32> = (0..inputs.len() as i32)
                .map(|slot| START - 1 + 7 * slot + 6)
                .collect();
            let states = TensorData::new(inputs.concat(), [1, inputs.len(), D_MODEL]);
            let device = student.backbone.token_embedding.weight.val().device();
            let states = Tensor::from_data(states, &device);
            parts.push(student.latent_inputs(states, integers(&slots, &device)));
            positions.extend(slots);
        }
        if inputs.len() == COUNT {
            let answer = self.answer();
            let at = START + 7 * COUNT as i32;
            let answer_positions: Vec<i32> = (at..at + answer.len() as i32 - 1).collect();
            let read = &answer[..answer.len() - 1];
            parts.push(embed(&student.backbone, read, &answer_positions));
            positions.extend(answer_positions);
        }
        run(&student.backbone, parts, &positions)
    }

    /// Marker and answer.
    fn answer(&self) -> Vec<u32> {
        [&self.problem.answer_start[..], &self.problem.answer].concat()
    }

    /// What the latent steps are fed: the student's own state where `keep` says so of slot and
    /// state, else the teacher's.
    pub fn inputs(&self, mut keep: impl FnMut(usize, &[f32]) -> bool) -> Vec<Vec<f32>> {
        let wanted = self.wanted();
        let mut inputs = Vec::new();
        for (slot, wanted) in wanted[..COUNT].iter().enumerate() {
            let own = self.student(&inputs).pop().unwrap();
            inputs.push(match keep(slot, &own) {
                true => own,
                false => wanted.clone(),
            });
        }
        inputs
    }

    /// Cross-entropy of the answer, squared differences in the answer and at latent steps,
    /// cross-entropy of `read_out`.
    pub fn losses(&self, inputs: &[Vec<f32>], read_out: &[u32]) -> [Sum; 4] {
        let student = self.student(inputs);
        let (chain, wanted) = (self.chain(), self.wanted());
        let backbone = &self.models.student.backbone;
        let mut sums = [[0.0; 2]; 4];
        let question = self.problem.question.len();
        let answer = self.answer();
        let before = chain.len() - answer.len();
        for at in 0..answer.len() - 1 {
            let state = &student[question + COUNT + at];
            if at + 1 >= self.problem.answer_start.len() {
                add(&mut sums[0], surprise(backbone, state, answer[at + 1]), 1.0);
            }
            let difference = squared(state, &chain[before + at]);
            add(&mut sums[1], difference, D_MODEL as f64);
        }
        for output in 0..=COUNT {
            let state = &student[question - 1 + output];
            let difference = squared(state, &wanted[output]);
            add(&mut sums[2], difference, D_MODEL as f64);
            let surprise = surprise(backbone, state, read_out[output]);
            add(&mut sums[3], surprise, 1.0);
        }
        sums
    }

    /// The teacher's cross-entropy of everything after the question.
    pub fn next_token_loss(&self) -> Sum {
        let (ids, chain) = (self.ids(), self.chain());
        let mut sum = [0.0; 2];
        for at in self.problem.question.len() - 1..ids.len() - 1 {
            let surprise = surprise(&self.models.teacher, &chain[at], ids[at + 1]);
            add(&mut sum, surprise, 1.0);
        }
        sum
    }
}

pub fn add(sum: &mut Sum, value: f64, count: f64) {
    sum[0] += value;
    sum[1] += count;
}

fn integers(list: &[i32], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(list.to_vec(), [1, list.len()]), device)
}

fn embed(backbone: &Transformer, ids: &[u32], positions: &[i32]) -> Tensor<3> {
    let device = backbone.token_embedding.weight.val().device();
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    backbone.embed(integers(&ids, &device), integers(positions, &device))
}

/// States after the final norm of one row made of `parts`.
fn run(backbone: &Transformer, parts: Vec<Tensor<3>>, positions: &[i32]) -> Vec<Vec<f32>> {
    let embedded = Tensor::cat(parts, 1);
    let device = embedded.device();
    let seen = Visibility::causal(positions.len(), &device);
    let context = backbone.context(integers(positions, &device), seen);
    let states = values(backbone.states(embedded, &context));
    states.chunks(D_MODEL).map(<[f32]>::to_vec).collect()
}

/// Logits of one state after the final norm, in 64-bit loops.
fn logits(backbone: &Transformer, state: &[f32]) -> Vec<f64> {
    // Row-major `[d_model, vocabulary]`, or the other way round.
    let (table, step) = match &backbone.head {
        Some(head) => (values(head.weight.val()), [1, VOCABULARY]),
        None => (values(backbone.token_embedding.weight.val()), [D_MODEL, 1]),
    };
    let logit = |token: usize| {
        let pairs = state.iter().enumerate();
        pairs
            .map(|(at, &x)| f64::from(x) * f64::from(table[token * step[0] + at * step[1]]))
            .sum()
    };
    (0..VOCABULARY).map(logit).collect()
}

/// The token that the head reads from a state.
pub fn read(backbone: &Transformer, state: &[f32]) -> u32 {
    let logits = logits(backbone, state);
    let greatest = (0..VOCABULARY).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    greatest.unwrap() as u32
}

/// `-ln p(token)`.
pub fn surprise(backbone: &Transformer, state: &[f32], token: u32) -> f64 {
    let logits = logits(backbone, state);
    let partition: f64 = logits.iter().map(|logit| logit.exp()).sum();
    partition.ln() - logits[token as usize]
}

/// Sum of squared differences.
pub fn squared(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
}
