//! Methods beside a reference on the same questions: which, read from where, shown how.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use sesqui_eval::paired::{DRAWS, Pair};
use sesqui_eval::{Comparison, QuestionRow, pair};
use sesqui_run::{RunPaths, Summary, SummaryRow};

use crate::measure::Measured;
use crate::misuse::Misuse;
use crate::workbench::VALIDATION;

/// Seed of the bootstrap.
pub const SEED: u64 = 1;

/// Questions on which two methods differ, below which bootstrap quantiles say little.
const FEW: usize = 10;

/// A method and the reference that it is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Couple<'a> {
    /// The reference.
    pub reference: &'a Measured,
    /// The other method.
    pub other: &'a Measured,
}

impl<'a> Couple<'a> {
    /// What couples of one study have in common: method, reference, data set, split.
    fn key(&self) -> [&'a str; 4] {
        let (row, reference) = (&self.other.summary, &self.reference.summary);
        [&row.method, &reference.method, &row.dataset, &row.split]
    }
}

/// One method beside the reference on one split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The method.
    pub method: String,
    /// The method it is compared with.
    pub reference: String,
    /// Name of the data set.
    pub dataset: String,
    /// Name of the split.
    pub split: String,
    /// Seeds of the runs; several where they are pooled. Ids then have `<seed>:` before them.
    pub seeds: Vec<u64>,
    /// Answers to a question that several of the pooled runs were asked; each counts by itself.
    pub shared_questions: usize,
    /// What was found.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Every method beside the one called `reference` on the same split; none where it was not measured.
pub fn beside<'a>(measured: &'a [Measured], reference: &str) -> Vec<Couple<'a>> {
    couples(measured, measured, Some(reference))
}

/// The methods of `others` beside the one called `name` among `references`, on the same split. Without a
/// name, beside the one of their own name, or the only one there is.
pub fn couples<'a>(
    references: &'a [Measured],
    others: &'a [Measured],
    name: Option<&str>,
) -> Vec<Couple<'a>> {
    let alone = references.len() == 1 && others.len() == 1;
    let couple = |other: &'a Measured| {
        let row = &other.summary;
        let reference = references.iter().find(|reference| {
            let found = &reference.summary;
            let wanted = match name {
                Some(name) => found.method == name,
                None => alone || found.method == row.method,
            };
            wanted && (&found.dataset, &found.split) == (&row.dataset, &row.split)
        })?;
        (!std::ptr::eq(reference, other)).then_some(Couple { reference, other })
    };
    others.iter().filter_map(couple).collect()
}

/// Compares each couple; those of the same methods, data set and split are seeds of one study, and a
/// row that pools them follows theirs. `seed` decides the draws of the bootstrap.
///
/// # Errors
///
/// When the two of a couple did not answer the same questions.
pub fn compare(couples: &[Couple<'_>], seed: u64) -> Result<Vec<Compared>> {
    let mut keys = Vec::new();
    for key in couples.iter().map(Couple::key) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let mut rows = Vec::new();
    for key in keys {
        let strata: Vec<&Couple<'_>> = couples
            .iter()
            .filter(|couple| couple.key() == key)
            .collect();
        let [method, reference, dataset, split] = key;
        let row = |strata: &[Vec<Pair>], seeds: Vec<u64>, shared_questions| Compared {
            method: method.to_owned(),
            reference: reference.to_owned(),
            dataset: dataset.to_owned(),
            split: split.to_owned(),
            seeds,
            shared_questions,
            comparison: Comparison::of(strata, DRAWS, seed),
        };
        let mut pooled = Vec::with_capacity(strata.len());
        let mut seeds = Vec::with_capacity(strata.len());
        for couple in &strata {
            let seed = couple.other.summary.seed;
            let pairs =
                pair(&couple.reference.answers, &couple.other.answers).map_err(|error| {
                    Misuse(format!("{method} beside {reference}, {split}: {error}"))
                })?;
            rows.push(row(std::slice::from_ref(&pairs), vec![seed], 0));
            seeds.push(seed);
            pooled.push(of_seed(pairs, seed));
        }
        if strata.len() > 1 {
            let answers = strata.iter().flat_map(|couple| &couple.other.answers);
            let shared = shared_questions(answers);
            rows.push(row(&pooled, seeds, shared));
        }
    }
    Ok(rows)
}

fn of_seed(pairs: Vec<Pair>, seed: u64) -> Vec<Pair> {
    let named = |pair: Pair| Pair {
        id: format!("{seed}:{}", pair.id),
        ..pair
    };
    pairs.into_iter().map(named).collect()
}

/// Answers of several runs to questions that more than one of them was asked.
pub fn shared_questions<'a>(answers: impl Iterator<Item = &'a QuestionRow>) -> usize {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for row in answers {
        *times.entry(&row.question).or_default() += 1;
    }
    times.into_values().filter(|times| *times > 1).sum()
}

/// The comparisons as a table, with what its columns mean; `None` where there are none.
pub fn table(rows: &[Compared]) -> Option<String> {
    let first = rows.first()?;
    let one = rows.iter().all(|row| row.reference == first.reference);
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        &match one {
            true => format!("paired with {}", first.reference),
            false => "paired".to_owned(),
        },
        "split",
        "seed",
        "n",
        "accuracy",
        "95 % interval",
        "won",
        "lost",
        "p",
    ]);
    for row in rows {
        let found = &row.comparison;
        let points = |share: f64| format!("{:+.1}", 100.0 * share);
        table.add_row([
            match one {
                true => row.method.clone(),
                false => format!("{} with {}", row.method, row.reference),
            },
            format!("{} {}", row.dataset, row.split),
            match row.seeds.as_slice() {
                [seed] => seed.to_string(),
                seeds => format!("{} pooled", seeds.len()),
            },
            found.n.to_string(),
            points(found.difference),
            format!(
                "{} – {}",
                points(found.interval.low),
                points(found.interval.high)
            ),
            found.won.len().to_string(),
            found.lost.len().to_string(),
            probability(found.p),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let notes = notes(rows).into_iter();
    Some(notes.fold(table.to_string(), |text, note| format!("{text}\n{note}")))
}

/// The table of `couples` below other results, which must not be lost for it: where the two of a couple
/// answered other questions, a sentence says so.
pub fn shown(couples: &[Couple<'_>]) -> Option<String> {
    match compare(couples, SEED) {
        Ok(rows) => table(&rows),
        Err(error) => Some(format!("no paired test: {error}")),
    }
}

/// What the columns of the table mean, and what its rows do not show.
fn notes(rows: &[Compared]) -> Vec<String> {
    let mut notes = vec![
        "Same questions. Won: only this method was right; lost: only the other. p: McNemar's exact test, \
         two-sided,"
            .to_owned(),
        format!(
            "not corrected for the number of rows. Interval of the difference in points: {DRAWS} bootstrap \
             draws of questions."
        ),
    ];
    let differ = |row: &Compared| row.comparison.won.len() + row.comparison.lost.len();
    if rows.iter().any(|row| (1..FEW).contains(&differ(row))) {
        notes.push(format!(
            "Where fewer than {FEW} questions differ, go by p: the interval is too narrow."
        ));
    }
    let mut splits: Vec<&str> = rows.iter().map(|row| row.split.as_str()).collect();
    splits.dedup();
    if splits.iter().any(|split| *split != VALIDATION) {
        notes.push(format!(
            "Measured on {}: choose nothing by a test set.",
            splits.join(", ")
        ));
    }
    if rows.iter().any(|row| row.seeds.len() > 1) {
        notes.push(
            "Pooled: questions drawn within each seed. How far training again moves a result, only the \
             seeds show."
                .to_owned(),
        );
    }
    for row in rows.iter().filter(|row| row.shared_questions > 0) {
        notes.push(format!(
            "{}: {} of {} pooled answers are to questions that several seeds were asked, and count one by \
             one; where\nmodels of different seeds fail at the same questions, p is too small and the \
             interval too narrow.",
            row.method, row.shared_questions, row.comparison.n
        ));
    }
    notes
}

fn probability(p: f64) -> String {
    if p >= 0.001 {
        format!("{p:.3}")
    } else {
        format!("{p:.1e}")
    }
}

/// What `eval/` holds of one method on one split, from the `.json` or the `.jsonl` of the pair.
///
/// # Errors
///
/// When one of the two is missing or not what `evaluate` and `train` write.
pub fn read_file(path: &Path) -> Result<Measured> {
    let shown = path.display();
    let name = path.to_string_lossy();
    let tables = [".grid.jsonl", ".refine.jsonl", ".halt.jsonl"];
    if tables.iter().any(|ending| name.ends_with(ending)) {
        return Err(Misuse(format!(
            "{shown} is a table of several evaluations, without the answers; name the evaluations to be \
             compared"
        ))
        .into());
    }
    let (about, answers) = (path.with_extension("json"), path.with_extension("jsonl"));
    for file in [&about, &answers] {
        if !file.is_file() {
            return Err(Misuse(format!(
                "there is no {}; an evaluation is a .json and a .jsonl of the same name, as `evaluate` \
                 writes them",
                file.display()
            ))
            .into());
        }
    }
    #[derive(Deserialize)]
    struct About {
        summary: SummaryRow,
    }
    let read = |file: &Path| {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
    };
    let summary = serde_json::from_str::<About>(&read(&about)?)
        .with_context(|| format!("{} is not an evaluation", about.display()))?
        .summary;
    let text = read(&answers)?;
    let parsed = text.lines().enumerate().map(|(index, line)| {
        serde_json::from_str::<QuestionRow>(line)
            .with_context(|| format!("{}:{} is not an answer", answers.display(), index + 1))
    });
    let found = parsed.collect::<Result<Vec<_>>>()?;
    if found.len() as u64 != summary.n {
        return Err(Misuse(format!(
            "{} has {} answers, {} tells of {}; evaluate again",
            answers.display(),
            found.len(),
            about.display(),
            summary.n
        ))
        .into());
    }
    Ok(Measured {
        reads: None,
        summary,
        answers: found,
        exits: None,
    })
}

/// What `train` measured of the stages of a run.
///
/// # Errors
///
/// When the run has not come to its end, or an evaluation is missing.
pub fn read_run(run: &RunPaths) -> Result<Vec<Measured>> {
    let summary = run.summary();
    if !summary.is_file() {
        return Err(Misuse(format!(
            "{} is neither an evaluation nor a finished run (it has no summary.json); name an \
             eval/….json, or let `train` finish",
            run.folder().display()
        ))
        .into());
    }
    let rows = Summary::read(&summary)?.rows;
    rows.iter()
        .map(|row| read_file(&run.evaluation(&format!("{}_{}", row.method, row.split))?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(method: &str, split: &str, seed: u64, right: &[bool]) -> Measured {
        let answers = right
            .iter()
            .enumerate()
            .map(|(index, &correct)| QuestionRow {
                id: format!("q{index}"),
                question: format!("{seed} {index}?"),
                generated: String::new(),
                predicted: None,
                answer: String::new(),
                correct,
                tokens: 1,
                latent_steps: 0,
                layer_calls: 0,
                slots: Vec::new(),
                flops: 0.0,
                reason_flops: 0.0,
                probe_layer_calls: 0,
                probe_flops: 0.0,
                drafted: 0,
                accepted: 0,
            });
        Measured {
            reads: None,
            summary: SummaryRow {
                method: method.to_owned(),
                dataset: "d".to_owned(),
                split: split.to_owned(),
                n: right.len() as u64,
                seed,
                ..SummaryRow::default()
            },
            answers: answers.collect(),
            exits: None,
        }
    }

    #[test]
    fn methods_stand_beside_the_reference_of_their_split() {
        let all = [
            measured("cot", "test", 1, &[true, true, false]),
            measured("fast", "test", 1, &[true, false, true]),
            measured("cot", "validation", 1, &[true]),
            measured("fast", "validation", 1, &[true]),
            measured("fast", "other", 1, &[true]),
        ];
        let couples = beside(&all, "cot");
        let rows = compare(&couples, SEED).unwrap();
        let splits: Vec<&str> = rows.iter().map(|row| row.split.as_str()).collect();
        assert_eq!(splits, ["test", "validation"]);
        assert_eq!(rows[0].comparison.won, ["q2"]);
        assert_eq!(rows[0].comparison.lost, ["q1"]);
        let text = table(&rows).unwrap();
        assert!(text.contains("Measured on test, validation"), "{text}");
        assert!(!text.contains("Pooled"), "{text}");
        assert!(beside(&all, "absent").is_empty());
        assert_eq!(table(&[]), None);
        assert!(!table(&rows[1..]).unwrap().contains("Measured on"));
    }

    #[test]
    fn seeds_are_pooled_after_their_own_rows() {
        let references = [
            measured("cot", "test", 1, &[true, true]),
            measured("cot", "test", 2, &[true, true]),
        ];
        let others = [
            measured("fast", "test", 1, &[false, true]),
            measured("fast", "test", 2, &[true, false]),
        ];
        let couple = |index: usize| Couple {
            reference: &references[index],
            other: &others[index],
        };
        let rows = compare(&[couple(0), couple(1)], SEED).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(
            (rows[2].seeds.as_slice(), rows[2].comparison.n),
            (&[1, 2][..], 4)
        );
        assert_eq!(rows[2].comparison.lost, ["1:q0", "2:q1"]);
        assert_eq!(rows[2].shared_questions, 0);
        assert!(table(&rows).unwrap().contains("2 pooled"));
        // The same run twice asks the same questions twice.
        let twice = compare(&[couple(0), couple(0)], SEED).unwrap();
        assert_eq!(twice[2].shared_questions, 4);
        assert!(table(&twice).unwrap().contains("4 of 4 pooled answers"));
    }

    #[test]
    fn other_questions_are_refused() {
        let one = measured("cot", "test", 1, &[true, true]);
        let other = measured("fast", "test", 2, &[true, true]);
        let couple = Couple {
            reference: &one,
            other: &other,
        };
        let error = compare(&[couple], SEED).unwrap_err();
        assert!(error.is::<Misuse>());
        let text = error.to_string();
        assert_eq!(shown(&[couple]), Some(format!("no paired test: {text}")));
        assert!(
            text.contains("fast beside cot, test: question q0 has another text"),
            "{text}"
        );
    }

    #[test]
    fn references_are_found_by_name_or_alone() {
        let a = [measured("cot", "test", 1, &[true])];
        let b = [measured("fast", "test", 1, &[true])];
        let found = couples(&a, &b, None);
        assert_eq!(found.len(), 1);
        let many = [a[0].clone(), b[0].clone()];
        let found = couples(&many, &b, None);
        assert_eq!(found[0].reference.summary.method, "fast");
        assert!(couples(&many, &[measured("new", "test", 1, &[true])], None).is_empty());
        let named = couples(&many, &b, Some("cot"));
        assert_eq!(named[0].reference.summary.method, "cot");
    }
}
