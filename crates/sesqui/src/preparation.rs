//! What a variant of refinement needs before the first question: the strong and the weak checkpoint, and
//! calibrated directions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use sesqui_dataset::Problem;
use sesqui_dataset::batch::TooLong;
use sesqui_dataset::encode::{EncodedProblem, encode_all};
use sesqui_eval::{EvaluationConfig, Task, evaluate};
use sesqui_model::Transformer;
use sesqui_model::latent::Source;
use sesqui_reason::{Calibration, Calibrator, References, RefineConfig, Refinement};
use sesqui_run::RunPaths;

use crate::experiment::{Experiment, Initialize, Objective};
use crate::fitting::{Asked, Fitting, Room};
use crate::misuse::Misuse;
use crate::opened::Opened;
use crate::output::say;
use crate::reasoning::ReasoningConfig;
use crate::refinement::{Reference, ReferencesConfig, Variant};
use crate::screen::progress;
use crate::stage::checkpoint_name;
use crate::trained::{Latent, Trained};
use crate::workbench::{Workbench, spread};

/// A refinement with all that it needs.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Its name in tables.
    pub label: String,
    config: RefineConfig,
    references: Option<References>,
    calibration: Option<Calibration>,
}

impl Prepared {
    /// What latent reasoning is given.
    pub fn refinement(&self) -> Refinement<'_> {
        Refinement {
            config: &self.config,
            references: self.references.as_ref(),
            calibration: self.calibration.as_ref(),
        }
    }
}

/// The chain-of-thought stage that a stage comes from, and the run that it belongs to, `None` for the
/// run at hand.
///
/// # Errors
///
/// When there is none.
fn ancestor(
    experiment: &Experiment,
    stage: &str,
) -> Result<(Option<RunPaths>, String), anyhow::Error> {
    let (mut run, mut experiment, mut stage) = (None, experiment.clone(), stage.to_owned());
    loop {
        let source = experiment
            .stage(&stage)
            .with_context(|| format!("the run has no stage {stage}"))?;
        if source.objective == Objective::Cot {
            return Ok((run, stage));
        }
        match source.initialize.clone() {
            Initialize::Stage { stage: from } => stage = from,
            Initialize::Checkpoint { path } => {
                let opened = Opened::checkpoint(&path)?;
                let Some(place) = opened.run() else {
                    return Err(Misuse(format!(
                        "refinement: {}, which stage {stage} comes from, lies in no run directory \
                         where its chain-of-thought checkpoints would be; name {NAMED}",
                        path.display()
                    ))
                    .into());
                };
                run = Some(place);
                stage = opened.state.stage;
                experiment = opened.experiment;
            }
            Initialize::Scratch | Initialize::HuggingFace { .. } => {
                return Err(Misuse(format!(
                    "refinement: stage {stage} comes from no stage with objective cot, whose \
                     checkpoints would be strong and weak; name {NAMED}"
                ))
                .into());
            }
        }
    }
}

const NAMED: &str = "reasoning.references.strong and .weak as { kind = \"checkpoint\", path = … }";

/// Checks before anything is trained that the latent stages of an experiment can be refined as it says.
///
/// # Errors
///
/// When a stage has no checkpoints to hold its latents against, or one that is named is missing.
pub fn check(experiment: &Experiment) -> Result<()> {
    let Some(variant) = Variant::configured(&experiment.reasoning) else {
        return Ok(());
    };
    if variant.refine.search().is_none() {
        return Ok(());
    }
    let references = [&variant.references.strong, &variant.references.weak];
    for reference in references {
        if let Reference::Checkpoint { path } = reference {
            Opened::checkpoint(path).context("reasoning.references")?;
        }
    }
    let named = |reference: &&Reference| matches!(reference, Reference::Checkpoint { .. });
    if references.iter().all(named) {
        return Ok(());
    }
    for stage in &experiment.stages {
        if stage.objective.has_latents() {
            ancestor(experiment, &stage.name)?;
        }
    }
    Ok(())
}

/// Checks `--refine` before anything is loaded.
///
/// # Errors
///
/// When a text cannot be read, or none of the models has latents.
pub fn check_arguments(texts: &[String], models: &[Opened]) -> Result<()> {
    Variant::all(texts, &ReasoningConfig::default())?;
    let latent = |opened: &Opened| {
        let stage = opened.experiment.stage(&opened.state.stage);
        stage.is_some_and(|stage| stage.objective.has_latents())
    };
    match texts.first() {
        Some(text) if !models.iter().any(latent) => Err(Misuse(format!(
            "--refine {text:?}: there are no latents to refine; name a stage with objective align, \
             shortcut or joint"
        ))
        .into()),
        _ => Ok(()),
    }
}

/// Why there is nothing to refine in what `student` feeds its latent steps, if so.
fn unrefinable(student: &Latent, reasoning: &ReasoningConfig) -> Option<&'static str> {
    match student.model.source() {
        Source::Newest if student.order(reasoning).is_sequential() => None,
        Source::Newest => {
            Some("computes its latent steps all at once; nothing between could be refined")
        }
        Source::First | Source::Nothing => Some("feeds back no state that could be refined"),
    }
}

/// Finds models and calibrates directions for the students of one run.
pub struct Preparation<'a> {
    /// The data that is asked about.
    pub workbench: &'a Workbench,
    /// The experiment that says so.
    pub experiment: &'a Experiment,
    /// Where to compute, without autodiff.
    pub device: &'a Device,
    /// Validation accuracy by checkpoint folder, as far as it was measured.
    accuracies: BTreeMap<PathBuf, f64>,
    /// Models by checkpoint folder: variants share them.
    models: BTreeMap<PathBuf, Transformer>,
    /// The pair that was said last: most variants have the same.
    told: Option<String>,
}

impl<'a> Preparation<'a> {
    /// With the data of `workbench`.
    pub fn new(workbench: &'a Workbench, experiment: &'a Experiment, device: &'a Device) -> Self {
        Self {
            workbench,
            experiment,
            device,
            accuracies: BTreeMap::new(),
            models: BTreeMap::new(),
            told: None,
        }
    }

    /// Plain latents first, then every one of `variants`; a model without latents as it is.
    ///
    /// # Errors
    ///
    /// As [`Preparation::prepare`].
    pub fn plain_and(
        &mut self,
        variants: &[Variant],
        model: &Trained,
        opened: &Opened,
    ) -> Result<Vec<Option<Prepared>>> {
        let mut all = vec![None];
        let (Trained::Latent(student), false) = (model, variants.is_empty()) else {
            return Ok(all);
        };
        if let Some(reason) = unrefinable(student, &self.experiment.reasoning) {
            let stage = &opened.state.stage;
            say(format!("{stage} {reason}; it is measured as it is"))?;
            return Ok(all);
        }
        for variant in variants {
            all.push(Some(self.prepare(variant, student, opened)?));
        }
        Ok(all)
    }

    /// What `variant` needs to refine the latents of `student`, whose checkpoint is `opened`. Says what
    /// was chosen.
    ///
    /// # Errors
    ///
    /// When models are missing or do not fit, or agree about everything.
    pub fn prepare(
        &mut self,
        variant: &Variant,
        student: &Latent,
        opened: &Opened,
    ) -> Result<Prepared> {
        if let Some(reason) = unrefinable(student, &self.experiment.reasoning) {
            let stage = &opened.state.stage;
            return Err(Misuse(format!("refinement: {stage} {reason}; leave it out")).into());
        }
        let label = variant.label();
        let mut prepared = Prepared {
            label: label.clone(),
            config: variant.refine.clone(),
            references: None,
            calibration: None,
        };
        let Some(search) = variant.refine.search() else {
            return Ok(prepared);
        };
        let (strong, weak) = self.choose(&variant.references, opened)?;
        let told = format!("{}; {}", strong.told("strong"), weak.told("weak"));
        if self.told.as_ref() != Some(&told) {
            say(format!("refinement: {told}"))?;
            self.told = Some(told);
        }
        let references = References {
            strong: self.load(&strong.folder, student, opened)?,
            weak: self.load(&weak.folder, student, opened)?,
        };
        if variant.refine.needs_calibration() {
            let calibrator = self.calibrate(variant, &references, student)?;
            let calibration = calibrator
                .calibrate(search.direction, self.device)
                .map_err(|error| {
                    Misuse(format!("refinement {label}: {error}; take another pair"))
                })?;
            if let Some(calibration) = &calibration {
                let (count, rank) = (calibrator.count(), calibration.rank());
                say(format!(
                    "{label}: calibrated on {count} latents of validation questions, rank {rank}"
                ))?;
            }
            prepared.calibration = calibration;
        }
        if variant.refine.needs_references() {
            prepared.references = Some(references);
        }
        Ok(prepared)
    }

    /// The strong and the weak checkpoint for the student `opened`.
    fn choose(&mut self, config: &ReferencesConfig, opened: &Opened) -> Result<(Chosen, Chosen)> {
        let named = |reference: &Reference| matches!(reference, Reference::Checkpoint { .. });
        let mut kept = Vec::new();
        if !(named(&config.strong) && named(&config.weak)) {
            let (run, stage) = ancestor(&opened.experiment, &opened.state.stage)?;
            let Some(run) = run.or_else(|| opened.run()) else {
                return Err(Misuse(format!(
                    "refinement: {} lies in no run directory where chain-of-thought checkpoints \
                     would be; name {NAMED}",
                    opened.folder.display()
                ))
                .into());
            };
            for step in run.checkpoint_steps(&stage)? {
                let folder = run.checkpoint(&stage, step)?;
                let accuracy = self.accuracy(&folder, config.questions)?;
                kept.push(Chosen { folder, accuracy });
            }
        }
        let strong = self.pick(&config.strong, &kept, None, config.questions)?;
        let weak = self.pick(&config.weak, &kept, Some(&strong.folder), config.questions)?;
        Ok((strong, weak))
    }

    fn pick(
        &mut self,
        reference: &Reference,
        kept: &[Chosen],
        other: Option<&Path>,
        questions: usize,
    ) -> Result<Chosen> {
        let none = || {
            Misuse(format!(
                "refinement: the chain-of-thought stage has kept {} checkpoint(s), too few for a \
                 strong and a weak model; keep an early one (checkpoints.keep_at) or name {NAMED}",
                kept.len()
            ))
        };
        match reference {
            Reference::Checkpoint { path } => Ok(Chosen {
                folder: path.clone(),
                accuracy: self.accuracy(path, questions)?,
            }),
            Reference::Last => Ok(kept.last().ok_or_else(none)?.clone()),
            Reference::Early { low, high } => {
                let accuracies: Vec<f64> = kept.iter().map(|kept| kept.accuracy).collect();
                let free: Vec<bool> = kept
                    .iter()
                    .map(|kept| Some(kept.folder.as_path()) != other)
                    .collect();
                let index = early(&accuracies, &free, [*low, *high]).ok_or_else(none)?;
                Ok(kept[index].clone())
            }
        }
    }

    /// Accuracy of a checkpoint on validation questions, greedy and with plain latents where it has
    /// some.
    fn accuracy(&mut self, folder: &Path, questions: usize) -> Result<f64> {
        if let Some(accuracy) = self.accuracies.get(folder) {
            return Ok(*accuracy);
        }
        let opened = Opened::checkpoint(folder)?;
        let model = opened.load(self.device)?;
        let config = EvaluationConfig {
            timing_questions: 0,
            ..self.experiment.evaluation.clone()
        };
        let asked = Questions::new(self, questions)?;
        let room = Room::new(&model, Asked::new(None, &self.experiment.reasoning));
        let fitting = Fitting::new(&asked.task(self), &room, TooLong::Skip)?;
        let task = fitting.task(&asked.task(self));
        let method = model.method(self.device, &task, &config, &self.experiment.reasoning);
        let name = format!(
            "{} on validation",
            checkpoint_name(&opened.state.stage, folder)
        );
        let bar = progress(config.work(task.problems.len()), &name);
        let found = evaluate(&*method, task, &config, &mut |done| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        self.accuracies.insert(folder.to_owned(), found.accuracy());
        Ok(found.accuracy())
    }

    /// The transformer of a checkpoint, which must have shape and tokenizer of the student's.
    fn load(&mut self, folder: &Path, student: &Latent, opened: &Opened) -> Result<Transformer> {
        if let Some(model) = self.models.get(folder) {
            return Ok(model.clone());
        }
        let reference = Opened::checkpoint(folder)?;
        if reference.tokenizer.hash()? != opened.tokenizer.hash()? {
            return Err(Misuse(format!(
                "refinement: {} was trained with another tokenizer than {}",
                folder.display(),
                opened.folder.display()
            ))
            .into());
        }
        // It may read the student's cache, so it computes in the same floats.
        let precision = student.model.backbone.precision();
        let model = reference.load(self.device)?.backbone().clone();
        let model = model.with_precision(precision);
        if model.config() != student.model.backbone.config() {
            return Err(Misuse(format!(
                "refinement: the model in {} has another shape than the one in {}",
                folder.display(),
                opened.folder.display()
            ))
            .into());
        }
        self.models.insert(folder.to_owned(), model.clone());
        Ok(model)
    }

    fn calibrate(
        &self,
        variant: &Variant,
        references: &References,
        student: &Latent,
    ) -> Result<Calibrator> {
        let config = &variant.references;
        let mut asked = Questions::new(self, config.questions)?;
        let backbone = student.model.backbone.config();
        let steps = Asked::new(None, &self.experiment.reasoning);
        let room = Room::latent(&student.settings, backbone.context, steps);
        asked.retain(|problem| room.misfit(problem, self.workbench.layout).is_none());
        let task = asked.task(self);
        let evaluation = &self.experiment.evaluation;
        let method = student.method(self.device, &task, evaluation, &self.experiment.reasoning);
        let mut calibrator = Calibrator::new(backbone.d_model);
        let name = format!("calibrating {}", variant.label());
        let bar = progress(task.problems.len(), &name);
        let mut start = 0;
        while start < task.problems.len() {
            let end = (start + evaluation.batch_size).min(task.problems.len());
            let prompt = task.prompt(start..end)?;
            method
                .observe(&prompt, (&variant.refine, references), &mut calibrator)
                .context("refinement cannot be calibrated")?;
            start = end;
            bar.set_position(end as u64);
        }
        bar.finish_and_clear();
        Ok(calibrator)
    }
}

/// A checkpoint and how well it does.
#[derive(Clone, Debug)]
struct Chosen {
    folder: PathBuf,
    accuracy: f64,
}

impl Chosen {
    fn told(&self, role: &str) -> String {
        format!(
            "{role} {}, {:.1} % on validation",
            self.folder.display(),
            100.0 * self.accuracy
        )
    }
}

/// Index of the earliest of the free checkpoints whose accuracy is between two shares of the best, else
/// of the earliest of those nearest to that.
fn early(accuracies: &[f64], free: &[bool], [low, high]: [f64; 2]) -> Option<usize> {
    let best = accuracies.iter().copied().fold(0.0, f64::max);
    let away = |accuracy: f64| (low * best - accuracy).max(accuracy - high * best).max(0.0);
    let candidates = accuracies.iter().zip(free).enumerate();
    candidates
        .filter(|(_, (_, free))| **free)
        .min_by(|(_, (a, _)), (_, (b, _))| away(**a).total_cmp(&away(**b)))
        .map(|(index, _)| index)
}

/// Questions to set a refinement up with.
/// Validation questions, to choose and calibrate on.
struct Questions {
    problems: Vec<Problem>,
    encoded: Vec<EncodedProblem>,
}

impl Questions {
    fn new(preparation: &Preparation<'_>, limit: usize) -> Result<Self> {
        let workbench = preparation.workbench;
        let all = &workbench.corpus.validation;
        if all.is_empty() {
            return Err(Misuse(format!(
                "refinement: {} has no validation split to choose or calibrate on",
                preparation.experiment.data.name(),
            ))
            .into());
        }
        let indices = spread(all.len(), limit);
        let problems: Vec<_> = indices.map(|index| all[index].clone()).collect();
        let format = &preparation.experiment.format;
        Ok(Self {
            encoded: encode_all(&workbench.tokenizer, format, &problems)?,
            problems,
        })
    }

    /// Leaves out questions that do not fit.
    fn retain(&mut self, fits: impl Fn(&EncodedProblem) -> bool) {
        let kept: Vec<bool> = self.encoded.iter().map(fits).collect();
        let mut flags = kept.iter();
        self.problems.retain(|_| flags.next() == Some(&true));
        let mut flags = kept.iter();
        self.encoded.retain(|_| flags.next() == Some(&true));
    }

    fn task<'a>(&'a self, preparation: &Preparation<'a>) -> Task<'a> {
        Task {
            dataset: preparation.experiment.data.name(),
            split: "validation",
            problems: &self.problems,
            encoded: &self.encoded,
            tokenizer: &preparation.workbench.tokenizer,
            format: &preparation.experiment.format,
            layout: preparation.workbench.layout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_is_the_first_in_the_band_or_the_nearest_to_it() {
        let band = [0.25, 0.6];
        let all = |n: usize| vec![true; n];
        for (accuracies, expected) in [
            (&[0.1, 0.3, 0.5, 1.0][..], Some(1)),
            // Shares of the best, not of one.
            (&[0.05, 0.2, 0.4], Some(1)),
            (&[0.05, 0.2, 0.9, 1.0], Some(1)),
            (&[0.9, 0.8, 1.0], Some(1)),
            (&[0.0, 0.0], Some(0)),
            (&[], None),
        ] {
            assert_eq!(early(accuracies, &all(accuracies.len()), band), expected);
        }
        assert_eq!(early(&[0.9, 1.0], &[true, false], band), Some(0));
        assert_eq!(early(&[1.0], &[false], band), None);
    }
}
