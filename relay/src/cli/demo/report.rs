//! The books of the demonstration, and whether they add up. Pure: times come in with what is
//! booked. Floor 4.

use std::{
    collections::HashSet,
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::setup::Window;
use crate::plan::Timestamp;

/// Where a message arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    /// The old infrastructure.
    Legacy,
    /// The new one.
    Cloud,
}

/// One message at one sink.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) number: u64,
    pub(super) sink: Sink,
    /// The end of its data.
    pub(super) at: Timestamp,
}

/// What is booked for one instance. Its messages are numbered from 0.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: &'static str,
    pub(super) window: Option<Window>,
    /// Messages made.
    pub(super) sent: u64,
    /// Messages for which the relay said 250.
    pub(super) confirmed: u64,
    /// Answers 4xx; a message may get many.
    pub(super) deferrals: u64,
    /// Messages that the spool took, of those.
    pub(super) spooled: u64,
    /// Messages that are in the spool now.
    pub(super) waiting: u64,
    pub(super) arrivals: Vec<Arrival>,
}

impl Account {
    pub(super) fn new(name: &'static str, window: Option<Window>) -> Self {
        let arrivals = Vec::new();
        Self { name, window, sent: 0, confirmed: 0, deferrals: 0, spooled: 0, waiting: 0, arrivals }
    }

    /// Arrivals at one sink.
    pub(super) fn arrived(&self, sink: Sink) -> usize {
        self.arrivals.iter().filter(|one| one.sink == sink).count()
    }

    /// Where a message may arrive at a time; nowhere in the window.
    fn right_sink(&self, at: Timestamp) -> Option<Sink> {
        match self.window {
            Some((_, closes)) if at >= closes => Some(Sink::Cloud),
            Some((opens, _)) if at >= opens => None,
            _ => Some(Sink::Legacy),
        }
    }
}

/// The accounts, for senders and sinks to write in.
pub(super) struct Ledger {
    accounts: Mutex<Vec<Account>>,
}

impl Ledger {
    pub(super) fn new(accounts: Vec<Account>) -> Self {
        Self { accounts: Mutex::new(accounts) }
    }

    /// Books something for the `index`th instance.
    pub(super) fn book(&self, index: usize, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.lock().get_mut(index) {
            change(account);
        }
    }

    /// Books an arrival; what is of no instance here was not sent by us.
    pub(super) fn arrived(&self, name: &str, arrival: Arrival) {
        if let Some(account) = self.lock().iter_mut().find(|account| account.name == name) {
            account.arrivals.push(arrival);
        }
    }

    /// The accounts as they are now.
    pub(super) fn accounts(&self) -> Vec<Account> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the messages of each instance.
pub(super) struct Report {
    lines: Vec<Line>,
}

/// One instance's. Everything from `lost` on must be 0.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    name: &'static str,
    sent: u64,
    /// Messages, not arrivals, by the first of these.
    legacy: u64,
    cloud: u64,
    spooled: u64,
    deferrals: u64,
    /// Sent and arrived nowhere.
    lost: u64,
    /// Arrivals of what had arrived before.
    duplicated: u64,
    /// Arrivals within the window.
    leaked: u64,
    /// Arrivals at the wrong sink.
    misrouted: u64,
    /// Arrivals of what was never sent, and 250s for what never arrived or the other way round.
    unexplained: u64,
}

impl Report {
    /// Adds up.
    pub(super) fn of(accounts: &[Account]) -> Self {
        Self { lines: accounts.iter().map(Line::of).collect() }
    }

    /// Whether every message arrived once, at its time, in its place.
    pub(super) fn adds_up(&self) -> bool {
        self.lines.iter().all(Line::adds_up) && self.total(|line| line.sent) > 0
    }

    /// For people.
    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "\n{:16} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>10}",
            "instance",
            "sent",
            "legacy",
            "cloud",
            "spooled",
            "451s",
            "lost",
            "twice",
            "leaked",
            "misrouted"
        )?;
        for line in &self.lines {
            let Line { name, sent, legacy, cloud, spooled, deferrals, .. } = line;
            let Line { lost, duplicated, leaked, misrouted, .. } = line;
            writeln!(
                out,
                "{name:16} {sent:>7} {legacy:>7} {cloud:>7} {spooled:>7} {deferrals:>6} {lost:>6} \
                 {duplicated:>6} {leaked:>7} {misrouted:>10}"
            )?;
        }
        let sent = self.total(|line| line.sent);
        let (legacy, cloud) = (self.total(|line| line.legacy), self.total(|line| line.cloud));
        writeln!(out)?;
        if self.adds_up() {
            return writeln!(
                out,
                "It adds up: {sent} sent = {legacy} at legacy + {cloud} at cloud, {} of them \
                 spooled first; none lost, none twice, none in its window, none in the wrong place.",
                self.total(|line| line.spooled),
            );
        }
        let unexplained = self.total(|line| line.unexplained);
        writeln!(
            out,
            "It does NOT add up: {sent} sent, {legacy} at legacy, {cloud} at cloud, {} lost, {} \
             twice, {} leaked, {} misrouted, {unexplained} unexplained.",
            self.total(|line| line.lost),
            self.total(|line| line.duplicated),
            self.total(|line| line.leaked),
            self.total(|line| line.misrouted),
        )
    }

    fn total(&self, of: impl Fn(&Line) -> u64) -> u64 {
        self.lines.iter().map(of).sum()
    }
}

impl Line {
    fn of(account: &Account) -> Self {
        let Account { name, sent, spooled, deferrals, .. } = *account;
        let mut line = Self { name, sent, spooled, deferrals, ..Self::default() };
        let mut seen = HashSet::new();
        for arrival in &account.arrivals {
            if arrival.number >= sent {
                line.unexplained += 1;
            } else if !seen.insert(arrival.number) {
                line.duplicated += 1;
            } else if arrival.sink == Sink::Legacy {
                line.legacy += 1;
            } else {
                line.cloud += 1;
            }
            match account.right_sink(arrival.at) {
                None => line.leaked += 1,
                Some(sink) => line.misrouted += u64::from(sink != arrival.sink),
            }
        }
        let arrived = line.legacy + line.cloud;
        line.lost = sent - arrived;
        line.unexplained += account.confirmed.abs_diff(arrived);
        line
    }

    fn adds_up(&self) -> bool {
        let Self { lost, duplicated, leaked, misrouted, unexplained, .. } = self;
        self.sent == self.legacy + self.cloud
            && [lost, duplicated, leaked, misrouted, unexplained].iter().all(|count| **count == 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Three messages before the window, three after it; the window is [100, 200).
    fn good() -> Account {
        let window = Some((Timestamp(100), Timestamp(200)));
        let mut account = Account::new("a", window);
        account.sent = 6;
        account.confirmed = 6;
        account.spooled = 2;
        account.deferrals = 9;
        for (number, sink, at) in [
            (0, Sink::Legacy, 0),
            (1, Sink::Legacy, 50),
            (2, Sink::Legacy, 99),
            (4, Sink::Cloud, 200),
            (3, Sink::Cloud, 201),
            (5, Sink::Cloud, 300),
        ] {
            account.arrivals.push(Arrival { number, sink, at: Timestamp(at) });
        }
        account
    }

    /// The report of one account after a change for the worse, as text and as a line.
    fn bad(change: impl FnOnce(&mut Account)) -> Line {
        let mut account = good();
        change(&mut account);
        let mut report = Report::of(&[good(), account]);
        assert!(!report.adds_up());
        let mut out = Vec::new();
        report.print(&mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("does NOT add up"));
        report.lines.remove(1)
    }

    #[test]
    fn a_good_run_adds_up() {
        let report = Report::of(&[good()]);
        assert!(report.adds_up());
        let expected = Line {
            name: "a",
            sent: 6,
            legacy: 3,
            cloud: 3,
            spooled: 2,
            deferrals: 9,
            ..Line::default()
        };
        assert_eq!(report.lines, [expected]);
        let mut out = Vec::new();
        report.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("It adds up: 6 sent = 3 at legacy + 3 at cloud"), "{text}");
    }

    #[test]
    fn an_instance_without_a_window_belongs_to_legacy() {
        let mut account = good();
        account.window = None;
        account.arrivals.iter_mut().for_each(|one| one.sink = Sink::Legacy);
        assert!(Report::of(&[account.clone()]).adds_up());
        account.arrivals[0].sink = Sink::Cloud;
        assert_eq!(Report::of(&[account]).lines[0].misrouted, 1);
    }

    #[test]
    fn a_loss_is_found() {
        let line = bad(|account| {
            account.arrivals.pop();
        });
        assert_eq!((line.lost, line.cloud, line.unexplained), (1, 2, 1));
        // Not confirmed either: it is still in the sender's queue, which is no delivery.
        let line = bad(|account| {
            account.arrivals.pop();
            account.confirmed -= 1;
        });
        assert_eq!((line.lost, line.unexplained), (1, 0));
    }

    #[test]
    fn a_duplicate_is_found_even_where_it_hides_a_loss() {
        let line = bad(|account| account.arrivals.push(account.arrivals[5]));
        assert_eq!((line.duplicated, line.lost), (1, 0));
        let line = bad(|account| account.arrivals[5].number = 4);
        assert_eq!((line.duplicated, line.lost), (1, 1));
    }

    #[test]
    fn a_leak_is_found_at_both_ends_of_the_window_and_at_both_sinks() {
        for (at, sink) in [(100, Sink::Legacy), (199, Sink::Cloud)] {
            let line = bad(|account| {
                account.arrivals[3] = Arrival { number: 4, sink, at: Timestamp(at) };
            });
            assert_eq!((line.leaked, line.misrouted, line.lost), (1, 0, 0));
        }
    }

    #[test]
    fn a_wrong_place_is_found_on_both_sides_of_the_window() {
        assert_eq!(bad(|account| account.arrivals[0].sink = Sink::Cloud).misrouted, 1);
        assert_eq!(bad(|account| account.arrivals[5].sink = Sink::Legacy).misrouted, 1);
    }

    #[test]
    fn what_cannot_be_explained_is_found() {
        let line = bad(|account| {
            account.arrivals.push(Arrival { number: 6, sink: Sink::Cloud, at: Timestamp(300) });
        });
        assert_eq!((line.unexplained, line.lost), (1, 0));
        assert_eq!(bad(|account| account.confirmed -= 1).unexplained, 1);
    }

    #[test]
    fn nothing_sent_proves_nothing() {
        assert!(!Report::of(&[Account::new("a", None)]).adds_up());
    }
}
