//! Tools of other projects that a test needs: found, or skipped by name, never forgotten.
//!
//! `tests/run` finds out what cannot be had on a machine and names it in `WAVEGATE_SKIP`. A test
//! that misses a tool which is not named there fails: so nothing is ever skipped in silence.

use std::{
    env,
    ffi::OsStr,
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Names of what may be skipped, with spaces between them.
pub const SKIP: &str = "WAVEGATE_SKIP";

/// A file to which a line is added for each skipped test, for whoever counts them.
pub const SKIPPED_FILE: &str = "WAVEGATE_SKIPPED_FILE";

/// Where Debian keeps what only administrators need; often not in a developer's `PATH`.
const ADMIN: [&str; 2] = ["/usr/local/sbin", "/usr/sbin"];

/// The path of a tool; none if it is to be skipped (the caller then returns).
///
/// What `WAVEGATE_SKIP` names is skipped even where it is installed: `postfix` cannot be started
/// by everybody who has it.
///
/// # Panics
/// If it is neither here nor named in `WAVEGATE_SKIP`.
pub fn require(name: &str) -> Option<PathBuf> {
    match look_for(name, env::var(SKIP).ok().as_deref(), env::var_os("PATH").as_deref()) {
        Found::At(path) => Some(path),
        Found::Skip => {
            report(&format!("{name} (named in {SKIP})"));
            record(name);
            None
        }
        Found::Missing => panic!(
            "this test needs {name}, which is not installed: tests/run as root installs it; or \
             name it in {SKIP} to skip what needs it"
        ),
    }
}

/// The same for something that is no program but that this user and kernel allow, or do not.
///
/// # Panics
/// If it cannot be done and is not named in `WAVEGATE_SKIP`.
pub fn require_able<T>(name: &str, act: impl FnOnce() -> Result<T, String>) -> Option<T> {
    let skip = env::var(SKIP).unwrap_or_default();
    if skip.split_whitespace().any(|skipped| skipped == name) {
        report(&format!("{name} (named in {SKIP})"));
        record(name);
        return None;
    }
    match act() {
        Ok(done) => Some(done),
        Err(error) => panic!("this test needs {name}: {error}; or name it in {SKIP}"),
    }
}

/// A message to send with them, as a file with Unix line ends has it. It has all that clients add where it is
/// missing.
pub const MAIL: &str = "From: News <news@mkt.acme.example>\nTo: customer@example.org\n\
    Date: Sat, 21 Nov 2026 12:00:00 +0000\nMessage-ID: <1@mkt.acme.example>\n\
    Subject: Gr\u{fc}\u{df}e\nX-Folded: one\n\ttwo \n three\n\n\
    .\n..\n.dots\ntrailing blanks  \t\n\nGr\u{fc}\u{df}e, \u{4e16}\u{754c}\n\n\n";

/// What a command said, on both of its outputs.
pub fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Runs a command with this on its standard input.
///
/// # Panics
/// If it cannot be started, or does not read it.
#[allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]
pub fn fed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    At(PathBuf),
    Skip,
    Missing,
}

fn look_for(name: &str, skip: Option<&str>, path: Option<&OsStr>) -> Found {
    if skip.unwrap_or("").split_whitespace().any(|skipped| skipped == name) {
        return Found::Skip;
    }
    let directories = path.map(|path| env::split_paths(path).collect::<Vec<_>>());
    directories
        .unwrap_or_default()
        .into_iter()
        .chain(ADMIN.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
        .map_or(Found::Missing, Found::At)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[allow(clippy::print_stderr, reason = "for whoever reads the output of a test")]
fn report(what: &str) {
    eprintln!("skipped: {what}");
}

/// Lets the one who counts know. The test runner names each test's thread after the test.
fn record(tool: &str) {
    let Some(file) = env::var_os(SKIPPED_FILE) else { return };
    let program = env::current_exe().unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let thread = std::thread::current();
    let line = format!("{program}::{} {tool}\n", thread.name().unwrap_or("?"));
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        report(&format!("{tool}, but {} cannot be written: {error}", file.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_found_skipped_only_by_name_or_missed() {
        let path = OsStr::new("/nowhere:/bin:/usr/bin");
        assert!(matches!(look_for("sh", None, Some(path)), Found::At(_)));
        assert!(matches!(look_for("sh", Some("shell ash"), Some(path)), Found::At(_)));
        assert_eq!(look_for("sh", Some("swaks sh"), Some(path)), Found::Skip);
        assert_eq!(look_for("no-such-tool", Some("swaks"), Some(path)), Found::Missing);
        assert_eq!(look_for("no-such-tool", None, None), Found::Missing);
        // A directory is no tool.
        assert_eq!(look_for("bin", None, Some(OsStr::new("/usr"))), Found::Missing);
    }
}
