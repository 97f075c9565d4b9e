//! Measuring: right answers, their interval, and what they cost.
//!
//! In here: tasks (problems with their encoding), methods of answering behind one trait, scoring,
//! statistics, the timing protocol, batches cut into parts for the cores, and how many latent steps a question needs.
//!
//! Must never be in here: how a model was trained; printing.

pub mod answer;
pub mod enumerate;
pub mod evaluate;
pub mod latent;
pub mod method;
pub mod paired;
mod parts;
pub mod statistics;
pub mod task;

pub use enumerate::{Enumerated, enumerate};
pub use evaluate::{
    Evaluation, EvaluationConfig, EvaluationError, QuestionRow, Timing, answer_all, evaluate, time,
};
pub use latent::LatentMethod;
pub use method::{Method, Response, Responses, TokenDecoding};
pub use paired::{Comparison, PairError, pair};
pub use task::Task;
