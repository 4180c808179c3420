//! Who the client is: AUTH, and what a trusted peer says by XCLIENT. Floor 3.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wavegate_smtp::{Enhanced, Login, Reply, Told, Xclient};

use super::{Next, Session};
use crate::{
    config::{ListenerAuth, ListenerConfig},
    event::{Event, LoginFailure, Refused},
    message::Source,
    relay::Relay,
};

/// How long the answer to a wrong password waits: a person does not notice, and a session
/// guesses no faster.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an upstream may take that is asked about a login.
const AT_UPSTREAM: Duration = Duration::from_secs(30);

static WRONG: Reply =
    Reply::fixed(535, Enhanced(5, 7, 8), "wavegate: Authentication credentials invalid");
static TOO_MANY: Reply =
    Reply::fixed(454, Enhanced(4, 7, 0), "wavegate: too many failed logins, try again later");
static BUSY: Reply =
    Reply::fixed(454, Enhanced(4, 7, 0), "wavegate: too many logins, try again later");
static UNAVAILABLE: Reply =
    Reply::fixed(454, Enhanced(4, 7, 0), "wavegate: logins cannot be checked now, try again later");
static TOO_MANY_CONNECTIONS: Reply =
    Reply::fixed(421, Enhanced(4, 7, 0), "wavegate: too many connections, try again later");
static GONE: Reply = Reply::fixed(421, Enhanced(4, 3, 2), "wavegate: this listener is closed");

impl LoginFailure {
    fn reply(self) -> &'static Reply {
        match self {
            Self::Credentials => &WRONG,
            Self::TooMany => &TOO_MANY,
            Self::Busy => &BUSY,
            Self::Unavailable => &UNAVAILABLE,
        }
    }
}

/// What became of a login.
struct Judged {
    /// Why it is none.
    failure: Option<LoginFailure>,
    /// What the upstream said, where it was asked.
    reply: Option<Reply>,
}

impl From<Result<(), LoginFailure>> for Judged {
    fn from(own: Result<(), LoginFailure>) -> Self {
        Self { failure: own.err(), reply: None }
    }
}

/// The one place where it is decided who judges.
async fn judge(
    relay: &Relay,
    listener: &ListenerConfig,
    source: &Source,
    credentials: Login,
) -> Judged {
    if let Err(failure) = relay.logins.may_try(source.client, &credentials.user) {
        return Err(failure).into();
    }
    match listener.auth.as_ref().and_then(ListenerAuth::upstream) {
        None => relay.logins.check(&listener.name, credentials).await.into(),
        Some(upstream) => ask(relay, upstream, source, &credentials).await,
    }
}

/// Has an upstream judge: its word is what the client hears.
async fn ask(relay: &Relay, upstream: &str, source: &Source, credentials: &Login) -> Judged {
    let upstream = relay.generation().upstream(upstream).cloned();
    let placed = upstream.and_then(|upstream| upstream.place(source.destination).ok());
    let Some(upstream) = placed else { return Err(LoginFailure::Unavailable).into() };
    // What is not text nobody can be asked about.
    let Ok(password) = std::str::from_utf8(credentials.password.expose()) else {
        return Err(LoginFailure::Credentials).into();
    };
    let deadline = Instant::now() + AT_UPSTREAM;
    match upstream.try_login(&credentials.user, password, deadline).await {
        Ok(reply) if reply.is_positive() => Judged { failure: None, reply: Some(reply) },
        Ok(reply) if reply.is_permanent() => {
            Judged { failure: Some(LoginFailure::Credentials), reply: Some(reply) }
        }
        // That session is over, this one is not.
        Ok(reply) if reply.code() == 421 => Err(LoginFailure::Unavailable).into(),
        Ok(reply) => Judged { failure: Some(LoginFailure::Unavailable), reply: Some(reply) },
        Err(error) => {
            let upstream = &upstream.config.name;
            tracing::debug!(upstream, %error, "a login could not be asked about");
            Err(LoginFailure::Unavailable).into()
        }
    }
}

impl Session {
    /// Has a login judged, and answers it.
    pub(super) async fn log_in(&mut self, credentials: Login) -> Next {
        let (client, user) = (self.source.client, credentials.user.clone());
        let judged = judge(&self.relay, &self.listener, &self.source, credentials).await;
        let listener = &self.listener.name;
        match judged.failure {
            None => {
                self.relay.emit(&Event::LoggedIn { listener, client, user: &user });
                Arc::make_mut(&mut self.source).user = Some(user.into());
                match &judged.reply {
                    Some(reply) => self.server.reply(reply),
                    None => self.server.accept(),
                }
            }
            Some(failure) => {
                self.relay.emit(&Event::LoginFailed { listener, client, user: &user, failure });
                if failure == LoginFailure::Credentials {
                    self.relay.logins.failed(client, &user);
                    tokio::time::sleep(PAUSE).await;
                }
                self.server.reply(judged.reply.as_ref().unwrap_or(failure.reply()));
            }
        }
        self.deadline.set(self.patience());
        Next::Read
    }

    /// The client is somebody else: all that depends on who it is begins anew.
    pub(super) fn become_client(&mut self, told: Xclient) {
        self.message = None;
        let source = self.told(told);
        let client = SocketAddr::new(source.client, source.port);
        let generation = self.relay.look();
        let Some(settings) = generation.listener(&self.listener.name) else {
            return self.server.reply(&GONE);
        };
        let settings = Arc::clone(settings.of(source.client));
        drop(generation);
        if let Some(place) = &mut self.place
            && let Err(reason) = place.give_to(client)
        {
            self.relay.emit(&Event::ConnectionRefused { client: client.ip(), reason });
            return self.server.reply(match reason {
                Refused::Stopping => &super::STOPPING,
                _ => &TOO_MANY_CONNECTIONS,
            });
        }
        self.server.accept_xclient(settings, source.user.is_some());
        self.source = Arc::new(source);
    }

    /// Where messages come from, as a trusted peer tells it.
    fn told(&self, told: Xclient) -> Source {
        let Xclient { name, address, port, login, to_address, to_port } = told;
        let before = self.source.unsaid();
        // One whose address nobody knows must not pass for the peer, which may relay.
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let is_other = address != Told::Nothing;
        let client = address.or(Some(before.client)).unwrap_or(unknown);
        // A name and a port belong to the address that they were told with.
        let (old_name, old_port) = match is_other {
            true => (None, None),
            false => (before.name.clone(), Some(before.port)),
        };
        let destination = match (to_address.or(None), to_port.or(None)) {
            (Some(address), Some(port)) => Some(SocketAddr::new(address, port)),
            _ => before.destination,
        };
        Source {
            client,
            port: port.or(old_port).unwrap_or(0),
            name: name.or(old_name.map(Into::into)).map(Into::into),
            user: login.or(None).map(Into::into),
            destination,
            ..before
        }
    }
}
