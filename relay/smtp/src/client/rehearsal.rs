//! Asking about a recipient without sending a message.
//!
//! Owns which reply answers what, and that the upstream is left as it was.
//!
//! Floor 0.

use super::envelope::Questions;
use super::transaction::After;
use crate::reply::Reply;

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rehearsed {
    /// It would be taken: the reply to RCPT.
    Taken(Reply),
    /// It would not, and this was refused.
    Refused(Asked, Reply),
}

/// A command of a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// RSET, of what was before.
    Clean,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// RSET.
    Rset,
}

impl Asked {
    /// Its verb.
    pub fn as_str(self) -> &'static str {
        match self {
            Asked::Mail => "MAIL",
            Asked::Rcpt => "RCPT",
            Asked::Clean | Asked::Rset => "RSET",
        }
    }

    fn next(self) -> Option<Asked> {
        match self {
            Asked::Clean => Some(Asked::Mail),
            Asked::Mail => Some(Asked::Rcpt),
            Asked::Rcpt => Some(Asked::Rset),
            Asked::Rset => None,
        }
    }
}

const RSET: &[u8] = b"RSET\r\n";

#[derive(Debug)]
pub(super) struct Rehearsal {
    awaited: Asked,
    questions: Questions,
    pipelined: bool,
    /// The first reply that said no, or RCPT's.
    found: Option<Rehearsed>,
}

impl Rehearsal {
    /// A rehearsal, and what to write first.
    pub(super) fn begin(
        questions: Questions,
        pipelined: bool,
        reset: bool,
        output: &mut Vec<u8>,
    ) -> Rehearsal {
        let awaited = if reset { Asked::Clean } else { Asked::Mail };
        let rehearsal = Rehearsal { awaited, questions, pipelined, found: None };
        let mut at = Some(awaited);
        while let Some(asked) = at {
            output.extend_from_slice(rehearsal.command(asked));
            at = asked.next().filter(|_| pipelined);
        }
        rehearsal
    }

    fn command(&self, asked: Asked) -> &[u8] {
        match asked {
            Asked::Mail => &self.questions.mail,
            Asked::Rcpt => &self.questions.rcpt,
            Asked::Clean | Asked::Rset => RSET,
        }
    }

    /// Takes the next reply; when all is said, what came of it and what the session is good for.
    pub(super) fn reply(
        &mut self,
        reply: Reply,
        output: &mut Vec<u8>,
    ) -> Option<(Rehearsed, After)> {
        let asked = self.awaited;
        let (closing, refused) = (reply.code() == 421, !reply.is_positive());
        match (asked, &self.found) {
            (_, None) if refused => self.found = Some(Rehearsed::Refused(asked, reply)),
            (Asked::Rcpt, None) => self.found = Some(Rehearsed::Taken(reply)),
            // It took the recipient, and is not to be brought back to where it was.
            (Asked::Rset, Some(Rehearsed::Taken(_))) if refused => {
                self.found = Some(Rehearsed::Refused(asked, reply));
            }
            _ => {}
        }
        // RFC 5321 3.8: after a 421 the upstream closes. Who refuses RSET is not to be trusted.
        let over = closing || (refused && matches!(asked, Asked::Clean | Asked::Rset));
        // Not pipelined: with MAIL refused there is no transaction, and the next one's first
        // command ends what there is.
        let early = refused && !self.pipelined;
        match asked.next() {
            Some(next) if !over && !early => {
                if !self.pipelined {
                    output.extend_from_slice(self.command(next));
                }
                self.awaited = next;
                None
            }
            _ => {
                let after = After { needs_rset: early && !over, usable: !over };
                self.found.take().map(|found| (found, after))
            }
        }
    }
}
