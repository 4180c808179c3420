//! The edge's side of a link in the raw: quinn, and the frames that a test gives.
//!
//! Owns connections, and the certificates of `relay/tests/link`; what is said on a stream is the
//! test's. Its runtime is a thread of its own, so that tests may wait for other things meanwhile.
//! Floor: none. Start reading at [`Edge`].

use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream,
    TransportConfig, VarInt,
};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, RootCertStore};
use wavegate_link::control::{ControlReader, Side};
use wavegate_link::{
    ALPN, Answering, Answers, Client, Control, EnvelopeRef, Hello, Offer, message::data,
    message::write_end,
};
use wavegate_smtp::{Address, Extensions, Mail, Rcpt, ReversePath};

use super::PATIENCE;

/// What the gateway of a test is called in its certificate.
const GATEWAY: &str = "gateway.example";

/// The certificates of the link, for [`super::Relay::start_with`].
pub fn link_files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../relay/tests/link");
    let files = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
    let named = files.filter(|path| path.extension().is_some_and(|e| e == "pem" || e == "key"));
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    named.map(|path| (name(&path), fs::read(&path).unwrap())).collect()
}

/// Runs something on the runtime of all edges; fails the test if it takes too long.
pub fn on_link<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = runtime().block_on(async { timeout(PATIENCE, future).await });
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for: {what}"))
}

/// Goes on with something by itself.
pub fn aside<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    runtime().spawn(future)
}

fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    })
}

/// How an edge comes.
#[derive(Clone, Debug)]
pub struct Coming {
    /// Its certificate's name in `relay/tests/link`; none: it shows none.
    pub certificate: Option<&'static str>,
    /// The protocols that it speaks.
    pub alpn: Vec<Vec<u8>>,
    /// Bytes of a stream that it lets come before it has read them.
    pub window: u32,
    /// How often it shows that it is there.
    pub keep_alive: Option<Duration>,
}

impl Default for Coming {
    fn default() -> Self {
        let alpn = vec![ALPN.to_vec()];
        let keep_alive = Some(Duration::from_millis(500));
        Self { certificate: Some("edge"), alpn, window: 1 << 20, keep_alive }
    }
}

impl Coming {
    fn config(&self) -> ClientConfig {
        let files = link_files();
        let find = |name: &str| &files.iter().find(|(file, _)| file == name).unwrap().1;
        let chain = |name: &str| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(find(name)).map(Result::unwrap).collect()
        };
        let mut roots = RootCertStore::empty();
        chain("ca.pem").into_iter().for_each(|one| roots.add(one).unwrap());
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match self.certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_slice(find(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain(&format!("{name}.pem")), key).unwrap()
            }
        };
        config.alpn_protocols.clone_from(&self.alpn);
        let mut transport = TransportConfig::default();
        transport.stream_receive_window(VarInt::from_u32(self.window));
        transport.keep_alive_interval(self.keep_alive);
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        config.transport_config(Arc::new(transport));
        config
    }

    /// Connects, and says nothing. A side that refuses does so once it seems to be done.
    ///
    /// # Errors
    /// If it is refused at once.
    pub fn connect(&self, to: SocketAddr) -> Result<Connection, ConnectionError> {
        let _context = runtime().enter();
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connecting = endpoint.connect_with(self.config(), to, GATEWAY).unwrap();
        on_link("a handshake", connecting)
    }

    /// How it is refused.
    pub fn refused(&self, to: SocketAddr) -> ConnectionError {
        match self.connect(to) {
            Ok(quic) => on_link("a refusal", quic.closed()),
            Err(error) => error,
        }
    }

    /// The first datagrams of so many handshakes that nobody ever goes on with.
    pub fn first_datagrams(&self, count: usize) -> Vec<Vec<u8>> {
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        nobody.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = nobody.local_addr().unwrap();
        let _context = runtime().enter();
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let config = self.config();
        let one = |_| {
            let begun = endpoint.connect_with(config.clone(), to, GATEWAY).unwrap();
            let mut datagram = vec![0; 2048];
            let length = nobody.recv(&mut datagram).unwrap();
            datagram.truncate(length);
            // Given up it would say so, which is another datagram.
            (begun, datagram)
        };
        let begun: Vec<_> = (0..count).map(one).collect();
        begun.into_iter().map(|(_, datagram)| datagram).collect()
    }

    /// An edge whose greeting was answered.
    pub fn greeted(&self, to: SocketAddr) -> Edge {
        let quic = self.connect(to).unwrap();
        let (mut send, mut recv) = on_link("a control stream", quic.open_bi()).unwrap();
        let hello = Hello { name: "edge.example".into(), incarnation: [7; 16], offer: None };
        let mut out = Vec::new();
        Control::Hello(hello).write(&mut out);
        on_link("HELLO", send.write_all(&out)).unwrap();
        let mut reader = ControlReader::new(Side::Gateway);
        let mut rest = Vec::new();
        loop {
            let (used, word) = reader.read(&rest).unwrap();
            rest.drain(..used);
            if let Some(word) = word {
                let Control::Hello(Hello { offer: Some(offer), .. }) = word else {
                    panic!("no HELLO of a gateway: {word:?}")
                };
                return Edge { quic, control: (send, recv), offer };
            }
            let chunk = on_link("HELLO", recv.read_chunk(4096, true)).unwrap();
            rest.extend_from_slice(&chunk.unwrap().bytes);
        }
    }
}

/// A connection whose sides have greeted.
pub struct Edge {
    /// The connection.
    pub quic: Connection,
    /// The control stream.
    pub control: (SendStream, RecvStream),
    /// What the gateway takes.
    pub offer: Offer,
}

/// What becomes of a message's stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its recipients are answered.
    Answered(Box<Answers>),
    /// It was reset with this code.
    Reset(u64),
    /// It ended, and not all were answered.
    Ended,
    /// The connection is closed, with this code of the protocol if it was one.
    Closed(Option<u64>),
}

impl Outcome {
    /// The only reply's code; none if there was no answer.
    pub fn reply(&self) -> Option<u16> {
        match self {
            Self::Answered(answers) => Some(answers.settled()?.reply.code()),
            _ => None,
        }
    }
}

/// The code of the protocol that a connection was closed with.
pub fn closed_with(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

/// The alert of TLS that a handshake was refused with (RFC 9001 4.8).
pub fn alert(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code).checked_sub(0x100),
        _ => None,
    }
}

impl Edge {
    /// Opens a stream and writes this; the edge's side ends there if it is to.
    ///
    /// # Errors
    /// If the connection is closed.
    pub async fn begin(
        &self,
        wire: &[u8],
        finish: bool,
    ) -> Result<(SendStream, RecvStream), ConnectionError> {
        let (mut send, recv) = self.quic.open_bi().await?;
        // A gateway that has seen enough stops it.
        let _stopped = send.write_all(wire).await;
        if finish {
            let _stopped = send.finish();
        }
        Ok((send, recv))
    }

    /// Says this on a stream of its own, and waits for what becomes of it.
    pub fn say(&self, wire: &[u8], finish: bool) -> Outcome {
        on_link("the end of a stream", async {
            match self.begin(wire, finish).await {
                Ok((_send, recv)) => outcome(recv).await,
                Err(error) => Outcome::Closed(closed_with(&error)),
            }
        })
    }

    /// Sends a small good message, which must be taken.
    pub fn small(&self) {
        let outcome = self.say(&Letter::default().wire(), true);
        assert_eq!(outcome.reply(), Some(250), "{outcome:?}");
    }
}

/// Waits for what becomes of a stream.
pub async fn outcome(mut recv: RecvStream) -> Outcome {
    let mut answering = Answering::new(1);
    loop {
        match recv.read_chunk(64 << 10, true).await {
            Ok(Some(chunk)) => {
                if let Some(answers) = answering.receive(&chunk.bytes).unwrap() {
                    return Outcome::Answered(Box::new(answers));
                }
            }
            Ok(None) => return Outcome::Ended,
            Err(ReadError::Reset(code)) => return Outcome::Reset(code.into_inner()),
            Err(ReadError::ConnectionLost(error)) => return Outcome::Closed(closed_with(&error)),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A message to one recipient.
pub struct Letter {
    /// Its id; another one for each letter.
    pub id: [u8; 16],
    /// Bytes of its content that are announced.
    pub size: u64,
    /// Its content.
    pub content: Vec<u8>,
    /// The client's TLS.
    pub secured: Option<(u8, bool)>,
}

impl Default for Letter {
    fn default() -> Self {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = format!("{number:016}").into_bytes().try_into().unwrap();
        let content = b"Subject: small\r\n\r\nhello\r\n".to_vec();
        Self { id, size: content.len() as u64, content, secured: None }
    }
}

impl Letter {
    /// Its ENVELOPE.
    pub fn envelope(&self) -> Vec<u8> {
        let client = Client {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 4711,
            name: "client.example".into(),
            helo: "client.example".into(),
            extended: true,
            secured: self.secured,
            user: String::new(),
            destination: None,
        };
        let sender = ReversePath::Address(Address::parse("a@example.com").unwrap());
        let recipients = [Rcpt::new(Address::parse("b@example.org").unwrap())];
        let envelope = EnvelopeRef {
            id: self.id,
            received: super::now_ms(),
            size: self.size,
            instance: "",
            client: &client,
            mail: &Mail::new(sender),
            recipients: &recipients,
        };
        let mut out = Vec::new();
        envelope.write(&Extensions::full(0), &mut out).unwrap();
        out
    }

    /// All of it, END included.
    pub fn wire(&self) -> Vec<u8> {
        let mut out = self.envelope();
        out.extend(frame_of(&self.content));
        write_end(self.size, &mut out);
        out
    }
}

/// A DATA frame.
pub fn frame_of(content: &[u8]) -> Vec<u8> {
    [&data(u32::try_from(content.len()).unwrap())[..], content].concat()
}
