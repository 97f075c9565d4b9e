//! GSM8K (Cobbe et al., arXiv 2110.14168): grade-school word problems with written solutions.
//!
//! One JSON object per line: `question`, and `answer`, a solution in sentences that carries calculator
//! annotations `<<expression=value>>` and ends in `#### number`. Only the annotations become steps;
//! the sentences around them are left out.

use std::path::Path;

use serde::Deserialize;

use super::rows::{filled, json_lines};
use super::{BadRows, ReadRows, normalise_number};
use crate::error::DatasetError;
use crate::label;
use crate::problem::{AnswerKind, Problem};

#[derive(Deserialize)]
struct Record {
    question: String,
    answer: String,
}

/// Reads a GSM8K file. Steps are labelled by [`label::by_operand_match`].
///
/// # Errors
/// See [`super::Reader`]. A row is bad without `####`, without a number after it, or with an
/// annotation that is not `<<expression=value>>`; a solution without annotations is fine.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    json_lines(path, policy, problem).map(Into::into)
}

fn problem(id: String, record: Record) -> Result<Problem, String> {
    let (solution, answer) = split_answer(&record.answer)?;
    let mut steps = label::equations_in(solution)?;
    label::by_operand_match(&mut steps);
    Ok(Problem {
        id,
        question: filled("question", &record.question)?,
        steps,
        answer,
        answer_kind: AnswerKind::Number,
    })
}

/// Splits `solution #### number` and normalises the number.
pub(super) fn split_answer(text: &str) -> Result<(&str, String), String> {
    let (solution, answer) = text.rsplit_once("####").ok_or("there is no `####`")?;
    let answer = normalise_number(answer)
        .ok_or_else(|| format!("the answer `{}` is not a number", answer.trim()))?;
    Ok((solution, answer))
}
