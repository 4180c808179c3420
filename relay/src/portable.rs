//! All messages of a spool as one portable file, to empty one host and fill another. Floor 2.
//!
//! Owns the file's form and moving messages between it and the spool of a relay that is stopped.
//! Accounts and holds of everything stay where they are: they tell of this host.
//!
//! The form, version 1: two lines of text that say what it is (the second one JSON), then one
//! record a message, then an end. Numbers are little-endian.
//!
//! ```text
//! wavegate spool export\n
//! {"format":1,"id":"…","created":"…"}\n
//! "WGMS" envelope:u32 progress:u32 body:u64 id:[u8;16]  envelope progress body  blake3 of it all
//! "WGND" messages:u64                                    blake3 of the whole file before this
//! ```

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek as _, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wavegate_spool::{ENVELOPE_LIMIT, NewBody, Op, OpenError, STATE_LIMIT};

use crate::{
    body::Stored,
    config::SpoolConfig,
    envelope::{Envelope, Progress},
    message::MessageId,
    plan::Timestamp,
    spool::{Handle, NewEntry, Opened, Shutdown, Spool, SpoolError, part},
};

/// The first line.
const TITLE: &str = "wavegate spool export\n";
/// The version that is written and read.
const FORMAT: u32 = 1;
/// The longest second line.
const HEADER_MOST: u64 = 4096;
const MESSAGE: &[u8; 4] = b"WGMS";
const END: &[u8; 4] = b"WGND";
/// Bytes of a record before its envelope.
const RECORD: usize = 36;
/// Bytes that are read at once.
const PIECE: usize = 256 * 1024;
/// Bodies up to this are kept in memory on their way in; larger ones have a file.
const IN_MEMORY: u64 = 1 << 20;
/// Messages and bytes that are imported with one sync.
const BATCH: usize = 256;
const BATCH_BYTES: u64 = 32 << 20;
/// Values that tell how far the import of a file came have this in front of the file's id.
const IMPORTED: &[u8] = b"imported/";
/// No attempts are made here.
const ATTEMPTS: u32 = 1;
/// A message that may have been delivered, nobody knows where.
const UNKNOWN: &str = "unknown";

/// Why messages were not moved.
#[derive(Debug, thiserror::Error)]
pub enum PortableError {
    /// The spool cannot be opened, mostly because a relay runs.
    #[error("the spool: {0}")]
    Open(#[from] OpenError),
    /// The spool did not do it; what was imported so far stays.
    #[error("the spool: {0}")]
    Spool(#[from] SpoolError),
    /// The file is there already.
    #[error("{0} is there already: give another name")]
    Exists(PathBuf),
    /// The file is no export.
    #[error("{0} is not an export of a spool")]
    Foreign(PathBuf),
    /// A later version wrote it.
    #[error("{path} has format {found}, this program knows {FORMAT}: use the newer program")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Bytes are not what was written. Nothing was imported.
    #[error("{path} is damaged or cut off at byte {at}, in message {number}; nothing is imported")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
        /// The number of the record, from 1.
        number: u64,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was written to a file.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The file.
    pub file: PathBuf,
    /// Its name for itself: an import is done once for each.
    pub id: String,
    /// Messages.
    pub messages: u64,
    /// Their recipients that still wait.
    pub recipients: u64,
    /// They were removed from the spool.
    pub removed: bool,
    /// Messages that cannot be read. They are not in the file, and stay in the spool.
    pub unreadable: Vec<String>,
}

/// What was read from a file.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The file's name for itself.
    pub id: String,
    /// Messages in it.
    pub messages: u64,
    /// Messages that are new in the spool.
    pub added: u64,
    /// Messages that were imported before.
    pub known: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    id: String,
    created: String,
}

/// A message of the spool.
struct Kept {
    handle: Handle,
    id: MessageId,
    state: Vec<u8>,
    /// The last process may have delivered it.
    doubtful: bool,
}

/// The spool of a relay that is stopped.
pub struct Depot {
    spool: Spool,
    kept: Vec<Kept>,
    values: Vec<(Vec<u8>, Vec<u8>)>,
    spill: PathBuf,
}

fn of(path: &Path) -> impl FnOnce(io::Error) -> PortableError {
    move |source| PortableError::Io { path: path.to_owned(), source }
}

impl Depot {
    /// Opens the spool below a state directory. What the last process left in doubt is noted, for
    /// the next opening cannot tell.
    pub async fn open(state_dir: &Path, config: &SpoolConfig) -> Result<Self, PortableError> {
        let mut kept = Vec::new();
        let opened = Spool::open(&state_dir.join("spool"), config, ATTEMPTS, |one| {
            if let Some(id) = MessageId::from_key(one.key) {
                let (handle, state, doubtful) = (one.handle, one.state.to_vec(), one.doubtful);
                kept.push(Kept { handle, id, state, doubtful });
            }
        })?;
        let Opened { spool, shutdown, interrupted, values, .. } = opened;
        let interrupted: HashSet<MessageId> = interrupted.into_iter().collect();
        let mut ops = Vec::new();
        for one in &mut kept {
            let Ok(mut progress) = Progress::decode(&one.state) else { continue };
            let lost = shutdown == Shutdown::PowerLoss && progress.held_since.is_none();
            let doubtful = one.doubtful || lost || interrupted.contains(&one.id);
            if doubtful && progress.in_doubt.is_none() {
                progress.in_doubt = Some(UNKNOWN.to_owned());
                one.state = progress.encode();
                ops.push(Op::State { handle: one.handle, state: one.state.clone() });
            }
        }
        spool.apply(ops).await?;
        kept.sort_by_key(|one| one.id);
        Ok(Self { spool, kept, values, spill: state_dir.join("spill") })
    }

    /// Messages in it.
    pub fn messages(&self) -> usize {
        self.kept.len()
    }

    /// Writes all messages to a file, or to one of its own name in a directory. With `remove`,
    /// those that are in the file leave the spool once the file is durable.
    pub async fn export(
        &mut self,
        to: &Path,
        remove: bool,
        now: Timestamp,
        random: u64,
    ) -> Result<Exported, PortableError> {
        let id = MessageId::new(now, random);
        let file = match to.is_dir() {
            true => to.join(format!("wavegate-spool-{id}.export")),
            false => to.to_owned(),
        };
        if file.exists() {
            return Err(PortableError::Exists(file));
        }
        let part = PathBuf::from(format!("{}.part", file.display()));
        let header = Header { format: FORMAT, id: id.to_string(), created: now.to_string() };
        let mut written = Vec::new();
        let mut exported = Exported {
            file: file.clone(),
            id: header.id.clone(),
            messages: 0,
            recipients: 0,
            removed: false,
            unreadable: Vec::new(),
        };
        let mut out = Writer::new(File::create(&part).map_err(of(&part))?);
        out.header(&header).map_err(of(&part))?;
        for one in &self.kept {
            let loaded = self.spool.check(one.handle).and_then(|()| self.spool.load(one.handle));
            match loaded {
                Ok((envelope, body)) => out.message(one, &envelope, &*body).map_err(of(&part))?,
                Err(error) => {
                    exported.unreadable.push(format!("{}: {error}", one.id));
                    continue;
                }
            }
            let pending = Progress::decode(&one.state).map_or(0, |progress| progress.pending);
            exported.messages += 1;
            exported.recipients += u64::from(pending);
            written.push(one.handle);
        }
        out.end(exported.messages).map_err(of(&part))?;
        fs::rename(&part, &file).map_err(of(&file))?;
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(of(directory))?;
        if remove {
            let gone: HashSet<Handle> = written.iter().copied().collect();
            let ops = written.into_iter().map(|handle| Op::Remove { handle }).collect();
            self.spool.apply(ops).await?;
            self.kept.retain(|one| !gone.contains(&one.handle));
            exported.removed = true;
        }
        Ok(exported)
    }

    /// Takes the messages of a file in. The file is read whole and compared with its checksums
    /// before the first is taken. What this spool has taken from the file before is not taken
    /// again, though it may have been delivered since.
    pub async fn import(&mut self, from: &Path) -> Result<Imported, PortableError> {
        let (header, messages) = Self::look(from)?;
        let key = [IMPORTED, header.id.as_bytes()].concat();
        let done = self.values.iter().find(|(other, _)| *other == key);
        let done = done.and_then(|(_, value)| value.as_slice().try_into().ok());
        let done = done.map_or(0, u64::from_le_bytes);
        let known: HashSet<MessageId> = self.kept.iter().map(|one| one.id).collect();
        let mut reader = Reader::open(from)?;
        reader.header()?;
        let mut imported = Imported { id: header.id, messages, added: 0, known: 0 };
        let mut batch = Vec::new();
        let mut bytes = 0;
        for number in 0..messages {
            let Some(record) = reader.record()? else { return Err(reader.damaged()) };
            let id = MessageId::from_key(record.key).ok_or_else(|| reader.damaged())?;
            if number < done || known.contains(&id) {
                reader.skip(record.body)?;
                imported.known += 1;
            } else {
                bytes += record.body;
                batch.push(self.entry(&mut reader, id, record)?);
                imported.added += 1;
            }
            if batch.len() == BATCH || bytes >= BATCH_BYTES || number + 1 == messages {
                let value = Some((number + 1).max(done).to_le_bytes().to_vec());
                let beside = vec![Op::Value { key: key.clone(), value }, Op::SyncJournal];
                self.spool.accept(std::mem::take(&mut batch), beside).await?;
                bytes = 0;
            }
        }
        Ok(imported)
    }

    /// Reads a whole file and compares its checksums.
    fn look(from: &Path) -> Result<(Header, u64), PortableError> {
        let mut reader = Reader::open(from)?;
        let header = reader.header()?;
        while let Some(record) = reader.record()? {
            let envelope = Envelope::decode(&record.envelope);
            if MessageId::from_key(record.key).is_none() || envelope.is_err() {
                return Err(reader.damaged());
            }
            reader.skip(record.body)?;
        }
        let messages = reader.end()?;
        Ok((header, messages))
    }

    fn entry(
        &self,
        reader: &mut Reader,
        id: MessageId,
        record: Record,
    ) -> Result<NewEntry, PortableError> {
        let Record { envelope, state, body: len, .. } = record;
        let body = if len <= IN_MEMORY {
            let mut bytes = Vec::new();
            reader.body(len, &mut bytes)?;
            NewBody::Parts(vec![part(bytes)])
        } else {
            fs::create_dir_all(&self.spill).map_err(of(&self.spill))?;
            let mut file = tempfile::NamedTempFile::new_in(&self.spill).map_err(of(&self.spill))?;
            reader.body(len, file.as_file_mut())?;
            let (_, path) = file.keep().map_err(|error| of(&self.spill)(error.error))?;
            NewBody::File { path, head: Vec::new(), len }
        };
        Ok(NewEntry { id, envelope, state, body })
    }

    /// Closes the spool in order.
    pub fn close(self) {
        self.spool.close();
    }
}

/// Writes, with a checksum of the record and one of the file.
struct Writer {
    out: BufWriter<File>,
    record: blake3::Hasher,
    whole: blake3::Hasher,
}

impl Writer {
    fn new(file: File) -> Self {
        let out = BufWriter::with_capacity(PIECE, file);
        Self { out, record: blake3::Hasher::new(), whole: blake3::Hasher::new() }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.record.update(bytes);
        self.whole.update(bytes);
        self.out.write_all(bytes)
    }

    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.put(TITLE.as_bytes())?;
        self.put(serde_json::to_string(header)?.as_bytes())?;
        self.put(b"\n")
    }

    fn message(&mut self, one: &Kept, envelope: &Envelope, body: &dyn Stored) -> io::Result<()> {
        let too_long = |_| io::Error::other("longer than a spool takes");
        let envelope = envelope.encode();
        self.record = blake3::Hasher::new();
        self.put(MESSAGE)?;
        self.put(&u32::try_from(envelope.len()).map_err(too_long)?.to_le_bytes())?;
        self.put(&u32::try_from(one.state.len()).map_err(too_long)?.to_le_bytes())?;
        self.put(&body.len().to_le_bytes())?;
        self.put(&one.id.key())?;
        self.put(&envelope)?;
        self.put(&one.state)?;
        let mut buffer = vec![0; PIECE.min(usize::try_from(body.len()).unwrap_or(PIECE)).max(1)];
        let mut at = 0;
        while at < body.len() {
            let count = body.read_at(at, &mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.put(&buffer[..count])?;
            at += count as u64;
        }
        let sum = self.record.finalize();
        self.put(sum.as_bytes())
    }

    fn end(mut self, messages: u64) -> io::Result<()> {
        self.put(END)?;
        self.put(&messages.to_le_bytes())?;
        let sum = self.whole.finalize();
        self.put(sum.as_bytes())?;
        self.out.flush()?;
        self.out.get_ref().sync_all()
    }
}

/// A record without its body, which follows.
struct Record {
    key: [u8; 16],
    envelope: Vec<u8>,
    state: Vec<u8>,
    body: u64,
}

/// Reads what [`Writer`] wrote, and believes nothing.
struct Reader {
    path: PathBuf,
    input: BufReader<File>,
    length: u64,
    record: blake3::Hasher,
    whole: blake3::Hasher,
    /// Bytes read.
    at: u64,
    /// Where the record begins that is being read, and its number.
    begun: u64,
    number: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, PortableError> {
        let mut file = File::open(path).map_err(of(path))?;
        let length = file.seek(io::SeekFrom::End(0)).map_err(of(path))?;
        file.rewind().map_err(of(path))?;
        Ok(Self {
            path: path.to_owned(),
            input: BufReader::with_capacity(PIECE, file),
            length,
            record: blake3::Hasher::new(),
            whole: blake3::Hasher::new(),
            at: 0,
            begun: 0,
            number: 0,
        })
    }

    fn damaged(&self) -> PortableError {
        PortableError::Damaged { path: self.path.clone(), at: self.begun, number: self.number }
    }

    fn get(&mut self, buffer: &mut [u8]) -> Result<(), PortableError> {
        match self.input.read_exact(buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged());
            }
            Err(error) => return Err(of(&self.path)(error)),
        }
        self.record.update(buffer);
        self.whole.update(buffer);
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, PortableError> {
        // A length that is damage must not ask for memory.
        if length as u64 > self.length.saturating_sub(self.at) {
            return Err(self.damaged());
        }
        let mut bytes = vec![0; length];
        self.get(&mut bytes)?;
        Ok(bytes)
    }

    fn header(&mut self) -> Result<Header, PortableError> {
        let foreign = || PortableError::Foreign(self.path.clone());
        let mut text = Vec::new();
        let mut lines = (&mut self.input).take(HEADER_MOST);
        for _ in 0..2 {
            lines.read_until(b'\n', &mut text).map_err(of(&self.path))?;
        }
        let json = text.strip_prefix(TITLE.as_bytes()).ok_or_else(foreign)?;
        let header: serde_json::Value = serde_json::from_slice(json).map_err(|_| foreign())?;
        let format = header.get("format").and_then(serde_json::Value::as_u64);
        match format.and_then(|format| u32::try_from(format).ok()) {
            Some(FORMAT) => {}
            Some(found) => return Err(PortableError::Newer { path: self.path.clone(), found }),
            None => return Err(foreign()),
        }
        let header = serde_json::from_value(header).map_err(|_| foreign())?;
        self.whole.update(&text);
        self.at += text.len() as u64;
        Ok(header)
    }

    /// The next record up to its body; none at the end. After it comes [`Reader::body`] or
    /// [`Reader::skip`].
    fn record(&mut self) -> Result<Option<Record>, PortableError> {
        self.begun = self.at;
        self.number += 1;
        self.record = blake3::Hasher::new();
        let mut magic = [0; 4];
        self.get(&mut magic)?;
        if &magic == END {
            return Ok(None);
        }
        if &magic != MESSAGE {
            return Err(self.damaged());
        }
        let mut rest = [0; RECORD - 4];
        self.get(&mut rest)?;
        let word = |at: usize| rest[at..at + 4].try_into().map_or(0, u32::from_le_bytes) as usize;
        let (envelope, state) = (word(0), word(4));
        let body = rest[8..16].try_into().map_or(0, u64::from_le_bytes);
        let mut key = [0; 16];
        key.copy_from_slice(&rest[16..]);
        if envelope > ENVELOPE_LIMIT || state > STATE_LIMIT {
            return Err(self.damaged());
        }
        let (envelope, state) = (self.take(envelope)?, self.take(state)?);
        if body > self.length.saturating_sub(self.at) {
            return Err(self.damaged());
        }
        Ok(Some(Record { key, envelope, state, body }))
    }

    /// The body of a record, compared with its checksum.
    fn body(&mut self, length: u64, out: &mut impl Write) -> Result<(), PortableError> {
        let mut left = length;
        let mut buffer = vec![0; PIECE];
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.get(&mut buffer[..count])?;
            out.write_all(&buffer[..count]).map_err(of(&self.path))?;
            left -= count as u64;
        }
        let sum = self.record.finalize();
        let mut told = [0; 32];
        self.get(&mut told)?;
        if sum == told { Ok(()) } else { Err(self.damaged()) }
    }

    fn skip(&mut self, length: u64) -> Result<(), PortableError> {
        self.body(length, &mut io::sink())
    }

    /// What follows the end's magic: how many messages there must be, and the whole checksum.
    fn end(&mut self) -> Result<u64, PortableError> {
        let mut count = [0; 8];
        self.get(&mut count)?;
        let sum = self.whole.finalize();
        let mut told = [0; 32];
        self.get(&mut told)?;
        let messages = u64::from_le_bytes(count);
        let whole = sum == told && messages == self.number - 1 && self.at == self.length;
        if whole { Ok(messages) } else { Err(self.damaged()) }
    }
}
