//! A checkpoint folder, opened for use outside the run that wrote it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use sesqui_dataset::encode::PositionLayout;
use sesqui_dataset::tokenizer::Tokenizer;
use sesqui_model::Transformer;
use sesqui_run::{ConfigSource, RunPaths};
use sesqui_trainer::Checkpoints;
use sesqui_trainer::checkpoint::{State, load_state};

use crate::experiment::{Experiment, Stage};
use crate::misuse::Misuse;
use crate::stage::TOKENIZER_HASH;
use crate::start::Lineage;
use crate::trained::Trained;

/// What a checkpoint says about itself.
pub struct Opened {
    /// The folder.
    pub folder: PathBuf,
    /// The configuration of the run that wrote it.
    pub experiment: Experiment,
    /// Where training stood.
    pub state: State,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its position ids.
    pub layout: PositionLayout,
}

impl Opened {
    /// Opens a checkpoint folder, `…/checkpoints/<stage>/step-…`.
    ///
    /// # Errors
    ///
    /// When it is not one, or its parts contradict each other.
    pub fn checkpoint(folder: &Path) -> Result<Self> {
        if !folder.join("state.json").is_file() {
            return Err(Misuse(format!(
                "{} is not a checkpoint folder (it has no state.json); give \
                 <run>/checkpoints/<stage>/step-…",
                folder.display()
            ))
            .into());
        }
        let config = folder.join("config.toml");
        let experiment = sesqui_run::load::<Experiment>(ConfigSource::File(config), &[])?.value;
        let layout = folder.join("layout.json");
        let text = std::fs::read_to_string(&layout)
            .with_context(|| format!("cannot read {}", layout.display()))?;
        let hash = folder.join(TOKENIZER_HASH);
        let expected = std::fs::read_to_string(&hash)
            .with_context(|| format!("cannot read {}", hash.display()))?;
        let tokenizer = experiment
            .tokenizer
            .load(&folder.join("tokenizer.json"), Some(expected.trim()))
            .context("cannot load the checkpoint's tokenizer")?;
        Ok(Self {
            folder: folder.to_owned(),
            state: load_state(folder)?,
            tokenizer,
            layout: serde_json::from_str(&text).with_context(|| layout.display().to_string())?,
            experiment,
        })
    }

    /// Opens a run's stage at its latest checkpoint, or a checkpoint folder itself.
    ///
    /// # Errors
    ///
    /// When there is nothing to open, naming what there is.
    pub fn find(path: &Path, stage: Option<&str>) -> Result<Self> {
        if path.join("state.json").is_file() {
            return Self::checkpoint(path);
        }
        let paths = RunPaths::new(path);
        if !paths.config().is_file() {
            return Err(Misuse(format!(
                "{} is neither a run directory nor a checkpoint folder",
                path.display()
            ))
            .into());
        }
        let config = ConfigSource::File(paths.config());
        let experiment = sesqui_run::load::<Experiment>(config, &[])?.value;
        let names: Vec<&str> = experiment
            .stages
            .iter()
            .map(|stage| stage.name.as_str())
            .collect();
        let stage = match stage {
            Some(name) if names.contains(&name) => name,
            Some(name) => {
                return Err(Misuse(format!(
                    "--stage {name}: the run has the stages {}",
                    names.join(", ")
                ))
                .into());
            }
            None => names.last().copied().unwrap_or_default(),
        };
        let checkpoints =
            Checkpoints::new(paths.checkpoints(stage)?, Default::default(), Vec::new());
        let state = checkpoints.latest()?.ok_or_else(|| {
            Misuse(format!(
                "stage {stage} of {} has no checkpoint yet",
                path.display()
            ))
        })?;
        Self::checkpoint(&checkpoints.path(state.step))
    }

    /// The model, in inference mode when `device` has no autodiff.
    ///
    /// # Errors
    ///
    /// When the weights do not fit the configuration.
    pub fn load(&self, device: &Device) -> Result<Trained> {
        let fresh = self.fresh(device)?;
        Trained::load(&self.folder, self.stage()?, fresh, device)
    }

    /// A backbone of its shape.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built.
    pub fn fresh(&self, device: &Device) -> Result<Transformer> {
        let lineage = Lineage {
            experiment: &self.experiment,
            // Shapes come from configurations alone.
            paths: &RunPaths::new(&self.folder),
            vocabulary: self.tokenizer.vocab_size(),
        };
        lineage.fresh(self.stage()?, device)
    }

    /// The run that the checkpoint lies in, if it does.
    pub fn run(&self) -> Option<RunPaths> {
        // <run>/checkpoints/<stage>/step-…, wherever the working directory is.
        let folder = self.folder.canonicalize().ok()?;
        let run = RunPaths::new(folder.ancestors().nth(3)?);
        let inside = run.checkpoint(&self.state.stage, self.state.step).ok()?;
        (run.config().is_file() && inside == folder).then_some(run)
    }

    /// The stage that it is a checkpoint of.
    ///
    /// # Errors
    ///
    /// When its configuration has no such stage.
    pub fn stage(&self) -> Result<&Stage> {
        self.experiment.stage(&self.state.stage).with_context(|| {
            format!(
                "{} is a checkpoint of stage {}, which its configuration does not have",
                self.folder.display(),
                self.state.stage
            )
        })
    }
}
