//! The promise as the metrics tell it: everything accepted has ended or is in the spool.
//!
//! Owns the check of one scrape, what arrived and what may arrive twice, and the thread that scrapes while a test does something else.
//! Floor: none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::{LOOK, Metrics, Relay, http_get};
use crate::sink::SinkHandle;

/// Asserts that in this scrape, for each instance, what was accepted has ended or is in the spool.
///
/// # Panics
/// If it is not so.
pub fn assert_promise(metrics: &Metrics) {
    for instance in metrics.values_of("recipients_accepted_total", "instance") {
        let of = |family| metrics.sum(family, &[&format!("instance=\"{instance}\"")]);
        let accepted = of("recipients_accepted_total");
        let (ended, waiting) = (of("recipients_ended_total"), of("spool_recipients"));
        assert!(
            accepted == ended + waiting,
            "{instance}: accepted {accepted}, ended {ended}, in the spool {waiting}"
        );
    }
}

/// What the log says of each message that may arrive twice.
pub const DOUBT: &str = "the upstream's reply was lost";

/// What arrived: for each name (of its `Message-ID`) the relay's ids, one for each arrival.
pub fn arrivals(sink: &SinkHandle) -> BTreeMap<String, Vec<String>> {
    let mut arrived = BTreeMap::<String, Vec<String>>::new();
    for message in sink.messages() {
        let content = String::from_utf8(message.content.unwrap()).unwrap();
        let between = |from: &str, to: &str| {
            let rest = content.split_once(from).unwrap().1;
            rest.split_once(to).unwrap().0.to_owned()
        };
        let (name, id) = (between("Message-ID: <", "@"), between(" id ", ";"));
        arrived.entry(name).or_default().push(id);
    }
    arrived
}

/// The ids that the log says may arrive twice.
pub fn in_doubt(log: &str) -> BTreeSet<&str> {
    let lines = log.lines().filter(|line| line.contains(DOUBT));
    lines.map(|line| line.split_once(" id=").unwrap().1.split(' ').next().unwrap()).collect()
}

/// Scrapes one relay over and over, checks the promise each time, and that what is counted as
/// accepted or ended only goes up.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<Metrics>>>,
}

impl Watch {
    /// Begins; `before` is the last scrape of the process before it, if there was one.
    pub fn over(relay: &Relay, before: Option<Metrics>) -> Self {
        let address = relay.admin_addr();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(address, &stopped, before));
        Self { stop, thread: Some(thread) }
    }

    /// Ends, and gives the last scrape.
    ///
    /// # Panics
    /// If a scrape was not right, or there was none.
    pub fn finish(self) -> Metrics {
        self.end().expect("a scrape")
    }

    /// The same over a relay that may have been killed before the first scrape.
    ///
    /// # Panics
    /// If a scrape was not right.
    pub fn end(mut self) -> Option<Metrics> {
        self.stop.store(true, Ordering::SeqCst);
        let last = self.thread.take().unwrap().join();
        last.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn watch(address: SocketAddr, stop: &AtomicBool, before: Option<Metrics>) -> Option<Metrics> {
    let (mut last, mut scraped) = (before, None);
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        // A relay that was killed does not answer any more.
        if let Some((200, text)) = http_get(address, "/metrics") {
            let metrics = Metrics::new(text);
            assert_promise(&metrics);
            if let Some(last) = &last {
                assert_grown(last, &metrics);
            }
            (last, scraped) = (Some(metrics.clone()), Some(metrics));
        }
        if stopping {
            return scraped;
        }
        std::thread::sleep(LOOK);
    }
}

fn assert_grown(before: &Metrics, after: &Metrics) {
    for family in ["recipients_accepted_total", "recipients_ended_total"] {
        for instance in before.values_of(family, "instance") {
            let label = format!("instance=\"{instance}\"");
            let (before, after) = (before.sum(family, &[&label]), after.sum(family, &[&label]));
            assert!(before <= after, "{family} of {instance} went from {before} to {after}");
        }
    }
}
