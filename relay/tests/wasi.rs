//! What is left of WASI: a policy with all of Rust's standard library (`tests/guests/wasi`, built for
//! wasm32-wasip2) sees nothing of the machine, answers the same each time, and cannot make the relay
//! keep things for it.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{sync::Arc, time::Duration};

use wavegate::{
    config::{PluginSource, PolicyConfig},
    decision::{
        FreezeDecision,
        record::{Answer, Question, TransactionRecord},
    },
    policy::{FailureKind, Fresh, HostOptions, ImportKind, PolicyFailure, PolicyHost, PolicySet},
};

static WASI: &[u8] = include_bytes!("../../tests/guests/wasi.wasm");

fn host() -> Arc<PolicyHost> {
    let options = HostOptions { instances: 16, audit_every: 0, ..HostOptions::production(1) };
    PolicyHost::new(None, options).unwrap()
}

/// The guest, told what to do.
fn told(what: &str) -> Arc<PolicySet> {
    let policy = PolicyConfig {
        name: "wasi".to_owned(),
        plugin: PluginSource::Builtin("wasi".to_owned()),
        settings: format!("{{\"do\":\"{what}\"}}"),
        fail: None,
        memory: 16 * 1024 * 1024,
        timeout: Duration::from_secs(5),
        place: "relay.toml:7".to_owned(),
    };
    host().load(&[policy], &[], &[], &|_| Some(WASI)).unwrap()
}

fn ask(fresh: &mut Fresh) -> Result<String, PolicyFailure> {
    let transaction = TransactionRecord { id: "m1".to_owned(), ..TransactionRecord::default() };
    match fresh.ask(&Question::Decide { transaction })? {
        Answer::Decide(FreezeDecision::Hold { reason, .. }) => Ok(reason),
        other => panic!("not a hold: {other:?}"),
    }
}

fn failure(what: &str) -> PolicyFailure {
    let set = told(what);
    ask(&mut Fresh::new(&set, 0).unwrap()).unwrap_err()
}

#[test]
fn nothing_of_the_machine_is_seen_and_nothing_changes() {
    let set = told("look");
    let mut warm = Fresh::new(&set, 0).unwrap();
    let first = ask(&mut warm).unwrap();
    assert_eq!(
        first,
        "m1 variables 0, arguments 0, time 0, slept 0, input Some(0), file false, written false, made \
         false, map 4950"
    );
    assert_eq!(ask(&mut warm).unwrap(), first);
    assert_eq!(ask(&mut Fresh::new(&set, 0).unwrap()).unwrap(), first);
}

#[test]
fn what_is_written_harms_nobody() {
    let set = told("write");
    let mut warm = Fresh::new(&set, 0).unwrap();
    for _ in 0..100 {
        assert_eq!(ask(&mut warm).unwrap(), "m1 written");
    }
}

#[test]
fn an_exit_is_a_trap_that_says_so() {
    let failure = failure("exit");
    assert_eq!(failure.kind, FailureKind::Trap);
    assert!(failure.detail.contains("it called exit"), "{}", failure.detail);
    assert_eq!(self::failure("panic").kind, FailureKind::Trap);
}

#[test]
fn handles_and_random_bytes_are_bounded() {
    let handles = failure("handles");
    assert_eq!(handles.kind, FailureKind::Trap);
    assert!(handles.detail.contains("1024 handles"), "{}", handles.detail);
    let random = failure("random");
    assert_eq!(random.kind, FailureKind::Trap);
    assert!(random.detail.contains("random bytes"), "{}", random.detail);
}

#[test]
fn stubs_are_listed_apart() {
    let found = host().inspect(WASI).unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    let of = |name: &str| found.imports.iter().find(|one| one.name.starts_with(name)).unwrap().kind;
    assert_eq!(of("wavegate:policy/types"), ImportKind::Contract);
    assert!(matches!(of("wasi:filesystem/types"), ImportKind::Stub("no files")));
    assert!(found.imports.iter().all(|one| one.kind != ImportKind::Refused));
}
