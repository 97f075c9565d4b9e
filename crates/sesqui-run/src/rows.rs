//! Append-only JSON lines: what a run measures, one row per line, readable while it is written.

mod schema;
mod summary;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{FileError, atomic_write};
pub use schema::{EventKind, EventRow, MetricRow, SampleRow, Schema};
pub use summary::{Summary, SummaryRow};

/// One line of a `.jsonl` file.
pub trait Row: Serialize + DeserializeOwned {
    /// The stage and the step the row belongs to; `None` for rows of the run as a whole, which
    /// survive [`RowWriter::truncate_after`].
    fn place(&self) -> Option<(&str, u64)>;
}

/// A last line without its newline: the process died while it wrote the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornLine {
    /// The file.
    pub path: PathBuf,
    /// One-based number of the line.
    pub line: usize,
    /// What was there of it; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Why rows could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The file system said no.
    #[error(transparent)]
    File(#[from] FileError),
    /// A complete line is not a row of the expected schema.
    #[error(
        "{}:{line}: not a row this version understands: {reason}; \
         delete the line if it is damaged, or read the file with the version that wrote it",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// One-based number of the line.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// A row cannot be written as JSON.
    #[error("cannot write a row to {}: {reason}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the serializer said.
        reason: String,
    },
}

/// Appends rows to one file, a whole line per system call, so that a reader never meets a line mixed
/// of two and a crash costs at most the last one.
#[derive(Debug)]
pub struct RowWriter<R> {
    path: PathBuf,
    file: File,
    row: PhantomData<fn(&R)>,
}

impl<R: Row> RowWriter<R> {
    /// Opens `path` for appending, creating it when absent. A torn last line is cut off and handed
    /// back for the caller to report.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path) -> Result<(Self, Option<TornLine>), RowError> {
        let file = append_handle(path)?;
        let bytes = read_bytes(path)?;
        let (whole, torn) = split_torn(path, &bytes);
        if torn.is_some() {
            file.set_len(whole.len() as u64)
                .and_then(|()| file.sync_all())
                .map_err(|source| FileError::new("repair the last line of", path, source))?;
        }
        let writer = RowWriter {
            path: path.to_path_buf(),
            file,
            row: PhantomData,
        };
        Ok((writer, torn))
    }

    /// Appends one row; it is in the file when this returns.
    ///
    /// # Errors
    /// When the disk is full or the row has a value that JSON cannot hold.
    pub fn append(&mut self, row: &R) -> Result<(), RowError> {
        let mut line = serde_json::to_vec(row).map_err(|error| RowError::Encode {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.flush())
            .map_err(|source| FileError::new("append to", &self.path, source))?;
        Ok(())
    }

    /// Forgets what lies beyond a checkpoint, so that a resumed run leaves the same rows as one that
    /// was never interrupted. Dropped are the rows of `stage` with a step above `step`, and the rows
    /// of other stages that stand after the first row of `stage`: stages run one after the other, so
    /// those belong to later stages. Returns how many rows went.
    ///
    /// # Errors
    /// When a line cannot be parsed or the file cannot be rewritten; it is then unchanged.
    pub fn truncate_after(&mut self, stage: &str, step: u64) -> Result<usize, RowError> {
        let bytes = read_bytes(&self.path)?;
        let mut kept = Vec::with_capacity(bytes.len());
        let mut dropped = 0;
        let mut reached = false;
        for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let row: R = parse(&self.path, index + 1, line)?;
            let keep = match row.place() {
                None => true,
                Some((other, at)) if other == stage => {
                    reached = true;
                    at <= step
                }
                Some(_) => !reached,
            };
            if keep {
                kept.extend_from_slice(line);
            } else {
                dropped += 1;
            }
        }
        if dropped > 0 {
            atomic_write(&self.path, &kept)?;
            // The rename left the open handle on the old file.
            self.file = append_handle(&self.path)?;
        }
        Ok(dropped)
    }

    /// Waits until every row is on the disk. To be called before a checkpoint is written: a resumed
    /// run must not find fewer rows than its checkpoint has steps.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), RowError> {
        let synced = self.file.sync_data();
        Ok(synced.map_err(|source| FileError::new("flush", &self.path, source))?)
    }

    /// The file written to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads every complete row of a file that may still be growing; the unfinished last line, if any,
/// is handed back beside them.
///
/// # Errors
/// When the file cannot be read or a complete line does not parse; the error names file and line.
pub fn read_rows<R: Row>(path: &Path) -> Result<(Vec<R>, Option<TornLine>), RowError> {
    let bytes = read_bytes(path)?;
    let (whole, torn) = split_torn(path, &bytes);
    let rows = whole
        .split_inclusive(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| parse(path, index + 1, line))
        .collect::<Result<_, _>>()?;
    Ok((rows, torn))
}

fn append_handle(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| FileError::new("open", path, source))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source: io::Error| FileError::new("read", path, source))
}

fn split_torn<'a>(path: &Path, bytes: &'a [u8]) -> (&'a [u8], Option<TornLine>) {
    let end = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let (whole, rest) = bytes.split_at(end);
    let torn = (!rest.is_empty()).then(|| TornLine {
        path: path.to_path_buf(),
        line: whole.iter().filter(|&&byte| byte == b'\n').count() + 1,
        text: String::from_utf8_lossy(rest).into_owned(),
    });
    (whole, torn)
}

fn parse<R: Row>(path: &Path, line: usize, text: &[u8]) -> Result<R, RowError> {
    serde_json::from_slice(text).map_err(|error| RowError::Line {
        path: path.to_path_buf(),
        line,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(stage: &str, step: u64) -> MetricRow {
        MetricRow {
            loss: Some(1.0 / (step as f64 + 3.0)),
            ..MetricRow::new(stage, step, "train")
        }
    }

    fn write(path: &Path, places: &[(&str, u64)]) -> RowWriter<MetricRow> {
        let (mut writer, torn) = RowWriter::open(path).unwrap();
        assert_eq!(torn, None);
        for (stage, step) in places {
            writer.append(&metric(stage, *step)).unwrap();
        }
        writer
    }

    #[test]
    fn repairs_and_reports_a_torn_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        drop(write(&path, &[("cot", 1), ("cot", 2)]));
        let whole = std::fs::read(&path).unwrap();
        // An unfinished object, a row that lacks only its newline, and the zeros a crash may leave.
        for tail in [
            b"{\"schema\":1,\"sta".as_slice(),
            &whole[..whole.len() / 2 - 1],
            &[0; 9],
        ] {
            let mut bytes = whole.clone();
            bytes.extend_from_slice(tail);
            std::fs::write(&path, &bytes).unwrap();
            let (rows, torn) = read_rows::<MetricRow>(&path).unwrap();
            assert_eq!((rows.len(), torn.unwrap().line), (2, 3));
            let (mut writer, torn) = RowWriter::<MetricRow>::open(&path).unwrap();
            assert_eq!(torn.unwrap().text.as_bytes(), tail);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
            writer.append(&metric("cot", 3)).unwrap();
            assert_eq!(read_rows::<MetricRow>(&path).unwrap().0.len(), 3);
        }
    }

    #[test]
    fn resumed_files_equal_uninterrupted_ones() {
        let all = [
            ("cot", 10),
            ("cot", 20),
            ("align", 10),
            ("align", 20),
            ("align", 30),
            ("shortcut", 10),
        ];
        let table: &[(usize, (&str, u64), usize)] = &[
            // rows written before the interruption, the checkpoint resumed from, rows kept
            (5, ("align", 20), 4),
            (5, ("align", 25), 4),
            (3, ("align", 0), 2),
            (6, ("cot", 20), 2),
            (6, ("cot", 0), 0),
            (6, ("shortcut", 10), 6),
            (2, ("align", 0), 2),
        ];
        let folder = tempfile::tempdir().unwrap();
        let expected = folder.path().join("expected.jsonl");
        drop(write(&expected, &all));
        for &(written, (stage, step), kept) in table {
            let path = folder.path().join("metrics.jsonl");
            let mut writer = write(&path, &all[..written]);
            let dropped = writer.truncate_after(stage, step).unwrap();
            assert_eq!(dropped, written - kept, "{stage} {step}");
            for (stage, step) in &all[kept..] {
                writer.append(&metric(stage, *step)).unwrap();
            }
            assert_eq!(
                std::fs::read(&path).unwrap(),
                std::fs::read(&expected).unwrap()
            );
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn rows_of_the_run_survive_and_damage_is_located() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let (mut writer, _) = RowWriter::open(&path).unwrap();
        let time = "2026-01-02T03:04:05Z";
        writer
            .append(&EventRow::at_step(
                time,
                EventKind::CheckpointSaved,
                "cot",
                9,
            ))
            .unwrap();
        writer
            .append(&EventRow::of_run(time, EventKind::Interrupted))
            .unwrap();
        assert_eq!(writer.truncate_after("cot", 5).unwrap(), 1);
        let (rows, _) = read_rows::<EventRow>(&path).unwrap();
        assert_eq!(rows, [EventRow::of_run(time, EventKind::Interrupted)]);

        std::fs::write(&path, "{\"schema\":2}\n").unwrap();
        let error = read_rows::<EventRow>(&path).unwrap_err().to_string();
        let place = format!(
            "{}:1: not a row this version understands: schema 2",
            path.display()
        );
        assert!(error.starts_with(&place), "{error}");
        assert!(writer.truncate_after("cot", 5).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"schema\":2}\n");
    }
}
