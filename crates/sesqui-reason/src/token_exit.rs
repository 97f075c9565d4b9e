//! Decoding of tokens that do not all run all layers.
//!
//! A layer below the last is asked through the final norm and the head that all layers share (logit lens):
//! models trained with losses there (LITE, arXiv 2310.18581; LayerSkip, arXiv 2404.16710) answer well, others
//! badly.

mod confidence;
mod speculation;

use std::time::Duration;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use sesqui_model::Transformer;

use crate::decode::{DecodedRow, Decoding, greedy};
use crate::prompt::{Prompt, PromptError};

/// After how many layers a token is chosen. Layers are counted from 1: layer 2 is the state after two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenExit {
    /// After all of them.
    #[default]
    Never,
    /// After the same layer always; nothing above it is run, for the prompt neither.
    Fixed {
        /// The last layer that runs.
        layer: usize,
    },
    /// After the first layer whose likeliest token is likely enough (CALM, arXiv 2207.07061; LITE). Layers above get keys and values of the state with which the token left.
    Confidence {
        /// A token leaves where the probability of the likeliest exceeds this; 1 is never exceeded.
        threshold: f64,
        /// The first layer that is asked.
        #[serde(default = "first")]
        from: usize,
    },
    /// The first layers draft, and the others verify what they drafted in one pass (LayerSkip, section 4.3).
    /// The answer is that of all layers.
    SelfSpeculative {
        /// The last layer of those that draft.
        layer: usize,
        /// Most tokens that are drafted before they are verified.
        #[serde(default = "drafts")]
        drafts: usize,
    },
}

fn first() -> usize {
    1
}

fn drafts() -> usize {
    4
}

impl TokenExit {
    /// Whether all layers are run one token at a time.
    pub fn is_never(&self) -> bool {
        *self == Self::Never
    }

    /// What is wrong with the numbers for any model, if anything: the key and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        match *self {
            Self::Confidence { threshold, .. } if !(0.0..=1.0).contains(&threshold) => {
                let reason = format!("{threshold} is not in [0, 1]; 1 runs every layer");
                return Some(("threshold", reason));
            }
            Self::SelfSpeculative { drafts: 0, .. } => {
                let reason = "must be at least 1, there would be nothing to verify";
                return Some(("drafts", reason.to_owned()));
            }
            _ => {}
        }
        match self.layer() {
            Some((key, 0)) => Some((key, "must be at least 1, the first layer".to_owned())),
            _ => None,
        }
    }

    /// What is wrong with the numbers for a model of `layers` layers, if anything: the key and the reason.
    pub fn misfit(&self, layers: usize) -> Option<(&'static str, String)> {
        self.problem().or_else(|| match self.layer() {
            Some((key, layer)) if layer > layers => {
                let reason = format!("there is no layer {layer}; give 1 to {layers}, the last");
                Some((key, reason))
            }
            _ => None,
        })
    }

    /// The same for a model that has `layers` layers only.
    #[must_use]
    pub fn within(self, layers: usize) -> Self {
        match self {
            Self::Never => Self::Never,
            Self::Fixed { layer } => Self::Fixed {
                layer: layer.min(layers),
            },
            Self::Confidence { threshold, from } => Self::Confidence {
                threshold,
                from: from.min(layers),
            },
            Self::SelfSpeculative { layer, drafts } => Self::SelfSpeculative {
                layer: layer.min(layers),
                drafts,
            },
        }
    }

    /// The first layer that is asked, where it is not the last, and its key.
    fn layer(&self) -> Option<(&'static str, usize)> {
        match *self {
            Self::Never => None,
            Self::Fixed { layer } | Self::SelfSpeculative { layer, .. } => Some(("layer", layer)),
            Self::Confidence { from, .. } => Some(("from", from)),
        }
    }
}

/// What a batch generated, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitDecoded {
    /// One entry per prompt row.
    pub rows: Vec<ExitRow>,
    /// Layers that the prompt ran but for its last token.
    pub prompt_layers: usize,
    /// Time from the start until the first tokens were chosen.
    pub prefill: Duration,
    /// Time of each step, all rows together: a token, or drafts and their verification.
    pub steps: Vec<Duration>,
}

/// What one row generated, and what it took.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitRow {
    /// The tokens.
    pub decoded: DecodedRow,
    /// What the last token of the prompt ran.
    pub question_end: TokenRun,
    /// What ran at generated tokens, with the place of each in the row, from 0: once, or as often as
    /// something was drafted for it. Drafts that were rejected are among them.
    pub runs: Vec<(usize, TokenRun)>,
    /// After how many steps each token was chosen, and last whatever ended the row.
    pub chosen_after: Vec<usize>,
    /// What became of its drafts.
    pub drafts: Drafts,
}

/// What one token ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenRun {
    /// Layers.
    pub layers: usize,
    /// Layers that were given keys and values without being run.
    pub filled: usize,
    /// How often the head was asked.
    pub heads: usize,
}

/// Drafted tokens, a stop token among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// How many were drafted.
    pub drafted: usize,
    /// How many of them the whole model says too.
    pub accepted: usize,
}

/// Decodes greedily, all rows in step, each token after as many layers as `exit` says.
///
/// With [`TokenExit::SelfSpeculative`] the tokens are those of [`greedy`], but where two tokens are as likely
/// as each other up to rounding: layers run over several positions at once sum in another order.
///
/// # Errors
///
/// When the prompt or `exit` does not fit the model.
pub fn decode(
    model: &Transformer,
    prompt: &Prompt,
    decoding: Decoding,
    exit: TokenExit,
    device: &Device,
) -> Result<ExitDecoded, PromptError> {
    if let Some((key, reason)) = exit.misfit(model.layers.len()) {
        return Err(PromptError::TokenExit(format!("{key}: {reason}")));
    }
    match exit {
        TokenExit::Never => plain(model, prompt, decoding, device),
        TokenExit::Fixed { layer } => plain(&model.first_layers(layer), prompt, decoding, device),
        TokenExit::Confidence { threshold, from } => {
            confidence::decode(model, prompt, decoding, (threshold, from), device)
        }
        TokenExit::SelfSpeculative { layer, drafts } => {
            speculation::decode(model, prompt, decoding, (layer, drafts), device)
        }
    }
}

/// All layers of `model`, one token at a time.
fn plain(
    model: &Transformer,
    prompt: &Prompt,
    decoding: Decoding,
    device: &Device,
) -> Result<ExitDecoded, PromptError> {
    let decoded = greedy(model, prompt, decoding, device)?;
    let run = TokenRun {
        layers: model.layers.len(),
        filled: 0,
        heads: 1,
    };
    let row = |decoded: DecodedRow| {
        let tokens = decoded.tokens.len();
        ExitRow {
            decoded,
            question_end: run,
            runs: (0..tokens).map(|place| (place, run)).collect(),
            chosen_after: (0..=tokens).collect(),
            drafts: Drafts::default(),
        }
    };
    Ok(ExitDecoded {
        rows: decoded.rows.into_iter().map(row).collect(),
        prompt_layers: model.layers.len(),
        prefill: decoded.prefill,
        steps: decoded.steps,
    })
}
