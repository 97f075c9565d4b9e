//! The program behind `train`, `evaluate`, `compare`, `generate`, `prepare`, `parity` and `serve`.
//!
//! In here: the configuration of a run, the choice of a device, the command lines, and the wiring
//! of the other crates.
//!
//! Must never be in here: numerics. What a step computes is in `sesqui-distill`, what a layer
//! computes in `sesqui-model`.

pub mod backend;
pub mod cli;
pub mod compare;
pub mod curriculum;
pub mod data_sets;
pub mod describe;
pub mod early_exit_stage;
pub mod events;
pub mod execution;
pub mod exits;
pub mod experiment;
pub mod extensions;
pub mod fitting;
pub mod halt_plot;
pub mod halt_stage;
pub mod halt_study;
pub mod halting;
pub mod heat_map;
pub mod importance;
pub mod ink;
pub mod label_file;
pub mod labels;
pub mod measure;
pub mod memory;
pub mod misuse;
pub mod opened;
pub mod output;
pub mod parity;
pub mod preparation;
pub mod provenance;
pub mod reasoning;
pub mod refine_study;
pub mod refinement;
pub mod reopened;
pub mod screen;
pub mod short_form;
pub mod show;
pub mod smoke;
pub mod stage;
pub mod start;
pub mod study;
pub mod sweep;
pub mod token_exit;
pub mod trained;
pub mod workbench;
