//! Who gets how many turns.

use proptest::prelude::*;

use super::*;

/// Nearest-rank percentile of waits.
fn p99(mut waits: Vec<u64>) -> u64 {
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

/// The flows in the order of their turns.
fn turns(scheduler: &mut Scheduler, count: usize) -> Vec<InstanceKey> {
    let taken = (0..count).map(|_| scheduler.take(NOW).unwrap()).collect::<Vec<_>>();
    taken.into_iter().map(|slot| scheduler.get(slot).unwrap().0.instance).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// With k flows that have messages, a flow's next turn comes after k - 1 others.
    #[test]
    fn flows_of_equal_cost_alternate_whatever_their_cost(
        size in prop_oneof![0_u64..200_000, Just(30_000_000)],
        flows in prop::collection::vec((any::<bool>(), 20_u32..60), 2..12),
    ) {
        let mut scheduler = Scheduler::new();
        let mut slot = 0;
        for (number, (tried, count)) in flows.iter().enumerate() {
            // A flow is an instance's new mail or its backlog: two share an instance, or are one.
            let key = scheduler.instance(Some(&format!("i{}", number / 2)));
            let mut message = Entry { size, ..entry(key, NOW) };
            message.progress.attempts = u32::from(*tried);
            for _ in 0..*count {
                scheduler.insert(slot, message, Wait::Turn, NOW);
                slot += 1;
            }
        }
        let key = |slot: Slot| {
            let entry = scheduler.get(slot).unwrap().0;
            (entry.instance, entry.progress.attempts)
        };
        let keys: BTreeMap<Slot, _> = (0..slot).map(|slot| (slot, key(slot))).collect();
        let distinct = keys.values().copied().collect::<BTreeSet<_>>();
        // As long as each flow has at least twenty: all of them have messages.
        let turns: Vec<_> = (0..20 * distinct.len()).map(|_| scheduler.take(NOW)).collect();
        for one in &distinct {
            let places: Vec<_> =
                (0..turns.len()).filter(|at| keys[&turns[*at].unwrap()] == *one).collect();
            prop_assert_eq!(places.len(), 20);
            prop_assert!(places.windows(2).all(|pair| pair[1] - pair[0] == distinct.len()));
        }
    }
}

#[test]
fn large_messages_take_as_much_as_small_ones_not_more() {
    let mut scheduler = Scheduler::new();
    let [small, large] = ["small", "large"].map(|name| scheduler.instance(Some(name)));
    for slot in 0..4000 {
        let (key, size) = if slot % 2 == 0 { (small, 1000) } else { (large, 640 * 1024) };
        scheduler.insert(slot, Entry { size, ..entry(key, NOW) }, Wait::Turn, NOW);
    }
    // A large one costs 11 units: eleven small ones pass for each.
    let turns = turns(&mut scheduler, 1200);
    let large = turns.iter().filter(|key| **key == large).count();
    assert!((99..=101).contains(&large), "{large}");
    let longest = turns.split(|key| *key == small).map(<[_]>::len).max().unwrap();
    assert_eq!(longest, 1, "never two large ones in a row");
}

#[test]
fn a_debt_is_not_forgotten_by_running_empty() {
    let mut scheduler = Scheduler::new();
    let [small, large] = ["small", "large"].map(|name| scheduler.instance(Some(name)));
    for slot in 0..1000 {
        scheduler.insert(slot, entry(small, NOW), Wait::Turn, NOW);
    }
    // One large message at a time: it is there again as soon as it was taken.
    let big = Entry { size: 640 * 1024, ..entry(large, NOW) };
    scheduler.insert(1000, big, Wait::Turn, NOW);
    let mut count = 0;
    for _ in 0..600 {
        if scheduler.take(NOW).unwrap() == 1000 {
            count += 1;
            scheduler.remove(1000);
            scheduler.insert(1000, big, Wait::Turn, NOW);
        }
    }
    assert!((49..=51).contains(&count), "{count}");
}

#[test]
fn a_flow_that_comes_late_waits_one_round() {
    let mut scheduler = Scheduler::new();
    let keys = ["a", "b", "c"].map(|name| scheduler.instance(Some(name)));
    for slot in 0..300 {
        scheduler.insert(slot, entry(keys[slot as usize % 3], NOW), Wait::Turn, NOW);
    }
    turns(&mut scheduler, 50);
    let late = scheduler.instance(Some("late"));
    scheduler.insert(300, entry(late, NOW), Wait::Turn, NOW);
    assert!(turns(&mut scheduler, 4).contains(&late));
}

/// One server of a fixed rate and the messages of ten instances: nine send 45 % of its rate
/// together, at random times; the first has `backlog` messages that wait from the beginning.
/// The 99th percentile of the waits of the nine, in microseconds.
fn p99_of_the_small(backlog: u32, seconds: u64, line: &Wait) -> u64 {
    const SERVICE_US: u64 = 1000;
    let mut scheduler = Scheduler::new();
    let keys: Vec<_> = (0..10).map(|at| scheduler.instance(Some(&format!("i{at}")))).collect();
    for slot in 0..backlog {
        scheduler.insert(slot, entry(keys[0], NOW), line.clone(), NOW);
    }
    // In microseconds, handed to the scheduler as if they were milliseconds.
    let mut arrivals: Vec<(u64, usize)> = Vec::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for instance in 1..10 {
        let mut time = 0;
        while time < seconds * 1_000_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // 50 a second each on average: 45 % of what the server can do.
            time += (random >> 33) % 40_000;
            arrivals.push((time, instance));
        }
    }
    arrivals.sort_unstable();
    let (mut waits, mut received, mut next_slot) = (Vec::new(), BTreeMap::new(), backlog);
    let mut arriving = arrivals.into_iter().peekable();
    let mut time = 0;
    while time < seconds * 1_000_000 {
        while let Some((came, instance)) = arriving.next_if(|(came, _)| *came <= time) {
            let message = entry(keys[instance], at(came));
            scheduler.insert(next_slot, message, line.clone(), at(came));
            received.insert(next_slot, came);
            next_slot += 1;
        }
        if let Some(slot) = scheduler.take_waiting(line, at(time)) {
            if let Some(came) = received.get(&slot) {
                // Until its delivery is over, as its sender sees it.
                waits.push(time + SERVICE_US - came);
            }
            scheduler.remove(slot);
        }
        time += SERVICE_US;
    }
    assert!(waits.len() > 9 * 40 * usize::try_from(seconds).unwrap(), "all were served");
    p99(waits)
}

#[test]
fn ten_instances_one_with_a_backlog_a_hundred_times_the_others() {
    for line in [Wait::Turn, upstream("u")] {
        // The nine send 450 messages a second; a hundred times the mail of one in 20 s.
        let alone = p99_of_the_small(0, 20, &line);
        let beside = p99_of_the_small(100_000, 20, &line);
        assert!(beside <= 2 * alone, "{beside} us, not twice {alone} us");
    }
}
