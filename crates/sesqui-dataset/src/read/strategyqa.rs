//! StrategyQA (Geva et al., TACL 2021): yes/no questions that need an unstated plan.
//!
//! One JSON array; read are `question`, `answer` (a boolean) and `decomposition`, the sub-questions
//! that an annotator wrote, in which `#k` stands for the answer of the k-th, counted from 1. Facts
//! and evidence are not read: their number differs from that of the sub-questions in most records.

use std::path::Path;

use serde::Deserialize;

use super::prontoqa::plain_steps;
use super::rows::{filled, json_array};
use super::{BadRows, ReadRows};
use crate::error::DatasetError;
use crate::label;
use crate::problem::{AnswerKind, Problem};

#[derive(Deserialize)]
struct Record {
    question: String,
    answer: bool,
    decomposition: Vec<String>,
}

/// Reads a StrategyQA file; a step is a sub-question, labelled by [`label::by_references`].
///
/// # Errors
/// See [`super::Reader`]. A row is bad with an empty field, without sub-questions, or with a `#k`
/// that is not an earlier one.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    json_array(path, policy, problem).map(Into::into)
}

fn problem(id: String, record: Record) -> Result<Problem, String> {
    let mut steps = plain_steps(&record.decomposition)?;
    label::by_references(&mut steps, 1)?;
    Ok(Problem {
        id,
        question: filled("question", &record.question)?,
        steps,
        answer: if record.answer { "yes" } else { "no" }.to_owned(),
        answer_kind: AnswerKind::YesNo,
    })
}
