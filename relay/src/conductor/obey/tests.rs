#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

const NOW: Timestamp = Timestamp(150_000);

fn record(stage: Stage) -> Record {
    Record {
        wave: "w".into(),
        members: vec!["a".into()],
        freezes: Timestamp(90_000),
        opens: Timestamp(100_000),
        planned_closes: Timestamp(200_000),
        closes: Timestamp(200_000),
        stage,
        ..Record::default()
    }
}

/// What becomes of an order: the stage afterwards, `already`, or why not.
fn outcome(record: &Record, command: &Command, suspect: bool) -> String {
    match rule(record, command, NOW, suspect) {
        Ok(Verdict { record: None, .. }) => "already".to_owned(),
        Ok(Verdict { record: Some(next), .. }) => format!("{:?}", next.stage),
        Err(Refusal::NotNow { phase, .. }) => {
            assert_eq!(phase, record.stage.phase().as_str());
            "not now".to_owned()
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_order_in_every_phase() {
    let wave = "w".to_owned();
    let extend = Command::Extend { wave: wave.clone(), until: Timestamp(300_000) };
    let complete = |unchecked| Command::Complete { wave: wave.clone(), unchecked };
    let roll_back = Command::RollBack { wave: wave.clone() };
    let release = Command::Release { wave: wave.clone() };
    // Stage; extend, complete, complete although unchecked, roll back, release, and that while
    // the clock is suspect.
    let table = [
        (Stage::Planned, ["not now", "not now", "not now", "not now", "not now", "not now"]),
        (Stage::Freezing, ["Freezing", "not now", "not now", "RolledBack", "not now", "Freezing"]),
        (Stage::Frozen, ["Frozen", "Frozen", "Frozen", "RolledBack", "not now", "Frozen"]),
        (Stage::Checked, ["Checked", "Checked", "Checked", "RolledBack", "not now", "Checked"]),
        (Stage::Releasing, ["not now", "already", "already", "RolledBack", "not now", "not now"]),
        (Stage::Migrated, ["not now", "already", "already", "RolledBack", "not now", "not now"]),
        (Stage::RolledBack, ["not now", "not now", "not now", "already", "not now", "not now"]),
    ];
    for (stage, expected) in table {
        let record = record(stage);
        let said = [
            outcome(&record, &extend, false),
            outcome(&record, &complete(false), false),
            outcome(&record, &complete(true), false),
            outcome(&record, &roll_back, false),
            outcome(&record, &release, false),
            outcome(&record, &release, true),
        ];
        assert_eq!(said, expected, "{stage:?}");
    }
}

#[test]
fn orders_twice_are_one() {
    for stage in [Stage::Freezing, Stage::Frozen, Stage::Checked] {
        for command in [
            Command::Extend { wave: "w".into(), until: Timestamp(300_000) },
            Command::RollBack { wave: "w".into() },
            Command::Complete { wave: "w".into(), unchecked: true },
        ] {
            let Ok(first) = rule(&record(stage), &command, NOW, false) else { continue };
            let again = rule(&first.record.unwrap(), &command, NOW, false).unwrap();
            assert_eq!(again.record, None, "{command:?} in {stage:?}");
        }
    }
}

#[test]
fn a_window_is_only_extended_and_not_for_ever() {
    let said = |until: u64| {
        let command = Command::Extend { wave: "w".into(), until: Timestamp(until) };
        rule(&record(Stage::Frozen), &command, NOW, false).map(|verdict| verdict.record.is_some())
    };
    assert_eq!(said(200_000), Ok(false));
    assert_eq!(said(200_001), Ok(true));
    assert_eq!(said(100_000 + LONGEST), Ok(true));
    assert!(matches!(said(100_001 + LONGEST), Err(Refusal::Invalid(_))));
    assert!(matches!(said(199_999), Err(Refusal::Invalid(_))));
}

#[test]
fn a_freeze_without_a_plan_is_completed_and_not_rolled_back() {
    let freeze = Record::ad_hoc("f".into(), "a", Timestamp(100_000), Timestamp(200_000));
    let roll_back = Command::RollBack { wave: "f".into() };
    assert!(matches!(rule(&freeze, &roll_back, NOW, false), Err(Refusal::NotNow { .. })));
    let complete = Command::Complete { wave: "f".into(), unchecked: false };
    let verdict = rule(&freeze, &complete, NOW, false).unwrap();
    assert_eq!(verdict.record.unwrap().completed, Some(false));
}

#[test]
fn a_reason_is_needed_and_short() {
    assert!(check_reason("moved").is_ok());
    assert!(check_reason(&"ä".repeat(REASON)).is_ok());
    for wrong in ["", "  \n", &"x".repeat(REASON + 1)] {
        assert!(matches!(check_reason(wrong), Err(Refusal::Invalid(_))), "{wrong:?}");
    }
}

#[test]
fn the_name_of_a_freeze_says_whose_and_when_and_is_its_own() {
    let now = Timestamp(1_768_885_200_123);
    let id = free_id(&[], "acme", now);
    assert_eq!(id, "freeze-acme-20260120T050000Z");
    let record = Arc::new(Record { wave: id.clone(), ..Record::default() });
    let taken = Life { record, saved: None, was_over: false };
    assert_eq!(free_id(&[taken], "acme", now), id + "-2");
}
