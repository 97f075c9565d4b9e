//! Answering after latent steps, with or without shortcuts.

use std::time::Duration;

use burn::nn::Linear;
use burn::tensor::Device;
use sesqui_model::LatentTransformer;
use sesqui_model::flops::Flops;
use sesqui_model::latent::{Continuation, LatentOrder, SlotPositions};
use sesqui_reason::refine::LayerRuns;
use sesqui_reason::{
    Calibrator, Decoding, HaltConfig, HaltTrace, Halting, LatentDecoded, LatentDecoding, LatentRow,
    Prompt, PromptError, References, RefineConfig, Refinement, latent, latent_halting,
    latent_refined, observe,
};
use sesqui_shortcut::{EntryPosition, ExitRule, HostStepHead, KeyValueRule, Landing, SlotTrace};

use crate::method::{Method, Response, Responses, reasoning_tokens};
use crate::parts::in_parts;

/// Latent steps, then greedy decoding of the answer.
#[derive(Clone)]
pub struct LatentMethod<'a> {
    /// The model, without autodiff.
    pub model: &'a LatentTransformer,
    /// Where it is.
    pub device: &'a Device,
    /// Latent steps to run; with none the answer follows the question.
    pub latent_steps: usize,
    /// In which order they are computed.
    pub order: LatentOrder,
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
    /// When reasoning stops before its last step, and the head that may be asked.
    pub halt: (&'a HaltConfig, Option<&'a HostStepHead>),
    /// What follows the latent steps. Text before the answer opens is reasoning too.
    pub continuation: Continuation,
    /// The tokens that open the answer.
    pub answer_start: &'a [u32],
    /// When the answer ends.
    pub decoding: Decoding,
}

impl Method for LatentMethod<'_> {
    fn respond(&self, prompt: &Prompt) -> Result<Responses, PromptError> {
        let together = |part: &Prompt| Ok(self.responses(part, self.decode(part)?));
        match self.rule {
            // A plan knows rows by their number in the batch.
            ExitRule::Plan { .. } => together(prompt),
            _ => in_parts(prompt, self.device, together),
        }
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
        let (config, head) = self.halt;
        if !config.is_never() {
            let answer_after = self.answer_after(prompt);
            let halting = Halting {
                config,
                head,
                answer_after: &answer_after,
            };
            let refinement = self.refinement.as_ref();
            return latent_halting(
                model, rule, key_values, prompt, &plan, refinement, &halting, device,
            );
        }
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
            order: self.order,
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
            answer_start: self.opening(),
            landing: self.landing,
            entry_position: self.entry_position,
            decoding: self.decoding,
        }
    }

    /// The tokens that are fed after the latent steps.
    fn opening(&self) -> &[u32] {
        match self.continuation {
            Continuation::Answer => self.answer_start,
            Continuation::Text => &[],
        }
    }

    /// Of the tokens after the latent steps, how many come before the answer opens: where its marker is fed,
    /// none, unless the model goes on to say more and opens it again.
    fn words(&self, tokens: &[u32]) -> usize {
        let marker = self.answer_start;
        match self.continuation {
            Continuation::Text => reasoning_tokens(tokens, marker),
            Continuation::Answer if marker.is_empty() => 0,
            Continuation::Answer => {
                let mut opens = tokens.windows(marker.len());
                opens.rposition(|window| window == marker).unwrap_or(0)
            }
        }
    }

    /// For each row where its answer stands after 1, 2, … steps.
    fn answer_after(&self, prompt: &Prompt) -> Vec<Vec<i32>> {
        let after = |start: i32, steps: usize| {
            let slots = steps.max(self.trained_latents);
            self.positions.answer_position(start, slots)
        };
        let starts = prompt.next_position.iter();
        starts
            .map(|&start| (1..=self.latent_steps).map(|n| after(start, n)).collect())
            .collect()
    }

    /// What came of `prompt`, and what it cost.
    pub fn responses(&self, prompt: &Prompt, decoded: LatentDecoded) -> Responses {
        let asked = prompt
            .real
            .chunks_exact(prompt.seq)
            .map(|real| real.iter().filter(|&&real| real).count());
        // Text that is still reasoning takes as long as it takes the row that says most.
        let words = decoded.rows.iter().map(|row| self.words(&row.tokens)).max();
        // What is fed before the first token is chosen is in no step.
        let words = words.unwrap_or(0).saturating_sub(self.opening().len());
        let words = words.min(decoded.decoding_steps.len());
        let writing: Duration = decoded.decoding_steps[..words].iter().sum();
        let rows = decoded.rows.into_iter().zip(asked);
        Responses {
            rows: rows.map(|(row, asked)| self.response(row, asked)).collect(),
            prefill: decoded.prefill,
            reasoning: decoded.reasoning + writing,
            answer: decoded.answer.saturating_sub(writing),
        }
    }

    /// The answer to a question of `asked` tokens, and what it cost.
    fn response(&self, row: LatentRow, asked: usize) -> Response {
        let config = self.model.backbone.config();
        let flops = Flops::new(config, self.model.backbone.vocabulary());
        let opening = self.opening().len();
        // Tokens of an answer that are fed, and how many were chosen to that end.
        let whole = |tokens: &[u32]| (tokens.len(), tokens.len() - opening + 1);

        let mut cost = Cost::default();
        let mut latent_steps = row.slots.len();
        let passes = self.order.passes(latent_steps);
        let mut layer_calls = passes * calls(&row.slots);
        match &row.halt {
            HaltTrace::Samples(trace) => {
                latent_steps = trace.trajectories.iter().map(Vec::len).sum();
                layer_calls = trace.trajectories.iter().map(|slots| calls(slots)).sum();
                for (sample, slots) in trace.trajectories.iter().enumerate() {
                    let rounds = trace.rounds.iter().map(|round| {
                        let (fed, chosen) = whole(&round.answers[sample].tokens);
                        Ask {
                            after: round.after,
                            words: 0,
                            fed,
                            chosen,
                            decides: round.decides,
                        }
                    });
                    self.trajectory(asked, slots, &rounds.collect::<Vec<_>>(), &mut cost);
                }
            }
            halt => {
                let mut asks: Vec<Ask> = match halt {
                    HaltTrace::Probes(probes) => probes
                        .iter()
                        .map(|probe| Ask {
                            after: probe.after,
                            words: 0,
                            fed: opening,
                            chosen: 1,
                            decides: true,
                        })
                        .collect(),
                    _ => Vec::new(),
                };
                let (fed, chosen) = whole(&row.tokens);
                let words = self.words(&row.tokens);
                layer_calls += words * config.layers;
                asks.push(Ask {
                    after: row.slots.len(),
                    words,
                    fed,
                    chosen,
                    decides: false,
                });
                self.trajectory(asked, &row.slots, &asks, &mut cost);
            }
        }
        if let (HaltTrace::Predicted { .. }, (_, Some(head))) = (&row.halt, self.halt) {
            cost.probe_around += head.flops();
        }

        // The strong and the weak model of refinement have the student's shape.
        let ran = |runs: LayerRuns| runs.calls as f64 * flops.layer() + flops.attention(runs.keys);
        let beside = row.auxiliary;
        cost.reasoning += ran(beside.latents) + ran(beside.backward);
        cost.around += beside.mapped as f64 * self.feeding();
        cost.around += (4 * config.d_model * beside.projected) as f64;
        let questions = flops.layers(0, asked) + ran(beside.question);

        let reason_flops = cost.reasoning + cost.probes;
        Response {
            latent_steps,
            layer_calls: layer_calls + beside.latents.calls + cost.probe_calls,
            flops: questions + reason_flops + cost.answer + cost.around + cost.probe_around,
            reason_flops,
            probe_layer_calls: cost.probe_calls,
            probe_flops: cost.probes + cost.probe_around,
            drafts: Default::default(),
            tokens: row.tokens,
            slots: row.slots,
        }
    }

    /// Adds what `slots` after a question of `asked` tokens ran, and what was asked of them on the way and
    /// at the end.
    fn trajectory(&self, asked: usize, slots: &[SlotTrace], asks: &[Ask], cost: &mut Cost) {
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
        // In a copy of the cache.
        let ask = |ask: &Ask, mut held: Vec<usize>, cost: &mut Cost| {
            for token in 0..ask.fed {
                let layers = held.iter_mut().map(run).sum::<f64>();
                *match ask.decides {
                    true => &mut cost.probes,
                    false if token < ask.words => &mut cost.reasoning,
                    false => &mut cost.answer,
                } += layers;
            }
            let heads = flops.head() * ask.chosen as f64;
            if ask.decides {
                cost.probe_around += heads;
                cost.probe_calls += ask.fed * config.layers;
            } else {
                cost.around += heads;
            }
        };
        let after = |steps: usize| asks.iter().filter(move |ask| ask.after == steps);
        for asked in after(0) {
            ask(asked, held.clone(), cost);
        }
        let passes = self.order.passes(slots.len()) as f64;
        let mut left = config.layers;
        for (index, slot) in slots.iter().enumerate() {
            let ran = &mut held[slot.enter..slot.leave];
            cost.reasoning += passes * ran.iter_mut().map(run).sum::<f64>();
            if self.key_values == KeyValueRule::Fill {
                for held in &mut held[slot.leave..] {
                    *held += 1;
                    cost.reasoning += key_values;
                }
            }
            cost.around += passes * self.between(slot.enter, left);
            cost.around += slot
                .weights
                .iter()
                .map(|&(boundary, _)| self.router(boundary))
                .sum::<f64>();
            left = slot.leave;
            for asked in after(index + 1) {
                ask(asked, held.clone(), cost);
            }
        }
    }

    /// From a slot that left at `left` to the next, which enters at `enter`: the feedback map at
    /// the bottom, an adapter above it.
    fn between(&self, enter: usize, left: usize) -> f64 {
        match (enter, self.rule.shortcuts()) {
            (0, _) => self.feeding(),
            (_, Some(shortcuts)) => {
                let adapter = &shortcuts.adapters[left];
                product(&adapter.down) + product(&adapter.up)
            }
            (_, None) => 0.0,
        }
    }

    /// From a state to the input of a latent step.
    fn feeding(&self) -> f64 {
        let model = self.model;
        let hidden = model.projection.as_ref();
        let hidden = hidden.map_or(0.0, |map| product(&map.up) + product(&map.down));
        hidden + model.feedback.as_ref().map_or(0.0, product)
    }

    fn router(&self, boundary: usize) -> f64 {
        self.rule.shortcuts().map_or(0.0, |shortcuts| {
            let router = &shortcuts.routers[boundary];
            router.hidden.as_ref().map_or(0.0, product) + product(&router.output)
        })
    }
}

/// Tokens run to see what the answer would be, or to give it.
struct Ask {
    /// Latent steps before.
    after: usize,
    /// Of the tokens that were fed, those before the answer opens, which are reasoning.
    words: usize,
    /// Tokens that were fed.
    fed: usize,
    /// How often the head was asked for the next one.
    chosen: usize,
    /// Whether it was to decide about going on, which counts as reasoning.
    decides: bool,
}

/// Operations, but for the question's own; layers while reasoning, of probes, of the answer; and what is
/// beside layers: heads, routers, adapters, feedback maps, apart for probes.
#[derive(Default)]
struct Cost {
    reasoning: f64,
    probes: f64,
    answer: f64,
    around: f64,
    probe_around: f64,
    /// Layer executions of probes.
    probe_calls: usize,
}

fn calls(slots: &[SlotTrace]) -> usize {
    slots.iter().map(SlotTrace::layer_calls).sum()
}

/// Operations of one matrix-vector product.
fn product(map: &Linear) -> f64 {
    2.0 * map.weight.shape().num_elements() as f64
}
