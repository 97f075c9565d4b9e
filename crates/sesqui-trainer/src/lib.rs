//! The training loop.
//!
//! In here: steps, gradient accumulation and clipping, the learning-rate schedule, validation and
//! early stopping, checkpoints and exact resume, the plain log and Burn's dashboard, where the time of a step goes. What one step
//! *means* comes from outside as a Burn train step; see [`Objective`].
//!
//! Must never be in here: a model, a loss, a data set, the choice of a device. It is tested with a
//! linear model.
//!
//! Everything random is a function of `(seed, step)`: the batches (by contract of
//! [`Batches`]) and whatever the device draws, whose generator is reseeded before every step. A
//! resumed run therefore ends in the same bytes as an uninterrupted one on the CPU backend.

pub mod checkpoint;
pub mod config;
pub mod fit;
pub mod gradients;
pub mod objective;
pub mod parameters;
pub mod profile;
pub mod render;
pub mod schedule;
pub mod workers;

pub use checkpoint::{CheckpointError, Checkpoints, State};
pub use config::{CheckpointPolicy, EarlyStopping, Recompute, TrainingConfig};
pub use fit::{Fit, FitError, Outcome, Stop, Validation, fit, fresh_optimizer};
pub use objective::{Batches, Objective, StepOutput};
pub use profile::{Phase, Profile};
pub use render::{Plan, Renderer};
