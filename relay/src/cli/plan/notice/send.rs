//! Sends the notices of a wave: who gets one now, who has one, who may not. Owns the order of
//! remembering and sending, and the report. Floor 4.
//!
//! What was ordered or begun is on disk before it is done, and what came of it after. So a break
//! at any point leaves of each address that it was not sent (the next run sends it), that it was
//! sent (no run does, but for `--again`), or, between the end of a mail and its reply, that it is in
//! doubt: nobody gets it twice for that, and an operator decides.

use std::io::{self, Write};

use wavegate_smtp::Address;

use super::{
    Addressee, Letters, NOT_TOLD, NoticeArgs, Ready, failed,
    post::{Outcome, Parcel, Post, Stop, Target},
    ready,
    record::{Entry, Record, State},
    wrong,
};
use crate::{
    cli::{
        Failed, exit,
        output::count,
        plan::{announce::login_name, announced},
    },
    config::{self, Checks, PlanFile, When},
    plan::{Announcement, Timestamp, Wave, in_words},
    world::{SystemClock, WallClock as _},
};

/// Relays that break one mail after the other are given up after so many.
const BREAKS: usize = 3;

/// Sends to those who are due, and reports on all.
pub(super) fn send(
    args: &NoticeArgs,
    file: &PlanFile,
    wave: &Wave,
    letters: &Letters<'_>,
    chosen: Vec<Addressee>,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let now = SystemClock.now();
    let announcement = may_send(file, wave, now)?;
    let way = way(args)?;
    let mut record = Record::open(&file.path, announcement).map_err(|error| failed(&error))?;
    let mut report = Report { out, lost: None, told: 0, tally: Tally::default() };
    let (due, rest) = due(args, &record, chosen);
    let order = order(&record, &due, args.again);
    let late = is_late(file, wave, now) && due.iter().any(|one| !record.is_told(&one.key));
    if late && !args.late {
        return Err(too_late(file, wave, now).into());
    }
    // Every mail is made before the first goes out: what is wrong with one is found now.
    let sequence =
        |key: &str| if order.contains(&key) { record.next(key) } else { record.sequence(key) };
    let mails = ready(letters, due.clone(), sequence).map_err(|found| wrong(&found))?;
    let mails: Vec<Made> = mails.into_iter().map(Made::new).collect::<Result<_, _>>()?;
    let sender = address(letters.sender())?;
    let post = (!mails.is_empty()).then(|| Post::new(way.target, &way.hostname)).transpose()?;
    let ordered = order.iter().map(|key| {
        let entry = record.entry(now, key, record.next(key), State::Ordered);
        Entry { by: Some(login_name()), ..entry }
    });
    let ordered: Vec<Entry> = ordered.collect();
    if !ordered.is_empty() {
        record.append(ordered).map_err(|error| not_noted(&record, &error))?;
    }
    rest.iter().for_each(|one| report.has(one, record.last(&one.key)));
    if let Some(post) = post {
        let mut run = Run { record, post, sender, reason: args.reason.clone(), late };
        run.all(&mails, &mut report)?;
    }
    report.end(&wave.window.wave)
}

/// Where to send, and how we are called there.
struct Way {
    target: Target,
    hostname: String,
}

fn way(args: &NoticeArgs) -> Result<Way, Failed> {
    let Some(path) = &args.from.config else {
        let target = args.relay.clone();
        let needed = || Failed::new(exit::USAGE, "--send needs --relay HOST:PORT, or --config");
        return Ok(Way { target: target.ok_or_else(needed)?, hostname: own_name() });
    };
    let when = When { now: SystemClock.now(), checks: Checks::Relay };
    let config = config::read_at(path, when)
        .map_err(|found| Failed::new(exit::CONFIG, format!("the configuration:\n{found}")))?;
    // One that takes redirected connections only takes none of ours.
    let listener = config.listeners.iter().find(|listener| listener.redirect.is_none());
    let of_listener = || listener.and_then(|listener| Target::of_listener(listener.address));
    let target = args.relay.clone().or_else(of_listener).ok_or_else(|| {
        let name = listener.map_or("no listener", |listener| &listener.name);
        Failed::new(exit::USAGE, format!("{name} has no fixed port; name the relay with --relay"))
    })?;
    Ok(Way { target, hostname: config.relay.hostname })
}

/// This host's name; a literal where it has none that EHLO takes (RFC 5321 4.1.4).
fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let good = !name.is_empty() && name.len() <= 255 && name.chars().all(is_good);
    if good { name.to_owned() } else { "[127.0.0.1]".to_owned() }
}

/// Only what was announced and is still to come: customers hear of nothing that can change.
fn may_send<'a>(
    file: &'a PlanFile,
    wave: &Wave,
    now: Timestamp,
) -> Result<&'a Announcement, Failed> {
    let id = &wave.window.wave;
    let refused = |said: String| Err(Failed::new(exit::CONFIG, said));
    if wave.window.is_over(now) {
        let closes = wave.window.closes;
        return refused(format!("wave {id} is over since {closes}; there is nothing to tell"));
    }
    match announced(&file.plan, wave) {
        Some(announcement) => Ok(announcement),
        None => refused(format!(
            "wave {id} is not announced, so that its window may still change; `wavegate plan \
             announce {id}` first"
        )),
    }
}

fn notice_ms(file: &PlanFile, wave: &Wave) -> u64 {
    file.plan.environment(&wave.environment).map_or(0, |one| one.notice_ms)
}

fn is_late(file: &PlanFile, wave: &Wave, now: Timestamp) -> bool {
    now.saturating_add_ms(notice_ms(file, wave)) > wave.window.opens
}

fn too_late(file: &PlanFile, wave: &Wave, now: Timestamp) -> Failed {
    let id = &wave.window.wave;
    let opens = match wave.window.opens.0.checked_sub(now.0).filter(|ms| *ms > 0) {
        Some(left) => format!("opens in {}", in_words(left)),
        None => "is open already".to_owned(),
    };
    let said = format!(
        "wave {id} {opens}, and environment {:?} asks for {} of notice; nothing was sent: if the \
         customers agreed, add `--late --reason TEXT`",
        wave.environment,
        in_words(notice_ms(file, wave))
    );
    Failed::new(exit::CONFIG, said)
}

/// Who gets one now, and who does not.
fn due(
    args: &NoticeArgs,
    record: &Record,
    chosen: Vec<Addressee>,
) -> (Vec<Addressee>, Vec<Addressee>) {
    let again = args.again && !is_ordered(record, &chosen);
    chosen.into_iter().partition(|one| match record.last(&one.key).map(|last| last.state) {
        None | Some(State::Ordered | State::Refused) => true,
        Some(State::Begun | State::Sent) => again,
    })
}

/// Whether a run of `--again` was broken off: the next run ends it, and orders nothing.
fn is_ordered(record: &Record, chosen: &[Addressee]) -> bool {
    chosen.iter().any(|one| record.last(&one.key).is_some_and(|last| last.state == State::Ordered))
}

/// Who of those that are due is to have one more than he has.
fn order<'a>(record: &Record, due: &'a [Addressee], again: bool) -> Vec<&'a str> {
    let has = |one: &&Addressee| {
        let state = record.last(&one.key).map(|last| last.state);
        again && matches!(state, Some(State::Begun | State::Sent))
    };
    due.iter().filter(has).map(|one| one.key.as_str()).collect()
}

fn not_noted(record: &Record, error: &io::Error) -> Failed {
    let path = record.path().display();
    Failed::new(exit::IO, format!("{path}: {error}; nothing more was sent"))
}

fn address(text: &str) -> Result<Address, Failed> {
    Address::parse(text)
        .map_err(|error| Failed::new(exit::CONFIG, format!("the plan: {text:?}: {error}")))
}

/// A mail that is ready to go.
struct Made {
    ready: Ready,
    recipient: Address,
    mail: Vec<u8>,
}

impl Made {
    fn new(ready: Ready) -> Result<Self, Failed> {
        let (recipient, mail) = (address(&ready.to.contact.email)?, ready.mail()?);
        Ok(Self { ready, recipient, mail })
    }
}

struct Run {
    record: Record,
    post: Post,
    sender: Address,
    reason: Option<String>,
    late: bool,
}

impl Run {
    fn all(&mut self, mails: &[Made], report: &mut Report<'_>) -> Result<(), Failed> {
        let mut breaks = 0;
        for (number, made) in mails.iter().enumerate() {
            let outcome = match self.one(made) {
                Ok(outcome) => outcome,
                Err(Stop::NotNoted(error)) => return Err(not_noted(&self.record, &error)),
                Err(Stop::Unreachable(why)) => {
                    report.stopped(&why, mails.len() - number);
                    return Ok(());
                }
            };
            breaks = if matches!(outcome, Outcome::Broken(_)) { breaks + 1 } else { 0 };
            report.came(made, &outcome);
            if breaks == BREAKS && number + 1 < mails.len() {
                report.stopped("the relay breaks every connection", mails.len() - number - 1);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends one, remembered before its end and after its reply.
    fn one(&mut self, made: &Made) -> Result<Outcome, Stop> {
        let Self { record, post, sender, reason, late } = self;
        let key = &made.ready.to.key;
        let sequence = record.sequence(key);
        let late = *late && !record.is_told(key);
        let mut is_begun = false;
        let parcel = Parcel { sender, recipient: &made.recipient, mail: &made.mail };
        let outcome = post.send(&parcel, || {
            is_begun = true;
            let entry = record.entry(SystemClock.now(), key, sequence, State::Begun);
            record.append(vec![Entry {
                by: Some(login_name()),
                message_id: Some(made.ready.message_id.clone()),
                late,
                reason: reason.clone().filter(|_| late),
                ..entry
            }])
        })?;
        let state = match &outcome {
            Outcome::Sent { .. } => State::Sent,
            // As it is on disk already.
            Outcome::InDoubt(_) => return Ok(outcome),
            // Was never begun: an order stays an order, so that the next run goes on with it.
            Outcome::Broken(_) if !is_begun => return Ok(outcome),
            Outcome::Broken(_) | Outcome::Refused { .. } => State::Refused,
        };
        let mut entry = record.entry(SystemClock.now(), key, sequence, state);
        match &outcome {
            Outcome::Sent { reply, queue_id } => {
                entry.reply = Some(reply.clone());
                entry.queue_id.clone_from(queue_id);
            }
            Outcome::Refused { reply: why, .. } | Outcome::Broken(why) | Outcome::InDoubt(why) => {
                entry.reply = Some(why.clone())
            }
        }
        record.append(vec![entry]).map_err(Stop::NotNoted)?;
        Ok(outcome)
    }
}

/// How many came to what.
#[derive(Debug, Default)]
struct Tally {
    sent: usize,
    refused: usize,
    deferred: usize,
    doubtful: usize,
    unsent: usize,
    unreachable: Option<String>,
}

/// One line for each address, then their sum.
struct Report<'a> {
    out: &'a mut dyn Write,
    /// Why it cannot be written; sending goes on without it.
    lost: Option<io::Error>,
    /// Those that were told before.
    told: usize,
    tally: Tally,
}

impl Report<'_> {
    fn line(&mut self, text: &str) {
        if self.lost.is_none() {
            self.lost = writeln!(self.out, "{text}").and_then(|()| self.out.flush()).err();
        }
    }

    /// One that gets none now.
    fn has(&mut self, one: &Addressee, last: Option<&Entry>) {
        let Some(last) = last else { return };
        let email = &one.contact.email;
        if last.state == State::Sent {
            self.told += 1;
            let said = last.reply.as_deref().unwrap_or_default();
            return self.line(&format!("{email}: has it since {}: {said}", last.at));
        }
        self.tally.doubtful += 1;
        let id = last.message_id.as_deref().unwrap_or("unknown");
        self.line(&format!(
            "{email}: in doubt since {}: the relay may have it (Message-ID <{id}>); if not, send it \
             with `--again --contact {email}`",
            last.at
        ));
    }

    /// One that was tried.
    fn came(&mut self, made: &Made, outcome: &Outcome) {
        let email = &made.ready.to.contact.email;
        match outcome {
            Outcome::Sent { reply, .. } => {
                self.tally.sent += 1;
                self.line(&format!("{email}: sent: {reply}"));
            }
            Outcome::Refused { reply, later: true } => {
                self.tally.deferred += 1;
                self.line(&format!("{email}: not now: {reply}"));
            }
            Outcome::Refused { reply, later: false } => {
                self.tally.refused += 1;
                self.line(&format!("{email}: refused: {reply}"));
            }
            Outcome::Broken(why) => {
                self.tally.deferred += 1;
                self.line(&format!("{email}: not sent: {why}"));
            }
            Outcome::InDoubt(why) => {
                self.tally.doubtful += 1;
                let id = &made.ready.message_id;
                self.line(&format!(
                    "{email}: in doubt: no reply to its end ({why}); the relay may have it \
                     (Message-ID <{id}>); if not, send it with `--again --contact {email}`"
                ));
            }
        }
    }

    /// Nothing more can be sent.
    fn stopped(&mut self, why: &str, left: usize) {
        self.tally.unsent += left;
        self.tally.unreachable = Some(why.to_owned());
    }

    fn end(mut self, wave: &str) -> anyhow::Result<u8> {
        let Tally { sent, refused, deferred, doubtful, unsent, unreachable } =
            std::mem::take(&mut self.tally);
        let mut parts = vec![format!("{} sent", count(sent, "notice"))];
        for (number, what) in [
            (self.told, "sent before"),
            (refused, "refused"),
            (deferred, "not taken now"),
            (doubtful, "in doubt"),
            (unsent, "not tried"),
        ] {
            if number > 0 {
                parts.push(format!("{number} {what}"));
            }
        }
        self.line(&format!("wave {wave}: {}", parts.join(", ")));
        if let Some(why) = unreachable {
            let said = format!(
                "{why}; is the relay running there, and may this host use it? Name it with --relay; \
                 the same command goes on where this one stopped"
            );
            return Err(Failed::new(exit::UNAVAILABLE, said).into());
        }
        let code = match (refused + doubtful, deferred) {
            (0, 0) => 0,
            (0, _) => exit::TEMPORARY,
            _ => NOT_TOLD,
        };
        // Whoever stops reading must not take a failure for success.
        match self.lost {
            Some(error) if code == 0 => Err(error.into()),
            _ => Ok(code),
        }
    }
}
