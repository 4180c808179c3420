//! A client of the relay that speaks SMTP line by line and keeps what it is told.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream, DuplexStream};
use wavegate::{
    relay::Relay,
    session::{self, Client},
    world::Stream,
};

pub struct Sender {
    stream: BufStream<DuplexStream>,
    /// The lines of the answer to EHLO.
    pub offered: String,
}

impl Sender {
    pub async fn connect(relay: &Arc<Relay>, client: &str) -> Self {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let peer = format!("{client}:40000").parse().unwrap();
        let client = Client::new(relay, "listener-1", Stream::Memory(far), peer).unwrap();
        tokio::spawn(session::serve(Arc::clone(relay), client));
        let mut sender = Self { stream: BufStream::new(near), offered: String::new() };
        assert!(sender.reply().await.starts_with("220 "));
        sender.offered = sender.command("EHLO mta.example").await;
        sender
    }

    /// One reply, all its lines.
    pub async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let begin = reply.len();
            let count = self.stream.read_line(&mut reply).await.unwrap();
            assert!(count > 0, "the relay closed after {reply:?}");
            if reply.as_bytes()[begin + 3] == b' ' {
                return reply.trim_end().to_owned();
            }
        }
    }

    pub async fn write(&mut self, text: &[u8]) {
        self.stream.write_all(text).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn command(&mut self, line: &str) -> String {
        self.write(format!("{line}\r\n").as_bytes()).await;
        self.reply().await
    }

    /// Sends a message; the reply to its end.
    pub async fn send(&mut self, from: &str, to: &str, body: &[u8]) -> String {
        self.begin(from, to).await;
        self.write(body).await;
        self.write(b".\r\n").await;
        self.reply().await
    }

    async fn begin(&mut self, from: &str, to: &str) {
        assert!(self.command(&format!("MAIL FROM:<{from}>")).await.starts_with("250 "));
        assert!(self.command(&format!("RCPT TO:<{to}>")).await.starts_with("250 "));
        assert!(self.command("DATA").await.starts_with("354 "));
    }

    /// Sends a small message whose text is `name`.
    pub async fn mail(&mut self, from: &str, name: &str) -> String {
        let body = format!("Subject: test\r\n\r\nname={name}\r\n");
        self.send(from, "user@dest.example", body.as_bytes()).await
    }
}
