//! One scrape: everything that is counted anywhere, as text. Floor 4.

use std::sync::atomic::Ordering::Relaxed;

use prometheus::core::Metric;
use wavegate_smtp::MessageFault;

use super::{
    Telemetry,
    families::{Families, distribution_ns, number},
    identity, links, process, shadows, spool, waves,
};
use crate::{
    budget::Use,
    event::{Busy, Ended, Outcome, Refused},
    event_log::EventLog,
    policy::{FailureKind, PolicyStats, TIME_BUCKETS_NS},
    relay::{Generation, Relay},
    rollout::Stage,
    upstream::UpstreamStatus,
};

/// The content type of what [`Telemetry::render`] gives.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Telemetry {
    /// The content type of what `render` gives.
    pub const CONTENT_TYPE: &'static str = CONTENT_TYPE;

    /// All metrics in the text format of Prometheus, read in one pass. With thousands of
    /// instances it takes tens of milliseconds: call it off the runtime that carries mail.
    pub fn render(&self, relay: &Relay) -> String {
        let generation = relay.generation();
        self.know(&generation.config);
        let mut families = Families::default();
        self.accounts_of_instances(&mut families);
        spool::collect(&mut families, relay);
        instances(&mut families, relay);
        if let Some(source) = self.waves.get() {
            waves::collect(&mut families, &source());
        }
        self.handoff(&mut families);
        upstreams(&mut families, &generation);
        links::collect(&mut families, &relay.links());
        self.sessions(&mut families);
        self.tls(&mut families, &generation);
        identity::collect(&mut families, &generation);
        policies(&mut families, relay);
        shadows::collect(&mut families, relay);
        self.rollouts(&mut families);
        shared(&mut families, relay);
        self.generations(&mut families, &generation);
        self.event_log(&mut families);
        self.decision_log(&mut families);
        process::collect(&mut families);
        families.text()
    }

    fn accounts_of_instances(&self, families: &mut Families) {
        let ledgers = self.instances.all();
        let all: Vec<_> =
            ledgers.iter().map(|(name, ledger)| (&**name, ledger.account(), ledger)).collect();
        let mut family = families.counter(
            "wavegate_recipients_received_total",
            "Recipients of messages received whole. Always equal to the sum of \
             wavegate_recipients_total and wavegate_recipients_in_flight of the instance.",
        );
        for (name, account, _) in &all {
            family.count(&[("instance", name)], account.received);
        }
        let mut family = families.counter(
            "wavegate_recipients_total",
            "Recipients by what became of them: only delivered ones were taken from the sender; \
             of those in doubt the upstream's reply was lost.",
        );
        for (name, account, _) in &all {
            for outcome in Outcome::ALL {
                let labels = [("instance", *name), ("outcome", outcome.as_str())];
                family.count(&labels, account.outcome(outcome));
            }
        }
        let mut family = families.gauge(
            "wavegate_recipients_in_flight",
            "Recipients received whose client has no reply yet.",
        );
        for (name, account, _) in &all {
            family.value(&[("instance", name)], account.in_flight() as f64);
        }
        let mut family =
            families.counter("wavegate_messages_received_total", "Messages received whole.");
        for (name, account, _) in &all {
            family.count(&[("instance", name)], account.messages);
        }
        let mut family = families
            .counter("wavegate_received_bytes_total", "Bytes of the messages received whole.");
        for (name, account, _) in &all {
            family.count(&[("instance", name)], account.bytes);
        }
        let mut family = families.counter(
            "wavegate_in_doubt_total",
            "Attempts whose end of data was written and whose reply was lost: the message may \
             arrive twice.",
        );
        for (name, _, ledger) in &all {
            family.count(&[("instance", name)], ledger.in_doubt.load(Relaxed));
        }
        let mut family = families.counter(
            "wavegate_proceed_against_plan_total",
            "Messages of a frozen instance that a policy would have let go; they were held.",
        );
        for (name, _, ledger) in &all {
            family.count(&[("instance", name)], ledger.against_plan.load(Relaxed));
        }
    }

    fn rollouts(&self, families: &mut Families) {
        let state = self.rollouts.get().map(|store| store.state()).unwrap_or_default();
        let mut family = families.gauge(
            "wavegate_plugin_rollout_stage",
            "1 for the stage that the latest roll-out of the policy is in; its other stages have no \
             sample.",
        );
        for (policy, entry) in &state.policies {
            if let Some(rollout) = &entry.rollout {
                let labels = [("policy", &**policy), ("stage", rollout.stage.as_str())];
                family.value(&labels, 1.0);
            }
        }
        let mut family = families.counter(
            "wavegate_plugin_rollout_stages_total",
            "Stages that roll-outs of plugins came to.",
        );
        for (stage, count) in Stage::ALL.iter().zip(&self.stages) {
            family.count(&[("stage", stage.as_str())], count.load(Relaxed));
        }
    }

    fn event_log(&self, families: &mut Families) {
        let (written, lost) = self.events.get().map_or((0, 0), EventLog::counts);
        families
            .counter("wavegate_event_log_lines_total", "Lines of the event log written.")
            .count(&[], written);
        families
            .counter(
                "wavegate_event_log_lost_total",
                "Lines of the event log left out: it could not keep up, or not be written.",
            )
            .count(&[], lost);
    }

    fn decision_log(&self, families: &mut Families) {
        let (written, lost) = self.decisions.get().map_or((0, 0), |log| log.counts());
        families
            .counter("wavegate_decision_log_calls_total", "Calls of policies in the decision log.")
            .count(&[], written);
        families
            .counter(
                "wavegate_decision_log_lost_total",
                "Calls left out of the decision log: it could not keep up, or not be written.",
            )
            .count(&[], lost);
    }

    fn handoff(&self, families: &mut Families) {
        let all = self.upstreams.all();
        families
            .histogram("wavegate_gate_seconds", "Time in the gate, policies included.")
            .distribution(&[], self.gate.metric().get_histogram().clone());
        let mut family = families.histogram(
            "wavegate_handoff_seconds",
            "Time from the end of data to the reply to the client, by upstream; (none) never got \
             a route.",
        );
        for (name, counts) in &all {
            let distribution = counts.handoff.metric().get_histogram().clone();
            family.distribution(&[("upstream", name)], distribution);
        }
        let mut family = families.counter(
            "wavegate_upstream_recipients_total",
            "Recipients by the upstream they went or were to go to, and by what became of them.",
        );
        for (name, counts) in &all {
            for outcome in Outcome::ALL {
                let labels = [("upstream", &**name), ("outcome", outcome.as_str())];
                family.count(&labels, counts.outcome(outcome));
            }
        }
        let mut family = families.counter(
            "wavegate_attempts_retried_total",
            "Attempts abandoned before their end of data and made again.",
        );
        for (name, counts) in &all {
            family.count(&[("upstream", name)], counts.retried.load(Relaxed));
        }
        let mut family = families.counter(
            "wavegate_upstream_recipients_verified_total",
            "Recipients that an upstream was asked about before they were answered.",
        );
        for (name, counts) in &all {
            let verified = &counts.verified;
            let results = [
                ("taken", &verified.taken),
                ("refused", &verified.refused),
                ("unanswered", &verified.unanswered),
            ];
            for (result, count) in results {
                family.count(&[("upstream", name), ("result", result)], count.load(Relaxed));
            }
        }
    }

    fn sessions(&self, families: &mut Families) {
        let all = self.listeners.all();
        let mut family =
            families.gauge("wavegate_listener_up", "1 while the listener's socket is bound.");
        for (name, counts) in &all {
            let up = counts.sockets.load(Relaxed) > 0;
            family.value(&[("listener", name)], f64::from(u8::from(up)));
        }
        let mut family =
            families.gauge("wavegate_connections", "Connections of clients that are open.");
        for (name, counts) in &all {
            family.value(&[("listener", name)], counts.connections.load(Relaxed) as f64);
        }
        let mut family =
            families.counter("wavegate_connections_total", "Connections of clients taken.");
        for (name, counts) in &all {
            family.count(&[("listener", name)], counts.opened.load(Relaxed));
        }
        let mut family =
            families.counter("wavegate_connections_refused_total", "Clients turned away at once.");
        for reason in Refused::ALL {
            let value = self.refused[reason as usize].load(Relaxed);
            family.count(&[("reason", reason.as_str())], value);
        }
        let mut family = families.counter(
            "wavegate_transactions_refused_total",
            "Messages and recipients that were refused for now before their first byte.",
        );
        for reason in Busy::ALL {
            let value = self.busy[reason as usize].load(Relaxed);
            family.count(&[("reason", reason.as_str())], value);
        }
        let mut family =
            families.counter("wavegate_sessions_ended_total", "Sessions that the relay ended.");
        for reason in Ended::ALL {
            let value = self.ended[reason as usize].load(Relaxed);
            family.count(&[("reason", reason.as_str())], value);
        }
        let mut family = families.counter(
            "wavegate_messages_rejected_total",
            "Messages refused at their end because the protocol forbids them.",
        );
        for fault in MessageFault::ALL {
            let value = self.rejected[fault as usize].load(Relaxed);
            family.count(&[("reason", fault.as_str())], value);
        }
        let mut family = families.counter(
            "wavegate_replies_lost_total",
            "Replies that could not be given to the client; a delivered message may arrive twice.",
        );
        family.count(&[("delivered", "true")], self.replies_lost_delivered.load(Relaxed));
        family.count(&[("delivered", "false")], self.replies_lost.load(Relaxed));
        families
            .counter("wavegate_session_panics_total", "Sessions ended by a panic: a bug.")
            .count(&[], self.panics.load(Relaxed));
        families
            .counter("wavegate_log_lines_suppressed_total", "Log lines left out of floods.")
            .count(&[], self.log.suppressed());
    }

    fn generations(&self, families: &mut Families, generation: &Generation) {
        families
            .gauge("wavegate_generation", "Number of the generation in force.")
            .value(&[], number(generation.number));
        let mut family = families.counter(
            "wavegate_reloads_total",
            "Generations put in force or refused since the start.",
        );
        family.count(&[("result", "done")], self.reloads.load(Relaxed));
        family.count(&[("result", "refused")], self.reloads_refused.load(Relaxed));
        families
            .gauge(
                "wavegate_reload_last_success_timestamp_seconds",
                "Time when the generation in force was taken, in seconds since 1970.",
            )
            .value(&[], number(self.last_reload.load(Relaxed)) / 1000.0);
        families
            .gauge(
                "wavegate_reload_last_successful",
                "0 while the configuration on disk was refused and an older one is in force.",
            )
            .value(&[], f64::from(u8::from(self.last_reload_good.load(Relaxed))));
        families
            .gauge("wavegate_build_info", "1, with the version of the relay.")
            .value(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    }
}

/// Phases, windows and the registry of attempts.
fn instances(families: &mut Families, relay: &Relay) {
    let now = relay.waves.now();
    let state = relay.waves.current();
    let plan = &state.plan;
    let all: Vec<_> = (0..plan.instances.len())
        .map(|index| (&plan.instances[index], state.instance(index).status(now), plan.wave(index)))
        .collect();
    let mut family = families.gauge(
        "wavegate_instance_info",
        "1, with what the plan says of the instance; no wave is empty.",
    );
    for (instance, _, wave) in &all {
        let labels = [
            ("instance", &*instance.name),
            ("product", &*instance.product),
            ("environment", &*instance.environment),
            ("wave", wave.map_or("", |wave| &wave.window.wave)),
        ];
        family.value(&labels, 1.0);
    }
    let mut family = families.gauge(
        "wavegate_instance_phase",
        "1 for the phase that the instance is in; its other phases have no sample.",
    );
    for (instance, status, _) in &all {
        family.value(&[("instance", &instance.name), ("phase", status.phase.as_str())], 1.0);
    }
    let mut family = families.gauge(
        "wavegate_instance_in_flight",
        "Attempts begun and not ended: before their end of data (uncommitted), or after it with \
         no reply yet (in_doubt).",
    );
    for (instance, status, _) in &all {
        let mut add = |state: &str, value: u32| {
            family.value(&[("instance", &instance.name), ("state", state)], f64::from(value));
        };
        add("uncommitted", status.in_flight.uncommitted);
        add("in_doubt", status.in_flight.in_doubt);
    }
    let mut family = families.gauge(
        "wavegate_instance_barrier",
        "1 while the instance is frozen and nothing of it is in flight.",
    );
    for (instance, status, _) in &all {
        family.value(&[("instance", &instance.name)], f64::from(u8::from(status.barrier)));
    }
    let seconds = |time: crate::plan::Timestamp| number(time.0) / 1000.0;
    let windows =
        || all.iter().filter_map(|(instance, _, wave)| wave.map(|wave| (instance, &wave.window)));
    let mut family = families.gauge(
        "wavegate_instance_window_opens_timestamp_seconds",
        "First moment of the instance's window, in seconds since 1970.",
    );
    for (instance, window) in windows() {
        family.value(&[("instance", &instance.name)], seconds(window.opens));
    }
    let mut family = families.gauge(
        "wavegate_instance_window_closes_timestamp_seconds",
        "First moment after the instance's window, in seconds since 1970.",
    );
    for (instance, window) in windows() {
        family.value(&[("instance", &instance.name)], seconds(window.closes));
    }
}

/// Pools and targets. The counts begin anew when an upstream's configuration changes.
fn upstreams(families: &mut Families, generation: &Generation) {
    let mut all: Vec<(UpstreamStatus, usize)> = generation
        .upstreams
        .values()
        .map(|upstream| (upstream.status(), upstream.config.connections))
        .collect();
    all.sort_by(|one, other| one.0.name.cmp(&other.0.name));
    let mut family = families.gauge(
        "wavegate_upstream_connections",
        "Connections in use or idle, and attempts that wait for one.",
    );
    for (status, _) in &all {
        let states =
            [("in_use", status.in_use), ("idle", status.idle), ("waiting", status.waiting)];
        for (state, value) in states {
            family.count(&[("upstream", &status.name), ("state", state)], value as u64);
        }
    }
    let mut family =
        families.gauge("wavegate_upstream_connections_limit", "Most connections at once.");
    for (status, limit) in &all {
        family.count(&[("upstream", &status.name)], *limit as u64);
    }
    type Read = fn(&UpstreamStatus) -> u64;
    let counters: [(&str, &str, Read); 5] = [
        ("opened", "Connections opened.", |status| status.opened),
        ("reused", "Times an idle connection was used again.", |status| status.reused),
        ("failed", "Connections that could not be opened.", |status| status.failed),
        ("stale", "Idle connections found closed.", |status| status.stale),
        ("waited", "Attempts that had to wait for a connection.", |status| status.waited),
    ];
    for (name, help, read) in counters {
        let name = format!("wavegate_upstream_connections_{name}_total");
        let mut family = families.counter(&name, help);
        for (status, _) in &all {
            family.count(&[("upstream", &status.name)], read(status));
        }
    }
    let mut family = families.gauge(
        "wavegate_upstream_target_up",
        "1 while messages may use the target, 0 while it is ejected.",
    );
    for (status, _) in &all {
        for target in &status.targets {
            let address = target.address.to_string();
            let labels = [("upstream", &*status.name), ("target", &*address)];
            family.value(&labels, f64::from(u8::from(target.up)));
        }
    }
    names(families, &all);
}

/// What names stand for, and how old that is.
fn names(families: &mut Families, all: &[(UpstreamStatus, usize)]) {
    let mut family = families.gauge(
        "wavegate_upstream_targets",
        "Targets that there are now; 0 where names stand for nothing.",
    );
    for (status, _) in all {
        family.count(&[("upstream", &status.name)], status.targets.len() as u64);
    }
    let mut family = families.counter(
        "wavegate_resolver_lookups_total",
        "Names of the upstream that were looked up, by what came of it.",
    );
    for (status, _) in all {
        let names = &status.names;
        let results =
            [("answered", names.answered), ("denied", names.denied), ("no_answer", names.silent)];
        for (result, count) in results {
            family.count(&[("upstream", &status.name), ("result", result)], count);
        }
    }
    let mut family = families.gauge(
        "wavegate_resolver_stale_seconds",
        "Age of the last good answer, while a name has no newer one; 0 while all have.",
    );
    for (status, _) in all {
        let stale = status.names.stale.map_or(0.0, |age| age.as_secs_f64());
        family.value(&[("upstream", &status.name)], stale);
    }
}

/// What the host counted, for every policy name that was ever loaded.
fn policies(families: &mut Families, relay: &Relay) {
    let all = relay.policy_host.stats();
    type Read = fn(&PolicyStats) -> u64;
    let counters: [(&str, &str, Read); 11] = [
        ("calls", "Calls of a hook, failed ones included.", PolicyStats::calls),
        ("slow_calls", "Calls asked again off the mail's thread.", PolicyStats::slow),
        ("parked_messages", "Messages not asked about again.", PolicyStats::parked_messages),
        ("instances_built", "Instances of the component built.", PolicyStats::instances),
        ("recycled", "Instances given up because of their age alone.", PolicyStats::recycled),
        ("audit_runs", "Calls repeated in a fresh instance.", PolicyStats::audit_runs),
        (
            "audit_differences",
            "Repeated calls with another answer: the policy depends on more than it is given.",
            PolicyStats::audit_differences,
        ),
        ("audit_dropped", "Calls not repeated for want of time.", PolicyStats::audit_dropped),
        (
            "audit_inconclusive",
            "Repeated calls that ran out of time, which says nothing.",
            PolicyStats::audit_inconclusive,
        ),
        ("log_dropped", "Log lines of policies dropped or cut.", PolicyStats::log_dropped),
        (
            "custom_ignored",
            "Additions to counters that the policy did not declare.",
            PolicyStats::metrics_ignored,
        ),
    ];
    for (name, help, read) in counters {
        let mut family = families.counter(&format!("wavegate_policy_{name}_total"), help);
        for stats in &all {
            family.count(&[("policy", stats.name())], read(stats));
        }
    }
    let mut family =
        families.counter("wavegate_policy_failures_total", "Calls that gave no answer.");
    for stats in &all {
        for kind in FailureKind::ALL {
            let labels = [("policy", stats.name()), ("kind", kind.as_str())];
            family.count(&labels, stats.failures(kind));
        }
    }
    let mut family =
        families.histogram("wavegate_policy_call_seconds", "Time of one call, of every 16th.");
    for stats in &all {
        let (counts, sum) = (stats.time_buckets(), stats.time_sum_ns());
        let distribution = distribution_ns(&TIME_BUCKETS_NS, &counts, sum);
        family.distribution(&[("policy", stats.name())], distribution);
    }
    let mut family =
        families.counter("wavegate_policy_custom_total", "Counters that policies declared.");
    for stats in &all {
        for (metric, value) in stats.custom() {
            family.count(&[("policy", stats.name()), ("metric", &metric)], value);
        }
    }
}

/// The budget over everything.
fn memory(families: &mut Families, relay: &Relay) {
    let budget = &relay.budget;
    families
        .gauge("wavegate_memory_limit_bytes", "Memory for all that grows with load.")
        .count(&[], budget.limit() as u64);
    let mut family = families.gauge(
        "wavegate_memory_charged_bytes",
        "What of it is in use, by whom: estimates that are never too low.",
    );
    for who in Use::ALL {
        family.count(&[("use", who.as_str())], budget.used_by(who) as u64);
    }
    families
        .gauge(
            "wavegate_memory_pressure",
            "0: none; 1: bodies go to files; 2: no new connections; 3: no new messages.",
        )
        .count(&[], budget.level() as u64);
}

/// The table of limits and the places for bodies.
fn shared(families: &mut Families, relay: &Relay) {
    let limits = relay.limits.stats();
    families
        .gauge("wavegate_limits_keys", "Cells of the table of limits in use.")
        .count(&[], limits.keys as u64);
    families
        .gauge("wavegate_limits_waiting", "Attempts that wait for a limit.")
        .count(&[], limits.waiting as u64);
    families
        .counter("wavegate_limits_waited_total", "Attempts that had to wait for a limit.")
        .count(&[], limits.waited);
    families
        .counter("wavegate_limits_blocked_total", "Attempts that gave up on a limit.")
        .count(&[], limits.blocked);
    memory(families, relay);
    families
        .gauge("wavegate_message_memory_bytes", "Memory that holds messages.")
        .count(&[], relay.bodies.memory_used() as u64);
    families
        .gauge("wavegate_spill_bytes", "Spill files that hold messages.")
        .count(&[], relay.bodies.spill_used());
    families
        .gauge("wavegate_stopping", "1 while the relay is stopping.")
        .value(&[], f64::from(u8::from(relay.is_stopping())));
}
