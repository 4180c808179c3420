#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

fn span(wave: &str, stage: Stage, opens: u64, ad_hoc: bool) -> Span {
    let record = Record {
        wave: wave.into(),
        freezes: Timestamp(opens.saturating_sub(10)),
        opens: Timestamp(opens),
        closes: Timestamp(opens + 100),
        stage,
        ad_hoc,
        ..Record::default()
    };
    Span::new(&record, &Arc::new(record.window()))
}

fn state(spans: Vec<Span>) -> (Arc<InstanceState>, Arc<Notify>) {
    let bell = Arc::new(Notify::new());
    let state = InstanceState::new("a", &bell);
    state.set(spans, Timestamp(0));
    (state, bell)
}

fn follows(spans: Vec<Span>, now: u64) -> (Phase, Option<String>) {
    let (phase, window) = state(spans).0.look(Timestamp(now));
    (phase, window.map(|window| window.wave.clone()))
}

#[test]
fn of_several_waves_the_one_that_forbids_more_counts() {
    let wave = |stage| span("w", stage, 1000, false);
    let next = || span("next", Stage::Planned, 2000, false);
    let freeze = |stage| span("f", stage, 500, true);
    let named = |phase, wave: &str| (phase, Some(wave.to_owned()));
    assert_eq!(follows(vec![], 0), (Phase::Unscheduled, None));
    assert_eq!(follows(vec![freeze(Stage::Releasing)], 600), (Phase::Unscheduled, None));
    let both = |one, other| vec![freeze(one), wave(other)];
    assert_eq!(follows(both(Stage::Frozen, Stage::Planned), 600), named(Phase::Frozen, "f"));
    assert_eq!(follows(both(Stage::Releasing, Stage::Planned), 600), named(Phase::Scheduled, "w"));
    assert_eq!(follows(both(Stage::Releasing, Stage::Planned), 995), named(Phase::Freezing, "w"));
    assert_eq!(follows(both(Stage::Frozen, Stage::Freezing), 600), named(Phase::Frozen, "f"));
    assert_eq!(follows(both(Stage::Frozen, Stage::Migrated), 600), named(Phase::Frozen, "f"));
    let after = |stage| vec![next(), wave(stage)];
    assert_eq!(follows(after(Stage::Releasing), 1500), named(Phase::Releasing, "w"));
    assert_eq!(follows(after(Stage::Checked), 1500), named(Phase::Checked, "w"));
    assert_eq!(follows(after(Stage::Releasing), 2000), named(Phase::Frozen, "next"));
}

#[test]
fn what_the_clock_began_outlasts_an_older_word_on_the_same_window() {
    let planned = || span("w", Stage::Planned, 1000, false);
    let (state, _) = state(vec![planned()]);
    assert_eq!(state.phase(Timestamp(1000)), Phase::Frozen);
    state.set(vec![planned()], Timestamp(0));
    assert_eq!(state.phase(Timestamp(0)), Phase::Frozen);
    state.set(vec![span("w", Stage::Freezing, 1000, false)], Timestamp(0));
    assert_eq!(state.phase(Timestamp(0)), Phase::Frozen);
    state.set(vec![span("w", Stage::Releasing, 1000, false)], Timestamp(0));
    assert_eq!(state.phase(Timestamp(0)), Phase::Releasing);
}

#[tokio::test]
async fn the_bell_rings_when_nothing_may_start_and_nothing_is_in_flight() {
    let (state, bell) = state(vec![span("w", Stage::Planned, 1000, false)]);
    let (one, two) = (state.begin(Timestamp(1)).unwrap(), state.begin(Timestamp(1)).unwrap());
    let early = state.begin(Timestamp(1)).unwrap();
    drop(early);
    let is_rung = || {
        let rung = bell.notified();
        tokio::pin!(rung);
        rung.enable()
    };
    assert!(!is_rung());
    assert_eq!(state.phase(Timestamp(990)), Phase::Freezing);
    drop(one);
    assert!(!is_rung(), "one is left");
    drop(two);
    assert!(is_rung());
}
