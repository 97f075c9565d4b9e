//! ProntoQA (Saparov and He, arXiv 2210.01240) in the question / steps / answer form of Coconut.
//!
//! One JSON object per line: `question` (facts, rules and "True or false: ..."), `steps` and `answer`
//! (`True` or `False`).

use std::path::Path;

use serde::Deserialize;

use super::rows::{filled, json_lines};
use super::{BadRows, ReadRows};
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Problem, Step};

#[derive(Deserialize)]
struct Record {
    question: String,
    steps: Vec<String>,
    answer: String,
}

/// Reads a ProntoQA file.
///
/// `True` becomes `yes` and `False` becomes `no`, so that [`AnswerKind::YesNo`] has one spelling for
/// every data set. Steps carry no label: the data set does not say which of them are independent.
///
/// # Errors
/// See [`super::Reader`]. A row is bad with an empty field, without steps, or with another answer.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    json_lines(path, policy, problem).map(Into::into)
}

fn problem(id: String, record: Record) -> Result<Problem, String> {
    let answer = match record.answer.trim() {
        "True" => "yes",
        "False" => "no",
        other => {
            return Err(format!(
                "the answer `{other}` is neither `True` nor `False`"
            ));
        }
    };
    Ok(Problem {
        id,
        question: filled("question", &record.question)?,
        steps: plain_steps(&record.steps)?,
        answer: answer.to_owned(),
        answer_kind: AnswerKind::YesNo,
    })
}

/// Steps without labels; at least one, none of them blank.
pub(super) fn plain_steps(texts: &[String]) -> Result<Vec<Step>, String> {
    if texts.is_empty() {
        return Err("there are no steps".to_owned());
    }
    texts
        .iter()
        .map(|text| {
            Ok(Step {
                text: filled("steps", text)?,
                criticality: None,
            })
        })
        .collect()
}
