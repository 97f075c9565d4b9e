//! Tables of a flag in short: the inside of an inline TOML table in which a kind may stand in place of `kind`.

use toml::{Table, Value};

/// The table that `text` stands for, with its `kind`. One of the kinds of `short` may stand as a key, with the
/// value of the key beside it, or with the table of the others.
///
/// # Errors
///
/// Says what is wrong and what to write, as `example` does.
pub fn read(text: &str, short: &[(&str, &str)], example: &str) -> Result<Table, String> {
    let mut whole: Table = toml::from_str(&format!("flag = {{ {text} }}")).map_err(|error| {
        format!(
            "{}; write KEY=VALUE, KEY=VALUE as in TOML, for example {example}",
            error.message().trim_end()
        )
    })?;
    let (Some(Value::Table(mut table)), true) = (whole.remove("flag"), whole.is_empty()) else {
        return Err("is more than one table".to_owned());
    };
    if table.contains_key("kind") {
        return Ok(table);
    }
    for &(kind, knob) in short {
        let Some(value) = table.remove(kind) else {
            continue;
        };
        let mut inner = match value {
            Value::Table(inner) => inner,
            value => Table::from_iter([(knob.to_owned(), value)]),
        };
        inner.extend(table);
        inner.insert("kind".to_owned(), Value::String(kind.to_owned()));
        return Ok(inner);
    }
    let kinds: Vec<&str> = short.iter().map(|(kind, _)| *kind).collect();
    let (last, others) = kinds.split_last().unwrap_or((&"kind", &[]));
    let kinds = format!("{} or {last}", others.join(", "));
    Err(format!(
        "names no kind; give {kinds}, for example {example}"
    ))
}
