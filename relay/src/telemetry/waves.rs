//! Waves for monitors: what their status says, as figures. Floor 4.

use std::collections::BTreeMap;

use super::families::{Families, number};
use crate::conductor::status::{Drain, Status, WaveStatus};

/// Adds the families of waves.
pub(super) fn collect(families: &mut Families, status: &Status) {
    families
        .gauge(
            "wavegate_clock_suspect",
            "1 while wall clock and boot clock do not agree: nothing is released.",
        )
        .value(&[], f64::from(u8::from(status.clock_suspect)));
    families
        .gauge("wavegate_alerts", "Alerts of the relay itself that stand now.")
        .count(&[], status.alerts.len() as u64);
    let now = seconds(&status.now).unwrap_or(0.0);
    phases(families, status, now);
    freezing(families, status);
    held(families, status, now);
    drains(families, status, now);
}

fn phases(families: &mut Families, status: &Status, now: f64) {
    let mut family = families.gauge(
        "wavegate_wave_phase",
        "1 for the phase that the wave is in; its other phases have no sample.",
    );
    for wave in &status.waves {
        family.value(&[("wave", &wave.id), ("phase", &wave.phase)], 1.0);
    }
    let mut each = |name: &str, help: &str, of: &dyn Fn(&WaveStatus) -> Option<f64>| {
        let mut family = families.gauge(name, help);
        for wave in &status.waves {
            if let Some(value) = of(wave) {
                family.value(&[("wave", &wave.id)], value);
            }
        }
    };
    each(
        "wavegate_wave_opens_seconds",
        "Seconds until the window opens, by the relay's clock; below 0 afterwards.",
        &|wave| Some(seconds(&wave.opens)? - now),
    );
    each(
        "wavegate_wave_closes_seconds",
        "Seconds until the window closes, extensions included; below 0 afterwards.",
        &|wave| Some(seconds(&wave.closes)? - now),
    );
    each("wavegate_wave_extended_seconds", "By how much the window was extended.", &|wave| {
        Some(number(wave.extended_ms) / 1000.0)
    });
}

/// From the freeze to the barrier, and the probes behind it.
fn freezing(families: &mut Families, status: &Status) {
    let mut family = families.gauge(
        "wavegate_wave_barrier",
        "1 from when nothing of the frozen wave was in flight any more.",
    );
    for wave in &status.waves {
        let reached = u8::from(wave.barrier_at.is_some());
        family.value(&[("wave", &wave.id)], f64::from(reached));
    }
    let mut family = families.gauge(
        "wavegate_wave_barrier_seconds",
        "Time from the beginning of freezing to the barrier; no sample before it.",
    );
    for wave in &status.waves {
        let took = || Some(time(&wave.barrier_at)? - time(&wave.frozen_at)?);
        if let Some(took) = took() {
            family.value(&[("wave", &wave.id)], took);
        }
    }
    let mut family = families.gauge(
        "wavegate_wave_blocked_attempts",
        "Attempts that keep a wave that freezes from its barrier.",
    );
    for wave in &status.waves {
        let stuck =
            wave.blocked.iter().map(|one| u64::from(one.uncommitted) + u64::from(one.in_doubt));
        family.count(&[("wave", &wave.id)], stuck.sum());
    }
    let mut family = families.gauge(
        "wavegate_wave_probe_ok",
        "1 where the last probe of the target went well for every instance of the wave.",
    );
    for wave in &status.waves {
        let mut targets: BTreeMap<(&str, &str), bool> = BTreeMap::new();
        for probe in &wave.probes {
            *targets.entry((&probe.upstream, &probe.target)).or_insert(true) &= probe.ok;
        }
        for ((upstream, target), ok) in targets {
            let labels = [("wave", &*wave.id), ("upstream", upstream), ("target", target)];
            family.value(&labels, f64::from(u8::from(ok)));
        }
    }
    let mut family = families
        .counter("wavegate_wave_leaked_total", "Messages that left in the window. Always 0.");
    for wave in &status.waves {
        family.count(&[("wave", &wave.id)], wave.leaked);
    }
}

fn held(families: &mut Families, status: &Status, now: f64) {
    let mut family = families.gauge("wavegate_wave_held_messages", "Messages that wait for it.");
    for wave in &status.waves {
        family.count(&[("wave", &wave.id)], wave.held.messages);
    }
    let mut family = families.gauge("wavegate_wave_held_bytes", "Their bytes.");
    for wave in &status.waves {
        family.count(&[("wave", &wave.id)], wave.held.bytes);
    }
    let mut family =
        families.gauge("wavegate_wave_oldest_seconds", "Age of the oldest of them; 0 without one.");
    for wave in &status.waves {
        let age = time(&wave.held.oldest).map_or(0.0, |oldest| (now - oldest).max(0.0));
        family.value(&[("wave", &wave.id)], age);
    }
}

fn drains(families: &mut Families, status: &Status, now: f64) {
    let drains = || status.waves.iter().filter_map(|wave| Some((wave, wave.drain.as_ref()?)));
    let mut each = |name: &str, help: &str, of: &dyn Fn(&Drain) -> Option<f64>| {
        let mut family = families.gauge(name, help);
        for (wave, drain) in drains() {
            if let Some(value) = of(drain) {
                family.value(&[("wave", &wave.id)], value);
            }
        }
    };
    each(
        "wavegate_wave_drain_messages",
        "Messages that were held when the release began.",
        &|one| Some(number(one.total)),
    );
    each("wavegate_wave_drain_left_messages", "Of these, the ones that are still here.", &|one| {
        Some(number(one.left))
    });
    each("wavegate_wave_drain_rate", "Messages a second that the release lets out.", &|one| {
        Some(one.rate)
    });
    each(
        "wavegate_wave_drain_ends_seconds",
        "Seconds until it is done at this rate; no sample while nobody can say.",
        &|one| Some((time(&one.ends)? - now).max(0.0)),
    );
}

fn seconds(text: &str) -> Option<f64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.as_millisecond() as f64 / 1000.0)
}

fn time(text: &Option<String>) -> Option<f64> {
    text.as_deref().and_then(seconds)
}
