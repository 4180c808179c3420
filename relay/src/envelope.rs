//! What the spool keeps of a message beside its bytes: the envelope, which never changes, and
//! how far its delivery has come, which does. Floor 0.
//!
//! Both are written as a version byte and `postcard`; a version that is not known is refused,
//! never guessed at.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wavegate_smtp::{
    Address, BodyFacts, Mail, Rcpt, ReversePath,
    params::{BodyType, Notify, Ret},
};

use crate::{
    message::{CIPHERS, MessageId, Secured, Source},
    plan::Timestamp,
};

/// The version that is written of an envelope, and of progress. A later version of an envelope
/// only adds to its end: version 2 TLS, version 3 who the client is, version 4 whose mail an edge says
/// it is.
const ENVELOPE: u8 = 4;
const PROGRESS: u8 = 1;

/// What version 1 lacks, as it is written: no TLS.
const SINCE_VERSION_2: &[u8] = &[0];
/// What version 2 lacks: no port, no name, EHLO (it did not say), no user, no other destination.
const SINCE_VERSION_3: &[u8] = &[0, 0, 1, 0, 0];
/// What version 3 lacks: no instance.
const SINCE_VERSION_4: &[u8] = &[0];

/// A message as it came in, without its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The message.
    pub id: MessageId,
    /// When it came in.
    pub received: Timestamp,
    /// Where it came from.
    pub source: Arc<Source>,
    /// A notification of the relay itself belongs to this instance, whose mail it reports on.
    pub on_behalf: Option<String>,
    /// Sender and its parameters.
    pub mail: Mail,
    /// Recipients and their parameters.
    pub recipients: Vec<Rcpt>,
    /// What is known of the bytes, the relay's own `Received` line included.
    pub facts: BodyFacts,
}

/// How far the delivery of a spooled message has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The instance that it was last attributed to.
    pub instance: Option<String>,
    /// Recipients that have no end yet.
    pub pending: u32,
    /// Attempts made.
    pub attempts: u32,
    /// Not before (milliseconds since 1970): a retry's time, or a policy's hold.
    pub due: Option<u64>,
    /// `due` is a policy's hold, not a retry.
    pub due_is_hold: bool,
    /// Time on hold up to `held_since`, in milliseconds: it does not count toward expiry.
    pub held_ms: u64,
    /// On hold since (milliseconds since 1970).
    pub held_since: Option<u64>,
    /// An operator holds it, for this reason.
    pub operator: Option<String>,
    /// Indexes of the recipients that have come to an end, in order.
    pub ended: Vec<u32>,
    /// This upstream may have taken it already: its reply was lost, or is still awaited.
    pub in_doubt: Option<String>,
    /// The last thing that was said about it.
    pub last: Option<LastWord>,
}

/// Why a message was not delivered at its last attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWord {
    /// Where the attempt went; none where it did not come that far.
    pub upstream: Option<String>,
    /// The upstream's reply, or what went wrong, cut to [`LAST_WORD`] bytes.
    pub text: String,
    /// When (milliseconds since 1970).
    pub time: u64,
}

/// Bytes that are kept of a last word.
pub const LAST_WORD: usize = 300;

/// Why bytes are not what the spool wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A later version of the relay wrote them.
    #[error("written by a later version of the relay (format {0}, known is {1})")]
    Version(u8, u8),
    /// They are damaged.
    #[error("damaged")]
    Damaged,
}

impl LastWord {
    /// A last word, cut to its bound.
    pub fn new(upstream: Option<&str>, text: &str, time: Timestamp) -> Self {
        let text = text[..text.floor_char_boundary(LAST_WORD)].to_owned();
        Self { upstream: upstream.map(str::to_owned), text, time: time.0 }
    }
}

impl Progress {
    /// Whether a recipient has come to an end.
    pub fn has_ended(&self, recipient: u32) -> bool {
        self.ended.binary_search(&recipient).is_ok()
    }

    /// A recipient has come to an end.
    pub fn end(&mut self, recipient: u32) {
        if let Err(at) = self.ended.binary_search(&recipient) {
            self.ended.insert(at, recipient);
        }
    }

    /// Bytes for the spool.
    pub fn encode(&self) -> Vec<u8> {
        encode(PROGRESS, self)
    }

    /// From the spool's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes.split_first() {
            Some((&PROGRESS, rest)) => read(rest),
            other => Err(unknown(other, PROGRESS)),
        }
    }
}

/// Bytes of memory that a recipient takes: a list has room for twice as many as there are, and the
/// allocator rounds texts up, by an eighth at most.
pub fn weight(recipient: &Rcpt) -> usize {
    let texts = recipient.recipient.as_str().len();
    let orcpt = recipient.orcpt.as_ref().map_or(0, |orcpt| orcpt.len());
    let texts = texts + orcpt;
    2 * size_of::<Rcpt>() + 64 + texts + texts / 8
}

impl Envelope {
    /// Bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        let own = size_of::<Self>() + self.mail.sender.as_str().len() + self.source.helo.len();
        own + self.recipients.iter().map(weight).sum::<usize>()
    }

    /// Bytes for the spool.
    pub fn encode(&self) -> Vec<u8> {
        encode(
            ENVELOPE,
            &Written {
                id: self.id.key(),
                received: self.received.0,
                client: self.source.client,
                listener: &self.source.listener,
                helo: &self.source.helo,
                on_behalf: self.on_behalf.as_deref(),
                sender: self.mail.sender.as_str(),
                eight_bit_mime: self.mail.body.map(|body| body == BodyType::EightBitMime),
                smtputf8: self.mail.smtputf8,
                ret_full: self.mail.ret.map(|ret| ret == Ret::Full),
                envid: self.mail.envid.as_deref(),
                recipients: self.recipients.iter().map(WrittenRcpt::of).collect(),
                facts: (
                    self.facts.size,
                    self.facts.header_size,
                    self.facts.received,
                    self.facts.eight_bit,
                    self.facts.leading_dot,
                    self.facts.ends_with_crlf,
                ),
                secured: self.source.secured.map(|secured| (secured.cipher, secured.resumed)),
                port: self.source.port,
                name: self.source.name.as_deref(),
                extended: self.source.extended,
                user: self.source.user.as_deref(),
                destination: self.source.destination,
                instance: self.source.instance.as_deref(),
            },
        )
    }

    /// From the spool's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (rest, lacks) = match bytes.split_first() {
            Some((&ENVELOPE, rest)) => (rest, Vec::new()),
            Some((3, rest)) => (rest, SINCE_VERSION_4.to_vec()),
            Some((2, rest)) => (rest, [SINCE_VERSION_3, SINCE_VERSION_4].concat()),
            Some((1, rest)) => (rest, [SINCE_VERSION_2, SINCE_VERSION_3, SINCE_VERSION_4].concat()),
            other => return Err(unknown(other, ENVELOPE)),
        };
        if lacks.is_empty() {
            return read::<Written<'_>>(rest)?.read().ok_or(DecodeError::Damaged);
        }
        read::<Written<'_>>(&[rest, &lacks].concat())?.read().ok_or(DecodeError::Damaged)
    }
}

fn encode(version: u8, value: &impl Serialize) -> Vec<u8> {
    match postcard::to_extend(value, vec![version]) {
        Ok(bytes) => bytes,
        // Neither type has anything that it could not write, and a vector takes everything.
        Err(error) => unreachable!("an envelope can always be written: {error}"),
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    postcard::from_bytes(bytes).map_err(|_| DecodeError::Damaged)
}

fn unknown(bytes: Option<(&u8, &[u8])>, known: u8) -> DecodeError {
    match bytes {
        Some((&version, _)) if version > known => DecodeError::Version(version, known),
        _ => DecodeError::Damaged,
    }
}

/// The envelope as written: only types whose form is `postcard`'s or ours.
#[derive(Serialize, Deserialize)]
struct Written<'a> {
    id: [u8; 16],
    received: u64,
    client: IpAddr,
    #[serde(borrow)]
    listener: &'a str,
    helo: &'a str,
    on_behalf: Option<&'a str>,
    sender: &'a str,
    eight_bit_mime: Option<bool>,
    smtputf8: bool,
    ret_full: Option<bool>,
    envid: Option<&'a str>,
    recipients: Vec<WrittenRcpt<'a>>,
    facts: (u64, u64, u32, bool, bool, bool),
    /// A cipher's place in `CIPHERS`, which only grows at its end, and whether it was resumed.
    secured: Option<(usize, bool)>,
    port: u16,
    name: Option<&'a str>,
    extended: bool,
    user: Option<&'a str>,
    destination: Option<SocketAddr>,
    instance: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct WrittenRcpt<'a> {
    #[serde(borrow)]
    recipient: &'a str,
    notify: Option<(bool, bool, bool)>,
    orcpt: Option<&'a str>,
}

impl<'a> WrittenRcpt<'a> {
    fn of(rcpt: &'a Rcpt) -> Self {
        Self {
            recipient: rcpt.recipient.as_str(),
            notify: rcpt.notify.map(|notify| (notify.success, notify.failure, notify.delay)),
            orcpt: rcpt.orcpt.as_deref(),
        }
    }

    fn read(&self) -> Option<Rcpt> {
        let mut rcpt = Rcpt::new(Address::parse(self.recipient).ok()?);
        rcpt.notify =
            self.notify.map(|(success, failure, delay)| Notify { success, failure, delay });
        rcpt.orcpt = self.orcpt.map(Into::into);
        Some(rcpt)
    }
}

impl Written<'_> {
    fn read(&self) -> Option<Envelope> {
        let sender = match self.sender {
            "" => ReversePath::Null,
            sender => ReversePath::Address(Address::parse(sender).ok()?),
        };
        let mut mail = Mail::new(sender);
        mail.body = self.eight_bit_mime.map(|eight| match eight {
            true => BodyType::EightBitMime,
            false => BodyType::SevenBit,
        });
        mail.smtputf8 = self.smtputf8;
        mail.ret = self.ret_full.map(|full| if full { Ret::Full } else { Ret::Headers });
        mail.envid = self.envid.map(Into::into);
        let secured =
            |(cipher, resumed)| (cipher < CIPHERS.len()).then_some(Secured { cipher, resumed });
        let secured = self.secured.map(|one| secured(one).ok_or(())).transpose().ok()?;
        let (size, header_size, received, eight_bit, leading_dot, ends_with_crlf) = self.facts;
        Some(Envelope {
            id: MessageId::from_key(self.id)?,
            received: Timestamp(self.received),
            source: Arc::new(Source {
                client: self.client,
                port: self.port,
                name: self.name.map(str::to_owned),
                listener: self.listener.to_owned(),
                helo: self.helo.to_owned(),
                extended: self.extended,
                secured,
                user: self.user.map(str::to_owned),
                destination: self.destination,
                instance: self.instance.map(str::to_owned),
            }),
            on_behalf: self.on_behalf.map(str::to_owned),
            mail,
            recipients: self.recipients.iter().map(WrittenRcpt::read).collect::<Option<_>>()?,
            facts: BodyFacts {
                size,
                header_size,
                received,
                eight_bit,
                leading_dot,
                ends_with_crlf,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn envelope() -> Envelope {
        let mut mail = Mail::new(ReversePath::Address(Address::parse("a@b.example").unwrap()));
        mail.envid = Some("QQ+2B1".into());
        mail.ret = Some(Ret::Headers);
        mail.body = Some(BodyType::EightBitMime);
        let mut rcpt = Rcpt::new(Address::parse("c@d.example").unwrap());
        rcpt.notify = Some(Notify { success: true, failure: false, delay: true });
        rcpt.orcpt = Some("rfc822;c@d.example".into());
        let plain = Rcpt::new(Address::parse("\"q q\"@[IPv6:2001:db8::1]").unwrap());
        Envelope {
            id: MessageId::new(Timestamp(1_768_888_800_123), 7),
            received: Timestamp(1_768_888_800_123),
            source: Arc::new(Source {
                client: "2001:db8::1".parse().unwrap(),
                port: 4711,
                name: Some("client.example".into()),
                listener: "listener-1".into(),
                helo: "mta.example".into(),
                extended: false,
                secured: Some(Secured { cipher: 8, resumed: true }),
                user: Some("user-1".into()),
                destination: Some("192.0.2.9:25".parse().unwrap()),
                instance: Some("acme-prod-1".into()),
            }),
            on_behalf: Some("acme".into()),
            mail,
            recipients: vec![rcpt, plain],
            facts: BodyFacts {
                size: 1 << 40,
                header_size: 300,
                received: 2,
                eight_bit: true,
                leading_dot: false,
                ends_with_crlf: true,
            },
        }
    }

    #[test]
    fn an_envelope_comes_back_as_it_was() {
        let mut one = envelope();
        assert_eq!(Envelope::decode(&one.encode()).unwrap(), one);
        one.mail = Mail::new(ReversePath::Null);
        one.on_behalf = None;
        one.source = Arc::new(Source::new("192.0.2.1:0".parse().unwrap(), "listener-1"));
        assert_eq!(Envelope::decode(&one.encode()).unwrap(), one);
    }

    /// What the version knew of the source.
    fn known(secured: Option<Secured>) -> Envelope {
        let one = envelope();
        let source = Source {
            port: 0,
            name: None,
            extended: true,
            user: None,
            destination: None,
            instance: None,
            secured,
            ..(*one.source).clone()
        };
        Envelope { source: Arc::new(source), ..one }
    }

    #[test]
    fn envelopes_of_earlier_versions_are_read() {
        let of_version = |one: &Envelope, version: u8, lacks: &[u8]| {
            let mut bytes = one.encode();
            bytes[0] = version;
            let rest = bytes.split_off(bytes.len() - lacks.len());
            assert_eq!(rest, lacks, "it is what is written where there is nothing");
            bytes
        };
        let secured = known(Some(Secured { cipher: 8, resumed: true }));
        let source = Source { instance: None, ..(*envelope().source).clone() };
        let third = Envelope { source: Arc::new(source), ..envelope() };
        assert_eq!(Envelope::decode(&of_version(&third, 3, SINCE_VERSION_4)).unwrap(), third);
        let second = of_version(&secured, 2, &[SINCE_VERSION_3, SINCE_VERSION_4].concat());
        assert_eq!(Envelope::decode(&second).unwrap(), secured);
        let plain = known(None);
        let first =
            of_version(&plain, 1, &[SINCE_VERSION_2, SINCE_VERSION_3, SINCE_VERSION_4].concat());
        assert_eq!(Envelope::decode(&first).unwrap(), plain);
        // A suite that this version does not know.
        let mut bytes = second;
        let at = bytes.len() - 2;
        bytes[at] = 9;
        assert_eq!(Envelope::decode(&bytes), Err(DecodeError::Damaged));
    }

    #[test]
    fn a_later_version_is_named_and_damage_is_damage() {
        let mut bytes = envelope().encode();
        bytes[0] = ENVELOPE + 1;
        assert_eq!(Envelope::decode(&bytes), Err(DecodeError::Version(ENVELOPE + 1, ENVELOPE)));
        assert_eq!(Envelope::decode(&[]), Err(DecodeError::Damaged));
        let bytes = envelope().encode();
        for cut in 1..bytes.len() {
            assert_eq!(Envelope::decode(&bytes[..cut]), Err(DecodeError::Damaged));
        }
    }

    #[test]
    fn recipients_end_once_and_in_order() {
        let mut progress = Progress::default();
        for recipient in [3, 1, 3, 2] {
            progress.end(recipient);
        }
        assert_eq!(progress.ended, [1, 2, 3]);
        assert!(progress.has_ended(2) && !progress.has_ended(0));
        assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
    }

    #[test]
    fn a_last_word_is_cut_between_characters() {
        let word = LastWord::new(Some("cloud"), &"ä".repeat(LAST_WORD), Timestamp(1));
        assert_eq!(word.text.len(), LAST_WORD);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Envelope::decode(&bytes);
            let _ = Progress::decode(&bytes);
            let mut flipped = envelope().encode();
            for (at, byte) in bytes.iter().enumerate().take(4) {
                let place = (usize::from(*byte) * 7 + at) % flipped.len();
                flipped[place] ^= 1 << (byte % 8);
            }
            let _ = Envelope::decode(&flipped);
        }
    }
}
