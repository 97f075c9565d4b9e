//! Ways of answering a question, with what each answer cost.

use std::time::Duration;

use burn::tensor::Device;
use sesqui_model::Transformer;
use sesqui_model::flops::Flops;
use sesqui_reason::token_exit::{self, Drafts, ExitRow, TokenRun};
use sesqui_reason::{Decoding, Prompt, PromptError, TokenExit};
use sesqui_shortcut::SlotTrace;

use crate::parts::in_parts;

/// What one question got back.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Generated token ids: reasoning, if it is in words, then the answer.
    pub tokens: Vec<u32>,
    /// Latent steps applied, those of all trajectories where there are several.
    pub latent_steps: usize,
    /// Layer executions while reasoning, those of models that refine latents and of looks at the answer
    /// included: one layer at one position is one.
    pub layer_calls: usize,
    /// What each latent step ran, of the trajectory that answers; empty for reasoning in words.
    pub slots: Vec<SlotTrace>,
    /// Floating-point operations, prompt, reasoning and answer, head and attention included.
    pub flops: f64,
    /// Of these what System-1.5 Reasoning counts (arXiv 2505.18962, appendix B): dot products and
    /// matrix-vector products inside the layers, reasoning only.
    pub reason_flops: f64,
    /// Of `layer_calls` those that were made to decide when to stop.
    pub probe_layer_calls: usize,
    /// Of `flops` those that went into that, heads included.
    pub probe_flops: f64,
    /// What became of drafted tokens, where the first layers draft.
    pub drafts: Drafts,
}

/// What a batch got back.
#[derive(Clone, Debug, PartialEq)]
pub struct Responses {
    /// One per prompt row.
    pub rows: Vec<Response>,
    /// The prompt, up to and including the choice of the first token or latent.
    pub prefill: Duration,
    /// From there to the first token of the answer, for the row that takes longest.
    pub reasoning: Duration,
    /// From there to the end.
    pub answer: Duration,
}

/// A way of answering.
pub trait Method {
    /// Answers all rows of `prompt`.
    ///
    /// # Errors
    ///
    /// When the prompt does not fit the model.
    fn respond(&self, prompt: &Prompt) -> Result<Responses, PromptError>;
}

/// Greedy decoding of tokens: with a chain of thought or without, as the model was trained.
pub struct TokenDecoding<'a> {
    /// The model, without autodiff.
    pub model: &'a Transformer,
    /// Where it is.
    pub device: &'a Device,
    /// When to stop.
    pub decoding: Decoding,
    /// After how many layers a token is chosen.
    pub exit: TokenExit,
    /// The tokens that open the answer.
    pub answer_start: &'a [u32],
}

impl Method for TokenDecoding<'_> {
    fn respond(&self, prompt: &Prompt) -> Result<Responses, PromptError> {
        in_parts(prompt, self.device, |part| self.together(part))
    }
}

impl TokenDecoding<'_> {
    /// Answers all rows in step.
    fn together(&self, prompt: &Prompt) -> Result<Responses, PromptError> {
        let (model, decoding) = (self.model, self.decoding);
        let decoded = token_exit::decode(model, prompt, decoding, self.exit, self.device)?;
        let mut longest = 0;
        let mut rows = Vec::with_capacity(decoded.rows.len());
        let real = prompt.real.chunks_exact(prompt.seq);
        for (row, real) in decoded.rows.into_iter().zip(real) {
            let asked = real.iter().filter(|&&real| real).count();
            let reasoning = reasoning_tokens(&row.decoded.tokens, self.answer_start);
            longest = longest.max(row.chosen_after[reasoning]);
            rows.push(self.response(row, asked, reasoning, decoded.prompt_layers));
        }
        Ok(Responses {
            rows,
            prefill: decoded.prefill,
            reasoning: decoded.steps[..longest].iter().sum(),
            answer: decoded.steps[longest..].iter().sum(),
        })
    }

    /// What a question of `asked` tokens got back, with so many tokens of `reasoning`. What ran at the place
    /// of a token, rejected drafts included, counts as that of the token.
    fn response(
        &self,
        row: ExitRow,
        asked: usize,
        reasoning: usize,
        prompt_layers: usize,
    ) -> Response {
        let flops = Flops::new(self.model.config(), self.model.vocabulary());
        // A token sees all before it and itself, in every layer that it runs.
        let inside = |run: &TokenRun, before: usize| {
            run.layers as f64 * (flops.layer() + flops.attention(before + 1))
                + run.filled as f64 * flops.key_values()
        };
        let mut layer_calls = 0;
        let mut reason_flops = 0.0;
        let mut others = inside(&row.question_end, asked - 1);
        let mut heads = row.question_end.heads;
        for (place, run) in &row.runs {
            let ran = inside(run, asked + place);
            heads += run.heads;
            if *place < reasoning {
                layer_calls += run.layers;
                reason_flops += ran;
            } else {
                others += ran;
            }
        }
        others += (1..asked)
            .map(|keys| prompt_layers as f64 * (flops.layer() + flops.attention(keys)))
            .sum::<f64>();
        Response {
            latent_steps: 0,
            layer_calls,
            slots: Vec::new(),
            reason_flops,
            flops: others + reason_flops + heads as f64 * flops.head(),
            probe_layer_calls: 0,
            probe_flops: 0.0,
            drafts: row.drafts,
            tokens: row.decoded.tokens,
        }
    }
}

/// Tokens before the answer's opening; all of them where it never opens.
pub(crate) fn reasoning_tokens(tokens: &[u32], answer_start: &[u32]) -> usize {
    if answer_start.is_empty() {
        return tokens.len();
    }
    tokens
        .windows(answer_start.len())
        .position(|window| window == answer_start)
        .unwrap_or(tokens.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_ends_where_the_answer_opens() {
        let cases: [(&[u32], &[u32], usize); 4] = [
            (&[1, 2, 9, 4], &[9], 2),
            (&[9, 4], &[9], 0),
            (&[1, 2, 3], &[9], 3),
            (&[1, 9, 1, 9, 8, 2], &[9, 8], 3),
        ];
        for (tokens, start, expected) in cases {
            assert_eq!(reasoning_tokens(tokens, start), expected);
        }
    }
}
