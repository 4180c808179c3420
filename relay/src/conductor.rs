//! Who drives the waves: freezes by the clock, waits for barriers, probes, releases, and does
//! what operators order. Floor 3.
//!
//! One task a process. It owns the order in which things happen: a step is written down first and
//! takes effect then (`waves::Waves::take_effect`), so that a crash between the two loses nothing
//! but time. Only freezing takes effect first, by the clock alone, in `waves`. What makes a step
//! due is `waves::Record::next`'s business; what an order does to a wave is `obey`'s.
//!
//! It wakes by the times of the plan, by the bell of `waves` (a barrier, a plan, an order, a round
//! of probes), and once a second to look at the clocks.

mod clock;
mod drain;
mod obey;
pub mod order;
mod probes;
mod report;
pub mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use self::{
    clock::{Change, Reading, Watch},
    drain::Drains,
    order::{Obeyed, Order, Refusal},
    probes::Probes,
    status::Status,
};
use crate::{
    event::{Event, WaveStep},
    plan::Timestamp,
    relay::Relay,
    waves::{Circumstances, Life, Record, Stage, Step, Targets},
};

/// The longest sleep: the clocks are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Steps that a wave may take at once: more than there are from beginning to end.
const STEPS: usize = 16;

/// Drives the waves of one relay.
pub struct Conductor {
    relay: Arc<Relay>,
    /// One step at a time: from the look to the effect.
    steps: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clock: Watch,
    suspect_since: Option<Timestamp>,
    probes: Probes,
    drains: Drains,
    /// How far each wave was told to have come by the clock.
    told: BTreeMap<String, (Timestamp, Stage)>,
    /// Waves of which it was told that they are blocked.
    blocked: BTreeSet<String>,
    /// Since when it cannot be written down how far waves have come, and why.
    not_written: Option<(Timestamp, String)>,
}

/// A wave that is to take steps.
struct Due {
    life: Life,
    record: Record,
    steps: Vec<Step>,
}

impl Conductor {
    /// The conductor of a relay. Nothing happens before `drive`.
    pub fn new(relay: &Arc<Relay>) -> Arc<Self> {
        let boot_id = relay.world.boot.boot_id();
        let clock = Watch::new(relay.queue.agreed(), boot_id);
        let state = State { clock, ..State::default() };
        Arc::new(Self {
            relay: Arc::clone(relay),
            steps: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        })
    }

    /// Drives the waves until the relay stops. A panic would be a bug of ours, and must not keep
    /// held mail for ever: it goes on.
    pub async fn drive(self: Arc<Self>) {
        while let Err(error) = tokio::spawn(Arc::clone(&self).run()).await {
            if !error.is_panic() {
                return;
            }
            tracing::error!("a panic stopped the conductor of waves, it goes on: please report it");
            tokio::time::sleep(TICK).await;
        }
    }

    async fn run(self: Arc<Self>) {
        while !self.relay.is_stopping() {
            self.step().await;
            tokio::select! {
                biased;
                () = self.relay.waves.changed() => {}
                () = tokio::time::sleep(self.pause()) => {}
            }
        }
    }

    /// Does what an operator orders; once it returns that it changed something, that is durable.
    /// It is finished though whoever ordered it has gone.
    pub async fn order(self: &Arc<Self>, order: Order) -> Result<Obeyed, Refusal> {
        let me = Arc::clone(self);
        match tokio::spawn(async move { me.obey(order).await }).await {
            Ok(outcome) => outcome,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// How everything stands.
    pub fn status(&self) -> Status {
        report::status(self)
    }

    /// One look at everything, and what follows from it.
    async fn step(self: &Arc<Self>) {
        let _one = self.steps.lock().await;
        let waves = &self.relay.waves;
        let now = waves.now();
        self.look_at_clocks(now);
        let lives = waves.lives(now);
        self.state().drains.count(&self.relay.queue, &lives, now);
        let due: Vec<Due> = lives.iter().filter_map(|life| self.due(life, now)).collect();
        self.tell_begun(&due);
        self.tell_blocked(&lives, now);
        let forgotten = waves.forgotten();
        if !due.is_empty() || !forgotten.is_empty() {
            // What cannot be written down is tried again at the next look.
            let _ = self.commit(due, &forgotten, now).await;
        }
        self.probe(&waves.lives(now));
    }

    /// Looks at the clocks before anything is decided by them.
    fn look_at_clocks(&self, now: Timestamp) {
        let Some(reading) = self.reading(now) else { return };
        let change = {
            let mut state = self.state();
            let change = state.clock.look(reading);
            match change {
                Change::None => {}
                Change::Parted(_) => state.suspect_since = Some(now),
                Change::Agree => state.suspect_since = None,
            }
            change
        };
        self.tell_clock(change);
    }

    fn tell_clock(&self, change: Change) {
        match change {
            Change::None => {}
            Change::Parted(apart_ms) => self.relay.emit(&Event::ClockSuspect { apart_ms }),
            Change::Agree => self.relay.emit(&Event::ClockAgrees),
        }
    }

    /// Both clocks; none where the machine does not tell its uptime.
    fn reading(&self, now: Timestamp) -> Option<Reading> {
        let boot = &self.relay.world.boot;
        Some(Reading { boot_id: boot.boot_id(), wall: now.0, boot: boot.since_boot()? })
    }

    /// The steps that a wave is to take, and whether anything of it is to be written down.
    fn due(&self, life: &Life, now: Timestamp) -> Option<Due> {
        let mut record = Record::clone(&life.record);
        let steps = self.advance(&mut record, now);
        let is_saved = life.saved.as_deref() == Some(&record);
        let is_due = record.stage != Stage::Planned && !is_saved;
        is_due.then(|| Due { life: life.clone(), record, steps })
    }

    /// Takes all steps that are due.
    fn advance(&self, record: &mut Record, now: Timestamp) -> Vec<Step> {
        let around = self.circumstances(record, now);
        let mut steps = Vec::new();
        while let Some(step) = record.next(&around) {
            if matches!(step, Step::Release | Step::RollBack) {
                record.held = self.held(record, now);
            }
            record.take(step, now);
            if step == Step::Freeze && around.clock_suspect {
                record.sure = false;
            }
            steps.push(step);
            // What is drained was counted before.
            if steps.len() == STEPS || matches!(step, Step::Release | Step::RollBack) {
                break;
            }
        }
        if around.clock_suspect && record.stage.holds() {
            record.sure = false;
        }
        steps
    }

    fn circumstances(&self, record: &Record, now: Timestamp) -> Circumstances {
        let conduct = self.relay.look().config.conduct.clone();
        let members = self.relay.waves.members(record, now);
        let state = self.state();
        Circumstances {
            now,
            clock_suspect: state.clock.is_suspect(),
            is_quiet: members.iter().all(|one| one.barrier),
            targets: match conduct.probe {
                true => state.probes.targets(record),
                false => Targets::Unasked,
            },
            is_drained: state.drains.is_drained(&record.wave),
            extension_ms: millis(conduct.extend_by),
        }
    }

    /// Messages of a wave that wait for their attempt.
    fn held(&self, record: &Record, now: Timestamp) -> u64 {
        let members = record.members.iter().map(|name| (Arc::from(name.as_str()), now));
        self.relay.queue.waiting_since_before(&members.collect()).values().sum()
    }

    /// Writes steps down, and has them take effect.
    async fn commit(
        &self,
        due: Vec<Due>,
        forgotten: &[String],
        now: Timestamp,
    ) -> Result<(), String> {
        let records: Vec<Arc<Record>> =
            due.iter().map(|due| Arc::new(due.record.clone())).collect();
        let agreed = {
            let state = self.state();
            if state.clock.is_suspect() { None } else { state.clock.encode() }
        };
        let queue = &self.relay.queue;
        let gone = records.iter().filter(|record| record.stage == Stage::Over);
        let gone: Vec<String> = gone.map(|record| record.wave.clone()).collect();
        let all_gone: Vec<String> = forgotten.iter().chain(&gone).cloned().collect();
        let kept = |record: &&Arc<Record>| !forgotten.contains(&record.wave);
        let kept: Vec<Arc<Record>> = records.iter().filter(kept).cloned().collect();
        let written = queue.keep_lives(&kept, &all_gone, agreed).await;
        if let Err(error) = written {
            let old = due.iter().map(|due| (due.record.wave.clone(), due.life.saved.clone()));
            queue.restore_lives(&old.collect::<Vec<_>>());
            let error = error.to_string();
            let is_first = self.state().not_written.replace((now, error.clone()));
            if let Some((since, _)) = is_first {
                self.state().not_written = Some((since, error.clone()));
                return Err(error);
            }
            let waves = due.first().map_or("-", |due| due.record.wave.as_str());
            self.tell(waves, WaveStep::NotWritten { error: &error });
            return Err(error);
        }
        self.state().not_written = None;
        let ends = |step: &Step| matches!(step, Step::Release | Step::RollBack | Step::End);
        let changes = |due: &Due| due.steps.iter().any(ends) || due.life.was_over;
        let lets_out = due.iter().any(changes);
        self.relay.waves.take_effect(records);
        // What `take_effect` has forgotten just now is off the disk already.
        self.relay.waves.forget(&all_gone);
        if lets_out {
            self.relay.queue.phases_changed();
        }
        due.iter().for_each(|due| self.tell_steps(due, now));
        Ok(())
    }

    /// Says what the clock has begun, once: it is so whether or not it can be written down.
    fn tell_begun(&self, due: &[Due]) {
        let mut is_new = false;
        for Due { life, record, .. } in due {
            let stage = record.stage.min(Stage::Frozen);
            let saved = life.saved.as_ref().filter(|saved| saved.opens == record.opens);
            let before = saved.map_or(Stage::Planned, |saved| saved.stage.min(Stage::Frozen));
            let told = {
                let mut state = self.state();
                let told = state.told.get(&record.wave).copied();
                state.told.insert(record.wave.clone(), (record.opens, stage));
                told.filter(|(opens, _)| *opens == record.opens).map(|(_, stage)| stage)
            };
            let before = told.unwrap_or(before);
            if life.was_over || before >= stage {
                continue;
            }
            is_new = true;
            if before < Stage::Freezing {
                let instances = record.members.len() as u64;
                self.tell(&record.wave, WaveStep::Freezing { instances });
            }
            if stage >= Stage::Frozen {
                self.tell(&record.wave, WaveStep::Frozen);
            }
        }
        if is_new {
            self.relay.queue.phases_changed();
        }
    }

    fn tell_steps(&self, due: &Due, now: Timestamp) {
        let Due { life, record, steps } = due;
        if life.was_over && life.saved.is_none() && record.stage == Stage::Migrated {
            self.tell(&record.wave, WaveStep::WasOver);
        }
        for step in steps {
            let since = |time: Option<Timestamp>| now.0.saturating_sub(time.unwrap_or(now).0);
            let step = match step {
                Step::Freeze | Step::Open | Step::Uncheck => continue,
                Step::Barrier => WaveStep::Barrier { after_ms: since(record.begun_at) },
                Step::Check => WaveStep::Checked,
                Step::Extend(until) => WaveStep::Extended { until: until.0 },
                Step::Release => WaveStep::Releasing { messages: record.held },
                Step::RollBack => WaveStep::RolledBack { messages: record.held },
                Step::End => WaveStep::Drained { after_ms: since(record.released_at) },
            };
            self.tell(&record.wave, step);
        }
    }

    /// Says which waves have had something in flight for too long.
    fn tell_blocked(&self, lives: &[Life], now: Timestamp) {
        let after = millis(self.relay.look().config.conduct.blocked_after);
        for record in lives.iter().map(|life| &life.record) {
            let waits = record.stage.is_frozen() && record.barrier_at.is_none();
            if !waits || now < record.opens.saturating_add_ms(after) {
                self.state().blocked.remove(&record.wave);
                continue;
            }
            if !self.state().blocked.insert(record.wave.clone()) {
                continue;
            }
            let members = self.relay.waves.members(record, now);
            let uncommitted = members.iter().map(|one| u64::from(one.in_flight.uncommitted)).sum();
            let in_doubt = members.iter().map(|one| u64::from(one.in_flight.in_doubt)).sum();
            self.tell(&record.wave, WaveStep::Blocked { uncommitted, in_doubt });
        }
    }

    /// Begins the rounds of probes that are due.
    fn probe(self: &Arc<Self>, lives: &[Life]) {
        let conduct = self.relay.look().config.conduct.clone();
        let known = |wave: &str| lives.iter().any(|life| life.record.wave == wave);
        self.state().probes.retain(known);
        if !conduct.probe {
            return;
        }
        for record in lives.iter().map(|life| &life.record) {
            let asks = record.stage.is_frozen() && !record.ad_hoc;
            if asks && self.state().probes.begin(record, conduct.probe_every) {
                let (me, record) = (Arc::clone(self), Arc::clone(record));
                let time = conduct.probe_timeout;
                tokio::spawn(async move { me.round(record, time).await });
            }
        }
    }

    /// One round of probes of a wave.
    async fn round(self: Arc<Self>, record: Arc<Record>, time: Duration) {
        let questions = probes::questions(&self.relay, &record);
        let permits = self.state().probes.permits();
        let found = probes::ask(Arc::clone(&self.relay), questions, permits, time).await;
        let failed = found.iter().filter(|one| !one.ok).count() as u64;
        let first = found.iter().find_map(|one| {
            let error = one.error.as_deref()?;
            Some(format!("{} at {} for {}: {error}", one.upstream, one.target, one.instance))
        });
        if let Some(first) = first {
            let probes = found.len() as u64;
            self.tell(&record.wave, WaveStep::ProbesFailed { failed, probes, first: &first });
        }
        self.state().probes.end(&record, found, self.relay.waves.now());
        self.relay.waves.ring();
    }

    /// How long until the clock makes something due.
    fn pause(&self) -> Duration {
        let now = self.relay.waves.now();
        let lives = self.relay.waves.lives(now);
        let times = lives.iter().map(|life| &life.record).map(|record| match record.stage {
            Stage::Planned => record.freezes,
            Stage::Freezing => record.opens,
            _ => record.closes,
        });
        let next = times.filter(|time| *time > now).min();
        next.map_or(TICK, |next| Duration::from_millis(next.0 - now.0)).min(TICK)
    }

    fn tell(&self, wave: &str, step: WaveStep<'_>) {
        self.relay.emit(&Event::Wave { wave, step });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 8)
}
