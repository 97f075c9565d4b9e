//! From a solved problem to a template, and from a template to a variant.

use super::question::{WrittenNumber, explained, written_numbers};
use super::redraw::{Hole, Limit};
use super::{Bounds, Rejection, equation};
use crate::generate::equation::{Expression, Rational};
use crate::generate::random::Random;
use crate::problem::{AnswerKind, Criticality, LabelSource, Problem, Step};
use crate::split::{Part, question_hash};

/// A problem whose numbers can be redrawn.
#[derive(Clone, Debug)]
pub struct Template {
    /// Last part of the id of the problem, its row.
    pub(super) row: String,
    /// Hash of the original question: the template's random stream and its split.
    pub(super) hash: u64,
    /// Which split the template, with all its variants, belongs to.
    pub(super) part: Part,
    /// The text before each redrawn number, and after the last.
    between: Vec<String>,
    pub(super) holes: Vec<Hole>,
    steps: Vec<TemplateStep>,
}

#[derive(Clone, Debug)]
struct TemplateStep {
    expression: Expression,
    origins: Vec<Origin>,
    /// What every operation of the expression may result in.
    limits: Vec<Limit>,
}

/// Where a number of an equation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Hole(usize),
    Result(usize),
    Constant,
}

impl Template {
    /// The template of a problem, or why there is none.
    pub(super) fn new(problem: &Problem) -> Result<Self, Rejection> {
        if problem.steps.is_empty() {
            return Err(Rejection::NoStep);
        }
        let numbers = written_numbers(&problem.question);
        let mut constants = explained(&problem.question, &numbers);
        let repeated = |number: &WrittenNumber| {
            numbers
                .iter()
                .filter(|other| other.value == number.value)
                .count()
                > 1
        };
        let (mut free, fixed): (Vec<&WrittenNumber>, Vec<&WrittenNumber>) =
            numbers.iter().partition(|number| {
                number.free && !repeated(number) && !constants.contains(&number.value)
            });
        constants.extend(fixed.iter().map(|number| number.value));

        let mut steps = Vec::with_capacity(problem.steps.len());
        let mut results: Vec<Rational> = Vec::with_capacity(problem.steps.len());
        for step in &problem.steps {
            let (expression, value) = equation(step).ok_or(Rejection::NotExact)?;
            let trace = expression
                .evaluate(expression.numbers())
                .ok_or(Rejection::NotExact)?;
            if trace.last() != Some(&value) {
                return Err(Rejection::NotExact);
            }
            let origins = expression
                .numbers()
                .iter()
                .map(|&operand| origin(operand, &free, &results, &constants))
                .collect::<Result<Vec<_>, _>>()?;
            let limits = trace
                .into_iter()
                .map(Limit::new)
                .collect::<Option<_>>()
                .ok_or(Rejection::Negative)?;
            // A result that the question already states would contradict it after a change.
            if numbers.iter().any(|number| number.value == value) {
                return Err(Rejection::Ambiguous);
            }
            results.push(value);
            steps.push(TemplateStep {
                expression,
                origins,
                limits,
            });
        }
        if results.last().copied() != Rational::parse(&problem.answer) {
            return Err(Rejection::OtherAnswer);
        }
        let used = used_holes(&steps, free.len());
        if used.is_empty() {
            return Err(Rejection::NothingToChange);
        }
        renumber(&mut steps, &used);
        let mut index = 0;
        free.retain(|_| {
            index += 1;
            used.contains(&(index - 1))
        });

        let mut between = Vec::with_capacity(free.len() + 1);
        let mut end = 0;
        for number in &free {
            between.push(problem.question[end..number.range.start].to_owned());
            end = number.range.end;
        }
        between.push(problem.question[end..].to_owned());
        Ok(Self {
            row: problem.id.rsplit('/').next().unwrap_or_default().to_owned(),
            hash: question_hash(&problem.question),
            part: Part::of(&problem.question),
            between,
            holes: free.into_iter().map(Hole::new).collect(),
            steps,
        })
    }

    /// The template with its variants kept within `bounds`; `None` where the original is not.
    pub(crate) fn within(mut self, bounds: Bounds) -> Option<Self> {
        let steps = self.steps.len();
        if steps < bounds.min_steps || bounds.max_steps.is_some_and(|most| steps > most) {
            return None;
        }
        let Some(greatest) = bounds.greatest_number else {
            return Some(self);
        };
        let number = Rational::integer(i128::from(greatest));
        for step in &mut self.steps {
            let originals = step.expression.numbers();
            let drawn = step
                .origins
                .iter()
                .zip(originals)
                .filter(|(origin, _)| **origin != Origin::Constant)
                .map(|(_, number)| *number);
            let trace = step.expression.evaluate(originals)?;
            if !drawn.chain(trace).all(|it| it <= number) {
                return None;
            }
            step.limits.iter_mut().for_each(|limit| limit.lower(number));
        }
        self.holes.iter_mut().for_each(|hole| hole.lower(greatest));
        Some(self)
    }

    /// One variant without an id; `None` where the drawn numbers do not work out.
    pub(super) fn draw(&self, random: &mut Random) -> Option<Problem> {
        let digits: Vec<u64> = self.holes.iter().map(|hole| hole.draw(random)).collect();
        let values = self
            .holes
            .iter()
            .zip(&digits)
            .map(|(hole, &digits)| {
                Rational::new(i128::from(digits), 10_i128.checked_pow(hole.places)?)
            })
            .collect::<Option<Vec<_>>>()?;
        let mut results: Vec<Rational> = Vec::with_capacity(self.steps.len());
        let mut operands = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let numbers: Vec<Rational> = step
                .origins
                .iter()
                .zip(step.expression.numbers())
                .map(|(&origin, &original)| match origin {
                    Origin::Hole(index) => values[index],
                    Origin::Result(index) => results[index],
                    Origin::Constant => original,
                })
                .collect();
            let trace = step.expression.evaluate(&numbers)?;
            if !trace
                .iter()
                .zip(&step.limits)
                .all(|(&result, limit)| limit.allows(result))
            {
                return None;
            }
            results.push(*trace.last()?);
            operands.push(numbers);
        }
        // Only now, as most draws end above.
        let mut question = String::new();
        for (index, between) in self.between.iter().enumerate() {
            question.push_str(between);
            if let (Some(hole), Some(&digits)) = (self.holes.get(index), digits.get(index)) {
                question.push_str(&hole.render(digits));
            }
        }
        let mut steps = Vec::with_capacity(self.steps.len());
        for ((step, numbers), result) in self.steps.iter().zip(&operands).zip(&results) {
            let numbers = numbers
                .iter()
                .map(|number| number.decimal())
                .collect::<Option<Vec<_>>>()?;
            let critical = step
                .origins
                .iter()
                .any(|origin| matches!(origin, Origin::Result(_)));
            steps.push(Step {
                text: format!(
                    "<<{}={}>>",
                    step.expression.render(&numbers),
                    result.decimal()?
                ),
                criticality: Some(Criticality {
                    critical,
                    source: LabelSource::GroundTruth,
                }),
            });
        }
        Some(Problem {
            id: String::new(),
            question,
            steps,
            answer: results.last()?.decimal()?,
            answer_kind: AnswerKind::Number,
        })
    }
}

fn origin(
    operand: Rational,
    free: &[&WrittenNumber],
    results: &[Rational],
    constants: &[Rational],
) -> Result<Origin, Rejection> {
    let hole = free.iter().position(|number| number.value == operand);
    let result = results.iter().position(|&result| result == operand);
    let again = results.iter().filter(|&&result| result == operand).count() > 1;
    match (hole, result, constants.contains(&operand)) {
        (Some(hole), None, false) => Ok(Origin::Hole(hole)),
        (None, Some(result), false) if !again => Ok(Origin::Result(result)),
        (None, None, true) => Ok(Origin::Constant),
        (None, None, false) => Err(Rejection::Unexplained),
        _ => Err(Rejection::Ambiguous),
    }
}

/// The holes that an equation uses, in the order of the question; none where the answer depends on
/// no hole.
fn used_holes(steps: &[TemplateStep], holes: usize) -> Vec<usize> {
    let uses = |step: &TemplateStep, origin: Origin| step.origins.contains(&origin);
    let mut needed = vec![false; steps.len()];
    let mut matters = false;
    for (index, step) in steps.iter().enumerate().rev() {
        if index + 1 == steps.len() || needed[index] {
            for origin in &step.origins {
                match *origin {
                    Origin::Result(earlier) => needed[earlier] = true,
                    Origin::Hole(_) => matters = true,
                    Origin::Constant => (),
                }
            }
        }
    }
    if !matters {
        return Vec::new();
    }
    (0..holes)
        .filter(|&hole| steps.iter().any(|step| uses(step, Origin::Hole(hole))))
        .collect()
}

/// Makes the origins count only the holes in `used`.
fn renumber(steps: &mut [TemplateStep], used: &[usize]) {
    for origin in steps.iter_mut().flat_map(|step| &mut step.origins) {
        if let Origin::Hole(hole) = origin {
            *hole = used.partition_point(|other| *other < *hole);
        }
    }
}
