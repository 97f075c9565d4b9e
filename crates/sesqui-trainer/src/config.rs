//! The training section of a stage.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

/// How long and how to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Parts a step is computed in; their gradients are averaged. Parts save memory one after another,
    /// and time side by side.
    pub accumulation: u64,
    /// What the way back computes again rather than keeping.
    #[serde(skip_serializing_if = "Recompute::is_nothing")]
    pub recompute: Recompute,
    /// Learning rate.
    pub learning_rate: Schedule,
    /// AdamW's first moment decay.
    pub beta_1: f32,
    /// AdamW's second moment decay.
    pub beta_2: f32,
    /// AdamW's epsilon.
    pub epsilon: f32,
    /// Decoupled weight decay, on every parameter.
    pub weight_decay: f32,
    /// Greatest norm of the whole gradient; 0 means no clipping.
    pub clip_norm: f64,
    /// Steps between lines of the plain log.
    pub log_every: u64,
    /// Steps between validations; 0 means only after the last step.
    pub validate_every: u64,
    /// When to stop before the last step.
    pub early_stopping: EarlyStopping,
    /// What to keep.
    pub checkpoints: CheckpointPolicy,
}

/// What the way back computes again rather than keeping (gradient checkpointing, Chen et al. 2016, as Burn does it:
/// operation by operation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing: fastest, and on the CPU the only way to the fused operations.
    #[default]
    Nothing,
    /// Results of operations that memory bounds, element by element or reductions: less memory for more time.
    MemoryBound,
}

impl Recompute {
    /// Whether everything is kept.
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }

    /// `device` as steps are computed on it: under autodiff, which keeps so much.
    pub fn tracked(self, device: &Device) -> Device {
        let device = device.clone().without_autodiff().autodiff();
        match self {
            Self::Nothing => device,
            Self::MemoryBound => device.gradient_checkpointing(),
        }
    }
}

/// When to stop before the last step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EarlyStopping {
    /// Never.
    Never,
    /// When validation accuracy reaches a mark.
    Reached {
        /// Accuracy in `[0, 1]`.
        accuracy: f64,
    },
    /// When validation accuracy has not risen for a number of validations.
    Stalled {
        /// Validations without a new best.
        patience: u64,
    },
}

/// Which checkpoints survive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointPolicy {
    /// Steps between checkpoints; 0 means only after the last step.
    pub every: u64,
    /// How many of the latest to keep, at least 1.
    pub keep_last: usize,
    /// Steps whose checkpoints are written and kept whatever comes later; those beyond the last
    /// step have no effect.
    pub keep_at: Vec<u64>,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 1_200,
            accumulation: 1,
            recompute: Recompute::Nothing,
            learning_rate: Schedule::default(),
            beta_1: 0.9,
            beta_2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip_norm: 1.0,
            log_every: 50,
            validate_every: 200,
            early_stopping: EarlyStopping::Never,
            checkpoints: CheckpointPolicy::default(),
        }
    }
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self {
            every: 250,
            keep_last: 2,
            keep_at: Vec::new(),
        }
    }
}

impl TrainingConfig {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        let at_least_one = [
            ("steps", self.steps),
            ("accumulation", self.accumulation),
            ("log_every", self.log_every),
            ("checkpoints.keep_last", self.checkpoints.keep_last as u64),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Some((key.to_owned(), "must be at least 1".to_owned()));
            }
        }
        for (key, value) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            if !(0.0..1.0).contains(&value) {
                return Some((key.to_owned(), format!("{value} is not in [0, 1)")));
            }
        }
        // A weight that no token has touched has a gradient of 0 and moments of 0.
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            let reason = format!("{} is not above 0", self.epsilon);
            return Some(("epsilon".to_owned(), reason));
        }
        let not_negative = [
            ("weight_decay", f64::from(self.weight_decay)),
            ("clip_norm", self.clip_norm),
        ];
        for (key, value) in not_negative {
            if !value.is_finite() || value < 0.0 {
                return Some((key.to_owned(), format!("{value} is not 0 or more")));
            }
        }
        if self.checkpoints.keep_at.contains(&0) {
            return Some((
                "checkpoints.keep_at".to_owned(),
                "steps are counted from 1; 0 has no checkpoint".to_owned(),
            ));
        }
        if let EarlyStopping::Stalled { patience: 0 } = self.early_stopping {
            return Some((
                "early_stopping.patience".to_owned(),
                "must be at least 1".to_owned(),
            ));
        }
        if self.early_stopping != EarlyStopping::Never && self.validate_every == 0 {
            return Some((
                "validate_every".to_owned(),
                "early stopping needs validations; give a number of steps".to_owned(),
            ));
        }
        self.learning_rate
            .problem()
            .map(|(key, reason)| (format!("learning_rate.{key}"), reason))
    }
}
