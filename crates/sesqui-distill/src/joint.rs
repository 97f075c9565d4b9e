//! Both stages at once (the joint-learning ablation of Fig. 3, arXiv 2505.18962): every step minimises
//! `L_1 + L_2`, and all weights move.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use serde::{Deserialize, Serialize};
use sesqui_model::Transformer;
use sesqui_model::latent::LatentTransformer;
use sesqui_shortcut::Shortcuts;
use sesqui_trainer::StepOutput;

use crate::align::{AlignConfig, AlignTerms, Teacher, learned};
use crate::latent::{LatentBatch, Rollout};
use crate::shortcut::{ShortcutLoss, ShortcutStageConfig, ShortcutTerms, Trains};

/// Joint learning as a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JointConfig {
    /// Stage 1: `L_1`.
    pub align: AlignConfig,
    /// Stage 2: `L_2`; `trains` has to be [`Trains::Everything`]. Its teacher is what the student
    /// starts from, also where that of stage 1 shares the student's weights.
    pub shortcut: ShortcutStageConfig,
}

impl Default for JointConfig {
    fn default() -> Self {
        Self {
            align: AlignConfig::default(),
            shortcut: ShortcutStageConfig {
                trains: Trains::Everything,
                ..ShortcutStageConfig::default()
            },
        }
    }
}

impl JointConfig {
    /// What is wrong with the settings, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        if self.shortcut.trains != Trains::Everything {
            let reason = "joint learning moves all weights; set it to \"everything\"".to_owned();
            return Some(("shortcut.trains".to_owned(), reason));
        }
        let below = |part: &str, problem: Option<(String, String)>| {
            problem.map(|(key, reason)| (format!("{part}.{key}"), reason))
        };
        below("align", self.align.problem()).or(below("shortcut", self.shortcut.problem()))
    }
}

/// The same rows for both stages, which differ in who feeds the latent steps and where they leave.
#[derive(Clone, Debug)]
pub struct JointBatch {
    /// As stage 1 reads it.
    pub align: LatentBatch,
    /// As stage 2 reads it.
    pub shortcut: LatentBatch,
}

impl JointBatch {
    /// Stage 2 reads what stage 1 does, under a `rollout` of its own.
    pub fn new(align: LatentBatch, rollout: Rollout) -> Self {
        let shortcut = LatentBatch {
            rollout,
            ..align.clone()
        };
        Self { align, shortcut }
    }
}

/// A student and its shortcuts under both stages.
#[derive(Module, Debug)]
pub struct Joint {
    /// The student.
    pub student: LatentTransformer,
    /// Its routers and adapters.
    pub shortcuts: Shortcuts,
    #[module(skip)]
    align: AlignTerms,
    #[module(skip)]
    shortcut: ShortcutTerms,
    #[module(skip)]
    names: &'static [&'static str],
}

/// The total, that of each stage, and their parts, which two stages would otherwise call the same.
macro_rules! names {
    ($($align:literal)*, $($shortcut:literal)*) => {
        &[
            "loss",
            "align",
            $(concat!("align/", $align),)*
            "shortcut",
            $(concat!("shortcut/", $shortcut),)*
        ]
    };
}

/// Names of the losses; a test holds them against those of the stages.
fn names(config: &JointConfig) -> &'static [&'static str] {
    match (config.align.teacher, &config.shortcut.loss) {
        (Teacher::Frozen, ShortcutLoss::Staircase(_)) => names!(
            "answer" "answer_alignment" "reasoning_alignment" "read_out",
            "answer" "alignment" "routers"
        ),
        (Teacher::Frozen, ShortcutLoss::Composition(_)) => names!(
            "answer" "answer_alignment" "reasoning_alignment" "read_out",
            "answer" "early_exit" "compute"
        ),
        (Teacher::Shared, ShortcutLoss::Staircase(_)) => names!(
            "answer" "answer_alignment" "reasoning_alignment" "read_out" "teacher",
            "answer" "alignment" "routers"
        ),
        (Teacher::Shared, ShortcutLoss::Composition(_)) => names!(
            "answer" "answer_alignment" "reasoning_alignment" "read_out" "teacher",
            "answer" "early_exit" "compute"
        ),
    }
}

impl Joint {
    /// Shortcuts over a student that starts as `student`; `teacher` is what it starts from.
    pub fn new(
        student: LatentTransformer,
        shortcuts: Shortcuts,
        teacher: &Transformer,
        config: &JointConfig,
    ) -> Self {
        Self {
            student,
            shortcuts,
            // Steps that leave in stage 1's part leave on the staircase that stage 2's part trains.
            align: AlignTerms::new(teacher, &config.align)
                .on_staircase(config.shortcut.staircase()),
            shortcut: ShortcutTerms::new(teacher, &config.shortcut),
            names: names(config),
        }
    }

    /// As [`ShortcutTerms::asked_at`].
    pub fn asked_at(self, exit_threshold: f64) -> Self {
        Self {
            shortcut: self.shortcut.asked_at(exit_threshold),
            ..self
        }
    }
}

/// The sum of both totals, then the losses of either stage, `[1 + align + shortcut]`.
fn together(align: Tensor<1>, shortcut: Tensor<1>) -> Tensor<1> {
    let total = align.clone().narrow(0, 0, 1) + shortcut.clone().narrow(0, 0, 1);
    Tensor::cat(vec![total, align.detach(), shortcut.detach()], 0)
}

impl TrainStep for Joint {
    type Input = JointBatch;
    type Output = StepOutput;

    fn step(&self, batch: JointBatch) -> TrainOutput<StepOutput> {
        let (student, shortcuts) = (&self.student, &self.shortcuts);
        let align = self.align.losses(student, &batch.align);
        let shortcut = self
            .shortcut
            .training_losses(student, shortcuts, &batch.shortcut);
        let losses = together(align, shortcut);
        learned(self, self.names, losses, batch.align.tokens)
    }
}

impl InferenceStep for Joint {
    type Input = JointBatch;
    type Output = StepOutput;

    fn step(&self, batch: JointBatch) -> StepOutput {
        let (student, shortcuts) = (&self.student, &self.shortcuts);
        let align = self.align.losses(student, &batch.align);
        let shortcut = self
            .shortcut
            .validation_losses(student, shortcuts, &batch.shortcut);
        StepOutput {
            names: self.names,
            losses: together(align, shortcut),
            tokens: batch.align.tokens,
        }
    }
}
