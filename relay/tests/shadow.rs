//! Shadows in the policy host: who is asked what, how answers are compared, and that nothing comes
//! of them. The guest is `tests/guests/hostile`.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use wavegate::{
    config::{Mode, PluginSource, PolicyConfig},
    decision::{
        AttemptOutcome, FreezeDecision, Transaction,
        record::{Ask, Class},
    },
    policy::{
        FailureKind, Hook, HostOptions, PolicyHost, PolicySet, PolicyStats, ShadowCounts,
        ShadowMode, WorkerPolicies,
    },
};

use crate::guest::{self, HOSTILE, cache};

fn live(name: &str, told: &str) -> PolicyConfig {
    PolicyConfig {
        settings: format!("{{\"do\":\"{told}\"}}"),
        timeout: Duration::from_millis(20),
        place: "relay.toml:7".to_owned(),
        ..PolicyConfig::new(name.to_owned(), PluginSource::Builtin("hostile".to_owned()))
    }
}

fn shadow(name: &str, told: &str, percent: u32, replaces: Option<&str>) -> PolicyConfig {
    let mode = Mode::Shadow { percent, replaces: replaces.map(str::to_owned) };
    PolicyConfig { mode, ..live(name, told) }
}

struct Bench {
    host: Arc<PolicyHost>,
    worker: WorkerPolicies,
    set: Arc<PolicySet>,
}

impl Bench {
    /// Asks shadows at once, and is bounded by fuel.
    fn inline(policies: &[PolicyConfig]) -> Self {
        Self::with(HostOptions { instances: 16, ..HostOptions::simulation(1) }, policies)
    }

    fn with(options: HostOptions, policies: &[PolicyConfig]) -> Self {
        let options = HostOptions { audit_every: 0, ..options };
        let host = PolicyHost::new(Some(cache().join("compiled")), options).unwrap();
        let set = load(&host, policies);
        Self { worker: WorkerPolicies::new(Arc::clone(&host)), host, set }
    }

    fn freeze(&mut self, tx: &Transaction<'_>) -> FreezeDecision {
        self.worker.freeze(&self.set, 0, tx).unwrap()
    }

    fn stats(&self, name: &str) -> Arc<PolicyStats> {
        self.host.stats().into_iter().find(|stats| stats.name() == name).unwrap()
    }

    fn counts(&self, name: &str) -> ShadowCounts {
        self.stats(name).shadow()
    }

    fn class(&self, name: &str, class: Class) -> u64 {
        self.counts(name).of(class)
    }

    /// Waits for the thread.
    fn settled(&self, name: &str, questions: u64) -> ShadowCounts {
        let begun = Instant::now();
        loop {
            let counts = self.counts(name);
            if counts.asked + counts.dropped == questions {
                return counts;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{counts:?} of {questions}");
            std::thread::yield_now();
        }
    }
}

fn transaction(id: &str, bucket: u32) -> Transaction<'_> {
    Transaction { bucket, ..guest::transaction(id) }
}

fn load(host: &PolicyHost, policies: &[PolicyConfig]) -> Arc<PolicySet> {
    let upstreams = ["legacy".to_owned(), "cloud".to_owned()];
    host.load(policies, &[], &upstreams, &|name| (name == "hostile").then_some(HOSTILE)).unwrap()
}

#[test]
fn a_shadow_is_asked_what_the_live_one_is_asked_and_changes_nothing() {
    let policies = [
        live("p", "nothing"),
        shadow("same", "nothing", 100, Some("p")),
        shadow("holds", "long-reason", 100, Some("p")),
        shadow("refuses", "refuse", 100, Some("p")),
        shadow("traps", "trap", 100, Some("p")),
        shadow("loops", "loop", 100, Some("p")),
        shadow("lies", "reply-250", 100, Some("p")),
        shadow("routes", "abstain", 100, Some("p")),
        shadow("limits", "no-cost", 100, Some("p")),
        shadow("learns", "faster", 100, Some("p")),
    ];
    let mut bench = Bench::inline(&policies);
    let set = Arc::clone(&bench.set);
    assert_eq!(
        (set.freezers(), set.routers(), set.throttlers(), set.observers()),
        (&[0][..], &[0][..], &[0][..], &[0][..])
    );
    let tx = transaction("m", 5000);
    assert_eq!(bench.freeze(&tx), FreezeDecision::Proceed);
    bench.worker.route(&set, 0, &tx).unwrap();
    bench.worker.limits(&set, 0, &tx, "cloud", &[0, 1]).unwrap();
    let keys = ["k".to_owned()];
    let outcome =
        AttemptOutcome { upstream: "cloud", keys: &keys, code: 421, text: "x", now: tx.now };
    bench.worker.observe(&set, 0, &outcome).unwrap();
    let classes = |name: &str| {
        let counts = bench.counts(name);
        assert_eq!((counts.asked, counts.dropped), (4, 0), "{name}");
        let all = Class::ALL.iter().filter(|&&class| counts.of(class) > 0);
        all.map(|&class| (class, counts.of(class))).collect::<Vec<_>>()
    };
    assert_eq!(classes("same"), [(Class::Same, 4)]);
    for name in ["holds", "refuses"] {
        assert_eq!(classes(name), [(Class::Same, 3), (Class::Harder, 1)], "{name}");
    }
    for name in ["traps", "loops", "lies", "limits", "learns"] {
        assert_eq!(classes(name), [(Class::Same, 3), (Class::Error, 1)], "{name}");
    }
    assert_eq!(classes("routes"), [(Class::Same, 3), (Class::Route, 1)]);
    let report = bench.stats("traps").shadow_report().unwrap();
    assert_eq!(report.failures[FailureKind::Trap as usize], 1);
    let [example] = &report.examples[..] else { panic!("{report:?}") };
    assert_eq!(example.message.as_deref(), Some("m"));
    assert_eq!((example.function, &*example.old), ("freeze.decide", "proceed"));
    assert!(example.new.starts_with("failed: trap: "), "{}", example.new);
    // Under its own name, and as nothing that a live policy is watched by.
    let stats = bench.stats("traps");
    assert_eq!((stats.calls(), stats.failures(FailureKind::Trap)), (0, 0));
    assert_eq!(bench.stats("p").calls(), 4);
    assert!(bench.stats("p").shadow_report().is_none());
}

#[test]
fn a_shadow_that_fails_condemns_nothing_and_parks_nothing() {
    let mut bench = Bench::inline(&[live("p", "nothing"), shadow("s", "trap", 100, Some("p"))]);
    for number in 0..500 {
        let id = format!("m{}", number % 100);
        assert_eq!(bench.freeze(&transaction(&id, 0)), FreezeDecision::Proceed);
        assert!(!bench.set.is_parked(1, &id));
    }
    assert!(!bench.set.is_condemned());
    assert_eq!(bench.class("s", Class::Error), 500);
    let report = bench.stats("s").shadow_report().unwrap();
    assert_eq!(report.examples.len(), 5, "the last few");
    assert_eq!(report.examples[4].message.as_deref(), Some("m99"));
}

#[test]
fn a_live_policy_that_fails_cannot_be_compared_with() {
    let mut bench = Bench::inline(&[live("p", "trap"), shadow("s", "nothing", 100, Some("p"))]);
    let set = Arc::clone(&bench.set);
    assert!(bench.worker.freeze(&set, 0, &transaction("m", 0)).is_err());
    assert_eq!(bench.class("s", Class::NotReplayable), 1);
}

#[test]
fn the_same_messages_are_always_asked_about() {
    let policies = [
        live("p", "nothing"),
        shadow("none", "refuse", 0, Some("p")),
        shadow("half", "refuse", 50, Some("p")),
        shadow("all", "refuse", 100, Some("p")),
    ];
    let mut bench = Bench::inline(&policies);
    for bucket in [0, 4999, 5000, 9999, 4999] {
        bench.freeze(&transaction("m", bucket));
    }
    let asked = ["none", "half", "all"].map(|name| bench.counts(name).asked);
    assert_eq!(asked, [0, 3, 5]);
}

#[test]
fn one_more_policy_is_compared_with_none() {
    let policies = [
        shadow("first", "refuse", 100, None),
        live("p", "nothing"),
        shadow("last", "nothing", 100, None),
    ];
    let mut bench = Bench::inline(&policies);
    let set = Arc::clone(&bench.set);
    assert_eq!((set.freezers(), set.routers()), (&[1][..], &[1][..]));
    let tx = transaction("m", 0);
    for hook in Hook::ALL {
        assert!(set.has_added(hook));
    }
    bench.worker.beside(&set, Hook::Freeze, 0..usize::MAX, Ask::Decide(&tx));
    bench.worker.beside(&set, Hook::Routing, 0..1, Ask::Route(&tx));
    let limits = Ask::Limits { tx: &tx, upstream: "cloud", recipients: &[0] };
    bench.worker.beside(&set, Hook::Throttling, 0..usize::MAX, limits);
    let classes = |name, classes: [Class; 4]| classes.map(|class| bench.class(name, class));
    let wanted = [Class::Same, Class::Harder, Class::Route, Class::LimitsOnly];
    assert_eq!(classes("first", wanted), [0, 1, 1, 1]);
    assert_eq!(classes("last", wanted), [1, 0, 0, 1], "it had no turn as a router");
}

#[test]
fn counts_outlive_a_reload_and_a_report_is_of_one_component_and_settings() {
    let mut bench = Bench::inline(&[live("p", "nothing"), shadow("s", "refuse", 100, Some("p"))]);
    bench.freeze(&transaction("one", 0));
    let first = bench.stats("s").shadow_report().unwrap();
    let reload = |bench: &mut Bench, policies: &[PolicyConfig]| {
        bench.set = load(&bench.host, policies);
        bench.freeze(&transaction("two", 0));
        bench.stats("s").shadow_report().unwrap()
    };
    // It is live, as it was before it was a shadow; then a shadow again, as it was.
    let again = reload(&mut bench, &[live("p", "nothing"), live("s", "nothing")]);
    assert_eq!(again, first);
    let again = reload(&mut bench, &[live("p", "nothing"), shadow("s", "refuse", 100, Some("p"))]);
    assert_eq!((again.counts.asked, again.examples.len()), (2, 2));
    let other = reload(&mut bench, &[live("p", "nothing"), shadow("s", "defer", 100, Some("p"))]);
    assert_eq!((other.counts.asked, other.examples.len()), (1, 1));
    assert_eq!(bench.counts("s").asked, 3);
}

#[test]
fn a_worker_never_waits_for_a_slow_shadow() {
    const QUESTIONS: u64 = 5000;
    let policies = [
        live("p", "nothing"),
        shadow("slow", "loop", 100, Some("p")),
        shadow("good", "nothing", 100, Some("p")),
    ];
    let options = HostOptions { instances: 16, ..HostOptions::production(1) };
    let mut bench = Bench::with(options, &policies);
    for _ in 0..QUESTIONS {
        assert_eq!(bench.freeze(&transaction("m", 0)), FreezeDecision::Proceed);
    }
    let slow = bench.settled("slow", QUESTIONS);
    assert!(slow.asked >= 1 && slow.dropped > QUESTIONS / 2, "{slow:?}");
    assert_eq!(slow.of(Class::Error), slow.asked);
    let good = bench.settled("good", QUESTIONS);
    assert_eq!(good.of(Class::Same), good.asked);
    // One that loops keeps the thread for no more than its turn.
    bench.freeze(&transaction("m", 0));
    assert_eq!(bench.settled("good", QUESTIONS + 1).asked, good.asked + 1);
}

#[test]
fn the_end_does_not_wait_for_a_shadow() {
    let mut policies = [live("p", "nothing"), shadow("slow", "loop", 100, Some("p"))];
    policies[1].timeout = Duration::from_secs(3600);
    let options = HostOptions { instances: 16, ..HostOptions::production(1) };
    let mut bench = Bench::with(options, &policies);
    bench.freeze(&transaction("m", 0));
    let begun = Instant::now();
    drop(bench);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn nobody_is_asked_where_shadows_are_off() {
    let options = HostOptions { shadow: ShadowMode::Off, ..HostOptions::simulation(1) };
    let options = HostOptions { instances: 16, ..options };
    let policies = [live("p", "nothing"), shadow("s", "refuse", 100, Some("p"))];
    let mut bench = Bench::with(options, &policies);
    bench.freeze(&transaction("m", 0));
    assert_eq!(bench.counts("s"), ShadowCounts::default());
}
