//! One message's stream: what is written, and the answers. Floor 2.
//!
//! Owns that a message which is given up is nothing: a stream that is dropped without its END is reset,
//! where QUIC would finish it. Answers may come at any time, so they are looked for while writing.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::Instant;
use wavegate_link::{Answering, Answers, Code, LinkError, message};

use super::LinkFault;
use crate::{
    upstream::connection::{Commit, WriteError},
    world::Deadline,
};

/// Bytes of answers that are read at once.
const CHUNK: usize = 64 << 10;

/// A message on its way.
pub struct Stream {
    send: Send,
    answers: Incoming,
    deadline: Deadline,
}

/// The side that is written to.
struct Send {
    stream: SendStream,
    /// END is written.
    ended: bool,
}

/// The side that is read from.
struct Incoming {
    stream: RecvStream,
    answering: Answering,
}

impl Stream {
    pub(super) fn new(send: SendStream, recv: RecvStream, recipients: u32) -> Self {
        let answering = Answering::new(recipients);
        Self {
            send: Send { stream: send, ended: false },
            answers: Incoming { stream: recv, answering },
            deadline: Deadline::default(),
        }
    }

    /// Writes; `time` bounds the wait for the gateway to take it. Gives the answers where they come
    /// first: then the rest need not be sent.
    ///
    /// # Errors
    /// If the connection or the stream is over, or the gateway takes nothing in time.
    pub async fn write(
        &mut self,
        mut chunks: &mut [Bytes],
        time: Duration,
    ) -> Result<Option<Answers>, LinkFault> {
        self.deadline.set(time);
        loop {
            let Self { send, answers, deadline } = self;
            let step = tokio::select! {
                biased;
                written = send.stream.write_chunks(chunks) => Step::Written(written),
                came = answers.whole() => Step::Came(came),
                () = poll_fn(|cx| deadline.poll_passed(cx)) => return Err(LinkFault::Late(time)),
            };
            match step {
                Step::Written(Ok(written)) => {
                    chunks = &mut chunks[written.chunks..];
                    if chunks.is_empty() {
                        return Ok(None);
                    }
                }
                Step::Written(Err(error)) => return self.refused(error.into(), time).await,
                Step::Came(came) => return came.map(Some),
            }
        }
    }

    /// Writes END: asks `commit` right before each write of it, and takes that back where it could
    /// not be written whole. So there is no moment between the look and the writing.
    ///
    /// # Errors
    /// As in [`Stream::write`], or if it may not be written.
    pub async fn end<C: Commit>(
        &mut self,
        size: u64,
        commit: &mut C,
        time: Duration,
    ) -> Result<Option<Answers>, WriteError<C::Refusal>> {
        let mut frame = Vec::new();
        message::write_end(size, &mut frame);
        self.deadline.set(time);
        let mut at = 0;
        let Self { send, answers, deadline } = self;
        let step = poll_fn(|cx| {
            loop {
                if let Err(refusal) = commit.commit() {
                    return Poll::Ready(Err(WriteError::Held(refusal)));
                }
                match Pin::new(&mut send.stream).poll_write(cx, &frame[at..]) {
                    Poll::Ready(Ok(count)) => {
                        at += count;
                        if at == frame.len() {
                            return Poll::Ready(Ok(Step::Written(Ok(()))));
                        }
                        commit.uncommit();
                    }
                    Poll::Ready(Err(error)) => {
                        commit.uncommit();
                        return Poll::Ready(Ok(Step::Written(Err(error))));
                    }
                    Poll::Pending => {
                        commit.uncommit();
                        if let Poll::Ready(came) = pin!(answers.whole()).poll(cx) {
                            return Poll::Ready(Ok(Step::Came(came)));
                        }
                        ready!(deadline.poll_passed(cx));
                        return Poll::Ready(Err(broken(LinkFault::Late(time))));
                    }
                }
            }
        })
        .await?;
        match step {
            Step::Written(Ok(())) => {
                self.send.ended = true;
                // It is only refused where the stream is over already, which is read below.
                let _ = self.send.stream.finish();
                Ok(None)
            }
            Step::Written(Err(error)) => self.refused(error.into(), time).await.map_err(broken),
            Step::Came(came) => came.map(Some).map_err(broken),
        }
    }

    /// All answers, until `deadline`.
    ///
    /// # Errors
    /// If the connection or the stream is over, they do not come in time, or are wrong.
    pub async fn answers(&mut self, deadline: Instant) -> Result<Answers, LinkFault> {
        let time = deadline.saturating_duration_since(Instant::now());
        let answers = tokio::time::timeout_at(deadline, self.answers.whole()).await;
        answers.unwrap_or(Err(LinkFault::Late(time)))
    }

    /// The gateway takes no more: it may have said why.
    async fn refused(
        &mut self,
        fault: LinkFault,
        time: Duration,
    ) -> Result<Option<Answers>, LinkFault> {
        match fault {
            LinkFault::Stopped(_) => match self.answers(Instant::now() + time).await {
                Err(LinkFault::Late(_)) => Err(fault),
                answers => answers.map(Some),
            },
            fault => Err(fault),
        }
    }
}

/// What came first.
enum Step<T> {
    Written(Result<T, quinn::WriteError>),
    Came(Result<Answers, LinkFault>),
}

fn broken<R>(fault: LinkFault) -> WriteError<R> {
    WriteError::Broken(fault.into())
}

impl Incoming {
    /// Reads until all answers are there. Dropped in the middle it loses nothing.
    async fn whole(&mut self) -> Result<Answers, LinkFault> {
        loop {
            let came = match self.stream.read_chunk(CHUNK, true).await? {
                Some(chunk) => self.answering.receive(&chunk.bytes),
                None => Err(LinkError::Cut("DONE")),
            };
            match came {
                Ok(None) => {}
                Ok(Some(answers)) => {
                    self.read_end();
                    return Ok(answers);
                }
                Err(error) => {
                    // The others go on. It may be over already.
                    let _ = self.stream.stop(VarInt::from_u32(error.code().number()));
                    return Err(error.into());
                }
            }
        }
    }

    /// Takes note of the stream's end where it has come with DONE: so the gateway need not be told
    /// that no more is read.
    fn read_end(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let _ = pin!(self.stream.read_chunk(1, true)).poll(&mut context);
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        if !self.ended {
            // It may be over already.
            let _ = self.stream.reset(VarInt::from_u32(Code::Cancelled.number()));
        }
    }
}
