//! One process after another on one state directory: how a new one takes over from the one that
//! runs. Floor 4.
//!
//! Owns `state_dir/upgrade.sock` and the dialogue on it: the new process, which has read its
//! configuration and compiled its policies, asks; the old one answers with its listening sockets;
//! the new one binds what is missing and says that it is ready; then the old one ends its
//! sessions, gives the spool up and says so. Up to that word of the new one nothing of the old
//! one has changed, and whatever goes wrong leaves it as it was. Both ends are in this file,
//! because they are two versions of one program: lines are JSON, and fields may be added.
//!
//! What ending means is the business of `process`.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream as Stream,
    time::timeout,
};

use crate::{
    audit::{Audit, Begun, Intent, Who},
    control,
    relay::Relay,
    service::Inherited,
};

/// Its name in the state directory; not longer than that of the control socket, whose check of
/// the path's length then holds here too.
pub const NAME: &str = "upgrade.sock";
/// Bytes of a line: the names of all instances of a large plan.
const LINE: usize = 4 << 20;
/// Sockets that are handed over; the kernel takes 253 with one message. A new process would have
/// to bind further ones, which fails, and then the old one stays.
const SOCKETS: usize = 240;
/// How long one side waits for the other until the new process has said that it is ready.
const TALK: Duration = Duration::from_secs(10);

/// Why a new process did not take over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It said no.
    #[error("the relay that runs here ({who}) does not hand over: {why}; it goes on")]
    Refused {
        /// Its process.
        who: String,
        /// Why.
        why: String,
    },
    /// It did not end.
    #[error(
        "the relay that runs here ({who}) has not given the state directory up within {waited:?}; \
         it takes no more mail: look what it waits for, or kill it and start again"
    )]
    Late {
        /// Its process.
        who: String,
        /// How long was waited for it.
        waited: Duration,
    },
    /// The dialogue broke off.
    #[error("the dialogue with the relay that runs here ({who}): {source}; it goes on")]
    Io {
        /// Its process.
        who: String,
        /// Why.
        source: io::Error,
    },
}

/// What the new process says first.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    version: String,
    /// The instances of its plan.
    instances: Vec<String>,
}

/// What the old one answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Refused(String),
    Offered(Offered),
}

/// Its sockets come as descriptors with the first byte, in this order.
#[derive(Debug, Serialize, Deserialize)]
struct Offered {
    version: String,
    sockets: Vec<Named>,
    /// How long its sessions may take to end.
    shutdown_timeout_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: String,
    configured: SocketAddr,
    /// Whether the service manager had bound it.
    passed: bool,
}

/// The new process says that it is ready.
const READY: &[u8] = b"ready\n";
/// The old one has given the spool up.
const RELEASED: &[u8] = b"released\n";

/// The relay that runs, for whoever takes over from it.
pub struct Incumbent {
    /// It.
    pub relay: Arc<Relay>,
    /// Where it is written down.
    pub audit: Arc<Audit>,
    /// Its listening sockets.
    pub sockets: Box<dyn Fn() -> io::Result<Vec<Inherited>> + Send + Sync>,
}

/// The new process, which waits for the spool.
pub struct Successor {
    stream: Stream,
    /// Its number, where the system says it.
    pub process: Option<i32>,
    /// Its version.
    pub version: String,
    begun: Begun,
}

/// Waits for a new process that is ready to take over; what fails before that is logged.
pub async fn successor(socket: &control::Socket, incumbent: &Incumbent) -> Successor {
    let listener = match socket.listener() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "no other process can take over");
            return std::future::pending().await;
        }
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a process that would take over is not heard");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match timeout(TALK, incumbent.talk(stream)).await {
            Ok(Ok(Some(successor))) => return successor,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "a new process would have taken over, and did not");
            }
            Err(_) => tracing::warn!("a new process asked for the state directory and fell silent"),
        }
    }
}

impl Incumbent {
    /// None where it was refused.
    async fn talk(&self, stream: Stream) -> io::Result<Option<Successor>> {
        let cred = stream.peer_cred()?;
        let process = cred.pid();
        let mut stream = BufReader::new(stream);
        let asked = line(&mut stream).await?;
        let asked: Asked = serde_json::from_slice(&asked)?;
        let Asked { version, instances } = asked;
        tracing::info!(process, version, "a new process asks for the state directory");
        if let Err(why) = self.check(&instances) {
            tracing::warn!(why, "it is refused");
            let answer = Answer::Refused(why);
            stream.get_mut().write_all(&to_line(&answer)?).await?;
            return Ok(None);
        }
        self.offer(stream.get_mut()).await?;
        let word = line(&mut stream).await?;
        if word != READY {
            return Err(io::Error::other("it said something unknown"));
        }
        let who = process.map_or("process unknown".to_owned(), |id| format!("process {id}"));
        let by = format!("user {}", cred.uid());
        let who = Who { by, from: format!("upgrade socket, {who}") };
        let begun = self.write_down(who, version.clone()).await?;
        Ok(Some(Successor { stream: stream.into_inner(), process, version, begun }))
    }

    /// Whether the relay may hand over to a process with these instances in its plan.
    fn check(&self, instances: &[String]) -> Result<(), String> {
        if self.relay.is_stopping() {
            return Err("it is stopping".into());
        }
        let held = self.relay.waves.held_instances().into_iter();
        let mut lost = held.filter(|(_, instance)| !instances.contains(instance));
        match lost.next() {
            None => Ok(()),
            Some((wave, instance)) => Err(format!(
                "the new plan has no instance \"{instance}\", whose mail wave {wave} holds"
            )),
        }
    }

    async fn offer(&self, stream: &mut Stream) -> io::Result<()> {
        let mut sockets = (self.sockets)()?;
        sockets.truncate(SOCKETS);
        let named = sockets.iter().map(|one| Named {
            name: one.name.clone(),
            configured: one.configured,
            passed: one.passed,
        });
        let patience = self.relay.look().config.limits.shutdown_timeout;
        let answer = Answer::Offered(Offered {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sockets: named.collect(),
            shutdown_timeout_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        });
        let bytes = to_line(&answer)?;
        let sent = stream.async_io(Interest::WRITABLE, || send(stream, &bytes, &sockets)).await?;
        stream.write_all(&bytes[sent..]).await
    }

    async fn write_down(&self, who: Who, version: String) -> io::Result<Begun> {
        let audit = Arc::clone(&self.audit);
        let writing = tokio::task::spawn_blocking(move || {
            let with = format!("version {version}");
            let reason = "a new process takes over";
            audit.begin(&who, &Intent { action: "hand-over", of: "relay", with: &with, reason })
        });
        writing.await.map_err(io::Error::other)?
    }
}

impl Successor {
    /// Writes down that the relay has ended; to be called while the state directory is still ours.
    pub fn written_down(self, audit: &Audit) -> Released {
        if let Err(error) = audit.end(self.begun, Ok("sessions have ended")) {
            tracing::error!(%error, "the end of the hand-over is not in the audit log");
        }
        Released { stream: self.stream }
    }
}

/// A successor that only waits for the word.
pub struct Released {
    stream: Stream,
}

impl Released {
    /// Whether it is still there.
    pub fn is_there(&self) -> bool {
        // It says nothing more, so anything to read is its end.
        let nothing = self.stream.try_read(&mut [0; 1]);
        matches!(nothing, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Says that the state directory is free.
    pub async fn tell(mut self) {
        // One that has gone needs no word, and one that is not told sees that we end.
        let _ = self.stream.write_all(RELEASED).await;
    }
}

/// The relay that runs, as the new process sees it.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    /// Its process, for people.
    pub who: String,
    /// Its version.
    pub version: String,
    /// How long its sessions may take to end.
    pub shutdown_timeout: Duration,
    sockets: Vec<Inherited>,
}

/// Asks the relay that runs on a state directory for it; none where nobody answers.
pub fn ask(state_dir: &Path, instances: Vec<String>) -> Result<Option<Predecessor>, TakeOverError> {
    let Ok(stream) = UnixStream::connect(state_dir.join(NAME)) else { return Ok(None) };
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok();
    let who = peer
        .map_or("process unknown".into(), |peer| format!("process {}", peer.pid.as_raw_nonzero()));
    let io = |source| TakeOverError::Io { who: who.clone(), source };
    let (answer, sockets) = talk(&stream, instances).map_err(io)?;
    match answer {
        Answer::Refused(why) => Err(TakeOverError::Refused { who, why }),
        Answer::Offered(Offered { version, shutdown_timeout_ms, .. }) => Ok(Some(Predecessor {
            stream,
            who,
            version,
            shutdown_timeout: Duration::from_millis(shutdown_timeout_ms),
            sockets,
        })),
    }
}

fn talk(mut stream: &UnixStream, instances: Vec<String>) -> io::Result<(Answer, Vec<Inherited>)> {
    stream.set_read_timeout(Some(TALK))?;
    stream.set_write_timeout(Some(TALK))?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    stream.write_all(&to_line(&Asked { version, instances })?)?;
    let (bytes, descriptors) = receive(stream)?;
    let answer = serde_json::from_slice(&bytes)?;
    let named = match &answer {
        Answer::Offered(offered) => &offered.sockets[..],
        Answer::Refused(_) => &[],
    };
    if named.len() != descriptors.len() {
        return Err(io::Error::other("it did not hand over the sockets that it names"));
    }
    let sockets = named.iter().zip(descriptors).map(|(named, descriptor)| Inherited {
        name: named.name.clone(),
        configured: named.configured,
        passed: named.passed,
        socket: TcpListener::from(descriptor),
    });
    let sockets = sockets.collect();
    Ok((answer, sockets))
}

impl Predecessor {
    /// Its listening sockets.
    pub fn take_sockets(&mut self) -> Vec<Inherited> {
        std::mem::take(&mut self.sockets)
    }

    /// Has it end, and waits until the state directory is free: for as long as its sessions may
    /// take, and `more`.
    pub fn replace(mut self, more: Duration) -> Result<(), TakeOverError> {
        let io = |source| TakeOverError::Io { who: self.who.clone(), source };
        let waited = self.shutdown_timeout.saturating_add(more);
        match self.stream.write_all(READY) {
            // It was killed, or has given us up: then it still owns the spool, which is found out.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(io)?,
        }
        self.stream.set_read_timeout(Some(waited)).map_err(io)?;
        let mut word = [0; RELEASED.len()];
        match self.stream.read(&mut word) {
            // Its end is as good as its word: the state directory is free either way.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(TakeOverError::Late { who: self.who, waited })
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(source) => Err(TakeOverError::Io { who: self.who, source }),
        }
    }
}

fn to_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

async fn line(stream: &mut BufReader<Stream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(LINE as u64).read_until(b'\n', &mut line).await?;
    match line.last() {
        Some(b'\n') => Ok(line),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has gone")),
        Some(_) => Err(io::Error::other("its line was cut short or is too long")),
    }
}

/// Writes what it can of the bytes, with the sockets.
fn send(stream: &Stream, bytes: &[u8], sockets: &[Inherited]) -> io::Result<usize> {
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(|one| one.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many sockets"));
    }
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// One line, and the descriptors that came with it.
fn receive(mut stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 16 << 10];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let received = rustix::net::recvmsg(stream, &mut parts, &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            descriptors.extend(given);
        }
    }
    let mut line = buffer[..received.bytes].to_vec();
    while line.last().is_some_and(|last| *last != b'\n') && line.len() < LINE {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        line.extend_from_slice(&buffer[..count]);
    }
    match line.last() {
        Some(b'\n') => Ok((line, descriptors)),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it broke off")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// An old process that answers with these bytes to whatever is asked, and may hand over a
    /// socket with them.
    fn answering(directory: &Path, answer: Vec<u8>, sockets: Vec<Inherited>) {
        let listener = std::os::unix::net::UnixListener::bind(directory.join(NAME)).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let length = stream.read(&mut asked).unwrap();
            assert!(asked[..length].starts_with(b"{\"version\":"));
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            let _within = runtime.enter();
            stream.set_nonblocking(true).unwrap();
            let stream = Stream::from_std(stream).unwrap();
            let sent = send(&stream, &answer, &sockets).unwrap();
            assert_eq!(sent, answer.len());
        });
    }

    fn offered(named: usize) -> Vec<u8> {
        let at = |_| Named {
            name: "in".into(),
            configured: SocketAddr::from(([127, 0, 0, 1], 0)),
            passed: false,
        };
        let sockets = (0..named).map(at).collect();
        let version = "9".into();
        to_line(&Answer::Offered(Offered { version, sockets, shutdown_timeout_ms: 1500 })).unwrap()
    }

    fn socket() -> Inherited {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let configured = SocketAddr::from(([127, 0, 0, 1], 0));
        Inherited { name: "in".into(), configured, passed: false, socket }
    }

    #[test]
    fn nobody_is_there_to_be_asked() {
        let directory = tempfile::tempdir().unwrap();
        assert!(ask(directory.path(), Vec::new()).unwrap().is_none());
        // What a dead process left is nobody either.
        drop(std::os::unix::net::UnixListener::bind(directory.path().join(NAME)).unwrap());
        assert!(ask(directory.path(), Vec::new()).unwrap().is_none());
    }

    #[test]
    fn sockets_come_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let mine = socket();
        let at = mine.socket.local_addr().unwrap();
        answering(directory.path(), offered(1), vec![mine]);
        let mut found = ask(directory.path(), Vec::new()).unwrap().unwrap();
        let sockets = found.take_sockets();
        assert_eq!(sockets[0].socket.local_addr().unwrap(), at);
        assert_eq!((&*sockets[0].name, sockets[0].configured.port()), ("in", 0));
        assert_eq!((&*found.version, found.shutdown_timeout.as_millis()), ("9", 1500));
        // The other side has gone meanwhile: the state directory is free then.
        found.replace(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn what_is_not_an_answer_is_an_error_and_never_a_panic() {
        for (answer, sockets) in [
            (b"".to_vec(), 0),
            (b"{".to_vec(), 0),
            (b"{}\n".to_vec(), 0),
            (b"\xff\n".to_vec(), 0),
            (offered(2), 1),
            (offered(0), 1),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let given = (0..sockets).map(|_| socket()).collect();
            answering(directory.path(), answer.clone(), given);
            let error = ask(directory.path(), Vec::new()).unwrap_err();
            assert!(matches!(error, TakeOverError::Io { .. }), "{error}: {answer:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        let no = to_line(&Answer::Refused("it is stopping".into())).unwrap();
        answering(directory.path(), no, Vec::new());
        let error = ask(directory.path(), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("does not hand over: it is stopping"), "{error}");
    }
}
