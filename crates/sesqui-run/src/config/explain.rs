//! From what serde says to what a person needs: the full key, where it was set, what would be valid.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::ConfigError;
use super::layer::{Layer, get, place};

/// Explains why `root` is not a `T`.
pub fn explain<T: DeserializeOwned + Serialize>(
    error: serde_path_to_error::Error<toml::de::Error>,
    root: &Value,
    layers: &[Layer],
) -> ConfigError {
    let path: Vec<String> = error
        .path()
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        })
        .collect();
    let message = error.inner().message().trim_end();
    let quoted = quoted(message);
    let first = quoted.first().cloned().unwrap_or_default();
    let valid = || {
        let mut valid: Vec<String> = quoted.iter().skip(1).cloned().collect();
        valid.sort();
        valid
    };
    if message.starts_with("unknown field") {
        let path = locate_key(root, path, &first);
        let valid = valid();
        let mut nearest = nearest(&first, &valid).map(|name| sibling(&path, &name));
        if nearest.is_none() {
            nearest = elsewhere::<T>(&first);
        }
        return ConfigError::UnknownKey {
            key: path.join("."),
            place: place(layers, &path),
            nearest,
            valid,
        };
    }
    if message.starts_with("unknown variant") {
        let path = locate_value(root, path, |value| match value {
            Value::String(word) => *word == first,
            Value::Table(table) => table.contains_key(&first),
            _ => false,
        });
        let valid = valid();
        return ConfigError::UnknownValue {
            key: path.join("."),
            place: place(layers, &path),
            nearest: nearest(&first, &valid),
            found: first,
            valid,
        };
    }
    let wrong = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    if let Some((found, expected)) = wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
        let path = locate_value(root, path, |value| unexpected(value) == found);
        return ConfigError::WrongType {
            key: path.join("."),
            place: place(layers, &path),
            expected: in_words(expected),
            found: get(root, &path).map_or_else(|| found.to_owned(), named),
        };
    }
    ConfigError::Invalid {
        key: if path.is_empty() {
            "(top level)".to_owned()
        } else {
            path.join(".")
        },
        place: place(layers, &path),
        reason: message.to_owned(),
    }
}

/// The candidate a word was probably meant to be: few typing errors away, or with the same beginning.
pub fn nearest(word: &str, candidates: &[String]) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace('_', "-");
    let word = plain(word);
    let errors = (word.chars().count() / 3).max(1);
    candidates
        .iter()
        .map(|candidate| {
            let name = plain(candidate);
            let distance = strsim::damerau_levenshtein(&word, &name);
            (distance, strsim::jaro_winkler(&word, &name), candidate)
        })
        .filter(|(distance, likeness, _)| *distance <= errors || *likeness >= 0.85)
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, candidate)| candidate.clone())
}

/// A key of that name in another table, when there is exactly one among the defaults.
fn elsewhere<T: DeserializeOwned + Serialize>(key: &str) -> Option<String> {
    let defaults: T = Value::Table(Table::new()).try_into().ok()?;
    let defaults = Value::try_from(defaults).ok()?;
    let mut found = Vec::new();
    search(&defaults, &mut Vec::new(), &mut |path, _| {
        if path.last().is_some_and(|last| last == key) {
            found.push(path.join("."));
        }
    });
    if found.len() == 1 { found.pop() } else { None }
}

/// Completes the path of a key. The path ends early inside enums with a tag, whose content serde
/// buffers; there the key is searched below it.
fn locate_key(root: &Value, path: Vec<String>, key: &str) -> Vec<String> {
    if path.last().is_some_and(|last| last == key) {
        return path;
    }
    let mut found = below(root, &path, |path, _| {
        path.last().is_some_and(|last| last == key)
    });
    if found.len() == 1 {
        return found.swap_remove(0);
    }
    let mut path = path;
    path.push(key.to_owned());
    path
}

/// Completes the path of a value in the same way, when just one below it fits.
fn locate_value(root: &Value, path: Vec<String>, fits: impl Fn(&Value) -> bool) -> Vec<String> {
    if get(root, &path).is_some_and(&fits) {
        return path;
    }
    let mut found = below(root, &path, |_, value| fits(value));
    if found.len() == 1 {
        found.swap_remove(0)
    } else {
        path
    }
}

fn below(
    root: &Value,
    path: &[String],
    fits: impl Fn(&[String], &Value) -> bool,
) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    if let Some(node) = get(root, path) {
        search(node, &mut path.to_vec(), &mut |path, value| {
            if fits(path, value) {
                found.push(path.to_vec());
            }
        });
    }
    found
}

fn search(node: &Value, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Value)) {
    let mut step = |key: String, value: &Value| {
        path.push(key);
        visit(path, value);
        search(value, path, &mut *visit);
        path.pop();
    };
    match node {
        Value::Table(table) => table
            .iter()
            .for_each(|(key, value)| step(key.clone(), value)),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, value)| step(index.to_string(), value));
        }
        _ => {}
    }
}

fn sibling(path: &[String], name: &str) -> String {
    let table = path.split_last().map_or(&[][..], |(_, table)| table);
    let segments: Vec<&str> = table.iter().map(String::as_str).chain([name]).collect();
    segments.join(".")
}

/// The words serde puts in backquotes.
fn quoted(message: &str) -> Vec<String> {
    message
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// A value as serde's messages describe it.
fn unexpected(value: &Value) -> String {
    match value {
        Value::String(text) => format!("string {text:?}"),
        Value::Integer(number) => format!("integer `{number}`"),
        Value::Float(number) => {
            let text = number.to_string();
            let point = if text.contains(['.', 'N', 'i']) {
                ""
            } else {
                ".0"
            };
            format!("floating point `{text}{point}`")
        }
        Value::Boolean(truth) => format!("boolean `{truth}`"),
        Value::Array(_) => "sequence".to_owned(),
        Value::Table(_) | Value::Datetime(_) => "map".to_owned(),
    }
}

fn named(value: &Value) -> String {
    match value {
        Value::String(_) => format!("the string {value}"),
        Value::Array(_) => "an array".to_owned(),
        Value::Table(_) => "a table".to_owned(),
        Value::Datetime(_) => format!("the date {value}"),
        other => other.to_string(),
    }
}

fn in_words(expected: &str) -> String {
    let up_to = |maximum: u64| format!("a whole number from 0 to {maximum}");
    match expected {
        "u8" => up_to(u8::MAX.into()),
        "u16" => up_to(u16::MAX.into()),
        "u32" => up_to(u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "a table".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}
