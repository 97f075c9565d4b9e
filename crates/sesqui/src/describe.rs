//! What will happen, said before it does: `--dry-run` and `--list`.

use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::TrainStep;
use comfy_table::{CellAlignment, Table, presets};
use sesqui_distill::Supervised;
use sesqui_model::flops::Flops;
use sesqui_model::{Transformer, parameters};
use sesqui_trainer::Batches;

use crate::experiment::Experiment;
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
    )?;
    text.push_str(&parameter_table(&model));
    let flops = Flops::new(&experiment.model, vocabulary);
    text.push_str(&format!(
        "one layer at one position: {:.3} MFLOPs; head: {:.3} MFLOPs\n",
        flops.layer() / 1e6,
        flops.head() / 1e6
    ));
    for stage in &experiment.stages {
        let (batches, skipped) =
            workbench.batches(stage, experiment.model.context, experiment.seed)?;
        let batch = batches.batch(0).map_err(anyhow::Error::msg)?;
        let training = &stage.training;
        text.push_str(&format!(
            "\nstage {}: {} steps of {} x {} rows, {} batches per epoch, {} problems too long\n",
            stage.name,
            training.steps,
            training.accumulation,
            batch.batch,
            batches.per_epoch(),
            skipped.len(),
        ));
        text.push_str(&format!(
            "first batch: [{}, {}], {} tokens, rows {}\n",
            batch.batch,
            batch.seq,
            batch.tokens,
            batches
                .rows(0)
                .split(", ")
                .take(4)
                .collect::<Vec<_>>()
                .join(", "),
        ));
        let output = TrainStep::step(&Supervised::new(model.clone()), batch);
        let losses: Vec<String> = output
            .item
            .names
            .iter()
            .zip(output.item.losses.into_data().iter::<f64>())
            .map(|(name, value)| format!("{name} {value:.4}"))
            .collect();
        text.push_str(&format!("before training: {}\n", losses.join(", ")));
    }
    Ok(text)
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

/// The shipped experiments: path, what it is, score to expect, as each file's head says.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    let studies = std::fs::read_dir(folder).with_context(|| {
        format!(
            "cannot list {}; run from the root of the source tree",
            folder.display()
        )
    })?;
    for study in studies {
        let study = study?.path();
        if study.is_dir() {
            for file in std::fs::read_dir(&study)? {
                let file = file?.path();
                if file
                    .extension()
                    .is_some_and(|extension| extension == "toml")
                {
                    files.push(file);
                }
            }
        }
    }
    files.sort();
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["--config", "what", "expect"]);
    for file in files {
        let text = std::fs::read_to_string(&file)?;
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
    Ok(table.to_string())
}
