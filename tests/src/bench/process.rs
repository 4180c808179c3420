//! Processes that the benchmark starts, and the certainty that they end with it.
//!
//! Owns starting, waiting for, and killing them, on Ctrl-C and at the time limit too. Floor: none.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::cpu;

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(3);
/// How often an event that has no notification is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// What must not outlive us.
#[derive(Default)]
struct Alive {
    processes: Vec<u32>,
    folders: Vec<PathBuf>,
}

static ALIVE: Mutex<Alive> = Mutex::new(Alive { processes: Vec::new(), folders: Vec::new() });

fn alive<T>(change: impl FnOnce(&mut Alive) -> T) -> T {
    change(&mut ALIVE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Ends everything and this process: at SIGINT, SIGTERM, SIGHUP (exit 130) or after `limit` (exit 75).
pub async fn guard(limit: Duration) -> i32 {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals: Vec<_> =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .filter_map(|kind| signal(kind).ok())
            .collect();
    let code = tokio::time::timeout(limit, async {
        std::future::poll_fn(|context| {
            let ready = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    })
    .await
    .map_or(75, |()| 130);
    alive(|alive| {
        alive.processes.iter().for_each(|&pid| kill_tree(pid));
        for folder in &alive.folders {
            let _gone_already = std::fs::remove_dir_all(folder);
        }
    });
    code
}

/// Runs [`guard`] on a thread of its own; orphans of what we start become our children.
pub fn install_guard(limit: Duration) -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("guard".into()).spawn(move || {
        let code = runtime.block_on(guard(limit));
        std::process::exit(code);
    })?;
    Ok(())
}

/// A started process; dropping it ends it and its descendants.
pub(super) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to a file in `folder`.
    pub(super) fn start(mut command: Command, folder: &Path) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = folder.join("output");
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        alive(|alive| alive.processes.push(child.id()));
        Ok(Self { child, name, log })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error with what it printed when it has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}; {}", self.name, self.output()),
        }
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let ended = until(limit, || Ok(self.child.try_wait()?))?;
        ended.with_context(|| format!("{} did not end within {limit:?}", self.name))
    }

    /// Asks it to end, and waits until it has: in order, or that is an error.
    pub(super) fn stop(mut self, limit: Duration) -> anyhow::Result<()> {
        kill(pid(self.id()), Signal::SIGTERM)?;
        let status = self.wait(limit)?;
        anyhow::ensure!(status.success(), "{} ended: {status}; {}", self.name, self.output());
        Ok(())
    }

    /// The last lines of what it printed.
    pub(super) fn output(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        if lines.is_empty() { "it printed nothing".into() } else { lines.join(" / ") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let id = self.child.id();
        let descendants = cpu::descendants(pid(id).as_raw());
        let _ended_already = kill(pid(id), Signal::SIGTERM);
        if self.wait(GRACE).is_err() {
            kill_tree(id);
            let _reaped = self.child.wait();
        }
        // What it left behind, as its group. We are the reaper of its orphans.
        let _nobody_left = nix::sys::signal::killpg(pid(id), Signal::SIGKILL);
        let _some_do_not_end = until(GRACE, || {
            let gone = descendants.iter().filter(|&&child| is_reaped(child)).count();
            Ok((gone == descendants.len()).then_some(()))
        });
        // Orphans that have ended before stay as zombies until somebody waits for them.
        let group = Pid::from_raw(-pid(id).as_raw());
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(group, Some(WaitPidFlag::WNOHANG))
        {}
        alive(|alive| alive.processes.retain(|&other| other != id));
    }
}

/// Whether an orphan that may have become our child is gone for good.
fn is_reaped(child: i32) -> bool {
    let state = waitpid(Pid::from_raw(child), Some(WaitPidFlag::WNOHANG));
    !matches!(state, Ok(WaitStatus::StillAlive))
}

/// Calls `look` until it gives something, or `limit` is over.
pub(super) fn until<T>(
    limit: Duration,
    look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    until_every(LOOK, limit, look)
}

/// The same with this pause between two looks, where a look costs something.
pub(super) fn until_every<T>(
    pause: Duration,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
    }
}

/// A temporary folder that is removed at every end.
pub(super) struct Folder(tempfile::TempDir);

/// An error where what is written to a folder goes to no disk: nothing that syncs is to be measured
/// there.
pub(super) fn is_on_disk(folder: &Path) -> anyhow::Result<()> {
    let memory =
        nix::sys::statfs::statfs(folder)?.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
    anyhow::ensure!(
        !memory,
        "{} is in memory (tmpfs), where a sync costs nothing: have TMPDIR name a folder on a disk",
        folder.display()
    );
    Ok(())
}

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("wavegate-bench-").tempdir()?;
        alive(|alive| alive.folders.push(folder.path().to_owned()));
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path = self.0.path().to_owned();
        alive(|alive| alive.folders.retain(|other| *other != path));
    }
}

fn kill_tree(root: u32) {
    let descendants = cpu::descendants(pid(root).as_raw());
    let _ended_already = kill(pid(root), Signal::SIGKILL);
    for descendant in descendants {
        let _ended_already = kill(Pid::from_raw(descendant), Signal::SIGKILL);
    }
}

fn pid(id: u32) -> Pid {
    // Linux caps process ids at 2^22. 0 and -1 would mean others than one process.
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX).max(2))
}
