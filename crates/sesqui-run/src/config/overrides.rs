//! `a.b.c=value`.

use toml::{Table, Value};

use super::explain::nearest;
use super::layer::{Layer, Origin};
use super::{ConfigError, TAG};

/// Sets one value in `root`; the layer remembers who did, with names of elements resolved to indices.
pub fn apply(argument: &str, root: &mut Table) -> Result<Layer, ConfigError> {
    set(argument, root).map_err(|reason| ConfigError::Override {
        argument: argument.to_owned(),
        reason,
    })
}

fn set(argument: &str, root: &mut Table) -> Result<Layer, String> {
    let Some((key, text)) = argument.split_once('=') else {
        return Err("has no value; write `KEY=VALUE`".to_owned());
    };
    let segments: Vec<&str> = key.trim().split('.').map(str::trim).collect();
    if segments.iter().any(|segment| segment.is_empty()) {
        return Err(format!("`{key}` is not a key; write `a.b.c=VALUE`"));
    }
    let value = parse(text.trim())?;
    let mut at: Vec<String> = Vec::with_capacity(segments.len());
    let mut whole = Value::Table(std::mem::take(root));
    let result = descend(&mut whole, &segments, &mut at, &value);
    if let Value::Table(table) = whole {
        *root = table;
    }
    result?;
    Ok(Layer {
        at,
        value,
        origin: Origin::Override(argument.to_owned()),
    })
}

fn descend(
    node: &mut Value,
    segments: &[&str],
    at: &mut Vec<String>,
    value: &Value,
) -> Result<(), String> {
    let Some((segment, rest)) = segments.split_first() else {
        *node = value.clone();
        return Ok(());
    };
    let below = match node {
        Value::Table(table) => {
            at.push((*segment).to_owned());
            if rest.is_empty() && *segment == TAG && table.get(TAG) != Some(value) {
                // Another variant: the settings of the old one are not its own.
                table.clear();
            }
            table
                .entry((*segment).to_owned())
                .or_insert_with(|| Value::Table(Table::new()))
        }
        Value::Array(items) => {
            let index = element(items, segment).map_err(|reason| {
                format!("`{}` has no element `{segment}`{reason}", at.join("."))
            })?;
            at.push(index.to_string());
            &mut items[index]
        }
        other => {
            let (path, kind) = (at.join("."), other.type_str());
            return Err(format!(
                "`{path}` is of type {kind} and has no key `{segment}`"
            ));
        }
    };
    descend(below, rest, at, value)
}

/// The index an element is meant by: its number or its name. On failure, the rest of a sentence that
/// says which there are.
fn element(items: &[Value], segment: &str) -> Result<usize, String> {
    let name = |item: &Value| Some(item.get("name")?.as_str()?.to_owned());
    let names: Vec<String> = items.iter().filter_map(name).collect();
    let found = match segment.parse::<usize>() {
        Ok(index) => (index < items.len()).then_some(index),
        Err(_) => items
            .iter()
            .position(|item| name(item).as_deref() == Some(segment)),
    };
    found.ok_or_else(|| match (nearest(segment, &names), items.len()) {
        (_, 0) => "; it is empty here, so give the whole array".to_owned(),
        (Some(nearest), _) => format!("; did you mean `{nearest}`?"),
        (None, count) if names.is_empty() => format!("; use an index from 0 to {}", count - 1),
        (None, count) => {
            let names = names.join(", ");
            format!("; use one of {names}, or an index from 0 to {}", count - 1)
        }
    })
}

fn parse(text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Err("has no value; for an empty string write `KEY=\"\"`".to_owned());
    }
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    match parsed {
        Ok(mut table) if table.len() == 1 => table
            .remove("value")
            .ok_or_else(|| "is not one value".to_owned()),
        Ok(_) => Err("is more than one value".to_owned()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            let reason = error.message().trim_end().replace('\n', ", ");
            Err(format!("the value is not valid TOML: {reason}"))
        }
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}
