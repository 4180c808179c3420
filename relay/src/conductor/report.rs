//! How everything stands, as one value. Costs a pass over instances, not over messages, except
//! where the oldest message of an instance has just left.

use std::{collections::HashMap, sync::Arc};

use super::{
    Conductor, drain, millis,
    status::{
        Alert, Drain, Held, InstanceStatus, PlanStatus, Status, Stuck, UpstreamStatus, WaveStatus,
    },
};
use crate::{
    plan::{Plan, Timestamp, in_words},
    queue::Snapshot,
    scheduler::Figures,
    waves::{Life, Record, Stage},
};

/// RFC 3339 in UTC with milliseconds.
pub(super) fn time(time: Timestamp) -> String {
    match i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
        Some(time) => format!("{time:.3}"),
        None => time.to_string(),
    }
}

/// What a report is made of.
struct Report<'a> {
    conductor: &'a Conductor,
    now: Timestamp,
    plan: Arc<Plan>,
    figures: HashMap<Arc<str>, Figures>,
}

/// The whole status.
pub(super) fn status(conductor: &Conductor) -> Status {
    let relay = &conductor.relay;
    let now = relay.waves.now();
    let generation = relay.generation();
    let snapshot = relay.queue.snapshot();
    let held_all = snapshot.all_held.as_deref().map(str::to_owned);
    let report = Report::new(conductor, snapshot, now);
    let mut lives = relay.waves.lives(now);
    lives.sort_by_key(|life| (life.record.opens, life.record.wave.clone()));
    let plan = &report.plan;
    let clock_suspect = conductor.state().clock.is_suspect();
    let file = generation.config.plan_file.as_ref();
    Status {
        host: generation.config.relay.hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: time(now),
        plan: PlanStatus {
            digest: plan.digest().to_owned(),
            file: file.map(|file| file.display().to_string()),
            program: plan.program.as_ref().map(|program| program.name.clone()),
        },
        clock_suspect,
        held_all,
        generation: generation.number,
        waves: lives.iter().map(|life| report.wave(&life.record)).collect(),
        upstreams: generation.upstreams.values().map(|one| upstream(&one.status())).collect(),
        links: relay.links().rows(),
        alerts: report.alerts(&lives),
    }
}

/// One wave.
pub(super) fn wave(conductor: &Conductor, record: &Record, now: Timestamp) -> WaveStatus {
    Report::new(conductor, conductor.relay.queue.snapshot(), now).wave(record)
}

fn upstream(status: &crate::upstream::UpstreamStatus) -> UpstreamStatus {
    let down = || status.targets.iter().filter(|target| !target.up);
    UpstreamStatus {
        name: status.name.clone(),
        targets: status.targets.len(),
        healthy: status.targets.len() - down().count(),
        in_use: status.in_use,
        waiting: status.waiting,
        answered: status.answered,
        last_error: down()
            .find_map(|target| target.last_error.clone())
            .or_else(|| status.trouble.clone()),
    }
}

impl<'a> Report<'a> {
    fn new(conductor: &'a Conductor, snapshot: Snapshot, now: Timestamp) -> Self {
        let instances = snapshot.instances.into_iter();
        let figures = instances.filter_map(|(name, _, figures)| Some((name?, figures))).collect();
        Self { conductor, now, plan: conductor.relay.waves.filed(), figures }
    }

    fn wave(&self, record: &Record) -> WaveStatus {
        let Record { wave: id, environment, opens, closes, planned_closes, .. } = record;
        let relay = &self.conductor.relay;
        let members = relay.waves.members(record, self.now);
        let has_begun = record.stage != Stage::Planned;
        let is_stuck = record.stage.holds() && record.barrier_at.is_none();
        let stuck = members.iter().filter(|one| is_stuck && !one.barrier).map(|one| Stuck {
            instance: one.name.to_string(),
            uncommitted: one.in_flight.uncommitted,
            in_doubt: one.in_flight.in_doubt,
        });
        let mut held = Held::default();
        let mut oldest: Option<Timestamp> = None;
        let instances = members.iter().map(|one| {
            let figures = self.figures.get(&one.name).copied().unwrap_or_default();
            held.messages += figures.held.messages;
            if figures.held.messages > 0 {
                held.bytes += figures.bytes;
                oldest = oldest.into_iter().chain(figures.oldest).min();
            }
            InstanceStatus {
                name: one.name.to_string(),
                phase: one.phase.to_string(),
                held: held_of(&figures),
            }
        });
        let instances = instances.collect();
        held.oldest = oldest.map(time);
        let planned = self.plan.waves.iter().find(|wave| wave.window.wave == *id);
        let state = self.conductor.state();
        WaveStatus {
            id: id.clone(),
            environment: environment.clone(),
            phase: match members.first() {
                // The clock may have brought it further than was looked at yet.
                Some(first) if !has_begun => first.phase.to_string(),
                _ => self.stage(record).phase().to_string(),
            },
            opens: time(*opens),
            closes: time(*closes),
            planned_closes: time(*planned_closes),
            extended_ms: closes.0.saturating_sub(planned_closes.0),
            announced_at: planned.and_then(|wave| wave.announced).map(time),
            release: if record.on_complete { "on-complete" } else { "at-close" }.to_owned(),
            frozen_at: record.begun_at.map(time),
            barrier_at: record.barrier_at.map(time),
            blocked: stuck.collect(),
            probes: state.probes.found(record).to_vec(),
            released_at: record.released_at.map(time),
            ended_at: record.ended_at.map(time),
            held,
            drain: state.drains.of(id).filter(|_| drain::is_draining(record)).map(|drain| Drain {
                total: record.held.max(drain.left),
                left: drain.left,
                rate: drain.rate(),
                ends: drain.ends(self.now).map(time),
            }),
            leaked: members.iter().map(|one| one.leaked).sum(),
            instances,
        }
    }

    /// As far as the clock has brought it.
    fn stage(&self, record: &Record) -> Stage {
        match record.stage {
            Stage::Freezing if self.now >= record.opens => Stage::Frozen,
            stage => stage,
        }
    }

    fn alerts(&self, lives: &[Life]) -> Vec<Alert> {
        let mut alerts = Vec::new();
        let mut add = |since: Timestamp, wave: Option<&str>, text: String| {
            alerts.push(Alert { since: time(since), wave: wave.map(str::to_owned), text });
        };
        let (suspect, not_written) = {
            let state = self.conductor.state();
            (state.suspect_since, state.not_written.clone())
        };
        if let Some(since) = suspect {
            let text = "the wall clock was stepped: no window ends by it; set it right, or order \
                        `release` if it is right";
            add(since, None, text.to_owned());
        }
        if let Some((since, error)) = not_written {
            let text = format!(
                "it cannot be written down how far waves have come, so nothing is released: {error}"
            );
            add(since, None, text);
        }
        for record in lives.iter().map(|life| &*life.record) {
            for (since, text) in self.alerts_of(record, suspect.is_some()) {
                add(since, Some(&record.wave), text);
            }
        }
        alerts
    }

    fn alerts_of(&self, record: &Record, clock_suspect: bool) -> Vec<(Timestamp, String)> {
        let mut alerts = Vec::new();
        let conduct = self.conductor.relay.look().config.conduct.clone();
        if !self.stage(record).is_frozen() {
            return alerts;
        }
        let blocked = record.opens.saturating_add_ms(millis(conduct.blocked_after));
        if record.barrier_at.is_none() && self.now >= blocked {
            let text = "attempts are still in flight: see what it is blocked by; wait for their \
                        replies, or cut their connections";
            alerts.push((blocked, text.to_owned()));
        }
        if let Some(since) = self.conductor.state().probes.failing_since(record) {
            let text = "targets that its mail is to go to do not answer as they should: see its \
                        probes; mend them, or roll it back";
            alerts.push((since, text.to_owned()));
        }
        if !record.ad_hoc && record.closes > record.planned_closes {
            let by = in_words(record.closes.0 - record.planned_closes.0);
            let text = format!("it is extended by {by}");
            alerts.push((record.planned_closes.min(self.now), text));
        }
        let waits = record.on_complete && record.completed.is_none();
        if waits && self.now >= record.closes && !clock_suspect {
            let text = "its time is over, and it waits to be completed";
            alerts.push((record.closes, text.to_owned()));
        }
        let filed = self.plan.waves.iter().any(|wave| record.is_of(wave));
        if !record.ad_hoc && !filed {
            let text = "the plan says otherwise of it; it goes on as it began, put the plan back";
            alerts.push((record.begun_at.unwrap_or(self.now), text.to_owned()));
        }
        alerts
    }
}

fn held_of(figures: &Figures) -> Held {
    let any = figures.held.messages > 0;
    Held {
        messages: figures.held.messages,
        bytes: if any { figures.bytes } else { 0 },
        oldest: figures.oldest.filter(|_| any).map(time),
    }
}
