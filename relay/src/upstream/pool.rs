//! The pool of an upstream: slots, idle connections, and the line of those who wait. A slot that
//! comes free goes to the first in line.

use std::sync::{Arc, atomic::Ordering};

use tokio::{sync::oneshot, time::Instant};

use super::{Connection, LeaseError, Upstream, connection};
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

/// A connection in use, or from [`Upstream::lease_patiently`] the right to have one. Dropped
/// without `release`, it is closed.
pub struct Lease {
    pub(super) slot: Slot,
    pub(super) connection: Option<Connection>,
    pub(super) reused: bool,
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
        if state.in_use + state.idle.len() >= self.config.connections {
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
        Err(LeaseError::Busy { upstream, connections: self.config.connections })
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
    /// The connection.
    pub fn connection(&mut self) -> &mut Connection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("a lease that was fitted has its connection until it is released"),
        }
    }

    /// Whether the connection carried something before: then its death says nothing of its
    /// target's health.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Gives the connection back, ready for the next message.
    pub fn release(mut self) {
        let Some(connection) = self.connection.take() else { return };
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
