//! One message: its stream is read, it is handed on, and its recipients are answered.
//!
//! Nothing is handed on before END. From then on that goes its way in a task of its own, whatever
//! becomes of the stream and its connection, and what comes of it is in the table of what was seen.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
};

use quinn::{Chunk, RecvStream, SendStream};
use tokio::time::Instant;
use wavegate_link::{
    Answer, Code, Envelope, How, Incoming, LinkError, Step,
    answer::{For, write_answers},
};
use wavegate_smtp::{BodyFacts, Enhanced, Limits, MessageFault, Reply, body::ChunkReceiver};

use super::{
    connection::{Connection, Counted},
    endpoint::code,
};
use crate::{
    body::BodyWriter,
    budget::{self, Level, Share, Use},
    envelope,
    event::{Busy, Event, Outcome, Via},
    handoff::{self, Part},
    message::{CIPHERS, MessageId, Secured, Source},
    parcel::Parcel,
    replies::marked,
    seen::{Asked, Key, Past, Pasts, Recipient},
    session::RATE_GRACE,
    world::Deadline,
};

/// Bytes that are read at once.
const READ: usize = 64 << 10;
/// A stream without its message: its state here and in QUIC, and an envelope of this size, which is read
/// even when memory is short.
const STREAM: usize = 4 << 10;

static NO_MEMORY: Reply =
    Reply::fixed(452, Enhanced(4, 3, 1), "wavegate: the relay is short of memory, try again later");
static NO_ROOM: Reply =
    Reply::fixed(452, Enhanced(4, 3, 1), "wavegate: no room for this message now");
static CUT_OFF: Reply = Reply::fixed(451, Enhanced(4, 3, 0), "wavegate: its hand-off was cut off");

/// Serves one stream to its end.
pub(super) async fn serve(
    connection: Arc<Connection>,
    counted: Counted,
    mut send: SendStream,
    recv: RecvStream,
) {
    let share = connection.gateway.relay.budget.share(Use::Sessions, STREAM);
    let mut receiving = Receiving::new(&connection, recv, share);
    let answers = match receiving.receive().await {
        Ok(Received::Whole(message)) => {
            let Receiving { recv, share, .. } = receiving;
            let handing = hand_on(Arc::clone(&connection), message, share);
            // It goes on though this stream does not.
            let handing = tokio::spawn(handing);
            match answered(&connection, recv, handing).await {
                Ok(answers) => answers,
                Err(fault) => return fault.tell(&connection, &mut send, None),
            }
        }
        Ok(Received::Answered(mut answers, why)) => {
            for answer in answers.iter_mut().filter(|answer| !answer.known) {
                answer.forgetful = receiving.forgetful;
            }
            // What is still to come of it is of no use.
            let _ = receiving.recv.stop(code(why));
            answers
        }
        Err(fault) => return fault.tell(&connection, &mut send, Some(&mut receiving.recv)),
    };
    tell(&connection, &mut send, &answers).await;
    drop(counted);
}

/// What came of reading a message.
enum Received {
    /// It may be handed on.
    Whole(Box<Whole>),
    /// It is answered already, and this is what the rest of it is stopped with.
    Answered(Vec<Answer>, Code),
}

/// A message that is whole.
struct Whole {
    envelope: Envelope,
    body: BodyWriter,
    facts: BodyFacts,
}

/// Why a stream ends without an answer.
enum Fault {
    Protocol(LinkError),
    Timeout,
    /// Less than `limits.data_rate`.
    Slow,
    /// There is no memory even for its envelope.
    Busy,
    /// The edge has reset it, or the connection is gone.
    Gone,
}

impl From<LinkError> for Fault {
    fn from(error: LinkError) -> Self {
        Self::Protocol(error)
    }
}

impl Fault {
    /// Resets the stream, and counts why.
    fn tell(self, connection: &Connection, send: &mut SendStream, recv: Option<&mut RecvStream>) {
        let answer = match self {
            Self::Protocol(error) => {
                connection.failed("a message is refused", &error, error.code());
                error.code()
            }
            Self::Timeout => {
                connection.failed("a message is refused", &"it took too long", Code::Timeout);
                Code::Timeout
            }
            Self::Slow => {
                connection.failed("a message is refused", &"it came too slowly", Code::Timeout);
                Code::Timeout
            }
            Self::Busy => {
                connection.gateway.tally.turned_away.fetch_add(1, Relaxed);
                Code::Busy
            }
            Self::Gone => Code::Cancelled,
        };
        // Either may be closed already.
        if let Some(recv) = recv {
            let _ = recv.stop(code(answer));
        }
        let _ = send.reset(code(answer));
    }
}

/// A message that is being received.
struct Receiving<'a> {
    connection: &'a Connection,
    recv: RecvStream,
    share: Share,
    incoming: Incoming,
    limits: Limits,
    deadline: Deadline,
    /// When the content began to come.
    begun: Option<Instant>,
    /// It may have been handed on before, and nobody knows.
    forgetful: bool,
}

/// What there is of a message.
struct Content {
    envelope: Envelope,
    receiver: ChunkReceiver,
    body: BodyWriter,
    came: u64,
}

impl<'a> Receiving<'a> {
    fn new(connection: &'a Connection, recv: RecvStream, share: Share) -> Self {
        let offer = connection.offer;
        // Larger ones are answered, as SMTP does: limits may have changed since HELLO.
        let incoming = Incoming::new(offer.recipients, u64::MAX);
        let limits = Limits { message_size: offer.size, ..Limits::default() };
        let mut deadline = Deadline::default();
        deadline.set(connection.gateway.relay.look().config.limits.data_timeout);
        Self { connection, recv, share, incoming, limits, deadline, begun: None, forgetful: false }
    }

    async fn receive(&mut self) -> Result<Received, Fault> {
        let mut content: Option<Box<Content>> = None;
        loop {
            let Some(chunk) = self.read().await? else {
                // The edge has finished, and END has not come.
                self.incoming.end()?;
                return Err(Fault::Gone);
            };
            let is_full = self.connection.gateway.relay.budget.level() == Level::Full;
            if content.is_none() && is_full && self.incoming.weight() > STREAM {
                // Nothing can be said of a message that nobody has looked for.
                self.short_of_memory();
                return Err(Fault::Busy);
            }
            let mut input = &chunk.bytes[..];
            // It is asked until all is used up: a frame that is empty needs no input.
            while !input.is_empty() {
                let (used, step) = self.incoming.step(input)?;
                input = &input[used..];
                match (step, &mut content) {
                    (Step::NeedInput, _) => {}
                    (Step::Envelope(envelope), content) => match self.begin(*envelope).await {
                        Ok(begun) => *content = Some(begun),
                        Err(answered) => return Ok(answered),
                    },
                    (Step::Data(bytes), Some(content)) => {
                        if let Err(answered) = content.push(bytes, &self.limits, self.connection) {
                            return Ok(answered);
                        }
                    }
                    (Step::End, content) => {
                        let Some(content) = content.take() else { return Err(Fault::Gone) };
                        return Ok(self.end(*content));
                    }
                    (Step::Data(_), None) => return Err(LinkError::Value("DATA").into()),
                }
            }
            self.weigh(content.as_deref());
            self.check_rate(content.as_deref())?;
        }
    }

    /// More of the stream; none at its end.
    async fn read(&mut self) -> Result<Option<Chunk>, Fault> {
        if self.begun.is_some() {
            // Each progress of the content begins another deadline; the envelope has one.
            self.deadline.set(self.connection.gateway.relay.look().config.limits.data_timeout);
        }
        let Self { recv, deadline, .. } = self;
        tokio::select! {
            biased;
            read = recv.read_chunk(READ, true) => read.map_err(|_| Fault::Gone),
            () = poll_fn(|cx| deadline.poll_passed(cx)) => Err(Fault::Timeout),
        }
    }

    /// Looks for what is known of a message before anything is said of it: whoever asks again for one
    /// that was handed on must not hear that it was not.
    async fn begin(&mut self, envelope: Envelope) -> Result<Box<Content>, Received> {
        let key = Key::new(&self.connection.peer, envelope.id);
        let seen = &self.connection.gateway.seen;
        let mut open = Open::new(&envelope);
        let mut known = Vec::new();
        if let Some(underway) = seen.underway(key)
            && let Some(pasts) = underway.ended().await
        {
            known.extend(open.take(&pasts));
        }
        let (pasts, forgetful) = seen.known(key);
        self.forgetful = forgetful;
        known.extend(open.take(&pasts));
        if open.is_empty() {
            self.connection.gateway.tally.known.fetch_add(count(&known), Relaxed);
            return Err(Received::Answered(known, Code::Closed));
        }
        if self.connection.gateway.relay.budget.level() == Level::Full {
            self.short_of_memory();
            return Err(no_room(self.connection, &NO_MEMORY));
        }
        let mut receiver = ChunkReceiver::default();
        if !receiver.begin(envelope.size, self.limits.message_size) {
            return Err(fault(self.connection, &envelope, MessageFault::TooLarge, Code::TooLarge));
        }
        self.begun = Some(Instant::now());
        let body = self.connection.gateway.relay.bodies.writer();
        Ok(Box::new(Content { envelope, receiver, body, came: 0 }))
    }

    fn end(&self, content: Content) -> Received {
        let Content { envelope, receiver, mut body, .. } = content;
        match receiver.finish(&self.limits, self.limits.message_size) {
            Ok(facts) => {
                // The spool's envelope is a copy, and its bytes are another.
                body.accompany(weight(&envelope) * 3);
                Received::Whole(Box::new(Whole { envelope, body, facts }))
            }
            Err(why) => fault(self.connection, &envelope, why, Code::Closed),
        }
    }

    /// Tells that there is no memory for a message.
    fn short_of_memory(&self) {
        let client = self.connection.quic.remote_address().ip().to_canonical();
        let refused = Event::TransactionRefused { client, reason: Busy::Memory };
        self.connection.gateway.relay.emit(&refused);
    }

    fn weigh(&mut self, content: Option<&Content>) {
        let envelope = content.map_or(0, |content| weight(&content.envelope));
        self.share.set(STREAM + self.incoming.weight() + envelope);
    }

    /// A message must come at a minimum rate, on average, after a minute's grace.
    fn check_rate(&self, content: Option<&Content>) -> Result<(), Fault> {
        let (Some(begun), Some(content)) = (self.begun, content) else { return Ok(()) };
        let elapsed = begun.elapsed();
        let rate = self.connection.gateway.relay.look().config.limits.data_rate;
        if elapsed >= RATE_GRACE && content.came < rate.saturating_mul(elapsed.as_secs()) {
            return Err(Fault::Slow);
        }
        Ok(())
    }
}

impl Content {
    fn push(
        &mut self,
        mut bytes: &[u8],
        limits: &Limits,
        connection: &Connection,
    ) -> Result<(), Received> {
        use wavegate_smtp::body::Progress;
        self.came += bytes.len() as u64;
        while !bytes.is_empty() {
            let (used, progress) = self.receiver.receive(bytes, limits);
            if let Progress::Content(content) = progress
                && let Err(error) = self.body.push(content)
            {
                tracing::warn!(%error, "a message cannot be kept");
                return Err(no_room(connection, &NO_ROOM));
            }
            if used == 0 {
                // It has all of the message; the protocol lets no more come.
                break;
            }
            bytes = &bytes[used..];
        }
        Ok(())
    }
}

/// Memory of an envelope.
fn weight(envelope: &Envelope) -> usize {
    let recipients = envelope.recipients.iter().map(envelope::weight).sum::<usize>();
    size_of::<Envelope>() + envelope.mail.sender.as_str().len() + recipients
}

fn no_room(connection: &Connection, reply: &Reply) -> Received {
    connection.gateway.tally.turned_away.fetch_add(1, Relaxed);
    Received::Answered(vec![Answer::of_all(How::Gateway, reply.clone())], Code::Busy)
}

/// A message that the protocol itself forbids.
fn fault(connection: &Connection, envelope: &Envelope, why: MessageFault, stop: Code) -> Received {
    let client = envelope.client.address;
    connection.gateway.relay.emit(&Event::MessageRejected { client, fault: why });
    Received::Answered(vec![Answer::of_all(How::Gateway, marked(why.reply()))], stop)
}

/// Recipients that have no answer yet.
struct Open {
    /// Their places in the envelope.
    places: Vec<u32>,
    all: Vec<Recipient>,
}

impl Open {
    fn new(envelope: &Envelope) -> Self {
        let all: Vec<Recipient> = envelope.recipients.iter().map(Recipient::new).collect();
        Self { places: (0..).take(all.len()).collect(), all }
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn of(&self, place: u32) -> Recipient {
        self.all[place as usize]
    }

    /// Answers those that were answered before.
    fn take(&mut self, pasts: &Pasts) -> Vec<Answer> {
        let which = pasts.by_recipient();
        let mut places = vec![Vec::new(); pasts.all().len()];
        let all = &self.all;
        self.places.retain(|&place| match which.get(&all[place as usize]) {
            Some(&past) => {
                places[past].push(place);
                false
            }
            None => true,
        });
        let answered = pasts.all().iter().zip(places).filter(|(_, places)| !places.is_empty());
        let answer = |(past, places): (&Past, Vec<u32>)| Answer {
            known: true,
            recipients: For::These(places),
            ..Answer::of_all(past.how, past.reply.clone())
        };
        answered.map(answer).collect()
    }
}

/// For how many recipients these are.
fn count(answers: &[Answer]) -> u64 {
    let of = |answer: &Answer| match &answer.recipients {
        For::Others => 0,
        For::These(these) => these.len() as u64,
    };
    answers.iter().map(of).sum()
}

/// Waits for the answers, while the edge finishes its side: nothing may stand behind END.
async fn answered(
    connection: &Connection,
    mut recv: RecvStream,
    mut handing: tokio::task::JoinHandle<Vec<Answer>>,
) -> Result<Vec<Answer>, Fault> {
    let mut finished = false;
    loop {
        tokio::select! {
            biased;
            read = recv.read_chunk(1, true), if !finished => match read {
                Ok(Some(chunk)) => {
                    return Err(LinkError::Unexpected(chunk.bytes[0]).into());
                }
                Ok(None) | Err(_) => finished = true,
            },
            handed = &mut handing => return Ok(handed.unwrap_or_else(|_| {
                connection.gateway.relay.emit(&Event::SessionPanicked);
                vec![Answer::of_all(How::InDoubt, CUT_OFF.clone())]
            })),
        }
    }
}

/// Hands a message on, unless it was handed on before.
async fn hand_on(
    connection: Arc<Connection>,
    message: Box<Whole>,
    mut share: Share,
) -> Vec<Answer> {
    let _working = connection.working();
    let gateway = &connection.gateway;
    gateway.tally.messages.fetch_add(1, Relaxed);
    connection.messages.fetch_add(1, Relaxed);
    share.set(STREAM + budget::HANDOFF);
    let Whole { envelope, body, facts } = *message;
    let key = Key::new(&connection.peer, envelope.id);
    let mut open = Open::new(&envelope);
    let mut answers = Vec::new();
    let (begun, forgetful) = loop {
        match gateway.seen.ask(key) {
            Asked::Underway(underway) => {
                if let Some(pasts) = underway.ended().await {
                    answers.extend(open.take(&pasts));
                }
            }
            Asked::Free { known, begun, forgetful } => {
                answers.extend(open.take(&known));
                break (Some(begun), forgetful);
            }
        }
        if open.is_empty() {
            break (None, false);
        }
    };
    gateway.tally.known.fetch_add(count(&answers), Relaxed);
    let (Some(begun), false) = (begun, open.is_empty()) else { return answers };
    let id = MessageId::new(gateway.relay.waves.now(), gateway.relay.world.entropy.next());
    let source = Arc::new(source(&envelope, &gateway.name));
    let edge_id = String::from_utf8_lossy(&envelope.id).into_owned();
    let Envelope { mail, mut recipients, .. } = envelope;
    if open.places.len() < recipients.len() {
        let mut place = 0..;
        recipients
            .retain(|_| place.next().is_some_and(|at: u32| open.places.binary_search(&at).is_ok()));
    }
    let parcel = Parcel { mail, recipients, body: body.finish(), facts };
    let via = Via { edge: &connection.peer, id: &edge_id };
    let handing = handoff::deliver_each(&gateway.relay, &source, id, via, parcel);
    let parts = unless_it_panics(handing).await.unwrap_or_else(|| {
        gateway.relay.emit(&Event::SessionPanicked);
        // Nobody knows how far it came, and that is remembered.
        let recipients = (0..).take(open.places.len()).collect();
        let (how, reply, outcome) = (How::InDoubt, CUT_OFF.clone(), Outcome::InDoubt);
        vec![Part { recipients, how, reply, outcome }]
    });
    let alone = parts.len() == 1 && answers.is_empty();
    let mut pasts = Vec::with_capacity(parts.len());
    for part in parts {
        let places = part.recipients.iter().map(|&at| open.places[at as usize]);
        let places: Vec<u32> = places.collect();
        let recipients = places.iter().map(|&place| open.of(place)).collect();
        pasts.push(Past { recipients, how: part.how, reply: part.reply.clone() });
        let recipients = if alone { For::Others } else { For::These(places) };
        let answer = Answer::of_all(part.how, part.reply);
        answers.push(Answer { forgetful, recipients, ..answer });
    }
    // Written before the answer is sent.
    begun.end(pasts);
    answers
}

/// What comes of a future; nothing where it panics.
async fn unless_it_panics<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |polled| polled.map(Some))
    })
    .await
}

/// Where it came from: a link is believed what it says of its clients.
fn source(envelope: &Envelope, listener: &str) -> Source {
    let client = &envelope.client;
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let secured = client.secured.and_then(|(cipher, resumed)| {
        let cipher = usize::from(cipher);
        (cipher < CIPHERS.len()).then_some(Secured { cipher, resumed })
    });
    Source {
        client: client.address,
        port: client.port,
        name: some(&client.name),
        listener: listener.to_owned(),
        helo: client.helo.clone(),
        extended: client.extended,
        secured,
        user: some(&client.user),
        destination: client.destination,
        instance: some(&envelope.instance),
    }
}

/// Sends the answers, and waits until they have come: a connection that is closed before that takes
/// them with it.
async fn tell(connection: &Connection, send: &mut SendStream, answers: &[Answer]) {
    let mut bytes = Vec::new();
    write_answers(answers, &mut bytes);
    let patience = connection.gateway.relay.look().config.limits.data_timeout;
    let telling = async {
        if send.write_all(&bytes).await.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    if tokio::time::timeout(patience, telling).await.is_err() {
        connection.failed("answers are not taken", &"it took too long", Code::Timeout);
        let _ = send.reset(code(Code::Timeout));
    }
}
