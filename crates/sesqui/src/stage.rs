//! Training one stage: weights in, weights out.

use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::{InferenceStep, Interrupter};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_dataset::encode::Sequence;
use sesqui_distill::Supervised;
use sesqui_eval::{EvaluationConfig, TokenDecoding, evaluate};
use sesqui_model::{Transformer, huggingface};
use sesqui_reason::Decoding;
use sesqui_run::{MetricRow, RowWriter, RunPaths};
use sesqui_trainer::checkpoint::{Attachment, load_model};
use sesqui_trainer::{Checkpoints, Fit, Outcome, Renderer, Validation, fit};

use crate::experiment::{Experiment, Initialize, Stage};
use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::workbench::Workbench;

/// Name of the file beside a checkpoint's tokenizer that holds its hash.
pub const TOKENIZER_HASH: &str = "tokenizer.sha256";

/// What all stages of a run share.
pub struct Run<'a> {
    /// The frozen configuration.
    pub experiment: &'a Experiment,
    /// Its text, for checkpoints.
    pub config_text: &'a str,
    /// Where the run lives.
    pub paths: &'a RunPaths,
    /// The data.
    pub workbench: &'a Workbench,
    /// Where to compute, without autodiff.
    pub device: &'a Device,
    /// Set when somebody asks to stop.
    pub interrupter: &'a Interrupter,
}

impl Run<'_> {
    /// Trains `stage`, from its latest checkpoint if there is one.
    ///
    /// # Errors
    ///
    /// When the start does not fit, the data is too long, or training fails.
    pub fn train(
        &self,
        stage: &Stage,
        renderer: &mut Renderer,
        metrics: &mut RowWriter<MetricRow>,
    ) -> Result<Outcome<Supervised>> {
        let device = self.device.clone().autodiff();
        let model = self.initial(stage, &device)?;
        let context = model.config().context;
        let (batches, skipped) = self
            .workbench
            .batches(stage, context, self.experiment.seed)?;
        if !skipped.is_empty() {
            renderer.line(&format!(
                "{}: {} training problems are longer than {context} positions and left out, \
                 {} first",
                stage.name,
                skipped.len(),
                skipped[0].id
            ));
        }
        let checkpoints = self.checkpoints(stage)?;
        if let Some(state) = checkpoints.latest()? {
            // The tokenizer was made anew from the data; data that changed would change it.
            same_tokenizer(stage, &checkpoints.path(state.step), self.workbench)?;
        }
        let mut validate = |model: &Supervised, _step: u64| {
            self.validation(stage, model)
                .map_err(|error| format!("{error:#}"))
        };
        let outcome = fit(
            Supervised::new(model),
            Fit {
                stage: &stage.name,
                config: &stage.training,
                seed: self.experiment.seed,
                device: &device,
                batches: &batches,
                checkpoints: &checkpoints,
                renderer,
                metrics,
                interrupter: self.interrupter,
                validate: &mut validate,
            },
        )?;
        Ok(outcome)
    }

    /// The checkpoints of a stage, each of which carries configuration and tokenizer.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot be serialised.
    pub fn checkpoints(&self, stage: &Stage) -> Result<Checkpoints> {
        let text = |name: &str, text: String| Attachment {
            name: name.to_owned(),
            bytes: text.into_bytes(),
        };
        let layout = serde_json::to_string_pretty(&self.workbench.layout)?;
        let attachments = vec![
            text("config.toml", self.config_text.to_owned()),
            text("tokenizer.json", self.workbench.tokenizer.to_json()?),
            text(TOKENIZER_HASH, self.workbench.tokenizer.hash()?),
            text("layout.json", layout),
        ];
        let folder = self.paths.checkpoints(&stage.name)?;
        Ok(Checkpoints::new(
            folder,
            stage.training.checkpoints.clone(),
            attachments,
        ))
    }

    /// The weights a stage starts from. They are checked against the tokenizer even when a
    /// checkpoint of the stage itself will replace them.
    fn initial(&self, stage: &Stage, device: &Device) -> Result<Transformer> {
        let config = &self.experiment.model;
        let vocabulary = self.workbench.tokenizer.vocab_size();
        let fresh = || Transformer::new(config, vocabulary, self.experiment.seed, device);
        match &stage.initialize {
            Initialize::Scratch => Ok(fresh()?),
            Initialize::Stage { stage: from } => {
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
                let model = load_model(&earlier.path(state.step), Supervised::new(fresh()?))?;
                Ok(model.backbone)
            }
            Initialize::Checkpoint { path } => {
                let opened = same_tokenizer(stage, path, self.workbench)?;
                let model = opened.load(device)?;
                if model.config() != config {
                    return Err(Misuse(format!(
                        "stages.{}.initialize.path: the model in {} has another shape than \
                         [model]; copy its [model] section from {}",
                        stage.name,
                        path.display(),
                        path.join("config.toml").display(),
                    ))
                    .into());
                }
                Ok(model)
            }
            Initialize::HuggingFace { path } => {
                let model = huggingface::load(path, device)
                    .with_context(|| format!("stages.{}.initialize.path", stage.name))?;
                if model.vocabulary() < vocabulary {
                    return Err(Misuse(format!(
                        "stages.{}.initialize.path: {} has {} token embeddings, the tokenizer \
                         makes {vocabulary} ids; use the tokenizer that belongs to the model",
                        stage.name,
                        path.display(),
                        model.vocabulary(),
                    ))
                    .into());
                }
                Ok(model)
            }
        }
    }

    fn validation(&self, stage: &Stage, model: &Supervised) -> Result<Validation> {
        let sequences = self
            .workbench
            .validation_sequences(stage.objective.supervision())?;
        let config = EvaluationConfig {
            timing_questions: 0,
            ..self.experiment.evaluation.clone()
        };
        let loss = validation_loss(
            model,
            &sequences,
            config.batch_size,
            &self.workbench.tokenizer,
        )?;
        let task = self.workbench.validation_task(self.experiment);
        let method = token_decoding(&model.backbone, self.device, &task, &config)?;
        let found = evaluate(&method, task, &config, &mut |_| ())?;
        Ok(Validation {
            loss: Some(loss),
            accuracy: Some(found.accuracy()),
            values: Default::default(),
        })
    }
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
                same_tokenizer(stage, path, workbench)?;
            }
            Initialize::HuggingFace { path } => {
                for file in ["config.json", "model.safetensors"] {
                    if !path.join(file).is_file() {
                        return Err(Misuse(format!(
                            "stages.{}.initialize.path: there is no {}",
                            stage.name,
                            path.join(file).display()
                        ))
                        .into());
                    }
                }
            }
        }
    }
    Ok(())
}

fn same_tokenizer(stage: &Stage, path: &Path, workbench: &Workbench) -> Result<Opened> {
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

/// Mean loss in nats per target token.
fn validation_loss(
    model: &Supervised,
    sequences: &[Sequence],
    batch_size: usize,
    tokenizer: &sesqui_dataset::tokenizer::Tokenizer,
) -> Result<f64> {
    let (mut sum, mut targets) = (0.0, 0.0);
    let rows: Vec<u32> = (0..sequences.len() as u32).collect();
    for rows in rows.chunks(batch_size) {
        let batch = SequenceBatch::collate(sequences, rows, tokenizer.pad_id())?;
        let weight: f32 = batch.loss_weights.iter().sum();
        let output = InferenceStep::step(model, batch);
        let loss = output
            .losses
            .into_data()
            .iter::<f64>()
            .next()
            .unwrap_or(f64::NAN);
        sum += loss * f64::from(weight);
        targets += f64::from(weight);
    }
    Ok(sum / targets)
}

/// Greedy decoding for a task.
///
/// # Errors
///
/// When the marker before the answer cannot be tokenized.
pub fn token_decoding<'a>(
    model: &'a Transformer,
    device: &'a Device,
    task: &sesqui_eval::Task<'a>,
    config: &EvaluationConfig,
) -> Result<TokenDecoding<'a>> {
    let answer_start: &[u32] = task
        .encoded
        .first()
        .map_or(&[], |problem| &problem.answer_start);
    Ok(TokenDecoding {
        model,
        device,
        decoding: Decoding {
            stop: task.tokenizer.eos_id(),
            max_tokens: config.max_tokens,
        },
        answer_start,
    })
}

/// A model for inference from a training outcome: off the autodiff tape.
pub fn for_inference(trained: Supervised) -> Transformer {
    trained.valid().backbone
}

/// The folder of a stage's last checkpoint, as written in summaries.
pub fn checkpoint_name(stage: &str, folder: &Path) -> String {
    let step = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("{stage}/{step}")
}
