//! What `[[upstream]]` says: the types; `read` has their keys. Floor 1.

pub(super) mod read;

use std::{path::PathBuf, time::Duration};

use super::{LinkUpstream, Original, Target, TlsFiles, UpstreamAuth, UpstreamIdentity};

/// `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Unique name.
    pub name: String,
    /// Addresses and names; at least one.
    pub targets: Vec<Target>,
    /// Instead of targets: mail goes where its client wanted to go.
    pub original: Option<Original>,
    /// Its targets are gateways of a link.
    pub link: Option<LinkUpstream>,
    /// How messages are handed over.
    pub handoff: Handoff,
    /// Where mail goes that no routing policy has an opinion of. At most one; an only upstream
    /// is it.
    pub default: bool,
    /// Connections at once, over all targets (default 50).
    pub connections: usize,
    /// Idle connections kept, over all targets (default: as `connections`).
    pub idle_connections: usize,
    /// How long an idle connection is kept (default 30 s).
    pub idle_timeout: Duration,
    /// Messages on one connection before it is closed (default 1000).
    pub messages_per_connection: u32,
    /// Time for connecting and greeting (default 10 s).
    pub connect_timeout: Duration,
    /// Time for each reply but the final one (default 60 s).
    pub reply_timeout: Duration,
    /// Time for the final reply (default 10 min, RFC 5321 4.5.3.2.6).
    pub final_timeout: Duration,
    /// Failures in a row that eject a target (default 5).
    pub eject_after: u32,
    /// First pause of an ejected target; doubles up to `eject_max` (default 1 s).
    pub eject_for: Duration,
    /// Longest pause of an ejected target (default 60 s).
    pub eject_max: Duration,
    /// `auto` goes direct while replies come within this time (default 100 ms).
    pub direct_budget: Duration,
    /// Whether it is asked about each recipient before that is answered (default: it is not).
    pub verify: Verify,
    /// What becomes of a new message that this upstream defers with a `4xx` (default: spool).
    pub deferred: Deferred,
    /// First pause before a spooled message is tried again; doubles up to `retry_max` (1 min).
    pub retry_first: Duration,
    /// Longest pause before a spooled message is tried again (default 1 h).
    pub retry_max: Duration,
    /// Age at which a spooled message is given up; time on hold does not count (default 5 days,
    /// RFC 5321 4.5.4.1).
    pub expire: Duration,
    /// What the sender hears of a message that cannot be delivered (default: a notification).
    pub bounces: Bounces,
    /// TLS with its targets.
    pub tls: Option<UpstreamTls>,
    /// Whom it hears that mail is from.
    pub identity: UpstreamIdentity,
    /// How the relay logs in, if it does.
    pub auth: Option<UpstreamAuth>,
    /// Extensions to take for granted instead of asking, such as `["8BITMIME", "DSN"]`.
    pub extensions: Option<Vec<String>>,
    /// SIZE to take for granted with `extensions` (0: no limit stated).
    pub size: Option<u64>,
}

/// `upstream.tls`, where it is not `"none"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// How TLS begins, and whether it must.
    pub mode: UpstreamTlsMode,
    /// The authorities that a target's certificate must be from; none: those of the system.
    pub ca: Option<PathBuf>,
    /// What the targets are called: asked for by SNI, and looked for in their certificate.
    pub name: Option<String>,
    /// A target must be who it should be. Never with `opportunistic`, where nobody could say who.
    pub verify: bool,
    /// What is shown to a target that asks for it.
    pub identity: Option<TlsFiles>,
}

impl UpstreamTls {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identity = self.identity.iter().flat_map(|one| [&one.certificate, &one.key]);
        self.ca.iter().chain(identity)
    }
}

/// How TLS with an upstream begins, and whether it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamTlsMode {
    /// By STARTTLS where it is offered; without where it is not, or is refused.
    Opportunistic,
    /// By STARTTLS.
    Required,
    /// At once (RFC 8314).
    Implicit,
}

/// How messages are handed to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handoff {
    /// The default: direct while the upstream answers fast and a connection is free, else queued.
    Auto,
    /// While the client waits.
    Direct,
    /// From the spool.
    Queued,
}

/// Whether an upstream is asked about each recipient while the client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// It is not: every recipient is taken.
    None,
    /// Each `RCPT` is answered as it answers. Policies and the plan know no header then.
    Rcpt,
}

/// What becomes of a new message that an upstream defers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deferred {
    /// The spool takes it; the client gets `250`.
    Spool,
    /// The client gets the `4xx`.
    Pass,
}

/// What the sender hears of a message that cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounces {
    /// A delivery status notification (RFC 3464).
    Send,
    /// Nothing; there is an event.
    Event,
}
