#![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]

use std::net::IpAddr;

use super::*;
use crate::{
    config::{self, Target},
    message::Source,
    names::Endpoint,
    plan::Timestamp,
    world::{World, memory::MemoryNetwork},
};

fn source() -> Arc<Source> {
    Arc::new(Source::new("192.0.2.200:4711".parse().unwrap(), "listener-1"))
}

/// A family whose mail may go to 192.0.2.0/24, and to so many places there at once.
fn family_of(destinations: usize, network: MemoryNetwork) -> Arc<Upstream> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let text = format!(
        "[relay]\nhostname = 'a.example'\n[[listener]]\naddress = '[::]:2525'\nmode = 'redirect'\n\
         [[upstream]]\nname = 'old'\ntype = 'original-destination'\n\
         destinations = {destinations}\nnetworks = ['192.0.2.0/24']\n"
    );
    std::fs::write(&path, text).unwrap();
    let config = config::read(&path).unwrap().upstreams.remove(0);
    let world = World::simulated(network, Timestamp(0), 1);
    let known = HashMap::from([(at(9), Extensions::NONE.with_size(Some(9)))]);
    let parts = Parts {
        config,
        world,
        observer: Arc::new(crate::event::Silent),
        hostname: "a.example".into(),
        connector: None,
        link_connector: None,
        login: None,
        naming: None,
        names: Vec::new(),
    };
    Upstream::new(parts, &known)
}

fn at(host: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, host]), 25)
}

#[test]
fn names_lead_to_the_family_and_the_destination() {
    assert_eq!((family("old"), destination("old")), ("old", None));
    assert_eq!(family("old/[2001:db8::1]:25"), "old");
    assert_eq!(destination("old/[2001:db8::1]:25"), Some("[2001:db8::1]:25".parse().unwrap()));
    assert_eq!(destination("old/nowhere"), None);
}

#[tokio::test(start_paused = true)]
async fn each_destination_has_one_child_and_some_have_none() {
    let family = family_of(2, MemoryNetwork::default());
    let child = family.place(Some(at(1))).unwrap();
    assert_eq!((child.config.name.as_str(), child.is_child()), ("old/192.0.2.1:25", true));
    assert_eq!(child.config.targets, [Target::Address(at(1))]);
    assert!(Arc::ptr_eq(&child, &family.place(Some(at(1))).unwrap()));
    assert!(Arc::ptr_eq(&child, &child.place(None).unwrap()), "a child is itself, for all mail");
    assert_eq!(family.place(None).unwrap_err(), Unplaced::NotRedirected("old".into()));
    let elsewhere = "198.51.100.1:25".parse().unwrap();
    let forbidden = Unplaced::Forbidden { family: "old".into(), destination: elsewhere };
    assert_eq!(family.place(Some(elsewhere)).unwrap_err(), forbidden);
    assert!(!family.is_down() && !child.is_down());
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_the_longest_unused_goes_and_one_in_use_never() {
    let network = MemoryNetwork::default();
    let mut accepting = network.listen(at(1));
    let family = family_of(2, network);
    let first = family.place(Some(at(1))).unwrap();
    // Greeted by nobody yet, it has a connection that is being opened.
    let opening = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.lease(Instant::now() + LOOK, 1, None, false, &source()).await.err() }
    });
    let _stream = accepting.recv().await.unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    let second = family.place(Some(at(2))).unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    family.place(Some(at(3))).unwrap();
    assert!(family.child(at(2)).is_none(), "the first is older, and in use");
    assert!(Arc::ptr_eq(&first, &family.child(at(1)).unwrap()));
    // It comes back as another one.
    assert!(!Arc::ptr_eq(&second, &family.place(Some(at(2))).unwrap()));
    assert!(family.child(at(3)).is_none());
    opening.abort();
    let _aborted = opening.await;
    family.place(Some(at(4))).unwrap();
    assert!(family.child(at(1)).is_none(), "it is at rest now");
    let only = family_of(1, MemoryNetwork::default());
    let busy = only.place(Some(at(1))).unwrap();
    busy.lock().in_use = 1;
    let full = Unplaced::Full { family: "old".into(), limit: 1 };
    assert_eq!(only.place(Some(at(2))).unwrap_err(), full);
}

#[tokio::test(start_paused = true)]
async fn what_a_dropped_child_did_stays_counted() {
    let family = family_of(1, MemoryNetwork::default());
    let child = family.place(Some(at(1))).unwrap();
    child.report_answer(Duration::from_millis(1));
    assert_eq!(family.status().answered, 1);
    family.place(Some(at(2))).unwrap().report_answer(Duration::from_millis(1));
    let status = family.status();
    assert_eq!((status.answered, status.name.as_str(), status.targets.len()), (2, "old", 1));
}

#[tokio::test(start_paused = true)]
async fn children_are_kept_while_somebody_wants_them() {
    let family = family_of(3, MemoryNetwork::default());
    let keeping = tokio::spawn(Arc::clone(&family).housekeeping());
    let child = family.place(Some(at(1))).unwrap();
    for _ in 0..child.config.eject_after {
        child.report_failure(&Endpoint::from(at(1)), "x");
    }
    assert!(child.is_down());
    // Its own housekeeping looks whether it is back, and nobody answers.
    tokio::time::sleep(LOOK).await;
    assert!(child.status().targets[0].last_error.as_deref() != Some("x"), "it was looked at");
    tokio::time::sleep(UNUSED - 2 * LOOK).await;
    assert!(family.child(at(1)).is_some());
    tokio::time::sleep(3 * LOOK).await;
    assert!(family.child(at(1)).is_none());
    keeping.abort();
}

#[test]
fn a_client_is_offered_what_its_destination_offers() {
    let family = family_of(3, MemoryNetwork::default());
    let size = |destination| family.offers(destination).map(|offered| offered.size_limit());
    // No mail of such clients goes there.
    assert_eq!(size(None), None);
    assert_eq!(size(Some("198.51.100.1:25".parse().unwrap())), None);
    // One that never answered offers nothing; what another answered an earlier relay is known.
    assert_eq!(size(Some(at(1))), Some(None));
    family.place(Some(at(9))).unwrap();
    assert_eq!(size(Some(at(9))), Some(Some(9)));
}
