//! Inference.
//!
//! In here: prompts, prefill and batched greedy decoding over the key/value cache, with counts of
//! what was run and when.
//!
//! Must never be in here: training, a data set, scoring.

pub mod decode;
pub mod prompt;

pub use decode::{Decoded, DecodedRow, Decoding, greedy};
pub use prompt::{Prompt, PromptError};
