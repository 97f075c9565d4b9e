//! AQuA-RAT (Ling et al., arXiv 1705.04146): multiple-choice algebra with written rationales.
//!
//! One JSON object per line in spite of the ending `.json`: `question`, five `options` that start
//! with their letter (`A)12`), `rationale` and `correct` (the letter).

use std::path::Path;

use serde::Deserialize;

use super::rows::{filled, json_lines};
use super::{BadRows, ReadRows};
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Problem, Step};

#[derive(Deserialize)]
struct Record {
    question: String,
    options: Vec<String>,
    rationale: String,
    correct: String,
}

/// Reads an AQuA-RAT file.
///
/// The question is the text followed by the options, separated by blanks; a step is one line of the
/// rationale that is not blank, without a label. The answer is the letter. Many rationales end in a
/// line that repeats the letter; it is kept.
///
/// # Errors
/// See [`super::Reader`]. A row is bad with an empty field, without the five options `A)` to `E)`, or
/// with another answer.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    json_lines(path, policy, problem).map(Into::into)
}

fn problem(id: String, record: Record) -> Result<Problem, String> {
    const LETTERS: [&str; 5] = ["A", "B", "C", "D", "E"];
    let mut question = filled("question", &record.question)?;
    if record.options.len() != LETTERS.len() {
        return Err(format!("{} options instead of 5", record.options.len()));
    }
    for (option, letter) in record.options.iter().zip(LETTERS) {
        let option = option.trim();
        if !option.starts_with(&format!("{letter})")) {
            return Err(format!(
                "the option `{option}` does not start with `{letter})`"
            ));
        }
        question.push(' ');
        question.push_str(option);
    }
    let answer = record.correct.trim();
    if !LETTERS.contains(&answer) {
        return Err(format!("the answer `{answer}` is not a letter from A to E"));
    }
    let rationale = filled("rationale", &record.rationale)?;
    let steps = rationale
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| Step {
            text: line.to_owned(),
            criticality: None,
        })
        .collect();
    Ok(Problem {
        id,
        question,
        steps,
        answer: answer.to_owned(),
        answer_kind: AnswerKind::Choice,
    })
}
