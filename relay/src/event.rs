//! What happened, as plain values. Floor 0.
//!
//! Logic emits events and knows nothing of metrics or logs; `telemetry` turns them into both.

mod reason;

pub use reason::{Busy, Ended, LoginFailure, Refused, TlsFailure};

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use wavegate_smtp::{MessageFault, Rcpt, Reply};

use crate::{
    message::{MessageId, Secured},
    plan::Timestamp,
};

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
    /// A link has one more connection with a gateway.
    LinkOpened {
        /// The upstream that is the link.
        upstream: &'a str,
        /// Where the gateway is.
        target: SocketAddr,
        /// What it calls itself.
        gateway: &'a str,
    },
    /// A connection of a link was lost: it was not the relay that ended it.
    LinkLost {
        /// The upstream that is the link.
        upstream: &'a str,
        /// Where the gateway is, or was.
        target: SocketAddr,
        /// Why.
        error: &'a str,
    },
    /// A client was turned away at once.
    ConnectionRefused {
        /// Where it came from.
        client: IpAddr,
        /// Why.
        reason: Refused,
    },
    /// A client may not begin a message, or name another recipient, now.
    TransactionRefused {
        /// Where it came from.
        client: IpAddr,
        /// Why.
        reason: Busy,
    },
    /// A session was ended by the relay.
    SessionEnded {
        /// Where it came from.
        client: IpAddr,
        /// Why.
        reason: Ended,
    },
    /// A TLS session with a client has begun.
    TlsBegun {
        /// Name of the listener.
        listener: &'a str,
        /// What was agreed on.
        secured: Secured,
    },
    /// A TLS handshake with a client failed; its connection is closed.
    TlsFailed {
        /// Name of the listener.
        listener: &'a str,
        /// Where it came from.
        client: IpAddr,
        /// Why.
        failure: TlsFailure,
        /// Why, in more words.
        error: &'a str,
    },
    /// A client has logged in.
    LoggedIn {
        /// Name of the listener.
        listener: &'a str,
        /// Where it came from.
        client: IpAddr,
        /// As whom.
        user: &'a str,
    },
    /// A client has not logged in.
    LoginFailed {
        /// Name of the listener.
        listener: &'a str,
        /// Where it came from.
        client: IpAddr,
        /// Who it says that it is.
        user: &'a str,
        /// Why.
        failure: LoginFailure,
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
        /// Where it came from.
        client: IpAddr,
        /// Where it wanted to go, before it was redirected here.
        destination: Option<SocketAddr>,
        /// Name of the listener that took it.
        listener: &'a str,
        /// Who its client has logged in as.
        user: Option<&'a str>,
        /// The edge that it came from, where that was over a link.
        via: Option<Via<'a>>,
        /// Envelope sender; empty for `<>`.
        sender: &'a str,
        /// Who it is for.
        to: &'a [Rcpt],
    },
    /// What became of a received message.
    Settled {
        /// Its instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Where it went or was to go; none when it never got a route.
        upstream: Option<&'a str>,
        /// The target that answered.
        target: Option<SocketAddr>,
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
    /// An upstream was asked about a recipient.
    RecipientVerified {
        /// The upstream.
        upstream: &'a str,
        /// The message that is to come.
        id: MessageId,
        /// What it said.
        reply: &'a Reply,
    },
    /// An upstream could not be asked about a recipient, which was taken.
    RecipientUnverified {
        /// The upstream.
        upstream: &'a str,
        /// The message that is to come.
        id: MessageId,
        /// Why.
        error: &'a str,
    },
    /// A message is in the spool and stays there until somebody lets it go.
    Held {
        /// Its instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Recipients that wait.
        recipients: u64,
        /// Who holds it: `window`, `policy` or `operator`.
        by: &'static str,
        /// Why, where somebody said so.
        reason: &'a str,
        /// Until when a policy holds it.
        until: Option<Timestamp>,
    },
    /// A message is in the spool and is tried again later.
    Deferred {
        /// Its instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Recipients that wait.
        recipients: u64,
        /// Where it was to go.
        upstream: Option<&'a str>,
        /// The target that answered.
        target: Option<SocketAddr>,
        /// The reply, or what went wrong.
        reason: &'a str,
        /// Attempts so far.
        attempts: u32,
        /// When it is tried again.
        until: Timestamp,
    },
    /// An operator let a message go that he held.
    LetGo {
        /// Its instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Recipients that wait.
        recipients: u64,
    },
    /// An operator took a message out, without a word to its sender.
    Removed {
        /// Its instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// Recipients that waited.
        recipients: u64,
    },
    /// A notification for a sender was written; it goes the way of other messages.
    Notification {
        /// The instance on whose behalf.
        instance: Option<&'a str>,
        /// The notification.
        id: MessageId,
        /// The message that it is about.
        about: MessageId,
    },
    /// The end of data was written and the reply was lost: the message may arrive twice.
    InDoubt {
        /// The instance.
        instance: Option<&'a str>,
        /// The message.
        id: MessageId,
        /// The upstream.
        upstream: &'a str,
        /// The target that may have it.
        target: Option<SocketAddr>,
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
        /// The target that answered.
        target: Option<SocketAddr>,
        /// The recipient.
        recipient: &'a str,
        /// Its end.
        end: End,
        /// The last reply.
        reply: Option<&'a Reply>,
        /// Since its receipt.
        age: Duration,
        /// For how much of that it was held.
        held: Duration,
    },
    /// A window has ended: what it held is let out.
    Released {
        /// The instance.
        instance: &'a str,
        /// How many messages.
        messages: u64,
    },
    /// A wave has come a step further.
    Wave {
        /// Its id.
        wave: &'a str,
        /// The step.
        step: WaveStep<'a>,
    },
    /// An operator ordered something of a wave, and it was obeyed.
    Ordered {
        /// The wave.
        wave: &'a str,
        /// What, such as `extend`.
        order: &'a str,
        /// Who.
        by: &'a str,
        /// Why, in the operator's words.
        reason: &'a str,
        /// Whether anything changed.
        changed: bool,
    },
    /// The wall clock and the boot clock parted: no window ends by the clock now.
    ClockSuspect {
        /// By how much the wall clock was stepped, in milliseconds.
        apart_ms: i64,
    },
    /// They agree again, or an operator says that the wall clock is right.
    ClockAgrees,
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
    /// A roll-out of a plugin has come to another stage.
    Plugin {
        /// The policy.
        policy: &'a str,
        /// BLAKE3 of the component.
        digest: &'a str,
        /// The stage.
        stage: &'static str,
        /// Why.
        why: &'a str,
    },
    /// A new generation was refused; the old one stays.
    ReloadRefused {
        /// Why.
        error: &'a str,
    },
}

/// By which way a message came over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via<'a> {
    /// The edge's name.
    pub edge: &'a str,
    /// What it calls the message.
    pub id: &'a str,
}

/// A step of a wave's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaveStep<'a> {
    /// Freezing has begun.
    Freezing {
        /// Instances in it.
        instances: u64,
    },
    /// The window is open.
    Frozen,
    /// Nothing is in flight any more.
    Barrier {
        /// Milliseconds since freezing began.
        after_ms: u64,
    },
    /// Something is still in flight.
    Blocked {
        /// Attempts before their end of data.
        uncommitted: u64,
        /// Attempts that wait for a reply.
        in_doubt: u64,
    },
    /// The targets that its mail goes to answer.
    Checked,
    /// Targets do not answer as they should.
    ProbesFailed {
        /// Probes that failed in this round.
        failed: u64,
        /// Of so many.
        probes: u64,
        /// What the first of them found.
        first: &'a str,
    },
    /// It closes later.
    Extended {
        /// When, in milliseconds since 1970.
        until: u64,
    },
    /// What was held is let out.
    Releasing {
        /// Messages that were held.
        messages: u64,
    },
    /// It was given up: what was held goes where it went before.
    RolledBack {
        /// Messages that were held.
        messages: u64,
    },
    /// All of that has been let out.
    Drained {
        /// Milliseconds since it began to be.
        after_ms: u64,
    },
    /// Its window was over before this relay knew of it: it counts as migrated.
    WasOver,
    /// It cannot be written down how far it has come: nothing is released before it can.
    NotWritten {
        /// Why.
        error: &'a str,
    },
}

impl WaveStep<'_> {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Freezing { .. } => "freezing",
            Self::Frozen => "frozen",
            Self::Barrier { .. } => "barrier",
            Self::Blocked { .. } => "blocked",
            Self::Checked => "checked",
            Self::ProbesFailed { .. } => "probes_failed",
            Self::Extended { .. } => "extended",
            Self::Releasing { .. } => "releasing",
            Self::RolledBack { .. } => "rolled_back",
            Self::Drained { .. } => "drained",
            Self::WasOver => "was_over",
            Self::NotWritten { .. } => "not_written",
        }
    }
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
