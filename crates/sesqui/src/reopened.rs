//! Which checkpoints to evaluate, on which data, and where the rows go.

use std::path::{Path, PathBuf};

use anyhow::Result;
use jiff::{Timestamp, tz::TimeZone};
use sesqui_run::{ConfigSource, RunPaths};

use crate::experiment::{Experiment, Stage};
use crate::misuse::Misuse;
use crate::opened::Opened;

/// What `--set` may change when a trained model is used, and another file: the data and how it is measured.
const DATA_KEYS: [&str; 4] = ["data", "evaluation", "seed", "bad_rows"];

/// What `--set` alone may change: how the model is asked. Another file does not know what it was trained for.
const MODEL_KEYS: [&str; 2] = ["reasoning", "precision"];

/// The checkpoint that `path` and `stage` name, or without a stage those of all stages of a run.
///
/// # Errors
///
/// When there is none, naming what there is.
pub fn checkpoints(path: &Path, stage: Option<&str>) -> Result<Vec<Opened>> {
    if !is_whole_run(path, stage) {
        return Ok(vec![open(path, stage)?]);
    }
    let run = RunPaths::new(path);
    let experiment = sesqui_run::load::<Experiment>(ConfigSource::File(run.config()), &[])?.value;
    let mut opened = Vec::new();
    for stage in &experiment.stages {
        if !run.checkpoint_steps(&stage.name)?.is_empty() {
            opened.push(Opened::find(path, Some(&stage.name))?);
        }
    }
    if opened.is_empty() {
        return Err(Misuse(format!("{} has no checkpoint yet", path.display())).into());
    }
    Ok(opened)
}

/// Whether `path` and `stage` name all stages of a run rather than one checkpoint.
pub fn is_whole_run(path: &Path, stage: Option<&str>) -> bool {
    let checkpoint = path.join("state.json").is_file();
    stage.is_none() && !checkpoint && RunPaths::new(path).config().is_file()
}

/// Refuses `flag`, which is about latent reasoning, for a checkpoint that takes no latent steps.
///
/// # Errors
///
/// Names the stage, and those of its run that do take some.
pub fn takes_latent_steps(opened: &Opened, flag: &str) -> Result<()> {
    let latent = |stage: &&Stage| stage.objective.has_latents();
    let stage = opened.stage()?;
    if latent(&stage) {
        return Ok(());
    }
    let others = opened.experiment.stages.iter().filter(latent);
    let others: Vec<&str> = others.map(|stage| stage.name.as_str()).collect();
    let remedy = match others.as_slice() {
        [] => String::new(),
        names => format!(", or take stage {}", names.join(" or ")),
    };
    Err(Misuse(format!(
        "{flag}: stage {} has objective {}, its model takes no latent steps; leave the flag out{remedy}",
        stage.name,
        stage.objective.kind(),
    ))
    .into())
}

/// As [`Opened::find`], but refuses a stage that a checkpoint folder does not belong to.
///
/// # Errors
///
/// When there is nothing to open, or another stage than asked for.
pub fn open(path: &Path, stage: Option<&str>) -> Result<Opened> {
    let opened = Opened::find(path, stage)?;
    match stage {
        Some(stage) if stage != opened.state.stage => Err(Misuse(format!(
            "--stage {stage}: {} is a checkpoint of stage {}",
            path.display(),
            opened.state.stage
        ))
        .into()),
        _ => Ok(opened),
    }
}

/// The experiment to evaluate `opened` under: its own, with the data, the evaluation, the seed and
/// `bad_rows` of `config`, and what `set` says.
///
/// # Errors
///
/// When a setting is unknown or would change the trained model.
pub fn experiment(opened: &Opened, config: Option<&Path>, set: &[String]) -> Result<Experiment> {
    let (mut of_data, mut of_model) = (Vec::new(), Vec::new());
    for argument in set {
        let key = argument.split(['=', '.']).next().unwrap_or_default().trim();
        let overrides = match key {
            _ if DATA_KEYS.contains(&key) => &mut of_data,
            _ if MODEL_KEYS.contains(&key) => &mut of_model,
            _ => {
                return Err(Misuse(format!(
                    "--set {argument}: the model is trained already; only {} can be set here",
                    [&DATA_KEYS[..], &MODEL_KEYS[..]].concat().join(", ")
                ))
                .into());
            }
        };
        // Another data set has other settings: those of the run's own must go.
        overrides.push(match argument.split_once('=') {
            Some((key, kind)) if key.trim() == "data.kind" => {
                format!("data={{ kind = \"{}\" }}", kind.trim().trim_matches('"'))
            }
            _ => argument.clone(),
        });
    }
    let own = opened.folder.join("config.toml");
    let load = |file: &Path, overrides: &[String]| {
        sesqui_run::load::<Experiment>(ConfigSource::File(file.to_owned()), overrides)
    };
    let asked = load(config.unwrap_or(&own), &of_data)?.value;
    let model = load(&own, &of_model)?.value;
    Ok(Experiment {
        seed: asked.seed,
        bad_rows: asked.bad_rows,
        data: asked.data,
        evaluation: asked.evaluation,
        reasoning: model.reasoning,
        precision: model.precision,
        ..opened.experiment.clone()
    })
}

/// Where evaluations of `opened` go by default: the `eval` folder of its run, if it lies in one.
pub fn evaluations_folder(opened: &Opened) -> Option<PathBuf> {
    opened.run().map(|run| run.evaluations())
}

/// A file name for an evaluation started at `started` that no other evaluation in `folder` has, nor one of
/// `promised`, which are still to be written.
///
/// # Errors
///
/// When stage or split cannot be part of a file name.
pub fn evaluation_file(
    folder: &Path,
    stage: &str,
    split: &str,
    started: Timestamp,
    promised: &[PathBuf],
) -> Result<PathBuf> {
    let time = started
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%d-%H%M%S")
        .to_string();
    // Only to have the name checked.
    RunPaths::new(folder).evaluation(&format!("{stage}_{split}_{time}"))?;
    let mut number = 1;
    loop {
        let suffix = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        let path = folder.join(format!("{stage}_{split}_{time}{suffix}.json"));
        let taken = ["json", "grid.jsonl", "halt.jsonl", "refine.jsonl"]
            .map(|extension| path.with_extension(extension));
        if !taken
            .iter()
            .any(|path| promised.contains(path) || path.exists())
        {
            return Ok(path);
        }
        number += 1;
    }
}
