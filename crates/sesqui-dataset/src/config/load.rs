//! From settings to splits.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{
    AquaRatTrain, Corpus, DatasetConfig, Gsm8kAugTrain, Gsm8kPerturbed, MathqaTest, MathqaTrain,
    MawpsSubset, PerturbedTest, PerturbedValidation, Prosqa, ProsqaNames, ProsqaTrain, TestSplit,
};
use crate::error::{BadRow, DatasetError};
use crate::generate::multiplication::{self, Multiplication};
use crate::generate::perturb::{self, Template, Variants};
use crate::generate::{arith_dag, prosqa};
use crate::manifest;
use crate::problem::Problem;
use crate::read::{self, BadRows};
use crate::split::{Part, assert_disjoint, question_hash, remove_overlap};

pub(super) fn load(
    config: &DatasetConfig,
    root: Option<&Path>,
    seed: u64,
    bad_rows: BadRows,
    wanted: Wanted,
) -> Result<Corpus, DatasetError> {
    let mut files = Files {
        root,
        bad_rows,
        wanted,
        most_rows: None,
        skipped: Vec::new(),
        sources: Vec::new(),
    };
    let Splits {
        train,
        validation,
        tests,
    } = splits(config, seed, &mut files)?;
    let tests = tests
        .into_iter()
        .map(|(name, problems)| TestSplit { name, problems })
        .collect();
    let Files {
        skipped, sources, ..
    } = files;
    let name = config.name().to_owned();
    let mut corpus = Corpus {
        name,
        train,
        validation,
        tests,
        skipped,
        sources,
    };
    remove_overlap(&mut corpus);
    assert_disjoint(&corpus)?;
    Ok(corpus)
}

/// Which splits are loaded.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// All of them.
    Everything,
    /// Validation and tests.
    HeldOut,
}

struct Splits {
    train: Vec<Problem>,
    validation: Vec<Problem>,
    tests: Vec<(String, Vec<Problem>)>,
}

impl Splits {
    fn new(train: Vec<Problem>, validation: Vec<Problem>, test: Vec<Problem>) -> Self {
        Self {
            train,
            validation,
            tests: vec![("test".to_owned(), test)],
        }
    }

    fn evaluation_only(name: &str, test: Vec<Problem>) -> Self {
        let tests = vec![(name.to_owned(), test)];
        Self {
            train: Vec::new(),
            validation: Vec::new(),
            tests,
        }
    }
}

fn splits(
    config: &DatasetConfig,
    seed: u64,
    files: &mut Files<'_>,
) -> Result<Splits, DatasetError> {
    Ok(match config {
        DatasetConfig::ArithDag(config) => Splits::new(
            files.train(|_| arith_dag::generate(config, Part::Train, seed))?,
            arith_dag::generate(config, Part::Validation, seed)?,
            arith_dag::generate(config, Part::Test, seed)?,
        ),
        DatasetConfig::Gsm8kPerturbed(config) => gsm8k_perturbed(config, seed, files)?,
        DatasetConfig::Gsm8k(config) => {
            let (train, validation) =
                hold_out(files.read("gsm8k/train.jsonl")?, config.validation_rows);
            files.most_rows = config.most_rows;
            let test = files.read("gsm8k/test.jsonl")?;
            Splits::new(
                files.train(|files| Ok(files.limit(train)))?,
                files.limit(validation),
                test,
            )
        }
        DatasetConfig::Gsm8kAug(config) => {
            files.most_rows = config.most_rows;
            let train = match config.train {
                Gsm8kAugTrain::NoAugmentation => "gsm8k-aug/train_noaug.txt",
                Gsm8kAugTrain::Augmented => "gsm8k-aug/train.txt",
            };
            Splits::new(
                files.train(|files| files.read(train))?,
                files.read("gsm8k-aug/valid.txt")?,
                files.read("gsm8k-aug/test.txt")?,
            )
        }
        DatasetConfig::Prosqa(config) => prosqa(config, seed, files)?,
        DatasetConfig::Prontoqa(config) => {
            files.most_rows = config.most_rows;
            Splits::new(
                files.train(|files| files.read("prontoqa/prontoqa_train.jsonl"))?,
                files.read("prontoqa/prontoqa_valid.jsonl")?,
                files.read("prontoqa/prontoqa_test.jsonl")?,
            )
        }
        DatasetConfig::Strategyqa(config) => {
            let (train, validation) =
                hold_out(files.read("strategyqa/train.json")?, config.validation_rows);
            files.most_rows = config.most_rows;
            let test = files.read("strategyqa/dev.json")?;
            Splits::new(
                files.train(|files| Ok(files.limit(train)))?,
                files.limit(validation),
                test,
            )
        }
        DatasetConfig::Mathqa(config) => {
            let (train, validation) = match config.train {
                MathqaTrain::Dev => {
                    hold_out(files.read("mathqa/dev.json")?, config.validation_rows)
                }
                MathqaTrain::Published => (
                    files.train(|files| files.read("mathqa/train.json"))?,
                    files.read("mathqa/dev.json")?,
                ),
            };
            files.most_rows = config.most_rows;
            let test = files.read(match config.test {
                MathqaTest::Full => "mathqa/test.json",
                MathqaTest::Challenge => "mathqa/challenge_test.json",
            })?;
            Splits::new(
                files.train(|files| Ok(files.limit(train)))?,
                files.limit(validation),
                test,
            )
        }
        DatasetConfig::AquaRat(config) => {
            files.most_rows = config.most_rows;
            let train = match config.train {
                AquaRatTrain::Published => {
                    files.train(|files| files.read("aqua-rat/train.json"))?
                }
                AquaRatTrain::None => Vec::new(),
            };
            Splits::new(
                train,
                files.read("aqua-rat/dev.json")?,
                files.read("aqua-rat/test.json")?,
            )
        }
        DatasetConfig::Multiplication(config) => multiplication(config, seed, files)?,
        DatasetConfig::GsmHard(config) => {
            files.most_rows = config.most_rows;
            Splits::evaluation_only("gsm-hard", files.read("gsm-hard/gsmhardv2.jsonl")?)
        }
        DatasetConfig::Svamp(config) => {
            files.most_rows = config.most_rows;
            Splits::evaluation_only("svamp", files.read("math-word-problems/svamp.jsonl")?)
        }
        DatasetConfig::Mawps(config) => {
            files.most_rows = config.most_rows;
            let (name, file) = match config.subset {
                MawpsSubset::Addsub => ("mawps-addsub", "mawpsaddsub.jsonl"),
                MawpsSubset::Multiarith => ("mawps-multiarith", "mawpsmultiarith.jsonl"),
                MawpsSubset::Singleeq => ("mawps-singleeq", "mawpssingleeq.jsonl"),
                MawpsSubset::Singleop => ("mawps-singleop", "mawpssingleop.jsonl"),
            };
            Splits::evaluation_only(name, files.read(&format!("math-word-problems/{file}"))?)
        }
    })
}

fn gsm8k_perturbed(
    config: &Gsm8kPerturbed,
    seed: u64,
    files: &mut Files<'_>,
) -> Result<Splits, DatasetError> {
    if let Some(problem) = config.problem() {
        return Err(DatasetError::Config(problem));
    }
    let problems = files.read("gsm8k-aug/train_noaug.txt")?;
    let bounds = config.bounds();
    let templates: Vec<Template> = perturb::templates(&problems)
        .0
        .into_iter()
        .filter_map(|template| template.within(bounds))
        .collect();
    let mut trained = match config.templates {
        0 => Variants::new(&templates, Part::Train, seed),
        count => Variants::first(&templates, Part::Train, count, config.trained_rows(), seed)?,
    };
    // A training row of each template before anything else, so that no template is tested as seen
    // that training has not; the rest of them last, as small templates may have few variants.
    let first_rows = config.train_rows.min(trained.templates());
    let mut train = trained.draw(Part::Train.name(), first_rows)?;
    trained.keep_used();
    let mut tests = Vec::with_capacity(config.tests.len());
    let mut published = |name: &str, file: &str, most_rows: Option<usize>| {
        files.most_rows = most_rows;
        files.read(file).map(|rows| (name.to_owned(), rows))
    };
    for test in &config.tests {
        tests.push(match *test {
            PerturbedTest::PerturbedSeen { rows } => {
                ("perturbed-seen".to_owned(), trained.draw("seen", rows)?)
            }
            PerturbedTest::PerturbedHeldout { rows } => (
                "perturbed-heldout".to_owned(),
                perturb::generate(&templates, Part::Test, rows, seed)?,
            ),
            PerturbedTest::Gsm8kTest { most_rows } => {
                published("gsm8k-test", "gsm8k-aug/test.txt", most_rows)?
            }
            PerturbedTest::GsmHard { most_rows } => {
                published("gsm-hard", "gsm-hard/gsmhardv2.jsonl", most_rows)?
            }
            PerturbedTest::Svamp { most_rows } => {
                published("svamp", "math-word-problems/svamp.jsonl", most_rows)?
            }
            PerturbedTest::Multiarith { most_rows } => {
                let file = "math-word-problems/mawpsmultiarith.jsonl";
                published("multiarith", file, most_rows)?
            }
        });
    }
    let validation = match config.validation {
        PerturbedValidation::SeenTemplates => {
            trained.draw(Part::Validation.name(), config.validation_rows)?
        }
        PerturbedValidation::HeldoutTemplates => {
            perturb::generate(&templates, Part::Validation, config.validation_rows, seed)?
        }
    };
    let train = files.train(|_| {
        let rest = config.train_rows - train.len();
        train.extend(trained.draw(Part::Train.name(), rest)?);
        Ok(train)
    })?;
    Ok(Splits {
        train,
        validation,
        tests,
    })
}

fn prosqa(config: &Prosqa, seed: u64, files: &mut Files<'_>) -> Result<Splits, DatasetError> {
    files.most_rows = config.most_rows;
    let validation = files.read("prosqa/prosqa_valid.json")?;
    let test = files.read("prosqa/prosqa_test.json")?;
    let train = files.train(|files| match config.train {
        ProsqaTrain::Published => files.read("prosqa/prosqa_train.json"),
        ProsqaTrain::Generated => {
            let names = match (config.names, files.root) {
                (ProsqaNames::Published, Some(root)) => {
                    // All names, also where few rows are wanted.
                    let path = root.join("prosqa/prosqa_valid.json");
                    let graphs = read::prosqa::read_with_graphs(&path, files.bad_rows)?;
                    prosqa::Names::of_graphs(graphs.rows.iter().map(|(_, graph)| graph))
                }
                _ => prosqa::Names::invented(),
            };
            let rows = prosqa::generate(&names, Part::Train, config.train_rows, seed)?;
            Ok(rows.into_iter().map(|(problem, _)| problem).collect())
        }
    })?;
    Ok(Splits::new(train, validation, test))
}

fn multiplication(
    config: &Multiplication,
    seed: u64,
    files: &mut Files<'_>,
) -> Result<Splits, DatasetError> {
    let digits = config.digits;
    let mut published = |kind: &str, most_rows: usize| {
        let relative = format!("multiplication/{digits}x{digits}_{kind}.txt");
        files.most_rows = Some(most_rows);
        read::file_kind(&relative)
            .map(|_| files.read(&relative))
            .transpose()
    };
    let validation = published("valid", config.validation_rows)?;
    let test = published("test_bigbench", config.test_rows)?;
    let taken: BTreeSet<&str> = [&validation, &test]
        .into_iter()
        .flatten()
        .flatten()
        .map(|row| &*row.question)
        .collect();
    let train = files.train(|_| {
        multiplication::generate(digits, Part::Train, config.train_rows, &taken, seed)
    })?;
    let generated = |part, rows| multiplication::generate(digits, part, rows, &taken, seed);
    let new_validation = match validation {
        Some(_) => Vec::new(),
        None => generated(Part::Validation, config.validation_rows)?,
    };
    let new_test = match test {
        Some(_) => Vec::new(),
        None => generated(Part::Test, config.test_rows)?,
    };
    Ok(Splits::new(
        train,
        validation.unwrap_or(new_validation),
        test.unwrap_or(new_test),
    ))
}

/// Splits off the `rows` problems with the smallest hash of their question; both parts keep the
/// order of the file.
fn hold_out(problems: Vec<Problem>, rows: usize) -> (Vec<Problem>, Vec<Problem>) {
    let mut order: Vec<(u64, usize)> = problems
        .iter()
        .enumerate()
        .map(|(row, problem)| (question_hash(&problem.question), row))
        .collect();
    order.sort_unstable();
    let held: BTreeSet<usize> = order.into_iter().take(rows).map(|(_, row)| row).collect();
    let (held, kept): (Vec<_>, Vec<_>) = problems
        .into_iter()
        .enumerate()
        .partition(|(row, _)| held.contains(row));
    let plain = |rows: Vec<(usize, Problem)>| rows.into_iter().map(|(_, problem)| problem);
    (plain(kept).collect(), plain(held).collect())
}

/// Reads files and keeps account of them.
struct Files<'a> {
    root: Option<&'a Path>,
    bad_rows: BadRows,
    wanted: Wanted,
    most_rows: Option<usize>,
    skipped: Vec<BadRow>,
    sources: Vec<(PathBuf, String)>,
}

impl Files<'_> {
    fn read(&mut self, relative: &str) -> Result<Vec<Problem>, DatasetError> {
        let Some(root) = self.root else {
            let (data_set, name) = relative.split_once('/').unwrap_or((relative, ""));
            return Err(DatasetError::Missing {
                data_set: data_set.to_owned(),
                path: PathBuf::from(relative),
                hint: format!(
                    "name the data root, the folder that holds a folder `{data_set}`; {}",
                    manifest::how_to_obtain(data_set, name)?
                ),
            });
        };
        let rows = read::read_file(root, relative, self.bad_rows)?;
        self.sources.push((
            PathBuf::from(relative),
            manifest::sha256_of(&root.join(relative))?,
        ));
        self.skipped.extend(rows.skipped);
        Ok(self.limit(rows.problems))
    }

    /// Training rows, where they are wanted.
    fn train(
        &mut self,
        rows: impl FnOnce(&mut Self) -> Result<Vec<Problem>, DatasetError>,
    ) -> Result<Vec<Problem>, DatasetError> {
        match self.wanted {
            Wanted::Everything => rows(self),
            Wanted::HeldOut => Ok(Vec::new()),
        }
    }

    fn limit(&self, mut problems: Vec<Problem>) -> Vec<Problem> {
        problems.truncate(self.most_rows.unwrap_or(usize::MAX));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DatasetConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn settings_are_strict_and_round_trip() {
        for name in [
            "arith-dag",
            "gsm8k-perturbed",
            "gsm8k",
            "gsm8k-aug",
            "prosqa",
            "prontoqa",
            "strategyqa",
            "mathqa",
            "aqua-rat",
            "multiplication",
            "gsm-hard",
            "svamp",
            "mawps",
        ] {
            let parsed = config(&format!("kind = {name:?}"));
            assert_eq!(parsed.name(), name);
            assert_eq!(config(&toml::to_string(&parsed).unwrap()), parsed);
            let mut shrunk = parsed.clone();
            shrunk.shrink(100);
            assert_ne!(shrunk, parsed);
            assert_eq!(config(&toml::to_string(&shrunk).unwrap()), shrunk);
            let misspelt = format!("kind = {name:?}\nmost_row = 1");
            let message = toml::from_str::<DatasetConfig>(&misspelt)
                .unwrap_err()
                .to_string();
            assert!(message.contains("most_row"), "{message}");
        }
        let table = "kind = 'gsm8k-perturbed'\ntests = [{ kind = 'perturbed-heldout', rows = 7 }]";
        let DatasetConfig::Gsm8kPerturbed(table) = config(table) else {
            panic!()
        };
        assert_eq!(table.tests, [PerturbedTest::PerturbedHeldout { rows: 7 }]);
    }

    #[test]
    fn missing_data_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for (root, hint) in [
            (None, "name the data root"),
            (Some(folder.path()), "prepare"),
        ] {
            let error = config("kind = 'gsm8k'")
                .load(root, 1, BadRows::Fail)
                .unwrap_err();
            assert!(matches!(error, DatasetError::Missing { .. }));
            let message = error.to_string();
            assert!(
                message.contains(hint) && message.contains("grade-school-math"),
                "{message}"
            );
        }
        let aqua = config("kind = 'aqua-rat'")
            .load(None, 1, BadRows::Fail)
            .unwrap_err();
        assert!(aqua.to_string().contains("aqua-rat/train.json"), "{aqua}");
    }

    /// What a trained model is asked is what it was held out from, and needs no training file.
    #[test]
    fn held_out_splits_are_those_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let root = Some(folder.path());
        let write = |file: &str, text: &str| {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for file in ["train", "test"] {
            let rows = ["a", "b", "c", "d"].map(|question| {
                format!("{{\"question\":\"{question} {file}?\",\"answer\":\"#### 1\"}}\n")
            });
            write(&format!("gsm8k/{file}.jsonl"), &rows.concat());
        }
        write("gsm8k-aug/valid.txt", "v?||<<1+1=2>> #### 2\n");
        write("gsm8k-aug/test.txt", "t?||<<1+2=3>> #### 3\n");
        for (text, train) in [
            (
                "kind = 'arith-dag'\ntrain_per_length = 3\nvalidation_per_length = 2",
                true,
            ),
            (
                "kind = 'multiplication'\ndigits = 2\ntrain_rows = 9\nvalidation_rows = 3\ntest_rows = 3",
                true,
            ),
            ("kind = 'gsm8k'\nvalidation_rows = 1", true),
            ("kind = 'gsm8k-aug'", false),
        ] {
            let held_out = config(text).load_held_out(root, 1, BadRows::Fail).unwrap();
            assert!(held_out.train.is_empty(), "{text}");
            assert!(!held_out.validation.is_empty(), "{text}");
            let whole = config(text).load(root, 1, BadRows::Fail);
            if train {
                let whole = whole.unwrap();
                assert!(!whole.train.is_empty(), "{text}");
                assert_eq!(held_out.validation, whole.validation, "{text}");
                let problems = |tests: Vec<TestSplit>| -> Vec<Vec<Problem>> {
                    tests.into_iter().map(|test| test.problems).collect()
                };
                assert_eq!(problems(held_out.tests), problems(whole.tests), "{text}");
            } else {
                assert!(matches!(whole, Err(DatasetError::Missing { .. })), "{text}");
            }
        }
    }

    #[test]
    fn training_rows_of_the_test_are_left_out_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let row = |question: &str| format!("{{\"question\":{question:?},\"answer\":\"#### 1\"}}\n");
        std::fs::create_dir(folder.path().join("gsm8k")).unwrap();
        let train: String = ["a?", "b?", "T ?", "c?"].map(row).concat();
        std::fs::write(folder.path().join("gsm8k/train.jsonl"), train).unwrap();
        std::fs::write(folder.path().join("gsm8k/test.jsonl"), row("t ?")).unwrap();
        let corpus = config("kind = 'gsm8k'\nvalidation_rows = 1")
            .load(Some(folder.path()), 1, BadRows::Fail)
            .unwrap();
        assert_eq!(corpus.train.len() + corpus.validation.len(), 3);
        assert_eq!(
            (corpus.tests[0].problems.len(), corpus.sources.len()),
            (1, 2)
        );
        let [skipped] = &corpus.skipped[..] else {
            panic!("{:?}", corpus.skipped)
        };
        assert_eq!(
            (skipped.path.as_path(), skipped.line),
            (Path::new("gsm8k/train.jsonl"), 3)
        );
        assert!(
            skipped.reason.contains("gsm8k/test/1"),
            "{}",
            skipped.reason
        );
    }

    #[test]
    fn arith_dag_and_small_multiplication_need_no_file() {
        let corpus = DatasetConfig::default()
            .load(None, 1, BadRows::Fail)
            .unwrap();
        assert_eq!((corpus.train.len(), corpus.validation.len()), (40_000, 500));
        assert_eq!(corpus.tests[0].problems.len(), 1_000);
        let text = "kind = 'multiplication'\ndigits = 3\ntrain_rows = 500\nvalidation_rows = 50";
        let corpus = config(text).load(None, 1, BadRows::Fail).unwrap();
        assert_eq!((corpus.train.len(), corpus.validation.len()), (500, 50));
    }

    #[test]
    fn every_published_data_set_loads_and_is_disjoint() {
        let Some(root) = crate::generate::data_root() else {
            return;
        };
        let cases = [
            (
                "kind = 'gsm8k-perturbed'\ntrain_rows = 20000",
                20_000,
                500,
                vec![500, 1_319],
            ),
            ("kind = 'gsm8k'", 6_973, 500, vec![1_319]),
            ("kind = 'gsm8k-aug'", 6_973, 500, vec![1_319]),
            ("kind = 'prosqa'", 17_886, 300, vec![500]),
            (
                "kind = 'prosqa'\nnames = 'invented'\ntrain_rows = 9",
                9,
                300,
                vec![500],
            ),
            ("kind = 'prontoqa'", 9_000, 200, vec![800]),
            ("kind = 'strategyqa'", 1_861, 200, vec![229]),
            ("kind = 'mathqa'", 3_975, 500, vec![2_985]),
            (
                "kind = 'mathqa'\ntest = 'challenge'\nmost_rows = 600",
                600,
                500,
                vec![600],
            ),
            ("kind = 'aqua-rat'\ntrain = 'none'", 0, 254, vec![254]),
            ("kind = 'multiplication'", 100_000, 1_000, vec![1_000]),
            (
                "kind = 'multiplication'\ndigits = 9\ntrain_rows = 5",
                5,
                1_000,
                vec![1_000],
            ),
            ("kind = 'gsm-hard'", 0, 0, vec![1_319]),
            ("kind = 'svamp'", 0, 0, vec![1_000]),
            ("kind = 'mawps'", 0, 0, vec![600]),
        ];
        for (text, train, validation, tests) in cases {
            let corpus = config(text).load(Some(&root), 1, BadRows::Fail).unwrap();
            let sizes: Vec<usize> = corpus
                .tests
                .iter()
                .map(|test| test.problems.len())
                .collect();
            assert_eq!(
                (
                    corpus.train.len(),
                    corpus.validation.len(),
                    sizes,
                    corpus.skipped.len()
                ),
                (train, validation, tests, 0),
                "{text}"
            );
            assert!(!corpus.sources.is_empty());
            assert!(corpus.sources.iter().all(|(_, hash)| hash.len() == 64));
        }
        let missing = config("kind = 'aqua-rat'").load(Some(&root), 1, BadRows::Fail);
        assert!(matches!(missing, Err(DatasetError::Missing { .. })));
    }
}
