//! Two methods on the same questions: who answered what rightly that the other did not.
//!
//! Questions are the unit of chance here. Both methods saw the same ones, so what is common to a
//! question cancels, and a difference is found with far fewer questions than from two separate
//! intervals.
//!
//! Over several seeds, each seed is a stratum with its own questions: the test adds up the questions on
//! which the two differ, the bootstrap draws within each seed ([`Comparison::of`]). Both then say how sure
//! the difference of *these* trained models is; how much it varies when they are trained again, only the
//! seeds beside each other show.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sesqui_dataset::generate::random::Random;

use crate::evaluate::QuestionRow;
use crate::statistics::{Interval, quantile};

/// Draws of a bootstrap.
pub const DRAWS: usize = 10_000;

/// One question and which of two methods answered it rightly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The problem's id.
    pub id: String,
    /// Whether the reference was right.
    pub reference: bool,
    /// Whether the other method was.
    pub other: bool,
}

/// Why answers cannot be paired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// One of the two answered a question that the other did not.
    #[error(
        "question {id} was answered by one of the two only ({missing} such questions in all); evaluate \
         both on the same split, data, seed and number of questions"
    )]
    Missing {
        /// The first such question.
        id: String,
        /// How many there are.
        missing: usize,
    },
    /// The same id stands for two questions.
    #[error(
        "question {id} has another text in the other evaluation; evaluate both on the same data and seed"
    )]
    Question {
        /// The id.
        id: String,
    },
    /// An id stands twice in one list.
    #[error("question {id} is there twice in one evaluation")]
    Twice {
        /// The id.
        id: String,
    },
}

/// Pairs two lists of answers by id, in the order of the reference.
///
/// # Errors
///
/// When they are not about the same questions, by id and by text.
pub fn pair(reference: &[QuestionRow], other: &[QuestionRow]) -> Result<Vec<Pair>, PairError> {
    let mut open = BTreeMap::new();
    for row in other {
        if open.insert(row.id.as_str(), row).is_some() {
            return Err(PairError::Twice { id: row.id.clone() });
        }
    }
    let mut pairs = Vec::with_capacity(reference.len());
    let mut alone: Vec<&str> = Vec::new();
    let mut seen = BTreeSet::new();
    for row in reference {
        if !seen.insert(row.id.as_str()) {
            return Err(PairError::Twice { id: row.id.clone() });
        }
        match open.remove(row.id.as_str()) {
            Some(found) if found.question != row.question => {
                return Err(PairError::Question { id: row.id.clone() });
            }
            Some(found) => pairs.push(Pair {
                id: row.id.clone(),
                reference: row.correct,
                other: found.correct,
            }),
            None => alone.push(&row.id),
        }
    }
    alone.extend(open.into_keys());
    match alone.first() {
        Some(first) => Err(PairError::Missing {
            id: (*first).to_owned(),
            missing: alone.len(),
        }),
        None => Ok(pairs),
    }
}

/// What two methods have in common and what not, and how sure the difference is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Questions, over all strata.
    pub n: usize,
    /// Accuracy of the reference.
    pub reference_accuracy: f64,
    /// Accuracy of the other method.
    pub accuracy: f64,
    /// `accuracy - reference_accuracy`.
    pub difference: f64,
    /// 95 % bootstrap interval of the difference.
    pub interval: Interval,
    /// Two-sided p of McNemar's exact test.
    pub p: f64,
    /// Questions that only the other method answered rightly, by id.
    pub won: Vec<String>,
    /// Questions that only the reference answered rightly, by id.
    pub lost: Vec<String>,
}

impl Comparison {
    /// Compares over `strata`, one for each seed; a single one for a plain comparison.
    ///
    /// The interval is the 2.5 % and the 97.5 % quantile of the differences of `draws` bootstrap samples.
    /// A sample draws from every stratum as many of its questions as it has, with replacement, each with
    /// both its answers, and takes the difference over all of them. `seed` decides the draws. Where the two
    /// differ on a handful of questions the interval is too narrow: with none lost it cannot reach below 0.
    #[must_use]
    pub fn of(strata: &[Vec<Pair>], draws: usize, seed: u64) -> Self {
        let pairs = || strata.iter().flatten();
        let ids = |wanted: fn(&Pair) -> bool| -> Vec<String> {
            let found = pairs().filter(|pair| wanted(pair));
            found.map(|pair| pair.id.clone()).collect()
        };
        let n = pairs().count();
        let share = |right: usize| right as f64 / n.max(1) as f64;
        let won = ids(|pair| pair.other && !pair.reference);
        let lost = ids(|pair| pair.reference && !pair.other);
        Self {
            n,
            reference_accuracy: share(pairs().filter(|pair| pair.reference).count()),
            accuracy: share(pairs().filter(|pair| pair.other).count()),
            difference: (won.len() as f64 - lost.len() as f64) / n.max(1) as f64,
            interval: bootstrap(strata, draws, seed),
            p: mcnemar_exact(won.len() as u64, lost.len() as u64),
            won,
            lost,
        }
    }
}

/// The two-sided p of McNemar's test (Q. McNemar, "Note on the sampling error of the difference between
/// correlated proportions or percentages", Psychometrika 12 (1947), 153–157) without approximation: were
/// both methods equally good, each of the `won + lost` questions on which they differ would go either way
/// with probability 1/2, and p is twice the smaller tail of that binomial, at most 1.
///
/// With no such question, p is 1. Computed with logarithms of binomial coefficients; where the tail is
/// below the smallest 64-bit float, p is 0.
#[must_use]
pub fn mcnemar_exact(won: u64, lost: u64) -> f64 {
    let n = won + lost;
    let smaller = won.min(lost);
    if 2 * smaller == n {
        // The two tails share their middle.
        return 1.0;
    }
    // Terms rise towards the last, so all of them are measured against it.
    let mut last = -(n as f64) * std::f64::consts::LN_2;
    let mut terms = Vec::with_capacity(smaller as usize + 1);
    terms.push(last);
    for k in 0..smaller {
        last += ((n - k) as f64 / (k + 1) as f64).ln();
        terms.push(last);
    }
    let sum: f64 = terms.iter().map(|term| (term - last).exp()).sum();
    (2.0 * last.exp() * sum).min(1.0)
}

/// The draws of a stratum depend on the seed and its place alone, so that one more moves no other.
fn bootstrap(strata: &[Vec<Pair>], draws: usize, seed: u64) -> Interval {
    let n: usize = strata.iter().map(Vec::len).sum();
    let mut sums = vec![0_i64; draws];
    for (index, stratum) in strata.iter().enumerate() {
        let mut random = Random::stream(seed, "paired bootstrap", index as u64);
        let gains: Vec<i64> = stratum
            .iter()
            .map(|pair| i64::from(pair.other) - i64::from(pair.reference))
            .collect();
        for sum in &mut sums {
            for _ in 0..gains.len() {
                *sum += gains[random.index(gains.len())];
            }
        }
    }
    let differences: Vec<f64> = sums
        .into_iter()
        .map(|sum| sum as f64 / n.max(1) as f64)
        .collect();
    let end = |share| quantile(&differences, share).unwrap_or(0.0);
    Interval {
        low: end(0.025),
        high: end(0.975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, question: &str, correct: bool) -> QuestionRow {
        QuestionRow {
            id: id.to_owned(),
            question: question.to_owned(),
            generated: String::new(),
            predicted: None,
            answer: String::new(),
            correct,
            tokens: 0,
            latent_steps: 0,
            layer_calls: 0,
            slots: Vec::new(),
            flops: 0.0,
            reason_flops: 0.0,
            probe_layer_calls: 0,
            probe_flops: 0.0,
            drafted: 0,
            accepted: 0,
        }
    }

    /// `(both, won, lost, neither)` questions.
    fn stratum(name: &str, counts: [usize; 4]) -> Vec<Pair> {
        let kinds = [(true, true), (false, true), (true, false), (false, false)];
        let mut pairs = Vec::new();
        for ((reference, other), count) in kinds.into_iter().zip(counts) {
            pairs.extend((0..count).map(|index| Pair {
                id: format!("{name}/{reference}/{other}/{index}"),
                reference,
                other,
            }));
        }
        pairs
    }

    #[test]
    fn exact_test_agrees_with_published_values() {
        let table = [
            // M. P. Fay, R package exact2x2, example of mcnemar.exact.
            (2, 9, 0.06543, 5e-6),
            // Approval ratings (A. Agresti, Categorical Data Analysis, table 10.1), mcnemar.exact there.
            (150, 86, 3.716e-5, 5e-9),
            // Sums of integers, in exact arithmetic; logarithms of 1e3 with spacings of 2e-13 allow the rest.
            (0, 6, 0.031_25, 1e-15),
            (11, 1, 0.006_347_656_25, 1e-15),
            (59, 121, 4.434_449_263_755_176e-6, 1e-16),
            (25, 15, 0.153_859_944_162_832_1, 1e-13),
            (1_200, 1_800, 5.167_668_009_304_368_5e-28, 1e-36),
        ];
        for (won, lost, expected, tolerance) in table {
            for found in [mcnemar_exact(won, lost), mcnemar_exact(lost, won)] {
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{won} and {lost}: {found:e}, not {expected:e}"
                );
            }
        }
        for (won, lost) in [(0, 0), (1, 1), (40, 40)] {
            assert_eq!(mcnemar_exact(won, lost), 1.0);
        }
        // 1.1e-483, below what a float can hold.
        assert_eq!(mcnemar_exact(900, 4_100), 0.0);
        assert_eq!(mcnemar_exact(0, 1), 1.0);
    }

    #[test]
    fn counts_and_ids_go_both_ways() {
        let pairs = stratum("s", [5, 3, 1, 2]);
        let found = Comparison::of(std::slice::from_ref(&pairs), 200, 1);
        assert_eq!((found.n, found.won.len(), found.lost.len()), (11, 3, 1));
        assert_eq!(found.lost, ["s/true/false/0"]);
        let accuracies = (found.reference_accuracy, found.accuracy);
        assert_eq!(accuracies, (6.0 / 11.0, 8.0 / 11.0));
        assert_eq!(found.difference, 2.0 / 11.0);
        assert!(found.interval.low <= found.difference && found.difference <= found.interval.high);
        // The other way round everything changes its sign, draw by draw.
        let swapped: Vec<Pair> = pairs
            .into_iter()
            .map(|pair| Pair {
                reference: pair.other,
                other: pair.reference,
                ..pair
            })
            .collect();
        let back = Comparison::of(&[swapped], 200, 1);
        assert_eq!((back.p, back.won), (found.p, found.lost));
        assert_eq!(back.difference, -found.difference);
        assert!((back.interval.low + found.interval.high).abs() < 1e-12);
        assert!((back.interval.high + found.interval.low).abs() < 1e-12);
    }

    #[test]
    fn bootstrap_has_the_width_of_the_multinomial() {
        // Gains of +1, -1 and 0 with shares 0.12, 0.04, 0.84: variance 0.16 - 0.08² = 0.1536 per question,
        // so the standard error over 500 is 0.01753 and the normal interval 0.08 ± 0.03435. Quantiles of
        // 10,000 draws have a standard error of 0.0005, and the grid of differences is 0.002: 0.004.
        let strata = [stratum("a", [100, 60, 20, 320])];
        let found = Comparison::of(&strata, DRAWS, 3).interval;
        assert!((found.low - 0.045_65).abs() < 0.004, "{found:?}");
        assert!((found.high - 0.114_35).abs() < 0.004, "{found:?}");
        assert_eq!(found, Comparison::of(&strata, DRAWS, 3).interval);
        assert_ne!(found, Comparison::of(&strata, 100, 4).interval);
    }

    #[test]
    fn strata_are_drawn_within() {
        // Each stratum has one outcome only, so drawing within changes nothing; over both together the
        // difference would vary.
        let strata = [stratum("a", [0, 40, 0, 0]), stratum("b", [0, 0, 40, 0])];
        let found = Comparison::of(&strata, 500, 1);
        assert_eq!((found.interval.low, found.interval.high), (0.0, 0.0));
        assert_eq!((found.n, found.p), (80, 1.0));
        let together = Comparison::of(&[strata.concat()], 500, 1).interval;
        assert!(together.low < -0.1 && together.high > 0.1, "{together:?}");
    }

    #[test]
    fn nothing_compared_is_no_difference() {
        let empty = Comparison::of(&[Vec::new()], 10, 1);
        assert_eq!((empty.n, empty.difference, empty.p), (0, 0.0, 1.0));
        assert_eq!((empty.interval.low, empty.interval.high), (0.0, 0.0));
    }

    #[test]
    fn only_the_same_questions_are_paired() {
        let one = [row("1", "a?", true), row("2", "b?", false)];
        let other = [row("2", "b?", true), row("1", "a?", true)];
        let pairs = pair(&one, &other).unwrap();
        let expected = |id: &str, reference, other| Pair {
            id: id.to_owned(),
            reference,
            other,
        };
        assert_eq!(
            pairs,
            [expected("1", true, true), expected("2", false, true)]
        );
        let text = [row("1", "a?", true), row("2", "c?", true)];
        let twice = [row("1", "a?", true), row("1", "a?", true)];
        let more = [
            row("1", "a?", true),
            row("2", "b?", true),
            row("3", "c?", true),
        ];
        let missing = |id: &str| PairError::Missing {
            id: id.to_owned(),
            missing: 1,
        };
        assert_eq!(pair(&one, &one[..1]), Err(missing("2")));
        assert_eq!(pair(&one, &more), Err(missing("3")));
        assert_eq!(
            pair(&one, &text),
            Err(PairError::Question { id: "2".to_owned() })
        );
        for (reference, other) in [(&one, &twice), (&twice, &one)] {
            assert_eq!(
                pair(reference, other),
                Err(PairError::Twice { id: "1".to_owned() })
            );
        }
    }
}
