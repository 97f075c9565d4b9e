//! How models reason when they are asked.

use serde::{Deserialize, Serialize};
use sesqui_model::{Continuation, LatentOrder};
use sesqui_reason::{HaltConfig, RefineConfig, TokenExit};

use crate::refinement::ReferencesConfig;

/// How many latent steps to run. In a file 0 stands for as many as trained; on a command line, where
/// leaving the flag out does, it is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "usize", into = "usize")]
pub enum LatentSteps {
    /// As many as trained.
    #[default]
    AsTrained,
    /// This many.
    Exactly(usize),
}

impl LatentSteps {
    /// For a model that was trained with `trained` of them.
    pub fn settle(self, trained: usize) -> usize {
        match self {
            Self::AsTrained => trained,
            Self::Exactly(steps) => steps,
        }
    }
}

impl From<usize> for LatentSteps {
    fn from(steps: usize) -> Self {
        match steps {
            0 => Self::AsTrained,
            steps => Self::Exactly(steps),
        }
    }
}

impl From<LatentSteps> for usize {
    fn from(steps: LatentSteps) -> Self {
        match steps {
            LatentSteps::AsTrained => 0,
            LatentSteps::Exactly(steps) => steps,
        }
    }
}

/// What follows the last latent step, as a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContinuationChoice {
    /// What the model was trained for.
    #[default]
    AsTrained,
    /// The marker before the answer, which is fed.
    Answer,
    /// Whatever the model writes by itself.
    Text,
}

impl ContinuationChoice {
    fn is_as_trained(&self) -> bool {
        *self == Self::AsTrained
    }

    /// For a model that was trained for `trained`.
    pub fn settle(self, trained: Continuation) -> Continuation {
        match self {
            Self::AsTrained => trained,
            Self::Answer => Continuation::Answer,
            Self::Text => Continuation::Text,
        }
    }
}

/// In which order latent steps are computed, as a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OrderChoice {
    /// As the model was trained.
    #[default]
    AsTrained,
    /// One after another.
    Sequential,
    /// All at once, so many times over.
    Jacobi {
        /// How many times.
        iterations: usize,
    },
}

impl OrderChoice {
    fn is_as_trained(&self) -> bool {
        *self == Self::AsTrained
    }

    /// For a model that was trained in the order `trained`.
    pub fn settle(self, trained: LatentOrder) -> LatentOrder {
        match self {
            Self::AsTrained => trained,
            Self::Sequential => LatentOrder::Sequential,
            Self::Jacobi { iterations } => LatentOrder::Jacobi { iterations },
        }
    }

    /// What is wrong with it, if anything.
    fn problem(&self) -> Option<(&'static str, String)> {
        let none = *self == Self::Jacobi { iterations: 0 };
        none.then(|| ("iterations", "must be at least 1".to_owned()))
    }
}

/// The two thresholds of System-1.5 Reasoning (arXiv 2505.18962, section 2.1), refinement, halting, and early
/// exit of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReasoningConfig {
    /// Latent steps: the paper's `lambda_step`; 0 means as many as trained.
    pub latent_steps: LatentSteps,
    /// What follows the last of them. Written out only where it is set: the configuration of a run that is
    /// older than the setting stays the same, and the run can be resumed.
    #[serde(skip_serializing_if = "ContinuationChoice::is_as_trained")]
    pub continuation: ContinuationChoice,
    /// In which order they are computed. Models with shortcuts go one after another, since a step that leaves
    /// early hands its state on.
    #[serde(skip_serializing_if = "OrderChoice::is_as_trained")]
    pub order: OrderChoice,
    /// A latent step leaves where a router's weight exceeds this: the paper's `lambda_depth`; 1 is
    /// never exceeded.
    pub exit_threshold: f64,
    /// What is done to latents before they are fed, in evaluations; validation while training feeds
    /// them as they come.
    pub refine: RefineConfig,
    /// Which checkpoints that takes.
    pub references: ReferencesConfig,
    /// When reasoning stops before its last latent step, in evaluations; validation while training runs
    /// all of them but in the stage that learns it.
    pub halt: HaltConfig,
    /// After how many layers models that reason in words choose a token, in evaluations; validation while
    /// training runs all of them. Written out only where it is set, as `continuation` is.
    #[serde(skip_serializing_if = "TokenExit::is_never")]
    pub token_exit: TokenExit,
}

impl Default for ReasoningConfig {
    fn default() -> Self {
        Self {
            latent_steps: LatentSteps::default(),
            continuation: ContinuationChoice::default(),
            order: OrderChoice::default(),
            exit_threshold: 0.6,
            refine: RefineConfig::default(),
            references: ReferencesConfig::default(),
            halt: HaltConfig::default(),
            token_exit: TokenExit::default(),
        }
    }
}

impl ReasoningConfig {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        let threshold = self.exit_threshold;
        if !(0.0..=1.0).contains(&threshold) {
            let reason = format!("{threshold} is not in [0, 1]; 1 runs every layer");
            return Some(("exit_threshold".to_owned(), reason));
        }
        let below = |part: &str, problem: Option<(&'static str, String)>| {
            problem.map(|(key, reason)| (format!("{part}.{key}"), reason))
        };
        below("refine", self.refine.problem())
            .or_else(|| below("references", self.references.problem()))
            .or_else(|| below("halt", self.halt.problem()))
            .or_else(|| below("token_exit", self.token_exit.problem()))
            .or_else(|| below("order", self.order.problem()))
            .or_else(|| {
                let between = !self.refine.is_off() || !self.halt.is_never();
                (matches!(self.order, OrderChoice::Jacobi { .. }) && between).then(|| {
                    let reason = "nothing can be refined or stopped between latent steps that are computed \
                                  all at once; leave out [reasoning.refine] and halt";
                    ("order".to_owned(), reason.to_owned())
                })
            })
            .or_else(|| {
                let samples = matches!(self.halt, HaltConfig::Samples(_));
                (samples && !self.refine.is_off()).then(|| {
                    let reason = "samples cannot be refined; leave out [reasoning.refine] or halt";
                    ("halt".to_owned(), reason.to_owned())
                })
            })
    }
}
