//! A question and its answer as bytes in one buffer: what a worker copies for a shadow. Floor 2.
//!
//! They never leave the process. One buffer that is written from front to back, and used again, costs a
//! worker a tenth of what owned values do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    decision::{
        ConcurrencyLimit, FreezeDecision, Lesson, LimitSet, PolicyReply, RateLimit, RouteDecision,
        RouteShare, RouteTarget, Transaction, UpstreamState,
        record::{Answer, Ask, InstanceRecord, Question, TransactionRecord, WindowRecord},
    },
    plan::{Phase, Timestamp},
};

/// An answer, borrowed.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) enum Heard<'a> {
    Decide(&'a FreezeDecision),
    Route(&'a RouteDecision),
    Limits(&'a LimitSet),
    Observe(&'a Vec<Lesson>),
}

impl<'a> From<&'a FreezeDecision> for Heard<'a> {
    fn from(decision: &'a FreezeDecision) -> Self {
        Self::Decide(decision)
    }
}

impl<'a> From<&'a RouteDecision> for Heard<'a> {
    fn from(decision: &'a RouteDecision) -> Self {
        Self::Route(decision)
    }
}

impl<'a> From<&'a LimitSet> for Heard<'a> {
    fn from(limits: &'a LimitSet) -> Self {
        Self::Limits(limits)
    }
}

impl<'a> From<&'a Vec<Lesson>> for Heard<'a> {
    fn from(lessons: &'a Vec<Lesson>) -> Self {
        Self::Observe(lessons)
    }
}

impl<'a> From<&'a Answer> for Heard<'a> {
    fn from(answer: &'a Answer) -> Self {
        match answer {
            Answer::Decide(decision) => Self::Decide(decision),
            Answer::Route(decision) => Self::Route(decision),
            Answer::Limits(limits) => Self::Limits(limits),
            Answer::Observe(lessons) => Self::Observe(lessons),
        }
    }
}

impl Heard<'_> {
    /// The answer with all that it borrows.
    pub(in crate::policy) fn to_answer(self) -> Answer {
        match self {
            Self::Decide(decision) => Answer::Decide(decision.clone()),
            Self::Route(decision) => Answer::Route(decision.clone()),
            Self::Limits(limits) => Answer::Limits(limits.clone()),
            Self::Observe(lessons) => Answer::Observe(lessons.clone()),
        }
    }
}

/// Writes values behind what is there.
pub(super) struct Packer<'a>(pub(super) &'a mut Vec<u8>);

impl Packer<'_> {
    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn bool(&mut self, value: bool) {
        self.byte(u8::from(value));
    }

    pub(super) fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn small(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn length(&mut self, value: usize) {
        // What is longer than this is over every limit of a message long before.
        self.small(u32::try_from(value).unwrap_or(u32::MAX));
    }

    pub(super) fn text(&mut self, value: &str) {
        self.length(value.len());
        self.0.extend_from_slice(value.as_bytes());
    }

    fn list<T>(&mut self, values: &[T], mut one: impl FnMut(&mut Self, &T)) {
        self.length(values.len());
        for value in values {
            one(self, value);
        }
    }

    fn option<T>(&mut self, value: Option<T>, one: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            one(self, value);
        }
    }

    fn time(&mut self, value: Timestamp) {
        self.number(value.0);
    }

    pub(super) fn question(&mut self, ask: Ask<'_>) {
        match ask {
            Ask::Decide(tx) => {
                self.byte(0);
                self.transaction(tx);
            }
            Ask::Route(tx) => {
                self.byte(1);
                self.transaction(tx);
            }
            Ask::Limits { tx, upstream, recipients } => {
                self.byte(2);
                self.transaction(tx);
                self.text(upstream);
                self.list(recipients, |to, &index| to.small(index));
            }
            Ask::Observe(outcome) => {
                self.byte(3);
                self.text(outcome.upstream);
                self.list(outcome.keys, |to, key| to.text(key));
                self.small(u32::from(outcome.code));
                self.text(outcome.text);
                self.time(outcome.now);
            }
        }
    }

    fn transaction(&mut self, tx: &Transaction<'_>) {
        self.text(tx.id);
        self.time(tx.now);
        self.time(tx.received);
        match tx.client {
            IpAddr::V4(address) => {
                self.byte(4);
                self.0.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                self.byte(6);
                self.0.extend_from_slice(&address.octets());
            }
        }
        self.text(tx.sender);
        self.list(tx.recipients, |to, recipient| to.text(recipient));
        self.number(tx.size);
        self.small(tx.attempts);
        self.small(tx.bucket);
        self.option(tx.instance, |to, view| {
            for text in [view.name, view.product, view.environment, view.before, view.after] {
                to.text(text);
            }
            to.byte(view.phase as u8);
            to.option(view.window, |to, window| {
                to.text(&window.wave);
                to.time(window.opens);
                to.time(window.closes);
            });
        });
        self.list(tx.attributes, |to, (name, value)| {
            to.text(name);
            to.text(value);
        });
        self.list(tx.upstreams, |to, state| {
            let UpstreamState { name, up, attempts, deferred, refused, broken } = state;
            to.text(name);
            to.bool(*up);
            for count in [attempts, deferred, refused, broken] {
                to.small(*count);
            }
        });
    }

    pub(super) fn answer(&mut self, answer: Heard<'_>) {
        match answer {
            Heard::Decide(FreezeDecision::Proceed) => self.byte(0),
            Heard::Decide(FreezeDecision::Hold { until, reason }) => {
                self.byte(1);
                self.option(*until, Self::time);
                self.text(reason);
            }
            Heard::Decide(FreezeDecision::Defer(reply)) => self.reply(2, reply),
            Heard::Decide(FreezeDecision::Refuse(reply)) => self.reply(3, reply),
            Heard::Route(RouteDecision::Abstain) => self.byte(4),
            Heard::Route(RouteDecision::All(target)) => {
                self.byte(5);
                self.target(target);
            }
            Heard::Route(RouteDecision::Split(shares)) => {
                self.byte(6);
                self.list(shares, |to, share| {
                    to.list(&share.recipients, |to, &index| to.small(index));
                    to.target(&share.target);
                });
            }
            Heard::Limits(limits) => {
                self.byte(7);
                self.list(&limits.rates, |to, rate| {
                    to.text(&rate.key);
                    for number in [rate.quantity, rate.per_ms, rate.burst, rate.cost] {
                        to.number(number);
                    }
                });
                self.list(&limits.concurrency, |to, limit| {
                    to.text(&limit.key);
                    to.small(limit.limit);
                });
            }
            Heard::Observe(lessons) => {
                self.byte(8);
                self.list(lessons, |to, lesson| match lesson {
                    Lesson::Pause { key, until } => {
                        to.option(None, Self::small);
                        to.text(key);
                        to.time(*until);
                    }
                    Lesson::Slow { key, factor, until } => {
                        to.option(Some(*factor), Self::small);
                        to.text(key);
                        to.time(*until);
                    }
                });
            }
        }
    }

    fn reply(&mut self, tag: u8, reply: &PolicyReply) {
        self.byte(tag);
        self.small(u32::from(reply.code));
        self.text(&reply.enhanced);
        self.text(&reply.text);
    }

    fn target(&mut self, target: &RouteTarget) {
        self.text(&target.upstream);
        self.list(&target.fallbacks, |to, name| to.text(name));
    }
}

/// Reads what was written. None is our own bug: nobody else writes it.
pub(super) struct Unpacker<'a>(pub(super) &'a [u8]);

impl<'a> Unpacker<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn small(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn code(&mut self) -> Option<u16> {
        self.small().and_then(|code| u16::try_from(code).ok())
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.small()?).ok()?;
        std::str::from_utf8(self.bytes(length)?).ok().map(str::to_owned)
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.small()?).map(|_| one(self)).collect()
    }

    fn option<T>(&mut self, one: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.byte()? {
            0 => Some(None),
            _ => one(self).map(Some),
        }
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.number().map(Timestamp)
    }

    pub(super) fn question(&mut self) -> Option<Question> {
        Some(match self.byte()? {
            0 => Question::Decide { transaction: self.transaction()? },
            1 => Question::Route { transaction: self.transaction()? },
            2 => Question::Limits {
                transaction: self.transaction()?,
                upstream: self.text()?,
                recipients: self.list(Self::small)?,
            },
            3 => Question::Observe {
                upstream: self.text()?,
                keys: self.list(Self::text)?,
                code: self.code()?,
                text: self.text()?,
                now: self.time()?,
            },
            _ => return None,
        })
    }

    fn transaction(&mut self) -> Option<TransactionRecord> {
        let id = self.text()?;
        let (now, received) = (self.time()?, self.time()?);
        Some(TransactionRecord {
            id,
            now,
            received: (received != now).then_some(received),
            client: match self.byte()? {
                4 => Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(4)?).ok()?).into(),
                _ => Ipv6Addr::from(<[u8; 16]>::try_from(self.bytes(16)?).ok()?).into(),
            },
            sender: self.text()?,
            recipients: self.list(Self::text)?,
            size: self.number()?,
            attempts: self.small()?,
            bucket: self.small()?,
            instance: self.option(Self::instance)?,
            attributes: self.list(|from| Some((from.text()?, from.text()?)))?,
            upstreams: self.list(|from| {
                Some(UpstreamState {
                    name: from.text()?,
                    up: from.byte()? != 0,
                    attempts: from.small()?,
                    deferred: from.small()?,
                    refused: from.small()?,
                    broken: from.small()?,
                })
            })?,
        })
    }

    fn instance(&mut self) -> Option<InstanceRecord> {
        Some(InstanceRecord {
            name: self.text()?,
            product: self.text()?,
            environment: self.text()?,
            before: self.text()?,
            after: self.text()?,
            phase: *Phase::ALL.get(usize::from(self.byte()?))?,
            window: self.option(|from| {
                Some(WindowRecord { wave: from.text()?, opens: from.time()?, closes: from.time()? })
            })?,
        })
    }

    pub(super) fn answer(&mut self) -> Option<Answer> {
        Some(match self.byte()? {
            0 => Answer::Decide(FreezeDecision::Proceed),
            1 => Answer::Decide(FreezeDecision::Hold {
                until: self.option(Self::time)?,
                reason: self.text()?,
            }),
            2 => Answer::Decide(FreezeDecision::Defer(self.reply()?)),
            3 => Answer::Decide(FreezeDecision::Refuse(self.reply()?)),
            4 => Answer::Route(RouteDecision::Abstain),
            5 => Answer::Route(RouteDecision::All(self.target()?)),
            6 => Answer::Route(RouteDecision::Split(self.list(|from| {
                Some(RouteShare { recipients: from.list(Self::small)?, target: from.target()? })
            })?)),
            7 => Answer::Limits(LimitSet {
                rates: self.list(|from| {
                    Some(RateLimit {
                        key: from.text()?,
                        quantity: from.number()?,
                        per_ms: from.number()?,
                        burst: from.number()?,
                        cost: from.number()?,
                    })
                })?,
                concurrency: self.list(|from| {
                    Some(ConcurrencyLimit { key: from.text()?, limit: from.small()? })
                })?,
            }),
            8 => Answer::Observe(self.list(|from| {
                let factor = from.option(Self::small)?;
                let (key, until) = (from.text()?, from.time()?);
                Some(match factor {
                    None => Lesson::Pause { key, until },
                    Some(factor) => Lesson::Slow { key, factor, until },
                })
            })?),
            _ => return None,
        })
    }

    fn reply(&mut self) -> Option<PolicyReply> {
        Some(PolicyReply { code: self.code()?, enhanced: self.text()?, text: self.text()? })
    }

    fn target(&mut self) -> Option<RouteTarget> {
        Some(RouteTarget { upstream: self.text()?, fallbacks: self.list(Self::text)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

    use super::*;

    fn full() -> TransactionRecord {
        TransactionRecord {
            received: Some(Timestamp(7)),
            instance: Some(InstanceRecord {
                phase: Phase::RolledBack,
                window: Some(WindowRecord {
                    wave: "w1".to_owned(),
                    opens: Timestamp(1),
                    closes: Timestamp(2),
                }),
                ..InstanceRecord::default()
            }),
            attributes: vec![("header:subject".to_owned(), "ä".to_owned())],
            upstreams: vec![UpstreamState {
                name: "cloud".to_owned(),
                up: true,
                attempts: 1,
                deferred: 2,
                refused: 3,
                broken: 4,
            }],
            ..TransactionRecord::default()
        }
    }

    #[test]
    fn a_question_is_read_as_it_was_written() {
        let v6 = TransactionRecord {
            client: "2001:db8::7".parse().unwrap(),
            ..TransactionRecord::default()
        };
        let all = [
            Question::Decide { transaction: full() },
            Question::Route { transaction: v6 },
            Question::Limits {
                transaction: TransactionRecord::default(),
                upstream: "cloud".to_owned(),
                recipients: vec![0, 7],
            },
            Question::Observe {
                upstream: "cloud".to_owned(),
                keys: vec!["a".to_owned(), String::new()],
                code: 421,
                text: "later".to_owned(),
                now: Timestamp(9),
            },
        ];
        let mut bytes = Vec::new();
        for question in &all {
            question.with(|ask| Packer(&mut bytes).question(ask));
        }
        let mut from = Unpacker(&bytes);
        for question in all {
            assert_eq!(from.question(), Some(question));
        }
        assert!(from.0.is_empty());
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let reply =
            |code| PolicyReply { code, enhanced: "4.7.1".to_owned(), text: "later".to_owned() };
        let target =
            RouteTarget { upstream: "cloud".to_owned(), fallbacks: vec!["legacy".to_owned()] };
        let rate = RateLimit { key: "k".to_owned(), quantity: 1, per_ms: 2, burst: 3, cost: 4 };
        let hold = |until| FreezeDecision::Hold { until, reason: "why".to_owned() };
        let share = RouteShare { recipients: vec![1, 0], target: target.clone() };
        let concurrency = ConcurrencyLimit { key: "c".to_owned(), limit: 9 };
        let all = [
            Answer::Decide(FreezeDecision::Proceed),
            Answer::Decide(hold(None)),
            Answer::Decide(hold(Some(Timestamp(5)))),
            Answer::Decide(FreezeDecision::Defer(reply(451))),
            Answer::Decide(FreezeDecision::Refuse(reply(550))),
            Answer::Route(RouteDecision::Abstain),
            Answer::Route(RouteDecision::All(target)),
            Answer::Route(RouteDecision::Split(vec![share])),
            Answer::Limits(LimitSet { rates: vec![rate], concurrency: vec![concurrency] }),
            Answer::Observe(vec![
                Lesson::Pause { key: "p".to_owned(), until: Timestamp(1) },
                Lesson::Slow { key: "s".to_owned(), factor: 1500, until: Timestamp(2) },
            ]),
        ];
        let mut bytes = Vec::new();
        for answer in &all {
            let heard = match answer {
                Answer::Decide(decision) => Heard::from(decision),
                Answer::Route(decision) => Heard::from(decision),
                Answer::Limits(limits) => Heard::from(limits),
                Answer::Observe(lessons) => Heard::from(lessons),
            };
            assert_eq!(heard.to_answer(), *answer);
            Packer(&mut bytes).answer(heard);
        }
        let mut from = Unpacker(&bytes);
        for answer in all {
            assert_eq!(from.answer(), Some(answer));
        }
        assert!(from.0.is_empty());
    }
}
