//! That it is bounded, that nobody waits for it, and that each file can be read alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::PathBuf, sync::atomic::AtomicU64};

use super::*;
use crate::{
    config::{PluginSource, PolicyConfig},
    decision::record::TransactionRecord,
    generation::builtin,
    policy::{HostOptions, PolicyHost, WorkerPolicies},
};

fn config(file: PathBuf) -> DecisionLogConfig {
    let (local_parts, headers) = (Told::Hashed, Told::Hashed);
    DecisionLogConfig { file, sample: 1, max_size: 4 << 20, keep: 2, local_parts, headers }
}

fn start(config: &DecisionLogConfig, state: &Path) -> io::Result<Arc<DecisionLog>> {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    DecisionLog::start(config, state, &|| DRAWN.fetch_add(1, Relaxed))
}

/// The standard freeze policy, as workers ask it.
struct Asked {
    set: Arc<PolicySet>,
    policies: WorkerPolicies,
}

impl Asked {
    fn new(log: Option<Arc<DecisionLog>>, one_in: Option<u32>) -> Self {
        let host = PolicyHost::new(None, HostOptions::simulation(1)).unwrap();
        if let Some(log) = log {
            host.listen(log);
        }
        let config = PolicyConfig {
            log: one_in,
            ..PolicyConfig::new("freeze".to_owned(), PluginSource::Builtin("freeze".to_owned()))
        };
        let set = host.load(&[config], &[], &["legacy".to_owned()], &builtin).unwrap();
        set.belongs_to(7);
        Self { set, policies: WorkerPolicies::new(host) }
    }

    fn ask(&mut self, number: u64, recipients: usize) {
        let recipients = (0..recipients).map(|one| format!("someone-{one}@customer.example"));
        let record = TransactionRecord {
            id: format!("MESSAGE{number}"),
            recipients: recipients.collect(),
            ..TransactionRecord::default()
        };
        record.with(|tx| self.policies.freeze(&self.set, 0, tx)).unwrap();
    }
}

fn lines(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn calls(path: &Path) -> Vec<CallLine> {
    let lines = lines(path).into_iter();
    lines.filter_map(|line| if let Line::Call(call) = line { Some(*call) } else { None }).collect()
}

#[test]
fn each_file_begins_with_what_its_calls_were_asked_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log/decisions.jsonl");
    let log = start(&config(file.clone()), folder.path()).unwrap();
    let mut asked = Asked::new(Some(Arc::clone(&log)), None);
    const CALLS: u64 = 1500;
    for number in 0..CALLS {
        asked.ask(number, 200);
        // It shall keep up here, however slow the machine is.
        while log.waiting() > WAITING / 2 {
            std::thread::yield_now();
        }
    }
    log.close();
    assert_eq!(log.counts(), (CALLS, 0));
    assert_eq!(log.waiting(), 0);
    let mut messages = Vec::new();
    for name in ["decisions.jsonl.2", "decisions.jsonl.1", "decisions.jsonl"] {
        let path = file.with_file_name(name);
        assert!(path.metadata().unwrap().len() <= 4 << 20, "{name}");
        let all = lines(&path);
        let Line::Policy(policy) = &all[0] else { panic!("{name}: {:?}", all[0]) };
        assert_eq!(policy.settings.as_deref(), Some("{}"));
        assert_eq!(policy.upstreams, ["legacy"]);
        assert_eq!(policy.plugin, asked.set.policies()[0].digest());
        for call in calls(&path) {
            assert_eq!((call.context, call.generation), (policy.context.clone(), 7));
            assert_eq!(call.question.transaction().unwrap().recipients.len(), 200);
            messages.push(call.message.unwrap());
        }
        let policies = all.iter().filter(|line| matches!(line, Line::Policy(_))).count();
        assert_eq!(policies, 1, "{name}");
    }
    let last: Vec<_> = (0..CALLS).map(|number| format!("MESSAGE{number}")).collect();
    assert!(last.ends_with(&messages), "in order, the last ones");
    assert!(!fs::read_to_string(&file).unwrap().contains("someone-"));
    // Whoever comes after the end is counted, and does not wait.
    asked.ask(0, 1);
    assert_eq!(log.counts(), (CALLS, 1));
    assert_eq!(log.waiting(), 0);
}

#[test]
fn of_a_message_all_is_told_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let some = DecisionLogConfig { sample: 10, ..config(folder.path().join("some.jsonl")) };
    let log = start(&some, folder.path()).unwrap();
    let mut asked = Asked::new(Some(Arc::clone(&log)), None);
    (0..2).for_each(|_| (0..1000).for_each(|number| asked.ask(number, 1)));
    log.close();
    let told = calls(&some.file).into_iter().map(|call| call.message.unwrap());
    let told: Vec<_> = told.collect();
    let (first, second) = told.split_at(told.len() / 2);
    assert_eq!(first, second);
    assert!((60..=150).contains(&first.len()), "{}", first.len());

    // A policy may say otherwise.
    for (one_in, expected) in [(0, 0), (1, 20)] {
        let file = folder.path().join(format!("{one_in}.jsonl"));
        let log =
            start(&DecisionLogConfig { sample: 1000, ..config(file) }, folder.path()).unwrap();
        let mut asked = Asked::new(Some(Arc::clone(&log)), Some(one_in));
        (0..20).for_each(|number| asked.ask(number, 1));
        log.close();
        assert_eq!(log.counts(), (expected, 0));
    }
}

#[test]
fn a_queue_that_is_full_costs_calls_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("decisions.jsonl");
    let log = start(&config(file.clone()), folder.path()).unwrap();
    let mut asked = Asked::new(Some(Arc::clone(&log)), None);
    // As if the thread were far behind.
    assert!(log.backlog.take(WAITING, WAITING));
    (0..3).for_each(|number| asked.ask(number, 1));
    log.backlog.write(WAITING, 0);
    asked.ask(3, 1);
    // A line that is too long for a file is left out too.
    asked.ask(4, 20_000);
    asked.ask(5, 1);
    log.close();
    assert_eq!(log.counts(), (2, 4));
    let all = lines(&file);
    assert!(matches!(all[0], Line::Lost { count: 3 | 4 }), "{:?}", all[0]);
    let told: Vec<_> = calls(&file).into_iter().filter_map(|call| call.message).collect();
    assert_eq!(told, ["MESSAGE3", "MESSAGE5"]);
}

#[test]
fn a_disk_that_is_full_costs_calls_only() {
    let folder = tempfile::tempdir().unwrap();
    let log = start(&config("/dev/full".into()), folder.path()).unwrap();
    let mut asked = Asked::new(Some(Arc::clone(&log)), None);
    (0..5).for_each(|number| asked.ask(number, 1));
    log.close();
    assert_eq!((log.counts(), log.waiting()), ((0, 5), 0));
}

#[test]
fn a_new_process_goes_on_behind_the_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("decisions.jsonl");
    for number in 0..2 {
        let log = start(&config(file.clone()), folder.path()).unwrap();
        let mut asked = Asked::new(Some(Arc::clone(&log)), None);
        asked.ask(number, 1);
        log.close();
        let mut text = fs::read(&file).unwrap();
        text.extend_from_slice(b"{\"kind\":\"call\",\"ti");
        fs::write(&file, text).unwrap();
    }
    let log = start(&config(file.clone()), folder.path()).unwrap();
    log.close();
    let kinds: Vec<_> = lines(&file).iter().map(|line| matches!(line, Line::Call(_))).collect();
    assert_eq!(kinds, [false, true, false, true]);
    // The same key, so the same hashes.
    let asked: Vec<_> = calls(&file).into_iter().map(|call| call.question).collect();
    let [first, second] = [0, 1].map(|at| asked[at].transaction().unwrap().recipients.clone());
    assert_eq!(first, second);
}

#[test]
fn a_file_that_cannot_be_made_is_an_error_at_start() {
    let folder = tempfile::tempdir().unwrap();
    assert!(start(&config(folder.path().to_owned()), folder.path()).is_err());
}
