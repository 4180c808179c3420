//! Each way from one state to another.

use super::*;

/// A scheduler with `count` messages of one instance that wait for this, received a millisecond
/// apart, the later slots first.
fn waiting(count: u32, wait: &Wait) -> (Scheduler, InstanceKey) {
    let mut scheduler = Scheduler::new();
    let one = scheduler.instance(Some("one"));
    for slot in 0..count {
        let received = at(u64::from(count - slot));
        scheduler.insert(slot, entry(one, received), wait.clone(), NOW);
    }
    (scheduler, one)
}

fn state(scheduler: &Scheduler, slot: Slot) -> State {
    scheduler.get(slot).unwrap().1.state
}

fn messages(scheduler: &mut Scheduler) -> [u64; 6] {
    let total = scheduler.stats().total;
    [total.ready, total.blocked, total.later, total.held, total.in_flight, total.in_doubt]
        .map(|count| count.messages)
}

#[test]
fn first_come_first_served_and_in_flight_once() {
    let (mut scheduler, _) = waiting(3, &Wait::Turn);
    assert_eq!(messages(&mut scheduler), [3, 0, 0, 0, 0, 0]);
    assert_eq!(drain(&mut scheduler, NOW), [0, 1, 2]);
    assert_eq!(messages(&mut scheduler), [0, 0, 0, 0, 3, 0]);
    assert_eq!(state(&scheduler, 1), State::InFlight);
    assert_eq!(scheduler.next_wake(), None);
}

#[test]
fn a_retry_is_ready_at_its_time_and_is_backlog_then() {
    let (mut scheduler, one) = waiting(2, &Wait::Turn);
    drain(&mut scheduler, NOW);
    for slot in 0..2 {
        assert!(scheduler.update(slot, |progress| progress.attempts += 1));
        assert!(scheduler.block(slot, Wait::Retry(at(500)), NOW));
    }
    assert_eq!(scheduler.next_wake(), Some(at(500)));
    assert_eq!(scheduler.take(at(499)), None);
    for slot in 2..4 {
        scheduler.insert(slot, entry(one, at(500)), Wait::Turn, at(500));
    }
    // The new mail is not behind the retries.
    assert_eq!(drain(&mut scheduler, at(500)), [2, 0, 3, 1]);
    assert_eq!(scheduler.next_wake(), None);
    assert_eq!(scheduler.get(0).unwrap().0.held_ms, 0);
}

#[test]
fn many_held_until_one_time_are_one_timer() {
    let (mut scheduler, _) = waiting(1000, &Wait::HoldUntil(at(60_000)));
    assert_eq!(scheduler.holds.len(), 1);
    assert_eq!(scheduler.take(at(59_999)), None);
    assert_eq!(drain(&mut scheduler, at(60_000)).len(), 1000);
    assert_eq!(scheduler.get(7).unwrap().0.held_ms, 60_000);
}

#[test]
fn a_flood_of_due_times_is_moved_in_parts_and_new_mail_passes() {
    let (mut scheduler, one) = waiting(5000, &Wait::Retry(at(1)));
    scheduler.insert(5000, entry(one, NOW), Wait::Turn, NOW);
    let first = [scheduler.take(at(1)).unwrap(), scheduler.take(at(1)).unwrap()];
    assert!(first.contains(&5000));
    let ready = messages(&mut scheduler)[0];
    assert!((200..600).contains(&ready), "{ready} were moved by two calls");
    assert_eq!(scheduler.next_wake(), Some(at(1)), "the rest is due still");
    assert_eq!(drain(&mut scheduler, at(1)).len(), 4999, "none is left behind");
}

#[test]
fn an_upstreams_line_is_served_in_order() {
    let (mut scheduler, _) = waiting(3, &upstream("u"));
    assert!(scheduler.has_waiting(&upstream("u")));
    assert!(!scheduler.has_waiting(&upstream("v")));
    assert_eq!(scheduler.take(at(1)), None);
    assert_eq!(scheduler.take_waiting(&upstream("u"), NOW), Some(0));
    assert_eq!(scheduler.take_waiting(&upstream("v"), NOW), None);
    assert_eq!(scheduler.wake(&upstream("u"), NOW), 2);
    assert!(!scheduler.has_waiting(&upstream("u")));
    assert_eq!(drain(&mut scheduler, NOW), [1, 2]);
    assert_eq!(scheduler.lines().count(), 1, "only the ready line stays");
}

#[test]
fn limits_of_the_same_key_and_another_scope_are_two_lines() {
    let limit = |scope: &str| Wait::Limit { scope: scope.into(), key: "k".into() };
    let (mut scheduler, one) = waiting(1, &limit("a"));
    scheduler.insert(1, entry(one, NOW), limit("b"), NOW);
    assert_eq!(scheduler.take_waiting(&limit("b"), NOW), Some(1));
    assert_eq!(scheduler.take_waiting(&limit("b"), NOW), None);
    assert_eq!(messages(&mut scheduler), [0, 1, 0, 0, 1, 0]);
}

#[test]
fn times_can_be_taken_and_woken_like_lines() {
    for wait in [Wait::Retry(at(9)), Wait::HoldUntil(at(9))] {
        let (mut scheduler, _) = waiting(3, &wait);
        assert!(scheduler.has_waiting(&wait));
        assert_eq!(scheduler.take_waiting(&wait, NOW), Some(0));
        assert_eq!(scheduler.wake(&wait, NOW), 2);
        assert_eq!(scheduler.next_wake(), None);
        assert_eq!(drain(&mut scheduler, NOW), [1, 2]);
    }
}

#[test]
fn a_release_without_rate_lets_out_the_oldest_first_beside_new_mail() {
    let (mut scheduler, one) = waiting(3, &Wait::Phase(InstanceKey(1)));
    assert_eq!(one, InstanceKey(1));
    assert_eq!(scheduler.release(&Wait::Phase(one), Pace::default(), at(100)), 3);
    scheduler.insert(3, entry(one, at(100)), Wait::Turn, at(100));
    assert_eq!(drain(&mut scheduler, at(100)), [2, 3, 1, 0]);
    assert_eq!(scheduler.get(0).unwrap().0.held_ms, 100);
}

#[test]
fn a_release_keeps_its_pace_and_the_clock_stands_until_let_out() {
    let (mut scheduler, one) = waiting(4, &Wait::Phase(InstanceKey(1)));
    scheduler.release(&Wait::Phase(one), pace(10), at(1000));
    assert_eq!(state(&scheduler, 3), State::Paced);
    assert_eq!(messages(&mut scheduler), [0, 0, 0, 4, 0, 0]);
    for (step, slot) in [3, 2, 1, 0].into_iter().enumerate() {
        let time = 1100 + 100 * step as u64;
        assert_eq!(scheduler.next_wake(), Some(at(time)));
        assert_eq!(scheduler.take(at(time - 1)), None);
        assert_eq!(drain(&mut scheduler, at(time)), [slot]);
    }
    assert_eq!(scheduler.get(0).unwrap().0.held_ms, 1400);
    assert!(scheduler.releases.is_empty());
    assert_eq!(scheduler.next_wake(), None);
}

#[test]
fn a_slow_upstream_stops_a_release_at_one_seconds_worth() {
    let (mut scheduler, one) = waiting(100, &Wait::Phase(InstanceKey(1)));
    scheduler.release(&Wait::Phase(one), pace(10), NOW);
    let mut blocked = 0;
    for second in 1..=5 {
        for slot in drain(&mut scheduler, at(second * 1000)) {
            scheduler.block(slot, upstream("u"), at(second * 1000));
            blocked += 1;
        }
    }
    assert_eq!(blocked, 10);
    assert_eq!(scheduler.next_wake(), None, "time does not help, so nothing polls");
    // One leaves the line, one may follow; the time that was lost does not come back.
    scheduler.take_waiting(&upstream("u"), at(60_000)).unwrap();
    assert_eq!(drain(&mut scheduler, at(60_000)).len(), 1);
    assert_eq!(drain(&mut scheduler, at(60_050)).len(), 0);
    assert_eq!(drain(&mut scheduler, at(60_100)).len(), 1);
}

#[test]
fn single_messages_leave_a_release_by_hand() {
    let (mut scheduler, one) = waiting(3, &Wait::Phase(InstanceKey(1)));
    scheduler.release(&Wait::Phase(one), pace(1), NOW);
    assert!(scheduler.hold(0, NOW));
    assert!(scheduler.retry_now(1, NOW));
    assert_eq!(drain(&mut scheduler, NOW), [1]);
    assert!(scheduler.remove(2).is_some());
    assert!(scheduler.releases.is_empty() && scheduler.paces.is_empty());
    assert_eq!(state(&scheduler, 0), State::Waiting(Wait::Operator));
}

#[test]
fn an_operator_holds_from_any_state() {
    let waits = [Wait::Turn, Wait::Retry(at(5)), upstream("u"), Wait::Change];
    for wait in waits {
        let (mut scheduler, _) = waiting(2, &wait);
        assert!(scheduler.hold(0, NOW));
        assert!(scheduler.hold(0, at(1)), "twice is once");
        assert_eq!(state(&scheduler, 0), State::Waiting(Wait::Operator));
        assert_eq!(scheduler.get(0).unwrap().1.since, NOW);
        assert!(!scheduler.retry_now(0, at(1)));
        assert!(scheduler.unhold(0, at(2)));
        assert!(!scheduler.unhold(0, at(2)));
        assert!(drain(&mut scheduler, at(2)).contains(&0));
    }
    let mut empty = Scheduler::new();
    assert!(!empty.hold(3, NOW) && !empty.unhold(3, NOW) && !empty.retry_now(3, NOW));
}

#[test]
fn a_hold_of_what_is_in_flight_follows_the_attempt() {
    let (mut scheduler, _) = waiting(2, &Wait::Turn);
    drain(&mut scheduler, NOW);
    assert!(scheduler.hold(0, NOW));
    assert!(scheduler.get(0).unwrap().1.hold_follows);
    // In doubt first: what may be delivered already stays with the attempt.
    scheduler.block(0, Wait::Reply, NOW);
    assert_eq!(state(&scheduler, 0), State::Waiting(Wait::Reply));
    assert_eq!(messages(&mut scheduler), [0, 0, 0, 0, 1, 1]);
    assert!(!scheduler.retry_now(0, NOW));
    scheduler.block(0, Wait::Retry(at(5)), NOW);
    assert_eq!(state(&scheduler, 0), State::Waiting(Wait::Operator));
    assert!(scheduler.hold(1, NOW) && scheduler.unhold(1, NOW));
    scheduler.block(1, Wait::Turn, NOW);
    assert_eq!(drain(&mut scheduler, at(5)), [1]);
}

#[test]
fn an_in_doubt_message_whose_hold_follows_is_held_when_all_are_woken_or_released() {
    for paced in [Pace::default(), pace(1)] {
        let (mut scheduler, _) = waiting(1, &Wait::Reply);
        assert!(scheduler.hold(0, NOW));
        assert_eq!(scheduler.release(&Wait::Reply, paced, NOW), 1);
        assert_eq!(state(&scheduler, 0), State::Waiting(Wait::Operator));
        assert!(scheduler.releases.is_empty());
    }
}

#[test]
fn retry_now_gives_the_turn() {
    let waits = [Wait::Retry(at(5)), Wait::HoldUntil(at(5)), upstream("u"), Wait::Change];
    for wait in waits {
        let (mut scheduler, _) = waiting(2, &wait);
        assert!(scheduler.retry_now(1, NOW));
        assert!(!scheduler.retry_now(1, NOW), "it has its turn already");
        assert_eq!(drain(&mut scheduler, NOW), [1]);
        assert!(!scheduler.retry_now(1, NOW));
    }
}

#[test]
fn removed_from_any_state_and_the_slot_is_free() {
    let limit = Wait::Limit { scope: "s".into(), key: "k".into() };
    let waits = [Wait::Turn, Wait::Retry(at(5)), upstream("u"), limit, Wait::Reply];
    for wait in waits {
        let (mut scheduler, one) = waiting(3, &wait);
        assert_eq!(scheduler.remove(1).unwrap().received, at(2));
        assert_eq!(scheduler.remove(1), None);
        assert!(!scheduler.block(1, Wait::Turn, NOW) && !scheduler.update(1, |_| ()));
        assert_eq!(scheduler.len(), 2);
        scheduler.insert(1, entry(one, NOW), Wait::Turn, NOW);
        assert!(drain(&mut scheduler, NOW).contains(&1));
        for slot in 0..3 {
            scheduler.remove(slot).unwrap();
        }
        assert!(scheduler.is_empty() && scheduler.next_wake().is_none());
        assert_eq!(scheduler.lines().count(), 1);
        assert_eq!(scheduler.stats().total, Figures::default());
    }
}

#[test]
#[should_panic(expected = "holds a message already")]
fn a_slot_in_use_is_our_own_bug() {
    let (mut scheduler, one) = waiting(1, &Wait::Turn);
    scheduler.insert(0, entry(one, NOW), Wait::Turn, NOW);
}

#[test]
fn the_expiry_clock_stands_while_held() {
    let (mut scheduler, one) = waiting(0, &Wait::Turn);
    scheduler.insert(0, entry(one, NOW), Wait::Retry(at(9_000_000)), NOW);
    scheduler.insert(1, entry(one, NOW), Wait::Change, NOW);
    scheduler.insert(2, entry(one, NOW), Wait::Turn, NOW);
    scheduler.insert(3, entry(one, NOW), Wait::Reply, NOW);
    let hour = |_: &Entry| Duration::from_secs(3600);
    assert_eq!(scheduler.take(NOW), Some(2));
    assert_eq!(scheduler.expired(at(3_599_999), hour), [0; 0]);
    assert_eq!(scheduler.expired(at(3_600_000), hour), [0]);
    assert_eq!(state(&scheduler, 0), State::InFlight, "nobody else tries it now");
    // Held for two hours: its hour begins when it is let go.
    scheduler.wake(&Wait::Change, at(7_200_000));
    assert_eq!(scheduler.expired(at(10_799_999), hour), [0; 0]);
    assert_eq!(scheduler.expired(at(10_800_000), hour), [1]);
}

#[test]
fn figures_by_instance() {
    let (mut scheduler, one) = waiting(2, &Wait::Turn);
    let none = scheduler.instance(None);
    assert_eq!(scheduler.instance_name(none), None);
    assert_eq!(scheduler.instance_name(one).map(|name| &**name), Some("one"));
    scheduler.insert(9, entry(none, at(50)), Wait::Operator, NOW);
    scheduler.update(9, |progress| progress.recipients = 7);
    let stats = scheduler.stats();
    let held = stats.instances.iter().find(|(key, _)| *key == none).unwrap().1;
    assert_eq!(held.held, Count { messages: 1, recipients: 7 });
    assert_eq!((held.oldest, held.bytes), (Some(at(50)), 10_000));
    assert_eq!(stats.total.all(), Count { messages: 3, recipients: 11 });
    assert_eq!(stats.total.oldest, Some(at(1)));
    assert_eq!(stats.instances.len(), 2);
}

#[test]
fn upstreams_have_names() {
    let mut scheduler = Scheduler::new();
    let (a, b) = (scheduler.upstream("a"), scheduler.upstream("b"));
    assert_eq!(scheduler.upstream("a"), a);
    assert_eq!(scheduler.upstream_name(b).map(|name| &**name), Some("b"));
}
