//! What happened in a storm: what senders sent and were told, what arrived, what the relay said of
//! it, and what was in force when. Outlives the relay's crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::time::Instant;
use wavegate::event::{End, Event, Observer, Outcome, WaveStep};

use super::{senders::Letter, settings::INSTANCES};
use crate::sim::sink::Arrived;

#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Book>>);

#[derive(Default)]
pub struct Book {
    /// When the present life began: in the runtime's time, and in milliseconds of the storm.
    pub life: Option<(Instant, u64)>,
    /// Every event, with its time.
    pub lines: Vec<String>,
    /// Times that the relay said that a message may arrive twice, by its id.
    pub doubts: BTreeMap<String, u64>,
    /// Ids of messages that clients sent.
    pub received: BTreeSet<String>,
    /// Recipients that were given up.
    pub gave_up: BTreeSet<String>,
    /// Ids of messages of which some recipients were refused while the client waited.
    pub bounced: BTreeSet<String>,
    /// When an instance's window was said to have let out its mail.
    pub released: Vec<(u64, String)>,
    /// By number.
    pub letters: Vec<Letter>,
    /// When an instance was frozen, by its number, and when that was ended.
    pub frozen: Vec<(usize, u64, Option<u64>)>,
    pub arrived: Vec<Arrived>,
    pub tally: Tally,
}

/// What a storm consisted of.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub messages: u64,
    pub recipients: u64,
    pub arrivals: u64,
    /// Arrivals beyond the first of a message at a recipient.
    pub double: u64,
    pub notifications: u64,
    pub spooled: u64,
    pub restarts: u64,
    pub kills: u64,
    pub powers_lost: u64,
    pub reloads: u64,
    pub releases: u64,
    pub in_doubt: u64,
    pub not_spooled: u64,
    pub windows_looked_at: u64,
    pub checks: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.recipients += other.recipients;
        self.arrivals += other.arrivals;
        self.double += other.double;
        self.notifications += other.notifications;
        self.spooled += other.spooled;
        self.restarts += other.restarts;
        self.kills += other.kills;
        self.powers_lost += other.powers_lost;
        self.reloads += other.reloads;
        self.releases += other.releases;
        self.in_doubt += other.in_doubt;
        self.not_spooled += other.not_spooled;
        self.windows_looked_at += other.windows_looked_at;
        self.checks += other.checks;
    }

    pub fn check_variety(&self) {
        let all = [
            self.messages,
            self.arrivals,
            self.notifications,
            self.spooled,
            self.restarts,
            self.kills,
            self.powers_lost,
            self.reloads,
            self.releases,
            self.in_doubt,
            self.not_spooled,
            self.windows_looked_at,
            self.checks,
        ];
        assert!(all.iter().all(|count| *count > 0), "no storm: {self:?}");
    }
}

impl Record {
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }

    /// Milliseconds since the storm began.
    pub fn now(&self) -> u64 {
        self.lock().now()
    }
}

impl Book {
    /// An instance is frozen from now on, or is not any more.
    pub fn note_frozen(&mut self, instance: usize, is_frozen: bool) {
        let now = self.now();
        let open = self.frozen.iter_mut().find(|(other, _, to)| *other == instance && to.is_none());
        match (open, is_frozen) {
            (Some((_, _, to)), false) => *to = Some(now),
            (None, true) => self.frozen.push((instance, now, None)),
            _ => {}
        }
    }

    fn note_step(&mut self, wave: &str, step: WaveStep<'_>) {
        let is_frozen = match step {
            WaveStep::Frozen => true,
            WaveStep::Releasing { .. } | WaveStep::RolledBack { .. } | WaveStep::WasOver => false,
            // A write that failed is of several waves, and has no name.
            _ => return,
        };
        let name = wave.strip_prefix("w-").unwrap();
        let instance = INSTANCES.iter().position(|one| *one == name).unwrap();
        self.note_frozen(instance, is_frozen);
    }

    pub fn now(&self) -> u64 {
        self.life
            .map_or(0, |(begun, start)| start + u64::try_from(begun.elapsed().as_millis()).unwrap())
    }
}

impl Observer for Record {
    fn observe(&self, event: &Event<'_>) {
        let mut book = self.lock();
        // What tasks say while a crash drops them is said by nobody.
        if book.life.is_none() {
            return;
        }
        let now = book.now();
        book.lines.push(format!("{now} {event:?}"));
        match event {
            Event::InDoubt { id, .. } => {
                *book.doubts.entry(id.to_string()).or_default() += 1;
            }
            Event::Received { id, .. } => {
                book.received.insert(id.to_string());
            }
            Event::Ended { recipient, end: End::Expired | End::Bounced, .. } => {
                book.gave_up.insert((*recipient).to_owned());
            }
            Event::Settled { id, outcome: Outcome::Bounced, .. } => {
                book.bounced.insert(id.to_string());
            }
            Event::Wave { wave, step } => book.note_step(wave, *step),
            Event::Released { instance, .. } => {
                book.released.push((now, (*instance).to_owned()));
                book.tally.releases += 1;
            }
            _ => {}
        }
    }
}
