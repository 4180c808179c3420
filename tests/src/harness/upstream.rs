//! Upstreams that do exactly what a script says, for what the sink cannot play.
//!
//! Owns the listener and a thread for each connection; the script owns the dialogue. Floor: none.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::PATIENCE;

/// A scripted upstream; its threads end with their connections.
pub struct Script {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Script {
    /// Listens and plays `script` to each connection; the number counts them from 1.
    pub fn start(script: impl Fn(usize, &mut Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let script = Arc::new(script);
        let accepting = std::thread::spawn(move || {
            for (at, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(at + 1, &mut Peer::new(stream)));
            }
        });
        Self { addr, stop, accepting: Some(accepting) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _listener_is_gone = TcpStream::connect(self.addr);
        if let Some(thread) = self.accepting.take() {
            let _panicked = thread.join();
        }
    }
}

/// One connection of the relay to a scripted upstream.
pub struct Peer {
    reader: BufReader<TcpStream>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// Says something; a relay that has gone does not hear it.
    pub fn say(&mut self, words: impl AsRef<[u8]>) {
        let _gone = self.reader.get_mut().write_all(words.as_ref());
    }

    /// The next line without its end; none when the relay has closed.
    pub fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            _ => None,
        }
    }

    /// Greets and answers EHLO with these extensions.
    pub fn greet(&mut self, extensions: &[&str]) -> Option<()> {
        self.say("220 scripted.example ESMTP\r\n");
        self.line()?;
        let mut lines = vec!["scripted.example"];
        lines.extend(extensions);
        let last = lines.len() - 1;
        let reply: String = lines
            .iter()
            .enumerate()
            .map(|(at, line)| format!("250{}{line}\r\n", if at == last { ' ' } else { '-' }))
            .collect();
        self.say(reply);
        Some(())
    }

    /// Takes MAIL and RCPT and waits for DATA, which it does not answer. QUIT and RSET are
    /// answered; none when the relay has closed.
    pub fn envelope(&mut self) -> Option<()> {
        loop {
            let line = self.line()?;
            match line.get(..4)? {
                "DATA" => return Some(()),
                "QUIT" => {
                    self.say("221 2.0.0 bye\r\n");
                    return None;
                }
                _ => self.say("250 2.0.0 ok\r\n"),
            }
        }
    }

    /// Reads content up to the end of data, as it came over the wire; none if it never ends.
    pub fn content(&mut self) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let start = content.len();
            let read = self.reader.read_until(b'\n', &mut content).ok()?;
            if read == 0 {
                return None;
            }
            let before = &content[..start];
            if &content[start..] == b".\r\n" && (before.is_empty() || before.ends_with(b"\r\n")) {
                content.truncate(start);
                return Some(content);
            }
        }
    }

    /// Plays a session that accepts everything; `end` gives the reply to each end of data.
    pub fn accept_all(&mut self, extensions: &[&str], mut end: impl FnMut(&[u8]) -> Vec<u8>) {
        let mut play = || {
            self.greet(extensions)?;
            loop {
                self.envelope()?;
                self.say("354 go on\r\n");
                let content = self.content()?;
                let reply = end(&content);
                self.say(reply);
            }
        };
        let _closed: Option<()> = play();
    }

    /// Waits until the relay closes.
    pub fn closed(&mut self) {
        let mut rest = Vec::new();
        let _reset = self.reader.read_to_end(&mut rest);
    }
}
