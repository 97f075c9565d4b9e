//! One experiment in one run directory: its stages trained, each of them measured, all of it written down.

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::train::Interrupter;
use jiff::Timestamp;
use sesqui_reason::HaltConfig;
use sesqui_run::{EventKind, Resolved, RowWriter, RunDirectory, Summary};
use sesqui_trainer::Stop;

use crate::backend::Place;
use crate::events::Events;
use crate::experiment::{Experiment, Stage};
use crate::halting;
use crate::measure::{Candidate, Measured, side_by_side};
use crate::opened::Opened;
use crate::output::say;
use crate::preparation::{self, Preparation};
use crate::provenance;
use crate::refinement::Variant;
use crate::screen::{RendererChoice, spinner};
use crate::stage::{Outlets, Run, checkpoint_name};
use crate::start::check_starts;
use crate::token_exit;
use crate::trained::Trained;
use crate::workbench::Workbench;

/// What it takes to carry out an experiment.
pub struct Execution<'a> {
    /// The frozen configuration.
    pub resolved: &'a Resolved<Experiment>,
    /// Its name in the summary.
    pub variant: &'a str,
    /// The data.
    pub workbench: &'a Workbench,
    /// Where tensors live.
    pub place: &'a Place,
    /// What to show while training.
    pub renderer: RendererChoice,
    /// Whether to say where time goes and how often the device is waited for.
    pub profile: bool,
    /// Set when somebody asks to stop.
    pub interrupter: &'a Interrupter,
    /// When this start began.
    pub started: Timestamp,
}

/// How an execution ended.
pub enum Ending {
    /// Asked to stop; the run directory can be gone on with.
    Interrupted,
    /// Everything is trained and measured, and the summary is written.
    Finished(Vec<Measured>),
}

/// A stage, what it left, and the folder of its last checkpoint.
type Done<'a> = (&'a Stage, Trained, PathBuf);

/// Puts the data of an experiment on the table, and checks against it what would go wrong later.
///
/// # Errors
///
/// When data is missing or malformed, or a stage or the way of reasoning does not fit it.
pub fn prepare(experiment: &Experiment, data_root: &Path) -> Result<Workbench> {
    let waiting = spinner("reading data");
    let workbench = Workbench::new(experiment, data_root)?;
    waiting.finish_and_clear();
    check_starts(experiment, &workbench)?;
    preparation::check(experiment)?;
    token_exit::check_stages(experiment)?;
    let halts = halting::all(&[], &experiment.reasoning)?;
    halting::check(&halts, workbench.tokenizer.vocab_size(), false)?;
    Ok(workbench)
}

impl Execution<'_> {
    /// Trains every stage of the experiment, or goes on where the directory stands, measures each on every
    /// test set, and writes the summary.
    ///
    /// # Errors
    ///
    /// When training or measuring fails; what is in the directory can be gone on with.
    pub fn carry_out(&self, directory: &RunDirectory) -> Result<Ending> {
        let (experiment, workbench) = (&self.resolved.value, self.workbench);
        provenance::record(directory, self.started, experiment, workbench, self.place)?;
        let mut events = Events::open(directory)?;
        let Some(trained) = self.train(directory, &mut events)? else {
            return Ok(Ending::Interrupted);
        };
        let Some(measured) = self.measure(directory, &trained)? else {
            events.of_run(EventKind::Interrupted)?;
            return Ok(Ending::Interrupted);
        };
        let reads = measured.iter().filter_map(|found| {
            let row = &found.summary;
            let reads = found.reads?;
            Some(format!(
                "{}, {}: {reads:.2} reads from the device per batch of questions",
                row.method, row.split
            ))
        });
        self.tell(&reads.collect::<Vec<_>>())?;
        let summary = Summary {
            run: directory.name(),
            variant: self.variant.to_owned(),
            config_hash: self.resolved.hash.clone(),
            rows: measured.iter().map(|found| found.summary.clone()).collect(),
            ..Summary::default()
        };
        summary.write(&directory.summary())?;
        events.of_run(EventKind::Finished)?;
        Ok(Ending::Finished(measured))
    }

    /// The stages one after the other; `None` when asked to stop.
    fn train(
        &self,
        directory: &RunDirectory,
        events: &mut Events,
    ) -> Result<Option<Vec<Done<'_>>>> {
        let (experiment, workbench) = (&self.resolved.value, self.workbench);
        let mut renderer = self.renderer.open(directory, self.interrupter)?;
        let (mut metrics, _torn) = RowWriter::open(&directory.metrics())?;
        renderer.line(&provenance::opening(
            directory, experiment, workbench, self.place,
        ));
        let run = Run {
            experiment,
            config_text: &self.resolved.text,
            paths: directory,
            workbench,
            devices: self.place.workers(),
            interrupter: self.interrupter,
        };
        let mut profiles = Vec::new();
        let mut trained = Vec::new();
        for stage in &experiment.stages {
            let outlets = Outlets {
                renderer: &mut renderer,
                metrics: &mut metrics,
            };
            if let Some(idle) = self.place.idle(stage.training.accumulation) {
                outlets.renderer.line(&format!("{}: {idle}", stage.name));
            }
            let outcome = run.train(stage, outlets)?;
            profiles.push(format!("{}: {}", stage.name, outcome.profile.line()));
            if outcome.stop == Stop::Interrupted {
                events.of_stage(EventKind::Interrupted, &stage.name, outcome.state.step)?;
                renderer.close();
                self.tell(&profiles)?;
                return Ok(None);
            }
            events.of_stage(EventKind::StageFinished, &stage.name, outcome.state.step)?;
            let folder = directory.checkpoint(&stage.name, outcome.state.step)?;
            trained.push((stage, outcome.model, folder));
        }
        renderer.close();
        self.tell(&profiles)?;
        Ok(Some(trained))
    }

    /// Says lines of a profile, if one is asked for; the dashboard is closed.
    fn tell(&self, lines: &[String]) -> Result<()> {
        match self.profile {
            true => lines.iter().try_for_each(say),
            false => Ok(()),
        }
    }

    /// Every stage on every test set, plain latents first, then refined, then halting ones, in words all
    /// layers first, then leaving early, as `[reasoning]` says, their times in turn; `None` when asked to stop.
    fn measure(
        &self,
        directory: &RunDirectory,
        trained: &[Done<'_>],
    ) -> Result<Option<Vec<Measured>>> {
        let (experiment, workbench) = (&self.resolved.value, self.workbench);
        let candidates = self.candidates(trained)?;
        let mut measured = Vec::new();
        for task in workbench.test_tasks(experiment) {
            if self.interrupter.should_stop() {
                return Ok(None);
            }
            let mut asked = Vec::with_capacity(candidates.len());
            for (file, candidate) in &candidates {
                let file = directory.evaluation(&format!("{file}_{}", task.split))?;
                asked.push(Candidate {
                    file: Some(file),
                    ..candidate.clone()
                });
            }
            let (config, reasoning) = (&experiment.evaluation, &experiment.reasoning);
            measured.extend(side_by_side(
                &asked,
                self.place.home(),
                task,
                config,
                reasoning,
            )?);
        }
        Ok(Some(measured))
    }

    /// Every way in which every stage is asked, each with the start of its file's name.
    fn candidates(&self, trained: &[Done<'_>]) -> Result<Vec<(String, Candidate)>> {
        let experiment = &self.resolved.value;
        let variants: Vec<Variant> = Variant::configured(&experiment.reasoning)
            .into_iter()
            .collect();
        let mut preparation = Preparation::new(self.workbench, experiment, self.place.home());
        let mut candidates = Vec::new();
        for (stage, model, folder) in trained {
            let candidate = |(model, method)| Candidate {
                model,
                method,
                checkpoint: checkpoint_name(&stage.name, folder),
                seed: experiment.seed,
                file: None,
            };
            let refinements = match variants.as_slice() {
                [] => vec![None],
                variants => preparation.plain_and(variants, model, &Opened::checkpoint(folder)?)?,
            };
            let asked = halting::all(&[], &experiment.reasoning)?;
            let halts = halting::beside(&asked, model, &experiment.reasoning);
            for refinement in &refinements {
                for halt in std::iter::once(&HaltConfig::Never).chain(&halts) {
                    let asked = model.asked(&stage.name, refinement.as_ref(), halt);
                    let refined = refinement.as_ref().map_or("", |_| "_refined");
                    let halted = if halt.is_never() { "" } else { "_halting" };
                    let file = format!("{}{refined}{halted}", stage.name);
                    candidates.push((file, candidate(asked)));
                }
            }
            let exits = token_exit::all(&[], &experiment.reasoning)?;
            for exit in token_exit::beside(&exits, model, &stage.name)? {
                let exiting = candidate(model.exiting(&stage.name, exit));
                candidates.push((format!("{}_token-exit", stage.name), exiting));
            }
        }
        Ok(candidates)
    }
}
