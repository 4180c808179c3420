//! What makes the process act: signals and changed files. Floor 4.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

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
}

impl Signals {
    /// Handles them from now on. To be called within a runtime.
    pub(super) fn register() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// SIGHUP reloads; SIGTERM and SIGINT stop.
pub(super) async fn signals(mut signals: Signals, requests: mpsc::Sender<Request>) {
    loop {
        let request = tokio::select! {
            _ = signals.hangup.recv() => Request::Reload(None),
            _ = signals.terminate.recv() => Request::Stop,
            _ = signals.interrupt.recv() => Request::Stop,
        };
        if requests.send(request).await.is_err() {
            return;
        }
    }
}

/// Asks for a reload when a file that the configuration was read from changes. Directories are
/// watched, because editors and deployments replace files.
pub(super) async fn files(relay: Arc<Relay>, requests: mpsc::Sender<Request>) {
    let (notices, mut changed) = mpsc::channel::<()>(NOTICES);
    let watched = Arc::new(std::sync::Mutex::new(BTreeSet::<PathBuf>::new()));
    let interesting = Arc::clone(&watched);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if event.kind.is_access() {
            return;
        }
        let files = interesting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if event.paths.iter().any(|path| files.contains(path)) {
            // A full queue has notices enough.
            let _ = notices.try_send(());
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "changed files are not noticed; send SIGHUP to reload");
            return;
        }
    };
    let mut directories = BTreeSet::new();
    loop {
        let files: BTreeSet<_> = relay.generation().config.files.iter().cloned().collect();
        for directory in files.iter().filter_map(|file| file.parent()) {
            if directories.insert(directory.to_owned())
                && let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive)
            {
                tracing::warn!(directory = %directory.display(), %error, "is not watched");
            }
        }
        *watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = files;
        if changed.recv().await.is_none() {
            return;
        }
        while tokio::time::timeout(QUIET, changed.recv()).await.is_ok() {}
        let (answer, done) = tokio::sync::oneshot::channel();
        if requests.send(Request::Reload(Some(answer))).await.is_err() {
            return;
        }
        // The next generation may have other files: look again once it is there, or is not.
        let _ = done.await;
    }
}
