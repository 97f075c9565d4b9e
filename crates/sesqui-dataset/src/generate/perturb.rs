//! New numbers for old word problems.
//!
//! A solved problem in the style of GSM8K (Cobbe et al., arXiv 2110.14168) becomes a template when
//! the origin of every number in its equations is known: a number that the question writes with
//! digits exactly once, the result of one earlier step, or a constant that the question explains and
//! that stays as it is. Then the numbers of the question are redrawn and every equation is computed
//! again in exact arithmetic.
//!
//! A template is given up whenever two readings are possible. What is left unseen is a relation that
//! neither text nor equations write down, such as a count that must be one more than another: of 45
//! training rows looked at, one had such numbers. Its equations are right all the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::equation::{Expression, Rational};
use crate::error::DatasetError;
use crate::label::Equation;
use crate::problem::{Problem, Step};
use crate::split::Part;

mod question;
mod redraw;
mod template;
mod variants;

pub use template::Template;
pub use variants::{Bounds, Variants};

/// Why a problem is not a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rejection {
    /// It has no step.
    NoStep,
    /// A step is not an equation of decimal numbers, or is not exactly right.
    NotExact,
    /// The last equation does not give the answer.
    OtherAnswer,
    /// A result is negative.
    Negative,
    /// A number may come from two places.
    Ambiguous,
    /// A number comes from nowhere in the question.
    Unexplained,
    /// No number of the question that matters for the answer is free to change.
    NothingToChange,
}

/// The templates among some problems, and how many were given up for which reason.
pub fn templates(problems: &[Problem]) -> (Vec<Template>, BTreeMap<Rejection, usize>) {
    let mut found = Vec::new();
    let mut rejected = BTreeMap::new();
    for problem in problems {
        match Template::new(problem) {
            Ok(template) => found.push(template),
            Err(reason) => *rejected.entry(reason).or_insert(0) += 1,
        }
    }
    (found, rejected)
}

/// The first `rows` [`Variants`] of one split, ids `gsm8k-perturbed/<split>/<row of the template>-<k>`.
///
/// The split of a template is a function of its original question ([`Part::of`]), so validation and
/// test rows come from templates without any training row.
///
/// # Errors
/// [`DatasetError::Config`] when the templates of the split have fewer variants than asked for.
pub fn generate(
    templates: &[Template],
    part: Part,
    rows: usize,
    seed: u64,
) -> Result<Vec<Problem>, DatasetError> {
    Variants::new(templates, part, seed).draw(part.name(), rows)
}

/// Computes every equation of a problem again and compares the last value with the answer.
///
/// # Errors
/// What is wrong, with the step (from 1).
pub fn check(problem: &Problem) -> Result<(), String> {
    let mut last = None;
    for (index, step) in problem.steps.iter().enumerate() {
        let wrong =
            |what: &str| format!("{}: step {}, {}: {what}", problem.id, index + 1, step.text);
        let (expression, value) = equation(step).ok_or_else(|| wrong("not an equation"))?;
        let results = expression
            .evaluate(expression.numbers())
            .unwrap_or_default();
        if results.last() != Some(&value) {
            return Err(wrong("the value is wrong"));
        }
        last = Some(value);
    }
    match last {
        Some(last) if Rational::parse(&problem.answer) == Some(last) => Ok(()),
        Some(_) => Err(format!("{}: the answer is not the last value", problem.id)),
        None => Err(format!("{}: there is no step", problem.id)),
    }
}

fn equation(step: &Step) -> Option<(Expression, Rational)> {
    let equation = Equation::parse(&step.text)?;
    Some((
        Expression::parse(&equation.expression)?,
        Rational::parse(&equation.value)?,
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::problem::AnswerKind;
    use crate::read::{BadRows, read_file};

    fn problem(question: &str, steps: &[&str], answer: &str) -> Problem {
        let step = |text: &&str| Step {
            text: (*text).into(),
            criticality: None,
        };
        Problem {
            id: "toy/rows/1".into(),
            question: question.into(),
            steps: steps.iter().map(step).collect(),
            answer: answer.into(),
            answer_kind: AnswerKind::Number,
        }
    }

    #[test]
    fn rejections() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a str, Result<usize, Rejection>);
        let cases: &[Case] = &[
            (
                "8 rows of 5 pots; half broke.",
                &["<<8*5=40>>", "<<40/2=20>>"],
                "20",
                Ok(2),
            ),
            (
                "8 rows of 1 pot and 12 more.",
                &["<<8*1=8>>", "<<8+12=20>>"],
                "20",
                Err(Rejection::Ambiguous),
            ),
            ("8 rows of 5 pots.", &[], "40", Err(Rejection::NoStep)),
            (
                "8 rows of 5 pots.",
                &["<<8*5=41>>"],
                "41",
                Err(Rejection::NotExact),
            ),
            (
                "8 rows of 5 pots.",
                &["<<8*five=40>>"],
                "40",
                Err(Rejection::NotExact),
            ),
            (
                "8 rows of 5 pots.",
                &["<<8*5=40>>"],
                "41",
                Err(Rejection::OtherAnswer),
            ),
            (
                "5 minus 8.",
                &["<<5-8=-3>>"],
                "-3",
                Err(Rejection::Negative),
            ),
            (
                "8 rows of 5 pots.",
                &["<<8*5=40>>", "<<40/9=4.4>>"],
                "4.4",
                Err(Rejection::NotExact),
            ),
            (
                "8 rows of 5 pots.",
                &["<<8*5=40>>", "<<40/16=2.5>>"],
                "2.5",
                Err(Rejection::Unexplained),
            ),
            (
                "80% of 40, and 40.",
                &["<<40*0.8=32>>"],
                "32",
                Err(Rejection::NothingToChange),
            ),
            ("9 and 7.", &["<<9-3=6>>"], "6", Err(Rejection::Unexplained)),
            (
                "9 and 5 and 4 more.",
                &["<<9-5=4>>", "<<4+5=9>>"],
                "9",
                Err(Rejection::Ambiguous),
            ),
        ];
        for (question, steps, answer, expected) in cases {
            let found = Template::new(&problem(question, steps, answer));
            assert_eq!(
                &found.map(|template| template.holes.len()),
                expected,
                "{question}"
            );
        }
    }

    #[test]
    fn a_small_template_is_used_up() {
        // Of 2 to 9 only 2, 4, 6 and 8 have a whole half, and 8 is the original.
        let toy = problem("There are 8 pots; half broke.", &["<<8/2=4>>"], "4");
        let template = Template::new(&toy).unwrap();
        let part = template.part;
        let rows = generate(std::slice::from_ref(&template), part, 3, 1).unwrap();
        let mut answers: Vec<&str> = rows.iter().map(|row| row.answer.as_str()).collect();
        answers.sort_unstable();
        assert_eq!(answers, ["1", "2", "3"]);
        assert!(rows.iter().all(|row| check(row).is_ok()));
        let message = generate(&[template], part, 4, 1).unwrap_err().to_string();
        assert!(message.contains("only about 3 variants"), "{message}");
    }

    #[test]
    fn bounds_hold_for_originals_and_variants() {
        let toy = problem(
            "8 rows of 5 pots, and 12 more.",
            &["<<8*5=40>>", "<<40+12=52>>"],
            "52",
        );
        let template = Template::new(&toy).unwrap();
        let bounds = |min_steps, max_steps, greatest_number| Bounds {
            min_steps,
            max_steps,
            greatest_number,
        };
        for (refused, bounds) in [
            (false, bounds(2, Some(2), Some(52))),
            (false, bounds(0, None, None)),
            (true, bounds(3, None, None)),
            (true, bounds(0, Some(1), None)),
            (true, bounds(0, None, Some(51))),
        ] {
            assert_eq!(template.clone().within(bounds).is_none(), refused);
        }
        let numbers = |problem: &Problem| -> Vec<Rational> {
            let equations = problem.steps.iter().map(|step| equation(step).unwrap());
            equations
                .flat_map(|(left, value)| [left.numbers(), &[value]].concat())
                .collect()
        };
        let free = [template.clone()];
        let held = [template.within(bounds(0, None, Some(52))).unwrap()];
        let part = free[0].part;
        let greater = |rows: &[Problem]| {
            let all = rows.iter().flat_map(numbers);
            all.filter(|it| *it > Rational::integer(52)).count()
        };
        assert!(greater(&generate(&free, part, 100, 1).unwrap()) > 0);
        assert_eq!(greater(&generate(&held, part, 100, 1).unwrap()), 0);
    }

    #[test]
    fn variants_go_on_where_they_stopped() {
        let toys = [
            problem("8 rows of 5 pots.", &["<<8*5=40>>"], "40"),
            problem("There are 8 pots; half broke.", &["<<8/2=4>>"], "4"),
            problem("7 men and 9 women.", &["<<7+9=16>>"], "16"),
        ];
        let mut templates: Vec<Template> =
            toys.iter().map(|it| Template::new(it).unwrap()).collect();
        templates.iter_mut().for_each(|it| it.part = Part::Train);
        // The second has three variants, so turns end unevenly.
        let whole = generate(&templates, Part::Train, 40, 1).unwrap();
        let mut pool = Variants::new(&templates, Part::Train, 1);
        let mut parts = Vec::new();
        for rows in [1, 4, 0, 8, 27] {
            parts.extend(pool.draw("train", rows).unwrap());
        }
        assert_eq!(parts, whole);

        let mut pool = Variants::new(&templates, Part::Train, 1);
        pool.draw("train", 2).unwrap();
        pool.keep_used();
        assert_eq!(pool.templates(), 2);
    }

    #[test]
    fn the_first_templates_have_their_share() {
        let toys = [
            problem("8 rows of 5 pots.", &["<<8*5=40>>"], "40"),
            problem("There are 8 pots; half broke.", &["<<8/2=4>>"], "4"),
            problem("7 men and 9 women.", &["<<7+9=16>>"], "16"),
        ];
        let mut templates: Vec<Template> =
            toys.iter().map(|it| Template::new(it).unwrap()).collect();
        for template in &mut templates {
            template.part = Part::Train;
        }
        let sizes = |count, rows| {
            let mut pool = Variants::first(&templates, Part::Train, count, rows, 1)?;
            let rows = pool.draw("train", rows)?;
            let template = |row: &Problem| row.id.rsplit('/').next().map(str::to_owned);
            assert!(rows.iter().all(|row| template(row).is_some()));
            Ok::<_, DatasetError>(
                rows.iter()
                    .filter(|row| row.question.starts_with("There"))
                    .count(),
            )
        };
        // The second has three variants: it is among three with nine rows, not with ten.
        assert_eq!(sizes(3, 9).unwrap(), 3);
        assert_eq!(sizes(2, 10).unwrap(), 0);
        let message = sizes(3, 10).unwrap_err().to_string();
        assert!(
            message.contains("of 3 train templates") && message.contains("only 2"),
            "{message}"
        );
    }

    #[test]
    fn check_finds_every_kind_of_mistake() {
        let good = problem("", &["<<3+5=8>>", "<<8*0.5=4>>"], "4");
        assert_eq!(check(&good), Ok(()));
        for (steps, answer) in [
            (&["<<3+5=9>>"][..], "9"),
            (&["<<3+5=8>>"], "9"),
            (&["<<10/3=3.33>>"], "3.33"),
            (&["3+5=8"], "8"),
            (&[], "8"),
        ] {
            assert!(check(&problem("", steps, answer)).is_err(), "{steps:?}");
        }
    }

    #[test]
    fn gsm8k_gives_a_hundred_thousand_valid_rows() {
        let Some(root) = crate::generate::data_root() else {
            return;
        };
        let rows = read_file(&root, "gsm8k-aug/train_noaug.txt", BadRows::Fail)
            .unwrap()
            .problems;
        let (templates, rejected) = templates(&rows);
        let given_up: usize = rejected.values().sum();
        assert_eq!(templates.len() + given_up, 6_973);
        // 3,482 when this was written.
        assert!(templates.len() > 3_000, "{} {rejected:?}", templates.len());

        let mut questions = BTreeSet::new();
        let mut sources: Vec<BTreeSet<String>> = Vec::new();
        for (part, count) in [
            (Part::Train, 100_000),
            (Part::Validation, 500),
            (Part::Test, 500),
        ] {
            let made = generate(&templates, part, count, 1).unwrap();
            let mut rows = BTreeSet::new();
            for problem in &made {
                check(problem).unwrap();
                assert!(
                    questions.insert(problem.question.clone()),
                    "{}",
                    problem.question
                );
                let name = problem.id.rsplit('/').next().unwrap();
                rows.insert(name.split('-').next().unwrap().to_owned());
                // What the generator calls derived, an operand shows to be derived.
                let mut results: BTreeSet<String> = BTreeSet::new();
                for step in &problem.steps {
                    let equation = Equation::parse(&step.text).unwrap();
                    let derived = equation
                        .operands()
                        .iter()
                        .any(|known| results.contains(known));
                    assert!(
                        derived || !step.criticality.unwrap().critical,
                        "{problem:?}"
                    );
                    results.insert(equation.value);
                }
            }
            assert!(rows.len() > 150, "{} templates", rows.len());
            sources.push(rows);
        }
        assert!(sources[0].is_disjoint(&sources[1]) && sources[0].is_disjoint(&sources[2]));
        assert!(sources[1].is_disjoint(&sources[2]));
        let again = generate(&templates, Part::Test, 500, 1).unwrap();
        assert!(
            again
                .iter()
                .all(|problem| questions.contains(&problem.question))
        );
        assert_ne!(again, generate(&templates, Part::Test, 500, 2).unwrap());
    }
}
