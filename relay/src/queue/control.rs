//! What an operator asks of messages that wait: to find, hold, let go, try and remove them.
//!
//! A look at all messages is made in pieces, so that mail goes on meanwhile; envelopes are read
//! between the locks. What changed between a look and a change is looked at again under the lock.

use std::{
    collections::{BinaryHeap, HashSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wavegate_spool::{Op, ReadError};

use super::{Ended, Queue, State, Taken, UNKNOWN};
use crate::{
    envelope::{Envelope, Progress},
    message::MessageId,
    plan::Timestamp,
    scheduler::{self, Count, Entry, Pace, Slot, Wait, WaitView},
    spool::{Handle, LoadError, SpoolError},
};

/// Messages looked at under one lock: some 200 us.
const PIECE: usize = 4096;
/// What a selection calls the mail of no instance, as metrics do.
const NO_INSTANCE: &str = "(none)";

/// Which messages are meant: those that meet every criterion that is given, by one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<MessageId>,
    /// Names of instances; `(none)` is the mail of none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    /// Names of upstreams, as of the latest decision.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<String>,
    /// Domains of recipients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// Senders: an address, `@domain`, or `<>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<String>,
    /// Where they stand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<Standing>,
}

/// Where a message stands, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Waits for its turn.
    Ready,
    /// Waits for a connection or a limit.
    Blocked,
    /// Waits for the time of its next attempt.
    Later,
    /// Held.
    Held,
    /// An attempt is under way.
    InFlight,
    /// A late reply is awaited.
    InDoubt,
}

/// A message that was found.
#[derive(Debug)]
pub struct Match {
    /// Its place.
    pub slot: Slot,
    /// Where the spool has it.
    pub handle: Handle,
    /// What the scheduler knows of it.
    pub entry: Entry,
    /// What it waits for.
    pub view: WaitView,
    /// The name of its instance.
    pub instance: Option<Arc<str>>,
    /// The name of its upstream, as of the latest decision.
    pub upstream: Option<Arc<str>>,
    /// Its envelope, where that was read.
    pub envelope: Option<Envelope>,
}

/// The oldest messages of those that were found.
#[derive(Debug, Default)]
pub struct Listing {
    /// All that were found.
    pub found: Count,
    /// Messages whose envelope could not be read, and so not be compared.
    pub unreadable: u64,
    /// The oldest, oldest first.
    pub oldest: Vec<Match>,
}

/// A change.
#[derive(Clone, Copy, Debug)]
pub enum Act<'a> {
    /// Keep them, for this reason.
    Hold(&'a str),
    /// Let them go again, at this pace.
    Release(Pace),
    /// Give them their turn now.
    Retry,
    /// End them without a word.
    Remove,
    /// End them and tell the sender; only asked about here, done by `delivery`.
    Bounce,
}

/// Why a message was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such message, or no longer.
    Unknown,
    /// An attempt is under way.
    InFlight,
    /// An upstream may have it already; its reply is awaited.
    InDoubt,
    /// No operator holds it.
    NotHeld,
    /// An operator holds it.
    Held,
    /// It has its turn anyway.
    Ready,
    /// It cannot be read, or its bounce not be written.
    Failed,
}

/// What a change did, or would do.
#[derive(Debug, Default)]
pub struct Applied {
    /// Messages that were changed, and their recipients that still wait.
    pub changed: Vec<(MessageId, u32)>,
    /// Messages that were not.
    pub refused: Vec<(MessageId, Refusal)>,
}

impl Selection {
    /// Whether it leaves nothing out.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    fn reads_envelopes(&self) -> bool {
        !self.domains.is_empty() || !self.senders.is_empty()
    }

    fn takes_envelope(&self, envelope: &Envelope) -> bool {
        let sender = envelope.mail.sender.as_str();
        let sent_by = |wanted: &String| match wanted.strip_prefix('@') {
            Some(domain) => sender.rsplit_once('@').is_some_and(|(_, of)| same(of, domain)),
            None if wanted == "<>" => sender.is_empty(),
            None => same(sender, wanted),
        };
        let goes_to = |wanted: &String| {
            let mut all = envelope.recipients.iter();
            all.any(|one| same(one.recipient.domain(), wanted.trim_start_matches('@')))
        };
        (self.senders.is_empty() || self.senders.iter().any(sent_by))
            && (self.domains.is_empty() || self.domains.iter().any(goes_to))
    }
}

/// Domains are compared without regard to case (RFC 5321 2.4), and so are whole addresses here:
/// what an operator types is not exact.
fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("ALL");
        }
        let ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
        let states: Vec<String> = self.states.iter().map(ToString::to_string).collect();
        let criteria = [
            ("id", &ids),
            ("instance", &self.instances),
            ("upstream", &self.upstreams),
            ("domain", &self.domains),
            ("sender", &self.senders),
            ("state", &states),
        ];
        let given = criteria.into_iter().filter(|(_, values)| !values.is_empty());
        for (at, (name, values)) in given.enumerate() {
            let space = if at > 0 { " " } else { "" };
            write!(f, "{space}{name}={}", values.join(","))?;
        }
        Ok(())
    }
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Blocked, Self::Later, Self::Held, Self::InFlight, Self::InDoubt];

    /// That of a message.
    pub fn of(state: &scheduler::State) -> Self {
        match state {
            scheduler::State::InFlight => Self::InFlight,
            scheduler::State::Paced => Self::Held,
            scheduler::State::Waiting(wait) => match wait {
                Wait::Turn => Self::Ready,
                Wait::Upstream(_) | Wait::Limit { .. } => Self::Blocked,
                Wait::Retry(_) => Self::Later,
                Wait::Reply => Self::InDoubt,
                Wait::HoldUntil(_) | Wait::Phase(_) | Wait::Change | Wait::Operator => Self::Held,
            },
        }
    }

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Blocked => "blocked",
            Self::Later => "later",
            Self::Held => "held",
            Self::InFlight => "in_flight",
            Self::InDoubt => "in_doubt",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Standing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::as_str).join(", ");
        let mut all = Self::ALL.into_iter();
        all.find(|one| one.as_str() == text).ok_or_else(|| format!("not one of {names}"))
    }
}

impl Refusal {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "no such message",
            Self::InFlight => "an attempt is under way",
            Self::InDoubt => "in doubt: an upstream may have it already",
            Self::NotHeld => "no operator holds it",
            Self::Held => "an operator holds it",
            Self::Ready => "it has its turn anyway",
            Self::Failed => "it cannot be read, or its bounce not be written",
        }
    }
}

impl Act<'_> {
    /// Why this cannot be done to a message that stands there.
    fn refusal(&self, view: &WaitView) -> Option<Refusal> {
        let held = view.hold_follows || view.state == scheduler::State::Waiting(Wait::Operator);
        let standing = Standing::of(&view.state);
        match (self, standing) {
            (Self::Hold(_), _) => None,
            (Self::Release(_), _) => (!held).then_some(Refusal::NotHeld),
            (_, Standing::InFlight) => Some(Refusal::InFlight),
            (_, Standing::InDoubt) => Some(Refusal::InDoubt),
            (Self::Retry, _) if held => Some(Refusal::Held),
            (Self::Retry, Standing::Ready) => Some(Refusal::Ready),
            (Self::Retry | Self::Remove | Self::Bounce, _) => None,
        }
    }
}

impl Queue {
    /// Calls `each` with what was found, piece by piece; says how many envelopes could not be
    /// read. Blocks on the disk where the selection is about senders or domains.
    pub fn search(&self, selection: &Selection, mut each: impl FnMut(Vec<Match>)) -> u64 {
        let ids: HashSet<MessageId> = selection.ids.iter().copied().collect();
        let (mut from, mut unreadable) = (0, 0);
        loop {
            let (mut found, next) = self.piece(from, selection, &ids);
            if selection.reads_envelopes() {
                found.retain_mut(|one| match self.spool.load(one.handle) {
                    Ok((envelope, _)) => {
                        let takes = selection.takes_envelope(&envelope);
                        one.envelope = Some(envelope);
                        takes
                    }
                    Err(LoadError::Read(ReadError::Removed)) => false,
                    Err(_) => {
                        unreadable += 1;
                        false
                    }
                });
            }
            if !found.is_empty() {
                each(found);
            }
            match next {
                Some(next) => from = next,
                None => return unreadable,
            }
        }
    }

    fn piece(
        &self,
        from: usize,
        selection: &Selection,
        ids: &HashSet<MessageId>,
    ) -> (Vec<Match>, Option<usize>) {
        let state = self.lock();
        let to = state.handles.len().min(from + PIECE);
        let mut found = Vec::new();
        for index in from..to {
            let Some(handle) = state.handles[index] else { continue };
            let slot = Slot::try_from(index).unwrap_or(Slot::MAX);
            if let Some(one) = state.find(slot, handle, selection, ids) {
                found.push(one);
            }
        }
        (found, (to < state.handles.len()).then_some(to))
    }

    /// The oldest `limit` messages of a selection, with their envelopes. Blocks on the disk.
    pub fn list(&self, selection: &Selection, limit: usize) -> Listing {
        let mut listing = Listing::default();
        let mut oldest: BinaryHeap<ById> = BinaryHeap::new();
        listing.unreadable = self.search(selection, |found| {
            for one in found {
                listing.found.messages += 1;
                listing.found.recipients += u64::from(one.entry.progress.recipients);
                if oldest.len() < limit {
                    oldest.push(ById(one));
                } else if oldest.peek().is_some_and(|last| one.entry.id < last.0.entry.id) {
                    oldest.pop();
                    oldest.push(ById(one));
                }
            }
        });
        listing.oldest = oldest.into_sorted_vec().into_iter().map(|ById(one)| one).collect();
        for one in listing.oldest.iter_mut().filter(|one| one.envelope.is_none()) {
            one.envelope = self.spool.load(one.handle).ok().map(|(envelope, _)| envelope);
        }
        listing
    }

    /// How far a message has come, if it is still there.
    pub fn progress(&self, slot: Slot, handle: Handle) -> Option<Progress> {
        let state = self.lock();
        state.is(slot, handle).then(|| state.progress_of(slot)).flatten()
    }

    /// Changes messages, and has that written down soon: see [`Queue::written`]. With `dry_run`,
    /// only says what would be done.
    pub fn apply(&self, found: &[Match], act: Act<'_>, dry_run: bool) -> Applied {
        let mut applied = Applied::default();
        let mut releasing: Vec<&Match> = Vec::new();
        for piece in found.chunks(PIECE) {
            let now = self.clock.now();
            let mut state = self.lock();
            let mut ops = Vec::new();
            for one in piece {
                let id = one.entry.id;
                let refusal = match state.view(one) {
                    None => Some(Refusal::Unknown),
                    Some(view) => act.refusal(&view),
                };
                if let Some(refusal) = refusal {
                    applied.refused.push((id, refusal));
                    continue;
                }
                applied.changed.push((id, one.entry.progress.recipients));
                if !dry_run {
                    state.change(one, act, now, &mut ops);
                    releasing.extend(matches!(act, Act::Release(_)).then_some(one));
                }
            }
            // Under the lock, so that the spool hears of things in the order in which they
            // happened.
            self.spool.submit(ops, Vec::new());
        }
        if let Act::Release(pace) = act {
            releasing.sort_by_key(|one| one.entry.received);
            let now = self.clock.now();
            let mut state = self.lock();
            let still = |one: &&&Match| {
                let operator = state.notes.get(&one.slot).and_then(|note| note.operator.as_ref());
                state.is(one.slot, one.handle) && operator.is_none()
            };
            let slots: Vec<Slot> = releasing.iter().filter(still).map(|one| one.slot).collect();
            state.scheduler.release_these(&slots, pace, now);
        }
        self.notify_all();
        applied
    }

    /// Waits until all changes so far are durable.
    pub async fn written(&self) -> Result<(), SpoolError> {
        self.spool.apply(Vec::new()).await
    }

    /// A message for its bounce: it is in flight from now on. None if it is not there, or is in
    /// flight or in doubt.
    pub(crate) fn seize(&self, one: &Match) -> Option<Taken> {
        let now = self.clock.now();
        let mut state = self.lock();
        let seized = state.is(one.slot, one.handle) && state.scheduler.seize(one.slot, now);
        seized.then(|| state.taken(one.slot)).flatten()
    }

    /// Whether a message is still there.
    pub(crate) fn has(&self, one: &Match) -> bool {
        self.lock().is(one.slot, one.handle)
    }

    /// Compares every message with its checksums: how many were read, and what is damaged. Blocks
    /// on the disk.
    pub fn check(&self) -> (u64, Vec<(MessageId, String)>) {
        let (mut read, mut damaged) = (0, Vec::new());
        self.search(&Selection::default(), |found| {
            for one in found {
                match self.spool.check(one.handle) {
                    Ok(()) => read += 1,
                    Err(LoadError::Read(ReadError::Removed)) => {}
                    Err(error) => damaged.push((one.entry.id, error.to_string())),
                }
            }
        });
        (read, damaged)
    }
}

/// Ordered by id, which is the order in which messages came.
struct ById(Match);

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.entry.id == other.0.entry.id
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.entry.id.cmp(&other.0.entry.id)
    }
}

impl State {
    fn is(&self, slot: Slot, handle: Handle) -> bool {
        self.handles.get(slot as usize) == Some(&Some(handle))
    }

    fn view(&self, one: &Match) -> Option<WaitView> {
        let there = self.is(one.slot, one.handle);
        there.then(|| self.scheduler.get(one.slot)).flatten().map(|(_, view)| view)
    }

    fn find(
        &self,
        slot: Slot,
        handle: Handle,
        selection: &Selection,
        ids: &HashSet<MessageId>,
    ) -> Option<Match> {
        let (entry, view) = self.scheduler.get(slot)?;
        let any = |wanted: &[String], name: &str| {
            wanted.is_empty() || wanted.iter().any(|one| one == name)
        };
        if !ids.is_empty() && !ids.contains(&entry.id) {
            return None;
        }
        let states = &selection.states;
        if !states.is_empty() && !states.contains(&Standing::of(&view.state)) {
            return None;
        }
        let instance = self.scheduler.instance_name(entry.instance);
        if !any(&selection.instances, instance.map_or(NO_INSTANCE, |name| name)) {
            return None;
        }
        let decided = entry.progress.upstream.and_then(|key| self.scheduler.upstream_name(key));
        let upstream = match &view.state {
            scheduler::State::Waiting(Wait::Upstream(name)) => Some(name),
            _ => decided,
        };
        if !any(&selection.upstreams, upstream.map_or("", |name| name)) {
            return None;
        }
        let (instance, upstream) = (instance.cloned(), upstream.cloned());
        Some(Match { slot, handle, entry: *entry, view, instance, upstream, envelope: None })
    }

    /// Does to a message what is not refused.
    fn change(&mut self, one: &Match, act: Act<'_>, now: Timestamp, ops: &mut Vec<Op>) {
        let slot = one.slot;
        match act {
            Act::Hold(reason) => {
                self.cached.remove(&slot);
                self.scheduler.hold(slot, now);
                self.note_operator(one, Some(reason), ops);
            }
            Act::Release(_) => {
                // What is in flight goes on at once; the others leave in order, all together.
                if self.scheduler.get(slot).is_some_and(|(_, view)| view.hold_follows) {
                    self.scheduler.unhold(slot, now);
                }
                self.note_operator(one, None, ops);
            }
            Act::Retry => {
                self.scheduler.retry_now(slot, now);
            }
            Act::Remove => {
                let Some((entry, _)) = self.scheduler.get(slot) else { return };
                let (instance, recipients) = (entry.instance, entry.progress.recipients);
                self.leave(slot);
                if let Some(doubtful) = self.doubtful.get_mut(slot as usize) {
                    *doubtful = false;
                }
                let account = self.accounts.entry(instance).or_default();
                account.end(Ended::Removed, u64::from(recipients));
                ops.push(Op::Remove { handle: one.handle });
                ops.push(self.account_op(instance));
            }
            Act::Bounce => unreachable!("bounces are made by delivery"),
        }
    }

    /// Writes down that an operator holds a message, or no longer does.
    fn note_operator(&mut self, one: &Match, reason: Option<&str>, ops: &mut Vec<Op>) {
        let Some(mut progress) = self.progress_of(one.slot) else { return };
        let Some((_, view)) = self.scheduler.get(one.slot) else { return };
        progress.operator = reason.map(str::to_owned);
        progress.due = None;
        progress.due_is_hold = false;
        let held = Standing::of(&view.state) == Standing::Held;
        progress.held_since = held.then_some(view.since.0);
        self.keep_note(one.slot, &progress);
        if view.state == scheduler::State::InFlight && self.noted.contains(&one.slot) {
            // It goes on, and nothing else says that it does.
            progress.in_doubt = Some(UNKNOWN.to_owned());
        } else {
            self.noted.remove(&one.slot);
        }
        ops.push(Op::State { handle: one.handle, state: progress.encode() });
    }
}
