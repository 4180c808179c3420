//! Matchers with equal right to the same mail. Owns what makes them so; the order that decides
//! between the others is `attribution`'s. Floor 0.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Matcher;

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
    /// Whether they are told apart by headers of different names, which one message may have
    /// both of.
    pub headers: bool,
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
                for (first, second) in same_headers(matchers, &ids) {
                    found.entry((second, first)).or_insert_with(|| Conflict {
                        first,
                        second,
                        network,
                        sender: sender.map(str::to_owned),
                        listener: listener.map(str::to_owned),
                        headers: matchers[first].headers != matchers[second].headers,
                    });
                }
            }
        }
    }
    found.into_values().collect()
}

/// Pairs among `ids` whose headers one message can meet, and as many of each: the later one with
/// the first that it meets.
fn same_headers(matchers: &[&Matcher], ids: &[usize]) -> Vec<(usize, usize)> {
    let mut by_names: BTreeMap<Vec<&str>, Vec<usize>> = BTreeMap::new();
    for id in ids {
        let names = matchers[*id].headers.iter().map(|(name, _)| name.as_str()).collect();
        by_names.entry(names).or_default().push(*id);
    }
    let groups: Vec<_> = by_names.iter().collect();
    let mut found = Vec::new();
    for (index, (names, ids)) in groups.iter().enumerate() {
        for (other_names, others) in &groups[..=index] {
            if names.len() != other_names.len() {
                continue;
            }
            let common: Vec<&str> =
                names.iter().filter(|name| other_names.contains(name)).copied().collect();
            let values = |id: usize| -> Vec<&str> {
                let headers = matchers[id].headers.iter();
                let of_common = headers.filter(|(name, _)| common.contains(&name.as_str()));
                of_common.map(|(_, value)| value.as_str()).collect()
            };
            let mut first: BTreeMap<Vec<&str>, usize> = BTreeMap::new();
            for other in others.iter() {
                first.entry(values(*other)).or_insert(*other);
            }
            let pairs = ids.iter().filter_map(|id| Some((*first.get(&values(*id))?, *id)));
            let pairs = pairs.filter(|(first, second)| first != second);
            found.extend(pairs.map(|(a, b)| (a.min(b), a.max(b))));
        }
    }
    found
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
