//! One message over a link, to the end: also when its connection is lost on the way. Floor 3.
//!
//! Before END it is uncommitted, as by SMTP. Then a gateway that is asked again with the same id answers
//! once (`relay/link/PROTOCOL.md`, "Once"); so the same gateway is asked, with the whole message, until it
//! has answered or `final_timeout` is over. It counts as in flight all the while. The window is looked
//! at before each END: a gateway that does not know the message would send it on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use wavegate_link::{Answers, Client, EnvelopeRef, How, message as frames};
use wavegate_smtp::{BodyShape, Enhanced, Settled, Unsupported, client::check_support};

use super::{Broken, End, Job, Look, Place};
use crate::{
    body::Body,
    event::Event,
    message::Source,
    parcel::Message,
    replies::relay_reply,
    upstream::{
        Channel, ConnectionError, Lease, LinkFault, Way,
        connection::{Commit, WriteError},
        link::Stream,
    },
    waves::{Attempt, Blocked},
};

/// Content up to here is copied behind its envelope: one piece is cheaper than several.
const SMALL: usize = 8 << 10;
/// Bytes that are given to a stream at once, each with its own time. Of a body that is not in
/// memory so many are.
const SEGMENT: usize = 64 << 10;
/// The longest DATA frame.
const FRAME: u64 = 1 << 30;
/// First pause before a gateway is asked once more that gives the message up each time; doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// Why one stream was of no use.
enum Lost {
    /// The window forbids END.
    Held(Blocked),
    /// The gateway cannot be given this message.
    Unsupported(Unsupported),
    /// It broke.
    Broken(ConnectionError),
}

/// A message that is asked about until its end is known.
struct Asking<'a> {
    job: &'a Job,
    /// How many of its recipients the gateway hears of.
    count: usize,
    /// Where END was written and no answer came: which processes of the gateway.
    lost: Vec<[u8; 16]>,
    /// When it is given up, once END was written.
    deadline: Option<Instant>,
}

impl Job {
    /// One message over a link. The lease's slot and the attempt's place are given back where it has to
    /// be asked about again, as long as not too many are.
    pub(super) async fn transact_by_link(
        &self,
        lease: &mut Lease,
        attempt: &mut Attempt,
        place: &mut Option<Place>,
    ) -> Result<Settled, Broken> {
        let begun = Instant::now();
        let target = lease.endpoint().clone();
        let mut asking = Asking { job: self, count: 0, lost: Vec::new(), deadline: None };
        let Way::Link(channel) = lease.way() else { unreachable!("the lease is of a link") };
        let mut answered = asking.once(channel, attempt).await;
        let mut incarnation = channel.incarnation();
        // The way is long for every message. What makes a gateway slow is the rest.
        let way = channel.round_trip();
        let mut pause = Duration::ZERO;
        let mut doubt = None;
        while let Err(lost) = answered {
            let deadline = match (asking.deadline, lost) {
                (None, Lost::Unsupported(why)) => {
                    return Err(Broken::Over(End::Unsupported(why)));
                }
                (Some(_), Lost::Unsupported(why)) => {
                    let error = LinkFault::from(why).into();
                    return Err(Broken::Over(End::InDoubt(error)));
                }
                (None, Lost::Held(blocked)) => return Err(Broken::Over(End::Held(blocked))),
                (None, Lost::Broken(error)) => return Err(Broken::Connection(error.to_string())),
                (Some(deadline), Lost::Broken(error)) if Instant::now() < deadline => {
                    let (id, upstream) = (self.message.id, &self.upstream.config.name);
                    tracing::debug!(%id, upstream, %error, "a message is asked about again");
                    deadline
                }
                (Some(_), Lost::Broken(error)) => return Err(Broken::Over(End::InDoubt(error))),
                (Some(_), Lost::Held(blocked)) => {
                    let error = ConnectionError::Held(blocked.phase.as_str());
                    return Err(Broken::Over(End::InDoubt(error)));
                }
            };
            *lease.way() = Way::None;
            if doubt.is_none() {
                doubt = self.upstream.begin_doubt();
            }
            if doubt.is_some() {
                lease.leave_slot();
                *place = None;
            }
            self.upstream.note_resumed();
            // At once, and then slower and slower.
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).clamp(PAUSE, PAUSE_MOST);
            let channel = self.upstream.channel_to(&target);
            answered = match tokio::time::timeout_at(deadline, channel).await {
                Ok(Some(channel)) => {
                    incarnation = channel.incarnation();
                    // What was committed stays so, so it may be left anywhere.
                    let asked = tokio::time::timeout_at(deadline, asking.once(&channel, attempt));
                    let late = LinkFault::Late(self.upstream.config.final_timeout);
                    asked.await.unwrap_or(Err(Lost::Broken(late.into())))
                }
                Ok(None) | Err(_) => {
                    let time = self.upstream.config.final_timeout;
                    Err(Lost::Broken(LinkFault::Late(time).into()))
                }
            };
        }
        let Ok(answers) = answered else { unreachable!("asked until there are answers") };
        self.message.set_in_doubt(false);
        asking.tell_doubts(&answers, incarnation, target.address);
        self.upstream.report_answer(begun.elapsed().saturating_sub(way));
        let Some(settled) = asking.settled(&answers) else {
            unreachable!("there is a recipient, so there is an answer")
        };
        Ok(settled)
    }
}

impl Asking<'_> {
    /// One stream, from the envelope to the answers.
    async fn once(&mut self, channel: &Channel, attempt: &mut Attempt) -> Result<Answers, Lost> {
        let Job { message, upstream, relay, .. } = self.job;
        let time = upstream.config.reply_timeout;
        let begin = self.begin(channel)?;
        let mut stream = channel.begin(u32::try_from(self.count).unwrap_or(u32::MAX), time).await?;
        if let Some(answers) = write(&mut stream, begin, message, time).await? {
            return Ok(answers);
        }
        let look = Look { waves: &relay.waves, attempt, message };
        let mut look = Once { look, before: !self.lost.is_empty() };
        let size = content(message);
        match stream.end(size, &mut look, time).await {
            Ok(Some(answers)) => return Ok(answers),
            Ok(None) => {}
            Err(WriteError::Held(blocked)) => return Err(Lost::Held(blocked)),
            Err(WriteError::Broken(error)) => return Err(Lost::Broken(error)),
        }
        let until = || Instant::now() + upstream.config.final_timeout;
        let deadline = *self.deadline.get_or_insert_with(until);
        let answers = stream.answers(deadline).await;
        if answers.is_err() {
            self.lost.push(channel.incarnation());
        }
        Ok(answers?)
    }

    /// The first bytes: ENVELOPE. Recipients that the gateway has no room for are not in it.
    fn begin(&mut self, channel: &Channel) -> Result<Vec<u8>, Lost> {
        let Job { message, recipients, instance, .. } = self.job;
        let Message { id, source, head, parcel, .. } = &**message;
        let offered = channel.extensions();
        let all = || recipients.iter().map(|&index| &parcel.recipients[index as usize]);
        let shape = BodyShape::of(&parcel.facts, head.len() as u64);
        check_support(&parcel.mail, all(), &shape, offered).map_err(Lost::Unsupported)?;
        let client = client(source);
        let mut count = recipients.len().min(channel.recipients().max(1) as usize);
        let mut out = Vec::with_capacity(1024);
        loop {
            let envelope = EnvelopeRef {
                id: id.key(),
                received: id.time().0,
                size: content(message),
                instance: instance.as_ref().map_or("", |instance| instance.name()),
                client: &client,
                mail: &parcel.mail,
                recipients: all().take(count),
            };
            match envelope.write(offered, &mut out) {
                Ok(()) => break,
                Err(error) if count == 1 => return Err(Lost::Broken(error.into())),
                Err(_) => count = count.div_ceil(2),
            }
        }
        self.count = count;
        Ok(out)
    }

    /// As SMTP would have settled it. Whoever was not in the envelope is for the next time.
    fn settled(&self, answers: &Answers) -> Option<Settled> {
        let mut settled = answers.settled()?;
        let all = self.job.recipients.len();
        if self.count < all {
            let text = "the gateway takes fewer recipients at once";
            let reply = relay_reply(452, Enhanced(4, 5, 3), text);
            let left = (0..).take(all).skip(self.count);
            settled.refused.extend(left.map(|at| (at, reply.clone())));
        }
        Some(settled)
    }

    /// Tells where a message may arrive twice, or has arrived and nobody knows.
    fn tell_doubts(&self, answers: &Answers, incarnation: [u8; 16], target: SocketAddr) {
        let all = answers.all();
        if all.iter().any(|one| one.known) {
            self.job.upstream.note_known();
        }
        let is_known = all.iter().all(|one| one.known);
        let is_forgetful = all.iter().any(|one| one.forgetful);
        let others = self.lost.iter().any(|one| *one != incarnation);
        let several = self.lost.windows(2).any(|pair| pair[0] != pair[1]);
        // An answer that is known may be to the second of two that did not know each other.
        let again = match is_known {
            true => several,
            false => others || is_forgetful && !self.lost.is_empty(),
        };
        if again {
            self.tell(target, "the gateway does not know whether it was sent on before");
        }
        if let Some(doubt) = all.iter().find(|one| one.how == How::InDoubt) {
            self.tell(target, &format!("behind the gateway: {}", doubt.reply));
        }
    }

    fn tell(&self, target: SocketAddr, error: &str) {
        let Job { relay, instance, message, upstream, .. } = self.job;
        let instance = instance.as_ref().map(|instance| &**instance.name());
        let upstream = &upstream.config.name;
        let target = Some(target);
        relay.emit(&Event::InDoubt { instance, id: message.id, upstream, target, error });
    }
}

impl From<LinkFault> for Lost {
    fn from(fault: LinkFault) -> Self {
        Self::Broken(fault.into())
    }
}

/// The look. What was committed once stays so, whatever becomes of a second END.
struct Once<'a> {
    look: Look<'a>,
    before: bool,
}

impl Commit for Once<'_> {
    type Refusal = Blocked;

    fn commit(&mut self) -> Result<(), Blocked> {
        self.look.commit()
    }

    fn uncommit(&mut self) {
        if !self.before {
            self.look.uncommit();
        }
    }
}

/// Bytes of the content.
fn content(message: &Message) -> u64 {
    message.head.len() as u64 + message.parcel.body.len()
}

/// Writes ENVELOPE and the content; the answers, where they come first.
async fn write(
    stream: &mut Stream,
    begin: Vec<u8>,
    message: &Arc<Message>,
    time: Duration,
) -> Result<Option<Answers>, Lost> {
    let mut left = content(message);
    let mut out = begin;
    let header = |left: u64, out: &mut Vec<u8>| {
        let length = left.min(FRAME);
        out.extend_from_slice(&frames::data(u32::try_from(length).unwrap_or(u32::MAX)));
        length
    };
    if left == 0 {
        return Ok(stream.write(&mut [out.into()], time).await?);
    }
    let head = &message.head[..];
    let memory = message.parcel.body.as_memory().filter(|_| left <= FRAME);
    if let Some(body) = memory {
        header(left, &mut out);
        out.extend_from_slice(head);
        if body.len() <= SMALL {
            out.extend_from_slice(body);
            return Ok(stream.write(&mut [out.into()], time).await?);
        }
        let body = Bytes::from_owner(InMemory(Arc::clone(message)));
        let first = body.slice(..SEGMENT.min(body.len()));
        let mut at = first.len();
        let mut pieces = [out.into(), first];
        let mut answers = stream.write(&mut pieces, time).await?;
        while answers.is_none() && at < body.len() {
            let piece = body.slice(at..body.len().min(at + SEGMENT));
            at += piece.len();
            answers = stream.write(&mut [piece], time).await?;
        }
        return Ok(answers);
    }
    let mut source = Pieces { head, body: &message.parcel.body, at: 0 };
    let mut frame = 0;
    while left > 0 {
        if frame == 0 {
            frame = header(left, &mut out);
        }
        let count = source.read(frame, &mut out)?;
        (frame, left) = (frame - count, left - count);
        let piece = std::mem::take(&mut out);
        if let Some(answers) = stream.write(&mut [piece.into()], time).await? {
            return Ok(Some(answers));
        }
    }
    Ok(None)
}

/// Keeps a message for as long as bytes of it are on their way.
struct InMemory(Arc<Message>);

impl AsRef<[u8]> for InMemory {
    fn as_ref(&self) -> &[u8] {
        self.0.parcel.body.as_memory().unwrap_or_default()
    }
}

/// A content that is not in memory, piece by piece.
struct Pieces<'a> {
    head: &'a [u8],
    body: &'a Body,
    at: u64,
}

impl Pieces<'_> {
    /// Appends up to `most` bytes of what follows: how many. There are some.
    fn read(&mut self, most: u64, out: &mut Vec<u8>) -> Result<u64, Lost> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(SEGMENT);
        if !self.head.is_empty() {
            let (first, rest) = self.head.split_at(self.head.len().min(most));
            out.extend_from_slice(first);
            self.head = rest;
            return Ok(first.len() as u64);
        }
        let from = out.len();
        out.resize(from + most, 0);
        let read = self.body.read_full(self.at, &mut out[from..]);
        let count = read.map_err(|error| Lost::Broken(ConnectionError::Io(error)))?;
        if count == 0 {
            // A file that is shorter than what was written into it: the disk lied.
            let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Lost::Broken(ConnectionError::Io(error)));
        }
        out.truncate(from + count);
        self.at += count as u64;
        Ok(count as u64)
    }
}

/// The client as the link says it.
fn client(source: &Source) -> Client {
    let Source { client, port, name, helo, extended, secured, user, destination, .. } = source;
    Client {
        address: *client,
        port: *port,
        name: plain(name.as_deref().unwrap_or_default()),
        helo: plain(helo),
        extended: *extended,
        secured: secured.map(|one| (u8::try_from(one.cipher).unwrap_or(0), one.resumed)),
        user: plain(user.as_deref().unwrap_or_default()),
        destination: *destination,
    }
}

/// A text without control characters: with one, the gateway would have to end the connection.
fn plain(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).collect()
}
