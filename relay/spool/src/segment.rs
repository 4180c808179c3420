//! Reading segments: one record, and all of them after damage. Floor 1.
//!
//! Writing is in `commit`. A record that does not check is never believed; after it the scan goes
//! on at the next header that does.

use std::io;

use crate::{
    disk::{DiskFile, read_full},
    format::{self, FILE_HEADER, INLINE_LIMIT, Place, RECORD_HEADER, RecordHeader},
};

/// Bytes read at once by a scan.
const CHUNK: usize = 256 * 1024;

pub(crate) fn name(number: u32) -> String {
    format!("seg-{number:08}")
}

pub(crate) fn body_name(key: &format::MessageKey) -> String {
    format!("bodies/{}", format::hex(key))
}

/// The number in a file's name, if it is `PREFIX-NNNNNNNN`.
pub(crate) fn number(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('-')?;
    let plain = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|number| plain && *number > 0)
}

/// What a scan finds, in the order of the file.
#[derive(Debug)]
pub(crate) enum Piece {
    Record { at: u64, header: RecordHeader },
    Bad { from: u64, to: u64, key: Option<format::MessageKey> },
}

/// Where a record lies. `None`: the header says what no writer of ours would.
pub(crate) fn place(segment: u32, at: u64, header: &RecordHeader) -> Option<Place> {
    let fits = header.envelope_len as usize <= format::ENVELOPE_LIMIT
        && header.state_len as usize <= format::STATE_LIMIT
        && u64::from(header.inline_len) <= INLINE_LIMIT;
    Some(Place {
        segment,
        offset: u32::try_from(at).ok()?,
        length: u32::try_from(header.total()).ok().filter(|_| fits)?,
        body_at: u32::try_from(header.body_at()).ok()?,
        external: header.external.is_some(),
    })
}

pub(crate) fn read_header(
    file: &impl DiskFile,
    seed: u32,
    at: u64,
) -> io::Result<Option<RecordHeader>> {
    let mut bytes = [0; RECORD_HEADER];
    let read = read_full(file, at, &mut bytes)?;
    Ok(RecordHeader::decode(seed, &bytes[..read]))
}

/// Whether envelope, state and what stands inline of the body are as they were written.
pub(crate) fn check_parts(
    file: &impl DiskFile,
    seed: u32,
    at: u64,
    header: &RecordHeader,
) -> io::Result<bool> {
    let mut at = at + RECORD_HEADER as u64;
    for (length, sum) in [
        (header.envelope_len, header.envelope_crc),
        (header.state_len, header.state_crc),
        (header.inline_len, header.inline_crc),
    ] {
        if file_crc(file, seed, at, u64::from(length))? != Some(sum) {
            return Ok(false);
        }
        at += u64::from(length);
    }
    Ok(true)
}

/// The checksum of a range; `None` if the file ends before.
pub(crate) fn file_crc(
    file: &impl DiskFile,
    seed: u32,
    mut at: u64,
    mut length: u64,
) -> io::Result<Option<u32>> {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(CHUNK).min(CHUNK)];
    while length > 0 {
        let take = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        if read_full(file, at, &mut buffer[..take])? < take {
            return Ok(None);
        }
        hasher.update(&buffer[..take]);
        at += take as u64;
        length -= take as u64;
    }
    Ok(Some(hasher.finalize()))
}

/// Every record and everything that is none, from `from` to `end`.
pub(crate) fn scan(file: &impl DiskFile, seed: u32, from: u64, end: u64) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = from.max(FILE_HEADER as u64);
    while at < end {
        let header = read_header(file, seed, at)?;
        let Some(header) = header.filter(|header| place(1, at, header).is_some()) else {
            let to = next_header(file, seed, at + 1, end)?.unwrap_or(end);
            pieces.push(Piece::Bad { from: at, to, key: None });
            at = to;
            continue;
        };
        let next = at + header.total();
        if next > end {
            pieces.push(Piece::Bad { from: at, to: end, key: Some(header.key) });
            break;
        }
        if check_parts(file, seed, at, &header)? {
            pieces.push(Piece::Record { at, header });
        } else {
            pieces.push(Piece::Bad { from: at, to: next, key: Some(header.key) });
        }
        at = next;
    }
    Ok(pieces)
}

/// The next place at which a header checks.
fn next_header(file: &impl DiskFile, seed: u32, from: u64, end: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; CHUNK];
    let mut at = from;
    while at < end {
        let read = read_full(file, at, &mut buffer)?;
        if read < RECORD_HEADER {
            return Ok(None);
        }
        let found = buffer[..read]
            .windows(RECORD_HEADER)
            .position(|bytes| RecordHeader::decode(seed, bytes).is_some());
        if let Some(found) = found {
            return Ok(Some(at + found as u64).filter(|found| *found < end));
        }
        at += (read - RECORD_HEADER + 1) as u64;
    }
    Ok(None)
}
