//! Probes: whether the targets that a wave's mail will go to would take it, asked for each of its
//! instances while it is frozen. Rounds of them; a round says of every target what it found.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use wavegate_smtp::{Address, ReversePath};

use super::status::ProbeStatus;
use crate::{
    config::Config,
    names::Endpoint,
    plan::{Instance, Timestamp},
    relay::Relay,
    upstream::Upstream,
    waves::{Record, Targets},
};

/// Probes at once, over all waves: what a relay may cost the next hop beside its mail.
const AT_ONCE: usize = 16;
/// The local part that every domain must take (RFC 5321 4.5.1).
const POSTMASTER: &str = "postmaster";

/// The rounds of all waves.
pub(super) struct Probes {
    rounds: BTreeMap<String, Rounds>,
    permits: Arc<Semaphore>,
}

/// The rounds of one wave.
#[derive(Default)]
struct Rounds {
    /// Which life of the wave: its slot.
    opens: Timestamp,
    runs: bool,
    ended: Option<Instant>,
    found: Vec<ProbeStatus>,
    /// Whether the last failed, and since when they do.
    failing: Option<Timestamp>,
}

/// One question.
pub(super) struct Question {
    instance: String,
    upstream: Arc<Upstream>,
    /// None where it has none: then nothing can be asked.
    target: Option<Endpoint>,
    sender: ReversePath,
    recipient: Address,
}

impl Default for Probes {
    fn default() -> Self {
        Self { rounds: BTreeMap::new(), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Probes {
    /// What the last round of a wave found.
    pub(super) fn targets(&self, record: &Record) -> Targets {
        match self.of(record) {
            Some(rounds) if rounds.ended.is_some() && rounds.found.is_empty() => Targets::Unasked,
            Some(Rounds { ended: Some(_), failing: None, .. }) => Targets::Good,
            Some(Rounds { ended: Some(_), failing: Some(_), .. }) => Targets::Bad,
            _ => Targets::Unknown,
        }
    }

    /// What the last round found of each target.
    pub(super) fn found(&self, record: &Record) -> &[ProbeStatus] {
        self.of(record).map_or(&[], |rounds| &rounds.found)
    }

    /// Since when its probes fail.
    pub(super) fn failing_since(&self, record: &Record) -> Option<Timestamp> {
        self.of(record)?.failing
    }

    /// Whether a round is due; then it counts as begun.
    pub(super) fn begin(&mut self, record: &Record, every: Duration) -> bool {
        let rounds = self.rounds.entry(record.wave.clone()).or_default();
        if rounds.opens != record.opens {
            *rounds = Rounds { opens: record.opens, ..Rounds::default() };
        }
        let is_due = !rounds.runs && rounds.ended.is_none_or(|ended| ended.elapsed() >= every);
        rounds.runs |= is_due;
        is_due
    }

    /// A round is over.
    pub(super) fn end(&mut self, record: &Record, found: Vec<ProbeStatus>, now: Timestamp) {
        let Some(rounds) = self.rounds.get_mut(&record.wave) else { return };
        if rounds.opens != record.opens {
            return;
        }
        rounds.runs = false;
        rounds.ended = Some(Instant::now());
        let is_good = found.iter().all(|one| one.ok);
        rounds.failing = if is_good { None } else { Some(rounds.failing.unwrap_or(now)) };
        rounds.found = found;
    }

    /// Keeps what is known of these waves only.
    pub(super) fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.rounds.retain(|wave, rounds| rounds.runs || stays(wave));
    }

    pub(super) fn permits(&self) -> Arc<Semaphore> {
        Arc::clone(&self.permits)
    }

    fn of(&self, record: &Record) -> Option<&Rounds> {
        self.rounds.get(&record.wave).filter(|rounds| rounds.opens == record.opens)
    }
}

/// What there is to ask for a wave: of each instance, every target of where its mail will go.
pub(super) fn questions(relay: &Relay, record: &Record) -> Vec<Question> {
    let generation = relay.generation();
    let state = relay.waves.current_owned();
    let migration = generation.config.migration.as_ref();
    let mut questions = Vec::new();
    for index in record.members.iter().filter_map(|name| state.index_of(name)) {
        let instance = &state.plan.instances[index];
        let after = state.plan.after(index).or(migration.map(|one| &*one.after));
        let Some(upstream) = after.and_then(|name| generation.upstream(name)) else { continue };
        let (sender, recipient) = addresses(instance, &generation.config);
        let targets = upstream.targets();
        // One that has none is no reason to let mail out.
        let nowhere = targets.is_empty().then_some(None);
        let targets = targets.into_iter().map(Some).chain(nowhere);
        questions.extend(targets.map(|target| Question {
            instance: instance.name.clone(),
            upstream: Arc::clone(upstream),
            target,
            sender: sender.clone(),
            recipient: recipient.clone(),
        }));
    }
    questions
}

/// Whose mail a probe speaks of: the postmaster's of the instance's first sender domain.
fn addresses(instance: &Instance, config: &Config) -> (ReversePath, Address) {
    let at = |domain: &str| Address::parse(&format!("{POSTMASTER}@{domain}")).ok();
    let domain = instance.matcher.senders.iter().find(|domain| !domain.starts_with('.'));
    let own = domain.and_then(|domain| at(domain)).filter(Address::is_ascii);
    let named = config.conduct.probe_recipient.as_deref().and_then(|one| Address::parse(one).ok());
    let recipient = named.or_else(|| own.clone()).or_else(|| at(&config.relay.hostname));
    let recipient = recipient.or_else(|| Address::parse(POSTMASTER).ok());
    let Some(recipient) = recipient else { unreachable!("postmaster alone is an address") };
    (own.map_or(ReversePath::Null, ReversePath::Address), recipient)
}

/// Asks all of it, within bounds; what was found, in the order of the questions.
pub(super) async fn ask(
    relay: Arc<Relay>,
    questions: Vec<Question>,
    permits: Arc<Semaphore>,
    time: Duration,
) -> Vec<ProbeStatus> {
    let mut asking = JoinSet::new();
    for (number, question) in questions.into_iter().enumerate() {
        let (relay, permits) = (Arc::clone(&relay), Arc::clone(&permits));
        asking.spawn(async move {
            let _permit = permits.acquire().await;
            (number, question.ask(&relay, time).await)
        });
    }
    let mut found = asking.join_all().await;
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, one)| one).collect()
}

impl Question {
    async fn ask(self, relay: &Relay, time: Duration) -> ProbeStatus {
        let Self { instance, upstream, target, sender, recipient } = self;
        let error = match &target {
            Some(target) => {
                let answer = upstream.rehearse(target, &sender, &recipient, time).await;
                answer.err().map(|error| error.to_string())
            }
            None => Some(upstream.names_trouble().unwrap_or_else(|| "it has none".to_owned())),
        };
        ProbeStatus {
            instance,
            upstream: upstream.config.name.clone(),
            target: target.map_or_else(|| "none".to_owned(), |target| target.address.to_string()),
            ok: error.is_none(),
            error,
            at: super::report::time(relay.waves.now()),
        }
    }
}
