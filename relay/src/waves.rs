//! Windows in force: the phase of each instance, what of it is in flight, and the lives of the
//! waves that decide it. Floor 3.
//!
//! This is the window interlock. It is native and belongs to no generation: whatever policies
//! say, and whichever generation runs, no attempt starts or commits for an instance that may
//! not. A look at the phase and the registration as in flight are one step under the instance's
//! lock (`instance`), against which every change of a wave also has to come; so between "nothing
//! is in flight" and the end of the window nothing can begin to be.
//!
//! A phase follows from the wave's slot, the clock, and how far the wave has come (`life`), which
//! `conductor` writes down (`record`) before it takes effect here. Only freezing takes effect
//! first. A wave that has begun keeps its slot and its instances until it is over, whatever a new
//! plan says (`overlay`). This module writes nothing itself.

mod instance;
mod life;
mod overlay;
mod record;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use self::instance::Span;
pub use self::{
    instance::{Attempt, Blocked, InFlight, InstanceState, InstanceStatus},
    life::{Circumstances, Record, Stage, Step, Targets},
    record::{RecordError, is_record, key},
};
use crate::{
    plan::{Origin, Plan, Timestamp, Window},
    world::WallClock,
};

/// The plan in force with the state of its instances, and the lives of its waves.
pub struct Waves {
    clock: Arc<dyn WallClock>,
    current: ArcSwap<PlanState>,
    /// Serialises changes.
    book: Mutex<Book>,
    bell: Arc<Notify>,
}

/// One plan and, for each of its instances, the state that outlives the plan.
pub struct PlanState {
    /// The plan, with waves that have begun as they were when they began.
    pub plan: Arc<Plan>,
    instances: Vec<Arc<InstanceState>>,
    by_name: HashMap<Arc<str>, usize>,
}

/// The life of one wave, in effect and on disk.
#[derive(Clone, Debug)]
pub struct Life {
    /// As it is in effect.
    pub record: Arc<Record>,
    /// As it is on disk, if it is.
    pub saved: Option<Arc<Record>>,
    /// It was over when this relay saw it first.
    pub was_over: bool,
}

struct Book {
    /// As the file has it.
    plan: Arc<Plan>,
    lives: BTreeMap<String, Life>,
    /// Tells plans apart by how they recognise mail.
    matchers: u64,
    /// Waves whose life on disk means nothing any more.
    forgotten: Vec<String>,
}

impl Waves {
    /// The plan in force from now on, with what earlier processes wrote down of its waves.
    pub fn new(plan: Arc<Plan>, clock: Arc<dyn WallClock>, records: Vec<Record>) -> Arc<Self> {
        let lives = records.into_iter().map(|record| {
            let record = Arc::new(record);
            let life = Life { saved: Some(Arc::clone(&record)), record, was_over: false };
            (life.record.wave.clone(), life)
        });
        let book = Book {
            plan: Arc::default(),
            lives: lives.collect(),
            matchers: 0,
            forgotten: Vec::new(),
        };
        let waves = Self {
            clock,
            current: ArcSwap::from_pointee(PlanState::empty()),
            book: Mutex::new(book),
            bell: Arc::new(Notify::new()),
        };
        waves.replace(plan);
        Arc::new(waves)
    }

    /// Puts another plan in force. Instances keep, by name, what is in flight; waves that have
    /// begun keep what they have until they are over.
    pub fn replace(&self, plan: Arc<Plan>) {
        let mut guard = self.book();
        let book = &mut *guard;
        let now = self.now();
        self.begin_by_clock(book, now);
        let known = std::mem::take(&mut book.lives);
        let (mut kept, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for (id, life) in known {
            match life.record.stage {
                Stage::Planned => {}
                stage if stage.is_running() || life.record.ad_hoc => _ = kept.insert(id, life),
                _ => _ = ended.insert(id, life),
            }
        }
        for wave in &plan.waves {
            let id = &wave.window.wave;
            if kept.contains_key(id) {
                continue;
            }
            let life = match ended.remove(id) {
                Some(life) if life.record.is_of(wave) => life,
                _ => Life::of_plan(Record::of_plan(&plan, wave), now),
            };
            kept.insert(id.clone(), life);
        }
        let gone = ended.into_iter().filter(|(_, life)| life.saved.is_some());
        book.forgotten.extend(gone.map(|(id, _)| id));
        book.matchers = fingerprint(&plan);
        for life in kept.values_mut().filter(|life| life.record.stage.holds()) {
            // Whose mail is whose may be another matter now.
            if life.record.sure && life.record.matchers != book.matchers {
                life.record = Arc::new(Record { sure: false, ..Record::clone(&life.record) });
            }
        }
        book.lives = kept;
        book.plan = plan;
        self.rebuild(book, now);
        drop(guard);
        self.bell.notify_one();
    }

    /// Why a plan must not replace the one in force, if it must not: what it says otherwise of
    /// waves that have begun.
    pub fn contradictions(&self, plan: &Plan) -> Vec<String> {
        let book = self.book();
        let begun = book.lives.values().filter(|life| life.record.stage.is_running());
        begun.flat_map(|life| overlay::contradictions(plan, &life.record)).collect()
    }

    /// Instances of waves that have begun which the plan in force does not know: nobody can say
    /// which mail is theirs.
    pub fn lost_instances(&self) -> Vec<(String, String)> {
        let mut held = self.held_instances();
        let state = self.current.load();
        held.retain(|(_, name)| state.index_of(name).is_none());
        held
    }

    /// The instances whose mail a wave holds, each behind its wave.
    pub fn held_instances(&self) -> Vec<(String, String)> {
        let book = self.book();
        let begun = book.lives.values().filter(|life| life.record.stage.holds());
        let held = begun.flat_map(|life| {
            let members = life.record.members.iter();
            members.map(|name| (life.record.wave.clone(), name.clone())).collect::<Vec<_>>()
        });
        held.collect()
    }

    /// The plan in force.
    pub fn current(&self) -> arc_swap::Guard<Arc<PlanState>> {
        self.current.load()
    }

    /// The plan in force, to keep.
    pub fn current_owned(&self) -> Arc<PlanState> {
        self.current.load_full()
    }

    /// The plan as its file has it.
    pub fn filed(&self) -> Arc<Plan> {
        Arc::clone(&self.book().plan)
    }

    /// The time of day, as windows see it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// All instances, in the plan's order.
    pub fn status(&self) -> Vec<InstanceStatus> {
        let now = self.now();
        self.current.load().instances.iter().map(|state| state.status(now)).collect()
    }

    /// Those of a wave.
    pub fn members(&self, record: &Record, now: Timestamp) -> Vec<InstanceStatus> {
        let state = self.current.load();
        let places = record.members.iter().filter_map(|name| state.index_of(name));
        places.map(|place| state.instances[place].status(now)).collect()
    }

    /// Waits until a plan has come, or nothing of some frozen instance is in flight any more.
    pub async fn changed(&self) {
        self.bell.notified().await;
    }

    /// Says that something has changed.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    /// The lives of all waves, once the clock has begun what it begins.
    pub fn lives(&self, now: Timestamp) -> Vec<Life> {
        let mut book = self.book();
        self.begin_by_clock(&mut book, now);
        book.lives.values().cloned().collect()
    }

    /// The life of one wave, likewise.
    pub fn life(&self, wave: &str, now: Timestamp) -> Option<Life> {
        let mut book = self.book();
        self.begin_by_clock(&mut book, now);
        book.lives.get(wave).cloned()
    }

    /// Waves whose life on disk means nothing any more.
    pub fn forgotten(&self) -> Vec<String> {
        self.book().forgotten.clone()
    }

    /// These are gone from the disk.
    pub fn forget(&self, gone: &[String]) {
        self.book().forgotten.retain(|id| !gone.contains(id));
    }

    /// A freeze without a plan takes effect. It is on disk or not.
    pub fn freeze(&self, mut record: Record) {
        let mut book = self.book();
        record.matchers = book.matchers;
        let life = Life { record: Arc::new(record), saved: None, was_over: false };
        book.lives.insert(life.record.wave.clone(), life);
        let now = self.now();
        self.rebuild(&mut book, now);
    }

    /// This is on disk, and takes effect.
    pub fn take_effect(&self, records: Vec<Arc<Record>>) {
        let mut guard = self.book();
        let book = &mut *guard;
        let now = self.now();
        let was_overlaid = book.is_overlaid();
        let mut changed: Vec<String> = Vec::new();
        for record in records {
            let id = record.wave.clone();
            if record.stage == Stage::Over {
                book.lives.remove(&id);
                book.forgotten.push(id);
            } else if let Some(life) = book.lives.get_mut(&id) {
                // A plan that came meanwhile may have made another of one that had not begun.
                let is_same = life.record.opens == record.opens;
                if !is_same {
                    continue;
                }
                let unsure = !life.record.sure && record.sure;
                life.saved = Some(Arc::clone(&record));
                life.record = match unsure {
                    true => Arc::new(Record { sure: false, ..Record::clone(&record) }),
                    false => Arc::clone(&record),
                };
            }
            changed.extend(record.members.iter().cloned());
        }
        if was_overlaid || book.is_overlaid() {
            self.rebuild(book, now);
        } else {
            let state = self.current.load();
            let spans = book.spans();
            for place in changed.iter().filter_map(|name| state.index_of(name)) {
                let instance = &state.instances[place];
                instance.set(spans.get(&**instance.name()).cloned().unwrap_or_default(), now);
            }
        }
    }

    /// Freezing that the clock has begun has begun.
    fn begin_by_clock(&self, book: &mut Book, now: Timestamp) {
        let state = self.current.load();
        for life in book.lives.values_mut() {
            if life.record.stage != Stage::Planned {
                continue;
            }
            let mut places = life.record.members.iter().filter_map(|name| state.index_of(name));
            let seen = |place: usize| state.instances[place].has_begun(&life.record);
            if now >= life.record.freezes || places.any(seen) {
                let mut record = Record::clone(&life.record);
                record.take(Step::Freeze, now);
                record.matchers = book.matchers;
                life.record = Arc::new(record);
            }
        }
    }

    /// Makes the plan in force from the file's and from the waves that have begun.
    fn rebuild(&self, book: &mut Book, now: Timestamp) {
        let old = self.current.load();
        let plan = match book.is_overlaid() {
            false => Arc::clone(&book.plan),
            true => {
                let other = |record: &&Record| !overlay::agrees(&book.plan, record);
                let begun = book.begun().filter(other);
                Arc::new(overlay::over(&book.plan, begun, Some(&old.plan)))
            }
        };
        let next = PlanState::new(plan, &old, &self.bell);
        let spans = book.spans();
        for state in &next.instances {
            state.set(spans.get(&**state.name()).cloned().unwrap_or_default(), now);
        }
        for state in &old.instances {
            if next.index_of(state.name()).is_none() {
                state.set(Vec::new(), now);
            }
        }
        self.current.store(Arc::new(next));
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    fn of_plan(mut record: Record, now: Timestamp) -> Self {
        let was_over = record.closes <= now;
        if was_over {
            record.was_over();
        }
        Self { record: Arc::new(record), saved: None, was_over }
    }
}

impl Book {
    fn begun(&self) -> impl Iterator<Item = &Record> {
        let records = self.lives.values().map(|life| &*life.record);
        records.filter(|record| record.stage.is_running())
    }

    /// Whether waves have begun that the file says otherwise of.
    fn is_overlaid(&self) -> bool {
        self.begun().any(|record| !overlay::agrees(&self.plan, record))
    }

    /// The waves of each instance: those that have begun, and the plan's.
    fn spans(&self) -> HashMap<String, Vec<Span>> {
        let mut found: HashMap<String, Vec<Span>> = HashMap::new();
        let mut add = |name: &str, span: Span| match found.get_mut(name) {
            Some(spans) => spans.push(span),
            None => _ = found.insert(name.to_owned(), vec![span]),
        };
        let ids = self.plan.waves.iter().map(|wave| wave.window.wave.as_str());
        let places: HashMap<&str, usize> = ids.zip(0..).collect();
        for life in self.lives.values() {
            let record = &*life.record;
            let window: Arc<Window> = Arc::new(record.window());
            if record.stage.is_running() {
                record.members.iter().for_each(|name| add(name, Span::new(record, &window)));
                continue;
            }
            let wave = places.get(record.wave.as_str()).copied();
            let Some(wave) = wave.filter(|_| !record.ad_hoc) else { continue };
            for &index in &self.plan.waves[wave].instances {
                if self.plan.wave_of[index] == Some(wave) {
                    add(&self.plan.instances[index].name, Span::new(record, &window));
                }
            }
        }
        found
    }
}

/// Tells plans apart by how they recognise mail.
fn fingerprint(plan: &Plan) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for instance in &plan.instances {
        hasher.update(format!("{:?} {:?}\n", instance.name, instance.matcher).as_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl PlanState {
    fn empty() -> Self {
        Self { plan: Arc::default(), instances: Vec::new(), by_name: HashMap::new() }
    }

    fn new(plan: Arc<Plan>, old: &Self, bell: &Arc<Notify>) -> Self {
        let state = |name: &str| match old.index_of(name) {
            Some(index) => Arc::clone(&old.instances[index]),
            None => InstanceState::new(name, bell),
        };
        let instances: Vec<_> = plan.instances.iter().map(|one| state(&one.name)).collect();
        let names = instances.iter().map(|state| Arc::clone(state.name()));
        let by_name = names.zip(0..).collect();
        Self { plan, instances, by_name }
    }

    /// The instance that a message belongs to.
    pub fn attribute(&self, origin: &Origin<'_>) -> Option<usize> {
        self.plan.attribute(origin)
    }

    /// The plan's index of an instance.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Whether mail of no instance from `client` might be a frozen instance's.
    pub fn owner_may_not_start(&self, client: IpAddr, now: Timestamp) -> Option<usize> {
        self.plan.owner_of_network(client, |index| !self.instances[index].phase(now).may_start())
    }

    /// The state of the plan's `index`th instance.
    pub fn instance(&self, index: usize) -> &Arc<InstanceState> {
        &self.instances[index]
    }
}

#[cfg(test)]
mod tests;
