//! The policy host: compiles, checks, keeps and calls the WebAssembly components that decide.
//! Floor 2.
//!
//! It owns the engine, the compiled-code cache, the warm instances, the limits put on a guest,
//! the failure ladder, the purity audit and the shadows. It does not combine the answers of several policies
//! and applies no fail mode: that is the gate's. It keeps no counters that a policy limits by.
//!
//! Reading order: `host` (what a process has once), `load` (from bytes to a checked
//! [`PolicySet`]), `worker` (the calls), `instance` (one guest), `bindings` (what is checked of
//! an answer), `contract` (the types of all its versions), then `engine`, `compile`, `signature`,
//! `failure`, `audit`, `shadow`, `tap`, `stats`; and beside the path `inspect`, `stubs` (what is left
//! of WASI).
//!
//! No answer depends on a clock: what needs the time takes it from the question (`Transaction::now`);
//! guests are bounded by epochs, which a thread of its own ticks, or by fuel.

mod apart;
mod aside;
mod audit;
mod bindings;
mod compile;
mod contract;
mod engine;
mod failure;
mod fresh;
mod host;
mod inspect;
mod instance;
mod load;
pub mod reference;
mod set;
mod shadow;
pub mod signature;
mod stats;
mod stubs;
mod tap;
mod worker;

pub use apart::{COMMAND as COMPILE_COMMAND, compile_here};
pub use aside::Late;
pub use audit::AuditMode;
pub use bindings::Needs;
pub use contract::Version;
pub use engine::Metering;
pub use failure::{Condemnation, FailureKind, PolicyFailure};
pub use fresh::Fresh;
pub use host::{HostError, HostOptions, PolicyHost};
pub use inspect::{Import, ImportKind, Inspection};
pub use load::{MAX_COMPONENT, PolicyError, PolicyProblem, read_file};
pub use set::{Description, Hook, Policy, PolicySet};
pub use shadow::{Example, ShadowCounts, ShadowMode, ShadowReport};
pub use stats::{PolicyStats, TIME_BUCKETS_NS};
pub use tap::{Call, Tap};
pub use worker::WorkerPolicies;
