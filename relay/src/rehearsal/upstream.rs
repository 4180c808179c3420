//! An upstream that is played: a real SMTP dialogue over the network in memory, a bound on the
//! messages a second, and a pause before each final reply. It takes everything. Floor 4.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::Instant,
};
use wavegate_smtp::{
    AuthOffer, Enhanced, Extensions, Limits, Reply, Server, ServerConfig, StartTls, Step,
};

use super::{Strength, ledger::Ledger, sender::TAG};
use crate::{
    config::{Target, UpstreamConfig, UpstreamIdentity},
    world::memory::MemoryNetwork,
};

/// Bytes of a message that are looked at for its number: the head is in them.
const KEPT: usize = 4096;
/// Bytes read at once.
const READ: usize = 8 * 1024;

static TAKEN: Reply = Reply::fixed(250, Enhanced(2, 0, 0), "taken");

/// One of them, with all its targets.
#[derive(Clone)]
struct Played {
    number: usize,
    strength: Strength,
    ledger: Arc<Ledger>,
    config: Arc<ServerConfig>,
    /// When the next message may be answered, but for the latency.
    next: Arc<Mutex<Instant>>,
}

/// Gives an upstream's targets addresses of their own: in a configuration two upstreams may
/// share one.
pub(super) fn redirect(number: usize, upstream: &mut UpstreamConfig) {
    upstream.tls = None;
    if upstream.original.take().is_some() {
        // Nobody redirects in a rehearsal: where all clients wanted to go is one place.
        upstream.targets = vec![Target::Address(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))];
    }
    upstream.identity = UpstreamIdentity::None;
    upstream.auth = None;
    if let Some(link) = upstream.link.take() {
        // What a link carries at once, connections carry here.
        upstream.connections = link.streams;
        upstream.idle_connections = link.streams;
    }
    for (place, target) in (1_u16..).zip(&mut upstream.targets) {
        // Of a network in memory nobody but this rehearsal knows.
        let number = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
        let address = Ipv4Addr::new(127, 1, number[0], number[1]);
        *target = SocketAddr::from((address, place)).into();
    }
}

/// Listens at all targets of an upstream.
pub(super) fn play(
    network: &MemoryNetwork,
    number: usize,
    upstream: &UpstreamConfig,
    strength: Strength,
    ledger: &Arc<Ledger>,
) {
    let limits = Limits { message_size: 1 << 40, ..Limits::default() };
    let config = ServerConfig {
        hostname: format!("{}.invalid", upstream.name),
        extensions: Extensions::full(0),
        limits,
        may_relay: true,
        starttls: StartTls::Unavailable,
        mark: "",
        auth: AuthOffer::Unavailable,
        auth_required: false,
    };
    let played = Played {
        number,
        strength,
        ledger: Arc::clone(ledger),
        config: Arc::new(config),
        next: Arc::new(Mutex::new(Instant::now())),
    };
    for target in &upstream.targets {
        let Some(address) = target.address() else { continue };
        let mut clients = network.listen(address);
        let played = played.clone();
        tokio::spawn(async move {
            while let Some(stream) = clients.recv().await {
                tokio::spawn(played.clone().serve(stream));
            }
        });
    }
}

impl Played {
    /// When the message that has just come is answered.
    fn turn(&self) -> Instant {
        let each = Duration::from_secs(1) / self.strength.rate.get();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(Instant::now());
        *next = turn + each;
        turn + self.strength.latency
    }

    async fn serve(self, mut stream: DuplexStream) {
        let mut server = Server::new(Arc::clone(&self.config));
        server.greet();
        let mut buffer = vec![0; READ];
        let mut message: Vec<u8> = Vec::new();
        loop {
            if flush(&mut stream, &mut server).await.is_none() {
                return;
            }
            let Ok(count @ 1..) = stream.read(&mut buffer).await else { return };
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
                        let letter = letter(&message);
                        if let Some(letter) = letter {
                            self.ledger.arrived(letter, self.number);
                        }
                        let turn = self.turn();
                        if flush(&mut stream, &mut server).await.is_none() {
                            return;
                        }
                        tokio::time::sleep_until(turn).await;
                        if let Some(letter) = letter {
                            self.ledger.done(letter);
                        }
                        server.reply(&TAKEN);
                    }
                    Step::Dropped(_) | Step::Reset => message.clear(),
                    Step::StartTls | Step::Auth(_) | Step::Xclient(_) => {
                        unreachable!("it is not offered")
                    }
                    Step::Close(_) => {
                        let _ = flush(&mut stream, &mut server).await;
                        return;
                    }
                }
            }
        }
    }
}

async fn flush(stream: &mut DuplexStream, server: &mut Server) -> Option<()> {
    let output = server.output();
    if output.is_empty() {
        return Some(());
    }
    let count = output.len();
    stream.write_all(output).await.ok()?;
    server.written(count);
    Some(())
}

/// The number of a message.
fn letter(message: &[u8]) -> Option<usize> {
    let start = memchr::memmem::find(message, TAG.as_bytes())? + TAG.len();
    let rest = message.get(start..)?;
    let digits = rest.get(..memchr::memchr(b'\r', rest)?)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_by_its_number() {
        let message = format!("Received: from x\r\n{TAG}17\r\n\r\nbody\r\n");
        assert_eq!(letter(message.as_bytes()), Some(17));
        assert_eq!(letter(b"A: b\r\n\r\n"), None);
        assert_eq!(letter(format!("{TAG}-1\r\n").as_bytes()), None);
        assert_eq!(letter(format!("{TAG}17").as_bytes()), None);
    }
}
