//! Carrying a study out: each run that nobody holds, one after the other, and the table after each.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use burn::train::Interrupter;
use jiff::Timestamp;
use sesqui_eval::EvaluationConfig;
use sesqui_model::LatentOrder;
use sesqui_run::difference::differences;
use sesqui_run::directory::run_name;
use sesqui_run::{DirectoryError, RunDirectory, StudyDirectory, atomic_write};

use super::cost::planned;
use super::measure::{Asking, Record};
use super::pareto::{self, Cost};
use super::plan::{Adjustments, Plan, PlannedRun};
use super::report::Report;
use super::table::large;
use super::{Study, jobs, markdown, table};
use crate::backend::Place;
use crate::cli::{ConfigArguments, PlaceArguments};
use crate::execution::{self, Ending, Execution};
use crate::experiment::{Experiment, Objective};
use crate::misuse::{INTERRUPTED, Misuse};
use crate::output::say;
use crate::reasoning::{LatentSteps, ReasoningConfig};
use crate::screen::{RendererChoice, spinner, stop_on_ctrl_c};
use crate::start::{check_starts, computes};
use crate::workbench::{Workbench, data_root};
use crate::{halting, preparation, provenance, token_exit};

/// What a command line asks of a study.
pub struct Conduct<'a> {
    /// The study file.
    pub file: &'a Path,
    /// Overrides of it.
    pub set: &'a [String],
    /// Whether malformed rows of the data are left out.
    pub skip_bad_rows: bool,
    /// Where to compute and where the data is.
    pub place: &'a PlaceArguments,
    /// The study directory; a fresh one without.
    pub directory: Option<&'a Path>,
    /// What to show while training.
    pub renderer: RendererChoice,
    /// Whether data, models and steps are shrunk.
    pub smoke: bool,
    /// Whether to stop before anything is written.
    pub dry_run: bool,
    /// As of a single run.
    pub profile: bool,
    /// Runs to take, by name; none named: all.
    pub only: &'a [String],
    /// What to print instead of training.
    pub emit: Option<Emit>,
}

/// What a study is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Emit {
    /// A Slurm array with a task for each run, and a shell line that does the same.
    Jobs,
}

/// How one run was left.
enum Left {
    /// Finished, by this process.
    Finished,
    /// There was nothing to do any more.
    Before,
    /// Another process writes it.
    Held,
    /// Somebody asked to stop.
    Interrupted,
}

/// Trains and asks every method of a study, or what of it is not done and not held by another process.
///
/// # Errors
///
/// When the study does not fit, before anything is trained; when a run failed, after the others.
pub fn conduct(asked: &Conduct<'_>) -> Result<ExitCode> {
    let study = Study::load(asked.file, asked.set)?;
    study.value.validate()?;
    let mut overrides = Vec::new();
    if asked.skip_bad_rows {
        overrides.push("bad_rows=skip".to_owned());
    }
    let smoke = asked.smoke;
    let plan = Plan::new(&study.value, &Adjustments { overrides, smoke })?;
    let names: Vec<&str> = plan.runs.iter().map(|run| &*run.name).collect();
    if let Some(name) = asked
        .only
        .iter()
        .find(|name| !names.contains(&name.as_str()))
    {
        let names = names.join(", ");
        return Err(Misuse(format!("--only {name}: the study has the runs {names}")).into());
    }
    if let Some(Emit::Jobs) = asked.emit {
        if asked.directory.is_none() {
            return Err(Misuse(
                "--emit jobs: name the study directory with --run, all jobs work in it".into(),
            )
            .into());
        }
        let at = std::env::current_dir().context("the current folder")?;
        let mut words = provenance::words_without(&["--emit", "--only"]);
        words.retain(|word| word != "--dry-run");
        let wanted =
            |name: &&str| asked.only.is_empty() || asked.only.iter().any(|run| run == name);
        let runs: Vec<&str> = names.into_iter().filter(wanted).collect();
        say(jobs::script(&variant(asked.file), &runs, &words, &at).trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let place = asked.place.devices.open()?;
    for run in plan.of_first_seed() {
        computes(place.workers(), run.resolved.value.precision)?;
    }

    let variant = variant(asked.file);
    let folder = match asked.directory {
        Some(folder) => folder.to_owned(),
        None => Path::new("runs").join(run_name(Timestamp::now(), &variant, &study.hash)),
    };
    let there = StudyDirectory::at(&folder);
    let mut data = Vec::new();
    // One seed stands for all: they differ in what is drawn, not in what is set.
    for run in plan.of_first_seed() {
        if asked.dry_run || Record::read(&there.run(&run.name)?, &run.methods)?.is_none() {
            data.push(checked(run, &study.value, asked)?);
        }
    }
    if asked.dry_run {
        say(&study.text)?;
    }
    say(plan.stages())?;
    say(plan.states(&there)?)?;
    if asked.dry_run {
        say(data.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let configurations = plan.configurations();
    let directory = StudyDirectory::open_or_create(&folder, &study.text, &configurations)?;
    if !directory.grown().is_empty() {
        say(format!(
            "the study grows by {}",
            directory.grown().join(", ")
        ))?;
    }

    let interrupter = Interrupter::new();
    stop_on_ctrl_c(&interrupter)?;
    let at_work = AtWork {
        asked,
        study: &study.value,
        text: &study.text,
        plan: &plan,
        directory: &directory,
        place: &place,
        variant: &variant,
        interrupter: &interrupter,
    };
    let mut failed: Vec<String> = Vec::new();
    let mut held: Vec<String>;
    loop {
        held = Vec::new();
        let mut finished = 0;
        for run in &plan.runs {
            let wanted = asked.only.is_empty() || asked.only.contains(&run.name);
            if !wanted || failed.contains(&run.name) {
                continue;
            }
            match at_work.take(run) {
                Ok(Left::Before) => {}
                Ok(Left::Held) => held.push(run.name.clone()),
                Ok(Left::Finished) => {
                    finished += 1;
                    at_work.write()?;
                }
                Ok(Left::Interrupted) => {
                    let resume = provenance::resume_command(directory.folder());
                    say(format!("resume with: {resume}"))?;
                    return Ok(ExitCode::from(INTERRUPTED));
                }
                Err(error) => {
                    say(format!("{} failed: {error:#}", run.name))?;
                    failed.push(run.name.clone());
                }
            }
        }
        // What others held may have been let go of unfinished.
        if finished == 0 {
            break;
        }
    }
    let report = at_work.write()?;
    at_work.tell(&report, &held)?;
    match failed.as_slice() {
        [] => Ok(ExitCode::SUCCESS),
        names => Err(anyhow!(
            "{} of {} runs failed: {}; what they had is kept, the same command goes on",
            names.len(),
            plan.runs.len(),
            names.join(", ")
        )),
    }
}

/// A study that this process works on.
struct AtWork<'a> {
    asked: &'a Conduct<'a>,
    study: &'a Study,
    /// The study as it is frozen.
    text: &'a str,
    plan: &'a Plan,
    directory: &'a StudyDirectory,
    place: &'a Place,
    variant: &'a str,
    interrupter: &'a Interrupter,
}

impl AtWork<'_> {
    /// Brings one run to its end, unless it is there or another process does so.
    fn take(&self, run: &PlannedRun) -> Result<Left> {
        let paths = self.directory.run(&run.name)?;
        if Record::read(&paths, &run.methods)?.is_some() {
            return Ok(Left::Before);
        }
        if self.interrupter.should_stop() {
            return Ok(Left::Interrupted);
        }
        let (folder, text) = (paths.folder(), &run.resolved.text);
        let held = match RunDirectory::open_or_create(folder, text) {
            Ok(directory) => directory,
            Err(DirectoryError::Locked { .. }) => return Ok(Left::Held),
            Err(error) => return Err(error.into()),
        };
        // Another process may have finished it before it let go of the lock.
        if Record::read(&paths, &run.methods)?.is_some() {
            return Ok(Left::Before);
        }
        say(format!("\n{}", run.name))?;
        let experiment = &run.resolved.value;
        let workbench = execution::prepare(experiment, &self.data_root())?;
        if !run.is_measured(&held)? {
            let execution = Execution {
                resolved: &run.resolved,
                variant: self.variant,
                workbench: &workbench,
                place: self.place,
                renderer: self.asked.renderer,
                profile: self.asked.profile,
                interrupter: self.interrupter,
                started: Timestamp::now(),
            };
            if let Ending::Interrupted = execution.carry_out(&held)? {
                return Ok(Left::Interrupted);
            }
        }
        let asking = Asking {
            run,
            paths: &held,
            workbench: &workbench,
            device: self.place.home(),
            interrupter: self.interrupter,
            latent_steps: &self.study.latent_steps,
        };
        Ok(match asking.all()? {
            true => Left::Finished,
            false => Left::Interrupted,
        })
    }

    fn data_root(&self) -> PathBuf {
        data_root(self.asked.place.data_root.as_deref())
    }

    /// Writes rows, tables and pictures of what is finished, by whomever.
    fn write(&self) -> Result<Report> {
        // Of the whole study, whichever of its runs this process takes.
        let command = provenance::command("train", &["--only"]);
        // One process after the other, so that the last one has read what all others finished.
        self.directory.alone(|| {
            let report = Report::read(self.study, self.plan, self.directory, command)?;
            let frozen = std::fs::read_to_string(self.directory.file())?;
            if !differences(&frozen, self.text)?.is_empty() {
                say("the study has grown meanwhile: whoever works on all of it writes the tables")?;
                return Ok(report);
            }
            let json = serde_json::to_string_pretty(&report)?;
            atomic_write(&self.directory.rows(), format!("{json}\n").as_bytes())?;
            let text = markdown::text(&report, &self.evaluations());
            atomic_write(&self.directory.tables(), text.as_bytes())?;
            for (cost, name) in Cost::ALL {
                if let Some(picture) = pareto::svg(&report, cost)? {
                    atomic_write(&self.directory.picture(name), picture.as_bytes())?;
                }
            }
            Ok(report)
        })?
    }

    /// Shows what was found, and says what is not there yet.
    fn tell(&self, report: &Report, held: &[String]) -> Result<()> {
        if let Some(text) = table::shown(report, &self.evaluations()) {
            say(text)?;
        }
        if !held.is_empty() {
            say(format!(
                "held by other processes: {}; whoever finishes the last run completes the table",
                held.join(", ")
            ))?;
        }
        say(format!(
            "study directory: {}",
            self.directory.folder().display()
        ))
    }

    /// How answers are measured, for each data set: its methods have it in common.
    fn evaluations(&self) -> Vec<(&str, &EvaluationConfig)> {
        let runs = self.plan.of_first_seed();
        let all = runs.map(|run| (&*run.data_set, &run.resolved.value.evaluation));
        let mut evaluations: Vec<(&str, &EvaluationConfig)> = all.collect();
        evaluations.dedup_by_key(|(data_set, _)| *data_set);
        evaluations
    }
}

/// Reads the data of a run and checks all its methods against it; says what it is.
fn checked(run: &PlannedRun, study: &Study, asked: &Conduct<'_>) -> Result<String> {
    let experiment = &run.resolved.value;
    let root = data_root(asked.place.data_root.as_deref());
    let check = || -> Result<String> {
        let workbench = execution::prepare(experiment, &root)?;
        for shown in &run.methods {
            let alone = shown.alone(experiment);
            asked_so(&alone, &study.latent_steps, &workbench)
                .with_context(|| format!("method {}", shown.method))?;
        }
        let corpus = &workbench.corpus;
        let training = match asked.dry_run {
            true => format!("\n{}", training(experiment, &workbench)?),
            false => String::new(),
        };
        Ok(format!(
            "{}: {}, {} train, {} validation, {}{training}",
            run.name,
            corpus.name,
            corpus.train.len(),
            corpus.validation.len(),
            corpus
                .tests
                .iter()
                .map(|test| format!("{} {}", test.problems.len(), test.name))
                .collect::<Vec<_>>()
                .join(", ")
        ))
    };
    check().with_context(|| format!("run {}", run.name))
}

/// As text: the operations that training takes, for each stage and in all.
fn training(experiment: &Experiment, workbench: &Workbench) -> Result<String> {
    let waiting = spinner("counting operations");
    let planned = planned(experiment, workbench);
    waiting.finish_and_clear();
    let planned = planned?;
    let stages = planned.iter().map(|(stage, flops)| match flops {
        Some(flops) => format!("{stage} {}", large(*flops)),
        None => format!("{stage} not counted"),
    });
    let stages: Vec<String> = stages.collect();
    let all: f64 = planned.iter().filter_map(|(_, flops)| *flops).sum();
    Ok(format!(
        "  FLOPs of training, evaluations not counted: {}; in all {}",
        stages.join(", "),
        large(all)
    ))
}

/// Whether a method, which is all of `alone`, can be asked under its own `[reasoning]` and with every number of
/// latent steps.
fn asked_so(alone: &Experiment, latent_steps: &[usize], workbench: &Workbench) -> Result<()> {
    alone.validate()?;
    preparation::check(alone)?;
    token_exit::check_stages(alone)?;
    let refines = !alone.reasoning.refine.is_off();
    let halts = halting::all(&[], &alone.reasoning)?;
    halting::check(&halts, workbench.tokenizer.vocab_size(), refines)?;
    suits(alone)?;
    let most = latent_steps.iter().max();
    let most = most.map(|most| LatentSteps::Exactly(*most));
    for latent_steps in [Some(alone.reasoning.latent_steps), most]
        .into_iter()
        .flatten()
    {
        let asked = Experiment {
            reasoning: ReasoningConfig {
                latent_steps,
                ..alone.reasoning.clone()
            },
            ..alone.clone()
        };
        check_starts(&asked, workbench)?;
    }
    Ok(())
}

/// Whether what is asked of a method, the last stage of `alone`, is a matter of its kind of model: what a run only
/// tells, because it has other stages, would make a row of a study stand for something else.
fn suits(alone: &Experiment) -> Result<(), Misuse> {
    let Some(stage) = alone.stages.last() else {
        return Ok(());
    };
    let reasoning = &alone.reasoning;
    if stage.objective.has_latents() && !reasoning.token_exit.is_never() {
        return Err(Misuse(format!(
            "reasoning.token_exit: stage {} reasons in latent steps, and no token of it leaves early; leave it out",
            stage.name
        )));
    }
    let between = !reasoning.refine.is_off() || !reasoning.halt.is_never();
    let trained = match &stage.objective {
        Objective::Curriculum(config) => config.order,
        _ => LatentOrder::Sequential,
    };
    match between && !reasoning.order.settle(trained).is_sequential() {
        true => Err(Misuse(format!(
            "reasoning: stage {} computes its latent steps all at once, and nothing can be refined or stopped \
             between them; leave out refine and halt, or set order = {{ kind = \"sequential\" }}",
            stage.name
        ))),
        false => Ok(()),
    }
}

/// The name of a study in folders: that of its file and of the folder it is in, as for experiments.
fn variant(file: &Path) -> String {
    let config = ConfigArguments {
        config: Some(file.to_owned()),
        set: Vec::new(),
        skip_bad_rows: false,
    };
    config.variant()
}
