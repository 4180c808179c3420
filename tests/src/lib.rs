//! Test harness.

pub mod tool;
