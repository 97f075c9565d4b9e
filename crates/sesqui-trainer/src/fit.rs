//! The loop.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use burn::train::{Interrupter, TrainStep};
use sesqui_kernels::{AdamW, read};
use sesqui_run::{MetricRow, RowError, RowWriter};

use crate::checkpoint::{CheckpointError, Checkpoints, State, load_model, load_optimizer};
use crate::config::{EarlyStopping, TrainingConfig};
use crate::gradients;
use crate::objective::{Batches, Objective, StepOutput};
use crate::parameters::with_stable_ids;
use crate::profile::{Phase, Profile};
use crate::render::{Plan, Renderer, duration};
use crate::workers::Workers;

/// Everything the loop works with besides the model.
pub struct Fit<'a, M: Objective> {
    /// Name of the stage, in rows, lines and checkpoints.
    pub stage: &'a str,
    /// How long and how.
    pub config: &'a TrainingConfig,
    /// Seed of all random streams.
    pub seed: u64,
    /// Where to train; with autodiff. The parts of a step are spread over them, weights and optimizer
    /// live on the first. One device several times stands for as many workers on it, which then share
    /// its generator: a step that draws random numbers on the device needs a device per worker.
    pub devices: &'a [Device],
    /// The training data.
    pub batches: &'a dyn Batches<<M as TrainStep>::Input>,
    /// Whether the optimizer forgets its moments before the given step, counted from 0, as if it had just
    /// been made. A function of the step alone: a run that resumes asks again.
    pub resets: &'a dyn Fn(u64) -> bool,
    /// Where checkpoints live; the latest is resumed from.
    pub checkpoints: &'a Checkpoints,
    /// What a person sees.
    pub renderer: &'a mut Renderer,
    /// `metrics.jsonl`.
    pub metrics: &'a mut RowWriter<MetricRow>,
    /// Asks the loop to stop after the step at hand.
    pub interrupter: &'a Interrupter,
    /// Measures the model, in validation mode, after the given step.
    pub validate: &'a mut dyn FnMut(&M, u64) -> Result<Validation, String>,
}

/// What a validation found.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// Mean loss in nats per target token.
    pub loss: Option<f64>,
    /// Accuracy in `[0, 1]`: what early stopping looks at.
    pub accuracy: Option<f64>,
    /// Anything else worth a column.
    pub values: BTreeMap<String, f64>,
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All steps done, or stopped early by rule.
    Finished,
    /// Asked to stop; a checkpoint was written.
    Interrupted,
}

/// The trained model and where training stands.
#[derive(Debug)]
pub struct Outcome<M> {
    /// The model as after the last step.
    pub model: M,
    /// The final state, as in the last checkpoint.
    pub state: State,
    /// Why the loop ended.
    pub stop: Stop,
    /// Where its time went.
    pub profile: Profile,
}

/// Why training failed. The latest checkpoint is untouched.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A loss or the gradient was not a number.
    #[error(
        "stage {stage}, step {step}: {what} is {value}; the batch held {rows}. Weights were not \
         updated; lower training.learning_rate.peak or look at those rows"
    )]
    NotFinite {
        /// The stage.
        stage: String,
        /// 1-based step.
        step: u64,
        /// Which quantity.
        what: String,
        /// Its value.
        value: f64,
        /// Rows of the batch.
        rows: String,
    },
    /// No parameter received a gradient.
    #[error("stage {stage}: no parameter receives a gradient; is everything frozen?")]
    NothingToTrain {
        /// The stage.
        stage: String,
    },
    /// The data could not be batched.
    #[error("stage {stage}, step {step}: {reason}")]
    Data {
        /// The stage.
        stage: String,
        /// 1-based step.
        step: u64,
        /// What is wrong.
        reason: String,
    },
    /// A worker of a step spread over several failed.
    #[error("stage {stage}, step {step}: {reason}")]
    Worker {
        /// The stage.
        stage: String,
        /// 1-based step.
        step: u64,
        /// What it said.
        reason: String,
    },
    /// A resumed stage was begun with another seed.
    #[error(
        "stage {stage} was begun with seed {found} and is asked to resume with seed {wanted}; \
         use the same seed or a fresh run directory"
    )]
    OtherSeed {
        /// The stage.
        stage: String,
        /// In the checkpoint.
        found: u64,
        /// Asked for.
        wanted: u64,
    },
    /// Validation failed.
    #[error("stage {stage}, validation after step {step}: {reason}")]
    Validation {
        /// The stage.
        stage: String,
        /// The step.
        step: u64,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The metrics file could not be written.
    #[error(transparent)]
    Rows(#[from] RowError),
}

/// Trains `model`, resuming from the latest checkpoint if there is one.
///
/// # Errors
///
/// See [`FitError`]. Being asked to stop is not an error.
pub fn fit<M: Objective>(model: M, mut job: Fit<'_, M>) -> Result<Outcome<M>, FitError> {
    let config = job.config;
    job.checkpoints.sweep()?;
    let (mut model, mut optimizer, mut state) = resume(with_stable_ids(model), &job)?;
    if !state.finished && !gradients::wanted(&model) {
        return Err(FitError::NothingToTrain {
            stage: job.stage.to_owned(),
        });
    }
    // A finished stage has no rows too many, and what follows its own belongs to later stages.
    if !state.finished {
        job.metrics.truncate_after(job.stage, state.step)?;
    }
    job.renderer.start(Plan {
        stage: job.stage.to_owned(),
        steps: config.steps,
        done: state.step,
        log_every: config.log_every,
    });
    let workers = Workers::new(job.devices, config.accumulation as usize);
    let clock = Instant::now();
    let mut profile = Profile::default();
    let mut saved = state.step;
    while !state.finished {
        if job.interrupter.should_stop() {
            if saved != state.step {
                job.metrics.sync()?;
                job.checkpoints.save(&model, &optimizer, &state)?;
            }
            job.renderer.end(&format!(
                "{}: stopped after step {}, saved",
                job.stage, state.step
            ));
            return Ok(Outcome {
                model,
                state,
                stop: Stop::Interrupted,
                profile,
            });
        }
        if (job.resets)(state.step) {
            optimizer = fresh_optimizer(config);
        }
        let begun = Instant::now();
        // Burn's learning rate is a plain number to the optimizer; ours is a function of the step.
        let rate = config.learning_rate.rate(state.step, config.steps);
        let step = step(&model, &workers, &job, &state, &mut profile)?;
        model = optimizer.step(rate, model, step.gradients);
        profile.book(Phase::Update);
        profile.count_step();
        state.step += 1;
        state.next_batch += config.accumulation;
        state.tokens += step.tokens as u64;

        let mut row = MetricRow::new(job.stage, state.step, "train");
        row.loss = Some(step.losses[0].1);
        row.learning_rate = Some(rate);
        row.gradient_norm = Some(step.norm);
        row.tokens = state.tokens;
        row.tokens_per_second = Some(step.tokens as f64 / begun.elapsed().as_secs_f64());
        row.elapsed_seconds = clock.elapsed().as_secs_f64();
        row.values = step.losses[1..]
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        job.metrics.append(&row)?;
        job.renderer.step(&row);
        profile.book(Phase::Report);

        let last = state.step >= config.steps;
        state.finished = last;
        if last || (config.validate_every > 0 && state.step.is_multiple_of(config.validate_every)) {
            validate(&model, &mut job, &mut state, clock)?;
            profile.book(Phase::Validation);
        }
        if state.finished || job.checkpoints.due(state.step) {
            job.metrics.sync()?;
            job.checkpoints.save(&model, &optimizer, &state)?;
            saved = state.step;
            profile.book(Phase::Checkpoints);
        }
    }
    job.renderer.end(&format!(
        "{}: done after {} steps in {}",
        job.stage,
        state.step,
        duration(clock.elapsed().as_secs_f64())
    ));
    Ok(Outcome {
        model,
        state,
        stop: Stop::Finished,
        profile,
    })
}

/// An optimizer without moments.
pub fn fresh_optimizer(config: &TrainingConfig) -> ModuleOptimizer {
    let betas = [config.beta_1, config.beta_2];
    ModuleOptimizer::from(AdamW::new(betas, config.epsilon, config.weight_decay))
}

/// Model, optimizer and state as of the latest checkpoint, or of the start.
fn resume<M: Objective>(
    model: M,
    job: &Fit<'_, M>,
) -> Result<(M, ModuleOptimizer, State), FitError> {
    let optimizer = fresh_optimizer(job.config);
    let Some(state) = job.checkpoints.latest()? else {
        return Ok((model, optimizer, State::start(job.stage, job.seed)));
    };
    if state.seed != job.seed {
        return Err(FitError::OtherSeed {
            stage: job.stage.to_owned(),
            found: state.seed,
            wanted: job.seed,
        });
    }
    let folder = job.checkpoints.path(state.step);
    Ok((
        load_model(&folder, model)?,
        load_optimizer(&folder, optimizer)?,
        state,
    ))
}

/// One step's gradients, clipped, and what is to be said about it.
struct Step {
    gradients: GradientsParams,
    losses: Vec<(&'static str, f64)>,
    norm: f64,
    tokens: usize,
}

fn step<M: Objective>(
    model: &M,
    workers: &Workers<M>,
    job: &Fit<'_, M>,
    state: &State,
    profile: &mut Profile,
) -> Result<Step, FitError> {
    let config = job.config;
    let stage = || job.stage.to_owned();
    for device in job.devices {
        device.seed(stream(job.seed, state.step));
    }
    let mut batches = Vec::with_capacity(config.accumulation as usize);
    for index in state.next_batch..state.next_batch + config.accumulation {
        batches.push(job.batches.batch(index).map_err(|reason| FitError::Data {
            stage: stage(),
            step: state.step + 1,
            reason,
        })?);
    }
    profile.book(Phase::Batches);
    let parts = workers
        .compute(model, batches)
        .map_err(|reason| FitError::Worker {
            stage: stage(),
            step: state.step + 1,
            reason,
        })?;
    let mut accumulator = GradientsAccumulator::new();
    let mut outputs: Vec<StepOutput> = Vec::with_capacity(parts.len());
    let mut single = None;
    for (output, gradients) in parts {
        if config.accumulation == 1 {
            single = Some(gradients);
        } else {
            accumulator.accumulate(model, gradients);
        }
        outputs.push(output);
    }
    let mut gradients = single.unwrap_or_else(|| accumulator.grads());
    let share = 1.0 / config.accumulation as f64;
    let squared = gradients::squared_norm(model, &gradients)
        .ok_or_else(|| FitError::NothingToTrain { stage: stage() })?;

    profile.book(Phase::Gradients);
    // The one host read of a step: all losses and the norm together.
    let names = outputs[0].names;
    let tokens = outputs.iter().map(|output| output.tokens).sum();
    let losses = outputs
        .into_iter()
        .map(|output| output.losses)
        .reduce(|sum, losses| sum + losses)
        .map(|sum| sum.mul_scalar(share));
    let values: Vec<f64> = read(Tensor::cat(
        losses.into_iter().chain([squared]).collect(),
        0,
    ))
    .iter::<f32>()
    .map(f64::from)
    .collect();
    profile.book(Phase::Read);
    let (norm, losses) = match values.split_last() {
        Some((squared, losses)) => (squared.sqrt() * share, losses),
        None => (0.0, &[] as &[f64]),
    };
    let losses: Vec<(&'static str, f64)> =
        names.iter().copied().zip(losses.iter().copied()).collect();
    let quantities = losses.iter().copied().chain([("the gradient norm", norm)]);
    for (what, value) in quantities {
        if !value.is_finite() {
            let rows: Vec<String> = (state.next_batch..state.next_batch + config.accumulation)
                .map(|index| job.batches.rows(index))
                .collect();
            return Err(FitError::NotFinite {
                stage: stage(),
                step: state.step + 1,
                what: what.to_owned(),
                value,
                rows: rows.join("; "),
            });
        }
    }
    let clip = if config.clip_norm > 0.0 && norm > config.clip_norm {
        config.clip_norm / norm
    } else {
        1.0
    };
    if clip * share != 1.0 {
        gradients::scale(model, &mut gradients, clip * share);
    }
    Ok(Step {
        gradients,
        losses,
        norm,
        tokens,
    })
}

fn validate<M: Objective>(
    model: &M,
    job: &mut Fit<'_, M>,
    state: &mut State,
    clock: Instant,
) -> Result<(), FitError> {
    job.renderer.validating();
    // Validation mode drops autodiff: forward passes without a backward would keep their graph.
    let found =
        (job.validate)(&model.valid(), state.step).map_err(|reason| FitError::Validation {
            stage: job.stage.to_owned(),
            step: state.step,
            reason,
        })?;
    let mut row = MetricRow::new(job.stage, state.step, "validation");
    row.loss = found.loss;
    row.tokens = state.tokens;
    row.elapsed_seconds = clock.elapsed().as_secs_f64();
    row.values = found.values;
    row.values.extend(
        found
            .accuracy
            .map(|accuracy| ("accuracy".to_owned(), accuracy)),
    );
    job.metrics.append(&row)?;
    job.renderer.validation(&row);
    if let Some(accuracy) = found.accuracy {
        if state.best_accuracy.is_none_or(|best| accuracy > best) {
            state.best_accuracy = Some(accuracy);
            state.best_step = state.step;
            state.stalled = 0;
        } else {
            state.stalled += 1;
        }
        state.finished |= match job.config.early_stopping {
            EarlyStopping::Never => false,
            EarlyStopping::Reached { accuracy: mark } => accuracy >= mark,
            EarlyStopping::Stalled { patience } => state.stalled >= patience,
        };
    }
    Ok(())
}

/// A seed for step `step`, so far from its neighbours that streams do not overlap (SplitMix64).
fn stream(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add((step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
