//! Shortcuts over an unchanged backbone: System-1.5 Reasoning (arXiv 2505.18962).
//!
//! In here: routers and adapters, one per layer boundary; the soft composition that the paper trains
//! (Eq. 1 to 5) and its early-exit loss (Eq. 10, 11); the hard staircase of inference, as a plan, as
//! one masked parallel pass, and as a walk that really skips layers; the count of what was run; a head
//! that says how many latent steps a question needs.
//!
//! Must never be in here: a change to the backbone's parameters or to how they are stored; data
//! sets; a training loop.
//!
//! *Boundary* `l`, from 0 to the number of layers L, is the place after `l` layers have run: `h_l`
//! of the paper stands there. The router and the adapter of boundary `l` read `h_l`; the paper's
//! `R_{l+1}` and `g_l`. A *slot* is one latent step, counted from 0; a slot *enters* at a boundary
//! and *leaves* at a boundary, and the layers between are its layer calls.

pub mod adapter;
pub mod config;
pub mod early_exit;
pub mod head;
pub mod pass;
pub mod plan;
pub mod router;
pub mod shortcuts;
pub mod soft;
pub mod walk;

pub use adapter::Adapter;
pub use config::{AdapterConfig, KeyValueRule, RouterConfig, ShortcutConfig};
pub use early_exit::EarlyExitConfig;
pub use head::{HostStepHead, StepHead};
pub use pass::{StaircaseInputs, StaircasePass, staircase_pass};
pub use plan::{EntryPosition, ExitPlan, Landing, PlanError, Slot};
pub use router::{HostRouter, Router};
pub use shortcuts::Shortcuts;
pub use soft::{SoftConfig, SoftPass, soft_pass};
pub use walk::{ExitRule, Handed, Last, SlotTrace, Walk};
