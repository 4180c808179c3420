//! A disk that fails on request, and counts. Floor 1.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Disk, DiskFile, How, LockError};

/// What the store asks a disk to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of the methods")]
pub enum Kind {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Rename,
    Remove,
    MakeDir,
    SyncDir,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// With this error, having done nothing.
    Error(io::ErrorKind),
    /// A write: half of it is written. Everything else: an error.
    Short,
    /// Like `Error(Other)`, and so does everything after it: the machine has stopped.
    Halt,
}

/// A disk around another one. Clones share faults and counters.
#[derive(Debug, Clone)]
pub struct FaultyDisk<D> {
    inner: D,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<(Option<Kind>, u64, u64, Fault)>,
    counts: BTreeMap<Kind, u64>,
    changes: u64,
    halted: bool,
}

impl<D> FaultyDisk<D> {
    /// A disk without faults yet.
    pub fn new(inner: D) -> Self {
        Self { inner, plan: Arc::default() }
    }

    /// The disk inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The `nth` operation of a kind from now on fails (the first is 0), and `times - 1` after it.
    /// Without a kind it is the `nth` one that changes anything (so no opening or reading).
    pub fn fail(&self, kind: Option<Kind>, nth: u64, times: u64, fault: Fault) {
        let mut plan = plan(&self.plan);
        let done = match kind {
            Some(kind) => plan.counts.get(&kind).copied().unwrap_or(0),
            None => plan.changes,
        };
        let from = done.saturating_add(nth);
        plan.faults.push((kind, from, from.saturating_add(times), fault));
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        let mut plan = plan(&self.plan);
        plan.faults.clear();
        plan.halted = false;
    }

    /// Operations of a kind so far.
    pub fn count(&self, kind: Kind) -> u64 {
        plan(&self.plan).counts.get(&kind).copied().unwrap_or(0)
    }

    /// Operations so far that changed something.
    pub fn changes(&self) -> u64 {
        plan(&self.plan).changes
    }
}

impl Plan {
    /// Counts an operation; `true`: do half of it.
    fn ask(&mut self, kind: Kind) -> io::Result<bool> {
        let count = self.counts.entry(kind).or_default();
        let (of_kind, of_all) = (*count, self.changes);
        *count += 1;
        let changes = !matches!(kind, Kind::Open | Kind::Read);
        self.changes += u64::from(changes);
        if self.halted {
            return Err(io::Error::other("halted"));
        }
        let hit = self.faults.iter().find(|(which, from, to, _)| match which {
            Some(which) => *which == kind && (*from..*to).contains(&of_kind),
            None => changes && (*from..*to).contains(&of_all),
        });
        match hit.map(|(.., fault)| *fault) {
            None => Ok(false),
            Some(Fault::Error(error)) => Err(error.into()),
            Some(Fault::Short) if kind == Kind::Write => Ok(true),
            Some(Fault::Short) => Err(io::Error::other("fault")),
            Some(Fault::Halt) => {
                self.halted = true;
                Err(io::Error::other("halted"))
            }
        }
    }
}

impl<D: Disk> Disk for FaultyDisk<D> {
    type File = FaultyFile<D::File>;

    fn open(&self, path: &Path, how: How) -> io::Result<Self::File> {
        plan(&self.plan).ask(Kind::Open)?;
        Ok(FaultyFile { inner: self.inner.open(path, how)?, plan: Arc::clone(&self.plan) })
    }

    fn lock(&self, path: &Path, exclusive: bool) -> Result<Self::File, LockError> {
        plan(&self.plan).ask(Kind::Open).map_err(LockError::Io)?;
        let inner = self.inner.lock(path, exclusive)?;
        Ok(FaultyFile { inner, plan: Arc::clone(&self.plan) })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        plan(&self.plan).ask(Kind::Rename)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        plan(&self.plan).ask(Kind::Remove)?;
        self.inner.remove(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        plan(&self.plan).ask(Kind::MakeDir)?;
        self.inner.make_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        plan(&self.plan).ask(Kind::Read)?;
        self.inner.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        plan(&self.plan).ask(Kind::SyncDir)?;
        self.inner.sync_dir(path)
    }

    fn free(&self) -> io::Result<u64> {
        self.inner.free()
    }
}

/// An open file of a [`FaultyDisk`].
#[derive(Debug)]
pub struct FaultyFile<F> {
    inner: F,
    plan: Arc<Mutex<Plan>>,
}

impl<F: DiskFile> DiskFile for FaultyFile<F> {
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if !plan(&self.plan).ask(Kind::Write)? {
            return self.inner.write_at(offset, parts);
        }
        let Some(first) = parts.iter().find(|part| !part.is_empty()) else { return Ok(0) };
        self.inner.write_at(offset, &[IoSlice::new(&first[..first.len().div_ceil(2)])])
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        plan(&self.plan).ask(Kind::Read)?;
        self.inner.read_at(offset, buffer)
    }

    fn sync(&self) -> io::Result<()> {
        plan(&self.plan).ask(Kind::Sync).inspect_err(|_| self.inner.forget_unsynced())?;
        self.inner.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        plan(&self.plan).ask(Kind::Truncate)?;
        self.inner.truncate(length)
    }
}

fn plan(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}
