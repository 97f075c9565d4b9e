//! What training took: steps, tokens, seconds, operations.

use std::ops::Add;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_distill::align::Teacher;
use sesqui_distill::curriculum::{Distillation, StepSupervision, dictated};
use sesqui_distill::latent::{Correction, Rollout};
use sesqui_distill::rollout::exits_drawn;
use sesqui_distill::shortcut::{ShortcutLoss, StudentInputs, Trains};
use sesqui_distill::{
    AlignConfig, CurriculumConfig, Cuts, EarlyExitBatch, EarlyExitBatches, LatentBatch,
    LatentProblem, ShortcutStageConfig, ThoughtBatch,
};
use sesqui_model::flops::Flops;
use sesqui_run::rows::read_rows;
use sesqui_run::{MetricRow, RunPaths};
use sesqui_trainer::Batches;

use crate::experiment::{Experiment, Objective, Stage};
use crate::stage::keeps_lessons;
use crate::start::{latent_settings, shape};
use crate::workbench::{Workbench, spread};

/// Optimizer steps whose batches are looked at to count operations; longer training is extrapolated. A prime, so
/// that they do not fall in with what changes every few updates.
const STEPS_COUNTED: usize = 997;

/// What training took; means where several runs are pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingCost {
    /// Optimizer steps.
    pub steps: f64,
    /// Tokens without padding, of a latent model latent steps among them.
    pub tokens: f64,
    /// Seconds in optimizer steps; neither validation nor checkpoints, nor what was lost to a crash, nor a teacher that
    /// reads every problem before the first step, whose operations do count.
    pub seconds: f64,
    /// Floating-point operations; `None` where they are not counted.
    pub flops: Option<f64>,
}

impl Add for TrainingCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            steps: self.steps + other.steps,
            tokens: self.tokens + other.tokens,
            seconds: self.seconds + other.seconds,
            flops: self.flops.zip(other.flops).map(|(one, two)| one + two),
        }
    }
}

impl TrainingCost {
    /// The mean of some; nothing where there are none.
    pub fn mean(costs: &[Self]) -> Self {
        let Some(sum) = costs.iter().copied().reduce(Add::add) else {
            return Self::default();
        };
        let n = costs.len() as f64;
        Self {
            steps: sum.steps / n,
            tokens: sum.tokens / n,
            seconds: sum.seconds / n,
            flops: sum.flops.map(|flops| flops / n),
        }
    }
}

/// What training a stage took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageCost {
    /// Its name in the run.
    pub stage: String,
    /// Its own training.
    pub own: TrainingCost,
    /// With that of all stages of the run that it goes back to. What came from a checkpoint or a published
    /// model is not in it.
    pub with_ancestors: TrainingCost,
}

/// The costs of all stages of a trained run.
///
/// # Errors
///
/// When its metrics cannot be read, or data that it was trained on does not fit any more.
pub fn stage_costs(
    experiment: &Experiment,
    workbench: &Workbench,
    paths: &RunPaths,
) -> Result<Vec<StageCost>> {
    let (rows, _) = read_rows::<MetricRow>(&paths.metrics())?;
    let own = experiment
        .stages
        .iter()
        .map(|stage| {
            let taken = taken(&stage.name, &rows);
            let flops = operations(experiment, workbench, stage, taken.steps as u64)?;
            Ok(TrainingCost { flops, ..taken })
        })
        .collect::<Result<Vec<TrainingCost>>>()?;
    let cost = |name: &str| {
        let index = experiment
            .stages
            .iter()
            .position(|stage| stage.name == name);
        index.map(|index| own[index])
    };
    let costs = experiment.stages.iter().zip(&own);
    let nothing = TrainingCost {
        flops: Some(0.0),
        ..TrainingCost::default()
    };
    Ok(costs
        .map(|(stage, own)| {
            let ancestry = experiment.ancestry(&stage.name).into_iter();
            let all = ancestry.filter_map(|ancestor| cost(&ancestor.name));
            StageCost {
                stage: stage.name.clone(),
                own: *own,
                with_ancestors: all.fold(nothing, Add::add),
            }
        })
        .collect())
}

/// Operations that training each stage will take, if it trains to the end.
///
/// # Errors
///
/// When data does not fit, or a start cannot be read.
pub fn planned(
    experiment: &Experiment,
    workbench: &Workbench,
) -> Result<Vec<(String, Option<f64>)>> {
    experiment
        .stages
        .iter()
        .map(|stage| {
            let steps = stage.training.steps;
            let flops = operations(experiment, workbench, stage, steps)?;
            Ok((stage.name.clone(), flops))
        })
        .collect()
}

/// Steps, tokens and seconds as the rows of `metrics.jsonl` have them. The clock of a row starts anew where
/// training is gone on with; the tokens of a step over its tokens per second are its time wherever it ran.
fn taken(stage: &str, rows: &[MetricRow]) -> TrainingCost {
    let steps = rows
        .iter()
        .filter(|row| row.stage == stage && row.split == "train");
    let mut cost = TrainingCost::default();
    for row in steps {
        let tokens = row.tokens as f64;
        if let Some(rate) = row.tokens_per_second.filter(|rate| *rate > 0.0) {
            cost.seconds += (tokens - cost.tokens) / rate;
        }
        cost.tokens = tokens;
        cost.steps = row.step as f64;
    }
    cost
}

/// Operations of `steps` optimizer steps, counted on the very batches: matrix products of layers and head, a
/// multiply-add being two, as [`Flops`] has them for inference. A backward pass is two forward passes, one for
/// the derivatives of the inputs and one for those of the weights; of frozen weights the second is not made.
/// Forward passes that teach (the teacher's, and those by which a student feeds itself) count as they are: those of
/// a teacher whose states are kept once for every problem.
/// Steps that leave early count as if they ran all layers; routers, adapters, validation and the optimizer
/// are not counted. `None` for a halting head, whose labels cost more than its training.
fn operations(
    experiment: &Experiment,
    workbench: &Workbench,
    stage: &Stage,
    steps: u64,
) -> Result<Option<f64>> {
    let shape = shape(experiment, stage)?;
    let counter = Counter {
        flops: Flops::new(&shape, workbench.tokenizer.vocab_size()),
    };
    let (context, seed) = (shape.context, experiment.seed);
    let parts = stage.training.accumulation;
    let latent = |rollout: Box<dyn Fn(u64) -> Rollout + Send + Sync>,
                  of: &dyn Fn(&LatentBatch, f64) -> f64|
     -> Result<Option<f64>> {
        let Some(settings) = latent_settings(experiment, workbench, stage)? else {
            return Ok(None);
        };
        let (batches, _) = workbench.latent_batches(stage, &settings, context, seed, rollout)?;
        let (once, each) = match keeps_lessons(stage, batches.problems(), shape.d_model) {
            true => (counter.lessons(batches.problems()), 0.0),
            false => (0.0, 1.0),
        };
        let of = |batch: &LatentBatch| of(batch, each);
        Ok(Some(once + total(&batches, steps, parts, &of)?))
    };
    let cut = |cuts: Cuts| -> Result<Option<f64>> {
        let (batches, _) = workbench.cut_batches(stage, cuts, context, seed)?;
        let of = |batch: &SequenceBatch| 3.0 * counter.chain(batch, true);
        total(&batches, steps, parts, &of).map(Some)
    };
    match &stage.objective {
        Objective::Cot | Objective::NoCot => {
            let (batches, _) = workbench.batches(stage, context, seed)?;
            let of = |batch: &SequenceBatch| 3.0 * counter.chain(batch, true);
            total(&batches, steps, parts, &of).map(Some)
        }
        Objective::Align(config) => {
            let rollout = config.rollouts(seed, stage.training.steps);
            latent(Box::new(rollout), &|batch, taught| {
                counter.align(config, batch, taught)
            })
        }
        Objective::Shortcut(config) => {
            let rollout = move |step| exits_drawn(seed, step);
            latent(Box::new(rollout), &|batch, taught| {
                counter.shortcut(config, batch, taught)
            })
        }
        Objective::Joint(config) => {
            let rollout = config.align.rollouts(seed, stage.training.steps);
            latent(Box::new(rollout), &|batch, taught| {
                counter.align(&config.align, batch, taught)
                    + counter.shortcut(&config.shortcut, batch, taught)
            })
        }
        Objective::Curriculum(config) => {
            let plan = workbench.curriculum(stage, config);
            if config.thought.feedback().is_none() {
                return cut(Cuts::Steps(plan));
            }
            let (batches, _) = workbench.thought_batches(stage, config, &plan, context, seed)?;
            let of = |batch: &ThoughtBatch| counter.curriculum(config, batch);
            total(&batches, steps, parts, &of).map(Some)
        }
        Objective::Icot(config) => cut(Cuts::Tokens(config.plan(workbench.training()))),
        Objective::EarlyExit(config) => {
            let (batches, _) = workbench.batches(stage, context, seed)?;
            let plan = config.plan(shape.layers, stage.training.steps);
            let batches = EarlyExitBatches::new(batches, plan, seed);
            let of = |batch: &EarlyExitBatch| 3.0 * counter.early_exit(batch);
            total(&batches, steps, parts, &of).map(Some)
        }
        Objective::Halt(_) => Ok(None),
    }
}

/// The sum of `of` over the batches of `steps` optimizer steps, from steps spread over all of them.
fn total<B>(
    batches: &dyn Batches<B>,
    steps: u64,
    parts: u64,
    of: &dyn Fn(&B) -> f64,
) -> Result<f64> {
    let looked_at: Vec<usize> = spread(steps as usize, STEPS_COUNTED).collect();
    let mut sum = 0.0;
    for &step in &looked_at {
        for part in 0..parts {
            let batch = batches.batch(step as u64 * parts + part);
            sum += of(&batch.map_err(anyhow::Error::msg)?);
        }
    }
    Ok(sum * steps as f64 / looked_at.len().max(1) as f64)
}

/// Forward passes over batches.
struct Counter<'a> {
    flops: Flops<'a>,
}

impl Counter<'_> {
    /// A row for each of `seq` cells in a row-major list of which are real.
    fn rows(&self, real: &[bool], seq: usize) -> f64 {
        let length = |row: &[bool]| row.iter().filter(|real| **real).count();
        let rows = real.chunks(seq.max(1)).map(length);
        rows.map(|length| self.flops.layers(0, length)).sum()
    }

    /// A chain of thought, the head where its loss is.
    fn chain(&self, batch: &SequenceBatch, head: bool) -> f64 {
        let targets = batch.loss_weights.iter().filter(|weight| **weight > 0.0);
        let head = match head {
            true => targets.count() as f64 * self.flops.head(),
            false => 0.0,
        };
        self.rows(&batch.real, batch.seq) + head
    }

    /// A chain of thought of which rows skip layers, the head where its losses are.
    fn early_exit(&self, batch: &EarlyExitBatch) -> f64 {
        let words = &batch.words;
        let layers = batch.weights.len();
        let rows = words.real.chunks(words.seq.max(1));
        let rows = rows.zip(batch.runs.chunks(layers)).map(|(real, runs)| {
            let share = runs.iter().filter(|run| **run).count() as f64 / layers as f64;
            share * self.rows(real, words.seq)
        });
        let targets = words.loss_weights.iter().filter(|weight| **weight > 0.0);
        let read = batch.weights.iter().filter(|weight| **weight > 0.0);
        rows.sum::<f64>() + (targets.count() * read.count()) as f64 * self.flops.head()
    }

    /// Question, thoughts as often as they are computed, and text, the head where the loss is; the chain of
    /// thought where it teaches; the decoder of steps.
    fn curriculum(&self, config: &CurriculumConfig, batch: &ThoughtBatch) -> f64 {
        let read = batch.targets.len() as f64;
        let again = config.order.passes(batch.slots) - 1;
        let again = match again {
            0 => 0.0,
            again => {
                let after = batch.first_slot + batch.slots;
                let question = batch.columns(&batch.real, 0..batch.first_slot);
                let thoughts = batch.columns(&batch.real, 0..after);
                let thoughts = self.rows(&thoughts, after) - self.rows(&question, batch.first_slot);
                again as f64 * thoughts
            }
        };
        let student = self.rows(&batch.real, batch.seq) + again + read * self.flops.head();
        let taught = match config.distillation {
            Distillation::None => 0.0,
            Distillation::Codi { teacher, .. } if teacher > 0.0 => {
                3.0 * self.chain(&batch.chain, true)
            }
            Distillation::Codi { .. } => self.chain(&batch.chain, false),
        };
        let said = match config.step_supervision {
            StepSupervision::None => 0.0,
            StepSupervision::Decoder { .. } => {
                let width = config.thoughts_per_step;
                let steps = dictated(batch, width).into_iter();
                let steps = steps.map(|step| {
                    let tokens = step.tokens.len();
                    self.flops.layers(0, width + tokens - 1) + tokens as f64 * self.flops.head()
                });
                steps.sum()
            }
        };
        3.0 * (student + said) + taught
    }

    /// The student on question, latent steps and answer, the head in the answer.
    fn student(&self, batch: &LatentBatch) -> f64 {
        let read = batch.answer_cells.len() as f64;
        self.rows(&batch.real, batch.seq) + read * self.flops.head()
    }

    /// The student feeding itself: question and latent steps, once.
    fn own_inputs(&self, batch: &LatentBatch) -> f64 {
        let before = batch.columns(&batch.real, 0..batch.first_slot + batch.slots);
        self.rows(&before, batch.first_slot + batch.slots)
    }

    /// What a teacher reads that reads every problem once.
    fn lessons(&self, problems: &[LatentProblem]) -> f64 {
        let read = problems
            .iter()
            .map(|problem| problem.sequence.ids.len() - 1);
        read.map(|length| self.flops.layers(0, length)).sum()
    }

    /// `taught` is how often a frozen teacher reads this batch.
    fn align(&self, config: &AlignConfig, batch: &LatentBatch, taught: f64) -> f64 {
        let fed = match batch.rollout {
            Rollout::TeacherForced => 0.0,
            Rollout::Student { correction, .. } => {
                // What each latent step is fed is read before it is fed.
                let read = match correction {
                    Correction::Never => 0,
                    Correction::WhereWrong => batch.batch * batch.slots,
                };
                self.own_inputs(batch) + read as f64 * self.flops.head()
            }
        };
        let latents = batch.labels.iter().flatten().count() as f64 * self.flops.head();
        // A loss without weight is computed and reported, and no more.
        let read_out = match config.weights.read_out > 0.0 {
            true => 3.0 * latents,
            false => latents,
        };
        let teacher = match config.teacher {
            Teacher::Frozen => taught * self.chain(&batch.teacher, false),
            Teacher::Shared => 3.0 * self.chain(&batch.teacher, true),
        };
        3.0 * self.student(batch) + read_out + fed + teacher
    }

    /// `taught` is how often the teacher reads this batch.
    fn shortcut(&self, config: &ShortcutStageConfig, batch: &LatentBatch, taught: f64) -> f64 {
        let passes = match config.trains {
            Trains::Shortcuts => 2.0,
            Trains::Everything => 3.0,
        };
        let before = match &config.loss {
            ShortcutLoss::Staircase(_) => self.own_inputs(batch),
            // Of the composition also the states of the student without shortcuts.
            ShortcutLoss::Composition(loss) => {
                let cells = self.rows(&batch.real, batch.seq);
                cells
                    + match loss.inputs {
                        StudentInputs::FreeRunning => self.own_inputs(batch),
                        StudentInputs::TeacherForced => cells,
                    }
            }
        };
        passes * self.student(batch) + before + taught * self.chain(&batch.teacher, false)
    }
}

#[cfg(test)]
mod tests {
    use sesqui_distill::TeacherStates;

    use super::*;

    #[test]
    fn a_teacher_that_reads_every_problem_once_is_counted_once() {
        let mut experiment = Experiment::default();
        experiment.shrink();
        let workbench = Workbench::new(&experiment, "".as_ref()).unwrap();
        let shape = experiment.model.clone();
        let counter = Counter {
            flops: Flops::new(&shape, workbench.tokenizer.vocab_size()),
        };
        for name in ["latent", "system15"] {
            let mut stage = experiment.stage(name).unwrap().clone();
            let steps = 100;
            stage.training.steps = steps;
            let count = |stage: &Stage| {
                let counted = operations(&experiment, &workbench, stage, steps);
                counted.unwrap().unwrap()
            };
            let once = count(&stage);
            stage.teacher_states = TeacherStates::EachStep;
            let each = count(&stage);

            let settings = latent_settings(&experiment, &workbench, &stage)
                .unwrap()
                .unwrap();
            let forced = |_| Rollout::TeacherForced;
            let context = shape.context;
            let (batches, _) = workbench
                .latent_batches(&stage, &settings, context, experiment.seed, forced)
                .unwrap();
            let read = (0..steps * stage.training.accumulation).map(|index| {
                let teacher = batches.batch(index).unwrap().teacher;
                counter.rows(&teacher.real, teacher.seq)
            });
            let read: f64 = read.sum();
            let problems = batches.problems().iter();
            let length = problems.map(|problem| problem.sequence.ids.len() - 1);
            let kept: f64 = length.map(|length| counter.flops.layers(0, length)).sum();
            assert!(read > 2.0 * kept, "{name}: {read} {kept}");
            let difference = (each - once) - (read - kept);
            assert!(difference.abs() <= 1e-9 * each, "{name}: {difference}");
        }
    }

    #[test]
    fn time_is_that_of_steps_wherever_they_ran() {
        let row = |stage: &str, step, split: &str, tokens, rate, elapsed| MetricRow {
            tokens,
            tokens_per_second: rate,
            elapsed_seconds: elapsed,
            ..MetricRow::new(stage, step, split)
        };
        let rows = [
            row("cot", 1, "train", 100, Some(50.0), 2.0),
            row("cot", 2, "train", 200, Some(100.0), 3.0),
            row("cot", 2, "validation", 200, None, 9.0),
            // Gone on with: the clock starts anew.
            row("cot", 3, "train", 320, Some(40.0), 3.0),
            row("latent", 1, "train", 70, Some(10.0), 7.0),
        ];
        let cost = taken("cot", &rows);
        assert_eq!((cost.steps, cost.tokens, cost.seconds), (3.0, 320.0, 6.0));
        assert_eq!(taken("latent", &rows).seconds, 7.0);
        assert_eq!(taken("other", &rows), TrainingCost::default());
    }

    #[test]
    fn what_is_not_counted_stays_so_in_sums_and_means() {
        let cost = |steps, flops| TrainingCost {
            steps,
            flops,
            ..TrainingCost::default()
        };
        let counted = [cost(2.0, Some(10.0)), cost(4.0, Some(30.0))];
        assert_eq!(TrainingCost::mean(&counted), cost(3.0, Some(20.0)));
        assert_eq!(counted[0] + cost(1.0, None), cost(3.0, None));
        assert_eq!(TrainingCost::mean(&[]), TrainingCost::default());
    }
}
