//! Generators: problems as a function of settings and a seed, the same on every machine.
//!
//! In here: one file per task, the integer-only random helper that they all draw from, and exact
//! arithmetic.
//!
//! Must never be in here: floating point in a decision, a wall clock, a file.

pub mod arith_dag;
pub mod equation;
pub mod multiplication;
pub mod perturb;
pub mod prosqa;
pub mod random;

/// The folder with published data for tests, from `SESQUI_DATA`. `None`, with a message, where the
/// variable is not set; on a continuous-integration machine that is a failure.
#[cfg(test)]
#[allow(clippy::print_stderr, clippy::disallowed_methods)]
pub(crate) fn data_root() -> Option<std::path::PathBuf> {
    let root = std::env::var_os("SESQUI_DATA").map(Into::into);
    if root.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "SESQUI_DATA must name the data root"
        );
        eprintln!("skipped: SESQUI_DATA does not name the data root");
    }
    root
}
