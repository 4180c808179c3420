//! Compiling components, and the cache of compiled code. Floor 2.
//!
//! The cache holds machine code that will run with our rights, so its directory must be ours and
//! closed to everybody else, and a file in it is used only if its content has the hash that its
//! name gives: `KEY-CONTENT.cwasm`, where KEY is a hash of the component and of everything that
//! the engine's code depends on. A file that is damaged is compiled anew.

use std::{
    fs::{self, File, OpenOptions},
    hash::{Hash, Hasher},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use wasmtime::{Engine, component::Component};

use super::{apart, engine::Metering, host::HostOptions};

/// Entries kept; the oldest go first. A reload adds one for each plugin that changed.
const MAX_ENTRIES: usize = 64;
/// Bytes kept.
const MAX_BYTES: u64 = 512 * 1024 * 1024;
/// Niceness of the threads that compile and audit: mail goes first.
pub(super) const LOW_PRIORITY: i32 = 10;

/// Compiles components of one engine, through a cache if it has one.
#[derive(Debug)]
pub(super) struct Compiler {
    dir: Option<PathBuf>,
    /// Hash of what the engine's code depends on: wasmtime's version, settings, the processor.
    compatibility: [u8; 32],
    threads: usize,
    /// The program that compiles apart; none: this process does.
    apart: Option<PathBuf>,
    metering: Metering,
}

/// Why a component did not compile.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompileError {
    /// Its author's fault.
    #[error("{0}")]
    Component(String),
    /// The machine's fault.
    #[error("cannot start the threads that compile: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The machine's fault, or that of a signal.
    #[error("it cannot be compiled apart: {0}")]
    Process(io::Error),
}

impl Compiler {
    /// A directory that cannot be trusted is not used, with a warning.
    pub(super) fn new(engine: &Engine, dir: Option<PathBuf>, options: &HostOptions) -> Self {
        let dir = dir.filter(|dir| match prepare(dir) {
            Ok(()) => true,
            Err(reason) => {
                tracing::warn!(
                    directory = %dir.display(),
                    "compiled policies are not cached, so that starting takes longer: {reason}"
                );
                false
            }
        });
        let mut hasher = Blake3Hasher(blake3::Hasher::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self {
            dir,
            compatibility: hasher.0.finalize().into(),
            threads: options.compile_threads,
            apart: options.compile_apart.clone(),
            metering: options.metering,
        }
    }

    /// The compiled component and whether it came from the cache. One of the relay's `own` is
    /// compiled at once: it is no bomb.
    pub(super) fn compile(
        &self,
        engine: &Engine,
        wasm: &[u8],
        own: bool,
    ) -> Result<(Component, bool), CompileError> {
        let key = self.key(wasm);
        if let Some(component) = self.dir.as_ref().and_then(|dir| cached(engine, dir, &key)) {
            return Ok((component, true));
        }
        let component = match &self.apart {
            Some(program) if !own => self.compile_apart(engine, program, wasm, &key),
            _ => self.compile_here(engine, wasm, &key),
        };
        component.map(|component| (component, false))
    }

    fn compile_here(
        &self,
        engine: &Engine,
        wasm: &[u8],
        key: &str,
    ) -> Result<Component, CompileError> {
        let code = in_threads(engine, self.threads, wasm)?;
        if let Some(dir) = &self.dir {
            let stored = new_entry(dir).and_then(|mut file| {
                file.write_all(&code)?;
                store(dir, key, file)
            });
            if is_kept(dir, stored)
                && let Some(component) = cached(engine, dir, key)
            {
                return Ok(component);
            }
        }
        own_code(engine, &code).map_err(|error| CompileError::Component(format!("{error:#}")))
    }

    fn compile_apart(
        &self,
        engine: &Engine,
        program: &Path,
        wasm: &[u8],
        key: &str,
    ) -> Result<Component, CompileError> {
        // A cache that is full or gone is no reason not to compile.
        let dir = self.dir.as_ref().and_then(|dir| Some((dir, new_entry(dir).ok()?)));
        let (dir, file) = match dir {
            Some((dir, file)) => (Some(dir), file),
            None => (None, new_entry(&std::env::temp_dir()).map_err(CompileError::Process)?),
        };
        apart::compile(program, self.metering, self.threads, wasm, file.as_file())?;
        // It stays mapped when its name is gone. What the engine says here is of its limits.
        let component = own_file(engine, file.path())
            .map_err(|error| CompileError::Component(format!("{error:#}")))?;
        if let Some(dir) = dir {
            is_kept(dir, store(dir, key, file));
        }
        Ok(component)
    }

    fn key(&self, wasm: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.compatibility);
        hasher.update(wasm);
        hasher.finalize().to_hex().to_string()
    }
}

/// Compiles in threads of low priority.
pub(super) fn in_threads(
    engine: &Engine,
    threads: usize,
    wasm: &[u8],
) -> Result<Vec<u8>, CompileError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("policy-compile-{index}"))
        .start_handler(|_| lower_priority())
        .build()?;
    pool.install(|| engine.precompile_component(wasm))
        .map_err(|error| CompileError::Component(format!("{error:#}")))
}

/// Gives the calling thread the lower priority. A failure is no reason not to work.
pub(super) fn lower_priority() {
    // On Linux the priority belongs to the thread that asks.
    if let Err(error) = rustix::process::setpriority_process(None, LOW_PRIORITY) {
        tracing::debug!("a policy thread keeps its priority: {error}");
    }
}

/// Makes the directory if it is missing, and says why it cannot be trusted.
fn prepare(dir: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("it cannot be made: {error}"));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err("it is not a directory".to_owned());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err("it belongs to another user; remove it or give it to this one".to_owned());
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "others may use it: its mode is {:03o}, not 700",
            metadata.mode() & 0o777
        ));
    }
    Ok(())
}

/// The component of this key, if there is a sound file for it. Files that are not are removed.
fn cached(engine: &Engine, dir: &Path, key: &str) -> Option<Component> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let name = entry.file_name();
        let Some(content) = name
            .to_str()
            .and_then(|name| name.strip_prefix(key)?.strip_prefix('-')?.strip_suffix(".cwasm"))
        else {
            continue;
        };
        let path = entry.path();
        if is_sound(&path, content).unwrap_or(false)
            && let Ok(component) = own_file(engine, &path)
        {
            return Some(component);
        }
        tracing::warn!(file = %path.display(), "a damaged compiled policy is compiled anew");
        let _ = fs::remove_file(&path);
    }
    None
}

/// Whether the file is a plain one of ours with the content that its name gives.
fn is_sound(path: &Path, content: &str) -> io::Result<bool> {
    let mut file = open_plain(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file()
        || metadata.uid() != rustix::process::geteuid().as_raw()
        || metadata.mode() & 0o022 != 0
    {
        return Ok(false);
    }
    Ok(hash_of(&mut file)? == content)
}

/// Opens a file, but follows no link and waits for no pipe.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Maps code that was checked into memory.
#[allow(
    unsafe_code,
    reason = "deserialising runs whatever machine code the file holds. The file is our own: it \
              lies in a directory that only we can write, and its content has the hash that we \
              gave it when we compiled it"
)]
fn own_file(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: see the reason above; `cached` checks the file, `prepare` its directory.
    unsafe { Component::deserialize_file(engine, path) }
        .inspect_err(|error| tracing::debug!(file = %path.display(), "not usable: {error:#}"))
}

/// Loads code that this process has just compiled.
#[allow(unsafe_code, reason = "the bytes come from `precompile_component` of the same engine")]
fn own_code(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: see the reason above.
    unsafe { Component::deserialize(engine, code) }
}

/// Whether a component is in the cache now; the oldest make room.
fn is_kept(dir: &Path, stored: io::Result<()>) -> bool {
    stored
        .and_then(|()| prune(dir))
        .inspect_err(|error| {
            tracing::warn!(
                directory = %dir.display(),
                "a compiled policy could not be cached: {error}"
            );
        })
        .is_ok()
}

/// A file that is no entry yet; it goes when nobody needs it.
fn new_entry(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(".new-").tempfile_in(dir)
}

/// Makes it one, under its name, which says what is in it.
fn store(dir: &Path, key: &str, file: tempfile::NamedTempFile) -> io::Result<()> {
    let content = hash_of(&mut File::open(file.path())?)?;
    file.persist(dir.join(format!("{key}-{content}.cwasm"))).map_err(|error| error.error)?;
    Ok(())
}

fn hash_of(file: &mut File) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..read]);
    }
}

/// Removes the oldest entries beyond the bounds, and what a crash left unfinished.
fn prune(dir: &Path) -> io::Result<()> {
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)?.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push((modified, metadata.len(), entry.path()));
        }
    }
    entries.sort_by(|one, other| other.cmp(one));
    let mut bytes = 0u64;
    for (kept, (_, size, path)) in entries.iter().enumerate() {
        bytes = bytes.saturating_add(*size);
        // The newest stays even where it alone is too large: it is in use.
        if kept > 0 && (kept >= MAX_ENTRIES || bytes > MAX_BYTES) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Feeds what is hashed to BLAKE3: the hash must be the same in the next process.
struct Blake3Hasher(blake3::Hasher);

impl Hasher for Blake3Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}
