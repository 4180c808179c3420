//! The audit log: who ordered what, when, from where, why, and what came of it. Floor 4.
//!
//! Owns `state_dir/audit.log` and the files that it grows into. JSON Lines: an order that is not
//! a dry run has two lines with the same `order`, one before it is carried out and one with how
//! it ended. Each is on disk before anything goes on, so an order that cannot be written down is
//! not carried out, and one that a crash cut short is seen to have no end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{rotation::Rotating, world::WallClock};

/// Its name in the state directory.
pub const NAME: &str = "audit.log";
/// Bytes of one file: some ten thousand orders, and an editor still opens it.
const FILE_BYTES: u64 = 8 << 20;
/// Older files that are kept, as `audit.log.1` (the youngest) and so on: 80 MiB in all.
const OLDER: usize = 9;
/// Bytes of one text in a line: a reason has 500, a selection may name 50,000 messages.
const TEXT: usize = 4096;

/// Who gives an order, and by which way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// A login name, or the address of a client.
    pub by: String,
    /// The control socket with the user behind it, or the API with the client's address.
    pub from: String,
}

/// One line. Stable: fields may be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, in RFC 3339.
    pub time: String,
    /// The order: the same in both of its lines, and in no others.
    pub order: String,
    /// `ordered`, then `done` or `refused`.
    pub state: State,
    /// Who.
    pub by: String,
    /// By which way.
    pub from: String,
    /// What, such as `extend`.
    pub action: String,
    /// Of what: a wave, an instance, messages.
    pub of: String,
    /// More of what was ordered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub with: String,
    /// Why.
    pub reason: String,
    /// What came of it, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub result: String,
}

/// Which line of an order it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is about to be carried out.
    Ordered,
    /// It was carried out.
    Done,
    /// It was not.
    Refused,
}

/// What is ordered.
#[derive(Clone, Debug)]
pub struct Intent<'a> {
    /// What, such as `extend`.
    pub action: &'a str,
    /// Of what.
    pub of: &'a str,
    /// More of it.
    pub with: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// An order that is written down and has no end yet.
#[must_use = "how it ended is to be written down too"]
#[derive(Debug)]
pub struct Begun(Line);

/// The log of one relay.
pub struct Audit {
    path: PathBuf,
    clock: Arc<dyn WallClock>,
    open: Mutex<Open>,
}

struct Open {
    file: Rotating,
    /// Orders begun, so that two of one millisecond differ.
    orders: u64,
}

impl Audit {
    /// The log in a directory. Nothing is touched before the first line.
    pub fn new(state_dir: &Path, clock: Arc<dyn WallClock>) -> Self {
        Self::bounded(state_dir, clock, FILE_BYTES)
    }

    fn bounded(state_dir: &Path, clock: Arc<dyn WallClock>, file_bytes: u64) -> Self {
        let path = state_dir.join(NAME);
        let file = Rotating::new(path.clone(), file_bytes, OLDER);
        Self { path, clock, open: Mutex::new(Open { file, orders: 0 }) }
    }

    /// Writes down that something is about to be done. Blocks until it is on disk.
    pub fn begin(&self, who: &Who, intent: &Intent<'_>) -> io::Result<Begun> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.orders += 1;
        let now = self.clock.now();
        let line = Line {
            time: now.to_string(),
            order: format!("{:x}-{:x}-{:x}", now.0, std::process::id(), open.orders),
            state: State::Ordered,
            by: cut(&who.by),
            from: cut(&who.from),
            action: cut(intent.action),
            of: cut(intent.of),
            with: cut(intent.with),
            reason: cut(intent.reason),
            result: String::new(),
        };
        self.write(&mut open, &line)?;
        Ok(Begun(line))
    }

    /// Writes down how it ended. Blocks until it is on disk.
    pub fn end(&self, begun: Begun, outcome: Result<&str, &str>) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, result) = match outcome {
            Ok(done) => (State::Done, done),
            Err(why) => (State::Refused, why),
        };
        let time = self.clock.now().to_string();
        self.write(&mut open, &Line { time, state, result: cut(result), ..begun.0 })
    }

    /// The file that is written now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, open: &mut Open, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        open.file.append(&text, true)
    }
}

/// A text as far as a line has it.
fn cut(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(TEXT);
    format!("{} ... ({} bytes in all)", &text[..end], text.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{plan::Timestamp, world::memory::SimulatedClock};

    fn audit(directory: &Path) -> Audit {
        bounded(directory, FILE_BYTES)
    }

    fn bounded(directory: &Path, file_bytes: u64) -> Audit {
        let clock = Arc::new(SimulatedClock::new(Timestamp(1_768_888_800_000)));
        Audit::bounded(directory, clock, file_bytes)
    }

    fn who() -> Who {
        Who { by: "ada".into(), from: "socket, user 1000".into() }
    }

    fn intent<'a>(of: &'a str, reason: &'a str) -> Intent<'a> {
        Intent { action: "extend", of, with: "until=2026-01-20T07:00:00Z", reason }
    }

    fn lines(path: &Path) -> Vec<Line> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'), "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn an_order_has_a_line_before_and_one_after() {
        let directory = tempfile::tempdir().unwrap();
        let audit = audit(directory.path());
        let begun = audit.begin(&who(), &intent("w1", "a\nb \"c\"")).unwrap();
        let before = lines(audit.path());
        assert_eq!(before.len(), 1);
        assert_eq!(before[0].state, State::Ordered);
        // The clock goes on meanwhile.
        assert!(before[0].time.starts_with("2026-01-20T06:00:0"), "{}", before[0].time);
        assert_eq!(before[0].reason, "a\nb \"c\"");
        audit.end(begun, Err("wave w1 is migrated")).unwrap();
        let second = audit.begin(&who(), &intent("w2", "x")).unwrap();
        audit.end(second, Ok("it closes later")).unwrap();
        let all = lines(audit.path());
        let states: Vec<State> = all.iter().map(|line| line.state).collect();
        assert_eq!(states, [State::Ordered, State::Refused, State::Ordered, State::Done]);
        assert_eq!(all[0].order, all[1].order);
        assert_ne!(all[1].order, all[2].order);
        assert_eq!(all[1].result, "wave w1 is migrated");
        let mode = fs::metadata(audit.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_a_crash_left_of_a_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let first = audit(directory.path());
        let _ = first.begin(&who(), &intent("w1", "x")).unwrap();
        let good = fs::read(first.path()).unwrap();
        fs::write(first.path(), [good.as_slice(), b"{\"time\":\"20"].concat()).unwrap();
        let next = audit(directory.path());
        let _ = next.begin(&who(), &intent("w2", "x")).unwrap();
        let all = lines(next.path());
        assert_eq!(all.iter().map(|line| line.of.as_str()).collect::<Vec<_>>(), ["w1", "w2"]);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let audit = bounded(directory.path(), 1000);
        let long = "ü".repeat(100_000);
        for number in 0..50 {
            let begun = audit.begin(&who(), &intent(&format!("w{number}"), "x")).unwrap();
            audit.end(begun, Ok("done")).unwrap();
        }
        let mut bytes = 0;
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(Result::unwrap).collect();
        for file in &files {
            bytes += file.metadata().unwrap().len();
            lines(&file.path());
        }
        assert_eq!(files.len(), OLDER + 1);
        assert!(bytes <= 10_000, "{bytes}");
        assert_eq!(lines(audit.path()).last().unwrap().of, "w49");
        // A line that is larger than a file has one of its own, and is cut.
        let begun = audit.begin(&who(), &intent(&long, &long)).unwrap();
        audit.end(begun, Ok(&long)).unwrap();
        let last = lines(audit.path()).pop().unwrap();
        assert!(last.of.ends_with("... (200000 bytes in all)") && last.of.len() < TEXT + 40);
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_later_lines_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let audit = audit(directory.path());
        fs::create_dir(audit.path()).unwrap();
        assert!(audit.begin(&who(), &intent("w1", "x")).is_err());
        fs::remove_dir(audit.path()).unwrap();
        let _ = audit.begin(&who(), &intent("w2", "x")).unwrap();
        assert_eq!(lines(audit.path()).len(), 1);
    }
}
