//! What the sink remembers of accepted messages, and the wait for them.
//!
//! Owns the record's form (in memory, and as JSON Lines). Floor: none.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{SinkOptions, Told, content};

/// A recipient with its parameters (NOTIFY, ORCPT), as they came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recipient {
    /// The address between the angle brackets.
    pub address: String,
    /// The parameters.
    pub parameters: Vec<String>,
}

/// An accepted message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Milliseconds since 1970 at the end of its content.
    pub at_ms: u64,
    /// The name of the client's EHLO or HELO.
    pub helo: String,
    /// What it was told of who is behind the session.
    pub told: Told,
    /// The number of the session, from 1, by the order of the first message.
    pub session: u64,
    /// The sender's address between the angle brackets; empty for `<>`.
    pub from: String,
    /// The parameters of MAIL (BODY, SIZE, …), as they came.
    pub parameters: Vec<String>,
    /// The recipients that were accepted.
    pub to: Vec<Recipient>,
    /// Whether it came by BDAT.
    pub chunked: bool,
    /// Bytes of the content, dots undone.
    pub size: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub digest: String,
    /// SHA-256 of what follows the first empty line: header lines on top do not change it.
    pub body_digest: String,
    /// Whether every line ends in CRLF, and no CR or LF stands alone.
    pub proper: bool,
    /// The content itself, or its header, where that is to be kept.
    #[serde(skip)]
    pub content: Option<Vec<u8>>,
}

impl Message {
    /// Takes note of a content as it came over the wire.
    pub(super) fn set_content(&mut self, raw: Vec<u8>, keep: Keep) {
        let plain = if self.chunked { raw } else { content::unstuff(&raw) };
        self.size = plain.len() as u64;
        self.digest = hex(&plain);
        let body = content::body(&plain);
        self.body_digest = hex(body);
        self.content = match keep {
            Keep::Nothing => None,
            Keep::Header => Some(plain[..plain.len() - body.len()].to_vec()),
            Keep::All => Some(plain),
        };
    }
}

/// What of a content is remembered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    Nothing,
    Header,
    All,
}

impl Keep {
    pub(super) fn of(all: bool, header: bool) -> Self {
        match (all, header) {
            (true, _) => Self::All,
            (false, true) => Self::Header,
            (false, false) => Self::Nothing,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where accepted messages are written down.
pub(super) struct Recorder {
    inner: Mutex<Inner>,
    in_memory: bool,
}

struct Inner {
    messages: Vec<Message>,
    file: Option<BufWriter<File>>,
}

impl Recorder {
    /// `None` when nothing is to be recorded.
    pub(super) fn new(options: &SinkOptions) -> anyhow::Result<Option<Self>> {
        if !options.record && options.record_file.is_none() {
            return Ok(None);
        }
        let create = |path: &std::path::PathBuf| {
            File::create(path).with_context(|| format!("cannot create {}", path.display()))
        };
        let file = options.record_file.as_ref().map(create).transpose()?.map(BufWriter::new);
        let inner = Mutex::new(Inner { messages: Vec::new(), file });
        Ok(Some(Self { inner, in_memory: options.record }))
    }

    /// Before the 250 is written, so that whoever has seen it finds the message here.
    pub(super) fn add(&self, message: Message) -> std::io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            serde_json::to_writer(&mut *file, &message)?;
            file.write_all(b"\n")?;
        }
        if self.in_memory {
            inner.messages.push(message);
        }
        Ok(())
    }

    pub(super) fn messages(&self) -> Vec<Message> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).messages.clone()
    }

    pub(super) fn flush(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            // At the end of the sink nobody is left to tell; a short file shows by its count.
            let _full_disk = file.flush();
        }
    }
}

/// Lets threads wait for the n-th message; costs one load a message when nobody waits.
#[derive(Default)]
pub(super) struct Progress {
    accepted: AtomicU64,
    waiting: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Progress {
    pub(super) fn advance(&self) {
        self.accepted.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }

    pub(super) fn wait(&self, n: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.accepted.load(Ordering::SeqCst) < n {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(guard, left);
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        drop(guard);
        self.accepted.load(Ordering::SeqCst) >= n
    }
}
