//! Test harness and benchmark tools of wavegate.
//!
//! Owns the load generator, the SMTP sink, the benchmark that drives them against the relay and
//! its peers, the network between them, and how tests find tools of others. Knows nothing of the relay's code, which is driven
//! over SMTP and its command line; only a benchmark fills a spool through the relay's store.

#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

pub mod bench;
pub mod harness;
pub mod load;
pub mod sink;
pub mod tool;
pub mod wan;
