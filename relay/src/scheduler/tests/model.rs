//! Random histories against a naive model, which keeps a state for each message and looks
//! through all of them for everything.

use proptest::prelude::*;

use super::{
    super::{cells::Place, entry::Kind},
    *,
};

const SLOTS: u32 = 20;

#[derive(Clone, Debug)]
enum Op {
    Insert { slot: Slot, instance: u32, age: u64, size: u64, wait: u8 },
    Take,
    TakeWaiting(u8),
    Block { slot: Slot, wait: u8 },
    Tried { slot: Slot, recipients: u32 },
    Wake(u8),
    Release { wait: u8, rate: u32, ramp_ms: u64 },
    Remove(Slot),
    Hold(Slot),
    Unhold(Slot),
    RetryNow(Slot),
    Expire(u64),
    Sleep(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS;
    let wait = || 0_u8..14;
    let size = prop_oneof![3 => 0_u64..70_000, 1 => 0_u64..30_000_000];
    prop_oneof![
        6 => (slot(), 0_u32..3, 0_u64..9000, size, wait()).prop_map(
            |(slot, instance, age, size, wait)| Op::Insert { slot, instance, age, size, wait }
        ),
        6 => Just(Op::Take),
        2 => wait().prop_map(Op::TakeWaiting),
        6 => (slot(), wait()).prop_map(|(slot, wait)| Op::Block { slot, wait }),
        2 => (slot(), 1_u32..9).prop_map(|(slot, recipients)| Op::Tried { slot, recipients }),
        1 => wait().prop_map(Op::Wake),
        2 => (wait(), 0_u32..30, 0_u64..3000)
            .prop_map(|(wait, rate, ramp_ms)| Op::Release { wait, rate, ramp_ms }),
        1 => slot().prop_map(Op::Remove),
        1 => slot().prop_map(Op::Hold),
        1 => slot().prop_map(Op::Unhold),
        1 => slot().prop_map(Op::RetryNow),
        1 => (0_u64..20_000).prop_map(Op::Expire),
        4 => (0_u64..700).prop_map(Op::Sleep),
    ]
}

#[derive(Clone, Debug)]
struct Message {
    entry: Entry,
    state: State,
    since: Timestamp,
    hold_follows: bool,
    was_held: bool,
    in_backlog: bool,
}

struct Model {
    now: Timestamp,
    messages: BTreeMap<Slot, Message>,
}

fn wait(number: u8, now: Timestamp) -> Wait {
    let limit = |key: &str| Wait::Limit { scope: "p".into(), key: key.into() };
    match number {
        0..=2 => Wait::Turn,
        3 | 4 => Wait::Retry(Timestamp((now.0 / 500 + u64::from(number)) * 500)),
        5 => Wait::HoldUntil(Timestamp((now.0 / 500 + 3) * 500)),
        6 | 7 => upstream("u"),
        8 => limit("a"),
        9 => limit("b"),
        10 => Wait::Phase(InstanceKey(1)),
        11 => Wait::Change,
        12 => Wait::Operator,
        _ => Wait::Reply,
    }
}

impl Message {
    fn is_held(&self) -> bool {
        match &self.state {
            State::InFlight => false,
            State::Waiting(wait) => wait.is_hold(),
            State::Paced => true,
        }
    }

    fn leave(&mut self, now: Timestamp) {
        if self.is_held() {
            self.entry.held_ms += now.0 - self.since.0;
            self.was_held = true;
        }
        self.state = State::InFlight;
        self.since = now;
    }

    fn block(&mut self, wait: Wait, now: Timestamp) {
        self.leave(now);
        let follows = self.hold_follows && wait != Wait::Reply;
        self.hold_follows &= !follows;
        self.state = State::Waiting(if follows { Wait::Operator } else { wait });
        self.in_backlog = self.was_held || self.entry.progress.attempts > 0;
    }
}

impl Model {
    fn waiting(&self, wait: &Wait) -> Vec<Slot> {
        let waits = |message: &Message| message.state == State::Waiting(wait.clone());
        self.messages.iter().filter(|(_, message)| waits(message)).map(|(slot, _)| *slot).collect()
    }

    /// Those whose time has come get their turn.
    fn ripen(&mut self) {
        for message in self.messages.values_mut() {
            if let State::Waiting(Wait::Retry(time) | Wait::HoldUntil(time)) = message.state
                && time <= self.now
            {
                message.block(Wait::Turn, self.now);
            }
        }
    }

    /// The paces are tested by themselves: here the scheduler says who was let out.
    fn follow_releases(&mut self, scheduler: &Scheduler, taken: Option<Slot>) {
        for (slot, message) in &mut self.messages {
            let view = scheduler.get(*slot).unwrap().1;
            if message.state == State::Paced && view.state != State::Paced {
                message.block(Wait::Turn, self.now);
                assert!(Some(*slot) == taken || view.state == State::Waiting(Wait::Turn));
            }
        }
    }

    fn taken(&mut self, wait: &Wait, slot: Option<Slot>) {
        let waiting = self.waiting(wait);
        assert_eq!(slot.is_none(), waiting.is_empty(), "none only if nobody waits for {wait:?}");
        let Some(slot) = slot else { return };
        assert!(waiting.contains(&slot), "{slot} does not wait for {wait:?}");
        let message = &self.messages[&slot];
        for other in waiting.iter().map(|slot| &self.messages[slot]) {
            let same = other.entry.instance == message.entry.instance
                && other.in_backlog == message.in_backlog;
            assert!(!same || other.since >= message.since, "first come first served in a flow");
        }
        let now = self.now;
        self.messages.get_mut(&slot).unwrap().leave(now);
    }
}

/// One step of both. What they must agree on at once is asserted here.
fn step(scheduler: &mut Scheduler, model: &mut Model, op: Op) {
    let now = model.now;
    let find = |slot: &Slot| model.messages.get(slot).cloned();
    match op {
        Op::Insert { slot, instance, age, size, wait: number } => {
            if find(&slot).is_some() {
                return;
            }
            let received = now.saturating_sub_ms(age);
            let entry = Entry { size, ..entry(InstanceKey(instance), received) };
            scheduler.insert(slot, entry, wait(number, now), now);
            let (state, since) = (State::InFlight, now);
            let mut message = Message {
                entry,
                state,
                since,
                hold_follows: false,
                was_held: false,
                in_backlog: false,
            };
            message.block(wait(number, now), now);
            model.messages.insert(slot, message);
        }
        Op::Take => {
            let slot = scheduler.take(now);
            model.ripen();
            model.follow_releases(scheduler, slot);
            model.taken(&Wait::Turn, slot);
        }
        Op::TakeWaiting(number) => {
            let wait = wait(number, now);
            assert_eq!(scheduler.has_waiting(&wait), !model.waiting(&wait).is_empty());
            let slot = scheduler.take_waiting(&wait, now);
            model.taken(&wait, slot);
        }
        Op::Block { slot, wait: number } => {
            let found = scheduler.block(slot, wait(number, now), now);
            assert_eq!(found, find(&slot).is_some());
            if let Some(message) = model.messages.get_mut(&slot) {
                message.block(wait(number, now), now);
            }
        }
        Op::Tried { slot, recipients } => {
            let change = |progress: &mut Progress| {
                progress.attempts += 1;
                progress.recipients = recipients;
            };
            assert_eq!(scheduler.update(slot, change), find(&slot).is_some());
            model.messages.entry(slot).and_modify(|message| change(&mut message.entry.progress));
        }
        Op::Remove(slot) => {
            let entry = find(&slot).map(|message| message.entry);
            assert_eq!(scheduler.remove(slot), entry);
            model.messages.remove(&slot);
        }
        Op::Sleep(ms) => model.now = now.saturating_add_ms(ms),
        op => step_many(scheduler, model, op),
    }
}

/// The steps that wake many, and those of operators.
fn step_many(scheduler: &mut Scheduler, model: &mut Model, op: Op) {
    let now = model.now;
    match op {
        Op::Wake(number) | Op::Release { wait: number, rate: 0, .. } if number > 2 => {
            let wait = wait(number, now);
            let slots = model.waiting(&wait);
            let is_release = matches!(op, Op::Release { .. });
            let count = if is_release {
                scheduler.release(&wait, Pace::default(), now)
            } else {
                scheduler.wake(&wait, now)
            };
            assert_eq!(count, slots.len());
            for slot in slots {
                let message = model.messages.get_mut(&slot).unwrap();
                message.was_held |= is_release;
                message.block(Wait::Turn, now);
            }
        }
        Op::Release { wait: number, rate, ramp_ms } if number > 2 => {
            let wait = wait(number, now);
            let slots = model.waiting(&wait);
            let pace = Pace { rate: NonZeroU32::new(rate), start: 1, ramp_ms };
            assert_eq!(scheduler.release(&wait, pace, now), slots.len());
            for slot in slots {
                let message = model.messages.get_mut(&slot).unwrap();
                message.was_held = true;
                if message.hold_follows {
                    message.block(Wait::Turn, now);
                } else {
                    message.leave(now);
                    message.state = State::Paced;
                }
            }
        }
        Op::Hold(slot) => {
            let found = scheduler.hold(slot, now);
            let Some(message) = model.messages.get_mut(&slot) else { return assert!(!found) };
            match message.state {
                State::InFlight | State::Waiting(Wait::Reply) => message.hold_follows = true,
                State::Waiting(Wait::Operator) => {}
                _ => message.block(Wait::Operator, now),
            }
        }
        Op::Unhold(slot) => {
            let found = scheduler.unhold(slot, now);
            let Some(message) = model.messages.get_mut(&slot) else { return assert!(!found) };
            if message.hold_follows {
                message.hold_follows = false;
            } else if message.state == State::Waiting(Wait::Operator) {
                message.block(Wait::Turn, now);
            } else {
                assert!(!found);
            }
        }
        Op::RetryNow(slot) => {
            let found = scheduler.retry_now(slot, now);
            let Some(message) = model.messages.get_mut(&slot) else { return assert!(!found) };
            let stays = matches!(
                message.state,
                State::InFlight | State::Waiting(Wait::Reply | Wait::Operator | Wait::Turn)
            );
            assert_eq!(found, !stays);
            if found {
                message.block(Wait::Turn, now);
            }
        }
        Op::Expire(ms) => {
            let slots = scheduler.expired(now, |_| Duration::from_millis(ms));
            let mut expected = Vec::new();
            for (slot, message) in &mut model.messages {
                let busy = matches!(message.state, State::InFlight | State::Waiting(Wait::Reply));
                let age = now.0 - message.entry.received.0 - message.entry.held_ms;
                if !busy && !message.is_held() && age >= ms {
                    message.leave(now);
                    expected.push(*slot);
                }
            }
            assert_eq!(slots, expected);
        }
        _ => {}
    }
}

/// All that must hold between any two steps.
fn check(scheduler: &mut Scheduler, model: &Model) {
    assert_eq!(scheduler.len(), model.messages.len());
    let mut expected = Figures::default();
    for ((slot, entry, view), (model_slot, message)) in scheduler.entries().zip(&model.messages) {
        assert_eq!(slot, *model_slot);
        assert_eq!(*entry, message.entry);
        assert_eq!(view.state, message.state);
        assert_eq!((view.since, view.hold_follows), (message.since, message.hold_follows));
        expected.bytes += entry.size;
        expected.oldest = expected.oldest.into_iter().chain([entry.received]).min();
    }
    let total = scheduler.stats().total;
    assert_eq!(total.all().messages, model.messages.len() as u64);
    let recipients = |message: &Message| u64::from(message.entry.progress.recipients);
    let counted = |kind: fn(&Message) -> bool, count: Count| {
        let some = model.messages.values().filter(|message| kind(message));
        assert_eq!(some.clone().count() as u64, count.messages);
        assert_eq!(some.map(recipients).sum::<u64>(), count.recipients);
    };
    counted(Message::is_held, total.held);
    counted(|message| message.state == State::InFlight, total.in_flight);
    counted(|message| message.state == State::Waiting(Wait::Turn), total.ready);
    counted(|message| message.state == State::Waiting(Wait::Reply), total.in_doubt);
    assert_eq!(total.bytes, expected.bytes);
    assert_eq!(total.oldest, expected.oldest);
    for (wait, count) in scheduler.lines() {
        assert_eq!(count, model.waiting(wait).len());
        assert!(count > 0 || *wait == Wait::Turn, "empty lines are dropped");
    }
    check_times(scheduler, model);
}

/// Who waits for time has a timer; a release without one is stopped by what is outstanding.
fn check_times(scheduler: &Scheduler, model: &Model) {
    let times = model.messages.values().filter_map(|message| match message.state {
        State::Waiting(Wait::Retry(time) | Wait::HoldUntil(time)) => Some(time),
        _ => None,
    });
    let paces: Vec<_> = scheduler.releases.values().filter_map(|one| one.timed).collect();
    assert_eq!(scheduler.next_wake(), times.chain(paces.iter().copied()).min());
    assert_eq!(scheduler.paces.len(), paces.len());
    for (number, release) in &scheduler.releases {
        let members = scheduler.cells.iter().filter(|(_, cell)| {
            let kind = scheduler.kind_of(cell.place);
            cell.release == *number && matches!(kind, Kind::Ready | Kind::Blocked)
        });
        let members = members.count() as u64;
        assert_eq!(release.outstanding, members);
        assert!(release.timed.is_some() || release.pacer.is_stalled_by(members));
        // Oldest first, and those of no other place.
        let slots: Vec<_> = release.list.slots(&scheduler.cells).collect();
        let cells: Vec<_> = slots.iter().map(|slot| scheduler.cells.get(*slot).unwrap()).collect();
        assert!(!cells.is_empty(), "a release ends with its last message");
        assert!(cells.iter().all(|cell| cell.place == Place::Release(*number)));
        assert!(cells.is_sorted_by_key(|cell| cell.entry.received));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn agrees_with_the_naive_model(ops in prop::collection::vec(op(), 1..250)) {
        let mut scheduler = Scheduler::new();
        for (number, name) in [(1, "one"), (2, "two")] {
            assert_eq!(scheduler.instance(Some(name)), InstanceKey(number));
        }
        let mut model = Model { now: NOW, messages: BTreeMap::new() };
        for op in ops {
            step(&mut scheduler, &mut model, op);
            check(&mut scheduler, &model);
        }
        // Nothing is lost: whatever happened, all can be brought to their turn and taken.
        for number in 3..14 {
            let step = Op::Wake(number);
            step_many(&mut scheduler, &mut model, step);
        }
        model.now = at(100_000_000);
        let waiting: Vec<_> = model.messages.keys().copied().collect();
        for slot in &waiting {
            step_many(&mut scheduler, &mut model, Op::Unhold(*slot));
            step(&mut scheduler, &mut model, Op::Block { slot: *slot, wait: 0 });
            step_many(&mut scheduler, &mut model, Op::Unhold(*slot));
        }
        let mut taken = drain(&mut scheduler, model.now);
        taken.sort_unstable();
        prop_assert_eq!(taken, waiting);
    }
}
