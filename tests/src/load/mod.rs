//! The load generator: many SMTP sessions that send known messages and check every reply.
//!
//! Owns sessions, their pace and the measuring; retries nothing (a 4xx is counted, not sent again).
//! Floor: none; it speaks SMTP to whatever listens. Start reading at [`run`].

pub mod histogram;
pub mod message;
pub mod reply;
pub mod steady;

mod report;
mod session;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::LocalSet;

pub use report::Report;
use report::Tally;

/// How the content goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transfer {
    /// DATA, dots doubled.
    Data,
    /// One BDAT chunk, marked LAST (RFC 3030).
    Bdat,
}

/// What to send, where and how.
#[derive(Clone, Debug, Serialize)]
pub struct LoadOptions {
    /// Where the server listens.
    pub target: SocketAddr,
    /// Sessions at a time.
    pub sessions: usize,
    /// Messages in all.
    pub messages: u64,
    /// Messages a session sends before QUIT; `None` means all in one.
    pub per_session: Option<u64>,
    /// Bytes of a message's content.
    pub body_size: usize,
    /// Whether commands go out in groups (RFC 2920).
    pub pipelining: bool,
    /// DATA or BDAT.
    pub transfer: Transfer,
    /// Vary mode and size: a quarter of the sessions each plain, pipelining, BDAT and one message a
    /// session; sizes a quarter, once, once and four times `body_size` in turn.
    pub mixed: bool,
    /// Threads that share the sessions.
    pub threads: usize,
    /// Domain of the senders.
    pub sender_domain: String,
    /// Domain of the recipients.
    pub recipient_domain: String,
    /// Different recipients, used in turn.
    pub distinct_recipients: u64,
    /// Recipients of each message.
    pub recipients: u64,
    /// Address to connect from.
    pub source: IpAddr,
    /// The run ends then, whatever is still under way.
    #[serde(skip)]
    pub time_limit: Duration,
}

impl LoadOptions {
    /// Twenty sessions, 10 kB messages by DATA without pipelining, many messages a session.
    pub fn new(target: SocketAddr, messages: u64) -> Self {
        Self {
            target,
            sessions: 20,
            messages,
            per_session: None,
            body_size: 10 * 1024,
            pipelining: false,
            transfer: Transfer::Data,
            mixed: false,
            threads: 1,
            sender_domain: "mkt.acme.example".into(),
            recipient_domain: "customers.example".into(),
            distinct_recipients: 1000,
            recipients: 1,
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            time_limit: Duration::from_secs(120),
        }
    }
}

/// Runs the load to its end, on threads of its own; blocks the caller.
pub fn run(options: &LoadOptions) -> anyhow::Result<Report> {
    anyhow::ensure!(options.sessions > 0 && options.threads > 0, "no session or no thread to run");
    anyhow::ensure!(options.recipients > 0 && options.distinct_recipients > 0, "no recipient");
    let plan = Arc::new(Plan::new(options));
    let start = Instant::now();
    let threads = options.threads.min(options.sessions);
    let workers: Vec<_> = (0..threads)
        .map(|first| {
            let plan = Arc::clone(&plan);
            std::thread::Builder::new()
                .name(format!("load-{first}"))
                .spawn(move || worker(&plan, first, threads))
        })
        .collect::<Result<_, _>>()?;
    let mut tally = Tally::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??;
        tally.merge(part);
    }
    Ok(Report::new(tally, options.messages, start.elapsed()))
}

/// What all sessions share: the messages ready to send, and the next one's number.
struct Plan {
    options: LoadOptions,
    messages: Vec<message::Message>,
    next: AtomicU64,
}

impl Plan {
    fn new(options: &LoadOptions) -> Self {
        let sizes = if options.mixed { vec![1, 4, 4, 16] } else { vec![4] };
        let messages = sizes
            .iter()
            .map(|quarters| {
                message::build(options.body_size * quarters / 4, &options.sender_domain)
            })
            .collect();
        Self { options: options.clone(), messages, next: AtomicU64::new(0) }
    }

    /// The number of the next message to send; `None` when all are taken.
    fn claim(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.options.messages).then_some(number)
    }

    fn message(&self, number: u64) -> &message::Message {
        let at = number % self.messages.len() as u64;
        &self.messages[usize::try_from(at).unwrap_or(0)]
    }
}

/// Runs every `step`-th session from `first` on, on one thread.
fn worker(plan: &Arc<Plan>, first: usize, step: usize) -> anyhow::Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = Rc::new(std::cell::RefCell::new(Tally::default()));
    let sessions = LocalSet::new();
    for index in (first..plan.options.sessions).step_by(step) {
        sessions.spawn_local(session::run(Arc::clone(plan), index, Rc::clone(&tally)));
    }
    // An elapsed limit drops the sessions; what they had begun shows as unfinished.
    let limit = plan.options.time_limit;
    let _elapsed = runtime.block_on(async { tokio::time::timeout(limit, sessions).await });
    Ok(tally.take())
}
