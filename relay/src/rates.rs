//! How often a client may connect, and begin a message. Floor 3.
//!
//! Owns the table of clients; what counts as one is `message::subscriber`'s, the arithmetic is
//! `gcra`'s, the bounded table that of `limits`. Nothing waits here: who comes too often is told so
//! at once. Where the table is full, whoever is new in it passes: a flood from many addresses would
//! else lock out everybody, and the bounds on connections hold all the same.

use std::{net::IpAddr, sync::Arc};

use crate::{
    config,
    decision::{LimitSet, RateLimit},
    limits::{Charge, LimitError, Limits},
    message::subscriber,
};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// `limits.client_connection_rate`.
    Connection,
    /// `limits.client_message_rate`.
    Message,
}

/// The table of clients.
pub struct Rates(Arc<Limits>);

impl Rates {
    /// An empty table of at most so many cells.
    pub fn new(keys: usize) -> Self {
        Self(Limits::new(keys, 0))
    }

    /// Changes the bound, as a reload may.
    pub fn resize(&self, keys: usize) {
        self.0.resize(keys, 0);
    }

    /// Cells in use.
    pub fn len(&self) -> usize {
        self.0.stats().keys
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts one more; whether the client may.
    pub fn admit(&self, what: What, client: IpAddr, limits: &config::Limits) -> bool {
        let (scope, rate) = match what {
            What::Connection => ("connection", limits.client_connection_rate),
            What::Message => ("message", limits.client_message_rate),
        };
        let Some(rate) = rate else { return true };
        if limits.client_rate_exceptions.iter().any(|net| net.contains(&client)) {
            return true;
        }
        let limit = RateLimit {
            key: subscriber(client).to_string(),
            quantity: rate.count,
            per_ms: rate.per_ms,
            burst: rate.count,
            cost: 1,
        };
        let limits = LimitSet { rates: vec![limit], concurrency: Vec::new() };
        let taken = self.0.try_acquire(&[Charge { scope: scope.into(), limits }]);
        !matches!(taken, Err(LimitError::Reached { .. }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::config::Rate;

    fn limits(count: u64, per_ms: u64) -> config::Limits {
        config::Limits {
            client_connection_rate: Some(Rate { count, per_ms }),
            client_rate_exceptions: vec!["192.0.2.0/24".parse().unwrap()],
            ..config::Limits::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_at_its_rate_and_one_more_not() {
        let (rates, limits) = (Rates::new(100), limits(3, 60_000));
        let may = |client: &str| rates.admit(What::Connection, client.parse().unwrap(), &limits);
        assert_eq!([(); 4].map(|()| may("198.51.100.1")), [true, true, true, false]);
        // Another one, the same one by another way, one without a limit, another thing.
        assert!(may("198.51.100.2"));
        assert!(!may("::ffff:198.51.100.1"));
        assert!((0..10).all(|_| may("192.0.2.7")));
        let client = "198.51.100.1".parse().unwrap();
        assert!((0..10).all(|_| rates.admit(What::Message, client, &limits)));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!([(); 2].map(|()| may("198.51.100.1")), [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_of_ipv6_is_one_client() {
        let (rates, limits) = (Rates::new(100), limits(1, 1000));
        let may = |client: &str| rates.admit(What::Connection, client.parse().unwrap(), &limits);
        assert!(may("2001:db8:1:2::1"));
        assert!(!may("2001:db8:1:2:ffff::1"));
        assert!(may("2001:db8:1:3::1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_locks_nobody_out_and_forgets_who_is_idle() {
        let (rates, limits) = (Rates::new(2), limits(1, 60_000));
        let may = |last: u8| rates.admit(What::Connection, [198, 51, 100, last].into(), &limits);
        assert!(may(1) && may(2) && !may(1));
        assert!(may(3) && may(3), "not in the table");
        assert_eq!(rates.len(), 2);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(may(3) && !may(3), "there is room again");
    }
}
