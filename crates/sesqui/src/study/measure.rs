//! Asking every method of a run, and the record of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn::train::Interrupter;
use serde::{Deserialize, Serialize};
use sesqui_eval::Task;
use sesqui_run::{RunPaths, Schema, atomic_write};
use sesqui_trainer::Checkpoints;

use super::FEWEST_LATENT_STEPS;
use super::cost::{StageCost, stage_costs};
use super::merge::Shown;
use super::plan::PlannedRun;
use crate::experiment::{Experiment, Stage};
use crate::measure::{Subject, measure};
use crate::opened::Opened;
use crate::preparation::Preparation;
use crate::reasoning::{LatentSteps, ReasoningConfig};
use crate::refinement::Variant;
use crate::stage::checkpoint_name;
use crate::trained::Trained;
use crate::workbench::Workbench;

/// What a study keeps of a finished run, `study/record.json` in the run directory: where all of it is there,
/// the run is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this file.
    pub schema: Schema<1>,
    /// What training each stage took.
    pub stages: Vec<StageCost>,
    /// What was measured, and where it is.
    pub measurements: Vec<Measurement>,
}

/// A method on a test set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The method.
    pub method: String,
    /// Its stage.
    pub stage: String,
    /// The test set.
    pub split: String,
    /// With this number of latent steps; absent for what its `[reasoning]` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent_steps: Option<usize>,
    /// The `.json`, with answers beside it as `.jsonl`, from the run directory.
    pub file: PathBuf,
}

impl Record {
    /// Where the record of a run is.
    fn path(run: &RunPaths) -> PathBuf {
        folder(run).join("record.json")
    }

    /// The record of a run, if it is there and of all of `methods`: a study may have grown since.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(run: &RunPaths, methods: &[Shown]) -> Result<Option<Self>> {
        let path = Self::path(run);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let asked = |shown: &Shown| {
            let mut measured = record.measurements.iter();
            measured.any(|found| (&found.method, &found.stage) == (&shown.method, &shown.stage))
        };
        Ok(methods.iter().all(asked).then_some(record))
    }

    fn write(&self, run: &RunPaths) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        atomic_write(&Self::path(run), format!("{text}\n").as_bytes())?;
        Ok(())
    }
}

fn folder(run: &RunPaths) -> PathBuf {
    run.folder().join("study")
}

/// A trained run whose methods are to be asked.
pub struct Asking<'a> {
    /// What it holds.
    pub run: &'a PlannedRun,
    /// Where it is.
    pub paths: &'a RunPaths,
    /// Its data.
    pub workbench: &'a Workbench,
    /// The device, without autodiff.
    pub device: &'a Device,
    /// Set when somebody asks to stop.
    pub interrupter: &'a Interrupter,
    /// Numbers of latent steps; empty for all from 0 up to as many as trained.
    pub latent_steps: &'a [usize],
}

impl Asking<'_> {
    /// Asks every method on every test set as its `[reasoning]` says, and latent ones with every number of
    /// latent steps, unless it is there already; counts what training took, and writes the record. False
    /// when asked to stop.
    ///
    /// # Errors
    ///
    /// When a checkpoint cannot be loaded, a question does not fit, or a file cannot be written.
    pub fn all(&self) -> Result<bool> {
        let folder = folder(self.paths);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut measurements = Vec::new();
        for shown in &self.run.methods {
            let Some(found) = self.method(shown)? else {
                return Ok(false);
            };
            measurements.extend(found);
        }
        let record = Record {
            schema: Schema,
            stages: stage_costs(&self.run.resolved.value, self.workbench, self.paths)?,
            measurements,
        };
        record.write(self.paths)?;
        Ok(true)
    }

    fn method(&self, shown: &Shown) -> Result<Option<Vec<Measurement>>> {
        let experiment = shown.alone(&self.run.resolved.value);
        let opened = self.opened(&shown.stage)?;
        let mut model = opened.load(self.device)?;
        let mut preparation = Preparation::new(self.workbench, &experiment, self.device);
        let refinement = match (Variant::configured(&shown.reasoning), &model) {
            (Some(variant), Trained::Latent(student)) => {
                Some(preparation.prepare(&variant, student, &opened)?)
            }
            _ => None,
        };
        model.refine(&shown.stage, refinement.as_ref());
        model.halt(&shown.reasoning.halt);
        let (model, _) = model.exiting(&shown.stage, experiment.reasoning.token_exit);
        let mut found = Vec::new();
        for task in self.workbench.test_tasks(&experiment) {
            let asked = std::iter::once(None).chain(self.numbers(shown, &model).map(Some));
            for latent_steps in asked {
                let measurement = self.measurement(shown, &task, latent_steps);
                if !is_there(&self.paths.folder().join(&measurement.file)) {
                    if self.interrupter.should_stop() {
                        return Ok(None);
                    }
                    self.measure(shown, &opened, &model, &experiment, task, &measurement)?;
                }
                found.push(measurement);
            }
        }
        Ok(Some(found))
    }

    fn measure(
        &self,
        shown: &Shown,
        opened: &Opened,
        model: &Trained,
        experiment: &Experiment,
        task: Task<'_>,
        measurement: &Measurement,
    ) -> Result<()> {
        let name = match measurement.latent_steps {
            None => shown.method.clone(),
            Some(steps) => format!("{} latent_steps={steps}", shown.method),
        };
        let reasoning = ReasoningConfig {
            latent_steps: measurement
                .latent_steps
                .map_or(shown.reasoning.latent_steps, LatentSteps::Exactly),
            ..shown.reasoning.clone()
        };
        let subject = Subject {
            method: &name,
            checkpoint: checkpoint_name(&shown.stage, &opened.folder),
            seed: experiment.seed,
        };
        let file = self.paths.folder().join(&measurement.file);
        measure(
            model,
            self.device,
            task,
            &experiment.evaluation,
            &reasoning,
            &subject,
            Some(&file),
        )?;
        Ok(())
    }

    /// The numbers of latent steps that a model is asked with beside what its `[reasoning]` says. Where it
    /// stops by itself there are none: the rule decides.
    fn numbers(&self, shown: &Shown, model: &Trained) -> impl Iterator<Item = usize> + use<> {
        let numbers = match model {
            Trained::Latent(latent) if shown.reasoning.halt.is_never() => match self.latent_steps {
                [] => (FEWEST_LATENT_STEPS..=latent.settings.count).collect(),
                named => named.to_vec(),
            },
            _ => Vec::new(),
        };
        // As it is asked anyway.
        let own = match model {
            Trained::Latent(latent) => Some(latent.steps(&shown.reasoning)),
            Trained::Tokens(_) => None,
        };
        numbers
            .into_iter()
            .filter(move |number| Some(*number) != own)
    }

    /// What is measured, and the file for it: that of the run, where that is asked in the same way.
    fn measurement(
        &self,
        shown: &Shown,
        task: &Task<'_>,
        latent_steps: Option<usize>,
    ) -> Measurement {
        let (stage, split) = (&shown.stage, task.split);
        let file = match latent_steps {
            None if as_the_run(&self.run.resolved.value, shown) => {
                Path::new("eval").join(format!("{stage}_{split}.json"))
            }
            None => Path::new("study").join(format!("{}_{split}.json", shown.method)),
            Some(steps) => {
                Path::new("study").join(format!("{}_{split}_{steps}-latents.json", shown.method))
            }
        };
        Measurement {
            method: shown.method.clone(),
            stage: stage.clone(),
            split: split.to_owned(),
            latent_steps,
            file,
        }
    }

    fn opened(&self, stage: &str) -> Result<Opened> {
        let folder = self.paths.checkpoints(stage)?;
        let checkpoints = Checkpoints::new(folder, Default::default(), Vec::new());
        let state = checkpoints
            .latest()?
            .filter(|state| state.finished)
            .with_context(|| format!("stage {stage} of {} is not trained", self.run.name))?;
        Opened::checkpoint(&checkpoints.path(state.step))
    }
}

/// Whether a run, which measures its stages with plain latents and with all layers, asks a stage as the method
/// does.
fn as_the_run(run: &Experiment, shown: &Shown) -> bool {
    let (own, its) = (&shown.reasoning, &run.reasoning);
    let plain = own.refine.is_off() && own.halt.is_never();
    let same = (own.latent_steps, own.exit_threshold) == (its.latent_steps, its.exit_threshold)
        && (own.continuation, own.order) == (its.continuation, its.order);
    let words = |stage: &Stage| !stage.objective.has_latents();
    match run.stage(&shown.stage).is_some_and(words) {
        true => own.token_exit.is_never(),
        false => plain && same,
    }
}

/// Whether an evaluation is there, whole: its answers are written last.
fn is_there(file: &Path) -> bool {
    file.is_file() && file.with_extension("jsonl").is_file()
}
