//! The data section of an experiment, and what it loads into.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{BadRow, DatasetError};
use crate::generate::arith_dag::ArithDag;
use crate::generate::multiplication::Multiplication;
use crate::problem::Problem;
use crate::read::BadRows;

mod load;
mod perturbed;

pub use perturbed::{Gsm8kPerturbed, PerturbedTest, PerturbedValidation};

/// Everything a run reads: disjoint splits, plus what was skipped and which bytes it came from.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Name of the data set, as in the config.
    pub name: String,
    /// Training problems.
    pub train: Vec<Problem>,
    /// Validation problems.
    pub validation: Vec<Problem>,
    /// One or more test sets.
    pub tests: Vec<TestSplit>,
    /// Rows left out, each with its reason: malformed ones under [`BadRows::Skip`], and rows whose
    /// question is also in a later split.
    pub skipped: Vec<BadRow>,
    /// `(path below the data root, sha256)` of every file read.
    pub sources: Vec<(PathBuf, String)>,
}

/// A named test set.
#[derive(Clone, Debug)]
pub struct TestSplit {
    /// The name, for example `test` or `gsm8k-test`.
    pub name: String,
    /// Its problems.
    pub problems: Vec<Problem>,
}

/// A data set by name, with its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DatasetConfig {
    /// Generated arithmetic programs with known criticality; needs no file.
    ArithDag(ArithDag),
    /// GSM8K templates with redrawn numbers.
    Gsm8kPerturbed(Gsm8kPerturbed),
    /// GSM8K with its solutions in words.
    Gsm8k(Gsm8k),
    /// GSM8K with equations only as steps.
    Gsm8kAug(Gsm8kAug),
    /// Generated training graphs, published validation and test questions.
    Prosqa(Prosqa),
    /// ProntoQA with five hops.
    Prontoqa(Published),
    /// StrategyQA; the published development set is the test set, as the official test answers are
    /// hidden.
    Strategyqa(Strategyqa),
    /// MathQA.
    Mathqa(Mathqa),
    /// AQuA-RAT; validation is the published development set.
    AquaRat(AquaRat),
    /// Long multiplication, generated; validation and test are the published files where there are.
    Multiplication(Multiplication),
    /// GSM-Hard, for evaluation only: no training and no validation rows.
    GsmHard(Published),
    /// SVAMP, for evaluation only.
    Svamp(Published),
    /// One subset of MAWPS, for evaluation only.
    Mawps(Mawps),
}

/// Settings of a data set that is taken as published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Published {
    /// Most rows of each split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

/// Settings of `gsm8k`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gsm8k {
    /// Training rows held out for validation: those with the smallest hash of the question, the
    /// same for every seed.
    pub validation_rows: usize,
    /// Most rows of each split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

impl Default for Gsm8k {
    fn default() -> Self {
        Self {
            validation_rows: 500,
            most_rows: None,
        }
    }
}

/// Settings of `gsm8k-aug`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gsm8kAug {
    /// Which training file.
    pub train: Gsm8kAugTrain,
    /// Most rows of each split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

/// A training file of `gsm8k-aug`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gsm8kAugTrain {
    /// `train_noaug.txt`: the 6,973 problems of GSM8K that are not for validation.
    #[default]
    NoAugmentation,
    /// `train.txt`: 385,620 problems; to be supplied by the user.
    Augmented,
}

/// Settings of `prosqa`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prosqa {
    /// Where training problems come from.
    pub train: ProsqaTrain,
    /// Generated training problems, distinct.
    pub train_rows: usize,
    /// The names in generated problems.
    pub names: ProsqaNames,
    /// Most rows of each published split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

impl Default for Prosqa {
    fn default() -> Self {
        Self {
            train: ProsqaTrain::Generated,
            train_rows: 17_886,
            names: ProsqaNames::Published,
            most_rows: None,
        }
    }
}

/// The training problems of `prosqa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProsqaTrain {
    /// From our own procedure, fitted to the published questions.
    Generated,
    /// `prosqa_train.json`; to be supplied by the user.
    Published,
}

/// The names in generated problems of `prosqa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProsqaNames {
    /// Those of the published validation questions, so that no name of a test is new.
    Published,
    /// Our own: every name of a test is new.
    Invented,
}

/// Settings of `strategyqa`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Strategyqa {
    /// Training rows held out for validation, as for `gsm8k`.
    pub validation_rows: usize,
    /// Most rows of each split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

impl Default for Strategyqa {
    fn default() -> Self {
        Self {
            validation_rows: 200,
            most_rows: None,
        }
    }
}

/// Settings of `mathqa`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mathqa {
    /// Where training problems come from.
    pub train: MathqaTrain,
    /// With `train = "dev"`, rows held out for validation, as for `gsm8k`.
    pub validation_rows: usize,
    /// The test set.
    pub test: MathqaTest,
    /// Most rows of each split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

impl Default for Mathqa {
    fn default() -> Self {
        Self {
            train: MathqaTrain::Dev,
            validation_rows: 500,
            test: MathqaTest::Full,
            most_rows: None,
        }
    }
}

/// The training problems of `mathqa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MathqaTrain {
    /// The development set of 4,475 rows, less validation: results are not comparable with those
    /// of the full training set.
    Dev,
    /// `train.json`, 29,837 rows, to be supplied by the user; validation is the development set.
    Published,
}

/// The test set of `mathqa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MathqaTest {
    /// All 2,985 rows.
    Full,
    /// The 604 harder rows, a subset of the full test set.
    Challenge,
}

/// Settings of `aqua-rat`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AquaRat {
    /// Where training problems come from.
    pub train: AquaRatTrain,
    /// Most rows of each split, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

/// The training problems of `aqua-rat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AquaRatTrain {
    /// `train.json`, 97,467 rows; to be supplied by the user.
    #[default]
    Published,
    /// None: for evaluation only.
    None,
}

/// Settings of `mawps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mawps {
    /// Which subset.
    pub subset: MawpsSubset,
    /// Most rows, the first ones; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_rows: Option<usize>,
}

/// A subset of MAWPS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MawpsSubset {
    /// 395 problems of addition and subtraction.
    Addsub,
    /// 600 problems of several operations.
    #[default]
    Multiarith,
    /// 508 problems of one equation.
    Singleeq,
    /// 562 problems of one operation.
    Singleop,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self::ArithDag(ArithDag::default())
    }
}

impl DatasetConfig {
    /// The name in configs and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ArithDag(_) => "arith-dag",
            Self::Gsm8kPerturbed(_) => "gsm8k-perturbed",
            Self::Gsm8k(_) => "gsm8k",
            Self::Gsm8kAug(_) => "gsm8k-aug",
            Self::Prosqa(_) => "prosqa",
            Self::Prontoqa(_) => "prontoqa",
            Self::Strategyqa(_) => "strategyqa",
            Self::Mathqa(_) => "mathqa",
            Self::AquaRat(_) => "aqua-rat",
            Self::Multiplication(_) => "multiplication",
            Self::GsmHard(_) => "gsm-hard",
            Self::Svamp(_) => "svamp",
            Self::Mawps(_) => "mawps",
        }
    }

    /// Reads or generates all splits and proves that they are disjoint.
    ///
    /// `root` is the folder that holds one folder per published data set; what is wholly generated
    /// needs none. `seed` draws generated rows, test sets included, and nothing else: runs that are
    /// to be compared share it. `bad_rows` says what to do with a malformed row.
    ///
    /// A training row whose question is also in validation or a test, or a validation row whose
    /// question is in a test, is left out and listed in [`Corpus::skipped`].
    ///
    /// # Errors
    /// [`DatasetError::Missing`] with a hint for a file that is not there, [`DatasetError::Row`] for
    /// a malformed row, [`DatasetError::Config`] for settings that cannot work.
    pub fn load(
        &self,
        root: Option<&Path>,
        seed: u64,
        bad_rows: BadRows,
    ) -> Result<Corpus, DatasetError> {
        load::load(self, root, seed, bad_rows, load::Wanted::Everything)
    }

    /// As [`Self::load`], without training rows: what a trained model is asked. Validation and tests
    /// are the same; that no training row is among them is proven where they are loaded together.
    ///
    /// # Errors
    /// As [`Self::load`]; files that hold nothing but training rows are not needed.
    pub fn load_held_out(
        &self,
        root: Option<&Path>,
        seed: u64,
        bad_rows: BadRows,
    ) -> Result<Corpus, DatasetError> {
        load::load(self, root, seed, bad_rows, load::Wanted::HeldOut)
    }

    /// Divides the number of rows by `factor`, at least one of each split remaining, for runs that
    /// only have to get through. A published split counts as 10,000 rows.
    pub fn shrink(&mut self, factor: usize) {
        let divide = |rows: &mut usize| *rows = rows.div_ceil(factor.max(1));
        let limit = |most: &mut Option<usize>| divide(most.get_or_insert(10_000));
        match self {
            Self::ArithDag(config) => {
                divide(&mut config.train_per_length);
                divide(&mut config.validation_per_length);
                divide(&mut config.test_per_length);
            }
            Self::Gsm8kPerturbed(config) => {
                divide(&mut config.train_rows);
                divide(&mut config.validation_rows);
                config.tests.iter_mut().for_each(|test| match test {
                    PerturbedTest::PerturbedSeen { rows }
                    | PerturbedTest::PerturbedHeldout { rows } => divide(rows),
                    PerturbedTest::Gsm8kTest { most_rows }
                    | PerturbedTest::GsmHard { most_rows }
                    | PerturbedTest::Svamp { most_rows }
                    | PerturbedTest::Multiarith { most_rows } => limit(most_rows),
                });
            }
            Self::Multiplication(config) => {
                divide(&mut config.train_rows);
                divide(&mut config.validation_rows);
                divide(&mut config.test_rows);
            }
            Self::Prosqa(config) => {
                divide(&mut config.train_rows);
                limit(&mut config.most_rows);
            }
            Self::Prontoqa(config) | Self::GsmHard(config) | Self::Svamp(config) => {
                limit(&mut config.most_rows);
            }
            Self::Gsm8k(config) => limit(&mut config.most_rows),
            Self::Gsm8kAug(config) => limit(&mut config.most_rows),
            Self::Strategyqa(config) => limit(&mut config.most_rows),
            Self::Mathqa(config) => limit(&mut config.most_rows),
            Self::AquaRat(config) => limit(&mut config.most_rows),
            Self::Mawps(config) => limit(&mut config.most_rows),
        }
    }
}
