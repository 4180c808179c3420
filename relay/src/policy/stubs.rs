//! What is left of WASI: harmless answers for the few interfaces that language runtimes import
//! whether or not a policy needs them. Floor 2.
//!
//! Owns which interfaces these are ([`ALLOWED`]), what they answer, and what is said of all
//! others. Nothing here looks at the outside world: there are no files, no network, no arguments
//! and no environment, the clocks stand still, random bytes are always the same. An answer depends
//! on the arguments of the call alone, so a policy stays a pure function. What a guest writes to
//! its standard output goes to the policy's log, within the limits of that.
//!
//! The interfaces are those of WASI 0.2; wasmtime's linker takes any 0.2.x for another.

use wasmtime::{
    StoreContextMut,
    component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType},
};

use super::instance::State;

/// Interfaces that are answered, and how, for people.
const ALLOWED: [(&str, &str); 20] = [
    ("cli/environment", "no variables, no arguments"),
    ("cli/exit", "ends the call as a trap does"),
    ("cli/stdin", "always at its end"),
    ("cli/stdout", "goes to the policy's log"),
    ("cli/stderr", "goes to the policy's log"),
    ("cli/terminal-input", "there is no terminal"),
    ("cli/terminal-output", "there is no terminal"),
    ("cli/terminal-stdin", "there is no terminal"),
    ("cli/terminal-stdout", "there is no terminal"),
    ("cli/terminal-stderr", "there is no terminal"),
    ("clocks/monotonic-clock", "stands at 0; waiting ends at once"),
    ("clocks/wall-clock", "stands at 1970-01-01T00:00:00Z; the time is in the question"),
    ("filesystem/preopens", "no directories"),
    ("filesystem/types", "no files"),
    ("io/error", "no errors"),
    ("io/poll", "always ready"),
    ("io/streams", "those of standard input and output only"),
    ("random/insecure", "the same bytes at every call"),
    ("random/insecure-seed", "the same seed at every call"),
    ("random/random", "the same bytes at every call"),
];

/// Handles that an instance may hold at once. A runtime has a handful; each takes memory of ours,
/// which nothing else would bound.
const MAX_HANDLES: u32 = 1024;
/// Random bytes that one call gives: a seed has at most some hundreds.
const MAX_RANDOM: u64 = 64 * 1024;
/// What a stream says that it takes in one write.
const WRITABLE: u64 = 64 * 1024;
/// What random numbers are made of: any constant does.
const SEED: u64 = 0x5741_5645_4741_5445;

/// How an interface of WASI is answered; none for one that is not.
pub(super) fn answered(import: &str) -> Option<&'static str> {
    let (interface, version) = import.strip_prefix("wasi:")?.split_once('@')?;
    let patch = version.strip_prefix("0.2.")?;
    if patch.is_empty() || !patch.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    ALLOWED.iter().find(|(name, _)| *name == interface).map(|(_, how)| *how)
}

/// What an author can do about an import of WASI that is not answered.
pub(super) fn remedy(import: &str) -> &'static str {
    let name = import.strip_prefix("wasi:").unwrap_or(import);
    let old = name.split_once('@').is_some_and(|(_, version)| !version.starts_with("0.2."));
    match name.split_once('/').map(|(package, _)| package) {
        Some("http") => "there is no network: with componentize-js, disable http and fetch-event",
        Some("sockets") => "there is no network: leave out what opens connections",
        Some("cli" | "clocks" | "filesystem" | "io" | "random") if old => {
            "only WASI 0.2 has harmless answers here: build it for that, or without WASI"
        }
        Some("config" | "keyvalue" | "blobstore") => {
            "what a policy may know is in its settings and in the operator's tables"
        }
        _ => "build it for wasm32-unknown-unknown, or turn the feature that needs it off",
    }
}

/// A guest asked for its end, or for something that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Ended(String);

fn ended<R>(why: impl Into<String>) -> wasmtime::Result<R> {
    Err(wasmtime::Error::new(Ended(why.into())))
}

/// The handles that an instance holds, as a number: they have no content.
#[derive(Debug, Default)]
pub(super) struct Handles(u32);

enum IoError {}
enum Pollable {}
enum InputStream {}
enum OutputStream {}
enum Descriptor {}
enum DirectoryEntryStream {}
enum TerminalInput {}
enum TerminalOutput {}

/// The output streams that there are.
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[allow(dead_code, reason = "the contract of WASI has it; nothing here fails")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

type Store<'a> = StoreContextMut<'a, State>;
type Written = (Result<(), StreamError>,);

/// Makes a handle, if the instance may have one more.
fn handle<T: 'static>(store: &mut Store<'_>, number: u32) -> wasmtime::Result<Resource<T>> {
    let Handles(open) = store.data_mut().handles();
    if *open >= MAX_HANDLES {
        return ended(format!("it holds more than {MAX_HANDLES} handles of WASI"));
    }
    *open += 1;
    Ok(Resource::new_own(number))
}

fn resource<T: 'static>(at: &mut LinkerInstance<'_, State>, name: &str) -> wasmtime::Result<()> {
    at.resource(name, ResourceType::host::<T>(), |mut store, _| {
        let Handles(open) = store.data_mut().handles();
        *open = open.saturating_sub(1);
        Ok(())
    })
}

/// Adds all stubs to a linker.
pub(super) fn add_to(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    command_line(linker)?;
    terminals(linker)?;
    clocks(linker)?;
    files(linker)?;
    errors_and_polls(linker)?;
    input(&mut linker.instance("wasi:io/streams@0.2.0")?)?;
    output(&mut linker.instance("wasi:io/streams@0.2.0")?)?;
    random(linker)
}

fn command_line(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut at = linker.instance("wasi:cli/environment@0.2.0")?;
    at.func_wrap("get-environment", |_, ()| Ok((Vec::<(String, String)>::new(),)))?;
    at.func_wrap("get-arguments", |_, ()| Ok((Vec::<String>::new(),)))?;
    at.func_wrap("initial-cwd", |_, ()| Ok((None::<String>,)))?;
    let mut at = linker.instance("wasi:cli/exit@0.2.0")?;
    at.func_wrap("exit", |_, (_,): (Result<(), ()>,)| ended::<()>("it called exit"))?;
    at.func_wrap("exit-with-code", |_, (_,): (u8,)| ended::<()>("it called exit"))?;
    let mut at = linker.instance("wasi:cli/stdin@0.2.0")?;
    at.func_wrap("get-stdin", |mut store, ()| Ok((handle::<InputStream>(&mut store, 0)?,)))?;
    let mut at = linker.instance("wasi:cli/stdout@0.2.0")?;
    at.func_wrap("get-stdout", |mut store, ()| Ok((handle::<OutputStream>(&mut store, STDOUT)?,)))?;
    let mut at = linker.instance("wasi:cli/stderr@0.2.0")?;
    at.func_wrap("get-stderr", |mut store, ()| Ok((handle::<OutputStream>(&mut store, STDERR)?,)))
}

fn terminals(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    resource::<TerminalInput>(
        &mut linker.instance("wasi:cli/terminal-input@0.2.0")?,
        "terminal-input",
    )?;
    resource::<TerminalOutput>(
        &mut linker.instance("wasi:cli/terminal-output@0.2.0")?,
        "terminal-output",
    )?;
    let mut at = linker.instance("wasi:cli/terminal-stdin@0.2.0")?;
    at.func_wrap("get-terminal-stdin", |_, ()| Ok((None::<Resource<TerminalInput>>,)))?;
    let mut at = linker.instance("wasi:cli/terminal-stdout@0.2.0")?;
    at.func_wrap("get-terminal-stdout", |_, ()| Ok((None::<Resource<TerminalOutput>>,)))?;
    let mut at = linker.instance("wasi:cli/terminal-stderr@0.2.0")?;
    at.func_wrap("get-terminal-stderr", |_, ()| Ok((None::<Resource<TerminalOutput>>,)))
}

fn clocks(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut at = linker.instance("wasi:clocks/monotonic-clock@0.2.0")?;
    at.func_wrap("now", |_, ()| Ok((0u64,)))?;
    at.func_wrap("resolution", |_, ()| Ok((1u64,)))?;
    for name in ["subscribe-instant", "subscribe-duration"] {
        at.func_wrap(name, |mut store, (_,): (u64,)| Ok((handle::<Pollable>(&mut store, 0)?,)))?;
    }
    let mut at = linker.instance("wasi:clocks/wall-clock@0.2.0")?;
    at.func_wrap("now", |_, ()| Ok((Datetime { seconds: 0, nanoseconds: 0 },)))?;
    at.func_wrap("resolution", |_, ()| Ok((Datetime { seconds: 0, nanoseconds: 1 },)))
}

/// Without a directory nobody can have a descriptor, so that none of these can ever be called: they
/// are there to be linked.
fn files(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    const METHODS: [&str; 29] = [
        "[method]descriptor.read-via-stream",
        "[method]descriptor.write-via-stream",
        "[method]descriptor.append-via-stream",
        "[method]descriptor.advise",
        "[method]descriptor.sync-data",
        "[method]descriptor.get-flags",
        "[method]descriptor.get-type",
        "[method]descriptor.set-size",
        "[method]descriptor.set-times",
        "[method]descriptor.read",
        "[method]descriptor.write",
        "[method]descriptor.read-directory",
        "[method]descriptor.sync",
        "[method]descriptor.create-directory-at",
        "[method]descriptor.stat",
        "[method]descriptor.stat-at",
        "[method]descriptor.set-times-at",
        "[method]descriptor.link-at",
        "[method]descriptor.open-at",
        "[method]descriptor.readlink-at",
        "[method]descriptor.remove-directory-at",
        "[method]descriptor.rename-at",
        "[method]descriptor.symlink-at",
        "[method]descriptor.unlink-file-at",
        "[method]descriptor.is-same-object",
        "[method]descriptor.metadata-hash",
        "[method]descriptor.metadata-hash-at",
        "[method]directory-entry-stream.read-directory-entry",
        "filesystem-error-code",
    ];
    let mut at = linker.instance("wasi:filesystem/types@0.2.0")?;
    resource::<Descriptor>(&mut at, "descriptor")?;
    resource::<DirectoryEntryStream>(&mut at, "directory-entry-stream")?;
    for name in METHODS {
        at.func_new(name, |_, _, _, _| ended("there are no files"))?;
    }
    let mut at = linker.instance("wasi:filesystem/preopens@0.2.0")?;
    at.func_wrap("get-directories", |_, ()| Ok((Vec::<(Resource<Descriptor>, String)>::new(),)))
}

fn errors_and_polls(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut at = linker.instance("wasi:io/error@0.2.0")?;
    resource::<IoError>(&mut at, "error")?;
    at.func_wrap("[method]error.to-debug-string", |_, (_,): (Resource<IoError>,)| {
        ended::<(String,)>("there are no errors")
    })?;
    let mut at = linker.instance("wasi:io/poll@0.2.0")?;
    resource::<Pollable>(&mut at, "pollable")?;
    at.func_wrap("[method]pollable.ready", |_, (_,): (Resource<Pollable>,)| Ok((true,)))?;
    at.func_wrap("[method]pollable.block", |_, (_,): (Resource<Pollable>,)| Ok(()))?;
    at.func_wrap("poll", |_, (polled,): (Vec<Resource<Pollable>>,)| {
        Ok(((0..).take(polled.len()).collect::<Vec<u32>>(),))
    })
}

fn input(at: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    resource::<InputStream>(at, "input-stream")?;
    type Read = (Result<Vec<u8>, StreamError>,);
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        at.func_wrap(name, |_, (_, _): (Resource<InputStream>, u64)| -> wasmtime::Result<Read> {
            Ok((Err(StreamError::Closed),))
        })?;
    }
    type Skipped = (Result<u64, StreamError>,);
    for name in ["[method]input-stream.skip", "[method]input-stream.blocking-skip"] {
        at.func_wrap(
            name,
            |_, (_, _): (Resource<InputStream>, u64)| -> wasmtime::Result<Skipped> {
                Ok((Err(StreamError::Closed),))
            },
        )?;
    }
    at.func_wrap("[method]input-stream.subscribe", |mut store, (_,): (Resource<InputStream>,)| {
        Ok((handle::<Pollable>(&mut store, 0)?,))
    })
}

fn output(at: &mut LinkerInstance<'_, State>) -> wasmtime::Result<()> {
    type Out = Resource<OutputStream>;
    type Count = (Result<u64, StreamError>,);
    resource::<OutputStream>(at, "output-stream")?;
    at.func_wrap(
        "[method]output-stream.check-write",
        |_, (_,): (Out,)| -> wasmtime::Result<Count> { Ok((Ok(WRITABLE),)) },
    )?;
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        at.func_wrap(
            name,
            |mut store, (stream, bytes): (Out, Vec<u8>)| -> wasmtime::Result<Written> {
                store.data_mut().written(stream.rep() == STDERR, &bytes);
                Ok((Ok(()),))
            },
        )?;
    }
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        at.func_wrap(name, |_, (_,): (Out,)| -> wasmtime::Result<Written> { Ok((Ok(()),)) })?;
    }
    for name in [
        "[method]output-stream.write-zeroes",
        "[method]output-stream.blocking-write-zeroes-and-flush",
    ] {
        at.func_wrap(name, |_, (_, _): (Out, u64)| -> wasmtime::Result<Written> { Ok((Ok(()),)) })?;
    }
    for name in ["[method]output-stream.splice", "[method]output-stream.blocking-splice"] {
        at.func_wrap(
            name,
            |_, (_, _, _): (Out, Resource<InputStream>, u64)| -> wasmtime::Result<Count> {
                Ok((Err(StreamError::Closed),))
            },
        )?;
    }
    at.func_wrap("[method]output-stream.subscribe", |mut store, (_,): (Out,)| {
        Ok((handle::<Pollable>(&mut store, 0)?,))
    })
}

fn random(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    for (interface, bytes, number) in [
        ("wasi:random/random@0.2.0", "get-random-bytes", "get-random-u64"),
        ("wasi:random/insecure@0.2.0", "get-insecure-random-bytes", "get-insecure-random-u64"),
    ] {
        let mut at = linker.instance(interface)?;
        at.func_wrap(bytes, |_, (count,): (u64,)| Ok((constant(count)?,)))?;
        at.func_wrap(number, |_, ()| Ok((SEED,)))?;
    }
    let mut at = linker.instance("wasi:random/insecure-seed@0.2.0")?;
    at.func_wrap("insecure-seed", |_, ()| Ok(((SEED, !SEED),)))
}

/// So many bytes that look random, and are the same ones each time (splitmix64).
fn constant(count: u64) -> wasmtime::Result<Vec<u8>> {
    if count > MAX_RANDOM {
        return ended(format!("it asked for {count} random bytes; {MAX_RANDOM} are given at most"));
    }
    let mut state = SEED;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    });
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Ok(words.flatten().take(count).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails should say where")]
    use super::*;

    #[test]
    fn only_what_is_listed_is_answered_and_only_of_0_2() {
        assert!(answered("wasi:cli/environment@0.2.0").is_some());
        assert!(answered("wasi:io/streams@0.2.12").is_some());
        for other in [
            "wasi:cli/environment",
            "wasi:cli/environment@0.3.0",
            "wasi:cli/environment@0.2.",
            "wasi:cli/environment@0.2.0-rc",
            "wasi:cli/run@0.2.0",
            "wasi:sockets/tcp@0.2.0",
            "wasi:http/types@0.2.10",
            "cli/environment@0.2.0",
        ] {
            assert_eq!(answered(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_refused_names_what_to_do() {
        assert!(remedy("wasi:http/types@0.2.10").contains("fetch-event"));
        assert!(remedy("wasi:sockets/tcp@0.2.0").contains("connections"));
        assert!(remedy("wasi:cli/stdin@0.3.0").contains("0.2"));
        assert!(remedy("wasi:keyvalue/store@0.2.0-draft").contains("tables"));
        assert!(remedy("wasi:nn/graph@0.2.0").contains("wasm32-unknown-unknown"));
    }

    #[test]
    fn random_bytes_are_bounded_and_always_the_same() {
        assert_eq!(constant(0).unwrap(), []);
        let all = constant(MAX_RANDOM).unwrap();
        assert_eq!(constant(13).unwrap(), all[..13]);
        assert_ne!(all[..8], all[8..16]);
        assert!(constant(MAX_RANDOM + 1).unwrap_err().is::<Ended>());
    }
}
