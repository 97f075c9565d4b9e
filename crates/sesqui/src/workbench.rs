//! Data on the table: problems, tokenizer, encodings, position layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sesqui_dataset::batch::{SequenceBatch, Skipped, TooLong, fit_context};
use sesqui_dataset::encode::{EncodedProblem, PositionLayout, Supervision, encode_all, sequence};
use sesqui_dataset::tokenizer::Tokenizer;
use sesqui_dataset::{Corpus, Problem};
use sesqui_distill::latent::{Correction, Granularity};
use sesqui_distill::{
    AlignConfig, LatentBatch, LatentBatches, LatentProblem, Rollout, SequenceBatches,
};
use sesqui_eval::Task;
use sesqui_model::{Continuation, LatentOrder};
use sesqui_shortcut::{KeyValueRule, Landing};

use crate::experiment::{Experiment, Objective, Stage};
use crate::fitting::{Asked, ContextLength, Room};
use crate::label_file::{LabelFile, TRAIN};
use crate::misuse::Misuse;
use crate::trained::LatentSettings;

/// Name of the split that thresholds and checkpoints may be chosen by.
pub const VALIDATION: &str = "validation";

/// What every stage of a run reads.
pub struct Workbench {
    /// The problems.
    pub corpus: Corpus,
    /// The tokenizer of all stages.
    pub tokenizer: Tokenizer,
    /// Position ids of all stages.
    pub layout: PositionLayout,
    /// SHA-256 of the file that labels came from, if they did.
    pub labels: Option<String>,
    train: Vec<EncodedProblem>,
    validation: Split,
    tests: Vec<Split>,
}

/// The part of a split that is asked, and its encoding.
struct Split {
    name: String,
    problems: Vec<Problem>,
    encoded: Vec<EncodedProblem>,
}

/// The data root: `--data-root`, else `SESQUI_DATA`, else `datasets/`.
pub fn data_root(flag: Option<&Path>) -> PathBuf {
    flag.map(Path::to_owned)
        .or_else(|| std::env::var_os("SESQUI_DATA").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("datasets"))
}

impl Workbench {
    /// Reads or generates the data, trains or loads the tokenizer, encodes everything, labels steps.
    ///
    /// # Errors
    ///
    /// When data is missing or malformed, naming file, line and remedy, or labels are of other data.
    pub fn new(experiment: &Experiment, root: &Path) -> Result<Self> {
        let labels = experiment.labels.open()?;
        let mut corpus = experiment
            .data
            .load(Some(root), experiment.seed, experiment.bad_rows)?;
        if let Some(labels) = &labels {
            labels.check(&corpus)?;
        }
        experiment.labels.relabel(&mut corpus)?;
        let markers = experiment.format.markers();
        let texts = corpus.train.iter().flat_map(texts).chain(markers);
        let tokenizer = Tokenizer::from_config(&experiment.tokenizer, root, texts)
            .context("cannot make the tokenizer")?;
        Self::with_tokenizer(experiment, corpus, tokenizer, None, labels)
    }

    /// For asking questions only, with the tokenizer and the position layout that a checkpoint
    /// brought along: training problems are neither read nor generated, and there are no training
    /// batches.
    ///
    /// # Errors
    ///
    /// When data is missing or malformed, naming file, line and remedy.
    pub fn reopen(
        experiment: &Experiment,
        root: &Path,
        tokenizer: Tokenizer,
        layout: PositionLayout,
    ) -> Result<Self> {
        let corpus =
            experiment
                .data
                .load_held_out(Some(root), experiment.seed, experiment.bad_rows)?;
        Self::with_tokenizer(experiment, corpus, tokenizer, Some(layout), None)
    }

    fn with_tokenizer(
        experiment: &Experiment,
        corpus: Corpus,
        tokenizer: Tokenizer,
        layout: Option<PositionLayout>,
        labels: Option<LabelFile>,
    ) -> Result<Self> {
        let encode = |problems: &[Problem]| encode_all(&tokenizer, &experiment.format, problems);
        let asked = |name: &str, problems: &[Problem], limit: usize| -> Result<Split> {
            let problems: Vec<Problem> = spread(problems.len(), limit)
                .map(|index| problems[index].clone())
                .collect();
            let encoded = encode(&problems)?;
            Ok(Split {
                name: name.to_owned(),
                problems,
                encoded,
            })
        };
        let evaluation = &experiment.evaluation;
        let mut train = encode(&corpus.train)?;
        let mut validation = asked(
            VALIDATION,
            &corpus.validation,
            evaluation.validation_questions,
        )?;
        if let Some(labels) = &labels {
            labels.apply(TRAIN, &mut train)?;
            labels.apply(VALIDATION, &mut validation.encoded)?;
        }
        let tests = corpus
            .tests
            .iter()
            .map(|test| asked(&test.name, &test.problems, evaluation.questions))
            .collect::<Result<Vec<_>>>()?;
        let held_out = tests
            .iter()
            .chain([&validation])
            .flat_map(|split| &split.encoded);
        let layout =
            layout.unwrap_or_else(|| experiment.positions.resolve(train.iter().chain(held_out)));
        Ok(Self {
            corpus,
            tokenizer,
            layout,
            labels: labels.map(|file| file.hash),
            train,
            validation,
            tests,
        })
    }

    /// Training batches of a stage, with what did not fit `context` positions.
    ///
    /// # Errors
    ///
    /// When a problem is too long and the stage does not say `too_long = "skip"`, or nothing is
    /// left.
    pub fn batches(
        &self,
        stage: &Stage,
        context: usize,
        seed: u64,
    ) -> Result<(SequenceBatches, Vec<Skipped>)> {
        let supervision = stage.objective.supervision();
        let fitted = fit_context(
            self.train.clone(),
            supervision,
            self.layout,
            context,
            stage.batches.too_long,
        )?;
        let identities = fitted
            .problems
            .iter()
            .map(|problem| problem.id.clone())
            .collect();
        let sequences = fitted
            .problems
            .iter()
            .map(|problem| sequence(problem, supervision, self.layout))
            .collect::<Result<Vec<_>, _>>()?;
        let pad = self.tokenizer.pad_id();
        let parts = stage.training.accumulation;
        let batches = SequenceBatches::new(sequences, identities, &stage.batches, parts, seed, pad)
            .with_context(|| format!("stage {}", stage.name))?;
        Ok((batches, fitted.skipped))
    }

    /// The validation questions that are asked, in batches with a supervision's targets.
    ///
    /// # Errors
    ///
    /// When a question does not fit the position layout.
    pub fn validation_batches(
        &self,
        supervision: Supervision,
        experiment: &Experiment,
    ) -> Result<Vec<SequenceBatch>> {
        let sequences = self
            .validation
            .encoded
            .iter()
            .map(|problem| sequence(problem, supervision, self.layout))
            .collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<u32> = (0..sequences.len() as u32).collect();
        let pad = self.tokenizer.pad_id();
        let batches = rows
            .chunks(experiment.evaluation.batch_size)
            .map(|rows| SequenceBatch::collate(&sequences, rows, pad))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(batches)
    }

    /// The settings of a latent stage, with the number of latent steps settled for this data.
    pub fn latent_settings(&self, config: &AlignConfig) -> LatentSettings {
        LatentSettings {
            latents: config.latents.clone(),
            count: config.latents.resolve(&self.train),
            key_values: KeyValueRule::default(),
            landing: Landing::default(),
            entry_position: None,
            shortcuts: None,
            continuation: Continuation::Answer,
            order: LatentOrder::Sequential,
            growth: Vec::new(),
        }
    }

    /// Every training problem.
    pub(crate) fn training(&self) -> &[EncodedProblem] {
        &self.train
    }

    /// The validation questions that are asked.
    pub(crate) fn validation(&self) -> &[EncodedProblem] {
        &self.validation.encoded
    }

    /// Whether the latent steps of a stage fit its model, before anything is trained: those of training
    /// problems, unless too long ones are left out, and those of the validation and test questions,
    /// which are asked with `latent_steps`, 0 for as many as trained.
    ///
    /// # Errors
    ///
    /// Names the setting and the first problem that does not fit.
    pub fn check_latents(
        &self,
        stage: &Stage,
        settings: &LatentSettings,
        context: &ContextLength,
        latent_steps: usize,
    ) -> Result<()> {
        let needed = |problem: &&EncodedProblem| settings.latents.needed(problem);
        let hardest = match stage.batches.too_long {
            TooLong::Fail => {
                for problem in &self.train {
                    self.latent_fits(stage, settings, context, problem)?;
                }
                self.train.iter().max_by_key(needed)
            }
            TooLong::Skip => self.train.iter().min_by_key(needed),
        };
        self.latent_problems(settings, hardest.map_or(&[], std::slice::from_ref))?;
        self.check_questions(stage, settings, context, latent_steps)
    }

    /// Whether the validation and test questions fit a model with these latent steps, asked with
    /// `latent_steps`, 0 for as many as trained.
    ///
    /// # Errors
    ///
    /// Names the setting and the first question that does not fit.
    pub(crate) fn check_questions(
        &self,
        stage: &Stage,
        settings: &LatentSettings,
        context: &ContextLength,
        latent_steps: usize,
    ) -> Result<()> {
        let room = Room::latent(settings, context.positions, Asked::Setting(latent_steps));
        let (key, remedy) = match room.as_trained() {
            true => latent_count(stage),
            false => ("reasoning.latent_steps".to_owned(), "take fewer"),
        };
        for split in [&self.validation].into_iter().chain(&self.tests) {
            for problem in &split.encoded {
                if let Some(reason) = room.misfit(problem, self.layout) {
                    return Err(Misuse(format!(
                        "{key}: {} question {}: {reason}; {remedy}, or {}",
                        split.name, problem.id, context.remedy
                    ))
                    .into());
                }
            }
        }
        Ok(())
    }

    fn latent_fits(
        &self,
        stage: &Stage,
        settings: &LatentSettings,
        context: &ContextLength,
        problem: &EncodedProblem,
    ) -> Result<()> {
        let length = self.latent_end(settings, problem)?;
        if length <= context.positions {
            return Ok(());
        }
        let (key, remedy) = latent_count(stage);
        Err(Misuse(format!(
            "{key}: with {} latent steps problem {} needs {length} positions, the model's context has \
             {}; {remedy}, {}, or set batches.too_long = \"skip\"",
            settings.count, problem.id, context.positions, context.remedy
        ))
        .into())
    }

    /// `limit` training problems spread over the split, 0 for all, and their encoding.
    pub fn training_questions(&self, limit: usize) -> (Vec<Problem>, Vec<EncodedProblem>) {
        spread(self.train.len(), limit)
            .map(|index| (self.corpus.train[index].clone(), self.train[index].clone()))
            .unzip()
    }

    /// Training batches of a latent stage, with what did not fit its latent steps or `context`
    /// positions; `rollout` says
    /// for each optimizer step where the inputs of latent steps come from.
    ///
    /// # Errors
    ///
    /// When a problem is too long, needs too many latent steps, or nothing is left.
    pub fn latent_batches(
        &self,
        stage: &Stage,
        settings: &LatentSettings,
        context: usize,
        seed: u64,
        rollout: impl Fn(u64) -> Rollout + Send + Sync + 'static,
    ) -> Result<(LatentBatches, Vec<Skipped>)> {
        let supervision = Supervision::ChainOfThought;
        let (train, layout) = (self.train.clone(), self.layout);
        let too_long = stage.batches.too_long;
        let mut fitted = fit_context(train, supervision, layout, context, too_long)?;
        let mut kept = Vec::with_capacity(fitted.problems.len());
        for problem in fitted.problems {
            let length = self.latent_end(settings, &problem)?;
            let needed = settings.latents.needed(&problem);
            match too_long {
                _ if length <= context && needed <= settings.count => kept.push(problem),
                TooLong::Skip => fitted.skipped.push(Skipped {
                    id: problem.id,
                    length,
                }),
                TooLong::Fail => {
                    self.latent_fits(stage, settings, &ContextLength::new(context), &problem)?;
                    kept.push(problem);
                }
            }
        }
        let problems = self.latent_problems(settings, &kept)?;
        let identities = kept.into_iter().map(|problem| problem.id).collect();
        let batches = LatentBatches::new(
            problems,
            identities,
            &stage.batches,
            stage.training.accumulation,
            seed,
            settings.latents.positions,
            self.tokenizer.pad_id(),
            rollout,
        )
        .with_context(|| format!("stage {}", stage.name))?;
        Ok((batches, fitted.skipped))
    }

    /// The validation questions that are asked and need no more latent steps and positions than there
    /// are, in batches, with those that need more.
    ///
    /// # Errors
    ///
    /// When a question does not fit the position layout.
    pub fn validation_latents(
        &self,
        settings: &LatentSettings,
        context: usize,
        experiment: &Experiment,
    ) -> Result<(Vec<LatentBatch>, Vec<Skipped>)> {
        let rollout = Rollout::Student {
            correction: Correction::Never,
            exits: None,
        };
        let (mut kept, mut skipped) = (Vec::new(), Vec::new());
        for problem in &self.validation.encoded {
            let length = self.latent_end(settings, problem)?;
            if length <= context && settings.latents.needed(problem) <= settings.count {
                kept.push(problem.clone());
            } else {
                let id = problem.id.clone();
                skipped.push(Skipped { id, length });
            }
        }
        let problems = self.latent_problems(settings, &kept)?;
        let rows: Vec<u32> = (0..problems.len() as u32).collect();
        let (positions, pad) = (&settings.latents.positions, self.tokenizer.pad_id());
        let batches = rows
            .chunks(experiment.evaluation.batch_size)
            .map(|rows| LatentBatch::collate(&problems, rows, positions, pad, rollout))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((batches, skipped))
    }

    /// Positions that a problem needs with latent steps.
    fn latent_end(&self, settings: &LatentSettings, problem: &EncodedProblem) -> Result<usize> {
        let start = self.layout.reasoning_start(problem)? as i32;
        let end = settings
            .latents
            .end_position(start, settings.count, problem);
        Ok(usize::try_from(end).unwrap_or(usize::MAX))
    }

    fn latent_problems(
        &self,
        settings: &LatentSettings,
        problems: &[EncodedProblem],
    ) -> Result<Vec<LatentProblem>> {
        let marker = match &settings.latents.granularity {
            Granularity::Token => None,
            Granularity::Step { marker } if marker.is_empty() => None,
            Granularity::Step { marker } => match self.tokenizer.encode(marker)?.as_slice() {
                [token] => Some(*token),
                tokens => {
                    return Err(Misuse(format!(
                        "latents.granularity.marker: {marker:?} is {} tokens under this \
                         tokenizer; give a text that is one, or \"\" for the step's last token",
                        tokens.len()
                    ))
                    .into());
                }
            },
        };
        let problems = problems
            .iter()
            .map(|problem| {
                let (latents, count) = (&settings.latents, settings.count);
                LatentProblem::new(problem, latents, count, marker, self.layout)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(problems)
    }

    /// The validation set as a task.
    pub fn validation_task<'a>(&'a self, experiment: &'a Experiment) -> Task<'a> {
        self.task(experiment, &self.validation)
    }

    /// Every test set as a task.
    pub fn test_tasks<'a>(&'a self, experiment: &'a Experiment) -> Vec<Task<'a>> {
        self.tests
            .iter()
            .map(|split| self.task(experiment, split))
            .collect()
    }

    /// The test set called `name`, or the validation set.
    ///
    /// # Errors
    ///
    /// When there is no such split, naming those there are.
    pub fn find_task<'a>(&'a self, experiment: &'a Experiment, name: &str) -> Result<Task<'a>> {
        let splits = || self.tests.iter().chain([&self.validation]);
        match splits().find(|split| split.name == name) {
            Some(split) => Ok(self.task(experiment, split)),
            None => {
                let names: Vec<&str> = splits().map(|split| split.name.as_str()).collect();
                let data = experiment.data.name();
                Err(Misuse(format!("--split {name}: {data} has {}", names.join(", "))).into())
            }
        }
    }

    fn task<'a>(&'a self, experiment: &'a Experiment, split: &'a Split) -> Task<'a> {
        Task {
            dataset: experiment.data.name(),
            split: &split.name,
            problems: &split.problems,
            encoded: &split.encoded,
            tokenizer: &self.tokenizer,
            format: &experiment.format,
            layout: self.layout,
        }
    }
}

/// The setting that decides how many latent steps a stage is trained with and where they stand, and
/// what to do where they do not fit.
fn latent_count(stage: &Stage) -> (String, &'static str) {
    let (part, remedy) = match &stage.objective {
        Objective::Align(_) => (
            "objective.latents",
            "lower latents.count or latents.positions",
        ),
        Objective::Joint(_) => (
            "objective.align.latents",
            "lower latents.count or latents.positions",
        ),
        Objective::Curriculum(_) => ("objective", "lower stages, thoughts_per_step or positions"),
        Objective::Cot
        | Objective::NoCot
        | Objective::Shortcut(_)
        | Objective::Halt(_)
        | Objective::Icot(_)
        | Objective::EarlyExit(_) => ("initialize", "start from a student with fewer latent steps"),
    };
    (format!("stages.{}.{part}", stage.name), remedy)
}

fn texts(problem: &Problem) -> impl Iterator<Item = &str> {
    let steps = problem.steps.iter().map(|step| step.text.as_str());
    [problem.question.as_str()]
        .into_iter()
        .chain(steps)
        .chain([problem.answer.as_str()])
}

/// `limit` indices spread evenly over `0..n`, all of them for 0: splits may be sorted by difficulty.
pub(crate) fn spread(n: usize, limit: usize) -> impl Iterator<Item = usize> {
    let limit = if limit == 0 { n } else { limit.min(n) };
    (0..limit).map(move |index| index * n / limit.max(1))
}
