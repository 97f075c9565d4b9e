//! In which keys two configurations differ: for refusing a resume, and for comparing runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::Value;

/// One key with different values; `None` where the key is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The full path, for example `stages.0.steps`.
    pub key: String,
    /// The value in the first configuration, as TOML.
    pub old: Option<String>,
    /// The value in the second configuration, as TOML.
    pub new: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let old = self.old.as_deref().unwrap_or("(absent)");
        let new = self.new.as_deref().unwrap_or("(absent)");
        write!(formatter, "{}: {old} → {new}", self.key)
    }
}

/// Compares two configurations key by key, in the order of the keys' names. Formatting, comments and
/// the order of keys do not count.
///
/// # Errors
/// When one of the two is not TOML.
pub fn differences(old: &str, new: &str) -> Result<Vec<Difference>, toml::de::Error> {
    let (old, new) = (leaves(old)?, leaves(new)?);
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    Ok(keys
        .into_iter()
        .filter(|&key| old.get(key) != new.get(key))
        .map(|key| Difference {
            key: key.clone(),
            old: old.get(key).cloned(),
            new: new.get(key).cloned(),
        })
        .collect())
}

/// Every value that is not a table, under its path. Arrays without tables count as one value; empty
/// tables are values too, for `schedule = { constant = {} }` differs from no schedule.
fn leaves(text: &str) -> Result<BTreeMap<String, String>, toml::de::Error> {
    let mut found = BTreeMap::new();
    collect("", &Value::Table(toml::from_str(text)?), &mut found);
    Ok(found)
}

fn collect(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                collect(&below(key), value, found);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_table) => {
            for (index, value) in items.iter().enumerate() {
                collect(&below(&index.to_string()), value, found);
            }
        }
        value if !path.is_empty() => {
            found.insert(path.to_owned(), value.to_string());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_changed_added_and_removed_keys() {
        let table: &[(&str, &str, &[&str])] = &[
            ("a = 1\nb = 2", "b = 2 # note\n\na = 1", &[]),
            ("", "", &[]),
            ("a = 1", "a = 1.0", &["a: 1 → 1.0"]),
            ("a = [1, 2]", "a = [1, 3]", &["a: [1, 2] → [1, 3]"]),
            (
                "t.x = 'p'\nt.y = 1",
                "t.y = 1\nt.z = {}",
                &["t.x: \"p\" → (absent)", "t.z: (absent) → {}"],
            ),
            (
                "s = [{ n = 1 }]",
                "s = [{ n = 2 }, { n = 3 }]",
                &["s.0.n: 1 → 2", "s.1.n: (absent) → 3"],
            ),
        ];
        for (old, new, expected) in table {
            let found: Vec<String> = differences(old, new)
                .unwrap()
                .iter()
                .map(Difference::to_string)
                .collect();
            assert_eq!(&found, expected, "{old} / {new}");
        }
    }
}
