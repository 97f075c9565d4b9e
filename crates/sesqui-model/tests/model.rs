//! Correctness of the transformers: against files made elsewhere, against plain loops, against
//! themselves, and against finite differences.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly, its helpers too"
)]

#[path = "model/checkpoint.rs"]
mod checkpoint;
#[path = "model/equivalence.rs"]
mod equivalence;
#[path = "model/folder.rs"]
mod folder;
#[path = "model/golden.rs"]
mod golden;
#[path = "model/gradients.rs"]
mod gradients;
#[path = "model/initial.rs"]
mod initial;
#[path = "model/plain_loops.rs"]
mod plain_loops;
#[path = "model/precision.rs"]
mod precision;
#[path = "model/printed.rs"]
mod printed;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/refused.rs"]
mod refused;
#[path = "model/staircases.rs"]
mod staircases;
#[path = "model/support.rs"]
mod support;
