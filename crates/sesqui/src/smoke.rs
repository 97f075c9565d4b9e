//! `--smoke`: the real configuration, made small by one function.

use anyhow::Result;
use sesqui_run::Resolved;

use crate::experiment::Experiment;

/// Shrinks a resolved configuration and freezes it again, so that a smoke run's directory says what
/// was really run.
///
/// # Errors
///
/// When the shrunk configuration cannot be frozen.
pub fn shrink(resolved: Resolved<Experiment>) -> Result<Resolved<Experiment>> {
    let mut experiment = resolved.value;
    experiment.shrink();
    Ok(Resolved::frozen(experiment)?)
}
