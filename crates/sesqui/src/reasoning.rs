//! How latent models reason when they are asked.

use serde::{Deserialize, Serialize};

/// The two thresholds of System-1.5 Reasoning (arXiv 2505.18962, section 2.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReasoningConfig {
    /// Latent steps: the paper's `lambda_step`; 0 means as many as trained.
    pub latent_steps: usize,
    /// A latent step leaves where a router's weight exceeds this: the paper's `lambda_depth`; 1 is
    /// never exceeded.
    pub exit_threshold: f64,
}

impl Default for ReasoningConfig {
    fn default() -> Self {
        Self {
            latent_steps: 0,
            exit_threshold: 0.6,
        }
    }
}

impl ReasoningConfig {
    /// What is wrong with the numbers, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let threshold = self.exit_threshold;
        (!(0.0..=1.0).contains(&threshold)).then(|| {
            (
                "exit_threshold",
                format!("{threshold} is not in [0, 1]; 1 runs every layer"),
            )
        })
    }
}
