//! How far releases have come: what of a wave's held mail still waits for its attempt, and how
//! fast that gets less.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    plan::Timestamp,
    queue::Queue,
    waves::{Life, Record, Stage},
};

/// Between two counts, in milliseconds: each is a pass over all messages.
const EVERY: u64 = 900;
/// What a rate is the average of, in milliseconds.
const RATE_OVER: u64 = 10_000;

/// All releases under way.
#[derive(Debug, Default)]
pub(super) struct Drains {
    counted: Option<Timestamp>,
    waves: BTreeMap<String, Drain>,
}

/// One release.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Messages that still wait.
    pub(super) left: u64,
    seen: VecDeque<(Timestamp, u64)>,
}

/// Whether mail of a wave is being let out.
pub(super) fn is_draining(record: &Record) -> bool {
    record.stage == Stage::Releasing
        || (record.stage == Stage::RolledBack && record.ended_at.is_none())
}

impl Drains {
    /// Counts, unless that was done just now.
    pub(super) fn count(&mut self, queue: &Queue, lives: &[Life], now: Timestamp) {
        let draining = || lives.iter().map(|life| &*life.record).filter(|one| is_draining(one));
        self.waves.retain(|wave, _| draining().any(|record| record.wave == *wave));
        if draining().next().is_none() {
            self.counted = None;
            return;
        }
        // A clock that was set back counts anew.
        let since = self.counted.filter(|counted| *counted <= now);
        let is_new = draining().any(|record| !self.waves.contains_key(&record.wave));
        if !is_new && since.is_some_and(|counted| now.0 - counted.0 < EVERY) {
            return;
        }
        self.counted = Some(now);
        let mut wanted: HashMap<Arc<str>, Timestamp> = HashMap::new();
        for record in draining() {
            let before = record.released_at.unwrap_or(now);
            wanted.extend(record.members.iter().map(|name| (Arc::from(name.as_str()), before)));
        }
        let found = queue.waiting_since_before(&wanted);
        for record in draining() {
            let left = record.members.iter().filter_map(|name| found.get(name.as_str())).sum();
            let drain = self.waves.entry(record.wave.clone()).or_default();
            if drain.seen.is_empty() {
                let begun = record.released_at.unwrap_or(now);
                drain.seen.push_back((begun, record.held.max(left)));
            }
            drain.left = left;
            drain.seen.push_back((now, left));
            let old = |at: Timestamp| now.0.saturating_sub(at.0) > RATE_OVER;
            while drain.seen.len() > 2 && drain.seen.get(1).is_some_and(|(at, _)| old(*at)) {
                drain.seen.pop_front();
            }
        }
    }

    /// Nothing of a wave waits any more.
    pub(super) fn is_drained(&self, wave: &str) -> bool {
        self.waves.get(wave).is_some_and(|drain| drain.left == 0)
    }

    pub(super) fn of(&self, wave: &str) -> Option<&Drain> {
        self.waves.get(wave)
    }
}

impl Drain {
    /// Messages a second, over the last seconds.
    pub(super) fn rate(&self) -> f64 {
        let (Some((from, most)), Some((to, least))) = (self.seen.front(), self.seen.back()) else {
            return 0.0;
        };
        let gone = u32::try_from(most.saturating_sub(*least)).unwrap_or(u32::MAX);
        let ms = u32::try_from(to.0.saturating_sub(from.0)).unwrap_or(u32::MAX);
        if ms == 0 { 0.0 } else { f64::from(gone) * 1000.0 / f64::from(ms) }
    }

    /// When it will be done at this rate.
    pub(super) fn ends(&self, now: Timestamp) -> Option<Timestamp> {
        let (from, most) = self.seen.front()?;
        let (to, least) = self.seen.back()?;
        let (gone, ms) = (most.saturating_sub(*least), to.0.saturating_sub(from.0));
        let left = u128::from(self.left) * u128::from(ms);
        let left = u64::try_from(left.checked_div(u128::from(gone))?).ok()?;
        Some(now.saturating_add_ms(left))
    }
}
