//! What has to fit before a stage may start from a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sesqui_model::huggingface;
use sesqui_trainer::Checkpoints;

use super::shares_teacher;
use crate::experiment::{Experiment, Initialize, Stage};
use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::workbench::Workbench;

/// The layers of a model whose shape is not that of `[model]`: of the checkpoint or the Hugging Face
/// folder that `stage` goes back to, if it does.
pub(super) fn layers_from_elsewhere(
    experiment: &Experiment,
    stage: &Stage,
) -> Result<Option<usize>> {
    match &stage.initialize {
        Initialize::Scratch => Ok(None),
        Initialize::Stage { stage: from } => match experiment.stage(from) {
            Some(source) => layers_from_elsewhere(experiment, source),
            None => Ok(None),
        },
        Initialize::Checkpoint { path } => {
            let opened = Opened::checkpoint(path)?;
            let layers = layers_from_elsewhere(&opened.experiment, opened.stage()?)?;
            Ok(Some(layers.unwrap_or(opened.experiment.model.layers)))
        }
        Initialize::HuggingFace { path } => {
            let shape = huggingface::shape(path)
                .with_context(|| format!("stages.{}.initialize.path", stage.name))?;
            Ok(Some(shape.layers))
        }
    }
}

/// The file of a Hugging Face folder that is not there, if one is not.
pub(super) fn missing_file(folder: &Path) -> Option<PathBuf> {
    ["config.json", "model.safetensors"]
        .map(|file| folder.join(file))
        .into_iter()
        .find(|file| !file.is_file())
}

/// Whether a Hugging Face model has an embedding for each of the tokenizer's `ids`.
pub(super) fn check_vocabulary(
    stage: &Stage,
    path: &Path,
    embeddings: usize,
    ids: usize,
) -> Result<()> {
    if embeddings >= ids {
        return Ok(());
    }
    Err(Misuse(format!(
        "stages.{}.initialize.path: {} has {embeddings} token embeddings, the tokenizer makes {ids} \
         ids; use the tokenizer that belongs to the model",
        stage.name,
        path.display(),
    ))
    .into())
}

/// Whether the teacher of a stage 2 over the student `opened` is where [`Lineage::teacher`] will look.
pub(super) fn check_teacher(stage: &Stage, path: &Path, opened: &Opened) -> Result<()> {
    let student = opened.stage()?;
    if shares_teacher(student) {
        return Ok(());
    }
    let fail = |found: String| {
        Err(Misuse(format!(
            "stages.{}.initialize.path: {found}; give a checkpoint in a run that has its teacher",
            stage.name
        ))
        .into())
    };
    let Some(run) = opened.run() else {
        return fail(format!(
            "{} lies in no run directory, where the student's teacher would be",
            path.display()
        ));
    };
    match &student.initialize {
        Initialize::Scratch => Ok(()),
        Initialize::Stage { stage: from } => {
            let folder = run.checkpoints(from)?;
            let earlier = Checkpoints::new(folder.clone(), Default::default(), Vec::new());
            match earlier.latest()? {
                Some(state) if state.finished => Ok(()),
                _ => fail(format!(
                    "the teacher of {} is what stage {from} left, and {} has no checkpoint of a \
                     finished stage",
                    path.display(),
                    folder.display()
                )),
            }
        }
        Initialize::Checkpoint { path: teacher } => match teacher.join("state.json").is_file() {
            true => Ok(()),
            false => fail(format!(
                "the teacher of {} is {}, which is not a checkpoint folder",
                path.display(),
                teacher.display()
            )),
        },
        Initialize::HuggingFace { path: teacher } => match missing_file(teacher) {
            None => Ok(()),
            Some(missing) => fail(format!(
                "the teacher of {} is {}, and there is no {}",
                path.display(),
                teacher.display(),
                missing.display()
            )),
        },
    }
}

/// Whether a checkpoint learned the position ids that this run will give its problems.
pub(super) fn check_layout(
    stage: &Stage,
    path: &Path,
    opened: &Opened,
    workbench: &Workbench,
) -> Result<()> {
    if opened.layout == workbench.layout {
        return Ok(());
    }
    Err(Misuse(format!(
        "stages.{}.initialize.path: {} was trained with the position ids {}, this run has {}; take \
         `positions` and [data] from {}, or another checkpoint",
        stage.name,
        path.display(),
        serde_json::to_string(&opened.layout)?,
        serde_json::to_string(&workbench.layout)?,
        path.join("config.toml").display(),
    ))
    .into())
}
