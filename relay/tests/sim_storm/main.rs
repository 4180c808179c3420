//! An hour of storm over the whole relay in a simulated world, from a seed: upstreams fail, stall
//! and refuse, connections break, disks fail, the configuration and the windows change, and the
//! relay is stopped, killed and loses power. Whatever happens, the promise holds (`checks`).
//!
//! `WAVEGATE_SEED=n` replays one seed and leaves its history in the temporary directory;
//! `WAVEGATE_SEEDS=n` says how many the long test runs.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod checks;
mod life;
mod record;
mod senders;
mod settings;
mod weather;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use self::record::Tally;

/// Seeds of the long test, unless `WAVEGATE_SEEDS` says otherwise.
const MANY: u64 = 1000;

/// One storm; panics if the promise was broken.
fn storm(seed: u64) -> Tally {
    life::storm(seed).check()
}

/// Runs seeds, as many at once as there are processors; what all saw together.
fn storms(seeds: std::ops::RangeInclusive<u64>) -> Tally {
    let (next, last) = (AtomicU64::new(*seeds.start()), *seeds.end());
    let total = Mutex::new(Tally::default());
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    match panic::catch_unwind(AssertUnwindSafe(|| storm(seed))) {
                        Ok(tally) => total.lock().unwrap().add(&tally),
                        Err(_) => failed.lock().unwrap().push(seed),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "replay with WAVEGATE_SEED=n, n one of {failed:?}");
    total.into_inner().unwrap()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn the_promise_holds_in_a_storm() {
    if let Some(seed) = number("WAVEGATE_SEED") {
        let outcome = life::storm(seed);
        let history = env::temp_dir().join(format!("storm-{seed}.txt"));
        std::fs::write(history, outcome.lines().join("\n")).unwrap();
        let tally = outcome.check();
        return assert!(tally.messages > 0, "{tally:?}");
    }
    let tally = storms(1..=20);
    // The storm is one: all that may happen did.
    tally.check_variety();
}

#[test]
#[ignore = "takes minutes: tests/run --all"]
fn the_promise_holds_in_a_thousand_storms() {
    let tally = storms(1001..=1000 + number("WAVEGATE_SEEDS").unwrap_or(MANY));
    tally.check_variety();
    assert!(tally.powers_lost > 0 && tally.double > 0, "{tally:?}");
    #[allow(clippy::print_stderr, reason = "the figures are what the test is run for")]
    {
        eprintln!("{tally:#?}");
    }
}

#[test]
fn the_same_seed_makes_the_same_storm() {
    let (one, two) = (life::storm(7).lines(), life::storm(7).lines());
    let differs = one.iter().zip(&two).position(|(one, two)| one != two);
    assert_eq!((one.len(), differs.map(|at| (&one[at], &two[at]))), (two.len(), None));
    assert!(one.len() > 500);
    assert_ne!(one, life::storm(8).lines());
}
