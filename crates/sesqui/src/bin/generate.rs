//! Asks a trained model one question and shows what it writes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sesqui::backend::settle;
use sesqui::cli::PlaceArguments;
use sesqui::experiment::Experiment;
use sesqui::fitting::{Asked, Room};
use sesqui::halting;
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::opened::Opened;
use sesqui::output::say;
use sesqui::preparation::{Preparation, Prepared, check_arguments};
use sesqui::reasoning::{LatentSteps, ReasoningConfig};
use sesqui::refinement::Variant;
use sesqui::screen::spinner;
use sesqui::start::computes;
use sesqui::trained::{Latent, Trained};
use sesqui::workbench::{Workbench, data_root};
use sesqui::{reopened, show, token_exit};
use sesqui_dataset::encode::encode_problem;
use sesqui_dataset::{AnswerKind, Problem};
use sesqui_eval::Task;

/// Ask a trained model one question and show its reasoning and its answer, token by token.
///
/// The question is answered twice and the second time is shown, so that nothing is counted that
/// happens only once. Tokens are separated by a dot; decoding is greedy. Of a latent model every latent
/// step is shown: the layers it ran, what the routers said, the tokens nearest to what it left with.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Run directory, or checkpoint folder (`<run>/checkpoints/<stage>/step-…`)
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Stage of the run [default: the last]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,

    /// The question, as questions of the training data are written
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "split",
        required_unless_present = "split"
    )]
    question: Option<String>,

    /// Take the question from this test set of the run's data, or from `validation`
    #[arg(long, value_name = "NAME", requires = "index")]
    split: Option<String>,

    /// Number of the question in the split, from 0
    #[arg(long, value_name = "N", requires = "split")]
    index: Option<usize>,

    /// Most tokens generated [default: as configured]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_tokens: Option<u32>,

    /// Exit threshold of a latent model, in [0, 1] [default: as configured]
    #[arg(long, value_name = "X")]
    exit_threshold: Option<f64>,

    /// Latent steps, 0 for none [default: as trained]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    latent_steps: Option<u32>,

    /// Refine latents, for example residual=0.05; as `evaluate --refine` [default: as configured]
    #[arg(long, value_name = "TABLE")]
    refine: Option<String>,

    /// Stop before the last latent step, for example entropy=0.1; as `evaluate --halt`, one value
    /// [default: as configured]
    #[arg(long, value_name = "TABLE")]
    halt: Option<String>,

    /// Choose tokens after fewer layers, for example fixed=2; as `evaluate --token-exit`, one value
    /// [default: as configured]
    #[arg(long, value_name = "TABLE")]
    token_exit: Option<String>,

    #[command(flatten)]
    place: PlaceArguments,
}

impl Arguments {
    /// A flag of latent reasoning that was given, if any.
    fn latent_flag(&self) -> Option<&'static str> {
        match (self.exit_threshold, self.latent_steps) {
            (Some(_), _) => Some("--exit-threshold"),
            (None, Some(_)) => Some("--latent-steps"),
            (None, None) => None,
        }
    }

    /// The thresholds of latent reasoning: those of the run, but for what was asked.
    fn reasoning(&self, base: &ReasoningConfig) -> Result<ReasoningConfig> {
        let reasoning = ReasoningConfig {
            latent_steps: match self.latent_steps {
                Some(steps) => LatentSteps::Exactly(steps as usize),
                None => base.latent_steps,
            },
            exit_threshold: self.exit_threshold.unwrap_or(base.exit_threshold),
            ..base.clone()
        };
        match reasoning.problem() {
            Some((_, reason)) => Err(Misuse(format!("--exit-threshold: {reason}")).into()),
            None => Ok(reasoning),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  generate runs/first --question 'a=3+5;b=a*2;'
  generate runs/first --stage no_cot --split test --index 17
  generate runs/first/checkpoints/cot/step-00000250 --split validation --index 0
  generate runs/first --stage system15 --exit-threshold 0.5 --split test --index 17
  generate runs/first --stage latent --refine contrastive=0.03 --split test --index 17
  generate runs/first --stage latent --halt entropy=0.1 --split test --index 17
  generate runs/lite --stage lite --token-exit confidence=0.9 --split test --index 17
Exit codes: 0 done, 1 failed, 2 wrong use.";

fn main() -> ExitCode {
    keep_freed_memory();
    let arguments = Arguments::parse();
    settle();
    match generate(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn generate(arguments: &Arguments) -> Result<()> {
    let place = arguments.place.devices.open()?;
    let device = place.home().clone();
    if arguments
        .question
        .as_deref()
        .is_some_and(|question| question.trim().is_empty())
    {
        return Err(Misuse("--question is empty; write what the model is to answer".into()).into());
    }
    let opened = reopened::open(&arguments.path, arguments.stage.as_deref())?;
    if let Some(flag) = arguments.latent_flag() {
        reopened::takes_latent_steps(&opened, flag)?;
    }
    check_arguments(arguments.refine.as_slice(), std::slice::from_ref(&opened))?;
    let models = std::slice::from_ref(&opened);
    token_exit::check_arguments(arguments.token_exit.as_slice(), models)?;
    halting::check_arguments(
        arguments.halt.as_slice(),
        models,
        arguments.refine.is_some(),
    )?;
    match (&arguments.question, &arguments.split) {
        (Some(question), _) => {
            let problem = Problem {
                id: "question".to_owned(),
                question: question.trim().to_owned(),
                steps: Vec::new(),
                answer: String::new(),
                answer_kind: AnswerKind::Choice,
            };
            let (tokenizer, format) = (&opened.tokenizer, &opened.experiment.format);
            let encoded = encode_problem(tokenizer, format, &problem)?;
            let task = Task {
                dataset: opened.experiment.data.name(),
                split: "question",
                problems: &[problem],
                encoded: &[encoded],
                tokenizer,
                format,
                layout: opened.layout,
            };
            answer(arguments, &opened, &device, &task, false)
        }
        (None, split) => {
            let mut experiment: Experiment = opened.experiment.clone();
            experiment.evaluation.questions = 0;
            experiment.evaluation.validation_questions = 0;
            let root = data_root(arguments.place.data_root.as_deref());
            let tokenizer = opened.tokenizer.clone();
            let waiting = spinner("reading data");
            let workbench = Workbench::reopen(&experiment, &root, tokenizer, opened.layout)?;
            waiting.finish_and_clear();
            let name = split.as_deref().unwrap_or("test");
            let whole = workbench.find_task(&experiment, name)?;
            let task = show::pick(&whole, arguments.index.unwrap_or_default())?;
            answer(arguments, &opened, &device, &task, true)
        }
    }
}

fn answer(
    arguments: &Arguments,
    opened: &Opened,
    device: &burn::tensor::Device,
    task: &Task<'_>,
    known: bool,
) -> Result<()> {
    computes(std::slice::from_ref(device), opened.experiment.precision)?;
    let mut model = opened.load(device)?;
    let flag = arguments.latent_steps.map(|steps| steps as usize);
    let room = Room::new(&model, Asked::new(flag, &opened.experiment.reasoning));
    if let Some(reason) = room.misfit(&task.encoded[0], task.layout) {
        return Err(Misuse(format!("the question does not fit the model: {reason}")).into());
    }
    let mut config = opened.experiment.evaluation.clone();
    if let Some(most) = arguments.max_tokens {
        config.max_tokens = most as usize;
    }
    let reasoning = arguments.reasoning(&opened.experiment.reasoning)?;
    let prompt = task.prompt(0..1)?;
    if let Some(note) = show::unknown_characters(task)? {
        say(note)?;
    }
    let variants = Variant::all(arguments.refine.as_slice(), &reasoning)?;
    if variants.len() > 1 {
        return Err(Misuse(format!(
            "--refine: {} ways of refining; one question is answered in one, name one value",
            variants.len()
        ))
        .into());
    }
    if let (Trained::Latent(latent), Some(variant)) = (&mut model, variants.first()) {
        latent.refined = Some(prepare(arguments, opened, device, variant, latent)?);
    }
    let asked = halting::all(arguments.halt.as_slice(), &reasoning)?;
    let halts = halting::beside(&asked, &model, &reasoning);
    if let (Trained::Latent(latent), Some(halt)) = (&model, asked.first())
        && arguments.halt.is_some()
        && let Some(reason) = halting::unsuited(halt, latent, &reasoning)
    {
        return Err(Misuse(format!("{} {reason}", opened.state.stage)).into());
    }
    let exits = token_exit::all(arguments.token_exit.as_slice(), &reasoning)?;
    if let [_, _, ..] = exits.as_slice() {
        return Err(Misuse(format!(
            "--token-exit: {} exits; one question is answered in one, name one value",
            exits.len()
        ))
        .into());
    }
    if let [exit] = token_exit::beside(&exits, &model, &opened.state.stage)?.as_slice() {
        (model, _) = model.exiting("", *exit);
    }
    halting::check(&halts, model.backbone().vocabulary(), !variants.is_empty())?;
    match halts.as_slice() {
        [] => {}
        [halt] => model.halt(halt),
        several => {
            return Err(Misuse(format!(
                "--halt: {} ways of halting; one question is answered in one, name one value",
                several.len()
            ))
            .into());
        }
    }
    let responses = match &model {
        Trained::Tokens(_) => {
            let method = model.method(device, task, &config, &reasoning);
            method.respond(&prompt)?;
            method.respond(&prompt)?
        }
        Trained::Latent(latent) => {
            if arguments.exit_threshold.is_some() && latent.shortcuts.is_none() {
                say("the model has no routers: --exit-threshold changes nothing")?;
            }
            let method = latent.method(device, task, &config, &reasoning);
            method.decode(&prompt)?;
            let decoded = method.decode(&prompt)?;
            say(show::latent_steps(&latent.model, task.tokenizer, &decoded)?)?;
            method.responses(&prompt, decoded)
        }
    };
    say(show::response(task, &responses, known)?)
}

/// Models and calibration of a refinement, with the data of the run.
fn prepare(
    arguments: &Arguments,
    opened: &Opened,
    device: &burn::tensor::Device,
    variant: &Variant,
    student: &Latent,
) -> Result<Prepared> {
    let experiment = &opened.experiment;
    let root = data_root(arguments.place.data_root.as_deref());
    let waiting = spinner("reading data");
    let workbench = Workbench::reopen(experiment, &root, opened.tokenizer.clone(), opened.layout)?;
    waiting.finish_and_clear();
    let mut preparation = Preparation::new(&workbench, experiment, device);
    preparation.prepare(variant, student, opened)
}
