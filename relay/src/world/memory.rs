//! A network and a clock in memory, for simulations: the whole relay in one process, an hour
//! in a second. Part of the library so that every crate's tests can use it, and `wavegate
//! explain`, which asks about any time and connects to nobody.

mod names;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use tokio::{io::DuplexStream, sync::mpsc, time::Instant};

pub use names::MemoryNames;

use super::{BootClock, BoxFuture, Entropy, Network, Opening, Stream, WallClock, World};
use crate::plan::Timestamp;

/// Bytes that a pipe holds in each direction.
const PIPE: usize = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;

/// A wall clock that follows tokio's (pausable) time, unless it is stepped, and the boot clock
/// beside it.
pub struct SimulatedClock {
    start: Timestamp,
    epoch: Instant,
    stepped: AtomicI64,
}

impl SimulatedClock {
    /// A clock that shows `start` now.
    pub fn new(start: Timestamp) -> Self {
        Self { start, epoch: Instant::now(), stepped: AtomicI64::new(0) }
    }

    /// Somebody sets the wall clock by so many milliseconds.
    pub fn step(&self, ms: i64) {
        self.stepped.fetch_add(ms, Ordering::Relaxed);
    }

    /// What it would show if nobody had stepped it.
    fn unstepped(&self) -> Timestamp {
        let elapsed = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.start.saturating_add_ms(elapsed)
    }
}

impl WallClock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let stepped = self.stepped.load(Ordering::Relaxed);
        Timestamp(self.unstepped().0.saturating_add_signed(stepped))
    }
}

impl BootClock for SimulatedClock {
    fn since_boot(&self) -> Option<u64> {
        Some(self.unstepped().0)
    }

    fn boot_id(&self) -> [u8; 16] {
        [1; 16]
    }
}

/// Addresses that somebody listens on.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    listeners: Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<DuplexStream>>>>,
}

impl MemoryNetwork {
    /// Listens on `address`; whoever listened there before does no more.
    pub fn listen(&self, address: SocketAddr) -> mpsc::Receiver<DuplexStream> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(address, sender);
        receiver
    }

    /// Nobody listens on `address` from now on.
    pub fn close(&self, address: SocketAddr) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }
}

impl Network for MemoryNetwork {
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<(Stream, Option<Opening>)>> {
        Box::pin(async move {
            let listener = self
                .listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&address)
                .cloned()
                .ok_or(io::ErrorKind::ConnectionRefused)?;
            let (near, far) = tokio::io::duplex(PIPE);
            listener.send(far).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok((Stream::Memory(near), None))
        })
    }
}

impl World {
    /// A simulated world at `start`, whose randomness follows from `seed`.
    pub fn simulated(network: MemoryNetwork, start: Timestamp, seed: u64) -> Self {
        Self::with_clock(network, Arc::new(SimulatedClock::new(start)), seed)
    }

    /// A simulated world with a clock that the caller may step.
    pub fn with_clock(network: MemoryNetwork, clock: Arc<SimulatedClock>, seed: u64) -> Self {
        Self {
            clock: Arc::clone(&clock) as _,
            boot: clock,
            network: Arc::new(network),
            names: Arc::new(MemoryNames::default()),
            openings: Arc::default(),
            entropy: Arc::new(Entropy::new(seed)),
        }
    }
}
