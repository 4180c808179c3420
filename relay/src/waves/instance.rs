//! One instance: the spans that it is held in, and what of it is in flight. Both under one lock,
//! so that the look at the phase and the registration are one step.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Record, Stage};
use crate::plan::{Phase, Timestamp, Window};

/// What the relay knows of one instance beyond its entry in the plan.
pub struct InstanceState {
    name: Arc<str>,
    inner: Mutex<Inner>,
    /// Rung when nothing of an instance that may start nothing is in flight any more.
    bell: Arc<Notify>,
}

struct Inner {
    /// The wave that the plan has it in, and those that have begun and are not over.
    spans: Vec<Span>,
    in_flight: InFlight,
    /// Nothing new may start, as it was when last looked at.
    is_closed: bool,
    /// Since when nothing may leave.
    frozen_since: Option<Timestamp>,
    leaked: u64,
}

/// A wave as one of its instances has it.
#[derive(Clone, Debug)]
pub(super) struct Span {
    window: Arc<Window>,
    freezes: Timestamp,
    stage: Stage,
    ad_hoc: bool,
}

/// Attempts of one instance that have begun and not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// End of data not yet written.
    pub uncommitted: u32,
    /// End of data written, no reply yet.
    pub in_doubt: u32,
}

/// "This instance may not": what blocks an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The phase that forbids it.
    pub phase: Phase,
}

/// What an operator sees of an instance.
#[derive(Clone, Debug)]
pub struct InstanceStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its phase now.
    pub phase: Phase,
    /// What is in flight.
    pub in_flight: InFlight,
    /// Whether the barrier is reached: nothing may start, and nothing is in flight.
    pub barrier: bool,
    /// Messages that left while nothing might: always 0.
    pub leaked: u64,
}

impl Span {
    pub(super) fn new(record: &Record, window: &Arc<Window>) -> Self {
        Self {
            window: Arc::clone(window),
            freezes: record.freezes,
            stage: record.stage,
            ad_hoc: record.ad_hoc,
        }
    }

    /// Its phase. What the clock has begun stays begun, wherever the clock goes then.
    fn look(&mut self, now: Timestamp) -> Phase {
        if matches!(self.stage, Stage::Planned | Stage::Freezing) {
            if now >= self.window.opens {
                self.stage = Stage::Frozen;
            } else if now >= self.freezes {
                self.stage = Stage::Freezing;
            }
        }
        self.stage.phase()
    }

    /// What the clock has begun is not undone by an older word on the same window.
    fn keep_begun(&mut self, old: &Self) {
        let by_clock = |stage| stage <= Stage::Frozen;
        let same = old.window.wave == self.window.wave && old.window.opens == self.window.opens;
        if same && by_clock(old.stage) && by_clock(self.stage) {
            self.stage = self.stage.max(old.stage);
        }
    }

    /// Which of several an instance follows: what forbids more, then what has begun and is not
    /// over, then the plan's wave. A freeze without a plan that has ended says nothing.
    fn rank(&self, phase: Phase) -> u8 {
        match phase {
            phase if !phase.may_commit() => 4,
            phase if !phase.may_start() => 3,
            _ if self.ad_hoc => 0,
            Phase::Releasing => 2,
            _ => 1,
        }
    }
}

impl InstanceState {
    pub(super) fn new(name: &str, bell: &Arc<Notify>) -> Arc<Self> {
        let inner = Inner {
            spans: Vec::new(),
            in_flight: InFlight::default(),
            is_closed: false,
            frozen_since: None,
            leaked: 0,
        };
        Arc::new(Self { name: name.into(), inner: Mutex::new(inner), bell: Arc::clone(bell) })
    }

    /// The instance's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its phase at `now`.
    pub fn phase(&self, now: Timestamp) -> Phase {
        self.lock().phase(now)
    }

    /// Its phase at `now`, and the window that it follows, extensions included.
    pub fn look(&self, now: Timestamp) -> (Phase, Option<Arc<Window>>) {
        let mut inner = self.lock();
        let (phase, span) = inner.look(now);
        (phase, span.map(|span| Arc::clone(&inner.spans[span].window)))
    }

    /// Begins an attempt, if the phase at `now` lets it.
    pub fn begin(self: &Arc<Self>, now: Timestamp) -> Result<Attempt, Blocked> {
        let mut inner = self.lock();
        let phase = inner.phase(now);
        if !phase.may_start() {
            return Err(Blocked { phase });
        }
        inner.in_flight.uncommitted += 1;
        drop(inner);
        let after = phase.is_after();
        Ok(Attempt { instance: Some(Arc::clone(self)), after, committed: None })
    }

    /// What an operator sees.
    pub fn status(&self, now: Timestamp) -> InstanceStatus {
        let mut inner = self.lock();
        let phase = inner.phase(now);
        let in_flight = inner.in_flight;
        let barrier = !phase.may_start() && in_flight == InFlight::default();
        let (name, leaked) = (Arc::clone(&self.name), inner.leaked);
        InstanceStatus { name, phase, in_flight, barrier, leaked }
    }

    /// Its waves from now on.
    pub(super) fn set(&self, mut spans: Vec<Span>, now: Timestamp) {
        let mut inner = self.lock();
        for span in &mut spans {
            inner.spans.iter().for_each(|old| span.keep_begun(old));
        }
        inner.spans = spans;
        inner.phase(now);
    }

    /// Whether the clock has begun the freezing of a wave in this slot.
    pub(super) fn has_begun(&self, record: &Record) -> bool {
        let inner = self.lock();
        let mut spans = inner.spans.iter();
        spans.any(|span| {
            let window = &span.window;
            span.stage > Stage::Planned
                && window.wave == record.wave
                && window.opens == record.opens
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn phase(&mut self, now: Timestamp) -> Phase {
        self.look(now).0
    }

    fn look(&mut self, now: Timestamp) -> (Phase, Option<usize>) {
        let (mut found, mut rank) = ((Phase::Unscheduled, None), 1);
        for (index, span) in self.spans.iter_mut().enumerate() {
            let phase = span.look(now);
            let mine = span.rank(phase);
            if mine >= rank {
                (found, rank) = ((phase, Some(index)), mine);
            }
        }
        self.is_closed = !found.0.may_start();
        if found.0.may_commit() {
            self.frozen_since = None;
        } else {
            self.frozen_since.get_or_insert(now);
        }
        found
    }
}

impl std::fmt::Debug for InstanceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// An attempt in the registry, from its beginning to its end. Ends when dropped.
#[derive(Debug)]
pub struct Attempt {
    /// None for mail of no instance, which no window stops.
    instance: Option<Arc<InstanceState>>,
    /// Whether it began after the window: its route was chosen for that side.
    after: bool,
    /// When the end of data may have been written.
    committed: Option<Timestamp>,
}

impl Attempt {
    /// An attempt for mail of no instance.
    pub fn unattributed() -> Self {
        Self { instance: None, after: false, committed: None }
    }

    /// The look at the phase right before the end of data is written. May be asked again while
    /// it could not be written whole. An attempt that a whole window went by for is stopped too:
    /// its mail goes elsewhere now.
    pub fn commit(&mut self, now: Timestamp) -> Result<(), Blocked> {
        let Some(instance) = &self.instance else {
            self.committed = Some(now);
            return Ok(());
        };
        let mut inner = instance.lock();
        let phase = inner.phase(now);
        if !phase.may_commit() || phase.is_after() != self.after {
            return Err(Blocked { phase });
        }
        if self.committed.is_none() {
            inner.in_flight.uncommitted -= 1;
            inner.in_flight.in_doubt += 1;
        }
        self.committed = Some(now);
        Ok(())
    }

    /// The end of data was not written after all: the attempt is uncommitted again.
    pub fn uncommit(&mut self) {
        if let Some(instance) = &self.instance
            && self.committed.is_some()
        {
            let mut inner = instance.lock();
            inner.in_flight.in_doubt -= 1;
            inner.in_flight.uncommitted += 1;
        }
        self.committed = None;
    }

    /// Whether the end of data may have been written.
    pub fn is_committed(&self) -> bool {
        self.committed.is_some()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(instance) = &self.instance else { return };
        let mut inner = instance.lock();
        let count = match self.committed {
            Some(_) => &mut inner.in_flight.in_doubt,
            None => &mut inner.in_flight.uncommitted,
        };
        *count -= 1;
        // The look forbids it; this says so if it ever did not.
        let left = self.committed.zip(inner.frozen_since);
        inner.leaked += u64::from(left.is_some_and(|(at, since)| at > since));
        let rings = inner.is_closed && inner.in_flight == InFlight::default();
        drop(inner);
        if rings {
            instance.bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
