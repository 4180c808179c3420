#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

const QUIET: Circumstances = Circumstances {
    now: Timestamp(0),
    clock_suspect: false,
    is_quiet: false,
    targets: Targets::Unknown,
    is_drained: false,
    extension_ms: 50,
};

fn record() -> Record {
    Record {
        wave: "w".into(),
        members: vec!["a".into()],
        freezes: Timestamp(90),
        opens: Timestamp(100),
        planned_closes: Timestamp(200),
        closes: Timestamp(200),
        ..Record::default()
    }
}

/// All steps that are due under these circumstances.
fn run(record: &mut Record, around: Circumstances) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = record.next(&around) {
        record.take(step, around.now);
        steps.push(step);
        assert!(steps.len() < 10, "it goes in circles: {steps:?}");
    }
    steps
}

fn at(now: u64) -> Circumstances {
    Circumstances { now: Timestamp(now), ..QUIET }
}

#[test]
fn a_life_without_trouble() {
    let mut wave = record();
    assert_eq!(run(&mut wave, at(89)), []);
    assert_eq!(run(&mut wave, at(90)), [Step::Freeze]);
    assert_eq!(run(&mut wave, at(99)), []);
    assert_eq!(run(&mut wave, at(100)), [Step::Open]);
    let quiet = |now| Circumstances { is_quiet: true, ..at(now) };
    assert_eq!(run(&mut wave, quiet(103)), [Step::Barrier]);
    let good = |now| Circumstances { targets: Targets::Good, ..quiet(now) };
    assert_eq!(run(&mut wave, good(110)), [Step::Check]);
    assert_eq!(run(&mut wave, good(199)), []);
    assert_eq!(run(&mut wave, good(200)), [Step::Release]);
    assert_eq!(wave.stage, Stage::Releasing);
    let drained = |now| Circumstances { is_drained: true, ..good(now) };
    assert_eq!(run(&mut wave, drained(230)), [Step::End]);
    assert_eq!(wave.stage, Stage::Migrated);
    let times = [wave.begun_at, wave.barrier_at, wave.released_at, wave.ended_at];
    assert_eq!(times, [90, 103, 200, 230].map(|time| Some(Timestamp(time))));
    assert_eq!(run(&mut wave, drained(9999)), []);
}

#[test]
fn the_barrier_may_be_reached_before_the_window_opens() {
    let mut wave = record();
    let quiet = |now| Circumstances { is_quiet: true, targets: Targets::Good, ..at(now) };
    assert_eq!(run(&mut wave, quiet(89)), [], "what is quiet may still begin");
    assert_eq!(run(&mut wave, at(90)), [Step::Freeze]);
    assert_eq!(run(&mut wave, quiet(95)), [Step::Barrier]);
    assert_eq!((wave.stage, wave.barrier_at), (Stage::Freezing, Some(Timestamp(95))));
    assert_eq!(run(&mut wave, quiet(100)), [Step::Open, Step::Check]);
}

#[test]
fn without_questions_a_barrier_is_enough() {
    let mut wave = record();
    let unasked = Circumstances { targets: Targets::Unasked, is_quiet: true, ..at(200) };
    let steps = [Step::Freeze, Step::Barrier, Step::Open, Step::Check, Step::Release];
    assert_eq!(run(&mut wave, unasked), steps);
}

/// A wave whose window is open, with its barrier or without.
fn open(barrier: bool) -> Record {
    let mut wave = record();
    run(&mut wave, Circumstances { is_quiet: barrier, ..at(100) });
    assert_eq!(wave.stage, Stage::Frozen);
    wave
}

#[test]
fn targets_that_do_not_answer_extend_it_or_give_it_up() {
    let bad = |now| Circumstances { targets: Targets::Bad, is_quiet: true, ..at(now) };
    let mut wave = open(true);
    assert_eq!(run(&mut wave, bad(199)), []);
    assert_eq!(run(&mut wave, bad(200)), [Step::Extend(Timestamp(250))]);
    assert_eq!(run(&mut wave, bad(249)), []);
    // Late: so much from now on, and no more.
    assert_eq!(run(&mut wave, bad(400)), [Step::Extend(Timestamp(450))]);
    let good = |now| Circumstances { targets: Targets::Good, ..bad(now) };
    assert_eq!(run(&mut wave, good(420)), [Step::Check]);
    assert_eq!(run(&mut wave, bad(430)), [Step::Uncheck]);
    assert_eq!(run(&mut wave, good(450)), [Step::Check, Step::Release]);

    let mut wave = Record { rolls_back: true, ..open(true) };
    assert_eq!(run(&mut wave, bad(200)), [Step::RollBack]);
    assert_eq!(wave.stage, Stage::RolledBack);
    assert_eq!(run(&mut wave, Circumstances { is_drained: true, ..bad(210) }), [Step::End]);
    assert_eq!((wave.stage, wave.ended_at), (Stage::RolledBack, Some(Timestamp(210))));
}

#[test]
fn the_first_answers_are_waited_for() {
    let mut wave = open(true);
    let unknown = Circumstances { is_quiet: true, ..at(300) };
    assert_eq!(run(&mut wave, unknown), []);
    let good = Circumstances { targets: Targets::Good, ..unknown };
    assert_eq!(run(&mut wave, good), [Step::Check, Step::Release]);
}

#[test]
fn without_a_barrier_it_is_not_released() {
    for targets in [Targets::Good, Targets::Unasked, Targets::Unknown] {
        let mut wave = open(false);
        let around = Circumstances { targets, ..at(200) };
        assert_eq!(run(&mut wave, around), [Step::Extend(Timestamp(250))], "{targets:?}");
    }
}

#[test]
fn while_the_clock_is_suspect_freezes_go_ahead_and_releases_do_not() {
    let mut wave = record();
    let around =
        Circumstances { clock_suspect: true, targets: Targets::Good, is_quiet: true, ..at(500) };
    let steps = [Step::Freeze, Step::Barrier, Step::Open, Step::Check];
    assert_eq!(run(&mut wave, around), steps);
    let mut bad = Record { rolls_back: true, ..open(true) };
    assert_eq!(run(&mut bad, Circumstances { targets: Targets::Bad, ..around }), []);
    let mut freeze = Record::ad_hoc("f".into(), "a", Timestamp(0), Timestamp(100));
    assert_eq!(run(&mut freeze, around), [Step::Barrier]);
    // An operator's word needs no clock.
    wave.completed = Some(false);
    assert_eq!(run(&mut wave, around), [Step::Release]);
}

#[test]
fn one_that_waits_for_an_operator_has_no_end_by_the_clock() {
    let mut wave = Record { on_complete: true, ..open(true) };
    let good = Circumstances { targets: Targets::Good, is_quiet: true, ..at(10_000) };
    assert_eq!(run(&mut wave, good), [Step::Check]);
    wave.completed = Some(false);
    let bad = Circumstances { targets: Targets::Bad, ..good };
    assert_eq!(run(&mut wave, bad), [Step::Uncheck], "not unless its targets answer");
    wave.completed = Some(true);
    assert_eq!(run(&mut wave, bad), [Step::Release], "or an operator takes it on himself");
}

#[test]
fn a_freeze_without_a_plan_ends_by_itself_and_leaves_nothing() {
    let mut wave = Record::ad_hoc("f".into(), "a", Timestamp(50), Timestamp(100));
    assert_eq!((wave.stage, wave.begun_at), (Stage::Frozen, Some(Timestamp(50))));
    let bad = |now| Circumstances { targets: Targets::Bad, ..at(now) };
    assert_eq!(run(&mut wave, bad(99)), []);
    assert_eq!(run(&mut wave, bad(100)), [Step::Release], "asks nobody");
    assert_eq!(run(&mut wave, Circumstances { is_drained: true, ..at(101) }), [Step::End]);
    assert_eq!(wave.stage, Stage::Over);
}
