//! A byte stream to a peer: TCP, or a pipe in memory in simulations, under TLS or not.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::rustls::{ClientConfig, ServerConfig, pki_types::ServerName};

use super::tls::{Tls, TlsError};
use crate::message::Secured;

/// A connection. An enum rather than a trait object: reads and writes are the hot path.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A pipe in memory.
    Memory(DuplexStream),
    /// One of these under TLS. Boxed, so that a plain connection is small.
    Tls(Box<Tls>),
    /// None any more: what was there is elsewhere.
    Gone,
}

impl Stream {
    /// Puts it under TLS, as the server; [`Stream::poll_handshake`] follows.
    pub fn begin_server_tls(&mut self, config: Arc<ServerConfig>) -> Result<(), TlsError> {
        let plain = std::mem::replace(self, Self::Gone);
        *self = Self::Tls(Box::new(Tls::server(plain, config)?));
        Ok(())
    }

    /// Puts it under TLS, as the client of a server of this name.
    pub fn begin_client_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), TlsError> {
        let plain = std::mem::replace(self, Self::Gone);
        *self = Self::Tls(Box::new(Tls::client(plain, config, name)?));
        Ok(())
    }

    /// Takes the handshake to its end.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        match self {
            Self::Tls(tls) => tls.poll_handshake(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// How it is protected, if it is.
    pub fn secured(&self) -> Option<Secured> {
        match self {
            Self::Tls(tls) => tls.secured(),
            _ => None,
        }
    }

    /// Whether something that a write accepted is still here, for the next write or flush to send.
    pub fn has_unsent(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.has_unsent())
    }

    /// Whether a connection that should be silent is still good: nothing to read, not closed.
    /// Costs a system call only when the reactor has seen something happen to it.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0_u8; 1];
        match self {
            Self::Tcp(stream) => {
                matches!(stream.try_read(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Memory(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(stream).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
            Self::Tls(tls) => tls.is_quiet(),
            Self::Gone => false,
        }
    }

    /// Whether the peer has sent something already. Asks the kernel.
    pub fn has_input(&self) -> bool {
        match self {
            Self::Tcp(stream) => {
                let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
                rustix::net::recv(stream, &mut [0_u8; 1], flags).is_ok_and(|(count, _)| count > 0)
            }
            Self::Tls(tls) => tls.has_input(),
            Self::Memory(_) | Self::Gone => false,
        }
    }

    /// Writes what can be written without waiting; the rest is lost.
    pub fn write_now(&mut self, bytes: &[u8]) {
        match self {
            Self::Tcp(stream) => {
                // The last words to a peer whose connection is about to be closed.
                let _ = stream.try_write(bytes);
            }
            Self::Memory(stream) => {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = Pin::new(stream).poll_write(&mut cx, bytes);
            }
            Self::Tls(tls) => {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = tls.poll_write(&mut cx, &[io::IoSlice::new(bytes)]);
                tls.close(&mut cx);
            }
            Self::Gone => {}
        }
    }

    /// Reads what is there without waiting; none when there is nothing.
    pub fn read_now(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(self).poll_read(&mut cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Some(buffer.filled().len()),
            _ => None,
        }
    }

    /// Moves the connection to the reactor of the calling thread's runtime, so that its events
    /// wake nobody across threads.
    pub fn rehome(self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream.into_std()?).map(Self::Tcp),
            Self::Tls(tls) => Ok(Self::Tls(Box::new(tls.rehome()?))),
            other => Ok(other),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tls) => tls.poll_read(cx, buf),
            Self::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(tls) => tls.poll_write(cx, &[io::IoSlice::new(bytes)]),
            Self::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => tls.poll_write(cx, bufs),
            Self::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Tls(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tls) => tls.poll_send(cx),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tls) => tls.poll_shutdown(cx),
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}
