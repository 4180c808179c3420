//! A byte stream to a peer: TCP, or a pipe in memory in simulations.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
};

/// A connection. An enum rather than a trait object: reads and writes are the hot path.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A pipe in memory.
    Memory(DuplexStream),
}

impl Stream {
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
        }
    }

    /// Whether the peer has sent something already. Asks the kernel.
    pub fn has_input(&self) -> bool {
        match self {
            Self::Tcp(stream) => {
                let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
                rustix::net::recv(stream, &mut [0_u8; 1], flags).is_ok_and(|(count, _)| count > 0)
            }
            Self::Memory(_) => false,
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
            Self::Memory(stream) => Ok(Self::Memory(stream)),
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
