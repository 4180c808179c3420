//! Both ends of an upgrade, as this process has them: the one that it takes over from, and the one
//! that it starts to be taken over by. Floor 4.

use std::{
    ffi::OsStr,
    io,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Reloader, StartError};
use crate::{
    config::Config,
    service::{Inherited, Service},
    succession::{self, Predecessor},
};

/// By which a process takes over.
const TAKE_OVER: &str = "--take-over";

/// The relay that runs on the state directory, if there is one; its sockets are ours too from now
/// on.
pub(super) fn predecessor(
    config: &Config,
    service: &mut Service,
) -> Result<Option<Predecessor>, StartError> {
    let instances = config.plan.instances.iter().map(|one| one.name.to_string()).collect();
    let Some(mut before) = succession::ask(&config.relay.state_dir, instances)? else {
        return Ok(None);
    };
    let sockets = before.take_sockets();
    service.inherit(sockets).map_err(StartError::system("take the sockets over"))?;
    Ok(Some(before))
}

/// Has it end and waits for that.
pub(super) fn replace(before: Predecessor, more: Duration) -> Result<(), StartError> {
    let (who, version) = (before.who.clone(), before.version.clone());
    let bound = before.shutdown_timeout;
    tracing::info!(who, version, ?bound, "taking over: waiting for its sessions to end");
    before.replace(more)?;
    tracing::info!(who, "it has given the state directory up");
    Ok(())
}

/// What is handed over: what the service manager passed, the listeners, and what else is our own.
pub(super) fn sockets(
    reloader: &Arc<Reloader>,
    service: &Arc<Service>,
    own: Vec<Inherited>,
) -> Box<dyn Fn() -> io::Result<Vec<Inherited>> + Send + Sync> {
    let (reloader, service) = (Arc::clone(reloader), Arc::clone(service));
    Box::new(move || {
        let mut all = service.passed()?;
        all.extend(reloader.sockets()?);
        for one in &own {
            let (name, configured) = (one.name.clone(), one.configured);
            let socket = one.socket.try_clone()?;
            all.push(Inherited { name, configured, passed: false, socket });
        }
        Ok(all)
    })
}

/// The new process that this one has started, one at a time.
#[derive(Default)]
pub(super) struct Children {
    /// Its number; 0 for none.
    running: Arc<AtomicU32>,
}

impl Children {
    /// Starts this program anew, as it is on disk now, with the same arguments.
    pub(super) fn start(&mut self) {
        if self.running.load(Relaxed) != 0 {
            tracing::warn!("a new process has been started already and is not ready yet");
            return;
        }
        let mut arguments = std::env::args_os();
        let Some(program) = arguments.next() else {
            tracing::error!("the name of this program is not known: no new process is started");
            return;
        };
        let mut command = Command::new(&program);
        let mut takes_over = false;
        for argument in arguments {
            takes_over |= argument == OsStr::new(TAKE_OVER);
            command.arg(argument);
        }
        if !takes_over {
            command.arg(TAKE_OVER);
        }
        // Those are this process's: it gets the sockets from us, and the watchdog once it is the
        // service.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        match command.stdin(Stdio::null()).spawn() {
            Ok(child) => self.watch(child),
            Err(error) => {
                let program = program.to_string_lossy();
                tracing::error!(%error, %program, "a new process cannot be started");
            }
        }
    }

    /// Whether that is it.
    pub(super) fn is(&self, process: Option<i32>) -> Option<u32> {
        let running = self.running.load(Relaxed);
        let process = process.and_then(|process| u32::try_from(process).ok());
        process.filter(|process| *process == running)
    }

    /// Tells of its end: one that is ready outlives this process.
    fn watch(&self, mut child: std::process::Child) {
        let process = child.id();
        self.running.store(process, Relaxed);
        tracing::info!(process, "a new process is started to take over");
        let running = Arc::clone(&self.running);
        let thread = std::thread::Builder::new().name("upgrade".into());
        let watching = thread.spawn(move || {
            match child.wait() {
                Ok(status) => tracing::error!(
                    process,
                    %status,
                    "the new process has ended and has not taken over; its log says why"
                ),
                Err(error) => tracing::error!(%error, "the new process cannot be watched"),
            }
            running.store(0, Relaxed);
        });
        if let Err(error) = watching {
            tracing::error!(%error, "the new process cannot be watched");
        }
    }
}
