//! What makes the process act: signals and changed files. Floor 4.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{RecursiveMode, Watcher};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::Request;
use crate::relay::Relay;

/// Files are written in several steps; a reload waits until they have been quiet for so long.
const QUIET: Duration = Duration::from_millis(300);
/// Change notices that may wait. One is enough to reload; the rest says the same.
const NOTICES: usize = 64;

/// The signals that a process handles. Made before anybody is told that it runs, so that none
/// ends it unheard.
pub(super) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    /// Handles them from now on. To be called within a runtime.
    pub(super) fn register() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }
}

/// SIGHUP reloads; SIGTERM and SIGINT stop; SIGUSR2 starts the program anew, to take over.
pub(super) async fn signals(mut signals: Signals, requests: mpsc::Sender<Request>) {
    loop {
        let request = tokio::select! {
            _ = signals.hangup.recv() => Request::Reload(None),
            _ = signals.terminate.recv() => Request::Stop,
            _ = signals.interrupt.recv() => Request::Stop,
            _ = signals.upgrade.recv() => Request::Upgrade,
        };
        if requests.send(request).await.is_err() {
            return;
        }
    }
}

/// The files that the configuration was read from. Directories are watched, because editors and
/// deployments replace files.
pub(super) struct Files {
    watcher: notify::RecommendedWatcher,
    /// Those whose changes are told.
    watched: Arc<Mutex<BTreeSet<PathBuf>>>,
    directories: BTreeSet<PathBuf>,
    changed: mpsc::Receiver<()>,
}

impl Files {
    /// Watches these from now on. To be made as soon as they are read: a relay that is still
    /// starting must not miss that they change. None, with a warning, if the system does not
    /// tell of changes.
    pub(super) fn watch(files: &[PathBuf]) -> Option<Self> {
        let (notices, changed) = mpsc::channel(NOTICES);
        let watched = Arc::new(Mutex::new(BTreeSet::new()));
        let interesting = Arc::clone(&watched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if event.kind.is_access() {
                return;
            }
            let files = interesting.lock().unwrap_or_else(PoisonError::into_inner);
            if event.paths.iter().any(|path| files.contains(path)) {
                // A full queue has notices enough.
                let _ = notices.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(%error, "changed files are not noticed; send SIGHUP to reload");
            })
            .ok()?;
        let mut made = Self { watcher, watched, directories: BTreeSet::new(), changed };
        made.follow(files);
        Some(made)
    }

    /// Tells of these instead; directories stay watched.
    fn follow(&mut self, files: &[PathBuf]) {
        let files: BTreeSet<_> = files.iter().cloned().collect();
        let directories: BTreeSet<_> = files.iter().filter_map(|file| file.parent()).collect();
        let new = directories.into_iter().filter(|one| !self.directories.contains(*one));
        let new: Vec<_> = new.map(Path::to_owned).collect();
        (*self.watched.lock().unwrap_or_else(PoisonError::into_inner)).clone_from(&files);
        for directory in new {
            if let Err(error) = self.watcher.watch(&directory, RecursiveMode::NonRecursive) {
                tracing::warn!(directory = %directory.display(), %error, "is not watched");
            }
            self.directories.insert(directory);
        }
    }
}

/// Asks for a reload when one of the files changes.
pub(super) async fn files(mut files: Files, relay: Arc<Relay>, requests: mpsc::Sender<Request>) {
    loop {
        if files.changed.recv().await.is_none() {
            return;
        }
        while tokio::time::timeout(QUIET, files.changed.recv()).await.is_ok() {}
        let (answer, done) = tokio::sync::oneshot::channel();
        if requests.send(Request::Reload(Some(answer))).await.is_err() {
            return;
        }
        // The next generation may have other files: look once it is there, or is not.
        let _ = done.await;
        files.follow(&relay.generation().config.files);
    }
}
