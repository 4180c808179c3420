//! Compiling in a process of its own, so that its time and memory have a bound. Floor 2.
//!
//! What compiling costs cannot be told from a component: a few hundred kilobytes of nested loops
//! over many variables can take gigabytes and minutes, and the compiler cannot be stopped. So the
//! program calls itself for it (`wavegate compile-plugin`): the component comes in on standard
//! input, machine code goes out on standard output. That process watches itself and ends when it is
//! over a bound; a relay that ended meanwhile leaves nothing behind. What it took is the system's
//! again afterwards, and a compiler that panics takes no relay with it.
//!
//! The code is trusted as if it had been made here: it was, by the same program for the same user.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::world::cpu;

use super::{
    compile::{self, CompileError},
    engine::{self, Metering},
    load::MAX_COMPONENT,
};

/// The hidden command of the program.
pub const COMMAND: &str = "compile-plugin";
/// Processor time of compiling one component, of all threads together: four times what one in
/// JavaScript (12 MB) takes.
const MAX_TIME: Duration = Duration::from_secs(120);
/// Resident memory of the process that compiles: twice what that one takes.
const MAX_RESIDENT: u64 = 1024 * 1024 * 1024;
/// Bytes of machine code.
pub(super) const MAX_CODE: u64 = 256 * 1024 * 1024;
/// Between two looks at what it has taken.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of its last words.
const MAX_WORDS: u64 = 2000;
/// What the process ends with where the component is to blame: `EX_DATAERR`.
const AT_FAULT: i32 = 65;

/// Has `program` compile a component; its machine code is appended to `code`.
pub(super) fn compile(
    program: &Path,
    metering: Metering,
    threads: usize,
    wasm: &[u8],
    code: &File,
) -> Result<(), CompileError> {
    let failed = CompileError::Process;
    let mut child = Command::new(program)
        .args([COMMAND, "--metering", metering.as_str(), "--threads", &threads.to_string()])
        // Nothing of the service manager's is for it.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(code.try_clone().map_err(failed)?)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // It may have ended already; then its end says more than this.
        let _ = input.write_all(wasm);
    }
    let mut words = String::new();
    if let Some(errors) = child.stderr.take() {
        let mut said = Vec::new();
        errors.take(MAX_WORDS).read_to_end(&mut said).map_err(failed)?;
        words = String::from_utf8_lossy(&said).trim_end().to_owned();
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        let length = code.metadata().map_err(failed)?.len();
        if length > MAX_CODE {
            let most = MAX_CODE / 1024 / 1024;
            let words = format!("it has more than {most} MiB of machine code");
            return Err(CompileError::Component(words));
        }
        if length == 0 {
            return Err(failed(io::Error::other("the program gave no code")));
        }
        return Ok(());
    }
    Err(blame(status, words))
}

fn blame(status: ExitStatus, words: String) -> CompileError {
    match status.code() {
        Some(AT_FAULT) => CompileError::Component(words),
        // A compiler that panics is a component that it cannot compile.
        Some(101) => CompileError::Component(format!("the compiler fails on it: {words}")),
        _ => CompileError::Process(io::Error::other(format!(
            "the process that compiles has ended: {status} {words}"
        ))),
    }
}

/// What that process does: compiles the component on `input`, writes its code to `output`. Gives
/// the reason where the component is to blame, with the exit code for it.
pub fn compile_here(
    metering: Metering,
    threads: usize,
    input: &mut dyn Read,
    output: &mut dyn Write,
) -> io::Result<Result<(), (u8, String)>> {
    compile::lower_priority();
    // When memory is short, a policy that is not in force yet is what can be spared.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let mut wasm = Vec::new();
    input.take(MAX_COMPONENT + 1).read_to_end(&mut wasm)?;
    let (done, watched) = mpsc::channel::<()>();
    let watch = thread::Builder::new().name("watch".to_owned()).spawn(move || {
        while watched.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if let Some(over) = is_over() {
                let _ = writeln!(io::stderr(), "{over}");
                std::process::exit(AT_FAULT);
            }
        }
    })?;
    let engine =
        engine::build(metering, 1).map_err(|error| io::Error::other(format!("{error:#}")))?;
    let compiled = compile::in_threads(&engine, threads, &wasm);
    drop(done);
    if watch.join().is_err() {
        return Err(io::Error::other("what watches the compiler panicked"));
    }
    match compiled {
        Ok(code) => output.write_all(&code).map(Ok),
        Err(CompileError::Component(error)) => Ok(Err((65, error))),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Which bound this process is over.
fn is_over() -> Option<String> {
    if cpu::of_process() > MAX_TIME {
        let most = MAX_TIME.as_secs();
        return Some(format!("compiling it takes more than {most} s of processor time"));
    }
    if resident() > MAX_RESIDENT {
        let most = MAX_RESIDENT / 1024 / 1024;
        return Some(format!("compiling it takes more than {most} MiB of memory"));
    }
    None
}

/// Resident memory of this process in bytes; 0 where the kernel does not say.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
