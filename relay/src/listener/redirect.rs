//! Connections that the host redirected here: where their clients wanted to go, and which of them
//! are our own. Floor 4.
//!
//! The kernel remembers where a connection was to go that a rule of nftables or iptables has
//! redirected (`SO_ORIGINAL_DST`). One that nobody redirected has no such place, or our own address.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};

use crate::{
    config::ListenerConfig,
    event::Refused,
    message::{Redirected, Source},
    relay::Relay,
    session::Client,
    world::{BoxFuture, Openings},
};

/// How long a client waits for its greeting while a destination is asked what it offers that was
/// never asked: clients wait for minutes (RFC 5321 4.5.3.2.1), and most servers answer in less.
const MEET: Duration = Duration::from_secs(5);

/// Whether a connection was redirected, where its listener takes such connections; and that it is
/// none of ours.
pub fn look(
    stream: &TcpStream,
    peer: SocketAddr,
    listener: Option<&ListenerConfig>,
    openings: &Openings,
) -> Result<Option<Redirected>, Refused> {
    let Ok(own) = stream.local_addr() else { return Ok(None) };
    let is_loop = |to| if openings.is_ours(peer, to) { Err(Refused::Loop) } else { Ok(()) };
    if listener.is_none_or(|listener| listener.redirect.is_none()) {
        return is_loop(own).map(|()| None);
    }
    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
    let socket = SockRef::from(stream);
    // An IPv4 client of an IPv6 socket is one of IPv4 in the kernel's tables, too.
    let original = match own {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let destination = original.ok().and_then(|address| address.as_socket());
    let destination = destination.filter(|destination| *destination != own);
    is_loop(destination.unwrap_or(own))?;
    let destination = destination.ok_or(Refused::NotRedirected)?;
    // Only this host's own connections are redirected to a loopback address.
    Ok(Some(Redirected { destination, local: own.ip().is_loopback() }))
}

/// What has the destination of a client asked what it offers, before the client is greeted: so that
/// EHLO offers what it would have without a relay. None where there is nothing to ask.
pub fn meeting(relay: &Relay, client: &Client) -> Option<BoxFuture<'static, ()>> {
    let destination = client.destination.filter(|_| client.settings.may_relay)?;
    let generation = relay.look();
    let families = generation.upstreams.values().filter(|upstream| {
        upstream.config.original.is_some() && client.listener.reaches(&upstream.config.name)
    });
    let children = families.filter_map(|family| family.place(Some(destination)).ok());
    let unknown: Vec<_> = children.filter(|child| child.extensions().is_none()).collect();
    if unknown.is_empty() {
        return None;
    }
    let source = Source::new(client.peer, &client.listener.name);
    let source = Arc::new(Source { destination: Some(destination), ..source });
    Some(Box::pin(async move {
        let until = Instant::now() + MEET;
        for child in unknown {
            let lease = child.lease(until, 0, None, false, &source);
            if let Ok(Ok(lease)) = tokio::time::timeout_at(until, lease).await {
                // It stays for the client's mail.
                lease.release();
            }
        }
    }))
}
