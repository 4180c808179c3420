//! Asking for one name: which questions, and what their answers come to.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;

use super::ADDRESSES;
use crate::{
    config::Target,
    world::{
        Resolver,
        resolver::{Answer, Kind, LookupError, Record},
    },
};

/// Mail exchangers of one domain that are looked at, the best ones.
const EXCHANGERS: usize = 10;

/// What came of asking for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It stands for these addresses of these hosts, by rank.
    Found {
        /// At least one.
        list: Vec<(SocketAddr, Arc<str>, usize)>,
        /// What was not answered beside.
        gaps: Vec<Gap>,
        /// How long that is good.
        ttl: Duration,
    },
    /// It stands for nothing.
    Denied(String),
    /// Nobody knows.
    Silent(String),
}

/// A question without an answer: the addresses of one family of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    host: Arc<str>,
    v6: bool,
    /// Why.
    pub why: String,
}

impl Gap {
    /// Whether it is about this address.
    pub fn covers(&self, host: &str, address: SocketAddr) -> bool {
        *self.host == *host && self.v6 == address.is_ipv6()
    }
}

/// Asks for a name. An address needs no asking.
pub async fn ask(resolver: &Arc<dyn Resolver>, target: &Target) -> Reply {
    match target {
        Target::Address(address) => Reply::Denied(format!("{address} is an address")),
        Target::Host { name, port } => {
            let host = ask_host(Arc::clone(resolver), name.as_str().into(), *port, 0).await;
            reply(vec![host], Duration::MAX)
        }
        Target::Mx { domain, port } => ask_exchangers(resolver, domain, *port).await,
    }
}

/// RFC 5321 5.1.
async fn ask_exchangers(resolver: &Arc<dyn Resolver>, domain: &str, port: u16) -> Reply {
    let answer = resolver.lookup(domain, Kind::Mx).await;
    let has_exchangers = answer.is_ok();
    let (hosts, ttl) = match answer {
        Ok(Answer { records, ttl }) => (exchangers(records), ttl),
        // Without one the domain is its own, with a preference of 0.
        Err(LookupError::NoSuchRecord) => (vec![(domain.to_owned(), 0)], Duration::MAX),
        Err(error @ LookupError::NoSuchName) => return Reply::Denied(error.to_string()),
        Err(LookupError::NoAnswer(why)) => return Reply::Silent(why),
    };
    if hosts.is_empty() {
        return Reply::Denied("the domain takes no mail (a null MX, RFC 7505)".to_owned());
    }
    let mut asking = JoinSet::new();
    for (host, rank) in hosts {
        asking.spawn(ask_host(Arc::clone(resolver), host.as_str().into(), port, rank));
    }
    match reply(asking.join_all().await, ttl) {
        Reply::Denied(_) if has_exchangers => {
            Reply::Denied("none of its mail exchangers has an address".to_owned())
        }
        reply => reply,
    }
}

/// The best ones with their rank: equal ones share one. None where there is only the null MX.
fn exchangers(records: Vec<Record>) -> Vec<(String, usize)> {
    let mut hosts: Vec<_> = records
        .into_iter()
        .filter_map(|record| match record {
            Record::Exchange { preference, host } if !host.is_empty() => Some((preference, host)),
            _ => None,
        })
        .collect();
    hosts.sort();
    hosts.dedup_by(|one, other| one.1 == other.1);
    hosts.truncate(EXCHANGERS);
    let mut preferences: Vec<_> = hosts.iter().map(|(preference, _)| *preference).collect();
    preferences.dedup();
    let rank = |wanted| preferences.iter().position(|one| *one == wanted).unwrap_or(0);
    hosts.into_iter().map(|(preference, host)| (host, rank(preference))).collect()
}

/// What is known of one host.
struct Host {
    list: Vec<(SocketAddr, Arc<str>, usize)>,
    gaps: Vec<Gap>,
    ttl: Duration,
    exists: bool,
}

async fn ask_host(resolver: Arc<dyn Resolver>, name: Arc<str>, port: u16, rank: usize) -> Host {
    let (a, aaaa) =
        tokio::join!(resolver.lookup(&name, Kind::A), resolver.lookup(&name, Kind::Aaaa));
    let mut host = Host { list: Vec::new(), gaps: Vec::new(), ttl: Duration::MAX, exists: true };
    for (answer, v6) in [(a, false), (aaaa, true)] {
        match answer {
            Ok(Answer { records, ttl }) => {
                host.ttl = host.ttl.min(ttl);
                let addresses = records.into_iter().filter_map(|record| match record {
                    Record::Address(address) if is_host(address) => Some(address),
                    _ => None,
                });
                let of = |address| (SocketAddr::new(address, port), Arc::clone(&name), rank);
                host.list.extend(addresses.map(of));
            }
            Err(LookupError::NoAnswer(why)) => {
                host.gaps.push(Gap { host: Arc::clone(&name), v6, why });
            }
            Err(LookupError::NoSuchName) => host.exists = false,
            Err(LookupError::NoSuchRecord) => {}
        }
    }
    host
}

/// What may be connected to. `0.0.0.0` would be this host.
fn is_host(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !address.is_unspecified() && !address.is_multicast()
}

fn reply(mut hosts: Vec<Host>, ttl: Duration) -> Reply {
    let exists = hosts.iter().any(|host| host.exists);
    let ttl = hosts.iter().map(|host| host.ttl).min().unwrap_or(ttl).min(ttl);
    let gaps: Vec<_> = hosts.iter_mut().flat_map(|host| std::mem::take(&mut host.gaps)).collect();
    let mut list: Vec<_> = hosts.into_iter().flat_map(|host| host.list).collect();
    list.sort_by_key(|one| (one.2, one.0));
    let mut seen = std::collections::HashSet::new();
    list.retain(|one| seen.insert(one.0));
    list.truncate(ADDRESSES);
    match (list.is_empty(), gaps.first()) {
        (false, _) => Reply::Found { list, gaps, ttl },
        (true, Some(gap)) => Reply::Silent(gap.why.clone()),
        (true, None) if exists => Reply::Denied("it has no address".to_owned()),
        (true, None) => Reply::Denied(LookupError::NoSuchName.to_string()),
    }
}
