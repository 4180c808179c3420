//! Whom a connection to a target speaks for: told by XFORWARD with each message, by XCLIENT to a
//! session, or by a PROXY header before all else.
//!
//! Owns which connections a client's mail may go over, and what becomes of a client that the
//! target does not want: that is the upstream's word on this client, and says nothing of the
//! target's health.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use wavegate_smtp::{Extensions, Identity, Reply};

use super::{Connection, ConnectionError, Lease, LeaseError, State, Upstream, pool::Grant};
use crate::{
    config::UpstreamIdentity,
    message::{MessageId, Source},
    names::Endpoint,
};

/// What a PROXY header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What is counted of identities that did not get through.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages that went without XFORWARD, because it was refused or not offered.
    pub not_forwarded: AtomicU64,
    /// Connections given up because XCLIENT was refused or not offered.
    pub no_xclient: AtomicU64,
    /// Connections that the target did not want for their client.
    pub unwanted: AtomicU64,
    told: AtomicBool,
}

/// The client that a message is from, as the protocol core says it.
pub fn of<'a>(source: &'a Source, id: Option<&'a MessageId>) -> Identity<'a> {
    Identity {
        client: source.client,
        port: Some(source.port).filter(|port| *port > 0),
        name: source.name.as_deref(),
        helo: Some(source.helo.as_str()).filter(|helo| !helo.is_empty()),
        extended: source.extended,
        ident: id.map(MessageId::as_str),
        login: source.user.as_deref(),
        destination: source.destination,
    }
}

/// Whether a connection that speaks for one client may speak for the other: all that the target
/// has been told of them is the same.
pub(super) fn is_same(one: &Source, other: &Source) -> bool {
    let of = |source: &Source| {
        let Source { client, port, extended, destination, .. } = *source;
        (client, port, extended, destination)
    };
    of(one) == of(other)
        && one.helo == other.helo
        && one.name == other.name
        && one.user == other.user
}

/// The name to greet a target with: the client's own where the connection is his, if it can stand
/// in a command.
pub(super) fn hello(source: &Source) -> Option<&str> {
    let plain = source.helo.bytes().all(|byte| byte.is_ascii_graphic());
    Some(source.helo.as_str()).filter(|helo| plain && !helo.is_empty())
}

/// A PROXY header. Without a client it says that the relay speaks for itself.
///
/// Where the client wanted to go is said if it is known, else the target, as if it had come here
/// of itself.
pub fn proxy_header(
    identity: UpstreamIdentity,
    source: Option<&Source>,
    target: SocketAddr,
) -> Vec<u8> {
    let ends = source.map(|source| ends(source, target));
    match (identity, ends) {
        (UpstreamIdentity::ProxyV1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (UpstreamIdentity::ProxyV1, Some((from, to))) => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let (ports, from, to) = ((from.port(), to.port()), from.ip(), to.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", ports.0, ports.1).into_bytes()
        }
        (UpstreamIdentity::ProxyV2, None) => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
        (UpstreamIdentity::ProxyV2, Some((from, to))) => {
            let (family, length) = if from.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            let mut header = [&SIGNATURE[..], &[0x21, family, 0, length]].concat();
            for address in [from.ip(), to.ip()] {
                match address {
                    IpAddr::V4(address) => header.extend(address.octets()),
                    IpAddr::V6(address) => header.extend(address.octets()),
                }
            }
            header.extend(from.port().to_be_bytes());
            header.extend(to.port().to_be_bytes());
            header
        }
        _ => Vec::new(),
    }
}

/// Client and where it went, of one family: the header can say no other. An address of the other
/// one is told as unspecified.
fn ends(source: &Source, target: SocketAddr) -> (SocketAddr, SocketAddr) {
    let client = source.client.to_canonical();
    let to = source.destination.unwrap_or(target);
    let to_address = match (client, to.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V6(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (IpAddr::V6(_), IpAddr::V4(_)) => Ipv6Addr::UNSPECIFIED.into(),
        (_, address) => address,
    };
    ((client, source.port).into(), (to_address, to.port()).into())
}

impl Upstream {
    /// Whether each message says whom it is from.
    pub fn forwards(&self) -> bool {
        self.config.identity == UpstreamIdentity::Xforward
    }

    /// What is counted of identities that did not get through.
    pub fn identity_counts(&self) -> &Counts {
        &self.identity
    }

    /// A message goes without XFORWARD: it was refused so, or is not offered.
    pub fn note_not_forwarded(&self, reply: Option<&Reply>) {
        self.identity.not_forwarded.fetch_add(1, Relaxed);
        if !self.identity.told.swap(true, Relaxed) {
            let said = reply.map_or_else(|| "it is not offered".to_owned(), Reply::to_string);
            tracing::warn!(
                upstream = self.config.name,
                said,
                "XFORWARD: messages go without their client's identity; let the upstream trust \
                 this relay (Postfix: smtpd_authorized_xforward_hosts)"
            );
        }
    }

    /// What [`Upstream::lease_patiently`] gave, for mail from `source`.
    pub async fn fit(
        self: &Arc<Self>,
        lease: Lease,
        source: &Arc<Source>,
    ) -> Result<Lease, LeaseError> {
        let Some(owner) = self.owner(source) else { return Ok(lease) };
        let Lease { slot, way, .. } = lease;
        let connection = way.into_connection();
        Box::pin(self.connected_for(Grant { slot, connection }, None, false, owner)).await
    }

    /// What was granted, for this client.
    pub(super) async fn connected_for(
        self: &Arc<Self>,
        grant: Grant,
        avoid: Option<&Endpoint>,
        fresh: bool,
        owner: &Arc<Source>,
    ) -> Result<Lease, LeaseError> {
        let Grant { slot, connection } = grant;
        let connection = match (connection, fresh) {
            (held, false) => self.best_for(held, avoid, owner),
            (held, true) => {
                held.into_iter().for_each(Connection::quit);
                None
            }
        };
        self.connected(Grant { slot, connection }, avoid, fresh, Some(owner)).await
    }

    /// Whom connections speak for that carry mail of this client; none: for everybody.
    pub(super) fn owner<'a>(&self, source: &'a Arc<Source>) -> Option<&'a Arc<Source>> {
        self.config.identity.is_of_one_client().then_some(source)
    }

    /// A place for whoever has no connection yet: where all are taken, with the one that was idle
    /// the longest in it.
    pub(super) fn take_place(&self, state: &mut State) -> Option<Option<Connection>> {
        let all = state.in_use + state.idle.len();
        match all < self.places() {
            true => Some(None),
            false if state.idle.is_empty() => None,
            false => Some(Some(state.idle.remove(0))),
        }
    }

    /// The best connection for a client: one that speaks for it, else one that can be made his.
    /// What was granted and is neither is kept, and at the cap the one that was idle the longest
    /// goes for the one that is to be opened.
    pub(super) fn best_for(
        &self,
        held: Option<Connection>,
        avoid: Option<&Endpoint>,
        owner: &Source,
    ) -> Option<Connection> {
        let usable = |one: &Connection| Some(one.endpoint()) != avoid;
        let fits = |one: &Connection| usable(one) && one.speaks_for(owner);
        // Some offer XCLIENT to whoever is trusted, and not to the client that a session has
        // become: theirs can be made a client's once.
        let may_become = self.config.identity == UpstreamIdentity::Xclient;
        let becomes = |one: &Connection| may_become && usable(one) && one.takes_xclient();
        if held.as_ref().is_some_and(fits) {
            return held;
        }
        let mut state = self.lock();
        let mut at = state.idle.iter().rposition(fits);
        if at.is_none() {
            if held.as_ref().is_some_and(becomes) {
                return held;
            }
            at = state.idle.iter().position(becomes);
        }
        let taken = at.map(|at| state.idle.remove(at));
        let mut over = held.and_then(|held| self.keep(&mut state, held));
        if over.is_none() && state.in_use + state.idle.len() > self.places() {
            over = Some(state.idle.remove(0));
        }
        drop(state);
        if let Some(over) = over {
            over.quit();
        }
        taken
    }

    /// Keeps a connection idle, in the order in which they became so; gives it back where there is
    /// no room for it.
    fn keep(&self, state: &mut State, connection: Connection) -> Option<Connection> {
        let is_full = state.idle.len() >= self.config.idle_connections;
        if state.retired || is_full || !state.is_wanted(connection.endpoint()) {
            return Some(connection);
        }
        let since = connection.idle_since();
        let at = state.idle.partition_point(|one| one.idle_since() <= since);
        state.idle.insert(at, connection);
        None
    }

    /// Makes a connection that speaks for another client, or for nobody, this one's.
    pub(super) async fn hand_over(
        &self,
        connection: &mut Connection,
        owner: &Arc<Source>,
    ) -> Result<Extensions, ConnectionError> {
        let made = connection.speak_for(owner, self.config.connect_timeout).await;
        match &made {
            Err(ConnectionError::NoXclient(_)) => {
                self.identity.no_xclient.fetch_add(1, Relaxed);
            }
            Err(ConnectionError::Unwanted(_)) => {
                self.identity.unwanted.fetch_add(1, Relaxed);
            }
            _ => {}
        }
        made
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]

    use super::*;

    fn source(client: &str) -> Source {
        Source::new(client.parse().unwrap(), "listener-1")
    }

    #[test]
    fn headers_are_those_of_the_specification() {
        let (v1, v2) = (UpstreamIdentity::ProxyV1, UpstreamIdentity::ProxyV2);
        let target = "198.51.100.1:25".parse().unwrap();
        let said =
            |source: &Source| String::from_utf8(proxy_header(v1, Some(source), target)).unwrap();
        let mut four = source("192.0.2.7:56324");
        assert_eq!(said(&four), "PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\r\n");
        assert_eq!(
            said(&source("[::ffff:192.0.2.7]:1")),
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 25\r\n"
        );
        let mut six = source("[2001:db8::7]:4711");
        assert_eq!(said(&six), "PROXY TCP6 2001:db8::7 :: 4711 25\r\n");
        six.destination = Some("[2001:db8::1]:587".parse().unwrap());
        assert_eq!(said(&six), "PROXY TCP6 2001:db8::7 2001:db8::1 4711 587\r\n");
        four.destination = six.destination;
        assert_eq!(said(&four), "PROXY TCP4 192.0.2.7 0.0.0.0 56324 587\r\n");
        assert_eq!(proxy_header(v1, None, target), b"PROXY UNKNOWN\r\n");
        assert_eq!(proxy_header(v2, None, target), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
        four.destination = None;
        assert_eq!(
            proxy_header(v2, Some(&four), target),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\xdc\x04\0\x19"
        );
        assert_eq!(proxy_header(UpstreamIdentity::Xforward, Some(&four), target), b"");
    }

    #[test]
    fn all_that_is_told_tells_clients_apart() {
        let one = source("192.0.2.7:1");
        assert!(is_same(&one, &one.clone()));
        let others = [
            source("192.0.2.8:1"),
            source("192.0.2.7:2"),
            Source { name: Some("mta.example".into()), ..one.clone() },
            Source { helo: "mta.example".into(), ..one.clone() },
            Source { extended: true, ..one.clone() },
            Source { user: Some("acme".into()), ..one.clone() },
            Source { destination: Some("192.0.2.1:25".parse().unwrap()), ..one.clone() },
        ];
        assert!(others.iter().all(|other| !is_same(&one, other)));
        // How it spoke with us is nothing that a target is told.
        assert!(is_same(&one, &Source { listener: "other".into(), ..one.clone() }));
    }
}
