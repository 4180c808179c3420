//! What an operator asks of messages that wait, on a queue over a disk in memory: what is found,
//! what a change does, and that it is so after a restart too.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use wavegate::{
    body::BodyStore,
    budget::Budget,
    config::SpoolConfig,
    envelope::{Envelope, LastWord, Progress},
    event::End,
    message::{MessageId, Source},
    parcel::{Message, Parcel},
    plan::Timestamp,
    portable::{Depot, PortableError},
    queue::{
        Act, Applied, NewMessage, OpenedQueue, Queue, Refusal, Selection, Settlement, Standing,
    },
    scheduler::{Pace, State, Wait},
    world::{WallClock, memory::SimulatedClock},
};
use wavegate_smtp::{Address, BodyFacts, Mail, Rcpt, ReversePath};
use wavegate_spool::{MemoryDisk, Options};

const START: Timestamp = Timestamp(1_768_888_800_000);
/// As fast as can be.
const AT_ONCE: Pace = Pace { rate: None, start: 0, ramp_ms: 0 };

struct Site {
    disk: MemoryDisk,
    clock: Arc<SimulatedClock>,
    queue: Arc<Queue>,
    bodies: Arc<BodyStore>,
    accepted: u64,
}

impl Site {
    fn new() -> Self {
        let disk = MemoryDisk::new();
        let clock = Arc::new(SimulatedClock::new(START));
        let queue = open(&disk, &clock);
        let bodies =
            BodyStore::new(&std::env::temp_dir(), 1 << 20, 1 << 30, 1 << 20, &Budget::new(None));
        Self { disk, clock, queue, bodies, accepted: 0 }
    }

    /// A message; its number makes its id, so a later one is younger.
    fn message(&mut self, instance: Option<&str>, from: &str, to: &[&str]) -> NewMessage {
        self.accepted += 1;
        let id = MessageId::new(Timestamp(START.0 + self.accepted), self.accepted);
        let sender = match from {
            "" => ReversePath::Null,
            from => ReversePath::Address(Address::parse(from).unwrap()),
        };
        let mail = Mail::new(sender);
        let recipients: Vec<Rcpt> =
            to.iter().map(|to| Rcpt::new(Address::parse(to).unwrap())).collect();
        let mut body = self.bodies.writer();
        body.push(b"Subject: x\r\n\r\nx\r\n").unwrap();
        let facts = BodyFacts {
            size: 17,
            header_size: 14,
            received: 0,
            eight_bit: false,
            leading_dot: false,
            ends_with_crlf: true,
        };
        let source = Source::new("127.0.0.1:4711".parse().unwrap(), "listener-1");
        let source = Arc::new(Source { helo: "client.example".into(), ..source });
        let envelope = Envelope {
            id,
            received: id.time(),
            source: Arc::clone(&source),
            on_behalf: None,
            mail: mail.clone(),
            recipients: recipients.clone(),
            facts,
        };
        let parcel = Parcel { mail, recipients, body: body.finish(), facts };
        NewMessage {
            message: Arc::new(Message::new(id, source, Vec::new(), parcel)),
            envelope: Arc::new(envelope),
            progress: Progress { instance: instance.map(str::to_owned), ..Progress::default() },
            wait: Wait::Turn,
            answer: None,
        }
    }

    async fn accept(&mut self, instance: Option<&str>, from: &str, to: &[&str]) -> MessageId {
        let new = self.message(instance, from, to);
        let id = new.message.id;
        self.queue.accept(vec![new]).await.unwrap();
        id
    }

    /// As after a restart in order.
    fn reopen(&mut self) {
        self.queue.spool().close();
        self.queue = open(&self.disk, &self.clock);
    }

    fn ids(&self, selection: &Selection) -> Vec<MessageId> {
        self.queue.list(selection, 100).oldest.iter().map(|one| one.entry.id).collect()
    }

    fn apply(&self, selection: &Selection, act: Act<'_>) -> Applied {
        let mut found = Vec::new();
        self.queue.search(selection, |more| found.extend(more));
        self.queue.apply(&found, act, false)
    }

    fn state(&self, id: MessageId) -> State {
        let listing = self.queue.list(&of(id), 1);
        listing.oldest[0].view.state.clone()
    }
}

fn open(disk: &MemoryDisk, clock: &Arc<SimulatedClock>) -> Arc<Queue> {
    open_after_boot(disk, clock, 0).queue
}

fn open_after_boot(disk: &MemoryDisk, clock: &Arc<SimulatedClock>, boot: u8) -> OpenedQueue {
    let clock = Arc::clone(clock) as Arc<dyn WallClock>;
    let options = Options { boot_id: [boot; 16], ..Options::default() };
    Queue::open_on(disk.clone(), options, clock, 1).unwrap()
}

fn of(id: MessageId) -> Selection {
    Selection { ids: vec![id], ..Selection::default() }
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[tokio::test]
async fn a_selection_finds_what_meets_all_its_criteria() {
    let mut site = Site::new();
    let one = site.accept(Some("acme"), "a@one.example", &["b@x.example", "c@Y.example"]).await;
    let two = site.accept(Some("other"), "a@two.example", &["b@y.example"]).await;
    let bounce = site.accept(None, "", &["b@x.example"]).await;
    let find = |selection: Selection| site.ids(&selection);
    let all = Selection::default();
    assert_eq!(find(all.clone()), [one, two, bounce], "oldest first");
    let instances = |names: &[&str]| Selection { instances: strings(names), ..all.clone() };
    assert_eq!(find(instances(&["acme"])), [one]);
    assert_eq!(find(instances(&["acme", "(none)"])), [one, bounce]);
    assert_eq!(find(instances(&["nobody"])), []);
    let domains = |names: &[&str]| Selection { domains: strings(names), ..all.clone() };
    assert_eq!(find(domains(&["y.example"])), [one, two]);
    assert_eq!(find(domains(&["example"])), [], "a whole domain is meant");
    let senders = |names: &[&str]| Selection { senders: strings(names), ..all.clone() };
    assert_eq!(find(senders(&["A@ONE.example"])), [one]);
    assert_eq!(find(senders(&["@two.example"])), [two]);
    assert_eq!(find(senders(&["<>"])), [bounce]);
    assert_eq!(find(Selection { domains: strings(&["x.example"]), ..instances(&["acme"]) }), [one]);
    assert_eq!(find(Selection { states: vec![Standing::Held], ..all.clone() }), []);
    assert_eq!(find(Selection { states: vec![Standing::Ready], ..of(two) }), [two]);
    // Only so many are kept, and they are the oldest; all are counted.
    let listing = site.queue.list(&all, 2);
    assert_eq!((listing.found.messages, listing.found.recipients), (3, 4));
    assert_eq!(listing.oldest.len(), 2);
    assert_eq!(listing.oldest[1].entry.id, two);
    assert!(site.queue.list(&all, 0).oldest.is_empty());
}

#[tokio::test]
async fn a_hold_lasts_over_a_restart_and_ends_with_its_release() {
    let mut site = Site::new();
    let held = site.accept(None, "a@one.example", &["b@x.example"]).await;
    let free = site.accept(None, "a@one.example", &["b@x.example"]).await;
    let applied = site.apply(&of(held), Act::Hold("look"));
    assert_eq!(applied.changed, [(held, 1)]);
    site.queue.written().await.unwrap();
    site.reopen();
    assert_eq!(site.state(held), State::Waiting(Wait::Operator));
    assert_eq!(site.state(free), State::Waiting(Wait::Turn));
    let one = site.queue.list(&of(held), 1).oldest.remove(0);
    let progress = site.queue.progress(one.slot, one.handle).unwrap();
    assert_eq!(progress.operator.as_deref(), Some("look"));
    assert_eq!(site.apply(&of(free), Act::Release(AT_ONCE)).refused, [(free, Refusal::NotHeld)]);
    assert_eq!(site.apply(&of(held), Act::Retry).refused, [(held, Refusal::Held)]);
    assert_eq!(site.apply(&of(held), Act::Release(AT_ONCE)).changed, [(held, 1)]);
    assert_eq!(site.state(held), State::Waiting(Wait::Turn));
    site.queue.written().await.unwrap();
    site.reopen();
    assert_eq!(site.state(held), State::Waiting(Wait::Turn));
}

#[tokio::test]
async fn a_hold_of_what_is_in_flight_begins_when_that_ends() {
    let mut site = Site::new();
    let id = site.accept(None, "a@one.example", &["b@x.example", "c@x.example"]).await;
    let taken = site.queue.take().unwrap();
    for act in [Act::Remove, Act::Bounce, Act::Retry] {
        assert_eq!(site.apply(&of(id), act).refused, [(id, Refusal::InFlight)]);
    }
    assert_eq!(site.apply(&of(id), Act::Hold("look")).changed, [(id, 2)]);
    assert_eq!(site.state(id), State::InFlight);
    // One of its recipients was taken, the other is to be tried again.
    let mut taken = taken;
    taken.progress.attempts = 1;
    taken.progress.end(0);
    let wait = Some(Wait::Retry(Timestamp(START.0 + 1_000_000)));
    let ends = vec![(End::Delivered, 1)];
    site.queue.settle(taken, Settlement { ends, wait, marks: Vec::new() });
    assert_eq!(site.state(id), State::Waiting(Wait::Operator));
    site.queue.written().await.unwrap();
    site.reopen();
    assert_eq!(site.state(id), State::Waiting(Wait::Operator));
    let one = site.queue.list(&of(id), 1).oldest.remove(0);
    let progress = site.queue.progress(one.slot, one.handle).unwrap();
    assert_eq!((progress.pending, progress.ended.as_slice()), (1, &[0][..]));
    assert_eq!(progress.operator.as_deref(), Some("look"));
}

#[tokio::test]
async fn a_hold_that_is_taken_back_before_the_attempt_ends_was_never_there() {
    let mut site = Site::new();
    let id = site.accept(None, "a@one.example", &["b@x.example"]).await;
    let mut taken = site.queue.take().unwrap();
    site.apply(&of(id), Act::Hold("look"));
    assert_eq!(site.apply(&of(id), Act::Release(AT_ONCE)).changed, [(id, 1)]);
    taken.progress.attempts = 1;
    let due = Wait::Retry(Timestamp(START.0 + 1_000_000));
    let wait = Some(due.clone());
    site.queue.settle(taken, Settlement { ends: Vec::new(), wait, marks: Vec::new() });
    assert_eq!(site.state(id), State::Waiting(due));
    assert_eq!(site.apply(&of(id), Act::Retry).changed, [(id, 1)]);
    assert!(site.queue.take().is_some());
}

#[tokio::test]
async fn what_is_removed_is_accounted_for_and_gone_for_good() {
    let mut site = Site::new();
    let gone = site.accept(Some("acme"), "a@one.example", &["b@x.example", "c@x.example"]).await;
    site.accept(Some("acme"), "a@one.example", &["b@x.example"]).await;
    let mut found = Vec::new();
    site.queue.search(&of(gone), |more| found.extend(more));
    let dry = site.queue.apply(&found, Act::Remove, true);
    assert_eq!((dry.changed.as_slice(), site.ids(&of(gone)).len()), (&[(gone, 2)][..], 1));
    assert_eq!(site.queue.apply(&found, Act::Remove, false).changed, [(gone, 2)]);
    // What was found before is looked at again.
    assert_eq!(site.queue.apply(&found, Act::Remove, false).refused, [(gone, Refusal::Unknown)]);
    assert_eq!(site.queue.apply(&found, Act::Hold("x"), false).refused, [(gone, Refusal::Unknown)]);
    site.queue.written().await.unwrap();
    for _ in 0..2 {
        let snapshot = site.queue.snapshot();
        let (_, account, figures) =
            snapshot.instances.iter().find(|(name, ..)| name.as_deref() == Some("acme")).unwrap();
        assert_eq!((account.accepted(), account.ended(End::Removed), account.pending()), (3, 2, 1));
        assert_eq!(figures.all().messages, 1);
        site.reopen();
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_lets_out_the_oldest_first_at_its_pace() {
    let mut site = Site::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(site.accept(None, "a@one.example", &["b@x.example"]).await);
    }
    site.apply(&Selection::default(), Act::Hold("look"));
    assert!(site.queue.take().is_none());
    let pace = Pace { rate: NonZeroU32::new(1), start: 1, ramp_ms: 0 };
    assert_eq!(site.apply(&Selection::default(), Act::Release(pace)).changed.len(), 20);
    assert_eq!(site.state(ids[19]), State::Paced);
    assert_eq!(site.apply(&of(ids[0]), Act::Release(pace)).refused, [(ids[0], Refusal::NotHeld)]);
    let mut out = Vec::new();
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(1)).await;
        while let Some(taken) = site.queue.take() {
            out.push(taken.slot);
            site.queue.settle(
                taken,
                Settlement { ends: vec![(End::Delivered, 1)], wait: None, marks: Vec::new() },
            );
        }
    }
    // One a second, give or take the first.
    assert!((2..=4).contains(&out.len()), "{} in three seconds", out.len());
    let left = site.ids(&Selection::default());
    assert_eq!(left, ids[out.len()..], "the oldest have gone");
}

#[tokio::test]
async fn a_reading_of_all_finds_every_message_whole() {
    let mut site = Site::new();
    for _ in 0..3 {
        site.accept(None, "a@one.example", &["b@x.example"]).await;
    }
    assert_eq!(site.queue.check(), (3, Vec::new()));
}

/// A spool on a real disk with some messages, and an export of it.
async fn exported(folder: &std::path::Path) -> PathBuf {
    let config = SpoolConfig { reserve: 0, ..SpoolConfig::default() };
    let mut site = Site::new();
    let new = vec![
        site.message(Some("acme"), "a@one.example", &["b@x.example"]),
        site.message(None, "", &["b@x.example"]),
    ];
    let clock = Arc::clone(&site.clock) as Arc<dyn WallClock>;
    std::fs::create_dir_all(folder.join("from/spool")).unwrap();
    let opened = Queue::open(&folder.join("from/spool"), &config, clock, 1).unwrap();
    opened.queue.accept(new).await.unwrap();
    opened.queue.spool().close();
    let mut depot = Depot::open(&folder.join("from"), &config).await.unwrap();
    let done = depot.export(folder, false, START, 7).await.unwrap();
    depot.close();
    assert_eq!((done.messages, done.recipients, done.removed), (2, 2, false));
    done.file
}

#[tokio::test]
async fn an_export_with_one_byte_changed_or_missing_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = exported(folder.path()).await;
    let good = std::fs::read(&file).unwrap();
    let config = SpoolConfig { reserve: 0, ..SpoolConfig::default() };
    let mut depot = Depot::open(&folder.path().join("to"), &config).await.unwrap();
    let bad = folder.path().join("bad");
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        for bytes in [&flipped[..], &good[..at]] {
            std::fs::write(&bad, bytes).unwrap();
            let error = depot.import(&bad).await.expect_err(&format!("byte {at}"));
            let refused = matches!(
                error,
                PortableError::Damaged { .. }
                    | PortableError::Foreign(_)
                    | PortableError::Newer { .. }
            );
            assert!(refused, "byte {at}: {error}");
        }
    }
    for (added, known) in [(2, 0), (0, 2)] {
        let done = depot.import(&file).await.unwrap();
        assert_eq!((done.added, done.known), (added, known));
        depot.close();
        depot = Depot::open(&folder.path().join("to"), &config).await.unwrap();
        assert_eq!(depot.messages(), 2);
    }
}

/// The figure that the issue asks for: a list by instance of a million messages takes less than a
/// second. Takes a minute and some 2 GB of memory.
#[tokio::test]
#[ignore = "measures"]
#[allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a measurement")]
async fn a_million_messages_are_listed_by_instance_within_a_second() {
    const MESSAGES: u64 = 1_000_000;
    let mut site = Site::new();
    let names: Vec<String> = (0..10).map(|number| format!("instance-{number}")).collect();
    for batch in 0..MESSAGES / 1000 {
        let name = &names[usize::try_from(batch).unwrap() % 10];
        let new = (0..1000).map(|_| site.message(Some(name), "a@one.example", &["b@x.example"]));
        let new = new.collect();
        site.queue.accept(new).await.unwrap();
    }
    let selection = Selection { instances: strings(&["instance-3"]), ..Selection::default() };
    let begun = std::time::Instant::now();
    let listing = site.queue.list(&selection, 100);
    let by_instance = begun.elapsed();
    assert_eq!((listing.found.messages, listing.oldest.len()), (MESSAGES / 10, 100));
    let begun = std::time::Instant::now();
    let domains = Selection { domains: strings(&["x.example"]), ..selection };
    assert_eq!(site.queue.list(&domains, 100).found.messages, MESSAGES / 10);
    let by_domain = begun.elapsed();
    println!("list of {MESSAGES} by instance: {by_instance:?}; and by domain: {by_domain:?}");
    assert!(by_instance.as_secs_f64() < 1.0);
}

#[tokio::test]
async fn what_a_window_holds_stands_in_its_line_after_a_restart() {
    let mut site = Site::new();
    let wait = site.queue.wait_for_phase("acme");
    let held =
        NewMessage { wait: wait.clone(), ..site.message(Some("acme"), "", &["b@x.example"]) };
    let id = held.message.id;
    site.queue.accept(vec![held]).await.unwrap();
    let free = site.accept(Some("acme"), "a@one.example", &["b@x.example"]).await;
    site.reopen();
    assert_eq!(
        (site.state(id), site.state(free)),
        (State::Waiting(wait), State::Waiting(Wait::Turn))
    );
    assert_eq!(site.queue.take().map(|taken| taken.slot), Some(1), "nobody asks about it");
}

#[tokio::test(start_paused = true)]
async fn what_a_loss_of_power_left_in_doubt_is_so_until_it_was_said() {
    let mut site = Site::new();
    let held = site.accept(None, "a@one.example", &["b@x.example"]).await;
    site.apply(&of(held), Act::Hold("look"));
    site.accept(None, "a@one.example", &["b@x.example"]).await;
    site.accept(None, "a@one.example", &["b@x.example"]).await;
    site.queue.written().await.unwrap();
    site.disk = site.disk.crash(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    // A process that is killed as soon as it has found that out, and one that ends in order.
    for clean in [false, true, true] {
        let OpenedQueue { queue, found } = open_after_boot(&site.disk, &site.clock, 1);
        assert_eq!(found.doubtful, 3, "{found:?}");
        if clean {
            queue.spool().close();
        }
        site.disk = site.disk.copy();
    }
    // One is tried: whoever does that says so, and it is told for good.
    let queue = open_after_boot(&site.disk, &site.clock, 1).queue;
    let mut taken = queue.take().unwrap();
    assert!(taken.doubtful);
    taken.progress.attempts = 1;
    let now = site.clock.now();
    taken.progress.last = Some(LastWord::new(None, "later", now));
    let wait = Some(Wait::Retry(Timestamp(now.0 + 1000)));
    queue.settle(taken, Settlement { ends: Vec::new(), wait, marks: Vec::new() });
    // One that comes later is in no doubt at all.
    tokio::time::advance(Duration::from_secs(1)).await;
    site.accepted += 61_000;
    let new = site.message(None, "a@one.example", &["b@x.example"]);
    queue.accept(vec![new]).await.unwrap();
    queue.spool().close();
    let OpenedQueue { queue, found } = open_after_boot(&site.disk.copy(), &site.clock, 1);
    assert_eq!((found.messages, found.doubtful), (4, 2));
    drop(queue);
}
