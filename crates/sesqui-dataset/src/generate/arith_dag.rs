//! `arith-dag`: short programs over a few variables, where every intermediate result is needed.
//!
//! A problem of n steps has n statements; statement i defines the i-th letter as `A op B`, each
//! operand a number or an earlier letter, modulo M. The last letter is the answer:
//!
//! ```text
//! question  a=3+5;b=7*2;c=a-b;
//! steps     <<3+5=8>> <<7*2=4>> <<8-4=4>>
//! answer    4
//! ```
//!
//! A statement is *independent* (two numbers), or derived from one unused result and a number, or
//! from two unused results. Every result is used exactly once, so the statements form a binary
//! tree without distractors, and the last one is always derived. Independent steps are the
//! non-critical ones of System-1.5 Reasoning (arXiv 2505.18962, section 2.2); here the label is
//! known, not guessed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::random::Random;
use crate::error::DatasetError;
use crate::problem::{AnswerKind, Criticality, LabelSource, Problem, Step};
use crate::split::Part;

/// Settings of the task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArithDag {
    /// Fewest statements of a problem, at least 2.
    pub min_steps: usize,
    /// Most statements of a problem, at most 26, one letter each.
    pub max_steps: usize,
    /// All arithmetic is modulo this, 2 to 10, so that a number is one digit.
    pub modulus: u32,
    /// The operators, all equally likely.
    pub operators: Vec<Operator>,
    /// How often each type of statement is drawn among those that the grammar allows.
    pub weights: StatementWeights,
    /// When the grammar allows an independent statement.
    pub independent_bound: IndependentBound,
    /// Training problems drawn for each number of statements; may hold repetitions.
    pub train_per_length: usize,
    /// Distinct validation problems for each number of statements.
    pub validation_per_length: usize,
    /// Distinct test problems for each number of statements.
    pub test_per_length: usize,
}

impl Default for ArithDag {
    fn default() -> Self {
        Self {
            min_steps: 2,
            max_steps: 6,
            modulus: 10,
            operators: vec![Operator::Add, Operator::Subtract, Operator::Multiply],
            weights: StatementWeights::default(),
            independent_bound: IndependentBound::Strict,
            train_per_length: 8_000,
            validation_per_length: 100,
            test_per_length: 200,
        }
    }
}

/// An operator of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operator {
    /// Sum.
    #[serde(rename = "+")]
    Add,
    /// Difference; modulo M, hence never negative.
    #[serde(rename = "-")]
    Subtract,
    /// Product.
    #[serde(rename = "*")]
    Multiply,
}

/// Relative integer weights of the three types of statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatementWeights {
    /// Two numbers.
    pub independent: u32,
    /// An unused result and a number, in random order.
    pub one_result: u32,
    /// Two unused results.
    pub two_results: u32,
}

impl Default for StatementWeights {
    fn default() -> Self {
        Self {
            independent: 50,
            one_result: 35,
            two_results: 45,
        }
    }
}

/// How many unused results may wait when another independent statement is drawn. With r statements
/// left, the present one included, and u results unused:
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndependentBound {
    /// u + 1 <= r - 1: one statement more than needed is left to join them.
    Strict,
    /// u + 1 <= r: just enough are left; more independent steps, for example three statements of
    /// which the first two are independent.
    Loose,
}

/// The problems of one split, shortest first, ids `arith-dag/<split>/n<steps>/<row>`.
///
/// The split of a question is a function of its text ([`Part::of`]), so splits are disjoint for
/// every pair of seeds. Training problems are drawn with repetition, as the number of distinct
/// two-statement questions is small (18,000 with the default settings); the others are distinct.
///
/// # Errors
/// [`DatasetError::Config`] when a setting is out of range, or when the settings allow too few
/// distinct questions for the rows asked for.
pub fn generate(config: &ArithDag, part: Part, seed: u64) -> Result<Vec<Problem>, DatasetError> {
    config.validate()?;
    let rows = match part {
        Part::Train => config.train_per_length,
        Part::Validation => config.validation_per_length,
        Part::Test => config.test_per_length,
    };
    let stream = format!("arith-dag/{}", part.name());
    let mut problems = Vec::new();
    for length in config.min_steps..=config.max_steps {
        let mut random = Random::stream(seed, &stream, length as u64);
        let mut distinct = BTreeSet::new();
        let mut row = 0;
        let mut in_vain = 0;
        while row < rows {
            let Some(mut problem) = config.draw(length, &mut random) else {
                return Err(invalid(format!(
                    "its weights allow no problem of {length} statements"
                )));
            };
            let usable = Part::of(&problem.question) == part
                && (part == Part::Train || distinct.insert(problem.question.clone()));
            if usable {
                problem.id = format!("{stream}/n{length}/{row}");
                problems.push(problem);
                row += 1;
                in_vain = 0;
            } else {
                in_vain += 1;
            }
            if in_vain > MOST_DRAWS_IN_VAIN {
                return Err(invalid(format!(
                    "its settings allow only about {row} {} questions of {length} statements, \
                     fewer than the {rows} asked for; lower {}_per_length or raise modulus",
                    part.name(),
                    part.name(),
                )));
            }
        }
    }
    Ok(problems)
}

/// With a sixteenth of all questions in a split, this many failures in a row mean that fewer than
/// about 0.3 % of its questions are left.
const MOST_DRAWS_IN_VAIN: usize = 50_000;

fn invalid(reason: String) -> DatasetError {
    DatasetError::Config(format!("data set arith-dag: {reason}"))
}

/// One operand while a problem is drawn.
#[derive(Clone, Copy)]
enum Operand {
    Number(u32),
    Result(usize),
}

impl ArithDag {
    fn validate(&self) -> Result<(), DatasetError> {
        let complaint = if self.min_steps < 2 {
            format!("min_steps = {} must be at least 2", self.min_steps)
        } else if self.max_steps < self.min_steps {
            format!(
                "max_steps = {} is below min_steps = {}",
                self.max_steps, self.min_steps
            )
        } else if self.max_steps > 26 {
            format!(
                "max_steps = {} must be at most 26, one letter each",
                self.max_steps
            )
        } else if !(2..=10).contains(&self.modulus) {
            format!("modulus = {} must be 2 to 10", self.modulus)
        } else if self.operators.is_empty() {
            "operators must not be empty".into()
        } else if self.weights.independent == 0 {
            "weights.independent must not be 0, the first statement is independent".into()
        } else {
            return Ok(());
        };
        Err(invalid(complaint))
    }

    /// One problem without an id; `None` when the weights never close the tree.
    fn draw(&self, length: usize, random: &mut Random) -> Option<Problem> {
        // With positive weights the first attempt succeeds; a weight of zero can lead into a dead
        // end, out of which only a restart helps.
        (0..1_000).find_map(|_| self.attempt(length, random))
    }

    fn attempt(&self, length: usize, random: &mut Random) -> Option<Problem> {
        let mut question = String::with_capacity(6 * length);
        let mut steps = Vec::with_capacity(length);
        let mut values: Vec<u32> = Vec::with_capacity(length);
        let mut unused: Vec<usize> = Vec::new();
        for statement in 0..length {
            let left = length - statement;
            let operands = match random.weighted(&self.allowed(unused.len(), left))? {
                0 => [self.number(random), self.number(random)],
                1 => {
                    let mut pair = [take(&mut unused, random), self.number(random)];
                    random.shuffle(&mut pair);
                    pair
                }
                _ => [take(&mut unused, random), take(&mut unused, random)],
            };
            let operator = *random.pick(&self.operators)?;
            let [left, right] = operands.map(|operand| match operand {
                Operand::Number(number) => number,
                Operand::Result(index) => values[index],
            });
            let value = operator.apply(left, right, self.modulus);
            question.push(letter(statement));
            question.push('=');
            operands[0].write(&mut question);
            question.push(operator.symbol());
            operands[1].write(&mut question);
            question.push(';');
            let critical = operands
                .iter()
                .any(|operand| matches!(operand, Operand::Result(_)));
            steps.push(Step {
                text: format!("<<{left}{}{right}={value}>>", operator.symbol()),
                criticality: Some(Criticality {
                    critical,
                    source: LabelSource::GroundTruth,
                }),
            });
            values.push(value);
            unused.push(statement);
        }
        let answer = values.last()?.to_string();
        (unused.len() == 1).then_some(Problem {
            id: String::new(),
            question,
            steps,
            answer,
            answer_kind: AnswerKind::Number,
        })
    }

    /// The weights of the types of statement that the grammar allows now.
    fn allowed(&self, unused: usize, left: usize) -> [u32; 3] {
        let room = match self.independent_bound {
            IndependentBound::Strict => unused + 2 <= left,
            IndependentBound::Loose => unused < left,
        };
        let weight = |allowed: bool, weight: u32| if allowed { weight } else { 0 };
        [
            weight(left > 1 && room, self.weights.independent),
            weight(unused >= 1 && unused <= left, self.weights.one_result),
            weight(unused >= 2, self.weights.two_results),
        ]
    }

    fn number(&self, random: &mut Random) -> Operand {
        Operand::Number(random.below(u64::from(self.modulus)) as u32)
    }
}

impl Operator {
    /// The character in questions and steps.
    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
        }
    }

    fn apply(self, left: u32, right: u32, modulus: u32) -> u32 {
        match self {
            Self::Add => (left + right) % modulus,
            Self::Subtract => (left + modulus - right) % modulus,
            Self::Multiply => left * right % modulus,
        }
    }
}

impl Operand {
    fn write(self, question: &mut String) {
        match self {
            Self::Number(number) => question.push_str(&number.to_string()),
            Self::Result(index) => question.push(letter(index)),
        }
    }
}

fn letter(index: usize) -> char {
    char::from(b'a' + index as u8)
}

/// Takes a random unused result; the grammar has made sure that there is one.
fn take(unused: &mut Vec<usize>, random: &mut Random) -> Operand {
    let position = random.index(unused.len());
    Operand::Result(unused.remove(position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::question_hash;

    fn all(config: &ArithDag, seed: u64) -> Vec<Problem> {
        [Part::Train, Part::Validation, Part::Test]
            .into_iter()
            .flat_map(|part| generate(config, part, seed).unwrap())
            .collect()
    }

    /// Reads a question with nothing of the generator: letters to values, uses counted.
    fn evaluate(problem: &Problem, modulus: i64) {
        let mut values = std::collections::BTreeMap::new();
        let mut uses = std::collections::BTreeMap::new();
        let statements: Vec<&str> = problem.question.split_terminator(';').collect();
        assert_eq!(statements.len(), problem.steps.len());
        for (index, (statement, step)) in statements.iter().zip(&problem.steps).enumerate() {
            let text: Vec<char> = statement.chars().collect();
            let [name, '=', left, operator, right] = text[..] else {
                panic!("{statement}")
            };
            assert_eq!(name, (b'a' + index as u8) as char);
            let mut derived = false;
            let mut value_of = |operand: char| match operand.to_digit(10) {
                Some(digit) => i64::from(digit),
                None => {
                    derived = true;
                    *uses.entry(operand).or_insert(0) += 1;
                    values[&operand]
                }
            };
            let (a, b) = (value_of(left), value_of(right));
            let result = match operator {
                '+' => a + b,
                '-' => a - b,
                '*' => a * b,
                _ => panic!("{statement}"),
            }
            .rem_euclid(modulus);
            assert_eq!(
                step.text,
                format!("<<{a}{operator}{b}={result}>>"),
                "{}",
                problem.id
            );
            assert_eq!(
                step.criticality.unwrap().critical,
                derived,
                "{}",
                problem.id
            );
            values.insert(name, result);
        }
        let last = (b'a' + statements.len() as u8 - 1) as char;
        assert_eq!(problem.answer, values[&last].to_string());
        assert!(problem.steps.last().unwrap().criticality.unwrap().critical);
        // A tree: every result but the last is used, and only once.
        assert!(!uses.contains_key(&last) && uses.len() == statements.len() - 1);
        assert!(
            uses.values().all(|&count| count == 1),
            "{}",
            problem.question
        );
    }

    #[test]
    fn every_problem_is_a_tree_and_right() {
        let loose = ArithDag {
            independent_bound: IndependentBound::Loose,
            modulus: 7,
            max_steps: 9,
            train_per_length: 300,
            validation_per_length: 20,
            test_per_length: 20,
            ..ArithDag::default()
        };
        for (config, modulus) in [(ArithDag::default(), 10), (loose, 7)] {
            let problems = all(&config, 5);
            problems
                .iter()
                .for_each(|problem| evaluate(problem, modulus));
            let ids: BTreeSet<&str> = problems.iter().map(|problem| problem.id.as_str()).collect();
            assert_eq!(ids.len(), problems.len());
        }
    }

    #[test]
    fn share_of_derived_steps_is_that_of_the_recipe() {
        let train = generate(&ArithDag::default(), Part::Train, 1).unwrap();
        for (length, expected) in (2..=6).zip([0.50, 0.67, 0.59, 0.63, 0.61]) {
            let labels: Vec<bool> = train
                .iter()
                .filter(|problem| problem.steps.len() == length)
                .flat_map(|problem| &problem.steps)
                .map(|step| step.criticality.unwrap().critical)
                .collect();
            assert_eq!(labels.len(), 8_000 * length);
            let share = labels.iter().filter(|&&label| label).count() as f64 / labels.len() as f64;
            assert!(
                (share - expected).abs() < 0.03,
                "n = {length}: {share}, not {expected}"
            );
        }
    }

    #[test]
    fn loose_bound_has_more_independent_steps() {
        let independent = |bound| {
            let config = ArithDag {
                independent_bound: bound,
                ..ArithDag::default()
            };
            let problems = generate(&config, Part::Test, 1).unwrap();
            let labels = problems.iter().flat_map(|problem| &problem.steps);
            labels
                .filter(|step| !step.criticality.unwrap().critical)
                .count()
        };
        assert!(independent(IndependentBound::Loose) > independent(IndependentBound::Strict));
    }

    #[test]
    fn output_is_frozen_and_splits_are_disjoint_across_seeds() {
        let train = generate(&ArithDag::default(), Part::Train, 1).unwrap();
        let mut text = String::new();
        for problem in &train[..1_000] {
            text.push_str(&format!("{} {}", problem.id, problem.question));
            problem
                .steps
                .iter()
                .for_each(|step| text.push_str(&step.text));
            text.push_str(&format!(" {}\n", problem.answer));
        }
        assert_eq!(train[0].question, FIRST);
        assert_eq!(question_hash(&text), PINNED);
        let test = generate(&ArithDag::default(), Part::Test, 2).unwrap();
        assert_eq!((train.len(), test.len()), (40_000, 1_000));
        let questions: BTreeSet<&str> = train.iter().map(|row| row.question.as_str()).collect();
        assert!(
            test.iter()
                .all(|row| !questions.contains(row.question.as_str()))
        );
        let distinct: BTreeSet<&str> = test.iter().map(|row| row.question.as_str()).collect();
        assert_eq!(distinct.len(), test.len());
    }

    const FIRST: &str = "a=8*3;b=9-a;";
    const PINNED: u64 = 4_972_238_031_469_953_763;

    #[test]
    fn impossible_settings_are_errors() {
        let default = ArithDag::default;
        let no_pairs = StatementWeights {
            one_result: 0,
            ..StatementWeights::default()
        };
        let cases = [
            (
                ArithDag {
                    min_steps: 1,
                    ..default()
                },
                "min_steps = 1",
            ),
            (
                ArithDag {
                    max_steps: 1,
                    ..default()
                },
                "max_steps = 1",
            ),
            (
                ArithDag {
                    max_steps: 27,
                    ..default()
                },
                "max_steps = 27",
            ),
            (
                ArithDag {
                    modulus: 11,
                    ..default()
                },
                "modulus = 11",
            ),
            (
                ArithDag {
                    operators: Vec::new(),
                    ..default()
                },
                "operators",
            ),
            (
                ArithDag {
                    weights: no_pairs,
                    ..default()
                },
                "weights allow no problem of 2",
            ),
            (
                ArithDag {
                    modulus: 2,
                    ..default()
                },
                "lower test_per_length",
            ),
        ];
        for (config, expected) in cases {
            let message = generate(&config, Part::Test, 1).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
