//! Training a model that can be left early.

use anyhow::Result;
use sesqui_distill::{EarlyExit, EarlyExitBatch, EarlyExitBatches, EarlyExitConfig};

use crate::experiment::Stage;
use crate::stage::{Finished, Outlets, Run, finished, mean_losses, never, targets};
use crate::trained::Trained;

impl Run<'_> {
    /// Trains `stage` with losses after layers below the last, as `config` says.
    pub(crate) fn early_exit(
        &self,
        stage: &Stage,
        config: &EarlyExitConfig,
        outlets: &mut Outlets<'_>,
    ) -> Result<Finished> {
        let device = stage.training.recompute.tracked(self.device());
        let backbone = self.lineage().start(stage, &device)?.backbone().clone();
        let (context, seed) = (backbone.config().context, self.experiment.seed);
        let plan = config.plan(backbone.layers.len(), stage.training.steps);
        let (batches, skipped) = self.workbench.batches(stage, context, seed)?;
        outlets.skipped(stage, context, &skipped);
        let batches = EarlyExitBatches::new(batches, plan.clone(), seed);
        let supervision = stage.objective.supervision();
        let validation = self
            .workbench
            .validation_batches(supervision, self.experiment)?;
        let validation: Vec<EarlyExitBatch> = validation
            .into_iter()
            .map(|words| EarlyExitBatch::whole(words, &plan))
            .collect();
        let validate = |model: &EarlyExit, _: u64| {
            let losses = mean_losses(model, validation.clone(), |batch| targets(&batch.words));
            self.validation(&Trained::tokens(model.backbone.clone()), losses)
        };
        let model = EarlyExit::new(backbone);
        let outcome = self.fit(stage, model, &batches, None, &never, outlets, validate)?;
        Ok(finished(outcome, |model| Trained::tokens(model.backbone)))
    }
}
