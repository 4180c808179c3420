#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::plan::{Instance, Matcher, Phase, Wave};

struct Fixed(Mutex<Timestamp>);

impl WallClock for Fixed {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

fn instance(name: &str) -> Instance {
    Instance {
        name: name.into(),
        product: "p".into(),
        environment: "e".into(),
        matcher: Matcher { senders: vec![format!("{name}.example")], ..Matcher::default() },
        ..Instance::default()
    }
}

fn wave(id: &str, opens: u64, closes: u64, instances: Vec<usize>) -> Wave {
    Wave {
        window: Window { wave: id.into(), opens: Timestamp(opens), closes: Timestamp(closes) },
        environment: "e".into(),
        instances,
        ..Wave::default()
    }
}

/// One instance in one wave; freezing begins ten before.
fn plan(opens: u64, closes: u64) -> Arc<Plan> {
    Arc::new(Plan::new(10, vec![instance("a")], vec![wave("w", opens, closes, vec![0])]))
}

fn waves_at(plan: Arc<Plan>, now: u64, records: Vec<Record>) -> (Arc<Waves>, Arc<Fixed>) {
    let clock = Arc::new(Fixed(Mutex::new(Timestamp(now))));
    (Waves::new(plan, Arc::clone(&clock) as _, records), clock)
}

fn waves() -> Arc<Waves> {
    waves_at(plan(100, 200), 0, Vec::new()).0
}

/// A step of wave `w`, as if it had been written down.
fn take(waves: &Waves, step: Step, now: u64) {
    let life = waves.life("w", Timestamp(now)).unwrap();
    let mut record = Record::clone(&life.record);
    record.take(step, Timestamp(now));
    waves.take_effect(vec![Arc::new(record)]);
}

fn phase(waves: &Waves, name: &str, now: u64) -> Phase {
    let state = waves.current();
    state.instance(state.index_of(name).unwrap()).phase(Timestamp(now))
}

#[test]
fn an_attempt_that_began_may_commit_until_the_window_opens() {
    let waves = waves();
    let instance = Arc::clone(waves.current().instance(0));
    let mut attempt = instance.begin(Timestamp(89)).unwrap();
    assert_eq!(instance.begin(Timestamp(90)).unwrap_err().phase, Phase::Freezing);
    attempt.commit(Timestamp(99)).unwrap();
    assert_eq!(attempt.commit(Timestamp(100)).unwrap_err().phase, Phase::Frozen);
    let status = instance.status(Timestamp(100));
    assert_eq!((status.in_flight.in_doubt, status.barrier), (1, false));
    drop(attempt);
    assert!(instance.status(Timestamp(100)).barrier);
    assert_eq!(instance.status(Timestamp(100)).leaked, 0);
}

#[test]
fn only_a_step_ends_a_freeze() {
    let waves = waves();
    let instance = Arc::clone(waves.current().instance(0));
    // Far past its end, and with a clock that goes back.
    for now in [100, 200, 1_000_000, 50, 0] {
        assert_eq!(instance.begin(Timestamp(now)).unwrap_err().phase, Phase::Frozen, "{now}");
    }
    take(&waves, Step::Check, 150);
    assert_eq!(phase(&waves, "a", 0), Phase::Checked);
    take(&waves, Step::Release, 200);
    assert_eq!(phase(&waves, "a", 200), Phase::Releasing);
    instance.begin(Timestamp(200)).unwrap();
    take(&waves, Step::End, 210);
    assert_eq!(phase(&waves, "a", 0), Phase::Migrated);
}

#[test]
fn freezing_that_began_stays_when_the_clock_goes_back() {
    let (waves, clock) = waves_at(plan(100, 200), 90, Vec::new());
    assert_eq!(phase(&waves, "a", 90), Phase::Freezing);
    *clock.0.lock().unwrap() = Timestamp(5);
    assert_eq!(phase(&waves, "a", 5), Phase::Freezing);
    // The book learns it from the instance.
    assert_eq!(waves.life("w", Timestamp(5)).unwrap().record.stage, Stage::Freezing);
    waves.replace(plan(1000, 2000));
    assert_eq!(phase(&waves, "a", 5), Phase::Freezing, "no plan thaws it");
    assert_eq!(phase(&waves, "a", 100), Phase::Frozen, "and its slot is the old one");
}

#[test]
fn a_plan_that_brings_the_window_forward_stops_attempts_that_began() {
    let waves = waves();
    let instance = Arc::clone(waves.current().instance(0));
    let mut attempt = instance.begin(Timestamp(10)).unwrap();
    waves.replace(plan(20, 200));
    assert!(attempt.commit(Timestamp(20)).is_err());
    assert!(!instance.status(Timestamp(20)).barrier);
    assert!(Arc::ptr_eq(&instance, waves.current().instance(0)));
    drop(attempt);
    assert!(instance.status(Timestamp(20)).barrier);
}

#[test]
fn an_attempt_does_not_commit_on_the_other_side_of_the_window() {
    let waves = waves();
    let instance = Arc::clone(waves.current().instance(0));
    let mut before = instance.begin(Timestamp(89)).unwrap();
    take(&waves, Step::Freeze, 90);
    take(&waves, Step::Release, 200);
    assert_eq!(before.commit(Timestamp(200)).unwrap_err().phase, Phase::Releasing);
    let mut after = instance.begin(Timestamp(200)).unwrap();
    after.commit(Timestamp(201)).unwrap();
    take(&waves, Step::RollBack, 202);
    assert_eq!(after.commit(Timestamp(202)).unwrap_err().phase, Phase::RolledBack);
    // The route of the first is right again.
    before.commit(Timestamp(203)).unwrap();
}

#[test]
fn an_attempt_that_is_uncommitted_again_counts_once() {
    let waves = waves();
    let instance = Arc::clone(waves.current().instance(0));
    let mut attempt = instance.begin(Timestamp(1)).unwrap();
    let flying = || instance.status(Timestamp(1)).in_flight;
    for _ in 0..2 {
        attempt.commit(Timestamp(1)).unwrap();
        attempt.commit(Timestamp(1)).unwrap();
        assert_eq!(flying(), InFlight { uncommitted: 0, in_doubt: 1 });
        attempt.uncommit();
        attempt.uncommit();
        assert_eq!(flying(), InFlight { uncommitted: 1, in_doubt: 0 });
    }
    drop(attempt);
    assert_eq!(flying(), InFlight::default());
}

#[test]
fn a_wave_that_has_not_begun_goes_with_its_plan() {
    let waves = waves();
    let instance = Arc::clone(waves.current().instance(0));
    waves.replace(Arc::new(Plan::default()));
    assert_eq!(instance.phase(Timestamp(150)), Phase::Unscheduled);
    assert!(waves.lives(Timestamp(150)).is_empty());
    waves.replace(plan(300, 400));
    assert_eq!(phase(&waves, "a", 150), Phase::Scheduled);
}

#[test]
fn a_window_that_was_over_before_it_was_seen_is_migrated() {
    let (waves, _) = waves_at(plan(100, 200), 200, Vec::new());
    assert_eq!(phase(&waves, "a", 200), Phase::Migrated);
    let life = waves.life("w", Timestamp(200)).unwrap();
    assert!(life.was_over && life.saved.is_none());
    let (waves, _) = waves_at(plan(100, 200), 199, Vec::new());
    assert_eq!(phase(&waves, "a", 5000), Phase::Frozen);
    assert!(!waves.life("w", Timestamp(5000)).unwrap().was_over);
}

#[test]
fn what_was_written_down_comes_back() {
    for (stage, expected) in [
        (Stage::Freezing, Phase::Frozen),
        (Stage::Frozen, Phase::Frozen),
        (Stage::Checked, Phase::Checked),
        (Stage::Releasing, Phase::Releasing),
        (Stage::Migrated, Phase::Migrated),
        (Stage::RolledBack, Phase::RolledBack),
    ] {
        let plan = plan(100, 200);
        let record = Record { stage, ..Record::of_plan(&plan, &plan.waves[0]) };
        let (waves, _) = waves_at(plan, 5000, vec![record]);
        assert_eq!(phase(&waves, "a", 5000), expected);
    }
}

#[test]
fn a_new_slot_is_a_new_life_once_the_old_one_is_over() {
    let old = plan(100, 200);
    let record = Record { stage: Stage::RolledBack, ..Record::of_plan(&old, &old.waves[0]) };
    let (waves, _) = waves_at(plan(1000, 2000), 500, vec![record]);
    assert_eq!(phase(&waves, "a", 500), Phase::Scheduled);
    assert_eq!(phase(&waves, "a", 1000), Phase::Frozen);
    assert_eq!(waves.forgotten(), Vec::<String>::new(), "it is written over");
}

/// Two instances, one of them in a wave that has begun.
fn begun() -> Arc<Waves> {
    let waves = vec![wave("w", 100, 200, vec![0])];
    let plan = Plan::new(10, vec![instance("a"), instance("b")], waves);
    let (waves, _) = waves_at(Arc::new(plan), 95, Vec::new());
    take(&waves, Step::Freeze, 95);
    waves
}

#[test]
fn a_wave_that_has_begun_keeps_its_instances_whatever_a_plan_says() {
    let origin = Origin {
        client: [10, 0, 0, 1].into(),
        sender_domain: Some("a.example"),
        listener: "",
        headers: &[],
    };
    for instances in [vec![instance("b")], vec![instance("b"), instance("a")]] {
        let waves = begun();
        let other = Plan::new(10, instances, vec![wave("w", 100, 200, vec![0])]);
        waves.replace(Arc::new(other));
        assert_eq!(phase(&waves, "a", 150), Phase::Frozen);
        assert_eq!(phase(&waves, "b", 150), Phase::Unscheduled, "the wave is as it began");
        let state = waves.current_owned();
        let found = state.attribute(&origin).unwrap();
        assert_eq!(&**state.instance(found).name(), "a", "its mail is still known");
        // When it is over the plan is what its file says.
        take(&waves, Step::Release, 200);
        take(&waves, Step::End, 210);
        waves.replace(waves.filed());
        assert_eq!(waves.current().plan.instances.len(), waves.filed().instances.len());
    }
}

#[test]
fn a_plan_is_told_what_it_contradicts() {
    let waves = begun();
    let all = || vec![instance("a"), instance("b")];
    let said = |instances, all_waves| {
        waves.contradictions(&Plan::new(10, instances, all_waves)).join("\n")
    };
    assert_eq!(said(all(), vec![wave("w", 100, 200, vec![0])]), "");
    assert!(said(all(), vec![]).starts_with("has no wave \"w\", which is freezing"));
    assert!(said(all(), vec![wave("w", 101, 200, vec![0])]).contains("open at"));
    assert!(said(all(), vec![wave("w", 100, 201, vec![0])]).contains("close at"));
    assert!(said(all(), vec![wave("w", 100, 200, vec![0, 1])]).contains("other instances"));
    let lost = said(vec![instance("b")], vec![wave("w", 100, 200, vec![0])]);
    assert!(lost.starts_with("has no instance \"a\""), "{lost}");
    take(&waves, Step::RollBack, 150);
    assert_eq!(said(all(), vec![]), "", "it is over");
}

#[test]
fn a_freeze_without_a_plan_holds_one_instance_and_leaves_the_wave_alone() {
    let waves = waves();
    waves.freeze(Record::ad_hoc("f".into(), "a", Timestamp(20), Timestamp(40)));
    assert_eq!(phase(&waves, "a", 30), Phase::Frozen);
    assert_eq!(phase(&waves, "a", 60), Phase::Frozen, "only a step ends it");
    // The wave's window comes while it lasts.
    assert_eq!(phase(&waves, "a", 95), Phase::Frozen);
    let life = waves.life("f", Timestamp(95)).unwrap();
    let mut record = Record::clone(&life.record);
    record.take(Step::Release, Timestamp(96));
    waves.take_effect(vec![Arc::new(record.clone())]);
    assert_eq!(phase(&waves, "a", 97), Phase::Freezing, "the wave's");
    record.take(Step::End, Timestamp(98));
    waves.take_effect(vec![Arc::new(record)]);
    assert!(waves.life("f", Timestamp(98)).is_none());
    assert_eq!(waves.forgotten(), ["f"]);
    assert_eq!(phase(&waves, "a", 100), Phase::Frozen);
}

#[test]
fn strangers_of_a_network_that_is_frozen_without_a_plan_are_held() {
    let mut inside = instance("a");
    inside.matcher.clients = vec!["10.0.0.0/8".parse().unwrap()];
    let mut other = instance("b");
    other.matcher.clients = vec!["10.0.0.0/8".parse().unwrap()];
    let plan = Plan::new(10, vec![inside, other], vec![wave("w", 100, 200, vec![0, 1])]);
    let (waves, _) = waves_at(Arc::new(plan), 0, Vec::new());
    let client = [10, 1, 1, 1].into();
    assert_eq!(waves.current().owner_may_not_start(client, Timestamp(30)), None);
    waves.freeze(Record::ad_hoc("f".into(), "b", Timestamp(20), Timestamp(40)));
    let owner = waves.current().owner_may_not_start(client, Timestamp(30));
    assert_eq!(owner, waves.current().index_of("b"));
}

#[test]
fn a_plan_that_recognises_mail_otherwise_makes_what_was_held_uncertain() {
    let waves = begun();
    assert!(waves.life("w", Timestamp(96)).unwrap().record.sure);
    waves.replace(waves.filed());
    assert!(waves.life("w", Timestamp(96)).unwrap().record.sure);
    let mut other = instance("b");
    other.matcher.senders.push("a.example".into());
    let plan = Plan::new(10, vec![instance("a"), other], vec![wave("w", 100, 200, vec![0])]);
    waves.replace(Arc::new(plan));
    assert!(!waves.life("w", Timestamp(96)).unwrap().record.sure);
}
