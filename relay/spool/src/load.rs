//! Reading a store into memory, changing nothing: what opening and `verify` have in common. Floor 2.
//!
//! The journal gives the live messages; the segments, beyond what the journal knows of them, give
//! those that were accepted last. Where the journal is damaged, the segments are the truth.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
};

use crate::{
    disk::{Disk, DiskFile, How, read_full},
    error::{Damage, OpenError, What},
    format::{self, Entry, FILE_HEADER, FileKind, Header, Place, RecordHeader, Salt, VERSION},
    journal::{self, Entries, Item},
    maintain::{newest, numbered},
    segment::{self, Piece},
    slab::{Live, Slab},
    store::BODIES,
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
    pub(crate) found: Vec<(Place, RecordHeader)>,
    /// Live messages whose bytes are not there.
    pub(crate) lost: Vec<u32>,
    /// Live messages whose record was found elsewhere.
    pub(crate) moved: Vec<(u32, Place)>,
    /// Segments that were read beyond what the journal knew, and from where.
    pub(crate) scanned: Vec<(u32, u64)>,
    /// The journal says that it was synced up to here.
    pub(crate) synced: u64,
    pub(crate) known: BTreeMap<u32, u64>,
    pub(crate) seq: u32,
    /// The journal was damaged in a place that counts.
    pub(crate) doubtful: bool,
    /// All of the segments has to be read.
    pub(crate) full: bool,
    /// Where the scan of each segment begins, if that is not `known`.
    pub(crate) scan_from: Option<BTreeMap<u32, u64>>,
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
        synced: 0,
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
    image.scan(disk, power_loss)?;
    image.check_places(disk)?;
    image.match_found();
    image.report_headers(bad_headers);
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

    /// A segment whose header is not intact is damaged, unless nothing was ever promised in it:
    /// then it was being made when the disk failed or the power went.
    fn report_headers(&mut self, bad: Vec<u32>) {
        let live = self.slots.iter().map(|(_, live)| live.place.segment);
        let used: BTreeSet<u32> =
            live.chain(self.found.iter().map(|(place, _)| place.segment)).collect();
        for number in bad.into_iter().filter(|number| used.contains(number)) {
            self.report(segment::name(number), 0, FILE_HEADER as u64, What::Header, None);
        }
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
            Entry::Synced { end } => self.synced = self.synced.max(*end),
            Entry::SnapshotEnd => {}
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
            self.scanned.push((number, from));
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
        for (place, header) in std::mem::take(&mut self.found) {
            let external = header.external.map(|(length, _)| length);
            if external.is_none() || bodies.get(&format::hex(&header.key)).copied() == external {
                self.found.push((place, header));
                continue;
            }
            // Its record would not be there before its body is durable.
            let (file, offset) = (segment::name(place.segment), u64::from(place.offset));
            self.report(file, offset, u64::from(place.length), What::Body, Some(header.key));
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
