//! Who stands at the door: handshakes that are under way, and whose they are.
//!
//! A handshake costs a stranger little and takes a place until it is over, and QUIC keeps something of
//! one that came to nothing. So while many places are taken no client may have more than a few, and
//! one that does nothing but stand there keeps nobody else out. An address that nobody has shown to be
//! his own counts for nobody: it would be easy to fill another's part.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Gateway, HANDSHAKES, STRANGERS};
use crate::{budget::Share, message::subscriber};

/// From so many on, a client may have no more than [`EACH`].
const MANY: usize = HANDSHAKES / 2;
/// Handshakes of one client while there are many, with those that came to nothing just now.
const EACH: usize = HANDSHAKES / 8;
/// How long QUIC keeps something of a handshake that came to nothing: three probe time-outs (RFC 9000
/// 10.2) of a way that nobody has measured (RFC 9002 6.2.2).
const TRACE: Duration = Duration::from_secs(3);

/// The handshakes of a gateway, over all workers.
#[derive(Default)]
pub(super) struct Door(Mutex<State>);

#[derive(Default)]
struct State {
    under_way: usize,
    /// Those under way and those that came to nothing, by client that has shown his address.
    each: HashMap<IpAddr, usize>,
    /// Those that came to nothing, and until when they count.
    traces: VecDeque<(Instant, IpAddr)>,
}

/// What a stranger meets.
pub(super) struct Crowd {
    /// Handshakes under way.
    pub(super) under_way: usize,
    /// His own, with those that came to nothing just now.
    own: usize,
}

impl Crowd {
    /// Whether he has more than his part of `strangers` places that are taken.
    pub(super) fn is_greedy(&self, strangers: usize) -> bool {
        strangers >= MANY && self.own >= EACH
    }
}

impl Door {
    /// Handshakes under way.
    pub(super) fn under_way(&self) -> usize {
        self.lock().under_way
    }

    fn enter(&self, client: Option<IpAddr>, now: Instant) -> Crowd {
        let mut state = self.lock();
        state.forget_until(now);
        let under_way = state.under_way;
        state.under_way += 1;
        let Some(client) = client else { return Crowd { under_way, own: 0 } };
        let own = state.each.entry(client).or_default();
        *own += 1;
        Crowd { under_way, own: *own - 1 }
    }

    fn leave(&self, client: Option<IpAddr>, came_to_nothing: bool, now: Instant) {
        let mut state = self.lock();
        state.under_way -= 1;
        let Some(client) = client else { return };
        if !came_to_nothing {
            return state.forget(client);
        }
        if state.traces.len() >= STRANGERS {
            state.forget_first();
        }
        state.traces.push_back((now + TRACE, client));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_until(&mut self, now: Instant) {
        while self.traces.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, client)) = self.traces.pop_front() {
            self.forget(client);
        }
    }

    fn forget(&mut self, client: IpAddr) {
        if let Some(own) = self.each.get_mut(&client) {
            *own -= 1;
            if *own == 0 {
                self.each.remove(&client);
            }
        }
    }
}

/// A handshake that is under way, and its part of the memory.
pub(super) struct Shaking {
    gateway: Arc<Gateway>,
    client: Option<IpAddr>,
    pub(super) share: Share,
    /// QUIC knows of it, and it has not come to its greeting.
    begun: bool,
}

impl Shaking {
    /// One more stands there, and meets these. `client` is whose it is, where that is certain.
    pub(super) fn new(
        gateway: &Arc<Gateway>,
        client: Option<IpAddr>,
        share: Share,
    ) -> (Self, Crowd) {
        let client = client.map(subscriber);
        let crowd = gateway.door.enter(client, Instant::now());
        (Self { gateway: Arc::clone(gateway), client, share, begun: false }, crowd)
    }

    /// QUIC begins it.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// It has come to its greeting.
    pub(super) fn end(mut self) {
        self.begun = false;
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.gateway.door.leave(self.client, self.begun, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn one_client_keeps_no_other_out_and_is_forgotten() {
        let (door, now) = (Door::default(), Instant::now());
        for number in 0..MANY {
            let crowd = door.enter(address(1), now);
            assert!(!crowd.is_greedy(crowd.under_way), "{number}: there is room");
        }
        assert!(door.enter(address(1), now).is_greedy(MANY));
        let other = door.enter(address(2), now);
        assert!(!other.is_greedy(other.under_way));
        // All of his come to nothing, and count for a while.
        (0..=MANY).for_each(|_| door.leave(address(1), true, now));
        assert_eq!(door.under_way(), 1);
        let later = now + TRACE - Duration::from_millis(1);
        assert!(door.enter(address(1), later).is_greedy(MANY));
        door.leave(address(1), false, later);
        assert!(!door.enter(address(1), now + TRACE).is_greedy(MANY));
        door.leave(address(1), false, now);
        door.leave(address(2), false, now);
        let state = door.lock();
        assert!(state.each.is_empty() && state.traces.is_empty() && state.under_way == 0);
    }

    #[test]
    fn what_is_kept_of_strangers_is_bounded() {
        let (door, now) = (Door::default(), Instant::now());
        for number in (0_u32..).take(3 * STRANGERS) {
            let client = Some(IpAddr::from(number.to_be_bytes()));
            door.enter(client, now);
            door.leave(client, true, now);
        }
        let state = door.lock();
        assert_eq!((state.each.len(), state.traces.len()), (STRANGERS, STRANGERS));
    }
}
