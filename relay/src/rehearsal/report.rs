//! What a rehearsal has shown. Pure: from the closed books to figures. Floor 4.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{
    Span, Strength,
    ledger::{Arrival, Books, Fate},
    members,
    traffic::Traffic,
    watch::Seen,
};
use crate::plan::{Plan, Timestamp};

/// Leaked messages that are told one by one.
const LEAKS: usize = 100;
/// Points of a backlog over time.
const POINTS: usize = 800;

/// Everything that the report is made of.
pub(super) struct Story {
    pub(super) plan: Arc<Plan>,
    pub(super) span: Span,
    pub(super) traffic: Arc<Traffic>,
    pub(super) strength: Strength,
    pub(super) seed: u64,
    pub(super) upstreams: Vec<String>,
    pub(super) quota: u64,
    /// Waves that were rehearsed, by index.
    pub(super) waves: Vec<usize>,
    /// What was seen of each.
    pub(super) seen: Vec<Seen>,
    pub(super) books: Books,
}

/// The report. Stable as JSON: fields may be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The plan's digest.
    pub plan: String,
    /// What all that was random followed from.
    pub seed: u64,
    /// First moment.
    pub from: String,
    /// First moment after it.
    pub to: String,
    /// The upstreams' names.
    pub upstreams: Vec<String>,
    /// Messages a second that each upstream answered at most.
    pub upstream_rate: u32,
    /// Milliseconds before each final reply.
    pub upstream_latency_ms: u64,
    /// Bytes of messages are declared ones: bodies were sent small.
    pub sizes: &'static str,
    /// Each wave, by time.
    pub waves: Vec<WaveReport>,
    /// All together.
    pub totals: Totals,
    /// Messages that left in a window: there must be none. The first hundred.
    pub leaked: Vec<Leak>,
    /// What else should be known.
    pub notes: Vec<String>,
    /// Messages that waited in all, over time.
    #[serde(skip)]
    pub backlog: Vec<u64>,
    /// The time that is rehearsed, for the chart.
    #[serde(skip)]
    pub length_ms: u64,
}

/// Messages and their declared bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Messages.
    pub messages: u64,
    /// Their declared bytes.
    pub bytes: u64,
}

/// The most that waited at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Peak {
    /// Messages, at that time.
    pub messages: u64,
    /// The most declared bytes.
    pub bytes: u64,
    /// When; none where nothing ever waited.
    pub at: Option<String>,
}

/// What became of a wave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaveReport {
    /// Its id.
    pub id: String,
    /// Its environment.
    pub environment: String,
    /// Instances that follow it.
    pub instances: usize,
    /// First moment of its window.
    pub opens: String,
    /// First moment after it.
    pub closes: String,
    /// Messages of its instances in the whole rehearsal.
    pub sent: u64,
    /// From the beginning of freezing to the barrier; none: never reached.
    pub barrier_ms: Option<u64>,
    /// What waited when the release began.
    pub held: Amount,
    /// The most that waited of it at once.
    pub peak: Peak,
    /// When its instances could send again; none: not before the end.
    pub released_at: Option<String>,
    /// How long after the end of the window that was.
    pub release_delay_ms: Option<u64>,
    /// From there until the last message that was held had its final reply; none: not before
    /// the end, or never released.
    pub drain_ms: Option<u64>,
    /// When that was.
    pub drained_at: Option<String>,
    /// Held messages that still waited at the end.
    pub left: u64,
    /// A later wave that opened before this one had drained.
    pub not_drained_before: Option<String>,
    /// Messages that arrived in its window. Must be 0.
    pub leaked: u64,
    /// Messages of it that waited, over time.
    #[serde(skip)]
    pub backlog: Vec<u64>,
    /// When it opened and could send again, or the end: for the chart.
    #[serde(skip)]
    pub shade: (u64, u64),
}

/// All messages. `sent = delivered + given_up + refused + waiting + at_senders + lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Messages that were due.
    pub sent: u64,
    /// Their declared bytes.
    pub bytes: u64,
    /// An upstream has them.
    pub delivered: u64,
    /// Bounced, expired, or taken out.
    pub given_up: u64,
    /// Refused with `5xx` to their sender.
    pub refused: u64,
    /// In the spool at the end.
    pub waiting: u64,
    /// With their senders still: the relay's last answer was `4xx`, or they were not
    /// sent in time.
    pub at_senders: u64,
    /// Taken, and nowhere. Must be 0.
    pub lost: u64,
    /// Arrived more than once. Must be 0, but for `in_doubt`.
    pub duplicated: u64,
    /// Replies of upstreams that were lost: such a message may arrive twice.
    pub in_doubt: u64,
    /// Answers `4xx`.
    pub deferrals: u64,
    /// Arrived in a window of theirs. Must be 0.
    pub leaked: u64,
    /// The most that waited at once: what the spool needs.
    pub peak: Peak,
    /// Mail that no window concerned.
    pub others: Others,
}

/// Mail of no wave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Others {
    /// Messages.
    pub sent: u64,
    /// The longest time from when one was due to its final reply.
    pub longest_ms: u64,
}

/// A message that left in a window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// Its wave.
    pub wave: String,
    /// Its instance.
    pub instance: String,
    /// Its number, from 0, in the order of time.
    pub message: usize,
    /// When it was due.
    pub sent_at: String,
    /// When it arrived.
    pub arrived_at: String,
    /// Where.
    pub upstream: String,
}

impl Report {
    /// Whether everything held that must.
    pub fn is_good(&self) -> bool {
        let Totals { lost, duplicated, in_doubt, leaked, .. } = self.totals;
        leaked == 0 && lost == 0 && duplicated <= in_doubt
    }
}

/// A message that waited: from its `250` to its final reply.
#[derive(Clone, Copy)]
struct Wait {
    from: u64,
    /// `u64::MAX`: to the end.
    to: u64,
    size: u64,
}

/// Tells what happened.
pub(super) fn tell(story: Story) -> Report {
    let Story { plan, span, traffic, strength, seed, .. } = &story;
    let of_wave: BTreeMap<usize, usize> =
        story.waves.iter().enumerate().map(|(place, wave)| (*wave, place)).collect();
    let mut letters: Vec<Vec<usize>> = vec![Vec::new(); story.waves.len()];
    let mut others = Others::default();
    for (number, letter) in traffic.letters.iter().enumerate() {
        let fate = &story.books.fates[number];
        let wave = traffic.instance_of(letter).and_then(|index| plan.wave_of[index]);
        if let Some(place) = wave.and_then(|wave| of_wave.get(&wave)) {
            letters[*place].push(number);
        } else {
            others.sent += 1;
            let took = fate.done.map_or(0, |done| done.saturating_sub(letter.at));
            others.longest_ms = others.longest_ms.max(took);
        }
    }
    let mut leaked = Vec::new();
    let waves: Vec<WaveReport> = (0..story.waves.len())
        .map(|place| wave_report(&story, place, &letters[place], &mut leaked))
        .collect();
    let waits: Vec<Wait> =
        (0..traffic.letters.len()).filter_map(|number| wait(&story, number)).collect();
    let peak = peak(*span, &waits);
    let leaks: u64 = waves.iter().map(|wave| wave.leaked).sum();
    let notes = notes(&story, &waves, &peak);
    Report {
        plan: plan.digest().to_owned(),
        seed: *seed,
        from: span.from.to_string(),
        to: span.to.to_string(),
        upstreams: story.upstreams.clone(),
        upstream_rate: strength.rate.get(),
        upstream_latency_ms: u64::try_from(strength.latency.as_millis()).unwrap_or(u64::MAX),
        sizes: "as declared; bodies were sent with some hundred bytes",
        backlog: backlog(*span, &waits),
        totals: Totals { peak, others, leaked: leaks, ..totals(&story) },
        waves,
        leaked,
        notes,
        length_ms: span.length_ms(),
    }
}

/// How a message waited, if it did.
fn wait(story: &Story, number: usize) -> Option<Wait> {
    let Fate { taken, done, given_up, .. } = story.books.fates[number];
    let from = taken?;
    let to = match done {
        Some(done) => done,
        // When it was given up is not noted: nothing waits for long before that in a rehearsal.
        None if given_up => return None,
        None => u64::MAX,
    };
    (to > from).then_some(Wait { from, to, size: story.traffic.letters[number].size })
}

fn wave_report(
    story: &Story,
    place: usize,
    letters: &[usize],
    leaks: &mut Vec<Leak>,
) -> WaveReport {
    let Story { plan, span, books, waves, seen, .. } = story;
    let wave = &plan.waves[waves[place]];
    let window = &wave.window;
    let begins = span.offset(window.opens.saturating_sub_ms(plan.freeze_lead_ms));
    let (opens, closes) = (span.offset(window.opens), span.offset(window.closes));
    let Seen { barrier, released } = seen[place];
    let at = |ms: u64| span.from.saturating_add_ms(ms).to_string();
    let waits: Vec<Wait> = letters.iter().filter_map(|&number| wait(story, number)).collect();
    let at_release = released.unwrap_or(u64::MAX);
    let held: Vec<&Wait> =
        waits.iter().filter(|one| one.from < at_release && one.to >= at_release).collect();
    let left = held.iter().filter(|one| one.to == u64::MAX).count() as u64;
    // Where nothing was held there is nothing to wait for.
    let last = held.iter().map(|one| one.to).max().or(released);
    let drained = last.filter(|last| *last != u64::MAX && released.is_some());
    let shut = opens..closes.max(released.unwrap_or(span.length_ms()));
    let mut leaked = 0;
    let twice = |number: usize| books.again.iter().filter(move |(other, _)| *other == number);
    for &number in letters {
        let fate = &books.fates[number];
        let more: Vec<Arrival> = match books.again.is_empty() {
            true => Vec::new(),
            false => twice(number).map(|(_, arrival)| *arrival).collect(),
        };
        for arrival in fate.arrived.iter().chain(&more) {
            if shut.contains(&arrival.at) {
                leaked += 1;
                leak(story, wave.window.wave.as_str(), number, *arrival, leaks);
            }
        }
    }
    WaveReport {
        id: window.wave.clone(),
        environment: wave.environment.clone(),
        instances: members(plan, waves[place]).len(),
        opens: window.opens.to_string(),
        closes: window.closes.to_string(),
        sent: letters.len() as u64,
        barrier_ms: barrier.map(|barrier| barrier.saturating_sub(begins)),
        held: Amount { messages: held.len() as u64, bytes: held.iter().map(|one| one.size).sum() },
        peak: peak(*span, &waits),
        released_at: released.map(at),
        release_delay_ms: released.map(|released| released.saturating_sub(closes)),
        drain_ms: drained.zip(released).map(|(last, released)| last.saturating_sub(released)),
        drained_at: drained.map(at),
        left,
        not_drained_before: next_wave(story, waves[place], drained),
        leaked,
        backlog: backlog(*span, &waits),
        shade: (shut.start, shut.end),
    }
}

/// The first wave that opens when this one is over and opened before this one had drained.
fn next_wave(story: &Story, wave: usize, drained: Option<u64>) -> Option<String> {
    let Story { plan, span, waves, .. } = story;
    let closes = plan.waves[wave].window.closes;
    let later = waves.iter().map(|index| &plan.waves[*index].window);
    let next = later.filter(|other| other.opens >= closes).min_by_key(|other| other.opens)?;
    let in_time = drained.is_some_and(|drained| drained <= span.offset(next.opens));
    (!in_time).then(|| next.wave.clone())
}

fn leak(story: &Story, wave: &str, number: usize, arrival: Arrival, leaks: &mut Vec<Leak>) {
    if leaks.len() >= LEAKS {
        return;
    }
    let letter = &story.traffic.letters[number];
    let at = |ms: u64| story.span.from.saturating_add_ms(ms).to_string();
    let instance = story.traffic.instance_of(letter);
    leaks.push(Leak {
        wave: wave.to_owned(),
        instance: instance
            .map(|index| story.plan.instances[index].name.clone())
            .unwrap_or_default(),
        message: number,
        sent_at: at(letter.at),
        arrived_at: at(arrival.at),
        upstream: story.upstreams.get(arrival.upstream).cloned().unwrap_or_default(),
    });
}

fn totals(story: &Story) -> Totals {
    let books = &story.books;
    let mut totals = Totals {
        duplicated: books.again.len() as u64,
        in_doubt: books.in_doubt,
        deferrals: books.deferrals,
        ..Totals::default()
    };
    for (letter, fate) in story.traffic.letters.iter().zip(&books.fates) {
        totals.sent += 1;
        totals.bytes += letter.size;
        let end = match fate {
            Fate { arrived: Some(_), .. } => &mut totals.delivered,
            Fate { given_up: true, .. } => &mut totals.given_up,
            Fate { taken: Some(_), .. } => &mut totals.waiting,
            Fate { refused: Some(_), .. } => &mut totals.refused,
            _ => &mut totals.at_senders,
        };
        *end += 1;
    }
    // What should wait, and what does.
    totals.lost = totals.waiting.saturating_sub(books.spooled);
    totals.waiting -= totals.lost;
    totals
}

fn notes(story: &Story, waves: &[WaveReport], peak: &Peak) -> Vec<String> {
    let mut notes = story.traffic.notes.clone();
    if peak.bytes > story.quota {
        notes.push(format!(
            "the spool needs {} bytes, more than its quota of {}: beyond that senders would be \
             answered 452",
            peak.bytes, story.quota
        ));
    }
    for wave in waves {
        if wave.barrier_ms.is_none() {
            notes.push(format!("wave {} never reached its barrier", wave.id));
        }
        if let Some(next) = &wave.not_drained_before {
            notes.push(format!("wave {} had not drained when {next} opened", wave.id));
        }
        if wave.left > 0 {
            let left = wave.left;
            notes
                .push(format!("wave {} had not drained at the end: {left} messages wait", wave.id));
        }
    }
    let books = &story.books;
    for (count, what) in [
        (books.against_plan, "times a policy would have let frozen mail go; it was held"),
        (books.policy_failures, "times a policy failed"),
    ] {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    }
    notes
}

/// Changes of what waits, by time. At one time those that leave come first.
fn changes(waits: &[Wait]) -> Vec<(u64, bool, u64)> {
    let mut changes = Vec::with_capacity(waits.len() * 2);
    for one in waits {
        changes.push((one.from, true, one.size));
        if one.to != u64::MAX {
            changes.push((one.to, false, one.size));
        }
    }
    changes.sort_unstable();
    changes
}

/// The most bytes that waited at once.
fn peak(span: Span, waits: &[Wait]) -> Peak {
    let (mut messages, mut bytes) = (0_u64, 0_u64);
    let mut best = Peak::default();
    for (at, enters, size) in changes(waits) {
        if enters {
            messages += 1;
            bytes += size;
        } else {
            messages -= 1;
            bytes -= size;
        }
        if bytes > best.bytes {
            let at: Timestamp = span.from.saturating_add_ms(at);
            best = Peak { messages, bytes, at: Some(at.to_string()) };
        }
    }
    best
}

/// How many waited, in equal steps over the span: the most in each step.
fn backlog(span: Span, waits: &[Wait]) -> Vec<u64> {
    let mut points = vec![0_u64; POINTS];
    let step = span.length_ms().div_ceil(POINTS as u64).max(1);
    let (mut now, mut place) = (0_u64, 0);
    for (at, enters, _) in changes(waits) {
        let here = usize::try_from(at / step).unwrap_or(POINTS).min(POINTS - 1);
        while place < here {
            place += 1;
            points[place] = now;
        }
        now = if enters { now + 1 } else { now - 1 };
        points[here] = points[here].max(now);
    }
    points[place + 1..].fill(now);
    points
}
