//! Hands mails to a relay, one after the other. Owns the connection, the pace and the time that
//! each step may take; whom and what to send, and what is remembered of it, is its caller's.
//! Floor 4.
//!
//! The dialogue waits for every reply (no PIPELINING, no CHUNKING): the end of a mail is written
//! only when its sender and its recipient were taken, so that a refusal never leaves a doubt.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wavegate_smtp::{
    Address, BodyForm, BodyShape, ClientEvent, Extensions, Mail, Rcpt, Reply, ReversePath, Settled,
    Stage, stuff,
};

use crate::{
    cli::{Failed, exit, message},
    upstream::connection::{Commit, Connection, ConnectionError, WriteError},
    world::World,
};

/// Time for connecting and the greeting.
const CONNECT: Duration = Duration::from_secs(30);
/// Time for each reply but the final one (RFC 5321 4.5.3.2.2 and on).
const REPLY: Duration = Duration::from_secs(300);
/// Time for the final reply (RFC 5321 4.5.3.2.6).
const FINAL: Duration = Duration::from_secs(600);
/// Time between two mails: ten thousand go in a quarter of an hour, and no relay feels it.
const PAUSE: Duration = Duration::from_millis(50);
/// Mails on one connection.
const PER_CONNECTION: u32 = 100;
/// Connections on which one mail is tried, where the relay breaks them before its end.
const TRIES: usize = 2;
/// As much of a reply as is kept.
const REPLY_MAX: usize = 500;
/// What a relay says of the mail that it has spooled.
const QUEUED: &str = "queued as ";

/// A relay as it is named.
#[derive(Clone, Debug)]
pub(super) struct Target {
    host: String,
    port: u16,
}

impl Target {
    /// `HOST:PORT`, `[IPv6]:PORT`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wanted = "write HOST:PORT, such as 127.0.0.1:25 or edge-1.example.net:2525";
        let (host, port) = text.rsplit_once(':').ok_or(wanted)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => v6,
            None if !host.is_empty() && !host.contains([':', '[', ']']) => host,
            _ => return Err(wanted.to_owned()),
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self { host: host.to_owned(), port }),
            _ => Err(wanted.to_owned()),
        }
    }

    /// Of a listener, as it is reached from its own host.
    pub(super) fn of_listener(address: SocketAddr) -> Option<Self> {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        (address.port() > 0).then(|| Self { host: ip.to_string(), port: address.port() })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What came of a mail.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The relay has it.
    Sent { reply: String, queue_id: Option<String> },
    /// The relay does not want it; later it may, if that is `later`.
    Refused { reply: String, later: bool },
    /// The relay broke the connection again and again before its end.
    Broken(String),
    /// Its end was written and no reply came.
    InDoubt(String),
}

/// Why nothing more can be sent.
#[derive(Debug)]
pub(super) enum Stop {
    /// No session can be had.
    Unreachable(String),
    /// It could not be noted that a mail begins.
    NotNoted(io::Error),
}

/// One mail.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    pub(super) sender: &'a Address,
    pub(super) recipient: &'a Address,
    pub(super) mail: &'a [u8],
}

/// The way to a relay.
pub(super) struct Post {
    runtime: tokio::runtime::Runtime,
    world: World,
    hostname: Arc<str>,
    target: Target,
    addresses: Vec<SocketAddr>,
    connection: Option<Connection>,
    not_before: Option<Instant>,
}

impl Post {
    /// A way to a relay, to whom we are `hostname`. Nothing is connected yet.
    pub(super) fn new(target: Target, hostname: &str) -> Result<Self, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failed::new(exit::OS, error.to_string()))?;
        let unknown = |why: &str| {
            let said = format!("{target} is not found ({why}); name the relay with --relay");
            Failed::new(exit::UNAVAILABLE, said)
        };
        let found = (target.host.as_str(), target.port).to_socket_addrs();
        let addresses: Vec<_> = found.map_err(|error| unknown(&error.to_string()))?.collect();
        if addresses.is_empty() {
            return Err(unknown("it has no address"));
        }
        let (world, hostname) = (World::real(), Arc::from(hostname));
        let (connection, not_before) = (None, None);
        Ok(Self { runtime, world, hostname, target, addresses, connection, not_before })
    }

    /// Sends one mail when its turn has come. `begin` is told right before its end is written,
    /// and nothing is written where it fails.
    pub(super) fn send(
        &mut self,
        parcel: &Parcel<'_>,
        mut begin: impl FnMut() -> io::Result<()>,
    ) -> Result<Outcome, Stop> {
        // What we made is judged as a relay would: nothing else may go out.
        let facts = match message::judge(parcel.mail, u64::MAX) {
            Ok(facts) => facts,
            Err(reply) => return Ok(Outcome::Refused { reply, later: false }),
        };
        let shape = BodyShape::of(&facts, 0);
        let mut last = String::new();
        for _ in 0..TRIES {
            let Self { runtime, world, hostname, addresses, connection, .. } = self;
            let not_before = self.not_before;
            let attempt = async {
                if let Some(at) = not_before {
                    tokio::time::sleep_until(at).await;
                }
                let mut open = match reusable(connection.take()) {
                    Some(old) => old,
                    None => connect(world, addresses, hostname).await.map_err(Stop::Unreachable)?,
                };
                let done = transact(&mut open, parcel, &shape, &mut begin).await?;
                if open.client().is_ready() {
                    *connection = Some(open);
                }
                Ok(done)
            };
            let done = runtime.block_on(attempt);
            self.not_before = Some(Instant::now() + PAUSE);
            match done.map_err(|stop| self.named(stop))? {
                Outcome::Broken(why) => last = why,
                outcome => return Ok(outcome),
            }
        }
        Ok(Outcome::Broken(last))
    }

    fn named(&self, stop: Stop) -> Stop {
        match stop {
            Stop::Unreachable(why) => Stop::Unreachable(format!("{}: {why}", self.target)),
            stop => stop,
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _in_runtime = self.runtime.enter();
            connection.quit();
        }
    }
}

/// The connection of the mail before, unless it has carried enough or is no more.
fn reusable(old: Option<Connection>) -> Option<Connection> {
    let mut old = old?;
    if old.messages() < PER_CONNECTION && old.is_quiet() {
        return Some(old);
    }
    old.quit();
    None
}

async fn connect(
    world: &World,
    addresses: &[SocketAddr],
    hostname: &Arc<str>,
) -> Result<Connection, String> {
    let mut last = String::new();
    for &address in addresses {
        match Connection::open(world, &address.into(), hostname, CONNECT, None, &[]).await {
            Ok((mut connection, _)) => {
                connection.client().restrict(Extensions::NONE);
                return Ok(connection);
            }
            Err(ConnectionError::Refused(reply)) => last = format!("it said {}", shown(&reply)),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// One transaction.
async fn transact(
    connection: &mut Connection,
    parcel: &Parcel<'_>,
    shape: &BodyShape,
    begin: &mut impl FnMut() -> io::Result<()>,
) -> Result<Outcome, Stop> {
    connection.count_message();
    let mail = Mail::new(ReversePath::Address(parcel.sender.clone()));
    let recipient = Rcpt::new(parcel.recipient.clone());
    if let Err(unsupported) = connection.client().begin(&mail, [&recipient], shape) {
        return Ok(Outcome::Refused { reply: unsupported.to_string(), later: false });
    }
    let mut is_written = false;
    loop {
        let event = connection.event(if is_written { FINAL } else { REPLY }).await;
        match event {
            Ok(ClientEvent::SendBody(form)) => {
                begin().map_err(Stop::NotNoted)?;
                if let Err(why) = write(connection, form, parcel.mail).await {
                    return Ok(Outcome::Broken(why));
                }
                is_written = true;
            }
            Ok(ClientEvent::Settled(settled)) => return Ok(judged(&settled)),
            Ok(ClientEvent::Closing(reply) | ClientEvent::Refused(reply)) => {
                return Ok(Outcome::Broken(format!("it closed with {}", shown(&reply))));
            }
            // Before any message, or not asked for.
            Ok(
                ClientEvent::Ready(_)
                | ClientEvent::StartTls
                | ClientEvent::NoTls(_)
                | ClientEvent::NoXclient(_)
                | ClientEvent::Login(_)
                | ClientEvent::NoLogin
                | ClientEvent::NotForwarded(_)
                | ClientEvent::Reset
                | ClientEvent::Rehearsed(_),
            ) => {}
            Err(error) if is_written => return Ok(Outcome::InDoubt(error.to_string())),
            Err(error) => return Ok(Outcome::Broken(error.to_string())),
        }
    }
}

fn judged(settled: &Settled) -> Outcome {
    let reply = settled.for_recipient(0);
    let text = shown(reply);
    if reply.is_positive() {
        let id = text.split_once(QUEUED).and_then(|(_, rest)| rest.split(' ').next());
        let queue_id = id.filter(|id| !id.is_empty()).map(str::to_owned);
        return Outcome::Sent { reply: text, queue_id };
    }
    // RFC 5321 3.8: it is about the session, unless it answers the whole mail.
    if reply.code() == 421 && settled.stage != Stage::End {
        return Outcome::Broken(format!("it closed with {text}"));
    }
    Outcome::Refused { reply: text, later: reply.is_transient() }
}

/// Nothing holds the end back once it was noted.
struct Noted;

impl Commit for Noted {
    type Refusal = std::convert::Infallible;

    fn commit(&mut self) -> Result<(), Self::Refusal> {
        Ok(())
    }

    fn uncommit(&mut self) {}
}

/// Writes a mail with its end. After an error its last bytes were not written, so that the relay
/// cannot have it.
async fn write(connection: &mut Connection, form: BodyForm, mail: &[u8]) -> Result<(), String> {
    let mut slices = Vec::new();
    match form {
        BodyForm::Data { stuff: true } => slices.extend(stuff::pieces(mail, true)),
        BodyForm::Data { stuff: false } | BodyForm::Chunk => slices.push(mail),
    }
    if matches!(form, BodyForm::Data { .. }) {
        slices.push(stuff::END);
    }
    let written = connection.write_slices(&slices, true, &mut Noted, REPLY).await;
    written.map_err(|error| match error {
        WriteError::Broken(error) => error.to_string(),
        WriteError::Held(never) => match never {},
    })?;
    connection.client().body_sent();
    Ok(())
}

/// A reply on one line, as long as is good for a file and a terminal.
fn shown(reply: &Reply) -> String {
    let text: String = reply.to_string().chars().take(REPLY_MAX).collect();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn relays_are_named() {
        let named = |text: &str| Target::parse(text).map(|target| target.to_string());
        for good in ["127.0.0.1:25", "edge-1.example.net:2525", "[::1]:25"] {
            assert_eq!(named(good).as_deref(), Ok(good));
        }
        for bad in ["", "host", "host:", ":25", "host:0", "host:70000", "::1:25", "[a]:25", "a]:1"]
        {
            named(bad).unwrap_err();
        }
    }

    #[test]
    fn a_listener_on_every_address_is_reached_on_the_loopback() {
        let of = |address: &str| {
            let target = Target::of_listener(address.parse().unwrap());
            target.map(|target| target.to_string())
        };
        assert_eq!(of("0.0.0.0:25").as_deref(), Some("127.0.0.1:25"));
        assert_eq!(of("[::]:25").as_deref(), Some("[::1]:25"));
        assert_eq!(of("192.0.2.1:25").as_deref(), Some("192.0.2.1:25"));
        assert_eq!(of("127.0.0.1:0"), None);
    }
}
