//! Where the time of a stage goes.

use std::time::{Duration, Instant};

use sesqui_kernels::reads;

/// What the loop is doing. On a GPU operations are only handed over where they stand here; the wait for them is in
/// [`Phase::Read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// What is read before the first step: a teacher's states that are kept.
    Beforehand,
    /// Making batches.
    Batches,
    /// Forward and backward passes.
    Gradients,
    /// Waiting for losses and the norm.
    Read,
    /// Clipping and the optimizer.
    Update,
    /// Rows of metrics, lines, and the dashboard.
    Report,
    /// Validation.
    Validation,
    /// Checkpoints.
    Checkpoints,
}

impl Phase {
    /// In the order of a step.
    pub const ALL: [Self; 8] = [
        Self::Beforehand,
        Self::Batches,
        Self::Gradients,
        Self::Read,
        Self::Update,
        Self::Report,
        Self::Validation,
        Self::Checkpoints,
    ];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Beforehand => "beforehand",
            Self::Batches => "batches",
            Self::Gradients => "gradients",
            Self::Read => "read",
            Self::Update => "update",
            Self::Report => "report",
            Self::Validation => "validation",
            Self::Checkpoints => "checkpoints",
        }
    }
}

/// Time by phase and reads from the device, of the steps that this process made.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Steps.
    pub steps: u64,
    /// Reads in steps, validations not among them, by everything that this process does meanwhile.
    pub reads: u64,
    spent: [Duration; Phase::ALL.len()],
    last: Instant,
    reads_before: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            steps: 0,
            reads: 0,
            spent: [Duration::ZERO; Phase::ALL.len()],
            last: Instant::now(),
            reads_before: reads(),
        }
    }
}

impl Profile {
    /// Books the time since the last call on `phase`.
    pub(crate) fn book(&mut self, phase: Phase) {
        let now = Instant::now();
        self.spent[phase as usize] += now - self.last;
        self.last = now;
        if phase == Phase::Validation {
            self.reads_before = reads();
        }
    }

    /// Counts a step, with the reads since the last one or since validation.
    pub(crate) fn count_step(&mut self) {
        self.steps += 1;
        let now = reads();
        self.reads += now - self.reads_before;
        self.reads_before = now;
    }

    /// Adds time that was spent in `phase` outside the loop.
    pub fn add(&mut self, phase: Phase, spent: Duration) {
        self.spent[phase as usize] += spent;
    }

    /// Time spent in a phase.
    pub fn spent(&self, phase: Phase) -> Duration {
        self.spent[phase as usize]
    }

    /// As text: milliseconds per step by phase, and reads per step.
    pub fn line(&self) -> String {
        let steps = self.steps.max(1) as f64;
        let phases = Phase::ALL.map(|phase| {
            let milliseconds = 1e3 * self.spent(phase).as_secs_f64() / steps;
            format!("{} {milliseconds:.2}", phase.name())
        });
        format!(
            "{} steps, ms per step: {}; {:.2} reads from the device per step",
            self.steps,
            phases.join(", "),
            self.reads as f64 / steps
        )
    }
}
