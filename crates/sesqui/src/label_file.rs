//! Criticality labels on disk: written by `prepare labels --checkpoint`, read by training.
//!
//! A JSONL file: first a [`Header`], then a [`LabelRow`] for every problem of the splits it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sesqui_dataset::encode::EncodedProblem;
use sesqui_dataset::label::by_operand_match;
use sesqui_dataset::manifest::sha256_of;
use sesqui_dataset::{Corpus, Problem};
use sesqui_distill::importance::Walk;
use sesqui_run::{Schema, atomic_write};
use sha2::{Digest, Sha256};

use crate::misuse::Misuse;
use crate::workbench::VALIDATION;

/// Name of the split that is trained on.
pub const TRAIN: &str = "train";

/// Who says which steps of training and validation problems are critical.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LabelsConfig {
    /// The data set: its generator, or a rule over its steps.
    #[default]
    Symbolic,
    /// Operand match, whatever the generator knows: an equation is critical where one of its operands
    /// equals an earlier result.
    OperandMatch,
    /// A file of `prepare labels --checkpoint`.
    File {
        /// The file.
        path: PathBuf,
        /// What becomes of steps that it calls redundant.
        #[serde(default)]
        redundant: Redundant,
    },
}

/// What becomes of steps that a label file calls redundant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redundant {
    /// They stay, not critical.
    #[default]
    Keep,
    /// They are left out of training and validation problems.
    Drop,
}

/// What the labels of a file were made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the file.
    pub schema: Schema<1>,
    /// [`data_hash`] of each split that is labelled, by its name.
    pub data: BTreeMap<String, String>,
    /// The checkpoint, `<stage>/step-…`.
    pub checkpoint: String,
    /// SHA-256 of its weights.
    pub weights: String,
    /// Share of a problem's steps that could be removed; `null` where each was left out alone.
    pub most_removed: Option<f64>,
    /// Nats above which a step is critical.
    pub tau: f64,
}

/// The labels of one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRow {
    /// The split.
    pub split: String,
    /// The problem's id.
    pub id: String,
    /// Importance of each step in nats; `null` for a problem that is too long for the model.
    pub nats: Option<Vec<f64>>,
    /// Whether each step is critical; empty where there is no importance.
    pub critical: Vec<bool>,
    /// Whether each step is redundant; empty where there is no importance.
    pub removed: Vec<bool>,
}

/// How removals are written in a [`Header`].
pub fn most_removed(walk: Walk) -> Option<f64> {
    match walk {
        Walk::LeaveOneOut => None,
        Walk::FrontToBack { most_removed } => Some(most_removed),
    }
}

/// SHA-256 over ids, questions, steps and answers, in order; labels do not count.
pub fn data_hash(problems: &[Problem]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    for problem in problems {
        add(&problem.id);
        add(&problem.question);
        add(&problem.steps.len().to_string());
        problem.steps.iter().for_each(|step| add(&step.text));
        add(&problem.answer);
    }
    let digest = hash.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a label file in one step.
///
/// # Errors
///
/// When it cannot be written.
pub fn write(path: &Path, header: &Header, rows: &[LabelRow]) -> Result<()> {
    let mut lines = serde_json::to_vec(header)?;
    lines.push(b'\n');
    for row in rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.push(b'\n');
    }
    Ok(atomic_write(path, &lines)?)
}

/// A label file in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelFile {
    path: PathBuf,
    redundant: Redundant,
    /// What the labels were made of.
    pub header: Header,
    /// SHA-256 of the file.
    pub hash: String,
    /// By split and id.
    rows: BTreeMap<(String, String), LabelRow>,
}

impl LabelsConfig {
    /// Labels the training and validation problems of `corpus` by the rule that is named, if one is.
    ///
    /// # Errors
    ///
    /// When the rule has nothing to say about any training step.
    pub fn relabel(&self, corpus: &mut Corpus) -> Result<(), Misuse> {
        if *self != Self::OperandMatch {
            return Ok(());
        }
        for problem in corpus.train.iter_mut().chain(&mut corpus.validation) {
            by_operand_match(&mut problem.steps);
        }
        let mut steps = corpus.train.iter().flat_map(|problem| &problem.steps);
        if steps.any(|step| step.criticality.is_some()) {
            return Ok(());
        }
        Err(Misuse(
            "labels.kind: \"operand-match\" labels equations `<<expression=value>>`, and the training \
             split has none; set it to \"symbolic\" or to a file of `prepare labels --checkpoint`"
                .to_owned(),
        ))
    }

    /// Reads the file, where there is one.
    ///
    /// # Errors
    ///
    /// When it is missing or no label file.
    pub fn open(&self) -> Result<Option<LabelFile>> {
        let Self::File { path, redundant } = self else {
            return Ok(None);
        };
        let misuse = |reason: String| Misuse(format!("labels.path: {}{reason}", path.display()));
        let remedy = "make it with `prepare labels --checkpoint`";
        let text = std::fs::read_to_string(path)
            .map_err(|error| misuse(format!(" cannot be read: {error}; {remedy}")))?;
        let mut lines = text.lines();
        let header = serde_json::from_str(lines.next().unwrap_or_default())
            .map_err(|error| misuse(format!(" is no label file: {error}; {remedy}")))?;
        let mut rows = BTreeMap::new();
        for (index, line) in lines.enumerate() {
            let row: LabelRow = serde_json::from_str(line)
                .map_err(|error| misuse(format!(":{}: no labels: {error}", index + 2)))?;
            rows.insert((row.split.clone(), row.id.clone()), row);
        }
        let hash = sha256_of(path).context("labels.path")?;
        Ok(Some(LabelFile {
            path: path.clone(),
            redundant: *redundant,
            header,
            hash,
            rows,
        }))
    }
}

impl LabelFile {
    /// Whether the labels are about the training and validation problems of `corpus`.
    ///
    /// # Errors
    ///
    /// Names the split that differs.
    pub fn check(&self, corpus: &Corpus) -> Result<(), Misuse> {
        for (split, problems) in [(TRAIN, &corpus.train), (VALIDATION, &corpus.validation)] {
            if problems.is_empty() {
                continue;
            }
            let ours = data_hash(problems);
            match self.header.data.get(split) {
                Some(theirs) if *theirs == ours => {}
                Some(theirs) => {
                    return Err(self.misuse(format!(
                        " labels other data: {split} has hash {theirs:.12} there and {ours:.12} here; \
                         make it anew with this data and seed"
                    )));
                }
                None => {
                    return Err(self.misuse(format!(
                        " has no labels of {split}; make it without --split, for train and validation"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Replaces the labels of `problems` of `split`, and leaves out redundant steps where the setting
    /// says so.
    ///
    /// # Errors
    ///
    /// When a problem is not in the file, or has another number of steps there.
    pub fn apply(&self, split: &str, problems: &mut [EncodedProblem]) -> Result<(), Misuse> {
        let key = |problem: &EncodedProblem| (split.to_owned(), problem.id.clone());
        let absent = |problem: &&EncodedProblem| !self.rows.contains_key(&key(problem));
        let mut missing = problems.iter().filter(absent);
        if let Some(first) = missing.next() {
            return Err(self.misuse(format!(
                " lacks {} of {} problems of {split}, {} first; make it anew",
                1 + missing.count(),
                problems.len(),
                first.id
            )));
        }
        for problem in problems {
            let row = &self.rows[&key(problem)];
            let steps = problem.steps.len();
            if row.nats.is_none() {
                problem.critical = vec![None; steps];
                continue;
            }
            if [row.critical.len(), row.removed.len()] != [steps; 2] {
                return Err(self.misuse(format!(
                    " labels {} steps of {}, which has {steps}; make it anew",
                    row.critical.len(),
                    problem.id
                )));
            }
            problem.critical = row.critical.iter().copied().map(Some).collect();
            if self.redundant == Redundant::Drop {
                *problem = problem.with_steps(|step| !row.removed[step]);
            }
        }
        Ok(())
    }

    fn misuse(&self, reason: String) -> Misuse {
        Misuse(format!("labels.path: {}{reason}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use sesqui_dataset::{AnswerKind, Criticality, LabelSource, Step, TestSplit};

    use super::*;

    fn problem(id: &str, steps: &[&str]) -> Problem {
        let step = |text: &&str| Step {
            text: (*text).to_owned(),
            criticality: None,
        };
        Problem {
            id: id.to_owned(),
            question: format!("{id}?"),
            steps: steps.iter().map(step).collect(),
            answer: "1".to_owned(),
            answer_kind: AnswerKind::Number,
        }
    }

    fn encoded(id: &str, steps: usize) -> EncodedProblem {
        EncodedProblem {
            id: id.to_owned(),
            question: vec![1],
            question_end: 1,
            steps: (0..steps as u32).map(|step| vec![step]).collect(),
            answer_start: vec![2],
            answer: vec![3],
            critical: vec![Some(true); steps],
        }
    }

    fn row(split: &str, id: &str, critical: &[bool], removed: &[bool]) -> LabelRow {
        LabelRow {
            split: split.to_owned(),
            id: id.to_owned(),
            nats: (!critical.is_empty()).then(|| vec![0.5; critical.len()]),
            critical: critical.to_vec(),
            removed: removed.to_vec(),
        }
    }

    fn corpus() -> Corpus {
        Corpus {
            name: "d".to_owned(),
            train: vec![problem("a", &["x", "y"]), problem("b", &["z"])],
            validation: vec![problem("a", &["w"])],
            tests: vec![TestSplit {
                name: "test".to_owned(),
                problems: Vec::new(),
            }],
            skipped: Vec::new(),
            sources: Vec::new(),
        }
    }

    fn header(corpus: &Corpus) -> Header {
        Header {
            schema: Schema,
            data: [(TRAIN, &corpus.train), (VALIDATION, &corpus.validation)]
                .map(|(split, problems)| (split.to_owned(), data_hash(problems)))
                .into(),
            checkpoint: "cot/step-00000001".to_owned(),
            weights: "0".to_owned(),
            most_removed: Some(0.5),
            tau: 0.0,
        }
    }

    fn opened(header: &Header, rows: &[LabelRow], redundant: Redundant) -> LabelFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        write(&path, header, rows).unwrap();
        let config = LabelsConfig::File { path, redundant };
        let file = config.open().unwrap().unwrap();
        assert_eq!(file.header, *header);
        file
    }

    #[test]
    fn labels_reach_the_problems_of_their_split() {
        let corpus = corpus();
        let rows = [
            row(TRAIN, "a", &[true, false], &[false, true]),
            row(TRAIN, "b", &[], &[]),
            row(VALIDATION, "a", &[false], &[false]),
        ];
        let file = opened(&header(&corpus), &rows, Redundant::Keep);
        file.check(&corpus).unwrap();
        let mut train = [encoded("a", 2), encoded("b", 1)];
        file.apply(TRAIN, &mut train).unwrap();
        assert_eq!(train[0].critical, [Some(true), Some(false)]);
        assert_eq!(train[1].critical, [None]);
        let mut validation = [encoded("a", 1)];
        file.apply(VALIDATION, &mut validation).unwrap();
        assert_eq!(validation[0].critical, [Some(false)]);
        // Left out where that is asked for.
        let file = opened(&header(&corpus), &rows, Redundant::Drop);
        let mut train = [encoded("a", 2)];
        file.apply(TRAIN, &mut train).unwrap();
        assert_eq!(train[0].steps, [vec![0]]);
        assert_eq!(train[0].critical, [Some(true)]);
    }

    /// The rule takes the place of what the generator knows, right or wrong, in both splits.
    #[test]
    fn operand_match_replaces_other_labels() {
        let mut corpus = corpus();
        corpus.train[0] = problem("a", &["<<1+1=2>>", "<<2*3=6>>", "no equation"]);
        corpus.validation[0] = problem("a", &["<<5-1=4>>"]);
        for step in corpus.train[0]
            .steps
            .iter_mut()
            .chain(&mut corpus.validation[0].steps)
        {
            step.criticality = Some(Criticality {
                critical: true,
                source: LabelSource::GroundTruth,
            });
        }
        let before = corpus.clone();
        LabelsConfig::Symbolic.relabel(&mut corpus).unwrap();
        assert_eq!(corpus.train, before.train);
        LabelsConfig::OperandMatch.relabel(&mut corpus).unwrap();
        let labels = |problem: &Problem| -> Vec<Option<bool>> {
            let critical = |step: &Step| step.criticality.map(|label| label.critical);
            problem.steps.iter().map(critical).collect()
        };
        assert_eq!(labels(&corpus.train[0]), [Some(false), Some(true), None]);
        assert_eq!(labels(&corpus.validation[0]), [Some(false)]);

        corpus.train.truncate(0);
        let refused = LabelsConfig::OperandMatch.relabel(&mut corpus).unwrap_err();
        assert!(
            refused.0.contains("the training split has none"),
            "{}",
            refused.0
        );
    }

    #[test]
    fn labels_of_other_problems_are_refused() {
        let right = corpus();
        let rows = [row(TRAIN, "a", &[true], &[false])];
        let file = opened(&header(&right), &rows, Redundant::Keep);
        let mut other = corpus();
        other.train[1].steps[0].text.push('2');
        let refused =
            |corpus: &Corpus, file: &LabelFile| file.check(corpus).unwrap_err().to_string();
        assert!(refused(&other, &file).contains("labels other data: train has hash"));
        let mut partial = header(&right);
        partial.data.remove(VALIDATION);
        let partial = opened(&partial, &rows, Redundant::Keep);
        assert!(refused(&right, &partial).contains("no labels of validation"));
        let refused = |problems: &mut [EncodedProblem]| file.apply(TRAIN, problems).unwrap_err();
        let missing = refused(&mut [encoded("a", 1), encoded("b", 1)]).to_string();
        assert!(
            missing.contains("lacks 1 of 2 problems of train, b first"),
            "{missing}"
        );
        let steps = refused(&mut [encoded("a", 2)]).to_string();
        assert!(
            steps.contains("labels 1 steps of a, which has 2"),
            "{steps}"
        );
    }

    #[test]
    fn what_is_no_label_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let open = || {
            let config = LabelsConfig::File {
                path: path.clone(),
                redundant: Redundant::Keep,
            };
            config.open().unwrap_err()
        };
        assert!(open().to_string().contains("cannot be read"));
        std::fs::write(&path, "{}\n").unwrap();
        assert!(open().to_string().contains("is no label file"));
        let mut text = serde_json::to_string(&header(&corpus())).unwrap();
        text.push_str("\n{\"split\":1}\n");
        std::fs::write(&path, text).unwrap();
        let error = open();
        assert!(error.to_string().contains(":2: no labels"), "{error}");
        assert!(error.is::<Misuse>());
        assert_eq!(LabelsConfig::Symbolic.open().unwrap(), None);
    }

    #[test]
    fn the_hash_sees_text_and_order_but_no_labels() {
        let two = [problem("a", &["x"]), problem("b", &["y"])];
        let swapped = [two[1].clone(), two[0].clone()];
        assert_ne!(data_hash(&two), data_hash(&swapped));
        let mut labelled = two.clone();
        labelled[0].steps[0].criticality = Some(sesqui_dataset::Criticality {
            critical: true,
            source: sesqui_dataset::LabelSource::GroundTruth,
        });
        assert_eq!(data_hash(&two), data_hash(&labelled));
        // Text that moves from one field to the next is another text.
        let (mut one, mut other) = (two.clone(), two);
        one[0].question = "ab".to_owned();
        one[0].answer = "c".to_owned();
        other[0].question = "a".to_owned();
        other[0].answer = "bc".to_owned();
        assert_ne!(data_hash(&one), data_hash(&other));
    }
}
