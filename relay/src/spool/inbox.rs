//! What waits for the writer, and when it is worth waking him: one sync for several costs what
//! one for each alone would.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::writer::{Order, Request};

/// How long the writer waits for as many to come together as came last time. Where one at a time
/// comes, it does not wait at all. A sync takes about as long on a fast disk.
const GATHER: Duration = Duration::from_millis(1);
/// How long what nobody waits for may lie. What was delivered and is not written down is
/// delivered twice after a crash, so it is short.
const LINGER: Duration = Duration::from_millis(2);

/// Orders for the writer.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    orders: Vec<Order>,
    /// Of these, so many have somebody waiting.
    asked: usize,
    /// The writer sleeps until so many are asked for; 0: until anything comes at all.
    asleep: Option<usize>,
    closed: bool,
}

impl Inbox {
    /// Gives the writer an order; it comes back if he has gone.
    pub(super) fn push(&self, order: Order) -> Result<(), Order> {
        let mut state = self.lock();
        if state.closed {
            return Err(order);
        }
        state.asked += usize::from(is_asked(&order));
        state.orders.push(order);
        let wakes = state.asleep.is_some_and(|enough| state.asked >= enough);
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Everything that has come, once that is worth a batch: `last` were asked for together the
    /// last time. Empty when nothing has come for so long as `patience`.
    pub(super) fn take(&self, last: usize, patience: Option<Duration>) -> Vec<Order> {
        let mut state = self.lock();
        let mut until: Option<(bool, Instant)> = None;
        loop {
            let asked = state.asked > 0;
            if asked && state.asked >= last {
                break;
            }
            let (enough, pause) = if state.orders.is_empty() {
                (0, patience)
            } else {
                let pause = if asked { GATHER } else { LINGER };
                let end = match until {
                    Some((of, end)) if of == asked => end,
                    _ => Instant::now() + pause,
                };
                until = Some((asked, end));
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                (if asked { last } else { 1 }, Some(left))
            };
            let nothing = state.orders.is_empty();
            state.asleep = Some(enough);
            let timed_out;
            (state, timed_out) = self.wait(state, pause);
            state.asleep = None;
            if timed_out && nothing && state.orders.is_empty() {
                break;
            }
        }
        state.asked = 0;
        std::mem::take(&mut state.orders)
    }

    /// The writer goes: nothing is taken from now on. What has come meanwhile.
    pub(super) fn close(&self) -> Vec<Order> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.orders)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        pause: Option<Duration>,
    ) -> (MutexGuard<'a, State>, bool) {
        match pause {
            None => (self.wake.wait(state).unwrap_or_else(PoisonError::into_inner), false),
            Some(pause) => {
                let waited = self.wake.wait_timeout(state, pause);
                let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
                (state, result.timed_out())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody waits for it.
fn is_asked(order: &Order) -> bool {
    match order {
        Order::Do(Request { done, .. }) => done.is_some(),
        Order::Close => true,
        Order::Resize { .. } | Order::Recovered(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use super::*;

    fn told() -> Order {
        Order::Do(Request { ops: Vec::new(), marks: Vec::new(), done: None })
    }

    fn asked() -> Order {
        let (done, _) = tokio::sync::oneshot::channel();
        Order::Do(Request { ops: Vec::new(), marks: Vec::new(), done: Some(done) })
    }

    #[test]
    fn one_who_waits_alone_is_served_at_once_and_takes_along_what_lies_there() {
        let inbox = Inbox::default();
        assert!(inbox.push(told()).is_ok() && inbox.push(asked()).is_ok());
        let begun = Instant::now();
        assert_eq!(inbox.take(1, None).len(), 2);
        assert!(begun.elapsed() < GATHER, "nobody else was waited for");
    }

    #[test]
    fn what_nobody_waits_for_is_taken_all_the_same() {
        let inbox = Inbox::default();
        inbox.push(told()).map_err(|_| ()).unwrap();
        assert_eq!(inbox.take(10, None).len(), 1);
        // Nor does one wait for ever for others who do not come.
        inbox.push(asked()).map_err(|_| ()).unwrap();
        assert_eq!(inbox.take(10, None).len(), 1);
        assert!(inbox.take(1, Some(Duration::from_millis(1))).is_empty());
    }

    #[test]
    fn who_sleeps_is_woken_and_nothing_comes_after_the_end() {
        let inbox = Arc::new(Inbox::default());
        let writer = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                let mut taken = 0;
                while taken < 1000 {
                    taken += inbox.take(3, None).len();
                }
                inbox.close().len() + taken
            })
        };
        for number in 0..1000 {
            let order = if number % 3 == 0 { told() } else { asked() };
            assert!(inbox.push(order).is_ok());
        }
        assert_eq!(writer.join().unwrap(), 1000);
        assert!(inbox.push(told()).is_err());
    }
}
