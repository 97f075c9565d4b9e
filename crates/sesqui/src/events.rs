//! `events.jsonl`: what happened to a run, and when.

use anyhow::Result;
use jiff::Timestamp;
use sesqui_run::{EventKind, EventRow, RowWriter, RunDirectory};

/// The event log of a run.
pub struct Events {
    writer: RowWriter<EventRow>,
}

impl Events {
    /// Opens the log and notes that the run begins, or goes on.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn open(directory: &RunDirectory) -> Result<Self> {
        let (writer, torn) = RowWriter::open(&directory.events())?;
        let mut events = Self { writer };
        events.of_run(if directory.resumed() {
            EventKind::Resumed
        } else {
            EventKind::Started
        })?;
        if torn.is_some() {
            events.of_run(EventKind::RowsTruncated)?;
        }
        Ok(events)
    }

    /// Notes something about the run as a whole.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn of_run(&mut self, event: EventKind) -> Result<()> {
        Ok(self.writer.append(&EventRow::of_run(&now(), event))?)
    }

    /// Notes something about a stage after `step` of its steps.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn of_stage(&mut self, event: EventKind, stage: &str, step: u64) -> Result<()> {
        Ok(self
            .writer
            .append(&EventRow::at_step(&now(), event, stage, step))?)
    }
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
