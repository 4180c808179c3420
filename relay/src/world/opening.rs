//! The connections that are being opened, so that one that comes back to this relay is known for
//! what it is. Floor 1.
//!
//! A host whose rules redirect this relay's own connections hands each of them back to it. Who
//! accepts a connection asks here whether it is one of ours: from and to are the same at both ends,
//! because redirecting keeps the first and the kernel tells the second.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use socket2::{Domain, Protocol, Socket, Type};

/// Where a connection is from and to.
type Ends = (SocketAddr, SocketAddr);

/// Connections from the moment that they begin to when the other side has greeted. As many as
/// upstreams may have.
#[derive(Debug, Default)]
pub struct Openings(Mutex<HashMap<Ends, Arc<AtomicBool>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Opening {
    all: Arc<Openings>,
    ends: Ends,
    came_back: Arc<AtomicBool>,
}

impl Openings {
    /// Begins to connect; the socket is writable when it is there. Nobody can accept it before it
    /// is known here: whoever asks waits until then.
    pub fn connect(
        self: &Arc<Self>,
        address: SocketAddr,
    ) -> io::Result<(std::net::TcpStream, Opening)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        let mut all = self.lock();
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = std::net::TcpStream::from(socket);
        let ends = ends(stream.local_addr()?, address);
        let came_back = Arc::new(AtomicBool::new(false));
        all.insert(ends, Arc::clone(&came_back));
        drop(all);
        Ok((stream, Opening { all: Arc::clone(self), ends, came_back }))
    }

    /// Whether a connection that came in is one of ours. Then whoever opens it hears of it.
    pub fn is_ours(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let all = self.lock();
        let found = all.get(&ends(from, to));
        found.inspect(|came_back| came_back.store(true, Ordering::Relaxed)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ends, Arc<AtomicBool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opening {
    /// Whether it came in at this relay.
    pub fn came_back(&self) -> bool {
        self.came_back.load(Ordering::Relaxed)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.all.lock().remove(&self.ends);
    }
}

/// As both sides write them: an IPv4 address is one, whatever the socket is.
fn ends(from: SocketAddr, to: SocketAddr) -> Ends {
    let plain = |one: SocketAddr| SocketAddr::new(one.ip().to_canonical(), one.port());
    (plain(from), plain(to))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn our_own_connection_is_known_at_the_other_end_until_it_is_open() {
        let openings = Arc::new(Openings::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stream, opening) = openings.connect(address).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), peer.port());
        assert_eq!(peer, stream.local_addr().unwrap());
        // The same port to somewhere else is another connection.
        assert!(!openings.is_ours(peer, "127.0.0.1:1".parse().unwrap()));
        assert!(!opening.came_back());
        assert!(openings.is_ours(mapped, address));
        assert!(opening.came_back());
        drop(opening);
        assert!(!openings.is_ours(peer, address));
    }

    #[test]
    fn one_that_cannot_begin_leaves_nothing() {
        let openings = Arc::new(Openings::default());
        assert!(openings.connect("255.255.255.255:25".parse().unwrap()).is_err());
        assert!(openings.lock().is_empty());
    }
}
