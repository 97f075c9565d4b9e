//! Who ran what, on what: for the run directory and for the first line on the screen.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use sesqui_run::{Invocation, Program, RunPaths};

use crate::backend::Place;
use crate::experiment::Experiment;
use crate::workbench::Workbench;

/// The version of Burn this program is pinned to.
const BURN: &str = "0.22.1";

/// Adds this start to the run's `invocation.json`.
///
/// # Errors
///
/// When the file is damaged or cannot be written.
pub fn record(
    paths: &RunPaths,
    started: Timestamp,
    experiment: &Experiment,
    workbench: &Workbench,
    place: &Place,
) -> Result<()> {
    let data = workbench
        .corpus
        .sources
        .iter()
        .map(|(path, hash)| (path.display().to_string(), hash.clone()))
        .chain([("tokenizer".to_owned(), workbench.tokenizer.hash()?)])
        .chain(
            workbench
                .labels
                .iter()
                .map(|hash| ("labels".to_owned(), hash.clone())),
        )
        .collect();
    let program = Program {
        argv: std::env::args().collect(),
        started,
        burn_version: BURN.to_owned(),
        backend: place.name().to_owned(),
        device: place.description().to_owned(),
        data,
        seeds: BTreeMap::from([("experiment".to_owned(), experiment.seed)]),
    };
    Invocation::observe(program, Path::new(".")).record(&paths.invocation())?;
    Ok(())
}

/// What is about to happen, in a few lines.
pub fn opening(
    paths: &RunPaths,
    experiment: &Experiment,
    workbench: &Workbench,
    place: &Place,
) -> String {
    let corpus = &workbench.corpus;
    let tests: Vec<String> = corpus
        .tests
        .iter()
        .map(|test| format!("{} {}", test.problems.len(), test.name))
        .collect();
    let skipped = match corpus.skipped.len() {
        0 => String::new(),
        n => format!("\nskipped    {n} rows, the first: {}", corpus.skipped[0]),
    };
    format!(
        "run        {}\nbackend    {}\ndata       {}: {} train, {} validation, {}{skipped}\n\
         tokenizer  {} ids\nmodel      {} layers, d_model {}, {} heads, {} positions",
        paths.folder().display(),
        place.description(),
        corpus.name,
        corpus.train.len(),
        corpus.validation.len(),
        tests.join(", "),
        workbench.tokenizer.vocab_size(),
        experiment.model.layers,
        experiment.model.d_model,
        experiment.model.heads,
        experiment.model.context,
    )
}

/// The command line that goes on with a run or a study: the same arguments, at its `folder`.
pub fn resume_command(folder: &Path) -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if !words
        .iter()
        .any(|word| word == "--run" || word.starts_with("--run="))
    {
        words.push("--run".to_owned());
        words.push(folder.display().to_string());
    }
    line(&words)
}

/// This process's command line, without `flags` and their values, as a reader would repeat it: `program` built and
/// run from the source tree.
pub fn command(program: &str, flags: &[&str]) -> String {
    let words = ["cargo", "run", "--release", "--bin", program, "--"].map(str::to_owned);
    let own = words_without(flags).into_iter().skip(1);
    line(&words.into_iter().chain(own).collect::<Vec<_>>())
}

/// This process's command line without `flags` and their values.
pub fn words_without(flags: &[&str]) -> Vec<String> {
    without(std::env::args().collect(), flags)
}

fn without(words: Vec<String>, flags: &[&str]) -> Vec<String> {
    let mut kept = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if flags.contains(&word.as_str()) {
            words.next();
        } else if !flags
            .iter()
            .any(|flag| word.starts_with(&format!("{flag}=")))
        {
            kept.push(word);
        }
    }
    kept
}

/// Words as a shell takes them.
pub fn line(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    quoted.join(" ")
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_with_their_values() {
        let words = "train --emit jobs --study s.toml --only=a --run r --only b";
        let words = words.split(' ').map(str::to_owned).collect();
        let kept = without(words, &["--emit", "--only"]);
        assert_eq!(line(&kept), "train --study s.toml --run r");
    }
}
