//! A small edge: it says on a link what a test wants, right or wrong.

use std::{net::SocketAddr, path::Path, sync::Arc};

use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::{
        self, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
        version::TLS13,
    },
};
use wavegate_link::{
    ALPN, Answering, Answers, Client, Code, Control, EnvelopeRef, Hello,
    control::{ControlReader, Side},
    message::{data, write_end},
};
use wavegate_smtp::{Address, Extensions, Mail, Rcpt, ReversePath};

fn file(name: &str) -> std::path::PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls")).join(name)
}

fn chain(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file(name)).unwrap().map(Result::unwrap).collect()
}

fn key(name: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(file(name)).unwrap()
}

fn roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    chain("ca.pem").into_iter().for_each(|one| roots.add(one).unwrap());
    Arc::new(roots)
}

/// What a gateway begins handshakes with: whoever the tests' authority has vouched for is let in.
pub(crate) fn server() -> Arc<QuicServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(), Arc::clone(&provider));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain("mx.pem"), key("mx.key"))
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config.try_into().unwrap())
}

fn client(certificate: &str, alpn: &[u8]) -> ClientConfig {
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots())
            .with_client_auth_cert(
                chain(&format!("{certificate}.pem")),
                key(&format!("{certificate}.key")),
            )
            .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

/// A message as an edge has it.
#[derive(Clone)]
pub(crate) struct Letter {
    pub(crate) id: [u8; 16],
    pub(crate) to: Vec<String>,
    pub(crate) content: Vec<u8>,
    pub(crate) instance: String,
}

impl Letter {
    /// The one of this number.
    pub(crate) fn new(number: u64, to: &[&str]) -> Self {
        let content = format!("Subject: a\r\n\r\nname={number}\r\n").into_bytes();
        let to = to.iter().map(|one| (*one).to_owned()).collect();
        let id = format!("{number:016}").into_bytes().try_into().unwrap();
        Self { id, to, content, instance: String::new() }
    }

    pub(crate) fn envelope(&self) -> Vec<u8> {
        let client = Client {
            address: "10.0.2.1".parse().unwrap(),
            port: 4711,
            name: String::new(),
            helo: "mta.globex.example".into(),
            extended: true,
            secured: Some((0, false)),
            user: String::new(),
            destination: None,
        };
        let mail = Mail::new(ReversePath::Address(Address::parse("a@globex.example").unwrap()));
        let to: Vec<Rcpt> =
            self.to.iter().map(|one| Rcpt::new(Address::parse(one).unwrap())).collect();
        let mut out = Vec::new();
        let envelope = EnvelopeRef {
            id: self.id,
            received: 1,
            size: self.content.len() as u64,
            instance: &self.instance,
            client: &client,
            mail: &mail,
            recipients: &to,
        };
        envelope.write(&Extensions::full(0), &mut out).unwrap();
        out
    }

    /// All but its end.
    pub(crate) fn beginning(&self) -> Vec<u8> {
        let mut out = self.envelope();
        if !self.content.is_empty() {
            out.extend_from_slice(&data(u32::try_from(self.content.len()).unwrap()));
            out.extend_from_slice(&self.content);
        }
        out
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.beginning();
        write_end(self.content.len() as u64, &mut out);
        out
    }
}

/// A message whose answers have not come.
pub(crate) struct Sent {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    count: u32,
}

impl Sent {
    /// The answers, or what the stream was reset with.
    pub(crate) async fn answers(&mut self) -> Result<Answers, Option<Code>> {
        let mut answering = Answering::new(self.count);
        loop {
            match self.recv.read_chunk(4096, true).await {
                Ok(Some(chunk)) => {
                    if let Some(answers) = answering.receive(&chunk.bytes).unwrap() {
                        assert!(self.recv.read_chunk(1, true).await.unwrap().is_none());
                        return Ok(answers);
                    }
                }
                Ok(None) => panic!("no DONE"),
                Err(ReadError::Reset(code)) => return Err(of(code)),
                Err(_) => return Err(None),
            }
        }
    }
}

fn of(code: VarInt) -> Option<Code> {
    Code::of(code.into_inner())
}

/// An edge with its connection.
pub(crate) struct Edge {
    pub(crate) quic: Connection,
    pub(crate) hello: Hello,
    control: (SendStream, RecvStream),
    reader: ControlReader,
    read: Vec<u8>,
    endpoint: Endpoint,
}

/// A connection that has said nothing yet.
pub(crate) async fn connect(
    address: SocketAddr,
    certificate: &str,
    alpn: &[u8],
) -> Result<(Endpoint, Connection), ConnectionError> {
    connect_from([127, 0, 0, 1], address, certificate, alpn).await
}

/// The same from another address.
pub(crate) async fn connect_from(
    client_address: [u8; 4],
    address: SocketAddr,
    certificate: &str,
    alpn: &[u8],
) -> Result<(Endpoint, Connection), ConnectionError> {
    let mut endpoint = Endpoint::client((client_address, 0).into()).unwrap();
    endpoint.set_default_client_config(client(certificate, alpn));
    let quic = endpoint.connect(address, "mx.example").unwrap().await?;
    Ok((endpoint, quic))
}

/// The code that a connection was closed with.
pub(crate) async fn closed(quic: &Connection) -> Option<Code> {
    match quic.closed().await {
        ConnectionError::ApplicationClosed(close) => of(close.error_code),
        _ => None,
    }
}

impl Edge {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let (endpoint, quic) = connect(address, "client", ALPN).await.unwrap();
        let (mut send, recv) = quic.open_bi().await.unwrap();
        let mut bytes = Vec::new();
        let (name, incarnation) = ("edge-1.example".to_owned(), [1; 16]);
        Control::Hello(Hello { name, incarnation, offer: None }).write(&mut bytes);
        send.write_all(&bytes).await.unwrap();
        let hello = Hello { name: String::new(), incarnation: [0; 16], offer: None };
        let reader = ControlReader::new(Side::Gateway);
        let control = (send, recv);
        let mut edge = Self { quic, hello, control, reader, read: Vec::new(), endpoint };
        let Some(Control::Hello(hello)) = edge.hear().await else { panic!("no HELLO") };
        edge.hello = hello;
        edge
    }

    /// The next word on the control stream; none when there is none any more.
    pub(crate) async fn hear(&mut self) -> Option<Control> {
        loop {
            let (used, word) = self.reader.read(&self.read).unwrap();
            self.read.drain(..used);
            if word.is_some() {
                return word;
            }
            let chunk = self.control.1.read_chunk(1024, true).await.ok()??;
            self.read.extend_from_slice(&chunk.bytes);
        }
    }

    pub(crate) async fn say(&mut self, word: &Control) {
        let mut bytes = Vec::new();
        word.write(&mut bytes);
        self.control.0.write_all(&bytes).await.unwrap();
    }

    /// Opens a stream and writes these bytes.
    pub(crate) async fn begin(&self, bytes: &[u8], count: usize) -> Sent {
        let (mut send, recv) = self.quic.open_bi().await.unwrap();
        // It may have been stopped already.
        let _ = send.write_all(bytes).await;
        Sent { send, recv, count: u32::try_from(count).unwrap() }
    }

    /// Sends a message whole.
    pub(crate) async fn post(&self, letter: &Letter) -> Sent {
        let mut sent = self.begin(&letter.bytes(), letter.to.len()).await;
        let _ = sent.send.finish();
        sent
    }

    /// Sends a message, and waits for its answers.
    pub(crate) async fn send(&self, letter: &Letter) -> Answers {
        self.post(letter).await.answers().await.unwrap()
    }

    /// The process is gone, without a word.
    pub(crate) async fn cut(self) {
        self.quic.close(VarInt::from_u32(0), b"");
        self.endpoint.wait_idle().await;
    }
}
