//! The policy host against guests that misbehave. The guest is `tests/guests/hostile`: what it
//! does wrong is picked by its settings. Components that no honest toolchain makes are put
//! together from bytes here.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
};

use wavegate::{
    config::{FailMode, PluginSource, PolicyConfig, TableConfig},
    decision::{
        AttemptOutcome, ConcurrencyLimit, FreezeDecision, InstanceView, Lesson, LimitSet,
        RateLimit, RouteDecision, Transaction,
        record::{Answer, Ask},
    },
    plan::{Phase, Timestamp, Window},
    policy::{
        AuditMode, Condemnation, FailureKind, Fresh, Hook, HostOptions, PolicyError, PolicyHost,
        PolicyProblem, PolicySet, WorkerPolicies,
    },
};

use crate::guest::{HOSTILE, cache, transaction};

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

fn options() -> HostOptions {
    HostOptions { instances: 16, audit_every: 0, ..HostOptions::production(1) }
}

fn host(options: HostOptions) -> Arc<PolicyHost> {
    PolicyHost::new(Some(cache().join("compiled")), options).unwrap()
}

fn config(name: &str, settings: &str) -> PolicyConfig {
    PolicyConfig {
        settings: settings.to_owned(),
        memory: 16 * 1024 * 1024,
        place: "relay.toml:7".to_owned(),
        ..PolicyConfig::new(name.to_owned(), PluginSource::Builtin("hostile".to_owned()))
    }
}

fn load(host: &PolicyHost, policies: &[PolicyConfig]) -> Result<Arc<PolicySet>, Vec<PolicyError>> {
    load_bytes(host, policies, HOSTILE)
}

fn load_bytes(
    host: &PolicyHost,
    policies: &[PolicyConfig],
    wasm: &'static [u8],
) -> Result<Arc<PolicySet>, Vec<PolicyError>> {
    let entries = BTreeMap::from([("a@x.example".to_owned(), "blue".to_owned())]);
    let tables = [TableConfig { name: "colours".to_owned(), entries }];
    let upstreams = ["legacy".to_owned(), "cloud".to_owned()];
    host.load(policies, &tables, &upstreams, &|name| (name == "hostile").then_some(wasm))
}

/// A worker with one policy that was told what to do.
struct Bench {
    worker: WorkerPolicies,
    set: Arc<PolicySet>,
}

impl Bench {
    fn new(told: &str) -> Self {
        Self::with(options(), told)
    }

    fn with(options: HostOptions, told: &str) -> Self {
        let host = host(options);
        let set = load(&host, &[config("p", &format!("{{\"do\":\"{told}\"}}"))]).unwrap();
        Self { worker: WorkerPolicies::new(host), set }
    }

    fn freeze(&mut self, tx: &Transaction<'_>) -> Result<FreezeDecision, FailureKind> {
        self.worker.freeze(&self.set, 0, tx).map_err(|failure| failure.kind)
    }

    fn route(&mut self, tx: &Transaction<'_>) -> Result<RouteDecision, FailureKind> {
        self.worker.route(&self.set, 0, tx).map_err(|failure| failure.kind)
    }

    fn limits(&mut self, tx: &Transaction<'_>) -> Result<LimitSet, FailureKind> {
        self.worker.limits(&self.set, 0, tx, "cloud", &[0, 1]).map_err(|failure| failure.kind)
    }

    fn stats(&self) -> Arc<wavegate::policy::PolicyStats> {
        Arc::clone(self.set.policies()[0].stats())
    }
}

fn reason(decision: Result<FreezeDecision, FailureKind>) -> String {
    match decision.unwrap() {
        FreezeDecision::Hold { reason, until: None } => reason,
        other => panic!("not a hold: {other:?}"),
    }
}

fn problems(errors: Result<Arc<PolicySet>, Vec<PolicyError>>) -> Vec<PolicyProblem> {
    errors.unwrap_err().into_iter().map(|error| error.problem).collect()
}

#[test]
fn an_honest_policy_is_described_configured_and_asked() {
    let mut bench = Bench::new("nothing");
    let policy = &bench.set.policies()[0];
    assert_eq!(policy.description().name, "hostile");
    assert_eq!(policy.description().metrics, ["seen_total"]);
    assert_eq!(policy.needs().attributes, ["helo", "header:subject"], "lower case, once each");
    assert_eq!(policy.fail_mode(Hook::Freeze), FailMode::Hold);
    assert_eq!(policy.fail_mode(Hook::Routing), FailMode::Defer);
    assert_eq!(policy.fail_mode(Hook::Throttling), FailMode::Ignore);
    assert_eq!(bench.set.freezers(), [0]);
    assert_eq!(bench.set.routers(), [0]);
    assert_eq!(bench.set.throttlers(), [0]);
    assert_eq!(bench.set.observers(), [0]);
    let tx = transaction("1");
    assert_eq!(bench.freeze(&tx), Ok(FreezeDecision::Proceed));
    assert!(matches!(bench.route(&tx), Ok(RouteDecision::All(to)) if to.upstream == "legacy"));
    let rate =
        RateLimit { key: "cloud/2".to_owned(), quantity: 10, per_ms: 1000, burst: 5, cost: 1 };
    let cap = ConcurrencyLimit { key: "cloud".to_owned(), limit: 3 };
    assert_eq!(bench.limits(&tx), Ok(LimitSet { rates: vec![rate], concurrency: vec![cap] }));
    let outcome = AttemptOutcome {
        upstream: "cloud",
        keys: &["k".to_owned()],
        code: 450,
        text: "slow down",
        now: Timestamp(5),
    };
    assert_eq!(
        bench.worker.observe(&bench.set, 0, &outcome).unwrap(),
        [Lesson::Pause { key: "k".to_owned(), until: Timestamp(1005) }]
    );
    let stats = bench.stats();
    assert_eq!((stats.calls(), stats.instances()), (4, 1), "one warm instance for all");
}

#[test]
fn a_guest_gets_the_whole_transaction_and_only_the_attributes_it_asked_for() {
    let mut bench = Bench::new("echo");
    let window = Window { wave: "prod-01".to_owned(), opens: Timestamp(11), closes: Timestamp(22) };
    let attribute = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let attributes = [
        attribute("tls", "TLSv1.3"),
        attribute("header:subject", "one"),
        attribute("helo", "mx.example"),
        attribute("header:subject", "two"),
    ];
    let tx = Transaction {
        sender: "",
        client: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        instance: Some(InstanceView {
            name: "acme-prod-1",
            product: "campaign",
            environment: "production",
            phase: Phase::Freezing,
            window: Some(&window),
            before: "legacy",
            after: "cloud",
        }),
        attributes: &attributes,
        ..transaction("m-1")
    };
    let mut seen = String::new();
    // A reason is cut at 400 bytes; the record is a little longer in Rust's own notation.
    for part in [tx, Transaction { instance: None, ..tx }] {
        seen.push_str(&reason(bench.freeze(&part)));
    }
    for expected in [
        "id: \"m-1\"",
        "now: 1700000000000",
        "client: \"2001:db8::1\"",
        "sender: \"\"",
        "recipients: [\"b@y.example\", \"c@z.example\"]",
        "size: 10000",
        "name: \"acme-prod-1\"",
        "phase: \"freezing\"",
        "bucket: 4321",
        "attributes: [(\"helo\", \"mx.example\"), (\"header:subject\", \"one\"), \
         (\"header:subject\", \"two\")]",
    ] {
        assert!(seen.contains(expected), "{expected} is not in {seen}");
    }
    assert!(!seen.contains("TLSv1.3"));
}

#[test]
fn every_sixteenth_call_is_measured() {
    let mut bench = Bench::new("nothing");
    for call in 0..33 {
        assert!(bench.freeze(&transaction(&call.to_string())).is_ok());
    }
    let stats = bench.stats();
    assert_eq!(stats.time_buckets().iter().sum::<u64>(), 3, "the first, and each 16th after it");
    assert!(stats.time_sum_ns() > 0);
}

#[test]
fn a_fresh_instance_answers_like_a_warm_one_and_says_what_it_took() {
    let options = HostOptions { audit_every: 0, ..HostOptions::simulation(1) };
    let mut bench = Bench::with(options, "echo");
    let tx = transaction("m-1");
    let warm = bench.worker.freeze(&bench.set, 0, &tx).unwrap();
    let mut fresh = Fresh::new(&bench.set, 0).unwrap();
    let question = Ask::Decide(&tx).to_question();
    let first = fresh.ask(&question).unwrap();
    assert_eq!(first, Answer::Decide(warm));
    assert_eq!(fresh.ask(&question), Ok(first));
    assert!(fresh.fuel().is_some_and(|fuel| fuel > 1000), "{:?}", fresh.fuel());
    assert!((64 << 10..16 << 20).contains(&fresh.memory()), "{}", fresh.memory());
    assert_eq!(bench.stats().calls(), 1, "only mail is counted");
}

#[test]
fn an_endless_loop_is_stopped() {
    let mut bench = Bench::new("loop");
    assert_eq!(bench.freeze(&transaction("1")), Err(FailureKind::Timeout));
    assert_eq!(bench.stats().failures(FailureKind::Timeout), 1);
    assert!(bench.route(&transaction("2")).is_ok(), "the next instance is a fresh one");
    assert_eq!(bench.stats().instances(), 2);
}

#[test]
fn fuel_stops_an_endless_loop_at_the_same_place_every_time() {
    let mut bench =
        Bench::with(HostOptions { audit_every: 0, ..HostOptions::simulation(1) }, "loop");
    assert_eq!(bench.freeze(&transaction("1")), Err(FailureKind::Timeout));
    let mut used = Vec::new();
    for _ in 0..2 {
        let mut again =
            Bench::with(HostOptions { audit_every: 0, ..HostOptions::simulation(1) }, "nothing");
        assert!(again.freeze(&transaction("1")).is_ok());
        used.push(again.worker.last_fuel().unwrap());
    }
    assert!(used[0] > 0);
    assert_eq!(used[0], used[1]);
}

#[test]
fn an_allocation_bomb_is_stopped() {
    // Time enough to be refused memory, however busy the machine is.
    let timeout = std::time::Duration::from_secs(10);
    let policy = PolicyConfig { timeout, ..config("p", "{\"do\":\"allocate\"}") };
    let host = host(options());
    let set = load(&host, &[policy]).unwrap();
    let mut bench = Bench { worker: WorkerPolicies::new(host), set };
    assert_eq!(bench.freeze(&transaction("1")), Err(FailureKind::Memory));
}

#[test]
fn a_trap_costs_the_instance_only() {
    let mut bench = Bench::new("trap");
    assert_eq!(bench.freeze(&transaction("1")), Err(FailureKind::Trap));
    assert!(bench.route(&transaction("1")).is_ok());
    assert_eq!(bench.stats().instances(), 2);
}

#[test]
fn deep_recursion_is_stopped() {
    let mut bench = Bench::new("recurse");
    let kind = bench.freeze(&transaction("1")).unwrap_err();
    assert_eq!(kind, FailureKind::Trap);
}

#[test]
fn a_huge_answer_is_refused() {
    let mut bench = Bench::with(options(), "huge");
    assert_eq!(bench.freeze(&transaction("1")), Err(FailureKind::BadAnswer));
}

#[test]
fn reasons_are_escaped_and_cut() {
    let text = reason(Bench::new("control").freeze(&transaction("1")));
    assert_eq!(text, "one\\u{d}\\u{a}250 two\\u{202e}\\u{1b}[31m");
    let text = reason(Bench::new("long-reason").freeze(&transaction("1")));
    assert_eq!(text, "\u{e9}".repeat(200));
}

#[test]
fn replies_must_fit_the_decision() {
    assert!(matches!(
        Bench::new("defer").freeze(&transaction("1")),
        Ok(FreezeDecision::Defer(reply)) if reply.code == 451 && reply.enhanced == "4.7.1"
    ));
    assert!(matches!(
        Bench::new("refuse").freeze(&transaction("1")),
        Ok(FreezeDecision::Refuse(reply)) if reply.code == 550 && reply.text == "never"
    ));
    for told in [
        "reply-class",
        "reply-421",
        "reply-250",
        "reply-enhanced",
        "reply-form",
        "reply-text",
        "reply-long",
    ] {
        let answer = Bench::new(told).freeze(&transaction("1"));
        assert_eq!(answer, Err(FailureKind::BadAnswer), "{told}");
    }
}

#[test]
fn routes_must_name_known_upstreams_and_every_recipient_once() {
    assert_eq!(Bench::new("abstain").route(&transaction("1")), Ok(RouteDecision::Abstain));
    let split = Bench::new("split").route(&transaction("1")).unwrap();
    assert!(matches!(split, RouteDecision::Split(shares) if shares.len() == 2));
    for told in [
        "split-missing",
        "split-double",
        "split-beyond",
        "split-empty",
        "unknown-upstream",
        "fallbacks",
    ] {
        let answer = Bench::new(told).route(&transaction("1"));
        assert_eq!(answer, Err(FailureKind::BadAnswer), "{told}");
    }
}

#[test]
fn limits_must_be_sane() {
    for told in ["many-rates", "cost", "no-cost", "no-period", "long-key", "many-caps", "no-cap"] {
        let answer = Bench::new(told).limits(&transaction("1"));
        assert_eq!(answer, Err(FailureKind::BadAnswer), "{told}");
    }
    let outcome =
        AttemptOutcome { upstream: "cloud", keys: &[], code: 0, text: "", now: Timestamp(5) };
    for told in ["many-lessons", "faster"] {
        let Bench { mut worker, set } = Bench::new(told);
        let failure = worker.observe(&set, 0, &outcome).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BadAnswer, "{told}");
    }
}

#[test]
fn logs_metrics_and_tables_are_bounded() {
    let mut bench = Bench::new("chatter");
    assert!(bench.freeze(&transaction("1")).is_ok());
    let stats = bench.stats();
    assert_eq!(stats.log_dropped(), 100 + 1 - 16);
    assert_eq!(stats.metrics_ignored(), 1);
    assert_eq!(stats.custom(), [("seen_total".to_owned(), 3)]);
    let mut bench = Bench::new("table");
    assert_eq!(reason(bench.freeze(&transaction("1"))), "blue");
    let stranger = Transaction { sender: "nobody@x.example", ..transaction("2") };
    assert_eq!(reason(bench.freeze(&stranger)), "nothing");
}

#[test]
fn an_impure_policy_is_found_by_the_audit() {
    let audited = || HostOptions { audit_every: 1, audit: AuditMode::Inline, ..options() };
    let mut bench = Bench::with(audited(), "impure");
    for _ in 0..10 {
        bench.freeze(&transaction("1")).unwrap();
    }
    let stats = bench.stats();
    assert!(stats.audit_runs() >= 5);
    // The first call is the same in a fresh instance; only later ones differ.
    assert!(stats.audit_differences() + 1 >= stats.audit_runs());
    assert_eq!(stats.custom(), [("seen_total".to_owned(), 0)]);
    let mut bench = Bench::with(audited(), "chatter");
    for _ in 0..10 {
        bench.freeze(&transaction("1")).unwrap();
        bench.route(&transaction("1")).unwrap();
        bench.limits(&transaction("1")).unwrap();
    }
    let stats = bench.stats();
    assert!(stats.audit_runs() >= 15);
    assert_eq!(stats.audit_differences(), 0);
    assert_eq!(stats.custom(), [("seen_total".to_owned(), 30)], "an audit counts nothing twice");
}

#[test]
fn one_call_in_256_is_audited() {
    let options = HostOptions { audit_every: 256, audit: AuditMode::Inline, ..options() };
    let mut bench = Bench::with(options, "nothing");
    for _ in 0..256 * 40 {
        bench.freeze(&transaction("1")).unwrap();
    }
    assert!((30..=50).contains(&bench.stats().audit_runs()), "{}", bench.stats().audit_runs());
}

#[test]
fn instances_are_recycled() {
    let mut bench = Bench::with(HostOptions { recycle_after: 10, ..options() }, "nothing");
    for _ in 0..1000 {
        bench.freeze(&transaction("1")).unwrap();
    }
    assert!((67..=200).contains(&bench.stats().recycled()), "{}", bench.stats().recycled());
}

#[test]
fn a_poison_message_is_parked_and_condemns_nothing() {
    let mut bench = Bench::new("trap-on-poison");
    let poison = Transaction { sender: "poison@x.example", ..transaction("poison") };
    for _ in 0..3 {
        assert_eq!(bench.freeze(&poison), Err(FailureKind::Trap));
        assert_eq!(bench.freeze(&transaction("good")), Ok(FreezeDecision::Proceed));
    }
    let instances = bench.stats().instances();
    for _ in 0..100 {
        assert_eq!(bench.freeze(&poison), Err(FailureKind::Parked));
    }
    assert!(bench.set.is_parked(0, "poison"));
    let stats = bench.stats();
    assert_eq!(stats.instances(), instances, "it is not asked any more");
    assert_eq!(stats.parked_messages(), 1);
    assert_eq!(stats.failures(FailureKind::Trap), 3);
    assert_eq!(stats.failures(FailureKind::Parked), 100);
    assert_eq!(bench.freeze(&transaction("good")), Ok(FreezeDecision::Proceed));
    assert!(!bench.set.is_condemned());
}

#[test]
fn many_messages_that_fail_condemn_the_set_once() {
    let told = Arc::new(Mutex::new(Vec::<Condemnation>::new()));
    let hear = Arc::clone(&told);
    let options = HostOptions {
        on_condemned: Some(Arc::new(move |condemned| hear.lock().unwrap().push(condemned))),
        ..options()
    };
    let mut bench = Bench::with(options, "trap");
    for message in 0..20 {
        assert!(bench.freeze(&transaction(&message.to_string())).is_err());
    }
    assert!(!bench.set.is_condemned());
    for message in 20..40 {
        assert!(bench.freeze(&transaction(&message.to_string())).is_err());
    }
    assert!(bench.set.is_condemned());
    let id = bench.set.id();
    assert_eq!(
        *told.lock().unwrap(),
        [Condemnation { set: id, messages: 21, failures: 21, calls: 21 }]
    );
}

#[test]
fn what_is_not_a_policy_is_refused_by_name() {
    let host = host(options());
    let refused =
        |wasm: &[u8]| problems(load_bytes(&host, &[config("p", "{}")], wasm.to_vec().leak()));
    assert!(matches!(refused(b"")[..], [PolicyProblem::NotWasm]));
    assert!(matches!(refused(b"#!/bin/sh\nexit\n")[..], [PolicyProblem::NotWasm]));
    assert!(matches!(refused(MODULE)[..], [PolicyProblem::CoreModule]));
    assert!(matches!(refused(&HOSTILE[..HOSTILE.len() / 2])[..], [PolicyProblem::Invalid(_)]));
    assert!(matches!(
        refused(EMPTY_COMPONENT)[..],
        [PolicyProblem::NoLifecycle, PolicyProblem::NoHook]
    ));
    load(&host, &[config("p", "{}")]).unwrap();
    let files = compiled(&cache().join("compiled"));
    let code = files.iter().find(|path| path.extension().is_some_and(|it| it == "cwasm"));
    let code = fs::read(code.unwrap()).unwrap();
    assert!(matches!(refused(&code)[..], [PolicyProblem::Precompiled]));
}

/// A component that imports an empty instance of this name.
fn importing(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    let mut wasm = EMPTY_COMPONENT.to_vec();
    // Type section: one instance type without declarations.
    wasm.extend([7, 3, 1, 0x42, 0]);
    // Import section: one import by name, of an instance of type 0.
    wasm.extend([10, length + 5, 1, 0, length]);
    wasm.extend(name.as_bytes());
    wasm.extend([5, 0]);
    wasm
}

/// A component that imports an empty instance and exports it under this name.
fn exporting(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    let mut wasm = importing("wavegate:policy/types@0.1.0");
    // Export section: instance 0 under the name, without a type.
    wasm.extend([11, length + 6, 1, 0, length]);
    wasm.extend(name.as_bytes());
    wasm.extend([5, 0, 0]);
    wasm
}

#[test]
fn imports_and_exports_outside_the_contract_are_refused_with_an_explanation() {
    let host = host(options());
    let refused = |wasm: Vec<u8>| {
        let errors = load_bytes(&host, &[config("p", "{}")], wasm.leak()).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let text = refused(importing("wasi:http/types@0.2.3"));
    assert!(text.contains("relay.toml:7: policy \"p\": it imports wasi:http"), "{text}");
    assert!(text.contains("there is no network"), "{text}");
    let text = refused(importing("acme:greylist/store@1.0.0"));
    assert!(text.contains("acme:greylist/store@1.0.0, which the relay does not have"), "{text}");
    let text = refused(importing("wavegate:policy/tables@0.2.0"));
    assert!(text.contains("built for wavegate:policy/tables@0.2.0; this relay has"), "{text}");
    let text = refused(exporting("wavegate:policy/freeze@2.0.0"));
    assert!(
        text.contains(
            "wavegate:policy/freeze@2.0.0; this relay has wavegate:policy 0.1.0 and 1.0.0"
        ),
        "{text}"
    );
    assert!(text.contains("does not export lifecycle of wavegate:policy"), "{text}");
    let text = refused(exporting("wavegate:policy/freeze@1.0.0"));
    assert!(text.contains("uses wavegate:policy 0.1.0 and 1.0.0 together"), "{text}");
    let text = refused(exporting("wavegate:policy/shaping@0.1.0"));
    assert!(text.contains("exports wavegate:policy/shaping@0.1.0, which is not in"), "{text}");
}

#[test]
fn every_problem_of_every_policy_is_reported() {
    let host = host(options());
    let with = |told: &str| config("p", &format!("{{\"do\":\"{told}\"}}"));
    let missing = PluginSource::File("/nonexistent/policy.wasm".into());
    let errors = load(
        &host,
        &[
            with("diagnostics"),
            with("no-reason"),
            with("many-attributes"),
            with("strange-attribute"),
            PolicyConfig { plugin: missing, ..with("") },
            PolicyConfig { plugin: PluginSource::Builtin("gone".to_owned()), ..with("") },
            PolicyConfig { fail: Some(FailMode::Ignore), ..with("") },
            PolicyConfig { memory: 0, ..with("") },
            PolicyConfig { memory: 64 * 1024, ..with("") },
        ],
    )
    .unwrap_err();
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "relay.toml:7: policy \"p\": settings.limits[0].rate: is not a rate",
        "relay.toml:7: policy \"p\": settings: something\\u{d}\\u{a}else",
        "relay.toml:7: policy \"p\": configure: it refused the settings",
        "relay.toml:7: policy \"p\": configure: 17 attributes; at most 16 are allowed",
        "relay.toml:7: policy \"p\": configure: there is no attribute \"favourite-colour\"; there",
        "relay.toml:7: policy \"p\": cannot read /nonexistent/policy.wasm: No such file",
        "relay.toml:7: policy \"p\": there is no built-in policy \"gone\"",
        "relay.toml:7: policy \"p\": a freeze policy cannot have fail = \"ignore\"",
        "relay.toml:7: policy \"p\": memory must be 64 KiB to",
        "relay.toml:7: policy \"p\": it failed in instantiation: memory:",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
}

#[test]
fn a_policy_that_loops_in_configure_is_refused() {
    let host = host(options());
    let problems = problems(load(&host, &[config("p", "{\"do\":\"configure-loop\"}")]));
    assert!(matches!(
        &problems[..],
        [PolicyProblem::Failed { during: "configure", failure }]
            if failure.kind == FailureKind::Timeout
    ));
}

#[test]
fn a_full_pool_is_the_hosts_failure() {
    let host = host(HostOptions { instances: 1, ..options() });
    let set = load(&host, &[config("p", "{}")]).unwrap();
    let mut first = WorkerPolicies::new(Arc::clone(&host));
    let mut second = WorkerPolicies::new(host);
    first.warm(&set).unwrap();
    let failure = second.freeze(&set, 0, &transaction("1")).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Host, "{failure}");
    drop(first);
    assert!(second.freeze(&set, 0, &transaction("1")).is_ok());
}

#[test]
fn a_worker_serves_the_old_set_while_the_new_one_takes_over() {
    let host = host(options());
    let old = load(&host, &[config("p", "{\"do\":\"refuse\"}")]).unwrap();
    let new = load(&host, &[config("p", "{\"do\":\"defer\"}")]).unwrap();
    assert!(new.id() > old.id());
    let mut worker = WorkerPolicies::new(Arc::clone(&host));
    for _ in 0..10 {
        let answer = worker.freeze(&old, 0, &transaction("1")).unwrap();
        assert!(matches!(answer, FreezeDecision::Refuse(_)));
        let answer = worker.freeze(&new, 0, &transaction("1")).unwrap();
        assert!(matches!(answer, FreezeDecision::Defer(_)));
    }
    let stats = &host.stats()[0];
    assert_eq!(stats.instances(), 2, "both stay warm");
    assert_eq!(stats.calls(), 20, "counters belong to the name");
    let watch = Arc::downgrade(&old);
    drop(old);
    for _ in 0..2000 {
        worker.freeze(&new, 0, &transaction("1")).unwrap();
    }
    assert!(watch.upgrade().is_none(), "the old set is given up");
}

/// The compiled files of a directory.
fn compiled(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn compiled_code_is_cached_and_a_damaged_file_is_compiled_anew() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("compiled");
    let loaded = || {
        let host = PolicyHost::new(Some(dir.clone()), options()).unwrap();
        let set = load(&host, &[config("p", "{}")]).unwrap();
        WorkerPolicies::new(host).freeze(&set, 0, &transaction("1")).unwrap();
        let [file] = &compiled(&dir)[..] else { panic!("one file") };
        (file.clone(), fs::metadata(file).unwrap().modified().unwrap())
    };
    let first = loaded();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(loaded(), first, "the second start compiles nothing");
    let sound = fs::read(&first.0).unwrap();
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for broken in [&damaged[..], &sound[..sound.len() - 1], b""] {
        fs::write(&first.0, broken).unwrap();
        let (file, _) = loaded();
        let found = fs::read(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(name.ends_with(blake3::hash(&found).to_hex().as_str()), "sound again");
    }
}

#[test]
fn a_cache_that_others_can_reach_is_not_used() {
    let place = tempfile::tempdir().unwrap();
    let open = place.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink(cache(), &link).unwrap();
    let file = place.path().join("file");
    fs::write(&file, b"").unwrap();
    for dir in [&open, &link, &file] {
        let host = PolicyHost::new(Some(dir.clone()), options()).unwrap();
        assert!(load(&host, &[config("p", "{}")]).is_ok(), "it works without");
    }
    assert!(compiled(&open).is_empty());
    let used = compiled(cache()).into_iter().any(|path| path.extension().is_some());
    assert!(!used, "nothing came through the link");
}
