//! What became of a message's recipients. Floor 0.

use wavegate_smtp::{Reply, Settled, Stage, limits::REPLY_TEXT, reply::ReplyReader};

use crate::{
    LinkError,
    frame::{Frames, Kind, Put, Values, small_frame},
    limits,
};

/// Who a reply is from, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum How {
    /// The next hop's own.
    NextHop = 0,
    /// The gateway has synced the message and is responsible for it.
    Stored = 1,
    /// The gateway's own: it was not sent on.
    Gateway = 2,
    /// It was sent on and no reply came: it may have been delivered.
    InDoubt = 3,
}

impl How {
    /// All, by their numbers.
    pub const ALL: [Self; 4] = [Self::NextHop, Self::Stored, Self::Gateway, Self::InDoubt];

    /// Its name, in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NextHop => "next-hop",
            Self::Stored => "stored",
            Self::Gateway => "gateway",
            Self::InDoubt => "in-doubt",
        }
    }
}

/// For which recipients of the envelope something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum For {
    /// Those that nothing else is for.
    Others,
    /// These, by their places in the envelope.
    These(Vec<u32>),
}

impl For {
    /// Those that are named.
    fn named(&self) -> &[u32] {
        match self {
            Self::Others => &[],
            Self::These(these) => these,
        }
    }
}

/// One reply, for one or more recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who it is from.
    pub how: How,
    /// It was given before, and nothing was sent on now.
    pub known: bool,
    /// The table may have forgotten messages as old as this one.
    pub forgetful: bool,
    /// For whom.
    pub recipients: For,
    /// The reply.
    pub reply: Reply,
}

/// Recipients in one frame: these and the longest reply are less than its bound.
const NAMED: usize = 4096;

mod flag {
    pub(super) const KNOWN: u8 = 1;
    pub(super) const OTHERS: u8 = 2;
    pub(super) const FORGETFUL: u8 = 4;
    pub(super) const ALL: u8 = KNOWN | OTHERS | FORGETFUL;
}

impl Answer {
    /// The same reply for all.
    pub fn of_all(how: How, reply: Reply) -> Self {
        Self { how, known: false, forgetful: false, recipients: For::Others, reply }
    }

    /// Appends its frame; in several ones where there are too many recipients for one. All answers
    /// to a message go by [`write_answers`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut reply = Vec::new();
        self.reply.write(&mut reply);
        // Nearly too long, it may be so with its code in each line, which is read as text.
        if reply.len() > REPLY_TEXT && ReplyReader::default().read(&reply).is_err() {
            reply.clear();
            cut(&self.reply, REPLY_TEXT).write(&mut reply);
        }
        let named = self.recipients.named();
        let flag = if self.recipients == For::Others { flag::OTHERS } else { 0 };
        let known = if self.known { flag::KNOWN } else { 0 };
        let forgetful = if self.forgetful { flag::FORGETFUL } else { 0 };
        let mut pieces = named.chunks(NAMED);
        let mut piece = pieces.next().unwrap_or(&[]);
        loop {
            small_frame(Kind::Answer, out, |out| {
                out.push(self.how as u8);
                out.push(flag | known | forgetful);
                out.put_u32(u32::try_from(piece.len()).unwrap_or(0));
                piece.iter().for_each(|place| out.put_u32(*place));
                out.extend_from_slice(&reply);
            });
            match pieces.next() {
                Some(next) => piece = next,
                None => return,
            }
        }
    }

    fn read(content: &[u8], count: u32) -> Result<Self, LinkError> {
        let mut values = Values::new(Kind::Answer, content);
        let how = How::ALL.get(usize::from(values.u8()?)).copied();
        let how = how.ok_or(LinkError::Value("who an answer is from"))?;
        let flags = values.flags(flag::ALL, "an answer's flags")?;
        let named = values.u32()?;
        if named > count {
            let (length, most) = (u64::from(named), u64::from(count));
            return Err(LinkError::TooLarge { what: "a list of recipients", length, most });
        }
        let mut these = Vec::with_capacity((named as usize).min(content.len() / 4));
        for _ in 0..named {
            these.push(values.u32()?);
        }
        let others = flags & flag::OTHERS != 0;
        if others == (named > 0) {
            return Err(LinkError::Value("whom an answer is for"));
        }
        let text = values.rest();
        let reply = match ReplyReader::default().read(text) {
            // Nothing ends with a 3xx.
            Ok((used, Some(reply))) if used == text.len() && reply.code() / 100 != 3 => reply,
            _ => return Err(LinkError::Value("a reply")),
        };
        // Else one side would be responsible and the other not know it.
        let fits = match how {
            How::NextHop | How::Gateway => true,
            How::Stored => reply.is_positive(),
            How::InDoubt => reply.is_negative(),
        };
        if !fits {
            return Err(LinkError::Value("a reply of another kind than its answer"));
        }
        let recipients = if others { For::Others } else { For::These(these) };
        let (known, forgetful) = (flags & flag::KNOWN != 0, flags & flag::FORGETFUL != 0);
        Ok(Self { how, known, forgetful, recipients, reply })
    }
}

/// Appends all answers to a message, and what ends them. Where they are more than they may be
/// ([`limits::ANSWERS`]) replies are cut; code and enhanced code stay.
pub fn write_answers(all: &[Answer], out: &mut Vec<u8>) {
    let at = out.len();
    all.iter().for_each(|answer| answer.write(out));
    if out.len() - at > limits::ANSWERS {
        out.truncate(at);
        let (mut frames, mut named) = (0, 0);
        for answer in all {
            let these = answer.recipients.named().len();
            frames += these.div_ceil(NAMED).max(1);
            named += 4 * these;
        }
        let most = share(limits::ANSWERS.saturating_sub(named), frames);
        for answer in all {
            Answer { reply: cut(&answer.reply, most), ..answer.clone() }.write(out);
        }
    }
    write_done(out);
}

/// Appends what ends the answers to a message.
pub fn write_done(out: &mut Vec<u8>) {
    small_frame(Kind::Done, out, |_| {});
}

/// What each of so many replies may have of so many bytes.
fn share(bytes: usize, replies: usize) -> usize {
    // What is in a frame beside positions and text is less than this.
    const AROUND: usize = 24;
    (bytes / replies.max(1)).saturating_sub(AROUND)
}

/// The beginning of a reply's first line; its code and enhanced code in any case.
fn cut(reply: &Reply, most: usize) -> Reply {
    let mut line = Vec::new();
    reply.write(&mut line);
    let codes = "550 5.999.999".len();
    let end = line.iter().position(|byte| *byte == b'\r').unwrap_or(0).min(most.max(codes));
    line.truncate(end);
    if let Some(parts) = line.get_mut(3) {
        *parts = b' ';
    }
    // Half a character would come back as a `?`.
    while std::str::from_utf8(&line).is_err() {
        line.pop();
    }
    line.extend_from_slice(b"\r\n");
    match ReplyReader::default().read(&line) {
        Ok((_, Some(cut))) => cut,
        _ => reply.clone(),
    }
}

/// All answers to one message: one for each recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    all: Vec<Answer>,
    /// For each recipient the place of its answer.
    by_recipient: Vec<u32>,
}

impl Answers {
    /// The answer for a recipient; none where there is no such recipient.
    pub fn of(&self, recipient: u32) -> Option<&Answer> {
        let place = *self.by_recipient.get(recipient as usize)?;
        self.all.get(place as usize)
    }

    /// All of them, as they came.
    pub fn all(&self) -> &[Answer] {
        &self.all
    }

    /// Recipients that have an answer of this kind.
    pub fn with(&self, how: How) -> impl Iterator<Item = u32> {
        let answers = (0..).zip(&self.by_recipient);
        answers
            .filter(move |(_, place)| {
                self.all.get(**place as usize).is_some_and(|answer| answer.how == how)
            })
            .map(|(recipient, _)| recipient)
    }

    /// The same as SMTP would have settled it: the reply of the first recipient that was taken, or
    /// of the first one, and those that have another. It has no more text than would have come by
    /// SMTP: where one long reply is for many it is cut.
    pub fn settled(&self) -> Option<Settled> {
        let of = |place: u32| self.all.get(place as usize).map(|answer| &answer.reply);
        let is_taken = |place: &u32| of(*place).is_some_and(Reply::is_positive);
        let mut places = self.by_recipient.iter().copied();
        let main = places.clone().find(is_taken).or_else(|| places.next())?;
        let reply = of(main)?.clone();
        let others = (0..).zip(&self.by_recipient).filter(|(_, place)| **place != main);
        let others = others.filter_map(|(recipient, place)| Some((recipient, of(*place)?)));
        let others = others.filter(|(_, other)| **other != reply);
        let (count, bytes) = others.clone().fold((0, 0), |(count, bytes), (_, reply)| {
            (count + 1, bytes + reply.lines().map(str::len).sum::<usize>())
        });
        let most = share(limits::ANSWERS, count);
        let refused = others.map(|(recipient, reply)| match bytes > limits::ANSWERS {
            true => (recipient, cut(reply, most)),
            false => (recipient, reply.clone()),
        });
        Some(Settled { reply: reply.clone(), refused: refused.collect(), stage: Stage::End })
    }
}

/// No answer yet.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    /// DONE has come.
    Done,
    /// What came was wrong.
    Wrong(LinkError),
}

/// Reads the answers to a message; the edge's side of its stream.
#[derive(Debug)]
pub struct Answering {
    state: State,
    frames: Frames,
    bytes: usize,
    /// Each is for a recipient that had none before, or for the others: one more than recipients.
    all: Vec<Answer>,
    by_recipient: Vec<u32>,
    others: u32,
}

impl Answering {
    /// Of a message with so many recipients.
    pub fn new(count: u32) -> Self {
        let (frames, all) = (Frames::default(), Vec::new());
        let by_recipient = vec![NONE; count as usize];
        Self { state: State::Reading, frames, bytes: 0, all, by_recipient, others: NONE }
    }

    /// Takes what came; all answers once they are there. What stands behind them is not looked at:
    /// the message is settled.
    ///
    /// # Errors
    /// If the gateway does not keep to the protocol; from then on it is that error.
    pub fn receive(&mut self, input: &[u8]) -> Result<Option<Answers>, LinkError> {
        let received = self.try_receive(input);
        if let Err(error) = received {
            self.state = State::Wrong(error);
        }
        received
    }

    fn try_receive(&mut self, mut input: &[u8]) -> Result<Option<Answers>, LinkError> {
        let allowed = |kind| matches!(kind, Kind::Answer | Kind::Done);
        while !input.is_empty() {
            match self.state {
                State::Reading => {}
                State::Done => return Ok(None),
                State::Wrong(error) => return Err(error),
            }
            let (used, whole) = self.frames.read(input, allowed)?;
            input = &input[used..];
            match whole {
                None => {}
                Some((Kind::Answer, content)) => {
                    self.bytes += content.len();
                    if self.bytes > limits::ANSWERS {
                        let (length, most) = (self.bytes as u64, limits::ANSWERS as u64);
                        return Err(LinkError::TooLarge { what: "the answers", length, most });
                    }
                    let count = u32::try_from(self.by_recipient.len()).unwrap_or(u32::MAX);
                    let answer = Answer::read(content, count)?;
                    self.add(answer)?;
                }
                Some(_) => return self.done().map(Some),
            }
        }
        Ok(None)
    }

    /// Bytes that it keeps of what came.
    pub fn weight(&self) -> usize {
        self.frames.weight() + self.bytes
    }

    fn add(&mut self, answer: Answer) -> Result<(), LinkError> {
        let place = u32::try_from(self.all.len()).unwrap_or(NONE);
        match &answer.recipients {
            For::Others if self.others == NONE => self.others = place,
            For::Others => return Err(LinkError::Value("a second answer for all others")),
            For::These(these) => {
                for &recipient in these {
                    let one = self.by_recipient.get_mut(recipient as usize);
                    let one = one.ok_or(LinkError::Value("the position of a recipient"))?;
                    if *one != NONE {
                        return Err(LinkError::Answers(recipient));
                    }
                    *one = place;
                }
            }
        }
        self.all.push(answer);
        Ok(())
    }

    fn done(&mut self) -> Result<Answers, LinkError> {
        let mut by_recipient = std::mem::take(&mut self.by_recipient);
        for (recipient, place) in (0..).zip(&mut by_recipient) {
            if *place == NONE {
                *place = self.others;
            }
            if *place == NONE {
                return Err(LinkError::Answers(recipient));
            }
        }
        self.state = State::Done;
        Ok(Answers { all: std::mem::take(&mut self.all), by_recipient })
    }
}
