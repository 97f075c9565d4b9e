//! Errors of the person at the keyboard, and what the process ends with.

use std::process::ExitCode;

/// A request that cannot be carried out as made: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub String);

/// Exit code of a run that was asked to stop and can be resumed: as for a process ended by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Prints an error chain once and picks the exit code: 2 for misuse, 1 for failures.
#[allow(clippy::print_stderr)]
pub fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Transparent wrappers repeat what they wrap.
        if !last.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
            last = cause;
        }
    }
    eprintln!("{text}");
    let misuse = error.chain().any(|cause| {
        cause.is::<Misuse>()
            || cause.is::<sesqui_run::ConfigError>()
            || cause.is::<sesqui_run::DirectoryError>()
            || cause.is::<sesqui_model::ModelConfigError>()
            || matches!(
                cause.downcast_ref::<sesqui_dataset::DatasetError>(),
                Some(
                    sesqui_dataset::DatasetError::Missing { .. }
                        | sesqui_dataset::DatasetError::Config(_)
                )
            )
    });
    ExitCode::from(if misuse { 2 } else { 1 })
}
