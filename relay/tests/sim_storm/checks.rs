//! What must hold after a storm, of everything that was recorded in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    record::{Book, Record, Tally},
    senders::{self, Letter},
    settings::INSTANCES,
};
use crate::sim::sink::Arrived;

/// A storm that is over.
pub struct Outcome {
    pub record: Record,
}

/// Arrivals, sorted.
#[derive(Default)]
struct Found {
    /// Copies that an upstream took, or may have taken, by message and recipient.
    copies: BTreeMap<(String, String), u64>,
    /// Recipients who have it for certain.
    arrived: BTreeSet<String>,
    /// Recipients whose sender was told that they do not get it.
    reported: BTreeSet<String>,
    /// Copies of notifications, by their own name.
    notifications: BTreeMap<String, u64>,
}

impl Outcome {
    /// The whole history, to compare it.
    pub fn lines(&self) -> Vec<String> {
        self.record.lock().lines.clone()
    }

    /// Checks it all; what the storm consisted of.
    pub fn check(&self) -> Tally {
        let mut guard = self.record.lock();
        let book = &mut *guard;
        let found = sort(book);
        check_windows(book);
        let double = check_copies(book, &found);
        for letter in &book.letters {
            check_letter(book, &found, letter);
        }
        let tally = &mut book.tally;
        tally.messages = book.letters.len() as u64;
        tally.recipients = book.letters.iter().map(|letter| letter.to.len() as u64).sum();
        tally.arrivals = book.arrived.len() as u64;
        tally.notifications = found.notifications.values().sum();
        tally.in_doubt = book.doubts.values().sum();
        tally.double = double;
        tally.clone()
    }
}

fn sort(book: &Book) -> Found {
    let mut found = Found::default();
    // One that was not answered may have been taken.
    for one in book.arrived.iter().filter(|one| one.code == 250 || one.code == 0) {
        if is_notification(one) {
            *found.notifications.entry(header(one, "Message-ID:").to_owned()).or_default() += 1;
            let lines = one.body.lines().filter(|line| line.starts_with("Final-Recipient:"));
            let recipients = lines.filter_map(|line| line.split(';').nth(1));
            let recipients = recipients.map(|text| text.trim().to_owned());
            for recipient in recipients {
                assert!(!recipient.contains("-null"), "a bounce for <>: {recipient}");
                assert!(!recipient.starts_with("news-"), "a bounce of a bounce: {recipient}");
                if one.code == 250 {
                    found.reported.insert(recipient);
                }
            }
            continue;
        }
        assert!(!one.id().is_empty(), "no id: {one:?}");
        for recipient in &one.to {
            *found.copies.entry((one.id().to_owned(), recipient.clone())).or_default() += 1;
            if one.code == 250 {
                found.arrived.insert(recipient.clone());
            }
        }
    }
    found
}

fn is_notification(one: &Arrived) -> bool {
    one.from.is_empty() && one.body.contains("multipart/report")
}

fn header<'a>(one: &'a Arrived, name: &str) -> &'a str {
    let line = one.body.lines().find(|line| line.starts_with(name));
    line.map_or("", |line| line[name.len()..].trim())
}

/// Nothing of an instance arrives from the opening of its window until its release.
fn check_windows(book: &Book) {
    for one in &book.arrived {
        let Some(instance) = instance(book, one) else { continue };
        let leaked = book.frozen.iter().any(|(frozen, from, to)| {
            *frozen == instance && *from < one.at && to.is_none_or(|to| one.at < to)
        });
        assert!(
            !leaked,
            "{} leaked at {}: {:?} to {:?}",
            INSTANCES[instance], one.at, one.from, one.to
        );
    }
}

/// The instance that an arrival belongs to.
fn instance(book: &Book, one: &Arrived) -> Option<usize> {
    let to = one.to.first()?;
    if is_notification(one) {
        let domain = to.split('@').nth(1)?.strip_suffix(".example")?;
        return INSTANCES.iter().position(|name| *name == domain);
    }
    let number: usize = to.split('-').nth(1)?.parse().ok()?;
    let instance = book.letters[number].instance;
    (instance != senders::STRANGER).then_some(instance)
}

/// Nothing arrives twice unless the relay said that it may; how much did.
fn check_copies(book: &Book, found: &Found) -> u64 {
    let mut double = 0;
    for ((id, recipient), copies) in &found.copies {
        let doubts = book.doubts.get(id).copied().unwrap_or(0);
        assert!(
            *copies <= 1 + doubts,
            "{recipient} of {id} has {copies} copies, but it was in doubt {doubts} times"
        );
        double += copies - 1;
    }
    let extra: u64 = found.notifications.values().map(|copies| copies - 1).sum();
    let own = book.doubts.iter().filter(|(id, _)| !book.received.contains(*id));
    let doubts: u64 = own.map(|(_, doubts)| doubts).sum();
    assert!(extra <= doubts, "{extra} notifications too many, {doubts} in doubt");
    double + extra
}

/// What was promised arrived, or the sender was told, or must not be told.
fn check_letter(book: &Book, found: &Found, letter: &Letter) {
    assert!(letter.told.is_some(), "its sender was told nothing: {letter:?}");
    if !letter.is_promised() {
        return;
    }
    let id = letter.told.as_ref().and_then(|told| told.split("queued as ").nth(1));
    let bounced = id.is_some_and(|id| book.bounced.contains(id));
    for recipient in &letter.to {
        if found.arrived.contains(recipient) || found.reported.contains(recipient) {
            continue;
        }
        let gave_up = |address: &String| book.gave_up.contains(address);
        // A bounce of a bounce is nobody's, and `<>` gets none.
        let untold = match letter.from.is_empty() {
            true => gave_up(recipient) || senders::is_refused(recipient) || bounced,
            false => gave_up(&letter.from),
        };
        assert!(untold, "{recipient} is lost: {letter:?}");
    }
}
