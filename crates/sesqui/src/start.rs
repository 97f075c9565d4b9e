//! Where a stage's weights come from.

mod checks;

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::Device;
use sesqui_distill::align::Teacher;
use sesqui_model::{ModelConfig, Precision, Transformer, huggingface};
use sesqui_run::RunPaths;
use sesqui_shortcut::ShortcutConfig;
use sesqui_trainer::Checkpoints;

use crate::experiment::{Experiment, Initialize, Objective, Stage};
use crate::fitting::ContextLength;
use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::trained::{LatentSettings, Trained};
use crate::workbench::Workbench;
use checks::{check_layout, check_teacher, check_vocabulary, layers_from_elsewhere, missing_file};

/// A run as seen from its stages: its configuration, its checkpoints, its vocabulary.
pub struct Lineage<'a> {
    /// The configuration.
    pub experiment: &'a Experiment,
    /// Where the run lives.
    pub paths: &'a RunPaths,
    /// Number of token ids.
    pub vocabulary: usize,
}

impl Lineage<'_> {
    /// What `stage` starts from.
    ///
    /// # Errors
    ///
    /// When it has not been trained, is missing or does not fit.
    pub fn start(&self, stage: &Stage, device: &Device) -> Result<Trained> {
        match &stage.initialize {
            Initialize::Scratch | Initialize::HuggingFace { .. } => {
                Ok(Trained::tokens(self.fresh(stage, device)?))
            }
            Initialize::Stage { stage: from } => {
                let source = self.find(from)?;
                let folder = self.paths.checkpoints(from)?;
                let earlier = Checkpoints::new(folder, Default::default(), Vec::new());
                let state = earlier
                    .latest()?
                    .filter(|state| state.finished)
                    .with_context(|| {
                        format!(
                            "stage {} starts from {from}, which has not been trained",
                            stage.name
                        )
                    })?;
                let fresh = self.fresh(source, device)?;
                Trained::load(&earlier.path(state.step), source, fresh, device)
            }
            Initialize::Checkpoint { path } => {
                let trained = Opened::checkpoint(path)?.load(device)?;
                Ok(trained.with_precision(self.experiment.precision))
            }
        }
    }

    /// The chain-of-thought model that the student from which `stage` starts was aligned to: what its
    /// stage 1 started from, or where both shared their weights the student as trained.
    ///
    /// # Errors
    ///
    /// When it cannot be found or does not fit.
    pub fn teacher(&self, stage: &Stage, device: &Device) -> Result<Transformer> {
        let teacher = match &stage.initialize {
            Initialize::Stage { stage: student } => {
                let student = self.find(student)?;
                match shares_teacher(student) {
                    true => self.start(stage, device)?,
                    false => self.start(student, device)?,
                }
            }
            Initialize::Checkpoint { path } => {
                let opened = Opened::checkpoint(path)?;
                if shares_teacher(opened.stage()?) {
                    let teacher = opened.load(device)?.backbone().clone();
                    return Ok(teacher.with_precision(self.experiment.precision));
                }
                let run = opened.run().with_context(|| {
                    format!(
                        "stage {}: {} lies in no run directory, where its teacher would be",
                        stage.name,
                        path.display()
                    )
                })?;
                let lineage = Lineage {
                    experiment: &opened.experiment,
                    paths: &run,
                    vocabulary: opened.tokenizer.vocab_size(),
                };
                lineage.start(lineage.find(&opened.state.stage)?, device)?
            }
            Initialize::Scratch | Initialize::HuggingFace { .. } => self.start(stage, device)?,
        };
        let teacher = teacher.backbone().clone();
        Ok(teacher.with_precision(self.experiment.precision))
    }

    /// A backbone of the shape that `stage` has.
    ///
    /// # Errors
    ///
    /// When the shape cannot be built, or the Hugging Face model does not suit the tokenizer.
    pub fn fresh(&self, stage: &Stage, device: &Device) -> Result<Transformer> {
        let model = self.shaped(stage, device)?;
        Ok(model.with_precision(self.experiment.precision))
    }

    fn shaped(&self, stage: &Stage, device: &Device) -> Result<Transformer> {
        match &stage.initialize {
            Initialize::Scratch => {
                let (config, seed) = (&self.experiment.model, self.experiment.seed);
                Ok(Transformer::new(config, self.vocabulary, seed, device)?)
            }
            Initialize::Stage { stage: from } => self.shaped(self.find(from)?, device),
            Initialize::Checkpoint { path } => Opened::checkpoint(path)?.fresh(device),
            Initialize::HuggingFace { path } => {
                let model = huggingface::load(path, device)
                    .with_context(|| format!("stages.{}.initialize.path", stage.name))?;
                check_vocabulary(stage, path, model.vocabulary(), self.vocabulary)?;
                Ok(model)
            }
        }
    }

    /// Shapes of the routers and adapters of the model from which `stage` starts, if it has some.
    ///
    /// # Errors
    ///
    /// When that model cannot be found.
    pub fn shortcuts(&self, stage: &Stage) -> Result<Option<ShortcutConfig>> {
        let of = |source: &Stage| match &source.objective {
            Objective::Shortcut(config) => Some(config.shortcuts.clone()),
            Objective::Joint(config) => Some(config.shortcut.shortcuts.clone()),
            _ => None,
        };
        Ok(match &stage.initialize {
            Initialize::Stage { stage: from } => of(self.find(from)?),
            Initialize::Checkpoint { path } => of(Opened::checkpoint(path)?.stage()?),
            Initialize::Scratch | Initialize::HuggingFace { .. } => None,
        })
    }

    fn find(&self, name: &str) -> Result<&Stage> {
        self.experiment
            .stage(name)
            .with_context(|| format!("the run has no stage {name}"))
    }
}

/// Whether all of `devices` have floats of this precision.
///
/// # Errors
///
/// When one has not.
pub fn computes(devices: &[Device], precision: Precision) -> Result<(), Misuse> {
    let has = |precision: Precision| {
        let mut devices = devices.iter();
        devices.all(|device| device.supports_dtype(precision.dtype()))
    };
    if has(precision) {
        return Ok(());
    }
    let others = [Precision::Bf16, Precision::F16, Precision::F32];
    let others = others.into_iter().filter(|other| has(*other));
    let others: Vec<String> = others.map(|other| format!("{:?}", other.name())).collect();
    Err(Misuse(format!(
        "precision: {} no {}; set precision = {}",
        match devices.len() {
            1 => "this device has",
            _ => "one of these devices has",
        },
        precision.name(),
        others.join(" or ")
    )))
}

/// Whether a student was aligned to its own weights on the chain of thought.
fn shares_teacher(student: &Stage) -> bool {
    matches!(&student.objective, Objective::Align(config) if config.teacher == Teacher::Shared)
}

/// Checks where the stages of an experiment start from, before anything is written or trained.
///
/// # Errors
///
/// Names the setting and the folder that does not fit.
pub fn check_starts(experiment: &Experiment, workbench: &Workbench) -> Result<()> {
    for stage in &experiment.stages {
        match &stage.initialize {
            Initialize::Scratch | Initialize::Stage { .. } => {}
            Initialize::Checkpoint { path } => {
                let opened = same_tokenizer(stage, path, workbench)?;
                check_checkpoint(experiment, stage, path, &opened)?;
                check_layout(stage, path, &opened, workbench)?;
                if matches!(stage.objective, Objective::Shortcut(_)) {
                    check_teacher(stage, path, &opened)?;
                }
            }
            Initialize::HuggingFace { path } => {
                if let Some(missing) = missing_file(path) {
                    return Err(Misuse(format!(
                        "stages.{}.initialize.path: there is no {}",
                        stage.name,
                        missing.display()
                    ))
                    .into());
                }
                let key = || format!("stages.{}.initialize.path", stage.name);
                let vocabulary = huggingface::vocabulary(path).with_context(key)?;
                check_vocabulary(stage, path, vocabulary, workbench.tokenizer.vocab_size())?;
            }
        }
        if let Some(layers) = layers_from_elsewhere(experiment, stage)? {
            stage.check_landing(layers, "start from a model with more")?;
        }
        let asked = experiment.reasoning.latent_steps.into();
        if let Objective::Curriculum(config) = &stage.objective {
            let context = context(experiment, stage)?;
            workbench.check_curriculum(stage, config, &context, asked)?;
        }
        if let Some(settings) = latent_settings(experiment, workbench, stage)? {
            let context = context(experiment, stage)?;
            workbench.check_latents(stage, &settings, &context, asked)?;
        }
    }
    Ok(())
}

/// The latent steps that `stage` will be trained with; none where it reasons in words, or comes to them
/// through a curriculum.
///
/// # Errors
///
/// When it starts from a checkpoint that does not say.
pub fn latent_settings(
    experiment: &Experiment,
    workbench: &Workbench,
    stage: &Stage,
) -> Result<Option<LatentSettings>> {
    match (&stage.objective, &stage.initialize) {
        (Objective::Align(config), _) => Ok(Some(workbench.latent_settings(config))),
        (Objective::Joint(config), _) => Ok(Some(workbench.latent_settings(&config.align))),
        (Objective::Shortcut(_) | Objective::Halt(_), Initialize::Checkpoint { path }) => {
            Ok(Some(LatentSettings::read(path)?))
        }
        (Objective::Shortcut(_) | Objective::Halt(_), Initialize::Stage { stage: from }) => {
            match experiment.stage(from) {
                Some(student) => latent_settings(experiment, workbench, student),
                None => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

/// The shape of the backbone of `stage`: that of the Hugging Face folder that it goes back to, else
/// `[model]`.
///
/// # Errors
///
/// When a folder cannot be read.
pub fn shape(experiment: &Experiment, stage: &Stage) -> Result<ModelConfig> {
    match &stage.initialize {
        Initialize::Scratch => Ok(experiment.model.clone()),
        Initialize::Stage { stage: from } => {
            let source = experiment.stage(from);
            shape(
                experiment,
                source.with_context(|| format!("the run has no stage {from}"))?,
            )
        }
        Initialize::Checkpoint { path } => {
            let opened = Opened::checkpoint(path)?;
            shape(&opened.experiment, opened.stage()?)
        }
        Initialize::HuggingFace { path } => huggingface::shape(path)
            .with_context(|| format!("stages.{}.initialize.path", stage.name)),
    }
}

/// The positions that the model of `stage` will have: those of the Hugging Face folder that it goes
/// back to, else those of `[model]`.
fn context(experiment: &Experiment, stage: &Stage) -> Result<ContextLength> {
    match &stage.initialize {
        Initialize::Scratch => Ok(ContextLength::new(experiment.model.context)),
        Initialize::Stage { stage: from } => {
            let source = experiment.stage(from);
            context(
                experiment,
                source.with_context(|| format!("the run has no stage {from}"))?,
            )
        }
        Initialize::Checkpoint { path } => {
            let opened = Opened::checkpoint(path)?;
            context(&opened.experiment, opened.stage()?)
        }
        Initialize::HuggingFace { path } => {
            let key = format!("stages.{}.initialize.path", stage.name);
            Ok(ContextLength {
                positions: huggingface::shape(path)
                    .with_context(|| key.clone())?
                    .context,
                remedy: format!("give {key} a model with more"),
            })
        }
    }
}

/// Whether a checkpoint has the shape of `[model]` and was trained for what the stage needs.
fn check_checkpoint(
    experiment: &Experiment,
    stage: &Stage,
    path: &Path,
    opened: &Opened,
) -> Result<()> {
    if opened.experiment.model != experiment.model {
        return Err(Misuse(format!(
            "stages.{}.initialize.path: the model in {} has another shape than [model]; copy its \
             [model] section from {}",
            stage.name,
            path.display(),
            path.join("config.toml").display(),
        ))
        .into());
    }
    let found = opened
        .experiment
        .stage(&opened.state.stage)
        .map_or("none", |source| source.objective.kind());
    match stage.objective.wants() {
        Some((wanted, reason)) if !wanted.contains(&found) => Err(Misuse(format!(
            "stages.{}.initialize.path: {} was trained with objective {found}, but {reason}; give \
             a checkpoint of objective {}",
            stage.name,
            path.display(),
            wanted.join(" or "),
        ))
        .into()),
        _ => Ok(()),
    }
}

/// Opens a checkpoint and refuses one of another tokenizer.
///
/// # Errors
///
/// When it cannot be opened, or its tokenizer is another.
pub fn same_tokenizer(stage: &Stage, path: &Path, workbench: &Workbench) -> Result<Opened> {
    let opened =
        Opened::checkpoint(path).with_context(|| format!("the start of stage {}", stage.name))?;
    let (theirs, ours) = (opened.tokenizer.hash()?, workbench.tokenizer.hash()?);
    if theirs != ours {
        return Err(Misuse(format!(
            "stage {}: {} was trained with another tokenizer ({theirs:.12} there, {ours:.12} here); \
             use its tokenizer, its data, or another checkpoint",
            stage.name,
            path.display(),
        ))
        .into());
    }
    Ok(opened)
}
