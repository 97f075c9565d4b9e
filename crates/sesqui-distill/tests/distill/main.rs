//! What one training step means, on models of three layers and problems of two to four steps.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly, its helpers too"
)]

mod adding;
mod batches;
mod by_hand;
mod composition;
mod curriculum;
mod dropout;
mod early_exit;
mod edges;
mod feeding;
mod gradients;
mod icot;
mod importance;
mod joint;
mod latents;
mod lessons;
mod losses;
mod reference;
mod resume;
mod rollouts;
mod stage2;
mod support;
mod teaching;
