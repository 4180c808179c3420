//! Serving HTTP to a few: one request a connection, and everything about it bounded. Owns
//! connections; what is answered is the router's. Floor 4.

use std::{
    future::{Ready, ready},
    io,
    net::SocketAddr,
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
};

/// Time for the whole header of a request, and before it for what opens the connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's header, and lines in it.
const HEADER_BYTES: usize = 8 * 1024;
const HEADER_LINES: usize = 64;
/// Pause when no connection can be taken, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What those who ask may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What is served, for the log.
    pub what: &'static str,
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Time for the whole connection.
    pub timeout: Duration,
}

/// Who is on the other side. Routes find it among the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host, of this user where the system says it.
    Local(Option<u32>),
    /// A host.
    Remote(SocketAddr),
}

/// A socket that connections come in by.
pub trait Incoming: Send {
    /// A connection that requests can be read from.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is left to do before that, in the connection's own time.
    type Opening: Future<Output = io::Result<Self::Stream>> + Send + 'static;
    /// Takes the next.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Opening, Peer)>> + Send;
}

impl Incoming for TcpListener {
    type Stream = TcpStream;
    type Opening = Ready<io::Result<TcpStream>>;

    async fn next(&self) -> io::Result<(Self::Opening, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((ready(Ok(stream)), Peer::Remote(address)))
    }
}

impl Incoming for UnixListener {
    type Stream = UnixStream;
    type Opening = Ready<io::Result<UnixStream>>;

    async fn next(&self) -> io::Result<(Self::Opening, Peer)> {
        let (stream, _) = self.accept().await?;
        let user = stream.peer_cred().ok().map(|peer| peer.uid());
        Ok((ready(Ok(stream)), Peer::Local(user)))
    }
}

/// Serves until it is dropped. Requests that are being answered then are cut.
pub async fn serve(listener: impl Incoming, router: Router, bounds: Bounds) {
    // Dropped with this future, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= bounds.connections {
            connections.join_next().await;
            continue;
        }
        match listener.next().await {
            Ok((opening, peer)) => {
                let router = router.clone().layer(Extension(peer));
                connections.spawn(connection(opening, router, bounds));
            }
            Err(error) => {
                if is_of_the_process(&error) {
                    tracing::warn!(%error, "{} cannot take a connection", bounds.what);
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether accepting failed for a reason that is not one client's.
fn is_of_the_process(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    !matches!(error.kind(), ConnectionAborted | ConnectionReset)
}

/// One request.
async fn connection<S>(
    opening: impl Future<Output = io::Result<S>> + Send,
    router: Router,
    bounds: Bounds,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = match tokio::time::timeout(HEADER_TIMEOUT, opening).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection to {} was not made", bounds.what);
            return;
        }
        Err(_) => {
            tracing::debug!("a connection to {} took too long to make", bounds.what);
            return;
        }
    };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADER_LINES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(bounds.timeout, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request to {} failed", bounds.what),
        Err(_) => tracing::debug!("a request to {} took too long", bounds.what),
    }
}
