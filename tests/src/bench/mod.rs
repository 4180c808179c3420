//! The benchmark: the relay and its peers under the same loads, in turn, in one go.
//!
//! Owns starting and ending the peers, their processor time, and the table. The peers'
//! configurations are files in `tests/bench/`. Floor: none. Start reading at [`run::run`].

pub mod cpu;
pub mod memory;
pub mod poison;
pub mod run;
pub mod slow;
pub mod spool;
pub mod swaps;
pub mod tls;
pub mod wan;

mod idle;
mod metrics;
mod mta;
mod paced;
mod peer;
mod process;
mod relay;
mod table;
mod workload;

pub use process::{guard, install_guard};
