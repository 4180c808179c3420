//! What happened, as plain values. Floor 0.
//!
//! Logic emits events and knows nothing of metrics or logs; `telemetry` turns them into both.

use std::{net::IpAddr, time::Duration};

use wavegate_smtp::{MessageFault, Reply};

use crate::message::MessageId;

/// Takes events. One a process; called on the path of every message, so it must be cheap.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, event: &Event<'_>);
}

/// Hears of nothing: for a relay that carries no mail.
#[derive(Debug)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _: &Event<'_>) {}
}

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A listener's socket is bound and takes connections.
    ListenerOpened {
        /// Name of the listener.
        listener: &'a str,
    },
    /// A listener's socket is closed.
    ListenerClosed {
        /// Name of the listener.
        listener: &'a str,
    },
    /// A client connected.
    ConnectionOpened {
        /// Name of the listener.
        listener: &'a str,
    },
    /// A client's connection ended.
    ConnectionClosed {
        /// Name of the listener.
        listener: &'a str,
    },
    /// A client was turned away at once.
    ConnectionRefused {
        /// Where it came from.
        client: IpAddr,
        /// Why.
        reason: Refused,
    },
    /// A session was ended by the relay.
    SessionEnded {
        /// Where it came from.
        client: IpAddr,
        /// Why.
        reason: Ended,
    },
    /// A message that the protocol itself forbids was refused at its end.
    MessageRejected {
        /// Where it came from.
        client: IpAddr,
        /// Why.
        fault: MessageFault,
    },
    /// A message was received whole; from now on its recipients are accounted for.
    Received {
        /// Its instance; none where no instance matches.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Its recipients.
        recipients: u64,
        /// Its bytes.
        size: u64,
    },
    /// What became of a received message.
    Settled {
        /// Its instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Where it went or was to go; none when it never got a route.
        upstream: Option<&'a str>,
        /// Its recipients.
        recipients: u64,
        /// What became of them.
        outcome: Outcome,
        /// The reply to the client.
        reply: &'a Reply,
        /// From the end of data to the reply.
        elapsed: Duration,
    },
    /// The gate answered.
    GateAnswered {
        /// Time in the gate, policies included.
        elapsed: Duration,
    },
    /// A policy let mail of a frozen instance go; it was held all the same.
    ProceedAgainstPlan {
        /// The instance.
        instance: &'a str,
    },
    /// A policy failed; its fail mode was applied.
    PolicyFailed {
        /// The policy.
        policy: &'a str,
        /// What happened.
        error: &'a str,
    },
    /// An attempt was abandoned before its end of data and is made again.
    AttemptRetried {
        /// The upstream.
        upstream: &'a str,
        /// Why.
        error: &'a str,
    },
    /// The end of data was written and the reply was lost: the message may arrive twice.
    InDoubt {
        /// The instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// The upstream.
        upstream: &'a str,
        /// Why.
        error: &'a str,
    },
    /// A recipient of a spooled message came to an end.
    Ended {
        /// The instance that it was accepted for.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Where it went or was to go.
        upstream: Option<&'a str>,
        /// The recipient.
        recipient: &'a str,
        /// Its end.
        end: End,
        /// The last reply.
        reply: Option<&'a Reply>,
        /// Since its receipt.
        age: Duration,
    },
    /// A window has ended: what it held is let out.
    Released {
        /// The instance.
        instance: &'a str,
        /// How many messages.
        messages: u64,
    },
    /// Mail is held for longer than `spool.max_hold`.
    HeldTooLong {
        /// The instance.
        instance: Option<&'a str>,
        /// How many messages are held.
        messages: u64,
        /// Age of the oldest message of the instance.
        age: Duration,
    },
    /// An operator changed something.
    Operator {
        /// What was done, such as `hold`.
        action: &'a str,
        /// Why, in the operator's words.
        reason: &'a str,
        /// What was named.
        selection: &'a str,
        /// How many messages were changed.
        messages: u64,
        /// How many recipients of them still waited.
        recipients: u64,
        /// How many messages were named and not changed.
        refused: u64,
        /// The ids of the first that were changed.
        ids: &'a [MessageId],
    },
    /// A spooled message cannot be read; it is kept and tried again.
    Unreadable {
        /// Its place.
        slot: u32,
        /// Why.
        error: &'a str,
    },
    /// The reply could not be given to the client.
    ReplyLost {
        /// The message.
        id: MessageId,
        /// Whether it was delivered: then it may arrive twice.
        delivered: bool,
    },
    /// A panic ended one session.
    SessionPanicked,
    /// A new generation is in force.
    Reloaded {
        /// Its number.
        generation: u64,
    },
    /// A new generation was refused; the old one stays.
    ReloadRefused {
        /// Why.
        error: &'a str,
    },
}

/// How a recipient of a spooled message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// An upstream took it.
    Delivered,
    /// Given up: an upstream or a policy refused it. The sender is told, unless nobody wants that.
    Bounced,
    /// Given up: it was not delivered in time. The sender is told, unless nobody wants that.
    Expired,
    /// An operator took it out.
    Removed,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Delivered, Self::Bounced, Self::Expired, Self::Removed];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Removed => "removed",
        }
    }
}

/// What became of a message's recipients when its client was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The upstream took it.
    Delivered,
    /// The spool has it.
    Spooled,
    /// The upstream refused it, others of its message were taken: the sender gets a bounce.
    Bounced,
    /// `4xx`, by the relay or the upstream: it stays with the sender.
    Deferred,
    /// `5xx`, by the relay or the upstream.
    Refused,
    /// The upstream's reply was lost: `451`, it may arrive twice.
    InDoubt,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Delivered,
        Self::Spooled,
        Self::Bounced,
        Self::Deferred,
        Self::Refused,
        Self::InDoubt,
    ];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Spooled => "spooled",
            Self::Bounced => "bounced",
            Self::Deferred => "deferred",
            Self::Refused => "refused",
            Self::InDoubt => "in_doubt",
        }
    }
}

/// Why a client was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// `limits.connections`.
    TooMany,
    /// `limits.connections_per_client`.
    TooManyFromClient,
    /// The relay is stopping.
    Stopping,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TooMany, Self::TooManyFromClient, Self::Stopping];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooManyFromClient => "too_many_from_client",
            Self::Stopping => "stopping",
        }
    }
}

/// Why the relay ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Nothing came for too long.
    Timeout,
    /// A message came too slowly.
    TooSlow,
    /// The client did not speak SMTP, or broke its rules too often.
    Misbehaved,
    /// The relay is stopping.
    Stopping,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Timeout, Self::TooSlow, Self::Misbehaved, Self::Stopping];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::TooSlow => "too_slow",
            Self::Misbehaved => "misbehaved",
            Self::Stopping => "stopping",
        }
    }
}
