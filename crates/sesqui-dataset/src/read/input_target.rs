//! Evaluation sets as PAL (Gao et al., arXiv 2211.10435) stores them: GSM-Hard, SVAMP and MAWPS.
//!
//! One JSON object per line with `input` (the question) and `target` (a JSON number). There are no
//! steps. GSM-Hard's `code` is not read.

use std::path::Path;

use serde::Deserialize;

use super::rows::{filled, json_lines};
use super::{BadRows, ReadRows, normalise_number};
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Problem};

/// From here on not every integer is a 64-bit float.
const EXACT_FLOATS: f64 = 9_007_199_254_740_992.0;

#[derive(Deserialize)]
struct Record {
    input: String,
    target: serde_json::Number,
}

/// Reads an `input` / `target` file.
///
/// Integers are kept digit by digit. A target written as a float keeps the shortest decimal that
/// gives the same 64-bit float, which is how these files were written: `51.0` becomes `51`.
///
/// # Errors
/// See [`super::Reader`]. A row is bad without a question or a number, or with a float of magnitude
/// 2^53 or more, where the digits in the file could differ from those read.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    json_lines(path, policy, problem).map(Into::into)
}

fn problem(id: String, record: Record) -> Result<Problem, String> {
    let target = &record.target;
    let inexact = target.is_f64() && target.as_f64().is_none_or(|it| it.abs() >= EXACT_FLOATS);
    let answer = normalise_number(&target.to_string())
        .filter(|_| !inexact)
        .ok_or_else(|| format!("the target {target} is not exact as a 64-bit float"))?;
    Ok(Problem {
        id,
        question: filled("input", &record.input)?,
        steps: Vec::new(),
        answer,
        answer_kind: AnswerKind::Number,
    })
}
