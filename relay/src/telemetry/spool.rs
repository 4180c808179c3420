//! What was promised, what became of it, and what waits: from one look at the queue. Floor 4.

use super::{
    families::{Families, distribution_ns, number},
    ledger::NONE,
};
use crate::{
    event::End,
    relay::Relay,
    scheduler::{Count, Figures},
    spool::SYNC_BOUNDS_NS,
};

/// One of the counts.
type Of = fn(&Figures) -> Count;

/// The states that a spooled message is counted in.
const STATES: [(&str, Of); 6] = [
    ("ready", |figures| figures.ready),
    ("blocked", |figures| figures.blocked),
    ("later", |figures| figures.later),
    ("held", |figures| figures.held),
    ("in_flight", |figures| figures.in_flight),
    ("in_doubt", |figures| figures.in_doubt),
];

/// Adds the families of the queue and the spool.
pub(super) fn collect(families: &mut Families, relay: &Relay) {
    let snapshot = relay.queue.snapshot();
    let all: Vec<_> = snapshot
        .instances
        .iter()
        .map(|(name, account, figures)| (name.as_deref().unwrap_or(NONE), account, figures))
        .collect();
    let mut family = families.counter(
        "wavegate_recipients_accepted_total",
        "Recipients that the sender was promised delivery of. Always equal to the sum of \
         wavegate_recipients_ended_total and wavegate_spool_recipients of the instance.",
    );
    for (name, account, _) in &all {
        family.count(&[("instance", name)], account.accepted());
    }
    let mut family = families.counter(
        "wavegate_recipients_ended_total",
        "Accepted recipients by what became of them. Kept over restarts.",
    );
    for (name, account, _) in &all {
        for end in End::ALL {
            let labels = [("instance", *name), ("end", end.as_str())];
            family.count(&labels, account.ended(end));
        }
    }
    let mut family = families.gauge(
        "wavegate_spool_recipients",
        "Recipients in the spool by what their message waits for: its turn (ready), a connection \
         or limit (blocked), a time to be tried again (later), a window, policy or operator \
         (held); or an attempt is under way (in_flight), or its late reply awaited (in_doubt).",
    );
    for (name, _, figures) in &all {
        for (state, count) in STATES {
            let labels = [("instance", *name), ("state", state)];
            family.value(&labels, number(count(figures).recipients));
        }
    }
    let mut family =
        families.gauge("wavegate_spool_messages", "Messages in the spool, by the same states.");
    for (name, _, figures) in &all {
        for (state, count) in STATES {
            let labels = [("instance", *name), ("state", state)];
            family.value(&labels, number(count(figures).messages));
        }
    }
    let mut family = families.gauge("wavegate_spool_bytes", "Bytes of the messages in the spool.");
    for (name, _, figures) in &all {
        family.value(&[("instance", name)], number(figures.bytes));
    }
    let mut family = families.gauge(
        "wavegate_spool_oldest_seconds",
        "Age of the oldest message in the spool; 0 without one.",
    );
    let now = relay.waves.now();
    for (name, _, figures) in &all {
        let age = figures.oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0));
        family.value(&[("instance", name)], number(age) / 1000.0);
    }
    families
        .gauge("wavegate_spool_all_held", "1 while an operator has everything held.")
        .value(&[], f64::from(u8::from(snapshot.all_held.is_some())));
    store(families, relay);
}

fn store(families: &mut Families, relay: &Relay) {
    let spool = relay.queue.spool();
    let usage = spool.usage();
    let stats = spool.stats();
    let mut gauge = |name: &str, help: &str, value: u64| {
        families.gauge(name, help).value(&[], number(value));
    };
    gauge("wavegate_spool_disk_bytes", "Bytes of all files of the spool.", usage.disk_bytes);
    gauge("wavegate_spool_quota_bytes", "Bytes that it may take (spool.quota).", usage.quota);
    gauge("wavegate_spool_disk_free_bytes", "Bytes free on its disk.", usage.free);
    gauge("wavegate_spool_segments", "Files of message bytes.", usage.segments);
    let failing = u64::from(spool.is_failing());
    gauge("wavegate_spool_failing", "1 while the spool cannot be written.", failing);
    families
        .counter("wavegate_spool_operations_total", "Changes written to the spool, in batches.")
        .count(&[], stats.operations);
    families
        .counter("wavegate_spool_failures_total", "Changes that could not be written at once.")
        .count(&[], stats.failures);
    let mut family = families
        .histogram("wavegate_spool_batch_seconds", "Time to write and sync one batch of changes.");
    family.distribution(&[], distribution_ns(&SYNC_BOUNDS_NS, &stats.seconds, stats.nanos));
}
