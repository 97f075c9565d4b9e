//! A study as Markdown, for documents.

use sesqui_eval::EvaluationConfig;
use sesqui_trainer::render::duration;

use super::cost::TrainingCost;
use super::report::Report;
use super::table::{large, latent_steps, legend, percent, place};
use crate::compare::Compared;

/// `study.md`: how it was made, then everything that was found so far.
pub fn text(report: &Report, evaluations: &[(&str, &EvaluationConfig)]) -> String {
    let mut parts = vec![origin(report), results(report)];
    parts.extend(by_latent_steps(report));
    match &report.unpaired {
        Some(reason) => parts.push(format!("No paired test: {reason}")),
        None => parts.extend(paired(report)),
    }
    parts.push(legend(report, evaluations).join("\n"));
    parts.join("\n\n") + "\n"
}

/// The command, the day, the commits and the machines.
fn origin(report: &Report) -> String {
    let commits: Vec<String> = report.commits.iter().map(|commit| quoted(commit)).collect();
    let machines: Vec<&str> = report.machines.iter().map(String::as_str).collect();
    let commit = match commits.as_slice() {
        [] => "no run finished".to_owned(),
        [one] => format!("commit {one}"),
        several => format!("commits {}", several.join("; ")),
    };
    let words = [&report.date[..], &commit, &machines.join("; ")];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("```sh\n{}\n```\n\n{}.", report.command, words.join(", "))
}

/// The hash of a commit as code, what follows it as it is.
fn quoted(commit: &str) -> String {
    match commit.split_once(' ') {
        Some((hash, rest)) => format!("`{hash}` {rest}"),
        None => format!("`{commit}`"),
    }
}

fn results(report: &Report) -> String {
    let header = [
        "data",
        "method",
        "seeds",
        "n",
        "accuracy",
        "range of seeds",
        "tokens",
        "latent steps",
        "layer calls",
        "MFLOPs, all",
        "MFLOPs, reasoning",
        "reason ms",
        "total ms",
        "training",
        "training with ancestors",
    ];
    let rows = report.methods().map(|row| {
        let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
        let who = [
            place(row),
            format!("`{}`", row.method),
            seeds.join(", "),
            row.n.to_string(),
            format!(
                "{} % [{}, {}]",
                percent(row.accuracy),
                percent(row.ci_low),
                percent(row.ci_high)
            ),
            format!("{} – {}", percent(row.lowest), percent(row.highest)),
        ];
        let trained = [training(&row.own), training(&row.with_ancestors)];
        who.into_iter().chain(row.costs()).chain(trained).collect()
    });
    table(&header.map(str::to_owned), rows)
}

fn training(cost: &TrainingCost) -> String {
    let flops = cost.flops.map(|flops| format!("{}FLOPs, ", spaced(flops)));
    format!(
        "{:.0} steps, {}tokens, {}{}",
        cost.steps,
        spaced(cost.tokens),
        flops.unwrap_or_default(),
        duration(cost.seconds)
    )
}

/// `12 ` or `1.52 M`, for the unit to follow.
fn spaced(count: f64) -> String {
    let text = large(count);
    match text.ends_with(|last: char| last.is_ascii_digit()) {
        true => format!("{text} "),
        false => text,
    }
}

fn by_latent_steps(report: &Report) -> Option<String> {
    let grid = latent_steps(report)?;
    let header = ["data".to_owned(), "latent steps".to_owned()];
    let rows = grid.methods.into_iter().map(|(row, cells)| {
        let first = vec![place(row), format!("`{}`", row.method)];
        [first, cells].concat()
    });
    let header: Vec<String> = header.into_iter().chain(grid.numbers).collect();
    Some(format!(
        "Accuracy in % by the number of latent steps:\n\n{}",
        table(&header, rows)
    ))
}

fn paired(report: &Report) -> Option<String> {
    let rows = report.paired_over_seeds();
    if rows.is_empty() {
        return None;
    }
    let header = [
        "data",
        "method",
        "n",
        "difference in points",
        "won",
        "lost",
        "p",
    ];
    let cells = |row: &Compared| {
        let found = &row.comparison;
        let points = |share: f64| format!("{:+.1}", 100.0 * share);
        vec![
            format!("{} {}", row.dataset, row.split),
            format!("`{}`", row.method),
            found.n.to_string(),
            format!(
                "{} [{}, {}]",
                points(found.difference),
                points(found.interval.low),
                points(found.interval.high)
            ),
            found.won.len().to_string(),
            found.lost.len().to_string(),
            format!("{:.2e}", found.p),
        ]
    };
    Some(format!(
        "Beside `{}` on the same questions, over all seeds (McNemar's exact test, two-sided, not corrected for \
         the number of rows; bootstrap interval of the difference):\n\n{}",
        report.reference,
        table(&header.map(str::to_owned), rows.iter().map(cells))
    ))
}

fn table(header: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let rule = format!("|{}", "---|".repeat(header.len()));
    let rows = rows.map(|row| line(&row));
    let lines: Vec<String> = [line(header), rule].into_iter().chain(rows).collect();
    lines.join("\n")
}
