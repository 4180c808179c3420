//! A directory in memory that can lose power. Floor 1.
//!
//! It keeps, beside what a reader sees, what was synced: pages of files, their lengths, and the
//! names of each directory. [`MemoryDisk::crash`] gives the disk that a machine would find after
//! a power loss: what was synced is there; what was not is there or not, whole or torn, by seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Disk, DiskFile, How, LockError};

/// What is written or lost together, at best. Smaller than a real page: in small files a large one
/// would be written again, with all that is in it, soon after any sync that failed.
const PAGE: usize = 256;
/// What is never torn. Smaller than a real one, for the same reason.
const SECTOR: usize = 64;

/// A store's directory in memory. Clones are the same directory.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    seen: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    durable: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    room: Option<u64>,
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    locked: bool,
}

impl MemoryDisk {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how many bytes all files together may have; writes beyond it meet a full disk.
    pub fn set_room(&self, bytes: Option<u64>) {
        lock(&self.tree).room = bytes;
    }

    /// The disk after a power loss now. This one is not changed.
    pub fn crash(&self, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let tree = lock(&self.tree);
        let mut names: BTreeSet<&PathBuf> = tree.seen.keys().collect();
        names.extend(tree.durable.keys());
        let mut survivors = BTreeMap::new();
        // One inode under two names stays one inode.
        let mut made: Vec<(*const Mutex<Inode>, Arc<Mutex<Inode>>)> = Vec::new();
        for name in names {
            let (seen, durable) = (tree.seen.get(name), tree.durable.get(name));
            let unchanged = match (seen, durable) {
                (Some(seen), Some(durable)) => Arc::ptr_eq(seen, durable),
                _ => false,
            };
            let inode = if unchanged || dice.half() { seen } else { durable };
            let Some(inode) = inode else { continue };
            let known = made.iter().find(|(old, _)| *old == Arc::as_ptr(inode));
            let survivor = match known {
                Some((_, survivor)) => Arc::clone(survivor),
                None => {
                    let survivor = Arc::new(Mutex::new(lock(inode).crash(&mut dice)));
                    made.push((Arc::as_ptr(inode), Arc::clone(&survivor)));
                    survivor
                }
            };
            survivors.insert(name.clone(), survivor);
        }
        let tree = Tree { seen: survivors.clone(), durable: survivors, room: tree.room };
        Self { tree: Arc::new(Mutex::new(tree)) }
    }

    /// A copy in which everything is durable and nothing is locked: the disk of a killed process.
    pub fn copy(&self) -> Self {
        let tree = lock(&self.tree);
        let copies: BTreeMap<_, _> = tree
            .seen
            .iter()
            .map(|(name, inode)| {
                let seen = lock(inode).seen.clone();
                let inode = Inode { durable: seen.clone(), seen, ..Inode::default() };
                (name.clone(), Arc::new(Mutex::new(inode)))
            })
            .collect();
        let tree = Tree { seen: copies.clone(), durable: copies, room: tree.room };
        Self { tree: Arc::new(Mutex::new(tree)) }
    }

    /// The names of all files, with their directories.
    pub fn files(&self) -> Vec<PathBuf> {
        lock(&self.tree).seen.keys().cloned().collect()
    }
}

impl Inode {
    fn crash(&self, dice: &mut Dice) -> Self {
        let length = if self.seen.len() == self.durable.len() || dice.half() {
            self.seen.len()
        } else {
            self.durable.len()
        };
        let mut kept = self.durable.clone();
        kept.resize(length, 0);
        for page in &self.dirty {
            // Lost, whole, or torn after some sectors.
            let sectors = match dice.below(3) {
                0 => 0,
                1 => PAGE / SECTOR,
                _ => dice.below(PAGE / SECTOR),
            };
            let from = page * PAGE;
            let to = (from + sectors * SECTOR).min(self.seen.len()).min(length);
            if from < to {
                kept[from..to].copy_from_slice(&self.seen[from..to]);
            }
        }
        Self { seen: kept.clone(), durable: kept, ..Self::default() }
    }

    fn touch(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / PAGE..to.div_ceil(PAGE));
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn open(&self, path: &Path, how: How) -> io::Result<MemoryFile> {
        let mut tree = lock(&self.tree);
        let inode = match tree.seen.get(path) {
            Some(inode) => Arc::clone(inode),
            None if how == How::Create => {
                let inode = Arc::<Mutex<Inode>>::default();
                tree.seen.insert(path.to_owned(), Arc::clone(&inode));
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(tree);
        let file = MemoryFile { inode, tree: Arc::clone(&self.tree), holds_lock: false };
        if how == How::Create {
            file.truncate(0)?;
        }
        Ok(file)
    }

    fn lock(&self, path: &Path, exclusive: bool) -> Result<MemoryFile, LockError> {
        let how = match self.open(path, How::Write) {
            Err(_) if exclusive => How::Create,
            _ => How::Write,
        };
        let mut file = self.open(path, how).map_err(LockError::Io)?;
        let mut inode = lock(&file.inode);
        if inode.locked {
            return Err(LockError::Held);
        }
        inode.locked = true;
        drop(inode);
        file.holds_lock = true;
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = lock(&self.tree);
        let inode = tree.seen.remove(from).ok_or(io::ErrorKind::NotFound)?;
        tree.seen.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = lock(&self.tree).seen.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make_dir(&self, _path: &Path) -> io::Result<()> {
        // A directory exists as soon as a file in it does.
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        let tree = lock(&self.tree);
        let inside = tree.seen.iter().filter(|(name, _)| name.parent() == Some(path));
        Ok(inside
            .map(|(name, inode)| {
                let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (name, lock(inode).seen.len() as u64)
            })
            .collect())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut tree = lock(&self.tree);
        let Tree { seen, durable, .. } = &mut *tree;
        durable.retain(|name, _| name.parent() != Some(path));
        let inside = seen.iter().filter(|(name, _)| name.parent() == Some(path));
        durable.extend(inside.map(|(name, inode)| (name.clone(), Arc::clone(inode))));
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        let tree = lock(&self.tree);
        Ok(tree.room.map_or(u64::MAX / 2, |room| room.saturating_sub(tree.used())))
    }
}

impl Tree {
    fn used(&self) -> u64 {
        self.seen.values().map(|inode| lock(inode).seen.len() as u64).sum()
    }
}

/// An open file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    inode: Arc<Mutex<Inode>>,
    tree: Arc<Mutex<Tree>>,
    holds_lock: bool,
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        if self.holds_lock {
            lock(&self.inode).locked = false;
        }
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let mut length: usize = parts.iter().map(|part| part.len()).sum();
        let tree = lock(&self.tree);
        if let Some(room) = tree.room {
            let used = tree.used();
            let had = lock(&self.inode).seen.len();
            let grows = (from + length).saturating_sub(had);
            let room = usize::try_from(room.saturating_sub(used)).unwrap_or(usize::MAX);
            let fits = length.saturating_sub(grows.saturating_sub(room));
            if fits == 0 && length > 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            length = fits;
        }
        drop(tree);
        let mut inode = lock(&self.inode);
        if inode.seen.len() < from + length {
            inode.seen.resize(from + length, 0);
        }
        let mut at = from;
        for part in parts {
            let take = part.len().min(from + length - at);
            inode.seen[at..at + take].copy_from_slice(&part[..take]);
            at += take;
        }
        inode.touch(from, from + length);
        Ok(length)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let inode = lock(&self.inode);
        let Some(rest) = usize::try_from(offset).ok().and_then(|from| inode.seen.get(from..))
        else {
            return Ok(0);
        };
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inode = lock(&self.inode);
        let Inode { seen, durable, dirty, .. } = &mut *inode;
        durable.resize(seen.len(), 0);
        for page in std::mem::take(dirty) {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(seen.len()));
            if from < to {
                durable[from..to].copy_from_slice(&seen[from..to]);
            }
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(lock(&self.inode).seen.len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut inode = lock(&self.inode);
        let old = inode.seen.len();
        inode.seen.resize(length, 0);
        inode.touch(length.min(old), length.max(old));
        Ok(())
    }

    fn forget_unsynced(&self) {
        lock(&self.inode).dirty.clear();
    }
}

/// Splitmix64: enough for tests, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn half(&mut self) -> bool {
        self.next() & 1 == 0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
