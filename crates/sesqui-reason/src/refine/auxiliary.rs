//! The strong and the weak model: what they are fed, what they keep, what they cost.

use burn::tensor::{Device, Int, Tensor};
use sesqui_model::{KvCache, Transformer};

use crate::decode::prefill;
use crate::prompt::{Prompt, PromptError};
use crate::refine::config::Context;

/// The two models whose outputs a latent is held against, of the student's shape.
#[derive(Clone, Debug)]
pub struct References {
    /// The better one: a late checkpoint.
    pub strong: Transformer,
    /// The worse one: an early checkpoint.
    pub weak: Transformer,
}

/// Executions of layers, one at one position each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerRuns {
    /// How many.
    pub calls: usize,
    /// Keys that they saw, all together.
    pub keys: usize,
}

/// What refinement ran for one row beside the student.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuxiliaryWork {
    /// Both models over the question.
    pub question: LayerRuns,
    /// Both models over latents.
    pub latents: LayerRuns,
    /// Products of a vector with the Jacobian of a model: a layer worked through backwards takes as
    /// many operations in its maps as forwards, and twice as many in its attention.
    pub backward: LayerRuns,
    /// Products with the student's feedback map.
    pub mapped: usize,
    /// Dimensions of calibrated subspaces projected onto and back.
    pub projected: usize,
}

/// One of the two models at work on a batch.
pub(crate) struct Auxiliary<'a> {
    model: &'a Transformer,
    /// Where the context is its own.
    cache: Option<KvCache>,
}

impl<'a> Auxiliary<'a> {
    pub(crate) fn new(model: &'a Transformer) -> Self {
        Self { model, cache: None }
    }

    /// Checks that the model has the shape of the student `like`, and that `prompt` fits it.
    pub(crate) fn validate(&self, like: &Transformer, prompt: &Prompt) -> Result<(), PromptError> {
        if self.model.config() != like.config() {
            let reason = "strong and weak model must have the student's shape";
            return Err(PromptError::Refinement(reason.to_owned()));
        }
        prompt.validate(self.model.vocabulary(), self.model.config().context)
    }

    /// Runs the question into a cache of the model's own, with room for `more` latents.
    pub(crate) fn read_question(
        &mut self,
        prompt: &Prompt,
        more: usize,
        work: &mut [AuxiliaryWork],
        device: &Device,
    ) {
        let (cache, _) = prefill(self.model, prompt, more, device);
        self.cache = Some(cache);
        let layers = self.model.layers.len();
        let rows = prompt.real.chunks_exact(prompt.seq);
        for (work, real) in work.iter_mut().zip(rows) {
            let asked = real.iter().filter(|&&real| real).count();
            work.question.calls += layers * asked;
            work.question.keys += layers * asked * (asked + 1) / 2;
        }
    }

    /// The state after the final norm `[batch, 1, d_model]` that the model reaches from `embedded`,
    /// an input without position; it keeps nothing.
    pub(crate) fn peek(
        &self,
        embedded: Tensor<3>,
        seen: &Seen<'_>,
        work: &mut [AuxiliaryWork],
        pass: Pass,
    ) -> Tensor<3> {
        let batch = seen.bottom.len();
        let mut cache = match (seen.context, &self.cache) {
            (Context::Own, Some(cache)) => cache.clone(),
            (Context::Shared, _) => seen.student.clone(),
            (Context::None, _) | (Context::Own, None) => self.model.cache(batch, 1),
        };
        // Rows that do not enter at the bottom ride along; nobody looks at what they get.
        let real = vec![true; batch];
        let state = self.run(embedded, &real, seen, &mut cache);
        count(&cache, seen, work, pass);
        state
    }

    /// Takes the input of a latent step, without position, into the model's own cache.
    pub(crate) fn keep(
        &mut self,
        embedded: Tensor<3>,
        seen: &Seen<'_>,
        work: &mut [AuxiliaryWork],
    ) {
        let Some(mut cache) = self.cache.take() else {
            return;
        };
        self.run(embedded, seen.bottom, seen, &mut cache);
        count(&cache, seen, work, Pass::Forward);
        self.cache = Some(cache);
    }

    fn run(
        &self,
        embedded: Tensor<3>,
        real: &[bool],
        seen: &Seen<'_>,
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let model = self.model;
        let hidden = model.with_positions(embedded, seen.at.clone());
        let layers = 0..model.layers.len();
        let hidden = model.run_layers_cached(layers, hidden, seen.at.clone(), real, cache);
        model.final_norm(hidden)
    }
}

/// Which way a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    AndBack,
}

/// Where a latent step stands.
pub(crate) struct Seen<'a> {
    pub(crate) context: Context,
    /// The student's cache before the step.
    pub(crate) student: &'a KvCache,
    /// Position ids of the step, `[batch, 1]`.
    pub(crate) at: Tensor<2, Int>,
    /// Rows that enter it at the bottom.
    pub(crate) bottom: &'a [bool],
}

/// Adds what a model just ran over `cache` to the rows that entered at the bottom.
fn count(cache: &KvCache, seen: &Seen<'_>, work: &mut [AuxiliaryWork], pass: Pass) {
    let rows = seen.bottom.iter().enumerate();
    for (row, _) in rows.filter(|(_, bottom)| **bottom) {
        let keys = cache.visible(row);
        let (calls, keys) = (keys.len(), keys.iter().sum::<usize>());
        work[row].latents.calls += calls;
        work[row].latents.keys += keys;
        if pass == Pass::AndBack {
            work[row].backward.calls += calls;
            work[row].backward.keys += 2 * keys;
        }
    }
}
