//! A message's stream: what the edge writes, and what the gateway reads of it. Floor 0.
//!
//! Owns that a message is whole only with its END, and that no more comes than was announced. The
//! content is handed on as it comes and never collected here.

use crate::{
    Envelope, LinkError,
    frame::{Frames, HEADER, Header, Kind, Put, Values, small_frame},
};

/// What begins a piece of content; the piece follows as it is. Pieces are not empty.
pub fn data(length: u32) -> [u8; HEADER] {
    Header { kind: Kind::Data, length }.bytes()
}

/// Appends what ends a message of so many bytes. From the moment that it is written the message
/// counts as sent.
pub fn write_end(size: u64, out: &mut Vec<u8>) {
    small_frame(Kind::End, out, |out| out.put_u64(size));
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing that is whole: more input is needed.
    NeedInput,
    /// The message begins.
    Envelope(Box<Envelope>),
    /// Some of its content.
    Data(&'a [u8]),
    /// It is whole: it may be handed on.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// ENVELOPE must come.
    Begin,
    /// DATA and END may come.
    Between,
    /// So many bytes of a DATA frame are to come.
    Content(u32),
    /// Nothing may come.
    Ended,
    /// What came was wrong.
    Wrong(LinkError),
}

/// Reads a message; the gateway's side of its stream.
#[derive(Debug)]
pub struct Incoming {
    state: State,
    /// The header of the frame that comes, and how much of it is there.
    header: [u8; HEADER],
    began: usize,
    frames: Frames,
    /// Most recipients.
    recipients: u32,
    /// Bytes of the largest message.
    most: u64,
    size: u64,
    came: u64,
}

impl Incoming {
    /// Of a message with at most so many recipients, and bytes of content.
    pub fn new(recipients: u32, most: u64) -> Self {
        let (state, frames) = (State::Begin, Frames::default());
        let (header, began, size, came) = ([0; HEADER], 0, 0, 0);
        Self { state, header, began, frames, recipients, most, size, came }
    }

    /// Takes some of what came: how much, and what it was. To be called until it needs input, with
    /// what is left.
    ///
    /// # Errors
    /// If the edge does not keep to the protocol; from then on it is that error.
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Step<'a>), LinkError> {
        let step = self.try_step(input);
        if let Err(error) = step {
            self.state = State::Wrong(error);
        }
        step
    }

    fn try_step<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Step<'a>), LinkError> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let Some(first) = rest.first() else { return Ok((at, Step::NeedInput)) };
            match self.state {
                State::Wrong(error) => return Err(error),
                State::Ended => return Err(LinkError::Unexpected(*first)),
                State::Content(left) => {
                    let content = &rest[..rest.len().min(left as usize)];
                    // At most what is left.
                    let left = left - u32::try_from(content.len()).unwrap_or(left);
                    self.came += content.len() as u64;
                    self.state = if left == 0 { State::Between } else { State::Content(left) };
                    return Ok((at + content.len(), Step::Data(content)));
                }
                State::Begin | State::Between if self.began < HEADER => {
                    let part = &rest[..rest.len().min(HEADER - self.began)];
                    self.header[self.began..self.began + part.len()].copy_from_slice(part);
                    self.began += part.len();
                    at += part.len();
                    if self.began == HEADER {
                        self.begin_frame()?;
                    }
                }
                State::Begin | State::Between => {
                    let (used, step) = self.collect(rest)?;
                    at += used;
                    if let Some(step) = step {
                        return Ok((at, step));
                    }
                }
            }
        }
    }

    /// Collects a frame that is not DATA.
    fn collect(&mut self, input: &[u8]) -> Result<(usize, Option<Step<'static>>), LinkError> {
        let (used, whole) = self.frames.read(input, |_| true)?;
        let Some((kind, content)) = whole else { return Ok((used, None)) };
        self.began = 0;
        let step = match kind {
            Kind::Envelope => {
                let envelope = Envelope::read(content, self.recipients)?;
                // It is the only long frame: what it took is not kept for the rest.
                self.frames = Frames::default();
                self.begin(&envelope)?;
                Step::Envelope(Box::new(envelope))
            }
            _ => {
                let mut values = Values::new(kind, content);
                let said = values.u64()?;
                values.end()?;
                self.end_content(said)?;
                Step::End
            }
        };
        Ok((used, Some(step)))
    }

    /// The header of a frame is there.
    fn begin_frame(&mut self) -> Result<(), LinkError> {
        let Header { kind, length } = Header::read(self.header)?;
        match (self.state, kind) {
            (State::Begin, Kind::Envelope) | (State::Between, Kind::End) => {
                // None of them is empty, so it is not whole yet.
                if length == 0 {
                    return Err(LinkError::Length(kind.as_str()));
                }
                self.frames.read(&self.header, |_| true).map(drop)
            }
            (State::Between, Kind::Data) => {
                // It would move nothing, and could be sent for ever.
                if length == 0 {
                    return Err(LinkError::Value("DATA without content"));
                }
                let left = self.size - self.came;
                if u64::from(length) > left {
                    let length = u64::from(length);
                    return Err(LinkError::TooLarge { what: "DATA", length, most: left });
                }
                self.state = State::Content(length);
                self.began = 0;
                Ok(())
            }
            _ => Err(LinkError::Unexpected(kind as u8)),
        }
    }

    fn begin(&mut self, envelope: &Envelope) -> Result<(), LinkError> {
        if envelope.size > self.most {
            let (length, most) = (envelope.size, self.most);
            return Err(LinkError::TooLarge { what: "a message", length, most });
        }
        self.size = envelope.size;
        self.state = State::Between;
        Ok(())
    }

    fn end_content(&mut self, said: u64) -> Result<(), LinkError> {
        if self.came != self.size {
            return Err(LinkError::Content { came: self.came, size: self.size });
        }
        if said != self.size {
            return Err(LinkError::Value("the size that END says"));
        }
        self.state = State::Ended;
        Ok(())
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// If the message is not whole.
    pub fn end(&self) -> Result<(), LinkError> {
        match self.state {
            State::Ended => Ok(()),
            State::Wrong(error) => Err(error),
            State::Begin => Err(LinkError::Cut("ENVELOPE")),
            State::Between | State::Content(_) => Err(LinkError::Cut("END")),
        }
    }

    /// Bytes that it keeps.
    pub fn weight(&self) -> usize {
        self.frames.weight()
    }
}
