//! Frames: a type, a length, content. Floor 0.
//!
//! Owns how frames begin and how values are written in them, and that no frame is collected
//! beyond its bound. Not what is in them.

use std::borrow::Cow;

use crate::{LinkError, limits};

/// Bytes before the content.
pub const HEADER: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who somebody is.
    Hello = 1,
    /// Are you there?
    Ping = 2,
    /// I am.
    Pong = 3,
    /// No more messages here.
    Stopping = 4,
    /// A message begins.
    Envelope = 16,
    /// Some of its content.
    Data = 17,
    /// It is whole.
    End = 18,
    /// What became of recipients.
    Answer = 32,
    /// Everything is answered.
    Done = 33,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Hello,
        Self::Ping,
        Self::Pong,
        Self::Stopping,
        Self::Envelope,
        Self::Data,
        Self::End,
        Self::Answer,
        Self::Done,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "HELLO",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Stopping => "STOPPING",
            Self::Envelope => "ENVELOPE",
            Self::Data => "DATA",
            Self::End => "END",
            Self::Answer => "ANSWER",
            Self::Done => "DONE",
        }
    }

    /// Most bytes of its content. DATA is bounded by what its message has left.
    pub fn most(self) -> usize {
        match self {
            Self::Hello => limits::HELLO,
            Self::Ping | Self::Pong | Self::End => 8,
            Self::Stopping | Self::Done => 0,
            Self::Envelope => limits::ENVELOPE,
            Self::Data => u32::MAX as usize,
            Self::Answer => limits::ANSWER,
        }
    }
}

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Bytes of its content.
    pub length: u32,
}

impl Header {
    /// As it is sent.
    pub fn bytes(self) -> [u8; HEADER] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [self.kind as u8, a, b, c, d]
    }

    /// Reads one.
    ///
    /// # Errors
    /// If there is no such type, or it is longer than such a frame may be.
    pub fn read(bytes: [u8; HEADER]) -> Result<Self, LinkError> {
        let [kind, a, b, c, d] = bytes;
        let length = u32::from_be_bytes([a, b, c, d]);
        let kind = Kind::of(kind).ok_or(LinkError::Unexpected(kind))?;
        let most = kind.most();
        if length as usize > most {
            let (length, most) = (u64::from(length), most as u64);
            return Err(LinkError::TooLarge { what: kind.as_str(), length, most });
        }
        Ok(Self { kind, length })
    }
}

/// Appends a frame whose content `write` appends.
///
/// # Errors
/// If it is longer than such a frame may be; nothing is appended then.
pub(crate) fn frame(
    kind: Kind,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) -> Result<(), LinkError> {
    let at = out.len();
    out.extend_from_slice(&[0; HEADER]);
    write(out);
    let bytes = out.len() - at - HEADER;
    let Some(length) = u32::try_from(bytes).ok().filter(|_| bytes <= kind.most()) else {
        out.truncate(at);
        let (length, most) = (bytes as u64, kind.most() as u64);
        return Err(LinkError::TooLarge { what: kind.as_str(), length, most });
    };
    out[at..at + HEADER].copy_from_slice(&Header { kind, length }.bytes());
    Ok(())
}

/// As [`frame`], of what always fits.
pub(crate) fn small_frame(kind: Kind, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let written = frame(kind, out, write);
    assert!(written.is_ok(), "{written:?}");
}

/// A whole frame: what it is, and its content.
pub type Whole<'a> = (Kind, &'a [u8]);

/// Collects whole frames from any split of their bytes.
#[derive(Debug, Default)]
pub struct Frames {
    partial: Vec<u8>,
}

impl Frames {
    /// Takes bytes up to the end of one frame at most: how many, and the frame if it is whole.
    /// `allowed` says which may come: before its content is collected.
    ///
    /// # Errors
    /// If it may not come, or is longer than it may be.
    pub fn read<'a>(
        &'a mut self,
        input: &'a [u8],
        allowed: impl Fn(Kind) -> bool,
    ) -> Result<(usize, Option<Whole<'a>>), LinkError> {
        if self.is_whole() {
            self.partial.clear();
        }
        let mut used = 0;
        if self.partial.len() < HEADER {
            used = (HEADER - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..used]);
        }
        let Some(header) = self.header()? else { return Ok((used, None)) };
        if !allowed(header.kind) {
            return Err(LinkError::Unexpected(header.kind as u8));
        }
        let whole = HEADER + header.length as usize;
        let missing = (whole - self.partial.len()).min(input.len() - used);
        self.reserve(missing, whole);
        self.partial.extend_from_slice(&input[used..used + missing]);
        used += missing;
        let is_whole = self.partial.len() == whole;
        Ok((used, is_whole.then(|| (header.kind, &self.partial[HEADER..]))))
    }

    /// Makes room for so many more bytes. What is there grows by what came and not by what was
    /// announced, twice as much each time, and never beyond the whole frame.
    fn reserve(&mut self, more: usize, whole: usize) {
        let needed = self.partial.len() + more;
        if needed > self.partial.capacity() {
            let room = (2 * self.partial.capacity()).clamp(needed, whole);
            self.partial.reserve_exact(room - self.partial.len());
        }
    }

    /// Bytes that it keeps.
    pub fn weight(&self) -> usize {
        self.partial.capacity()
    }

    fn header(&self) -> Result<Option<Header>, LinkError> {
        let Some(bytes) = self.partial.first_chunk() else { return Ok(None) };
        Header::read(*bytes).map(Some)
    }

    fn is_whole(&self) -> bool {
        let header = self.header().ok().flatten();
        header.is_some_and(|header| self.partial.len() == HEADER + header.length as usize)
    }
}

/// Writes values.
pub(crate) trait Put {
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    /// A text, so that it can be read: what is longer than any may be is cut off, and for a control
    /// character stands `?`. A name that somebody else gave must not break a link.
    fn put_text(&mut self, text: &str);
}

impl Put for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(limits::TEXT)];
        let safe: Cow<'_, str> = match text.contains(char::is_control) {
            false => text.into(),
            true => text.replace(char::is_control, "?").into(),
        };
        // A `?` is not longer than what it stands for.
        self.put_u16(u16::try_from(safe.len()).unwrap_or(0));
        self.extend_from_slice(safe.as_bytes());
    }
}

/// Reads the values of one frame.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Values<'a> {
    pub(crate) fn new(kind: Kind, content: &'a [u8]) -> Self {
        Self { what: kind.as_str(), rest: content }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], LinkError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(LinkError::Length(self.what))?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, LinkError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, LinkError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, LinkError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, LinkError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Bits of which each stands for something; the others are an error.
    pub(crate) fn flags(&mut self, known: u8, what: &'static str) -> Result<u8, LinkError> {
        let flags = self.u8()?;
        if flags & !known == 0 { Ok(flags) } else { Err(LinkError::Value(what)) }
    }

    /// A text without control characters.
    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, LinkError> {
        let length = usize::from(self.u16()?);
        if length > limits::TEXT {
            let (length, most) = (length as u64, limits::TEXT as u64);
            return Err(LinkError::TooLarge { what, length, most });
        }
        let (bytes, rest) =
            self.rest.split_at_checked(length).ok_or(LinkError::Length(self.what))?;
        self.rest = rest;
        let text = std::str::from_utf8(bytes).map_err(|_| LinkError::Value(what))?;
        if text.contains(char::is_control) { Err(LinkError::Value(what)) } else { Ok(text) }
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), LinkError> {
        if self.rest.is_empty() { Ok(()) } else { Err(LinkError::Length(self.what)) }
    }
}
