//! The index against a scan of all instances, and the cases that the design names.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::plan::{Instance, Plan, Timestamp, Wave, Window};

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|one| (*one).to_owned()).collect()
}

fn matcher(clients: &[&str], senders: &[&str], listeners: &[&str]) -> Matcher {
    Matcher {
        clients: clients.iter().map(|net| net.parse().unwrap()).collect(),
        senders: strings(senders),
        listeners: strings(listeners),
        headers: Vec::new(),
    }
}

/// A plan whose instance N is in the wave that `waves` has for it; wave N opens at N * 1000.
fn plan(matchers: Vec<Matcher>, waves: &[Option<usize>]) -> Plan {
    let last = waves.iter().flatten().max().map_or(0, |last| last + 1);
    let in_wave = |wave: usize| {
        waves.iter().enumerate().filter(move |(_, of)| **of == Some(wave)).map(|(id, _)| id)
    };
    let wave = |wave: usize| Wave {
        window: Window {
            wave: format!("w{wave}"),
            opens: Timestamp(wave as u64 * 1000),
            closes: Timestamp(wave as u64 * 1000 + 1000),
        },
        environment: "production".into(),
        instances: in_wave(wave).collect(),
        ..Wave::default()
    };
    let instance = |(id, matcher)| Instance {
        name: format!("i{id}"),
        product: "p".into(),
        environment: "production".into(),
        matcher,
        ..Instance::default()
    };
    let instances = matchers.into_iter().enumerate().map(instance).collect();
    Plan::new(100, instances, (0..last).map(wave).collect())
}

fn has(plan: &Plan, client: &str, sender_domain: Option<&str>, listener: &str) -> Option<usize> {
    let client = client.parse().unwrap();
    plan.attribute(&Origin { client, sender_domain, listener, headers: &[] })
}

#[test]
fn all_criteria_must_be_met() {
    let plan = plan(vec![matcher(&["10.0.0.0/8"], &["a.example"], &["in"])], &[None]);
    assert_eq!(has(&plan, "10.1.2.3", Some("a.example"), "in"), Some(0));
    assert_eq!(has(&plan, "::ffff:10.1.2.3", Some("A.Example"), "in"), Some(0));
    assert_eq!(has(&plan, "11.1.2.3", Some("a.example"), "in"), None);
    assert_eq!(has(&plan, "10.1.2.3", Some("b.example"), "in"), None);
    assert_eq!(has(&plan, "10.1.2.3", Some("x.a.example"), "in"), None);
    assert_eq!(has(&plan, "10.1.2.3", Some(""), "in"), None);
    assert_eq!(has(&plan, "10.1.2.3", Some("a.example"), "out"), None);
    assert_eq!(has(&Plan::default(), "10.1.2.3", None, "in"), None);
}

#[test]
fn the_more_specific_wins() {
    let plan = plan(
        vec![
            matcher(&["10.0.0.0/8"], &[], &[]),
            matcher(&["10.1.0.0/16"], &[], &[]),
            matcher(&["10.0.0.0/8"], &[".example"], &[]),
            matcher(&["10.0.0.0/8"], &[".a.example"], &[]),
            matcher(&["10.0.0.0/8"], &["x.a.example"], &[]),
            matcher(&["10.0.0.0/8"], &["x.a.example"], &["in"]),
            matcher(&[], &["x.a.example"], &[]),
            matcher(&[], &[], &["in"]),
        ],
        &[None; 8],
    );
    assert_eq!(has(&plan, "10.1.0.1", Some("x.a.example"), "in"), Some(1), "longest network");
    assert_eq!(has(&plan, "10.2.0.1", Some("x.a.example"), "in"), Some(5), "listener given");
    assert_eq!(has(&plan, "10.2.0.1", Some("x.a.example"), "out"), Some(4), "exact sender");
    assert_eq!(has(&plan, "10.2.0.1", Some("y.x.a.example"), "out"), Some(3), "longer suffix");
    assert_eq!(has(&plan, "10.2.0.1", Some("a.example"), "out"), Some(2), "not itself");
    assert_eq!(has(&plan, "10.2.0.1", Some("example"), "out"), Some(0));
    assert_eq!(has(&plan, "192.0.2.1", Some("X.A.EXAMPLE"), "in"), Some(6));
    assert_eq!(has(&plan, "192.0.2.1", Some("b.example"), "in"), Some(7));
    assert_eq!(has(&plan, "192.0.2.1", Some("b.example"), "out"), None);
}

#[test]
fn bounces_belong_to_who_owns_the_network_alone() {
    let plan = plan(
        vec![
            matcher(&["10.0.0.0/24"], &["a.example"], &[]),
            matcher(&["10.0.1.0/24"], &["b.example"], &[]),
            matcher(&["10.0.1.0/24"], &["c.example"], &[]),
            matcher(&["10.0.2.0/24"], &["d.example"], &["in"]),
            matcher(&["10.0.2.0/24"], &["e.example"], &["out"]),
            // Inside of 3, for every sender: 3 has nothing from there.
            matcher(&["10.0.2.8/32"], &[], &[]),
            // Inside of 0, for its own senders only: both may have mail from there.
            matcher(&["10.0.0.8/32"], &["f.example"], &[]),
            matcher(&["10.0.3.0/24"], &[], &[]),
            matcher(&["10.0.3.0/24"], &["g.example"], &[]),
            matcher(&[], &["h.example"], &[]),
            matcher(&[], &[], &["back"]),
        ],
        &[None; 11],
    );
    assert_eq!(has(&plan, "10.0.0.1", None, "in"), Some(0));
    assert_eq!(has(&plan, "10.0.1.1", None, "in"), None, "two instances");
    assert_eq!(has(&plan, "10.0.2.1", None, "in"), Some(3));
    assert_eq!(has(&plan, "10.0.2.1", None, "out"), Some(4));
    assert_eq!(has(&plan, "10.0.2.8", None, "in"), Some(5));
    assert_eq!(has(&plan, "10.0.0.8", None, "in"), None, "nested networks");
    assert_eq!(has(&plan, "10.0.3.1", None, "in"), Some(7), "meets all that is given");
    assert_eq!(has(&plan, "192.0.2.1", None, "in"), None);
    assert_eq!(has(&plan, "192.0.2.1", None, "back"), Some(10));
}

#[test]
fn domains_at_the_length_limit_and_beyond() {
    let long = format!("{}.example", "a".repeat(DOMAIN_MAX - 8));
    let plan = plan(vec![matcher(&[], &[&long, ".example"], &[])], &[None]);
    assert_eq!(has(&plan, "10.0.0.1", Some(&long), "in"), Some(0));
    assert_eq!(has(&plan, "10.0.0.1", Some(&format!("b{long}")), "in"), None);
    assert_eq!(has(&plan, "10.0.0.1", Some(".example"), "in"), Some(0));
    assert_eq!(has(&plan, "10.0.0.1", Some("..example"), "in"), Some(0));
}

#[test]
fn a_frozen_network_has_an_owner_while_it_is_frozen() {
    let plan = plan(
        vec![
            matcher(&["10.0.0.0/8"], &["a.example"], &[]),
            matcher(&["10.1.0.0/16"], &["b.example"], &[]),
            matcher(&["10.1.0.0/16"], &["c.example"], &[]),
            matcher(&["10.2.0.0/16"], &[], &[]),
        ],
        &[Some(1), Some(2), Some(2), None],
    );
    let owner = |client: &str, now| {
        let frozen = |id| !plan.phase(id, Timestamp(now)).may_start();
        plan.owner_of_network(client.parse().unwrap(), frozen)
    };
    assert_eq!(owner("10.1.0.1", 899), None);
    assert_eq!(owner("10.1.0.1", 900), Some(0), "freezing, by the wider network");
    assert_eq!(owner("10.1.0.1", 1899), Some(0));
    assert_eq!(owner("10.1.0.1", 1900), Some(1), "its own");
    assert_eq!(owner("10.2.0.1", 1999), Some(0));
    assert_eq!(owner("10.2.0.1", 2000), None);
    assert_eq!(owner("11.0.0.1", 1500), None);
    let mut asked = Vec::new();
    plan.owner_of_network("10.1.0.1".parse().unwrap(), |id| {
        asked.push(id);
        false
    });
    assert_eq!(asked, [1, 0], "once for each wave, the longest network first");
}

#[test]
fn equal_right_is_found() {
    let matchers = [
        matcher(&["10.0.0.0/8", "10.1.0.0/16"], &["a.example", "b.example"], &[]),
        matcher(&["10.0.0.0/8"], &["b.example"], &["in"]),
        matcher(&["10.1.0.0/16"], &["b.example"], &[]),
        matcher(&["10.0.0.0/8"], &[], &[]),
        matcher(&[], &[], &["in", "out"]),
        matcher(&[], &[], &["out"]),
    ];
    let found = conflicts(&matchers.iter().collect::<Vec<_>>());
    let pairs: Vec<_> = found.iter().map(|one| (one.first, one.second)).collect();
    assert_eq!(pairs, [(0, 2), (4, 5)]);
    assert_eq!(found[0].network, Some("10.1.0.0/16".parse().unwrap()));
    assert_eq!(found[0].sender.as_deref(), Some("b.example"));
    assert_eq!(found[0].listener, None);
    assert_eq!(found[1].listener.as_deref(), Some("out"));
}

#[test]
fn headers_come_after_senders_and_before_listeners() {
    let with = |headers: &[(&str, &str)], matcher: Matcher| Matcher {
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..matcher
    };
    let net = ["10.0.0.0/8"];
    let plan = plan(
        vec![
            matcher(&net, &[], &["in"]),
            with(&[("x-a", "1")], matcher(&net, &[], &[])),
            with(&[("x-a", "1"), ("x-b", "1")], matcher(&net, &[], &[])),
            with(&[("x-a", "2")], matcher(&net, &[], &[])),
            matcher(&net, &["a.example"], &[]),
            with(&[("x-a", "1")], matcher(&[], &[], &[])),
        ],
        &[None; 6],
    );
    let has = |client: &str, sender_domain, fields: &[(&str, &str)]| {
        let headers: Vec<(String, String)> =
            fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let client = client.parse().unwrap();
        plan.attribute(&Origin { client, sender_domain, listener: "in", headers: &headers })
    };
    let other = Some("other.example");
    assert!(plan.wants_headers() && !Plan::default().wants_headers());
    assert_eq!(has("10.0.0.1", other, &[]), Some(0));
    assert_eq!(has("10.0.0.1", other, &[("X-A", " 1 ")]), Some(1), "before a listener");
    assert_eq!(has("10.0.0.1", other, &[("x-B", "1"), ("X-a", "1")]), Some(2), "more headers");
    assert_eq!(has("10.0.0.1", other, &[("X-A", "2"), ("X-A", "1")]), Some(3), "the first field");
    assert_eq!(has("10.0.0.1", other, &[("X-A", "3")]), Some(0));
    assert_eq!(has("10.0.0.1", Some("a.example"), &[("X-A", "1")]), Some(4), "the sender first");
    assert_eq!(has("192.0.2.1", other, &[("X-A", "1")]), Some(5), "without anything else");
    assert_eq!(has("192.0.2.1", other, &[("X-A", "2")]), None);
    assert_eq!(has("10.0.0.1", None, &[("X-A", "2")]), Some(3), "a bounce too");
}

#[test]
fn equal_right_is_found_among_headers() {
    let with = |headers: &[(&str, &str)]| Matcher {
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..matcher(&["10.0.0.0/8"], &[], &[])
    };
    let matchers = [
        with(&[("x-a", "1")]),
        with(&[("x-a", "2")]),
        with(&[("x-b", "1")]),
        with(&[("x-a", "1"), ("x-b", "1")]),
        with(&[("x-a", "1"), ("x-c", "1")]),
        with(&[("x-a", "2"), ("x-d", "1")]),
        with(&[("x-a", "2")]),
        with(&[]),
    ];
    let found = conflicts(&matchers.iter().collect::<Vec<_>>());
    let pairs: Vec<_> = found.iter().map(|one| (one.first, one.second, one.headers)).collect();
    // 1 and 2 meet too: each is found with the first that it meets.
    assert_eq!(pairs, [(0, 2, true), (3, 4, true), (1, 6, false)]);
}

#[test]
fn many_headers_of_one_network_are_no_conflicts() {
    let one = |number: usize| Matcher {
        headers: vec![("x-instance".into(), format!("i{number}"))],
        ..matcher(&["10.0.0.0/8"], &[], &[])
    };
    let matchers: Vec<Matcher> = (0..10_000).map(one).collect();
    assert_eq!(conflicts(&matchers.iter().collect::<Vec<_>>()), []);
    let waves = vec![None; matchers.len()];
    let plan = plan(matchers, &waves);
    let headers = [("X-Instance".to_owned(), "i9999".to_owned())];
    let client = "10.0.0.1".parse().unwrap();
    let origin =
        Origin { client, sender_domain: Some("a.example"), listener: "in", headers: &headers };
    assert_eq!(plan.attribute(&origin), Some(9999));
}

#[test]
fn many_equal_matchers_make_few_conflicts() {
    let same = matcher(&["10.0.0.0/8"], &["a.example"], &[]);
    assert_eq!(conflicts(&vec![&same; 3000]).len(), 2999);
}

/// What the module's documentation says, word by word, over all instances.
fn scan(matchers: &[Matcher], origin: &Origin<'_>) -> Option<usize> {
    let network = |m: &Matcher| {
        let nets = m.clients.iter().filter(|net| net.contains(&origin.client));
        nets.map(IpNet::prefix_len).max()
    };
    let sender = |m: &Matcher, domain: &str| {
        let domain = domain.to_ascii_lowercase();
        let meets = |entry: &&String| match entry.starts_with('.') {
            true => domain.ends_with(entry.as_str()) && domain.len() > entry.len(),
            false => **entry == domain,
        };
        // The very domain comes before every suffix entry.
        let rank = |entry: &String| (!entry.starts_with('.'), entry.len());
        m.senders.iter().filter(meets).map(rank).max()
    };
    let listener = |m: &Matcher| m.listeners.iter().any(|name| name == origin.listener);
    let header = |(name, value): &(String, String)| {
        let mut fields = origin.headers.iter();
        fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).is_some_and(|f| f.1 == *value)
    };
    let rank = |m: &Matcher, domain: Option<&str>| {
        let sender = domain.and_then(|domain| sender(m, domain));
        let rank = (network(m), sender, m.headers.len(), listener(m));
        let met = (m.clients.is_empty() || rank.0.is_some())
            && (m.senders.is_empty() || rank.1.is_some())
            && m.headers.iter().all(header)
            && (m.listeners.is_empty() || rank.3);
        met.then_some(rank)
    };
    let best = |domain: Option<&str>| {
        let met = matchers.iter().enumerate().filter_map(|(id, m)| Some((rank(m, domain)?, id)));
        met.max_by_key(|(rank, id)| (*rank, std::cmp::Reverse(*id))).map(|(_, id)| id)
    };
    if origin.sender_domain.is_some() {
        return best(origin.sender_domain);
    }
    let heard = |m: &Matcher| m.listeners.is_empty() || listener(m);
    let here = || matchers.iter().enumerate().filter(|(_, m)| heard(m) && network(m).is_some());
    let takes = |m: &Matcher| m.senders.is_empty() && m.headers.iter().all(header);
    let takes_all = here().filter(|(_, m)| takes(m)).filter_map(|(_, m)| network(m));
    let floor = takes_all.max();
    let owners: Vec<usize> =
        here().filter(|(_, m)| network(m) >= floor).map(|(id, _)| id).collect();
    match owners.len() {
        1 => owners.first().copied(),
        _ => best(None),
    }
}

/// Header fields that a message may have; of two with one name the first counts.
const FIELDS: [(&str, &str); 6] =
    [("Subject", "1"), ("X-A", "1"), ("x-a", "2"), ("X-B", "1"), ("X-B", "2"), ("x-c", "2")];

fn any_matcher() -> impl Strategy<Value = Matcher> {
    let nets = ["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "2001:db8::/32", "::/0"];
    let senders = ["a.example", "b.example", ".example", ".a.example", "x.a.example", "c.test"];
    let some = |list: Vec<&'static str>, most| proptest::sample::subsequence(list, 0..=most);
    let header = |name: &'static str| {
        let value = proptest::sample::select(vec!["1", "2"]);
        proptest::option::weighted(0.3, value.prop_map(move |value| (name.into(), value.into())))
    };
    let headers = (header("x-a"), header("x-b"), header("x-c"));
    (some(nets.to_vec(), 2), some(senders.to_vec(), 3), some(vec!["in", "out"], 1), headers)
        .prop_map(|(clients, senders, listeners, (a, b, c))| Matcher {
            headers: [a, b, c].into_iter().flatten().collect(),
            ..matcher(&clients, &senders, &listeners)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_says_what_a_scan_says(
        drawn in proptest::collection::vec(any_matcher(), 0..12),
        client in proptest::sample::select(vec!["10.1.1.1", "10.1.1.2", "10.1.2.1", "10.9.0.1", "192.0.2.1", "2001:db8::1", "2001:db9::1"]),
        listener in proptest::sample::select(vec!["in", "out", "other"]),
        headers in proptest::sample::subsequence(FIELDS.to_vec(), 0..=4),
    ) {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        // As a checked plan has them: without conflicts.
        let mut matchers: Vec<Matcher> = Vec::new();
        for one in drawn {
            matchers.push(one);
            if !conflicts(&matchers.iter().collect::<Vec<_>>()).is_empty() {
                matchers.pop();
            }
        }
        let waves = vec![None; matchers.len()];
        let plan = plan(matchers.clone(), &waves);
        for sender_domain in [
            None, Some("a.example"), Some("A.EXAMPLE"), Some("x.a.example"), Some("y.x.a.example"),
            Some("b.example"), Some("example"), Some("c.test"), Some("other.invalid"),
        ] {
            let client = client.parse().unwrap();
            let origin = Origin { client, sender_domain, listener, headers: &headers };
            prop_assert_eq!(plan.attribute(&origin), scan(&matchers, &origin), "{:?}", origin);
        }
    }

    #[test]
    fn the_frozen_owner_is_what_a_scan_says(
        drawn in proptest::collection::vec((any_matcher(), proptest::option::of(0..3_usize)), 0..12),
        now in 0..5000_u64,
        client in proptest::sample::select(vec!["10.1.1.1", "10.1.2.1", "192.0.2.1", "2001:db8::1"]),
    ) {
        let (matchers, waves): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
        let plan = plan(matchers.clone(), &waves);
        let (client, now) = (client.parse().unwrap(), Timestamp(now));
        let holds = |id: usize| matchers[id].clients.iter().any(|net| net.contains(&client))
            && !plan.phase(id, now).may_start();
        let found = plan.owner_of_network(client, |id| !plan.phase(id, now).may_start());
        prop_assert_eq!(found.is_some(), (0..matchers.len()).any(holds));
        prop_assert!(found.is_none_or(holds));
    }
}
