//! Opening: from what is on disk to a store. Floor 2.
//!
//! `load` reads. Then damage is set aside, what was found is written down, and the store starts.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    path::Path,
};

use crate::{
    attempts::AttemptFile,
    disk::{Disk, DiskFile, How, LockError, read_full, write_all},
    error::{Damage, OpenError},
    format::{self, Entry, FILE_HEADER, FileKind, Place, VERSION, crc, u32_at, u64_at},
    journal::{self, Item, Journal},
    load::{Image, load},
    maintain::{newest, numbered, set_aside},
    reader::Shared,
    segment,
    slab::{Live, Slab},
    snapshot::{beginning, initial_state, temporary},
    store::{BODIES, CLEAN, DAMAGED, Info, LOCK, Opened, Options, Recovered, Shutdown, Store},
};

/// What `Store::open` does.
pub(crate) fn open<D: Disk>(
    disk: D,
    options: Options,
    mut each: impl FnMut(Recovered<'_>),
) -> Result<Opened<D>, OpenError> {
    disk.make_dir(Path::new("")).map_err(OpenError::io("."))?;
    let lock = take_lock(&disk)?;
    for directory in [BODIES, DAMAGED] {
        disk.make_dir(Path::new(directory)).map_err(OpenError::io(directory))?;
    }
    let before = read_small(&lock, 256).map_err(OpenError::io(LOCK))?;
    let boot_before = boot_of(&before);
    let same_boot = boot_before == Some(options.boot_id);
    let clean = read_clean(&disk)?;
    let files = disk.list(Path::new("")).map_err(OpenError::io("."))?;
    let is_new = newest(&files).is_none() && numbered(&files, "seg").is_empty();
    let shutdown = match clean {
        _ if is_new => Shutdown::New,
        Some(_) => Shutdown::Clean,
        None if same_boot => Shutdown::Crash,
        None => Shutdown::PowerLoss,
    };
    let power_loss = shutdown == Shutdown::PowerLoss;
    let mut image = load(&disk, options.boot_id, clean, power_loss)?;
    keep_damage(&disk, &mut image.damage)?;
    // After a loss of power the old boot's number stays until the caller has dealt with that.
    let boot = if power_loss { boot_before } else { Some(options.boot_id) };
    write_lock(&disk, &lock, boot).map_err(OpenError::io(LOCK))?;
    let (attempts, interrupted) =
        AttemptFile::open(&disk, options.attempt_slots, &mut image.damage)?;
    let opening = Opening { image, files, options };
    let (mut store, damage) = opening.start(disk, attempts, lock, &mut each)?;
    let values = store.values.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    // Damage that the first snapshot met is the damage that was read before.
    store.damage.clear();
    Ok(Opened { store, shutdown, interrupted, values, damage })
}

/// What is left to do once everything is read.
struct Opening {
    image: Image,
    files: Vec<(String, u64)>,
    options: Options,
}

impl Opening {
    fn start<D: Disk>(
        self,
        disk: D,
        attempts: AttemptFile<D>,
        lock: D::File,
        each: &mut impl FnMut(Recovered<'_>),
    ) -> Result<(Store<D>, Vec<Damage>), OpenError> {
        let Self { mut image, files, options } = self;
        let journal = ready_journal(&disk, &image, &files)?;
        for (number, from) in &image.scanned {
            let name = segment::name(*number);
            let length = image.segments.get(number).copied().unwrap_or(0);
            let file = disk.open(Path::new(&name), How::Write).map_err(OpenError::io(&name))?;
            // After damage all of the segments were read; their bytes are old ones.
            let from = if image.full { length } else { *from };
            make_durable(&file, FILE_HEADER as u64, from, length).map_err(OpenError::io(&name))?;
        }
        disk.sync_dir(Path::new(BODIES)).map_err(OpenError::io(BODIES))?;
        let stale = files.iter().filter(|(name, _)| {
            name == CLEAN
                || name.ends_with(".new")
                || segment::number(name, "journal").is_some_and(|number| number < journal.number)
        });
        for (name, _) in stale {
            disk.remove(Path::new(name)).map_err(OpenError::io(name))?;
        }
        disk.sync_dir(Path::new("")).map_err(OpenError::io("."))?;

        let numbers = numbered(&files, "journal").into_iter().map(|(number, _)| number);
        let unfinished = files.iter().filter_map(|(name, _)| name.strip_suffix(".new"));
        let unfinished = unfinished.filter_map(|name| segment::number(name, "journal"));
        let next_journal = numbers.chain(unfinished).max().unwrap_or(0).max(journal.number) + 1;
        let used = image.segments.keys().chain(image.known.keys()).max();
        let next_segment = used.map_or(1, |number| number.saturating_add(1));

        let mut infos = BTreeMap::new();
        for (number, length) in &image.segments {
            let known = image.known.get(number).copied().unwrap_or(0).max(*length);
            infos.insert(*number, Info { length: *length, known, ..Info::default() });
        }
        let damage = std::mem::take(&mut image.damage);
        let slots = std::mem::replace(&mut image.slots, Slab::new());
        let mut store = Store {
            shared: std::sync::Arc::new(Shared::new(disk, image.salt, slots)),
            attempts: std::sync::Arc::new(attempts),
            options,
            journal,
            snapshot: None,
            compaction: None,
            next_journal,
            old_journals: Vec::new(),
            segments: infos,
            current: None,
            next_segment,
            owed: Vec::new(),
            values: std::mem::take(&mut image.values),
            next_seq: image.seq,
            externals: std::mem::take(&mut image.externals),
            doomed: Vec::new(),
            refused: Vec::new(),
            bodies_bytes: 0,
            live_bytes: 0,
            put_bytes: 0,
            puts: 0,
            damage: Vec::new(),
            names_changed: false,
            free: Cell::new(None),
            lock,
        };
        write_down(&mut store, &image, each)?;
        clear_bodies(&mut store, !damage.is_empty())?;
        Ok((store, damage))
    }
}

/// The journal to write to: the one that was read, or a new one. If it was damaged, it counts as
/// broken, and the first snapshot replaces it.
fn ready_journal<D: Disk>(
    disk: &D,
    image: &Image,
    files: &[(String, u64)],
) -> Result<Journal<D::File>, OpenError> {
    let Some((number, length, end)) = image.journal else {
        let numbers = files.iter().filter_map(|(name, _)| {
            segment::number(name.strip_suffix(".new").unwrap_or(name), "journal")
        });
        return new_journal(disk, image, numbers.max().unwrap_or(0) + 1);
    };
    let name = journal::name(number);
    let file = disk.open(Path::new(&name), How::Write).map_err(OpenError::io(&name))?;
    if end < length {
        file.truncate(end).map_err(OpenError::io(&name))?;
    }
    let from = image.synced.min(end);
    make_durable(&file, FILE_HEADER as u64, from, end).map_err(OpenError::io(&name))?;
    let seed = format::seed(FileKind::Journal, number, &image.salt);
    let mut journal = Journal::new(number, file, seed, end);
    journal.broken = image.doubtful || image.damage.iter().any(|damage| damage.file == name);
    Ok(journal)
}

/// What a killed process wrote is in the page cache. It may still be on its way to the disk, or,
/// after a sync that failed, never go there although the cache calls it clean: so it is written
/// again, the same bytes in the same place. The first `header` bytes too.
fn make_durable(file: &impl DiskFile, header: u64, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    for (mut at, to) in [(0, header.min(to)), (from, to)] {
        while at < to {
            let take = usize::try_from(to - at).unwrap_or(buffer.len()).min(buffer.len());
            let read = read_full(file, at, &mut buffer[..take])?;
            if read == 0 {
                break;
            }
            write_all(file, at, &mut [IoSlice::new(&buffer[..read])])?;
            at += read as u64;
        }
    }
    file.sync()
}

fn new_journal<D: Disk>(
    disk: &D,
    image: &Image,
    number: u32,
) -> Result<Journal<D::File>, OpenError> {
    let path = temporary(number);
    let seed = format::seed(FileKind::Journal, number, &image.salt);
    let mut bytes = beginning(number, &image.salt, BTreeMap::new(), &BTreeMap::new());
    Entry::SnapshotEnd.encode(seed, &mut bytes);
    let end = bytes.len() as u64;
    Entry::Synced { end }.encode(seed, &mut bytes);
    let file = disk.open(Path::new(&path), How::Create).map_err(OpenError::io(&path))?;
    write_all(&file, 0, &mut [IoSlice::new(&bytes)]).map_err(OpenError::io(&path))?;
    file.sync().map_err(OpenError::io(&path))?;
    let name = journal::name(number);
    disk.rename(Path::new(&path), Path::new(&name)).map_err(OpenError::io(&name))?;
    disk.sync_dir(Path::new("")).map_err(OpenError::io("."))?;
    Ok(Journal::new(number, file, seed, bytes.len() as u64))
}

/// Tells the caller every message, and the journal what was found beside it.
fn write_down<D: Disk>(
    store: &mut Store<D>,
    image: &Image,
    each: &mut impl FnMut(Recovered<'_>),
) -> Result<(), OpenError> {
    let seed = store.journal.seed;
    let mut entries = Vec::new();
    for index in &image.lost {
        let live = store.shared.slots().at(*index);
        let Some(Live { place: Place { segment, offset, .. }, .. }) = live else { continue };
        Entry::Gone { index: *index, segment, offset }.encode(seed, &mut entries);
        store.shared.slots_mut().remove(*index);
        store.externals.remove(index);
    }
    for (index, place) in &image.moved {
        let Place { segment, offset, length, .. } = *place;
        Entry::Move { index: *index, segment, offset, length }.encode(seed, &mut entries);
    }
    tell(store, image, each)?;
    for (place, header) in &image.found {
        let (place, key, body_len) = (*place, header.key, header.body_len());
        let seq = store.seq();
        let live = Live { key, place, seq };
        let state = initial_state(&store.shared, &live).unwrap_or_default();
        let mut slots = store.shared.slots_mut();
        let Some(index) = slots.reserve() else { break };
        slots.put(index, live);
        let handle = slots.handle(index);
        drop(slots);
        if let Some((length, _)) = header.external {
            store.externals.insert(index, length);
        }
        Entry::Put { seq, index, place, key, body_len, state: &state }.encode(seed, &mut entries);
        if let Some(handle) = handle {
            let doubtful = image.doubtful;
            each(Recovered { handle, key, state: &state, body_len, doubtful });
        }
    }
    for (number, _) in &image.scanned {
        let end = store.segments.get(number).map_or(0, |info| info.known);
        Entry::Segment { number: *number, end }.encode(seed, &mut entries);
    }
    // Not collected first: that would take as much memory again as the slots themselves.
    let shared = std::sync::Arc::clone(&store.shared);
    for (index, live) in shared.slots().iter() {
        store.count_in(live.place.segment, u64::from(live.place.length));
        store.live_bytes += store.externals.get(&index).copied().unwrap_or(0);
    }
    let written = match entries.is_empty() {
        true => Ok(()),
        false => store.journal.append(&entries),
    };
    if written.is_err() {
        // A damaged journal, or a full disk: the snapshot that replaces it will have them.
        store.journal.broken = true;
        store.journal.adopt(&entries);
    }
    // If the disk is full now, the first commit tries again.
    let _ = store.sync_journal();
    Ok(())
}

/// Tells what the journal knows.
fn tell<D: Disk>(
    store: &mut Store<D>,
    image: &Image,
    each: &mut impl FnMut(Recovered<'_>),
) -> Result<(), OpenError> {
    if image.journal.is_none() {
        return Ok(());
    }
    let name = journal::name(store.journal.number);
    let slots = store.shared.slots();
    let mut entries = store.journal.entries(FILE_HEADER as u64);
    while let Some(item) = entries.item().map_err(OpenError::io(&name))? {
        let Item::Entry { entry: Entry::Put { seq, index, key, body_len, state, .. }, .. } = item
        else {
            continue;
        };
        let live = slots.at(index).filter(|live| live.seq == seq && live.key == key);
        if let (Some(_), Some(handle)) = (live, slots.handle(index)) {
            store.puts += 1;
            store.put_bytes += 64 + state.len() as u64;
            each(Recovered { handle, key, state, body_len, doubtful: false });
        }
    }
    Ok(())
}

/// Removes bodies that belong to no message; after damage they are kept aside.
fn clear_bodies<D: Disk>(store: &mut Store<D>, damaged: bool) -> Result<(), OpenError> {
    let disk = &store.shared.disk;
    let bodies = disk.list(Path::new(BODIES)).map_err(OpenError::io(BODIES))?;
    let slots = store.shared.slots();
    let live: BTreeSet<String> = store
        .externals
        .keys()
        .filter_map(|index| slots.at(*index))
        .map(|live| format::hex(&live.key))
        .collect();
    drop(slots);
    for (name, length) in bodies {
        if live.contains(&name) {
            store.bodies_bytes += length;
            continue;
        }
        let path = format!("{BODIES}/{name}");
        // If it stays, the next opening tries again.
        let _ = match damaged {
            true => disk.rename(Path::new(&path), Path::new(&format!("{DAMAGED}/body-{name}"))),
            false => disk.remove(Path::new(&path)),
        };
    }
    Ok(())
}

/// Copies damaged bytes to files of their own.
fn keep_damage<D: Disk>(disk: &D, damage: &mut [Damage]) -> Result<(), OpenError> {
    for damage in damage {
        if damage.length > 0 {
            let copy = set_aside(disk, &damage.file, damage.offset, damage.length);
            damage.set_aside = Some(copy.map_err(OpenError::io(DAMAGED))?);
        }
    }
    Ok(())
}

fn take_lock<D: Disk>(disk: &D) -> Result<D::File, OpenError> {
    disk.lock(Path::new(LOCK), true).map_err(|error| lock_error(disk, error))
}

pub(crate) fn lock_error<D: Disk>(disk: &D, error: LockError) -> OpenError {
    match error {
        LockError::Io(error) => OpenError::io(LOCK)(error),
        LockError::Held => {
            let file = disk.open(Path::new(LOCK), How::Read);
            let text = file.and_then(|file| read_small(&file, 256)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let pid = text.lines().find_map(|line| line.strip_prefix("pid ")?.trim().parse().ok());
            OpenError::Owned { pid }
        }
    }
}

pub(crate) fn write_lock<D: Disk>(
    disk: &D,
    lock: &D::File,
    boot: Option<[u8; 16]>,
) -> io::Result<()> {
    // Of one length, whatever was there before.
    let boot = boot.map_or_else(|| "unknown".to_owned(), |boot| format::hex(&boot));
    let text = format!("pid {:<10}\nboot {boot:<32}\n", std::process::id());
    write_all(lock, 0, &mut [IoSlice::new(text.as_bytes())])?;
    lock.sync()?;
    disk.sync_dir(Path::new(""))
}

/// The boot id in the lock file.
fn boot_of(text: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(text).ok()?;
    let hex = text.lines().find_map(|line| line.strip_prefix("boot "))?;
    let mut id = [0; 16];
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(id)
}

/// Number and length of the journal as the last process left it, if it closed the store.
pub(crate) fn read_clean<D: Disk>(disk: &D) -> Result<Option<(u32, u64)>, OpenError> {
    let file = match disk.open(Path::new(CLEAN), How::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(OpenError::io(CLEAN))?,
    };
    let bytes = read_small(&file, 20).map_err(OpenError::io(CLEAN))?;
    if bytes.len() < 20 || u32_at(&bytes, 16) != crc(0, &bytes[..16]) {
        return Ok(None);
    }
    match u32_at(&bytes, 0) {
        found if found > VERSION => Err(OpenError::Newer { found, known: VERSION }),
        _ => Ok(Some((u32_at(&bytes, 4), u64_at(&bytes, 8)))),
    }
}

fn read_small(file: &impl DiskFile, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let read = read_full(file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
