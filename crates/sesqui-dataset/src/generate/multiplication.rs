//! Long multiplication with partial products, in the text form of iCoT (Deng et al.,
//! arXiv 2405.14838).
//!
//! Digits are separated by blanks and written least significant first. A step is the first factor
//! times one digit of the second, shifted; from the second step to the last but one it carries the
//! running sum in parentheses. The form is deterministic, so that generated rows are
//! indistinguishable from published ones.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Criticality, LabelSource, Problem, Step};
use crate::split::Part;

/// Settings of the task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Multiplication {
    /// Digits of each factor, 1 to 18; the first digit is not 0.
    pub digits: u32,
    /// Generated training problems, distinct.
    pub train_rows: usize,
    /// Generated validation problems, distinct, for sizes without a published validation file.
    pub validation_rows: usize,
    /// Generated test problems, distinct, for sizes without a published test file.
    pub test_rows: usize,
}

impl Default for Multiplication {
    fn default() -> Self {
        Self {
            digits: 4,
            train_rows: 100_000,
            validation_rows: 1_000,
            test_rows: 1_000,
        }
    }
}

/// The chain of thought and the answer of `a * b` for two numbers of `digits` digits, 1 to 18.
///
/// A step from the second on begins with `+ `, so that the steps joined by blanks are the chain of
/// the published files. A step with a running sum is critical; a plain partial product, the first
/// and the last one, is not.
pub fn problem(a: u64, b: u64, digits: u32) -> Problem {
    let width = digits as usize;
    let (mut rest, mut shift, mut sum) = (b, 1_u128, 0_u128);
    let mut steps = Vec::with_capacity(width);
    for index in 0..width {
        let product = u128::from(a) * u128::from(rest % 10) * shift;
        sum += product;
        let has_sum = index > 0 && index + 1 < width;
        let columns = width + 1 + index;
        let mut text = if index == 0 {
            String::new()
        } else {
            "+ ".to_owned()
        };
        text.push_str(&backwards(product, columns));
        if has_sum {
            text.push_str(&format!(" ( {} )", backwards(sum, columns)));
        }
        let label = Criticality {
            critical: has_sum,
            source: LabelSource::GroundTruth,
        };
        steps.push(Step {
            text,
            criticality: Some(label),
        });
        rest /= 10;
        shift *= 10;
    }
    Problem {
        id: String::new(),
        question: format!(
            "{} * {}",
            backwards(u128::from(a), width),
            backwards(u128::from(b), width)
        ),
        steps,
        answer: backwards(sum, 2 * width),
        answer_kind: AnswerKind::Choice,
    }
}

/// `count` distinct problems whose questions fall into `part` ([`Part::of`]), ids
/// `multiplication/<digits>x<digits>/<split>/<row>`. Questions in `taken`, those of published
/// files, are passed over.
///
/// # Errors
/// [`DatasetError::Config`] for digits out of range, or when fewer questions exist than asked for.
pub fn generate(
    digits: u32,
    part: Part,
    count: usize,
    taken: &BTreeSet<&str>,
    seed: u64,
) -> Result<Vec<Problem>, DatasetError> {
    if !(1..=18).contains(&digits) {
        return Err(DatasetError::Config(format!(
            "data set multiplication: digits = {digits} must be 1 to 18"
        )));
    }
    let name = format!("multiplication/{digits}x{digits}/{}", part.name());
    let mut random = Random::stream(seed, &name, 0);
    let low = 10_i64.pow(digits - 1);
    let high = 10_i64.pow(digits) - 1;
    let mut seen = BTreeSet::new();
    let mut problems = Vec::with_capacity(count);
    let mut in_vain = 0;
    while problems.len() < count {
        let factors = [0; 2].map(|_| random.between(low, high).unsigned_abs());
        let mut problem = problem(factors[0], factors[1], digits);
        let usable = Part::of(&problem.question) == part
            && !taken.contains(problem.question.as_str())
            && seen.insert(factors);
        if usable {
            problem.id = format!("{name}/{}", problems.len());
            problems.push(problem);
            in_vain = 0;
        } else {
            in_vain += 1;
        }
        if in_vain > 50_000 {
            return Err(DatasetError::Config(format!(
                "data set multiplication: there are only about {} {} questions of {digits} digits, \
                 fewer than the {count} asked for; lower {}-rows or raise digits",
                problems.len(),
                part.name(),
                part.name(),
            )));
        }
    }
    Ok(problems)
}

/// `columns` digits, least significant first, joined by blanks.
fn backwards(mut number: u128, columns: usize) -> String {
    let mut text = String::with_capacity(2 * columns);
    for column in 0..columns {
        if column > 0 {
            text.push(' ');
        }
        text.push(char::from(b'0' + (number % 10) as u8));
        number /= 10;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_of_a_row() {
        // 123 * 406 = 738 + 0000 + 49200 = 49938, with the running sum 738 after the second term.
        let row = problem(123, 406, 3);
        let steps: Vec<&str> = row.steps.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(row.question, "3 2 1 * 6 0 4");
        assert_eq!(
            steps,
            ["8 3 7 0", "+ 0 0 0 0 0 ( 8 3 7 0 0 )", "+ 0 0 2 9 4 0"]
        );
        assert_eq!(row.answer, "8 3 9 9 4 0");
        let critical = |step: &Step| step.criticality.unwrap().critical;
        assert_eq!(
            row.steps.iter().map(critical).collect::<Vec<_>>(),
            [false, true, false]
        );
    }

    #[test]
    fn rows_are_distinct_and_limits_are_errors() {
        let none = BTreeSet::new();
        let rows = generate(2, Part::Train, 2_000, &none, 1).unwrap();
        let questions: BTreeSet<&str> = rows.iter().map(|row| row.question.as_str()).collect();
        assert_eq!(questions.len(), 2_000);
        assert_eq!(rows, generate(2, Part::Train, 2_000, &none, 1).unwrap());
        assert_ne!(rows, generate(2, Part::Train, 2_000, &none, 2).unwrap());
        let avoided = generate(2, Part::Train, 2_000, &questions, 1).unwrap();
        assert!(
            avoided
                .iter()
                .all(|row| !questions.contains(row.question.as_str()))
        );
        for (digits, rows) in [(0, 1), (19, 1), (1, 100)] {
            assert!(generate(digits, Part::Train, rows, &none, 1).is_err());
        }
        generate(18, Part::Test, 3, &none, 1).unwrap();
    }

    #[test]
    fn regenerates_every_published_row() {
        let Some(root) = crate::generate::data_root() else {
            return;
        };
        let mut rows = 0;
        for (digits, file) in [
            (4, "4x4_valid"),
            (4, "4x4_test_bigbench"),
            (5, "5x5_valid"),
            (5, "5x5_test_bigbench"),
            (7, "7x7_test_bigbench"),
            (9, "9x9_test_bigbench"),
        ] {
            let path = root.join(format!("multiplication/{file}.txt"));
            for line in std::fs::read_to_string(path).unwrap().lines() {
                let (question, _) = line.split_once("||").unwrap();
                let (a, b) = question.split_once(" * ").unwrap();
                let number = |text: &str| -> u64 {
                    text.split(' ').rev().collect::<String>().parse().unwrap()
                };
                let row = problem(number(a), number(b), digits);
                let chain: Vec<&str> = row.steps.iter().map(|step| step.text.as_str()).collect();
                let text = format!("{}||{} #### {}", row.question, chain.join(" "), row.answer);
                assert_eq!(text, line);
                rows += 1;
            }
        }
        assert_eq!(rows, 6_000);
    }
}
