//! Measures trained models: accuracy, and what every answer cost.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use jiff::Timestamp;
use sesqui::backend::settle;
use sesqui::cli::PlaceArguments;
use sesqui::experiment::Experiment;
use sesqui::fitting::{Asked, Fitting, Room};
use sesqui::halt_study::{self, HaltRow, study};
use sesqui::halting;
use sesqui::measure::{Candidate, Measured, Subject, legend, side_by_side, table};
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::opened::Opened;
use sesqui::output::say;
use sesqui::preparation::{Preparation, check_arguments};
use sesqui::refinement::Variant;
use sesqui::screen::spinner;
use sesqui::stage::checkpoint_name;
use sesqui::start::computes;
use sesqui::sweep::{Cell, Sweep, fullest, grid, heading};
use sesqui::trained::Trained;
use sesqui::workbench::{Workbench, data_root};
use sesqui::{compare, exits, refine_study, reopened, token_exit};
use sesqui_dataset::batch::TooLong;
use sesqui_eval::Task;
use sesqui_run::SummaryRow;

/// Evaluate trained models and print one table.
///
/// Accuracy is measured in batches, time apart from it on questions spread over the split. Answers,
/// counts and times go to `<stage>_<split>_<utc>.json` and `.jsonl`; nothing is overwritten.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Run directory, or checkpoint folder (`<run>/checkpoints/<stage>/step-…`)
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Stage of the run [default: every stage that has a checkpoint]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,

    /// Test set, or `validation`; repeatable [default: every test set]
    #[arg(long, value_name = "NAME")]
    split: Vec<String>,

    /// Questions of each split, spread over it; 0 means all [default: as configured]
    #[arg(long, value_name = "N")]
    questions: Option<usize>,

    /// Questions decoded together when accuracy is measured [default: as configured]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,

    /// Questions whose time is measured; 0 measures none [default: as configured]
    #[arg(long, value_name = "N")]
    timing_questions: Option<usize>,

    /// Most tokens generated per question [default: as configured]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// Exit thresholds of latent models, in [0, 1]; several make a grid [default: as configured]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    exit_threshold: Vec<f64>,

    /// Numbers of latent steps, 0 for none; several make a grid [default: as trained]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    latent_steps: Vec<usize>,

    /// Refine latents: KEY=VALUE, … of [reasoning.refine], for example residual=0.05; repeatable, each
    /// measured beside plain latents; a list of numbers is one after the other, two make a grid [default:
    /// as configured]
    #[arg(long, value_name = "TABLE")]
    refine: Vec<String>,

    /// Stop before the last latent step: KEY=VALUE, … of [reasoning.halt], for example entropy=0.1,
    /// learned=[0.5,0.9] or samples; repeatable, each measured beside all steps [default: as configured]
    #[arg(long, value_name = "TABLE")]
    halt: Vec<String>,

    /// Choose tokens of models that reason in words after fewer layers: KEY=VALUE, … of
    /// [reasoning.token_exit], for example fixed=2, confidence=[0.5,0.9] or
    /// self-speculative={layer=2,drafts=4}; repeatable, each measured beside all layers; lists make a grid
    /// [default: as configured]
    #[arg(long, value_name = "TABLE")]
    token_exit: Vec<String>,

    /// Method that others measured on the same split are compared with: a stage, or of a grid
    /// `<stage> exit_threshold=… latent_steps=…` [default: the chain-of-thought stage, else the first
    /// measured; of a grid the cell with most layer calls]
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,

    /// What to do with a question that, with its reasoning, is too long for the model
    #[arg(long, value_enum, default_value_t = TooLongChoice::Fail)]
    too_long: TooLongChoice,

    /// Take data, evaluation, seed and bad_rows from this experiment file [default: the run's own]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Override one of those settings, reasoning or precision; repeatable, for example --set data.kind=svamp
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    #[command(flatten)]
    place: PlaceArguments,

    /// Folder for the results [default: eval/ of the run that PATH lies in; else none are written]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What to do with a question that, with its latent steps and answer, is too long for the model.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum TooLongChoice {
    /// Stop and name it.
    Fail,
    /// Leave it out and say how many were.
    Skip,
}

const EXAMPLES: &str = "\
Examples:
  evaluate runs/first                               every stage on every test set
  evaluate runs/first --stage cot --split validation --questions 100
  evaluate runs/first/checkpoints/cot/step-00000250 --timing-questions 0
  evaluate runs/first --stage cot --set data.kind=svamp --too-long skip --out results
  evaluate runs/first --stage system15 --exit-threshold 0.1,0.3,0.5,0.8,1 --latent-steps 1,2,4,6
  evaluate runs/first --stage latent --refine residual=0.05 --refine contrastive=0.03
  evaluate runs/first --stage latent --refine 'contrastive={ size=0.3, direction={ variance=0.9 } }'
  evaluate runs/first --stage latent --split validation --refine 'residual=[0,0.1], contrastive=[-0.1,0,0.1]'
  evaluate runs/first --stage latent --split validation --halt 'entropy=[0.01,0.1,0.5]' --halt samples
  evaluate runs/lite --stage lite --token-exit 'fixed=[1,2,3]' --token-exit 'confidence=[0.5,0.9,0.99]'
Exit codes: 0 done, 1 failed, 2 wrong use.";

fn main() -> ExitCode {
    keep_freed_memory();
    let arguments = Arguments::parse();
    settle();
    match evaluate(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn evaluate(arguments: &Arguments) -> Result<()> {
    let started = Timestamp::now();
    let sweep = sweep(arguments)?;
    let device = arguments.place.devices.open()?.home().clone();
    let stage = arguments.stage.as_deref();
    let checkpoints = reopened::checkpoints(&arguments.path, stage)?;
    // Of a whole run, stages that reason in words are measured as they are.
    if let (Some(flag), false) = (sweep.flag(), reopened::is_whole_run(&arguments.path, stage)) {
        checkpoints
            .iter()
            .try_for_each(|opened| reopened::takes_latent_steps(opened, flag))?;
    }
    check_arguments(&arguments.refine, &checkpoints)?;
    halting::check_arguments(&arguments.halt, &checkpoints, !arguments.refine.is_empty())?;
    token_exit::check_arguments(&arguments.token_exit, &checkpoints)?;
    if let Some(name) = &arguments.reference {
        let stage = name.split([' ', ',']).next().unwrap_or_default();
        let stages: Vec<&str> = checkpoints
            .iter()
            .map(|opened| &*opened.state.stage)
            .collect();
        if !stages.contains(&stage) {
            let stages = stages.join(", ");
            return Err(Misuse(format!("--reference {name}: evaluated are {stages}")).into());
        }
    }
    let mut measured = Vec::new();
    let mut written = Vec::new();
    let mut bench: Option<(Workbench, Experiment)> = None;
    for opened in &checkpoints {
        say(opening(opened))?;
        // The stages of a run share data, tokenizer and layout.
        let (workbench, experiment) = match bench.take() {
            Some(bench) if bench.0.layout == opened.layout => bench,
            _ => self::bench(arguments, opened)?,
        };
        computes(std::slice::from_ref(&device), experiment.precision)?;
        let mut model = opened.load(&device)?.with_precision(experiment.precision);
        let variants = Variant::all(&arguments.refine, &experiment.reasoning)?;
        let refinements = Preparation::new(&workbench, &experiment, &device)
            .plain_and(&variants, &model, opened)?;
        let asked = halting::all(&arguments.halt, &experiment.reasoning)?;
        let halts = halting::beside(&asked, &model, &experiment.reasoning);
        let exits = token_exit::all(&arguments.token_exit, &experiment.reasoning)?;
        let exits = token_exit::beside(&exits, &model, &opened.state.stage)?;
        let vocabulary = model.backbone().vocabulary();
        halting::check(&halts, vocabulary, !variants.is_empty())?;
        if let Trained::Latent(latent) = &model {
            let unsuited = |halt| halting::unsuited(halt, latent, &experiment.reasoning);
            let mut reasons: Vec<String> = asked.iter().filter_map(unsuited).collect();
            reasons.dedup();
            for reason in reasons {
                say(format!("{} {reason}", opened.state.stage))?;
            }
        }
        let folder = arguments
            .out
            .clone()
            .or_else(|| reopened::evaluations_folder(opened));
        let asked = &sweep;
        let sweep = asked.of(&model);
        if let (Trained::Latent(_), true) = (&model, sweep != *asked) {
            say(format!(
                "{} has no routers: --exit-threshold changes nothing there",
                opened.state.stage
            ))?;
        }
        let most = sweep.latent_steps.iter().copied().max();
        for task in wanted(&workbench, &experiment, &arguments.split)? {
            let too_long = match arguments.too_long {
                TooLongChoice::Fail => TooLong::Fail,
                TooLongChoice::Skip => TooLong::Skip,
            };
            let room = Room::new(&model, Asked::new(most, &experiment.reasoning));
            let fitting = Fitting::new(&task, &room, too_long)?;
            let task = fitting.task(&task);
            notes(&task, &fitting)?;
            let config = &experiment.evaluation;
            let before = measured.len();
            let mut candidates = Vec::new();
            for refinement in &refinements {
                let stage = &opened.state.stage;
                let name = model.refine(stage, refinement.as_ref());
                let subject = Subject {
                    method: &name,
                    checkpoint: checkpoint_name(stage, &opened.folder),
                    seed: opened.experiment.seed,
                };
                let file = match &folder {
                    Some(folder) => Some(place(folder, stage, &task, started, &written)?),
                    None => None,
                };
                if !halts.is_empty() {
                    let rows = study(
                        &mut model,
                        &device,
                        &task,
                        (&sweep, &halts),
                        (config, &sweep.single(&experiment.reasoning)),
                        &subject,
                        &mut || {
                            let folder = folder.as_deref();
                            let at = folder
                                .map(|folder| place(folder, stage, &task, started, &written))
                                .transpose()?;
                            written.extend(at.clone());
                            Ok(at)
                        },
                        file.as_ref()
                            .map(|file| file.with_extension("halt.jsonl"))
                            .as_deref(),
                    )?;
                    say(format!("\n{}", halt_study::heading(&rows, &name)))?;
                    say(halt_study::table(&rows))?;
                    let full = halt_study::fullest(&rows).map(|row| row.summary.method.clone());
                    let rows: Vec<Measured> =
                        rows.into_iter().map(HaltRow::into_measured).collect();
                    paired(&rows, &rows, arguments, full.as_deref())?;
                    if let Some(file) = file {
                        written.push(file.with_extension("halt.svg"));
                        written.push(file.with_extension("halt.jsonl"));
                    }
                    continue;
                }
                if sweep.is_grid() {
                    let file = file.map(|file| file.with_extension("grid.jsonl"));
                    let base = &experiment.reasoning;
                    let at = file.as_deref();
                    let cells =
                        sweep.measure(&model, &device, &task, config, base, &subject, at)?;
                    say(format!("\n{}", heading(&cells, &name)))?;
                    say(grid(&cells))?;
                    let full = fullest(&cells).map(|cell| cell.summary.method.clone());
                    let before = measured.len();
                    let cells = cells.into_iter().map(Cell::into_measured);
                    let all: Vec<Measured> = measured.iter().cloned().chain(cells).collect();
                    paired(&all, &all[before..], arguments, full.as_deref())?;
                    if let Some(file) = file {
                        written.push(file.with_extension("svg"));
                        written.push(file);
                    }
                    continue;
                }
                written.extend(file.clone());
                let all_layers = Candidate {
                    model: model.clone(),
                    method: name,
                    checkpoint: checkpoint_name(stage, &opened.folder),
                    seed: opened.experiment.seed,
                    file,
                };
                candidates.push(all_layers.clone());
                for exit in &exits {
                    let (model, method) = model.exiting(&all_layers.method, *exit);
                    let file = match &folder {
                        Some(folder) => Some(place(folder, stage, &task, started, &written)?),
                        None => None,
                    };
                    written.extend(file.clone());
                    candidates.push(Candidate {
                        model,
                        method,
                        file,
                        ..all_layers.clone()
                    });
                }
            }
            let reasoning = sweep.single(&experiment.reasoning);
            measured.extend(side_by_side(
                &candidates,
                &device,
                task,
                config,
                &reasoning,
            )?);
            let own = &measured[before..];
            // Named as the file of plain latents, which is there with every one of them.
            let file = candidates.first().and_then(|plain| plain.file.as_ref());
            if let (Some(file), true) = (file, refinements.len() > 2) {
                let rows = refine_study::rows(&variants, own)?;
                let file = file.with_extension("refine.jsonl");
                written.extend(refine_study::write(&rows, &file)?);
            }
        }
        bench = Some((workbench, experiment));
    }
    if !measured.is_empty() {
        let rows: Vec<SummaryRow> = measured.iter().map(|found| found.summary.clone()).collect();
        say(table(&rows))?;
        exits::table(&measured).map_or(Ok(()), say)?;
        token_exit::acceptance(&measured).map_or(Ok(()), say)?;
    }
    if let Some((_, experiment)) = &bench {
        paired(&measured, &measured, arguments, experiment.reference())?;
        say(legend(&experiment.evaluation))?;
    }
    for file in &written {
        let beside = match file.extension() {
            Some(extension) if extension == "json" => " and .jsonl",
            _ => "",
        };
        say(format!("written: {}{beside}", file.display()))?;
    }
    if written.is_empty() {
        say("nothing written: PATH lies in no run directory; --out DIR names a folder")?;
    }
    Ok(())
}

/// Shows what differs, question by question, between `others` and the reference on the same split: the
/// one asked for, else the one called `fallback`, else the first of them.
fn paired(
    references: &[Measured],
    others: &[Measured],
    arguments: &Arguments,
    fallback: Option<&str>,
) -> Result<()> {
    let mut names = references.iter().map(|found| &*found.summary.method);
    let first = names.clone().next();
    let fallback = fallback.filter(|name| names.any(|found| found == *name));
    let asked = arguments.reference.as_deref();
    let Some(name) = asked.or(fallback).or(first) else {
        return Ok(());
    };
    match compare::shown(&compare::couples(references, others, Some(name))) {
        Some(text) => say(text),
        None if asked.is_some() && others.len() > 1 => say(format!(
            "--reference {name}: not measured on the same split, nothing is compared"
        )),
        None => Ok(()),
    }
}

/// The thresholds asked for.
fn sweep(arguments: &Arguments) -> Result<Sweep> {
    let outside = |value: &&f64| !(0.0..=1.0).contains(*value);
    if let Some(value) = arguments.exit_threshold.iter().find(outside) {
        let reason = format!("--exit-threshold {value}: not in [0, 1]; 1 runs every layer");
        return Err(Misuse(reason).into());
    }
    if arguments.latent_steps.iter().all(|&steps| steps == 0)
        && !(arguments.latent_steps.is_empty() || arguments.halt.is_empty())
    {
        let reason =
            "--latent-steps 0: there is no latent step for --halt to stop before; leave one out";
        return Err(Misuse(reason.to_owned()).into());
    }
    Ok(Sweep {
        exit_thresholds: arguments.exit_threshold.clone(),
        latent_steps: arguments.latent_steps.clone(),
    })
}

fn opening(opened: &Opened) -> String {
    let state = &opened.state;
    let unfinished = if state.finished {
        ""
    } else {
        ", training not finished"
    };
    format!(
        "{} after step {}{unfinished}: {}",
        state.stage,
        state.step,
        opened.folder.display()
    )
}

/// The data to evaluate on, and the experiment that says so.
fn bench(arguments: &Arguments, opened: &Opened) -> Result<(Workbench, Experiment)> {
    let mut experiment = reopened::experiment(opened, arguments.config.as_deref(), &arguments.set)?;
    let asked = sweep(arguments)?;
    if !asked.is_grid() {
        // Directions are calibrated on latents as they will be.
        experiment.reasoning = asked.single(&experiment.reasoning);
    }
    let config = &mut experiment.evaluation;
    config.questions = arguments.questions.unwrap_or(config.questions);
    config.validation_questions = config.questions;
    config.batch_size = arguments.batch_size.unwrap_or(config.batch_size);
    config.timing_questions = arguments
        .timing_questions
        .unwrap_or(config.timing_questions);
    config.max_tokens = arguments.max_tokens.unwrap_or(config.max_tokens);
    if let Some((key, reason)) = config.problem() {
        let flag = key.replace('_', "-");
        return Err(Misuse(format!("--{flag} (evaluation.{key}): {reason}")).into());
    }
    let waiting = spinner("reading data");
    let root = data_root(arguments.place.data_root.as_deref());
    let tokenizer = opened.tokenizer.clone();
    let workbench = Workbench::reopen(&experiment, &root, tokenizer, opened.layout)?;
    waiting.finish_and_clear();
    Ok((workbench, experiment))
}

/// The splits that were asked for, each with at least one question.
fn wanted<'a>(
    workbench: &'a Workbench,
    experiment: &'a Experiment,
    names: &[String],
) -> Result<Vec<Task<'a>>> {
    let tests = workbench.test_tasks(experiment);
    let tasks = if names.is_empty() {
        tests
    } else {
        let mut tasks = Vec::with_capacity(names.len());
        for name in names {
            tasks.push(workbench.find_task(experiment, name)?);
        }
        tasks
    };
    match tasks.iter().find(|task| task.problems.is_empty()) {
        Some(task) => Err(Misuse(format!(
            "--split {}: {} has no questions there",
            task.split, task.dataset
        ))
        .into()),
        None => Ok(tasks),
    }
}

/// Says what was left out, and what the tokenizer does not know.
fn notes(task: &Task<'_>, fitting: &Fitting) -> Result<()> {
    let place = format!("{} {}", task.dataset, task.split);
    if let Some(first) = fitting.skipped.first() {
        let skipped = fitting.skipped.len();
        say(format!(
            "{place}: {skipped} questions left out as too long; the first, {first}"
        ))?;
    }
    let strange = task
        .encoded
        .iter()
        .filter(|problem| problem.unknown_tokens(task.tokenizer) > 0)
        .count();
    if strange > 0 {
        let all = task.encoded.len();
        say(format!(
            "{place}: {strange} of {all} problems have text outside the vocabulary"
        ))?;
    }
    Ok(())
}

fn place(
    folder: &Path,
    stage: &str,
    task: &Task<'_>,
    started: Timestamp,
    promised: &[PathBuf],
) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    reopened::evaluation_file(folder, stage, task.split, started, promised)
}
