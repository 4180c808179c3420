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

use super::{Connection, ConnectionError, Upstream, pool::Slot};
use crate::names::Endpoint;

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
            let _slot = self.slot_of_one_more(deadline).await?;
            let mut tried = Vec::new();
            let mut last = ConnectionError::Down;
            while let Some(target) = self.choose_target(None, &tried) {
                match self.try_at(&target, &credentials).await {
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
        target: &Endpoint,
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
    async fn slot_of_one_more(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<Slot, ConnectionError> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]

    use std::{collections::HashMap, net::SocketAddr, sync::Mutex as Lock, time::Duration};

    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};

    use super::{super::Parts, *};
    use crate::{
        message::Source,
        plan::Timestamp,
        world::{World, memory::MemoryNetwork},
    };

    const TARGET: &str = "127.0.0.1:2601";

    /// A server that answers AUTH so, and keeps what it heard. Silent where there is no answer.
    struct Server {
        network: MemoryNetwork,
        heard: Arc<Lock<Vec<String>>>,
    }

    impl Server {
        fn start(offer: &'static str, answer: &'static str) -> Self {
            let network = MemoryNetwork::default();
            let mut incoming = network.listen(TARGET.parse().unwrap());
            let heard = Arc::<Lock<Vec<String>>>::default();
            let ears = Arc::clone(&heard);
            tokio::spawn(async move {
                while let Some(stream) = incoming.recv().await {
                    let ears = Arc::clone(&ears);
                    tokio::spawn(async move {
                        let mut stream = BufStream::new(stream);
                        let mut say = "220 up.example\r\n".to_owned();
                        loop {
                            stream.write_all(say.as_bytes()).await.ok()?;
                            stream.flush().await.ok()?;
                            let mut line = String::new();
                            if stream.read_line(&mut line).await.ok()? == 0 {
                                return None::<()>;
                            }
                            say = match line.get(..4) {
                                Some("EHLO") => format!("250-up.example\r\n250 {offer}\r\n"),
                                Some("AUTH") => answer.to_owned(),
                                _ => "221 bye\r\n".to_owned(),
                            };
                            ears.lock().unwrap().push(line.trim_end().to_owned());
                        }
                    });
                }
            });
            Self { network, heard }
        }

        fn upstream(&self, own: Option<&str>, lines: &str) -> Arc<Upstream> {
            let auth =
                own.map_or("", |_| "auth = { user = \"relay\", secret = \"x\", insecure = true }");
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("relay.toml");
            let text = format!(
                "[relay]\nhostname = \"edge.example\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
                 [[upstream]]\nname = \"up\"\ntargets = [\"{TARGET}\"]\n{lines}\n{auth}\n"
            );
            std::fs::write(&file, text).unwrap();
            let config = crate::config::read(&file).unwrap().upstreams.remove(0);
            let world = World::simulated(self.network.clone(), Timestamp(0), 1);
            let own = own.map(|own| Arc::new(Credentials::new("relay", own).unwrap()));
            let parts = Parts {
                config,
                world,
                observer: Arc::new(crate::event::Silent),
                hostname: "edge.example".into(),
                connector: None,
                link_connector: None,
                login: own,
                naming: None,
                names: Vec::new(),
            };
            Upstream::new(parts, &HashMap::new())
        }

        async fn heard(&self) -> Vec<String> {
            // What was written last is read by now, as nothing takes time here.
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.heard.lock().unwrap().clone()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3)
    }

    fn source() -> Arc<Source> {
        Arc::new(Source::new(SocketAddr::from(([10, 0, 0, 1], 1)), "listener-1"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_clients_login_is_tried_and_the_last_word_is_the_targets() {
        for answer in
            ["235 2.7.0 welcome\r\n", "535-5.7.8 no\r\n535 5.7.8 way\r\n", "454 4.7.0 later\r\n"]
        {
            let server = Server::start("AUTH PLAIN", answer);
            let upstream = server.upstream(None, "");
            let reply = upstream.try_login("acme", "pass", soon()).await.unwrap();
            let mut text = Vec::new();
            reply.write(&mut text);
            assert_eq!(String::from_utf8(text).unwrap(), answer);
            let login = "AUTH PLAIN AGFjbWUAcGFzcw==";
            let all = server.heard().await;
            let quit = reply.is_positive().then_some("QUIT");
            let wanted: Vec<_> = ["EHLO edge.example", login].into_iter().chain(quit).collect();
            assert_eq!(all, wanted);
            let status = upstream.status();
            assert_eq!((status.in_use, status.idle), (0, 0), "it leaves nothing behind");
            assert!(status.targets[0].up && status.targets[0].last_error.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_of_a_password_is_an_error() {
        let silent = Server::start("AUTH PLAIN", "");
        let begun = Instant::now();
        let late = silent.upstream(None, "").try_login("acme", "pass", soon()).await;
        assert!(matches!(late, Err(ConnectionError::Timeout(_))), "{late:?}");
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        let none = Server::start("8BITMIME", "");
        let upstream = none.upstream(None, "eject_after = 1");
        let error = upstream.try_login("acme", "pass", soon()).await;
        assert!(matches!(error, Err(ConnectionError::NoMechanism)), "{error:?}");
        assert!(!upstream.is_down(), "the target is well");
        none.network.close(TARGET.parse().unwrap());
        let error = upstream.try_login("acme", "pass", soon()).await;
        assert!(matches!(error, Err(ConnectionError::Io(_))), "{error:?}");
        let error = upstream.try_login("acme", "pass", soon()).await;
        assert!(matches!(error, Err(ConnectionError::Down)), "{error:?}");
        let error = upstream.try_login("ac\0me", "pass", soon()).await;
        assert!(matches!(error, Err(ConnectionError::NoMechanism)), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_counts_as_one_of_the_connections() {
        let server = Server::start("AUTH PLAIN", "235 ok\r\n");
        let upstream = server.upstream(None, "connections = 1");
        let lease = upstream.lease(soon(), 1, None, false, &source()).await.unwrap();
        let busy = upstream.try_login("acme", "pass", soon()).await;
        assert!(matches!(busy, Err(ConnectionError::Busy(1) | ConnectionError::Timeout(_))));
        lease.release();
        assert_eq!(upstream.status().idle, 1);
        assert!(upstream.try_login("acme", "pass", soon()).await.unwrap().is_positive());
        let status = upstream.status();
        assert_eq!((status.in_use, status.idle), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_password_of_our_own_is_said_once() {
        let server = Server::start("AUTH PLAIN", "535 5.7.8 no\r\n");
        let upstream = server.upstream(Some("wrong"), "eject_after = 5");
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let upstream = Arc::clone(&upstream);
            all.spawn(
                async move { upstream.lease(soon(), 99, None, false, &source()).await.err() },
            );
        }
        let mut of_login = 0;
        for error in all.join_all().await {
            let error = error.unwrap();
            of_login += u32::from(error.is_of_login());
            assert!(!error.to_string().contains("wrong"));
        }
        let said = server.heard().await.iter().filter(|line| line.starts_with("AUTH")).count();
        assert_eq!((said, of_login), (1, 1));
        assert!(upstream.is_down());
        let refused = upstream.logins().counts[LoginResult::Refused as usize].load(Relaxed);
        assert_eq!(refused, 1);
        // The longest pause, though it is the first.
        tokio::spawn(Arc::clone(&upstream).housekeeping());
        tokio::time::sleep(Duration::from_secs(59)).await;
        let said = server.heard().await.iter().filter(|line| line.starts_with("AUTH")).count();
        assert_eq!(said, 1);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let said = server.heard().await.iter().filter(|line| line.starts_with("AUTH")).count();
        assert_eq!(said, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn good_logins_do_not_wait_for_each_other() {
        let server = Server::start("AUTH PLAIN", "235 ok\r\n");
        let upstream = server.upstream(Some("right"), "");
        let mut leases = Vec::new();
        for _ in 0..5 {
            leases.push(upstream.lease(soon(), 9, None, false, &source()).await.unwrap());
        }
        assert_eq!(upstream.status().in_use, 5);
        leases.into_iter().for_each(crate::upstream::Lease::release);
        // A connection that is used again is logged in already.
        upstream.lease(soon(), 9, None, false, &source()).await.unwrap().release();
        let said = server.heard().await.iter().filter(|line| line.starts_with("AUTH")).count();
        assert_eq!(said, 5);
        assert!(upstream.logins().turn().await.is_none());
    }
}
