//! How much each reasoning step adds to the likelihood of the answer.
//!
//! The importance of step k is `log p(answer | question, all steps) - log p(answer | question, steps without
//! k)` under a chain-of-thought model: the negative of what VARR (arXiv 2412.21006, section 3) calls the
//! verbosity of a sentence. It is in nats, teacher forced, over the tokens of the answer and its end; the
//! marker before the answer, which says that reasoning is over, does not count.
//!
//! Steps that say the same twice are each worth nothing beside the other. [`Walk::FrontToBack`] therefore
//! removes a step that adds nothing at once and scores later ones without it.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use sesqui_dataset::DatasetError;
use sesqui_dataset::batch::SequenceBatch;
use sesqui_dataset::encode::{
    EncodedProblem, PositionLayout, Segment, Sequence, Supervision, sequence,
};
use sesqui_kernels::read;
use sesqui_model::Transformer;

use crate::loss::hidden_states;

/// Which steps are left out together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Walk {
    /// Each step alone, all others there.
    LeaveOneOut,
    /// Front to back; a step whose importance is 0 or less is removed for good, as VARR does. The steps
    /// that remain are scored once more at the end, so that what was removed behind a step counts too; a
    /// removed step keeps the importance it had when it went.
    FrontToBack {
        /// Greatest share of a problem's steps to remove, in [0, 1], rounded down: VARR's cap `⌊N t/T⌋` at
        /// one `t/T` of its schedule. One step always stays.
        most_removed: f64,
    },
}

/// The steps of one problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// One value per step, in nats.
    pub nats: Vec<f64>,
    /// For each step whether it was removed; all `false` without removals.
    pub removed: Vec<bool>,
}

/// A model that gives answers a likelihood, and how its problems are laid out.
#[derive(Clone, Copy, Debug)]
pub struct Scorer<'a> {
    /// A chain-of-thought model, off the autodiff tape.
    pub backbone: &'a Transformer,
    /// Position ids that it was trained with.
    pub layout: PositionLayout,
    /// Id at pads.
    pub pad: u32,
}

impl Scorer<'_> {
    /// Importances of the steps of `problems`, which are scored together: one pass over all of them as they
    /// are, and one for each step index.
    ///
    /// A problem without a step is encoded as a problem of fewer steps is; no gap marks the place.
    ///
    /// # Errors
    ///
    /// When a question is longer than the layout allows.
    pub fn importances(
        &self,
        problems: &[EncodedProblem],
        walk: Walk,
    ) -> Result<Vec<Importance>, DatasetError> {
        let mut found: Vec<Importance> = problems
            .iter()
            .map(|problem| Importance {
                nats: vec![0.0; problem.steps.len()],
                removed: vec![false; problem.steps.len()],
            })
            .collect();
        let longest = problems.iter().map(|problem| problem.steps.len()).max();
        let steps = 0..longest.unwrap_or(0);
        let mut whole = self.log_likelihoods(problems)?;
        if let Walk::FrontToBack { most_removed } = walk {
            for step in steps.clone() {
                for (row, without) in self.without(problems, &found, step)? {
                    let Importance { nats, removed } = &mut found[row];
                    nats[step] = whole[row] - without;
                    let gone = removed.iter().filter(|gone| **gone).count();
                    if nats[step] <= 0.0 && gone < cap(removed.len(), most_removed) {
                        removed[step] = true;
                        whole[row] = without;
                    }
                }
            }
        }
        for step in steps {
            for (row, without) in self.without(problems, &found, step)? {
                found[row].nats[step] = whole[row] - without;
            }
        }
        Ok(found)
    }

    /// The problems that still have `step`, by index, with the likelihood of their answers without it.
    fn without(
        &self,
        problems: &[EncodedProblem],
        found: &[Importance],
        step: usize,
    ) -> Result<Vec<(usize, f64)>, DatasetError> {
        let there = |row: &usize| found[*row].removed.get(step) == Some(&false);
        let rows: Vec<usize> = (0..problems.len()).filter(there).collect();
        let shorter: Vec<EncodedProblem> = rows
            .iter()
            .map(|&row| {
                let removed = &found[row].removed;
                problems[row].with_steps(|index| index != step && !removed[index])
            })
            .collect();
        let likelihoods = self.log_likelihoods(&shorter)?;
        Ok(rows.into_iter().zip(likelihoods).collect())
    }

    /// `log p(answer | question, steps)` of each problem, in nats.
    ///
    /// # Errors
    ///
    /// When a question is longer than the layout allows.
    pub fn log_likelihoods(&self, problems: &[EncodedProblem]) -> Result<Vec<f64>, DatasetError> {
        if problems.is_empty() {
            return Ok(Vec::new());
        }
        let sequences = problems
            .iter()
            .map(|problem| sequence(problem, Supervision::ChainOfThought, self.layout))
            .collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<u32> = (0..sequences.len() as u32).collect();
        let batch = SequenceBatch::collate(&sequences, &rows, self.pad)?;
        // Cells whose target is of the answer, row by row.
        let cells: Vec<usize> = sequences
            .iter()
            .enumerate()
            .flat_map(|(row, sequence)| answers(sequence).map(move |index| (row, index - 1)))
            .map(|(row, input)| row * batch.seq + input)
            .collect();
        let mut sums = vec![0.0; problems.len()];
        for (cell, value) in cells.iter().zip(self.log_probabilities(&batch, &cells)) {
            sums[cell / batch.seq] += f64::from(value);
        }
        Ok(sums)
    }

    /// Logarithms of the probabilities of the targets at `cells` of the flattened batch.
    fn log_probabilities(&self, batch: &SequenceBatch, cells: &[usize]) -> Vec<f32> {
        let n = cells.len();
        let hidden = hidden_states(self.backbone, batch);
        let device = &hidden.device();
        let upload = |values: Vec<i32>| TensorData::new(values, [n]);
        let index = upload(cells.iter().map(|&cell| cell as i32).collect());
        let index = Tensor::<1, Int>::from_data(index, device);
        let targets = upload(cells.iter().map(|&cell| batch.target_ids[cell]).collect());
        let targets = Tensor::<1, Int>::from_data(targets, device).reshape([n, 1]);
        let [rows, seq, d_model] = hidden.dims();
        let picked = hidden.reshape([rows * seq, d_model]).select(0, index);
        let backbone = self.backbone;
        let logits = backbone.head(backbone.final_norm(picked.unsqueeze_dim(0)));
        let logits = logits.reshape([n, backbone.vocabulary()]);
        let found = log_softmax(logits, 1).gather(1, targets);
        read(found).iter::<f32>().collect()
    }
}

/// Tokens of the answer, its end included.
fn answers(sequence: &Sequence) -> impl Iterator<Item = usize> {
    let segments = sequence.segments.iter().enumerate();
    segments
        .filter(|(_, segment)| **segment == Segment::Answer)
        .map(|(index, _)| index)
}

/// How many of `steps` may be removed.
fn cap(steps: usize, most_removed: f64) -> usize {
    let most = (most_removed * steps as f64).floor() as usize;
    most.min(steps.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_rounds_down_and_leaves_one() {
        let cases = [
            (0, 1.0, 0),
            (1, 1.0, 0),
            (3, 1.0, 2),
            (3, 0.5, 1),
            (4, 0.5, 2),
            (6, 0.0, 0),
        ];
        for (steps, share, expected) in cases {
            assert_eq!(cap(steps, share), expected, "{share} of {steps}");
        }
    }
}
