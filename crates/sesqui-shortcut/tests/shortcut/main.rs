//! Shortcuts against plain loops, against a run of one layer at a time, and against themselves.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly, its helpers too"
)]

mod dropout;
mod early_exit;
mod gradients;
mod pass;
mod pieces;
mod plan;
mod soft;
mod support;
