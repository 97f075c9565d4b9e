//! What one training step means.
//!
//! In here: objectives as Burn train steps over a backbone, and the batches they read. So far
//! supervised fine-tuning, with a chain of thought and without.
//!
//! Must never be in here: a loop, the choice of a device, a file. The trainer supplies the loop and
//! the shape of what a step reports.

pub mod batches;
pub mod loss;
pub mod supervised;

pub use batches::SequenceBatches;
pub use supervised::Supervised;
