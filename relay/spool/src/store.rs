//! The open store: its parts, its options, and what is small. Floor 2.
//!
//! Opening is in `recover`, commits in `commit`, what is done when there is time in `maintain`
//! and `snapshot`. A [`Receipt`] is made here and nowhere else.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    attempts::{AttemptFile, Attempts},
    disk::{Disk, DiskFile, How, write_all},
    error::{Damage, OpenError, StoreError},
    format::{self, MessageKey},
    journal::{self, Journal},
    maintain::Compaction,
    reader::{Reader, Shared},
    recover, segment,
    slab::Handle,
    snapshot::Snapshot,
};

/// So near to the reserve the disk is asked each time: others write to it too.
const NEAR_RESERVE: u64 = 256 << 20;

pub(crate) const LOCK: &str = "lock";
pub(crate) const CLEAN: &str = "clean";
pub(crate) const BODIES: &str = "bodies";
pub(crate) const DAMAGED: &str = "damaged";

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// A segment that has reached this size gets no more messages. 64 MiB: few files, and not
    /// much to copy or to wait for when one is mostly dead.
    pub segment_bytes: u64,
    /// Bytes that all files of the store may have before it takes no more messages.
    pub quota: u64,
    /// Bytes that must stay free on the disk.
    pub reserve: u64,
    /// A journal is replaced when it is larger than twice what is live and this. 8 MiB: some
    /// 80,000 changes, and nothing to read at an opening.
    pub journal_bytes: u64,
    /// Attempts that may be under way at once.
    pub attempt_slots: u32,
    /// The kernel's boot id: another one than at the last opening means that the machine went
    /// down. It also is the salt of a new store's checksums.
    pub boot_id: [u8; 16],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            quota: 10 << 30,
            reserve: 1 << 30,
            journal_bytes: 8 << 20,
            attempt_slots: 4096,
            boot_id: [0; 16],
        }
    }
}

/// How the store was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// By [`Store::close`].
    Clean,
    /// The process ended, the machine did not: all that was written is there.
    Crash,
    /// The machine went down: the last changes may be undone. Messages that were removed
    /// may be back, states may be older ones.
    PowerLoss,
    /// There was none.
    New,
}

/// A message that was found when the store was opened.
#[derive(Debug)]
pub struct Recovered<'a> {
    /// To read, change and remove it.
    pub handle: Handle,
    /// Its name.
    pub key: MessageKey,
    /// Its last state.
    pub state: &'a [u8],
    /// Length of its body.
    pub body_len: u64,
    /// The journal was damaged and this message is back from its segment: it may have been
    /// removed before, or its state may have been another one.
    pub doubtful: bool,
}

/// What opening gives.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    /// The store.
    pub store: Store<D>,
    /// How it was left.
    pub shutdown: Shutdown,
    /// Messages whose attempt was under way: they may have been delivered. Some may no longer
    /// be in the store. See [`Store::end_recovery`].
    pub interrupted: Vec<MessageKey>,
    /// The caller's values.
    pub values: Vec<(Vec<u8>, Vec<u8>)>,
    /// What could not be read as it was written.
    pub damage: Vec<Damage>,
}

/// A piece of a body: shared, never copied.
pub type Part = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The body of a new message.
pub enum NewBody {
    /// In memory: these pieces, one after the other.
    Parts(Vec<Part>),
    /// In a file on the store's file system, which becomes the store's. If the operation is
    /// refused as [`StoreError::Full`] by quota or reserve, the file is left where it is; after
    /// any other error it may be gone.
    File {
        /// The file: absolute, or from the store's directory.
        path: PathBuf,
        /// Bytes in front of the file's.
        head: Vec<u8>,
        /// The length of the file.
        len: u64,
    },
}

impl std::fmt::Debug for NewBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Parts(parts) => write!(f, "Parts({})", parts.len()),
            Self::File { path, len, .. } => write!(f, "File({}, {len})", path.display()),
        }
    }
}

/// One change of the store.
#[derive(Debug)]
pub enum Op {
    /// Takes a message.
    Accept {
        /// Its name, never used before.
        key: MessageKey,
        /// What never changes.
        envelope: Vec<u8>,
        /// What may change.
        state: Vec<u8>,
        /// Its body.
        body: NewBody,
    },
    /// Changes a message's state.
    State {
        /// The message.
        handle: Handle,
        /// The new state.
        state: Vec<u8>,
    },
    /// Removes a message.
    Remove {
        /// The message.
        handle: Handle,
    },
    /// Sets or removes a value of the caller's.
    Value {
        /// Its name.
        key: Vec<u8>,
        /// `None` removes it.
        value: Option<Vec<u8>>,
    },
    /// All changes of this batch, and those before it, are durable before it completes.
    SyncJournal,
}

/// The proof that a message is durable. Only a completed sync makes one.
#[derive(Debug)]
#[must_use = "a message that was made durable may be answered 250"]
pub struct Receipt(());

/// What an operation did.
#[derive(Debug)]
pub enum Done {
    /// The message is durable.
    Accepted(Handle, Receipt),
    /// The change is made; it survives the process, and the machine from the next sync on.
    Done,
}

impl Done {
    /// To be called where the sync has returned.
    pub(crate) fn accepted(handle: Handle) -> Self {
        Self::Accepted(handle, Receipt(()))
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Messages.
    pub messages: u64,
    /// Bytes of the messages, with envelopes and headers.
    pub live_bytes: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// The quota.
    pub quota: u64,
    /// Bytes free on the disk; 0 if that could not be asked.
    pub free: u64,
    /// Segments.
    pub segments: u64,
}

/// What is known of a segment.
#[derive(Debug, Default)]
pub(crate) struct Info {
    /// Its length.
    pub(crate) length: u64,
    /// Where the journal's knowledge ends; beyond the length where a failed batch was cut off.
    pub(crate) known: u64,
    pub(crate) live_bytes: u64,
    pub(crate) live: u32,
    /// A record in it could not be copied: it is left alone until it is empty.
    pub(crate) stuck: bool,
}

/// The segment that is written.
#[derive(Debug)]
pub(crate) struct Current<F> {
    pub(crate) number: u32,
    pub(crate) file: Arc<F>,
    pub(crate) seed: u32,
    pub(crate) end: u64,
}

/// An open store. There is one, on one thread.
#[derive(Debug)]
pub struct Store<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
    pub(crate) attempts: Arc<AttemptFile<D>>,
    pub(crate) options: Options,
    pub(crate) journal: Journal<D::File>,
    pub(crate) snapshot: Option<Snapshot<D::File>>,
    pub(crate) compaction: Option<Compaction>,
    pub(crate) next_journal: u32,
    /// Journals that are to be removed once the name of the present one is durable.
    pub(crate) old_journals: Vec<u32>,
    pub(crate) segments: BTreeMap<u32, Info>,
    pub(crate) current: Option<Current<D::File>>,
    pub(crate) next_segment: u32,
    /// Ends of segments that the journal has to be told before anything else.
    pub(crate) owed: Vec<(u32, u64)>,
    pub(crate) values: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) next_seq: u32,
    /// Lengths of bodies that are files of their own, by slot.
    pub(crate) externals: HashMap<u32, u64>,
    /// Bodies of removed messages; their files go when the removal is durable.
    pub(crate) doomed: Vec<(MessageKey, u64)>,
    /// Bodies of messages that were refused after their file was taken. They stay until `owed` is
    /// durable: before, an opening may find their records.
    pub(crate) refused: Vec<(MessageKey, u64)>,
    pub(crate) bodies_bytes: u64,
    pub(crate) live_bytes: u64,
    /// Of all state entries of this journal, for an estimate of what a snapshot would have.
    pub(crate) put_bytes: u64,
    pub(crate) puts: u64,
    pub(crate) damage: Vec<Damage>,
    /// A segment was deleted and the directory not synced since.
    pub(crate) names_changed: bool,
    /// Bytes free on the disk when that was asked last, less what was written since; none: it is
    /// to be asked again. Asking costs as much as a write.
    pub(crate) free: Cell<Option<u64>>,
    /// Locked as long as it is open.
    pub(crate) lock: D::File,
}

impl<D: Disk> Store<D> {
    /// Opens the store, or makes one, and tells each message that is in it.
    pub fn open(
        disk: D,
        options: Options,
        each: impl FnMut(Recovered<'_>),
    ) -> Result<Opened<D>, OpenError> {
        recover::open(disk, options, each)
    }

    /// What readers share.
    pub fn reader(&self) -> Reader<D> {
        Reader::new(Arc::clone(&self.shared))
    }

    /// Where attempts are noted.
    pub fn attempts(&self) -> Attempts<D> {
        Attempts::new(Arc::clone(&self.attempts))
    }

    /// How much there is.
    pub fn usage(&self) -> Usage {
        Usage {
            messages: u64::from(self.shared.slots().live()),
            live_bytes: self.live_bytes,
            disk_bytes: self.disk_bytes(),
            quota: self.options.quota,
            free: self.free().unwrap_or(0),
            segments: self.segments.len() as u64,
        }
    }

    /// Bytes free on the disk: as of the last sync of the journal, and exact near the reserve. None
    /// if it cannot be asked.
    pub(crate) fn free(&self) -> Option<u64> {
        let near = self.options.reserve.saturating_add(NEAR_RESERVE);
        let known = self.free.get().filter(|free| *free >= near);
        let free = known.or_else(|| self.shared.disk.free().ok());
        self.free.set(free);
        free
    }

    /// Sets the limits for what comes. Messages that are there stay.
    pub fn resize(&mut self, quota: u64, reserve: u64) {
        self.options.quota = quota;
        self.options.reserve = reserve;
    }

    /// Makes all changes durable that were committed.
    pub fn sync_journal(&mut self) -> Result<(), StoreError> {
        self.free.set(None);
        self.repair_journal()?;
        self.flush_journal()
    }

    /// The messages that [`Opened::interrupted`] named are dealt with, and so is what a loss of
    /// power left in doubt. Before this, the next opening says the same again.
    pub fn end_recovery(&mut self) -> Result<(), StoreError> {
        recover::write_lock(&self.shared.disk, &self.lock, Some(self.options.boot_id))
            .map_err(StoreError::io(LOCK))?;
        self.attempts.forget_interrupted(&self.shared.disk)
    }

    /// Damage that was met since the opening, or since this was last asked.
    pub fn take_damage(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.damage)
    }

    /// Makes everything durable and says so on disk.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.sync_journal()?;
        let disk = &self.shared.disk;
        let mut text = format::VERSION.to_le_bytes().to_vec();
        text.extend_from_slice(&self.journal.number.to_le_bytes());
        text.extend_from_slice(&self.journal.end.to_le_bytes());
        text.extend_from_slice(&format::crc(0, &text).to_le_bytes());
        let file = disk.open(Path::new(CLEAN), How::Create).map_err(StoreError::io(CLEAN))?;
        write_all(&file, 0, &mut [std::io::IoSlice::new(&text)]).map_err(StoreError::io(CLEAN))?;
        file.sync().map_err(StoreError::io(CLEAN))?;
        disk.sync_dir(Path::new("")).map_err(StoreError::io("."))
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        let segments: u64 = self.segments.values().map(|info| info.length).sum();
        let snapshot = self.snapshot.as_ref().map_or(0, Snapshot::length);
        segments + self.journal.end + snapshot + self.bodies_bytes + self.attempts.length()
    }

    /// Syncs a journal that is not broken, its name first; then what waited for that.
    pub(crate) fn flush_journal(&mut self) -> Result<(), StoreError> {
        if self.journal.is_synced() && self.doomed.is_empty() {
            return Ok(());
        }
        let disk = &self.shared.disk;
        if !self.journal.named {
            disk.sync_dir(Path::new("")).map_err(StoreError::io("."))?;
            self.journal.named = true;
        }
        for number in self.old_journals.drain(..) {
            // One that stays is removed at the next opening: a higher number wins.
            let _ = disk.remove(Path::new(&journal::name(number)));
        }
        self.journal.sync()?;
        for (key, length) in self.doomed.drain(..) {
            // One that stays belongs to nobody; the next opening removes it.
            let _ = disk.remove(Path::new(&segment::body_name(&key)));
            self.bodies_bytes = self.bodies_bytes.saturating_sub(length);
        }
        Ok(())
    }

    /// A message is gone from its segment or from the store.
    pub(crate) fn count_out(&mut self, segment: u32, bytes: u64) {
        if let Some(info) = self.segments.get_mut(&segment) {
            info.live = info.live.saturating_sub(1);
            info.live_bytes = info.live_bytes.saturating_sub(bytes);
        }
        self.live_bytes = self.live_bytes.saturating_sub(bytes);
    }

    pub(crate) fn count_in(&mut self, segment: u32, bytes: u64) {
        let info = self.segments.entry(segment).or_default();
        info.live += 1;
        info.live_bytes += bytes;
        self.live_bytes += bytes;
    }

    pub(crate) fn seq(&mut self) -> u32 {
        self.next_seq = self.next_seq.wrapping_add(1);
        self.next_seq
    }
}
