//! Correctness of the transformers: against files made elsewhere, against plain loops, against
//! themselves, and against finite differences.

#[path = "model/checkpoint.rs"]
mod checkpoint;
#[path = "model/equivalence.rs"]
mod equivalence;
#[path = "model/golden.rs"]
mod golden;
#[path = "model/gradients.rs"]
mod gradients;
#[path = "model/plain_loops.rs"]
mod plain_loops;
#[path = "model/printed.rs"]
mod printed;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/support.rs"]
mod support;
