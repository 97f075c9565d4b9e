//! Equation-only GSM8K as iCoT (Deng et al., arXiv 2405.14838) and Coconut (arXiv 2412.06769) use it.
//!
//! One problem per line: `question||<<expression=value>> <<...>> #### number`. The chain of thought
//! may be empty.

use std::path::Path;

use super::gsm8k::split_answer;
use super::rows::{filled, lines};
use super::{BadRows, ReadRows};
use crate::error::DatasetError;
use crate::label;
use crate::problem::{AnswerKind, Problem};

/// Reads a GSM8K-Aug file. Steps are labelled by [`label::by_operand_match`].
///
/// # Errors
/// See [`super::Reader`]. A row is bad without exactly one `||`, without a number after `####`, or
/// with anything but blanks between its equations.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    lines(path, policy, problem).map(Into::into)
}

fn problem(id: String, line: &str) -> Result<Problem, String> {
    let (question, rest) = line.split_once("||").ok_or("there is no `||`")?;
    if rest.contains("||") {
        return Err("there is more than one `||`".to_owned());
    }
    let (chain, answer) = split_answer(rest)?;
    let mut steps = label::equations_in(chain)?;
    let between = steps.iter().fold(chain.to_owned(), |text, step| {
        text.replacen(&step.text, "", 1)
    });
    if !between.trim().is_empty() {
        return Err(format!(
            "the chain holds `{}` besides its equations",
            between.trim()
        ));
    }
    label::by_operand_match(&mut steps);
    Ok(Problem {
        id,
        question: filled("question", question)?,
        steps,
        answer,
        answer_kind: AnswerKind::Number,
    })
}
