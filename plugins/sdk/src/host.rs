//! What a policy may ask of the relay: its log, its counters, the operator's tables. Outside a
//! component (in a policy's own tests) nothing is written and every table is empty.

/// How loud a line is.
pub use crate::bindings::wavegate::policy::log::Level;

/// Writes a line to the relay's log, under the policy's name: at most 16 a call, 1 KiB each.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::wavegate::policy::log::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (level, message);
}

/// Adds to a counter that [`crate::Policy::METRICS`] declares.
pub fn count(metric: &str, value: u64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::wavegate::policy::metrics::add(metric, value);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (metric, value);
}

/// The value of `key` in one of the operator's tables.
pub fn lookup(table: &str, key: &str) -> Option<String> {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::wavegate::policy::tables::lookup(table, key);
    #[cfg(not(target_arch = "wasm32"))]
    {
        let _ = (table, key);
        None
    }
}
