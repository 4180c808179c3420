//! Listening sockets and the counting of clients. Floor 4.

pub mod proxy;
pub mod redirect;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    budget::{self, Level, Share, Use},
    event::Refused,
    rates::What,
    relay::Relay,
    session::Place,
};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 4096;

/// A bound socket of a listener.
#[derive(Debug)]
pub struct Bound {
    /// The listener's name.
    pub name: String,
    /// The address as configured, which may have port 0.
    pub configured: SocketAddr,
    /// The address in use.
    pub address: SocketAddr,
    /// The socket.
    pub socket: std::net::TcpListener,
}

/// Binds a listener's address.
pub fn bind(name: &str, address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    bound(name, address, socket)
}

/// Takes a socket that was bound before this process; its address is what it is.
pub fn adopt(
    name: &str,
    configured: SocketAddr,
    socket: std::net::TcpListener,
) -> io::Result<Bound> {
    let socket = Socket::from(socket);
    socket.set_nonblocking(true)?;
    // The queue of one that listens already is made as long as ours.
    socket.listen(BACKLOG)?;
    bound(name, configured, socket)
}

fn bound(name: &str, configured: SocketAddr, socket: Socket) -> io::Result<Bound> {
    let socket: std::net::TcpListener = socket.into();
    Ok(Bound { name: name.to_owned(), configured, address: socket.local_addr()?, socket })
}

/// Counts clients, in all and by address.
#[derive(Debug, Default)]
pub struct Clients {
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One counted connection; uncounted when dropped.
pub struct Counted {
    relay: Arc<Relay>,
    clients: Arc<Clients>,
    /// Whose it is; none while a proxy has not told.
    client: Option<IpAddr>,
    /// Its memory, until there is a session that has it.
    share: Share,
}

impl Clients {
    /// Counts a connection, unless there are too many, the relay is short of memory, or it stops.
    /// Whose it is, is to be said with [`Counted::of`].
    pub fn admit(
        self: &Arc<Self>,
        relay: &Arc<Relay>,
        begins_with_tls: bool,
    ) -> Result<Counted, Refused> {
        if relay.is_stopping() {
            return Err(Refused::Stopping);
        }
        if relay.budget.level() >= Level::Closed {
            return Err(Refused::Memory);
        }
        let limit = relay.generation().config.limits.connections;
        if relay.connections().fetch_add(1, Ordering::Relaxed) >= limit {
            relay.connections().fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::TooMany);
        }
        let bytes = budget::SESSION + if begins_with_tls { budget::HANDSHAKE } else { 0 };
        let share = relay.budget.share(Use::Sessions, bytes);
        Ok(Counted { relay: Arc::clone(relay), clients: Arc::clone(self), client: None, share })
    }
}

impl Counted {
    /// Whether it is known whose it is.
    pub fn is_attributed(&self) -> bool {
        self.client.is_some()
    }

    /// There is a session, which is charged for itself.
    pub fn begun(&mut self) {
        self.share.set(0);
    }

    /// It is this client's, unless that has too many, or comes too often.
    pub fn of(mut self, client: SocketAddr) -> Result<Self, Refused> {
        self.give_to(client).map(|()| self)
    }

    fn uncount(&mut self) {
        let Some(client) = self.client.take() else { return };
        let mut by_address = self.clients.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&client);
            }
        }
    }
}

impl Place for Counted {
    fn give_to(&mut self, client: SocketAddr) -> Result<(), Refused> {
        let client = client.ip().to_canonical();
        if self.client == Some(client) {
            return Ok(());
        }
        let generation = self.relay.generation();
        let limits = &generation.config.limits;
        if !self.relay.rates.admit(What::Connection, client, limits) {
            return Err(Refused::ClientRate);
        }
        let limit = limits.connections_per_client;
        let mut by_address = self.clients.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(client).or_insert(0);
        if *count >= limit {
            drop(by_address);
            return Err(Refused::TooManyFromClient);
        }
        *count += 1;
        drop(by_address);
        self.uncount();
        self.client = Some(client);
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.relay.connections().fetch_sub(1, Ordering::Relaxed);
        self.uncount();
    }
}

/// What a client that is turned away is told (RFC 5321 3.8 allows 421 as greeting).
pub fn refusal(reason: Refused) -> &'static [u8] {
    match reason {
        Refused::TooMany | Refused::TooManyFromClient => {
            b"421 4.7.0 wavegate: too many connections, try again later\r\n"
        }
        Refused::Stopping => b"421 4.3.2 wavegate: relay is stopping, come back\r\n",
        Refused::Memory => b"421 4.3.2 wavegate: the relay is short of memory, come back later\r\n",
        Refused::ClientRate => {
            b"421 4.7.0 wavegate: you connect too often (client_connection_rate), come back later\r\n"
        }
        Refused::ProxyHeader => b"421 4.7.0 wavegate: a PROXY header is missing or wrong\r\n",
        Refused::NotRedirected => {
            b"421 4.4.6 wavegate: this port takes redirected connections only, not those made to it\r\n"
        }
        Refused::Loop => {
            b"421 4.4.6 wavegate: routing loop: this relay's own connection came back to it\r\n"
        }
    }
}
