//! What is seen while the demonstration runs: a table that is redrawn on a terminal, a line a
//! second elsewhere. Floor 4.

use std::{
    fmt,
    io::{self, Write},
    time::Duration,
};

use super::{
    report::{Account, Sink},
    setup::Window,
};
use crate::{plan::Timestamp, waves::InstanceStatus};

/// Draws on a terminal or anywhere else.
pub(super) struct View {
    terminal: bool,
    /// Lines of the table that is on the terminal.
    drawn: usize,
}

impl View {
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, drawn: 0 }
    }

    /// Between two drawings.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_millis(if self.terminal { 200 } else { 1000 })
    }

    /// Draws how things stand.
    pub(super) fn draw(
        &mut self,
        out: &mut dyn Write,
        elapsed: Duration,
        now: Timestamp,
        status: &[InstanceStatus],
        accounts: &[Account],
    ) -> io::Result<()> {
        let window = accounts.first().and_then(|account| account.window);
        let countdown = Countdown { window, now };
        let rows = accounts.iter().map(|account| {
            let found = status.iter().find(|status| *status.name == *account.name);
            (found.map_or("-", |status| status.phase.as_str()), account)
        });
        match self.terminal {
            true => self.redraw(out, elapsed, &countdown, rows)?,
            false => plain(out, elapsed, &countdown, rows)?,
        }
        out.flush()
    }

    fn redraw<'a>(
        &mut self,
        out: &mut dyn Write,
        elapsed: Duration,
        countdown: &Countdown,
        rows: impl Iterator<Item = (&'static str, &'a Account)>,
    ) -> io::Result<()> {
        if self.drawn > 0 {
            // Back to the first line of the table.
            write!(out, "\x1b[{}A", self.drawn)?;
        }
        // Each line clears what is left of the one before it.
        writeln!(out, "{:>5.1} s  {countdown}\x1b[K", elapsed.as_secs_f32())?;
        writeln!(
            out,
            "{:16} {:12} {:>7} {:>7} {:>7} {:>7} {:>8}\x1b[K",
            "instance", "phase", "sent", "legacy", "cloud", "spooled", "in spool"
        )?;
        self.drawn = 2;
        for (phase, account) in rows {
            let Account { name, sent, spooled, waiting, .. } = account;
            let (legacy, cloud) = (account.arrived(Sink::Legacy), account.arrived(Sink::Cloud));
            writeln!(
                out,
                "{name:16} {phase:12} {sent:>7} {legacy:>7} {cloud:>7} {spooled:>7} \
                 {waiting:>8}\x1b[K"
            )?;
            self.drawn += 1;
        }
        Ok(())
    }
}

fn plain<'a>(
    out: &mut dyn Write,
    elapsed: Duration,
    countdown: &Countdown,
    rows: impl Iterator<Item = (&'static str, &'a Account)>,
) -> io::Result<()> {
    write!(out, "{:>4.0} s  {countdown}", elapsed.as_secs_f32())?;
    for (phase, account) in rows {
        let Account { name, sent, waiting, .. } = account;
        let (legacy, cloud) = (account.arrived(Sink::Legacy), account.arrived(Sink::Cloud));
        write!(
            out,
            " | {name} {phase}: {sent} sent, {legacy} legacy, {cloud} cloud, {waiting} in spool"
        )?;
    }
    writeln!(out)
}

/// How far the window is.
struct Countdown {
    window: Option<Window>,
    now: Timestamp,
}

impl fmt::Display for Countdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((opens, closes)) = self.window else { return f.write_str("no window") };
        // Tenths are enough, and never say "0.0 s" of what is not there yet.
        let tenths = |end: Timestamp| (end.0 - self.now.0).div_ceil(100);
        let left = |tenths: u64| format!("{}.{} s", tenths / 10, tenths % 10);
        if self.now < opens {
            write!(f, "window opens in {}", left(tenths(opens)))
        } else if self.now < closes {
            write!(f, "window open, closes in {}", left(tenths(closes)))
        } else {
            f.write_str("window over")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const WINDOW: Window = (Timestamp(4000), Timestamp(8000));

    fn draw(view: &mut View, now: u64) -> String {
        let account = Account::new("acme-prod-1", Some(WINDOW));
        let mut out = Vec::new();
        view.draw(&mut out, Duration::from_millis(now), Timestamp(now), &[], &[account]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn elsewhere_it_is_one_line_without_escapes() {
        let mut view = View::new(false);
        let line = draw(&mut view, 1000);
        let expected = "   1 s  window opens in 3.0 s | acme-prod-1 -: 0 sent, 0 legacy, 0 cloud, \
                        0 in spool\n";
        assert_eq!(line, expected);
        assert!(draw(&mut view, 3999).contains("opens in 0.1 s"));
        assert!(draw(&mut view, 4000).contains("window open, closes in 4.0 s"));
        assert!(draw(&mut view, 8000).contains("window over"));
    }

    #[test]
    fn on_a_terminal_the_table_is_drawn_over() {
        let mut view = View::new(true);
        assert!(!draw(&mut view, 0).contains("\x1b[3A"));
        let again = draw(&mut view, 200);
        assert!(again.starts_with("\x1b[3A"), "{again:?}");
        assert_eq!(again.lines().count(), 3);
    }
}
