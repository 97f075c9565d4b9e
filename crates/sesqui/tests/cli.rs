//! The programs as a person meets them: help, refusals, a run from training to export, kills and
//! Ctrl-C; and the architecture that `docs` promise.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly, its helpers too"
)]

#[path = "cli/architecture.rs"]
mod architecture;
#[path = "cli/asking.rs"]
mod asking;
#[path = "cli/compared.rs"]
mod compared;
#[path = "cli/curricula.rs"]
mod curricula;
#[path = "cli/exiting.rs"]
mod exiting;
#[path = "cli/experiments.rs"]
mod experiments;
#[path = "cli/halting.rs"]
mod halting;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/likelihood.rs"]
mod likelihood;
#[path = "cli/places.rs"]
mod places;
#[path = "cli/refining.rs"]
mod refining;
#[path = "cli/refusals.rs"]
mod refusals;
#[cfg(unix)]
#[path = "cli/resume.rs"]
mod resume;
#[path = "cli/runs.rs"]
mod runs;
#[path = "cli/starts.rs"]
mod starts;
#[cfg(unix)]
#[path = "cli/study.rs"]
mod study;
#[cfg(unix)]
#[path = "cli/study_refusals.rs"]
mod study_refusals;
#[path = "cli/support.rs"]
mod support;
