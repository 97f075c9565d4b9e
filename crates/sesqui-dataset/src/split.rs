//! Which split a question belongs to, and the proof that no question is in two.

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::Corpus;
use crate::error::{BadRow, DatasetError};
use crate::problem::Problem;

/// A fixed 64-bit hash of a question.
///
/// FNV-1a over the UTF-8 bytes, with runs of white space read as one space and ASCII letters as
/// lower case, so that a copy which differs only in layout counts as the same question. The result
/// goes through the finaliser of SplitMix64, because the low bits of FNV-1a depend on nothing but
/// the low bits of the text. The value is part of the definition of every generated split and must
/// never change.
pub fn question_hash(question: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |byte: u8| {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    };
    for (position, word) in question.split_whitespace().enumerate() {
        if position > 0 {
            feed(b' ');
        }
        word.bytes()
            .for_each(|byte| feed(byte.to_ascii_lowercase()));
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What a model learns from.
    Train,
    /// What decisions during training look at.
    Validation,
    /// What results are reported on.
    Test,
}

impl Part {
    /// The part that a question falls into by its hash alone, whatever the seed: one sixteenth of
    /// all questions is for tests, one for validation, the rest for training.
    pub fn of(question: &str) -> Self {
        match question_hash(question) % 16 {
            0 => Self::Test,
            1 => Self::Validation,
            _ => Self::Train,
        }
    }

    /// The name in ids and random streams.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Proves that no question of training or validation occurs in another split of the corpus.
///
/// Test sets may share questions, as published ones do: GSM-Hard has some of GSM8K's as they are. A question that
/// repeats within its split is fine.
///
/// # Errors
/// [`DatasetError::Config`] naming the first question that is in two splits, and where.
pub fn assert_disjoint(corpus: &Corpus) -> Result<(), DatasetError> {
    let mut splits: Vec<(&str, &[Problem])> =
        vec![("train", &corpus.train), ("validation", &corpus.validation)];
    splits.extend(
        corpus
            .tests
            .iter()
            .map(|test| (test.name.as_str(), test.problems.as_slice())),
    );
    // Where they begin.
    const TESTS: usize = 2;
    let mut entries: Vec<(u64, usize, usize)> = Vec::new();
    for (split, (_, problems)) in splits.iter().enumerate() {
        entries.extend(
            problems
                .iter()
                .enumerate()
                .map(|(row, problem)| (question_hash(&problem.question), split, row)),
        );
    }
    entries.sort_unstable();
    // Sorted by hash, then split: a question in two splits has them side by side somewhere.
    for pair in entries.windows(2) {
        if let [(hash, split, row), (other_hash, other_split, other_row)] = *pair
            && hash == other_hash
            && split != other_split
            && split < TESTS
        {
            let (name, problems) = splits[split];
            let (other_name, other_problems) = splits[other_split];
            return Err(DatasetError::Config(format!(
                "data set {}: the question of {} ({name}) is also that of {} ({other_name}): {:?}",
                corpus.name, problems[row].id, other_problems[other_row].id, problems[row].question,
            )));
        }
    }
    Ok(())
}

/// Takes rows out of earlier splits whose question is in a later one: training rows that are in
/// validation or a test, validation rows that are in a test. Each goes to [`Corpus::skipped`] with
/// the file and row that its id names.
pub fn remove_overlap(corpus: &mut Corpus) {
    let mut later: BTreeMap<u64, String> = BTreeMap::new();
    for problem in corpus.tests.iter().flat_map(|test| &test.problems) {
        later
            .entry(question_hash(&problem.question))
            .or_insert_with(|| problem.id.clone());
    }
    let mut removed = Vec::new();
    for (name, problems) in [
        ("validation", &mut corpus.validation),
        ("train", &mut corpus.train),
    ] {
        problems.retain(|problem| {
            let other = later.get(&question_hash(&problem.question));
            if let Some(other) = other {
                let (file, row) = problem.id.rsplit_once('/').unwrap_or((&problem.id, ""));
                let mut files = corpus.sources.iter().map(|(path, _)| path);
                removed.push(BadRow {
                    path: files
                        .find(|path| path.with_extension("") == Path::new(file))
                        .cloned()
                        .unwrap_or_else(|| file.into()),
                    line: row.parse().unwrap_or(0),
                    reason: format!("left out of {name}: its question is that of {other}"),
                });
            }
            other.is_none()
        });
        // After the training rows there is no earlier split.
        for problem in problems.iter().filter(|_| name == "validation") {
            later
                .entry(question_hash(&problem.question))
                .or_insert_with(|| problem.id.clone());
        }
    }
    corpus.skipped.extend(removed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TestSplit;
    use crate::problem::AnswerKind;

    fn problem(question: &str) -> Problem {
        Problem {
            id: format!("id of {question}"),
            question: question.into(),
            steps: Vec::new(),
            answer: "1".into(),
            answer_kind: AnswerKind::Number,
        }
    }

    #[test]
    fn hash_is_frozen_and_ignores_layout() {
        assert_eq!(question_hash("a=3+5;b=a*2;"), PINNED);
        assert_eq!(
            question_hash(" How  many\npears?"),
            question_hash("how many pears?")
        );
        assert_ne!(question_hash("a b"), question_hash("ab"));
    }

    const PINNED: u64 = 14_374_322_762_760_307_683;

    #[test]
    fn overlap_is_named() {
        let corpus = |train: &[&str], validation: &[&str], tests: [&[&str]; 2]| Corpus {
            name: "toy".into(),
            train: train.iter().map(|question| problem(question)).collect(),
            validation: validation
                .iter()
                .map(|question| problem(question))
                .collect(),
            tests: ["test", "other"]
                .iter()
                .zip(tests)
                .map(|(name, questions)| TestSplit {
                    name: (*name).into(),
                    problems: questions.iter().map(|question| problem(question)).collect(),
                })
                .collect(),
            skipped: Vec::new(),
            sources: Vec::new(),
        };
        // Two test sets may ask the same.
        assert!(assert_disjoint(&corpus(&["a", "a"], &["b"], [&["c"], &["d", "c"]])).is_ok());
        let cases: [(Corpus, [&str; 2]); 3] = [
            (
                corpus(&["a", "a"], &["b"], [&["c"], &["A "]]),
                ["(train)", "(other)"],
            ),
            (
                corpus(&["a"], &["b"], [&["b"], &[]]),
                ["(validation)", "(test)"],
            ),
            (
                corpus(&["a", "c"], &[], [&["c"], &["c"]]),
                ["(train)", "(test)"],
            ),
        ];
        for (corpus, names) in cases {
            let message = assert_disjoint(&corpus).unwrap_err().to_string();
            assert!(names.iter().all(|name| message.contains(name)), "{message}");
        }
    }
}
