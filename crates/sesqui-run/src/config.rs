//! Configuration in layers: the defaults in code, one TOML file, overrides; resolved once, then frozen.
//!
//! A file may name a parent, relative to itself, in a first line `extends = "base.toml"`. Child over
//! parent, tables merge key by key and everything else, arrays too, is replaced. One exception keeps
//! enums with data usable: a table that states another [`TAG`] replaces the parent's table whole, for
//! its other keys belong to another method.
//!
//! An override is `a.b.c=value`. The value is TOML (`3`, `1e-4`, `true`, `[1, 2]`, `{ x = 1 }`); what is
//! not TOML and does not begin like a string, an array or a table is taken as text. It replaces what was
//! there. Elements of arrays are named by index or, when they are tables, by their `name`:
//! `stages.0.steps=10`, `stages.cot.steps=10`.

mod explain;
mod layer;
mod overrides;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::files::FileError;
use layer::Layer;

/// How many parents may stand above a file: a study's base, and a base shared by studies.
pub const EXTENDS_LIMIT: usize = 2;

/// The key that says which variant of an enum a table holds (`#[serde(tag = "kind")]`).
pub const TAG: &str = "kind";

/// Where a configuration comes from, before overrides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// The defaults in code alone.
    Defaults,
    /// A TOML file over the defaults.
    File(PathBuf),
}

impl ConfigSource {
    /// The name of the variant for the run directory: the stem of the file, or `defaults`.
    #[must_use]
    pub fn variant(&self) -> String {
        match self {
            ConfigSource::Defaults => "defaults".to_owned(),
            ConfigSource::File(path) => {
                let stem = path.file_stem().unwrap_or(path.as_os_str());
                stem.to_string_lossy().into_owned()
            }
        }
    }
}

/// A resolved configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<T> {
    /// The values.
    pub value: T,
    /// All of them as TOML, defaults included; as a config file it resolves to the same values.
    pub text: String,
    /// The first 8 hexadecimal digits of the SHA-256 of `text`.
    pub hash: String,
    /// The files read, the one asked for first, then its parents.
    pub files: Vec<PathBuf>,
}

impl<T: DeserializeOwned + Serialize> Resolved<T> {
    /// Freezes values that were made by a program; no file was read.
    ///
    /// # Errors
    /// When the values cannot be written as TOML that reads back as the same values.
    pub fn frozen(value: T) -> Result<Self, ConfigError> {
        let text = freeze(&value)?;
        let hash = digest(&text);
        Ok(Resolved {
            value,
            text,
            hash,
            files: Vec::new(),
        })
    }
}

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file; the one-based line where it is known.
    File(PathBuf, Option<usize>),
    /// In an override, as given.
    Override(String),
    /// Nowhere: the defaults in code.
    Defaults,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path, Some(line)) => write!(formatter, "{}:{line}", path.display()),
            Place::File(path, None) => write!(formatter, "{}", path.display()),
            Place::Override(argument) => write!(formatter, "--set {argument}"),
            Place::Defaults => formatter.write_str("defaults"),
        }
    }
}

/// Why a configuration cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not TOML.
    #[error("{}:{line}: not valid TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// One-based line.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// `extends` cannot be followed.
    #[error("{place}: {reason}")]
    Extends {
        /// The line with `extends`.
        place: Box<Place>,
        /// What is wrong with it.
        reason: String,
    },
    /// An override cannot be applied.
    #[error("--set {argument}: {reason}")]
    Override {
        /// The override, as given.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that does not exist.
    #[error(
        "{place}: unknown key `{key}`{}\n  valid keys {}: {}",
        suggestion(nearest),
        within(key),
        valid.join(", ")
    )]
    UnknownKey {
        /// The full path of the key.
        key: String,
        /// Where it was set.
        place: Box<Place>,
        /// The full path of the key that was probably meant.
        nearest: Option<String>,
        /// The keys of the same table, sorted.
        valid: Vec<String>,
    },
    /// A value of the wrong type or outside its range.
    #[error("{place}: `{key}` must be {expected}, but is {found}")]
    WrongType {
        /// The full path of the key.
        key: String,
        /// Where it was set.
        place: Box<Place>,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A word that is not one of the choices.
    #[error(
        "{place}: `{key}` cannot be `{found}`{}\n  valid values: {}",
        suggestion(nearest),
        valid.join(", ")
    )]
    UnknownValue {
        /// The full path of the key.
        key: String,
        /// Where it was set.
        place: Box<Place>,
        /// The word.
        found: String,
        /// The choice that was probably meant.
        nearest: Option<String>,
        /// The choices, sorted.
        valid: Vec<String>,
    },
    /// Anything else the types say about a value.
    #[error("{place}: `{key}`: {reason}")]
    Invalid {
        /// The full path of the key.
        key: String,
        /// Where it was set.
        place: Box<Place>,
        /// What is wrong with it.
        reason: String,
    },
    /// The resolved values cannot be written as TOML that reads back as the same values. This is a
    /// mistake in the types of the configuration, not in a file.
    #[error("the resolved configuration cannot be frozen: {reason}")]
    Freeze {
        /// What went wrong.
        reason: String,
    },
}

/// Resolves a configuration: `T`'s serde defaults, then `source`, then `overrides` in their order.
///
/// The structs of `T` are expected to carry `#[serde(default, deny_unknown_fields)]`; without the
/// second, misspelt keys pass unseen.
///
/// # Errors
/// When a file cannot be read or is not TOML, `extends` goes in circles or beyond
/// [`EXTENDS_LIMIT`], an override does not fit, a key is unknown or a value is invalid.
pub fn load<T: DeserializeOwned + Serialize + Default>(
    source: ConfigSource,
    overrides: &[String],
) -> Result<Resolved<T>, ConfigError> {
    let mut layers = match &source {
        ConfigSource::Defaults => Vec::new(),
        ConfigSource::File(path) => layer::read(path)?,
    };
    let files = layers.iter().rev().filter_map(Layer::file).collect();
    let mut root = match &source {
        // Spelt out, so that an override can reach into an array of the defaults.
        ConfigSource::Defaults => {
            Table::try_from(T::default()).map_err(|error| ConfigError::Freeze {
                reason: error.to_string(),
            })?
        }
        ConfigSource::File(_) => Table::new(),
    };
    for layer in &layers {
        layer.merge_into(&mut root);
    }
    for argument in overrides {
        layers.push(overrides::apply(argument, &mut root)?);
    }
    let root = Value::Table(root);
    let value: T = serde_path_to_error::deserialize(root.clone())
        .map_err(|error| explain::explain::<T>(error, &root, &layers))?;
    Ok(Resolved {
        files,
        ..Resolved::frozen(value)?
    })
}

fn freeze<T: DeserializeOwned + Serialize>(value: &T) -> Result<String, ConfigError> {
    let failed = |reason: String| ConfigError::Freeze { reason };
    let text = toml::to_string(value).map_err(|error| failed(error.to_string()))?;
    let again: T = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let written = toml::to_string(&again).map_err(|error| failed(error.to_string()))?;
    if written == text {
        return Ok(text);
    }
    let changed = crate::difference::differences(&text, &written);
    let changed: Vec<String> = changed.iter().flatten().map(ToString::to_string).collect();
    Err(failed(format!(
        "read back, it differs in {}",
        changed.join("; ")
    )))
}

fn digest(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    }
}

fn within(key: &str) -> String {
    match key.rsplit_once('.') {
        Some((table, _)) => format!("in `{table}`"),
        None => "at the top level".to_owned(),
    }
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    ConfigError::Syntax {
        path: path.to_path_buf(),
        line: line_of(text, at),
        reason: error.message().trim_end().replace('\n', ", "),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    before.filter(|&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
