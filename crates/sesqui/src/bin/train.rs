//! Trains the stages of an experiment, evaluates them, and prints one table.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use burn::train::Interrupter;
use clap::Parser;
use jiff::Timestamp;
use sesqui::cli::{ConfigArguments, PlaceArguments};
use sesqui::events::Events;
use sesqui::halting;
use sesqui::measure::{Subject, measure, ratios, table};
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{INTERRUPTED, report};
use sesqui::opened::Opened;
use sesqui::output::say;
use sesqui::preparation::Preparation;
use sesqui::refinement::Variant;
use sesqui::screen::{RendererChoice, spinner, stop_on_ctrl_c};
use sesqui::stage::{Outlets, Run, checkpoint_name};
use sesqui::start::check_starts;
use sesqui::workbench::{Workbench, data_root};
use sesqui::{compare, describe, preparation, provenance};
use sesqui_reason::HaltConfig;
use sesqui_run::{EventKind, RowWriter, RunDirectory, RunPaths, Summary};
use sesqui_trainer::Stop;

/// Train the stages of an experiment, evaluate each, and print one table.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,

    #[command(flatten)]
    place: PlaceArguments,

    /// Run directory; resumes the run that is there [default: a fresh folder under runs/]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,

    /// What to show while training
    #[arg(long, value_enum, default_value_t = RendererChoice::Auto)]
    renderer: RendererChoice,

    /// Shrink data, model and steps so that the run gets through in seconds
    #[arg(long)]
    smoke: bool,

    /// Print configuration, shapes, parameters and one batch, then stop
    #[arg(long)]
    dry_run: bool,

    /// List the experiments under experiments/, with the score to expect, then stop
    #[arg(long)]
    list: bool,
}

const EXAMPLES: &str = "\
Examples:
  train                                             the quick start: arith-dag, on the CPU
  train --renderer plain --run runs/first           a plain log; the same command resumes
  train --config experiments/gsm8k/cot.toml         an experiment file
  train --set seed=2 --set stages.cot.training.steps=600
  train --backend cuda                              a build with --features cuda
Ctrl-C once finishes the step, saves and prints the command that resumes; twice leaves at once.
Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped and resumable.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    keep_freed_memory();
    arguments.place.backend.settle();
    match train(&arguments) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

fn train(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        say(describe::list("experiments".as_ref())?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut resolved = arguments.config.resolve()?;
    if arguments.smoke {
        resolved = sesqui::smoke::shrink(resolved)?;
    }
    let experiment = &resolved.value;
    experiment.validate()?;
    let device = arguments.place.backend.device()?;

    let waiting = spinner("reading data");
    let workbench = Workbench::new(experiment, &data_root(arguments.place.data_root.as_deref()))?;
    waiting.finish_and_clear();
    check_starts(experiment, &workbench)?;
    preparation::check(experiment)?;
    let halts = halting::all(&[], &experiment.reasoning)?;
    halting::check(&halts, workbench.tokenizer.vocab_size(), false)?;
    if arguments.dry_run {
        say(&resolved.text)?;
        say(describe::dry_run(experiment, &workbench, &device)?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let started = Timestamp::now();
    let directory = match &arguments.run {
        Some(path) => RunDirectory::open_or_create(path, &resolved.text)?,
        None => {
            let variant = arguments.config.variant();
            let (hash, text) = (&resolved.hash, &resolved.text);
            RunDirectory::create("runs".as_ref(), started, &variant, hash, text)?
        }
    };
    let backend = arguments.place.backend;
    provenance::record(&directory, started, experiment, &workbench, backend)?;
    let mut events = Events::open(&directory)?;

    let interrupter = Interrupter::new();
    stop_on_ctrl_c(&interrupter)?;
    let mut renderer = arguments.renderer.open(&directory, &interrupter)?;
    let (mut metrics, _torn) = RowWriter::open(&directory.metrics())?;
    renderer.line(&provenance::opening(
        &directory, experiment, &workbench, backend,
    ));

    let run = Run {
        experiment,
        config_text: &resolved.text,
        paths: &directory,
        workbench: &workbench,
        devices: &backend.workers(&device),
        interrupter: &interrupter,
    };
    let mut trained = Vec::new();
    for stage in &experiment.stages {
        let outlets = Outlets {
            renderer: &mut renderer,
            metrics: &mut metrics,
        };
        let outcome = run.train(stage, outlets)?;
        if outcome.stop == Stop::Interrupted {
            events.of_stage(EventKind::Interrupted, &stage.name, outcome.state.step)?;
            renderer.close();
            say(format!(
                "resume with: {}",
                provenance::resume_command(&directory)
            ))?;
            return Ok(ExitCode::from(INTERRUPTED));
        }
        events.of_stage(EventKind::StageFinished, &stage.name, outcome.state.step)?;
        let folder = directory.checkpoint(&stage.name, outcome.state.step)?;
        trained.push((stage, outcome.model, folder));
    }
    renderer.close();

    let mut measured = Vec::new();
    let mut summary = Summary {
        run: directory.name(),
        variant: arguments.config.variant(),
        config_hash: resolved.hash.clone(),
        ..Summary::default()
    };
    let variants: Vec<Variant> = Variant::configured(&experiment.reasoning)
        .into_iter()
        .collect();
    let mut preparation = Preparation::new(&workbench, experiment, &device);
    for (stage, model, folder) in &mut trained {
        let refinements = match variants.as_slice() {
            [] => vec![None],
            variants => preparation.plain_and(variants, model, &Opened::checkpoint(folder)?)?,
        };
        let asked = halting::all(&[], &experiment.reasoning)?;
        let halts = halting::beside(&asked, model, &experiment.reasoning);
        let halts = || std::iter::once(&HaltConfig::Never).chain(&halts);
        let ways = refinements
            .iter()
            .flat_map(|refinement| halts().map(move |halt| (refinement, halt)));
        for (refinement, halt) in ways {
            let mut name = model.refine(&stage.name, refinement.as_ref());
            model.halt(halt);
            if !halt.is_never() {
                name.push_str(&format!(", {}", halting::label(halt)));
            }
            let subject = Subject {
                method: &name,
                checkpoint: checkpoint_name(&stage.name, folder),
                seed: experiment.seed,
            };
            let refined = refinement.as_ref().map_or("", |_| "_refined");
            let halted = if halt.is_never() { "" } else { "_halting" };
            for task in workbench.test_tasks(experiment) {
                if interrupter.should_stop() {
                    events.of_run(EventKind::Interrupted)?;
                    return interrupted(&directory);
                }
                let config = &experiment.evaluation;
                let file = format!("{}{refined}{halted}_{}", stage.name, task.split);
                let found = measure(
                    model,
                    &device,
                    task,
                    config,
                    &experiment.reasoning,
                    &subject,
                    Some(&directory.evaluation(&file)?),
                )?;
                summary.rows.push(found.summary.clone());
                measured.push(found);
            }
        }
    }
    summary.write(&directory.summary())?;
    events.of_run(EventKind::Finished)?;
    say(table(&summary.rows))?;
    if let Some(name) = experiment.reference() {
        let paired = compare::shown(&compare::beside(&measured, name));
        for text in [ratios(&summary.rows, name), paired] {
            text.map_or(Ok(()), say)?;
        }
    }
    say(sesqui::measure::legend(&experiment.evaluation))?;
    say(format!("run directory: {}", directory.folder().display()))?;
    Ok(ExitCode::SUCCESS)
}

fn interrupted(paths: &RunPaths) -> Result<ExitCode> {
    say(format!(
        "resume with: {}",
        provenance::resume_command(paths)
    ))?;
    Ok(ExitCode::from(INTERRUPTED))
}
