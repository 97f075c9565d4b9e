//! From bytes to rows: lines, JSON lines and JSON arrays, with the place of every bad row.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;

use super::BadRows;
use crate::error::{BadRow, DatasetError};

/// What came out of a file: the good rows in file order and the bad ones.
pub(super) struct Rows<T> {
    pub(super) good: Vec<T>,
    pub(super) skipped: Vec<BadRow>,
}

/// Collects rows under a [`BadRows`] policy.
struct Collector<'a, T> {
    path: &'a Path,
    prefix: String,
    policy: BadRows,
    rows: Rows<T>,
}

impl<'a, T> Collector<'a, T> {
    fn new(path: &'a Path, policy: BadRows) -> Self {
        let rows = Rows {
            good: Vec::new(),
            skipped: Vec::new(),
        };
        Self {
            path,
            prefix: id_prefix(path),
            policy,
            rows,
        }
    }

    /// Takes row `line` (from 1), parsed by `parse`, which is given the problem's id.
    fn take(
        &mut self,
        line: usize,
        parse: impl FnOnce(String) -> Result<T, String>,
    ) -> Result<(), DatasetError> {
        match parse(format!("{}/{line}", self.prefix)) {
            Ok(row) => self.rows.good.push(row),
            Err(reason) => {
                let bad = BadRow {
                    path: self.path.to_owned(),
                    line,
                    reason,
                };
                match self.policy {
                    BadRows::Fail => return Err(bad.into()),
                    BadRows::Skip => self.rows.skipped.push(bad),
                }
            }
        }
        Ok(())
    }
}

/// `<folder>/<file without ending>`: the first part of a problem's id.
fn id_prefix(path: &Path) -> String {
    let name = |part: Option<&std::ffi::OsStr>| {
        part.map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let folder = name(path.parent().and_then(Path::file_name));
    let stem = name(path.file_stem());
    if folder.is_empty() {
        stem
    } else {
        format!("{folder}/{stem}")
    }
}

/// Reads a file line by line; `parse` gets the id and the line without its end.
///
/// A line that is blank or not UTF-8 is a bad row like any other.
pub(super) fn lines<T>(
    path: &Path,
    policy: BadRows,
    parse: impl Fn(String, &str) -> Result<T, String>,
) -> Result<Rows<T>, DatasetError> {
    let io = |source| DatasetError::Io {
        path: path.to_owned(),
        source,
    };
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let mut collector = Collector::new(path, policy);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(io)? == 0 {
            break;
        }
        collector.take(line, |id| {
            let text = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if text.trim().is_empty() {
                return Err("the line is blank".to_owned());
            }
            parse(id, text)
        })?;
    }
    Ok(collector.rows)
}

/// Reads one JSON object per line.
pub(super) fn json_lines<R: DeserializeOwned, T>(
    path: &Path,
    policy: BadRows,
    parse: impl Fn(String, R) -> Result<T, String>,
) -> Result<Rows<T>, DatasetError> {
    lines(path, policy, |id, line| {
        let record: R = serde_json::from_str(line)
            // The parser counts lines within the row; the row's own number is reported anyway.
            .map_err(|error| {
                error
                    .to_string()
                    .replace(" at line 1 column ", " at column ")
            })?;
        parse(id, record)
    })
}

/// Reads one JSON array of objects; rows are counted as records.
///
/// # Errors
/// A file that is not one JSON array fails as a whole whatever the policy, since there is no row to
/// leave out: [`DatasetError::Row`] with the line, and the line and column in its reason.
pub(super) fn json_array<R: DeserializeOwned, T>(
    path: &Path,
    policy: BadRows,
    parse: impl Fn(String, R) -> Result<T, String>,
) -> Result<Rows<T>, DatasetError> {
    let text = std::fs::read(path).map_err(|source| DatasetError::Io {
        path: path.to_owned(),
        source,
    })?;
    let records: Vec<serde_json::Value> =
        serde_json::from_slice(&text).map_err(|error| BadRow {
            path: path.to_owned(),
            line: error.line(),
            reason: format!("the file is not a JSON array: {error}"),
        })?;
    let mut collector = Collector::new(path, policy);
    for (index, record) in records.into_iter().enumerate() {
        collector.take(index + 1, |id| {
            let record: R = serde_json::from_value(record).map_err(|error| error.to_string())?;
            parse(id, record)
        })?;
    }
    Ok(collector.rows)
}

/// `text` without surrounding blanks, or an error that names the empty field.
pub(super) fn filled(field: &str, text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        Err(format!("`{field}` is empty"))
    } else {
        Ok(text.to_owned())
    }
}
