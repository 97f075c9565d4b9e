//! Training one stage: weights in, weights out.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Device;
use burn::train::{InferenceStep, Interrupter, TrainStep};
use sesqui_dataset::batch::{SequenceBatch, Skipped};
use sesqui_distill::lessons::Lessons;
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::{
    Align, AlignConfig, Joint, JointBatch, JointBatches, JointConfig, LatentBatch, LatentBatches,
    LatentProblem, Rollout, Shortcut, ShortcutStageConfig, Supervised,
};
use sesqui_eval::{EvaluationConfig, evaluate};
use sesqui_model::Transformer;
use sesqui_model::latent::LatentTransformer;
use sesqui_run::{MetricRow, RowWriter, RunPaths};
use sesqui_shortcut::Shortcuts;
use sesqui_trainer::checkpoint::Attachment;
use sesqui_trainer::objective::Objective as Learner;
use sesqui_trainer::{
    Batches, Checkpoints, Fit, Outcome, Phase, Profile, Renderer, State, Stop, Validation, fit,
};

use crate::exits;
use crate::experiment::{Experiment, Objective, Stage};
use crate::extensions::extensions;
use crate::misuse::Misuse;
use crate::screen::{progress, spinner};
use crate::start::{Lineage, same_tokenizer};
use crate::trained::{LATENTS, LatentSettings, Trained};
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
    /// Where to compute, without autodiff; the first is home.
    pub devices: &'a [Device],
    /// Set when somebody asks to stop.
    pub interrupter: &'a Interrupter,
}

/// How a stage ended.
pub struct Finished {
    /// The model, off the autodiff tape.
    pub model: Trained,
    /// Where training stands.
    pub state: State,
    /// Why it ended.
    pub stop: Stop,
    /// Where its time went.
    pub profile: Profile,
}

/// What a person sees of a stage, and what is written.
pub struct Outlets<'a> {
    /// The screen.
    pub renderer: &'a mut Renderer,
    /// `metrics.jsonl`.
    pub metrics: &'a mut RowWriter<MetricRow>,
}

/// What a latent stage reads.
struct LatentData<D, B> {
    /// Training batches.
    batches: D,
    /// Validation batches.
    validation: Vec<B>,
    /// How long the teacher read before the first step.
    beforehand: Duration,
}

impl Run<'_> {
    /// Where inference happens.
    pub fn device(&self) -> &Device {
        &self.devices[0]
    }

    /// Trains `stage`, from its latest checkpoint if there is one.
    ///
    /// # Errors
    ///
    /// When the start does not fit, the data is too long, or training fails.
    pub fn train(&self, stage: &Stage, mut outlets: Outlets<'_>) -> Result<Finished> {
        if let Some(line) = extensions(stage) {
            outlets.renderer.line(&line);
        }
        match &stage.objective {
            Objective::Cot | Objective::NoCot => self.supervise(stage, &mut outlets),
            Objective::Align(config) => self.align(stage, config, &mut outlets),
            Objective::Shortcut(config) => self.shortcut(stage, config, &mut outlets),
            Objective::Joint(config) => self.joint(stage, config, &mut outlets),
            Objective::Halt(config) => self.halt(stage, config, &mut outlets),
            Objective::Curriculum(config) => self.curriculum(stage, config, &mut outlets),
            Objective::Icot(config) => self.icot(stage, config, &mut outlets),
            Objective::EarlyExit(config) => self.early_exit(stage, config, &mut outlets),
        }
    }

    fn supervise(&self, stage: &Stage, outlets: &mut Outlets<'_>) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let model = self.lineage().start(stage, &device)?.backbone().clone();
        let context = model.config().context;
        let seed = self.experiment.seed;
        let (batches, skipped) = self.workbench.batches(stage, context, seed)?;
        outlets.skipped(stage, context, &skipped);
        let validation = self
            .workbench
            .validation_batches(stage.objective.supervision(), self.experiment)?;
        let model = Supervised::new(model);
        let validate = |model: &Supervised, _: u64| {
            let losses = mean_losses(model, validation.clone(), targets);
            let trained = Trained::tokens(model.backbone.clone());
            self.validation(&trained, losses)
        };
        let outcome = self.fit(stage, model, &batches, None, &never, outlets, validate)?;
        Ok(finished(outcome, |model| Trained::tokens(model.backbone)))
    }

    fn align(
        &self,
        stage: &Stage,
        config: &AlignConfig,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let teacher = self.lineage().start(stage, &device)?.backbone().clone();
        let settings = self.workbench.latent_settings(config);
        let rollout = config.rollouts(self.experiment.seed, stage.training.steps);
        let data = self.latent_data(stage, &settings, &teacher, rollout, outlets)?;

        let seed = self.experiment.seed;
        let feedback = &config.latents.feedback;
        let student = LatentTransformer::new(teacher.clone(), feedback, seed, &device);
        let model = Align::new(student, &teacher, config);
        self.train_latent(stage, model, data, rows, settings, outlets, |model| {
            (model.student.clone(), None)
        })
    }

    fn shortcut(
        &self,
        stage: &Stage,
        config: &ShortcutStageConfig,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let lineage = self.lineage();
        let Trained::Latent(student) = lineage.start(stage, &device)? else {
            return Err(Misuse(format!(
                "stages.{}.initialize: it starts from a model without latent steps",
                stage.name
            ))
            .into());
        };
        let teacher = lineage.teacher(stage, &device)?;
        let settings = student.settings.with_shortcuts(config);
        let seed = self.experiment.seed;
        let rollout = move |step| exits_drawn(seed, step);
        let data = self.latent_data(stage, &settings, &teacher, rollout, outlets)?;

        let shape = teacher.config();
        let shortcuts = Shortcuts::new(&config.shortcuts, shape, seed, &device);
        let model = Shortcut::new(student.model, shortcuts, &teacher, config)
            .asked_at(self.experiment.reasoning.exit_threshold);
        self.train_latent(stage, model, data, rows, settings, outlets, |model| {
            (model.student.clone(), Some(model.shortcuts.clone()))
        })
    }

    fn joint(
        &self,
        stage: &Stage,
        config: &JointConfig,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let teacher = self.lineage().start(stage, &device)?.backbone().clone();
        let settings = self.workbench.latent_settings(&config.align);
        let settings = settings.with_shortcuts(&config.shortcut);
        let seed = self.experiment.seed;
        let rollout = config.align.rollouts(seed, stage.training.steps);
        let shape = teacher.config();
        let data = self.latent_data(stage, &settings, &teacher, rollout, outlets)?;
        let batches = JointBatches::new(data.batches, move |step| exits_drawn(seed, step));
        let joint = |batch: LatentBatch| {
            let rollout = batch.rollout;
            JointBatch::new(batch, rollout)
        };
        let data = LatentData {
            batches,
            validation: data.validation.into_iter().map(joint).collect(),
            beforehand: data.beforehand,
        };

        let feedback = &settings.latents.feedback;
        let student = LatentTransformer::new(teacher.clone(), feedback, seed, &device);
        let shortcuts = Shortcuts::new(&config.shortcut.shortcuts, shape, seed, &device);
        let model = Joint::new(student, shortcuts, &teacher, config)
            .asked_at(self.experiment.reasoning.exit_threshold);
        let rows = |batch: &JointBatch| rows(&batch.align);
        self.train_latent(stage, model, data, rows, settings, outlets, |model| {
            (model.student.clone(), Some(model.shortcuts.clone()))
        })
    }

    /// Training batches of a latent stage, of which those that do not fit are told, and validation
    /// batches; with what `teacher` says about the former, if that is to be kept.
    fn latent_data(
        &self,
        stage: &Stage,
        settings: &LatentSettings,
        teacher: &Transformer,
        rollout: impl Fn(u64) -> Rollout + Send + Sync + 'static,
        outlets: &mut Outlets<'_>,
    ) -> Result<LatentData<LatentBatches, LatentBatch>> {
        let (seed, context) = (self.experiment.seed, teacher.config().context);
        let (mut batches, skipped) = self
            .workbench
            .latent_batches(stage, settings, context, seed, rollout)?;
        outlets.skipped(stage, context, &skipped);
        let (validation, skipped) =
            self.workbench
                .validation_latents(settings, context, self.experiment)?;
        if let Some(first) = skipped.first() {
            outlets.renderer.line(&format!(
                "{}: {} validation questions need more than {} latent steps or {context} positions, \
                 {} first; they are asked, but losses are without them",
                stage.name,
                skipped.len(),
                settings.count,
                first.id
            ));
        }
        let begun = Instant::now();
        let stands = self.checkpoints(stage, None)?.latest()?;
        let finished = stands.is_some_and(|state| state.finished);
        if !finished && keeps_lessons(stage, batches.problems(), teacher.config().d_model) {
            self.keep_lessons(stage, &mut batches, teacher, outlets)?;
        }
        Ok(LatentData {
            batches,
            validation,
            beforehand: begun.elapsed(),
        })
    }

    /// Lets `teacher` read all problems of `batches`. Where somebody asks to stop, training is what stops.
    fn keep_lessons(
        &self,
        stage: &Stage,
        batches: &mut LatentBatches,
        teacher: &Transformer,
        outlets: &mut Outlets<'_>,
    ) -> Result<()> {
        let problems = batches.problems().len();
        let bytes = Lessons::bytes(batches.problems(), teacher.config().d_model);
        outlets.renderer.line(&format!(
            "{}: the teacher reads {problems} problems once, of which {:.0} MB of states are kept",
            stage.name,
            bytes as f64 / 1e6
        ));
        let bar = outlets
            .renderer
            .is_plain()
            .then(|| progress(problems, &stage.name));
        batches.keep_lessons(&teacher.valid(), &|read| {
            if let Some(bar) = &bar {
                bar.inc(read as u64);
            }
            !self.interrupter.should_stop()
        })?;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(())
    }

    /// Trains a latent model, of which `parts` names student and shortcuts, and validates it by its
    /// losses, means over `rows`, and by its answers.
    fn train_latent<M, B>(
        &self,
        stage: &Stage,
        model: M,
        data: LatentData<impl Batches<B>, B>,
        rows: impl Fn(&B) -> f64,
        settings: LatentSettings,
        outlets: &mut Outlets<'_>,
        parts: impl Fn(&M) -> (LatentTransformer, Option<Shortcuts>),
    ) -> Result<Finished>
    where
        M: Learner + TrainStep<Input = B>,
        B: Clone,
    {
        let trained = |model: &M| {
            let (student, shortcuts) = parts(model);
            Trained::latent(student, shortcuts, settings.clone())
        };
        let validate = |model: &M, _: u64| {
            let losses = mean_losses(model, data.validation.clone(), &rows);
            self.validation(&trained(model), losses)
        };
        let (batches, settings) = (&data.batches, Some(&settings));
        let mut outcome = self.fit(stage, model, batches, settings, &never, outlets, validate)?;
        outcome.profile.add(Phase::Beforehand, data.beforehand);
        Ok(finished(outcome, |model| trained(&model)))
    }

    pub(crate) fn lineage(&self) -> Lineage<'_> {
        Lineage {
            experiment: self.experiment,
            paths: self.paths,
            vocabulary: self.workbench.tokenizer.vocab_size(),
        }
    }

    /// Trains `model` on `batches`; `resets` says before which update the optimizer forgets its moments,
    /// `validate` measures the model after so many updates.
    pub(crate) fn fit<M: Learner>(
        &self,
        stage: &Stage,
        model: M,
        batches: &dyn Batches<<M as TrainStep>::Input>,
        settings: Option<&LatentSettings>,
        resets: &dyn Fn(u64) -> bool,
        outlets: &mut Outlets<'_>,
        validate: impl Fn(&M, u64) -> Result<Validation>,
    ) -> Result<Outcome<M>> {
        let checkpoints = self.checkpoints(stage, settings)?;
        if let Some(state) = checkpoints.latest()? {
            // The tokenizer was made anew from the data; data that changed would change it.
            same_tokenizer(stage, &checkpoints.path(state.step), self.workbench)?;
        }
        let devices: Vec<Device> = self
            .devices
            .iter()
            .map(|device| stage.training.recompute.tracked(device))
            .collect();
        // The dashboard shows by itself that validation is under way.
        let plain = outlets.renderer.is_plain();
        let mut validate = |model: &M, updates: u64| {
            let waiting = plain.then(|| spinner(&format!("{}: validation", stage.name)));
            let found = validate(model, updates).map_err(|error| format!("{error:#}"));
            if let Some(waiting) = waiting {
                waiting.finish_and_clear();
            }
            found
        };
        let outcome = fit(
            model,
            Fit {
                stage: &stage.name,
                config: &stage.training,
                seed: self.experiment.seed,
                devices: &devices,
                batches,
                resets,
                checkpoints: &checkpoints,
                renderer: &mut *outlets.renderer,
                metrics: &mut *outlets.metrics,
                interrupter: self.interrupter,
                validate: &mut validate,
            },
        )?;
        Ok(outcome)
    }

    /// The checkpoints of a stage, each of which carries configuration, tokenizer and, for a latent
    /// model, its settings.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot be serialised.
    pub fn checkpoints(
        &self,
        stage: &Stage,
        settings: Option<&LatentSettings>,
    ) -> Result<Checkpoints> {
        let text = |name: &str, text: String| Attachment {
            name: name.to_owned(),
            bytes: text.into_bytes(),
        };
        let layout = serde_json::to_string_pretty(&self.workbench.layout)?;
        let mut attachments = vec![
            text("config.toml", self.config_text.to_owned()),
            text("tokenizer.json", self.workbench.tokenizer.to_json()?),
            text(TOKENIZER_HASH, self.workbench.tokenizer.hash()?),
            text("layout.json", layout),
        ];
        if let Some(settings) = settings {
            attachments.push(text(LATENTS, serde_json::to_string_pretty(settings)?));
        }
        let folder = self.paths.checkpoints(&stage.name)?;
        let policy = stage.training.checkpoints.clone();
        Ok(Checkpoints::new(folder, policy, attachments))
    }

    /// Accuracy on the validation set, latents self-generated, with the losses found before.
    pub(crate) fn validation(&self, trained: &Trained, losses: Losses) -> Result<Validation> {
        let config = EvaluationConfig {
            timing_questions: 0,
            ..self.experiment.evaluation.clone()
        };
        let task = self.workbench.validation_task(self.experiment);
        let reasoning = &self.experiment.reasoning;
        let method = trained.method(self.device(), &task, &config, reasoning);
        let found = evaluate(&*method, task, &config, &mut |_| ())?;
        let mut values = losses.parts;
        if let Trained::Latent(latent) = trained {
            values.extend(exits::summary(latent, &task, &found));
        }
        Ok(Validation {
            loss: losses.total,
            accuracy: Some(found.accuracy()),
            values,
        })
    }
}

impl Outlets<'_> {
    pub(crate) fn skipped(&mut self, stage: &Stage, context: usize, skipped: &[Skipped]) {
        if let Some(first) = skipped.first() {
            self.renderer.line(&format!(
                "{}: {} training problems are longer than {context} positions and left out, {} \
                 first",
                stage.name,
                skipped.len(),
                first.id
            ));
        }
    }
}

pub(crate) fn finished<M: Module>(
    outcome: Outcome<M>,
    trained: impl FnOnce(M) -> Trained,
) -> Finished {
    Finished {
        model: trained(outcome.model.valid()),
        state: outcome.state,
        stop: outcome.stop,
        profile: outcome.profile,
    }
}

/// Whether what the teacher of `stage`, `d_model` wide, says about `problems` is kept.
pub(crate) fn keeps_lessons(stage: &Stage, problems: &[LatentProblem], d_model: usize) -> bool {
    let rows_read = stage.training.steps * stage.batches.batch_size as u64;
    stage.objective.has_frozen_teacher() && stage.teacher_states.keeps(problems, rows_read, d_model)
}

/// An optimizer that never forgets.
pub(crate) fn never(_: u64) -> bool {
    false
}

/// What a mean over batches in words counts.
pub(crate) fn targets(batch: &SequenceBatch) -> f64 {
    batch.loss_weights.iter().copied().map(f64::from).sum()
}

fn rows(batch: &LatentBatch) -> f64 {
    batch.batch as f64
}

/// Losses over a validation set.
#[derive(Default)]
pub(crate) struct Losses {
    pub(crate) total: Option<f64>,
    pub(crate) parts: BTreeMap<String, f64>,
}

/// Means over batches, each weighted by what it counts.
pub(crate) fn mean_losses<M: Learner>(
    model: &M,
    batches: Vec<<M as InferenceStep>::Input>,
    weight: impl Fn(&<M as InferenceStep>::Input) -> f64,
) -> Losses {
    let mut sums: Vec<f64> = Vec::new();
    let (mut names, mut total): (&[&str], f64) = (&[], 0.0);
    for batch in batches {
        let weight = weight(&batch);
        let output = InferenceStep::step(model, batch);
        names = output.names;
        sums.resize(names.len(), 0.0);
        let values = output.losses.into_data();
        for (sum, value) in sums.iter_mut().zip(values.iter::<f64>()) {
            *sum += value * weight;
        }
        total += weight;
    }
    let means = sums.iter().map(|sum| sum / total);
    let mut named = names.iter().map(|name| (*name).to_owned()).zip(means);
    Losses {
        total: named.next().map(|(_, mean)| mean),
        parts: named.collect(),
    }
}

/// The folder of a stage's last checkpoint, as written in summaries.
pub fn checkpoint_name(stage: &str, folder: &Path) -> String {
    let step = folder.file_name().unwrap_or_default().to_string_lossy();
    format!("{stage}/{step}")
}
