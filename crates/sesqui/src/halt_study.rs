//! Several ways of halting side by side, beside all latent steps: accuracy against what it takes.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Device;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use sesqui_eval::{EvaluationConfig, QuestionRow, Task};
use sesqui_reason::HaltConfig;
use sesqui_run::{SummaryRow, atomic_write};

use crate::halt_plot;
use crate::halting::label;
use crate::measure::{Measured, Subject, measure};
use crate::reasoning::{LatentSteps, ReasoningConfig};
use crate::sweep::Sweep;
use crate::trained::Trained;
use crate::workbench::VALIDATION;

/// One way of halting, measured.
#[derive(Clone, Debug, Serialize)]
pub struct HaltRow {
    /// When it stops.
    pub halt: HaltConfig,
    /// Exit threshold; none where the model has no routers.
    pub exit_threshold: Option<f64>,
    /// Latent steps of a trajectory, mean over questions. The summary counts those of all trajectories.
    pub steps: f64,
    /// Layer executions per question that were made to decide; part of those in the summary.
    pub probe_layer_calls: f64,
    /// Operations per question that went into that; part of those in the summary.
    pub probe_flops: f64,
    /// What was measured.
    pub summary: SummaryRow,
    /// The answers, for comparisons; not part of the row.
    #[serde(skip)]
    pub answers: Vec<QuestionRow>,
}

impl HaltRow {
    /// As what was measured of one method.
    pub fn into_measured(self) -> Measured {
        Measured {
            reads: None,
            summary: self.summary,
            answers: self.answers,
            exits: None,
        }
    }
}

/// Measures `model` with each of `halts` at each exit threshold of `sweep`, after plain latents with each of
/// its numbers of latent steps, the most of which bounds the others. Questions and answers of each go to the
/// file that `place` names, the rows to `file`, one JSON row each, and a picture beside it, `.svg`. Leaves
/// the model with plain latents.
///
/// # Errors
///
/// When a question does not fit or a file cannot be written.
pub fn study(
    model: &mut Trained,
    device: &Device,
    task: &Task<'_>,
    (sweep, halts): (&Sweep, &[HaltConfig]),
    (config, base): (&EvaluationConfig, &ReasoningConfig),
    subject: &Subject<'_>,
    place: &mut dyn FnMut() -> Result<Option<PathBuf>>,
    file: Option<&Path>,
) -> Result<Vec<HaltRow>> {
    let routers = matches!(model, Trained::Latent(latent) if latent.shortcuts.is_some());
    let thresholds: Vec<Option<f64>> = match (routers, sweep.exit_thresholds.as_slice()) {
        (false, _) => vec![None],
        (true, []) => vec![Some(base.exit_threshold)],
        (true, several) => several.iter().copied().map(Some).collect(),
    };
    let asked = sweep.latent_steps.iter().copied();
    let (steps, most) = match asked.clone().max() {
        None => (vec![base.latent_steps], base.latent_steps),
        Some(most) => (
            asked.map(LatentSteps::Exactly).collect(),
            LatentSteps::Exactly(most),
        ),
    };
    let mut rows = Vec::new();
    for &exit_threshold in &thresholds {
        let plain = steps.iter().map(|&steps| (steps, HaltConfig::Never));
        let halting = halts.iter().map(|halt| (most, halt.clone()));
        for (latent_steps, halt) in plain.chain(halting) {
            let mut name = subject.method.to_owned();
            if let (Some(threshold), true) = (exit_threshold, thresholds.len() > 1) {
                name.push_str(&format!(" exit_threshold={threshold}"));
            }
            match &halt {
                HaltConfig::Never if steps.len() > 1 => {
                    let steps = usize::from(latent_steps);
                    name.push_str(&format!(" latent_steps={steps}"));
                }
                HaltConfig::Never => {}
                halt => name.push_str(&format!(", {}", label(halt))),
            }
            let reasoning = ReasoningConfig {
                exit_threshold: exit_threshold.unwrap_or(base.exit_threshold),
                latent_steps,
                ..base.clone()
            };
            let named = Subject {
                method: &name,
                ..subject.clone()
            };
            model.halt(&halt);
            let at = place()?;
            let found = measure(
                model,
                device,
                *task,
                config,
                &reasoning,
                &named,
                at.as_deref(),
            );
            model.halt(&HaltConfig::Never);
            let found = found?;
            let mean = |of: fn(&QuestionRow) -> f64| {
                found.answers.iter().map(of).sum::<f64>() / found.answers.len().max(1) as f64
            };
            rows.push(HaltRow {
                halt,
                exit_threshold,
                steps: mean(|row| row.slots.len() as f64),
                probe_layer_calls: mean(|row| row.probe_layer_calls as f64),
                probe_flops: mean(|row| row.probe_flops),
                summary: found.summary,
                answers: found.answers,
            });
        }
    }
    if let Some(file) = file {
        let mut lines = Vec::new();
        for row in &rows {
            serde_json::to_writer(&mut lines, row)?;
            lines.write_all(b"\n")?;
        }
        atomic_write(file, &lines)?;
        let picture = halt_plot::svg(&rows, &heading(&rows, subject.method))?;
        atomic_write(&file.with_extension("svg"), picture.as_bytes())?;
    }
    Ok(rows)
}

/// Whose ways of halting they are, where they were measured, and what follows from that.
pub fn heading(rows: &[HaltRow], method: &str) -> String {
    let Some(HaltRow { summary, .. }) = rows.first() else {
        return method.to_owned();
    };
    let (dataset, split, n) = (&summary.dataset, &summary.split, summary.n);
    let rule = if split == VALIDATION {
        "validation: thresholds may be chosen by this"
    } else {
        "a test set: choose no threshold by this, --split validation is for that"
    };
    format!("{method}, halting, on {dataset} {split}, {n} questions\n({rule})")
}

/// The row that others are compared with: of plain latents the one with most latent steps, of those the one
/// that ran most layers.
pub fn fullest(rows: &[HaltRow]) -> Option<&HaltRow> {
    let size = |row: &HaltRow| (row.summary.latent_steps, row.summary.layer_calls);
    let plain = rows.iter().filter(|row| row.halt.is_never());
    plain.reduce(|most, row| if size(row) > size(most) { row } else { most })
}

/// The rows as a table, costs as means per question.
pub fn table(rows: &[HaltRow]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "method",
        "accuracy %",
        "95 % interval",
        "steps",
        "saved",
        "all latents",
        "layer calls",
        "of these to decide",
        "MFLOPs",
        "reason ms",
        "total ms",
    ]);
    let full = fullest(rows).map(|row| row.steps);
    for row in rows {
        let summary = &row.summary;
        let saved = match full {
            Some(full) if full > 0.0 => format!("{:.0} %", 100.0 * (1.0 - row.steps / full)),
            _ => "–".to_owned(),
        };
        table.add_row([
            summary.method.clone(),
            format!("{:.1}", 100.0 * summary.accuracy),
            format!(
                "{:.1} – {:.1}",
                100.0 * summary.ci_low,
                100.0 * summary.ci_high
            ),
            format!("{:.2}", row.steps),
            saved,
            format!("{:.1}", summary.latent_steps),
            format!("{:.1}", summary.layer_calls),
            format!("{:.1}", row.probe_layer_calls),
            format!("{:.2}", summary.flops / 1e6),
            format!("{:.2}", summary.reason_ms),
            format!("{:.2}", summary.total_ms),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
