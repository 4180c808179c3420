//! A scripted gateway: speaks the protocol of the link over real UDP, and does to each message what its
//! script says. It lives in a runtime of its own, so that it can be killed without a word.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use quinn::{
    Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime,
    TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};
use tokio::{runtime::Runtime, sync::watch};
use tokio_rustls::rustls::{
    self, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use wavegate_link::{
    ALPN, Answer, Code, Control, Envelope, Hello, How, Incoming, Offer, Step,
    answer::{For, write_done},
    control::{ControlReader, Side},
};
use wavegate_smtp::{Enhanced, Reply};

/// What it does to one message.
pub enum Act {
    /// Answers when it is whole.
    Answer(Vec<Answer>),
    /// Answers at its envelope and reads no more.
    Early(Vec<Answer>),
    /// Answers when it is whole and the gate is open.
    Wait(Vec<Answer>),
    /// Closes the connection at its envelope.
    CloseAtOnce,
    /// Closes the connection when it is whole.
    Close,
    /// Says nothing.
    Nothing,
    /// Says this when it is whole, and no more until it is stopped.
    Say(Vec<u8>),
    /// Says this when it is whole, and no more.
    SayAll(Vec<u8>),
    /// Resets its stream when it is whole.
    Reset(Code),
}

/// A message that came.
#[derive(Clone)]
pub struct Got {
    pub envelope: Envelope,
    /// As much of it as was read.
    pub content: Vec<u8>,
    /// Its END came.
    pub is_whole: bool,
    /// The number of its connection.
    pub connection: usize,
}

type Script = Box<dyn FnMut(&Envelope, usize) -> Act + Send>;

/// What is known of a gateway from outside.
#[derive(Default)]
pub struct Book {
    pub got: Vec<Got>,
    /// What streams were stopped with.
    pub stopped: Vec<u64>,
    /// How many more connections are let in; all where it is none.
    pub room: Option<usize>,
    /// Those that were not.
    pub refused: usize,
    /// Why connections have ended.
    pub ended: Vec<quinn::ConnectionError>,
    connections: Vec<(Connection, Option<SendStream>)>,
    script: Option<Script>,
}

impl Book {
    fn lets_in(&mut self) -> bool {
        let Some(room) = &mut self.room else { return true };
        let lets_in = *room > 0;
        *room = room.saturating_sub(1);
        self.refused += usize::from(!lets_in);
        lets_in
    }
}

pub struct Settings {
    pub port: u16,
    pub incarnation: u8,
    pub streams: u32,
    pub offer: Offer,
}

impl Default for Settings {
    fn default() -> Self {
        let offer = Offer { eight_bit: true, smtputf8: true, dsn: true, size: 0, recipients: 100 };
        Self { port: 0, incarnation: 1, streams: 1000, offer }
    }
}

pub struct Gateway {
    pub address: SocketAddr,
    pub book: Arc<Mutex<Book>>,
    gate: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

pub fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/link").join(name)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server(streams: u32) -> ServerConfig {
    let chain = vec![CertificateDer::from_pem_file(pem("gateway.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem("gateway.key")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let clients = clients.build().unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider());
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = Arc::new(QuicServerConfig::try_from(config).unwrap());
    let mut transport = TransportConfig::default();
    // The control stream is one, too.
    transport.max_concurrent_bidi_streams((streams + 1).into());
    transport.stream_receive_window((128_u32 << 10).into());
    let mut server = ServerConfig::with_crypto(config);
    server.transport_config(Arc::new(transport));
    server
}

/// What it does where nothing else is said.
pub fn taken() -> Vec<Answer> {
    let reply = Reply::new(250, Some(Enhanced(2, 0, 0)), "taken").unwrap();
    vec![Answer::of_all(How::NextHop, reply)]
}

/// An answer for some of them.
pub fn some(how: How, recipients: &[u32], code: u16, status: Enhanced) -> Answer {
    let reply = Reply::new(code, Some(status), "so it is").unwrap();
    let answer = Answer::of_all(how, reply);
    Answer { recipients: For::These(recipients.to_vec()), ..answer }
}

impl Gateway {
    pub async fn start(settings: Settings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let book: Arc<Mutex<Book>> = Arc::default();
        let (gate, opened) = watch::channel(false);
        let Settings { port, incarnation, streams, offer } = settings;
        let name = "gateway.example".to_owned();
        let hello = Hello { name, incarnation: [incarnation; 16], offer: Some(offer) };
        let socket = bind((Ipv4Addr::LOCALHOST, port).into()).await;
        let entered = runtime.enter();
        let address = socket.local_addr().unwrap();
        let (config, io) = (EndpointConfig::default(), Arc::new(TokioRuntime));
        let endpoint = Endpoint::new(config, Some(server(streams)), socket, io).unwrap();
        drop(entered);
        let kept = Arc::clone(&book);
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if !kept.lock().unwrap().lets_in() {
                    incoming.refuse();
                    continue;
                }
                let Ok(connection) = incoming.await else { continue };
                let (book, hello, opened) = (Arc::clone(&kept), hello.clone(), opened.clone());
                tokio::spawn(serve(connection, book, hello, opened));
            }
        });
        Self { address, book, gate, runtime: Some(runtime) }
    }

    /// What it does to each message from now on; told the envelope and how many came before.
    pub fn script(&self, script: impl FnMut(&Envelope, usize) -> Act + Send + 'static) {
        self.book.lock().unwrap().script = Some(Box::new(script));
    }

    /// Lets so many more connections in.
    pub fn room(&self, room: usize) {
        self.book.lock().unwrap().room = Some(room);
    }

    /// Lets those go that wait.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    pub fn got(&self) -> Vec<Got> {
        self.book.lock().unwrap().got.clone()
    }

    /// Messages that came whole.
    pub fn whole(&self) -> usize {
        self.got().iter().filter(|got| got.is_whole).count()
    }

    pub fn connections(&self) -> usize {
        self.book.lock().unwrap().connections.len()
    }

    /// Says on all connections that it stops.
    pub async fn say_stopping(&self) {
        let mut stopping = Vec::new();
        Control::Stopping.write(&mut stopping);
        let mut controls: Vec<_> = {
            let mut book = self.book.lock().unwrap();
            book.connections.iter_mut().filter_map(|(_, control)| control.take()).collect()
        };
        for control in &mut controls {
            control.write_all(&stopping).await.unwrap();
        }
        let mut book = self.book.lock().unwrap();
        for ((_, slot), control) in book.connections.iter_mut().zip(controls) {
            *slot = Some(control);
        }
    }

    /// Gone in an instant, without a word.
    pub fn kill(mut self) -> u16 {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.address.port()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Who had the port before may be ending.
async fn bind(address: SocketAddr) -> std::net::UdpSocket {
    for _ in 0..500 {
        match std::net::UdpSocket::bind(address) {
            Ok(socket) => return socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("{address} does not come free")
}

async fn serve(
    connection: Connection,
    book: Arc<Mutex<Book>>,
    hello: Hello,
    opened: watch::Receiver<bool>,
) {
    let Ok((mut send, mut recv)) = connection.accept_bi().await else { return };
    let mut out = Vec::new();
    Control::Hello(hello).write(&mut out);
    send.write_all(&out).await.unwrap();
    let number = {
        let mut book = book.lock().unwrap();
        book.connections.push((connection.clone(), Some(send)));
        book.connections.len() - 1
    };
    let control = Arc::clone(&book);
    tokio::spawn(async move {
        let mut reader = ControlReader::new(Side::Edge);
        while let Ok(Some(chunk)) = recv.read_chunk(1024, true).await {
            let mut rest = &chunk.bytes[..];
            while !rest.is_empty() {
                let (used, word) = reader.read(rest).unwrap();
                rest = &rest[used..];
                if let Some(Control::Ping(token)) = word {
                    let mut pong = Vec::new();
                    Control::Pong(token).write(&mut pong);
                    let send = control.lock().unwrap().connections[number].1.take();
                    let mut send = send.unwrap();
                    send.write_all(&pong).await.unwrap();
                    control.lock().unwrap().connections[number].1 = Some(send);
                }
            }
        }
    });
    loop {
        match connection.accept_bi().await {
            Ok((send, recv)) => {
                let stream = Stream {
                    connection: connection.clone(),
                    number,
                    send,
                    recv,
                    book: Arc::clone(&book),
                    opened: opened.clone(),
                };
                tokio::spawn(stream.serve());
            }
            Err(error) => return book.lock().unwrap().ended.push(error),
        }
    }
}

struct Stream {
    connection: Connection,
    number: usize,
    send: SendStream,
    recv: RecvStream,
    book: Arc<Mutex<Book>>,
    opened: watch::Receiver<bool>,
}

impl Stream {
    async fn serve(mut self) {
        let mut incoming = Incoming::new(1000, 1 << 30);
        let mut place = None;
        let mut act = Act::Nothing;
        while let Ok(Some(chunk)) = self.recv.read_chunk(64 << 10, true).await {
            let mut rest = &chunk.bytes[..];
            loop {
                let (used, step) = incoming.step(rest).unwrap();
                match step {
                    Step::NeedInput => break,
                    Step::Envelope(envelope) => {
                        let (at, what) = self.begin(*envelope);
                        (place, act) = (Some(at), what);
                        match &act {
                            Act::CloseAtOnce => return self.close(),
                            Act::Early(answers) => {
                                self.answer(&answers.clone()).await;
                                return;
                            }
                            _ => {}
                        }
                    }
                    Step::Data(bytes) => {
                        let mut book = self.book.lock().unwrap();
                        book.got[place.unwrap()].content.extend_from_slice(bytes);
                    }
                    Step::End => {
                        self.book.lock().unwrap().got[place.unwrap()].is_whole = true;
                        return self.end(act).await;
                    }
                }
                rest = &rest[used..];
            }
        }
    }

    fn begin(&self, envelope: Envelope) -> (usize, Act) {
        let mut book = self.book.lock().unwrap();
        let before = book.got.len();
        let act = match &mut book.script {
            Some(script) => script(&envelope, before),
            None => Act::Answer(taken()),
        };
        let connection = self.number;
        book.got.push(Got { envelope, content: Vec::new(), is_whole: false, connection });
        (before, act)
    }

    async fn end(mut self, act: Act) {
        match act {
            Act::Answer(answers) => self.answer(&answers).await,
            Act::Wait(answers) => {
                self.opened.wait_for(|opened| *opened).await.unwrap();
                self.answer(&answers).await;
            }
            Act::Close => self.close(),
            Act::Say(bytes) => {
                let _ = self.send.write_all(&bytes).await;
                let stopped = self.send.stopped().await.ok().flatten();
                self.book.lock().unwrap().stopped.extend(stopped.map(u64::from));
            }
            Act::SayAll(bytes) => {
                let _ = self.send.write_all(&bytes).await;
                let _ = self.send.finish();
                let _ = self.send.stopped().await;
            }
            Act::Reset(code) => {
                let _ = self.send.reset(VarInt::from_u32(code.number()));
            }
            Act::Nothing | Act::Early(_) | Act::CloseAtOnce => {
                self.connection.closed().await;
            }
        }
    }

    fn close(&self) {
        self.connection.close(VarInt::from_u32(Code::Stopping.number()), b"");
    }

    async fn answer(&mut self, answers: &[Answer]) {
        let mut out = Vec::new();
        answers.iter().for_each(|answer| answer.write(&mut out));
        write_done(&mut out);
        let _ = self.send.write_all(&out).await;
        let _ = self.send.finish();
        let _ = self.send.stopped().await;
    }
}
