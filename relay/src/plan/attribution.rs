//! Whose mail is it: an index over the matchers of all instances, built once a plan. Owns the
//! meaning of "more specific"; knows no windows but by their number. Floor 0.
//!
//! **Who has a message.** Every instance whose given criteria are all met is a candidate. Of
//! several the more specific wins, and this is the order:
//! 1. the longest network of `clients` that holds the client (no `clients`: last);
//! 2. the sender: its very domain, then the longest suffix entry (no `senders`: last). An entry
//!    without a dot in front is one domain, `.acme.example` all domains below `acme.example`
//!    and not that itself;
//! 3. `listeners` given before not given.
//!
//! Two instances that share one network (or both lack `clients`), one sender entry (or both lack
//! `senders`) and one listener (or both lack `listeners`) would come out equal: `conflicts` finds
//! them, and the configuration is refused.
//!
//! **Bounces** (`<>`) have no sender domain, so that `senders` cannot tell whose they are. The
//! instances that have mail from the client's address are those with a network that holds it
//! (and the listener); but an instance without `senders` takes all there is, and leaves nothing
//! to wider networks. Where this is one instance, it owns the network alone and has its bounces.
//! Otherwise the rule above holds among instances without `senders`.
//!
//! Cost: a hash lookup for each prefix length that the plan uses and each dot in the sender's
//! domain; then the shorter of two lists, which is long only where as many instances share
//! both a network and a sender's domain. No allocation.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Matcher, Origin};

/// Longest domain that can match (RFC 5321 4.5.3.1.2).
const DOMAIN_MAX: usize = 255;

/// Ids of instances, ascending.
type Ids = Vec<u32>;

/// The index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attribution {
    /// Matchers by instance; only `listeners` are looked at after building.
    listeners: Vec<Vec<String>>,
    networks: HashMap<IpNet, Network>,
    /// Prefix lengths in use, longest first.
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
    senders: HashMap<Box<[u8]>, Sender>,
    /// Longest entry of `senders` with a dot in front.
    suffix_max: usize,
    /// Instances with neither `clients` nor `senders`.
    only_listener: Ids,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Network {
    /// Instances with `senders` too.
    with_sender: Ids,
    /// Instances without.
    any_sender: Ids,
    /// Who can have mail from here, for each listener that is named and for no listener.
    claims: Vec<(Option<String>, Claim)>,
    /// One instance of each wave that has one here.
    wave_members: Ids,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Sole(u32),
    Several,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sender {
    /// Instances with `clients` too.
    with_clients: Ids,
    /// Instances without.
    any_client: Ids,
}

impl Attribution {
    /// Builds the index; `wave_of` has the wave of each instance.
    pub(super) fn new(matchers: &[&Matcher], wave_of: &[Option<usize>]) -> Self {
        let mut index = Self::default();
        let mut waves_seen = HashSet::new();
        for (id, matcher) in matchers.iter().enumerate() {
            let wave = wave_of.get(id).copied().flatten();
            let id = u32::try_from(id).expect("a plan file cannot hold so many instances");
            index.listeners.push(matcher.listeners.clone());
            for net in matcher.clients.iter().map(IpNet::trunc) {
                let network = index.networks.entry(net).or_default();
                let ids = match matcher.senders.is_empty() {
                    true => &mut network.any_sender,
                    false => &mut network.with_sender,
                };
                push(ids, id);
                network.claim(matcher, id);
                if wave.is_some_and(|wave| waves_seen.insert((net, wave))) {
                    push(&mut network.wave_members, id);
                }
            }
            for sender in &matcher.senders {
                let lower = sender.to_ascii_lowercase();
                if lower.starts_with('.') {
                    index.suffix_max = index.suffix_max.max(lower.len());
                }
                let sender = index.senders.entry(lower.into_bytes().into()).or_default();
                match matcher.clients.is_empty() {
                    true => push(&mut sender.any_client, id),
                    false => push(&mut sender.with_clients, id),
                }
            }
            if matcher.clients.is_empty() && matcher.senders.is_empty() {
                push(&mut index.only_listener, id);
            }
        }
        let lengths = |v4: bool| {
            let of_kind = index.networks.keys().filter(|net| matches!(net, IpNet::V4(_)) == v4);
            let lengths: BTreeSet<u8> = of_kind.map(IpNet::prefix_len).collect();
            lengths.into_iter().rev().collect()
        };
        (index.v4_lengths, index.v6_lengths) = (lengths(true), lengths(false));
        index
    }

    /// The instance that has the message.
    pub(super) fn find(&self, origin: &Origin<'_>) -> Option<u32> {
        if self.listeners.is_empty() {
            return None;
        }
        let Some(domain) = origin.sender_domain else {
            return self.find_bounce(origin);
        };
        let mut folded = [0; DOMAIN_MAX];
        let folded = folded.get_mut(..domain.len()).map(|folded| {
            folded.copy_from_slice(domain.as_bytes());
            folded.make_ascii_lowercase();
            &*folded
        });
        // A domain that is too long is met by no entry.
        let domain = folded.unwrap_or_default();
        let of_network = self.networks_of(origin.client).find_map(|network| {
            let both = |sender: &Sender| {
                self.pick_both(&network.with_sender, &sender.with_clients, origin)
            };
            self.senders_of(domain)
                .find_map(both)
                .or_else(|| self.pick(&network.any_sender, origin))
        });
        of_network
            .or_else(|| {
                self.senders_of(domain).find_map(|sender| self.pick(&sender.any_client, origin))
            })
            .or_else(|| self.pick(&self.only_listener, origin))
    }

    fn find_bounce(&self, origin: &Origin<'_>) -> Option<u32> {
        let mut claim = None;
        for network in self.networks_of(origin.client) {
            for (listener, more) in &network.claims {
                if listener.as_deref().is_none_or(|name| name == origin.listener) {
                    claim = join(claim, *more);
                }
            }
            // Whoever takes every sender here leaves nothing to wider networks.
            if self.pick(&network.any_sender, origin).is_some() {
                break;
            }
        }
        if let Some(Claim::Sole(owner)) = claim {
            return Some(owner);
        }
        let without_senders =
            self.networks_of(origin.client).find_map(|net| self.pick(&net.any_sender, origin));
        without_senders.or_else(|| self.pick(&self.only_listener, origin))
    }

    /// The first instance that `is_frozen` says yes to among those whose networks hold the
    /// client. It is asked about one instance of each wave.
    pub(super) fn frozen_owner(
        &self,
        client: IpAddr,
        mut is_frozen: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let members = self.networks_of(client).flat_map(|network| &network.wave_members);
        members.map(|id| *id as usize).find(|id| is_frozen(*id))
    }

    /// The plan's networks that hold `client`, longest prefix first.
    fn networks_of(&self, client: IpAddr) -> impl Iterator<Item = &Network> {
        let client = client.to_canonical();
        let lengths = if client.is_ipv4() { &self.v4_lengths } else { &self.v6_lengths };
        lengths.iter().filter_map(move |length| {
            let net = IpNet::new(client, *length).ok()?;
            self.networks.get(&net.trunc())
        })
    }

    /// The plan's sender entries that a domain in lower case meets, the most specific first.
    fn senders_of(&self, domain: &[u8]) -> impl Iterator<Item = &Sender> {
        let suffixes = domain.iter().enumerate().filter(|(_, byte)| **byte == b'.');
        // The first byte is no end of a name that something could be below of.
        let suffixes = suffixes.map(|(at, _)| at).filter(|at| *at > 0).map(|at| &domain[at..]);
        let suffixes = suffixes.filter(|suffix| suffix.len() <= self.suffix_max);
        std::iter::once(domain).chain(suffixes).filter_map(|entry| self.senders.get(entry))
    }

    /// Of `ids` the one whose listeners are met, one that names the listener first.
    fn pick(&self, ids: &[u32], origin: &Origin<'_>) -> Option<u32> {
        self.pick_from(ids.iter().copied(), origin)
    }

    /// The same of what is in both lists.
    fn pick_both(&self, a: &[u32], b: &[u32], origin: &Origin<'_>) -> Option<u32> {
        let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
        let both = short.iter().copied().filter(|id| long.binary_search(id).is_ok());
        self.pick_from(both, origin)
    }

    fn pick_from(&self, ids: impl Iterator<Item = u32>, origin: &Origin<'_>) -> Option<u32> {
        let mut any = None;
        for id in ids {
            let listeners = &self.listeners[id as usize];
            if listeners.iter().any(|name| name == origin.listener) {
                return Some(id);
            }
            if listeners.is_empty() {
                any = any.or(Some(id));
            }
        }
        any
    }
}

/// Adds to an ascending list.
fn push(ids: &mut Ids, id: u32) {
    if ids.last() != Some(&id) {
        ids.push(id);
    }
}

fn join(claim: Option<Claim>, more: Claim) -> Option<Claim> {
    match claim {
        None => Some(more),
        Some(claim) if claim == more => Some(claim),
        Some(_) => Some(Claim::Several),
    }
}

impl Network {
    fn claim(&mut self, matcher: &Matcher, id: u32) {
        let named = matcher.listeners.iter().cloned().map(Some);
        let unnamed = matcher.listeners.is_empty().then_some(None);
        for listener in named.chain(unnamed) {
            match self.claims.iter_mut().find(|(name, _)| *name == listener) {
                Some((_, claim)) if *claim != Claim::Sole(id) => *claim = Claim::Several,
                Some(_) => {}
                None => self.claims.push((listener, Claim::Sole(id))),
            }
        }
    }
}

/// Two matchers that would have the same mail with equal right, and what they share; none
/// stands for a criterion that both lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Position of one.
    pub first: usize,
    /// Position of the other, later one.
    pub second: usize,
    /// Shared network of clients.
    pub network: Option<IpNet>,
    /// Shared entry of senders.
    pub sender: Option<String>,
    /// Shared listener.
    pub listener: Option<String>,
}

/// Finds the conflicts; each pair once, and each matcher with the first that it meets at a
/// place, so that a thousand equal ones make a thousand findings and not a million.
pub fn conflicts(matchers: &[&Matcher]) -> Vec<Conflict> {
    let mut found: BTreeMap<(usize, usize), Conflict> = BTreeMap::new();
    let all: Vec<usize> = (0..matchers.len()).collect();
    let senders = |id: usize| matchers[id].senders.iter().map(String::as_str);
    for (sender, ids) in shared(&all, |id| or_none(senders(id))) {
        let clients = |id: usize| matchers[id].clients.iter().copied();
        for (network, ids) in shared(&ids, |id| or_none(clients(id))) {
            let listeners = |id: usize| matchers[id].listeners.iter().map(String::as_str);
            for (listener, ids) in shared(&ids, |id| or_none(listeners(id))) {
                for second in &ids[1..] {
                    found.entry((*second, ids[0])).or_insert_with(|| Conflict {
                        first: ids[0],
                        second: *second,
                        network,
                        sender: sender.map(str::to_owned),
                        listener: listener.map(str::to_owned),
                    });
                }
            }
        }
    }
    found.into_values().collect()
}

/// The values, or a single none where there are no values.
fn or_none<T>(values: impl Iterator<Item = T>) -> impl Iterator<Item = Option<T>> {
    let mut values = values.map(Some).peekable();
    let none = values.peek().is_none().then_some(None);
    values.chain(none)
}

/// What at least two of `ids` have, in order, with those that have it.
fn shared<K: Ord + Copy, I: Iterator<Item = K>>(
    ids: &[usize],
    keys: impl Fn(usize) -> I,
) -> Vec<(K, Vec<usize>)> {
    let mut by_key: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    for id in ids {
        for key in keys(*id) {
            let ids = by_key.entry(key).or_default();
            if ids.last() != Some(id) {
                ids.push(*id);
            }
        }
    }
    by_key.into_iter().filter(|(_, ids)| ids.len() > 1).collect()
}

#[cfg(test)]
mod tests;
