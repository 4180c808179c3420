//! Windows in force: the phase of each instance, and what of it is in flight. Floor 3.
//!
//! This is the window interlock. It is native and belongs to no generation: whatever policies
//! say, and whichever generation runs, no attempt starts or commits for an instance that may
//! not. A look at the phase and the registration as in flight are one step under the instance's
//! lock, against which a changed plan also has to come; so between "nothing is in flight" and
//! the end of the window nothing can begin to be.
//!
//! The phase is computed from the clock. (The issue on waves makes it durable; `phase` is the
//! one place where that is asked.)

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;

use crate::{
    plan::{Origin, Phase, Plan, Timestamp, Window},
    world::WallClock,
};

/// The plan in force with the state of its instances.
pub struct Waves {
    clock: Arc<dyn WallClock>,
    current: ArcSwap<PlanState>,
    /// Serialises changes of the plan.
    changing: Mutex<()>,
}

/// One plan and, for each of its instances, the state that outlives the plan.
pub struct PlanState {
    /// The plan.
    pub plan: Arc<Plan>,
    instances: Vec<Arc<InstanceState>>,
}

/// What the relay knows of one instance beyond its entry in the plan.
pub struct InstanceState {
    name: Arc<str>,
    inner: Mutex<Inner>,
}

struct Inner {
    window: Option<Window>,
    freeze_lead_ms: u64,
    in_flight: InFlight,
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
    /// Whether the barrier is reached: frozen, and nothing in flight.
    pub barrier: bool,
}

impl Waves {
    /// The plan in force from now on.
    pub fn new(plan: Arc<Plan>, clock: Arc<dyn WallClock>) -> Arc<Self> {
        let current = ArcSwap::from_pointee(PlanState::new(plan, &HashMap::new()));
        Arc::new(Self { clock, current, changing: Mutex::new(()) })
    }

    /// Puts another plan in force. Instances keep, by name, what is in flight.
    pub fn replace(&self, plan: Arc<Plan>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current.load();
        let known: HashMap<_, _> = old
            .instances
            .iter()
            .map(|state| (Arc::clone(&state.name), Arc::clone(state)))
            .collect();
        let next = PlanState::new(plan, &known);
        // An instance that left the plan has no window any more.
        for state in &old.instances {
            if !next.instances.iter().any(|kept| Arc::ptr_eq(kept, state)) {
                state.lock().window = None;
            }
        }
        self.current.store(Arc::new(next));
    }

    /// The plan in force.
    pub fn current(&self) -> arc_swap::Guard<Arc<PlanState>> {
        self.current.load()
    }

    /// The plan in force, to keep.
    pub fn current_owned(&self) -> Arc<PlanState> {
        self.current.load_full()
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
}

impl PlanState {
    fn new(plan: Arc<Plan>, known: &HashMap<Arc<str>, Arc<InstanceState>>) -> Self {
        let instances = plan
            .instances
            .iter()
            .enumerate()
            .map(|(index, instance)| {
                let window = plan.wave(index).map(|wave| wave.window.clone());
                match known.get(instance.name.as_str()) {
                    Some(state) => {
                        let mut inner = state.lock();
                        inner.window = window;
                        inner.freeze_lead_ms = plan.freeze_lead_ms;
                        drop(inner);
                        Arc::clone(state)
                    }
                    None => Arc::new(InstanceState {
                        name: instance.name.as_str().into(),
                        inner: Mutex::new(Inner {
                            window,
                            freeze_lead_ms: plan.freeze_lead_ms,
                            in_flight: InFlight::default(),
                        }),
                    }),
                }
            })
            .collect();
        Self { plan, instances }
    }

    /// The instance that a message belongs to.
    pub fn attribute(&self, origin: &Origin<'_>) -> Option<usize> {
        self.plan.attribute(origin)
    }

    /// The plan's index of an instance.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.instances.iter().position(|state| *state.name == *name)
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

impl InstanceState {
    /// The instance's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its phase and window at `now`.
    pub fn phase(&self, now: Timestamp) -> Phase {
        self.lock().phase(now)
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
        Ok(Attempt { instance: Some(Arc::clone(self)), after, committed: false })
    }

    /// What an operator sees.
    pub fn status(&self, now: Timestamp) -> InstanceStatus {
        let inner = self.lock();
        let phase = inner.phase(now);
        let in_flight = inner.in_flight;
        let barrier = !phase.may_commit() && in_flight == InFlight::default();
        InstanceStatus { name: Arc::clone(&self.name), phase, in_flight, barrier }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn phase(&self, now: Timestamp) -> Phase {
        Phase::at(self.window.as_ref(), self.freeze_lead_ms, now)
    }
}

/// An attempt in the registry, from its beginning to its end. Ends when dropped.
#[derive(Debug)]
pub struct Attempt {
    /// None for mail of no instance, which no window stops.
    instance: Option<Arc<InstanceState>>,
    /// Whether it began after the window: its route was chosen for that side.
    after: bool,
    committed: bool,
}

impl std::fmt::Debug for InstanceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Attempt {
    /// An attempt for mail of no instance.
    pub fn unattributed() -> Self {
        Self { instance: None, after: false, committed: false }
    }

    /// The look at the phase right before the end of data is written. May be asked again while
    /// it could not be written whole. An attempt that a whole window went by for is stopped too:
    /// its mail goes elsewhere now.
    pub fn commit(&mut self, now: Timestamp) -> Result<(), Blocked> {
        let Some(instance) = &self.instance else {
            self.committed = true;
            return Ok(());
        };
        let mut inner = instance.lock();
        let phase = inner.phase(now);
        if !phase.may_commit() || phase.is_after() != self.after {
            return Err(Blocked { phase });
        }
        if !self.committed {
            inner.in_flight.uncommitted -= 1;
            inner.in_flight.in_doubt += 1;
            self.committed = true;
        }
        Ok(())
    }

    /// The end of data was not written after all: the attempt is uncommitted again.
    pub fn uncommit(&mut self) {
        if let Some(instance) = &self.instance
            && self.committed
        {
            let mut inner = instance.lock();
            inner.in_flight.in_doubt -= 1;
            inner.in_flight.uncommitted += 1;
        }
        self.committed = false;
    }

    /// Whether the end of data may have been written.
    pub fn is_committed(&self) -> bool {
        self.committed
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(instance) = &self.instance {
            let mut inner = instance.lock();
            let count = if self.committed {
                &mut inner.in_flight.in_doubt
            } else {
                &mut inner.in_flight.uncommitted
            };
            *count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plan::{Instance, Matcher, Wave};

    struct Fixed(Mutex<Timestamp>);

    impl WallClock for Fixed {
        fn now(&self) -> Timestamp {
            *self.0.lock().unwrap()
        }
    }

    fn plan(opens: u64, closes: u64) -> Arc<Plan> {
        let instance = Instance {
            name: "a".into(),
            product: "p".into(),
            environment: "e".into(),
            matcher: Matcher { senders: vec!["a.example".into()], ..Matcher::default() },
            ..Instance::default()
        };
        let wave = Wave {
            window: Window { wave: "w".into(), opens: Timestamp(opens), closes: Timestamp(closes) },
            environment: "e".into(),
            instances: vec![0],
            ..Wave::default()
        };
        Arc::new(Plan::new(10, vec![instance], vec![wave]))
    }

    fn waves() -> Arc<Waves> {
        Waves::new(plan(100, 200), Arc::new(Fixed(Mutex::new(Timestamp(0)))))
    }

    #[test]
    fn an_attempt_that_began_may_commit_until_the_window_opens() {
        let waves = waves();
        let instance = Arc::clone(waves.current().instance(0));
        let mut attempt = instance.begin(Timestamp(89)).unwrap();
        assert_eq!(instance.begin(Timestamp(90)).unwrap_err().phase, Phase::Freezing);
        attempt.commit(Timestamp(99)).unwrap();
        assert_eq!(attempt.commit(Timestamp(100)).unwrap_err().phase, Phase::Frozen);
        let status = instance.status(Timestamp(100));
        assert_eq!((status.in_flight.in_doubt, status.barrier), (1, false));
        drop(attempt);
        assert!(instance.status(Timestamp(100)).barrier);
        assert!(!instance.status(Timestamp(200)).barrier);
        instance.begin(Timestamp(200)).unwrap();
    }

    #[test]
    fn a_plan_that_brings_the_window_forward_stops_attempts_that_began() {
        let waves = waves();
        let instance = Arc::clone(waves.current().instance(0));
        let mut attempt = instance.begin(Timestamp(10)).unwrap();
        waves.replace(plan(20, 200));
        assert!(attempt.commit(Timestamp(20)).is_err());
        assert!(!instance.status(Timestamp(20)).barrier);
        assert!(Arc::ptr_eq(&instance, waves.current().instance(0)));
        drop(attempt);
        assert!(instance.status(Timestamp(20)).barrier);
    }

    #[test]
    fn an_attempt_does_not_commit_on_the_other_side_of_the_window() {
        let waves = waves();
        let instance = Arc::clone(waves.current().instance(0));
        let mut before = instance.begin(Timestamp(89)).unwrap();
        assert_eq!(before.commit(Timestamp(200)).unwrap_err().phase, Phase::Migrated);
        let mut after = instance.begin(Timestamp(200)).unwrap();
        after.commit(Timestamp(201)).unwrap();
        waves.replace(plan(1000, 2000));
        assert_eq!(after.commit(Timestamp(202)).unwrap_err().phase, Phase::Scheduled);
    }

    #[test]
    fn an_attempt_that_is_uncommitted_again_counts_once() {
        let waves = waves();
        let instance = Arc::clone(waves.current().instance(0));
        let mut attempt = instance.begin(Timestamp(1)).unwrap();
        let flying = || instance.status(Timestamp(1)).in_flight;
        for _ in 0..2 {
            attempt.commit(Timestamp(1)).unwrap();
            attempt.commit(Timestamp(1)).unwrap();
            assert_eq!(flying(), InFlight { uncommitted: 0, in_doubt: 1 });
            attempt.uncommit();
            attempt.uncommit();
            assert_eq!(flying(), InFlight { uncommitted: 1, in_doubt: 0 });
        }
        drop(attempt);
        assert_eq!(flying(), InFlight::default());
    }

    #[test]
    fn an_instance_that_left_the_plan_has_no_window() {
        let waves = waves();
        let instance = Arc::clone(waves.current().instance(0));
        waves.replace(Arc::new(Plan::default()));
        assert_eq!(instance.phase(Timestamp(150)), Phase::Unscheduled);
    }
}
