//! An upstream whose targets are gateways: messages go over QUIC, each on a stream of its own, any
//! number of them on one connection. Floor 2.
//!
//! A slot of the pool is the right to have one message on its way; nothing is idle. Behind a slot is a
//! [`Channel`]: the right to send one message on a *wire*, which is a connection to one gateway. A
//! worker has up to `connections` wires of its own, since a connection lives in one reactor; the one with
//! the fewest messages takes the next. A wire is opened when it is needed, once for all who
//! wait for it, and stays until it is lost or not wanted any more.
//!
//! What a message may assume of a gateway that it was sent to before is not known here, but in
//! `attempt`.

mod fault;
mod status;
mod stream;
mod transport;
mod wire;

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use quinn::{ClientConfig, VarInt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use wavegate_link::{Code, Hello, LinkError};
use wavegate_smtp::{Address, Extensions, ReversePath, Unsupported};

pub use self::{fault::LinkFault, stream::Stream, transport::leave, wire::Channel};
use self::{
    status::Counts,
    wire::{Beginning, Greeted, Wire},
};
use super::{ConnectionError, LeaseError, RehearsalError, Upstream, connection::current_worker};
use crate::{
    config::LinkUpstream,
    event::Event,
    links::{EdgeConnection, EdgeLink, PingedTarget},
    names::Endpoint,
    tls::link::LinkConnector,
    world::World,
};

/// Messages on the least loaded connection from which on another one is opened: fewer would wait
/// for nothing, and a connection that is hardly used does not know its path.
const CROWD: usize = 8;
/// Pause before a gateway is knocked at again that said no at once.
const PAUSE: Duration = Duration::from_secs(1);

/// The link of an upstream.
pub(super) struct Link {
    connector: Option<Arc<LinkConnector>>,
    client: Option<ClientConfig>,
    hello: Hello,
    table: Mutex<Table>,
    counts: Counts,
    /// Places of messages in doubt, as many as there are streams.
    doubts: Arc<Semaphore>,
}

/// A message that is asked about, whose end may have been heard and whose answer was lost.
pub struct Doubt(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

/// Connections that there are, and those that are to be.
#[derive(Default)]
struct Table {
    wires: Vec<Arc<Wire>>,
    openings: Vec<Opening>,
    /// Until then none is opened beside others.
    quiet_until: Option<Instant>,
}

impl Table {
    /// The connections of a worker that messages may begin on.
    fn of(&self, worker: usize) -> impl Iterator<Item = &Arc<Wire>> {
        self.wires.iter().filter(move |one| one.worker == worker && one.is_open())
    }

    /// A connection of each worker that takes the place of one to a target that has none: its
    /// gateway came back when the others had them all.
    fn surplus(&self, most: usize, usable: &[Endpoint]) -> Vec<Arc<Wire>> {
        let workers: BTreeSet<usize> = self.wires.iter().map(|one| one.worker).collect();
        let surplus = |worker: usize| {
            let share =
                |target: &Endpoint| self.of(worker).filter(|one| one.endpoint == *target).count();
            let is_full = self.of(worker).count() >= most;
            let is_missed = usable.iter().any(|target| share(target) == 0);
            let idlest_of_most =
                self.of(worker).max_by_key(|one| (share(&one.endpoint), Reverse(one.streams())))?;
            (is_full && is_missed && share(&idlest_of_most.endpoint) > 1)
                .then(|| Arc::clone(idlest_of_most))
        };
        workers.into_iter().filter_map(surplus).collect()
    }
}

/// What became of an opening; none while it goes on.
type Opened = watch::Receiver<Option<Result<(), LinkFault>>>;

/// A connection that is being opened, for all in its worker who wait for it.
struct Opening {
    worker: usize,
    target: Endpoint,
    done: Opened,
}

/// Closes a connection and says why.
fn close(connection: &quinn::Connection, code: Code) {
    connection.close(VarInt::from_u32(code.number()), code.as_str().as_bytes());
}

/// What tells this process from the one before and the one after it.
pub fn incarnation(world: &World) -> [u8; 16] {
    static OURS: OnceLock<[u8; 16]> = OnceLock::new();
    *OURS.get_or_init(|| {
        let halves = [world.entropy.next(), world.entropy.next()];
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&halves[0].to_be_bytes());
        bytes[8..].copy_from_slice(&halves[1].to_be_bytes());
        bytes
    })
}

impl Link {
    pub(super) fn new(
        config: &LinkUpstream,
        connector: Option<Arc<LinkConnector>>,
        hostname: &str,
        world: &World,
    ) -> Self {
        let client = connector.as_ref().map(|connector| {
            let mut client = ClientConfig::new(Arc::clone(&connector.config) as _);
            client.transport_config(Arc::new(transport::config(config)));
            client
        });
        let name = hostname.to_owned();
        let hello = Hello { name, incarnation: incarnation(world), offer: None };
        let doubts = Arc::new(Semaphore::new(config.streams));
        let (table, counts) = (Mutex::default(), Counts::default());
        Self { connector, client, hello, table, counts, doubts }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beginning(&self, target: &Endpoint, time: Duration) -> Result<Beginning, LinkFault> {
        let (Some(connector), Some(config)) = (&self.connector, &self.client) else {
            return Err(LinkFault::NoIdentity);
        };
        let name = connector.server_name(target.host.as_deref(), target.address.ip());
        Ok(Beginning { config: config.clone(), name, hello: self.hello.clone(), time })
    }

    /// The least loaded connection of the calling worker that goes where it may, and whether there
    /// are fewer than `most` and it has much to do.
    fn pick(&self, most: usize, may: impl Fn(&Endpoint) -> bool) -> Option<(Channel, bool)> {
        let here = current_worker();
        let table = self.lock();
        let usable = table.of(here).filter(|one| may(&one.endpoint));
        let wire = usable.min_by_key(|one| one.streams())?;
        let is_quiet = || table.quiet_until.is_some_and(|until| Instant::now() < until);
        let is_crowded = wire.streams() >= CROWD && !is_quiet() && {
            let openings = table.openings.iter().filter(|one| one.worker == here).count();
            table.of(here).count() + openings < most
        };
        Some((Channel::new(wire), is_crowded))
    }

    /// Where a worker has a connection already, no other is opened beside it for a while; false where
    /// it has none.
    fn pause(&self, worker: usize, target: &Endpoint) -> bool {
        let mut table = self.lock();
        let has_another = table.of(worker).any(|one| one.endpoint == *target);
        if has_another {
            table.quiet_until = Some(Instant::now() + PAUSE);
        }
        has_another
    }

    /// Where the connections of a worker go.
    fn reached(&self, worker: usize) -> Vec<Endpoint> {
        let table = self.lock();
        table.of(worker).map(|one| one.endpoint.clone()).collect()
    }

    /// No message begins on what there is. Those under way end as they would.
    pub(super) fn retire(&self) {
        let wires = std::mem::take(&mut self.lock().wires);
        for wire in wires {
            wire.stop();
            self.counts.ended(&wire, false);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.retire();
    }
}

impl Upstream {
    /// What connections with its gateways begin with.
    pub fn link_connector(&self) -> Option<&Arc<LinkConnector>> {
        self.link.as_ref()?.connector.as_ref()
    }

    /// Figures of its link; none where it is none.
    pub fn link_status(&self) -> Option<EdgeLink> {
        let link = self.link.as_ref()?;
        let config = self.config.link.as_ref()?;
        let wires = link.lock().wires.clone();
        let counted =
            link.counts.status(wires.iter().map(|wire| EdgeConnection::of(wire)).collect());
        Some(EdgeLink {
            upstream: self.config.name.clone(),
            down: self.is_down(),
            fallback: config.fallback.clone(),
            streams: self.status().in_use as u64,
            streams_limit: config.streams as u64,
            in_doubt: config.streams.saturating_sub(link.doubts.available_permits()) as u64,
            ..counted
        })
    }

    /// A message goes to the fallback instead.
    pub fn note_fallback(&self) {
        self.count(|counts| &counts.fallbacks);
    }

    /// A message is in doubt from now on, and needs neither a slot nor a place of an attempt: it only
    /// waits, and others may have a gateway that answers. Nothing where as many are as the link has
    /// streams: then those that are there keep what they have, and nothing more is begun.
    pub fn begin_doubt(&self) -> Option<Doubt> {
        let doubts = Arc::clone(&self.link.as_ref()?.doubts);
        doubts.try_acquire_owned().ok().map(Doubt)
    }

    /// A message is asked about again, whose connection was lost.
    pub fn note_resumed(&self) {
        self.count(|counts| &counts.resumed);
    }

    /// The gateway had answered a message before.
    pub fn note_known(&self) {
        self.count(|counts| &counts.known);
    }

    fn count(&self, of: impl Fn(&Counts) -> &std::sync::atomic::AtomicU64) {
        if let Some(link) = &self.link {
            of(&link.counts).fetch_add(1, Relaxed);
        }
    }

    /// Whether its gateways are there and how far away, each asked so often on a connection of its
    /// own.
    pub async fn ping(&self, count: u32) -> Vec<PingedTarget> {
        let targets: Vec<Endpoint> =
            self.lock().targets.iter().map(|one| one.endpoint().clone()).collect();
        let mut pinged = Vec::with_capacity(targets.len());
        for target in &targets {
            pinged.push(self.ping_target(target, count).await);
        }
        pinged
    }

    async fn ping_target(&self, target: &Endpoint, count: u32) -> PingedTarget {
        let mut found =
            PingedTarget { target: target.address.to_string(), ..PingedTarget::default() };
        let Some(link) = &self.link else { return found };
        let begun = Instant::now();
        let mut greeted = match self.greet(link, target).await {
            Ok(greeted) => greeted,
            Err(fault) => return PingedTarget { error: Some(fault.to_string()), ..found },
        };
        found.opened_us = microseconds(begun.elapsed());
        found.gateway = Some(greeted.gateway().to_owned());
        let time = self.config.reply_timeout;
        for _ in 0..count {
            let ping = greeted.ping(self.world.entropy.next());
            match tokio::time::timeout(time, ping).await.unwrap_or(Err(LinkFault::Late(time))) {
                Ok(round_trip) => found.round_trips_us.push(microseconds(round_trip)),
                Err(fault) => {
                    found.error = Some(fault.to_string());
                    break;
                }
            }
        }
        greeted.close();
        found
    }

    /// What a gateway takes, asked on a connection of its own.
    pub(super) async fn look_at_gateway(
        &self,
        link: &Link,
        target: &Endpoint,
    ) -> Result<Extensions, ConnectionError> {
        let greeted = self.greet(link, target).await?;
        let extensions = greeted.extensions();
        greeted.close();
        Ok(extensions)
    }

    /// Whether a gateway is there, wants us, and takes messages with such addresses. What the servers
    /// behind it would say is not asked: the protocol has no word for that.
    pub(super) async fn rehearse_link(
        &self,
        link: &Link,
        target: &Endpoint,
        sender: &ReversePath,
        recipient: &Address,
    ) -> Result<(), RehearsalError> {
        let mut greeted = self
            .greet(link, target)
            .await
            .map_err(|fault| RehearsalError::Connection(fault.into()))?;
        let pinged = greeted.ping(self.world.entropy.next()).await;
        let offered = greeted.extensions();
        greeted.close();
        pinged.map_err(|fault| RehearsalError::Connection(fault.into()))?;
        let is_ascii = sender.is_ascii() && recipient.is_ascii();
        if !is_ascii && !offered.has(wavegate_smtp::Extension::SmtpUtf8) {
            return Err(Unsupported::SmtpUtf8.into());
        }
        Ok(())
    }

    async fn greet(&self, link: &Link, target: &Endpoint) -> Result<Greeted, LinkFault> {
        link.beginning(target, self.config.connect_timeout)?.dial(target).await
    }

    /// The right to send one message to a target that may be used now; another one than `avoid`, if
    /// there is.
    pub(super) async fn channel(
        self: &Arc<Self>,
        link: &Link,
        avoid: Option<&Endpoint>,
    ) -> Result<Channel, LeaseError> {
        let most = self.config.connections;
        let picked = {
            let state = self.lock();
            link.pick(most, |one| Some(one) != avoid && state.is_usable(one))
        };
        if let Some((channel, is_crowded)) = picked {
            if is_crowded && let Some(target) = self.choose_another(link, avoid) {
                // Whoever comes then has it better.
                self.opening(link, &target);
            }
            return Ok(channel);
        }
        let mut tried = Vec::new();
        let mut last = None;
        while let Some(target) = self.choose_target(avoid, &tried) {
            match self.channel_of(link, &target).await {
                Ok(channel) => return Ok(channel),
                Err(fault) => {
                    let (upstream, target) = (self.config.name.clone(), target.address);
                    last = Some(LeaseError::Connect { upstream, target, source: fault.into() });
                }
            }
            tried.push(target);
        }
        Err(last.unwrap_or_else(|| self.all_down()))
    }

    /// A target for one more connection of the calling worker: one that it has none to, if one as
    /// good as the others is there.
    fn choose_another(&self, link: &Link, avoid: Option<&Endpoint>) -> Option<Endpoint> {
        let fresh = self.choose_target(avoid, &link.reached(current_worker()));
        let fresh = fresh.filter(|one| self.lock().is_usable(one));
        fresh.or_else(|| self.choose_target(avoid, &[]))
    }

    /// The right to send one message to this target and no other, whatever is thought of its health,
    /// and whether or not a slot is free: for a message that may have been handed on there. Goes on
    /// until it has one.
    pub async fn channel_to(self: &Arc<Self>, target: &Endpoint) -> Option<Channel> {
        let link = self.link.as_ref()?;
        loop {
            match self.channel_of(link, target).await {
                Ok(channel) => return Some(channel),
                Err(fault) if fault.is_silence() => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn channel_of(
        self: &Arc<Self>,
        link: &Link,
        target: &Endpoint,
    ) -> Result<Channel, LinkFault> {
        loop {
            if let Some((channel, _)) = link.pick(0, |one| one == target) {
                return Ok(channel);
            }
            let mut done = self.opening(link, target);
            match done.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(fault))) => return Err(fault.clone()),
                // It is there, unless it has ended already.
                Ok(_) => {}
                Err(_) => return Err(LinkFault::Abandoned),
            }
        }
    }

    /// The opening of a connection to a target from the calling worker, which begins where none is
    /// under way. It goes on whether or not anybody waits.
    fn opening(self: &Arc<Self>, link: &Link, target: &Endpoint) -> Opened {
        let worker = current_worker();
        let mut table = link.lock();
        // One whose runtime is gone will never be done.
        table.openings.retain(|one| one.done.has_changed().is_ok());
        let mut running = table.openings.iter();
        if let Some(one) = running.find(|one| one.worker == worker && one.target == *target) {
            return one.done.clone();
        }
        let (sender, done) = watch::channel(None);
        table.openings.push(Opening { worker, target: target.clone(), done: done.clone() });
        drop(table);
        let (upstream, target) = (Arc::clone(self), target.clone());
        tokio::spawn(async move {
            let opened = upstream.open_wire(&target, worker).await;
            if let Some(link) = &upstream.link {
                let is_this = |one: &Opening| one.worker == worker && one.target == target;
                link.lock().openings.retain(|one| !is_this(one));
            }
            sender.send_replace(Some(opened));
        });
        done
    }

    /// Opens a connection; the health of the target learns from it.
    async fn open_wire(
        self: &Arc<Self>,
        target: &Endpoint,
        worker: usize,
    ) -> Result<(), LinkFault> {
        let Some(link) = &self.link else { return Err(LinkFault::Abandoned) };
        match self.greet(link, target).await {
            Ok(greeted) => {
                self.stats.opened.fetch_add(1, Relaxed);
                link.counts.opened();
                let (upstream, gateway) = (&self.config.name[..], greeted.gateway());
                let opened = Event::LinkOpened { upstream, target: target.address, gateway };
                self.observer.observe(&opened);
                self.report_success(target, Some(greeted.extensions()));
                let since = self.world.clock.now();
                let (wire, keeper) = greeted.into_wire(target.clone(), worker, since);
                if self.lock().retired {
                    // Opened for what was under way; nobody looks after it later.
                    let (last, time) = (Arc::clone(&wire), self.config.idle_timeout);
                    tokio::spawn(async move {
                        tokio::time::sleep(time).await;
                        last.stop();
                    });
                }
                link.lock().wires.push(wire);
                tokio::spawn(keeper.keep(Arc::downgrade(self)));
                Ok(())
            }
            Err(fault) => {
                self.stats.failed.fetch_add(1, Relaxed);
                // One more than there are may be one too many for the gateway, and no more than that.
                if !link.pause(worker, target) {
                    self.report_error(target, &ConnectionError::Link(fault.clone()));
                }
                Err(fault)
            }
        }
    }

    /// A connection has ended; `fault` says why, where it was not us.
    fn lost(&self, wire: &Arc<Wire>, fault: Option<&LinkFault>) {
        let Some(link) = &self.link else { return };
        let mut table = link.lock();
        let before = table.wires.len();
        table.wires.retain(|one| !Arc::ptr_eq(one, wire));
        let was_there = table.wires.len() < before;
        drop(table);
        if was_there {
            link.counts.ended(wire, fault.is_some());
        }
        let Some(fault) = fault else { return };
        let (upstream, target) = (&self.config.name[..], wire.endpoint.address);
        let error = fault.to_string();
        self.observer.observe(&Event::LinkLost { upstream, target, error: &error });
        // A gateway that ends, or has begun anew, says so. One that says nothing cannot be reached.
        if fault.is_silence() || fault.is_dismissal() {
            self.report_error(&wire.endpoint, &ConnectionError::Link(fault.clone()));
        }
    }

    /// Closes connections that nobody uses and that go where no message would, and those that are
    /// too many of one gateway while another one has none.
    pub(super) fn sweep(&self) {
        let Some(link) = &self.link else { return };
        let usable = {
            let state = self.lock();
            let targets = state.targets.iter().map(|one| one.endpoint().clone());
            targets.filter(|one| state.is_usable(one)).collect::<Vec<_>>()
        };
        let unwanted: Vec<_> = {
            let table = link.lock();
            let unused = table.wires.iter().filter(|one| one.streams() == 0);
            let useless = unused.filter(|one| !usable.contains(&one.endpoint)).cloned();
            useless.chain(table.surplus(self.config.connections, &usable)).collect()
        };
        unwanted.iter().for_each(|wire| wire.stop());
    }
}

impl From<LinkError> for ConnectionError {
    fn from(error: LinkError) -> Self {
        Self::Link(error.into())
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
