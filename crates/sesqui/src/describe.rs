//! What will happen, said before it does: `--dry-run` and `--list`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::TrainStep;
use comfy_table::{CellAlignment, Table, presets};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::{
    Align, Curriculum, Cuts, EarlyExit, EarlyExitBatch, EarlyExitBatches, HaltStageConfig, Joint,
    JointBatch, JointBatches, LatentBatch, Shortcut, Supervised, ThoughtBatch,
};
use sesqui_model::flops::Flops;
use sesqui_model::latent::LatentTransformer;
use sesqui_model::{Transformer, parameters};
use sesqui_shortcut::{Shortcuts, StepHead};
use sesqui_trainer::Batches;
use sesqui_trainer::objective::Objective as Learner;

use crate::curriculum::thought_settings;
use crate::experiment::{Experiment, Objective, Stage};
use crate::extensions::extensions;
use crate::start::latent_settings;
use crate::study::Study;
use crate::trained::LatentSettings;
use crate::workbench::Workbench;

/// Data, shapes, parameters, cost, and one batch run forward and backward.
///
/// # Errors
///
/// When the data or a stage does not fit.
pub fn dry_run(experiment: &Experiment, workbench: &Workbench, device: &Device) -> Result<String> {
    let corpus = &workbench.corpus;
    let vocabulary = workbench.tokenizer.vocab_size();
    let mut text = format!(
        "data       {}: {} train, {} validation",
        corpus.name,
        corpus.train.len(),
        corpus.validation.len()
    );
    for test in &corpus.tests {
        text.push_str(&format!(", {} {}", test.problems.len(), test.name));
    }
    text.push_str(&format!("; {} rows skipped\n", corpus.skipped.len()));
    text.push_str(&format!(
        "tokenizer  {vocabulary} ids, sha256 {:.12}\npositions  {}\n\n",
        workbench.tokenizer.hash()?,
        serde_json::to_string(&workbench.layout)?
    ));
    let model = Transformer::new(
        &experiment.model,
        vocabulary,
        experiment.seed,
        &device.clone().autodiff(),
    )?
    .with_precision(experiment.precision);
    text.push_str(&parameter_table(&model));
    let flops = Flops::new(&experiment.model, vocabulary);
    text.push_str(&format!(
        "one layer at one position: {:.3} MFLOPs; head: {:.3} MFLOPs\n",
        flops.layer() / 1e6,
        flops.head() / 1e6
    ));
    for stage in &experiment.stages {
        text.push_str(&format!("\nstage {}: ", stage.name));
        text.push_str(&one_step(experiment, workbench, stage, &model)?);
        if let Some(line) = extensions(stage) {
            text.push_str(&format!("{line}\n"));
        }
    }
    Ok(text)
}

/// Size of a stage, its first batch, and what one step on it says before any training.
fn one_step(
    experiment: &Experiment,
    workbench: &Workbench,
    stage: &Stage,
    model: &Transformer,
) -> Result<String> {
    let (context, seed) = (experiment.model.context, experiment.seed);
    match &stage.objective {
        Objective::Cot | Objective::NoCot => {
            let (batches, skipped) = workbench.batches(stage, context, seed)?;
            let step = |batch: &SequenceBatch| [batch.batch, batch.seq, batch.tokens];
            let model = Supervised::new(model.clone());
            first_batch(stage, &batches, skipped.len(), step, &model)
        }
        Objective::Align(config) => {
            let settings = workbench.latent_settings(config);
            let rollout = config.rollouts(seed, stage.training.steps);
            let (batches, skipped) =
                workbench.latent_batches(stage, &settings, context, seed, rollout)?;
            let model = Align::new(student(model, &settings), model, config);
            let text = first_batch(stage, &batches, skipped.len(), sizes, &model)?;
            Ok(format!("{text}{}\n", slots(&settings)))
        }
        Objective::Shortcut(config) => {
            let Some(settings) = latent_settings(experiment, workbench, stage)? else {
                return Ok("its start is not known yet\n".to_owned());
            };
            let rollout = move |step| exits_drawn(seed, step);
            let (batches, skipped) =
                workbench.latent_batches(stage, &settings, context, seed, rollout)?;
            let device = model.device();
            let shortcuts = Shortcuts::new(&config.shortcuts, model.config(), seed, &device);
            let added = shortcuts.num_params();
            let model = Shortcut::new(student(model, &settings), shortcuts, model, config);
            let text = first_batch(stage, &batches, skipped.len(), sizes, &model)?;
            Ok(format!(
                "{text}{added} parameters in routers and adapters\n"
            ))
        }
        Objective::Joint(config) => {
            let settings = workbench.latent_settings(&config.align);
            let rollout = config.align.rollouts(seed, stage.training.steps);
            let (batches, skipped) =
                workbench.latent_batches(stage, &settings, context, seed, rollout)?;
            let batches = JointBatches::new(batches, move |step| exits_drawn(seed, step));
            let sizes = |batch: &JointBatch| sizes(&batch.align);
            let device = model.device();
            let shortcuts = &config.shortcut.shortcuts;
            let shortcuts = Shortcuts::new(shortcuts, model.config(), seed, &device);
            let added = shortcuts.num_params();
            let model = Joint::new(student(model, &settings), shortcuts, model, config);
            let text = first_batch(stage, &batches, skipped.len(), sizes, &model)?;
            Ok(format!(
                "{text}{}\n{added} parameters in routers and adapters\n",
                slots(&settings)
            ))
        }
        Objective::Curriculum(config) => {
            let plan = workbench.curriculum(stage, config);
            let Some(feedback) = config.thought.feedback() else {
                return words_that_go(workbench, stage, model, Cuts::Steps(plan), seed);
            };
            let settings = thought_settings(config, feedback, &plan);
            let (batches, skipped) =
                workbench.thought_batches(stage, config, &plan, context, seed)?;
            let sizes = |batch: &ThoughtBatch| [batch.batch, batch.seq, batch.tokens];
            let student = Curriculum::new(student(model, &settings), config);
            let text = first_batch(stage, &batches, skipped.len(), sizes, &student)?;
            let (growth, slots) = (growth(&settings), slots(&settings));
            Ok(format!("{text}{growth}\n{slots}\n"))
        }
        Objective::Icot(config) => {
            let cuts = Cuts::Tokens(config.plan(workbench.training()));
            words_that_go(workbench, stage, model, cuts, seed)
        }
        Objective::EarlyExit(config) => {
            let (batches, skipped) = workbench.batches(stage, context, seed)?;
            let plan = config.plan(model.config().layers, stage.training.steps);
            let batches = EarlyExitBatches::new(batches, plan, seed);
            let sizes = |batch: &EarlyExitBatch| {
                let words = &batch.words;
                [words.batch, words.seq, words.tokens]
            };
            let model = EarlyExit::new(model.clone());
            first_batch(stage, &batches, skipped.len(), sizes, &model)
        }
        Objective::Halt(config) => match latent_settings(experiment, workbench, stage)? {
            Some(settings) => Ok(halt_head(model, &settings, config)),
            None => Ok("its start is not known yet\n".to_owned()),
        },
    }
}

/// As text: the first batch of a stage in which less and less is said.
fn words_that_go(
    workbench: &Workbench,
    stage: &Stage,
    model: &Transformer,
    cuts: Cuts,
    seed: u64,
) -> Result<String> {
    let context = model.config().context;
    let (batches, skipped) = workbench.cut_batches(stage, cuts, context, seed)?;
    let sizes = |batch: &SequenceBatch| [batch.batch, batch.seq, batch.tokens];
    let model = Supervised::new(model.clone());
    first_batch(stage, &batches, skipped.len(), sizes, &model)
}

/// As text: how many thoughts there are when.
fn growth(settings: &LatentSettings) -> String {
    let growth = settings.growth.iter();
    let growth: Vec<String> = growth
        .map(|(update, thoughts)| format!("{thoughts} from update {}", update + 1))
        .collect();
    format!("thoughts: {}", growth.join(", "))
}

/// As text: there is no batch yet, since labels come from the trained model.
fn halt_head(model: &Transformer, settings: &LatentSettings, config: &HaltStageConfig) -> String {
    let device = model.device();
    let (hidden, count) = (config.hidden, settings.count);
    let head = StepHead::new(hidden, count, model.config(), 0, &device);
    let questions = match config.questions {
        0 => "all".to_owned(),
        questions => questions.to_string(),
    };
    format!(
        "{} parameters in the head; labels are found when it starts, on {questions} training questions \
         with 1 to {count} latent steps each\n",
        head.num_params()
    )
}

fn student(model: &Transformer, settings: &LatentSettings) -> LatentTransformer {
    let device = model.device();
    LatentTransformer::new(model.clone(), &settings.latents.feedback, 0, &device)
}

fn sizes(batch: &LatentBatch) -> [usize; 3] {
    [batch.batch, batch.seq, batch.tokens]
}

fn slots(settings: &LatentSettings) -> String {
    let positions = settings.latents.positions;
    format!(
        "{} latent steps, the first {} and the answer {} positions after the question's end",
        settings.count,
        positions.slot_position(1, 0),
        positions.answer_position(1, settings.count),
    )
}

fn first_batch<M: Learner>(
    stage: &Stage,
    batches: &dyn Batches<<M as TrainStep>::Input>,
    skipped: usize,
    sizes: impl Fn(&<M as TrainStep>::Input) -> [usize; 3],
    model: &M,
) -> Result<String> {
    let batch = batches.batch(0).map_err(anyhow::Error::msg)?;
    let [rows, seq, tokens] = sizes(&batch);
    let training = &stage.training;
    let names = batches.rows(0);
    let names: Vec<&str> = names.split(", ").take(4).collect();
    let output = TrainStep::step(model, batch);
    let losses: Vec<String> = output
        .item
        .names
        .iter()
        .zip(output.item.losses.into_data().iter::<f64>())
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    Ok(format!(
        "{} steps of {} x {rows} rows, {} batches per epoch, {skipped} problems too long\n\
         first batch: [{rows}, {seq}], {tokens} tokens, rows {}\n\
         before training: {}\n",
        training.steps,
        training.accumulation,
        batches.per_epoch(),
        names.join(", "),
        losses.join(", "),
    ))
}

fn parameter_table(model: &Transformer) -> String {
    let rows = parameters::table(model);
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["parameter", "shape", "values"]);
    for row in &rows {
        // One layer stands for all: they have the same shapes.
        if row.path.starts_with("layers.") && !row.path.starts_with("layers.0.") {
            continue;
        }
        let path = row.path.replace("layers.0.", "layers.*.");
        table.add_row([path, format!("{:?}", row.shape), row.count().to_string()]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{table}\n{} layers, {} parameters\n",
        model.layers.len(),
        model.num_params()
    )
}

/// The shipped experiments and studies: path, what it is, score to expect, as each file's head says.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    let folders = std::fs::read_dir(folder).with_context(|| {
        format!(
            "cannot list {}; run from the root of the source tree",
            folder.display()
        )
    })?;
    for folder in folders {
        let folder = folder?.path();
        if folder.is_dir() {
            for file in std::fs::read_dir(&folder)? {
                let file = file?.path();
                if file
                    .extension()
                    .is_some_and(|extension| extension == "toml")
                {
                    files.push((file.clone(), std::fs::read_to_string(&file)?));
                }
            }
        }
    }
    files.sort();
    let (studies, experiments): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|(_, text)| Study::is_text_of(text));
    let tables = [("--config", experiments), ("--study", studies)];
    let tables = tables.map(|(flag, files)| heads(flag, &files));
    Ok(tables.join("\n"))
}

/// What the heads of `files`, which `flag` takes, say.
fn heads(flag: &str, files: &[(PathBuf, String)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([flag, "what", "expect"]);
    for (file, text) in files {
        let head: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .map(str::trim)
            .collect();
        let what = head.first().copied().unwrap_or_default();
        let expect = head
            .iter()
            .find_map(|line| line.strip_prefix("expect:"))
            .unwrap_or_default()
            .trim();
        table.add_row([
            file.display().to_string(),
            what.to_owned(),
            expect.to_owned(),
        ]);
    }
    table.to_string()
}
