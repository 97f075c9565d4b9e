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

/// What `new` has beyond `old`, under its path: tables with a `name` in a list of such, and entries of a list
/// called `seeds`, those of `old` in their order among them. `None` where the two differ in anything else.
///
/// # Errors
/// When one of the two is not TOML.
pub fn additions(old: &str, new: &str) -> Result<Option<Vec<String>>, toml::de::Error> {
    let (old, new) = (toml::from_str(old)?, toml::from_str(new)?);
    let mut added = Vec::new();
    let grown = grown("", &Value::Table(old), &Value::Table(new), &mut added);
    Ok(grown.then_some(added))
}

fn grown(path: &str, old: &Value, new: &Value, added: &mut Vec<String>) -> bool {
    let below = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    match (old, new) {
        (Value::Table(old), Value::Table(new)) => {
            old.len() == new.len()
                && old.iter().all(|(key, old)| {
                    let new = new.get(key);
                    new.is_some_and(|new| grown(&below(key), old, new, added))
                })
        }
        (Value::Array(old), Value::Array(new)) if old != new => {
            let seeds = path == "seeds" || path.ends_with(".seeds");
            let named = |item: &Value| item.get("name").is_some_and(Value::is_str);
            if !seeds && !new.iter().chain(old).all(named) {
                return false;
            }
            let label = |item: &Value| match item.get("name").and_then(Value::as_str) {
                Some(name) => below(name),
                None => below(&item.to_string()),
            };
            let mut old = old.iter().peekable();
            for item in new {
                match old.next_if(|old| label(old) == label(item)) {
                    Some(before) => {
                        if !grown(&label(item), before, item, added) {
                            return false;
                        }
                    }
                    None => added.push(label(item)),
                }
            }
            old.next().is_none()
        }
        (old, new) => old == new,
    }
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
    fn growing_is_having_more_by_name() {
        let stage =
            |name: &str, steps: u32| format!("[[stages]]\nname = '{name}'\nsteps = {steps}\n");
        let [one, two, three] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, n)| stage(name, n));
        let table: &[(String, String, Option<&[&str]>)] = &[
            (one.clone(), one.clone(), Some(&[])),
            (one.clone(), format!("{one}{two}"), Some(&["stages.b"])),
            // In their order, wherever the new ones stand.
            (
                format!("{one}{three}"),
                format!("{two}{one}{three}"),
                Some(&["stages.b"]),
            ),
            (format!("{one}{two}"), format!("{two}{one}"), None),
            (format!("{one}{two}"), one.clone(), None),
            (one.clone(), format!("{}{two}", stage("a", 9)), None),
            (one.clone(), format!("x = 1\n{one}"), None),
            (
                "seeds = [1]".to_owned(),
                "seeds = [1, 2]".to_owned(),
                Some(&["seeds.2"]),
            ),
            ("seeds = [1, 2]".to_owned(), "seeds = [2]".to_owned(), None),
            ("steps = [1]".to_owned(), "steps = [1, 2]".to_owned(), None),
            (
                "[[sets]]\nname = 's'\n[[sets.methods]]\nname = 'm'\n".to_owned(),
                "[[sets]]\nname = 's'\nmethods = [{ name = 'm' }, { name = 'n' }]\n".to_owned(),
                Some(&["sets.s.methods.n"]),
            ),
        ];
        for (old, new, expected) in table {
            let found = additions(old, new).unwrap();
            let found = found
                .as_ref()
                .map(|added| added.iter().map(String::as_str).collect());
            let expected = expected.map(<[&str]>::to_vec);
            assert_eq!(found, expected, "{old} / {new}");
        }
    }

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
