//! A sending instance: makes messages at a steady rate over one connection, and keeps what the
//! relay defers in a queue of its own, as every mail server does. Floor 4.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};
use wavegate_smtp::{
    Address, BodyForm, BodyShape, Client, ClientEvent, Mail, Rcpt, Reply, ReversePath,
    client::ClientError, stuff,
};

use super::{report::Ledger, setup::Instance, sink::TAG};

/// How long a deferred message rests.
const REST: Duration = Duration::from_millis(1000);
/// The longest wait for the relay.
const PATIENCE: Duration = Duration::from_secs(30);

/// One instance's sender.
pub(super) struct Sender {
    /// Of its account.
    pub(super) index: usize,
    pub(super) instance: &'static Instance,
    pub(super) relay: SocketAddr,
    /// Between two messages.
    pub(super) pause: Duration,
    /// No message is made from here on.
    pub(super) until: Instant,
    /// Nothing is tried again from here on.
    pub(super) give_up: Instant,
    pub(super) ledger: Arc<Ledger>,
}

impl Sender {
    /// Sends until all is delivered or the time is up.
    pub(super) async fn run(self) {
        let mut connection = None;
        let mut resting: VecDeque<(Instant, u64)> = VecDeque::new();
        let (mut made, mut next) = (0, Instant::now());
        loop {
            let retry = resting.front().map(|(due, _)| *due).filter(|due| *due < self.give_up);
            let number = match retry {
                Some(due) if due <= next || next >= self.until => {
                    sleep_until(due).await;
                    let Some((_, number)) = resting.pop_front() else { return };
                    number
                }
                _ if next < self.until => {
                    sleep_until(next).await;
                    next += self.pause;
                    made += 1;
                    self.ledger.book(self.index, |account| account.sent = made);
                    made - 1
                }
                _ => return,
            };
            let answer = self.transmit(&mut connection, number).await;
            let mut deferrals = 0;
            let (mut confirmed, mut spooled) = (0, 0);
            match answer {
                Ok(reply) if reply.is_positive() => {
                    confirmed = 1;
                    // The relay's own promise has the id that it is found by.
                    spooled = u64::from(reply.lines().any(|line| line.contains("queued as ")));
                }
                // A 5xx is a loss that the report will show.
                Ok(reply) if reply.is_permanent() => {}
                Ok(_) => {
                    deferrals = 1;
                    resting.push_back((Instant::now() + REST, number));
                }
                Err(_) => {
                    connection = None;
                    resting.push_back((Instant::now() + REST, number));
                }
            }
            self.ledger.book(self.index, |account| {
                account.confirmed += confirmed;
                account.spooled += spooled;
                account.deferrals += deferrals;
            });
        }
    }

    /// One try of one message.
    async fn transmit(
        &self,
        connection: &mut Option<Connection>,
        number: u64,
    ) -> io::Result<Reply> {
        let Instance { name, domain, .. } = self.instance;
        let attempt = async {
            let connection = match connection {
                Some(connection) => connection,
                None => connection.insert(Connection::open(self.relay, domain).await?),
            };
            let address = |text: String| Address::parse(&text).map_err(io::Error::other);
            let mail = Mail::new(ReversePath::Address(address(format!("news@{domain}"))?));
            let rcpt = Rcpt::new(address(format!("reader-{number}@example.com"))?);
            let body = format!(
                "From: <news@{domain}>\r\nTo: <reader-{number}@example.com>\r\nSubject: News \
                 {number}\r\n{TAG}{name}/{number}\r\n\r\nThis is message {number} of {name}.\r\n"
            );
            connection.send(&mail, &rcpt, body.as_bytes()).await
        };
        timeout(PATIENCE, attempt).await?
    }
}

/// A session with the relay.
struct Connection {
    stream: TcpStream,
    client: Client,
}

impl Connection {
    async fn open(relay: SocketAddr, hostname: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(relay).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, client: Client::new(hostname.into()) };
        match connection.event().await? {
            ClientEvent::Ready(_) => Ok(connection),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives one message to the relay; says its final answer.
    async fn send(&mut self, mail: &Mail, rcpt: &Rcpt, body: &[u8]) -> io::Result<Reply> {
        // What `transmit` writes: ASCII, whole lines, no dot in front of one.
        let shape = BodyShape {
            size: body.len() as u64,
            eight_bit: false,
            leading_dot: false,
            ends_with_crlf: true,
        };
        self.client.begin(mail, [rcpt], &shape).map_err(io::Error::other)?;
        loop {
            match self.event().await? {
                ClientEvent::SendBody(form) => {
                    // Commands, body and end in one write.
                    let mut bytes = self.client.output().to_vec();
                    self.client.written(bytes.len());
                    bytes.extend_from_slice(body);
                    if matches!(form, BodyForm::Data { .. }) {
                        bytes.extend_from_slice(stuff::END);
                    }
                    self.client.body_sent();
                    self.stream.write_all(&bytes).await?;
                }
                ClientEvent::Settled(settled) => return Ok(settled.for_recipient(0).clone()),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// The next thing that happens; writes and reads until one does.
    async fn event(&mut self) -> io::Result<ClientEvent> {
        let mut buffer = [0; 2048];
        loop {
            if let Some(event) = self.client.poll() {
                return Ok(event);
            }
            let output = self.client.output().len();
            self.stream.write_all(self.client.output()).await?;
            self.client.written(output);
            let heard = match self.stream.read(&mut buffer).await? {
                0 => self.client.eof().and(Err(ClientError::Closed)),
                count => self.client.receive(&buffer[..count]),
            };
            heard.map_err(io::Error::other)?;
        }
    }
}

fn unexpected(event: &ClientEvent) -> io::Error {
    io::Error::other(format!("the relay ended the session: {event:?}"))
}
