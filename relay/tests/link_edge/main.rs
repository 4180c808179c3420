//! The edge's side of a link against a scripted gateway (`gateway`), over real UDP on loopback: what
//! becomes of one message (`attempts`), and of a relay's mail (`relaying`).
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod attempts;
mod gateway;
mod relaying;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::task::AbortHandle;
use wavegate::{
    attempt::{self, Job, Outcome, Patience},
    config::{Config, Congestion, LinkUpstream, TlsFiles, Trust, UpstreamConfig},
    message::{MessageId, Source},
    parcel::{Message, Parcel},
    tls,
    upstream::{Parts, Upstream},
    waves::InstanceState,
};
use wavegate_smtp::{Address, BodyFacts, Extensions, Mail, Rcpt, ReversePath};

use self::gateway::pem;
use crate::sim::{START, Setup, Sim};

/// Nothing of a test takes longer.
const LONG: Duration = Duration::from_secs(20);

/// A relay with one upstream that is a link.
struct Edge {
    sim: Sim,
    upstream: Arc<Upstream>,
    _keeping: Keeping,
}

/// Its housekeeping.
struct Keeping(AbortHandle);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A key that nobody else may read: the relay takes no other.
fn key(name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let copy = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join(name);
        std::fs::copy(pem(name), &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
        folder
    });
    copy.path().join(name)
}

/// A link's configuration that loses patience soon.
fn link() -> LinkUpstream {
    LinkUpstream {
        identity: TlsFiles { certificate: pem("edge.pem"), key: key("edge.key") },
        trust: Trust { ca: Some(pem("ca.pem")), ..Trust::default() },
        name: Some("gateway.example".to_owned()),
        streams: 1000,
        fallback: None,
        keep_alive: Duration::from_millis(250),
        idle_timeout: Duration::from_secs(1),
        congestion: Congestion::Cubic,
    }
}

/// An upstream of a relay's generation as a link to these gateways.
fn upstream(
    sim: &Sim,
    name: &str,
    targets: &[SocketAddr],
    change: impl FnOnce(&mut UpstreamConfig),
) -> Arc<Upstream> {
    let mut config = sim.upstream(name).config.clone();
    config.targets = targets.iter().map(|target| (*target).into()).collect();
    config.link = Some(link());
    config.connections = 1;
    config.connect_timeout = Duration::from_millis(1500);
    config.reply_timeout = Duration::from_secs(5);
    config.final_timeout = Duration::from_secs(10);
    config.eject_max = Duration::from_secs(2);
    change(&mut config);
    let generation = sim.relay.generation();
    let all = Config { upstreams: vec![config.clone()], ..Config::clone(&generation.config) };
    let loaded = tls::load(&all, START, None).unwrap();
    let parts = Parts {
        world: sim.relay.world.clone(),
        observer: Arc::clone(&sim.relay.observer),
        hostname: "edge-1.example.net".into(),
        connector: None,
        link_connector: loaded.link_edge(&config.name).cloned(),
        config,
        login: None,
        naming: None,
        names: Vec::new(),
    };
    // What they take is known, so that nobody but messages connects.
    let known = targets.iter().map(|target| (*target, Extensions::full(0)));
    Upstream::new(parts, &known.collect())
}

impl Edge {
    fn new(targets: &[SocketAddr]) -> Self {
        Self::with(targets, |_| {})
    }

    fn with(targets: &[SocketAddr], change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        let sim = Setup::default().build();
        let upstream = upstream(&sim, "cloud", targets, change);
        let keeping = tokio::spawn(Arc::clone(&upstream).housekeeping()).abort_handle();
        Self { sim, upstream, _keeping: Keeping(keeping) }
    }

    /// A message with this body, to so many recipients.
    fn message(&self, recipients: usize, body: &[u8]) -> Arc<Message> {
        let id = MessageId::new(START, self.sim.relay.world.entropy.next());
        let address = |text: &str| Address::parse(text).unwrap();
        let mail = Mail::new(ReversePath::Address(address("sender@acme.example")));
        let to = |number| Rcpt::new(address(&format!("to-{number}@dest.example")));
        let mut writer = self.sim.relay.bodies.writer();
        body.chunks(50_000).for_each(|piece| writer.push(piece).unwrap());
        let facts = BodyFacts {
            size: body.len() as u64,
            header_size: 0,
            received: 0,
            eight_bit: false,
            leading_dot: false,
            ends_with_crlf: true,
        };
        let source = Source::new("192.0.2.7:4711".parse().unwrap(), "listener-1");
        let source = Source { helo: "client.example".into(), extended: true, ..source };
        let recipients = (0..recipients).map(to).collect();
        let parcel = Parcel { mail, recipients, body: writer.finish(), facts };
        let head = b"Received: from nowhere\r\n".to_vec();
        Arc::new(Message::new(id, Arc::new(source), head, parcel))
    }

    fn job(&self, message: &Arc<Message>) -> Job {
        Job {
            relay: Arc::clone(&self.sim.relay),
            generation: self.sim.relay.generation(),
            instance: None,
            message: Arc::clone(message),
            recipients: (0..).take(message.parcel.recipients.len()).collect(),
            upstream: Arc::clone(&self.upstream),
            charges: Vec::new(),
            patience: Patience::of(Duration::from_secs(5), 10_000),
            lease: None,
            marked: false,
            place: None,
        }
    }

    /// Sends it to its end.
    async fn send(&self, message: &Arc<Message>) -> Outcome {
        let sending = attempt::run(self.job(message));
        tokio::time::timeout(LONG, sending).await.unwrap()
    }

    /// Sends it for an instance.
    async fn send_for(&self, instance: &Arc<InstanceState>, message: &Arc<Message>) -> Outcome {
        let job = Job { instance: Some(Arc::clone(instance)), ..self.job(message) };
        tokio::time::timeout(LONG, attempt::run(job)).await.unwrap()
    }

    fn doubts(&self) -> usize {
        self.sim.log.count(&["InDoubt"])
    }
}

/// Waits until something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "it never came about: {what}");
}
