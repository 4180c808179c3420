//! A deadline that moves often and passes seldom.
//!
//! Setting a timer of the runtime for every read and taking it back costs more than the read:
//! it takes a lock, and often wakes the reactor to look at its timers again. This one is set
//! once; when it runs out it looks whether the deadline has moved meanwhile, and goes on.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// A deadline. Belongs to the runtime of the thread that polls it first.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Default for Deadline {
    fn default() -> Self {
        Self { at: Instant::now(), sleep: None }
    }
}

impl Deadline {
    /// It passes after `time` from now.
    pub fn set(&mut self, time: Duration) {
        self.at = Instant::now() + time;
        // A timer that is set for later than this would notice too late.
        if self.sleep.as_ref().is_some_and(|sleep| sleep.deadline() > self.at) {
            self.sleep = None;
        }
    }

    /// It passes after `time` from now, unless it passes before.
    pub fn at_most(&mut self, time: Duration) {
        if self.at > Instant::now() + time {
            self.set(time);
        }
    }

    /// Forgets the runtime that it belongs to.
    pub fn detach(&mut self) {
        self.sleep = None;
    }

    /// Ready once the deadline has passed.
    pub fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let at = self.at;
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= self.at {
                self.sleep = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn it_passes_at_its_last_setting() {
        let start = Instant::now();
        let mut deadline = Deadline::default();
        deadline.set(Duration::from_secs(10));
        let early = poll_fn(|cx| Poll::Ready(deadline.poll_passed(cx).is_ready())).await;
        assert!(!early);
        tokio::time::advance(Duration::from_secs(5)).await;
        deadline.set(Duration::from_secs(10));
        poll_fn(|cx| deadline.poll_passed(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 15);
        deadline.set(Duration::from_secs(300));
        let _ = poll_fn(|cx| Poll::Ready(deadline.poll_passed(cx).is_ready())).await;
        deadline.set(Duration::from_secs(1));
        poll_fn(|cx| deadline.poll_passed(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 16);
    }
}
