//! The relay as a process of its own, in a folder of its own.
//!
//! Owns the process and its log; knows the relay only by its command line, its signals and what it
//! logs. Floor: none.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Client, Config, Metrics, http_get, until};

/// The log says this once for each listener.
const LISTENING: &str = "listening listener=";
/// The log says this once if there are pages for monitors.
const MONITORS: &str = "monitors are answered address=";
/// The log says this once for each reload that was made.
const RELOADED: &str = "a new generation is in force";
/// The log says this in each line about what keeps a reload from being made ...
const FOUND: &str = "found at the reload";
/// ... and this at their end.
const REFUSED: &str = "reload refused";
/// So much of the log is shown when a test fails.
const LOG_SHOWN: usize = 40;

/// The program under test: `WAVEGATE_BIN`, or the one built beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WAVEGATE_BIN") {
        return path.into();
    }
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let target = profile.parent().unwrap();
    let own = profile.join("wavegate");
    let others = ["release", "debug"].map(|name| target.join(name).join("wavegate"));
    std::iter::once(own).chain(others).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no wavegate in {}; cargo build --release -p wavegate", target.display())
    })
}

/// A running relay. Killed when dropped; its log is shown if the test has failed.
pub struct Relay {
    child: Child,
    folder: TempDir,
    level: String,
    listeners: HashMap<String, SocketAddr>,
    /// Logs of earlier processes in this folder.
    old_logs: usize,
}

impl Relay {
    /// Starts it and waits until it listens.
    pub fn start(config: &Config) -> Self {
        Self::start_with(&config.to_string(), &[])
    }

    /// The same, with more files beside the configuration.
    pub fn start_with(config: &str, files: &[(&str, &[u8])]) -> Self {
        Self::start_logging(config, files, "info,wavegate::telemetry=debug")
    }

    /// The same, with another level of its log: every message has a line otherwise.
    pub fn start_logging(config: &str, files: &[(&str, &[u8])], level: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("wavegate-test-").tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
            if name.ends_with(".key") {
                close_to_others(&folder.path().join(name));
            }
        }
        fs::write(folder.path().join("relay.toml"), config).unwrap();
        let child = spawn(folder.path(), level);
        let (level, listeners) = (level.to_owned(), HashMap::new());
        let mut relay = Self { child, folder, level, listeners, old_logs: 0 };
        relay.wait_ready();
        relay
    }

    /// Waits until it listens and hears signals.
    fn wait_ready(&mut self) {
        let config = fs::read_to_string(self.folder().join("relay.toml")).unwrap();
        let count = config.matches("[[listener]]").count();
        self.listeners = until("the relay listens", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the relay ended: {status}\n{}", self.log());
            }
            let found = listeners(&self.log());
            (found.len() == count).then_some(found)
        });
        until("the relay handles SIGHUP", || self.handles_hangup().then_some(()));
    }

    /// Starts the next process in the same folder, with what the last one left there, and waits
    /// until it listens. One that still runs is killed. Ports are new.
    pub fn restart(&mut self) {
        self.spawn_again();
        self.wait_ready();
    }

    /// The same, but waits for nothing.
    pub fn spawn_again(&mut self) {
        self.crash();
        let old = self.folder().join(format!("log.{}", self.old_logs));
        fs::rename(self.folder().join("log"), old).unwrap();
        self.old_logs += 1;
        self.listeners.clear();
        self.child = spawn(self.folder(), &self.level);
    }

    /// Starts the next process while this one runs: it is to take over. Logs to `log` from now on.
    pub fn successor(&mut self, arguments: &[&str]) -> Child {
        let old = self.folder().join(format!("log.{}", self.old_logs));
        fs::rename(self.folder().join("log"), old).unwrap();
        self.old_logs += 1;
        spawn_with(self.folder(), &self.level, &[&["--take-over"], arguments].concat())
    }

    /// What a process that was to take over is from now on this relay's, once it listens. How the
    /// one before it ended.
    pub fn succeeded_by(&mut self, successor: Child) -> ExitStatus {
        let mut before = std::mem::replace(&mut self.child, successor);
        self.wait_ready();
        until("the end of the process before", || before.try_wait().unwrap())
    }

    /// Starts the next process in the same folder, which must end by itself: its exit code and
    /// what it said.
    pub fn restart_fails(&mut self) -> (Option<i32>, String) {
        self.spawn_again();
        let status = until("the relay's end", || self.child.try_wait().unwrap());
        (status.code(), self.log())
    }

    /// Whether SIGHUP would reach its handler, and not end it.
    fn handles_hangup(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 1 == 1
    }

    /// Where its only listener is.
    pub fn addr(&self) -> SocketAddr {
        self.listeners["listener-1"]
    }

    /// Where a listener is that was there at the start.
    pub fn listener(&self, name: &str) -> SocketAddr {
        self.listeners[name]
    }

    /// A client that has been greeted.
    pub fn client(&self) -> Client {
        Client::greeted(self.addr())
    }

    /// A client that has said EHLO.
    pub fn hello(&self) -> Client {
        let mut client = self.client();
        client.expect("EHLO client.example", "250");
        client
    }

    /// Waits until EHLO offers exactly what `wanted` says of these lines.
    pub fn wait_offer(&self, what: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        until(&format!("EHLO offers {what}"), || {
            let offered = self.client().ehlo();
            wanted(&offered).then_some(offered)
        })
    }

    /// Its folder, where the configuration is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Replaces a file at once, as a deployment does.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let fresh = self.folder().join(format!(".{name}.new"));
        fs::write(&fresh, content).unwrap();
        if name.ends_with(".key") {
            close_to_others(&fresh);
        }
        fs::rename(fresh, self.folder().join(name)).unwrap();
    }

    /// How many reloads were made and how many were refused.
    pub fn reloads(&self) -> (usize, usize) {
        let log = self.log();
        (log.matches(RELOADED).count(), log.matches(REFUSED).count())
    }

    /// Sends SIGHUP and waits until the reload was made.
    pub fn reload(&self) {
        let (before, refused) = self.reloads();
        self.signal(Signal::SIGHUP);
        until("the reload", || {
            let (made, now) = self.reloads();
            assert_eq!(now, refused, "the reload was refused\n{}", self.log());
            (made > before).then_some(())
        });
    }

    /// Sends SIGHUP and waits until the reload was refused; gives what was said about it.
    pub fn reload_refused(&self) -> String {
        let (made, before) = self.reloads();
        self.signal(Signal::SIGHUP);
        until("the refusal of the reload", || {
            let (now, refused) = self.reloads();
            assert_eq!(now, made, "the reload was made");
            (refused > before).then_some(())
        });
        self.refusal(before)
    }

    /// What was said about a reload that was refused, by its number from 0.
    pub fn refusal(&self, number: usize) -> String {
        let log = self.log();
        let said = log.split(REFUSED).nth(number).unwrap_or_default();
        said.lines().filter(|line| line.contains(FOUND)).collect::<Vec<_>>().join("\n")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Kills it as a crash would.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its admin address, which [`Config::admin`] gives it.
    pub fn admin_addr(&self) -> SocketAddr {
        until("an admin address", || {
            let log = self.log();
            let (_, rest) = log.split_once(MONITORS)?;
            // A line that is still being written has no end yet.
            rest.split_once('\n')?.0.split_whitespace().next()?.parse().ok()
        })
    }

    /// Asks for a page of its admin address: the status and the text; none when nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.admin_addr(), path)
    }

    /// One scrape of its metrics.
    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics").expect("an answer");
        assert_eq!(status, 200, "{text}");
        Metrics::new(text)
    }

    /// Scrapes its metrics until `wanted` says that they are right, and gives those.
    pub fn wait_metrics(&self, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        until(what, || Some(self.metrics()).filter(&wanted))
    }

    /// Asks it to end and waits for that.
    pub fn stop(self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// Asks it to end and waits for that; its folder stays for [`Relay::restart`].
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        until("the relay's end", || self.child.try_wait().unwrap())
    }

    /// Waits for its end; its folder stays for [`Relay::restart`].
    pub fn wait_ended(&mut self) -> ExitStatus {
        until("the relay's end", || self.child.try_wait().unwrap())
    }

    /// Waits for its end.
    pub fn ended(mut self) -> ExitStatus {
        until("the relay's end", || self.child.try_wait().unwrap())
    }

    /// Asserts that it has not ended, and still takes mail sessions.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "the relay ended: {ended:?}\n{}", self.log());
        self.client().expect("QUIT", "221");
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder().join("log")).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What all processes in its folder have logged, one after the other.
    pub fn logs(&self) -> String {
        let old = (0..self.old_logs).map(|number| self.folder().join(format!("log.{number}")));
        let old = old.map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
        old.chain([self.log()]).collect()
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_SHOWN)..];
            #[allow(clippy::print_stderr, reason = "the test runner shows it with the failure")]
            {
                eprintln!("the relay's log ends:\n{}", tail.join("\n"));
            }
        }
    }
}

/// A key that others may read is refused.
fn close_to_others(key: &Path) {
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
}

fn spawn(folder: &Path, level: &str) -> Child {
    spawn_with(folder, level, &[])
}

fn spawn_with(folder: &Path, level: &str, arguments: &[&str]) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    Command::new(binary())
        .args(["run", "--config"])
        .arg(folder.join("relay.toml"))
        .args(arguments)
        .env("WAVEGATE_LOG", level)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn listeners(log: &str) -> HashMap<String, SocketAddr> {
    let entry = |line: &str| {
        let (_, rest) = line.split_once(LISTENING)?;
        let (name, rest) = rest.split_once(" address=")?;
        let address = rest.split_whitespace().next()?.parse().ok()?;
        Some((name.trim_matches('"').to_owned(), address))
    };
    // A line that is still being written has no end yet.
    log.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter_map(entry).collect()
}
