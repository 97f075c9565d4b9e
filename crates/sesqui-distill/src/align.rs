//! Stage 1: a student that reads the question, reasons in latent steps and answers, aligned to a
//! teacher that reasons in words (arXiv 2505.18962, section 2.2, Eq. 6 to 9).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};
use sesqui_model::latent::{Feedback, LatentTransformer, SlotPositions};
use sesqui_model::{Frozen, Transformer};
use sesqui_shortcut::walk::ExitRule;
use sesqui_shortcut::{ExitPlan, staircase_pass};
use sesqui_trainer::StepOutput;

use crate::latent::{Correction, LatentBatch, LatentConfig, Rollout};
use crate::loss::{hidden_states, next_token_loss};
use crate::rollout::{ExitDropout, Feeding, Leaves, rollout};
use crate::student::{Lesson, Outcome, Staircase, own_inputs, staircase_inputs};

/// Stage 1 as a setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlignConfig {
    /// How the chain of thought becomes latent steps.
    pub latents: LatentConfig,
    /// Whose states are the targets.
    pub teacher: Teacher,
    /// Weights of the losses.
    pub weights: AlignWeights,
    /// Where the inputs of latent steps come from.
    pub feeding: Feeding,
    /// Whether some latent steps leave early already.
    pub exit_dropout: ExitDropout,
}

/// Whose states are the targets of stage 1 (D6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// The model that the student starts from, frozen.
    #[default]
    Frozen,
    /// The student's own weights on the chain of thought, which goes on being trained.
    Shared,
}

/// Weights of the losses of stage 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlignWeights {
    /// Cross-entropy of the answer (Eq. 8).
    pub answer: f64,
    /// Squared difference to the teacher in the answer: `alpha` of Eq. 9, Eq. 6 as printed.
    pub answer_alignment: f64,
    /// Squared difference to the teacher at latent steps (D5); 0 as printed.
    pub reasoning_alignment: f64,
    /// Cross-entropy of the token that follows there in the chain of thought; 0 as printed.
    pub read_out: f64,
    /// Cross-entropy of the chain of thought (Eq. 7), where the teacher shares the weights.
    pub teacher: f64,
    /// How the tokens of Eq. 7 and 8 add up.
    pub scale: TokenScale,
}

/// How the cross-entropies of a problem's tokens add up in Eq. 7 and 8 (D14). Eq. 6 is printed as a mean,
/// and what is not in the paper is one too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenScale {
    /// Mean over the tokens of the batch, so that weights mean the same at any length.
    #[default]
    Mean,
    /// Sum over the tokens of a problem, as printed, and the mean over problems.
    Sum,
}

impl TokenScale {
    /// A mean over the tokens that `counted` weighs with 1, in `rows` problems, on this scale.
    fn of(self, mean: Tensor<1>, counted: &[f32], rows: usize) -> Tensor<1> {
        match self {
            Self::Mean => mean,
            Self::Sum => {
                let tokens: f64 = counted.iter().copied().map(f64::from).sum();
                mean.mul_scalar(tokens / rows.max(1) as f64)
            }
        }
    }
}

impl Default for AlignWeights {
    fn default() -> Self {
        Self {
            answer: 1.0,
            answer_alignment: 1.0,
            reasoning_alignment: 1.0,
            read_out: 4.0,
            teacher: 1.0,
            scale: TokenScale::default(),
        }
    }
}

impl AlignConfig {
    /// How latent steps get their inputs in each optimizer step of a stage of `steps`.
    pub fn rollouts(&self, seed: u64, steps: u64) -> impl Fn(u64) -> Rollout + use<> {
        let (feeding, exits) = (self.feeding, self.exit_dropout);
        move |step| rollout(feeding, exits, seed, step, steps)
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        let weights = [
            ("answer", self.weights.answer),
            ("answer_alignment", self.weights.answer_alignment),
            ("reasoning_alignment", self.weights.reasoning_alignment),
            ("read_out", self.weights.read_out),
            ("teacher", self.weights.teacher),
        ];
        for (key, weight) in weights {
            if !weight.is_finite() || weight < 0.0 {
                let reason = format!("{weight} is not a weight; give 0 or more");
                return Some((format!("weights.{key}"), reason));
            }
        }
        if weights[..4].iter().all(|(_, weight)| *weight == 0.0) {
            let reason = "all are 0: the student would learn nothing".to_owned();
            return Some(("weights".to_owned(), reason));
        }
        if let Feedback::Pause | Feedback::FirstState = self.latents.feedback {
            let reason = "what latent steps are fed is aligned to the teacher; give state or linear, or a \
                          stage with objective curriculum";
            return Some(("latents.feedback".to_owned(), reason.to_owned()));
        }
        if let SlotPositions::Strided { stride: 0, .. } = self.latents.positions {
            let reason =
                "stride must be at least 1: latent steps need places of their own".to_owned();
            return Some(("latents.positions".to_owned(), reason));
        }
        let problem = self.feeding.problem().or(self.exit_dropout.problem());
        problem.map(|(key, reason)| (key.to_owned(), reason))
    }
}

/// A student under stage 1.
#[derive(Module, Debug)]
pub struct Align {
    /// The student, the only part that is trained.
    pub student: LatentTransformer,
    #[module(skip)]
    terms: AlignTerms,
}

/// What stage 1 minimises, `L_1` of Eq. 9, whoever holds the student.
#[derive(Clone, Debug)]
pub struct AlignTerms {
    /// The frozen teacher, off the autodiff tape; absent where student and teacher share weights.
    teacher: Option<Frozen<Transformer>>,
    weights: AlignWeights,
    /// Greatest probability with which an independent step leaves under exit dropout.
    independent: f64,
    /// The staircase of exit dropout.
    staircase: Staircase,
}

const NAMES: &[&str] = &[
    "loss",
    "answer",
    "answer_alignment",
    "reasoning_alignment",
    "read_out",
];
const NAMES_SHARED: &[&str] = &[
    "loss",
    "answer",
    "answer_alignment",
    "reasoning_alignment",
    "read_out",
    "teacher",
];

impl Align {
    /// A student that starts as `student`; `teacher` is what it starts from.
    pub fn new(student: LatentTransformer, teacher: &Transformer, config: &AlignConfig) -> Self {
        let terms = AlignTerms::new(teacher, config);
        Self { student, terms }
    }

    /// As [`AlignTerms::on_staircase`].
    pub fn on_staircase(self, staircase: Staircase) -> Self {
        Self {
            terms: self.terms.on_staircase(staircase),
            ..self
        }
    }
}

impl AlignTerms {
    /// `teacher` is what the student starts from.
    pub fn new(teacher: &Transformer, config: &AlignConfig) -> Self {
        Self {
            teacher: match config.teacher {
                // Off the tape, no gradient can reach it.
                Teacher::Frozen => Some(Frozen::new(teacher, &teacher.device())),
                Teacher::Shared => None,
            },
            weights: config.weights.clone(),
            independent: match config.exit_dropout {
                ExitDropout::Never => 0.0,
                ExitDropout::Late { independent, .. } => independent,
            },
            staircase: Staircase::default(),
        }
    }

    /// Lets steps that exit dropout chose leave and go on as `staircase` says: where stage 2 is known
    /// already, on its staircase.
    pub fn on_staircase(self, staircase: Staircase) -> Self {
        Self { staircase, ..self }
    }

    /// Names of the losses, the total first.
    pub fn names(&self) -> &'static [&'static str] {
        match self.teacher {
            Some(_) => NAMES,
            None => NAMES_SHARED,
        }
    }

    /// The total first, then its parts, `[names]`.
    pub fn losses(&self, student: &LatentTransformer, batch: &LatentBatch) -> Tensor<1> {
        let device = student.backbone.device();
        let backbone = &student.backbone;
        let (lesson, chain) = match &self.teacher {
            Some(frozen) => (Lesson::of(&frozen.on(&device), batch, &device), None),
            None => {
                let chain = hidden_states(backbone, &batch.teacher);
                let lesson = Lesson::new(backbone, chain.clone(), batch, &device);
                (lesson, Some(chain))
            }
        };

        let layers = student.backbone.layers.len();
        let full = ExitPlan::full(batch.batch, batch.slots, layers);
        let (latents, plan) = match batch.rollout {
            Rollout::TeacherForced => (lesson.forced(), full),
            Rollout::Student { correction, exits } => {
                let leaves = match exits {
                    Some(seed) => Leaves::dropout(batch, seed, self.independent),
                    None => Leaves::new(batch, |_| None),
                };
                let leaves = |row: usize, slot: usize, at: usize| leaves.leaves(row, slot, at);
                let rule = match exits {
                    Some(_) => ExitRule::Plan {
                        shortcuts: None,
                        leaves: &leaves,
                    },
                    None => ExitRule::Full,
                };
                let corrected = match correction {
                    Correction::Never => None,
                    Correction::WhereWrong => Some(&lesson),
                };
                let (own, staircase) = (student.valid(), self.staircase);
                let latents = own_inputs(&own, batch, rule, staircase, corrected).0;
                let (rows, slots) = (batch.batch, batch.slots);
                let plan = match exits {
                    Some(_) => ExitPlan::from_exits(rows, slots, layers, staircase.landing, leaves)
                        .with_entry_position(staircase.entry_position),
                    None => full,
                };
                (latents, plan)
            }
        };
        let inputs = staircase_inputs(student, batch, latents);
        let key_values = self.staircase.key_values;
        let pass = staircase_pass(student, None, inputs, &plan, key_values);
        let outcome = Outcome::new(student, pass, &lesson, batch, |row, slot| {
            plan.slot(row, slot).leave == layers
        });

        let weights = &self.weights;
        let answer = outcome.answer_loss(student, batch);
        let answer = weights.scale.of(answer, &batch.answer_weights, batch.batch);
        let mut parts = vec![
            (weights.answer, answer),
            (weights.answer_alignment, outcome.answer_alignment(&lesson)),
            (weights.reasoning_alignment, outcome.reasoning_alignment()),
            (weights.read_out, outcome.read_out_loss(student)),
        ];
        if let Some(chain) = chain {
            let loss = next_token_loss(backbone, chain, &batch.teacher);
            let tokens = &batch.teacher.loss_weights;
            let loss = weights.scale.of(loss, tokens, batch.batch);
            parts.push((weights.teacher, loss));
        }
        with_total(parts)
    }
}

/// The weighted sum of `parts`, then the parts, `[1 + parts]`.
pub fn with_total(parts: Vec<(f64, Tensor<1>)>) -> Tensor<1> {
    let total = parts
        .iter()
        // A weight of 0 keeps the part out of the graph, not only out of the sum.
        .filter(|(weight, _)| *weight != 0.0)
        .map(|(weight, part)| part.clone().mul_scalar(*weight))
        .reduce(|sum, part| sum + part);
    let device = parts[0].1.device();
    let total = total.unwrap_or_else(|| Tensor::zeros([1], &device));
    let parts = parts.into_iter().map(|(_, part)| part.detach());
    Tensor::cat(std::iter::once(total).chain(parts).collect(), 0)
}

/// Gradients of the first of `losses` `[names]`, the total, and all of them to report.
pub fn learned<M: Module>(
    model: &M,
    names: &'static [&'static str],
    losses: Tensor<1>,
    tokens: usize,
) -> TrainOutput<StepOutput> {
    let gradients = losses.clone().narrow(0, 0, 1).backward();
    let output = StepOutput {
        names,
        losses: losses.inner(),
        tokens,
    };
    TrainOutput::new(model, gradients, output)
}

impl TrainStep for Align {
    type Input = LatentBatch;
    type Output = StepOutput;

    fn step(&self, batch: LatentBatch) -> TrainOutput<StepOutput> {
        let losses = self.terms.losses(&self.student, &batch);
        learned(self, self.terms.names(), losses, batch.tokens)
    }
}

impl InferenceStep for Align {
    type Input = LatentBatch;
    type Output = StepOutput;

    fn step(&self, batch: LatentBatch) -> StepOutput {
        StepOutput {
            names: self.terms.names(),
            losses: self.terms.losses(&self.student, &batch),
            tokens: batch.tokens,
        }
    }
}
