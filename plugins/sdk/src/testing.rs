//! What the tests of a policy start from.

use crate::types::{Instance, Transaction};

/// An ordinary message of no instance; a test changes what it is about.
pub fn transaction() -> Transaction {
    Transaction {
        id: "01JZ3N6V8C4S".into(),
        now: 1_768_888_800_000,
        received: 1_768_888_800_000,
        client: "192.0.2.7".into(),
        sender: "news@mkt.acme.example".into(),
        recipients: vec!["jo@customer.example".into()],
        size: 10_240,
        attempts: 0,
        instance: None,
        bucket: 4_200,
        attributes: Vec::new(),
        upstreams: Vec::new(),
    }
}

/// An instance in that phase, with no window: before it is `legacy`, after it `cloud`.
pub fn instance(phase: &str) -> Instance {
    Instance {
        name: "acme-prod-1".into(),
        product: "campaign-classic".into(),
        environment: "production".into(),
        phase: phase.into(),
        window: None,
        before: "legacy".into(),
        after: "cloud".into(),
    }
}
