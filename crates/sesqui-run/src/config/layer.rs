//! Files and their parents, merged, with the memory of who set what.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{ConfigError, EXTENDS_LIMIT, Place, TAG, line_of, syntax};
use crate::files::{FileError, read_text};

/// One source of values.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where the values hang; empty for files. Indices are written in digits.
    pub at: Vec<String>,
    /// The values.
    pub value: Value,
    /// Who set them.
    pub origin: Origin,
}

/// Who set the values of a layer.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A file, with its text for line numbers.
    File(PathBuf, String),
    /// An override, as given.
    Override(String),
}

impl Layer {
    /// The file of the layer.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.origin {
            Origin::File(path, _) => Some(path.clone()),
            Origin::Override(_) => None,
        }
    }

    /// Puts the values of a file over `base`.
    pub fn merge_into(&self, base: &mut Table) {
        if let Value::Table(over) = &self.value {
            merge(base, over);
        }
    }

    /// Whether this layer sets the value at `path` itself.
    fn sets(&self, path: &[String]) -> bool {
        path.strip_prefix(self.at.as_slice())
            .is_some_and(|rest| get(&self.value, rest).is_some())
    }

    fn place(&self, path: &[String]) -> Place {
        match &self.origin {
            Origin::Override(argument) => Place::Override(argument.clone()),
            Origin::File(file, text) => Place::File(file.clone(), find_line(text, path)),
        }
    }
}

/// The place that last set `path`; where nobody did, the place of the nearest table around it.
pub fn place(layers: &[Layer], path: &[String]) -> Box<Place> {
    for length in (0..=path.len()).rev() {
        let path = &path[..length];
        let setter = layers.iter().rev().find(|layer| layer.sets(path));
        // An override of a deeper key creates the tables above it.
        let creator = || layers.iter().rev().find(|layer| layer.at.starts_with(path));
        if let Some(layer) = setter.or_else(creator) {
            return Box::new(layer.place(path));
        }
    }
    Box::new(Place::Defaults)
}

/// The value at `path`, indices in digits.
pub fn get<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    let Some((first, rest)) = path.split_first() else {
        return Some(value);
    };
    let below = match value {
        Value::Table(table) => table.get(first)?,
        Value::Array(items) => items.get(first.parse::<usize>().ok()?)?,
        _ => return None,
    };
    get(below, rest)
}

/// Reads a file and its parents, the farthest parent first.
pub fn read(path: &Path) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = Vec::new();
    let mut chain: Vec<PathBuf> = Vec::new();
    let mut next = Some(path.to_path_buf());
    while let Some(path) = next {
        let identity = path
            .canonicalize()
            .map_err(|source| FileError::new("read", &path, source))?;
        chain.push(identity);
        let text = read_text(&path)?;
        let mut table: Table =
            toml::from_str(&text).map_err(|error| syntax(&path, &text, &error))?;
        next = match table.remove("extends") {
            None => None,
            Some(parent) => Some(follow(&path, &text, &parent, &chain)?),
        };
        layers.push(Layer {
            at: Vec::new(),
            value: Value::Table(table),
            origin: Origin::File(path, text),
        });
    }
    layers.reverse();
    Ok(layers)
}

fn follow(
    path: &Path,
    text: &str,
    parent: &Value,
    chain: &[PathBuf],
) -> Result<PathBuf, ConfigError> {
    let failed = |reason: String| ConfigError::Extends {
        place: Box::new(Place::File(
            path.to_path_buf(),
            find_line(text, &["extends".to_owned()]),
        )),
        reason,
    };
    let Value::String(parent) = parent else {
        return Err(failed(
            "`extends` must be one path, relative to this file, as a string".to_owned(),
        ));
    };
    let file = path.parent().unwrap_or(Path::new("")).join(parent);
    let identity = file.canonicalize().map_err(|error| {
        failed(format!(
            "cannot read the parent {}: {error}",
            file.display()
        ))
    })?;
    if chain.contains(&identity) {
        return Err(failed(format!("`extends = \"{parent}\"` goes in a circle")));
    }
    if chain.len() > EXTENDS_LIMIT {
        return Err(failed(format!(
            "`extends = \"{parent}\"` is one parent too many: at most {EXTENDS_LIMIT} may stand above a file"
        )));
    }
    Ok(file)
}

fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) if !other_variant(below, above) => {
                merge(below, above);
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn other_variant(below: &Table, above: &Table) -> bool {
    above
        .get(TAG)
        .is_some_and(|kind| below.get(TAG) != Some(kind))
}

/// The line on which `path` is set in a file.
fn find_line(text: &str, path: &[String]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = Some(document.get_ref());
    let mut items: Option<&[Spanned<DeValue<'_>>]> = None;
    let mut at = None;
    for segment in path {
        let value = if let Some(table) = table {
            let (key, value) = table.iter().find(|(key, _)| key.get_ref() == segment)?;
            at = Some(key.span().start);
            value
        } else {
            let value = items?.get(segment.parse::<usize>().ok()?)?;
            at = Some(value.span().start);
            value
        };
        table = value.get_ref().as_table();
        items = value.get_ref().as_array().map(|array| &**array);
    }
    at.map(|at| line_of(text, at))
}
