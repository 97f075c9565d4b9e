//! What can go wrong with data, always with file, line and reason.

use std::path::PathBuf;

/// An error from reading, generating, tokenizing or batching.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that a data set needs is not under the data root.
    #[error("{data_set} needs {path}, which is not there; {hint}")]
    Missing {
        /// Name of the data set.
        data_set: String,
        /// The missing file.
        path: PathBuf,
        /// Where the file comes from and what to run.
        hint: String,
    },
    /// One row does not have the format of its file.
    #[error("{0}")]
    Row(#[from] BadRow),
    /// A setting that cannot work.
    #[error("{0}")]
    Config(String),
    /// The tokenizer library refused.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

/// A malformed row: fatal by default, counted and reported with `skip_bad_rows`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}:{line}: {reason}")]
pub struct BadRow {
    /// The file.
    pub path: PathBuf,
    /// 1-based line for line formats, 1-based record for JSON arrays.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}
