//! Operations that are one pass on the CPU, forward and backward.
//!
//! Burn composes these of five to ten tensor operations each, and under autodiff every one of them
//! makes a pass over memory in both directions. Here each is one function with a derivative of its
//! own ([decision 15](../../../docs/decisions/0015-fused-operations.md)).
//!
//! Beside them, what every crate above needs of the machine: reads from a device, counted ([`read`]), and cores that
//! do not wait for each other ([`on_one_core`], [`side_by_side`]); and casts between widths of floats that derivatives
//! survive ([`cast()`]).
//!
//! Must never be in here: a model, a loss of a method, unsafe code, a result that depends on the number of threads.
//!
//! A function looks at where its tensors are: 32-bit floats of Burn's CPU backend, under autodiff or
//! not, take the fused way; any other device or type, and autodiff that recomputes what it does not
//! keep, take tensor operations with the same result up to rounding. Results do not depend on the
//! number of threads, nor of a row on the rows beside it; but for [`linear`], whose product is Burn's and
//! may round otherwise with more rows.

// `macerator` compiles a function once for each instruction set by a type parameter that the body of a
// loop over slices need not mention.
#![allow(clippy::extra_unused_type_parameters)]

mod adamw;
mod attention;
mod cast;
mod cores;
mod cross_entropy;
mod gelu;
mod host;
mod linear;
mod matmul;
mod norm;
mod one_query;
mod one_row;
mod reads;
mod simd;

pub use adamw::AdamW;
pub use attention::{Heads, attention};
pub use cast::cast;
pub use cores::{cores, is_here, on_one_core, side_by_side};
pub use cross_entropy::cross_entropy;
pub use gelu::gelu_tanh;
pub use linear::{against_rows, linear};
pub use norm::{layer_norm, rms_norm};
pub use one_query::attention_of_one;
pub use reads::{read, reads};
