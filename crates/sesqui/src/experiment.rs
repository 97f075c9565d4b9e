//! The configuration of a run: one struct, resolved once, then frozen.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sesqui_dataset::DatasetConfig;
use sesqui_dataset::batch::{BatchConfig, Grouping};
use sesqui_dataset::encode::{Positions, Supervision, TextFormat};
use sesqui_dataset::read::BadRows;
use sesqui_dataset::tokenizer::TokenizerConfig;
use sesqui_distill::align::Teacher;
use sesqui_distill::{
    AlignConfig, CurriculumConfig, EarlyExitConfig, HaltStageConfig, IcotConfig, JointConfig,
    ShortcutStageConfig, TeacherStates,
};
use sesqui_eval::EvaluationConfig;
use sesqui_model::latent::SlotPositions;
use sesqui_model::{ModelConfig, Precision};
use sesqui_reason::HaltConfig;
use sesqui_shortcut::Landing;
use sesqui_trainer::TrainingConfig;
use sesqui_trainer::schedule::Decay;

use crate::label_file::LabelsConfig;
use crate::misuse::Misuse;
use crate::reasoning::{OrderChoice, ReasoningConfig};

/// Everything that decides what a run computes. The backend is not part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// Seed of generated data, initial weights, batch order and device randomness.
    pub seed: u64,
    /// What to do with a malformed row.
    pub bad_rows: BadRows,
    /// Position ids.
    pub positions: Positions,
    /// The data set.
    pub data: DatasetConfig,
    /// The tokenizer.
    pub tokenizer: TokenizerConfig,
    /// Markers between question, steps and answer.
    pub format: TextFormat,
    /// Who says which steps are critical.
    pub labels: LabelsConfig,
    /// The backbone, unless a stage starts from a Hugging Face checkpoint.
    pub model: ModelConfig,
    /// Of the products in layers and head, in training and in answering.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// How accuracy and time are measured.
    pub evaluation: EvaluationConfig,
    /// How latent models reason when they are asked.
    pub reasoning: ReasoningConfig,
    /// What is trained, in order.
    pub stages: Vec<Stage>,
}

/// One trained model on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name in rows, tables and checkpoint folders; unique in the run.
    pub name: String,
    /// What a step minimises.
    pub objective: Objective,
    /// Where the weights come from.
    #[serde(default)]
    pub initialize: Initialize,
    /// How rows become batches.
    #[serde(default)]
    pub batches: BatchConfig,
    /// How long and how to train.
    #[serde(default)]
    pub training: TrainingConfig,
    /// Where a frozen teacher's states come from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub teacher_states: TeacherStates,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a step minimises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Objective {
    /// Next-token prediction on the chain of thought and the answer.
    Cot,
    /// Next-token prediction on the answer alone.
    NoCot,
    /// Stage 1 of System-1.5 Reasoning: latent steps aligned to the chain of thought.
    Align(AlignConfig),
    /// Stage 2: routers and adapters over the student of stage 1.
    Shortcut(ShortcutStageConfig),
    /// Both at once, all weights moving: the joint-learning ablation of the paper's Fig. 3.
    Joint(JointConfig),
    /// A head over a latent model that does not move, which says how many steps a question needs.
    Halt(HaltStageConfig),
    /// Thoughts in place of more and more steps: Coconut and its controls.
    Curriculum(CurriculumConfig),
    /// Less and less of the chain of thought: stepwise internalization.
    Icot(IcotConfig),
    /// As `cot`, with next-token losses after layers below the last: LITE, LayerSkip.
    EarlyExit(EarlyExitConfig),
}

/// Where a stage's weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Initialize {
    /// Drawn from the seed.
    #[default]
    Scratch,
    /// The last checkpoint of an earlier stage of this run.
    Stage {
        /// Its name.
        stage: String,
    },
    /// A checkpoint folder of any run with the same tokenizer and shape.
    Checkpoint {
        /// The folder.
        path: PathBuf,
    },
    /// A folder with `config.json` and `model.safetensors`; its shape replaces `[model]`.
    HuggingFace {
        /// The folder.
        path: PathBuf,
    },
}

impl Objective {
    /// What a training sequence contains under this objective: the teacher's, where there is one.
    pub fn supervision(&self) -> Supervision {
        match self {
            Self::NoCot => Supervision::AnswerOnly,
            Self::Cot
            | Self::Align(_)
            | Self::Shortcut(_)
            | Self::Joint(_)
            | Self::Halt(_)
            | Self::Curriculum(_)
            | Self::Icot(_)
            | Self::EarlyExit(_) => Supervision::ChainOfThought,
        }
    }

    /// Whether a teacher that does not move says what its latent steps are aligned to.
    pub fn has_frozen_teacher(&self) -> bool {
        match self {
            Self::Align(config) => config.teacher == Teacher::Frozen,
            Self::Shortcut(_) | Self::Joint(_) => true,
            Self::Cot
            | Self::NoCot
            | Self::Halt(_)
            | Self::Curriculum(_)
            | Self::Icot(_)
            | Self::EarlyExit(_) => false,
        }
    }

    /// Whether its model reasons in latent steps.
    pub fn has_latents(&self) -> bool {
        match self {
            Self::Cot | Self::NoCot | Self::Icot(_) | Self::EarlyExit(_) => false,
            Self::Curriculum(config) => config.thought.feedback().is_some(),
            Self::Align(_) | Self::Shortcut(_) | Self::Joint(_) | Self::Halt(_) => true,
        }
    }

    /// The settings of its shortcuts, and what stands before their keys below `objective`.
    pub fn shortcut(&self) -> Option<(&'static str, &ShortcutStageConfig)> {
        match self {
            Self::Shortcut(config) => Some(("", config)),
            Self::Joint(config) => Some(("shortcut.", &config.shortcut)),
            Self::Cot
            | Self::NoCot
            | Self::Align(_)
            | Self::Halt(_)
            | Self::Curriculum(_)
            | Self::Icot(_)
            | Self::EarlyExit(_) => None,
        }
    }

    /// The objective's name in experiment files.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cot => "cot",
            Self::NoCot => "no-cot",
            Self::Align(_) => "align",
            Self::Shortcut(_) => "shortcut",
            Self::Joint(_) => "joint",
            Self::Halt(_) => "halt",
            Self::Curriculum(_) => "curriculum",
            Self::Icot(_) => "icot",
            Self::EarlyExit(_) => "early-exit",
        }
    }

    /// What is wrong with the settings, if anything: the key and the reason.
    fn problem(&self) -> Option<(String, String)> {
        match self {
            Self::Cot | Self::NoCot | Self::Halt(_) => None,
            Self::Align(config) => config.problem(),
            Self::Shortcut(config) => config.problem(),
            Self::Joint(config) => config.problem(),
            Self::Curriculum(config) => config.problem(),
            Self::Icot(config) => config.problem(),
            Self::EarlyExit(config) => config.problem(),
        }
    }

    /// Settings that are counted in updates, for a training of `now` updates instead of `before`.
    fn rescale(&mut self, before: u64, now: u64) {
        match self {
            Self::Curriculum(config) => config.rescale(before, now),
            Self::Icot(config) => config.rescale(before, now),
            Self::Cot
            | Self::NoCot
            | Self::Align(_)
            | Self::Shortcut(_)
            | Self::Joint(_)
            | Self::Halt(_)
            | Self::EarlyExit(_) => {}
        }
    }

    /// Objectives that a stage with this one may start from, and why; `None` for anything with a
    /// backbone.
    pub fn wants(&self) -> Option<(&'static [&'static str], &'static str)> {
        match self {
            Self::Cot | Self::NoCot | Self::Curriculum(_) | Self::Icot(_) | Self::EarlyExit(_) => {
                None
            }
            Self::Align(_) | Self::Joint(_) => {
                Some((&["cot"], "it learns from a chain-of-thought model"))
            }
            Self::Shortcut(_) => {
                Some((&["align"], "shortcuts are learned over an aligned student"))
            }
            Self::Halt(_) => Some((
                &["align", "shortcut", "joint"],
                "when to halt is learned over a model that takes latent steps",
            )),
        }
    }
}

impl Stage {
    /// Whether the staircase of its shortcuts has an exit in a model of `layers` layers.
    ///
    /// # Errors
    ///
    /// Names the key and what to change; `more` says how to get more layers.
    pub fn check_landing(&self, layers: usize, more: &str) -> Result<(), Misuse> {
        match self.objective.shortcut() {
            Some((part, config))
                if config.landing == Landing::NextBoundary
                    && config.landing.exits(layers).is_empty() =>
            {
                Err(Misuse(format!(
                    "stages.{}.objective.{part}landing: \"next-boundary\" leaves no exit in a model of \
                     {layers} layers, it needs three or more; {more}, or set it to \"same-boundary\"",
                    self.name
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Default for Experiment {
    /// The quick start: `experiments/arith-dag/default.toml` says the same, and a test compares.
    fn default() -> Self {
        let stage = |name: &str, objective: Objective, start: Option<&str>| Stage {
            name: name.to_owned(),
            objective,
            initialize: match start {
                None => Initialize::Scratch,
                Some(stage) => Initialize::Stage {
                    stage: stage.to_owned(),
                },
            },
            batches: BatchConfig {
                grouping: Grouping::ByLength,
                ..BatchConfig::default()
            },
            training: TrainingConfig {
                accumulation: 2,
                ..TrainingConfig::default()
            },
            teacher_states: TeacherStates::default(),
        };
        let no_cot = stage("no_cot", Objective::NoCot, None);
        let mut cot = stage("cot", Objective::Cot, None);
        cot.training.checkpoints.keep_at = vec![250];
        // Results that are used many steps later are found in long problems only.
        cot.batches.length_exponent = 2;
        cot.training.steps = 1_400;
        let mut align = AlignConfig::default();
        // Seven tokens to a step, the result the sixth.
        align.latents.positions = SlotPositions::Strided {
            offset: 5,
            stride: 7,
        };
        let mut latent = stage("latent", Objective::Align(align), Some("cot"));
        // Later latent steps are trained by longer problems only.
        latent.batches.length_exponent = 2;
        latent.training.steps = 4_000;
        latent.training.learning_rate.decay = Decay::Linear {
            start: 0.4,
            end: 0.05,
        };
        let mut shortcut = ShortcutStageConfig::default();
        shortcut.shortcuts.router.hidden = 32;
        let shortcut = Objective::Shortcut(shortcut);
        let mut system15 = stage("system15", shortcut, Some("latent"));
        system15.training.steps = 400;
        Self {
            seed: 1,
            bad_rows: BadRows::default(),
            positions: Positions::Aligned,
            data: DatasetConfig::default(),
            tokenizer: TokenizerConfig::default(),
            format: TextFormat::default(),
            labels: LabelsConfig::default(),
            model: ModelConfig::default(),
            precision: Precision::F32,
            evaluation: EvaluationConfig::default(),
            reasoning: ReasoningConfig::default(),
            stages: vec![no_cot, cot, latent, system15],
        }
    }
}

impl Experiment {
    /// Shrinks data, model and steps so that a run gets through in seconds: what it computes is
    /// worthless, that it computes is the point.
    pub fn shrink(&mut self) {
        self.data.shrink(40);
        // A label file is of the whole data.
        if let LabelsConfig::File { .. } = self.labels {
            self.labels = LabelsConfig::Symbolic;
        }
        // An adapter that stands in for a layer needs one below it and one above; so does a layer with a loss of
        // its own, where the first layer's may weigh nothing.
        let needs_a_middle = self.stages.iter().any(|stage| {
            let shortcut = stage.objective.shortcut();
            let stands_in =
                shortcut.is_some_and(|(_, config)| config.landing == Landing::NextBoundary);
            stands_in || matches!(stage.objective, Objective::EarlyExit(_))
        });
        let layers = if needs_a_middle { 3 } else { 2 };
        self.model.layers = self.model.layers.min(layers);
        self.reasoning.token_exit = self.reasoning.token_exit.within(self.model.layers);
        self.model.d_model = self.model.heads * (self.model.d_model / self.model.heads).min(8);
        self.model.d_feed_forward = 0;
        self.evaluation.questions = 20;
        self.evaluation.validation_questions = 20;
        self.evaluation.timing_questions = 4;
        self.evaluation.warm_up_questions = 1;
        self.evaluation.timing_rounds = 1;
        for stage in &mut self.stages {
            let training = &mut stage.training;
            let steps = training.steps;
            training.steps = steps.min(20);
            stage.objective.rescale(steps, training.steps);
            training.log_every = training.log_every.min(5);
            training.validate_every = training.validate_every.min(10);
            training.checkpoints.every = training.checkpoints.every.min(5);
            let last = training.steps;
            training
                .checkpoints
                .keep_at
                .iter_mut()
                .for_each(|step| *step = (*step).min(last));
            training.checkpoints.keep_at.dedup();
        }
    }

    /// Checks what would go wrong later, before anything is read or trained.
    ///
    /// # Errors
    ///
    /// Names the key and what to change.
    pub fn validate(&self) -> Result<(), Misuse> {
        let fail = |key: String, reason: String| Err(Misuse(format!("{key}: {reason}")));
        self.model
            .validate()
            .map_err(|error| Misuse(error.to_string()))?;
        if let Some((key, reason)) = self.evaluation.problem() {
            return fail(format!("evaluation.{key}"), reason);
        }
        if let Some((key, reason)) = self.reasoning.problem() {
            return fail(format!("reasoning.{key}"), reason);
        }
        let learns = |stage: &Stage| matches!(stage.objective, Objective::Halt(_));
        if matches!(self.reasoning.halt, HaltConfig::Learned(_)) && !self.stages.iter().any(learns)
        {
            return fail(
                "reasoning.halt".to_owned(),
                "no stage learns a head; add one with objective halt".to_owned(),
            );
        }
        if let OrderChoice::Jacobi { .. } = self.reasoning.order
            && self.stages.iter().any(learns)
        {
            return fail(
                "reasoning.order".to_owned(),
                "a head stops between latent steps, and there is nothing between steps that are computed \
                 all at once; leave it out, or the stage with objective halt"
                    .to_owned(),
            );
        }
        if self.stages.is_empty() {
            return fail(
                "stages".to_owned(),
                "there is nothing to train; add a [[stages]]".to_owned(),
            );
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let key = |part: &str| format!("stages.{}.{part}", stage.name);
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if stage.name.is_empty() || !stage.name.chars().all(plain) {
                return fail(
                    format!("stages.{index}.name"),
                    format!(
                        "{:?} names a folder: use letters, digits, `_` and `-`",
                        stage.name
                    ),
                );
            }
            let earlier = &self.stages[..index];
            if earlier.iter().any(|other| other.name == stage.name) {
                return fail(
                    format!("stages.{index}.name"),
                    format!("{:?} is taken", stage.name),
                );
            }
            self.check_start(index)?;
            if let Some((part, reason)) = stage.objective.problem() {
                return fail(key(&format!("objective.{part}")), reason);
            }
            if let Initialize::Stage { stage: from } = &stage.initialize
                && !earlier.iter().any(|other| other.name == *from)
            {
                let names: Vec<&str> = earlier.iter().map(|other| other.name.as_str()).collect();
                return fail(
                    key("initialize.stage"),
                    format!(
                        "no earlier stage is called {from:?}; there are: {}",
                        names.join(", ")
                    ),
                );
            }
            if self.has_shape_of_model(stage) {
                stage.check_landing(self.model.layers, "raise model.layers")?;
            }
            if let Some((part, reason)) = stage.training.problem() {
                return fail(key(&format!("training.{part}")), reason);
            }
            if !is_default(&stage.teacher_states) && !stage.objective.has_frozen_teacher() {
                let kind = stage.objective.kind();
                return fail(
                    key("teacher_states"),
                    format!("objective {kind} has no frozen teacher; leave it out"),
                );
            }
            if stage.batches.batch_size == 0 {
                return fail(key("batches.batch_size"), "must be at least 1".to_owned());
            }
            if stage.batches.length_exponent > 16 {
                return fail(
                    key("batches.length_exponent"),
                    "above 16 hardly any but the longest rows are left".to_owned(),
                );
            }
            let (rows, parts) = (stage.batches.batch_size as u64, stage.training.accumulation);
            if !rows.is_multiple_of(parts) {
                return fail(
                    key("training.accumulation"),
                    format!("{rows} rows of a step cannot be cut into {parts} equal parts"),
                );
            }
        }
        Ok(())
    }

    /// Whether `stage` goes back to weights drawn in this run, whose shape is that of `[model]`.
    fn has_shape_of_model(&self, stage: &Stage) -> bool {
        match &stage.initialize {
            Initialize::Scratch => true,
            Initialize::Stage { stage: from } => self
                .stage(from)
                .is_some_and(|source| self.has_shape_of_model(source)),
            // Their own shape is looked at where they are opened.
            Initialize::Checkpoint { .. } | Initialize::HuggingFace { .. } => false,
        }
    }

    /// Whether stage `index` starts from a kind of model that its objective can use.
    fn check_start(&self, index: usize) -> Result<(), Misuse> {
        let stage = &self.stages[index];
        let Some((kinds, reason)) = stage.objective.wants() else {
            return Ok(());
        };
        let fail = |found: String| {
            let candidates: Vec<&str> = self.stages[..index]
                .iter()
                .filter(|other| kinds.contains(&other.objective.kind()))
                .map(|other| other.name.as_str())
                .collect();
            let remedy = match candidates.as_slice() {
                [] => {
                    let kinds = kinds.join(" or ");
                    format!("put a stage with objective {kinds} before it and start from that")
                }
                names => format!("start from {}", names.join(" or ")),
            };
            Err(Misuse(format!(
                "stages.{}.initialize: {found}, but {reason}; {remedy}",
                stage.name
            )))
        };
        match &stage.initialize {
            Initialize::Scratch => fail("it starts from scratch".to_owned()),
            Initialize::HuggingFace { .. } if !kinds.contains(&"cot") => {
                fail("it starts from a Hugging Face model".to_owned())
            }
            // What is in a folder is checked when it is opened.
            Initialize::HuggingFace { .. } | Initialize::Checkpoint { .. } => Ok(()),
            Initialize::Stage { stage: from } => {
                let source = self.stages[..index]
                    .iter()
                    .find(|other| other.name == *from);
                match source {
                    Some(source) if !kinds.contains(&source.objective.kind()) => {
                        fail(format!("{from} has objective {}", source.objective.kind()))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The stage that others are compared with: the first that reasons in words.
    pub fn reference(&self) -> Option<&str> {
        let cot = |stage: &&Stage| stage.objective == Objective::Cot;
        self.stages
            .iter()
            .find(cot)
            .map(|stage| stage.name.as_str())
    }

    /// The stages of this experiment that `name` goes back to, the farthest first, itself last; none where
    /// there is no such stage.
    pub fn ancestry(&self, name: &str) -> Vec<&Stage> {
        let mut found = Vec::new();
        let mut next = self.stage(name);
        while let Some(stage) = next {
            found.push(stage);
            next = match &stage.initialize {
                // Of a configuration that was not checked, a circle ends where every stage was seen.
                Initialize::Stage { stage } if found.len() < self.stages.len() => self.stage(stage),
                _ => None,
            };
        }
        found.reverse();
        found
    }

    /// The stage called `name`.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}
