//! One question and what a model made of it, for reading.

use std::time::Duration;

use anyhow::Result;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use sesqui_dataset::tokenizer::Tokenizer;
use sesqui_eval::{Responses, Task, answer};
use sesqui_model::latent::LatentTransformer;
use sesqui_reason::{HaltTrace, LatentDecoded};

use crate::misuse::Misuse;

/// The answer to the only question of `task`, in lines: the question, the tokens of reasoning and
/// answer, the answer found, the right one where `known`, and what it took.
///
/// # Errors
///
/// When a generated id is not in the vocabulary.
pub fn response(task: &Task<'_>, responses: &Responses, known: bool) -> Result<String> {
    let (problem, encoded) = (&task.problems[0], &task.encoded[0]);
    let tokens = &responses.rows[0].tokens;
    let opening = &encoded.answer_start;
    let split = match opening.len() {
        0 => tokens.len(),
        length => tokens
            .windows(length)
            .position(|window| window == opening)
            .unwrap_or(tokens.len()),
    };
    let (reasoning, answer) = tokens.split_at(split);
    let generated = task.tokenizer.decode(tokens)?;
    let marker = &task.format.answer_start;
    let mut lines = vec![
        format!("question   {}", problem.question),
        format!("reasoning  {}", pieces(task.tokenizer, reasoning)),
        format!("answer     {}", pieces(task.tokenizer, answer)),
    ];
    if known {
        let found = answer::extract(&generated, marker, problem.answer_kind);
        let right = found
            .as_deref()
            .is_some_and(|found| answer::matches(found, &problem.answer, problem.answer_kind));
        lines.push(format!("parsed     {}", found.as_deref().unwrap_or("none")));
        let verdict = if right { "right" } else { "wrong" };
        lines.push(format!("expected   {}: {verdict}", problem.answer));
    } else {
        // Nobody said whether a number, a phrase or a yes is wanted.
        let found = match marker.as_str() {
            "" => Some(generated.as_str()),
            marker => generated.rsplit_once(marker).map(|(_, text)| text),
        };
        lines.push(format!("parsed     {}", found.map_or("none", str::trim)));
    }
    let row = &responses.rows[0];
    lines.push(format!(
        "tokens     {} reasoning, {} answer; {} latent steps",
        reasoning.len(),
        answer.len(),
        row.latent_steps
    ));
    lines.push(format!(
        "work       {} layer calls of reasoning; MFLOPs: {:.3} of reasoning inside layers, {:.3} in all",
        row.layer_calls,
        row.reason_flops / 1e6,
        row.flops / 1e6
    ));
    if row.drafts.drafted > 0 {
        lines.push(format!(
            "drafts     {} tokens drafted, {} accepted",
            row.drafts.drafted, row.drafts.accepted
        ));
    }
    lines.push(format!(
        "ms         {:.2} prefill, {:.2} reasoning, {:.2} answer",
        milliseconds(responses.prefill),
        milliseconds(responses.reasoning),
        milliseconds(responses.answer)
    ));
    Ok(lines.join("\n"))
}

/// Every latent step of the first row, in lines: where it entered and left, what the routers said,
/// and the tokens that final norm and head find nearest to its output, or to the state with which it
/// left early (the logit lens).
///
/// # Errors
///
/// When a token is not in the vocabulary.
pub fn latent_steps(
    model: &LatentTransformer,
    tokenizer: &Tokenizer,
    decoded: &LatentDecoded,
) -> Result<String> {
    let layers = model.backbone.layers.len();
    let mut lines = vec![format!(
        "question's end    layers 0..{layers}   reads {}{}",
        nearest(model, tokenizer, &decoded.states[0]),
        change(decoded, 0)
    )];
    for (index, slot) in decoded.rows[0].slots.iter().enumerate() {
        let routers: Vec<String> = slot
            .weights
            .iter()
            .map(|(boundary, weight)| format!("{boundary}: {weight:.2}"))
            .collect();
        let routers = match routers.as_slice() {
            [] => String::new(),
            routers => format!("   router {}", routers.join(", ")),
        };
        let seen = looked(decoded, index + 1);
        let result = match decoded.handed_on(0, index) {
            Some(state) => {
                let state = model.backbone.final_norm(state);
                format!(
                    "handed on to the next step at layer {}, reads {}",
                    slot.leave,
                    nearest(model, tokenizer, &state)
                )
            }
            None => format!(
                "reads {}{}",
                nearest(model, tokenizer, &decoded.states[index + 1]),
                change(decoded, index + 1)
            ),
        };
        lines.push(format!(
            "latent step {:<5} layers {}..{}{routers}   {result}{seen}",
            index + 1,
            slot.enter,
            slot.leave
        ));
    }
    lines.extend(decision(&decoded.rows[0].halt));
    Ok(lines.join("\n"))
}

/// What a look at the answer after `steps` latent steps saw of the first row.
fn looked(decoded: &LatentDecoded, steps: usize) -> String {
    let entropy = match &decoded.rows[0].halt {
        HaltTrace::None | HaltTrace::Predicted { .. } => None,
        HaltTrace::Probes(probes) => {
            let probe = probes.iter().find(|probe| probe.after == steps);
            probe.map(|probe| probe.entropy)
        }
        HaltTrace::Samples(trace) => {
            let round = trace.rounds.iter().find(|round| round.after == steps);
            round.map(|round| round.entropy)
        }
    };
    entropy.map_or_else(String::new, |entropy| format!("   entropy {entropy:.3}"))
}

/// Whoever decided at once how many steps there are to be, or whose answer it is.
fn decision(halt: &HaltTrace) -> Option<String> {
    match halt {
        HaltTrace::None | HaltTrace::Probes(_) => None,
        HaltTrace::Predicted {
            steps,
            probabilities,
        } => {
            let shown: Vec<String> = probabilities
                .iter()
                .zip(1..)
                .map(|(probability, steps)| format!("{steps}: {probability:.2}"))
                .collect();
            Some(format!(
                "head              {steps} steps, of {}",
                shown.join(", ")
            ))
        }
        HaltTrace::Samples(trace) => Some(format!(
            "samples           {} trajectories; number {} is shown and answers",
            trace.trajectories.len(),
            trace.winner + 1
        )),
    }
}

/// How far refinement moved the first row's state `index` before it was fed; what the head reads is the
/// state after that.
fn change(decoded: &LatentDecoded, index: usize) -> String {
    let Some(before) = decoded.unrefined.get(index) else {
        return String::new();
    };
    let row = |state: &Tensor<3>| state.clone().narrow(0, 0, 1);
    let norm = |of: Tensor<3>| of.powi_scalar(2).sum().sqrt().into_scalar::<f32>();
    let (before, after) = (row(before), row(&decoded.states[index]));
    let moved = norm(after - before.clone());
    format!("   moved by {moved:.3} of {:.3}", norm(before))
}

/// The three likeliest tokens after the first row of `state` `[batch, 1, d_model]`, which is past the
/// final norm.
fn nearest(model: &LatentTransformer, tokenizer: &Tokenizer, state: &Tensor<3>) -> String {
    let logits = model.backbone.head(state.clone().narrow(0, 0, 1));
    let (weights, tokens) = softmax(logits, 2).topk_with_indices(3, 2);
    let tokens = tokens.into_data();
    let weights = weights.into_data();
    let shown = tokens
        .iter::<i64>()
        .zip(weights.iter::<f32>())
        .map(|(token, weight)| {
            let text = tokenizer.token_text(token as u32);
            let text = text.unwrap_or_else(|| format!("<{token}>"));
            format!("{} {:.0} %", text.replace('\n', "⏎"), 100.0 * weight)
        });
    shown.collect::<Vec<_>>().join(", ")
}

/// Says which characters of the only question of `task` the model has never seen, if any.
///
/// # Errors
///
/// When the tokenizer refuses a character.
pub fn unknown_characters(task: &Task<'_>) -> Result<Option<String>> {
    let tokenizer = task.tokenizer;
    let Some(unknown) = tokenizer.unknown_id() else {
        return Ok(None);
    };
    let mut found = String::new();
    for character in task.problems[0].question.chars() {
        let ids = tokenizer.encode(&character.to_string())?;
        if ids.contains(&unknown) && !found.contains(character) {
            found.push(character);
        }
    }
    Ok((!found.is_empty()).then(|| {
        format!(
            "note: not in the model's vocabulary, read as unknown: {}",
            found.escape_debug()
        )
    }))
}

/// The problem at `index` of a split.
///
/// # Errors
///
/// When the split ends before it.
pub fn pick<'a>(task: &Task<'a>, index: usize) -> Result<Task<'a>> {
    let count = task.problems.len();
    if index >= count {
        return Err(Misuse(match count {
            0 => format!(
                "--split {}: {} has no questions there",
                task.split, task.dataset
            ),
            _ => format!(
                "--index {index}: {} {} has {count} questions, 0 to {}",
                task.dataset,
                task.split,
                count - 1
            ),
        })
        .into());
    }
    Ok(Task {
        problems: &task.problems[index..=index],
        encoded: &task.encoded[index..=index],
        ..*task
    })
}

/// Tokens one by one, a dot between them; line breaks show as `⏎`.
fn pieces(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let shown = tokens.iter().map(|&token| {
        let text = tokenizer.token_text(token);
        text.unwrap_or_else(|| format!("<{token}>"))
            .replace('\n', "⏎")
    });
    match tokens {
        [] => "(nothing)".to_owned(),
        _ => shown.collect::<Vec<_>>().join("·"),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    1e3 * duration.as_secs_f64()
}
