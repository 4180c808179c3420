//! Logging in at targets: with the relay's own name and password, and for whoever asks whether a
//! client's are good.
//!
//! Wrong passwords get accounts locked. So until one login was good, only one is tried at a time;
//! and a target that refuses one is ejected at once, and asked again at the longest pause.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};
use wavegate_smtp::{Credentials, Reply};

use super::{Connection, ConnectionError, Slot, Upstream};

/// How logins with the relay's own password ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginResult {
    /// It is in.
    Accepted,
    /// Refused for good.
    Refused,
    /// Refused for now.
    Deferred,
    /// No mechanism is offered that could be used.
    Unavailable,
}

impl LoginResult {
    /// All, in the order in which they are counted.
    pub const ALL: [Self; 4] = [Self::Accepted, Self::Refused, Self::Deferred, Self::Unavailable];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Deferred => "deferred",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The relay's own login at an upstream.
#[derive(Default)]
pub struct Logins {
    /// In the order of [`LoginResult::ALL`].
    pub counts: [AtomicU64; LoginResult::ALL.len()],
    pub(super) credentials: Option<Arc<Credentials>>,
    /// The last one was good.
    proved: AtomicBool,
    one: Mutex<()>,
}

impl Logins {
    pub(super) fn new(credentials: Option<Arc<Credentials>>) -> Self {
        Self { credentials, ..Self::default() }
    }

    /// Waits until no other login is tried, unless they are known to be good.
    pub(super) async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        let is_proved = || self.credentials.is_none() || self.proved.load(Relaxed);
        if is_proved() {
            return None;
        }
        let turn = self.one.lock().await;
        (!is_proved()).then_some(turn)
    }

    fn note(&self, result: LoginResult) {
        self.counts[result as usize].fetch_add(1, Relaxed);
        self.proved.store(result == LoginResult::Accepted, Relaxed);
    }
}

impl Upstream {
    /// What is counted of logins with the relay's own password.
    pub fn logins(&self) -> &Logins {
        &self.logins
    }

    /// What it logs in with.
    pub fn credentials(&self) -> Option<&Arc<Credentials>> {
        self.logins.credentials.as_ref()
    }

    /// Logs in, if that is configured.
    pub(super) async fn log_in(&self, connection: &mut Connection) -> Result<(), ConnectionError> {
        let Some(auth) = &self.config.auth else { return Ok(()) };
        let Some(credentials) = &self.logins.credentials else {
            return Err(ConnectionError::NoMechanism);
        };
        let time = self.config.connect_timeout;
        match connection.log_in(credentials, auth.mechanism, time).await {
            Ok(reply) if reply.is_positive() => {
                self.logins.note(LoginResult::Accepted);
                Ok(())
            }
            Ok(reply) => {
                let deferred = reply.is_transient();
                let result = if deferred { LoginResult::Deferred } else { LoginResult::Refused };
                self.logins.note(result);
                Err(ConnectionError::Login(reply))
            }
            Err(error) => {
                if matches!(error, ConnectionError::NoMechanism) {
                    self.logins.note(LoginResult::Unavailable);
                }
                Err(error)
            }
        }
    }

    /// Tries a client's name and password at a target, on a connection of its own, which counts
    /// as one of the upstream's. The reply is the target's own last word; it is an error if there
    /// is none by `deadline`.
    ///
    /// # Errors
    /// If no target could be asked. That says nothing of the password.
    pub async fn try_login(
        self: &Arc<Self>,
        user: &str,
        password: &str,
        deadline: Instant,
    ) -> Result<Reply, ConnectionError> {
        // What no mechanism could carry nobody can have as a password.
        let credentials = Credentials::new(user, password).ok_or(ConnectionError::NoMechanism)?;
        let trying = async {
            let _slot = self.place(deadline).await?;
            let mut tried = Vec::new();
            let mut last = ConnectionError::Down;
            while let Some(target) = self.choose_target(None, &tried) {
                match self.try_at(target, &credentials).await {
                    Ok(reply) => return Ok(reply),
                    Err(error) => last = error,
                }
                tried.push(target);
            }
            Err(last)
        };
        let late = || ConnectionError::Timeout(deadline.saturating_duration_since(Instant::now()));
        tokio::time::timeout_at(deadline, trying).await.map_err(|_| late())?
    }

    async fn try_at(
        &self,
        target: usize,
        credentials: &Credentials,
    ) -> Result<Reply, ConnectionError> {
        let (mut connection, extensions) = match self.reach(target, None).await {
            Ok(reached) => reached,
            Err(error) => {
                self.report_error(target, &error);
                return Err(error);
            }
        };
        self.report_success(target, Some(extensions));
        let reply = connection.log_in(credentials, None, self.config.connect_timeout).await;
        connection.quit();
        reply
    }

    /// The right to one more connection, in turn with the others.
    async fn place(self: &Arc<Self>, deadline: Instant) -> Result<Slot, ConnectionError> {
        let grant = match self.try_grant(None, true, false) {
            Some(grant) => Ok(grant),
            None => self.wait(deadline, usize::MAX).await,
        };
        let grant = grant.map_err(|_| ConnectionError::Busy(self.config.connections))?;
        if let Some(idle) = grant.connection {
            idle.quit();
        }
        Ok(grant.slot)
    }
}
