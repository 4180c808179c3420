//! Drafts that the tests start from.

#![allow(dead_code, reason = "no suite uses all of it")]

use jiff::{SignedDuration, Timestamp};
use wavegate_notice::{Contact, Destination, Draft, Instance, Notice, Program, Scope, Stage, Wave};

pub(crate) const MESSAGE_ID: &str = "prod-01.1@example.net";

/// Each language with a zone where it is spoken.
pub(crate) const READERS: [(&str, &str); 6] = [
    ("en", "Europe/London"),
    ("fr", "Europe/Paris"),
    ("de", "Europe/Berlin"),
    ("it", "Europe/Rome"),
    ("pt-BR", "America/Sao_Paulo"),
    ("sv", "Europe/Stockholm"),
];

pub(crate) fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

pub(crate) fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

pub(crate) fn instance(name: &str, product: &str, hosting: &str) -> Instance {
    Instance { name: name.into(), product: product.into(), hosting: hosting.into() }
}

fn stage(environment: &str, earliest: &str, notice: i64) -> Stage {
    Stage { environment: environment.into(), earliest: at(earliest), notice: Some(days(notice)) }
}

fn scope(product: &str, hosting: &str) -> Scope {
    Scope { product: product.into(), hosting: hosting.into() }
}

/// All that a draft can have.
pub(crate) fn full(language: &str, time_zone: &str) -> Draft {
    Draft {
        program: Program {
            name: "Sending infrastructure upgrade".into(),
            provider: "Example Mail".into(),
            care: "https://care.example.net/".into(),
            sender: Some("migration@example.net".into()),
            reply_to: Some("care@example.net".into()),
            destination: Destination::Cloud,
        },
        wave: Wave {
            id: "prod-01".into(),
            environment: "production".into(),
            opens: at("2026-01-20T06:00:00Z"),
            closes: at("2026-01-20T06:45:00Z"),
            estimate: Some(SignedDuration::from_mins(40)),
            notice: Some(days(30)),
            announced: Some(at("2025-12-15T09:00:00Z")),
            sequence: 0,
        },
        instances: vec![
            instance("acme-prod-1", "campaign-classic", "hosted"),
            instance("acme-prod-2", "campaign-classic", "hybrid"),
        ],
        contact: Contact {
            name: "Ada Löfgren".into(),
            email: "ada@acme.example".into(),
            language: language.into(),
            time_zone: time_zone.into(),
        },
        stages: vec![
            stage("staging", "2023-10-01T00:00:00Z", 7),
            stage("production", "2024-01-15T00:00:00Z", 30),
        ],
        scope: vec![
            scope("campaign-classic", "hosted"),
            scope("campaign-classic", "hybrid"),
            scope("campaign-managed", ""),
        ],
        issued: at("2025-12-15T09:30:00Z"),
    }
}

/// No more than a draft must have.
pub(crate) fn least(language: &str) -> Draft {
    Draft {
        program: Program {
            name: String::new(),
            provider: "Example Mail".into(),
            care: "care@example.net".into(),
            sender: None,
            reply_to: None,
            destination: Destination::Unnamed,
        },
        wave: Wave {
            id: "w1".into(),
            environment: String::new(),
            opens: at("2026-02-01T23:30:00Z"),
            closes: at("2026-02-02T00:35:00Z"),
            estimate: None,
            notice: None,
            announced: None,
            sequence: 1,
        },
        instances: vec![instance("acme", "", "")],
        contact: Contact {
            name: String::new(),
            email: "ada@acme.example".into(),
            language: language.into(),
            time_zone: "UTC".into(),
        },
        stages: Vec::new(),
        scope: Vec::new(),
        issued: at("2026-01-01T00:00:00Z"),
    }
}

pub(crate) fn notice(draft: &Draft) -> Notice {
    Notice::new(draft).unwrap()
}

/// The first line of the text whose label or words begin so, unwrapped to the next blank line.
pub(crate) fn paragraph(text: &str, start: &str) -> String {
    let lines = text.lines().skip_while(|line| !line.starts_with(start));
    let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).map(str::trim).collect();
    assert!(!lines.is_empty(), "no line begins with {start:?} in:\n{text}");
    lines.join(" ").replace('\u{a0}', " ")
}

/// The value of a row in the table of the window.
pub(crate) fn row(draft: &Draft, place: usize) -> String {
    let json: serde_json::Value = serde_json::from_str(&notice(draft).render_json()).unwrap();
    let value = &json["letter"]["sections"][0]["parts"][place]["value"];
    value.as_str().unwrap().replace('\u{a0}', " ")
}
