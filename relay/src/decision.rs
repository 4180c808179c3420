//! What policies are asked and what they answer, in the relay's own types. Floor 0.
//!
//! The contract in `wit/` has its own records; `policy::bindings` is the one place that turns
//! one into the other. Nothing else in the relay sees a type of the contract. Questions here borrow;
//! `record` has them owned, with their answers, for what keeps or compares them.

pub mod record;

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::plan::{Phase, Timestamp, Window, rfc3339};

/// What one policy is asked about a message. Borrowed from the message and the plan, so that
/// asking copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// The relay's id of the message, the same at every attempt.
    pub id: &'a str,
    /// The time of this question.
    pub now: Timestamp,
    /// When the message came in.
    pub received: Timestamp,
    /// Address of the client that handed the message in.
    pub client: IpAddr,
    /// Reverse path; empty for `<>`.
    pub sender: &'a str,
    /// Forward paths.
    pub recipients: &'a [&'a str],
    /// Bytes of the message.
    pub size: u64,
    /// Attempts made so far.
    pub attempts: u32,
    /// The instance that the message belongs to, with its phase now.
    pub instance: Option<InstanceView<'a>>,
    /// 0 to 9999, stable for instance, sender and first recipient.
    pub bucket: u32,
    /// Everything that any loaded policy asked for; each policy gets only what it asked for.
    pub attributes: &'a [(String, String)],
    /// The state of each upstream that any loaded policy asked for.
    pub upstreams: &'a [UpstreamState],
}

/// An upstream as policies see it; the counts are of the last minute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamState {
    /// Its name.
    pub name: String,
    /// Whether a target of it takes mail, as far as is known.
    pub up: bool,
    /// Attempts that ended.
    pub attempts: u32,
    /// Those answered 4xx.
    pub deferred: u32,
    /// Those answered 5xx.
    pub refused: u32,
    /// Those that ended without an answer.
    pub broken: u32,
}

/// An instance as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct InstanceView<'a> {
    /// Its name in the plan.
    pub name: &'a str,
    /// What it is of.
    pub product: &'a str,
    /// Its environment.
    pub environment: &'a str,
    /// Its phase at `Transaction::now`.
    pub phase: Phase,
    /// The window of the wave that it is in.
    pub window: Option<&'a Window>,
    /// Upstream before the window.
    pub before: &'a str,
    /// Upstream after the window.
    pub after: &'a str,
}

/// A reply that a policy gives, already checked: the code's class fits the decision, and the
/// text is one line of printable characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PolicyReply {
    /// 400 to 599.
    pub code: u16,
    /// Enhanced status code, such as `4.7.1`.
    pub enhanced: String,
    /// One line, at most 400 bytes.
    pub text: String,
}

impl fmt::Display for PolicyReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.code, self.enhanced, self.text)
    }
}

/// What a freeze policy says of one message. The order is by strictness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FreezeDecision {
    /// It may go.
    Proceed,
    /// It may not go before `until`, or, without one, before something changes.
    Hold {
        /// When to ask again.
        #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
        /// Why, for people.
        reason: String,
    },
    /// It stays in the sender's own queue.
    Defer(PolicyReply),
    /// It is refused.
    Refuse(PolicyReply),
}

impl fmt::Display for FreezeDecision {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proceed => f.write_str("proceed"),
            Self::Hold { until: Some(until), reason } => write!(f, "hold until {until}: {reason}"),
            Self::Hold { until: None, reason } => write!(f, "hold: {reason}"),
            Self::Defer(reply) => write!(f, "defer: {reply}"),
            Self::Refuse(reply) => write!(f, "refuse: {reply}"),
        }
    }
}

impl FreezeDecision {
    /// 0 for `Proceed` to 3 for `Refuse`: of several answers the strictest wins.
    pub fn strictness(&self) -> u8 {
        match self {
            Self::Proceed => 0,
            Self::Hold { .. } => 1,
            Self::Defer(_) => 2,
            Self::Refuse(_) => 3,
        }
    }
}

/// An upstream by name, with what to use while all of its targets are down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RouteTarget {
    /// Name of the upstream.
    pub upstream: String,
    /// Names of upstreams to try, in this order, only while all targets of `upstream` are down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<String>,
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.upstream)?;
        if !self.fallbacks.is_empty() {
            write!(f, " (while it is down: {})", self.fallbacks.join(", "))?;
        }
        Ok(())
    }
}

/// Some of a message's recipients and where they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RouteShare {
    /// Indexes into the transaction's recipients.
    pub recipients: Vec<u32>,
    /// Where they go.
    pub target: RouteTarget,
}

/// What a routing policy says of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RouteDecision {
    /// No opinion.
    Abstain,
    /// Every recipient goes there.
    All(RouteTarget),
    /// Every recipient is in exactly one share (checked).
    Split(Vec<RouteShare>),
}

impl fmt::Display for RouteDecision {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstain => f.write_str("abstain"),
            Self::All(target) => write!(f, "to {target}"),
            Self::Split(shares) => {
                f.write_str("split:")?;
                for (index, share) in shares.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(f, "{comma} {} recipients to {}", share.recipients.len(), share.target)?;
                }
                Ok(())
            }
        }
    }
}

/// `quantity` each `per_ms`, at most `burst` at once; this attempt takes `cost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RateLimit {
    /// The cell that is charged; it belongs to the policy that named it.
    pub key: String,
    /// How many each period; at least 1.
    pub quantity: u64,
    /// The period in milliseconds; at least 1.
    pub per_ms: u64,
    /// How many at once; at least 1.
    pub burst: u64,
    /// What is taken; 1 to `burst`.
    pub cost: u64,
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, quantity, per_ms, burst, cost } = self;
        write!(f, "{key}: {quantity} each {per_ms} ms, {burst} at once, this takes {cost}")
    }
}

/// At most `limit` attempts with this key at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConcurrencyLimit {
    /// The count that is charged; it belongs to the policy that named it.
    pub key: String,
    /// At least 1.
    pub limit: u32,
}

impl fmt::Display for ConcurrencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at a time", self.key, self.limit)
    }
}

/// All that one throttling policy wants charged for an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LimitSet {
    /// Rate limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<RateLimit>,
    /// Concurrency limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concurrency: Vec<ConcurrencyLimit>,
}

impl fmt::Display for LimitSet {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = self.rates.iter().map(ToString::to_string);
        let all: Vec<String> =
            rates.chain(self.concurrency.iter().map(ToString::to_string)).collect();
        f.write_str(if all.is_empty() { "no limit" } else { "" })?;
        f.write_str(&all.join("; "))
    }
}

/// What came of an attempt, told to the policies that subscribed.
#[derive(Clone, Copy, Debug)]
pub struct AttemptOutcome<'a> {
    /// Where it went.
    pub upstream: &'a str,
    /// Keys of this policy that were charged.
    pub keys: &'a [String],
    /// Code of the final reply; 0 when there was none.
    pub code: u16,
    /// Text of the final reply.
    pub text: &'a str,
    /// When.
    pub now: Timestamp,
}

/// What a throttling policy learned from an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Lesson {
    /// Nothing is charged on `key` before `until`: attempts that name it wait.
    Pause {
        /// The cell.
        key: String,
        /// End of the pause.
        #[serde(with = "rfc3339")]
        until: Timestamp,
    },
    /// Until `until` the rate of `key` is divided by `factor` thousandths.
    Slow {
        /// The cell.
        key: String,
        /// Thousandths, at least 1000.
        factor: u32,
        /// End.
        #[serde(with = "rfc3339")]
        until: Timestamp,
    },
}

impl fmt::Display for Lesson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pause { key, until } => write!(f, "pause {key} until {until}"),
            Self::Slow { key, factor, until } => {
                write!(f, "slow {key} by {factor}/1000 until {until}")
            }
        }
    }
}

/// A number of these texts that is the same on every machine and in every run (FNV-1a, 64 bits).
/// For shares and samples, not against who picks the texts.
pub(crate) fn stable_hash<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let bytes = texts.into_iter().flatten();
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are weak; fold the high ones in.
    hash ^ (hash >> 32)
}
