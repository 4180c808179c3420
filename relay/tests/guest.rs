//! The guest that misbehaves, `tests/guests/hostile`: what it does wrong is picked by its settings.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{net::IpAddr, path::Path, sync::OnceLock};

use wavegate::{decision::Transaction, plan::Timestamp};

pub(crate) static HOSTILE: &[u8] = include_bytes!("../../tests/guests/hostile.wasm");

/// Where compiled code is kept for all tests of a run, so that each guest is compiled once.
pub(crate) fn cache() -> &'static Path {
    static CACHE: OnceLock<tempfile::TempDir> = OnceLock::new();
    CACHE.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// A message to ask about.
pub(crate) fn transaction(id: &str) -> Transaction<'_> {
    Transaction {
        id,
        now: Timestamp(1_700_000_000_000),
        received: Timestamp(1_700_000_000_000),
        client: IpAddr::from([192, 0, 2, 7]),
        sender: "a@x.example",
        recipients: &["b@y.example", "c@z.example"],
        size: 10_000,
        attempts: 0,
        instance: None,
        bucket: 4321,
        attributes: &[],
        upstreams: &[],
    }
}
