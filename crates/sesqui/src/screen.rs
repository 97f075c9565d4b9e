//! The terminal: which renderer, progress bars, and Ctrl-C.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use burn::train::Interrupter;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sesqui_run::RunPaths;
use sesqui_trainer::Renderer;

use crate::misuse::INTERRUPTED;

/// What to show while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RendererChoice {
    /// The dashboard on a terminal, else the plain log.
    Auto,
    /// Burn's dashboard; `q` stops the run as Ctrl-C does.
    Dashboard,
    /// One line every few steps.
    Plain,
    /// Nothing but results and errors.
    None,
}

impl RendererChoice {
    /// Opens the renderer; its lines also go to the run's `train.log`.
    ///
    /// # Errors
    ///
    /// When the log cannot be opened.
    pub fn open(self, paths: &RunPaths, interrupter: &Interrupter) -> Result<Renderer> {
        let path = paths.log();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let log: Box<dyn Write + Send> = Box::new(log);
        let terminal = std::io::stdout().is_terminal();
        Ok(match self {
            Self::Dashboard => Renderer::dashboard(interrupter.clone(), log),
            Self::Auto if terminal => Renderer::dashboard(interrupter.clone(), log),
            Self::Auto | Self::Plain => Renderer::plain(Box::new(std::io::stdout()), log),
            Self::None => Renderer::none(log),
        })
    }
}

/// A bar on standard error, hidden where that is not a terminal.
pub fn progress(length: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}")
    {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// A spinner for work whose length is unknown.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// First Ctrl-C: stop after the step at hand, saved. Second: leave at once.
///
/// # Errors
///
/// When the handler cannot be installed.
pub fn stop_on_ctrl_c(interrupter: &Interrupter) -> Result<()> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        interrupter.stop(Some("Ctrl-C"));
    })
    .context("cannot listen for Ctrl-C")
}
