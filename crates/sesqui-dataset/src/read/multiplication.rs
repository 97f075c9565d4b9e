//! Long multiplication with partial products as iCoT (Deng et al., arXiv 2405.14838) writes it.
//!
//! One problem per line, digits separated by blanks and **least significant first**:
//!
//! ```text
//! 2 1 * 4 3||8 4 0 + 0 6 3 0 #### 8 0 4 0        (12 * 34 = 48 + 360 = 0408)
//! ```
//!
//! A term is the first factor times one digit of the second, shifted; from the second to the last but
//! one it is followed by the running sum in parentheses. Numbers have leading zeros up to a fixed
//! width.

use std::path::Path;

use super::rows::{filled, lines};
use super::{BadRows, ReadRows};
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Problem, Step};

/// Longest factor in digits; products of two still fit 128 bits.
const MAX_DIGITS: usize = 19;

/// Reads a multiplication file.
///
/// A step is one term, with its running sum if it has one; from the second on it starts with `+ `, so
/// that the steps joined by blanks are the chain of the file. The answer keeps the digits as the file
/// spells them, which is what a model trained on it writes, and is an [`AnswerKind::Choice`]: compared
/// as text, not as a number. Steps carry no label: all but the first and the last hold both an
/// independent product and a derived sum.
///
/// # Errors
/// See [`super::Reader`]. A row is bad if it does not have this form or if a term, a running sum or
/// the product is wrong.
pub fn read(path: &Path, policy: BadRows) -> Result<ReadRows, DatasetError> {
    lines(path, policy, problem).map(Into::into)
}

fn problem(id: String, line: &str) -> Result<Problem, String> {
    let (question, rest) = line.split_once("||").ok_or("there is no `||`")?;
    let (chain, answer) = rest.split_once("####").ok_or("there is no `####`")?;
    let (question, answer) = (filled("question", question)?, filled("answer", answer)?);
    let (first, second) = question.split_once('*').ok_or("there is no `*`")?;
    let first = value(first, MAX_DIGITS)?;
    let digits = digits(second, MAX_DIGITS)?;

    let terms: Vec<&str> = chain.trim().split(" + ").collect();
    if terms.len() != digits.len() {
        return Err(format!("{} terms for {} digits", terms.len(), digits.len()));
    }
    let mut sum = 0;
    let mut steps = Vec::with_capacity(terms.len());
    for (index, (term, &digit)) in terms.iter().zip(&digits).enumerate() {
        let (product, running) = match term.strip_suffix(')') {
            Some(inside) => {
                let (product, running) = inside.split_once('(').ok_or("a `)` without `(`")?;
                (product, Some(running))
            }
            None => (*term, None),
        };
        let expected = first * u128::from(digit) * 10_u128.pow(index as u32);
        check("term", product, expected)?;
        sum += expected;
        let inner = index > 0 && index + 1 < terms.len();
        match (running, inner) {
            (Some(running), true) => check("running sum", running, sum)?,
            (None, false) => (),
            _ => {
                return Err(format!(
                    "term {} has its running sum out of place",
                    index + 1
                ));
            }
        }
        let plus = if index == 0 { "" } else { "+ " };
        steps.push(Step {
            text: format!("{plus}{}", term.trim()),
            criticality: None,
        });
    }
    check("product", &answer, sum)?;
    Ok(Problem {
        id,
        question,
        steps,
        answer,
        answer_kind: AnswerKind::Choice,
    })
}

fn check(what: &str, text: &str, expected: u128) -> Result<(), String> {
    let text = text.trim();
    if value(text, 2 * MAX_DIGITS)? == expected {
        Ok(())
    } else {
        Err(format!(
            "the {what} `{text}` (least significant digit first) should be {expected}"
        ))
    }
}

/// The value of blank-separated digits, least significant first.
fn value(text: &str, most: usize) -> Result<u128, String> {
    let digits = digits(text, most)?;
    Ok(digits
        .iter()
        .rev()
        .fold(0, |value, &digit| value * 10 + u128::from(digit)))
}

fn digits(text: &str, most: usize) -> Result<Vec<u8>, String> {
    let digits = text
        .split_whitespace()
        .map(|digit| match digit.as_bytes() {
            [byte @ b'0'..=b'9'] => Ok(byte - b'0'),
            _ => Err(format!("`{digit}` is not one digit")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if digits.is_empty() || digits.len() > most {
        return Err(format!(
            "a number of {} digits; 1 to {most} can be read",
            digits.len()
        ));
    }
    Ok(digits)
}
