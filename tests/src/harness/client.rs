//! An SMTP client that sends the bytes it is told, in the pieces it is told.
//!
//! Owns the reading of replies and the one thing that must hold of all of them: lines that end in
//! CRLF, one code, no control characters. Floor: none.

use std::io;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, Stream};

use super::{PATIENCE, until};

/// Longest reply that is waited for.
const MAX_REPLY: usize = 64 * 1024;

/// A connection to the relay.
pub struct Client {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects; reads nothing.
    pub fn connect(to: SocketAddr) -> Self {
        Self::of(TcpStream::connect(to).unwrap())
    }

    /// Connects from an address of choice.
    pub fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(from, 0)).unwrap();
            socket.connect(to).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        Self::of(stream)
    }

    /// Connects and takes the greeting.
    pub fn greeted(to: SocketAddr) -> Self {
        let mut client = Self::connect(to);
        client.expect_reply("220 edge-1.example.net ESMTP");
        client
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, tls: None, buffer: Vec::new() }
    }

    /// Takes the TLS handshake with a server that should be of this name.
    pub fn begin_tls(&mut self, config: &Arc<ClientConfig>, name: &str) -> io::Result<()> {
        assert!(self.buffer.is_empty(), "something came in the clear: {:?}", self.left());
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut self.stream)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Asks for TLS and takes the handshake.
    pub fn start_tls(&mut self, config: &Arc<ClientConfig>, name: &str) -> io::Result<()> {
        self.expect("EHLO client.example", "250");
        self.expect("STARTTLS", "220 2.0.0");
        self.begin_tls(config, name)
    }

    /// The TLS session.
    pub fn tls(&mut self) -> &mut ClientConnection {
        self.tls.as_mut().unwrap()
    }

    /// Closes the connection under TLS, without a word of that.
    pub fn cut(self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.write(bytes.as_ref());
        sent.unwrap();
    }

    /// Sends bytes to a server that may have closed; whether all went out.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.write(bytes).is_ok()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(tls) => {
                let mut stream = Stream::new(&mut **tls, &mut self.stream);
                stream.write_all(bytes).and_then(|()| stream.flush())
            }
        }
    }

    /// Sends one message, its content with the end of data; the final reply, or nothing when the
    /// connection ended before it.
    pub fn try_message(&mut self, content: &str) -> Option<String> {
        let mut say = |line: &str| {
            let sent = self.try_send(line.as_bytes());
            sent.then(|| self.try_reply()).flatten()
        };
        say("MAIL FROM:<a@example.com>\r\n")?;
        say("RCPT TO:<b@example.org>\r\n")?;
        say("DATA\r\n")?;
        say(&format!("{content}.\r\n"))
    }

    /// Sends the bytes in pieces that end at these places; the server has read each piece before
    /// the next one goes out.
    pub fn send_split(&mut self, bytes: &[u8], places: impl IntoIterator<Item = usize>) {
        let mut from = 0;
        for place in places.into_iter().chain([bytes.len()]) {
            self.send(&bytes[from..place]);
            self.drained();
            from = place;
        }
    }

    /// Waits until the server has read all that was sent.
    pub fn drained(&self) {
        let server = self.stream.peer_addr().unwrap();
        let own = self.stream.local_addr().unwrap();
        until("the relay reads", || {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let entry = format!("{:04X} ", server.port());
            let peer = format!(":{:04X} ", own.port());
            // `sl local_address rem_address st tx_queue:rx_queue …`; one that has gone reads no more.
            let waiting = |line: &str| {
                let mut fields = line.split_whitespace().skip(1);
                let (local, remote) = (fields.next()?, fields.next()?);
                let ours = format!("{local} ").ends_with(&format!(":{entry}"))
                    && format!("{remote} ").ends_with(&peer);
                let (_, unread) = fields.nth(1)?.split_once(':')?;
                ours.then(|| u64::from_str_radix(unread, 16).ok()).flatten()
            };
            // Ours too: what has not arrived there is still in our own queue, but on loopback the
            // send itself puts it into the other's.
            (sockets.lines().find_map(waiting).unwrap_or(0) == 0).then_some(())
        });
    }

    /// The next reply: its lines without line ends, joined by `\n`.
    ///
    /// # Panics
    /// If there is none, or it is malformed.
    pub fn reply(&mut self) -> String {
        match self.try_reply() {
            Some(reply) => reply,
            None => panic!("closed instead of a reply; left: {:?}", self.left()),
        }
    }

    /// The next reply; none when the connection ends before one.
    pub fn try_reply(&mut self) -> Option<String> {
        loop {
            if let Some((reply, taken)) = smtp_reply(&self.buffer) {
                self.buffer.drain(..taken);
                return Some(reply);
            }
            assert!(self.buffer.len() < MAX_REPLY, "endless reply: {:?}", self.left());
            if !self.fill() {
                return None;
            }
        }
    }

    /// Takes the next reply, which must begin so.
    pub fn expect_reply(&mut self, begins: &str) -> String {
        let reply = self.reply();
        assert!(reply.starts_with(begins), "expected {begins:?}, got {reply:?}");
        reply
    }

    /// Sends a command line and gives the reply.
    pub fn command(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n"));
        self.reply()
    }

    /// Sends a command line; the reply must begin so.
    pub fn expect(&mut self, line: &str, begins: &str) -> String {
        let reply = self.command(line);
        assert!(reply.starts_with(begins), "{line:?}: expected {begins:?}, got {reply:?}");
        reply
    }

    /// Says EHLO; the keywords offered, each with its parameters.
    pub fn ehlo(&mut self) -> Vec<String> {
        let reply = self.expect("EHLO client.example", "250");
        reply.lines().skip(1).map(|line| line[4..].to_owned()).collect()
    }

    /// MAIL and RCPT, both accepted.
    pub fn envelope(&mut self, from: &str, to: &str) {
        self.expect(&format!("MAIL FROM:<{from}>"), "250 2.1.0");
        self.expect(&format!("RCPT TO:<{to}>"), "250 2.1.5");
    }

    /// A whole transaction by DATA from the usual sender: `wire` as it stands, the end of data
    /// included. Gives the final reply.
    pub fn transact(&mut self, wire: &[u8]) -> String {
        self.begin_data();
        self.send(wire);
        self.reply()
    }

    /// Up to the 354, from the usual sender to the usual recipient.
    pub fn begin_data(&mut self) {
        self.envelope("news@mkt.acme.example", "customer@example.org");
        self.expect("DATA", "354");
    }

    /// A transaction with a small good message; gives the final reply.
    pub fn small(&mut self) -> String {
        self.transact(b"Subject: small\r\n\r\nhello\r\n.\r\n")
    }

    /// The server closes now, and says nothing more.
    pub fn expect_closed(&mut self) {
        while self.fill() {}
        assert!(self.buffer.is_empty(), "more came before the end: {:?}", self.left());
    }

    /// Sends nothing more.
    pub fn shut(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Whether a reply has begun to come within `time`.
    pub fn has_reply_within(&mut self, time: std::time::Duration) -> bool {
        if !self.buffer.is_empty() {
            return true;
        }
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut one = [0];
        let came = matches!(self.stream.peek(&mut one), Ok(n) if n > 0);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        came
    }

    fn left(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Reads once; false at the end of the connection.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let read = match &mut self.tls {
            None => self.stream.read(&mut chunk),
            Some(tls) => Stream::new(&mut **tls, &mut self.stream).read(&mut chunk),
        };
        match read {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                true
            }
            // The server closed with bytes of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => false,
            // It closed the TLS session with an alert.
            Err(error) if error.kind() == ErrorKind::InvalidData => false,
            Err(error) => panic!("no reply: {error}; so far {:?}", self.left()),
        }
    }
}

/// One whole reply at the front of `bytes`, and its length; none while it is not whole.
///
/// # Panics
/// If it has not the form of a reply (RFC 5321 4.2).
pub fn smtp_reply(bytes: &[u8]) -> Option<(String, usize)> {
    let mut lines: Vec<String> = Vec::new();
    let mut at = 0;
    loop {
        let end = at + bytes[at..].iter().position(|&byte| byte == b'\n')?;
        let line = bytes[at..end].strip_suffix(b"\r");
        let line = line.unwrap_or_else(|| panic!("a reply line without CR: {:?}", &bytes[at..end]));
        let text = std::str::from_utf8(line).expect("a reply is UTF-8").to_owned();
        // RFC 5321 4.2 allows the tab.
        let control = |c: char| c.is_control() && c != '\t';
        assert!(!text.chars().any(control), "control characters in a reply: {text:?}");
        let code = text.get(..3).filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()));
        assert!(code.is_some(), "a reply line without a code: {text:?}");
        let same = lines.first().is_none_or(|first| first[..3] == text[..3]);
        assert!(same, "two codes in one reply: {lines:?} and {text:?}");
        let last = match text.as_bytes().get(3) {
            Some(b'-') => false,
            None | Some(b' ') => true,
            _ => panic!("a malformed reply line: {text:?}"),
        };
        lines.push(text);
        at = end + 1;
        if last {
            return Some((lines.join("\n"), at));
        }
    }
}
