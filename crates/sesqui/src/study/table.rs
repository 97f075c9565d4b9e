//! A study on the terminal.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, Table, presets};
use sesqui_eval::EvaluationConfig;
use sesqui_trainer::render::duration;

use super::cost::TrainingCost;
use super::report::{PooledRow, Report};
use crate::{compare, measure};

/// Everything that a study has found so far; `None` where it is nothing.
pub fn shown(report: &Report, evaluations: &[(&str, &EvaluationConfig)]) -> Option<String> {
    report.methods().next()?;
    let paired = match &report.unpaired {
        Some(reason) => Some(format!("no paired test: {reason}")),
        None => compare::table(&report.paired_over_seeds()),
    };
    let parts = [
        Some(results(report)),
        Some(training(report)),
        by_latent_steps(report),
        paired,
        Some(legend(report, evaluations).join("\n")),
    ];
    Some(parts.into_iter().flatten().collect::<Vec<_>>().join("\n"))
}

/// Accuracy, and what an answer costs.
fn results(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "method",
        "data",
        "seeds",
        "n",
        "accuracy %",
        "95 % interval",
        "range of seeds",
        "tokens",
        "latents",
        "layer calls",
        "MFLOPs",
        "MFLOPs, reasoning",
        "reason ms",
        "total ms",
    ]);
    for row in report.methods() {
        let who = [
            row.method.clone(),
            place(row),
            row.seeds.len().to_string(),
            row.n.to_string(),
            percent(row.accuracy),
            format!("{} – {}", percent(row.ci_low), percent(row.ci_high)),
            format!("{} – {}", percent(row.lowest), percent(row.highest)),
        ];
        table.add_row(who.into_iter().chain(row.costs()));
    }
    to_the_right(table, 2)
}

/// What training took, of the stage alone and with what it goes back to.
fn training(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "training",
        "data",
        "steps",
        "tokens",
        "FLOPs",
        "time",
        "with ancestors: steps",
        "tokens",
        "FLOPs",
        "time",
    ]);
    let mut seen = BTreeSet::new();
    for row in report.methods() {
        // The same for all test sets.
        if !seen.insert((&row.dataset, &row.method)) {
            continue;
        }
        let cells = |cost: &TrainingCost| {
            [
                format!("{:.0}", cost.steps),
                large(cost.tokens),
                cost.flops.map_or("–".to_owned(), large),
                duration(cost.seconds),
            ]
        };
        let costs = [cells(&row.own), cells(&row.with_ancestors)].concat();
        table.add_row([vec![row.method.clone(), row.dataset.clone()], costs].concat());
    }
    to_the_right(table, 2)
}

/// Accuracy in percent by the number of latent steps; `None` where no method was asked so.
fn by_latent_steps(report: &Report) -> Option<String> {
    let grid = latent_steps(report)?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let first = ["accuracy %, latent steps".to_owned(), "data".to_owned()];
    table.set_header(first.into_iter().chain(grid.numbers));
    for (row, cells) in grid.methods {
        table.add_row([vec![row.method.clone(), place(row)], cells].concat());
    }
    Some(to_the_right(table, 2))
}

/// Methods by their number of latent steps.
pub(super) struct ByLatentSteps<'a> {
    /// The numbers that some method was asked with, ascending.
    pub numbers: Vec<String>,
    /// Each such method with its accuracy after them, nothing where it was not asked so.
    pub methods: Vec<(&'a PooledRow, Vec<String>)>,
}

pub(super) fn latent_steps(report: &Report) -> Option<ByLatentSteps<'_>> {
    let asked: Vec<_> = report
        .methods()
        .map(|row| (row, report.by_latent_steps(row)))
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    let rows = asked.iter().flat_map(|(_, rows)| rows);
    let numbers: BTreeSet<usize> = rows.map(|(steps, _)| *steps).collect();
    let cell = |rows: &[(usize, &PooledRow)], number: usize| {
        let found = rows.iter().find(|(steps, _)| *steps == number);
        found.map_or_else(String::new, |(_, row)| percent(row.accuracy))
    };
    let methods = asked.iter().map(|(method, rows)| {
        let cells = numbers.iter().map(|number| cell(rows, *number));
        (*method, cells.collect())
    });
    (!numbers.is_empty()).then(|| ByLatentSteps {
        numbers: numbers.iter().map(usize::to_string).collect(),
        methods: methods.collect(),
    })
}

/// What the columns mean; `evaluations` say how the methods of each data set were measured.
pub(super) fn legend(report: &Report, evaluations: &[(&str, &EvaluationConfig)]) -> Vec<String> {
    let mut lines = vec![
        "Over several seeds: accuracy and its interval over all their questions, costs as means of the seeds."
            .to_owned(),
    ];
    let legends = evaluations.iter();
    let legends: Vec<(&str, String)> = legends
        .map(|(data_set, evaluation)| (*data_set, measure::legend(evaluation)))
        .collect();
    match legends.as_slice() {
        [(_, first), others @ ..] if others.iter().all(|(_, other)| other == first) => {
            lines.push(first.clone());
        }
        several => lines.extend(
            several
                .iter()
                .map(|(data_set, legend)| format!("{data_set}: {legend}")),
        ),
    }
    lines.push(
        "Training: its time is that of optimizer steps, without validation and a teacher that reads beforehand; \
         with ancestors, all stages from the first, whoever else uses them. FLOPs are counted on the batches: a backward pass as two forward \
         passes, as one where weights are frozen."
            .to_owned(),
    );
    if report.methods().any(|row| row.shared_questions > 0) {
        lines.push(
            "Several seeds were asked the same questions: intervals over all of them are too narrow, go by \
             the range."
                .to_owned(),
        );
    }
    if !report.unfinished.is_empty() {
        lines.push(format!("Not finished: {}.", report.unfinished.join(", ")));
    }
    lines
}

pub(super) fn place(row: &PooledRow) -> String {
    format!("{} {}", row.dataset, row.split)
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A count with three digits or so: `950`, `12.3 k`, `1.52 M`, `2.94 T`.
pub(super) fn large(count: f64) -> String {
    let units = ["", " k", " M", " G", " T", " P", " E"];
    let mut value = count;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1e3;
        unit += 1;
    }
    let digits = match (unit, value) {
        (0, _) => 0,
        (_, value) if value < 9.995 => 2,
        (_, value) if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", units[unit])
}

fn to_the_right(mut table: Table, columns: usize) -> String {
    for column in table.column_iter_mut().skip(columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_counts_have_three_digits() {
        for (count, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (999.6, "1.00 k"),
            (12_345.0, "12.3 k"),
            (1.52e6, "1.52 M"),
            (9.996e6, "10.0 M"),
            (345.6e9, "346 G"),
            (2.94e12, "2.94 T"),
            (5e21, "5000 E"),
        ] {
            assert_eq!(large(count), text);
        }
    }
}
