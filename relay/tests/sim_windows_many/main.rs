//! Many windows over the whole relay in a simulated world, each from a seed: five instances send
//! through one, on sessions that last, and while it is open the relay is stopped, killed and
//! loses power, also between a step that was written down and its effect; upstreams are slow and
//! fail, probes too, plans are reloaded, operators order, disks fail and clocks are stepped.
//! Whatever happens, nothing leaves in the window, nothing is lost, and what may arrive twice was
//! said to (`check`).
//!
//! `WAVEGATE_SEED=n` replays one seed and leaves its history in the temporary directory;
//! `WAVEGATE_WINDOWS=n` says how many the long test runs.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod book;
mod check;
mod life;
mod script;
mod senders;

use std::{
    env,
    ops::RangeInclusive,
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use self::book::Tally;

/// Windows of the long test, unless `WAVEGATE_WINDOWS` says otherwise.
const MANY: u64 = 1000;

/// Runs seeds, as many at once as there are processors; what all saw together.
fn windows(seeds: RangeInclusive<u64>) -> Tally {
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
                    let run = AssertUnwindSafe(|| check::check(&life::window(seed)));
                    match panic::catch_unwind(run) {
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
fn nothing_leaks_is_lost_or_doubled_around_a_window() {
    if let Some(seed) = number("WAVEGATE_SEED") {
        let book = life::window(seed);
        let history = env::temp_dir().join(format!("window-{seed}.txt"));
        std::fs::write(history, book.lock().unwrap().lines.join("\n")).unwrap();
        let tally = check::check(&book);
        return assert!(tally.messages >= 500, "{tally:?}");
    }
    let tally = windows(1..=20);
    assert_eq!(tally.windows, 20);
    assert!(tally.messages >= 20 * 500, "{tally:?}");
    tally.check_variety();
}

#[test]
#[ignore = "takes minutes: tests/run --all"]
fn nothing_leaks_is_lost_or_doubled_around_a_thousand_windows() {
    let tally = windows(1001..=1000 + number("WAVEGATE_WINDOWS").unwrap_or(MANY));
    tally.check_variety();
    assert!(
        tally.doubled > 0,
        "nothing arrived twice, so that nothing was tested of it: {tally:?}"
    );
    #[allow(clippy::print_stderr, reason = "the figures are what the test is run for")]
    {
        eprintln!("{tally:#?}");
    }
}

#[test]
fn the_same_seed_makes_the_same_window() {
    let lines = |seed| life::window(seed).lock().unwrap().lines.clone();
    let (one, two) = (lines(7), lines(7));
    let differs = one.iter().zip(&two).position(|(one, two)| one != two);
    assert_eq!((one.len(), differs.map(|at| (&one[at], &two[at]))), (two.len(), None));
    assert!(one.len() > 1000);
}
