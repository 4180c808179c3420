//! The files of the table, version 1.
//!
//! A generation is a file `N.seen`, N being a number of 16 hexadecimal digits that grows. The two
//! with the greatest numbers count; what else there is of this name is taken away. A file begins with
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `WGSEEN`, and the version (two bytes) |
//! | 16 | the greatest id that had been forgotten when it was begun |
//! | 8 | checksum of the 24 bytes before |
//!
//! and goes on with lines, each of them
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | `\xffWGL`: where to go on behind a line that is damaged |
//! | 4 | the bytes behind the checksum |
//! | 8 | checksum: the first bytes of BLAKE3 of what is behind it |
//! | 8 | hash of the edge's name |
//! | 16 | the message's id |
//! | rest | answers, see `record.rs` |
//!
//! All numbers are big-endian. A line that is cut off at the end, as a crash leaves it, is cut away
//! when the file is opened; one that is damaged in the middle is left out. A file of another version
//! is left out whole: the table is then as one that has forgotten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use super::Key;

const HEAD: [u8; 8] = *b"WGSEEN\0\x01";
const BEGIN: usize = 32;
const MARK: [u8; 4] = *b"\xffWGL";
/// Bytes of a line before its checksum's content.
const LINE: usize = 16;
/// Longest content of a line: all recipients of the largest envelope with a reply each.
const LONGEST: usize = 64 << 20;
/// Bytes of a file that are read at most: far more than the largest table that can be configured.
const FILE: u64 = 4 << 30;
/// How long what was written waits for a sync.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Where lines are written.
pub(super) struct Files {
    directory: PathBuf,
    number: u64,
    file: Arc<File>,
    /// Bytes of it that are whole lines.
    length: u64,
}

/// What was in them.
#[derive(Default)]
pub(super) struct Found {
    pub(super) young: Vec<(Key, Vec<u8>)>,
    pub(super) old: Vec<(Key, Vec<u8>)>,
    pub(super) forgotten: [u8; 16],
    /// Bytes that could not be read.
    pub(super) damaged: usize,
}

impl Files {
    /// Opens the younger file, or begins the first one.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Found)> {
        fs::create_dir_all(directory)?;
        let mut numbers = numbers(directory)?;
        numbers.sort_unstable();
        let mut found = Found::default();
        let mut young = None;
        while let Some(number) = numbers.pop() {
            let path = path(directory, number);
            let read = match read(&path)? {
                Some(read) => read,
                // Nothing in it counts, and nothing can be added to it.
                None => {
                    found.damaged += usize::try_from(fs::metadata(&path)?.len()).unwrap_or(0);
                    fs::remove_file(&path)?;
                    continue;
                }
            };
            found.damaged += read.damaged;
            if young.is_none() {
                (found.young, found.forgotten) = (read.lines, read.forgotten);
                young = Some((number, read.length));
            } else {
                found.old = read.lines;
                for older in numbers.drain(..) {
                    fs::remove_file(self::path(directory, older))?;
                }
            }
        }
        let directory = directory.to_owned();
        let files = match young {
            Some((number, length)) => {
                let file = OpenOptions::new().append(true).open(path(&directory, number))?;
                file.set_len(length)?;
                Self { directory, number, file: Arc::new(file), length }
            }
            None => {
                let number = 1;
                let file = Arc::new(begin(&directory, number, [0; 16])?);
                Self { directory, number, file, length: BEGIN as u64 }
            }
        };
        Ok((files, found))
    }

    /// The file that is written.
    pub(super) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Writes a line.
    pub(super) fn append(&mut self, key: Key, answers: &[u8]) -> io::Result<()> {
        let mut line = Vec::with_capacity(LINE + 24 + answers.len());
        line.extend_from_slice(&MARK);
        let length = u32::try_from(24 + answers.len()).unwrap_or(u32::MAX);
        line.extend_from_slice(&length.to_be_bytes());
        line.extend_from_slice(&[0; 8]);
        line.extend_from_slice(&key.edge.to_be_bytes());
        line.extend_from_slice(&key.id);
        line.extend_from_slice(answers);
        let sum = checksum(&line[LINE..]);
        line[8..LINE].copy_from_slice(&sum);
        if let Err(error) = (&*self.file).write_all(&line) {
            // What was written of it would stand before the next one; if it cannot be taken away
            // it is a damaged line, no more.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Begins the next file, and takes the one away that is too many.
    pub(super) fn rotate(&mut self, forgotten: [u8; 16]) -> io::Result<Arc<File>> {
        let file = Arc::new(begin(&self.directory, self.number + 1, forgotten)?);
        if let Err(error) = fs::remove_file(path(&self.directory, self.number.wrapping_sub(1)))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "an old file of the table of what was seen stays");
        }
        self.number += 1;
        self.length = BEGIN as u64;
        self.file = Arc::clone(&file);
        Ok(file)
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.seen"))
}

/// The numbers of the files that are there.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seen"));
        let number = number.filter(|number| number.len() == 16);
        numbers.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    Ok(numbers)
}

fn begin(directory: &Path, number: u64, forgotten: [u8; 16]) -> io::Result<File> {
    let mut head = Vec::with_capacity(BEGIN);
    head.extend_from_slice(&HEAD);
    head.extend_from_slice(&forgotten);
    let sum = checksum(&head);
    head.extend_from_slice(&sum);
    let path = path(directory, number);
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
    if let Err(error) = file.write_all(&head) {
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok(file)
}

struct Content {
    lines: Vec<(Key, Vec<u8>)>,
    forgotten: [u8; 16],
    damaged: usize,
    /// Up to the end of the last whole line.
    length: u64,
}

/// Reads a file; nothing where it is not one of this version.
fn read(path: &Path) -> io::Result<Option<Content>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE).read_to_end(&mut bytes)?;
    let Some((head, lines)) = bytes.split_at_checked(BEGIN) else { return Ok(None) };
    if head[..8] != HEAD || head[24..] != checksum(&head[..24]) {
        return Ok(None);
    }
    let mut forgotten = [0; 16];
    forgotten.copy_from_slice(&head[8..24]);
    let mut found = Content { lines: Vec::new(), forgotten, damaged: 0, length: BEGIN as u64 };
    let mut at = 0;
    let mut whole = 0;
    while at < lines.len() {
        match line(&lines[at..]) {
            Some((key, answers, used)) => {
                found.lines.push((key, answers.to_vec()));
                at += used;
                found.damaged += at - used - whole;
                whole = at;
            }
            // On to the next mark.
            None => {
                let next = memchr::memmem::find(&lines[at + 1..], &MARK);
                at = next.map_or(lines.len(), |next| at + 1 + next);
            }
        }
    }
    found.damaged += lines.len() - whole;
    found.length += whole as u64;
    Ok(Some(found))
}

/// The line that begins here, and its bytes.
fn line(bytes: &[u8]) -> Option<(Key, &[u8], usize)> {
    let (mark, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if *mark != MARK || length > LONGEST {
        return None;
    }
    let content = rest.get(..length)?;
    if *sum != checksum(content) {
        return None;
    }
    let (edge, rest) = content.split_first_chunk()?;
    let (id, answers) = rest.split_first_chunk()?;
    Some((Key { edge: u64::from_be_bytes(*edge), id: *id }, answers, LINE + length))
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    blake3::hash(bytes).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The thread that syncs what is written, once a second while something is.
pub(super) struct Synced {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<Syncing>,
    wake: Condvar,
}

struct Syncing {
    file: Arc<File>,
    /// Those that it was written to before, and that were not synced since.
    before: Vec<Arc<File>>,
    changed: bool,
    stop: bool,
}

impl Synced {
    pub(super) fn start(file: Arc<File>) -> io::Result<Self> {
        let state = Mutex::new(Syncing { file, before: Vec::new(), changed: false, stop: false });
        let shared = Arc::new(Shared { state, wake: Condvar::new() });
        let thread = std::thread::Builder::new().name("seen".into());
        let mine = Arc::clone(&shared);
        let thread = thread.spawn(move || mine.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Something was written.
    pub(super) fn changed(&self) {
        let mut state = self.shared.lock();
        if !state.changed {
            state.changed = true;
            self.shared.wake.notify_one();
        }
    }

    /// It is written to another file from now on; what stands in the one before is synced as well.
    pub(super) fn turn_to(&self, file: Arc<File>) {
        let mut state = self.shared.lock();
        let before = std::mem::replace(&mut state.file, file);
        state.before.push(before);
        drop(state);
        self.changed();
    }
}

impl Drop for Synced {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let idle = |state: &mut Syncing| !state.changed && !state.stop;
            state = self.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            // What is written within a second shares one sync.
            let waits = |state: &mut Syncing| !state.stop;
            let waited = self.wake.wait_timeout_while(state, SYNC_EVERY, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.changed {
                state.changed = false;
                let mut files = std::mem::take(&mut state.before);
                files.push(Arc::clone(&state.file));
                drop(state);
                for file in files {
                    if let Err(error) = file.sync_data() {
                        tracing::warn!(%error, "the table of what was seen is not synced");
                    }
                }
                state = self.lock();
            }
            if state.stop {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Syncing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
