//! What one training step means.
//!
//! In here: objectives as Burn train steps over a backbone, and the batches they read: supervised
//! fine-tuning with a chain of thought and without, and with losses at intermediate layers (LITE, LayerSkip);
//! the two stages of System-1.5 Reasoning (arXiv 2505.18962), language-to-latent alignment and shortcut
//! learning, and both at once; a head that says how many latent steps a question needs; the curricula of
//! Coconut, CODI, SIM-CoT and PCCoT, and of stepwise internalization. D1 to D21 are what
//! the paper leaves open, by the numbers of `docs/decisions/0012-what-the-paper-leaves-open.md`. Beside
//! them, what a step is worth to the answer under a chain-of-thought model, and what a frozen teacher says of
//! every problem, kept.
//!
//! Must never be in here: a loop, the choice of a device, a file. The trainer supplies the loop and
//! the shape of what a step reports.

pub mod align;
pub mod batches;
pub mod curriculum;
pub mod dropout;
pub mod early_exit;
pub mod halt;
pub mod icot;
pub mod importance;
pub mod joint;
pub mod latent;
pub mod lessons;
pub mod loss;
pub mod rollout;
pub mod shortcut;
pub mod student;
pub mod supervised;

pub use align::{Align, AlignConfig};
pub use batches::{CutBatches, Cuts, JointBatches, LatentBatches, SequenceBatches, ThoughtBatches};
pub use curriculum::{Curriculum, CurriculumConfig, CurriculumPlan, ThoughtBatch, ThoughtProblem};
pub use early_exit::{EarlyExit, EarlyExitBatch, EarlyExitBatches, EarlyExitConfig, EarlyExitPlan};
pub use halt::{Halt, HaltBatch, HaltBatches, HaltStageConfig};
pub use icot::{IcotConfig, IcotPlan};
pub use joint::{Joint, JointBatch, JointConfig};
pub use latent::{LatentBatch, LatentConfig, LatentProblem, Rollout};
pub use lessons::TeacherStates;
pub use shortcut::{Shortcut, ShortcutStageConfig};
pub use supervised::Supervised;
