//! A file of lines that grows to a bound and then becomes the youngest of some older ones. Floor 2.
//!
//! Owns the file and its older ones, `NAME.1` the youngest, and the account of what waits for a
//! thread that writes one. What stands in a line is the business of others, and so is when a line
//! must be on disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// Bytes that no line exceeds: so far from its end a file is searched for the last whole one.
const LONGEST: u64 = 1 << 20;

/// A file that is written, and its bounds.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    file_bytes: u64,
    older: usize,
    /// None before the first line, and after a failure: then it is opened anew.
    open: Option<(File, u64)>,
}

impl Rotating {
    /// Nothing is touched before the first line.
    pub fn new(path: PathBuf, file_bytes: u64, older: usize) -> Self {
        Self { path, file_bytes, older, open: None }
    }

    /// The same, but the file is there when it returns, and so is its directory: what is wrong with
    /// them shows now.
    pub fn open(path: PathBuf, file_bytes: u64, older: usize) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut rotating = Self::new(path, file_bytes, older);
        rotating.append(b"", false)?;
        Ok(rotating)
    }

    /// Whether the file can be written. Changes nothing but that there is one.
    pub fn check(path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
    }

    /// The file that is written now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether so many bytes will stand at the beginning of a file, as far as is known: then what
    /// each file is to begin with is written (again).
    pub fn begins_anew(&self, bytes: usize) -> bool {
        self.open
            .as_ref()
            .is_none_or(|(_, there)| *there == 0 || there + bytes as u64 > self.file_bytes)
    }

    /// Writes whole lines, all in one file. After an error nothing of them is left once the next
    /// ones are written. With `durable` they are on disk when it returns.
    pub fn append(&mut self, lines: &[u8], durable: bool) -> io::Result<()> {
        let bytes = lines.len() as u64;
        let (mut file, mut there) = match self.open.take() {
            Some(open) => open,
            None => self.open_file(durable)?,
        };
        if there > 0 && there + bytes > self.file_bytes {
            drop(file);
            self.rotate(durable)?;
            (file, there) = self.open_file(durable)?;
        }
        let mut written = file.write_all(lines);
        if durable && written.is_ok() {
            written = file.sync_data();
        }
        match written {
            Ok(()) => self.open = Some((file, there + bytes)),
            // What is there of a line may not become part of the next. Where this fails too, the
            // next one that opens the file cuts it off.
            Err(_) => drop(file.set_len(there)),
        }
        written
    }

    /// Opens the file, and cuts off what is there of a line that was not finished.
    fn open_file(&self, durable: bool) -> io::Result<(File, u64)> {
        let there = self.path.exists();
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&self.path)?;
        let bytes = file.metadata()?.len();
        let whole = whole_lines(&mut file, bytes)?;
        if whole < bytes {
            file.set_len(whole)?;
        }
        if durable {
            file.sync_all()?;
        }
        if durable && !there {
            self.sync_directory()?;
        }
        Ok((file, whole))
    }

    /// The file becomes the youngest of the older ones; the oldest goes.
    fn rotate(&self, durable: bool) -> io::Result<()> {
        let older = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.older).rev() {
            match fs::rename(older(number), older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, older(1))?;
        if durable { self.sync_directory() } else { Ok(()) }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

/// Bytes up to the end of the last whole line.
fn whole_lines(file: &mut File, bytes: u64) -> io::Result<u64> {
    let from = bytes.saturating_sub(LONGEST);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(LONGEST).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1);
    Ok(from + end)
}

/// What waits for a thread that writes, in bytes and bounded, and what became of it, in pieces.
#[derive(Debug, Default)]
pub struct Backlog {
    waiting: AtomicUsize,
    written: AtomicU64,
    lost: AtomicU64,
}

impl Backlog {
    /// Counts one piece as waiting; false, and counted as lost, where then more than `most` bytes
    /// would wait.
    pub fn take(&self, bytes: usize, most: usize) -> bool {
        let fits = self.waiting.fetch_add(bytes, Relaxed) + bytes <= most;
        if !fits {
            self.lose(bytes, 1);
        }
        fits
    }

    /// So many bytes wait no more; their pieces are in the file.
    pub fn write(&self, bytes: usize, pieces: u64) {
        self.written.fetch_add(pieces, Relaxed);
        self.waiting.fetch_sub(bytes, Relaxed);
    }

    /// So many bytes wait no more; their pieces are in no file.
    pub fn lose(&self, bytes: usize, pieces: u64) {
        self.lost.fetch_add(pieces, Relaxed);
        self.waiting.fetch_sub(bytes, Relaxed);
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Pieces lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Pieces written, and pieces lost, so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.written.load(Relaxed), self.lost())
    }
}
