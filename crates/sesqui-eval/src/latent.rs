//! Answering after latent steps, with or without shortcuts.

use burn::nn::Linear;
use burn::tensor::Device;
use sesqui_model::LatentTransformer;
use sesqui_model::flops::Flops;
use sesqui_model::latent::SlotPositions;
use sesqui_reason::refine::LayerRuns;
use sesqui_reason::{
    Calibrator, Decoding, LatentDecoded, LatentDecoding, LatentRow, Prompt, PromptError,
    References, RefineConfig, Refinement, latent, latent_refined, observe,
};
use sesqui_shortcut::{EntryPosition, ExitRule, KeyValueRule, Landing};

use crate::method::{Method, Response, Responses};

/// Latent steps, then greedy decoding of the answer.
pub struct LatentMethod<'a> {
    /// The model, without autodiff.
    pub model: &'a LatentTransformer,
    /// Where it is.
    pub device: &'a Device,
    /// Latent steps to run, at least 1.
    pub latent_steps: usize,
    /// Latent steps that the model was trained with. The answer keeps its place where fewer run.
    pub trained_latents: usize,
    /// Position ids of latent steps.
    pub positions: SlotPositions,
    /// When a step leaves early.
    pub rule: ExitRule<'a>,
    /// What layers hold of steps that skipped them.
    pub key_values: KeyValueRule,
    /// Where a step goes on after one that left early.
    pub landing: Landing,
    /// Whether it is given its learned position there.
    pub entry_position: EntryPosition,
    /// What is done to latents before they are fed.
    pub refinement: Option<Refinement<'a>>,
    /// The tokens that open the answer.
    pub answer_start: &'a [u32],
    /// When the answer ends.
    pub decoding: Decoding,
}

impl Method for LatentMethod<'_> {
    fn respond(&self, prompt: &Prompt) -> Result<Responses, PromptError> {
        Ok(self.responses(prompt, self.decode(prompt)?))
    }
}

impl LatentMethod<'_> {
    /// Reasons and answers, with every state on the way.
    ///
    /// # Errors
    ///
    /// When the prompt or the latent steps do not fit the model.
    pub fn decode(&self, prompt: &Prompt) -> Result<LatentDecoded, PromptError> {
        let plan = self.plan(prompt);
        let (model, rule, key_values, device) =
            (self.model, self.rule, self.key_values, self.device);
        match &self.refinement {
            None => latent(model, rule, key_values, prompt, &plan, device),
            Some(refinement) => {
                latent_refined(model, rule, key_values, prompt, &plan, refinement, device)
            }
        }
    }

    /// Gives `calibrator` what two models make of the latents of `prompt`, wherever `config` would move
    /// them; whatever refinement is set plays no part.
    ///
    /// # Errors
    ///
    /// When the prompt, the latent steps or the models do not fit.
    pub fn observe(
        &self,
        prompt: &Prompt,
        (config, references): (&RefineConfig, &References),
        calibrator: &mut Calibrator,
    ) -> Result<(), PromptError> {
        let plan = self.plan(prompt);
        observe(
            self.model,
            self.rule,
            self.key_values,
            prompt,
            &plan,
            (config, references),
            calibrator,
            self.device,
        )
    }

    fn plan(&self, prompt: &Prompt) -> LatentDecoding<'_> {
        let starts = prompt.next_position.iter();
        let slots = self.latent_steps.max(self.trained_latents);
        LatentDecoding {
            latent_steps: self.latent_steps,
            slot_positions: starts
                .clone()
                .map(|&start| {
                    (0..self.latent_steps)
                        .map(|slot| self.positions.slot_position(start, slot))
                        .collect()
                })
                .collect(),
            answer_position: starts
                .map(|&start| self.positions.answer_position(start, slots))
                .collect(),
            answer_start: self.answer_start,
            landing: self.landing,
            entry_position: self.entry_position,
            decoding: self.decoding,
        }
    }

    /// What came of `prompt`, and what it cost.
    pub fn responses(&self, prompt: &Prompt, decoded: LatentDecoded) -> Responses {
        let asked = prompt
            .real
            .chunks_exact(prompt.seq)
            .map(|real| real.iter().filter(|&&real| real).count());
        let rows = decoded.rows.into_iter().zip(asked);
        Responses {
            rows: rows.map(|(row, asked)| self.response(row, asked)).collect(),
            prefill: decoded.prefill,
            reasoning: decoded.reasoning,
            answer: decoded.answer,
        }
    }

    /// The answer to a question of `asked` tokens, and what it cost.
    fn response(&self, row: LatentRow, asked: usize) -> Response {
        let config = self.model.backbone.config();
        let flops = Flops::new(config, self.model.backbone.vocabulary());
        let key_values = 2.0 * config.d_model as f64;
        let key_values = key_values * (2 * config.key_value_heads() * config.d_head()) as f64;

        // Entries of the question and of the slots so far that each layer holds.
        let mut held = vec![asked; config.layers];
        let run = |held: &mut usize| {
            *held += 1;
            flops.layer() + flops.attention(*held)
        };
        let (mut reasoning, mut between) = (0.0, 0.0);
        let mut left = config.layers;
        for slot in &row.slots {
            let ran = &mut held[slot.enter..slot.leave];
            reasoning += ran.iter_mut().map(run).sum::<f64>();
            if self.key_values == KeyValueRule::Fill {
                for held in &mut held[slot.leave..] {
                    *held += 1;
                    reasoning += key_values;
                }
            }
            between += self.between(slot.enter, left);
            between += slot
                .weights
                .iter()
                .map(|&(boundary, _)| self.router(boundary))
                .sum::<f64>();
            left = slot.leave;
        }
        let mut answer = 0.0;
        for _ in &row.tokens {
            answer += held.iter_mut().map(run).sum::<f64>();
        }
        let chosen = row.tokens.len() - self.answer_start.len() + 1;
        let heads = flops.head() * chosen as f64;

        // The strong and the weak model of refinement have the student's shape.
        let ran = |runs: LayerRuns| runs.calls as f64 * flops.layer() + flops.attention(runs.keys);
        let beside = row.auxiliary;
        reasoning += ran(beside.latents) + ran(beside.backward);
        between += beside.mapped as f64 * self.model.feedback.as_ref().map_or(0.0, product);
        between += (4 * config.d_model * beside.projected) as f64;
        let questions = flops.layers(0, asked) + ran(beside.question);

        let layer_calls = row
            .slots
            .iter()
            .map(|slot| slot.layer_calls())
            .sum::<usize>();
        Response {
            latent_steps: row.slots.len(),
            layer_calls: layer_calls + beside.latents.calls,
            flops: questions + reasoning + between + answer + heads,
            reason_flops: reasoning,
            tokens: row.tokens,
            slots: row.slots,
        }
    }

    /// From a slot that left at `left` to the next, which enters at `enter`: the feedback map at
    /// the bottom, an adapter above it.
    fn between(&self, enter: usize, left: usize) -> f64 {
        match (enter, self.rule.shortcuts()) {
            (0, _) => self.model.feedback.as_ref().map_or(0.0, product),
            (_, Some(shortcuts)) => {
                let adapter = &shortcuts.adapters[left];
                product(&adapter.down) + product(&adapter.up)
            }
            (_, None) => 0.0,
        }
    }

    fn router(&self, boundary: usize) -> f64 {
        self.rule.shortcuts().map_or(0.0, |shortcuts| {
            let router = &shortcuts.routers[boundary];
            router.hidden.as_ref().map_or(0.0, product) + product(&router.output)
        })
    }
}

/// Operations of one matrix-vector product.
fn product(map: &Linear) -> f64 {
    2.0 * map.weight.shape().num_elements() as f64
}
