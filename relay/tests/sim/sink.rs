//! A scripted upstream: it records what arrives and when, and does at each point of a dialogue
//! what its script says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
    time::Instant,
};
use wavegate::world::memory::MemoryNetwork;
use wavegate_smtp::{
    AuthOffer, Extension, Extensions, Limits, Reply, Server, ServerConfig, StartTls, Step,
};

/// Where in a dialogue the script is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Greeting,
    Mail,
    Data,
    End,
}

/// What to do at a point, after a delay.
#[derive(Clone, Debug)]
pub struct Act {
    pub after: Duration,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Proceed,
    /// A 421 closes.
    Reply(u16),
    Close,
}

impl Act {
    pub const GO: Act = Act { after: Duration::ZERO, what: What::Proceed };
    pub const CLOSE: Act = Act { after: Duration::ZERO, what: What::Close };

    pub fn after(ms: u64) -> Self {
        Self { after: Duration::from_millis(ms), ..Self::GO }
    }

    pub fn reply(code: u16) -> Self {
        Self { what: What::Reply(code), ..Self::GO }
    }

    pub fn is_close(&self) -> bool {
        matches!(self.what, What::Close)
    }
}

/// The script: the point and the number of the connection.
type Script = Box<dyn FnMut(Point, usize) -> Act + Send>;
/// The code that a recipient is refused with, if it is.
type RecipientJudge = Box<dyn FnMut(&str) -> Option<u16> + Send>;
/// The code that a message is refused with, if it is and the script has nothing against it.
type MessageJudge = Box<dyn FnMut(&Arrived) -> Option<u16> + Send>;

/// A message whose end of data arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Milliseconds after the start when its end of data was read.
    pub at: u64,
    pub connection: usize,
    pub from: String,
    /// Recipients that were not refused.
    pub to: Vec<String>,
    pub body: String,
    /// The code that it was answered with; 0 when the connection was closed instead.
    pub code: u16,
}

impl Arrived {
    /// The id that the relay gave it: it is in the `Received` line.
    pub fn id(&self) -> &str {
        let rest = self.body.split(" id ").nth(1).unwrap_or_default();
        rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
    }

    /// What `Sender::mail` named it.
    pub fn name(&self) -> &str {
        self.body.split("name=").nth(1).map_or("", str::trim_end)
    }
}

struct State {
    script: Script,
    recipients: RecipientJudge,
    messages: MessageJudge,
    extensions: Extensions,
    pace: Option<(usize, Duration)>,
    arrived: Vec<Arrived>,
    open: usize,
    most_open: usize,
    opened: usize,
    /// Bodies of messages whose end never came.
    torn: Vec<usize>,
    /// When a client said QUIT.
    quits: Vec<u64>,
    closings: Vec<Arc<tokio::sync::Notify>>,
}

#[derive(Clone)]
pub struct Sink {
    state: Arc<Mutex<State>>,
    network: MemoryNetwork,
    address: SocketAddr,
    begun: Instant,
}

impl Sink {
    pub fn start(network: &MemoryNetwork, port: u16, begun: Instant) -> Self {
        Self::start_at(network, SocketAddr::from(([127, 0, 0, 1], port)), begun)
    }

    pub fn start_at(network: &MemoryNetwork, address: SocketAddr, begun: Instant) -> Self {
        let state = State {
            script: Box::new(|_, _| Act::GO),
            recipients: Box::new(|_| None),
            messages: Box::new(|_| None),
            extensions: Extensions::full(0),
            pace: None,
            arrived: Vec::new(),
            open: 0,
            most_open: 0,
            opened: 0,
            torn: Vec::new(),
            quits: Vec::new(),
            closings: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let sink = Self { state, network: network.clone(), address, begun };
        sink.listen();
        sink
    }

    /// Accepts connections (again).
    pub fn listen(&self) {
        let mut clients = self.network.listen(self.address);
        let sink = self.clone();
        tokio::spawn(async move {
            while let Some(stream) = clients.recv().await {
                tokio::spawn(sink.clone().serve(stream));
            }
        });
    }

    /// Connections are refused from now on; those that are open stay.
    pub fn refuse(&self) {
        self.network.close(self.address);
    }

    pub fn script(&self, script: impl FnMut(Point, usize) -> Act + Send + 'static) {
        self.lock().script = Box::new(script);
    }

    /// Refuses recipients, and messages, by what they are.
    pub fn judge(
        &self,
        recipients: impl FnMut(&str) -> Option<u16> + Send + 'static,
        messages: impl FnMut(&Arrived) -> Option<u16> + Send + 'static,
    ) {
        let mut state = self.lock();
        state.recipients = Box::new(recipients);
        state.messages = Box::new(messages);
    }

    /// Does `act` at `point`, and nothing special elsewhere.
    pub fn at(&self, point: Point, act: Act) {
        self.script(move |here, _| if here == point { act.clone() } else { Act::GO });
    }

    pub fn extensions(&self, extensions: Extensions) {
        self.lock().extensions = extensions;
    }

    /// Offers no CHUNKING, so that the body waits for a 354.
    pub fn without_chunking(&self) {
        self.extensions(Extensions::full(0).without(Extension::Chunking));
    }

    /// Reads at most `bytes` at once and then rests.
    pub fn slow(&self, bytes: usize, rest: Duration) {
        self.lock().pace = Some((bytes, rest));
    }

    /// Closes every connection that is open.
    pub fn close_all(&self) {
        self.lock().closings.iter().for_each(|closing| closing.notify_one());
    }

    pub fn arrived(&self) -> Vec<Arrived> {
        self.lock().arrived.clone()
    }

    /// Names of what arrived and was taken.
    pub fn names(&self) -> Vec<String> {
        let taken = self.lock().arrived.clone();
        taken.iter().filter(|one| one.code == 250).map(|one| one.name().to_owned()).collect()
    }

    pub fn open(&self) -> usize {
        self.lock().open
    }

    pub fn most_open(&self) -> usize {
        self.lock().most_open
    }

    pub fn opened(&self) -> usize {
        self.lock().opened
    }

    pub fn torn(&self) -> Vec<usize> {
        self.lock().torn.clone()
    }

    pub fn quits(&self) -> Vec<u64> {
        self.lock().quits.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn serve(self, stream: DuplexStream) {
        let closing = Arc::new(tokio::sync::Notify::new());
        let number = {
            let mut state = self.lock();
            state.open += 1;
            state.opened += 1;
            state.most_open = state.most_open.max(state.open);
            state.closings.push(Arc::clone(&closing));
            state.opened
        };
        let (reader, writer) = tokio::io::split(stream);
        // Bytes are read, and their time taken, whatever the script makes the dialogue wait for.
        let (sender, chunks) = mpsc::unbounded_channel();
        let reading = tokio::spawn(self.clone().read(reader, sender));
        let dialogue = Dialogue::new(self.clone(), number, writer);
        tokio::select! {
            biased;
            () = closing.notified() => {}
            () = dialogue.run(chunks) => {}
        }
        reading.abort();
        // The other half of the stream goes with the task that has it.
        let _ = reading.await;
        self.lock().open -= 1;
    }

    async fn read(
        self,
        mut reader: ReadHalf<DuplexStream>,
        chunks: mpsc::UnboundedSender<(u64, Vec<u8>)>,
    ) {
        loop {
            let pace = self.lock().pace;
            let mut bytes = vec![0; pace.map_or(64 * 1024, |(bytes, _)| bytes)];
            let Ok(count) = reader.read(&mut bytes).await else { return };
            let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
            bytes.truncate(count);
            if chunks.send((at, bytes)).is_err() || count == 0 {
                return;
            }
            if let Some((_, rest)) = pace {
                tokio::time::sleep(rest).await;
            }
        }
    }
}

struct Dialogue {
    sink: Sink,
    number: usize,
    writer: WriteHalf<DuplexStream>,
    server: Server,
    from: String,
    to: Vec<String>,
    body: Vec<u8>,
}

impl Dialogue {
    fn new(sink: Sink, number: usize, writer: WriteHalf<DuplexStream>) -> Self {
        let config = ServerConfig {
            hostname: "sink.example".to_owned(),
            extensions: sink.lock().extensions,
            limits: Limits { message_size: 1 << 30, ..Limits::default() },
            may_relay: true,
            starttls: StartTls::Unavailable,
            mark: "",
            auth: AuthOffer::Unavailable,
            auth_required: false,
        };
        let server = Server::new(Arc::new(config));
        Self { sink, number, writer, server, from: String::new(), to: Vec::new(), body: Vec::new() }
    }

    /// What the script says; none when the connection is to be closed.
    async fn act(&mut self, point: Point) -> Option<Option<Reply>> {
        let act = {
            let mut state = self.sink.lock();
            (state.script)(point, self.number)
        };
        if !act.after.is_zero() {
            self.flush().await?;
            tokio::time::sleep(act.after).await;
        }
        match act.what {
            What::Proceed => Some(None),
            What::Reply(code) => Some(Some(Reply::new(code, None, "as scripted").unwrap())),
            What::Close => None,
        }
    }

    async fn flush(&mut self) -> Option<()> {
        let output = self.server.output().to_vec();
        self.writer.write_all(&output).await.ok()?;
        self.server.written(output.len());
        Some(())
    }

    async fn run(mut self, mut chunks: mpsc::UnboundedReceiver<(u64, Vec<u8>)>) {
        match self.act(Point::Greeting).await {
            Some(None) => self.server.greet(),
            Some(Some(reply)) => {
                let mut text = Vec::new();
                reply.write(&mut text);
                let _ = self.writer.write_all(&text).await;
                return;
            }
            None => return,
        }
        loop {
            if self.flush().await.is_none() {
                return;
            }
            let chunk = chunks.recv().await.filter(|(_, bytes)| !bytes.is_empty());
            let Some((at, bytes)) = chunk else {
                if !self.body.is_empty() {
                    self.sink.lock().torn.push(self.body.len());
                }
                return;
            };
            if self.take(at, &bytes).await.is_none() {
                return;
            }
        }
    }

    async fn take(&mut self, at: u64, input: &[u8]) -> Option<()> {
        let mut used = 0;
        loop {
            let (count, step) = self.server.step(&input[used..]);
            used += count;
            match step {
                Step::NeedInput => return Some(()),
                Step::Close(_) => {
                    self.sink.lock().quits.push(at);
                    self.flush().await;
                    return None;
                }
                Step::Helo(_) => self.server.accept(),
                Step::Rcpt(rcpt) => {
                    let recipient = rcpt.recipient.as_str();
                    let refused = (self.sink.lock().recipients)(recipient);
                    match refused.map(|code| Reply::new(code, None, "as judged").unwrap()) {
                        Some(reply) => self.server.reply(&reply),
                        None => {
                            self.to.push(recipient.to_owned());
                            self.server.accept();
                        }
                    }
                }
                Step::Mail(mail) => {
                    self.to.clear();
                    self.from = mail.sender.as_str().to_owned();
                    self.answer(Point::Mail).await?;
                }
                Step::Data => self.answer(Point::Data).await?,
                Step::Body(bytes) => self.body.extend_from_slice(bytes),
                Step::End(_) => self.end(at).await?,
                Step::Dropped(_) | Step::Reset => self.body.clear(),
                Step::StartTls | Step::Auth(_) | Step::Xclient(_) => {
                    unreachable!("it is not offered")
                }
            }
        }
    }

    async fn answer(&mut self, point: Point) -> Option<()> {
        match self.act(point).await? {
            None => self.server.accept(),
            Some(reply) => self.server.reply(&reply),
        }
        Some(())
    }

    async fn end(&mut self, at: u64) -> Option<()> {
        let body = String::from_utf8(std::mem::take(&mut self.body)).unwrap();
        let (connection, from) = (self.number, std::mem::take(&mut self.from));
        let to = std::mem::take(&mut self.to);
        let arrived = Arrived { at, connection, from, to, body, code: 0 };
        let (place, refused) = {
            let mut state = self.sink.lock();
            let refused = (state.messages)(&arrived);
            state.arrived.push(arrived);
            (state.arrived.len() - 1, refused)
        };
        let reply = match (self.act(Point::End).await?, refused) {
            (Some(reply), _) => reply,
            (None, Some(code)) => Reply::new(code, None, "as judged").unwrap(),
            (None, None) => Reply::new(250, None, "taken").unwrap(),
        };
        self.sink.lock().arrived[place].code = reply.code();
        self.server.reply(&reply);
        Some(())
    }
}
