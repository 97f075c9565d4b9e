//! Correctness of the training loop, with a linear model: exact resume, steps against plain
//! arithmetic, checkpoints on disk, stopping rules, what a person sees.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly, its helpers too"
)]

#[path = "trainer/checkpoints.rs"]
mod checkpoints;
#[path = "trainer/refused.rs"]
mod refused;
#[path = "trainer/resume.rs"]
mod resume;
#[path = "trainer/screen.rs"]
mod screen;
#[path = "trainer/steps.rs"]
mod steps;
#[path = "trainer/stopping.rs"]
mod stopping;
#[path = "trainer/support.rs"]
mod support;
