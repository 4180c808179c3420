//! What the machine itself adds: how late a thread wakes that does nothing but sleep.
//!
//! No program beside it can be punctual where this is not. Floor: none.

use std::thread;
use std::time::{Duration, Instant};

use crate::load::histogram::Histogram;

/// How often it is woken, and how many times.
const STEP: Duration = Duration::from_millis(1);
const TIMES: u32 = 10_000;

/// The lateness of two threads, in milliseconds, that 990 and 999 of 1000 times do not exceed.
pub(super) fn lateness() -> (f64, f64) {
    let all = thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(sleep));
        threads.into_iter().fold(Histogram::default(), |mut all, thread| {
            // One that panicked has said so.
            all.merge(&thread.join().unwrap_or_default());
            all
        })
    });
    (all.quantile(990) as f64 / 1e6, all.quantile(999) as f64 / 1e6)
}

fn sleep() -> Histogram {
    let mut late = Histogram::default();
    let mut due = Instant::now();
    for _ in 0..TIMES {
        due += STEP;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        late.record(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    late
}
