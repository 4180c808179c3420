//! What an operator sees of a link. Floor 2.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::wire::Wire;
use crate::links::{EdgeConnection, EdgeLink, Path};

impl EdgeConnection {
    pub(super) fn of(wire: &Wire) -> Self {
        let incarnation = wire.gateway.incarnation.iter().map(|byte| format!("{byte:02x}"));
        Self {
            target: wire.endpoint.address.to_string(),
            worker: wire.worker as u64,
            gateway: wire.gateway.name.clone(),
            incarnation: incarnation.collect(),
            path: Path::of(&wire.connection, wire.since, wire.streams(), wire.messages() as u64),
        }
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) fallbacks: AtomicU64,
    pub(super) reconnects: AtomicU64,
    /// Connections that were lost, and nothing was opened in their place yet.
    owed: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) known: AtomicU64,
    /// Of connections that have ended.
    packets: AtomicU64,
    lost: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    /// A connection has ended; `lost` says that nobody wanted that.
    pub(super) fn ended(&self, wire: &Wire, lost: bool) {
        let Path { packets, lost: lost_packets, sent, received, .. } =
            EdgeConnection::of(wire).path;
        self.packets.fetch_add(packets, Relaxed);
        self.lost.fetch_add(lost_packets, Relaxed);
        self.sent.fetch_add(sent, Relaxed);
        self.received.fetch_add(received, Relaxed);
        self.owed.fetch_add(u64::from(lost), Relaxed);
    }

    /// A connection has come about.
    pub(super) fn opened(&self) {
        let less = |owed: u64| owed.checked_sub(1);
        if self.owed.fetch_update(Relaxed, Relaxed, less).is_ok() {
            self.reconnects.fetch_add(1, Relaxed);
        }
    }

    /// All of it that is counted, with the connections that there are.
    pub(super) fn status(&self, connections: Vec<EdgeConnection>) -> EdgeLink {
        let sum = |ended: &AtomicU64, of: fn(&Path) -> u64| {
            ended.load(Relaxed) + connections.iter().map(|one| of(&one.path)).sum::<u64>()
        };
        EdgeLink {
            fallbacks: self.fallbacks.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            resumed: self.resumed.load(Relaxed),
            known: self.known.load(Relaxed),
            packets: sum(&self.packets, |path| path.packets),
            lost: sum(&self.lost, |path| path.lost),
            sent: sum(&self.sent, |path| path.sent),
            received: sum(&self.received, |path| path.received),
            connections,
            ..EdgeLink::default()
        }
    }
}
