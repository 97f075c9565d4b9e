//! Criticality labels by likelihood: scored with a checkpoint, kept in a cache that a broken-off run goes
//! on from, compared with other labels.

pub mod cache;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sesqui_dataset::batch::{TooLong, fit_context};
use sesqui_dataset::encode::{EncodedProblem, Supervision, encode_all};
use sesqui_dataset::manifest::sha256_of;
use sesqui_dataset::{Corpus, Problem};
use sesqui_distill::importance::{Scorer, Walk};
use sesqui_eval::statistics::Distribution;
use sesqui_run::{RunPaths, Schema};
use sha2::{Digest, Sha256};

use crate::backend::Place;
use crate::experiment::{Experiment, Objective};
use crate::label_file::{Header, LabelRow, TRAIN, data_hash, most_removed, write};
use crate::labels::{Agreement, agreements, symbolic, truth};
use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::stage::{TOKENIZER_HASH, checkpoint_name};
use crate::start::computes;
use crate::workbench::VALIDATION;
use crate::{reopened, screen};
use cache::{Item, Scored, score};

/// What `prepare labels --checkpoint` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Run directory or checkpoint folder.
    pub checkpoint: &'a Path,
    /// Stage of the run; without one the first that reasons in words.
    pub stage: Option<&'a str>,
    /// Experiment file to take the data from; without one the run's own.
    pub config: Option<&'a Path>,
    /// Overrides of data settings.
    pub set: &'a [String],
    /// Folder of published data.
    pub root: &'a Path,
    /// Where to compute.
    pub place: &'a Place,
    /// The split to label; without one training and validation.
    pub split: Option<&'a str>,
    /// Label file to write; the cache lies beside it.
    pub out: &'a Path,
    /// Nats above which a step is critical.
    pub tau: f64,
    /// Which steps are left out together.
    pub walk: Walk,
    /// Problems scored together.
    pub batch_size: usize,
}

/// What decides the numbers in a cache, down to the last bit.
#[derive(Serialize)]
struct CacheKey {
    weights: String,
    tokenizer: String,
    layout: String,
    format: String,
    data: BTreeMap<String, String>,
    most_removed: Option<f64>,
    batch_size: usize,
    backend: &'static str,
}

/// Scores, writes the label file, and says what came out.
///
/// # Errors
///
/// When a setting cannot work, the checkpoint does not reason in words, or data does not fit it.
pub fn labels(request: &Request<'_>) -> Result<String> {
    check(request)?;
    let opened = open(request)?;
    let experiment = reopened::experiment(&opened, request.config, request.set)?;
    let waiting = screen::spinner("reading data");
    let root = Some(request.root);
    let corpus = experiment
        .data
        .load(root, experiment.seed, experiment.bad_rows)?;
    let splits = splits(&corpus, request.split)?;
    let mut encoded = Vec::with_capacity(splits.len());
    for (_, problems) in &splits {
        encoded.push(encode_all(&opened.tokenizer, &experiment.format, problems)?);
    }
    waiting.finish_and_clear();

    let device = request.place.home();
    computes(std::slice::from_ref(device), opened.experiment.precision)?;
    let model = opened.load(device)?;
    let scorer = Scorer {
        backbone: model.backbone(),
        layout: opened.layout,
        pad: opened.tokenizer.pad_id(),
    };
    let context = model.backbone().config().context;
    let mut items = Vec::new();
    for ((split, _), problems) in splits.iter().zip(&encoded) {
        items.extend(fitting(split, problems, &scorer, context)?);
    }
    let data: BTreeMap<String, String> = splits
        .iter()
        .map(|(split, problems)| ((*split).to_owned(), data_hash(problems)))
        .collect();
    let weights = sha256_of(&opened.folder.join("model.bpk"))?;
    let cache = cache(request, &opened, &experiment, &data, &weights)?;
    let bar = screen::progress(items.len(), "importance of steps");
    let mut progress = |done: usize| bar.set_position(done as u64);
    let (walk, size) = (request.walk, request.batch_size);
    let scored = score(&scorer, &items, walk, size, &cache, &mut progress)?;
    bar.finish_and_clear();

    let rows: Vec<LabelRow> = scored
        .into_iter()
        .map(|row| label(row, request.tau))
        .collect();
    let header = Header {
        schema: Schema,
        data,
        checkpoint: checkpoint_name(&opened.state.stage, &opened.folder),
        weights,
        most_removed: most_removed(walk),
        tau: request.tau,
    };
    write(request.out, &header, &rows)?;
    let problems: Vec<&Problem> = splits.iter().flat_map(|(_, problems)| *problems).collect();
    let names: Vec<&str> = splits.iter().map(|(split, _)| *split).collect();
    let place = format!("{} {}", corpus.name, names.join(" and "));
    Ok(format!(
        "{}\nwritten: {}\ncache: {}; another --tau needs no scoring",
        describe(&place, request.tau, &problems, &rows),
        request.out.display(),
        cache.display()
    ))
}

fn check(request: &Request<'_>) -> Result<(), Misuse> {
    let fail = |text: String| Err(Misuse(text));
    if !request.tau.is_finite() {
        return fail(format!("--tau {}: not a number of nats", request.tau));
    }
    if request.batch_size == 0 {
        return fail("--batch-size: must be at least 1".to_owned());
    }
    match most_removed(request.walk) {
        Some(share) if !(0.0..=1.0).contains(&share) => fail(format!(
            "--most-removed {share}: not a share of the steps, in [0, 1]"
        )),
        _ if request.out.is_dir() => fail(format!(
            "--out {}: a folder; name a file",
            request.out.display()
        )),
        _ => Ok(()),
    }
}

/// The checkpoint, of a stage that reasons in words.
fn open(request: &Request<'_>) -> Result<Opened> {
    let run = RunPaths::new(request.checkpoint);
    let first = match request.stage {
        None if run.config().is_file() && !request.checkpoint.join("state.json").is_file() => {
            let config = sesqui_run::ConfigSource::File(run.config());
            let experiment = sesqui_run::load::<Experiment>(config, &[])?.value;
            experiment.reference().map(str::to_owned)
        }
        stage => stage.map(str::to_owned),
    };
    let opened = reopened::open(request.checkpoint, first.as_deref())?;
    let stage = &opened.state.stage;
    match opened.experiment.stage(stage).map(|found| &found.objective) {
        Some(Objective::Cot) => Ok(opened),
        found => Err(Misuse(format!(
            "{}: stage {stage} has objective {}; what a step is worth only a chain-of-thought model \
             says, objective cot",
            opened.folder.display(),
            found.map_or("none", Objective::kind)
        ))
        .into()),
    }
}

/// The splits to label, with their problems.
fn splits<'a>(
    corpus: &'a Corpus,
    asked: Option<&'a str>,
) -> Result<Vec<(&'a str, &'a [Problem])>, Misuse> {
    let all = [(TRAIN, &corpus.train), (VALIDATION, &corpus.validation)];
    let tests = corpus
        .tests
        .iter()
        .map(|test| (&*test.name, &test.problems));
    let Some(asked) = asked else {
        let some = all.into_iter().filter(|(_, problems)| !problems.is_empty());
        return Ok(some.map(|(name, problems)| (name, &problems[..])).collect());
    };
    let everything: Vec<(&str, &Vec<Problem>)> = all.into_iter().chain(tests).collect();
    match everything.iter().find(|(name, _)| *name == asked) {
        Some((name, problems)) if !problems.is_empty() => Ok(vec![(name, &problems[..])]),
        Some(_) => Err(Misuse(format!(
            "--split {asked}: {} has no problems there",
            corpus.name
        ))),
        None => {
            let names: Vec<&str> = everything.iter().map(|(name, _)| *name).collect();
            Err(Misuse(format!(
                "--split {asked}: {} has {}",
                corpus.name,
                names.join(", ")
            )))
        }
    }
}

fn fitting<'a>(
    split: &'a str,
    problems: &'a [EncodedProblem],
    scorer: &Scorer<'_>,
    context: usize,
) -> Result<Vec<Item<'a>>> {
    let (whole, layout) = (Supervision::ChainOfThought, scorer.layout);
    let fitted = fit_context(problems.to_vec(), whole, layout, context, TooLong::Skip)?;
    let long: BTreeSet<&str> = fitted.skipped.iter().map(|row| row.id.as_str()).collect();
    let item = |problem: &'a EncodedProblem| Item {
        split,
        fits: !long.contains(problem.id.as_str()),
        problem,
    };
    Ok(problems.iter().map(item).collect())
}

/// The cache of this model, this data and these settings, beside the label file.
fn cache(
    request: &Request<'_>,
    opened: &Opened,
    experiment: &Experiment,
    data: &BTreeMap<String, String>,
    weights: &str,
) -> Result<PathBuf> {
    let tokenizer = opened.folder.join(TOKENIZER_HASH);
    let key = CacheKey {
        weights: weights.to_owned(),
        tokenizer: std::fs::read_to_string(&tokenizer)
            .with_context(|| format!("cannot read {}", tokenizer.display()))?,
        layout: serde_json::to_string(&opened.layout)?,
        format: serde_json::to_string(&experiment.format)?,
        data: data.clone(),
        most_removed: most_removed(request.walk),
        batch_size: request.batch_size,
        backend: request.place.name(),
    };
    let digest = Sha256::digest(serde_json::to_vec(&key)?);
    let name: String = digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(request
        .out
        .with_file_name(format!("importance-{name}.jsonl")))
}

fn label(row: Scored, tau: f64) -> LabelRow {
    let critical = |(nats, removed): (&f64, &bool)| *nats > tau && !removed;
    let critical = match &row.nats {
        Some(nats) => nats.iter().zip(&row.removed).map(critical).collect(),
        None => Vec::new(),
    };
    LabelRow {
        split: row.split,
        id: row.id,
        nats: row.nats,
        critical,
        removed: row.removed,
    }
}

/// Counts, how large importances are, and how far they agree with other labels.
fn describe(place: &str, tau: f64, problems: &[&Problem], rows: &[LabelRow]) -> String {
    let count = |of: fn(&LabelRow) -> &Vec<bool>| -> usize {
        let flags = rows.iter().flat_map(of);
        flags.filter(|flag| **flag).count()
    };
    let nats: Vec<f64> = rows
        .iter()
        .flat_map(|row| &row.nats)
        .flatten()
        .copied()
        .collect();
    let long = rows.iter().filter(|row| row.nats.is_none()).count();
    let mut text = format!(
        "{place}: {} problems, {} steps; {} critical (importance above {tau} nats), {} redundant",
        rows.len(),
        nats.len(),
        count(|row| &row.critical),
        count(|row| &row.removed),
    );
    if long > 0 {
        text.push_str(&format!(
            "\n{long} problems too long for the model, not labelled"
        ));
    }
    if let Some(found) = Distribution::of(&nats) {
        text.push_str(&format!(
            "\nimportance in nats: 5 % {:.3}, median {:.3}, 95 % {:.3}, mean {:.3}",
            found.p05, found.median, found.p95, found.mean
        ));
    }
    let mut beside = BTreeMap::from([("ground truth", Agreement::default())]);
    beside.insert("symbolic", Agreement::default());
    for (problem, row) in problems.iter().zip(rows) {
        for (name, labels) in [
            ("ground truth", truth(problem)),
            ("symbolic", symbolic(problem)),
        ] {
            let found = beside.entry(name).or_default();
            for (own, other) in row.critical.iter().zip(labels) {
                other.into_iter().for_each(|other| found.add(*own, other));
            }
        }
    }
    let table: Vec<_> = beside
        .into_iter()
        .filter(|(_, found)| found.steps() > 0)
        .map(|(name, found)| ("likelihood", name, found))
        .collect();
    match table.as_slice() {
        [] => text.push_str("\nno step has another label to compare with"),
        table => text.push_str(&format!("\n{}", agreements(table))),
    }
    text
}
