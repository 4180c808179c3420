//! Figures of the scheduler, kept as messages move, so that reading them is cheap and exact.

use std::collections::BTreeMap;

use super::entry::{Entry, InstanceKey, Kind};
use crate::plan::Timestamp;

/// Receipts are counted in spans of 4.096 s: so many bits of the milliseconds.
const SPAN_BITS: u32 = 12;

/// Messages and their recipients that still wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Messages.
    pub messages: u64,
    /// Recipients.
    pub recipients: u64,
}

/// Figures of one instance, or of all. Every message is in exactly one of the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Wait for nothing but their turn.
    pub ready: Count,
    /// Wait for a connection or a limit.
    pub blocked: Count,
    /// Wait for the time of a retry.
    pub later: Count,
    /// Held by a window, a policy, an operator, or the pace of a release.
    pub held: Count,
    /// Being tried.
    pub in_flight: Count,
    /// Their last attempt still listens for a reply.
    pub in_doubt: Count,
    /// Octets of all.
    pub bytes: u64,
    /// When the oldest was received. Where the oldest of several that came in within four
    /// seconds has left, it may be named for the next.
    pub oldest: Option<Timestamp>,
}

/// Figures of all instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// By instance, in the order in which their keys were given.
    pub instances: Vec<(InstanceKey, Figures)>,
    /// All together.
    pub total: Figures,
}

/// Messages of one instance that came in within one span.
#[derive(Clone, Copy, Debug)]
struct Span {
    count: u64,
    oldest: Timestamp,
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    instances: Vec<Figures>,
    spans: BTreeMap<(InstanceKey, u64), Span>,
}

fn span_of(entry: &Entry) -> (InstanceKey, u64) {
    (entry.instance, entry.received.0 >> SPAN_BITS)
}

impl Tally {
    /// A message is there now.
    pub(super) fn enter(&mut self, entry: &Entry) {
        let fresh = Span { count: 0, oldest: entry.received };
        let span = self.spans.entry(span_of(entry)).or_insert(fresh);
        span.count += 1;
        span.oldest = span.oldest.min(entry.received);
        let bytes = &mut self.figures(entry.instance).bytes;
        *bytes = bytes.saturating_add(entry.size);
    }

    /// A message is gone.
    pub(super) fn leave(&mut self, entry: &Entry) {
        let key = span_of(entry);
        if let Some(span) = self.spans.get_mut(&key) {
            span.count -= 1;
            if span.count == 0 {
                self.spans.remove(&key);
            }
        }
        let bytes = &mut self.figures(entry.instance).bytes;
        *bytes = bytes.saturating_sub(entry.size);
    }

    /// A message entered this state.
    pub(super) fn add(&mut self, entry: &Entry, kind: Kind) {
        let count = self.figures(entry.instance).count(kind);
        count.messages += 1;
        count.recipients += u64::from(entry.progress.recipients);
    }

    /// A message left this state.
    pub(super) fn subtract(&mut self, entry: &Entry, kind: Kind) {
        let count = self.figures(entry.instance).count(kind);
        count.messages -= 1;
        count.recipients -= u64::from(entry.progress.recipients);
    }

    /// All figures, of `instances` instances.
    pub(super) fn stats(&self, instances: u32) -> Stats {
        let mut stats = Stats::default();
        for key in (0..instances).map(InstanceKey) {
            let mut figures = self.instances.get(key.0 as usize).copied().unwrap_or_default();
            let mut spans = self.spans.range((key, 0)..=(key, u64::MAX));
            figures.oldest = spans.next().map(|(_, span)| span.oldest);
            stats.total.merge(&figures);
            stats.instances.push((key, figures));
        }
        stats
    }

    fn figures(&mut self, instance: InstanceKey) -> &mut Figures {
        let index = instance.0 as usize;
        if self.instances.len() <= index {
            self.instances.resize_with(index + 1, Figures::default);
        }
        &mut self.instances[index]
    }
}

impl Figures {
    fn count(&mut self, kind: Kind) -> &mut Count {
        match kind {
            Kind::Ready => &mut self.ready,
            Kind::Blocked => &mut self.blocked,
            Kind::Later => &mut self.later,
            Kind::Held => &mut self.held,
            Kind::InFlight => &mut self.in_flight,
            Kind::InDoubt => &mut self.in_doubt,
        }
    }

    /// All messages, whatever they wait for.
    pub fn all(&self) -> Count {
        let Self { ready, blocked, later, held, in_flight, in_doubt, .. } = self;
        let mut all = Count::default();
        for one in [ready, blocked, later, held, in_flight, in_doubt] {
            all.messages += one.messages;
            all.recipients += one.recipients;
        }
        all
    }

    fn merge(&mut self, other: &Self) {
        let mut other = *other;
        for kind in
            [Kind::Ready, Kind::Blocked, Kind::Later, Kind::Held, Kind::InFlight, Kind::InDoubt]
        {
            let from = *other.count(kind);
            let to = self.count(kind);
            to.messages += from.messages;
            to.recipients += from.recipients;
        }
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.oldest = match (self.oldest, other.oldest) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
    }
}
