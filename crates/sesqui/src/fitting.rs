//! Questions that a model has positions for.

use anyhow::Result;
use sesqui_dataset::Problem;
use sesqui_dataset::batch::TooLong;
use sesqui_dataset::encode::{EncodedProblem, PositionLayout};
use sesqui_eval::Task;

use crate::misuse::Misuse;

/// How many positions a stage's model has.
#[derive(Clone, Debug)]
pub struct ContextLength {
    /// Positions.
    pub positions: usize,
    /// What to do where they are too few.
    pub remedy: String,
}

impl ContextLength {
    /// As `[model]` says.
    pub fn new(positions: usize) -> Self {
        Self {
            positions,
            remedy: "raise model.context".to_owned(),
        }
    }
}

/// The questions of a task that fit a model, and how many do not.
pub struct Fitting {
    /// What fits, in the given order.
    pub problems: Vec<Problem>,
    /// Its encoding, one for one.
    pub encoded: Vec<EncodedProblem>,
    /// What does not, each with the reason.
    pub skipped: Vec<String>,
}

impl Fitting {
    /// Sorts out the questions of `task` that leave no position of `context` for a first token.
    ///
    /// # Errors
    ///
    /// Under [`TooLong::Fail`] for the first that does not fit; when none does.
    pub fn new(task: &Task<'_>, context: usize, too_long: TooLong) -> Result<Self> {
        let mut fitting = Self {
            problems: Vec::new(),
            encoded: Vec::new(),
            skipped: Vec::new(),
        };
        for (problem, encoded) in task.problems.iter().zip(task.encoded) {
            match (misfit(encoded, task.layout, context), too_long) {
                (None, _) => {
                    fitting.problems.push(problem.clone());
                    fitting.encoded.push(encoded.clone());
                }
                (Some(reason), TooLong::Skip) => {
                    fitting.skipped.push(format!("{}: {reason}", problem.id));
                }
                (Some(reason), TooLong::Fail) => {
                    return Err(Misuse(format!(
                        "{} {}, question {}: {reason}; --too-long skip leaves such questions out \
                         and counts them",
                        task.dataset, task.split, problem.id
                    ))
                    .into());
                }
            }
        }
        if fitting.problems.is_empty() && !task.problems.is_empty() {
            return Err(Misuse(format!(
                "{} {}: none of {} questions fits the model; the first: {}",
                task.dataset,
                task.split,
                task.problems.len(),
                fitting.skipped[0]
            ))
            .into());
        }
        Ok(fitting)
    }

    /// The task with the questions that fit.
    pub fn task<'a>(&'a self, whole: &Task<'a>) -> Task<'a> {
        Task {
            problems: &self.problems,
            encoded: &self.encoded,
            ..*whole
        }
    }
}

/// Why a question does not fit a model of `context` positions; `None` where it does.
pub fn misfit(problem: &EncodedProblem, layout: PositionLayout, context: usize) -> Option<String> {
    let tokens = problem.question.len();
    if let PositionLayout::Aligned { question_length } = layout
        && tokens > question_length
    {
        return Some(format!(
            "it has {tokens} tokens, but this model's reasoning always starts at position \
             {question_length}, after the longest question it was trained with"
        ));
    }
    let start = match layout {
        PositionLayout::Contiguous => tokens,
        PositionLayout::Aligned { question_length } => question_length,
    };
    (start >= context).then(|| {
        format!("it takes {start} of the model's {context} positions and leaves none for an answer")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_must_leave_a_position_and_respect_the_alignment() {
        let question = |tokens: usize| EncodedProblem {
            id: "q".to_owned(),
            question: vec![1; tokens],
            question_end: 1,
            steps: Vec::new(),
            answer_start: Vec::new(),
            answer: vec![2],
            critical: Vec::new(),
        };
        let aligned = PositionLayout::Aligned { question_length: 6 };
        let cases = [
            (PositionLayout::Contiguous, 7, None),
            (
                PositionLayout::Contiguous,
                8,
                Some("takes 8 of the model's 8"),
            ),
            (aligned, 6, None),
            (aligned, 7, Some("always starts at position 6")),
        ];
        for (layout, tokens, expected) in cases {
            let found = misfit(&question(tokens), layout, 8);
            match expected {
                None => assert_eq!(found, None),
                Some(part) => assert!(found.unwrap().contains(part), "{layout:?} {tokens}"),
            }
        }
        assert!(misfit(&question(1), aligned, 6).is_some());
    }
}
