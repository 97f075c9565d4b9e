//! Importances kept in a file while they are made, for a run that is broken off to go on from.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sesqui_dataset::encode::EncodedProblem;
use sesqui_distill::importance::{Scorer, Walk};
use sesqui_run::atomic_write;

use crate::misuse::Misuse;

/// One problem to be scored.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its split.
    pub split: &'a str,
    /// Its tokens.
    pub problem: &'a EncodedProblem,
    /// Whether the model has positions for it.
    pub fits: bool,
}

/// What was found of one problem, as a line of the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    /// The split.
    pub split: String,
    /// The problem's id.
    pub id: String,
    /// Importance of each step; `null` for a problem that does not fit.
    pub nats: Option<Vec<f64>>,
    /// Whether each step was removed.
    pub removed: Vec<bool>,
}

/// Scores `items` in batches of `batch_size`, each appended to the file `cache` as soon as it is done; what
/// is there already is read. `progress` hears how many problems are done.
///
/// A batch is scored whole or not at all, so that a run that was broken off ends in the same bytes as one
/// that was not.
///
/// # Errors
///
/// When a question does not fit the layout, a likelihood is not finite, or the cache holds other problems.
pub fn score(
    scorer: &Scorer<'_>,
    items: &[Item<'_>],
    walk: Walk,
    batch_size: usize,
    cache: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Scored>> {
    let mut done = read_cache(cache, items, batch_size)?;
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(cache)
        .with_context(|| format!("cannot open {}", cache.display()))?;
    progress(done.len());
    let start = done.len();
    for batch in items[start..].chunks(batch_size) {
        let problems: Vec<EncodedProblem> = batch
            .iter()
            .filter(|item| item.fits)
            .map(|item| item.problem.clone())
            .collect();
        let mut found = scorer.importances(&problems, walk)?.into_iter();
        let mut lines = Vec::new();
        for item in batch {
            let importance = if item.fits { found.next() } else { None };
            if let Some(found) = &importance
                && !found.nats.iter().all(|nats| nats.is_finite())
            {
                let id = &item.problem.id;
                bail!("the likelihood of {id} is not finite; is the model diverged?");
            }
            let (nats, removed) = match importance {
                Some(found) => (Some(found.nats), found.removed),
                None => (None, Vec::new()),
            };
            let row = Scored {
                split: item.split.to_owned(),
                id: item.problem.id.clone(),
                nats,
                removed,
            };
            serde_json::to_writer(&mut lines, &row)?;
            lines.push(b'\n');
            done.push(row);
        }
        file.write_all(&lines)
            .with_context(|| format!("cannot append to {}", cache.display()))?;
        progress(done.len());
    }
    file.sync_all()
        .with_context(|| format!("cannot flush {}", cache.display()))?;
    Ok(done)
}

/// The finished batches in the cache; what follows them is cut off.
fn read_cache(cache: &Path, items: &[Item<'_>], batch_size: usize) -> Result<Vec<Scored>> {
    let bytes = match std::fs::read(cache) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes.with_context(|| format!("cannot read {}", cache.display()))?,
    };
    let end = bytes.iter().rposition(|&byte| byte == b'\n');
    let whole = &bytes[..end.map_or(0, |at| at + 1)];
    let damaged = |line: usize, reason: String| {
        let path = cache.display();
        Misuse(format!(
            "{path}:{line}: {reason}; delete the file to begin anew"
        ))
    };
    let mut rows = Vec::new();
    let mut ends = vec![0];
    for (index, line) in whole.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let row: Scored =
            serde_json::from_slice(line).map_err(|error| damaged(index + 1, error.to_string()))?;
        let expected = items.get(index).map(|item| (item.split, &item.problem.id));
        if expected != Some((row.split.as_str(), &row.id)) {
            return Err(damaged(index + 1, format!("{} is not the problem here", row.id)).into());
        }
        rows.push(row);
        ends.push(ends[index] + line.len());
    }
    let kept = match rows.len() {
        all if all == items.len() => all,
        some => some / batch_size * batch_size,
    };
    rows.truncate(kept);
    if ends[kept] < bytes.len() {
        atomic_write(cache, &bytes[..ends[kept]])?;
    }
    Ok(rows)
}
