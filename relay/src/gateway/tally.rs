//! What is counted of a gateway.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wavegate_link::Code;

use crate::links::{Count, GatewayLink};

/// Why somebody was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `connections` of the listener.
    TooMany,
    /// More handshakes at once than there is room for.
    Handshakes,
    /// The relay is short of memory.
    Memory,
    /// The gateway is closing.
    Stopping,
    /// The handshake failed.
    Handshake,
    /// The handshake, or HELLO, took too long.
    Timeout,
    /// Its certificate has no name here.
    NotTrusted,
    /// What it said first was not HELLO.
    Hello,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TooMany,
        Self::Handshakes,
        Self::Memory,
        Self::Stopping,
        Self::Handshake,
        Self::Timeout,
        Self::NotTrusted,
        Self::Hello,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::Handshakes => "handshakes",
            Self::Memory => "memory",
            Self::Stopping => "stopping",
            Self::Handshake => "handshake",
            Self::Timeout => "timeout",
            Self::NotTrusted => "not_trusted",
            Self::Hello => "hello",
        }
    }
}

/// The counters of a gateway.
#[derive(Default)]
pub(super) struct Tally {
    refused: [AtomicU64; Refusal::ALL.len()],
    errors: [AtomicU64; Code::ALL.len()],
    pub(super) messages: AtomicU64,
    pub(super) known: AtomicU64,
    pub(super) turned_away: AtomicU64,
}

impl Tally {
    pub(super) fn refuse(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn error(&self, code: Code) {
        self.errors[code.number() as usize].fetch_add(1, Relaxed);
    }

    /// What was counted.
    pub(super) fn status(&self) -> GatewayLink {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let named = |what: &str, counter: &AtomicU64| Count {
            what: what.to_owned(),
            count: count(counter),
        };
        let refused = Refusal::ALL.map(|why| named(why.as_str(), &self.refused[why as usize]));
        let errors =
            Code::ALL.map(|code| named(code.as_str(), &self.errors[code.number() as usize]));
        GatewayLink {
            refused: refused.into(),
            errors: errors.into(),
            messages: count(&self.messages),
            known: count(&self.known),
            turned_away: count(&self.turned_away),
            ..GatewayLink::default()
        }
    }
}
