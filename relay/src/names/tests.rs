#![allow(clippy::unwrap_used, reason = "tests")]
use std::net::IpAddr;

use super::*;
use crate::{
    config,
    plan::Timestamp,
    world::{
        Resolvers,
        memory::{MemoryNames, MemoryNetwork},
        resolver::{Answer, Kind, LookupError, Record},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn settings() -> ResolverConfig {
    ResolverConfig { keep: 600 * SECOND, ..ResolverConfig::default() }
}

fn host() -> Target {
    Target::Host { name: "mail.example".to_owned(), port: 25 }
}

fn mx() -> Target {
    Target::Mx { domain: "cloud.example".to_owned(), port: 25 }
}

fn silent() -> LookupError {
    LookupError::NoAnswer("SERVFAIL".to_owned())
}

async fn asked(names: &MemoryNames, target: &Target) -> Reply {
    ask(&names.open(&settings().settings), target).await
}

/// `address host rank` of each that was found.
async fn found(names: &MemoryNames, target: &Target) -> Vec<String> {
    match asked(names, target).await {
        Reply::Found { list, .. } => {
            let show = |(address, host, rank): &(SocketAddr, Arc<str>, usize)| {
                format!("{address} {host} {rank}")
            };
            list.iter().map(show).collect()
        }
        reply => panic!("{reply:?}"),
    }
}

fn addresses(targets: &[Target], names: &[Name]) -> Vec<String> {
    let placement = place(targets, names);
    placement.endpoints.iter().map(|one| one.endpoint.address.to_string()).collect()
}

/// A name, asked for once.
async fn known(names: &MemoryNames, target: &Target) -> Name {
    let mut name = Name::new(target.clone(), Instant::now());
    name.take(asked(names, target).await, &settings(), Instant::now());
    name
}

#[tokio::test(start_paused = true)]
async fn a_host_is_all_its_addresses() {
    let names = MemoryNames::default();
    names.host("mail.example", &["192.0.2.2", "2001:db8::1", "192.0.2.1"], 60);
    let expected = ["192.0.2.1:25 mail.example 0", "192.0.2.2:25 mail.example 0"];
    let all = found(&names, &host()).await;
    assert_eq!(all[..2], expected);
    assert_eq!(all[2..], ["[2001:db8::1]:25 mail.example 0"]);
    // This host, and nobody's.
    names.host("mail.example", &["0.0.0.0", "224.0.0.1", "::"], 60);
    assert_eq!(asked(&names, &host()).await, Reply::Denied("it has no address".to_owned()));
    names.set("mail.example", Kind::A, Err(LookupError::NoSuchName));
    names.set("mail.example", Kind::Aaaa, Err(LookupError::NoSuchName));
    let denied = Reply::Denied("there is no such name".to_owned());
    assert_eq!(asked(&names, &host()).await, denied);
    names.set("mail.example", Kind::Aaaa, Err(silent()));
    assert_eq!(asked(&names, &host()).await, Reply::Silent("SERVFAIL".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn exchangers_go_by_preference_and_equal_ones_share_a_rank() {
    let names = MemoryNames::default();
    names.exchangers("cloud.example", &[(20, "c"), (5, "b"), (5, "a"), (30, "gone")], 60);
    names.host("a", &["192.0.2.1"], 60);
    names.host("b", &["192.0.2.2", "192.0.2.1"], 60);
    names.host("c", &["192.0.2.3"], 60);
    let expected = ["192.0.2.1:25 a 0", "192.0.2.2:25 b 0", "192.0.2.3:25 c 1"];
    assert_eq!(found(&names, &mx()).await, expected);
    // Without MX records the domain is its own exchanger.
    names.set("cloud.example", Kind::Mx, Err(LookupError::NoSuchRecord));
    names.host("cloud.example", &["192.0.2.9"], 60);
    assert_eq!(found(&names, &mx()).await, ["192.0.2.9:25 cloud.example 0"]);
    for (records, why) in [
        (&[(0, "")][..], "the domain takes no mail (a null MX, RFC 7505)"),
        (&[(10, "gone")][..], "none of its mail exchangers has an address"),
    ] {
        names.exchangers("cloud.example", records, 60);
        assert_eq!(asked(&names, &mx()).await, Reply::Denied(why.to_owned()));
    }
    names.set("cloud.example", Kind::Mx, Err(LookupError::NoSuchName));
    assert!(matches!(asked(&names, &mx()).await, Reply::Denied(_)));
    // It does not fall back to the domain where it is not known whether there are others.
    names.set("cloud.example", Kind::Mx, Err(silent()));
    assert!(matches!(asked(&names, &mx()).await, Reply::Silent(_)));
}

#[tokio::test(start_paused = true)]
async fn exchangers_and_addresses_are_bounded_and_always_the_same() {
    let names = MemoryNames::default();
    let hosts: Vec<_> = (0..12).map(|number| (number, format!("mx{number}"))).collect();
    for (number, host) in &hosts {
        names.host(host, &[&format!("192.0.2.{number}")], 60);
    }
    let records: Vec<_> = hosts.iter().map(|(n, host)| (*n, host.as_str())).collect();
    names.exchangers("cloud.example", &records, 60);
    assert_eq!(found(&names, &mx()).await.len(), 10);
    let many: Vec<_> = (0..40).rev().map(|number| format!("192.0.2.{number}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    names.host("mail.example", &many, 60);
    let all = found(&names, &host()).await;
    assert_eq!((all.len(), &*all[0]), (ADDRESSES, "192.0.2.0:25 mail.example 0"));
}

#[tokio::test(start_paused = true)]
async fn a_ttl_counts_within_its_bounds() {
    let names = MemoryNames::default();
    for (ttl, counts) in [(0, 5), (5, 5), (60, 60), (1_000_000, 3600)] {
        names.host("mail.example", &["192.0.2.1"], ttl);
        let name = known(&names, &host()).await;
        assert_eq!(name.wake(600 * SECOND) - Instant::now(), counts * SECOND, "{ttl}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_last_one_is_kept_for_a_time() {
    let names = MemoryNames::default();
    names.host("mail.example", &["192.0.2.1", "2001:db8::1"], 60);
    let mut name = known(&names, &host()).await;
    let begun = Instant::now();
    names.set("mail.example", Kind::A, Err(silent()));
    names.set("mail.example", Kind::Aaaa, Err(silent()));
    let mut pauses = Vec::new();
    let last = loop {
        let wake = name.wake(600 * SECOND);
        tokio::time::sleep_until(wake).await;
        if name.is_due(Instant::now()) {
            name.take(asked(&names, &host()).await, &settings(), Instant::now());
            pauses.push((name.wake(600 * SECOND) - Instant::now()).as_secs());
        }
        name.expire(600 * SECOND, Instant::now());
        if name.is_empty() {
            break begun.elapsed();
        }
        assert_eq!(name.age(Instant::now()), Some(begun.elapsed()));
        assert_eq!(addresses(&[host()], &[name.clone()]).len(), 2);
    };
    assert_eq!(last, 660 * SECOND, "its TTL and `keep`");
    assert_eq!(pauses[..5], [5, 10, 20, 30, 30]);
    assert_eq!(name.trouble().unwrap(), "mail.example:25 has no answer: SERVFAIL");
    names.host("mail.example", &["192.0.2.7"], 60);
    name.take(asked(&names, &host()).await, &settings(), Instant::now());
    assert_eq!((name.age(Instant::now()), name.trouble()), (None, None));
    assert_eq!(addresses(&[host()], &[name]), ["192.0.2.7:25"]);
}

#[tokio::test(start_paused = true)]
async fn each_family_and_host_is_kept_by_itself() {
    let names = MemoryNames::default();
    names.host("mail.example", &["192.0.2.1", "2001:db8::1"], 60);
    let mut name = known(&names, &host()).await;
    let records = vec![Record::Address(IpAddr::from([192, 0, 2, 2]))];
    names.set("mail.example", Kind::A, Ok(Answer { records, ttl: 60 * SECOND }));
    names.set("mail.example", Kind::Aaaa, Err(silent()));
    name.take(asked(&names, &host()).await, &settings(), Instant::now());
    assert_eq!(addresses(&[host()], &[name.clone()]), ["192.0.2.2:25", "[2001:db8::1]:25"]);
    assert!(name.trouble().is_some());
    // In the end it is forgotten, and what never answers is no trouble.
    tokio::time::advance(660 * SECOND).await;
    name.take(asked(&names, &host()).await, &settings(), Instant::now());
    assert_eq!(addresses(&[host()], &[name.clone()]), ["192.0.2.2:25"]);
    assert_eq!(name.trouble(), None);
    assert_eq!(name.wake(600 * SECOND) - Instant::now(), 30 * SECOND, "asked for sooner");

    names.exchangers("cloud.example", &[(10, "a"), (20, "b")], 60);
    names.host("a", &["192.0.2.1"], 60);
    names.host("b", &["192.0.2.3"], 60);
    let mut name = known(&names, &mx()).await;
    names.set("a", Kind::A, Err(silent()));
    names.host("b", &["192.0.2.4"], 60);
    name.take(asked(&names, &mx()).await, &settings(), Instant::now());
    assert_eq!(addresses(&[mx()], &[name]), ["192.0.2.1:25", "192.0.2.4:25"]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_goes_at_once_unless_nothing_else_is_left() {
    let names = MemoryNames::default();
    names.host("mail.example", &["192.0.2.1"], 60);
    let mut name = known(&names, &host()).await;
    names.host("mail.example", &[], 60);
    name.take(asked(&names, &host()).await, &settings(), Instant::now());
    let literal = Target::Address("192.0.2.99:25".parse().unwrap());
    assert_eq!(addresses(&[host(), literal], &[name.clone()]), ["192.0.2.99:25"]);
    let alone = place(&[host()], &[name.clone()]);
    assert!(alone.desperate);
    assert_eq!(alone.endpoints[0].endpoint.address.to_string(), "192.0.2.1:25");
    // Silence after it changes nothing, and time goes on.
    tokio::time::advance(599 * SECOND).await;
    names.set("mail.example", Kind::A, Err(silent()));
    name.take(asked(&names, &host()).await, &settings(), Instant::now());
    assert_eq!(name.trouble().unwrap(), "mail.example:25: it has no address");
    assert!(place(&[host()], &[name.clone()]).desperate);
    tokio::time::advance(SECOND).await;
    name.expire(600 * SECOND, Instant::now());
    assert_eq!(place(&[host()], &[name]), Placement::default());
}

#[test]
fn an_address_is_one_endpoint_whoever_names_it() {
    let now = Instant::now();
    let of = |domain: &str, list: &[(&str, usize)]| {
        let target = Target::Mx { domain: domain.to_owned(), port: 25 };
        let list = list.iter().map(|(a, rank)| (a.parse().unwrap(), domain.into(), *rank));
        let mut name = Name::new(target, now);
        let reply = Reply::Found { list: list.collect(), gaps: Vec::new(), ttl: SECOND };
        name.take(reply, &settings(), now);
        name
    };
    let a = of("a", &[("192.0.2.1:25", 0), ("192.0.2.2:25", 1)]);
    let b = of("b", &[("192.0.2.2:25", 0)]);
    let targets = [a.target().clone(), "192.0.2.1:25".parse::<SocketAddr>().unwrap().into()];
    assert_eq!(addresses(&targets, std::slice::from_ref(&a)), ["192.0.2.1:25", "192.0.2.2:25"]);
    let targets = [a.target().clone(), b.target().clone()];
    let placed = place(&targets, &[a, b]).endpoints;
    let ranks: Vec<_> = placed.iter().map(|one| one.rank).collect();
    assert_eq!(ranks, [0, 0], "the best of each go side by side");
}

fn read(targets: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    let text = format!(
        "[relay]\nhostname = \"edge.example\"\n[[listener]]\naddress = \"127.0.0.1:25\"\n\
         [[upstream]]\nname = \"cloud\"\ntargets = [{targets}]\n[resolver]\nkeep = \"10min\"\n"
    );
    std::fs::write(&file, text).unwrap();
    config::read(&file).unwrap()
}

async fn look(
    names: &MemoryNames,
    config: &Config,
    known: &[Name],
) -> Result<Resolved, Diagnostics> {
    let world = World::simulated(MemoryNetwork::default(), Timestamp(0), 1);
    let world = World { names: Arc::new(names.clone()), ..world };
    let naming = Naming::open(&world, &config.resolver, None);
    assert!(Arc::ptr_eq(&naming, &Naming::open(&world, &config.resolver, Some(&naming))));
    resolve(config, naming, &HashSet::new(), known).await
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_refuses_a_configuration() {
    let names = MemoryNames::default();
    names.host("mail.example", &["192.0.2.1"], 60);
    let config = read("\"mail.example:25\", \"mx:cloud.example\"");
    let errors = look(&names, &config, &[]).await.err().unwrap().to_string();
    assert!(errors.contains("relay.toml:7:31: upstream[0].targets[1]: mx:cloud.example:25 "));
    assert!(errors.contains("there is no such name; put it right in DNS, or give another"));
    // Nor may one lead back here.
    names.host("cloud.example", &["127.0.0.1"], 60);
    names.set("cloud.example", Kind::Mx, Err(LookupError::NoSuchRecord));
    let errors = look(&names, &config, &[]).await.err().unwrap().to_string();
    assert!(errors.contains("this relay's own listener \"listener-1\""), "{errors}");
    names.host("cloud.example", &["192.0.2.2"], 60);
    let resolved = look(&names, &config, &[]).await.unwrap();
    let upstream = &config.upstreams[0];
    let found = addresses(&upstream.targets, &resolved.names(upstream));
    assert_eq!(found, ["192.0.2.1:25", "192.0.2.2:25"]);
}

#[tokio::test(start_paused = true)]
async fn silence_refuses_nothing_and_what_is_known_is_used() {
    let names = MemoryNames::default();
    names.host("mail.example", &["192.0.2.1"], 60);
    let config = read("\"mail.example:25\"");
    let upstream = &config.upstreams[0];
    let earlier = known(&names, &host()).await;
    names.silent(true);
    let begun = Instant::now();
    let resolved = look(&names, &config, &[]).await.unwrap();
    assert!(begun.elapsed() <= LOOK);
    assert_eq!(place(&upstream.targets, &resolved.names(upstream)), Placement::default());
    let warning = resolved.warnings[0].to_string();
    assert!(warning.contains("warning: upstream[0].targets[0]: mail.example:25 has no answer: no"));
    let resolved = look(&names, &config, &[earlier]).await.unwrap();
    assert_eq!(addresses(&upstream.targets, &resolved.names(upstream)), ["192.0.2.1:25"]);
}
