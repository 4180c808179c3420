//! A sink that plays an upstream: takes every message and books it. Floor 4.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use wavegate_smtp::{
    AuthOffer, Enhanced, Extensions, Limits, Reply, Server, ServerConfig, StartTls, Step,
};

use super::report::{Arrival, Ledger, Sink};
use crate::world::WallClock;

/// The header by which a message is known again: `NAME/NUMBER`.
pub(super) const TAG: &str = "X-Demo-Message: ";
/// Bytes of a message that are kept: its header is in them.
const KEPT: usize = 4096;
/// Bytes read at once.
const READ: usize = 16 * 1024;

static TAKEN: Reply = Reply::fixed(250, Enhanced(2, 0, 0), "taken");

/// Serves for ever.
pub(super) async fn serve(
    listener: TcpListener,
    sink: Sink,
    ledger: Arc<Ledger>,
    clock: Arc<dyn WallClock>,
) {
    let hostname = match sink {
        Sink::Legacy => "legacy.example",
        Sink::Cloud => "cloud.example",
    };
    let limits = Limits::default();
    let config = Arc::new(ServerConfig {
        hostname: hostname.to_owned(),
        extensions: Extensions::full(limits.message_size),
        limits,
        may_relay: true,
        starttls: StartTls::Unavailable,
        mark: "",
        auth: AuthOffer::Unavailable,
        auth_required: false,
    });
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = sessions.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let book = Book { sink, ledger: Arc::clone(&ledger), clock: Arc::clone(&clock) };
                sessions.spawn(session(stream, Server::new(Arc::clone(&config)), book));
            }
        }
    }
}

struct Book {
    sink: Sink,
    ledger: Arc<Ledger>,
    clock: Arc<dyn WallClock>,
}

impl Book {
    /// A message is here whole.
    fn arrived(&self, message: &[u8]) {
        let at = self.clock.now();
        if let Some((name, number)) = tag(message) {
            self.ledger.arrived(name, Arrival { number, sink: self.sink, at });
        }
    }
}

/// Instance and number of a message.
fn tag(message: &[u8]) -> Option<(&str, u64)> {
    let start = memchr::memmem::find(message, TAG.as_bytes())? + TAG.len();
    let rest = message.get(start..)?;
    let line = rest.get(..memchr::memchr(b'\r', rest)?)?;
    let (name, number) = std::str::from_utf8(line).ok()?.split_once('/')?;
    Some((name, number.parse().ok()?))
}

async fn session(mut stream: TcpStream, mut server: Server, book: Book) -> io::Result<()> {
    stream.set_nodelay(true)?;
    server.greet();
    let mut buffer = vec![0; READ];
    let mut message = Vec::new();
    loop {
        let output = server.output().len();
        stream.write_all(server.output()).await?;
        server.written(output);
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..count];
        loop {
            let (used, step) = server.step(rest);
            rest = &rest[used..];
            match step {
                Step::NeedInput => break,
                Step::Helo(_) | Step::Mail(_) | Step::Rcpt(_) => server.accept(),
                Step::Data => {
                    message.clear();
                    server.accept();
                }
                Step::Body(bytes) => {
                    let room = KEPT - message.len();
                    message.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Step::End(_) => {
                    book.arrived(&message);
                    server.reply(&TAKEN);
                }
                Step::Dropped(_) | Step::Reset => message.clear(),
                Step::StartTls | Step::Auth(_) | Step::Xclient(_) => {
                    unreachable!("it is not offered")
                }
                Step::Close(_) => return stream.write_all(server.output()).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_by_its_tag() {
        let message = format!("Received: from x\r\n{TAG}acme-prod-1/17\r\n\r\nbody\r\n");
        assert_eq!(tag(message.as_bytes()), Some(("acme-prod-1", 17)));
        assert_eq!(tag(b"A: b\r\n\r\n"), None);
        assert_eq!(tag(format!("{TAG}acme-prod-1/x\r\n").as_bytes()), None);
        assert_eq!(tag(format!("{TAG}acme-prod-1/1").as_bytes()), None);
    }
}
