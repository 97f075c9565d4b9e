//! Rectangles of token ids: right-padded for training, left-padded for decoding.
//!
//! Everything is row-major `[batch, seq]`. Which rows go into which batch is the subject of
//! [`order`]; nothing in here draws a random number.

pub mod order;

use serde::{Deserialize, Serialize};

use crate::encode::{EncodedProblem, PositionLayout, Sequence, Supervision};
use crate::error::DatasetError;
pub use order::{BatchOrder, Grouping};

/// How training rows are put into batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Rows per optimizer step.
    pub batch_size: usize,
    /// Which rows share a batch.
    pub grouping: Grouping,
    /// How much more often longer rows are seen: an epoch leaves out rows so that each stays with a
    /// probability of its length over the greatest, to this power. 0 leaves out none.
    pub length_exponent: u32,
    /// What to do with problems longer than the model's context.
    pub too_long: TooLong,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            batch_size: 32,
            grouping: Grouping::default(),
            length_exponent: 0,
            too_long: TooLong::default(),
        }
    }
}

/// What to do with a problem that does not fit the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// Stop and name the problem.
    #[default]
    Fail,
    /// Leave it out and list it.
    Skip,
}

/// A batch for training with next-token targets: a sequence x_0..x_T gives inputs x_0..x_{T-1} and
/// targets x_1..x_T. Short rows are padded on the right.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceBatch {
    /// Rows.
    pub batch: usize,
    /// Columns: the longest row's inputs.
    pub seq: usize,
    /// Input tokens; padding has the pad id.
    pub input_ids: Vec<i32>,
    /// Position ids of the inputs; padding has 0.
    pub position_ids: Vec<i32>,
    /// True for input tokens, false for padding.
    pub real: Vec<bool>,
    /// The token that follows each input; padding has the pad id.
    pub target_ids: Vec<i32>,
    /// Weight of each target in the loss: 0 for question tokens and padding, else 1.
    pub loss_weights: Vec<f32>,
    /// Index of each row's sequence in the list the batch was collated from.
    pub problems: Vec<u32>,
    /// Input tokens that are not padding.
    pub tokens: usize,
}

impl SequenceBatch {
    /// Makes a batch of `sequences[row]` for each of `rows`.
    ///
    /// # Errors
    /// No rows, a row outside `sequences`, a sequence of fewer than two tokens, or an id above
    /// `i32::MAX`.
    pub fn collate(
        sequences: &[Sequence],
        rows: &[u32],
        pad_id: u32,
    ) -> Result<Self, DatasetError> {
        let picked = pick(sequences, rows)?;
        let mut seq = 0;
        for (sequence, row) in picked.iter().zip(rows) {
            if sequence.ids.len() < 2 {
                return Err(DatasetError::Config(format!(
                    "row {row}: a training sequence needs two tokens, this one has {}",
                    sequence.ids.len()
                )));
            }
            seq = seq.max(sequence.ids.len() - 1);
        }
        let cells = seq * picked.len();
        let pad = signed(pad_id)?;
        let mut batch = Self {
            batch: picked.len(),
            seq,
            input_ids: Vec::with_capacity(cells),
            position_ids: Vec::with_capacity(cells),
            real: Vec::with_capacity(cells),
            target_ids: Vec::with_capacity(cells),
            loss_weights: Vec::with_capacity(cells),
            problems: rows.to_vec(),
            tokens: 0,
        };
        for sequence in picked {
            let inputs = sequence.ids.len() - 1;
            for index in 0..inputs {
                batch.input_ids.push(signed(sequence.ids[index])?);
                batch.position_ids.push(signed(sequence.positions[index])?);
                batch.target_ids.push(signed(sequence.ids[index + 1])?);
                batch.loss_weights.push(sequence.loss_weight(index + 1));
            }
            batch.tokens += inputs;
            batch.real.resize(batch.real.len() + inputs, true);
            let end = batch.real.len() + seq - inputs;
            batch.input_ids.resize(end, pad);
            batch.position_ids.resize(end, 0);
            batch.real.resize(end, false);
            batch.target_ids.resize(end, pad);
            batch.loss_weights.resize(end, 0.0);
        }
        Ok(batch)
    }
}

/// A batch of questions to decode from. Padded on the left, so that every row's next token comes in
/// the same column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptBatch {
    /// Rows.
    pub batch: usize,
    /// Columns: the longest question, end marker included.
    pub seq: usize,
    /// Question tokens; padding has the pad id.
    pub input_ids: Vec<i32>,
    /// Position ids; padding has 0.
    pub position_ids: Vec<i32>,
    /// True for question tokens, false for padding.
    pub real: Vec<bool>,
    /// Position id of the first generated token of each row.
    pub next_position: Vec<i32>,
    /// Index of each row's problem in the list the batch was collated from.
    pub problems: Vec<u32>,
}

impl PromptBatch {
    /// Makes a batch of the questions of `problems[row]` for each of `rows`.
    ///
    /// # Errors
    /// No rows, a row outside `problems`, a question longer than an aligned layout allows, or an id
    /// above `i32::MAX`.
    pub fn collate(
        problems: &[EncodedProblem],
        rows: &[u32],
        layout: PositionLayout,
        pad_id: u32,
    ) -> Result<Self, DatasetError> {
        let picked = pick(problems, rows)?;
        let seq = picked.iter().map(|p| p.question.len()).max().unwrap_or(0);
        let cells = seq * picked.len();
        let pad = signed(pad_id)?;
        let mut batch = Self {
            batch: picked.len(),
            seq,
            input_ids: Vec::with_capacity(cells),
            position_ids: Vec::with_capacity(cells),
            real: Vec::with_capacity(cells),
            next_position: Vec::with_capacity(picked.len()),
            problems: rows.to_vec(),
        };
        for problem in picked {
            let start = batch.real.len() + seq - problem.question.len();
            batch.input_ids.resize(start, pad);
            batch.position_ids.resize(start, 0);
            batch.real.resize(start, false);
            for (id, position) in problem
                .question
                .iter()
                .zip(layout.question_positions(problem)?)
            {
                batch.input_ids.push(signed(*id)?);
                batch.position_ids.push(signed(position)?);
                batch.real.push(true);
            }
            batch
                .next_position
                .push(signed(layout.reasoning_start(problem)?)?);
        }
        Ok(batch)
    }
}

/// A problem left out because it is longer than the model's context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The problem's id.
    pub id: String,
    /// Positions that it would need.
    pub length: usize,
}

/// The problems that fit the model's context, and those that do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// What fits, in the given order.
    pub problems: Vec<EncodedProblem>,
    /// What was left out, in the given order.
    pub skipped: Vec<Skipped>,
}

/// Sorts out the problems that need more than `max_length` positions: the whole sequence with its
/// end-of-sequence token, and the gap that an aligned layout leaves.
///
/// # Errors
/// Under [`TooLong::Fail`] the first problem that does not fit; a question longer than an aligned
/// layout allows; nothing left.
pub fn fit_context(
    problems: Vec<EncodedProblem>,
    supervision: Supervision,
    layout: PositionLayout,
    max_length: usize,
    too_long: TooLong,
) -> Result<Fitted, DatasetError> {
    let given = problems.len();
    let mut fitted = Fitted {
        problems: Vec::with_capacity(given),
        skipped: Vec::new(),
    };
    for problem in problems {
        let after_question = problem.length(supervision) - problem.question.len();
        let length = layout.reasoning_start(&problem)? as usize + after_question;
        if length <= max_length {
            fitted.problems.push(problem);
            continue;
        }
        match too_long {
            TooLong::Fail => {
                return Err(DatasetError::Config(format!(
                    "problem {} needs {length} positions, the model's context has {max_length}; \
                     raise the context or set too_long = \"skip\"",
                    problem.id
                )));
            }
            TooLong::Skip => fitted.skipped.push(Skipped {
                id: problem.id,
                length,
            }),
        }
    }
    if given > 0 && fitted.problems.is_empty() {
        return Err(DatasetError::Config(format!(
            "none of {given} problems fits the model's context of {max_length} positions"
        )));
    }
    Ok(fitted)
}

fn pick<'a, T>(items: &'a [T], rows: &[u32]) -> Result<Vec<&'a T>, DatasetError> {
    if rows.is_empty() {
        return Err(DatasetError::Config(
            "a batch needs at least one row".into(),
        ));
    }
    rows.iter()
        .map(|row| {
            items.get(*row as usize).ok_or_else(|| {
                DatasetError::Config(format!("row {row} is outside the {} given", items.len()))
            })
        })
        .collect()
}

/// Integer tensors are 32-bit signed on every backend.
fn signed(value: u32) -> Result<i32, DatasetError> {
    i32::try_from(value)
        .map_err(|_| DatasetError::Config(format!("{value} does not fit a signed 32-bit id")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::encode::{Positions, sequence};

    /// Question of `question` tokens (end marker last), steps, answer marker 5, answer `9 1`.
    fn encoded(id: &str, question: &[u32], steps: &[&[u32]]) -> EncodedProblem {
        EncodedProblem {
            id: id.into(),
            question: question.to_vec(),
            question_end: 1,
            steps: steps.iter().map(|step| step.to_vec()).collect(),
            answer_start: vec![5],
            answer: vec![9, 1],
            critical: vec![None; steps.len()],
        }
    }

    fn problems() -> Vec<EncodedProblem> {
        vec![
            encoded("p/0", &[10, 11, 12, 2], &[&[20, 21], &[22]]),
            encoded("p/1", &[13, 2], &[]),
        ]
    }

    fn sequences(supervision: Supervision, positions: Positions) -> Vec<Sequence> {
        let problems = problems();
        let layout = positions.resolve(&problems);
        problems
            .iter()
            .map(|problem| sequence(problem, supervision, layout).unwrap())
            .collect()
    }

    #[test]
    fn training_batches_shift_targets_and_pad_right() {
        let sequences = sequences(Supervision::ChainOfThought, Positions::Aligned);
        let batch = SequenceBatch::collate(&sequences, &[1, 0], 0).unwrap();
        let expected = SequenceBatch {
            batch: 2,
            seq: 9,
            input_ids: [
                [13, 2, 5, 9, 0, 0, 0, 0, 0],
                [10, 11, 12, 2, 20, 21, 22, 5, 9],
            ]
            .concat(),
            position_ids: [[0, 3, 4, 5, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
            real: [[true; 4].as_slice(), &[false; 5], &[true; 9]].concat(),
            target_ids: [
                [2, 5, 9, 1, 0, 0, 0, 0, 0],
                [11, 12, 2, 20, 21, 22, 5, 9, 1],
            ]
            .concat(),
            loss_weights: [
                [0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            ]
            .concat(),
            problems: vec![1, 0],
            tokens: 13,
        };
        assert_eq!(batch, expected);

        let answers = sequences_of_answers();
        let batch = SequenceBatch::collate(&answers, &[0], 0).unwrap();
        assert_eq!(batch.target_ids, [11, 12, 2, 5, 9, 1]);
        assert_eq!(batch.loss_weights, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    }

    fn sequences_of_answers() -> Vec<Sequence> {
        sequences(Supervision::AnswerOnly, Positions::Contiguous)
    }

    #[test]
    fn prompts_pad_left_and_know_the_next_position() {
        let problems = problems();
        for (positions, short, next) in [
            (Positions::Contiguous, [0, 1], 2),
            (Positions::Aligned, [0, 3], 4),
        ] {
            let layout = positions.resolve(&problems);
            let batch = PromptBatch::collate(&problems, &[0, 1], layout, 7).unwrap();
            let expected = PromptBatch {
                batch: 2,
                seq: 4,
                input_ids: vec![10, 11, 12, 2, 7, 7, 13, 2],
                position_ids: [&[0, 1, 2, 3, 0, 0], &short[..]].concat(),
                real: vec![true, true, true, true, false, false, true, true],
                next_position: vec![4, next],
                problems: vec![0, 1],
            };
            assert_eq!(batch, expected);
        }
    }

    #[test]
    fn rows_that_are_not_there_are_refused() {
        let sequences = sequences_of_answers();
        for rows in [&[][..], &[2]] {
            assert!(SequenceBatch::collate(&sequences, rows, 0).is_err());
            assert!(
                PromptBatch::collate(&problems(), rows, PositionLayout::Contiguous, 0).is_err()
            );
        }
        assert!(SequenceBatch::collate(&sequences, &[0], u32::MAX).is_err());
    }

    #[test]
    fn problems_longer_than_the_context_are_named_or_counted() {
        let thought = Supervision::ChainOfThought;
        let plain = PositionLayout::Contiguous;
        let aligned = Positions::Aligned.resolve(&problems());
        let fit = |supervision, layout, length, too_long| {
            fit_context(problems(), supervision, layout, length, too_long)
        };
        assert_eq!(
            fit(thought, plain, 10, TooLong::Fail)
                .unwrap()
                .problems
                .len(),
            2
        );
        assert_eq!(
            fit(Supervision::AnswerOnly, plain, 7, TooLong::Fail)
                .unwrap()
                .skipped,
            []
        );
        let error = fit(thought, plain, 9, TooLong::Fail).unwrap_err();
        assert!(error.to_string().contains("p/0"), "{error}");
        let fitted = fit(thought, plain, 9, TooLong::Skip).unwrap();
        assert_eq!(fitted.problems, problems()[1..]);
        let skipped = Skipped {
            id: "p/0".into(),
            length: 10,
        };
        assert_eq!(fitted.skipped, [skipped]);
        // p/1 has 5 tokens, but the gap of the aligned layout makes it need 7 positions.
        assert_eq!(
            fit(thought, aligned, 7, TooLong::Skip)
                .unwrap()
                .problems
                .len(),
            1
        );
        assert!(fit(thought, aligned, 6, TooLong::Skip).is_err());
    }

    #[test]
    fn configurations_parse_strictly() {
        let config: BatchConfig =
            toml::from_str("grouping = \"by-length\"\ntoo_long = \"skip\"").unwrap();
        assert_eq!(
            (config.batch_size, config.grouping),
            (32, Grouping::ByLength)
        );
        assert!(toml::from_str::<BatchConfig>("batch-size = 3").is_err());
    }
}
