//! Training the head that says how many latent steps a question needs.

use anyhow::Result;
use burn::module::Module;
use sesqui_dataset::Problem;
use sesqui_dataset::encode::EncodedProblem;
use sesqui_distill::{Halt, HaltBatch, HaltBatches, HaltStageConfig};
use sesqui_eval::{Enumerated, EvaluationConfig, Task, enumerate, evaluate};
use sesqui_reason::HaltConfig;
use sesqui_shortcut::StepHead;
use sesqui_trainer::Validation;

use crate::experiment::Stage;
use crate::fitting::{Asked, Fitting, Room};
use crate::misuse::Misuse;
use crate::screen;
use crate::stage::{Finished, Outlets, Run, finished, mean_losses, never};
use crate::trained::{Latent, Trained};

impl Run<'_> {
    /// Labels training questions with the model that `stage` starts from, every time that the stage is
    /// begun or gone on with, and trains the head on them.
    pub(crate) fn halt(
        &self,
        stage: &Stage,
        config: &HaltStageConfig,
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
        let settings = crate::trained::LatentSettings {
            shortcuts: lineage.shortcuts(stage)?,
            ..student.settings.clone()
        };
        let plain = Latent::new(
            student.model.valid(),
            student.shortcuts.clone().map(|shortcuts| shortcuts.valid()),
            settings.clone(),
        );
        let plain = Trained::Latent(Box::new(plain));
        let whole = self.workbench.validation_task(self.experiment);
        let (problems, encoded) = self.workbench.training_questions(config.questions);
        let training = Task {
            split: "train",
            problems: &problems,
            encoded: &encoded,
            ..whole
        };
        let (training, problems, encoded) = self.label(stage, &plain, &training)?;
        let (right, count) = (&training.right, problems.len());
        let shares: Vec<String> = right
            .iter()
            .map(|right| format!("{:.1}", 100.0 * *right as f64 / count.max(1) as f64))
            .collect();
        outlets.renderer.line(&format!(
            "{}: {count} training questions labelled; right after 1, 2, … latent steps: {} %; {} never, \
             labelled with the most",
            stage.name,
            shares.join(", "),
            training.unsolved
        ));
        let (validation, _, _) = self.label(stage, &plain, &whole)?;
        let validation = batch(validation);

        let identities = problems.iter().map(|problem| problem.id.clone()).collect();
        let lengths = encoded
            .iter()
            .map(|problem| problem.question.len())
            .collect();
        let (parts, seed) = (stage.training.accumulation, self.experiment.seed);
        let rows = batch(training);
        let batches = HaltBatches::new(rows, identities, lengths, &stage.batches, parts, seed)?;

        let shape = student.model.backbone.config();
        let head = StepHead::new(config.hidden, settings.count, shape, seed, &device);
        let model = Halt::new(student.model, student.shortcuts, head);
        let halting = match &self.experiment.reasoning.halt {
            learned @ HaltConfig::Learned(_) => learned.clone(),
            _ => HaltConfig::Learned(Default::default()),
        };
        let trained = |model: Halt| {
            let mut trained = Trained::halting(model, settings.clone());
            trained.halt(&halting);
            trained
        };
        let validate = |model: &Halt, _: u64| {
            let losses = mean_losses(model, vec![validation.clone()], |batch| batch.rows() as f64);
            let config = EvaluationConfig {
                timing_questions: 0,
                ..self.experiment.evaluation.clone()
            };
            let reasoning = &self.experiment.reasoning;
            let trained = trained(model.clone());
            let method = trained.method(self.device(), &whole, &config, reasoning);
            let found = evaluate(&*method, whole, &config, &mut |_| ())?;
            let mut values = losses.parts;
            let steps = found.mean(|row| row.slots.len() as f64);
            values.insert("latent_steps".to_owned(), steps);
            Ok(Validation {
                loss: losses.total,
                accuracy: Some(found.accuracy()),
                values,
            })
        };
        let beside = Some(&settings);
        let outcome = self.fit(stage, model, &batches, beside, &never, outlets, validate)?;
        Ok(finished(outcome, |model| {
            Trained::halting(model, settings.clone())
        }))
    }

    /// The smallest sufficient number of latent steps of each question of `task` that fits, and these
    /// questions.
    fn label(
        &self,
        stage: &Stage,
        model: &Trained,
        task: &Task<'_>,
    ) -> Result<(Enumerated, Vec<Problem>, Vec<EncodedProblem>)> {
        let Trained::Latent(latent) = model else {
            unreachable!("made of a latent model");
        };
        let room = Room::new(model, Asked::Setting(0));
        let fitting = Fitting::new(task, &room, stage.batches.too_long)?;
        let fits = fitting.task(task);
        let (config, reasoning) = (&self.experiment.evaluation, &self.experiment.reasoning);
        let method = latent.method(self.device(), &fits, config, reasoning);
        let most = latent.settings.count;
        let bar = screen::progress(
            most * fits.problems.len(),
            &format!(
                "{}: every number of latent steps, {}",
                stage.name, task.split
            ),
        );
        let found = enumerate(&method, &fits, most, config.batch_size, &mut |done| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        Ok((found, fitting.problems, fitting.encoded))
    }
}

fn batch(found: Enumerated) -> HaltBatch {
    HaltBatch {
        states: found.states,
        labels: found.smallest,
    }
}
