//! Reasoning in latent steps, then an answer in words.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use sesqui_model::latent::{LatentOrder, Source};
use sesqui_model::{KvCache, LatentTransformer, Transformer};
use sesqui_shortcut::{
    EntryPosition, ExitRule, Handed, KeyValueRule, Landing, Last, SlotTrace, Walk,
};

use crate::decode::{DecodedRow, Decoding, feed, go_on, prefill, read_argmax};
use crate::halt::{HaltConfig, HaltTrace, Halter, Halting, sampled};
use crate::parallel::{Iterated, iterated};
use crate::prompt::{Prompt, PromptError};
use crate::refine::{AuxiliaryWork, Calibrator, References, RefineConfig, Refinement, Refiner};

/// Where latent steps and the answer stand, and when the answer ends.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentDecoding<'a> {
    /// Latent steps to run; with none the answer follows the question.
    pub latent_steps: usize,
    /// In which order they are computed. All at once takes a model that feeds back its newest states, every
    /// layer, no refinement and no halting.
    pub order: LatentOrder,
    /// Position ids `[row][slot]`.
    pub slot_positions: Vec<Vec<i32>>,
    /// Position id of each row's first token after the latent steps.
    pub answer_position: Vec<i32>,
    /// The tokens that open the answer, fed to every row. If there are none, the last slot's state
    /// chooses the first token.
    pub answer_start: &'a [u32],
    /// Where a slot goes on after one that left early.
    pub landing: Landing,
    /// Whether it is given its learned position there.
    pub entry_position: EntryPosition,
    /// When the answer ends; tokens of `answer_start` do not count.
    pub decoding: Decoding,
}

/// What came of a batch.
#[derive(Clone, Debug)]
pub struct LatentDecoded {
    /// One entry per prompt row.
    pub rows: Vec<LatentRow>,
    /// Time from the start until the prompt was run.
    pub prefill: Duration,
    /// Time from there until the last slot was run.
    pub reasoning: Duration,
    /// Time from there to the end.
    pub answer: Duration,
    /// Of that, the time of each decoding step after the first token was chosen, all rows together; empty
    /// where several trajectories answered.
    pub decoding_steps: Vec<Duration>,
    /// States after the final norm, `[batch, 1, d_model]` each: of the prompt's last column, then
    /// after every slot; but for the last as they were fed, refined. A row that left its slot early, or
    /// takes no more, keeps its older state there.
    pub states: Vec<Tensor<3>>,
    /// All of [`LatentDecoded::states`] but the last as they were before refinement; empty without.
    pub unrefined: Vec<Tensor<3>>,
    /// For each slot the states with which rows left it early.
    pub handed: Vec<Vec<Handed>>,
    /// How often it was read from the device to decide which steps leave early and which rows stop. Not in
    /// it: refinement, and whole answers that samples are asked for, a read for each of their tokens.
    pub reads: usize,
}

impl LatentDecoded {
    /// The state `[1, 1, d_model]` with which `row` left `slot` early, before any norm; none where it ran
    /// to the top.
    pub fn handed_on(&self, row: usize, slot: usize) -> Option<Tensor<3>> {
        self.handed.get(slot)?.iter().find_map(|handed| {
            let index = handed.rows.iter().position(|&other| other == row)?;
            Some(handed.states.clone().narrow(0, index, 1))
        })
    }
}

/// What one row did.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentRow {
    /// Token ids, those that open the answer included, without the stop token.
    pub tokens: Vec<u32>,
    /// Whether the stop token came, rather than a limit.
    pub stopped: bool,
    /// One entry per latent step; of several trajectories those of the one that answers.
    pub slots: Vec<SlotTrace>,
    /// What refinement ran for it.
    pub auxiliary: AuxiliaryWork,
    /// How it was decided when it stops.
    pub halt: HaltTrace,
}

/// Runs the prompt, then latent steps, then decodes the answer greedily, all rows in step.
///
/// Under [`ExitRule::Full`] nothing is read to the host before the answer.
///
/// # Errors
///
/// When the prompt, the positions or the shortcuts do not fit the model.
pub fn latent(
    model: &LatentTransformer,
    rule: ExitRule<'_>,
    key_values: KeyValueRule,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
    device: &Device,
) -> Result<LatentDecoded, PromptError> {
    run(
        model,
        rule,
        key_values,
        prompt,
        plan,
        &mut Refiner::idle(model),
        None,
        device,
    )
}

/// As [`latent`], with latents refined before they are fed. What only a strong and a weak model's
/// reading of the question takes counts as prefill.
///
/// # Errors
///
/// As [`latent`], and when `refinement` lacks what its configuration needs or its models are not of the
/// student's shape.
pub fn latent_refined(
    model: &LatentTransformer,
    rule: ExitRule<'_>,
    key_values: KeyValueRule,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
    refinement: &Refinement<'_>,
    device: &Device,
) -> Result<LatentDecoded, PromptError> {
    let mut refiner = Refiner::new(model, refinement)?;
    run(
        model,
        rule,
        key_values,
        prompt,
        plan,
        &mut refiner,
        None,
        device,
    )
}

/// As [`latent`], or with a refinement as [`latent_refined`], where rows stop as `halting` says. A row that
/// has stopped costs nothing more until its answer. What is run to decide counts as reasoning.
///
/// # Errors
///
/// As those two, and when `halting` does not fit: a number out of range, no head, positions that are
/// missing; several trajectories with a refinement.
pub fn latent_halting(
    model: &LatentTransformer,
    rule: ExitRule<'_>,
    key_values: KeyValueRule,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
    refinement: Option<&Refinement<'_>>,
    halting: &Halting<'_>,
    device: &Device,
) -> Result<LatentDecoded, PromptError> {
    let backbone = &model.backbone;
    let (context, vocabulary) = (backbone.config().context, backbone.vocabulary());
    halting.validate(plan, prompt.batch, (context, vocabulary))?;
    if let HaltConfig::Samples(samples) = halting.config {
        if refinement.is_some() {
            return Err(PromptError::Halting(
                "samples cannot be refined; leave out one of the two".to_owned(),
            ));
        }
        check(model, &rule, prompt, plan)?;
        if !plan.order.is_sequential() {
            return Err(PromptError::Order);
        }
        let halting = (halting, samples);
        return Ok(sampled(
            model, rule, key_values, prompt, plan, halting, device,
        ));
    }
    let mut refiner = match refinement {
        Some(refinement) => Refiner::new(model, refinement)?,
        None => Refiner::idle(model),
    };
    run(
        model,
        rule,
        key_values,
        prompt,
        plan,
        &mut refiner,
        Some(halting),
        device,
    )
}

/// Gives `calibrator` the differences `strong - weak` at every latent that `config` would move, on
/// latents that are blended as it says and not moved.
///
/// # Errors
///
/// As [`latent_refined`].
pub fn observe(
    model: &LatentTransformer,
    rule: ExitRule<'_>,
    key_values: KeyValueRule,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
    (config, references): (&RefineConfig, &References),
    calibrator: &mut Calibrator,
    device: &Device,
) -> Result<(), PromptError> {
    let mut refiner = Refiner::observing(model, config, references)?;
    let plan = LatentDecoding {
        decoding: Decoding {
            max_tokens: 0,
            ..plan.decoding
        },
        ..plan.clone()
    };
    run(
        model,
        rule,
        key_values,
        prompt,
        &plan,
        &mut refiner,
        None,
        device,
    )?;
    refiner.report(calibrator);
    Ok(())
}

fn run(
    model: &LatentTransformer,
    rule: ExitRule<'_>,
    key_values: KeyValueRule,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
    refiner: &mut Refiner<'_>,
    halting: Option<&Halting<'_>>,
    device: &Device,
) -> Result<LatentDecoded, PromptError> {
    let backbone = &model.backbone;
    check(model, &rule, prompt, plan)?;
    refiner.validate(prompt)?;
    if let LatentOrder::Jacobi { .. } = plan.order {
        let alone = rule.never() && refiner.is_idle() && halting.is_none();
        if !alone || model.source() != Source::Newest {
            return Err(PromptError::Order);
        }
    }

    let clock = Instant::now();
    let opening = plan.answer_start.len();
    let more = plan.latent_steps + opening + plan.decoding.max_tokens;
    let (cache, hidden) = prefill(backbone, prompt, more, device);
    let states = backbone.final_norm(hidden);
    refiner.read_question(prompt, plan.latent_steps, device);
    finish_pending(device);
    let prefill = clock.elapsed();

    let clock = Instant::now();
    if let LatentOrder::Jacobi { .. } = plan.order {
        let passes = plan.order.passes(plan.latent_steps);
        let found = iterated(model, cache, states, &plan.slot_positions, passes, device);
        finish_pending(device);
        let reasoning = clock.elapsed();
        return Ok(answered(
            backbone,
            found,
            plan,
            [prefill, reasoning],
            device,
        ));
    }
    let mut walk = Walk::new(model, cache, states, rule, key_values)
        .with_landing(plan.landing)
        .with_entry_position(plan.entry_position);
    let mut halter = Halter::new(halting, plan, &walk);
    for slot in 0..plan.latent_steps {
        if walk.is_over() {
            break;
        }
        let positions: Vec<i32> = plan.slot_positions.iter().map(|row| row[slot]).collect();
        let last = slot + 1 == plan.latent_steps;
        refiner.refine(&mut walk, slot, &positions, last);
        match halter.last(slot, last) {
            Some(rows) => walk.step(&positions, Last::Rows(&rows)),
            None => walk.step(&positions, Last::All(last)),
        }
        if !last {
            halter.after(slot, &mut walk, plan.answer_start);
        }
    }
    let mut states = walk.inputs().to_vec();
    let last = walk.states();
    states.push(last.clone());
    let (handed, reads) = (walk.handed().to_vec(), walk.reads() + halter.reads());
    let (mut cache, slots) = walk.into_parts();
    finish_pending(device);
    let reasoning = clock.elapsed();

    let clock = Instant::now();
    let positions: Vec<i32> = match halting {
        None => plan.answer_position.clone(),
        Some(halting) => {
            let rows = halting.answer_after.iter().zip(&slots);
            rows.map(|(after, slots)| after[slots.len() - 1]).collect()
        }
    };
    let (answers, decoding_steps) = answers(backbone, &mut cache, last, plan, &positions, device);
    let answer = clock.elapsed();
    let (auxiliary, unrefined) = refiner.take_record();
    let halts = halter.into_traces(slots.len());
    let rows = answers.into_iter().zip(slots).zip(auxiliary).zip(halts);
    let rows = rows.map(|(((answer, slots), auxiliary), halt)| LatentRow {
        tokens: [plan.answer_start, &answer.tokens].concat(),
        stopped: answer.stopped,
        slots,
        auxiliary,
        halt,
    });
    Ok(LatentDecoded {
        rows: rows.collect(),
        prefill,
        reasoning,
        answer,
        decoding_steps,
        states,
        unrefined,
        handed,
        reads,
    })
}

/// The answers after latent steps that were computed all at once.
fn answered(
    backbone: &Transformer,
    found: Iterated,
    plan: &LatentDecoding<'_>,
    [prefill, reasoning]: [Duration; 2],
    device: &Device,
) -> LatentDecoded {
    let Iterated {
        mut cache,
        inputs: mut states,
        last,
    } = found;
    let clock = Instant::now();
    states.push(last.clone());
    let at = &plan.answer_position;
    let (answers, decoding_steps) = answers(backbone, &mut cache, last, plan, at, device);
    let slot = SlotTrace {
        leave: backbone.layers.len(),
        ..SlotTrace::default()
    };
    let rows = answers.into_iter().map(|answer| LatentRow {
        tokens: [plan.answer_start, &answer.tokens].concat(),
        stopped: answer.stopped,
        slots: vec![slot.clone(); plan.latent_steps],
        auxiliary: AuxiliaryWork::default(),
        halt: HaltTrace::default(),
    });
    LatentDecoded {
        rows: rows.collect(),
        prefill,
        reasoning,
        answer: clock.elapsed(),
        decoding_steps,
        states,
        unrefined: Vec::new(),
        handed: vec![Vec::new(); plan.latent_steps],
        reads: 0,
    }
}

/// The answers of all rows of `cache`, opening tokens left out, of which the first stands at `positions`,
/// and the time of each step; `states` `[batch, 1, d_model]` are those of the last slot after the final
/// norm.
pub(crate) fn answers(
    backbone: &Transformer,
    cache: &mut KvCache,
    mut states: Tensor<3>,
    plan: &LatentDecoding<'_>,
    positions: &[i32],
    device: &Device,
) -> (Vec<DecodedRow>, Vec<Duration>) {
    let opening = plan.answer_start.len();
    if opening > 0 {
        let ids: Vec<i32> = plan.answer_start.iter().map(|&id| id as i32).collect();
        let at = positions.iter();
        let at: Vec<i32> = at.flat_map(|&first| (first..).take(opening)).collect();
        let real = vec![true; at.len()];
        let ids = ids.repeat(positions.len());
        states = feed(backbone, cache, ids, at, &real, device);
    }
    let next = read_argmax(backbone, states);
    let first = positions.iter().map(|&first| first + opening as i32);
    let first: Vec<i32> = first.collect();
    go_on(backbone, cache, next, &first, plan.decoding, device)
}

/// Checks prompt, plan and shortcuts against the model.
fn check(
    model: &LatentTransformer,
    rule: &ExitRule<'_>,
    prompt: &Prompt,
    plan: &LatentDecoding<'_>,
) -> Result<(), PromptError> {
    let backbone = &model.backbone;
    prompt.validate(backbone.vocabulary(), backbone.config().context)?;
    plan.validate(prompt.batch, model)?;
    check_shortcuts(rule, backbone.layers.len())
}

/// Waits for the device, so that phases can be told apart.
pub(crate) fn finish_pending(device: &Device) {
    // A device that failed here fails in the read that follows as well.
    let _ = device.sync();
}

impl LatentDecoding<'_> {
    /// Checks lengths and ranges against a prompt of `batch` rows: indices are not checked on GPU
    /// backends.
    ///
    /// # Errors
    ///
    /// Names the list, or the row and value, that does not fit.
    fn validate(&self, batch: usize, model: &LatentTransformer) -> Result<(), PromptError> {
        check_length("rows of slot positions", self.slot_positions.len(), batch)?;
        check_length("answer positions", self.answer_position.len(), batch)?;
        let context = model.backbone.config().context;
        for (row, positions) in self.slot_positions.iter().enumerate() {
            check_length("slot positions", positions.len(), self.latent_steps)?;
            for &value in positions {
                check_range("slot position", value, row, context)?;
            }
        }
        let opening = self.answer_start.len();
        for (row, &value) in self.answer_position.iter().enumerate() {
            // One past the last position is fine for a token that is chosen but not fed.
            let limit = (context + 1).saturating_sub(opening);
            check_range("answer position", value, row, limit)?;
        }
        let vocabulary = model.backbone.vocabulary();
        for &id in self.answer_start {
            let value = i32::try_from(id).unwrap_or(i32::MAX);
            check_range("token", value, 0, vocabulary)?;
        }
        Ok(())
    }
}

fn check_shortcuts(rule: &ExitRule<'_>, layers: usize) -> Result<(), PromptError> {
    if let Some(shortcuts) = rule.shortcuts() {
        check_length("adapters", shortcuts.adapters.len(), layers + 1)?;
    }
    match rule {
        ExitRule::Routers { hosts, .. } => check_length("routers", hosts.len(), layers),
        ExitRule::Full | ExitRule::Plan { .. } => Ok(()),
    }
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), PromptError> {
    if found == expected {
        return Ok(());
    }
    Err(PromptError::Length {
        what,
        found,
        expected,
    })
}

fn check_range(
    what: &'static str,
    value: i32,
    row: usize,
    limit: usize,
) -> Result<(), PromptError> {
    if usize::try_from(value).is_ok_and(|value| value < limit) {
        return Ok(());
    }
    Err(PromptError::Range {
        what,
        value,
        row,
        limit,
    })
}
