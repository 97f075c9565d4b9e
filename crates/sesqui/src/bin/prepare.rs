//! Looks after data and checkpoints: lists, verifies, generates, counts labels, exports.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use sesqui::backend::{Backend, settle};
use sesqui::cli::ConfigArguments;
use sesqui::importance::{self, Request};
use sesqui::labels::Labels;
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::output::say;
use sesqui::workbench::data_root;
use sesqui::{data_sets, reopened};
use sesqui_dataset::derive::gsm8k_equations;
use sesqui_dataset::encode::PositionLayout;
use sesqui_dataset::manifest::Status;
use sesqui_dataset::{Corpus, Problem};
use sesqui_distill::importance::Walk;
use sesqui_run::atomic_write;

/// Look after data sets and checkpoints.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Examples:
  prepare list
  prepare verify gsm8k prosqa
  prepare derive gsm8k-aug
  prepare generate --set seed=2 --split test --limit 5 --out problems.jsonl
  prepare labels --config experiments/gsm8k/cot.toml
  prepare labels --checkpoint runs/first --out labels.jsonl
  prepare export runs/first --stage cot --out exported
Exit codes: 0 done, 1 failed or data not intact, 2 wrong use.";

#[derive(Subcommand, Debug)]
enum Task {
    /// List the published data sets: what, licence, records, size, and what is present
    List(Root),
    /// Compare data files with their manifests, one line per file
    ///
    /// Size, SHA-256 and number of records. For a missing file the line says where it comes from:
    /// repository, commit, path. Nothing is fetched. Exit code 1 when a file is missing or differs.
    Verify(Verify),
    /// Write a file that no repository holds, from published ones below the data root
    ///
    /// gsm8k-aug: train_noaug.txt, from train.jsonl of gsm8k and valid.txt. What is there already is left alone.
    Derive(Derive),
    /// Write problems of an experiment's data as JSON lines
    Generate(Generate),
    /// Count critical steps by the source of their label, or label them by likelihood
    ///
    /// Where the generator knows the truth, also how far matching operands with earlier results
    /// would have found it.
    ///
    /// With --checkpoint, a step is as important as leaving it out makes the answer less likely under that
    /// chain-of-thought model, in nats. Labels go to --out, for `labels = { kind = "file", path = "…" }` of an
    /// experiment. The same command goes on where it was broken off.
    Labels(LabelArguments),
    /// Write a checkpoint as a Hugging Face folder
    ///
    /// config.json, model.safetensors (float32) and tokenizer.json. A stage can start from such a
    /// folder: --set 'stages.cot.initialize={ kind = "hugging-face", path = "DIR" }'.
    Export(Export),
}

#[derive(Args, Debug)]
struct Root {
    /// Folder that holds one folder per published data set [default: $SESQUI_DATA, else datasets/]
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Verify {
    /// Data sets [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    #[command(flatten)]
    root: Root,
}

#[derive(Args, Debug)]
struct Derive {
    /// Data set
    #[arg(value_enum, value_name = "NAME")]
    name: Derivable,

    #[command(flatten)]
    root: Root,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Derivable {
    Gsm8kAug,
}

#[derive(Args, Debug)]
struct Generate {
    #[command(flatten)]
    config: ConfigArguments,

    #[command(flatten)]
    root: Root,

    /// File to write, one problem per line; it appears whole or not at all
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// `train`, `validation`, `test`, or the name of a test set
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,

    /// Most problems, the first ones [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Args, Debug)]
struct LabelArguments {
    #[command(flatten)]
    config: ConfigArguments,

    #[command(flatten)]
    root: Root,

    /// `train`, `validation`, `test`, or the name of a test set [default: train; with --checkpoint train
    /// and validation]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,

    /// Label by likelihood: run directory, or checkpoint folder (`<run>/checkpoints/<stage>/step-…`); its
    /// data, unless --config or --set data… name other
    #[arg(long, value_name = "PATH", requires = "out")]
    checkpoint: Option<PathBuf>,

    /// Stage of the run [default: the first that reasons in words]
    #[arg(long, value_name = "NAME", requires = "checkpoint")]
    stage: Option<String>,

    /// Label file to write; a cache of the scores lies beside it
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    out: Option<PathBuf>,

    /// A step is critical where its importance is above this, in nats
    #[arg(
        long,
        value_name = "NATS",
        default_value_t = 0.0,
        requires = "checkpoint",
        allow_negative_numbers = true
    )]
    tau: f64,

    /// Go front to back, remove a step of importance 0 or less and score later ones without it: at most
    /// this share of a problem's steps, never all [default: no removal]
    #[arg(long, value_name = "SHARE", requires = "checkpoint")]
    most_removed: Option<f64>,

    /// Problems scored together
    #[arg(long, value_name = "N", default_value_t = 64, requires = "checkpoint")]
    batch_size: usize,

    /// Where to score
    #[arg(long, value_enum, default_value_t = Backend::Cpu, requires = "checkpoint")]
    backend: Backend,

    /// Address of the server of --backend remote, for example ws://gpu:3000
    #[arg(long, value_name = "URL", requires = "checkpoint")]
    host: Option<String>,
}

#[derive(Args, Debug)]
struct Export {
    /// Run directory, or checkpoint folder (`<run>/checkpoints/<stage>/step-…`)
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Stage of the run [default: the last]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,

    /// Folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn main() -> ExitCode {
    keep_freed_memory();
    settle();
    let done = match &Arguments::parse().task {
        Task::List(root) => list(root),
        Task::Verify(arguments) => verify(arguments),
        Task::Derive(arguments) => derive(arguments),
        Task::Generate(arguments) => generate(arguments),
        Task::Labels(arguments) => labels(arguments),
        Task::Export(arguments) => export(arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

fn list(root: &Root) -> Result<ExitCode> {
    say(data_sets::list(&data_root(root.data_root.as_deref()))?)?;
    Ok(ExitCode::SUCCESS)
}

fn verify(arguments: &Verify) -> Result<ExitCode> {
    let root = data_root(arguments.root.data_root.as_deref());
    let (mut right, mut wrong, mut others) = (0, 0, 0);
    for manifest in data_sets::named(&arguments.names)? {
        let report = manifest.verify(&root)?;
        for file in &report.files {
            say(format!("{}: {}", file.path, file.status))?;
            *match file.status {
                Status::Ok => &mut right,
                Status::NotIncluded { .. } | Status::Supplied { .. } => &mut others,
                _ => &mut wrong,
            } += 1;
        }
    }
    say(format!(
        "below {}: {right} files as pinned, {wrong} missing or different, {others} not pinned",
        root.display()
    ))?;
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

fn derive(arguments: &Derive) -> Result<ExitCode> {
    let root = data_root(arguments.root.data_root.as_deref());
    let (name, file) = match arguments.name {
        Derivable::Gsm8kAug => ("gsm8k-aug", "train_noaug.txt"),
    };
    let path = root.join(name).join(file);
    if !path.exists() {
        let text = match arguments.name {
            Derivable::Gsm8kAug => gsm8k_equations(&root)?,
        };
        atomic_write(&path, text.as_bytes())?;
    }
    let written = format!("{name}/{file}");
    let report = data_sets::named(&[name.to_owned()])?[0].verify(&root)?;
    let file = report.files.iter().find(|found| found.path == written);
    let status = file.map(|found| &found.status);
    if let Some(status) = status {
        say(format!("{}: {status}", path.display()))?;
    }
    Ok(ExitCode::from(u8::from(!matches!(
        status,
        Some(Status::Ok)
    ))))
}

fn generate(arguments: &Generate) -> Result<ExitCode> {
    let corpus = corpus(&arguments.config, &arguments.root)?;
    let problems = split(&corpus, &arguments.split)?;
    let limit = arguments
        .limit
        .unwrap_or(problems.len())
        .min(problems.len());
    let mut lines = Vec::new();
    for problem in &problems[..limit] {
        serde_json::to_writer(&mut lines, problem)?;
        lines.push(b'\n');
    }
    atomic_write(&arguments.out, &lines)?;
    say(format!(
        "{limit} of {} problems, {} {}: {}",
        problems.len(),
        corpus.name,
        arguments.split,
        arguments.out.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn labels(arguments: &LabelArguments) -> Result<ExitCode> {
    if let (Some(checkpoint), Some(out)) = (&arguments.checkpoint, &arguments.out) {
        return likelihood(arguments, checkpoint, out);
    }
    let corpus = corpus(&arguments.config, &arguments.root)?;
    let name = arguments.split.as_deref().unwrap_or("train");
    let problems = split(&corpus, name)?;
    say(format!(
        "{} {name}: {} problems",
        corpus.name,
        problems.len()
    ))?;
    say(Labels::count(problems).describe())?;
    Ok(ExitCode::SUCCESS)
}

fn likelihood(arguments: &LabelArguments, checkpoint: &Path, out: &Path) -> Result<ExitCode> {
    let mut set = arguments.config.set.clone();
    if arguments.config.skip_bad_rows {
        set.push("bad_rows=skip".to_owned());
    }
    say(importance::labels(&Request {
        checkpoint,
        stage: arguments.stage.as_deref(),
        config: arguments.config.config.as_deref(),
        set: &set,
        root: &data_root(arguments.root.data_root.as_deref()),
        place: &arguments.backend.open(&[], arguments.host.as_deref())?,
        split: arguments.split.as_deref(),
        out,
        tau: arguments.tau,
        walk: match arguments.most_removed {
            None => Walk::LeaveOneOut,
            Some(most_removed) => Walk::FrontToBack { most_removed },
        },
        batch_size: arguments.batch_size,
    })?)?;
    Ok(ExitCode::SUCCESS)
}

fn export(arguments: &Export) -> Result<ExitCode> {
    let out = &arguments.out;
    let taken = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    if taken {
        return Err(Misuse(format!(
            "--out {}: not an empty folder; choose one that does not exist yet",
            out.display()
        ))
        .into());
    }
    let opened = reopened::open(&arguments.path, arguments.stage.as_deref())?;
    let model = opened.load(Backend::Cpu.open(&[], None)?.home())?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    sesqui_model::huggingface::save(model.backbone(), out)?;
    atomic_write(
        &out.join("tokenizer.json"),
        opened.tokenizer.to_json()?.as_bytes(),
    )?;
    let state = &opened.state;
    say(format!(
        "{} after step {}: {}",
        state.stage,
        state.step,
        out.display()
    ))?;
    if let PositionLayout::Aligned { question_length } = opened.layout {
        say(format!(
            "position ids are aligned: reasoning starts at {question_length} whatever the question's \
             length; a program that\ncounts positions without a gap gets other answers from these \
             weights"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn corpus(config: &ConfigArguments, root: &Root) -> Result<Corpus> {
    let experiment = config.resolve()?.value;
    let root: &Path = &data_root(root.data_root.as_deref());
    Ok(experiment
        .data
        .load(Some(root), experiment.seed, experiment.bad_rows)?)
}

fn split<'a>(corpus: &'a Corpus, name: &str) -> Result<&'a [Problem]> {
    match (name, &corpus.tests[..]) {
        ("train", _) => Ok(&corpus.train),
        ("validation", _) => Ok(&corpus.validation),
        ("test", [only]) => Ok(&only.problems),
        (name, tests) => match tests.iter().find(|test| test.name == name) {
            Some(test) => Ok(&test.problems),
            None => {
                let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
                Err(Misuse(format!(
                    "--split {name}: {} has train, validation, {}",
                    corpus.name,
                    names.join(", ")
                ))
                .into())
            }
        },
    }
}
