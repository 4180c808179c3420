//! The control stream: who the sides are, whether they are there, whether they stop. Floor 0.

use wavegate_smtp::{Extension, Extensions};

use crate::{
    LinkError,
    frame::{Frames, Kind, Put, Values, small_frame},
    limits,
};

/// Which side one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It opens streams.
    Edge,
    /// It answers.
    Gateway,
}

/// Who a side is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its host name: what it calls itself.
    pub name: String,
    /// Drawn when its process started.
    pub incarnation: [u8; 16],
    /// What a gateway takes; an edge offers nothing.
    pub offer: Option<Offer>,
}

/// What a gateway takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// 8-bit content.
    pub eight_bit: bool,
    /// Internationalised mail.
    pub smtputf8: bool,
    /// Delivery status notifications.
    pub dsn: bool,
    /// Bytes of the largest message; 0 for no bound.
    pub size: u64,
    /// Most recipients of one message, at least one.
    pub recipients: u32,
}

impl Offer {
    /// What SMTP's extensions say of it.
    pub fn new(offered: &Extensions, recipients: u32) -> Self {
        Self {
            eight_bit: offered.has(Extension::EightBitMime),
            smtputf8: offered.has(Extension::SmtpUtf8),
            dsn: offered.has(Extension::Dsn),
            size: offered.size_limit().unwrap_or(0),
            recipients,
        }
    }

    /// The same as extensions of SMTP. A message may end in an incomplete line: its length is
    /// known, as with CHUNKING.
    pub fn extensions(self) -> Extensions {
        let wanted = [
            (true, Extension::Pipelining),
            (true, Extension::Chunking),
            (true, Extension::EnhancedStatusCodes),
            (self.eight_bit, Extension::EightBitMime),
            (self.smtputf8, Extension::SmtpUtf8),
            (self.dsn, Extension::Dsn),
        ];
        let has = wanted.into_iter().filter(|(has, _)| *has);
        let none = Extensions::NONE.with_size(Some(self.size));
        has.fold(none, |all, (_, extension)| all.with(extension))
    }
}

/// What is said on the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// First of all.
    Hello(Hello),
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// No more messages on this connection.
    Stopping,
}

impl Control {
    /// Appends it as it is sent.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => small_frame(Kind::Hello, out, |out| {
                let name = &hello.name;
                out.put_text(&name[..name.floor_char_boundary(limits::NAME)]);
                out.extend_from_slice(&hello.incarnation);
                if let Some(offer) = hello.offer {
                    let flags = [(offer.eight_bit, 1), (offer.smtputf8, 2), (offer.dsn, 4)];
                    let flags = flags.into_iter().filter(|(has, _)| *has);
                    out.put_u16(flags.map(|(_, bit)| bit).sum());
                    out.put_u64(offer.size);
                    out.put_u32(offer.recipients);
                }
            }),
            Self::Ping(token) => small_frame(Kind::Ping, out, |out| out.put_u64(*token)),
            Self::Pong(token) => small_frame(Kind::Pong, out, |out| out.put_u64(*token)),
            Self::Stopping => small_frame(Kind::Stopping, out, |_| {}),
        }
    }
}

/// Reads what the other side says on the control stream.
#[derive(Debug)]
pub struct ControlReader {
    /// Who speaks.
    speaker: Side,
    greeted: bool,
    frames: Frames,
    wrong: Option<LinkError>,
}

impl ControlReader {
    /// Reads what `speaker` says.
    pub fn new(speaker: Side) -> Self {
        Self { speaker, greeted: false, frames: Frames::default(), wrong: None }
    }

    /// Takes bytes up to the end of one word at most: how many, and the word.
    ///
    /// # Errors
    /// If it may not be said now, or is not as it should be; from then on it is that error.
    pub fn read(&mut self, input: &[u8]) -> Result<(usize, Option<Control>), LinkError> {
        self.wrong.map_or(Ok(()), Err)?;
        let read = self.try_read(input);
        self.wrong = read.as_ref().err().copied();
        read
    }

    /// Bytes that it keeps.
    pub fn weight(&self) -> usize {
        self.frames.weight()
    }

    fn try_read(&mut self, input: &[u8]) -> Result<(usize, Option<Control>), LinkError> {
        let (speaker, greeted) = (self.speaker, self.greeted);
        let allowed = |kind| match (greeted, speaker) {
            (false, _) => kind == Kind::Hello,
            (true, Side::Edge) => kind == Kind::Ping,
            (true, Side::Gateway) => matches!(kind, Kind::Pong | Kind::Stopping),
        };
        let (used, whole) = self.frames.read(input, allowed)?;
        let Some((kind, content)) = whole else { return Ok((used, None)) };
        let mut values = Values::new(kind, content);
        let said = match kind {
            Kind::Hello => Control::Hello(hello(&mut values, speaker)?),
            Kind::Ping => Control::Ping(values.u64()?),
            Kind::Pong => Control::Pong(values.u64()?),
            _ => Control::Stopping,
        };
        values.end()?;
        self.greeted = true;
        Ok((used, Some(said)))
    }
}

fn hello(values: &mut Values<'_>, speaker: Side) -> Result<Hello, LinkError> {
    let name = values.text("the name")?;
    let is_name = (1..=limits::NAME).contains(&name.len());
    if !is_name || name.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(LinkError::Value("the name"));
    }
    let incarnation = values.array()?;
    let offer = match speaker {
        Side::Edge => None,
        Side::Gateway => {
            // Bits that this version does not know are offers that it does not take.
            let flags = values.u16()?;
            let has = |bit| flags & bit != 0;
            let (size, recipients) = (values.u64()?, values.u32()?);
            if recipients == 0 {
                return Err(LinkError::Value("an offer of no recipients"));
            }
            let (eight_bit, smtputf8, dsn) = (has(1), has(2), has(4));
            Some(Offer { eight_bit, smtputf8, dsn, size, recipients })
        }
    };
    Ok(Hello { name: name.to_owned(), incarnation, offer })
}
