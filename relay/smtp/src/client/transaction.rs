//! One transaction with an upstream.
//!
//! Owns which reply answers what, and what they come to for each recipient.
//!
//! Floor 0.

use std::collections::VecDeque;

use memchr::memchr;

use super::envelope::{BodyShape, Commands};
use super::{BodyForm, ClientEvent, Misbehaviour};
use crate::extensions::{Extension, Extensions};
use crate::reply::Reply;
use crate::stuff;

/// How far a transaction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// MAIL was refused.
    Mail,
    /// Every RCPT was refused.
    Recipients,
    /// DATA was refused.
    Data,
    /// The message was sent, or its reply came while it was.
    End,
}

/// What a transaction came to. Replies are as the upstream gave them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The reply for all recipients that were not refused on their own.
    pub reply: Reply,
    /// The recipients that RCPT refused, by index, with its reply.
    pub refused: Vec<(u32, Reply)>,
    /// How far it came.
    pub stage: Stage,
}

impl Settled {
    /// The reply for one recipient.
    pub fn for_recipient(&self, index: u32) -> &Reply {
        match self.refused.binary_search_by_key(&index, |(refused, _)| *refused) {
            Ok(at) => &self.refused[at].1,
            Err(_) => &self.reply,
        }
    }
}

/// The command whose reply comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Rset,
    Forward,
    Mail,
    Rcpt,
    Data,
    /// The empty message that ends a DATA for which there is nobody.
    LoneDot,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    NotAsked,
    Asked,
    Sent,
}

/// What a transaction leaves behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct After {
    /// The upstream still has it open.
    pub(super) needs_rset: bool,
    pub(super) usable: bool,
}

#[derive(Debug)]
pub(super) struct Transaction {
    awaited: Awaited,
    body: Body,
    form: BodyForm,
    pipelined: bool,
    untouched: bool,
    /// XFORWARD commands that are not answered yet.
    forwards: u32,
    not_forwarded: bool,
    recipients: u32,
    answered: u32,
    refused: Vec<(u32, Reply)>,
    /// The reply that refused MAIL.
    mail_refused: Option<Reply>,
    /// Without PIPELINING: commands that wait for their turn.
    later: VecDeque<u8>,
}

impl Transaction {
    /// The transaction, what to write first, and what to tell at once.
    pub(super) fn begin(
        commands: Commands,
        shape: &BodyShape,
        extensions: &Extensions,
        reset: bool,
    ) -> (Transaction, Vec<u8>, Option<ClientEvent>) {
        let form = match extensions.has(Extension::Chunking) {
            true => BodyForm::Chunk,
            false => BodyForm::Data { stuff: shape.leading_dot },
        };
        let mut transaction = Transaction {
            awaited: match (reset, commands.forwards) {
                (true, _) => Awaited::Rset,
                (false, 0) => Awaited::Mail,
                (false, _) => Awaited::Forward,
            },
            body: Body::NotAsked,
            form,
            pipelined: extensions.has(Extension::Pipelining),
            untouched: true,
            forwards: commands.forwards,
            not_forwarded: false,
            recipients: commands.recipients,
            answered: 0,
            refused: Vec::new(),
            mail_refused: None,
            later: VecDeque::new(),
        };
        if !transaction.pipelined {
            transaction.later = commands.text.into();
            let mut output = Vec::new();
            transaction.next_command(&mut output);
            return (transaction, output, None);
        }
        let mut event = None;
        if form == BodyForm::Chunk {
            transaction.body = Body::Asked;
            event = Some(ClientEvent::SendBody(form));
        }
        (transaction, commands.text, event)
    }

    pub(super) fn touched(&mut self) {
        self.untouched = false;
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.untouched
    }

    /// Whether XFORWARD was refused.
    pub(super) fn is_not_forwarded(&self) -> bool {
        self.not_forwarded
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.body == Body::Sent
    }

    pub(super) fn body_sent(&mut self) {
        assert!(self.body == Body::Asked, "the body was not asked for");
        self.body = Body::Sent;
        self.untouched = false;
    }

    /// Takes the reply to what was awaited. Something is returned once the
    /// transaction is settled.
    pub(super) fn reply(
        &mut self,
        reply: Reply,
        output: &mut Vec<u8>,
        events: &mut VecDeque<ClientEvent>,
    ) -> Result<Option<After>, Misbehaviour> {
        let code = reply.code();
        // RFC 5321 3.8: it may come instead of any reply.
        if code == 421 {
            let after = After { needs_rset: false, usable: false };
            return Ok(Some(self.settle(reply, after, events)));
        }
        if code / 100 == 3 && (self.awaited != Awaited::Data || code != 354) {
            return Err(Misbehaviour::Code(code));
        }
        match self.awaited {
            Awaited::Rset if reply.is_negative() => return Err(Misbehaviour::Code(code)),
            Awaited::Rset if self.forwards > 0 => self.advance(Awaited::Forward, output),
            Awaited::Rset => self.advance(Awaited::Mail, output),
            Awaited::Forward => self.forwarded(reply, output, events),
            Awaited::Mail => return Ok(self.mail(reply, output, events)),
            Awaited::Rcpt => return Ok(self.rcpt(reply, output, events)),
            Awaited::Data if reply.is_positive() => return Err(Misbehaviour::Code(code)),
            Awaited::Data => return Ok(self.data(reply, output, events)),
            Awaited::LoneDot => {
                let after = After { needs_rset: false, usable: true };
                return Ok(Some(self.settle(reply, after, events)));
            }
            Awaited::End if self.body != Body::Sent && reply.is_positive() => {
                return Err(Misbehaviour::BeforeBody(code));
            }
            Awaited::End => {
                // Refused in the middle of the body: the connection is out of
                // step unless all of it goes out, which is of no use.
                let after = After {
                    needs_rset: self.nobody() && self.mail_refused.is_none(),
                    usable: self.body == Body::Sent,
                };
                return Ok(Some(self.settle(reply, after, events)));
            }
        }
        Ok(None)
    }

    /// It is for the upstream's log: the message goes on without.
    fn forwarded(
        &mut self,
        reply: Reply,
        output: &mut Vec<u8>,
        events: &mut VecDeque<ClientEvent>,
    ) {
        if reply.is_negative() && !self.not_forwarded {
            self.not_forwarded = true;
            events.push_back(ClientEvent::NotForwarded(reply));
        }
        self.forwards -= 1;
        let next = if self.forwards > 0 { Awaited::Forward } else { Awaited::Mail };
        self.advance(next, output);
    }

    fn mail(
        &mut self,
        reply: Reply,
        output: &mut Vec<u8>,
        events: &mut VecDeque<ClientEvent>,
    ) -> Option<After> {
        if reply.is_negative() && !self.pipelined {
            self.mail_refused = Some(reply.clone());
            let after = After { needs_rset: false, usable: true };
            return Some(self.settle(reply, after, events));
        }
        if reply.is_negative() {
            self.mail_refused = Some(reply);
        }
        self.advance(Awaited::Rcpt, output);
        None
    }

    fn rcpt(
        &mut self,
        reply: Reply,
        output: &mut Vec<u8>,
        events: &mut VecDeque<ClientEvent>,
    ) -> Option<After> {
        let index = self.answered;
        self.answered += 1;
        let last = self.answered == self.recipients;
        if reply.is_negative() && self.mail_refused.is_none() {
            self.refused.push((index, reply.clone()));
        }
        if !last {
            self.advance(Awaited::Rcpt, output);
        } else if self.nobody() && !self.pipelined {
            let after = After { needs_rset: true, usable: true };
            return Some(self.settle(reply, after, events));
        } else if self.form == BodyForm::Chunk {
            self.advance(Awaited::End, output);
            if !self.pipelined {
                self.ask_body(events);
            }
        } else {
            self.advance(Awaited::Data, output);
        }
        None
    }

    fn data(
        &mut self,
        reply: Reply,
        output: &mut Vec<u8>,
        events: &mut VecDeque<ClientEvent>,
    ) -> Option<After> {
        if reply.is_negative() {
            let after = After { needs_rset: self.mail_refused.is_none(), usable: true };
            return Some(self.settle(reply, after, events));
        }
        if self.nobody() {
            // RFC 2920 3.1: the pipelined DATA was taken though nobody is to
            // get the message; a lone dot ends it.
            output.extend_from_slice(stuff::END);
            self.awaited = Awaited::LoneDot;
        } else {
            self.awaited = Awaited::End;
            self.ask_body(events);
        }
        None
    }

    /// Whether no recipient is left.
    fn nobody(&self) -> bool {
        self.mail_refused.is_some() || self.refused.len() == self.answered as usize
    }

    fn ask_body(&mut self, events: &mut VecDeque<ClientEvent>) {
        self.body = Body::Asked;
        events.push_back(ClientEvent::SendBody(self.form));
    }

    fn advance(&mut self, awaited: Awaited, output: &mut Vec<u8>) {
        self.awaited = awaited;
        if !self.pipelined {
            self.next_command(output);
        }
    }

    /// Moves the next command line to the output.
    fn next_command(&mut self, output: &mut Vec<u8>) {
        let length = memchr(b'\n', self.later.make_contiguous()).map_or(0, |at| at + 1);
        output.extend(self.later.drain(..length));
    }

    fn settle(&mut self, reply: Reply, after: After, events: &mut VecDeque<ClientEvent>) -> After {
        let stage = match self.awaited {
            _ if self.mail_refused.is_some() => Stage::Mail,
            Awaited::Rset | Awaited::Forward | Awaited::Mail => Stage::Mail,
            _ if self.nobody() => Stage::Recipients,
            Awaited::Rcpt => Stage::Recipients,
            Awaited::Data | Awaited::LoneDot => Stage::Data,
            Awaited::End => Stage::End,
        };
        let reply = self.mail_refused.take().unwrap_or(reply);
        let refused = std::mem::take(&mut self.refused);
        events.push_back(ClientEvent::Settled(Settled { reply, refused, stage }));
        after
    }
}
