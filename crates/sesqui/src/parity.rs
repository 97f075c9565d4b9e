//! The same computation on two devices: models of both families, every kind of stage of the quick start, and
//! answers, on the CPU and somewhere else.

use anyhow::{Context, Result, anyhow};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn::train::TrainStep;
use comfy_table::{CellAlignment, Table, presets};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_distill::loss::hidden_states;
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::{Align, Shortcut, Supervised};
use sesqui_eval::Task;
use sesqui_model::Transformer;
use sesqui_model::latent::LatentTransformer;
use sesqui_run::{ConfigSource, Resolved};
use sesqui_shortcut::{Shortcuts, SlotTrace};
use sesqui_trainer::objective::Objective as Learner;
use sesqui_trainer::{Batches, fresh_optimizer};

use crate::backend::{Backend, Place};
use crate::experiment::{Experiment, Objective, Stage};
use crate::reasoning::ReasoningConfig;
use crate::screen::spinner;
use crate::trained::{Latent, LatentSettings, Trained};
use crate::workbench::Workbench;

/// Questions that are answered on both devices.
const QUESTIONS: usize = 8;

/// Optimizer steps that are taken on both devices.
const STEPS: u64 = 3;

/// Largest difference of logits and states, as a share of the largest value; of a loss as a share of it; and of all
/// gradients as a share of their norm. 32-bit floats carry 6e-8; sums of some hundred products in another order differ
/// by less than 1e-6 here. Products that are rounded to 10 or 7 bits, as some cards do unasked, differ by 1e-3.
const FORWARD: f64 = 2e-5;
const GRADIENT: f64 = 1e-4;

/// As [`FORWARD`], for losses after optimizer steps: AdamW divides a gradient by its own size, so weights whose
/// gradient is all rounding go different ways, one learning rate far.
const AFTER_STEPS: f64 = 1e-4;

/// One thing that two devices should agree on.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Model and stage.
    pub subject: String,
    /// What is compared.
    pub what: &'static str,
    /// By how much they differ.
    pub difference: f64,
    /// By how much they may.
    pub tolerance: f64,
}

impl Check {
    /// Whether they agree. What is not a number does not.
    pub fn holds(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// As text, one row for each check.
pub fn table(checks: &[Check]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["model", "compared", "difference", "tolerance", ""]);
    for check in checks {
        table.add_row([
            check.subject.clone(),
            check.what.to_owned(),
            format!("{:.2e}", check.difference),
            format!("{:.0e}", check.tolerance),
            if check.holds() { "ok" } else { "FAILS" }.to_owned(),
        ]);
    }
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// Compares `place` with the CPU: logits, losses, gradients, three optimizer steps of each kind of stage, answers in
/// words, in latent steps, and on a staircase of shortcuts.
///
/// # Errors
///
/// When something cannot be computed at all.
pub fn compare(place: &Place) -> Result<Vec<Check>> {
    let reference = Backend::Cpu.open(&[], None)?;
    let mut checks = Vec::new();
    for family in [GPT_2, LLAMA] {
        let experiment = experiment(family)?.value;
        let workbench = Workbench::new(&experiment, "".as_ref())?;
        let pair = Pair {
            family: family.0,
            experiment: &experiment,
            workbench: &workbench,
            here: reference.home().clone(),
            there: place.home().clone(),
        };
        pair.all(&mut checks)?;
    }
    Ok(checks)
}

/// A family of models, and how to make the quick start's of it.
type Family = (&'static str, &'static [&'static str]);

const GPT_2: Family = ("gpt2", &[]);
const LLAMA: Family = ("llama", &["model.family=llama", "model.key_value_heads=2"]);

/// The quick start with less data, and with its full model.
fn experiment((_, overrides): Family) -> Result<Resolved<Experiment>> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let resolved: Resolved<Experiment> = sesqui_run::load(ConfigSource::Defaults, &overrides)?;
    let mut experiment = resolved.value;
    experiment.data.shrink(100);
    Ok(Resolved::frozen(experiment)?)
}

/// One family on two devices.
struct Pair<'a> {
    family: &'static str,
    experiment: &'a Experiment,
    workbench: &'a Workbench,
    here: Device,
    there: Device,
}

impl Pair<'_> {
    fn all(&self, checks: &mut Vec<Check>) -> Result<()> {
        let vocabulary = self.workbench.tokenizer.vocab_size();
        let home = self.here.clone().autodiff();
        let shape = &self.experiment.model;
        let backbone = Transformer::new(shape, vocabulary, self.experiment.seed, &home)?;
        for stage in &self.experiment.stages {
            match &stage.objective {
                Objective::Cot => self.words(stage, &backbone, checks)?,
                Objective::Align(_) | Objective::Shortcut(_) => {
                    self.latents(stage, &backbone, checks)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn words(&self, stage: &Stage, backbone: &Transformer, checks: &mut Vec<Check>) -> Result<()> {
        let seed = self.experiment.seed;
        let (batches, _) = self
            .workbench
            .batches(stage, backbone.config().context, seed)?;
        let batch = batches.batch(0).map_err(anyhow::Error::msg)?;
        let plain = backbone.valid();
        let moved = plain.clone().to_device(&self.there);
        checks.push(self.check(
            stage,
            "logits",
            relative(&logits(&plain, &batch), &logits(&moved, &batch)),
            FORWARD,
        ));
        self.learn(stage, Supervised::new(backbone.clone()), &batches, checks)?;

        let task = self.task()?;
        let prompt = task.prompt(0..QUESTIONS)?;
        let answers = |model: Transformer, device: &Device| {
            let model = Trained::tokens(model);
            let (config, reasoning) = (&self.experiment.evaluation, &self.experiment.reasoning);
            let responses = model.method(device, &task, config, reasoning);
            let responses = responses.respond(&prompt)?;
            anyhow::Ok(
                responses
                    .rows
                    .into_iter()
                    .map(|row| row.tokens)
                    .collect::<Vec<_>>(),
            )
        };
        let differing = differing(&answers(plain, &self.here)?, &answers(moved, &self.there)?);
        checks.push(self.check(stage, "answers that differ", differing, 0.0));
        Ok(())
    }

    fn latents(
        &self,
        stage: &Stage,
        backbone: &Transformer,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let (seed, context) = (self.experiment.seed, backbone.config().context);
        let device = backbone.device();
        let align = self.experiment.stages.iter().find_map(|stage| {
            let Objective::Align(config) = &stage.objective else {
                return None;
            };
            Some(config)
        });
        let align = align.context("the quick start has a latent stage")?;
        let settings = self.workbench.latent_settings(align);
        let feedback = &settings.latents.feedback;
        let student = LatentTransformer::new(backbone.clone(), feedback, seed, &device);
        match &stage.objective {
            Objective::Shortcut(config) => {
                let settings = settings.with_shortcuts(config);
                let rollout = move |step| exits_drawn(seed, step);
                let (batches, _) = self
                    .workbench
                    .latent_batches(stage, &settings, context, seed, rollout)?;
                let shortcuts = Shortcuts::new(&config.shortcuts, backbone.config(), seed, &device);
                let shortcuts = outspoken(shortcuts);
                let model = Shortcut::new(student.clone(), shortcuts.clone(), backbone, config);
                self.learn(stage, model, &batches, checks)?;
                self.answer(stage, &student, Some(&shortcuts), &settings, checks)
            }
            _ => {
                let rollout = align.rollouts(seed, stage.training.steps);
                let (batches, _) = self
                    .workbench
                    .latent_batches(stage, &settings, context, seed, rollout)?;
                let model = Align::new(student.clone(), backbone, align);
                self.learn(stage, model, &batches, checks)?;
                self.answer(stage, &student, None, &settings, checks)
            }
        }
    }

    /// Losses and gradients of one batch, then losses along three optimizer steps.
    fn learn<M: Learner>(
        &self,
        stage: &Stage,
        model: M,
        batches: &dyn Batches<<M as TrainStep>::Input>,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let waiting = spinner(&format!("{}: {}", self.family, stage.name));
        let begun = |device: &Device| -> Result<(Vec<f64>, Vec<f64>)> {
            let model = model.clone().fork(&device.clone().autodiff());
            let batch = batches.batch(0).map_err(anyhow::Error::msg)?;
            let output = TrainStep::step(&model, batch);
            let losses = output.item.losses.into_data().iter::<f64>().collect();
            Ok((losses, gradients(&model, &output.grads)))
        };
        let (here, there) = (begun(&self.here)?, begun(&self.there)?);
        checks.push(self.check(stage, "losses", relative(&here.0, &there.0), FORWARD));
        let difference = norm(&minus(&here.1, &there.1)?) / norm(&here.1);
        checks.push(self.check(stage, "gradients", difference, GRADIENT));

        let along = |device: &Device| -> Result<Vec<f64>> {
            let mut model = model.clone().fork(&device.clone().autodiff());
            let mut optimizer = fresh_optimizer(&stage.training);
            let mut losses = Vec::new();
            for step in 0..=STEPS {
                // Parts lie side by side; the first of each step is enough.
                let index = step * stage.training.accumulation;
                let batch = batches.batch(index).map_err(anyhow::Error::msg)?;
                let output = TrainStep::step(&model, batch);
                losses.extend(output.item.losses.into_data().iter::<f64>().take(1));
                model = optimizer.step(1e-3, model, output.grads);
            }
            Ok(losses)
        };
        let difference = relative(&along(&self.here)?, &along(&self.there)?);
        checks.push(self.check(
            stage,
            "losses in 3 optimizer steps",
            difference,
            AFTER_STEPS,
        ));
        waiting.finish_and_clear();
        Ok(())
    }

    /// States, exits and answers of latent reasoning, all layers or where the routers say.
    fn answer(
        &self,
        stage: &Stage,
        student: &LatentTransformer,
        shortcuts: Option<&Shortcuts>,
        settings: &LatentSettings,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let task = self.task()?;
        let prompt = task.prompt(0..QUESTIONS)?;
        let decoded = |device: &Device, exit_threshold: f64| {
            let on = |shortcuts: &Shortcuts| shortcuts.valid().to_device(device);
            let model = student.valid().to_device(device);
            let latent = Latent::new(model, shortcuts.map(on), settings.clone());
            let reasoning = ReasoningConfig {
                exit_threshold,
                ..self.experiment.reasoning.clone()
            };
            let config = &self.experiment.evaluation;
            let decoded = latent
                .method(device, &task, config, &reasoning)
                .decode(&prompt)?;
            let traces: Vec<Vec<SlotTrace>> =
                decoded.rows.iter().map(|row| row.slots.clone()).collect();
            anyhow::Ok((decoded, traces))
        };
        let threshold = match shortcuts {
            None => 1.0,
            // At 1 routers are not asked; just below it they are, and nothing leaves.
            Some(_) => between(&decoded(&self.here, 1.0 - f64::EPSILON)?.1)?,
        };
        let (here, traces) = decoded(&self.here, threshold)?;
        let (there, other) = decoded(&self.there, threshold)?;
        let places = |traces: &[Vec<SlotTrace>]| {
            let rows = traces.iter();
            let places = rows.map(|row| row.iter().map(|slot| (slot.enter, slot.leave)).collect());
            places.collect::<Vec<Vec<(usize, usize)>>>()
        };
        if shortcuts.is_some() {
            let (places, others) = (places(&traces), places(&other));
            let leaves = |row: &Vec<(usize, usize)>| {
                row.iter()
                    .any(|&(_, leave)| leave < student.backbone.layers.len())
            };
            if !places.iter().any(leaves) {
                return Err(anyhow!("no latent step leaves early at {threshold}"));
            }
            let differing = differing(&places, &others);
            checks.push(self.check(stage, "staircases that differ", differing, 0.0));
        }
        let states = |states: &[Tensor<3>]| -> Vec<f64> {
            let states = states.iter().cloned();
            states.flat_map(|states| values(&states)).collect()
        };
        let difference = relative(&states(&here.states), &states(&there.states));
        checks.push(self.check(stage, "states of latent steps", difference, FORWARD));
        let tokens = |rows: &[sesqui_reason::latent::LatentRow]| -> Vec<Vec<u32>> {
            rows.iter().map(|row| row.tokens.clone()).collect()
        };
        let differing = differing(&tokens(&here.rows), &tokens(&there.rows));
        checks.push(self.check(stage, "answers that differ", differing, 0.0));
        Ok(())
    }

    fn task(&self) -> Result<Task<'_>> {
        let tasks = self.workbench.test_tasks(self.experiment);
        tasks.into_iter().next().context("there is a test set")
    }

    fn check(&self, stage: &Stage, what: &'static str, difference: f64, tolerance: f64) -> Check {
        Check {
            subject: format!("{}, {}", self.family, stage.name),
            what,
            difference,
            tolerance,
        }
    }
}

/// With routers that do not say the same of every state, as untrained ones do.
fn outspoken(mut shortcuts: Shortcuts) -> Shortcuts {
    for (router, adapter) in shortcuts.routers.iter_mut().zip(&shortcuts.adapters) {
        let [wide, one] = router.output.weight.dims();
        let weight = adapter.down.weight.val();
        let weight = weight.narrow(0, 0, wide).narrow(1, 0, one).detach();
        router.output.weight = Param::from_tensor(weight.require_grad());
    }
    shortcuts
}

/// A threshold in the widest gap between weights of the middle half, so that rounding decides no exit.
fn between(traces: &[Vec<SlotTrace>]) -> Result<f64> {
    let slots = traces.iter().flatten();
    let weights = slots.flat_map(|slot| slot.weights.iter().map(|(_, weight)| f64::from(*weight)));
    let mut weights: Vec<f64> = weights.collect();
    weights.sort_by(f64::total_cmp);
    let middle = &weights[weights.len() / 4..weights.len() - weights.len() / 4];
    let gap = middle
        .windows(2)
        .max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0])));
    gap.map(|gap| (gap[0] + gap[1]) / 2.0)
        .context("routers were not asked")
}

fn logits(model: &Transformer, batch: &SequenceBatch) -> Vec<f64> {
    let normed = model.final_norm(hidden_states(model, batch));
    values(&model.head(normed))
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.clone().into_data().iter::<f64>().collect()
}

/// All gradients, one parameter after the other; zeros where there is none.
fn gradients<M: Module>(model: &M, gradients: &GradientsParams) -> Vec<f64> {
    struct Visitor<'a> {
        gradients: &'a GradientsParams,
        all: Vec<f64>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match self.gradients.get::<D>(param.id) {
                Some(gradient) => self.all.extend(values(&gradient)),
                None => {
                    let zeros = param.shape().num_elements();
                    self.all.extend(std::iter::repeat_n(0.0, zeros));
                }
            }
        }
    }
    let mut visitor = Visitor {
        gradients,
        all: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.all
}

fn minus(left: &[f64], right: &[f64]) -> Result<Vec<f64>> {
    if left.len() != right.len() {
        return Err(anyhow!("{} and {} values", left.len(), right.len()));
    }
    Ok(left.iter().zip(right).map(|(a, b)| a - b).collect())
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The largest difference as a share of the largest value; not a number where there is one that is none.
fn relative(here: &[f64], there: &[f64]) -> f64 {
    if here.len() != there.len() {
        return f64::NAN;
    }
    let largest = here
        .iter()
        .fold(0.0_f64, |most, value| most.max(value.abs()));
    let mut difference = 0.0_f64;
    for (a, b) in here.iter().zip(there) {
        if !(a - b).is_finite() {
            return f64::NAN;
        }
        difference = difference.max((a - b).abs());
    }
    difference / largest
}

/// How many differ.
fn differing<T: PartialEq>(here: &[T], there: &[T]) -> f64 {
    here.iter().zip(there).filter(|(a, b)| a != b).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_to_the_bit() {
        let place = Backend::Cpu.open(&[], None).unwrap();
        let checks = compare(&place).unwrap();
        assert!(checks.len() > 25, "{}", table(&checks));
        for check in &checks {
            assert_eq!(check.difference, 0.0, "{check:?}");
        }
    }

    #[test]
    fn differences_are_found() {
        assert_eq!(relative(&[1.0, -4.0], &[1.0, -3.0]), 0.25);
        for bad in [f64::NAN, f64::INFINITY] {
            let difference = relative(&[1.0, 2.0], &[1.0, bad]);
            let check = Check {
                subject: String::new(),
                what: "x",
                difference,
                tolerance: 1.0,
            };
            assert!(!check.holds(), "{bad}");
        }
        assert!(relative(&[1.0], &[]).is_nan());
        assert_eq!(differing(&[1, 2, 3], &[1, 3, 2]), 2.0);
        assert!(minus(&[1.0], &[]).is_err());
    }
}
