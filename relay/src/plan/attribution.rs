//! Whose mail is it: an index over the matchers of all instances, built once a plan. Owns the
//! meaning of "more specific"; knows no windows but by their number. Floor 0.
//!
//! **Who has a message.** Every instance whose given criteria are all met is a candidate. Of
//! several the more specific wins, and this is the order:
//! 1. the longest network of `clients` that holds the client (no `clients`: last);
//! 2. the sender: its very domain, then the longest suffix entry (no `senders`: last). An entry
//!    without a dot in front is one domain, `.acme.example` all domains below `acme.example`
//!    and not that itself;
//! 3. more `headers` before fewer (none: last);
//! 4. `listeners` given before not given.
//!
//! Two instances that share one network (or both lack `clients`), one sender entry (or both lack
//! `senders`), one listener (or both lack `listeners`), and have as many headers, none with
//! another value for the same name, would come out equal: `conflicts` finds them, and the
//! configuration is refused.
//!
//! **Bounces** (`<>`) have no sender domain, so that `senders` cannot tell whose they are. The
//! instances that have mail from the client's address are those with a network that holds it
//! (and the listener); but an instance without `senders` takes all there is, and leaves nothing
//! to wider networks. Where this is one instance, it owns the network alone and has its bounces.
//! Otherwise the rule above holds among instances without `senders`.
//!
//! Cost: a hash lookup for each prefix length that the plan uses, each dot in the sender's
//! domain, and each name of a header that the plan uses; then the shorter of two lists, which is
//! long only where as many instances share both a network and a sender's domain and differ in
//! their listeners. No allocation but for what headers meet.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Matcher, Origin};

mod overlap;

pub use overlap::{Conflict, conflicts};

/// Longest domain that can match (RFC 5321 4.5.3.1.2).
const DOMAIN_MAX: usize = 255;

/// Ids of instances, ascending.
type Ids = Vec<u32>;

/// Instances at one place of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Members {
    /// With `headers` too.
    with_headers: Ids,
    /// Without.
    plain: Ids,
}

impl Members {
    fn push(&mut self, matcher: &Matcher, id: u32) {
        match matcher.headers.is_empty() {
            true => push(&mut self.plain, id),
            false => push(&mut self.with_headers, id),
        }
    }
}

/// Instances whose `headers` a message meets, with how many those are: the most first.
type Met = Vec<(usize, u32)>;

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
    anywhere: Members,
    /// Instances by header, for each name in lower case.
    headers: BTreeMap<String, HashMap<String, Ids>>,
    /// How many headers an instance has.
    header_counts: HashMap<u32, usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Network {
    /// Instances with `senders` too.
    with_sender: Members,
    /// Instances without.
    any_sender: Members,
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
    with_clients: Members,
    /// Instances without.
    any_client: Members,
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
                match matcher.senders.is_empty() {
                    true => network.any_sender.push(matcher, id),
                    false => network.with_sender.push(matcher, id),
                }
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
                    true => sender.any_client.push(matcher, id),
                    false => sender.with_clients.push(matcher, id),
                }
            }
            if matcher.clients.is_empty() && matcher.senders.is_empty() {
                index.anywhere.push(matcher, id);
            }
            for (name, value) in &matcher.headers {
                let values = index.headers.entry(name.clone()).or_default();
                push(values.entry(value.clone()).or_default(), id);
                *index.header_counts.entry(id).or_default() += 1;
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
        let met = self.met(origin.headers);
        let Some(domain) = origin.sender_domain else {
            return self.find_bounce(origin, &met);
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
                self.pick_both(&network.with_sender, &sender.with_clients, &met, origin)
            };
            self.senders_of(domain)
                .find_map(both)
                .or_else(|| self.pick(&network.any_sender, &met, origin))
        });
        let of_sender = |sender: &Sender| self.pick(&sender.any_client, &met, origin);
        of_network
            .or_else(|| self.senders_of(domain).find_map(of_sender))
            .or_else(|| self.pick(&self.anywhere, &met, origin))
    }

    /// Whether any instance has `headers`.
    pub(super) fn wants_headers(&self) -> bool {
        !self.headers.is_empty()
    }

    /// Whose `headers` are met by these fields.
    fn met(&self, fields: &[(String, String)]) -> Met {
        if self.headers.is_empty() || fields.is_empty() {
            return Met::new();
        }
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (name, values) in &self.headers {
            let field = fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
            for id in field.and_then(|(_, value)| values.get(value.trim())).into_iter().flatten() {
                *counts.entry(*id).or_default() += 1;
            }
        }
        let all = |(id, count): &(u32, usize)| self.header_counts.get(id) == Some(count);
        let mut met: Met = counts.into_iter().filter(all).map(|(id, count)| (count, id)).collect();
        met.sort_unstable_by_key(|(count, id)| (std::cmp::Reverse(*count), *id));
        met
    }

    fn find_bounce(&self, origin: &Origin<'_>, met: &Met) -> Option<u32> {
        let mut claim = None;
        for network in self.networks_of(origin.client) {
            for (listener, more) in &network.claims {
                if listener.as_deref().is_none_or(|name| name == origin.listener) {
                    claim = join(claim, *more);
                }
            }
            // Whoever takes every sender here leaves nothing to wider networks.
            if self.pick(&network.any_sender, met, origin).is_some() {
                break;
            }
        }
        if let Some(Claim::Sole(owner)) = claim {
            return Some(owner);
        }
        let without_senders =
            self.networks_of(origin.client).find_map(|net| self.pick(&net.any_sender, met, origin));
        without_senders.or_else(|| self.pick(&self.anywhere, met, origin))
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

    /// Of `members` the one whose headers and listeners are met: most headers first, then one
    /// that names the listener.
    fn pick(&self, members: &Members, met: &Met, origin: &Origin<'_>) -> Option<u32> {
        self.pick_met(met, origin, |id| members.with_headers.binary_search(&id).is_ok())
            .or_else(|| self.pick_from(members.plain.iter().copied(), origin))
    }

    /// The same of what is in both.
    fn pick_both(&self, a: &Members, b: &Members, met: &Met, origin: &Origin<'_>) -> Option<u32> {
        let in_both = |id: u32| {
            let is_in = |members: &Members| members.with_headers.binary_search(&id).is_ok();
            is_in(a) && is_in(b)
        };
        self.pick_met(met, origin, in_both).or_else(|| {
            let (a, b) = (&a.plain, &b.plain);
            let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
            let both = short.iter().copied().filter(|id| long.binary_search(id).is_ok());
            self.pick_from(both, origin)
        })
    }

    /// Of those whose headers are met.
    fn pick_met(
        &self,
        met: &Met,
        origin: &Origin<'_>,
        is_member: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        met.chunk_by(|a, b| a.0 == b.0).find_map(|as_many| {
            let ids = as_many.iter().map(|(_, id)| *id).filter(|id| is_member(*id));
            self.pick_from(ids, origin)
        })
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

#[cfg(test)]
mod tests;
