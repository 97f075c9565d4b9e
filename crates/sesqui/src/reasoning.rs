//! How latent models reason when they are asked.

use serde::{Deserialize, Serialize};
use sesqui_reason::{HaltConfig, RefineConfig};

use crate::refinement::ReferencesConfig;

/// Why programs refuse `--latent-steps 0`. In a file 0 stands for as many as trained; on a command line,
/// where leaving the flag out does, it can only be a mistake.
pub const NO_LATENT_STEPS: &str = "--latent-steps 0: a latent model takes at least one latent step; \
                                   leave the flag out for as many as trained";

/// The two thresholds of System-1.5 Reasoning (arXiv 2505.18962, section 2.1), refinement, and halting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReasoningConfig {
    /// Latent steps: the paper's `lambda_step`; 0 means as many as trained.
    pub latent_steps: usize,
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
}

impl Default for ReasoningConfig {
    fn default() -> Self {
        Self {
            latent_steps: 0,
            exit_threshold: 0.6,
            refine: RefineConfig::default(),
            references: ReferencesConfig::default(),
            halt: HaltConfig::default(),
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
            .or_else(|| {
                let samples = matches!(self.halt, HaltConfig::Samples(_));
                (samples && !self.refine.is_off()).then(|| {
                    let reason = "samples cannot be refined; leave out [reasoning.refine] or halt";
                    ("halt".to_owned(), reason.to_owned())
                })
            })
    }
}
