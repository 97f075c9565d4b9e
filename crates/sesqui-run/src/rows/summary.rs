//! `summary.json`: the table a run ends with, and what reports compare.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{RowError, Schema};
use crate::files::{atomic_write, read_text};

/// The measured outcome of a run, one row per method and test set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this file.
    pub schema: Schema<1>,
    /// Name of the run: its folder's name.
    pub run: String,
    /// Name of the variant: the stem of its config file.
    pub variant: String,
    /// Hash of the frozen configuration, 8 hexadecimal digits.
    pub config_hash: String,
    /// What was measured.
    pub rows: Vec<SummaryRow>,
}

/// One method on one test set. The costs are means per question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SummaryRow {
    /// The method, with the setting that distinguishes it, for example `shortcut` or `cot`.
    pub method: String,
    /// Name of the data set.
    pub dataset: String,
    /// Name of the split or of the test set.
    pub split: String,
    /// Number of questions.
    pub n: u64,
    /// Share of right answers, 0 to 1.
    pub accuracy: f64,
    /// Lower end of the 95 % Wilson interval of `accuracy`.
    pub ci_low: f64,
    /// Upper end of the 95 % Wilson interval of `accuracy`.
    pub ci_high: f64,
    /// Tokens generated per question, the answer included.
    pub tokens: f64,
    /// Latent steps per question.
    pub latent_steps: f64,
    /// Transformer layers run per question while reasoning: one call is one layer at one position.
    pub layer_calls: f64,
    /// Floating point operations per question, prompt and answer included; a multiply-add counts 2.
    pub flops: f64,
    /// Of these the ones inside layers while reasoning: what System-1.5 Reasoning (arXiv 2505.18962,
    /// appendix B) counts, with neither head nor norms.
    #[serde(default)]
    pub reason_flops: f64,
    /// Milliseconds per question between the end of the prompt and the first token of the answer.
    pub reason_ms: f64,
    /// Milliseconds per question from the prompt to the last token.
    pub total_ms: f64,
    /// Seed of the training run.
    pub seed: u64,
    /// Checkpoint measured, as `<stage>/step-<n>` below `checkpoints/`.
    pub checkpoint: String,
}

impl Summary {
    /// Reads `summary.json`.
    ///
    /// # Errors
    /// When the file is missing, is not JSON or has another schema; the error names file and line.
    pub fn read(path: &Path) -> Result<Self, RowError> {
        serde_json::from_str(&read_text(path)?).map_err(|error| RowError::Line {
            path: path.to_path_buf(),
            line: error.line(),
            reason: error.to_string(),
        })
    }

    /// Writes `summary.json` in one step.
    ///
    /// # Errors
    /// When the file cannot be written, or when a number is not finite: a table of results with a NaN
    /// in it is a bug upstream.
    pub fn write(&self, path: &Path) -> Result<(), RowError> {
        let encode = |reason: String| RowError::Encode {
            path: path.to_path_buf(),
            reason,
        };
        for row in &self.rows {
            let numbers = [
                ("accuracy", row.accuracy),
                ("ci_low", row.ci_low),
                ("ci_high", row.ci_high),
                ("tokens", row.tokens),
                ("latent_steps", row.latent_steps),
                ("layer_calls", row.layer_calls),
                ("flops", row.flops),
                ("reason_ms", row.reason_ms),
                ("total_ms", row.total_ms),
            ];
            if let Some((name, value)) = numbers.iter().find(|(_, value)| !value.is_finite()) {
                let (method, split) = (&row.method, &row.split);
                return Err(encode(format!(
                    "`{name}` of {method} on {split} is {value}"
                )));
            }
        }
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| encode(error.to_string()))?;
        text.push(b'\n');
        Ok(atomic_write(path, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_survive_the_disk_and_refuse_nan() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        let mut summary = Summary {
            rows: vec![SummaryRow {
                method: "cot".to_owned(),
                split: "test".to_owned(),
                n: 3,
                accuracy: 2.0 / 3.0,
                ..SummaryRow::default()
            }],
            ..Summary::default()
        };
        summary.write(&path).unwrap();
        assert_eq!(Summary::read(&path).unwrap(), summary);
        summary.rows[0].flops = f64::NAN;
        let error = summary.write(&path).unwrap_err().to_string();
        assert!(error.ends_with("`flops` of cot on test is NaN"), "{error}");
    }
}
