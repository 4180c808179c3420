//! Failed logins by client, so that nobody guesses fast. Floor 3.
//!
//! Two cells for each: of the client with this one user, which stops a program that has a wrong
//! password from locking out others on its host; and of the client with whatever users. A good
//! login forgives nothing: whoever has one password could guess on for ever.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

use crate::{decision::RateLimit, gcra::Cell, message::subscriber};

/// Failures of a client with one user: 5 at once, then one in 30 s.
static OF_USER: RateLimit = limit(30_000, 5);
/// Failures of a client with all users: 50 at once, then one in 10 s.
static OF_CLIENT: RateLimit = limit(10_000, 50);
/// Cells that are kept, 56 bytes each; of more, those that say least are forgotten.
const CELLS: usize = 20_000;
/// What says least: those that would be forgotten within this time, or twice that, and so on.
const SOON: Duration = Duration::from_secs(30);
/// Thousandths, as cells count.
const NORMAL: u32 = 1000;

const fn limit(per_ms: u64, burst: u64) -> RateLimit {
    RateLimit { key: String::new(), quantity: 1, per_ms, burst, cost: 1 }
}

/// A client, and a user by a hash.
type Key = (IpAddr, Option<u64>);

/// The table.
pub(super) struct Tries {
    begun: Instant,
    names: RandomState,
    cells: HashMap<Key, Cell>,
}

impl Tries {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, names: RandomState::new(), cells: HashMap::new() }
    }

    /// Whether one more try may be made.
    pub(super) fn may(&self, client: IpAddr, user: &str, now: Instant) -> bool {
        let now = self.nanos(now);
        self.keys(client, user).iter().all(|(key, limit)| {
            let cell = self.cells.get(key);
            cell.is_none_or(|cell| cell.blocked_until(limit, now, NORMAL).is_none())
        })
    }

    /// One has failed.
    pub(super) fn failed(&mut self, client: IpAddr, user: &str, now: Instant) {
        let now = self.nanos(now);
        self.make_room(now);
        for (key, limit) in self.keys(client, user) {
            self.cells.entry(key).or_default().charge(limit, now, NORMAL);
        }
    }

    fn keys(&self, client: IpAddr, user: &str) -> [(Key, &'static RateLimit); 2] {
        let client = subscriber(client);
        let user = self.names.hash_one(user);
        [((client, Some(user)), &OF_USER), ((client, None), &OF_CLIENT)]
    }

    fn make_room(&mut self, now: u64) {
        let mut ahead = 0;
        while self.cells.len() + 2 > CELLS {
            let then = now.saturating_add(ahead);
            self.cells.retain(|_, cell| !cell.is_idle(then));
            ahead = (ahead * 2).max(nanos(SOON));
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.begun))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_wrong_password_locks_out_nobody_else() {
        let now = Instant::now();
        let mut tries = Tries::new(now);
        let client = ip("192.0.2.1");
        for _ in 0..5 {
            assert!(tries.may(client, "ada", now));
            tries.failed(client, "ada", now);
        }
        assert!(!tries.may(client, "ada", now));
        assert!(tries.may(client, "bob", now));
        assert!(tries.may(ip("192.0.2.2"), "ada", now));
        assert!(!tries.may(client, "ada", now + Duration::from_millis(29_999)));
        assert!(tries.may(client, "ada", now + Duration::from_secs(30)));
        assert!(!tries.may(ip("::ffff:192.0.2.1"), "ada", now));
    }

    #[test]
    fn who_tries_many_users_is_stopped_too() {
        let now = Instant::now();
        let mut tries = Tries::new(now);
        for number in 0..50 {
            let client = ip(&format!("2001:db8::{number:x}"));
            let user = format!("user-{number}");
            assert!(tries.may(client, &user, now), "{number}");
            tries.failed(client, &user, now);
        }
        assert!(!tries.may(ip("2001:db8::ffff"), "another", now));
        assert!(tries.may(ip("2001:db8:0:1::1"), "another", now));
        assert!(tries.may(ip("2001:db8::ffff"), "another", now + Duration::from_secs(10)));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_what_says_least() {
        let now = Instant::now();
        let mut tries = Tries::new(now);
        let guesser = ip("203.0.113.1");
        (0..5).for_each(|_| tries.failed(guesser, "ada", now));
        for number in 0..30_000_u32 {
            tries.failed(IpAddr::V4((0x0a00_0000 + number).into()), "ada", now);
            assert!(tries.cells.len() <= CELLS);
        }
        assert!(!tries.may(guesser, "ada", now));
        // With all the same, all are forgotten rather than one too many kept.
        let later = now + Duration::from_secs(3600);
        tries.failed(guesser, "ada", later);
        assert!(tries.cells.len() <= CELLS && tries.may(guesser, "ada", later));
    }
}
