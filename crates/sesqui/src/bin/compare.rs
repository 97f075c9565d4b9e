//! Compares methods on the same questions: who was right where the other was not, and how sure that is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sesqui::compare::{Couple, SEED, compare, couples, read_file, read_run, table};
use sesqui::experiment::Experiment;
use sesqui::measure::Measured;
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::output::say;
use sesqui_eval::paired::DRAWS;
use sesqui_run::{ConfigSource, RunPaths, atomic_write};

/// Compare methods that answered the same questions, and print one table.
///
/// McNemar's exact test, a bootstrap interval of the difference of accuracies, and how many questions
/// only one of the two answered rightly. Same-named methods of several runs are seeds of one study: a row
/// each, then one that pools them.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Finished run directories, or evaluations (`eval/….json`)
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Where the reference is: as many runs or evaluations as PATH, in the same order [default: in the
    /// same run]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    against: Vec<PathBuf>,

    /// The method that others are compared with [default: with --against the one of the same name, else
    /// the run's chain-of-thought stage]
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,

    /// Only this split; repeatable [default: all]
    #[arg(long, value_name = "NAME")]
    split: Vec<String>,

    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,

    /// File to write as JSON, with the ids of the questions that only one answered rightly
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  compare runs/first --out pairs.json               every stage beside the chain of thought
  compare runs/seed1 runs/seed2 runs/seed3          the same, and pooled over the seeds
  compare runs/changed --against runs/first         stage by stage beside another run
  compare runs/first/eval/system15_test.json --against runs/first/eval/latent_test.json
Exit codes: 0 done, 1 failed, 2 wrong use.";

fn main() -> ExitCode {
    keep_freed_memory();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// What one PATH holds.
struct Source {
    measured: Vec<Measured>,
    /// The chain-of-thought stage, where PATH is a run that has one.
    reference: Option<String>,
}

fn run(arguments: &Arguments) -> Result<()> {
    let (own, other) = (arguments.paths.len(), arguments.against.len());
    if other > 0 && other != own {
        return Err(Misuse(format!(
            "--against: {other} paths for {own}; give one for each, in the same order"
        ))
        .into());
    }
    let read = |paths: &[PathBuf]| -> Result<Vec<Source>> {
        paths.iter().map(|path| source(arguments, path)).collect()
    };
    let (others, references) = (read(&arguments.paths)?, read(&arguments.against)?);
    let mut found: Vec<Couple<'_>> = Vec::new();
    for (index, other) in others.iter().enumerate() {
        let (beside, fallback) = match references.get(index) {
            Some(reference) => (reference, None),
            None => (other, other.reference.as_deref()),
        };
        let name = arguments.reference.as_deref().or(fallback);
        found.extend(couples(&beside.measured, &other.measured, name));
    }
    let rows = compare(&found, arguments.seed)?;
    let Some(text) = table(&rows) else {
        return Err(nothing(&others, &references).into());
    };
    say(text)?;
    if let Some(out) = &arguments.out {
        let json = serde_json::json!({
            "schema": 1,
            "seed": arguments.seed,
            "draws": DRAWS,
            "comparisons": rows,
        });
        atomic_write(out, format!("{json:#}\n").as_bytes())?;
        say(format!("written: {}", out.display()))?;
    }
    Ok(())
}

fn source(arguments: &Arguments, path: &Path) -> Result<Source> {
    let mut source = if path.is_dir() {
        let run = RunPaths::new(path);
        let measured = read_run(&run)?;
        let experiment = sesqui_run::load::<Experiment>(ConfigSource::File(run.config()), &[])
            .with_context(|| format!("cannot tell the stages of {}", path.display()))?
            .value;
        Source {
            measured,
            reference: experiment.reference().map(str::to_owned),
        }
    } else {
        Source {
            measured: vec![read_file(path)?],
            reference: None,
        }
    };
    let wanted = &arguments.split;
    source
        .measured
        .retain(|found| wanted.is_empty() || wanted.contains(&found.summary.split));
    Ok(source)
}

/// Why no couple was found.
fn nothing(others: &[Source], references: &[Source]) -> Misuse {
    let names = |sources: &[Source]| {
        let rows = sources.iter().flat_map(|source| &source.measured);
        let mut names: Vec<String> = rows
            .map(|found| format!("{} on {}", found.summary.method, found.summary.split))
            .collect();
        names.dedup();
        match names.as_slice() {
            [] => "nothing".to_owned(),
            names => names.join(", "),
        }
    };
    Misuse(if references.is_empty() {
        format!(
            "nothing to compare in {}; name the method to compare with, --reference NAME, or another run \
             or evaluation, --against PATH",
            names(others)
        )
    } else {
        format!(
            "nothing to compare: {} beside {}; name the method to compare with, --reference NAME",
            names(others),
            names(references)
        )
    })
}
