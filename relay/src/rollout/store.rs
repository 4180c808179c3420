//! What was installed, on disk: `state_dir/plugins`.
//!
//! `rollouts.json` says what is in force and is replaced whole; `DIGEST.wasm` and
//! `DIGEST.wasm.minisig` are components and their signatures. What the first does not name is an
//! upload that nobody has installed, and goes when room is needed.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::State;
use crate::config::signature_of;

/// Its place in the state directory.
pub const DIRECTORY: &str = "plugins";
/// The file of what is in force.
pub const STATE: &str = "rollouts.json";
/// Components that are kept.
pub const FILES: usize = 64;
/// Bytes of them.
const BYTES: u64 = 1 << 30;
/// Bytes of the file of what is in force: a thousand policies.
const STATE_MAX: u64 = 4 << 20;
/// The form that it is written in.
const VERSION: u32 = 1;

/// Why what was installed is not known, or not kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The machine.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what a relay has written.
    #[error(
        "{path} is not understood ({why}), so it is not known which plugins are installed: put a \
         good copy there, start the version of the relay that wrote it, or remove it to run what \
         the configuration names"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No room.
    #[error(
        "there is no room for another component in {path}: {FILES} files and {} MiB are kept, and \
         all are in use; roll back what is not needed any more",
        BYTES >> 20
    )]
    Full {
        /// The directory.
        path: PathBuf,
    },
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    #[serde(flatten)]
    state: State,
}

/// What was installed.
#[derive(Debug)]
pub struct Store {
    state_dir: PathBuf,
    state: Mutex<State>,
    /// What is known is not on disk.
    behind: AtomicBool,
}

impl Store {
    /// Reads what is there; nothing is made.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let state = Mutex::new(read(state_dir)?);
        Ok(Self { state_dir: state_dir.to_owned(), state, behind: AtomicBool::new(false) })
    }

    /// Reads it again: another process has had it meanwhile.
    pub fn refresh(&self) -> Result<(), StoreError> {
        *self.lock() = read(&self.state_dir)?;
        Ok(())
    }

    /// Where it is.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// What is known.
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// Where a component is kept.
    pub fn component(state_dir: &Path, digest: &str) -> PathBuf {
        state_dir.join(DIRECTORY).join(format!("{digest}.wasm"))
    }

    /// Changes what is known: on disk first, or not at all. Blocks.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.lock();
        let mut next = state.clone();
        let done = change(&mut next);
        if next != *state {
            self.write(&next)?;
            *state = next;
        }
        Ok(done)
    }

    /// Changes what is known, on disk or not: what is bad must go though the disk is full. Why it is
    /// not on disk; [`Self::catch_up`] tries again. Blocks.
    pub fn insist<T>(&self, change: impl FnOnce(&mut State) -> T) -> (T, Result<(), StoreError>) {
        let mut state = self.lock();
        let before = state.clone();
        let done = change(&mut state);
        let written = if *state == before { Ok(()) } else { self.write(&state) };
        if written.is_err() {
            self.behind.store(true, Relaxed);
        }
        (done, written)
    }

    /// What the configuration goes against is not installed any more. Blocks.
    pub fn forget(&self, policies: &[String]) {
        let (_, written) = self.insist(|state| {
            policies.iter().for_each(|policy| drop(state.policies.remove(policy)));
        });
        if let Err(error) = written {
            tracing::error!(%error, "what is not installed any more is still written down");
        }
    }

    /// Writes down what could not be written. Blocks.
    pub fn catch_up(&self) -> Result<(), StoreError> {
        match self.behind.load(Relaxed) {
            true => self.write(&self.lock()),
            false => Ok(()),
        }
    }

    /// A file for an upload, in the directory where it is to stay.
    pub fn upload(&self) -> Result<NamedTempFile, StoreError> {
        let directory = self.directory()?;
        let made = tempfile::Builder::new().prefix(UPLOAD).tempfile_in(&directory);
        made.map_err(io_at(&directory))
    }

    /// Keeps an upload as the component of this digest, which the caller has found it to be.
    pub fn keep(&self, upload: NamedTempFile, digest: &str) -> Result<(), StoreError> {
        // Under the lock: what is about to be installed is not taken for room.
        let state = self.lock();
        let path = Self::component(&self.state_dir, digest);
        let failed = io_at(&path);
        let size = upload.as_file().metadata().map_err(&failed)?.len();
        self.make_room(&state, digest, size)?;
        upload.as_file().sync_all().map_err(&failed)?;
        upload.persist(&path).map_err(|error| failed(error.error))?;
        self.sync()
    }

    /// Keeps the signature of a component.
    pub fn keep_signature(&self, digest: &str, text: &[u8]) -> Result<(), StoreError> {
        let path = signature_of(&Self::component(&self.state_dir, digest));
        self.replace(&path, text)
    }

    /// Takes oldest uploads away until there is room for one more.
    fn make_room(&self, state: &State, digest: &str, size: u64) -> Result<(), StoreError> {
        let directory = self.state_dir.join(DIRECTORY);
        let used: BTreeSet<&str> = state.digests().chain([digest]).collect();
        let (mut files, mut bytes) = (1usize, size);
        let mut spare: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&directory).map_err(io_at(&directory))?.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let name = entry.file_name();
            let Some(of) = name.to_str().and_then(|name| name.strip_suffix(".wasm")) else {
                continue;
            };
            if of == digest {
                continue;
            }
            files += 1;
            bytes = bytes.saturating_add(metadata.len());
            if !used.contains(of) {
                let at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                spare.push((at, metadata.len(), entry.path()));
            }
        }
        spare.sort();
        for (_, size, path) in spare {
            if files <= FILES && bytes <= BYTES {
                break;
            }
            fs::remove_file(&path).map_err(io_at(&path))?;
            // There may be none.
            let _ = fs::remove_file(signature_of(&path));
            files -= 1;
            bytes = bytes.saturating_sub(size);
        }
        match files <= FILES && bytes <= BYTES {
            true => Ok(()),
            false => Err(StoreError::Full { path: directory }),
        }
    }

    fn write(&self, state: &State) -> Result<(), StoreError> {
        let directory = self.directory()?;
        let written = Written { version: VERSION, state: state.clone() };
        let path = directory.join(STATE);
        let text = serde_json::to_vec_pretty(&written).map_err(io::Error::other);
        self.replace(&path, &text.map_err(io_at(&path))?)?;
        self.behind.store(false, Relaxed);
        Ok(())
    }

    /// Writes a file whole, or leaves what was there.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let directory = self.directory()?;
        let write = || -> io::Result<()> {
            let mut file = NamedTempFile::with_prefix_in(UPLOAD, &directory)?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(io_at(path))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), StoreError> {
        let directory = self.state_dir.join(DIRECTORY);
        File::open(&directory).and_then(|open| open.sync_all()).map_err(io_at(&directory))
    }

    /// The directory, made where it is not there.
    fn directory(&self) -> Result<PathBuf, StoreError> {
        let directory = self.state_dir.join(DIRECTORY);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(io_at(&directory)(error))
            }
            _ => Ok(directory),
        }
    }

    /// Removes what a crash left of uploads. For a process that is alone with the directory.
    pub fn clear(&self) {
        let Ok(entries) = fs::read_dir(self.state_dir.join(DIRECTORY)) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(UPLOAD)) {
                // One that stays takes room until the next start.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the name of a file begins that is not complete.
const UPLOAD: &str = ".new-";

fn io_at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { path: path.to_owned(), source }
}

fn read(state_dir: &Path) -> Result<State, StoreError> {
    let path = state_dir.join(DIRECTORY).join(STATE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Err(source) => return Err(StoreError::Io { path, source }),
        Ok(file) => file,
    };
    let mut text = Vec::new();
    file.take(STATE_MAX + 1).read_to_end(&mut text).map_err(io_at(&path))?;
    let damaged = |why: String| StoreError::Damaged { path: path.clone(), why };
    if text.len() as u64 > STATE_MAX {
        return Err(damaged(format!("it is larger than {} MiB", STATE_MAX >> 20)));
    }
    let written: Written =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    match written.version {
        VERSION => {}
        other => return Err(damaged(format!("it is of version {other}"))),
    }
    // They become names of files.
    let is_digest = |digest: &str| {
        digest.len() == 64
            && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    if let Some(digest) = written.state.digests().find(|digest| !is_digest(digest)) {
        return Err(damaged(format!("{digest:?} is no BLAKE3 digest")));
    }
    Ok(written.state)
}
