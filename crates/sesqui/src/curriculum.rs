//! Training from words to thoughts, or to nothing: the curricula of Coconut and of stepwise
//! internalization.

use anyhow::{Context, Result};
use sesqui_dataset::batch::{SequenceBatch, Skipped, TooLong, fit_context};
use sesqui_dataset::encode::{EncodedProblem, Supervision};
use sesqui_distill::batches::words;
use sesqui_distill::curriculum::{Distillation, StepSupervision};
use sesqui_distill::latent::{Granularity, Padding};
use sesqui_distill::{
    Curriculum, CurriculumConfig, CurriculumPlan, CutBatches, Cuts, IcotConfig, LatentConfig,
    Supervised, ThoughtBatch, ThoughtBatches, ThoughtProblem,
};
use sesqui_model::Transformer;
use sesqui_model::latent::{Continuation, Feedback, LatentTransformer};
use sesqui_shortcut::{KeyValueRule, Landing};
use sesqui_trainer::Validation;

use crate::experiment::Stage;
use crate::fitting::ContextLength;
use crate::misuse::Misuse;
use crate::stage::{Finished, Outlets, Run, finished, mean_losses, targets};
use crate::trained::{LatentSettings, Trained};
use crate::workbench::Workbench;

impl Run<'_> {
    /// Trains `stage` through the curriculum that `config` says.
    pub(crate) fn curriculum(
        &self,
        stage: &Stage,
        config: &CurriculumConfig,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let backbone = self.lineage().start(stage, &device)?.backbone().clone();
        let plan = self.workbench.curriculum(stage, config);
        let Some(feedback) = config.thought.feedback() else {
            return self.cut(stage, backbone, Cuts::Steps(plan), outlets);
        };
        let context = backbone.config().context;
        let seed = self.experiment.seed;
        let settings = thought_settings(config, feedback, &plan);
        let (batches, skipped) = self
            .workbench
            .thought_batches(stage, config, &plan, context, seed)?;
        outlets.skipped(stage, context, &skipped);
        let (asked, skipped) = self.workbench.validation_thoughts(config, &plan, context)?;
        if let Some(first) = skipped.first() {
            outlets.renderer.line(&format!(
                "{}: {} validation questions need more than {context} positions, {} first; they are \
                 asked, but losses are without them",
                stage.name,
                skipped.len(),
                first.id
            ));
        }
        let feedback = &settings.latents.feedback;
        let student = LatentTransformer::new(backbone, feedback, seed, &device);
        let model = Curriculum::new(student, config);
        let trained = |model: &Curriculum, updates: u64| {
            let settings = settings.clone().after(updates);
            Trained::latent(model.student.clone(), None, settings)
        };
        let resets = |update| plan.resets(update);
        let settings = Some(&settings);
        let validate = |model: &Curriculum, updates: u64| {
            let now = plan.stage_after(updates);
            let replaced = |row: usize| plan.replaced(now, asked[row].steps());
            let rows: Vec<_> = (0..asked.len())
                .map(|row| (row as u32, replaced(row)))
                .collect();
            let pad = self.workbench.tokenizer.pad_id();
            let batches = rows
                .chunks(self.experiment.evaluation.batch_size)
                .map(|rows| ThoughtBatch::collate(&asked, rows, &config.positions, pad))
                .collect::<Result<Vec<_>, _>>()?;
            let losses = mean_losses(model, batches, |batch| batch.targets.len() as f64);
            let found = self.validation(&trained(model, updates), losses)?;
            Ok(noted(found, "curriculum_stage", now))
        };
        let outcome = self.fit(stage, model, &batches, settings, &resets, outlets, validate)?;
        let updates = outcome.state.step;
        Ok(finished(outcome, |model| trained(&model, updates)))
    }

    /// Trains `stage` by stepwise internalization.
    pub(crate) fn icot(
        &self,
        stage: &Stage,
        config: &IcotConfig,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let backbone = self.lineage().start(stage, &device)?.backbone().clone();
        let cuts = Cuts::Tokens(config.plan(self.workbench.training()));
        self.cut(stage, backbone, cuts, outlets)
    }

    /// Trains `backbone` on chains of thought of which less and less is left.
    fn cut(
        &self,
        stage: &Stage,
        backbone: Transformer,
        cuts: Cuts,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let (context, seed) = (backbone.config().context, self.experiment.seed);
        let (batches, skipped) = self
            .workbench
            .cut_batches(stage, cuts.clone(), context, seed)?;
        outlets.skipped(stage, context, &skipped);
        let resets = |update| cuts.resets(update);
        let model = Supervised::new(backbone);
        let validate = |model: &Supervised, updates: u64| {
            let size = self.experiment.evaluation.batch_size;
            let batches = self.workbench.validation_words(&cuts, updates, size)?;
            let losses = mean_losses(model, batches, targets);
            let trained = Trained::tokens(model.backbone.clone());
            let found = self.validation(&trained, losses)?;
            Ok(match &cuts {
                Cuts::Steps(plan) => noted(found, "curriculum_stage", plan.stage_after(updates)),
                Cuts::Tokens(plan) => noted(found, "removed_tokens", plan.tokens_after(updates)),
            })
        };
        let outcome = self.fit(stage, model, &batches, None, &resets, outlets, validate)?;
        Ok(finished(outcome, |model| Trained::tokens(model.backbone)))
    }
}

/// `found` with one value more.
fn noted(mut found: Validation, name: &str, value: usize) -> Validation {
    found.values.insert(name.to_owned(), value as f64);
    found
}

/// What has to be known of a model that goes through `plan`.
pub fn thought_settings(
    config: &CurriculumConfig,
    feedback: Feedback,
    plan: &CurriculumPlan,
) -> LatentSettings {
    let count = plan.most_thoughts();
    LatentSettings {
        latents: LatentConfig {
            // A thought is aligned to no state of any teacher.
            granularity: Granularity::Step {
                marker: String::new(),
            },
            count,
            // Text follows the thoughts, however many there are.
            padding: Padding::None,
            positions: config.positions,
            feedback,
        },
        count,
        key_values: KeyValueRule::default(),
        landing: Landing::default(),
        entry_position: None,
        shortcuts: None,
        continuation: config.continuation,
        order: config.order,
        growth: plan.growth(),
    }
}

impl Workbench {
    /// The curriculum of a stage on the training problems.
    pub fn curriculum(&self, stage: &Stage, config: &CurriculumConfig) -> CurriculumPlan {
        config.plan(self.training(), stage.training.steps)
    }

    /// Whether the thoughts of a stage fit its model, before anything is trained: training problems in all
    /// stages that they go through, and the validation and test questions, which are asked with
    /// `latent_steps`, 0 for as many as trained.
    ///
    /// # Errors
    ///
    /// Names the setting and the first problem that does not fit.
    pub fn check_curriculum(
        &self,
        stage: &Stage,
        config: &CurriculumConfig,
        context: &ContextLength,
        latent_steps: usize,
    ) -> Result<()> {
        let Some(feedback) = config.thought.feedback() else {
            return Ok(());
        };
        let plan = self.curriculum(stage, config);
        let unmarked = self
            .training()
            .iter()
            .any(|problem| problem.answer_start.is_empty());
        if unmarked && !config.distillation.is_none() {
            return Err(Misuse(format!(
                "stages.{}.objective.distillation: format.answer_start is empty, and states are compared at \
                 the token before the answer; give format.answer_start a marker",
                stage.name
            ))
            .into());
        }
        if unmarked && config.continuation == Continuation::Answer {
            return Err(Misuse(format!(
                "stages.{}.objective.continuation: format.answer_start is empty, and \"answer\" feeds that \
                 marker; set it to \"text\"",
                stage.name
            ))
            .into());
        }
        if stage.batches.too_long == TooLong::Fail {
            for problem in self.training() {
                let problem = ThoughtProblem::new(problem.clone(), self.layout)?;
                let end = end_position(&problem, config, &plan);
                if end > context.positions {
                    return Err(self.too_long(stage, &plan, &problem, end, context).into());
                }
            }
        }
        let settings = thought_settings(config, feedback, &plan);
        self.check_questions(stage, &settings, context, latent_steps)
    }

    fn too_long(
        &self,
        stage: &Stage,
        plan: &CurriculumPlan,
        problem: &ThoughtProblem,
        end: usize,
        context: &ContextLength,
    ) -> Misuse {
        Misuse(format!(
            "stages.{}.objective: with up to {} thoughts problem {} needs {end} positions, the model's \
             context has {}; lower stages, thoughts_per_step or positions, {}, or set batches.too_long = \
             \"skip\"",
            stage.name,
            plan.most_thoughts(),
            problem.id(),
            context.positions,
            context.remedy
        ))
    }

    /// Training batches of a curriculum with thoughts, with what did not fit `context` positions.
    ///
    /// # Errors
    ///
    /// When a problem is too long, or nothing is left.
    pub fn thought_batches(
        &self,
        stage: &Stage,
        config: &CurriculumConfig,
        plan: &CurriculumPlan,
        context: usize,
        seed: u64,
    ) -> Result<(ThoughtBatches, Vec<Skipped>)> {
        let too_long = stage.batches.too_long;
        let (train, whole) = (self.training().to_vec(), Supervision::ChainOfThought);
        let mut fitted = fit_context(train, whole, self.layout, context, too_long)?;
        let mut kept = Vec::with_capacity(fitted.problems.len());
        for problem in fitted.problems {
            let problem = ThoughtProblem::new(problem, self.layout)?;
            let length = end_position(&problem, config, plan);
            match too_long {
                _ if length <= context => kept.push(problem),
                TooLong::Skip => fitted.skipped.push(Skipped {
                    id: problem.id().to_owned(),
                    length,
                }),
                TooLong::Fail => {
                    let context = ContextLength::new(context);
                    return Err(self
                        .too_long(stage, plan, &problem, length, &context)
                        .into());
                }
            }
        }
        let batches = ThoughtBatches::new(
            kept,
            &stage.batches,
            stage.training.accumulation,
            seed,
            plan.clone(),
            config.positions,
            self.tokenizer.pad_id(),
        )
        .with_context(|| format!("stage {}", stage.name))?;
        Ok((batches, fitted.skipped))
    }

    /// The validation questions that fit `context` positions in every stage of a curriculum, and those that
    /// do not.
    fn validation_thoughts(
        &self,
        config: &CurriculumConfig,
        plan: &CurriculumPlan,
        context: usize,
    ) -> Result<(Vec<ThoughtProblem>, Vec<Skipped>)> {
        let (mut kept, mut skipped) = (Vec::new(), Vec::new());
        for problem in self.validation() {
            let problem = ThoughtProblem::new(problem.clone(), self.layout)?;
            let length = end_position(&problem, config, plan);
            match length <= context {
                true => kept.push(problem),
                false => skipped.push(Skipped {
                    id: problem.id().to_owned(),
                    length,
                }),
            }
        }
        Ok((kept, skipped))
    }

    /// Training batches of which less and less is left, with what did not fit `context` positions while it
    /// was whole.
    ///
    /// # Errors
    ///
    /// When a problem is too long, or nothing is left.
    pub fn cut_batches(
        &self,
        stage: &Stage,
        cuts: Cuts,
        context: usize,
        seed: u64,
    ) -> Result<(CutBatches, Vec<Skipped>)> {
        let (train, whole) = (self.training().to_vec(), Supervision::ChainOfThought);
        let fitted = fit_context(train, whole, self.layout, context, stage.batches.too_long)?;
        let batches = CutBatches::new(
            fitted.problems,
            &stage.batches,
            stage.training.accumulation,
            seed,
            cuts,
            self.layout,
            self.tokenizer.pad_id(),
        )
        .with_context(|| format!("stage {}", stage.name))?;
        Ok((batches, fitted.skipped))
    }

    /// What is left of the validation questions after `updates` updates, `size` to a batch.
    fn validation_words(
        &self,
        cuts: &Cuts,
        updates: u64,
        size: usize,
    ) -> Result<Vec<SequenceBatch>> {
        let left = |problem: &EncodedProblem| cuts.left_after(updates, problem);
        let left: Vec<EncodedProblem> = self.validation().iter().map(left).collect();
        let pad = self.tokenizer.pad_id();
        let batches = left
            .chunks(size)
            .map(|problems| words(problems, self.layout, pad))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(batches)
    }
}

/// Positions that `problem` needs in the hungriest stage that it may be in.
fn end_position(
    problem: &ThoughtProblem,
    config: &CurriculumConfig,
    plan: &CurriculumPlan,
) -> usize {
    let end = |stage: usize| {
        let replaced = plan.replaced(stage, problem.steps());
        problem.end_position(replaced, &config.positions)
    };
    let end = plan.visited().map(end).max().unwrap_or(0);
    let end = match config.distillation {
        Distillation::None => end,
        Distillation::Codi { .. } => end.max(problem.end_of_chain()),
    };
    let end = usize::try_from(end).unwrap_or(usize::MAX);
    match config.step_supervision {
        StepSupervision::None => end,
        // The decoder reads the thoughts of a step, then the step but for its last token.
        StepSupervision::Decoder { .. } => {
            end.max((config.thoughts_per_step + problem.longest_step()).saturating_sub(1))
        }
    }
}
