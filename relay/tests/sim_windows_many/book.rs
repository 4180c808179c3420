//! What happened around a window, on the time of the simulation: it outlives the relay's crashes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::time::Instant;
use wavegate::{
    event::{Event, Observer, WaveStep},
    waves::Stage,
};

use super::script::{INSTANCES, LOST, Script};
use crate::sim::sink::Arrived;

pub type Shared = Arc<Mutex<Book>>;

pub struct Book {
    pub script: Script,
    /// When the present life began: in the runtime's time, and in milliseconds of the simulation.
    pub life: Option<(Instant, u64)>,
    /// Every event, with its time.
    pub lines: Vec<String>,
    /// Messages by name, with what their sender was told in the end.
    pub letters: BTreeMap<String, Option<String>>,
    /// What arrived, and whether at the old infrastructure.
    pub arrived: Vec<(bool, Arrived)>,
    /// Times that the relay said that a message may arrive twice, by its id.
    pub doubts: BTreeMap<String, u64>,
    /// When each instance was frozen, and when that was ended.
    pub frozen: Vec<(String, u64, Option<u64>)>,
    /// The instances of the wave, as it began.
    members: Vec<&'static str>,
    /// Steps of the wave, with their time.
    pub steps: Vec<(u64, String)>,
    pub tally: Tally,
}

/// What a window saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub windows: u64,
    pub messages: u64,
    pub arrivals: u64,
    pub queued: u64,
    pub doubled: u64,
    pub in_doubt: u64,
    pub stops: u64,
    pub kills: u64,
    pub powers_lost: u64,
    pub unwritten: u64,
    pub reloads: u64,
    pub orders: u64,
    pub clock_steps: u64,
    pub suspects: u64,
    pub barriers: u64,
    pub probes_failed: u64,
    pub extended: u64,
    pub released: u64,
    pub rolled_back: u64,
    pub looks: u64,
}

impl Tally {
    fn all(&mut self) -> [&mut u64; 20] {
        [
            &mut self.windows,
            &mut self.messages,
            &mut self.arrivals,
            &mut self.queued,
            &mut self.doubled,
            &mut self.in_doubt,
            &mut self.stops,
            &mut self.kills,
            &mut self.powers_lost,
            &mut self.unwritten,
            &mut self.reloads,
            &mut self.orders,
            &mut self.clock_steps,
            &mut self.suspects,
            &mut self.barriers,
            &mut self.probes_failed,
            &mut self.extended,
            &mut self.released,
            &mut self.rolled_back,
            &mut self.looks,
        ]
    }

    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        self.all().into_iter().zip(other.all()).for_each(|(one, more)| *one += *more);
    }

    /// Everything that may happen did; only that something arrives twice is rare.
    pub fn check_variety(&self) {
        let mut all = Self { doubled: 1, ..self.clone() };
        assert!(all.all().iter().all(|count| **count > 0), "too calm: {self:?}");
    }
}

impl Book {
    pub fn new(script: Script) -> Self {
        Self {
            script,
            life: None,
            lines: Vec::new(),
            letters: BTreeMap::new(),
            arrived: Vec::new(),
            doubts: BTreeMap::new(),
            frozen: Vec::new(),
            members: INSTANCES.to_vec(),
            steps: Vec::new(),
            tally: Tally::default(),
        }
    }

    pub fn now(&self) -> u64 {
        self.life
            .map_or(0, |(begun, start)| start + u64::try_from(begun.elapsed().as_millis()).unwrap())
    }

    pub fn say(&mut self, text: &str) {
        let line = format!("{} {text}", self.now());
        self.lines.push(line);
    }

    /// An instance is frozen from now on, or is not any more.
    pub fn note_frozen(&mut self, instance: &str, is_frozen: bool) {
        let now = self.now();
        let open = self.frozen.iter_mut().find(|(name, _, to)| name == instance && to.is_none());
        match (open, is_frozen) {
            (Some((_, _, to)), false) => *to = Some(now),
            (None, true) => self.frozen.push((instance.to_owned(), now, None)),
            _ => {}
        }
    }

    /// The wave was found in this stage: a step to it that nobody heard of is from now on.
    pub fn note_stage(&mut self, stage: Stage) {
        let step = match stage {
            Stage::Releasing | Stage::Migrated => "releasing",
            Stage::RolledBack => "rolled_back",
            _ => return,
        };
        if !self.steps.iter().any(|(_, known)| known == step) {
            let now = self.now();
            self.steps.push((now, step.to_owned()));
        }
    }

    fn step(&mut self, wave: &str, step: WaveStep<'_>) {
        let now = self.now();
        let tally = &mut self.tally;
        match step {
            WaveStep::Barrier { .. } => tally.barriers += 1,
            WaveStep::ProbesFailed { .. } => tally.probes_failed += 1,
            WaveStep::Extended { .. } => tally.extended += 1,
            WaveStep::Releasing { .. } => tally.released += 1,
            WaveStep::RolledBack { .. } => tally.rolled_back += 1,
            _ => {}
        }
        if wave != "w" {
            return;
        }
        self.steps.push((now, step.as_str().to_owned()));
        if let WaveStep::Freezing { instances } = step {
            self.members = members(instances);
        }
        let frozen = match step {
            WaveStep::Frozen => true,
            WaveStep::Releasing { .. } | WaveStep::RolledBack { .. } | WaveStep::WasOver => false,
            _ => return,
        };
        self.members.clone().iter().for_each(|name| self.note_frozen(name, frozen));
    }
}

/// The instances of a wave that has so many: a plan may have lost one before it began.
fn members(count: u64) -> Vec<&'static str> {
    let lost = count < INSTANCES.len() as u64;
    INSTANCES.into_iter().filter(|name| !lost || *name != LOST).collect()
}

/// Hears of events for the book.
pub struct Ear(pub Shared);

impl Observer for Ear {
    fn observe(&self, event: &Event<'_>) {
        let mut book = self.0.lock().unwrap();
        // What tasks say while a crash drops them is said by nobody.
        if book.life.is_none() {
            return;
        }
        book.say(&format!("{event:?}"));
        match event {
            Event::InDoubt { id, .. } => *book.doubts.entry(id.to_string()).or_default() += 1,
            Event::Wave { wave, step } => book.step(wave, *step),
            Event::ClockSuspect { .. } => book.tally.suspects += 1,
            _ => {}
        }
    }
}
