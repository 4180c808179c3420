//! Content: DATA, BDAT, and payload that is skipped.
//!
//! Owns staying in step with a client whose message cannot be taken. What is
//! wrong with content is [`crate::body`]'s.
//!
//! Floor 0.

use super::{Awaited, Phase, Server, SkipReply, Step, Transaction};
use crate::body::{BodyFacts, MessageFault, Progress};
use crate::reply::write_number;

impl Server {
    pub(super) fn data<'a>(&mut self, input: &'a [u8]) -> (usize, Option<Step<'a>>) {
        let max_size = self.max_size();
        let limits = &self.config.limits;
        let Phase::Data(receiver) = &mut self.phase else { return (0, None) };
        let (taken, progress) = receiver.receive(input, limits, max_size);
        let step = match progress {
            Progress::Content(content) => Some(Step::Body(content)),
            Progress::More => None,
            Progress::End => {
                let facts = receiver.finish(limits, max_size);
                Some(self.end(facts))
            }
        };
        (taken, step)
    }

    pub(super) fn chunk<'a>(&mut self, input: &'a [u8]) -> (usize, Option<Step<'a>>) {
        let max_size = self.max_size();
        let limits = &self.config.limits;
        let (Phase::Chunk { size, last }, Some(chunks)) = (&self.phase, &mut self.chunks) else {
            return (0, None);
        };
        let (taken, progress) = chunks.receive(input, limits);
        let step = match progress {
            Progress::Content(content) => Some(Step::Body(content)),
            Progress::More => None,
            Progress::End if *last => {
                let facts = chunks.finish(limits, max_size);
                Some(self.end(facts))
            }
            Progress::End => {
                self.output.extend_from_slice(b"250 2.0.0 ");
                write_number(*size, &mut self.output);
                self.output.extend_from_slice(b" octets received\r\n");
                self.phase = Phase::Command;
                None
            }
        };
        (taken, step)
    }

    /// The message has ended.
    fn end(&mut self, facts: Result<BodyFacts, MessageFault>) -> Step<'static> {
        self.phase = Phase::Command;
        self.end_transaction();
        match facts {
            Ok(facts) => {
                self.awaited = Awaited::End;
                Step::End(facts)
            }
            Err(fault) => {
                self.say(fault.reply());
                Step::Dropped(fault)
            }
        }
    }

    pub(super) fn begin_chunk(&mut self, size: u64, last: bool) {
        let max_size = self.max_size();
        if self.chunks.get_or_insert_default().begin(size, max_size) {
            self.transaction = Transaction::Chunks;
            self.phase = Phase::Chunk { size, last };
        } else {
            self.skip(size, last, SkipReply::TooLarge);
        }
    }

    /// Skips a chunk's payload, and all chunks behind it up to LAST (RFC 3030
    /// 2).
    pub(super) fn skip(&mut self, size: u64, last: bool, reply: SkipReply) {
        self.chunks = None;
        self.transaction = if last { Transaction::None } else { Transaction::Discard };
        self.phase = Phase::Skip { remaining: size, reply };
    }

    pub(super) fn skip_payload(&mut self, input: &[u8]) -> (usize, Option<Step<'static>>) {
        let Phase::Skip { remaining, .. } = &mut self.phase else { return (0, None) };
        let taken = input.len().min(usize::try_from(*remaining).unwrap_or(usize::MAX));
        *remaining -= taken as u64;
        if *remaining > 0 {
            return (taken, None);
        }
        let Phase::Skip { reply, .. } = std::mem::replace(&mut self.phase, Phase::Command) else {
            return (taken, None);
        };
        match reply {
            SkipReply::TooLarge => {
                self.say(MessageFault::TooLarge.reply());
                return (taken, Some(Step::Dropped(MessageFault::TooLarge)));
            }
            SkipReply::OutOfOrder => self.out_of_order(),
            SkipReply::Lacking(reply) => self.error(reply),
            SkipReply::Fixed(reply) => self.say(reply),
            SkipReply::Given(reply) => reply.write(&mut self.output),
        }
        (taken, None)
    }
}
