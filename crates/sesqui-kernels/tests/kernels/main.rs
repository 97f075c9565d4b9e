//! Every operation against plain loops in 64 bits: values, derivatives by finite differences, and
//! the same from Burn's tensor operations.

#![allow(missing_docs, clippy::unwrap_used)]

mod adamw;
mod attention;
mod cross_entropy;
mod gelu;
mod linear;
mod norm;
mod one_query;
mod reference;
mod support;
