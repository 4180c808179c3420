//! What the suites of the protocol core share: an embedder in a few lines.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each suite uses its part")]

use std::sync::Arc;

use wavegate_smtp::{
    AuthOffer, BodyFacts, Closing, Enhanced, Extensions, Limits, Login, Mail, MessageFault, Rcpt,
    Reply, Server, ServerConfig, StartTls, Step, Told, Xclient,
};

/// What an embedder saw of a session, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Helo(String, bool),
    Mail(Mail),
    Rcpt(Rcpt),
    Data,
    Message(Vec<u8>, BodyFacts),
    Dropped(MessageFault),
    Reset,
    StartTls,
    Auth(Login),
    Xclient(Xclient),
    Close(Closing),
}

/// Answers every step at once, and keeps what it saw.
pub struct Embedder {
    pub server: Server,
    pub seen: Vec<Seen>,
    body: Vec<u8>,
    config: Arc<ServerConfig>,
    /// What is refused, and how; all else is accepted.
    pub refuse: fn(&Seen) -> Option<Reply>,
}

pub fn config(extensions: Extensions, limits: Limits) -> ServerConfig {
    ServerConfig {
        hostname: "relay.example".to_owned(),
        extensions,
        limits,
        may_relay: true,
        starttls: StartTls::Unavailable,
        mark: "",
        auth: AuthOffer::Unavailable,
        auth_required: false,
    }
}

impl Embedder {
    pub fn new(config: ServerConfig) -> Embedder {
        let config = Arc::new(config);
        let mut server = Server::new(Arc::clone(&config));
        server.greet();
        Embedder { server, seen: Vec::new(), body: Vec::new(), config, refuse: |_| None }
    }

    /// Feeds all of the input; says whether the session goes on.
    pub fn feed(&mut self, mut input: &[u8]) -> bool {
        loop {
            let (used, step) = self.server.step(input);
            input = &input[used..];
            let seen = match step {
                Step::NeedInput => {
                    assert!(input.is_empty(), "input left");
                    return true;
                }
                Step::Body(span) => {
                    assert!(!span.is_empty(), "an empty span");
                    self.body.extend_from_slice(span);
                    continue;
                }
                Step::Close(closing) => {
                    self.seen.push(Seen::Close(closing));
                    return false;
                }
                Step::Helo(helo) => Seen::Helo(helo.name.into(), helo.extended),
                Step::Mail(mail) => Seen::Mail(mail),
                Step::Rcpt(rcpt) => Seen::Rcpt(rcpt),
                Step::Data => Seen::Data,
                Step::End(facts) => Seen::Message(std::mem::take(&mut self.body), facts),
                Step::Dropped(fault) => Seen::Dropped(fault),
                Step::Reset => Seen::Reset,
                Step::StartTls => Seen::StartTls,
                Step::Auth(credentials) => Seen::Auth(credentials),
                Step::Xclient(told) => Seen::Xclient(told),
            };
            if !matches!(seen, Seen::Message(..)) {
                self.body.clear();
            }
            if self.server.is_awaiting() {
                match ((self.refuse)(&seen), &seen) {
                    (Some(reply), _) => self.server.reply(&reply),
                    (None, Seen::Message(..)) => self.server.reply(&TAKEN),
                    (None, Seen::Xclient(told)) => {
                        let logged_in = matches!(told.login, Told::Is(_));
                        self.server.accept_xclient(Arc::clone(&self.config), logged_in);
                    }
                    (None, _) => self.server.accept(),
                }
            }
            self.seen.push(seen);
        }
    }

    pub fn take_output(&mut self) -> Vec<u8> {
        let output = self.server.output().to_vec();
        self.server.written(output.len());
        output
    }

    pub fn messages(&self) -> Vec<&[u8]> {
        let mut messages = Vec::new();
        for seen in &self.seen {
            if let Seen::Message(body, _) = seen {
                messages.push(body.as_slice());
            }
        }
        messages
    }
}

pub static TAKEN: Reply = Reply::fixed(250, Enhanced(2, 0, 0), "Taken");

/// Cuts bytes where the lengths say, the last piece being the rest.
pub fn split<'a>(mut bytes: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle().take(10_000) {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*length).clamp(1, bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    if !bytes.is_empty() {
        pieces.push(bytes);
    }
    pieces
}
