//! Standard output that may be cut short: `prepare list | head -1` is no failure.

use std::io::{ErrorKind, Write, stdout};

use anyhow::{Context, Result};

/// Prints `text` and a line break. A reader that has gone away wanted no more; that is success.
///
/// # Errors
///
/// When standard output cannot be written for another reason, such as a full disk.
pub fn say(text: impl std::fmt::Display) -> Result<()> {
    let mut out = stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
