//! Messages at a rate, and how long each took from the moment when it was due.
//!
//! The load generator sends as fast as it is answered, which hides what waits; this one does not
//! wait for the answer to one message before the next is due. Floor: none.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::Client;
use crate::load::histogram::Histogram;

/// A stream of messages.
#[derive(Clone, Copy)]
pub(super) struct Paced {
    pub(super) target: SocketAddr,
    pub(super) sender: &'static str,
    /// Messages a second, over all sessions.
    pub(super) rate: u32,
    /// Sessions that take turns: so many messages may be late before one waits for a session.
    pub(super) sessions: u32,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Served {
    /// From when it was due to its reply.
    pub(super) took: Histogram,
    /// Sent to the upstream; all others were kept.
    pub(super) passed: u64,
    pub(super) kept: u64,
    pub(super) failed: u64,
}

impl Served {
    pub(super) fn milliseconds(&self, permille: u32) -> f64 {
        self.took.quantile(permille.into()) as f64 / 1e6
    }
}

/// Sends until `stop`.
pub(super) fn send(paced: Paced, stop: &AtomicBool) -> Served {
    let begun = Instant::now();
    thread::scope(|scope| {
        let sessions: Vec<_> = (0..paced.sessions)
            .map(|number| scope.spawn(move || session(paced, number, begun, stop)))
            .collect();
        let mut all = Served::default();
        for session in sessions {
            // One that panicked has said why; what it had sent is not known.
            let one = session.join().unwrap_or(Served { failed: 1, ..Served::default() });
            all.took.merge(&one.took);
            all.passed += one.passed;
            all.kept += one.kept;
            all.failed += one.failed;
        }
        all
    })
}

fn session(paced: Paced, number: u32, begun: Instant, stop: &AtomicBool) -> Served {
    let mut served = Served::default();
    let mut client = Client::greeted(paced.target);
    client.ehlo();
    let gap = Duration::from_secs(1) / paced.rate;
    let mut due = begun + gap * number;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        client.envelope(paced.sender, "b@example.org");
        client.expect("DATA", "354");
        client.send("Subject: paced\r\n\r\nOne of many.\r\n.\r\n");
        let reply = client.reply();
        served.took.record(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
        match reply {
            reply if reply.contains("wavegate: queued") => served.kept += 1,
            reply if reply.starts_with("250") => served.passed += 1,
            _ => served.failed += 1,
        }
        due += gap * paced.sessions;
    }
    client.expect("QUIT", "221");
    served
}
