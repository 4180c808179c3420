//! The bytes on disk: file headers, records of segments, entries of the journal. Floor 0.
//!
//! Pure functions over slices; no file is touched here. All numbers are little-endian. Every
//! checksum is a CRC-32 that starts from a seed of the file's kind, its number and the store's
//! salt, so that neither stale bytes of another file nor bytes that a sender put into a message
//! look like ours.

/// The name of a message: chosen by the caller, never used twice.
pub type MessageKey = [u8; 16];

/// The newest format that this code reads, and the one that it writes.
pub(crate) const VERSION: u32 = 1;

/// The longest envelope. Thousands of recipients fit; a length beyond it is damage.
pub const ENVELOPE_LIMIT: usize = 16 << 20;
/// The longest state of a message, and the longest value: the journal is written with each change.
pub const STATE_LIMIT: usize = 1 << 20;
/// The longest body inside a segment. Larger ones come as a file. Offsets in a segment are 32 bits.
pub const INLINE_LIMIT: u64 = 1 << 30;

/// Bytes before the first record of a segment and the first entry of a journal.
pub(crate) const FILE_HEADER: usize = 64;
/// Bytes of a record before its envelope.
pub(crate) const RECORD_HEADER: usize = 68;
/// Bytes of an entry before its payload.
pub(crate) const ENTRY_HEADER: usize = 12;
/// The longest payload of an entry: a state or a value, its key, and fixed fields.
const PAYLOAD_LIMIT: usize = STATE_LIMIT + STATE_LIMIT + 64;

const RECORD_MAGIC: u32 = 0x5247_4d57;
const ENTRY_MAGIC: u16 = 0xe45a;
const EXTERNAL: u32 = 1;

pub(crate) type Salt = [u8; 16];

/// What a file holds; part of its magic and of its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment,
    Journal,
}

impl FileKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Segment => b"WGSEGMNT",
            Self::Journal => b"WGJOURNL",
        }
    }
}

/// Where the checksums of a file start.
pub(crate) fn seed(kind: FileKind, number: u32, salt: &Salt) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind.magic());
    hasher.update(&number.to_le_bytes());
    hasher.update(salt);
    hasher.finalize()
}

/// The checksum of one part.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// What the first bytes of a file say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// Ours; the salt of its store.
    Good(Salt),
    /// Intact, of a version that this code does not know.
    Newer(u32),
    /// Torn, flipped or of another file.
    Bad,
}

pub(crate) fn encode_file_header(kind: FileKind, number: u32, salt: &Salt) -> [u8; FILE_HEADER] {
    let mut bytes = [0; FILE_HEADER];
    bytes[..8].copy_from_slice(kind.magic());
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..32].copy_from_slice(salt);
    let sum = crc(0, &bytes[..60]);
    bytes[60..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

pub(crate) fn decode_file_header(kind: FileKind, number: u32, bytes: &[u8]) -> Header {
    if bytes.len() < FILE_HEADER
        || &bytes[..8] != kind.magic()
        || u32_at(bytes, 60) != crc(0, &bytes[..60])
    {
        return Header::Bad;
    }
    // A later version keeps the magic, the place of the version and the checksum.
    match u32_at(bytes, 8) {
        newer if newer > VERSION => Header::Newer(newer),
        _ if u32_at(bytes, 12) != number => Header::Bad,
        _ => Header::Good(key_at(bytes, 16)),
    }
}

/// The fixed part of a record. What it says is trusted once its checksum fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) key: MessageKey,
    pub(crate) envelope_len: u32,
    pub(crate) state_len: u32,
    /// The body, or what stands before an external one.
    pub(crate) inline_len: u32,
    /// Where the batch that this record belongs to begins in the segment.
    pub(crate) batch: u32,
    /// Length and unseeded checksum of the body's own file, if it has one.
    pub(crate) external: Option<(u64, u32)>,
    pub(crate) envelope_crc: u32,
    pub(crate) state_crc: u32,
    pub(crate) inline_crc: u32,
}

impl RecordHeader {
    pub(crate) fn body_at(&self) -> u64 {
        RECORD_HEADER as u64 + u64::from(self.envelope_len) + u64::from(self.state_len)
    }

    pub(crate) fn total(&self) -> u64 {
        self.body_at() + u64::from(self.inline_len)
    }

    pub(crate) fn body_len(&self) -> u64 {
        u64::from(self.inline_len) + self.external.map_or(0, |(len, _)| len)
    }

    pub(crate) fn encode(&self, seed: u32) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        let (external_len, external_crc) = self.external.unwrap_or((0, 0));
        let flags = if self.external.is_some() { EXTERNAL } else { 0 };
        bytes[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.key);
        bytes[24..28].copy_from_slice(&self.envelope_len.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.state_len.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.inline_len.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.batch.to_le_bytes());
        bytes[40..48].copy_from_slice(&external_len.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.envelope_crc.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.state_crc.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.inline_crc.to_le_bytes());
        bytes[60..64].copy_from_slice(&external_crc.to_le_bytes());
        let sum = crc(seed, &bytes[..64]);
        bytes[64..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None`: this is not the beginning of a record of this file.
    pub(crate) fn decode(seed: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() < RECORD_HEADER
            || u32_at(bytes, 0) != RECORD_MAGIC
            || u32_at(bytes, 64) != crc(seed, &bytes[..64])
        {
            return None;
        }
        let external = u32_at(bytes, 4) & EXTERNAL != 0;
        Some(Self {
            key: key_at(bytes, 8),
            envelope_len: u32_at(bytes, 24),
            state_len: u32_at(bytes, 28),
            inline_len: u32_at(bytes, 32),
            batch: u32_at(bytes, 36),
            external: external.then(|| (u64_at(bytes, 40), u32_at(bytes, 60))),
            envelope_crc: u32_at(bytes, 48),
            state_crc: u32_at(bytes, 52),
            inline_crc: u32_at(bytes, 56),
        })
    }
}

/// Where a record lies. `length` is that of the whole record, `body_at` counts from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) body_at: u32,
    pub(crate) external: bool,
}

impl Place {
    fn is_sane(&self) -> bool {
        self.segment != 0
            && self.body_at <= self.length
            && self.body_at as usize >= RECORD_HEADER
            && self.body_at as usize <= RECORD_HEADER + ENVELOPE_LIMIT + STATE_LIMIT
    }

    pub(crate) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// The message at `index` is live, there, in this state. Complete in itself: the last one counts.
    Put { seq: u32, index: u32, place: Place, key: MessageKey, body_len: u64, state: &'a [u8] },
    /// The message at `index`, which lay there, is removed.
    Gone { index: u32, segment: u32, offset: u32 },
    /// The record, of this length, was copied there. The state stays.
    Move { index: u32, segment: u32, offset: u32, length: u32 },
    /// A value of the caller; `None` removes it.
    Value { key: &'a [u8], value: Option<&'a [u8]> },
    /// All records of the segment before `end` are known to what precedes this entry.
    Segment { number: u32, end: u64 },
    /// Everything before this offset of this journal was synced.
    Synced { end: u64 },
    /// What precedes was written as a snapshot, what follows as it happened.
    SnapshotEnd,
}

impl<'a> Entry<'a> {
    pub(crate) fn encode(&self, seed: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&ENTRY_MAGIC.to_le_bytes());
        out.extend_from_slice(&[self.kind(), 0]);
        out.extend_from_slice(&[0; 8]);
        self.payload(out);
        let length = out.len() - start - ENTRY_HEADER;
        assert!(length <= PAYLOAD_LIMIT, "an entry is checked before it is written");
        #[allow(clippy::cast_possible_truncation, reason = "PAYLOAD_LIMIT is far below 4 GiB")]
        let length = length as u32;
        out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&out[start..start + 8]);
        hasher.update(&out[start + ENTRY_HEADER..]);
        let sum = hasher.finalize();
        out[start + 8..start + 12].copy_from_slice(&sum.to_le_bytes());
    }

    /// Bytes of the payload of the entry whose header this is, or `None`.
    pub(crate) fn payload_len(header: &[u8]) -> Option<usize> {
        if header.len() < ENTRY_HEADER || header[..2] != ENTRY_MAGIC.to_le_bytes() {
            return None;
        }
        let length = u32_at(header, 4) as usize;
        (length <= PAYLOAD_LIMIT && (1..=7).contains(&header[2]) && header[3] == 0)
            .then_some(length)
    }

    /// Whether these are one whole entry, header and payload, as it was written.
    pub(crate) fn checks(seed: u32, bytes: &'a [u8]) -> bool {
        let Some(length) = Self::payload_len(bytes) else { return false };
        let Some(payload) = bytes.get(ENTRY_HEADER..ENTRY_HEADER + length) else { return false };
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&bytes[..8]);
        hasher.update(payload);
        hasher.finalize() == u32_at(bytes, 8) && Self::parse(bytes).is_some()
    }

    /// Reads one whole entry that `checks`.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        Self::from_payload(*bytes.get(2)?, bytes.get(ENTRY_HEADER..)?)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Put { .. } => 1,
            Self::Gone { .. } => 2,
            Self::Move { .. } => 3,
            Self::Value { .. } => 4,
            Self::Segment { .. } => 5,
            Self::Synced { .. } => 6,
            Self::SnapshotEnd => 7,
        }
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { seq, index, place, key, body_len, state } => {
                out.extend_from_slice(&body_len.to_le_bytes());
                out.extend_from_slice(key);
                let flags = if place.external { EXTERNAL } else { 0 };
                let Place { segment, offset, length, body_at, .. } = *place;
                for number in [*seq, *index, segment, offset, length, body_at, flags] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(state);
            }
            Self::Gone { index, segment, offset } => {
                for number in [index, segment, offset] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Self::Move { index, segment, offset, length } => {
                for number in [index, segment, offset, length] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Self::Value { key, value } => {
                #[allow(clippy::cast_possible_truncation, reason = "at most STATE_LIMIT")]
                out.extend_from_slice(&(key.len() as u32).to_le_bytes());
                out.push(u8::from(value.is_some()));
                out.extend_from_slice(key);
                out.extend_from_slice(value.unwrap_or_default());
            }
            Self::Segment { number, end } => {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&end.to_le_bytes());
            }
            Self::Synced { end } => out.extend_from_slice(&end.to_le_bytes()),
            Self::SnapshotEnd => {}
        }
    }

    fn from_payload(kind: u8, bytes: &'a [u8]) -> Option<Self> {
        let fits = |length: usize| bytes.len() == length;
        Some(match kind {
            1 if bytes.len() >= 52 => {
                let place = Place {
                    segment: u32_at(bytes, 32),
                    offset: u32_at(bytes, 36),
                    length: u32_at(bytes, 40),
                    body_at: u32_at(bytes, 44),
                    external: u32_at(bytes, 48) & EXTERNAL != 0,
                };
                Self::Put {
                    body_len: u64_at(bytes, 0),
                    key: key_at(bytes, 8),
                    seq: u32_at(bytes, 24),
                    index: u32_at(bytes, 28),
                    place: Some(place).filter(Place::is_sane)?,
                    state: &bytes[52..],
                }
            }
            2 if fits(12) => Self::Gone {
                index: u32_at(bytes, 0),
                segment: u32_at(bytes, 4),
                offset: u32_at(bytes, 8),
            },
            3 if fits(16) => Self::Move {
                index: u32_at(bytes, 0),
                segment: u32_at(bytes, 4),
                offset: u32_at(bytes, 8),
                length: u32_at(bytes, 12),
            },
            4 if bytes.len() >= 5 => {
                let (key, value) = bytes[5..].split_at_checked(u32_at(bytes, 0) as usize)?;
                Self::Value { key, value: (bytes[4] != 0).then_some(value) }
            }
            5 if fits(12) => Self::Segment { number: u32_at(bytes, 0), end: u64_at(bytes, 4) },
            6 if fits(8) => Self::Synced { end: u64_at(bytes, 0) },
            7 if fits(0) => Self::SnapshotEnd,
            _ => return None,
        })
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

pub(crate) fn key_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&bytes[at..at + 16]);
    key
}

/// A key as it stands in file names.
pub(crate) fn hex(key: &MessageKey) -> String {
    use std::fmt::Write as _;
    key.iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
