//! MathQA (Amini et al., arXiv 1905.13319): multiple-choice problems with operation programs.
//!
//! One JSON array; read are `Problem`, `options` (one string), `correct` (a letter) and
//! `linear_formula`: operations such as `divide(n0,const_100)` separated by `|`. `n0` is the first
//! number of the text, `#0` the result of the first operation.

use std::path::Path;

use serde::Deserialize;

use super::rows::{filled, json_array};
use super::{BadRows, ReadRows};
use crate::error::DatasetError;
use crate::label;
use crate::problem::{AnswerKind, Problem, Step};

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "Problem")]
    problem: String,
    options: String,
    correct: String,
    linear_formula: String,
}

/// Reads a MathQA file.
///
/// The question is the text, a blank and the options as the file has them; the answer is the letter.
/// A step is one operation, labelled by [`label::by_references`].
///
/// # Errors
/// See [`super::Reader`]. A row is bad with an empty field, without the five options `a` to `e`, with
/// another answer, or with an operation that is not `name(arguments)` or cites a later result.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    json_array(path, policy, problem).map(Into::into)
}

fn problem(id: String, record: Record) -> Result<Problem, String> {
    let question = filled("Problem", &record.problem)?;
    let options = filled("options", &record.options)?;
    let mut rest = options.as_str();
    for letter in ["a ) ", "b ) ", "c ) ", "d ) ", "e ) "] {
        let found = rest
            .find(letter)
            .ok_or_else(|| format!("option `{letter}` is missing"))?;
        rest = &rest[found + letter.len()..];
    }
    let answer = record.correct.trim();
    if !matches!(answer, "a" | "b" | "c" | "d" | "e") {
        return Err(format!("the answer `{answer}` is not a letter from a to e"));
    }

    let formula = filled(
        "linear_formula",
        record.linear_formula.trim().trim_end_matches('|'),
    )?;
    let mut steps = formula
        .split('|')
        .map(operation)
        .collect::<Result<Vec<_>, _>>()?;
    label::by_references(&mut steps, 0)?;
    Ok(Problem {
        id,
        question: format!("{question} {options}"),
        steps,
        answer: answer.to_owned(),
        answer_kind: AnswerKind::Choice,
    })
}

fn operation(text: &str) -> Result<Step, String> {
    let text = text.trim();
    let name = text
        .strip_suffix(')')
        .and_then(|text| text.split_once('('))
        .map(|(name, _)| name);
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    if name.is_some_and(is_name) {
        Ok(Step {
            text: text.to_owned(),
            criticality: None,
        })
    } else {
        Err(format!("the operation `{text}` is not `name(arguments)`"))
    }
}
