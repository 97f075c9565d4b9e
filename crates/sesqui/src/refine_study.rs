//! Several ways of refining latents side by side, beside plain ones: rows on disk, and pictures of the
//! grids among them.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use sesqui_eval::Comparison;
use sesqui_reason::RefineConfig;
use sesqui_reason::refine::{Contrastive, Residual};
use sesqui_run::{SummaryRow, atomic_write};

use crate::compare::{SEED, compare, couples};
use crate::heat_map::{HeatMap, Tile};
use crate::measure::Measured;
use crate::refinement::{ReferencesConfig, Variant};
use crate::workbench::VALIDATION;

/// One way of refining, measured.
#[derive(Clone, Debug, Serialize)]
pub struct RefineRow {
    /// What is done; all off for plain latents.
    pub refine: RefineConfig,
    /// With which models.
    pub references: Option<ReferencesConfig>,
    /// What was measured.
    pub summary: SummaryRow,
    /// Beside plain latents on the same questions; none for those.
    pub comparison: Option<Comparison>,
}

/// The rows of plain latents, first in `measured`, and of each of `variants` after them.
///
/// # Errors
///
/// When they did not answer the same questions.
pub fn rows(variants: &[Variant], measured: &[Measured]) -> Result<Vec<RefineRow>> {
    let Some((plain, refined)) = measured.split_first() else {
        return Ok(Vec::new());
    };
    let mut rows = vec![RefineRow {
        refine: RefineConfig::default(),
        references: None,
        summary: plain.summary.clone(),
        comparison: None,
    }];
    for (variant, found) in variants.iter().zip(refined) {
        let (plain, other) = (std::slice::from_ref(plain), std::slice::from_ref(found));
        // One beside the other, whatever they are called.
        let beside = compare(&couples(plain, other, None), SEED)?;
        rows.push(RefineRow {
            refine: variant.refine.clone(),
            references: Some(variant.references.clone()),
            summary: found.summary.clone(),
            comparison: beside.into_iter().next().map(|row| row.comparison),
        });
    }
    Ok(rows)
}

/// Writes the rows to `file`, one JSON row each, and each grid among them as a picture beside it, `.svg`,
/// from the second on `-2.svg` and so on. Returns what was written, pictures first.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write(rows: &[RefineRow], file: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for (index, map) in maps(rows).iter().enumerate() {
        let ending = match index {
            0 => "svg".to_owned(),
            index => format!("{}.svg", index + 1),
        };
        let picture = file.with_extension(ending);
        atomic_write(&picture, map.svg()?.as_bytes())?;
        written.push(picture);
    }
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, row)?;
        lines.write_all(b"\n")?;
    }
    atomic_write(file, &lines)?;
    written.push(file.to_owned());
    Ok(written)
}

/// The memory rate and the step size of a refinement, and the refinement without them.
fn numbers(refine: &RefineConfig) -> ([f64; 2], RefineConfig) {
    let mut rest = refine.clone();
    let mut found = [0.0; 2];
    if let Residual::Blend { alpha, .. } = &mut rest.residual {
        found[0] = std::mem::take(alpha);
    }
    if let Contrastive::Search(search) = &mut rest.contrastive {
        found[1] = std::mem::take(&mut search.size);
    }
    (found, rest)
}

/// Rows that differ in memory rate and step size alone and have every pair of several of them.
fn maps(rows: &[RefineRow]) -> Vec<HeatMap> {
    type Family<'a> = (
        RefineConfig,
        &'a ReferencesConfig,
        Vec<([f64; 2], &'a RefineRow)>,
    );
    let mut families: Vec<Family<'_>> = Vec::new();
    for row in rows {
        let Some(references) = &row.references else {
            continue;
        };
        let (at, rest) = numbers(&row.refine);
        let same = |family: &&mut Family<'_>| family.0 == rest && family.1 == references;
        match families.iter_mut().find(same) {
            Some(family) => family.2.push((at, row)),
            None => families.push((rest, references, vec![(at, row)])),
        }
    }
    let families = families.iter();
    families.filter_map(|(_, _, cells)| map(cells)).collect()
}

fn map(cells: &[([f64; 2], &RefineRow)]) -> Option<HeatMap> {
    let axis = |which: usize| {
        let mut values: Vec<f64> = cells.iter().map(|(at, _)| at[which]).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    };
    let (alphas, sizes) = (axis(0), axis(1));
    let whole = cells.len() == alphas.len() * sizes.len();
    if cells.len() < 2 || !whole {
        return None;
    }
    let mut lines = Vec::with_capacity(alphas.len());
    for alpha in alphas {
        let mut tiles = Vec::with_capacity(sizes.len());
        for size in &sizes {
            let (_, row) = cells.iter().find(|(at, _)| *at == [alpha, *size])?;
            tiles.push(tile(row));
        }
        lines.push((alpha.to_string(), tiles));
    }
    let summary = &cells[0].1.summary;
    let (dataset, split, n) = (&summary.dataset, &summary.split, summary.n);
    let rule = if split == VALIDATION {
        "validation: numbers may be chosen by this"
    } else {
        "a test set: choose no number by this, --split validation is for that"
    };
    let across = sizes.iter().map(|size| format!("step size: {size}"));
    Some(HeatMap {
        heading: format!(
            "{} on {dataset} {split}, {n} questions\n({rule})",
            family(&cells[0].1.summary.method)
        ),
        down: "memory rate".to_owned(),
        across: across.collect(),
        rows: lines,
        note: "questions won and lost beside plain latents, p of McNemar's exact test".to_owned(),
    })
}

fn tile(row: &RefineRow) -> Tile {
    let note = row.comparison.as_ref().map(|found| {
        let (won, lost) = (found.won.len(), found.lost.len());
        format!("+{won} −{lost}, p {:.2}", found.p)
    });
    Tile {
        accuracy: row.summary.accuracy,
        note: note.unwrap_or_default(),
    }
}

/// The name of a row without the numbers of its grid: the stage, and what refinement is called.
fn family(method: &str) -> String {
    let without = |part: &str| {
        let named = ["residual ", "contrastive "];
        let name = named.iter().find(|name| {
            let number = part.strip_prefix(**name).unwrap_or("x");
            number
                .split(' ')
                .next()
                .unwrap_or("x")
                .parse::<f64>()
                .is_ok()
        });
        match name {
            Some(name) => name.trim_end().to_owned(),
            None => part.to_owned(),
        }
    };
    method
        .split(", ")
        .map(without)
        .collect::<Vec<String>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use sesqui_eval::QuestionRow;

    use super::*;

    fn measured(method: &str, right: &[bool]) -> Measured {
        let answer = |(index, correct): (usize, &bool)| QuestionRow {
            id: index.to_string(),
            correct: *correct,
            ..QuestionRow::default()
        };
        Measured {
            reads: None,
            summary: SummaryRow {
                method: method.to_owned(),
                dataset: "data".to_owned(),
                split: "test".to_owned(),
                n: right.len() as u64,
                accuracy: right.iter().filter(|right| **right).count() as f64 / right.len() as f64,
                ..SummaryRow::default()
            },
            answers: right.iter().enumerate().map(answer).collect(),
            exits: None,
        }
    }

    /// A plain row, a grid of two by two out of order, a third value of one of them alone, and another
    /// kind: one picture, of the grid.
    #[test]
    fn a_grid_is_drawn_and_the_rest_is_not() {
        let parse = |text: &str| Variant::parse(text, &ReferencesConfig::default()).unwrap();
        let mut variants = parse("residual=[0.5, 0], contrastive=[0.1, -0.2]");
        variants.extend(parse("contrastive={ size=0.1, direction=\"mean\" }"));
        let mut all = vec![measured("latent", &[true, true, false, false])];
        let answers = [
            [true, true, true, true],
            [true, false, false, false],
            [true, true, false, false],
            [false, true, true, false],
            [false, false, false, false],
        ];
        for (variant, right) in variants.iter().zip(&answers) {
            all.push(measured(&format!("latent, {}", variant.label()), right));
        }
        let rows = rows(&variants, &all).unwrap();
        assert_eq!(rows.len(), 6);
        assert!(rows[0].refine.is_off() && rows[0].comparison.is_none());
        let comparison = |index: usize| rows[index].comparison.as_ref().unwrap();
        assert_eq!(comparison(1).won, ["2", "3"]);
        assert_eq!(comparison(4).lost, ["0"]);
        assert_eq!(comparison(1).p, 0.5);

        let found = maps(&rows);
        assert_eq!(found.len(), 1);
        let map = &found[0];
        assert!(
            map.heading
                .starts_with("latent, residual, contrastive on data test, 4 questions")
        );
        assert_eq!(map.across, ["step size: -0.2", "step size: 0.1"]);
        let accuracies: Vec<(&str, Vec<f64>)> = map
            .rows
            .iter()
            .map(|(label, tiles)| {
                let accuracies = tiles.iter().map(|tile| tile.accuracy).collect();
                (label.as_str(), accuracies)
            })
            .collect();
        assert_eq!(
            accuracies,
            [("0", vec![0.5, 0.5]), ("0.5", vec![0.25, 1.0])]
        );
        assert_eq!(map.rows[1].1[1].note, "+2 −0, p 0.50");

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("latent_test.refine.jsonl");
        let written = write(&rows, &file).unwrap();
        assert_eq!(written, [file.with_extension("svg"), file.clone()]);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 6);
    }
}
