//! Inference.
//!
//! In here: prompts, prefill, batched greedy decoding and latent reasoning over the key/value cache,
//! with counts of what was run and when.
//!
//! Must never be in here: training, a data set, scoring.

pub mod decode;
pub mod latent;
pub mod prompt;

pub use decode::{Decoded, DecodedRow, Decoding, greedy};
pub use latent::{LatentDecoded, LatentDecoding, LatentRow, latent};
pub use prompt::{Prompt, PromptError};
