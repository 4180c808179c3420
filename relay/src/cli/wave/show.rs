//! What operators see of waves: tables that can be read at three in the morning.

use std::io::{self, Write};

use jiff::{Timestamp, tz::TimeZone};

use crate::{
    cli::output::{age, clean, count, field, table},
    conductor::status::{Alert, Drain, Held, Status, WaveStatus},
};

/// All waves of a host.
pub(super) fn list(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    head(out, status)?;
    if status.waves.is_empty() {
        return writeln!(out, "no waves");
    }
    let names = ["WAVE", "PHASE", "OPENS", "CLOSES", "BARRIER", "HELD", "DRAIN", "LEAKED"];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    rows.extend(status.waves.iter().map(|wave| row(status, wave)));
    table(out, &rows)
}

/// Whose status it is, and what somebody should know before anything else.
fn head(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let Status { host, now, plan, generation, .. } = status;
    let digest = if plan.digest.is_empty() { "-" } else { &plan.digest };
    writeln!(out, "{host}  {}  plan {digest}  generation {generation}", when(now))?;
    if status.clock_suspect {
        writeln!(
            out,
            "CLOCK SUSPECT: wall clock and boot clock do not agree; nothing is released until they \
             do, or until `wavegate wave release`"
        )?;
    }
    if let Some(reason) = &status.held_all {
        writeln!(out, "EVERYTHING IS HELD: {} (wavegate release-all ends it)", clean(reason))?;
    }
    status.alerts.iter().try_for_each(|one| alert(out, one, None))?;
    writeln!(out)
}

/// One alert, of a host where there are several.
pub(super) fn alert(out: &mut dyn Write, alert: &Alert, host: Option<&str>) -> io::Result<()> {
    let Alert { since, wave, text } = alert;
    let host = host.map_or(String::new(), |host| format!(" on {host}"));
    let wave = wave.as_ref().map_or(String::new(), |wave| format!(" wave {wave}"));
    writeln!(out, "ALERT{host}{wave} since {}: {}", when(since), clean(text))
}

fn row(status: &Status, wave: &WaveStatus) -> Vec<String> {
    let leaked = match wave.leaked {
        0 => "0".to_owned(),
        some => format!("{some} LEAKED"),
    };
    vec![
        wave.id.clone(),
        phase(wave, &status.now),
        short(&wave.opens),
        format!("{}{}", short(&wave.closes), extended(wave)),
        barrier(wave),
        held(&wave.held),
        wave.drain.as_ref().map_or("-".to_owned(), drain),
        leaked,
    ]
}

/// The phase, and how long until the next one that time brings about.
fn phase(wave: &WaveStatus, now: &str) -> String {
    let until = |time: &str| match seconds_between(now, time) {
        Some(left @ 0..) => format!("in {}", age(left.unsigned_abs())),
        Some(late) => format!("{} ago", age(late.unsigned_abs())),
        None => "?".to_owned(),
    };
    let phase = &wave.phase;
    match phase.as_str() {
        "unscheduled" | "scheduled" | "freezing" => {
            format!("{phase}, opens {}", until(&wave.opens))
        }
        "frozen" | "checked" if wave.release == "on-complete" => {
            format!("{phase}, until completed")
        }
        "frozen" | "checked" => format!("{phase}, closes {}", until(&wave.closes)),
        _ => phase.clone(),
    }
}

fn extended(wave: &WaveStatus) -> String {
    match wave.extended_ms {
        0 => String::new(),
        ms => format!(" (+{})", age(ms / 1000)),
    }
}

/// Whether and how soon nothing was in flight any more.
fn barrier(wave: &WaveStatus) -> String {
    let took = match (&wave.frozen_at, &wave.barrier_at) {
        (Some(from), Some(to)) => seconds_between(from, to),
        _ => None,
    };
    match (&wave.barrier_at, took, wave.blocked.as_slice()) {
        (Some(_), Some(took), _) => format!("after {}", age(took.unsigned_abs())),
        (Some(at), None, _) => short(at),
        (None, _, []) => "-".to_owned(),
        (None, _, stuck) => format!("BLOCKED by {}", count(stuck.len(), "instance")),
    }
}

/// What waits.
pub(super) fn held(held: &Held) -> String {
    match held.messages {
        0 => "-".to_owned(),
        messages => format!("{messages}, {}", bytes(held.bytes)),
    }
}

/// How far a release has come.
pub(super) fn drain(drain: &Drain) -> String {
    let Drain { total, left, rate, ends } = drain;
    let done = total.saturating_sub(*left);
    let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
    let ends = match (left, ends) {
        (0, _) => String::new(),
        (_, Some(ends)) => format!(", {rate:.0}/s, done {}", short(ends)),
        (_, None) => format!(", {rate:.0}/s"),
    };
    format!("{percent}% of {total}{ends}")
}

/// Everything about one wave.
pub(super) fn wave(out: &mut dyn Write, status: &Status, wave: &WaveStatus) -> io::Result<()> {
    head(out, status)?;
    writeln!(out, "{}", wave.id)?;
    let or_dash = |time: &Option<String>| time.as_deref().map_or("-".to_owned(), when);
    field(out, "phase", phase(wave, &status.now))?;
    if !wave.environment.is_empty() {
        field(out, "environment", &wave.environment)?;
    }
    field(out, "announced", or_dash(&wave.announced_at))?;
    field(out, "opens", when(&wave.opens))?;
    field(out, "closes", format!("{}{}", when(&wave.closes), extended(wave)))?;
    if wave.planned_closes != wave.closes {
        field(out, "planned", when(&wave.planned_closes))?;
    }
    field(out, "release", &wave.release)?;
    field(out, "frozen", or_dash(&wave.frozen_at))?;
    field(out, "barrier", format!("{}  {}", or_dash(&wave.barrier_at), barrier(wave)))?;
    for (at, stuck) in wave.blocked.iter().enumerate() {
        let label = if at == 0 { "blocked by" } else { "" };
        let of =
            format!("{} before their end of data, {} in doubt", stuck.uncommitted, stuck.in_doubt);
        field(out, label, format!("{}: {of}", stuck.instance))?;
    }
    for (at, probe) in wave.probes.iter().enumerate() {
        let label = if at == 0 { "probes" } else { "" };
        let what = match &probe.error {
            _ if probe.ok => "well".to_owned(),
            Some(error) => format!("FAILED: {}", clean(error)),
            None => "FAILED".to_owned(),
        };
        let who = format!("{} {} for {}", probe.upstream, probe.target, probe.instance);
        field(out, label, format!("{who}: {what}, {}", when(&probe.at)))?;
    }
    field(out, "released", or_dash(&wave.released_at))?;
    let oldest =
        wave.held.oldest.as_ref().map_or(String::new(), |time| format!(", oldest {}", when(time)));
    field(out, "held", format!("{}{oldest}", held(&wave.held)))?;
    field(out, "drain", wave.drain.as_ref().map_or("-".to_owned(), drain))?;
    field(out, "leaked", wave.leaked)?;
    field(out, "ended", or_dash(&wave.ended_at))?;
    for (at, instance) in wave.instances.iter().enumerate() {
        let label = if at == 0 { "instances" } else { "" };
        let of = held(&instance.held);
        field(out, label, format!("{}  {}  {of}", instance.name, instance.phase))?;
    }
    Ok(())
}

fn seconds_between(from: &str, to: &str) -> Option<i64> {
    let of = |text: &str| text.parse::<Timestamp>().ok();
    Some(of(to)?.duration_since(of(from)?).as_secs())
}

/// A time in UTC, and where this machine's clock shows another, that too.
pub(super) fn when(text: &str) -> String {
    both(text, "%Y-%m-%d %H:%M:%SZ", "%H:%M:%S", &TimeZone::system())
}

/// The same to the minute.
fn short(text: &str) -> String {
    both(text, "%Y-%m-%d %H:%MZ", "%H:%M", &TimeZone::system())
}

fn both(text: &str, utc: &str, local: &str, zone: &TimeZone) -> String {
    let Ok(time) = text.parse::<Timestamp>() else { return clean(text) };
    let shown = time.strftime(utc).to_string();
    let here = time.to_zoned(zone.clone());
    if here.offset().is_zero() {
        return shown;
    }
    let there = time.to_zoned(TimeZone::UTC);
    let day = if here.date() == there.date() { "" } else { "%a " };
    format!("{shown} ({})", here.strftime(&format!("{day}{local} %Z")))
}

/// Bytes, as people say them.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::conductor::status::{PlanStatus, Stuck};

    #[test]
    fn times_are_in_utc_and_local() {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let of = |text: &str, zone: &TimeZone| both(text, "%Y-%m-%d %H:%MZ", "%H:%M", zone);
        assert_eq!(of("2026-01-20T06:00:00.123Z", &zone), "2026-01-20 06:00Z (07:00 +01)");
        assert_eq!(of("2026-01-20T23:30:00Z", &zone), "2026-01-20 23:30Z (Wed 00:30 +01)");
        assert_eq!(of("2026-01-20T06:00:00Z", &TimeZone::UTC), "2026-01-20 06:00Z");
        assert_eq!(of("\u{1b}[2J", &zone), "?[2J");
    }

    fn wave_of(phase: &str) -> WaveStatus {
        WaveStatus {
            id: format!("{phase}-01"),
            phase: phase.into(),
            opens: "2026-01-20T06:00:00Z".into(),
            closes: "2026-01-20T07:00:00Z".into(),
            planned_closes: "2026-01-20T06:45:00Z".into(),
            extended_ms: 900_000,
            release: "at-close".into(),
            ..WaveStatus::default()
        }
    }

    #[test]
    fn a_list_says_what_matters() {
        let stuck = Stuck { instance: "acme".into(), uncommitted: 0, in_doubt: 2 };
        let drain = Drain { total: 1000, left: 250, rate: 12.4, ends: None };
        let held = Held { messages: 1204, bytes: 12_000_000, oldest: None };
        let frozen_at = Some("2026-01-20T05:59:00Z".to_owned());
        let status = Status {
            host: "edge-1".into(),
            now: "2026-01-20T06:10:00Z".into(),
            plan: PlanStatus { digest: "1f2e".into(), ..PlanStatus::default() },
            clock_suspect: true,
            held_all: Some("fire\u{7}".into()),
            alerts: vec![Alert {
                since: "2026-01-20T06:05:00Z".into(),
                wave: Some("w".into()),
                text: "look".into(),
            }],
            waves: vec![
                wave_of("scheduled"),
                WaveStatus { held, blocked: vec![stuck], ..wave_of("frozen") },
                WaveStatus {
                    barrier_at: Some("2026-01-20T05:59:04Z".into()),
                    frozen_at,
                    drain: Some(drain),
                    leaked: 1,
                    ..wave_of("releasing")
                },
            ],
            ..Status::default()
        };
        let mut out = Vec::new();
        list(&mut out, &status).unwrap();
        let text = String::from_utf8(out).unwrap();
        for words in [
            "edge-1  2026-01-20 06:10:00Z",
            "plan 1f2e",
            "CLOCK SUSPECT",
            "EVERYTHING IS HELD: fire? ",
            "ALERT wave w since 2026-01-20 06:05:00Z",
            "scheduled, opens 10m ago",
            "frozen, closes in 50m",
            "(+15m)",
            "BLOCKED by 1 instance",
            "1204, 12 MB",
            "after 4s",
            "75% of 1000, 12/s",
            "1 LEAKED",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        let mut out = Vec::new();
        wave(&mut out, &status, &status.waves[1]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("blocked by  acme: 0 before their end of data, 2 in doubt"),
            "{text}"
        );
        assert!(text.contains("planned     2026-01-20 06:45:00Z"), "{text}");
    }
}
