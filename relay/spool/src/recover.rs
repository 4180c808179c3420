//! Opening: from what is on disk to a store. Floor 2.
//!
//! `load` reads and changes nothing (`verify` uses it too): the journal gives the live messages,
//! the segments beyond what the journal knows give those that were accepted last. `open` then
//! sets damage aside, writes down what it found, and starts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::IoSlice,
    path::Path,
};

use crate::{
    attempts::AttemptFile,
    disk::{Disk, DiskFile, How, LockError, read_full, write_all},
    error::{Damage, OpenError, What},
    format::{
        self, Entry, FILE_HEADER, FileKind, Header, Place, RecordHeader, Salt, VERSION, crc,
        u32_at, u64_at,
    },
    journal::{self, Entries, Item, Journal},
    maintain::{newest, numbered, set_aside},
    reader::Shared,
    segment::{self, Piece},
    slab::{Live, Slab},
    snapshot::{beginning, initial_state, temporary},
    store::{BODIES, CLEAN, DAMAGED, Info, LOCK, Opened, Options, Recovered, Shutdown, Store},
};

/// What was read of a store.
pub(crate) struct Image {
    pub(crate) salt: Salt,
    /// Number, length and how much of it counts.
    pub(crate) journal: Option<(u32, u64, u64)>,
    pub(crate) slots: Slab,
    pub(crate) externals: HashMap<u32, u64>,
    pub(crate) values: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) damage: Vec<Damage>,
    /// Segments with their lengths.
    pub(crate) segments: BTreeMap<u32, u64>,
    /// Records that the journal does not know.
    found: Vec<(Place, RecordHeader)>,
    /// Live messages whose bytes are not there.
    lost: Vec<u32>,
    /// Live messages whose record was found elsewhere.
    moved: Vec<(u32, Place)>,
    /// Segments that were read beyond what the journal knew.
    scanned: Vec<u32>,
    known: BTreeMap<u32, u64>,
    seq: u32,
    /// The journal was damaged in a place that counts.
    doubtful: bool,
    /// All of the segments has to be read.
    full: bool,
    /// Where the scan of each segment begins, if that is not `known`.
    scan_from: Option<BTreeMap<u32, u64>>,
}

/// Reads everything. `power_loss`: bytes that were not synced may be torn.
pub(crate) fn load<D: Disk>(
    disk: &D,
    salt: Salt,
    clean: Option<(u32, u64)>,
    power_loss: bool,
) -> Result<Image, OpenError> {
    let files = disk.list(Path::new("")).map_err(OpenError::io("."))?;
    let mut image = Image {
        salt,
        journal: None,
        slots: Slab::new(),
        externals: HashMap::new(),
        values: BTreeMap::new(),
        damage: Vec::new(),
        segments: numbered(&files, "seg").into_iter().collect(),
        found: Vec::new(),
        lost: Vec::new(),
        moved: Vec::new(),
        scanned: Vec::new(),
        known: BTreeMap::new(),
        seq: 0,
        doubtful: false,
        full: false,
        scan_from: None,
    };
    let bad_headers = image.read_headers(disk, &files)?;
    match newest(&files) {
        Some((number, length, name)) => {
            image.replay(disk, number, length, clean, power_loss)?;
            if clean.is_some_and(|clean| clean != (number, length)) {
                image.report(name, length, 0, What::Journal, None);
                image.doubtful = true;
            }
        }
        None if !image.segments.is_empty() => {
            image.report("journal".to_owned(), 0, 0, What::Journal, None);
            (image.full, image.doubtful) = (true, true);
        }
        None => {}
    }
    for number in bad_headers {
        // The header of a segment that was never promised anything may be torn.
        if image.known.contains_key(&number) {
            image.report(segment::name(number), 0, FILE_HEADER as u64, What::Header, None);
        }
    }
    image.scan(disk, power_loss)?;
    image.check_places(disk)?;
    image.match_found();
    Ok(image)
}

impl Image {
    /// Messages that the journal does not know.
    pub(crate) fn beyond(&self) -> u64 {
        self.found.len() as u64
    }

    fn report(
        &mut self,
        file: String,
        offset: u64,
        length: u64,
        what: What,
        key: Option<format::MessageKey>,
    ) {
        self.damage.push(Damage { file, offset, length, what, key, set_aside: None });
    }

    /// Learns the salt from whichever header is intact; segments with one that is not.
    fn read_headers<D: Disk>(
        &mut self,
        disk: &D,
        files: &[(String, u64)],
    ) -> Result<Vec<u32>, OpenError> {
        let mut bad = Vec::new();
        let segments = self.segments.keys().map(|n| (FileKind::Segment, *n, segment::name(*n)));
        let journal = newest(files).map(|(n, _, name)| (FileKind::Journal, n, name));
        for (kind, number, name) in segments.chain(journal).collect::<Vec<_>>() {
            let mut bytes = [0; FILE_HEADER];
            let file = disk.open(Path::new(&name), How::Read).map_err(OpenError::io(&name))?;
            let read = read_full(&file, 0, &mut bytes).map_err(OpenError::io(&name))?;
            match format::decode_file_header(kind, number, &bytes[..read]) {
                Header::Good(salt) => self.salt = salt,
                Header::Newer(found) => return Err(OpenError::Newer { found, known: VERSION }),
                Header::Bad if kind == FileKind::Journal => {
                    self.report(name, 0, FILE_HEADER as u64, What::Header, None);
                }
                Header::Bad => bad.push(number),
            }
        }
        Ok(bad)
    }

    /// Reads the journal: who is live, and where.
    fn replay<D: Disk>(
        &mut self,
        disk: &D,
        number: u32,
        length: u64,
        clean: Option<(u32, u64)>,
        power_loss: bool,
    ) -> Result<(), OpenError> {
        let name = journal::name(number);
        let file = disk.open(Path::new(&name), How::Read).map_err(OpenError::io(&name))?;
        let seed = format::seed(FileKind::Journal, number, &self.salt);
        let mut entries = Entries::new(&file, seed, FILE_HEADER as u64, length, &[]);
        let (mut end, mut snapshot_ended) = (length.max(FILE_HEADER as u64), false);
        while let Some(item) = entries.item().map_err(OpenError::io(&name))? {
            match item {
                Item::Entry { entry: Entry::SnapshotEnd, .. } => snapshot_ended = true,
                Item::Entry { entry, .. } => self.apply(&entry),
                Item::Bad { from, to } => {
                    let torn = snapshot_ended
                        && match power_loss {
                            true => !synced_after(&file, seed, from, to, length)
                                .map_err(OpenError::io(&name))?,
                            false => to == length && clean.is_none(),
                        };
                    if torn {
                        // It was never promised, and nothing behind it was.
                        end = from;
                        break;
                    }
                    self.report(name.clone(), from, to - from, What::Journal, None);
                    self.doubtful = true;
                    self.full |= !snapshot_ended;
                    if self.scan_from.is_none() {
                        self.scan_from = Some(self.known.clone());
                    }
                }
            }
        }
        if !snapshot_ended {
            if self.damage.iter().all(|damage| damage.what != What::Journal) {
                self.report(name, end, 0, What::Journal, None);
            }
            (self.full, self.doubtful) = (true, true);
        }
        self.journal = Some((number, length, end));
        self.slots.chain();
        Ok(())
    }

    fn apply(&mut self, entry: &Entry<'_>) {
        match entry {
            Entry::Put { seq, index, place, key, body_len, .. } => {
                self.know(place.segment, place.end());
                self.seq = *seq;
                let live = Live { key: *key, place: *place, seq: *seq };
                if !self.slots.put(*index, live) {
                    return;
                }
                if place.external {
                    let inline = u64::from(place.length - place.body_at);
                    self.externals.insert(*index, body_len.saturating_sub(inline));
                } else {
                    self.externals.remove(index);
                }
            }
            Entry::Gone { index, segment, offset } => {
                let live = self.slots.at(*index).map(|live| live.place);
                if live.is_some_and(|place| (place.segment, place.offset) == (*segment, *offset)) {
                    self.slots.clear(*index);
                    self.externals.remove(index);
                }
            }
            Entry::Move { index, segment, offset, length } => {
                self.know(*segment, u64::from(*offset) + u64::from(*length));
                let live = self.slots.at(*index).filter(|live| live.place.length == *length);
                if let Some(live) = live.filter(|_| *segment != 0) {
                    let place = Place { segment: *segment, offset: *offset, ..live.place };
                    self.slots.set_place(*index, place);
                }
            }
            Entry::Value { key, value: Some(value) } => {
                self.values.insert(key.to_vec(), value.to_vec());
            }
            Entry::Value { key, value: None } => {
                self.values.remove(*key);
            }
            Entry::Segment { number, end } => self.know(*number, *end),
            Entry::Synced { .. } | Entry::SnapshotEnd => {}
        }
    }

    fn know(&mut self, segment: u32, end: u64) {
        let known = self.known.entry(segment).or_default();
        *known = (*known).max(end);
    }

    /// Reads the segments beyond what the journal knows.
    fn scan<D: Disk>(&mut self, disk: &D, power_loss: bool) -> Result<(), OpenError> {
        let live: HashSet<(u32, u32)> = if self.doubtful {
            self.slots.iter().map(|(_, live)| (live.place.segment, live.place.offset)).collect()
        } else {
            // What is beyond the journal's knowledge is no live message's.
            HashSet::new()
        };
        let gone = if self.doubtful { self.gone(disk)? } else { HashSet::new() };
        for (number, length) in self.segments.clone() {
            let from = match &self.scan_from {
                _ if self.full => 0,
                Some(from) => from.get(&number).copied().unwrap_or(0),
                None => self.known.get(&number).copied().unwrap_or(0),
            };
            if from.max(FILE_HEADER as u64) >= length {
                continue;
            }
            self.scanned.push(number);
            let name = segment::name(number);
            let file = disk.open(Path::new(&name), How::Read).map_err(OpenError::io(&name))?;
            let seed = format::seed(FileKind::Segment, number, &self.salt);
            let pieces = segment::scan(&file, seed, from, length).map_err(OpenError::io(&name))?;
            let last = pieces.iter().rev().find_map(|piece| match piece {
                Piece::Record { at, header } => Some((*at, header.batch)),
                Piece::Bad { .. } => None,
            });
            for piece in pieces {
                match piece {
                    Piece::Record { at, header } => {
                        let Some(place) = segment::place(number, at, &header) else { continue };
                        let here = (number, place.offset);
                        if !live.contains(&here) && !gone.contains(&here) {
                            self.found.push((place, header));
                        }
                    }
                    Piece::Bad { from, to, key } => {
                        // A batch that was cut short was never promised. Only when power was
                        // lost can some of its later bytes be there and earlier ones not.
                        let known = self.known.get(&number).is_some_and(|known| from < *known);
                        let followed = last.is_some_and(|(at, batch)| {
                            at > from && (!power_loss || u64::from(batch) > from)
                        });
                        if followed || known {
                            self.report(name.clone(), from, to - from, What::Record, key);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Where messages lay that the journal says were removed.
    fn gone<D: Disk>(&self, disk: &D) -> Result<HashSet<(u32, u32)>, OpenError> {
        let mut gone = HashSet::new();
        let Some((number, _, end)) = self.journal else { return Ok(gone) };
        let name = journal::name(number);
        let file = disk.open(Path::new(&name), How::Read).map_err(OpenError::io(&name))?;
        let seed = format::seed(FileKind::Journal, number, &self.salt);
        let mut entries = Entries::new(&file, seed, FILE_HEADER as u64, end, &[]);
        while let Some(item) = entries.item().map_err(OpenError::io(&name))? {
            if let Item::Entry { entry: Entry::Gone { segment, offset, .. }, .. } = item {
                gone.insert((segment, offset));
            }
        }
        Ok(gone)
    }

    /// Live messages whose record or body cannot be there any more.
    fn check_places<D: Disk>(&mut self, disk: &D) -> Result<(), OpenError> {
        let bodies: BTreeMap<String, u64> =
            disk.list(Path::new(BODIES)).or_else(no_directory)?.into_iter().collect();
        let mut lost = Vec::new();
        for (index, live) in self.slots.iter() {
            let place = live.place;
            let length = self.segments.get(&place.segment).copied();
            if length.is_none_or(|length| length < place.end()) {
                lost.push((index, live, What::Missing));
            } else if place.external {
                let found = bodies.get(&format::hex(&live.key));
                if found != self.externals.get(&index) {
                    lost.push((index, live, What::Body));
                }
            }
        }
        for (index, live, what) in lost {
            let place = live.place;
            let (file, offset, length) = match what {
                What::Body => (segment::body_name(&live.key), 0, 0),
                _ => {
                    (segment::name(place.segment), u64::from(place.offset), u64::from(place.length))
                }
            };
            self.report(file, offset, length, what, Some(live.key));
            self.lost.push(index);
        }
        Ok(())
    }

    /// A record that was found may be a copy of a message that is live.
    fn match_found(&mut self) {
        let mut by_key: BTreeMap<format::MessageKey, (Place, RecordHeader)> = BTreeMap::new();
        for (place, header) in self.found.drain(..) {
            // Of two copies the first one is as good as the second.
            by_key.entry(header.key).or_insert((place, header));
        }
        if by_key.is_empty() {
            return;
        }
        for (index, live) in self.slots.iter() {
            let Some((place, _)) = by_key.remove(&live.key) else { continue };
            if let Some(at) = self.lost.iter().position(|lost| *lost == index) {
                let missing =
                    |damage: &Damage| damage.what == What::Missing && damage.key == Some(live.key);
                if self.damage.iter().any(missing) {
                    self.lost.swap_remove(at);
                    self.damage.retain(|damage| !missing(damage));
                    self.moved.push((index, place));
                }
            }
        }
        for (index, place) in &self.moved {
            self.slots.set_place(*index, *place);
        }
        self.found = by_key.into_values().collect();
        self.found.sort_unstable_by_key(|(place, _)| (place.segment, place.offset));
    }
}

/// Whether something behind these bytes says that they were synced.
fn synced_after<F: DiskFile>(
    file: &F,
    seed: u32,
    from: u64,
    to: u64,
    length: u64,
) -> std::io::Result<bool> {
    let mut entries = Entries::new(file, seed, to, length, &[]);
    while let Some(item) = entries.item()? {
        if let Item::Entry { entry: Entry::Synced { end }, .. } = item
            && end > from
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn no_directory(error: std::io::Error) -> Result<Vec<(String, u64)>, OpenError> {
    match error.kind() {
        std::io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => Err(OpenError::io(BODIES)(error)),
    }
}

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
    let same_boot = boot_of(&before) == Some(options.boot_id);
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
    write_lock(&disk, &lock, &options)?;
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
        // What a killed process wrote may still be on its way to the disk.
        for number in &image.scanned {
            let name = segment::name(*number);
            let file = disk.open(Path::new(&name), How::Read).map_err(OpenError::io(&name))?;
            file.sync().map_err(OpenError::io(&name))?;
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
            bodies_bytes: 0,
            live_bytes: 0,
            put_bytes: 0,
            puts: 0,
            damage: Vec::new(),
            names_changed: false,
            _lock: lock,
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
    file.sync().map_err(OpenError::io(&name))?;
    let seed = format::seed(FileKind::Journal, number, &image.salt);
    let mut journal = Journal::new(number, file, seed, end);
    journal.broken = image.doubtful || image.damage.iter().any(|damage| damage.file == name);
    Ok(journal)
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
    for number in &image.scanned {
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

fn write_lock<D: Disk>(disk: &D, lock: &D::File, options: &Options) -> Result<(), OpenError> {
    let text = format!("pid {:<10}\nboot {}\n", std::process::id(), format::hex(&options.boot_id));
    write_all(lock, 0, &mut [IoSlice::new(text.as_bytes())]).map_err(OpenError::io(LOCK))?;
    lock.sync().map_err(OpenError::io(LOCK))?;
    disk.sync_dir(Path::new("")).map_err(OpenError::io("."))
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
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
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

fn read_small(file: &impl DiskFile, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let read = read_full(file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
