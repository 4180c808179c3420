//! Statuses to look at: each phase, none, many, and names that nobody should have.

use jiff::{SignedDuration, Timestamp};

use crate::conductor::status::{
    Alert, Drain, Held, InstanceStatus, PlanStatus, ProbeStatus, Status, Stuck, UpstreamStatus,
    WaveStatus,
};

pub(super) const EVIL: &str = "<img src=x onerror=\"window.pwned=1;document.title='pwned'\">";

/// Seconds before or after the moment of all these.
fn at(seconds: i64) -> String {
    let now: Timestamp = "2026-01-20T06:23:10Z".parse().unwrap();
    format!("{:.3}", now + SignedDuration::from_secs(seconds))
}

fn minutes(minutes: i64) -> String {
    at(60 * minutes)
}

fn held(messages: u64, minutes_old: i64) -> Held {
    Held { messages, bytes: messages * 24_000, oldest: Some(minutes(-minutes_old)) }
}

fn status(waves: Vec<WaveStatus>) -> Status {
    let error = "10.20.0.4:25: connection timed out".to_owned();
    let upstream = |name: &str, targets, healthy, waiting, last_error| UpstreamStatus {
        name: name.to_owned(),
        targets,
        healthy,
        in_use: 14,
        waiting,
        answered: 1000,
        last_error,
    };
    Status {
        host: "relay-01.example.net".to_owned(),
        version: "0.1.0".to_owned(),
        now: at(0),
        plan: PlanStatus {
            digest: "8f14e45fceea167a".to_owned(),
            file: Some("/etc/wavegate/waves.toml".to_owned()),
            program: Some("Sending infrastructure upgrade".to_owned()),
        },
        generation: 7,
        waves,
        upstreams: vec![
            upstream("cloud", 4, 3, 12, Some(error)),
            upstream("legacy", 2, 2, 0, None),
        ],
        ..Status::default()
    }
}

/// A wave of four instances, its window in minutes from now.
fn wave(id: &str, phase: &str, opens: i64, closes: i64) -> WaveStatus {
    let instance = |number| InstanceStatus {
        name: format!("{id}-{number}"),
        phase: phase.to_owned(),
        held: Held::default(),
    };
    WaveStatus {
        id: id.to_owned(),
        environment: "production".to_owned(),
        phase: phase.to_owned(),
        opens: minutes(opens),
        closes: minutes(closes),
        planned_closes: minutes(closes),
        announced_at: Some(minutes(opens - 31 * 24 * 60)),
        release: "at-close".to_owned(),
        instances: (1..=4).map(instance).collect(),
        ..WaveStatus::default()
    }
}

/// One whose freezing began a minute before it opened.
fn frozen(id: &str, phase: &str, opens: i64, closes: i64, held: Held) -> WaveStatus {
    let began = at(60 * (opens - 1));
    let barrier = began.replace(".000Z", ".600Z");
    WaveStatus {
        frozen_at: Some(began),
        barrier_at: Some(barrier),
        held,
        ..wave(id, phase, opens, closes)
    }
}

fn probes(id: &str, failed: usize) -> Vec<ProbeStatus> {
    let error = "RCPT TO: 550 5.7.1 sender not provisioned".to_owned();
    let probe = |number| ProbeStatus {
        instance: format!("{id}-{number}"),
        upstream: "cloud".to_owned(),
        target: format!("10.20.0.{number}:25"),
        ok: number > failed,
        error: (number <= failed).then(|| error.clone()),
        at: minutes(-3),
    };
    (1..=4).map(probe).collect()
}

fn extended(wave: WaveStatus, by_minutes: i64) -> WaveStatus {
    let closes: Timestamp = wave.closes.parse().unwrap();
    let planned = closes - SignedDuration::from_mins(by_minutes);
    let extended_ms = u64::try_from(by_minutes).unwrap() * 60_000;
    WaveStatus { planned_closes: format!("{planned:.3}"), extended_ms, ..wave }
}

fn over(id: &str, phase: &str, opens: i64, closes: i64) -> WaveStatus {
    let drain = Drain { total: 8123, left: 0, rate: 0.0, ends: None };
    WaveStatus {
        probes: probes(id, usize::from(phase == "rolled-back")),
        released_at: Some(minutes(closes)),
        ended_at: Some(minutes(closes + 6)),
        drain: Some(drain),
        ..frozen(id, phase, opens, closes, Held::default())
    }
}

fn releasing(id: &str) -> WaveStatus {
    let drain = Drain { total: 15_230, left: 5120, rate: 42.3, ends: Some(minutes(2)) };
    WaveStatus {
        probes: probes(id, 0),
        released_at: Some(minutes(-5)),
        drain: Some(drain),
        ..frozen(id, "releasing", -50, -5, held(5120, 48))
    }
}

fn blocked(id: &str) -> WaveStatus {
    let stuck = |number, uncommitted, in_doubt| Stuck {
        instance: format!("{id}-{number}"),
        uncommitted,
        in_doubt,
    };
    WaveStatus {
        barrier_at: None,
        frozen_at: Some(at(-30)),
        blocked: vec![stuck(1, 0, 2), stuck(2, 1, 0)],
        ..frozen(id, "freezing", 1, 46, held(73, 1))
    }
}

/// Two seconds pass from one to the next, in which one upstream answers 42 messages a second.
pub(super) fn answering(asked: u32) -> Status {
    let mut status = status(Vec::new());
    status.now = at(2 * i64::from(asked));
    status.upstreams[0].answered += 84 * u64::from(asked);
    status
}

pub(super) fn none() -> Status {
    let plan = PlanStatus { digest: "8f14e45fceea167a".to_owned(), ..PlanStatus::default() };
    Status { plan, ..status(Vec::new()) }
}

pub(super) fn one() -> Status {
    status(vec![frozen("prod-02", "frozen", -23, 22, held(12_345, 24))])
}

pub(super) fn three() -> Status {
    status(vec![
        over("prod-01", "migrated", -83, -38),
        frozen("prod-02", "frozen", -23, 22, held(12_345, 24)),
        wave("prod-03", "scheduled", 97, 142),
    ])
}

pub(super) fn three_later() -> Status {
    let mut later = three();
    later.waves[1] = releasing("prod-02");
    later
}

/// Every phase, and everything that can be wrong.
pub(super) fn phases() -> Status {
    let on_complete = WaveStatus {
        release: "on-complete".to_owned(),
        probes: probes("prod-05", 0),
        ..frozen("prod-05", "checked", -60, -15, held(220, 61))
    };
    let by_hand = WaveStatus {
        environment: String::new(),
        announced_at: None,
        ..frozen("freeze-acme-prod-1-0610", "frozen", -13, 17, held(12, 12))
    };
    let failing = WaveStatus {
        probes: probes("prod-04", 2),
        ..frozen("prod-04", "frozen", -50, 10, held(22_120, 51))
    };
    let checked = WaveStatus {
        probes: probes("prod-03", 0),
        ..frozen("prod-03", "checked", -35, 25, held(8120, 36))
    };
    let alert = |minutes_old: i64, wave: &str, text: &str| Alert {
        since: minutes(-minutes_old),
        wave: Some(wave.to_owned()),
        text: text.to_owned(),
    };
    Status {
        clock_suspect: true,
        held_all: Some("operator: incident 4711".to_owned()),
        alerts: vec![
            alert(40, "prod-04", "probes of 2 of 4 targets fail: look at them, then complete"),
            alert(1, "prod-07", "the barrier is not reached: 3 attempts are in flight"),
        ],
        ..status(vec![
            wave("prod-09", "scheduled", 97, 142),
            blocked("prod-07"),
            frozen("prod-02", "frozen", -23, 22, held(12_345, 24)),
            extended(checked, 15),
            extended(failing, 30),
            on_complete,
            releasing("prod-06"),
            over("prod-01", "migrated", -190, -145),
            over("prod-00", "rolled-back", -300, -250),
            by_hand,
            wave("odd", "__proto__", -10, 20),
        ])
    }
}

/// A third of them is over, one stands, the rest is to come: one every hour.
pub(super) fn many(count: i64) -> Status {
    let waves = (0..count).map(|number| {
        let opens = 60 * (number - count / 3) - 20;
        let id = format!("prod-{number:04}");
        match number - count / 3 {
            ..0 if number % 16 == 3 => over(&id, "rolled-back", opens, opens + 45),
            ..0 => over(&id, "migrated", opens, opens + 45),
            0 => frozen(&id, "frozen", opens, opens + 45, held(9120, 20)),
            _ => wave(&id, "scheduled", opens, opens + 45),
        }
    });
    status(waves.collect())
}

/// Names that nobody should have, and everybody can.
pub(super) fn hostile() -> Status {
    let long = "W".repeat(500);
    let mut evil = WaveStatus {
        environment: "<script>window.pwned=1</script>".to_owned(),
        probes: probes(EVIL, 4),
        ..frozen(EVIL, "frozen", -20, 25, held(5, 3))
    };
    evil.probes[0].target = long.clone();
    evil.probes[1].error = Some(EVIL.repeat(10));
    evil.instances[1].name = "\u{202e}gnp.exe".to_owned();
    evil.instances[2].name = long.clone();
    Status {
        host: EVIL.to_owned(),
        plan: PlanStatus {
            digest: EVIL.to_owned(),
            file: Some("p".repeat(500)),
            program: Some(format!("{EVIL}{long}")),
        },
        held_all: Some(EVIL.to_owned()),
        alerts: vec![Alert {
            since: minutes(-2),
            wave: Some(EVIL.to_owned()),
            text: format!("{EVIL}{long}"),
        }],
        upstreams: vec![UpstreamStatus {
            name: EVIL.to_owned(),
            targets: 3,
            last_error: Some(long.clone()),
            ..UpstreamStatus::default()
        }],
        ..status(vec![
            evil,
            WaveStatus { id: long, ..blocked(&"Q".repeat(500)) },
            releasing("\u{5d2}\u{5dc} \u{5d0}\u{5d7}\u{5d3} (prod)"),
            wave("\u{202e}gnp.exe", "scheduled", 40, 90),
            wave("__proto__", "constructor", 60, 90),
            wave("twice", "scheduled", 60, 90),
            wave("twice", "scheduled", 70, 90),
        ])
    }
}
