//! Correctness of what follows training and leads up to it: greedy decoding against recomputation,
//! the next-token loss against plain arithmetic, scoring against a script, and all of it together.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly, its helpers too"
)]

#[path = "inference/alone.rs"]
mod alone;
#[path = "inference/by_hand.rs"]
mod by_hand;
#[path = "inference/costs.rs"]
mod costs;
#[path = "inference/decoding.rs"]
mod decoding;
#[path = "inference/directions.rs"]
mod directions;
#[path = "inference/halting.rs"]
mod halting;
#[path = "inference/latent.rs"]
mod latent;
#[path = "inference/loss.rs"]
mod loss;
#[path = "inference/overfit.rs"]
mod overfit;
#[path = "inference/parts.rs"]
mod parts;
#[path = "inference/prompts.rs"]
mod prompts;
#[path = "inference/refine.rs"]
mod refine;
#[path = "inference/scoring.rs"]
mod scoring;
#[path = "inference/support.rs"]
mod support;
#[path = "inference/thoughts.rs"]
mod thoughts;
#[path = "inference/token_exit.rs"]
mod token_exit;
