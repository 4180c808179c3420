//! A transaction of the sink, from MAIL to the end of its content.
//!
//! Owns what is gathered and its turning into a record. Floor: none (but for the time of arrival).

use std::time::{SystemTime, UNIX_EPOCH};

use super::Told;
use super::content::LineCheck;
use super::record::{Keep, Message, Recipient};

/// What came so far. Names and content are only kept when they are to be recorded.
#[derive(Default)]
pub(super) struct Mail {
    from: String,
    parameters: Vec<String>,
    to: Vec<Recipient>,
    pub(super) recipients: usize,
    pub(super) chunked: bool,
    pub(super) bytes: u64,
    pub(super) raw: Vec<u8>,
    pub(super) lines: LineCheck,
}

impl Mail {
    pub(super) fn new(from: &str, parameters: &[&str]) -> Self {
        Self { from: from.to_owned(), parameters: owned(parameters), ..Self::default() }
    }

    pub(super) fn add_recipient(&mut self, address: &str, parameters: &[&str]) {
        let recipient = Recipient { address: address.to_owned(), parameters: owned(parameters) };
        self.to.push(recipient);
    }

    pub(super) fn into_message(
        self,
        helo: &str,
        session: u64,
        proper: bool,
        keep: Keep,
    ) -> Message {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut message = Message {
            told: Told::new(),
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            helo: helo.to_owned(),
            session,
            from: self.from,
            parameters: self.parameters,
            to: self.to,
            chunked: self.chunked,
            size: 0,
            digest: String::new(),
            body_digest: String::new(),
            proper,
            content: None,
        };
        message.set_content(self.raw, keep);
        message
    }
}

fn owned(parameters: &[&str]) -> Vec<String> {
    parameters.iter().map(|&parameter| parameter.to_owned()).collect()
}
