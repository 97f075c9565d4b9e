//! Problems and the batches made of them.
//!
//! In here: the [`Problem`] schema, readers for published data sets, files made of published ones, seeded
//! generators, criticality labels, tokenizers, encoding and batching. Every order and every generated row is a function of
//! `(config, seed)`, identical on every machine and for every thread count.
//!
//! Must never be in here: anything that knows a model or a tensor library, network access, an order
//! that depends on threads or hashing, a row dropped without being counted.

pub mod batch;
pub mod config;
pub mod derive;
pub mod encode;
pub mod error;
pub mod generate;
pub mod label;
pub mod manifest;
pub mod problem;
pub mod read;
pub mod split;
pub mod tokenizer;

pub use config::{Corpus, DatasetConfig, TestSplit};
pub use error::DatasetError;
pub use problem::{AnswerKind, Criticality, LabelSource, Problem, Step};
