//! TLS over a stream. Owns one session's state and its buffers; whom to believe and what to show
//! is in the rustls configuration that it is begun with.
//!
//! What is written is encrypted at once, and only when all that was encrypted before has gone to
//! the network: so at most one write is in memory, and an idle session holds no plaintext. A
//! record counts as sent with its last byte, because nobody can read it before.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, Connection, Error,
    HandshakeKind, ServerConfig, ServerConnection, pki_types::ServerName,
};

use super::Stream;
use crate::{event::TlsFailure, message::Secured};

/// Bytes taken from the network at once, in a buffer that the sessions of a thread share: rustls
/// alone reads 4 KiB at a time.
const READ: usize = 64 * 1024;
/// Room for less than this is filled from rustls' own buffer.
const SMALL: usize = 4 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The two sides did not come to terms.
    #[error("{0}")]
    Tls(#[from] Error),
}

/// One TLS session over a stream.
#[derive(Debug)]
pub struct Tls {
    io: Stream,
    session: Connection,
    /// Plaintext came with the last message of the handshake.
    early: bool,
}

impl TlsError {
    /// What it counts as.
    pub fn failure(&self) -> TlsFailure {
        match self {
            Self::Io(_) => TlsFailure::Closed,
            Self::Tls(error) => failure(error),
        }
    }
}

fn failure(error: &Error) -> TlsFailure {
    match error {
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => TlsFailure::NotTls,
        Error::PeerIncompatible(_)
        | Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity,
        ) => TlsFailure::NothingInCommon,
        Error::InvalidCertificate(_)
        | Error::NoCertificatesPresented
        | Error::UnsupportedNameType
        | Error::InvalidCertRevocationList(_)
        | Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA,
        ) => TlsFailure::Certificate,
        Error::AlertReceived(_) => TlsFailure::Alert,
        _ => TlsFailure::Other,
    }
}

impl Tls {
    /// The server's side, before the handshake.
    pub(super) fn server(io: Stream, config: Arc<ServerConfig>) -> Result<Self, Error> {
        let session = Connection::Server(ServerConnection::new(config)?);
        Ok(Self { io, session, early: false })
    }

    /// The client's side, before the handshake with a server of this name.
    pub(super) fn client(
        io: Stream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        let session = Connection::Client(ClientConnection::new(config, name)?);
        Ok(Self { io, session, early: false })
    }

    /// Takes the handshake to its end.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        loop {
            ready!(self.poll_send(cx))?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let read = match self.session.read_tls(&mut Wire { io: &mut self.io, cx }) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                read => read?,
            };
            match self.session.process_new_packets() {
                Ok(state) => self.early = state.plaintext_bytes_to_read() > 0,
                Err(error) => {
                    // The alert tells the peer why.
                    let _ = self.poll_send(cx);
                    return Poll::Ready(Err(error.into()));
                }
            }
            if read == 0 {
                let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Poll::Ready(Err(closed.into()));
            }
        }
    }

    /// What was agreed on; none before the end of the handshake.
    pub(super) fn secured(&self) -> Option<Secured> {
        let suite = self.session.negotiated_cipher_suite()?.suite();
        let resumed = self.session.handshake_kind()? == HandshakeKind::Resumed;
        Some(Secured { cipher: place(suite)?, resumed })
    }

    /// Whether something that was written has not gone to the network yet.
    pub(super) fn has_unsent(&self) -> bool {
        self.session.wants_write()
    }

    /// Whether the peer has sent something behind its handshake.
    pub(super) fn has_input(&self) -> bool {
        self.early || self.io.has_input()
    }

    /// Whether nothing is to be read, and the peer has not closed.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_pending()
    }

    /// Moves the connection to the calling thread's reactor.
    pub(super) fn rehome(self) -> io::Result<Self> {
        Ok(Self { io: self.io.rehome()?, ..self })
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            if self.take_plaintext(buf)? || buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if buf.remaining() < SMALL {
                let read = self.session.read_tls(&mut Wire { io: &mut self.io, cx });
                match read {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Poll::Pending;
                    }
                    read => read?,
                };
                self.process(cx)?;
            } else {
                ready!(self.poll_receive(cx, buf))?;
            }
        }
    }

    /// As many slices as one write takes. What is accepted and not sent is sent by the next write
    /// or flush.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        let count = self.session.writer().write_vectored(bufs)?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    /// Sends what was encrypted.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Wire { io: &mut self.io, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing follows, as far as the network takes it at once, and closes.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close(cx);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Says that nothing follows, without waiting.
    pub(super) fn close(&mut self, cx: &mut Context<'_>) {
        self.session.send_close_notify();
        let _ = self.poll_send(cx);
    }

    /// Moves plaintext to `buf`. Says whether the peer has closed as it should.
    fn take_plaintext(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        while buf.remaining() > 0 {
            match self.session.reader().read(buf.initialize_unfilled()) {
                Ok(0) => return Ok(true),
                Ok(count) => buf.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Closed without a word: whatever was being said is cut short.
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Reads from the network as much as `buf` has room for, and decrypts it. At most what was
    /// left of one record before does not fit then; rustls keeps that.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let size = scratch.len().min(buf.remaining());
            let mut wire = ReadBuf::new(&mut scratch[..size]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut wire))?;
            let mut rest = wire.filled();
            if rest.is_empty() {
                self.session.read_tls(&mut rest)?;
                self.process(cx)?;
            }
            while !rest.is_empty() {
                self.session.read_tls(&mut rest)?;
                self.process(cx)?;
                if self.take_plaintext(buf)? {
                    break;
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    fn process(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let processed = self.session.process_new_packets();
        if self.session.wants_write() {
            // An answer of the session itself, or the alert. Not waited for.
            let _ = self.poll_send(cx);
        }
        self.early = false;
        processed.map(|_| ()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// The stream as rustls wants it.
struct Wire<'a, 'b> {
    io: &'a mut Stream,
    cx: &'a mut Context<'b>,
}

fn at_once<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Wire<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        at_once(Pin::new(&mut *self.io).poll_read(self.cx, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl Write for Wire<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        at_once(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        at_once(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The place of a suite in [`crate::message::CIPHERS`].
fn place(suite: CipherSuite) -> Option<usize> {
    let suites = [
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    suites.iter().position(|one| *one == suite)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::rustls::{
        RootCertStore,
        crypto::ring::{self, ALL_CIPHER_SUITES},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    };

    use super::*;
    use crate::message::CIPHERS;

    #[test]
    fn every_suite_that_can_be_agreed_on_has_its_name() {
        assert_eq!(ALL_CIPHER_SUITES.len(), CIPHERS.len());
        for suite in ALL_CIPHER_SUITES {
            let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
            assert_eq!(place(suite.suite()).map(|at| CIPHERS[at]), Some(&*name));
        }
    }

    fn pem(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/");
        std::fs::read_to_string(format!("{folder}{name}")).unwrap()
    }

    /// Both ends of a session over a pipe that holds so many bytes.
    async fn pair(pipe: usize) -> (Stream, Stream) {
        let provider = || Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem("ca.pem").as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let chain = vec![CertificateDer::from_pem_slice(pem("mx.pem").as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(pem("mx.key").as_bytes()).unwrap();
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (near, far) = tokio::io::duplex(pipe);
        let (mut near, mut far) = (Stream::Memory(near), Stream::Memory(far));
        let name = ServerName::try_from("mx.example").unwrap();
        near.begin_client_tls(Arc::new(client), name).unwrap();
        far.begin_server_tls(Arc::new(server)).unwrap();
        let (one, other) = tokio::join!(
            poll_fn(|cx| near.poll_handshake(cx)),
            poll_fn(|cx| far.poll_handshake(cx))
        );
        one.unwrap();
        other.unwrap();
        assert!(near.secured().is_some() && near.secured() == far.secured());
        (near, far)
    }

    /// The look at a window before an end of data rests on this.
    #[tokio::test]
    async fn a_record_counts_as_sent_with_its_last_byte() {
        let (mut near, mut far) = pair(1000).await;
        assert!(far.is_quiet() && !near.has_unsent());
        let count = near.write(&[b'x'; 3000]).await.unwrap();
        assert_eq!(count, 3000, "it is encrypted");
        assert!(near.has_unsent());
        // What is in the pipe is less than a record: nobody can read of it.
        let mut cx = Context::from_waker(Waker::noop());
        let mut room = vec![0; 10_000];
        let mut buffer = ReadBuf::new(&mut room);
        assert!(Pin::new(&mut far).poll_read(&mut cx, &mut buffer).is_pending());
        assert!(buffer.filled().is_empty());
        // Nor is more taken while that is left.
        let Stream::Tls(tls) = &mut near else { panic!("plain") };
        assert!(tls.poll_write(&mut cx, &[io::IoSlice::new(b"y")]).is_pending());
        let mut read = Vec::new();
        let (sent, ()) = tokio::join!(near.flush(), async {
            while read.len() < 3000 {
                far.read_buf(&mut read).await.unwrap();
            }
        });
        sent.unwrap();
        assert!(read == [b'x'; 3000] && !near.has_unsent());
    }

    #[tokio::test]
    async fn large_amounts_come_whole_and_the_end_is_told_from_a_cut() {
        let (mut near, mut far) = pair(64 * 1024).await;
        let sent: Vec<u8> =
            (0..3_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
        let mut got = Vec::new();
        let writing = async {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(writing, far.read_to_end(&mut got));
        assert_eq!(read.unwrap(), sent.len());
        assert!(got == sent);
        let (mut near, mut far) = pair(64 * 1024).await;
        near.write_all(b"half a").await.unwrap();
        drop(near);
        let mut got = Vec::new();
        let cut = far.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((cut.kind(), &got[..]), (io::ErrorKind::UnexpectedEof, &b"half a"[..]));
        assert!(!far.is_quiet());
    }
}
