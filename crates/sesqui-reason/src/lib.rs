//! Inference.
//!
//! In here: prompts, prefill, batched greedy decoding and latent reasoning over the key/value cache, one step
//! after another or all at once, refinement of latents by frozen models, stopping before the last step, tokens
//! that do not run all layers, with counts of what was run and when.
//!
//! Must never be in here: training, a data set, scoring.

pub mod decode;
pub mod halt;
pub mod latent;
mod parallel;
pub mod prompt;
pub mod refine;
pub mod token_exit;

pub use decode::{Decoded, DecodedRow, Decoding, greedy};
pub use halt::{HaltConfig, HaltTrace, Halting};
pub use latent::{
    LatentDecoded, LatentDecoding, LatentRow, latent, latent_halting, latent_refined, observe,
};
pub use prompt::{Prompt, PromptError};
pub use refine::{Calibration, Calibrator, References, RefineConfig, Refinement};
pub use token_exit::{ExitDecoded, ExitRow, TokenExit, TokenRun};
