//! Trains the stages of an experiment, evaluates them, and prints one table; or the methods of a study.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use burn::train::Interrupter;
use clap::Parser;
use jiff::Timestamp;
use sesqui::backend::settle;
use sesqui::cli::{ConfigArguments, PlaceArguments};
use sesqui::execution::{self, Ending, Execution};
use sesqui::measure::{legend, ratios, table};
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{INTERRUPTED, report};
use sesqui::output::say;
use sesqui::screen::{RendererChoice, stop_on_ctrl_c};
use sesqui::start::computes;
use sesqui::study::{Conduct, Emit, conduct};
use sesqui::workbench::data_root;
use sesqui::{compare, describe, exits, provenance, smoke, token_exit};
use sesqui_run::{RunDirectory, SummaryRow};

/// Train the stages of an experiment, evaluate each, and print one table.
///
/// With --study: several methods with several seeds on several data sets, common stages once, and one table
/// of all.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    config: ConfigArguments,

    #[command(flatten)]
    place: PlaceArguments,

    /// Study file: methods × seeds × data sets; --set overrides its settings
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    study: Option<PathBuf>,

    /// Run directory, or study directory; resumes what is there, a run with its own settings where none are
    /// given [default: a fresh folder under runs/]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,

    /// What to show while training
    #[arg(long, value_enum, default_value_t = RendererChoice::Auto)]
    renderer: RendererChoice,

    /// Of the study's runs take this one; repeatable
    #[arg(long, value_name = "RUN", requires = "study")]
    only: Vec<String>,

    /// Print what a scheduler takes instead of training: a job for each run of the study, all in the
    /// directory that --run names
    #[arg(long, value_enum, value_name = "WHAT", requires = "study")]
    emit: Option<Emit>,

    /// Say where the time of each stage goes, and how often it waits for the device
    #[arg(long)]
    profile: bool,

    /// Shrink data, model and steps so that the run gets through in seconds
    #[arg(long)]
    smoke: bool,

    /// Print configuration, shapes, parameters and one batch, or the runs of a study, then stop
    #[arg(long)]
    dry_run: bool,

    /// List the experiments and studies under experiments/, with the score to expect, then stop
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
  train --study experiments/studies/arith-dag.toml  methods and seeds, in one table
Ctrl-C once finishes the step, saves and prints the command that resumes; twice leaves at once.
Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped and resumable.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    keep_freed_memory();
    settle();
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
    if let Some(file) = &arguments.study {
        return conduct(&Conduct {
            file,
            set: &arguments.config.set,
            skip_bad_rows: arguments.config.skip_bad_rows,
            place: &arguments.place,
            directory: arguments.run.as_deref(),
            renderer: arguments.renderer,
            smoke: arguments.smoke,
            dry_run: arguments.dry_run,
            profile: arguments.profile,
            only: &arguments.only,
            emit: arguments.emit,
        });
    }
    let config = match arguments.smoke {
        // What is shrunk already would be shrunk again.
        true => arguments.config.clone(),
        false => arguments.config.or_of(arguments.run.as_deref())?,
    };
    let mut resolved = config.resolve()?;
    if arguments.smoke {
        resolved = smoke::shrink(resolved)?;
    }
    let experiment = &resolved.value;
    experiment.validate()?;
    let place = arguments.place.devices.open()?;
    computes(place.workers(), experiment.precision)?;
    let data_root = data_root(arguments.place.data_root.as_deref());
    let workbench = execution::prepare(experiment, &data_root)?;
    if arguments.dry_run {
        say(&resolved.text)?;
        say(describe::dry_run(experiment, &workbench, place.home())?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let started = Timestamp::now();
    let variant = config.variant();
    let directory = match &arguments.run {
        Some(path) => RunDirectory::open_or_create(path, &resolved.text)?,
        None => {
            let (hash, text) = (&resolved.hash, &resolved.text);
            RunDirectory::create("runs".as_ref(), started, &variant, hash, text)?
        }
    };
    let interrupter = Interrupter::new();
    stop_on_ctrl_c(&interrupter)?;
    let execution = Execution {
        resolved: &resolved,
        variant: &variant,
        workbench: &workbench,
        place: &place,
        renderer: arguments.renderer,
        profile: arguments.profile,
        interrupter: &interrupter,
        started,
    };
    let measured = match execution.carry_out(&directory)? {
        Ending::Finished(measured) => measured,
        Ending::Interrupted => {
            let resume = provenance::resume_command(directory.folder());
            say(format!("resume with: {resume}"))?;
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };

    let rows: Vec<SummaryRow> = measured.iter().map(|found| found.summary.clone()).collect();
    say(table(&rows))?;
    exits::table(&measured).map_or(Ok(()), say)?;
    token_exit::acceptance(&measured).map_or(Ok(()), say)?;
    if let Some(name) = experiment.reference() {
        let paired = compare::shown(&compare::beside(&measured, name));
        for text in [ratios(&rows, name), paired] {
            text.map_or(Ok(()), say)?;
        }
    }
    say(legend(&experiment.evaluation))?;
    say(format!("run directory: {}", directory.folder().display()))?;
    Ok(ExitCode::SUCCESS)
}
