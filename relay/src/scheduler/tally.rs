//! Figures of the scheduler, kept as messages move, so that reading them is exact and cheap.
//!
//! The one exception is the oldest message: a structure ordered by receipt would cost as much
//! memory as all else together has left. So it is remembered until it leaves, and looked for
//! when it is asked for next.

use super::entry::{Entry, InstanceKey, Kind};
use crate::plan::Timestamp;

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
    /// When the oldest was received.
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

/// The counts, by instance.
#[derive(Debug, Default)]
pub(super) struct Tally {
    instances: Vec<Instance>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Instance {
    /// `oldest` is exact unless it is lost.
    figures: Figures,
    /// The oldest has left, and who is the oldest now is not known.
    is_lost: bool,
}

impl Tally {
    /// A message is there now.
    pub(super) fn enter(&mut self, entry: &Entry) {
        let figures = &mut self.of(entry.instance).figures;
        figures.bytes = figures.bytes.saturating_add(entry.size);
        figures.see(entry);
    }

    /// A message is gone, and subtracted already.
    pub(super) fn leave(&mut self, entry: &Entry) {
        let instance = self.of(entry.instance);
        let figures = &mut instance.figures;
        figures.bytes = figures.bytes.saturating_sub(entry.size);
        if figures.all().messages == 0 {
            figures.oldest = None;
            instance.is_lost = false;
        } else if figures.oldest == Some(entry.received) {
            instance.is_lost = true;
        }
    }

    /// A message entered this state.
    pub(super) fn add(&mut self, entry: &Entry, kind: Kind) {
        let count = self.of(entry.instance).figures.count(kind);
        count.messages += 1;
        count.recipients += u64::from(entry.progress.recipients);
    }

    /// A message left this state.
    pub(super) fn subtract(&mut self, entry: &Entry, kind: Kind) {
        let count = self.of(entry.instance).figures.count(kind);
        count.messages -= 1;
        count.recipients -= u64::from(entry.progress.recipients);
    }

    /// All figures, of `instances` instances; `entries` are all messages.
    pub(super) fn stats<'a>(
        &mut self,
        instances: u32,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Stats {
        self.find_lost(entries);
        let mut stats = Stats::default();
        for key in (0..instances).map(InstanceKey) {
            let figures = self.of(key).figures;
            stats.total.merge(&figures);
            stats.instances.push((key, figures));
        }
        stats
    }

    /// Looks for the oldest where it has left.
    fn find_lost<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) {
        if self.instances.iter().all(|instance| !instance.is_lost) {
            return;
        }
        for instance in self.instances.iter_mut().filter(|instance| instance.is_lost) {
            instance.figures.oldest = None;
        }
        for entry in entries {
            let instance = self.of(entry.instance);
            if instance.is_lost {
                instance.figures.see(entry);
            }
        }
        for instance in &mut self.instances {
            instance.is_lost = false;
        }
    }

    fn of(&mut self, instance: InstanceKey) -> &mut Instance {
        let index = instance.0 as usize;
        if self.instances.len() <= index {
            self.instances.resize_with(index + 1, Instance::default);
        }
        &mut self.instances[index]
    }
}

impl Figures {
    fn see(&mut self, entry: &Entry) {
        self.oldest = Some(self.oldest.map_or(entry.received, |one| one.min(entry.received)));
    }

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
