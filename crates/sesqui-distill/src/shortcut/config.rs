//! Settings of stage 2.

use serde::{Deserialize, Serialize};
use sesqui_shortcut::early_exit::EarlyExitConfig;
use sesqui_shortcut::soft::SoftConfig;
use sesqui_shortcut::{EntryPosition, KeyValueRule, Landing, ShortcutConfig};

use crate::latent::SlotLabel;
use crate::student::Staircase;

/// Stage 2 as a setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShortcutStageConfig {
    /// Shapes of routers and adapters.
    pub shortcuts: ShortcutConfig,
    /// What is seen of a latent step in layers that it did not run.
    pub key_values: KeyValueRule,
    /// Where a latent step goes on after one that left early (D1).
    pub landing: Landing,
    /// Whether it is given its learned position there (D4).
    pub entry_position: EntryPositionChoice,
    /// Which weights move.
    pub trains: Trains,
    /// What is minimised.
    pub loss: ShortcutLoss,
}

/// Whether a latent step that goes on above the bottom is given its learned position there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryPositionChoice {
    /// As the loss trains it: the staircase takes [`EntryPosition::EveryEntry`], the composition, whose
    /// Eq. 5 adds no position between layers, [`EntryPosition::CycleStart`].
    #[default]
    ByLoss,
    /// [`EntryPosition::EveryEntry`].
    EveryEntry,
    /// [`EntryPosition::CycleStart`].
    CycleStart,
}

/// Which weights move in stage 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trains {
    /// Routers and adapters; the student stays as it is, bit for bit.
    #[default]
    Shortcuts,
    /// Everything (the full-parameter ablation of the paper's Fig. 3).
    Everything,
}

/// What stage 2 minimises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ShortcutLoss {
    /// The hard path that inference takes, with exits drawn at random, and routers that learn the
    /// criticality labels. An extension of the paper.
    Staircase(StaircaseConfig),
    /// The soft composition of Eq. 5 under Eq. 10 and 12, as printed.
    Composition(CompositionConfig),
}

impl Default for ShortcutLoss {
    fn default() -> Self {
        Self::Staircase(StaircaseConfig::default())
    }
}

/// Training on the hard path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaircaseConfig {
    /// Weight of the answer's cross-entropy.
    pub answer: f64,
    /// Weight of the squared difference to the teacher, at finished latent steps and in the answer.
    pub alignment: f64,
    /// Weight of the routers' binary cross-entropy.
    pub routers: f64,
    /// Which steps are to leave early: what routers learn, and what `planned` batches do.
    pub leaving: Leaving,
    /// Share of batches in which every step that is to leave does so at boundary 1.
    pub planned: f64,
    /// Share of batches with random exits at random boundaries; in the rest the routers decide.
    pub random: f64,
    /// Exit thresholds that are drawn from where the routers decide.
    pub thresholds: Vec<f64>,
}

impl Default for StaircaseConfig {
    fn default() -> Self {
        Self {
            answer: 1.0,
            alignment: 1.0,
            routers: 1.0,
            leaving: Leaving::default(),
            planned: 0.5,
            random: 0.35,
            thresholds: vec![0.3, 0.5, 0.6, 0.8],
        }
    }
}

/// Which steps are to leave early, in training on the hard path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaving {
    /// Those that hold the answer ready. They are what a student can spare whose stage 1 let nothing
    /// else leave.
    #[default]
    Padding,
    /// All that are not critical, the paper's `1 - c`: independent steps too.
    NonCritical,
}

impl Leaving {
    /// Whether a step of this label is to leave; `None` where nobody knows.
    pub fn wants(self, label: SlotLabel) -> Option<bool> {
        match self {
            Self::Padding => Some(label == SlotLabel::Padding),
            Self::NonCritical => label.critical().map(|critical| !critical),
        }
    }
}

/// Training on the soft composition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompositionConfig {
    /// How layer and shortcuts are mixed (Eq. 1 to 5, D9).
    pub composition: SoftConfig,
    /// The early-exit loss (Eq. 10, D11, D12, D14).
    pub early_exit: EarlyExitConfig,
    /// Weight of the early-exit loss: `beta` of Eq. 13.
    pub beta: f64,
    /// Weight of the compute term, which rewards leaving, of padding too (D13). An extension: 0 as
    /// printed.
    pub gamma: f64,
    /// Whose states are fed to the latent steps (D19).
    pub inputs: StudentInputs,
}

impl Default for CompositionConfig {
    fn default() -> Self {
        Self {
            composition: SoftConfig::default(),
            early_exit: EarlyExitConfig::default(),
            beta: 1.0,
            gamma: 0.0,
            inputs: StudentInputs::default(),
        }
    }
}

/// Whose states are fed to the latent steps of the composed model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StudentInputs {
    /// The student's outputs in a pass that was fed the teacher's states.
    #[default]
    TeacherForced,
    /// The student's outputs when it feeds itself.
    FreeRunning,
}

impl ShortcutStageConfig {
    /// Whether a latent step that goes on above the bottom is given its learned position, settled.
    pub fn entry_position(&self) -> EntryPosition {
        match (self.entry_position, &self.loss) {
            (EntryPositionChoice::EveryEntry, _)
            | (EntryPositionChoice::ByLoss, ShortcutLoss::Staircase(_)) => {
                EntryPosition::EveryEntry
            }
            (EntryPositionChoice::CycleStart, _)
            | (EntryPositionChoice::ByLoss, ShortcutLoss::Composition(_)) => {
                EntryPosition::CycleStart
            }
        }
    }

    /// The staircase of inference, which the staircase loss trains too.
    pub fn staircase(&self) -> Staircase {
        Staircase {
            key_values: self.key_values,
            landing: self.landing,
            entry_position: self.entry_position(),
        }
    }

    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(String, String)> {
        if let Some((key, reason)) = self.shortcuts.problem() {
            return Some((format!("shortcuts.{key}"), reason));
        }
        let weights = match &self.loss {
            ShortcutLoss::Staircase(config) => [
                ("loss.answer", config.answer),
                ("loss.alignment", config.alignment),
                ("loss.routers", config.routers),
            ],
            ShortcutLoss::Composition(config) => [
                ("loss.beta", config.beta),
                ("loss.gamma", config.gamma),
                ("loss.gamma", config.gamma),
            ],
        };
        for (key, weight) in weights {
            if !weight.is_finite() || weight < 0.0 {
                let reason = format!("{weight} is not a weight; give 0 or more");
                return Some((key.to_owned(), reason));
            }
        }
        let ShortcutLoss::Staircase(config) = &self.loss else {
            return None;
        };
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            let reason = "all weights are 0: nothing would be learned".to_owned();
            return Some(("loss".to_owned(), reason));
        }
        if let Some(threshold) = config
            .thresholds
            .iter()
            .find(|threshold| !(0.0..=1.0).contains(*threshold))
        {
            let reason = format!("{threshold} is not in [0, 1]");
            return Some(("loss.thresholds".to_owned(), reason));
        }
        let rest = 1.0 - config.planned - config.random;
        // Written so that what is not a number is refused too.
        if !(config.planned >= 0.0 && config.random >= 0.0 && rest >= -1e-9) {
            return Some((
                "loss.planned".to_owned(),
                "shares of batches lie in [0, 1] and sum to at most 1, with loss.random".to_owned(),
            ));
        }
        if rest > 1e-9 && config.thresholds.is_empty() {
            return Some((
                "loss.thresholds".to_owned(),
                "name at least one, or let the other shares sum to 1".to_owned(),
            ));
        }
        None
    }
}
