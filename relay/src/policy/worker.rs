//! The warm instances of one worker thread, and the calls. Floor 2.
//!
//! A call runs on the calling thread and does not wait for anything; one on a leash is given up
//! soon and asked elsewhere (`aside`). An instance is made at its
//! first call, made anew after a failure, and recycled after a random number of calls.

use std::{ops::Range, sync::Arc};

use tokio::time::Instant;

use super::{
    aside::Late,
    bindings::Needs,
    failure::{FailureKind, PolicyFailure},
    host::PolicyHost,
    instance::{Instance, Owner},
    set::{Hook, Policy, PolicySet},
    shadow::{Heard, Lane},
    stats::Count,
    tap::{Call, Wanted},
};
use crate::{
    decision::{
        AttemptOutcome, FreezeDecision, Lesson, LimitSet, RouteDecision, Transaction,
        record::{Answer, Ask},
    },
    plan::Timestamp,
};

/// Calls after which the instances of a set that was replaced are given up, unless it is still
/// asked: messages that were at the gate when it was replaced end with it.
const KEEP_PREVIOUS: u32 = 1000;

/// One call in so many is measured: two looks at the clock cost a small policy a twentieth.
const TIMED_EVERY: u32 = 16;

/// The warm instances of one worker. Not shared between threads: each worker has one.
#[derive(Debug)]
pub struct WorkerPolicies {
    host: Arc<PolicyHost>,
    random: Random,
    current: Option<Warm>,
    previous: Option<Warm>,
    /// Calls to the current set since the previous one was last asked.
    since_previous: u32,
    until_audit: u32,
    until_timed: u32,
    last_fuel: Option<u64>,
    leash: bool,
    late: Option<Late>,
    /// Where it leaves questions to shadows.
    lane: Option<Arc<Lane>>,
}

/// The instances of one set.
struct Warm {
    set: Arc<PolicySet>,
    instances: Vec<Option<Instance>>,
    /// Calls in a second that the set's ladder does not know of yet.
    second: u64,
    calls: u64,
}

impl WorkerPolicies {
    /// Makes a worker's keeper of instances; it holds none yet.
    pub fn new(host: Arc<PolicyHost>) -> Self {
        let mut random = Random::new(host.worker_seed());
        let until_audit = random.about(host.options.audit_every);
        Self {
            host,
            random,
            current: None,
            previous: None,
            since_previous: 0,
            until_audit,
            until_timed: 0,
            last_fuel: None,
            leash: false,
            late: None,
            lane: None,
        }
    }

    /// Makes the instances of a set ready, so that the first message does not wait for them.
    pub fn warm(&mut self, set: &Arc<PolicySet>) -> Result<(), PolicyFailure> {
        for policy in (0..set.policies().len()).filter(|&policy| set.policies()[policy].is_live()) {
            self.instance(set, policy)?;
        }
        Ok(())
    }

    /// Gives up the instances of every set but this one. A worker that has nothing to do may
    /// call it when a set is replaced.
    pub fn retire(&mut self, keep: &Arc<PolicySet>) {
        for slot in [&mut self.current, &mut self.previous] {
            if slot.as_ref().is_some_and(|warm| warm.set.id() != keep.id()) {
                *slot = None;
            }
        }
    }

    /// May this message go now? `policy` is one of [`PolicySet::freezers`].
    pub fn freeze(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        tx: &Transaction<'_>,
    ) -> Result<FreezeDecision, PolicyFailure> {
        self.call(set, policy, Ask::Decide(tx), |instance, needs| instance.decide(tx, needs))
    }

    /// Where does it go? `policy` is one of [`PolicySet::routers`].
    pub fn route(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        tx: &Transaction<'_>,
    ) -> Result<RouteDecision, PolicyFailure> {
        self.call(set, policy, Ask::Route(tx), |instance, needs| instance.route(tx, needs))
    }

    /// How fast may these recipients go to `upstream`? `recipients` are indexes into the
    /// transaction's, `policy` is one of [`PolicySet::throttlers`].
    pub fn limits(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        tx: &Transaction<'_>,
        upstream: &str,
        recipients: &[u32],
    ) -> Result<LimitSet, PolicyFailure> {
        let ask = Ask::Limits { tx, upstream, recipients };
        self.call(set, policy, ask, |instance, needs| {
            instance.limits(tx, needs, upstream, recipients)
        })
    }

    /// What does it learn from an outcome? `policy` is one of [`PolicySet::observers`].
    pub fn observe(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        outcome: &AttemptOutcome<'_>,
    ) -> Result<Vec<Lesson>, PolicyFailure> {
        self.call(set, policy, Ask::Observe(outcome), |instance, _| instance.observe(outcome))
    }

    /// For measurement: one warm call of the policy's first hook with nothing around it, no
    /// counting, recycling, audit or failure ladder. `upstream` is what `limits` is asked for.
    pub fn bare_call(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        tx: &Transaction<'_>,
        upstream: &str,
    ) -> Result<(), PolicyFailure> {
        let needs = set.policies()[policy].needs();
        let exports = &set.policies()[policy].template.exports;
        let (freeze, routing) = (exports.has_freeze(), exports.has_routing());
        let instance = self.instance(set, policy)?;
        if freeze {
            instance.decide(tx, needs).map(drop)
        } else if routing {
            instance.route(tx, needs).map(drop)
        } else {
            instance.limits(tx, needs, upstream, &[0]).map(drop)
        }
    }

    /// Makes one call that is given up when it is not done soon: then what it gives is worth nothing,
    /// and the answer comes later.
    pub fn on_leash<R>(&mut self, call: impl FnOnce(&mut Self) -> R) -> (R, Option<Late>) {
        self.leash = true;
        let answer = call(self);
        self.leash = false;
        (answer, self.late.take())
    }

    /// What came later.
    pub fn heard(&mut self, late: Late, said: &Result<Answer, PolicyFailure>) {
        let Late { set, policy, question, wanted, .. } = late;
        question.with(|ask| {
            if let Err(failure) = said {
                self.failed(&set, policy, ask.message(), ask.now(), failure);
            }
            self.tell(&set, policy, ask, wanted, said.as_ref());
        });
    }

    /// Fuel that the last call took; none where epochs bound calls.
    pub fn last_fuel(&self) -> Option<u64> {
        self.last_fuel
    }

    /// Has the shadows asked that are one more policy at `hook`, and whose indexes are in `those`.
    pub fn beside(&mut self, set: &Arc<PolicySet>, hook: Hook, those: Range<usize>, ask: Ask<'_>) {
        for shadow in set.added(hook).iter().filter(|shadow| those.contains(&shadow.policy)) {
            let shadow = std::slice::from_ref(shadow);
            self.host.shadower.ask(&mut self.lane, set, shadow, ask, None);
        }
    }

    /// One call with everything around it.
    fn call<R: Clone + Into<Answer>>(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        ask: Ask<'_>,
        call: impl FnOnce(&mut Instance, &Needs) -> Result<R, PolicyFailure>,
    ) -> Result<R, PolicyFailure>
    where
        for<'a> Heard<'a>: From<&'a R>,
    {
        let wanted = self.host.wanted(&set.policies()[policy], ask);
        let answer = self.answer(set, policy, ask, call);
        match &mut self.late {
            // Its answer comes later, and so do they.
            Some(late) => late.wanted = wanted,
            None => self.tell(set, policy, ask, wanted, answer.as_ref()),
        }
        answer
    }

    /// Tells of an answer all who are beside the path: the decision log, shadows, the audit.
    fn tell<R: Clone + Into<Answer>>(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        ask: Ask<'_>,
        wanted: Option<Wanted>,
        answer: Result<&R, &PolicyFailure>,
    ) where
        for<'a> Heard<'a>: From<&'a R>,
    {
        // Before the others, which are no part of the call's time.
        if let Some(wanted) = wanted {
            let fuel = self.last_fuel.filter(|_| answer.is_ok());
            let said = answer.cloned().map(Into::into).map_err(Clone::clone);
            wanted.tell(Call { set, policy, ask, said, fuel });
        }
        let shadows = set.shadows_of(policy);
        if !shadows.is_empty() {
            self.host.shadower.ask(
                &mut self.lane,
                set,
                shadows,
                ask,
                Some(answer.map(Heard::from)),
            );
        }
        if let Ok(answer) = answer
            && self.is_audited()
        {
            self.audit(set, policy, ask, answer.clone().into());
        }
    }

    /// One call, counted, and what becomes of a failure.
    fn answer<R>(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        ask: Ask<'_>,
        call: impl FnOnce(&mut Instance, &Needs) -> Result<R, PolicyFailure>,
    ) -> Result<R, PolicyFailure> {
        let (message, now) = (ask.message(), ask.now());
        let entry = &set.policies()[policy];
        if message.is_some_and(|message| set.is_parked(policy, message)) {
            let failure = PolicyFailure::parked();
            entry.stats().count(Count::Failure(failure.kind));
            return Err(failure);
        }
        entry.stats().count(Count::Call);
        self.warm_of(set).count(now);
        let call_budget = entry.template.shared.call;
        let leash = call_budget.on_leash().filter(|_| self.leash);
        let begun = self.is_timed().then(Instant::now);
        let answer = match self.instance(set, policy) {
            Ok(instance) => {
                instance.budget = leash.unwrap_or(call_budget);
                let answer = call(instance, entry.needs());
                if let Some(begun) = begun {
                    let took = begun.elapsed().as_nanos();
                    entry.stats().observe_time(u64::try_from(took).unwrap_or(u64::MAX));
                }
                instance.calls_left = instance.calls_left.saturating_sub(1);
                let recycle = instance.calls_left == 0;
                self.last_fuel = instance.fuel_used();
                if answer.is_err() {
                    self.give_up(set, policy);
                } else if recycle {
                    self.give_up(set, policy);
                    entry.stats().count(Count::Recycled);
                }
                answer
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Err(failure) if leash.is_some() && failure.kind == FailureKind::Timeout => {
                Err(self.put_aside(set, policy, ask, failure))
            }
            Err(failure) => {
                self.failed(set, policy, message, now, &failure);
                Err(failure)
            }
            Ok(answer) => Ok(answer),
        }
    }

    /// Has a question asked elsewhere that takes too long here.
    #[cold]
    fn put_aside(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        ask: Ask<'_>,
        failure: PolicyFailure,
    ) -> PolicyFailure {
        set.policies()[policy].stats().count(Count::Slow);
        self.late = self.host.aside.as_ref().and_then(|aside| aside.ask(set, policy, ask));
        if self.late.is_some() {
            return failure;
        }
        let failure = PolicyFailure::crowded();
        self.failed(set, policy, ask.message(), ask.now(), &failure);
        failure
    }

    /// The warm instance of a policy, made if there is none.
    fn instance(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
    ) -> Result<&mut Instance, PolicyFailure> {
        let recycle_after = self.host.options.recycle_after;
        let missing = self.warm_of(set).instances[policy].is_none();
        let calls = if missing { self.random.about(recycle_after) } else { 0 };
        let slot = &mut self.warm_of(set).instances[policy];
        match slot {
            Some(instance) => Ok(instance),
            None => {
                let entry = &set.policies()[policy];
                entry.stats().count(Count::Instance);
                Ok(slot.insert(Instance::ready(&entry.template, Owner::Worker, calls)?))
            }
        }
    }

    fn give_up(&mut self, set: &Arc<PolicySet>, policy: usize) {
        self.warm_of(set).instances[policy] = None;
    }

    /// The instances of a set. A newer set takes the place of the current one, which is kept for
    /// a while as the previous one.
    fn warm_of(&mut self, set: &Arc<PolicySet>) -> &mut Warm {
        let is = |slot: &Option<Warm>| slot.as_ref().is_some_and(|warm| warm.set.id() == set.id());
        if is(&self.current) {
            if self.previous.is_some() {
                self.since_previous += 1;
                if self.since_previous > KEEP_PREVIOUS {
                    self.previous = None;
                }
            }
        } else if is(&self.previous) {
            self.since_previous = 0;
            return self.previous.get_or_insert_with(|| Warm::new(set));
        } else {
            // A condemned set gives way to an older one, so the order of ids says nothing.
            self.previous = self.current.take();
            self.since_previous = 0;
        }
        self.current.get_or_insert_with(|| Warm::new(set))
    }

    #[cold]
    fn failed(
        &mut self,
        set: &Arc<PolicySet>,
        policy: usize,
        message: Option<&str>,
        now: Timestamp,
        failure: &PolicyFailure,
    ) {
        let entry: &Policy = &set.policies()[policy];
        entry.stats().count(Count::Failure(failure.kind));
        self.warm_of(set).flush();
        let step = set.ladder.note(policy, message, failure.kind, now);
        let second = now.0 / 1000;
        if entry.stats().last_log.swap(second, std::sync::atomic::Ordering::Relaxed) != second {
            tracing::warn!(
                policy = entry.name(),
                message,
                kind = failure.kind.as_str(),
                detail = failure.detail,
                "a policy failed"
            );
        }
        if step.parked {
            entry.stats().count(Count::ParkedMessage);
            tracing::warn!(
                policy = entry.name(),
                message,
                "a policy failed on a message three \
                times and is not asked about it again"
            );
        }
        if let Some(condemned) = step.condemned {
            tracing::error!(
                set = condemned.set,
                messages = condemned.messages,
                failures = condemned.failures,
                calls = condemned.calls,
                "the policies of this generation fail on too many messages"
            );
            if let Some(tell) = &self.host.options.on_condemned {
                tell(condemned);
            }
        }
    }

    /// Whether this call is one of those to measure.
    fn is_timed(&mut self) -> bool {
        let is_timed = self.until_timed == 0;
        self.until_timed = if is_timed { TIMED_EVERY - 1 } else { self.until_timed - 1 };
        is_timed
    }

    /// Whether this call is one of those to repeat.
    fn is_audited(&mut self) -> bool {
        if self.host.options.audit_every == 0 {
            return false;
        }
        self.until_audit = self.until_audit.saturating_sub(1);
        if self.until_audit > 0 {
            return false;
        }
        self.until_audit = self.random.about(self.host.options.audit_every);
        true
    }

    #[cold]
    fn audit(&mut self, set: &Arc<PolicySet>, policy: usize, ask: Ask<'_>, answer: Answer) {
        self.host.auditor.repeat(Arc::clone(set), policy, ask.to_question(), answer);
    }
}

impl Warm {
    fn new(set: &Arc<PolicySet>) -> Self {
        let instances = set.policies().iter().map(|_| None).collect();
        Self { set: Arc::clone(set), instances, second: 0, calls: 0 }
    }

    /// Counts a call; the ladder hears of them once a second.
    fn count(&mut self, now: Timestamp) {
        let second = now.0 / 1000;
        if second != self.second {
            self.flush();
            self.second = second;
        }
        self.calls += 1;
    }

    fn flush(&mut self) {
        if self.calls > 0 {
            self.set.ladder.add_calls(self.second, self.calls);
            self.calls = 0;
        }
    }
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let warm = self.instances.iter().flatten().count();
        f.debug_struct("Warm").field("set", &self.set.id()).field("instances", &warm).finish()
    }
}

/// A small random number generator (splitmix64): it spreads, it keeps no secret.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Half of `mean` to one and a half of it, at least 1.
    fn about(&mut self, mean: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let spread = mixed % (u64::from(mean) + 1);
        let value = u64::from(mean) / 2 + spread;
        u32::try_from(value).unwrap_or(u32::MAX).max(1)
    }
}
