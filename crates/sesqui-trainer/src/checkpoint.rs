//! Checkpoints: everything that training needs to go on exactly where it stopped.
//!
//! A checkpoint is a folder `step-00000500/` that appears whole or not at all:
//!
//! | file | holds |
//! |---|---|
//! | `model.bpk` | parameters by path, with their identities |
//! | `optimizer.bpk` | AdamW's moments and times by identity |
//! | `state.json` | stage, step, seed, batch number, early-stopping memory |
//! | others | what the caller attaches: config, tokenizer |
//!
//! The schedule is a function of the step and every random stream one of `(seed, step)`, so both are
//! in `state.json` already.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use serde::{Deserialize, Serialize};

use crate::config::CheckpointPolicy;

/// Version of the layout.
const SCHEMA: u32 = 1;

/// Where training stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of the layout.
    pub schema: u32,
    /// Name of the stage.
    pub stage: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Number of the next batch: the data position.
    pub next_batch: u64,
    /// Seed of all random streams of the stage.
    pub seed: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Best validation accuracy so far.
    pub best_accuracy: Option<f64>,
    /// Step of the best validation accuracy.
    pub best_step: u64,
    /// Validations since then.
    pub stalled: u64,
    /// Whether the stage is done, by its last step or by early stopping.
    pub finished: bool,
}

impl State {
    /// Before the first step.
    pub fn start(stage: &str, seed: u64) -> Self {
        Self {
            schema: SCHEMA,
            stage: stage.to_owned(),
            step: 0,
            next_batch: 0,
            seed,
            tokens: 0,
            best_accuracy: None,
            best_step: 0,
            stalled: 0,
            finished: false,
        }
    }
}

/// A file that goes into every checkpoint beside the weights.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// File name.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder could not be accessed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The content does not fit.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> CheckpointError + use<'a> {
    move |source| CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn content(path: &Path, reason: impl ToString) -> CheckpointError {
    CheckpointError::Content {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// The checkpoints of one stage.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    policy: CheckpointPolicy,
    attachments: Vec<Attachment>,
}

impl Checkpoints {
    /// Checkpoints in `folder`, which is made when the first is written.
    pub fn new(folder: PathBuf, policy: CheckpointPolicy, attachments: Vec<Attachment>) -> Self {
        Self {
            folder,
            policy,
            attachments,
        }
    }

    /// Whether the policy wants one after `step`.
    pub fn due(&self, step: u64) -> bool {
        self.policy.keep_at.contains(&step)
            || (self.policy.every > 0 && step.is_multiple_of(self.policy.every))
    }

    /// The folder of the checkpoint after `step`.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps that have a checkpoint, ascending.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io("list", &self.folder)(error)),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io("list", &self.folder))?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix("step-"));
            steps.extend(step.and_then(|digits| digits.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint, then deletes those that the policy no longer keeps.
    ///
    /// # Errors
    ///
    /// When a file cannot be written; the earlier checkpoints are then untouched.
    pub fn save<M: Module>(
        &self,
        model: &M,
        optimizer: &ModuleOptimizer,
        state: &State,
    ) -> Result<PathBuf, CheckpointError> {
        std::fs::create_dir_all(&self.folder).map_err(io("create", &self.folder))?;
        let draft = tempfile::Builder::new()
            .prefix(".draft-")
            .tempdir_in(&self.folder)
            .map_err(io("create a folder in", &self.folder))?;
        let inside = |name: &str| draft.path().join(name);
        let path = inside("model.bpk");
        model
            .clone()
            .into_record()
            .save(&path)
            .map_err(|error| content(&path, error))?;
        let path = inside("optimizer.bpk");
        save_optimizer(optimizer, &path)?;
        let path = inside("state.json");
        let mut json = serde_json::to_vec_pretty(state).map_err(|error| content(&path, error))?;
        json.push(b'\n');
        let own = [Attachment {
            name: "state.json".to_owned(),
            bytes: json,
        }];
        for file in own.iter().chain(&self.attachments) {
            let path = inside(&file.name);
            std::fs::write(&path, &file.bytes).map_err(io("write", &path))?;
        }
        sync_folder(draft.path())?;
        let place = self.path(state.step);
        if place.exists() {
            std::fs::remove_dir_all(&place).map_err(io("replace", &place))?;
        }
        let draft = draft.keep();
        std::fs::rename(&draft, &place).map_err(io("rename a draft to", &place))?;
        sync(&self.folder)?;
        self.prune(state.step)?;
        Ok(place)
    }

    fn prune(&self, latest: u64) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let passing: Vec<u64> = steps
            .into_iter()
            .filter(|step| *step <= latest && !self.policy.keep_at.contains(step))
            .collect();
        let surplus = passing.len().saturating_sub(self.policy.keep_last);
        for step in &passing[..surplus] {
            let path = self.path(*step);
            // Out of sight first: a crash while deleting must not leave half a checkpoint.
            let grave = self.folder.join(format!(".deleted-{step:08}"));
            std::fs::rename(&path, &grave).map_err(io("delete", &path))?;
            std::fs::remove_dir_all(&grave).map_err(io("delete", &grave))?;
        }
        Ok(())
    }

    /// Deletes what a killed process left half written or half deleted.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed or a leftover not be deleted.
    pub fn sweep(&self) -> Result<(), CheckpointError> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return Ok(());
        };
        for entry in entries {
            let path = entry.map_err(io("list", &self.folder))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.starts_with(".draft-") || name.starts_with(".deleted-") {
                std::fs::remove_dir_all(&path).map_err(io("delete", &path))?;
            }
        }
        Ok(())
    }

    /// The latest state, if there is a checkpoint.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn latest(&self) -> Result<Option<State>, CheckpointError> {
        match self.steps()?.last() {
            None => Ok(None),
            Some(&step) => load_state(&self.path(step)).map(Some),
        }
    }
}

/// Reads `state.json` of a checkpoint folder.
///
/// # Errors
///
/// When the file is missing or not of this version.
pub fn load_state(checkpoint: &Path) -> Result<State, CheckpointError> {
    let path = checkpoint.join("state.json");
    let bytes = std::fs::read(&path).map_err(io("read", &path))?;
    let state: State = serde_json::from_slice(&bytes).map_err(|error| content(&path, error))?;
    if state.schema != SCHEMA {
        return Err(content(
            &path,
            format!(
                "checkpoint layout {} is not {SCHEMA}, which this program reads",
                state.schema
            ),
        ));
    }
    Ok(state)
}

/// Loads parameters into `model`, strictly: a missing, extra or misshaped one is an error.
///
/// # Errors
///
/// Names the parameters that do not fit.
pub fn load_model<M: Module>(checkpoint: &Path, model: M) -> Result<M, CheckpointError> {
    let path = checkpoint.join("model.bpk");
    if !path.is_file() {
        return Err(content(&path, "no such file; is this a checkpoint folder?"));
    }
    ModuleRecord::load(&path)
        .and_then(|record| model.try_load_record(record))
        .map_err(|error| content(&path, error))
}

/// Loads an optimizer's moments.
///
/// # Errors
///
/// When the file is missing or damaged.
pub fn load_optimizer(
    checkpoint: &Path,
    optimizer: ModuleOptimizer,
) -> Result<ModuleOptimizer, CheckpointError> {
    let path = checkpoint.join("optimizer.bpk");
    if !path.is_file() {
        return Err(content(
            &path,
            "no such file; the checkpoint cannot be resumed from",
        ));
    }
    let record = OptimizerRecord::load(&path).map_err(|error| content(&path, error))?;
    Ok(optimizer.load_record(record))
}

/// Burn lists moments in the order of a hash map; sorted, equal states are equal files.
fn save_optimizer(optimizer: &ModuleOptimizer, path: &Path) -> Result<(), CheckpointError> {
    let fail = |error: &dyn std::fmt::Display| content(path, error);
    let bytes = optimizer.into_bytes().map_err(|error| fail(&error))?;
    let reader = burn_pack::Reader::from_bytes(bytes).map_err(|error| fail(&error))?;
    let (scalars, metadata) = (reader.scalars().clone(), reader.metadata().clone());
    let mut tensors = reader.into_tensors().map_err(|error| fail(&error))?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut writer = burn_pack::Writer::new(tensors);
    for (key, value) in scalars {
        writer = writer.with_scalar(&key, value);
    }
    for (key, value) in metadata {
        writer = writer.with_metadata(&key, &value);
    }
    writer.write_to_file(path).map_err(|error| fail(&error))
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    for entry in std::fs::read_dir(folder).map_err(io("list", folder))? {
        sync(&entry.map_err(io("list", folder))?.path())?;
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), CheckpointError> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io("flush", path))
}
