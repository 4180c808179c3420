//! The mail of a rehearsal: who sends what to whom at which time. Floor 4.
//!
//! Values only: `trace` and `synthetic` make them, `sender` sends them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    config::{Config, ListenerConfig},
    plan::{Instance, Origin, Plan},
};

/// Addresses that are tried in each network of an instance, for one that no more specific
/// instance has.
const ADDRESSES: u128 = 8;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Milliseconds after the beginning of the rehearsal.
    pub at: u64,
    /// Index into `Traffic::sources`.
    pub source: u32,
    /// Index into `Traffic::domains`: the domain of its recipient.
    pub domain: u32,
    /// Its declared size in bytes.
    pub size: u64,
    /// It comes on a connection of its own.
    pub alone: bool,
}

/// Where messages come from, and what makes them an instance's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Index of the instance in the plan; none for mail of no instance.
    pub instance: Option<usize>,
    /// Address of the client.
    pub client: IpAddr,
    /// Name of the listener.
    pub listener: String,
    /// Envelope sender.
    pub sender: String,
    /// Header fields that the instance is known by.
    pub headers: Vec<(String, String)>,
}

/// All messages, by time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Where they come from.
    pub sources: Vec<Source>,
    /// Domains of their recipients.
    pub domains: Vec<String>,
    /// The messages.
    pub letters: Vec<Letter>,
    /// What the reader of the report should know of them.
    pub notes: Vec<String>,
}

impl Traffic {
    /// The instance of a message.
    pub fn instance_of(&self, letter: &Letter) -> Option<usize> {
        self.source(letter).instance
    }

    /// Where a message comes from.
    pub fn source(&self, letter: &Letter) -> &Source {
        &self.sources[letter.source as usize]
    }

    /// Puts the messages in the order of their times.
    pub(super) fn sort(&mut self) {
        self.letters.sort_by_key(|letter| letter.at);
    }
}

/// Texts by number, each once.
#[derive(Default)]
pub(super) struct Names {
    numbers: HashMap<String, u32>,
    pub(super) all: Vec<String>,
}

impl Names {
    pub(super) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// A source whose mail the plan gives to this instance, and which a listener lets relay. None
/// where there is no such mail.
pub(super) fn source_of(config: &Config, index: usize) -> Option<Source> {
    let plan = &config.plan;
    let instance = &plan.instances[index];
    let senders = senders(instance, index);
    let headers = instance.matcher.headers.clone();
    for listener in &config.listeners {
        let wanted = &instance.matcher.listeners;
        if !wanted.is_empty() && !wanted.contains(&listener.name) {
            continue;
        }
        for client in clients(instance, listener) {
            for sender in &senders {
                let source = Source {
                    instance: Some(index),
                    client,
                    listener: listener.name.clone(),
                    sender: sender.clone(),
                    headers: headers.clone(),
                };
                if attribute(plan, &source) == Some(index) {
                    return Some(source);
                }
            }
        }
    }
    None
}

/// Whose mail it is, as the plan has it.
pub(super) fn attribute(plan: &Plan, source: &Source) -> Option<usize> {
    plan.attribute(&Origin {
        client: source.client,
        sender_domain: source.sender.rsplit_once('@').map(|(_, domain)| domain),
        listener: &source.listener,
        headers: &source.headers,
    })
}

/// The name of the first listener at which a client may relay; else of the first.
pub(super) fn listener_for(config: &Config, client: IpAddr) -> String {
    let may = |one: &&ListenerConfig| one.allow.iter().any(|network| network.contains(&client));
    let found = config.listeners.iter().find(may).or_else(|| config.listeners.first());
    found.map(|one| one.name.clone()).unwrap_or_default()
}

fn senders(instance: &Instance, index: usize) -> Vec<String> {
    let of = |domain: &String| match domain.strip_prefix('.') {
        Some(above) => format!("news@mail.{above}"),
        None => format!("news@{domain}"),
    };
    match instance.matcher.senders.is_empty() {
        true => vec![format!("news@instance-{}.invalid", index + 1)],
        false => instance.matcher.senders.iter().map(of).collect(),
    }
}

/// Addresses of the instance's networks, or of anywhere, that may relay at a listener.
fn clients(instance: &Instance, listener: &ListenerConfig) -> Vec<IpAddr> {
    let networks = &instance.matcher.clients;
    let mut found = BTreeSet::new();
    for allowed in &listener.allow {
        if networks.is_empty() {
            found.extend(addresses(allowed));
        }
        for network in networks {
            let both = match allowed.contains(network) {
                true => network,
                false if network.contains(allowed) => allowed,
                false => continue,
            };
            found.extend(addresses(both));
        }
    }
    found.into_iter().collect()
}

/// Some addresses of a network, from its first to its last.
fn addresses(network: &IpNet) -> Vec<IpAddr> {
    let (first, last) = match network {
        IpNet::V4(net) => {
            (u128::from(u32::from(net.network())), u128::from(u32::from(net.broadcast())))
        }
        IpNet::V6(net) => (u128::from(net.network()), u128::from(net.broadcast())),
    };
    let span = last - first;
    // The first of a network with several is its name.
    let offset = u128::from(span > 1);
    let of = |step: u128| {
        let number = first + offset + (span - offset.min(span)) / ADDRESSES * step;
        match network {
            IpNet::V4(_) => u32::try_from(number).ok().map(|bits| IpAddr::V4(bits.into())),
            IpNet::V6(_) => Some(IpAddr::V6(number.into())),
        }
    };
    (0..ADDRESSES).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_their_network() {
        for text in ["10.0.0.0/8", "192.0.2.7/32", "10.1.1.0/31", "2001:db8::/32", "::1/128"] {
            let network: IpNet = text.parse().expect("a network");
            let found = addresses(&network);
            assert!(!found.is_empty() && found.iter().all(|one| network.contains(one)), "{text}");
        }
        let all: IpNet = "0.0.0.0/0".parse().expect("a network");
        assert_eq!(addresses(&all)[0].to_string(), "0.0.0.1");
        let all: IpNet = "::/0".parse().expect("a network");
        assert_eq!(addresses(&all).len(), 8);
    }
}
