//! Test harness and benchmark tools of wavegate.
//!
//! Owns the load generator, the SMTP sink and the benchmark that drives them against the relay and
//! its peers. Knows nothing of the relay's code: it is driven over SMTP and its command line.

pub mod bench;
pub mod harness;
pub mod load;
pub mod sink;
pub mod tool;
