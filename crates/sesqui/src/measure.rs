//! Evaluating trained models: rows on disk, rows in the table.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use comfy_table::{CellAlignment, Table, presets};
use sesqui_eval::{
    Evaluation, EvaluationConfig, Method, QuestionRow, Task, answer_all, evaluate, time,
};
use sesqui_run::{SummaryRow, atomic_write};

use crate::exits::Exits;
use crate::reasoning::ReasoningConfig;
use crate::screen;
use crate::trained::Trained;

/// Whose answers are measured.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Name of the method in tables.
    pub method: &'a str,
    /// `<stage>/step-…`.
    pub checkpoint: String,
    /// Seed of the run that trained it.
    pub seed: u64,
}

/// What was measured of one method on one split.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The row of tables.
    pub summary: SummaryRow,
    /// Every question with its answer.
    pub answers: Vec<QuestionRow>,
    /// Where latent steps left, of a model with routers.
    pub exits: Option<Exits>,
    /// Reads from the device for a batch of questions, where they were counted.
    pub reads: Option<f64>,
}

/// A model that is measured beside others on the same questions.
#[derive(Clone)]
pub struct Candidate {
    /// The model, refining and halting as it is to be measured.
    pub model: Trained,
    /// Name of the method in tables.
    pub method: String,
    /// `<stage>/step-…`.
    pub checkpoint: String,
    /// Seed of the run that trained it.
    pub seed: u64,
    /// File to write, a `.json`, if any; the answers go beside it as `.jsonl`.
    pub file: Option<PathBuf>,
}

/// Measures `candidates` on `task`, their times in turn, and writes their files.
///
/// # Errors
///
/// When a question does not fit or a file cannot be written.
pub fn side_by_side(
    candidates: &[Candidate],
    device: &Device,
    task: Task<'_>,
    config: &EvaluationConfig,
    reasoning: &ReasoningConfig,
) -> Result<Vec<Measured>> {
    let methods: Vec<Box<dyn Method + '_>> = candidates
        .iter()
        .map(|candidate| candidate.model.method(device, &task, config, reasoning))
        .collect();
    let questions = task.problems.len();
    let mut found = Vec::with_capacity(candidates.len());
    for (candidate, method) in candidates.iter().zip(&methods) {
        let name = format!("{} on {} {}", candidate.method, task.dataset, task.split);
        let bar = screen::progress(questions, &name);
        found.push(answer_all(&**method, task, config, &mut |done| {
            bar.set_position(done as u64);
        })?);
        bar.finish_and_clear();
    }
    let methods: Vec<&dyn Method> = methods.iter().map(|method| &**method).collect();
    let work = methods.len() * config.timing_work(questions);
    let bar = screen::progress(work, &format!("time on {} {}", task.dataset, task.split));
    let timings = time(&methods, task, config, &mut |done| {
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let mut measured = Vec::with_capacity(candidates.len());
    for ((candidate, mut found), timing) in candidates.iter().zip(found).zip(timings) {
        found.timing = timing;
        let subject = Subject {
            method: &candidate.method,
            checkpoint: candidate.checkpoint.clone(),
            seed: candidate.seed,
        };
        let file = candidate.file.as_deref();
        measured.push(kept(&candidate.model, &task, found, &subject, file)?);
    }
    Ok(measured)
}

/// Measures `model` on `task`; writes `file`, a `.json`, and the answers beside it as `.jsonl`.
///
/// # Errors
///
/// When a question does not fit or a file cannot be written.
pub fn measure(
    model: &Trained,
    device: &Device,
    task: Task<'_>,
    config: &EvaluationConfig,
    reasoning: &ReasoningConfig,
    subject: &Subject<'_>,
    file: Option<&Path>,
) -> Result<Measured> {
    let bar = screen::progress(
        config.work(task.problems.len()),
        &format!("{} on {} {}", subject.method, task.dataset, task.split),
    );
    let method = model.method(device, &task, config, reasoning);
    let found = evaluate(&*method, task, config, &mut |done| {
        bar.set_position(done as u64)
    })?;
    bar.finish_and_clear();
    kept(model, &task, found, subject, file)
}

/// What was found of `model`, written to `file`.
fn kept(
    model: &Trained,
    task: &Task<'_>,
    found: Evaluation,
    subject: &Subject<'_>,
    file: Option<&Path>,
) -> Result<Measured> {
    let summary = summary_row(&found, task, subject);
    let exits = match model {
        Trained::Latent(latent) if latent.shortcuts.is_some() => {
            Some(Exits::count(latent, task, &found))
        }
        _ => None,
    };
    if let Some(file) = file {
        record(&found, &summary, exits.as_ref(), file).context("cannot write the evaluation")?;
    }
    Ok(Measured {
        summary,
        reads: (found.timing.questions > 0).then_some(found.timing.reads),
        answers: found.rows,
        exits,
    })
}

fn summary_row(found: &Evaluation, task: &Task<'_>, subject: &Subject<'_>) -> SummaryRow {
    let (ci_low, ci_high) = found.interval();
    SummaryRow {
        method: subject.method.to_owned(),
        dataset: task.dataset.to_owned(),
        split: task.split.to_owned(),
        n: found.rows.len() as u64,
        accuracy: found.accuracy(),
        ci_low,
        ci_high,
        tokens: found.mean(|row| row.tokens as f64),
        latent_steps: found.mean(|row| row.latent_steps as f64),
        layer_calls: found.mean(|row| row.layer_calls as f64),
        flops: found.mean(|row| row.flops),
        reason_flops: found.mean(|row| row.reason_flops),
        reason_ms: found.timing.reason_ms,
        total_ms: found.timing.total_ms(),
        seed: subject.seed,
        checkpoint: subject.checkpoint.clone(),
    }
}

fn record(found: &Evaluation, row: &SummaryRow, exits: Option<&Exits>, file: &Path) -> Result<()> {
    let mut json = serde_json::json!({ "schema": 1, "summary": row, "timing": found.timing });
    if let Some(exits) = exits {
        json["exits"] = serde_json::to_value(exits.values())?;
    }
    atomic_write(file, format!("{json:#}\n").as_bytes())?;
    let mut lines = Vec::new();
    for row in &found.rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.write_all(b"\n")?;
    }
    atomic_write(&file.with_extension("jsonl"), &lines)?;
    Ok(())
}

/// What an answer cost, as tables show it: tokens, latent steps, layer calls, FLOPs in all and of reasoning (as
/// MFLOPs), milliseconds of reasoning and in all.
pub fn costs(means: [f64; 7]) -> [String; 7] {
    let [
        tokens,
        latent_steps,
        layer_calls,
        flops,
        reason_flops,
        reason_ms,
        total_ms,
    ] = means;
    [
        format!("{tokens:.1}"),
        format!("{latent_steps:.1}"),
        format!("{layer_calls:.1}"),
        format!("{:.2}", flops / 1e6),
        format!("{:.3}", reason_flops / 1e6),
        format!("{reason_ms:.2}"),
        format!("{total_ms:.2}"),
    ]
}

/// The comparison table, costs as means per question.
pub fn table(rows: &[SummaryRow]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "method",
        "dataset",
        "split",
        "n",
        "accuracy %",
        "95 % interval",
        "tokens",
        "latents",
        "layer calls",
        "MFLOPs",
        "MFLOPs, reasoning",
        "reason ms",
        "total ms",
    ]);
    for row in rows {
        let who = [
            row.method.clone(),
            row.dataset.clone(),
            row.split.clone(),
            row.n.to_string(),
            format!("{:.1}", 100.0 * row.accuracy),
            format!("{:.1} – {:.1}", 100.0 * row.ci_low, 100.0 * row.ci_high),
        ];
        let costs = costs([
            row.tokens,
            row.latent_steps,
            row.layer_calls,
            row.flops,
            row.reason_flops,
            row.reason_ms,
            row.total_ms,
        ]);
        table.add_row(who.into_iter().chain(costs));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Every method beside `reference` on the same questions: difference of accuracy, and how many times
/// less it took. `None` where nothing can be compared.
pub fn ratios(rows: &[SummaryRow], reference: &str) -> Option<String> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        &format!("beside {reference}"),
        "split",
        "accuracy",
        "fewer tokens and latents",
        "fewer layer calls",
        "fewer FLOPs, reasoning",
        "fewer FLOPs, all",
        "faster reasoning",
        "faster, all",
    ]);
    let mut compared = 0;
    for row in rows.iter().filter(|row| row.method != reference) {
        let same = |other: &&SummaryRow| {
            (&other.method[..], &other.dataset, &other.split)
                == (reference, &row.dataset, &row.split)
        };
        let Some(base) = rows.iter().find(same) else {
            continue;
        };
        compared += 1;
        let times = |of: fn(&SummaryRow) -> f64| match (of(base), of(row)) {
            (base, own) if base > 0.0 && own > 0.0 => format!("{:.1}x", base / own),
            _ => "–".to_owned(),
        };
        table.add_row([
            row.method.clone(),
            row.split.clone(),
            format!("{:+.1}", 100.0 * (row.accuracy - base.accuracy)),
            times(|row| row.tokens + row.latent_steps),
            times(|row| row.layer_calls),
            times(|row| row.reason_flops),
            times(|row| row.flops),
            times(|row| row.reason_ms),
            times(|row| row.total_ms),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    (compared > 0).then(|| table.to_string())
}

/// What the columns of the table mean.
pub fn legend(config: &EvaluationConfig) -> String {
    let columns = "Means per question. Interval: Wilson. Layer calls: layers run while reasoning. \
                   MFLOPs: prompt, reasoning and answer; of reasoning, matrix and dot products inside \
                   layers alone, as the paper counts.";
    let times = match config.timing_questions {
        0 => "Times were not measured.".to_owned(),
        questions => format!(
            "Times at batch {} over {questions} questions spread over the split, each the median of \
             {} rounds, after {} questions for warm-up, methods in turn; reasoning runs from the end of \
             the prompt to the answer.",
            config.timing_batch_size, config.timing_rounds, config.warm_up_questions
        ),
    };
    format!("{columns}\n{times}")
}
