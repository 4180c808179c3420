//! What is known of a message in the spool, and what it waits for.

use std::{num::NonZeroU32, sync::Arc};

use crate::{message::MessageId, plan::Timestamp};

/// A message's place in the store: an index that is dense and used again after removal. The
/// largest number is not a place.
pub type Slot = u32;

/// An instance, by a small number that `Scheduler::instance` gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey(pub(super) u32);

/// An upstream, by a small number that `Scheduler::upstream` gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamKey(pub(super) NonZeroU32);

/// A message that the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The message.
    pub id: MessageId,
    /// The instance that it belongs to, or that of no instance.
    pub instance: InstanceKey,
    /// When it was received.
    pub received: Timestamp,
    /// Its size in octets.
    pub size: u64,
    /// For how long it was held, without the hold that lasts still. The expiry clock stands
    /// still meanwhile.
    pub held_ms: u64,
    /// What attempts change.
    pub progress: Progress,
}

/// What attempts change of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Recipients that still wait for delivery.
    pub recipients: u32,
    /// Attempts made.
    pub attempts: u32,
    /// The upstream of the latest decision.
    pub upstream: Option<UpstreamKey>,
}

/// The one thing that a message waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Nothing but its turn.
    Turn,
    /// The time of its next attempt. Not held: the expiry clock goes on.
    Retry(Timestamp),
    /// A time until which a policy holds it.
    HoldUntil(Timestamp),
    /// A connection of this upstream: all are busy, or all targets are down.
    Upstream(Arc<str>),
    /// A limit that a policy named.
    Limit {
        /// The policy.
        scope: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// The window of this instance.
    Phase(InstanceKey),
    /// A policy holds it until something changes: the plan, or the generation.
    Change,
    /// An operator holds it.
    Operator,
    /// In doubt: an attempt made before still listens for its reply.
    Reply,
}

/// Where a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Taken; an attempt is being made.
    InFlight,
    /// It waits for this.
    Waiting(Wait),
    /// It was released, and the pace of the release has not let it out yet.
    Paced,
}

/// What a list says of where a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitView {
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// An operator holds it as soon as the attempt under way is over.
    pub hold_follows: bool,
}

impl Entry {
    /// How long it has been the relay's to deliver: the expiry clock in milliseconds, without
    /// the times for which it was held. Not for one that is held now.
    pub fn clock_ms(&self, now: Timestamp) -> u64 {
        now.0.saturating_sub(self.received.0).saturating_sub(self.held_ms)
    }
}

/// States that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Ready,
    Blocked,
    Later,
    Held,
    InFlight,
    InDoubt,
}

impl Wait {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Turn => Kind::Ready,
            Self::Upstream(_) | Self::Limit { .. } => Kind::Blocked,
            Self::Retry(_) => Kind::Later,
            Self::HoldUntil(_) | Self::Phase(_) | Self::Change | Self::Operator => Kind::Held,
            Self::Reply => Kind::InDoubt,
        }
    }

    /// Whether the expiry clock stands still.
    pub fn is_hold(&self) -> bool {
        self.kind() == Kind::Held
    }
}
