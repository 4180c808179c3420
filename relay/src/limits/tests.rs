#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use super::*;
use crate::decision::{ConcurrencyLimit, RateLimit};

fn rate(key: &str, quantity: u64, burst: u64) -> Charge {
    let rates = vec![RateLimit { key: key.into(), quantity, per_ms: 1000, burst, cost: 1 }];
    Charge { scope: "p".into(), limits: LimitSet { rates, concurrency: Vec::new() } }
}

fn count(key: &str, limit: u32) -> Charge {
    let concurrency = vec![ConcurrencyLimit { key: key.into(), limit }];
    Charge { scope: "p".into(), limits: LimitSet { rates: Vec::new(), concurrency } }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(200)
}

#[tokio::test(start_paused = true)]
async fn all_or_nothing() {
    let limits = Limits::new(10, 10);
    let _held = limits.try_acquire(&[count("c", 1)]).unwrap();
    assert!(limits.try_acquire(&[rate("r", 1, 1), count("c", 1)]).is_err());
    // The rate was not charged by the attempt that failed.
    limits.try_acquire(&[rate("r", 1, 1)]).unwrap();
    assert!(limits.try_acquire(&[rate("r", 1, 1)]).is_err());
}

#[tokio::test(start_paused = true)]
async fn waiters_pass_in_order_at_the_rate() {
    let limits = Limits::new(10, 10);
    let start = Instant::now();
    let mut tasks = Vec::new();
    for i in 0..5_u32 {
        let limits = Arc::clone(&limits);
        tasks.push(tokio::spawn(async move {
            let permit = limits.acquire(&[rate("r", 100, 1)], soon()).await;
            (i, permit.is_ok(), start.elapsed())
        }));
    }
    for (i, task) in tasks.into_iter().enumerate() {
        let (number, ok, elapsed) = task.await.unwrap();
        assert!(ok);
        assert_eq!(number as usize, i);
        let expected = Duration::from_millis(10 * u64::from(number));
        assert!(
            elapsed >= expected && elapsed <= expected + Duration::from_millis(6),
            "{elapsed:?}"
        );
    }
    assert_eq!(limits.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_cannot_end_in_time_fails_at_once() {
    let limits = Limits::new(10, 10);
    let _first = limits.try_acquire(&[rate("r", 1, 1)]).unwrap();
    let before = Instant::now();
    let error = limits.acquire(&[rate("r", 1, 1)], soon()).await.map(|_| ()).unwrap_err();
    assert_eq!(error, LimitError::Reached { scope: "p".into(), key: "r".into() });
    assert_eq!(before.elapsed(), Duration::ZERO);
    // Whoever has time may come back then.
    assert_eq!(limits.ready("p", "r"), Some(before + Duration::from_secs(1)));
    assert_eq!(limits.ready("p", "other"), None);
}

#[tokio::test(start_paused = true)]
async fn concurrency_wakes_the_next_when_a_permit_is_dropped() {
    let limits = Limits::new(10, 10);
    let held = limits.try_acquire(&[count("c", 1)]).unwrap();
    let waiter = {
        let limits = Arc::clone(&limits);
        tokio::spawn(async move { limits.acquire(&[count("c", 1)], soon()).await.map(|_| ()) })
    };
    tokio::task::yield_now().await;
    assert_eq!(limits.stats().waiting, 1);
    // Nobody overtakes the one who waits.
    drop(held);
    assert!(limits.try_acquire(&[count("c", 1)]).is_err());
    waiter.await.unwrap().unwrap();
    limits.try_acquire(&[count("c", 1)]).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gives_up_at_its_deadline_and_the_queue_goes_on() {
    let limits = Limits::new(10, 10);
    let held = limits.try_acquire(&[count("c", 1)]).unwrap();
    let before = Instant::now();
    assert!(limits.acquire(&[count("c", 1)], soon()).await.is_err());
    assert!(before.elapsed() >= Duration::from_millis(200));
    drop(held);
    limits.try_acquire(&[count("c", 1)]).unwrap();
    assert_eq!(limits.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let limits = Limits::new(10, 1);
    let _held = limits.try_acquire(&[count("c", 1)]).unwrap();
    let first = {
        let limits = Arc::clone(&limits);
        tokio::spawn(async move { limits.acquire(&[count("c", 1)], soon()).await.map(|_| ()) })
    };
    tokio::task::yield_now().await;
    let second = limits.acquire(&[count("c", 1)], soon()).await.map(|_| ()).unwrap_err();
    assert_eq!(second, LimitError::QueueFull { limit: 1 });
    assert!(first.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_full_table_forgets_idle_cells_only() {
    let limits = Limits::new(2, 10);
    let _a = limits.try_acquire(&[count("a", 1)]).unwrap();
    limits.try_acquire(&[rate("b", 1, 1)]).unwrap();
    let full = limits.try_acquire(&[rate("c", 1, 1)]).map(|_| ()).unwrap_err();
    assert_eq!(full, LimitError::TableFull { limit: 2 });
    tokio::time::advance(Duration::from_secs(2)).await;
    limits.try_acquire(&[rate("c", 1, 1)]).unwrap();
    assert!(limits.try_acquire(&[count("a", 1)]).is_err());
}

#[tokio::test(start_paused = true)]
async fn lessons_pause_and_slow() {
    let limits = Limits::new(10, 10);
    let scope: Arc<str> = "p".into();
    let pause = Lesson::Pause { key: "r".into(), until: Timestamp(1_100) };
    limits.learn(&scope, &[pause], Timestamp(1_000));
    let before = Instant::now();
    limits.acquire(&[rate("r", 1000, 1)], soon()).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(100));
    let slow = Lesson::Slow { key: "s".into(), factor: 10_000, until: Timestamp(60_000) };
    limits.learn(&scope, &[slow], Timestamp(1_000));
    limits.acquire(&[rate("s", 100, 1)], soon()).await.unwrap();
    let before = Instant::now();
    limits.acquire(&[rate("s", 100, 1)], soon()).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(99));
}

#[tokio::test(start_paused = true)]
async fn a_refund_makes_room() {
    let limits = Limits::new(10, 10);
    limits.try_acquire(&[rate("r", 1, 1)]).unwrap().refund();
    limits.try_acquire(&[rate("r", 1, 1)]).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_same_key_of_two_policies_is_two_cells() {
    let limits = Limits::new(10, 10);
    limits.try_acquire(&[rate("r", 1, 1)]).unwrap();
    let other = Charge { scope: "q".into(), ..rate("r", 1, 1) };
    limits.try_acquire(&[other]).unwrap();
}

#[tokio::test]
async fn who_waits_for_several_limits_never_goes_in_circles() {
    let limits = Limits::new(10, 100);
    let need = [rate("r", 500, 1), count("c", 1), rate("s", 500, 1), count("d", 1)];
    let all = (0..40).map(|number| {
        let (limits, mut need) = (Arc::clone(&limits), need.clone());
        // Two orders, as of two policies that name the same things differently.
        if number % 2 == 0 {
            need.reverse();
        }
        tokio::spawn(async move {
            let deadline = Instant::now() + Duration::from_secs(60);
            let permit = limits.acquire(&need, deadline).await.unwrap();
            tokio::time::sleep(Duration::from_millis(number % 3)).await;
            drop(permit);
        })
    });
    let all: Vec<_> = all.collect();
    // They would spin without end, and keep the processor busy with it.
    let done = async {
        for task in all {
            task.await.unwrap()
        }
    };
    tokio::time::timeout(Duration::from_secs(20), done).await.unwrap();
    assert_eq!(limits.stats().waiting, 0);
}
