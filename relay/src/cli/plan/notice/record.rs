//! What was sent to whom, in a file beside the plan. Owns the file and what it says of each
//! address; sends nothing. Floor 4.
//!
//! One JSON object a line, only ever appended to, each synced before what follows from it is done.
//! It is no part of the lock: the lock is read by every relay and is in the plan's digest, and must
//! not change with each mail. Of one address and announcement the last line counts:
//!
//! | state | meaning |
//! | --- | --- |
//! | `ordered` | is to be sent once more |
//! | `begun` | the end of the mail was about to be written; with no line behind it: in doubt |
//! | `sent` | the relay has taken it |
//! | `refused` | the relay has not taken it: it may be sent |

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::lock_of,
    plan::{Announcement, Timestamp},
};

/// The largest file: some hundred thousand notices.
const FILE_MAX: u64 = 256 << 20;

/// What became of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Ordered,
    Begun,
    Sent,
    Refused,
}

/// One line. Fields may be added; lines stay readable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// When it was written.
    pub(super) at: String,
    pub(super) wave: String,
    /// When the announcement was made that it tells of. A wave that is announced anew is told of
    /// anew.
    pub(super) announced: String,
    /// The address, in lower case.
    pub(super) contact: String,
    /// How many notices of this wave the address got before.
    pub(super) sequence: u32,
    pub(super) state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) message_id: Option<String>,
    /// Whether it was later than the environment asks for; `reason` says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) late: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// What the relay said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queue_id: Option<String>,
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0} is in use: another `plan notice --send` is at work; wait until it is done")]
    Busy(PathBuf),
    #[error("{0}:{1}: {2}; put the file back as it was")]
    Broken(PathBuf, usize, String),
    #[error("{0} is the plan or its lock; name the plan waves.toml")]
    Name(PathBuf),
}

/// What is known of one wave.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// None where it is only looked at.
    file: Option<File>,
    wave: String,
    announced: String,
    known: HashMap<String, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last line of the announcement that counts.
    last: Option<Entry>,
    /// Whether the relay has taken one of that announcement.
    is_told: bool,
    /// The highest sequence of any announcement of the wave, and one.
    next: u32,
}

/// Where the record of a plan is.
pub(super) fn record_of(plan: &Path) -> PathBuf {
    plan.with_extension("notices")
}

impl Record {
    /// Looks at what was sent, whoever sends now. Nothing was without an announcement.
    pub(super) fn read(
        plan: &Path,
        announcement: Option<&Announcement>,
    ) -> Result<Self, RecordError> {
        let path = record_of(plan);
        let Some(announcement) = announcement else {
            return Ok(Self::empty(path, None, String::new(), String::new()));
        };
        match File::open(&path) {
            Ok(mut file) => {
                let (text, _) = read_whole(&path, &mut file)?;
                Self::parse(path, None, &text, announcement)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::parse(path, None, "", announcement)
            }
            Err(error) => Err(RecordError::Io(path, error)),
        }
    }

    /// Opens it to send: nobody else does until it is dropped.
    pub(super) fn open(plan: &Path, announcement: &Announcement) -> Result<Self, RecordError> {
        let path = record_of(plan);
        if path == plan || path == lock_of(plan) {
            return Err(RecordError::Name(path));
        }
        let failed = |error: io::Error| RecordError::Io(path.clone(), error);
        let mut file = open_or_create(&path, plan).map_err(failed)?;
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        match rustix::fs::flock(&file, exclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(RecordError::Busy(path)),
            Err(error) => return Err(failed(error.into())),
        }
        let (text, torn) = read_whole(&path, &mut file)?;
        if torn {
            // A line that was not written whole was not synced, and nothing was done for it.
            file.set_len(text.len() as u64).map_err(failed)?;
        }
        Self::parse(path, Some(file), &text, announcement)
    }

    fn empty(path: PathBuf, file: Option<File>, wave: String, announced: String) -> Self {
        Self { path, file, wave, announced, known: HashMap::new() }
    }

    fn parse(
        path: PathBuf,
        file: Option<File>,
        text: &str,
        announcement: &Announcement,
    ) -> Result<Self, RecordError> {
        let announced = announcement.at.to_string();
        let mut record = Self::empty(path, file, announcement.wave.clone(), announced);
        for (number, line) in text.lines().enumerate() {
            let entry: Entry = serde_json::from_str(line).map_err(|error| {
                let error = format!("is not what was written: {error}");
                RecordError::Broken(record.path.clone(), number + 1, error)
            })?;
            record.note(entry);
        }
        Ok(record)
    }

    fn note(&mut self, entry: Entry) {
        if entry.wave != self.wave {
            return;
        }
        let known = self.known.entry(entry.contact.clone()).or_default();
        known.next = known.next.max(entry.sequence.saturating_add(1));
        if entry.announced == self.announced {
            known.is_told |= entry.state == State::Sent;
            known.last = Some(entry);
        }
    }

    /// The last line about an address.
    pub(super) fn last(&self, contact: &str) -> Option<&Entry> {
        self.known.get(contact)?.last.as_ref()
    }

    /// Whether an address was told of the announcement.
    pub(super) fn is_told(&self, contact: &str) -> bool {
        self.known.get(contact).is_some_and(|known| known.is_told)
    }

    /// The sequence of the notice that is sent to an address next, or was last.
    pub(super) fn sequence(&self, contact: &str) -> u32 {
        match self.last(contact) {
            Some(last) => last.sequence,
            None => self.next(contact),
        }
    }

    /// The sequence of one that none of those before had.
    pub(super) fn next(&self, contact: &str) -> u32 {
        self.known.get(contact).map_or(0, |known| known.next)
    }

    /// An entry about an address, still without what came of it.
    pub(super) fn entry(&self, at: Timestamp, contact: &str, sequence: u32, state: State) -> Entry {
        Entry {
            at: at.to_string(),
            wave: self.wave.clone(),
            announced: self.announced.clone(),
            contact: contact.to_owned(),
            sequence,
            state,
            by: None,
            message_id: None,
            late: false,
            reason: None,
            reply: None,
            queue_id: None,
        }
    }

    /// Appends entries. When this returns without an error they are on disk.
    pub(super) fn append(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let mut lines = Vec::new();
        for entry in &entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        file.write_all(&lines)?;
        file.sync_data()?;
        entries.into_iter().for_each(|entry| self.note(entry));
        Ok(())
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file, on disk by its name. Whoever may read the plan may read it.
fn open_or_create(path: &Path, plan: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let mode = std::fs::metadata(plan)?.permissions().mode() & 0o666;
    let file = options.create(true).mode(mode).open(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

/// All whole lines, and whether there is more than that.
fn read_whole(path: &Path, file: &mut File) -> Result<(String, bool), RecordError> {
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| RecordError::Io(path.to_owned(), error))?;
    if bytes.len() as u64 > FILE_MAX {
        let error = format!("is larger than {} MiB; move it away", FILE_MAX >> 20);
        return Err(RecordError::Broken(path.to_owned(), 1, error));
    }
    let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
    let torn = whole < bytes.len();
    bytes.truncate(whole);
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        RecordError::Broken(path.to_owned(), line, "is not UTF-8".to_owned())
    })?;
    Ok((text, torn))
}
