//! Inference.
//!
//! In here: prompts, prefill, batched greedy decoding and latent reasoning over the key/value cache,
//! refinement of latents by frozen models, with counts of what was run and when.
//!
//! Must never be in here: training, a data set, scoring.

pub mod decode;
pub mod latent;
pub mod prompt;
pub mod refine;

pub use decode::{Decoded, DecodedRow, Decoding, greedy};
pub use latent::{LatentDecoded, LatentDecoding, LatentRow, latent, latent_refined, observe};
pub use prompt::{Prompt, PromptError};
pub use refine::{Calibration, Calibrator, References, RefineConfig, Refinement};
