//! What orders do to a wave: pure rules first, then their execution.

use std::sync::Arc;

use super::{
    Conductor, Due,
    clock::Change,
    order::{Command, Obeyed, Order, Refusal},
    report,
};
use crate::{
    event::Event,
    plan::{Timestamp, in_words},
    waves::{Life, Record, Stage, Step},
};

/// Characters of a reason: a sentence or two, not a report.
const REASON: usize = 500;
/// A window may be extended to so long after it opened: whoever needs longer rolls back.
const LONGEST: u64 = 24 * 3_600_000;
/// The shortest freeze without a plan.
const SHORTEST: u64 = 1000;

/// What an order does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The wave afterwards; none where it is so already.
    record: Option<Record>,
    /// The steps that this is.
    steps: Vec<Step>,
    /// In a sentence.
    what: String,
}

impl Verdict {
    fn already(what: String) -> Self {
        Self { record: None, steps: Vec::new(), what }
    }
}

/// What an order does to a wave that is there. What follows from it by circumstances is not in it.
pub(super) fn rule(
    record: &Record,
    command: &Command,
    now: Timestamp,
    clock_suspect: bool,
) -> Result<Verdict, Refusal> {
    let not_now = |why: &str| {
        let phase = record.stage.phase().to_string();
        Err(Refusal::NotNow { wave: record.wave.clone(), phase, why: why.to_owned() })
    };
    match (command, record.stage) {
        (Command::Freeze { .. }, _) => unreachable!("a freeze makes a wave of its own"),
        (_, Stage::Planned) => {
            not_now("nothing of it has begun; what is to be otherwise is to be changed in the plan")
        }
        (Command::Extend { until, .. }, stage) if stage.holds() => extend(record, *until, now),
        (Command::Extend { .. }, _) => not_now(
            "its mail is let out already; to stop that, roll it back or freeze its instances",
        ),
        (Command::Complete { .. }, Stage::Freezing) => {
            not_now("its window is not open yet; roll it back to give it up")
        }
        (Command::Complete { unchecked, .. }, Stage::Frozen | Stage::Checked) => {
            Ok(complete(record, *unchecked))
        }
        (Command::Complete { .. }, Stage::RolledBack) => {
            not_now("it was given up; give it another slot in the plan")
        }
        (Command::Complete { .. }, _) => {
            Ok(Verdict::already(format!("wave {} is completed already", record.wave)))
        }
        (Command::RollBack { .. }, _) if record.ad_hoc => {
            not_now("it moves nothing, so there is nothing to take back; complete it to end it")
        }
        (Command::RollBack { .. }, Stage::RolledBack) => {
            Ok(Verdict::already(format!("wave {} is rolled back already", record.wave)))
        }
        (Command::RollBack { .. }, _) => {
            let mut next = record.clone();
            next.take(Step::RollBack, now);
            let what =
                format!("wave {} is rolled back: its mail goes where it went before", record.wave);
            Ok(Verdict { record: Some(next), steps: vec![Step::RollBack], what })
        }
        (Command::Release { .. }, stage) if !stage.holds() => {
            not_now("nothing of it is held, so nothing waits for the clocks")
        }
        (Command::Release { .. }, _) if !clock_suspect => {
            not_now("the clocks agree, so nothing waits for them; complete it to release it now")
        }
        (Command::Release { .. }, _) => {
            let what = format!("the wall clock counts as right: {now}");
            Ok(Verdict { record: Some(record.clone()), steps: Vec::new(), what })
        }
    }
}

fn extend(record: &Record, until: Timestamp, now: Timestamp) -> Result<Verdict, Refusal> {
    let Record { wave, opens, closes, .. } = record;
    let latest = opens.saturating_add_ms(LONGEST);
    if until == *closes {
        return Ok(Verdict::already(format!("wave {wave} closes at {closes} already")));
    }
    if until < *closes {
        let text = format!(
            "wave {wave} closes at {closes}, and {until} is before that; it can only be extended, \
             or completed"
        );
        return Err(Refusal::Invalid(text));
    }
    if until <= now {
        return Err(Refusal::Invalid(format!("{until} is past")));
    }
    if until > latest {
        let text = format!(
            "wave {wave} can be extended to {latest}, {} after it opened; for more, roll it back \
             and plan it anew",
            in_words(LONGEST)
        );
        return Err(Refusal::Invalid(text));
    }
    let mut next = record.clone();
    next.take(Step::Extend(until), now);
    let what = format!("wave {wave} closes at {until} instead of {closes}");
    Ok(Verdict { record: Some(next), steps: vec![Step::Extend(until)], what })
}

fn complete(record: &Record, unchecked: bool) -> Verdict {
    let wave = &record.wave;
    let before = record.completed;
    if before.is_some_and(|was_unchecked| was_unchecked || !unchecked) {
        return Verdict::already(format!("wave {wave} is completed already"));
    }
    let what = match record.ad_hoc {
        true => format!("the freeze {wave} ends"),
        false if unchecked => {
            format!("wave {wave} is completed, whether its targets answer or not")
        }
        false => format!("wave {wave} is completed: released as soon as its targets answer"),
    };
    let next = Record { completed: Some(unchecked), ..record.clone() };
    Verdict { record: Some(next), steps: Vec::new(), what }
}

impl Conductor {
    /// Obeys one order.
    pub(super) async fn obey(&self, order: Order) -> Result<Obeyed, Refusal> {
        check_reason(&order.reason)?;
        let _one = self.steps.lock().await;
        let now = self.relay.waves.now();
        self.look_at_clocks(now);
        let (wave, obeyed) = match &order.command {
            Command::Freeze { instance, for_ms } => {
                self.freeze(instance, *for_ms, order.dry_run, now).await?
            }
            Command::Extend { wave, .. }
            | Command::Complete { wave, .. }
            | Command::RollBack { wave }
            | Command::Release { wave } => {
                let known = self.relay.waves.life(wave, now);
                let life = known.ok_or_else(|| Refusal::NoWave(wave.clone()))?;
                (wave.clone(), self.change(life, &order, now).await?)
            }
        };
        let (changed, what, record) = obeyed;
        if !order.dry_run {
            self.relay.emit(&Event::Ordered {
                wave: &wave,
                order: order.command.name(),
                by: &order.by,
                reason: &order.reason,
                changed,
            });
            self.relay.waves.ring();
        }
        Ok(Obeyed { changed, what, wave: report::wave(self, &record, now) })
    }

    /// An order about a wave that is there.
    async fn change(
        &self,
        life: Life,
        order: &Order,
        now: Timestamp,
    ) -> Result<(bool, String, Arc<Record>), Refusal> {
        // As far as the clock has brought it.
        let mut record = Record::clone(&life.record);
        if record.stage == Stage::Freezing && now >= record.opens {
            record.take(Step::Open, now);
        }
        let suspect = self.state().clock.is_suspect();
        let Verdict { record: next, mut steps, what } =
            rule(&record, &order.command, now, suspect)?;
        let Some(mut next) = next else { return Ok((false, what, Arc::new(record))) };
        if order.dry_run {
            return Ok((false, format!("would be done: {what}"), life.record));
        }
        if matches!(order.command, Command::Release { .. }) {
            self.trust_clock(now);
        }
        if steps.contains(&Step::RollBack) {
            next.held = self.held(&record, now);
        } else {
            steps.extend(self.advance(&mut next, now));
        }
        let after = Arc::new(next.clone());
        let due = vec![Due { life, record: next, steps }];
        self.tell_begun(&due);
        self.commit(due, &[], now).await.map_err(Refusal::Spool)?;
        Ok((true, what, after))
    }

    fn trust_clock(&self, now: Timestamp) {
        let Some(reading) = self.reading(now) else { return };
        let change = {
            let mut state = self.state();
            state.suspect_since = None;
            state.clock.accept(reading)
        };
        debug_assert!(change != Change::None);
        self.tell_clock(change);
    }

    /// Freezes an instance now. It takes effect first: where it cannot be written down it holds
    /// all the same, and is written when that can be.
    async fn freeze(
        &self,
        instance: &str,
        for_ms: u64,
        dry_run: bool,
        now: Timestamp,
    ) -> Result<(String, (bool, String, Arc<Record>)), Refusal> {
        let waves = &self.relay.waves;
        let lives = waves.lives(now);
        if waves.current().index_of(instance).is_none() {
            return Err(Refusal::NoInstance(instance.to_owned()));
        }
        if !(SHORTEST..=LONGEST).contains(&for_ms) {
            let (least, most) = (in_words(SHORTEST), in_words(LONGEST));
            let text = format!("a freeze lasts from {least} to {most}, not {}", in_words(for_ms));
            return Err(Refusal::Invalid(text));
        }
        let closes = now.saturating_add_ms(for_ms);
        let mine = |life: &&Life| life.record.members.iter().any(|name| name == instance);
        for record in lives.iter().filter(mine).map(|life| &life.record) {
            if record.ad_hoc && record.stage.holds() {
                let Record { wave, closes, .. } = &**record;
                let what = format!("{instance} is frozen until {closes} already ({wave})");
                return Ok((wave.clone(), (false, what, Arc::clone(record))));
            }
            let is_near = record.stage == Stage::Planned && record.freezes <= closes;
            if !record.ad_hoc && (record.stage.holds() || is_near) {
                let why = format!(
                    "it freezes {instance} at {}, and no other freeze may last into that",
                    record.freezes
                );
                let (wave, phase) = (record.wave.clone(), record.stage.phase().to_string());
                return Err(Refusal::NotNow { wave, phase, why });
            }
        }
        let id = free_id(&lives, instance, now);
        let mut record = Record::ad_hoc(id.clone(), instance, now, closes);
        record.sure = !self.state().clock.is_suspect();
        let mut what = format!("{instance} is frozen until {closes} ({id})");
        if dry_run {
            return Ok((id, (false, format!("would be done: {what}"), Arc::new(record))));
        }
        waves.freeze(record);
        let life = waves.life(&id, now).ok_or_else(|| Refusal::NoWave(id.clone()))?;
        let record = Arc::clone(&life.record);
        let steps = vec![Step::Freeze, Step::Open];
        let due = vec![Due { record: Record::clone(&record), life, steps }];
        self.tell_begun(&due);
        if let Err(error) = self.commit(due, &[], now).await {
            what += &format!("; not written down yet, a restart would end it: {error}");
        }
        Ok((id, (true, what, record)))
    }
}

impl Command {
    /// Its name for the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Freeze { .. } => "freeze",
            Self::Extend { .. } => "extend",
            Self::Complete { .. } => "complete",
            Self::RollBack { .. } => "rollback",
            Self::Release { .. } => "release",
        }
    }
}

fn check_reason(reason: &str) -> Result<(), Refusal> {
    let invalid = |text: String| Err(Refusal::Invalid(text));
    match reason.chars().count() {
        _ if reason.trim().is_empty() => invalid("give a reason: it is written down".to_owned()),
        count if count > REASON => {
            invalid(format!("a reason has at most {REASON} characters, not {count}"))
        }
        _ => Ok(()),
    }
}

/// `freeze-acme-20260120T053000Z`, with a number behind it where that is taken.
fn free_id(lives: &[Life], instance: &str, now: Timestamp) -> String {
    let digits = report::time(now).replace(['-', ':'], "");
    let time = digits.split('.').next().unwrap_or_default();
    let id = format!("freeze-{instance}-{time}Z");
    let taken = |id: &str| lives.iter().any(|life| life.record.wave == id);
    let mut others = (2..).map(|number| format!("{id}-{number}"));
    if taken(&id) { others.find(|id| !taken(id)).unwrap_or(id) } else { id }
}

#[cfg(test)]
mod tests;
