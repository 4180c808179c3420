//! Who says what a name stands for: one question, one answer. Floor 1.
//!
//! Owns the questions and how a resolver is asked; the real one goes by `hickory`, that of
//! simulations by `memory`. It knows nothing of upstreams, and keeps nothing beyond the TTL: that is
//! `crate::names`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::BoxFuture;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// IPv4 addresses of a host.
    A,
    /// IPv6 addresses of a host.
    Aaaa,
    /// The mail exchangers of a domain.
    Mx,
}

/// One thing that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(IpAddr),
    /// A mail exchanger.
    Exchange {
        /// Lower ones go first (RFC 5321 5.1).
        preference: u16,
        /// Its name; empty for the root, which says that the domain takes no mail (RFC 7505).
        host: String,
    },
}

/// An answer with at least one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The records, in any order.
    pub records: Vec<Record>,
    /// How long they are good: what is left of the smallest TTL.
    pub ttl: Duration,
}

/// Why there are no records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// There is no such name (NXDOMAIN). That is an answer.
    #[error("there is no such name")]
    NoSuchName,
    /// The name has no record of this kind. That is an answer too.
    #[error("the name has no such record")]
    NoSuchRecord,
    /// Nobody answered, or not what was asked.
    #[error("{0}")]
    NoAnswer(String),
}

/// How servers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverSettings {
    /// Whom; none: those of the system.
    pub servers: Vec<SocketAddr>,
    /// How long one is waited for.
    pub timeout: Duration,
    /// How often a question is asked before it counts as not answered.
    pub attempts: usize,
    /// Nothing is cached for longer.
    pub max_ttl: Duration,
}

/// Answers questions.
pub trait Resolver: Send + Sync {
    /// What `name`, a complete one without its last dot, stands for. Takes no longer than
    /// `timeout` times `attempts`.
    fn lookup<'a>(
        &'a self,
        name: &'a str,
        kind: Kind,
    ) -> BoxFuture<'a, Result<Answer, LookupError>>;
}

/// Makes resolvers.
pub trait Resolvers: Send + Sync {
    /// One that asks like this. Nothing is asked yet.
    fn open(&self, settings: &ResolverSettings) -> Arc<dyn Resolver>;
}
