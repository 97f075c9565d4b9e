//! What a run is made of on disk: its configuration, its folder, its rows, its provenance.
//!
//! In here:
//! - [`config`]: defaults in code, one TOML file with an optional parent, `--set` overrides; resolved
//!   once, then frozen as text with a hash.
//! - [`difference`]: in which keys two configurations differ.
//! - [`directory`]: the run directory, its file names and its lock.
//! - [`rows`]: append-only JSON lines and the schemas of everything a run measures.
//! - [`provenance`]: who ran what, from which commit, on which machine.
//! - [`study`]: the study directory, run directories below one frozen study file.
//! - [`files`]: whole files written in one step.
//!
//! Must never be in here: a tensor library, anything that prints, the clock or the environment of
//! the process (the caller passes both in), a model, a loss or a data set.

pub mod config;
pub mod difference;
pub mod directory;
pub mod files;
pub mod provenance;
pub mod rows;
pub mod study;

pub use config::{ConfigError, ConfigSource, Resolved, load};
pub use directory::{DirectoryError, RunDirectory, RunPaths};
pub use files::{FileError, atomic_write};
pub use provenance::{Invocation, Program};
pub use rows::{
    EventKind, EventRow, MetricRow, RowError, RowWriter, SampleRow, Schema, Summary, SummaryRow,
};
pub use study::StudyDirectory;
