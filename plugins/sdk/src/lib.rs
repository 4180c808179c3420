//! What a Wavegate policy is written with.
//!
//! A policy is a type that is made from its settings and then asked about messages. It keeps no
//! state: the same question has the same answer, today and in a replay next year. This crate
//! owns the contract as Rust types ([`types`], [`freeze`], [`routing`], [`throttling`]), the
//! reading of settings ([`settings`]), the exports ([`export!`]) and the memory of the guest. It
//! decides nothing.
//!
//! # A whole policy
//! ```
//! use wavegate_policy::freeze::{self, Decision, Hold};
//! use wavegate_policy::settings::Table;
//! use wavegate_policy::{Policy, types::Transaction};
//!
//! /// Holds what is larger than a limit until its instance is upgraded.
//! struct NoGiants {
//!     most: u64,
//! }
//!
//! impl Policy for NoGiants {
//!     const NAME: &'static str = "no-giants";
//!     const VERSION: &'static str = "1.0.0";
//!     const SETTINGS_SCHEMA: &'static str = r#"{
//!         "type": "object",
//!         "properties": { "most": { "type": "integer", "minimum": 1 } },
//!         "additionalProperties": false
//!     }"#;
//!
//!     fn configure(settings: &Table<'_>, _upstreams: &[String]) -> Self {
//!         let most = settings.get("most").and_then(|most| most.whole(1..=u64::MAX));
//!         NoGiants { most: most.unwrap_or(1 << 20) }
//!     }
//! }
//!
//! impl freeze::Policy for NoGiants {
//!     fn decide(&self, message: &Transaction) -> Decision {
//!         if message.size <= self.most {
//!             return Decision::Proceed;
//!         }
//!         Decision::Hold(Hold { until: None, reason: "too large for today".into() })
//!     }
//! }
//!
//! wavegate_policy::export!(NoGiants: freeze);
//!
//! // The decision is plain Rust, so its tests are too.
//! let policy = wavegate_policy::configured::<NoGiants>(r#"{ "most": 10 }"#, &[]).unwrap();
//! let message = Transaction { size: 11, ..wavegate_policy::testing::transaction() };
//! assert!(matches!(freeze::Policy::decide(&policy, &message), Decision::Hold(_)));
//! ```
//!
//! # Building it
//! `crate-type = ["cdylib", "rlib"]`, target `wasm32-unknown-unknown`, then made a component
//! with `wit-component` (here: `plugins/build`; elsewhere any tool that wraps it). The component
//! imports what it calls of `log`, `metrics` and `tables`, and nothing else.

// The bindings name this crate by its name, in it and in the policies.
extern crate self as wavegate_policy;

#[doc(hidden)]
pub mod bindings;
#[doc(hidden)]
pub mod export;
pub mod hooks;
pub mod host;
mod json;
#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
mod memory;
pub mod settings;
pub mod testing;
pub mod text;

pub use hooks::{Needs, Policy, configured, freeze, routing, throttling};
#[doc(hidden)]
pub use wit_bindgen;

/// The records that all hooks share.
pub mod types {
    pub use crate::bindings::wavegate::policy::types::{
        Instance, Reply, Timestamp, Transaction, UpstreamState, Window,
    };
}
