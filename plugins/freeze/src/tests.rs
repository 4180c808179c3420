//! The freeze policy's answers, phase by phase and setting by setting.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use wavegate_policy::configured;
use wavegate_policy::testing::{instance, transaction};
use wavegate_policy::types::Window;

const CLOSES: u64 = 1_768_891_500_000;

fn message(phase: &str) -> Transaction {
    let window = Some(Window { wave: "prod-01".into(), opens: CLOSES - 2_700_000, closes: CLOSES });
    Transaction { instance: Some(Instance { window, ..instance(phase) }), ..transaction() }
}

fn answer(settings: &str, message: &Transaction) -> Decision {
    freeze::Policy::decide(&configured::<Freeze>(settings, &[]).unwrap(), message)
}

#[test]
fn mail_outside_a_window_goes() {
    for phase in ["unscheduled", "scheduled", "releasing", "migrated", "rolled-back"] {
        assert!(matches!(answer("", &message(phase)), Decision::Proceed), "{phase}");
    }
    assert!(matches!(answer("", &transaction()), Decision::Proceed));
}

#[test]
fn mail_in_a_window_is_held_until_its_end() {
    for phase in ["freezing", "frozen", "checked"] {
        let Decision::Hold(hold) = answer("{}", &message(phase)) else { panic!("{phase}") };
        assert_eq!(hold.until, Some(CLOSES));
        assert_eq!(hold.reason, "instance acme-prod-1 is being upgraded (wave prod-01)");
    }
}

#[test]
fn an_unknown_phase_is_frozen() {
    for phase in ["", "Migrated", "thawing"] {
        assert!(matches!(answer("", &message(phase)), Decision::Hold(_)), "{phase}");
    }
}

#[test]
fn a_window_that_ran_over_gives_no_time() {
    for now in [CLOSES, CLOSES + 1] {
        let late = Transaction { now, ..message("frozen") };
        let Decision::Hold(hold) = answer("", &late) else { panic!() };
        assert_eq!(hold.until, None);
    }
}

#[test]
fn a_frozen_instance_without_a_window_is_held() {
    let message = Transaction { instance: Some(instance("frozen")), ..transaction() };
    let Decision::Hold(hold) = answer("", &message) else { panic!() };
    assert_eq!(
        (hold.until, hold.reason.as_str()),
        (None, "instance acme-prod-1 is being upgraded")
    );
}

#[test]
fn the_answer_in_a_window_can_be_chosen() {
    let frozen = message("frozen");
    let Decision::Defer(reply) = answer(r#"{"in_window":"defer"}"#, &frozen) else { panic!() };
    assert_eq!((reply.code, reply.enhanced.as_str()), (451, "4.7.0"));
    assert_eq!(reply.text, "instance acme-prod-1 is being upgraded (wave prod-01)");
    let settings = r#"{"in_window":"refuse","text":"come back on Monday"}"#;
    let Decision::Refuse(reply) = answer(settings, &frozen) else { panic!() };
    assert_eq!((reply.code, reply.enhanced.as_str()), (550, "5.7.0"));
    assert_eq!(reply.text, "come back on Monday");
    assert!(matches!(answer(settings, &message("scheduled")), Decision::Proceed));
}

#[test]
fn a_name_from_the_plan_cannot_break_a_reply() {
    let mut message = message("frozen");
    message.instance.as_mut().unwrap().name = "a\r\nb".repeat(300);
    let Decision::Defer(reply) = answer(r#"{"in_window":"defer"}"#, &message) else { panic!() };
    assert!(reply.text.len() <= text::MAX_REPLY && reply.text.chars().all(text::is_printable));
}

#[test]
fn wrong_settings_are_named() {
    let cases = [
        (r#"{"in_window":"drop"}"#, "in_window", "none of: hold, defer, refuse"),
        (r#"{"in_window":1}"#, "in_window", "must be a string, not 1"),
        (r#"{"text":""}"#, "text", "1 to 400"),
        (r#"{"text":"a\nb"}"#, "text", "printable"),
        (r#"{"texts":"a"}"#, "texts", "unknown; known here: in_window, text"),
        ("[]", "", "must be a table, not a list"),
        ("{", "", "not JSON"),
    ];
    for (settings, path, message) in cases {
        let Err(problems) = configured::<Freeze>(settings, &[]) else { panic!("{settings}") };
        assert_eq!(problems.len(), 1, "{settings}");
        assert_eq!(problems[0].path, path, "{settings}");
        assert!(problems[0].message.contains(message), "{settings}: {}", problems[0].message);
    }
}
