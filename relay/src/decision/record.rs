//! Questions to policies and their answers, owned: what the audit repeats, the decision log keeps,
//! a case states, a replay asks again and a shadow is asked beside. Floor 0.
//!
//! In JSON and TOML they have the names of the contract. A transaction may leave out what a case
//! is not about: it is then that of an ordinary message.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use super::{
    AttemptOutcome, FreezeDecision, InstanceView, Lesson, LimitSet, RouteDecision, Transaction,
    UpstreamState,
};
use crate::plan::{Phase, Timestamp, Window, rfc3339};

/// A question, borrowed.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    /// `freeze.decide`.
    Decide(&'a Transaction<'a>),
    /// `routing.route`.
    Route(&'a Transaction<'a>),
    /// `throttling.limits`.
    Limits {
        /// The message.
        tx: &'a Transaction<'a>,
        /// Where it would go.
        upstream: &'a str,
        /// Indexes of the recipients that would go there.
        recipients: &'a [u32],
    },
    /// `throttling.observe`.
    Observe(&'a AttemptOutcome<'a>),
}

impl Ask<'_> {
    /// The message that it is about; an outcome is about none.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Decide(tx) | Self::Route(tx) | Self::Limits { tx, .. } => Some(tx.id),
            Self::Observe(_) => None,
        }
    }

    /// The time of the question.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Decide(tx) | Self::Route(tx) | Self::Limits { tx, .. } => tx.now,
            Self::Observe(outcome) => outcome.now,
        }
    }

    /// The question with all that it borrows.
    pub fn to_question(&self) -> Question {
        match *self {
            Self::Decide(tx) => Question::Decide { transaction: TransactionRecord::new(tx) },
            Self::Route(tx) => Question::Route { transaction: TransactionRecord::new(tx) },
            Self::Limits { tx, upstream, recipients } => Question::Limits {
                transaction: TransactionRecord::new(tx),
                upstream: upstream.to_owned(),
                recipients: recipients.to_vec(),
            },
            Self::Observe(outcome) => Question::Observe {
                upstream: outcome.upstream.to_owned(),
                keys: outcome.keys.to_vec(),
                code: outcome.code,
                text: outcome.text.to_owned(),
                now: outcome.now,
            },
        }
    }
}

/// A question, owned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// `freeze.decide`.
    Decide {
        /// The message.
        #[serde(default)]
        transaction: TransactionRecord,
    },
    /// `routing.route`.
    Route {
        /// The message.
        #[serde(default)]
        transaction: TransactionRecord,
    },
    /// `throttling.limits`.
    Limits {
        /// The message.
        #[serde(default)]
        transaction: TransactionRecord,
        /// Where it would go.
        upstream: String,
        /// Indexes of the recipients that would go there.
        recipients: Vec<u32>,
    },
    /// `throttling.observe`.
    Observe {
        /// Where it went.
        upstream: String,
        /// Keys of this policy that were charged.
        keys: Vec<String>,
        /// Code of the final reply; 0 when there was none.
        code: u16,
        /// Text of the final reply.
        text: String,
        /// When.
        #[serde(with = "rfc3339")]
        now: Timestamp,
    },
}

impl Question {
    /// Hands the question, borrowed, to `ask`.
    pub fn with<R>(&self, ask: impl FnOnce(Ask<'_>) -> R) -> R {
        match self {
            Self::Decide { transaction } => transaction.with(|tx| ask(Ask::Decide(tx))),
            Self::Route { transaction } => transaction.with(|tx| ask(Ask::Route(tx))),
            Self::Limits { transaction, upstream, recipients } => {
                transaction.with(|tx| ask(Ask::Limits { tx, upstream, recipients }))
            }
            Self::Observe { upstream, keys, code, text, now } => {
                ask(Ask::Observe(&AttemptOutcome { upstream, keys, code: *code, text, now: *now }))
            }
        }
    }

    /// The function of the contract that is asked.
    pub fn function(&self) -> &'static str {
        match self {
            Self::Decide { .. } => "freeze.decide",
            Self::Route { .. } => "routing.route",
            Self::Limits { .. } => "throttling.limits",
            Self::Observe { .. } => "throttling.observe",
        }
    }

    /// The message that it is about; an outcome is about none.
    pub fn transaction(&self) -> Option<&TransactionRecord> {
        match self {
            Self::Decide { transaction }
            | Self::Route { transaction }
            | Self::Limits { transaction, .. } => Some(transaction),
            Self::Observe { .. } => None,
        }
    }
}

/// A transaction with all that it borrows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransactionRecord {
    /// The relay's id of the message.
    pub id: String,
    /// The time of the question.
    #[serde(with = "rfc3339")]
    pub now: Timestamp,
    /// When the message came in; none: at `now`.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub received: Option<Timestamp>,
    /// Address of the client.
    pub client: IpAddr,
    /// Reverse path; empty for `<>`.
    pub sender: String,
    /// Forward paths.
    pub recipients: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// Attempts made so far.
    pub attempts: u32,
    /// The instance that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceRecord>,
    /// 0 to 9999.
    pub bucket: u32,
    /// Names and values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, String)>,
    /// The upstreams whose state was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamState>,
}

impl Default for TransactionRecord {
    /// An ordinary message of no instance, at its first attempt.
    fn default() -> Self {
        Self {
            id: "01JZ3N6V8C4S".to_owned(),
            now: Timestamp(1_768_888_800_000),
            received: None,
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            sender: "news@mkt.acme.example".to_owned(),
            recipients: vec!["jo@customer.example".to_owned()],
            size: 10_240,
            attempts: 0,
            instance: None,
            bucket: 4200,
            attributes: Vec::new(),
            upstreams: Vec::new(),
        }
    }
}

/// An instance as a policy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceRecord {
    /// Its name in the plan.
    pub name: String,
    /// What it is of.
    pub product: String,
    /// Its environment.
    pub environment: String,
    /// Its phase.
    #[serde(with = "phase")]
    pub phase: Phase,
    /// The window of the wave that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowRecord>,
    /// Upstream before its window.
    pub before: String,
    /// Upstream after it.
    pub after: String,
}

impl Default for InstanceRecord {
    fn default() -> Self {
        Self {
            name: "acme-prod-1".to_owned(),
            product: "campaign-classic".to_owned(),
            environment: "production".to_owned(),
            phase: Phase::Unscheduled,
            window: None,
            before: "legacy".to_owned(),
            after: "cloud".to_owned(),
        }
    }
}

/// A window: `[opens, closes)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowRecord {
    /// Name of its wave.
    pub wave: String,
    /// Begin.
    #[serde(with = "rfc3339")]
    pub opens: Timestamp,
    /// End.
    #[serde(with = "rfc3339")]
    pub closes: Timestamp,
}

impl TransactionRecord {
    /// The record of a transaction.
    pub fn new(tx: &Transaction<'_>) -> Self {
        Self {
            id: tx.id.to_owned(),
            now: tx.now,
            received: (tx.received != tx.now).then_some(tx.received),
            client: tx.client,
            sender: tx.sender.to_owned(),
            recipients: tx.recipients.iter().map(|&recipient| recipient.to_owned()).collect(),
            size: tx.size,
            attempts: tx.attempts,
            instance: tx.instance.map(|view| InstanceRecord {
                name: view.name.to_owned(),
                product: view.product.to_owned(),
                environment: view.environment.to_owned(),
                phase: view.phase,
                window: view.window.map(|window| WindowRecord {
                    wave: window.wave.clone(),
                    opens: window.opens,
                    closes: window.closes,
                }),
                before: view.before.to_owned(),
                after: view.after.to_owned(),
            }),
            bucket: tx.bucket,
            attributes: tx.attributes.to_vec(),
            upstreams: tx.upstreams.to_vec(),
        }
    }

    /// Hands the transaction, borrowed, to `ask`.
    pub fn with<R>(&self, ask: impl FnOnce(&Transaction<'_>) -> R) -> R {
        let recipients: Vec<&str> = self.recipients.iter().map(String::as_str).collect();
        let window = self.instance.as_ref().and_then(|instance| instance.window.as_ref());
        let window = window.map(|window| Window {
            wave: window.wave.clone(),
            opens: window.opens,
            closes: window.closes,
        });
        ask(&Transaction {
            id: &self.id,
            now: self.now,
            received: self.received.unwrap_or(self.now),
            client: self.client,
            sender: &self.sender,
            recipients: &recipients,
            size: self.size,
            attempts: self.attempts,
            instance: self.instance.as_ref().map(|instance| InstanceView {
                name: &instance.name,
                product: &instance.product,
                environment: &instance.environment,
                phase: instance.phase,
                window: window.as_ref(),
                before: &instance.before,
                after: &instance.after,
            }),
            bucket: self.bucket,
            attributes: &self.attributes,
            upstreams: &self.upstreams,
        })
    }
}

/// An answer, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Of `freeze.decide`.
    Decide(FreezeDecision),
    /// Of `routing.route`.
    Route(RouteDecision),
    /// Of `throttling.limits`.
    Limits(LimitSet),
    /// Of `throttling.observe`.
    Observe(Vec<Lesson>),
}

impl fmt::Display for Answer {
    /// For people. Texts of plugins are as they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decide(decision) => decision.fmt(f),
            Self::Route(decision) => decision.fmt(f),
            Self::Limits(limits) => limits.fmt(f),
            Self::Observe(lessons) if lessons.is_empty() => f.write_str("no lesson"),
            Self::Observe(lessons) => {
                let lessons: Vec<String> = lessons.iter().map(Lesson::to_string).collect();
                f.write_str(&lessons.join("; "))
            }
        }
    }
}

impl From<FreezeDecision> for Answer {
    fn from(decision: FreezeDecision) -> Self {
        Self::Decide(decision)
    }
}

impl From<RouteDecision> for Answer {
    fn from(decision: RouteDecision) -> Self {
        Self::Route(decision)
    }
}

impl From<LimitSet> for Answer {
    fn from(limits: LimitSet) -> Self {
        Self::Limits(limits)
    }
}

impl From<Vec<Lesson>> for Answer {
    fn from(lessons: Vec<Lesson>) -> Self {
        Self::Observe(lessons)
    }
}

/// The answer was to another question: it comes back.
macro_rules! answer_as {
    ($($variant:ident => $kind:ty),*) => {$(
        impl TryFrom<Answer> for $kind {
            type Error = Answer;

            fn try_from(answer: Answer) -> Result<Self, Answer> {
                match answer {
                    Answer::$variant(answer) => Ok(answer),
                    other => Err(other),
                }
            }
        }
    )*};
}

answer_as! {
    Decide => FreezeDecision, Route => RouteDecision, Limits => LimitSet, Observe => Vec<Lesson>
}

impl Answer {
    /// That of a policy that changes nothing: what there is where a policy is not.
    pub fn neutral(question: &Question) -> Self {
        match question {
            Question::Decide { .. } => Self::Decide(FreezeDecision::Proceed),
            Question::Route { .. } => Self::Route(RouteDecision::Abstain),
            Question::Limits { .. } => Self::Limits(LimitSet::default()),
            Question::Observe { .. } => Self::Observe(Vec::new()),
        }
    }
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// An answer.
    Answer(Answer),
    /// None; the policy's fail mode applies.
    Failure {
        /// How it failed: `trap`, `timeout`, `memory`, `bad-answer`, `parked` or `host`.
        kind: String,
        /// What exactly, for people.
        detail: String,
    },
}

impl fmt::Display for Said {
    /// For people, as an [`Answer`] is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => answer.fmt(f),
            Self::Failure { kind, detail } => write!(f, "failed: {kind}: {detail}"),
        }
    }
}

/// How two answers to one question differ, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Not at all.
    Same,
    /// In words for people only.
    Text,
    /// In limits or lessons.
    LimitsOnly,
    /// In where it goes.
    Route,
    /// It goes sooner, or is refused less.
    Softer,
    /// It goes later, or is refused more.
    Harder,
    /// The new one fails.
    Error,
    /// The old one is no answer that could be compared.
    NotReplayable,
}

impl Class {
    /// All, the mildest first.
    pub const ALL: [Self; 8] = [
        Self::Same,
        Self::Text,
        Self::LimitsOnly,
        Self::Route,
        Self::Softer,
        Self::Harder,
        Self::Error,
        Self::NotReplayable,
    ];

    /// Its name in files, metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Text => "text",
            Self::LimitsOnly => "limits-only",
            Self::Route => "route",
            Self::Softer => "softer",
            Self::Harder => "harder",
            Self::Error => "error",
            Self::NotReplayable => "not-replayable",
        }
    }

    /// Of a new answer beside an old one.
    pub fn of(old: &Said, new: &Said) -> Self {
        match (old, new) {
            (Said::Answer(old), Said::Answer(new)) => Self::of_answers(old, new),
            (Said::Answer(_), Said::Failure { .. }) => Self::Error,
            (Said::Failure { .. }, _) => Self::NotReplayable,
        }
    }

    fn of_answers(old: &Answer, new: &Answer) -> Self {
        match (old, new) {
            (old, new) if old == new => Self::Same,
            (Answer::Decide(old), Answer::Decide(new)) => Self::of_decisions(old, new),
            (Answer::Route(_), Answer::Route(_)) => Self::Route,
            (Answer::Limits(_), Answer::Limits(_)) | (Answer::Observe(_), Answer::Observe(_)) => {
                Self::LimitsOnly
            }
            _ => Self::NotReplayable,
        }
    }

    fn of_decisions(old: &FreezeDecision, new: &FreezeDecision) -> Self {
        use FreezeDecision::Hold;
        match old.strictness().cmp(&new.strictness()) {
            std::cmp::Ordering::Less => return Self::Harder,
            std::cmp::Ordering::Greater => return Self::Softer,
            std::cmp::Ordering::Equal => {}
        }
        match (old, new) {
            // Held without a time is held the longest.
            (Hold { until: old, .. }, Hold { until: new, .. }) if old != new => {
                let end = |until: &Option<Timestamp>| until.map_or(u64::MAX, |until| until.0);
                if end(new) > end(old) { Self::Harder } else { Self::Softer }
            }
            _ => Self::Text,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Phases by their names.
mod phase {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::plan::Phase;

    pub(super) fn serialize<S: Serializer>(phase: &Phase, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(phase.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Phase, D::Error> {
        let text = String::deserialize(from)?;
        let found = Phase::ALL.into_iter().find(|phase| phase.as_str() == text);
        found.ok_or_else(|| {
            let all = Phase::ALL.map(Phase::as_str).join(", ");
            D::Error::custom(format!("{text:?} is no phase; there are {all}"))
        })
    }
}

#[cfg(test)]
mod tests;
