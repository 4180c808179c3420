//! The pool of an upstream: slots, idle connections, and the line of those who wait. A slot that
//! comes free goes to the first in line.

use std::sync::{Arc, atomic::Ordering};

use tokio::{sync::oneshot, time::Instant};

use super::{Channel, Connection, LeaseError, Upstream, connection};
use crate::names::Endpoint;

/// Who stands in line.
pub(super) struct Waiter {
    ticket: u64,
    grant: oneshot::Sender<Grant>,
}

/// What a waiter is given.
pub(super) struct Grant {
    pub(super) slot: Slot,
    pub(super) connection: Option<Connection>,
}

/// The right to have one connection open, given back when dropped.
pub(super) struct Slot {
    /// None once the slot is accounted for elsewhere.
    upstream: Option<Arc<Upstream>>,
}

/// A way to a target, or from [`Upstream::lease_patiently`] the right to have one. A connection that
/// is dropped without `release` is closed.
pub struct Lease {
    pub(super) slot: Slot,
    pub(super) way: Way,
    pub(super) reused: bool,
}

/// How a message goes to a target.
#[allow(clippy::large_enum_variant, reason = "most go by SMTP, and a box would be one more step")]
pub enum Way {
    /// None: only the right to have one.
    None,
    /// By SMTP, on a connection that is for this message alone meanwhile.
    Smtp(Connection),
    /// Over a link.
    Link(Channel),
}

impl Way {
    /// The connection, where it is by SMTP.
    pub(super) fn into_connection(self) -> Option<Connection> {
        match self {
            Self::Smtp(connection) => Some(connection),
            Self::None | Self::Link(_) => None,
        }
    }
}

impl From<Option<Connection>> for Way {
    fn from(connection: Option<Connection>) -> Self {
        connection.map_or(Self::None, Self::Smtp)
    }
}

impl Upstream {
    fn slot(self: &Arc<Self>) -> Slot {
        Slot { upstream: Some(Arc::clone(self)) }
    }

    /// An idle connection or a free slot, if nobody stands in line for it. A place `of_clients` is
    /// for whoever looks himself for a connection that is his.
    pub(super) fn try_grant(
        self: &Arc<Self>,
        avoid: Option<&Endpoint>,
        fresh: bool,
        of_clients: bool,
    ) -> Option<Grant> {
        let mut state = self.lock();
        if !state.waiters.is_empty() {
            return None;
        }
        if of_clients {
            let connection = self.take_place(&mut state)?;
            state.in_use += 1;
            return Some(Grant { slot: self.slot(), connection });
        }
        let here = connection::current_worker();
        let usable = |c: &Connection| !fresh && Some(c.endpoint()) != avoid;
        let at = state
            .idle
            .iter()
            .rposition(|c| usable(c) && c.home() == here)
            .or_else(|| state.idle.iter().rposition(usable));
        if let Some(at) = at {
            let connection = state.idle.remove(at);
            state.in_use += 1;
            return Some(Grant { slot: self.slot(), connection: Some(connection) });
        }
        if state.in_use + state.idle.len() >= self.places() {
            // An idle connection that is not wanted gives its place to a new one.
            state.idle.pop()?;
        }
        state.in_use += 1;
        Some(Grant { slot: self.slot(), connection: None })
    }

    /// Stands in line.
    pub(super) async fn wait(&self, deadline: Instant, queue: usize) -> Result<Grant, LeaseError> {
        let ticket = self.stats.ticket.fetch_add(1, Ordering::Relaxed);
        let (sender, mut receiver) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.waiters.len() >= queue {
                let upstream = self.config.name.clone();
                return Err(LeaseError::QueueFull { upstream, limit: queue });
            }
            state.waiters.push_back(Waiter { ticket, grant: sender });
        }
        self.stats.waited.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            biased;
            grant = &mut receiver => {
                if let Ok(grant) = grant { return Ok(grant) }
            }
            () = tokio::time::sleep_until(deadline) => {
                self.lock().waiters.retain(|waiter| waiter.ticket != ticket);
                // It may have been granted in the same moment.
                if let Ok(grant) = receiver.try_recv() { return Ok(grant) }
            }
        }
        let upstream = self.config.name.clone();
        Err(match &self.config.link {
            Some(link) => LeaseError::Crowded { upstream, streams: link.streams },
            None => LeaseError::Busy { upstream, connections: self.config.connections },
        })
    }

    /// How many slots there are.
    pub(super) fn places(&self) -> usize {
        self.config.link.as_ref().map_or(self.config.connections, |link| link.streams)
    }

    /// A connection or a slot has come free: the first in line gets it.
    fn hand_on(self: &Arc<Self>, mut connection: Option<Connection>) {
        let mut state = self.lock();
        // A target may have gone, or be behind another one now.
        let gone = connection.take_if(|one| !state.is_wanted(one.endpoint()));
        while let Some(waiter) = state.waiters.pop_front() {
            let grant = Grant { slot: self.slot(), connection };
            match waiter.grant.send(grant) {
                Ok(()) => {
                    drop(state);
                    return gone.into_iter().for_each(Connection::quit);
                }
                Err(grant) => {
                    // Its receiver is gone. The slot is still ours to give: not to be dropped.
                    connection = grant.dissolve();
                }
            }
        }
        state.in_use -= 1;
        if let Some(connection) = connection
            && !state.retired
            && state.idle.len() < self.config.idle_connections
        {
            state.idle.push(connection);
        }
        drop(state);
        gone.into_iter().for_each(Connection::quit);
    }
}

impl Grant {
    /// Takes the grant apart without giving the slot back.
    fn dissolve(self) -> Option<Connection> {
        let Self { slot, connection } = self;
        slot.forget();
        connection
    }
}

impl Slot {
    /// The slot is accounted for elsewhere.
    fn forget(mut self) {
        self.upstream = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            upstream.hand_on(None);
        }
    }
}

impl Lease {
    /// How the message goes.
    pub fn way(&mut self) -> &mut Way {
        &mut self.way
    }

    /// The connection, of an upstream that is no link.
    pub fn connection(&mut self) -> &mut Connection {
        match &mut self.way {
            Way::Smtp(connection) => connection,
            Way::None | Way::Link(_) => {
                unreachable!("a lease that was fitted has its connection until it is released")
            }
        }
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Endpoint {
        match &self.way {
            Way::Smtp(connection) => connection.endpoint(),
            Way::Link(channel) => channel.endpoint(),
            Way::None => unreachable!("a lease that was fitted goes somewhere"),
        }
    }

    /// Gives the slot to the next one: for a message over a link that is in doubt.
    pub fn leave_slot(&mut self) {
        if let Some(upstream) = self.slot.upstream.take() {
            upstream.hand_on(None);
        }
    }

    /// Whether the connection carried something before: then its death says nothing of its
    /// target's health.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Gives the connection back, ready for the next message.
    pub fn release(mut self) {
        let way = std::mem::replace(&mut self.way, Way::None);
        let Some(connection) = way.into_connection() else { return };
        let upstream = self.slot.upstream.take();
        if let Some(upstream) = upstream {
            if connection.messages() >= upstream.config.messages_per_connection {
                connection.quit();
                upstream.hand_on(None);
            } else {
                upstream.hand_on(Some(connection.idle_from(Instant::now())));
            }
        }
    }
}
