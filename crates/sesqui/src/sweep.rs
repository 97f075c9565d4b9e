//! The two thresholds of latent reasoning, over a grid: Fig. 4 of System-1.5 Reasoning (arXiv
//! 2505.18962) as a table.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use burn::tensor::Device;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use sesqui_eval::{EvaluationConfig, QuestionRow, Task};
use sesqui_run::{SummaryRow, atomic_write};

use crate::heat_map::{HeatMap, Tile};
use crate::measure::{Measured, Subject, measure};
use crate::reasoning::{LatentSteps, ReasoningConfig};
use crate::trained::Trained;
use crate::workbench::VALIDATION;

/// Values of both thresholds, every pair of which is measured; what is empty stays as configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    /// Exit thresholds.
    pub exit_thresholds: Vec<f64>,
    /// Numbers of latent steps; 0 is none.
    pub latent_steps: Vec<usize>,
}

/// One cell of the grid.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Exit threshold; none where the model has no routers.
    pub exit_threshold: Option<f64>,
    /// Latent steps: what was asked for, or as many as trained.
    pub latent_steps: usize,
    /// Which of the two.
    #[serde(skip)]
    pub asked: LatentSteps,
    /// What was measured.
    pub summary: SummaryRow,
    /// The answers, for comparisons; not part of the row.
    #[serde(skip)]
    pub answers: Vec<QuestionRow>,
}

impl Cell {
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

impl Sweep {
    /// What of it concerns `model`: nothing where it reasons in words, no exit threshold where it has
    /// no routers.
    pub fn of(&self, model: &Trained) -> Self {
        match model {
            Trained::Tokens(_) => Self::default(),
            Trained::Latent(latent) if latent.shortcuts.is_none() => Self {
                exit_thresholds: Vec::new(),
                latent_steps: self.latent_steps.clone(),
            },
            Trained::Latent(_) => self.clone(),
        }
    }

    /// A flag that was given, if any.
    pub fn flag(&self) -> Option<&'static str> {
        match (
            self.exit_thresholds.as_slice(),
            self.latent_steps.as_slice(),
        ) {
            ([], []) => None,
            ([], _) => Some("--latent-steps"),
            _ => Some("--exit-threshold"),
        }
    }

    /// Whether there is more than one pair.
    pub fn is_grid(&self) -> bool {
        self.exit_thresholds.len().max(1) * self.latent_steps.len().max(1) > 1
    }

    /// `base` with the only values named, if there are any.
    pub fn single(&self, base: &ReasoningConfig) -> ReasoningConfig {
        let mut reasoning = base.clone();
        if let Some(threshold) = self.exit_thresholds.first() {
            reasoning.exit_threshold = *threshold;
        }
        if let Some(steps) = self.latent_steps.first() {
            reasoning.latent_steps = LatentSteps::Exactly(*steps);
        }
        reasoning
    }

    /// Measures every pair on a latent model, thresholds outside, and writes the cells to `file`, one
    /// JSON row each, and as a picture beside it, `.svg`.
    ///
    /// # Errors
    ///
    /// When a question does not fit or the file cannot be written.
    pub fn measure(
        &self,
        model: &Trained,
        device: &Device,
        task: &Task<'_>,
        config: &EvaluationConfig,
        base: &ReasoningConfig,
        subject: &Subject<'_>,
        file: Option<&Path>,
    ) -> Result<Vec<Cell>> {
        let routers = matches!(model, Trained::Latent(latent) if latent.shortcuts.is_some());
        let trained = match model {
            Trained::Latent(latent) => latent.settings.count,
            Trained::Tokens(_) => 0,
        };
        let thresholds = match routers {
            true => or_base(&self.exit_thresholds, base.exit_threshold)
                .into_iter()
                .map(Some)
                .collect(),
            false => vec![None],
        };
        let asked = self.latent_steps.iter().copied();
        let asked: Vec<LatentSteps> = asked.map(LatentSteps::Exactly).collect();
        let steps = or_base(&asked, base.latent_steps);
        let mut cells = Vec::with_capacity(thresholds.len() * steps.len());
        for &exit_threshold in &thresholds {
            for &asked in &steps {
                let reasoning = ReasoningConfig {
                    exit_threshold: exit_threshold.unwrap_or(base.exit_threshold),
                    latent_steps: asked,
                    ..base.clone()
                };
                let latent_steps = asked.settle(trained);
                let threshold = exit_threshold.map(|value| format!(" exit_threshold={value}"));
                let name = format!(
                    "{}{} latent_steps={latent_steps}",
                    subject.method,
                    threshold.unwrap_or_default()
                );
                let named = Subject {
                    method: &name,
                    ..subject.clone()
                };
                let found = measure(model, device, *task, config, &reasoning, &named, None)?;
                cells.push(Cell {
                    exit_threshold,
                    latent_steps,
                    asked,
                    summary: found.summary,
                    answers: found.answers,
                });
            }
        }
        if let Some(file) = file {
            let mut lines = Vec::new();
            for cell in &cells {
                serde_json::to_writer(&mut lines, cell)?;
                lines.write_all(b"\n")?;
            }
            atomic_write(file, &lines)?;
            let picture = map(&cells, heading(&cells, subject.method)).svg()?;
            atomic_write(&file.with_extension("svg"), picture.as_bytes())?;
        }
        Ok(cells)
    }
}

/// Whose grid it is, where it was measured, and what follows from that.
pub fn heading(cells: &[Cell], method: &str) -> String {
    let Some(Cell { summary, .. }) = cells.first() else {
        return method.to_owned();
    };
    let (dataset, split, n) = (&summary.dataset, &summary.split, summary.n);
    let rule = if split == VALIDATION {
        "validation: thresholds may be chosen by this"
    } else {
        "a test set: choose no threshold by this, --split validation is for that"
    };
    format!("{method} on {dataset} {split}, {n} questions\n({rule})")
}

/// The cell that others are compared with: the one that ran most layers.
pub fn fullest(cells: &[Cell]) -> Option<&Cell> {
    let calls = |cell: &Cell| cell.summary.layer_calls;
    cells.iter().reduce(|most, cell| {
        if calls(cell) > calls(most) {
            cell
        } else {
            most
        }
    })
}

/// The cells row by row: those of one exit threshold, latent steps across.
pub fn rows(cells: &[Cell]) -> impl Iterator<Item = &[Cell]> {
    cells.chunk_by(|one, next| one.exit_threshold == next.exit_threshold)
}

/// The exit threshold of a cell.
pub fn threshold_label(cell: &Cell) -> String {
    match cell.exit_threshold {
        Some(threshold) => threshold.to_string(),
        None => "no routers".to_owned(),
    }
}

/// How the number of latent steps of a cell is written.
pub fn steps_label(cell: &Cell) -> String {
    match cell.asked {
        LatentSteps::AsTrained => format!("as trained, {}", cell.latent_steps),
        LatentSteps::Exactly(steps) => steps.to_string(),
    }
}

/// The cells as a picture: exit thresholds downwards, latent steps across.
fn map(cells: &[Cell], heading: String) -> HeatMap {
    let tile = |cell: &Cell| Tile {
        accuracy: cell.summary.accuracy,
        note: format!("{:.2} calls", cell.summary.layer_calls),
    };
    let across = rows(cells).next().unwrap_or_default().iter();
    HeatMap {
        heading,
        down: "exit threshold".to_owned(),
        across: across
            .map(|cell| format!("latent steps: {}", steps_label(cell)))
            .collect(),
        rows: rows(cells)
            .map(|row| (threshold_label(&row[0]), row.iter().map(tile).collect()))
            .collect(),
        note: "layer calls per question while reasoning".to_owned(),
    }
}

fn or_base<T: Copy>(values: &[T], base: T) -> Vec<T> {
    match values {
        [] => vec![base],
        values => values.to_vec(),
    }
}

/// Accuracy in percent, layer calls and milliseconds of reasoning, thresholds downwards, latent steps
/// across. `cells` are those of one [`Sweep::measure`].
pub fn grid(cells: &[Cell]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let steps = rows(cells)
        .next()
        .unwrap_or_default()
        .iter()
        .map(steps_label);
    table.set_header(std::iter::once("exit threshold \\ latent steps".to_owned()).chain(steps));
    for row in rows(cells) {
        let shown = row.iter().map(|cell| {
            let summary = &cell.summary;
            format!(
                "{:.1} %\n{:.2} calls\n{:.2} ms",
                100.0 * summary.accuracy,
                summary.layer_calls,
                summary.reason_ms
            )
        });
        table.add_row(std::iter::once(threshold_label(&row[0])).chain(shown));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
