//! The outside world as the relay sees it: time, entropy, network. Floor 1.
//!
//! Everything above takes these from a [`World`], so that the whole relay also runs under
//! simulated time over a network in memory (`memory`). Monotonic time is
//! `tokio::time::Instant`, which tests can pause; nothing else may be asked for the time.

pub mod memory;
pub mod stream;
pub mod timer;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub use stream::Stream;
pub use timer::Deadline;

use crate::plan::Timestamp;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The time of day.
pub trait WallClock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// Outgoing connections. (Listening sockets are made by `listener`, which also takes streams.)
pub trait Network: Send + Sync {
    /// Connects to `address`. The caller bounds the time.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Stream>>;
}

/// Everything from outside, shared by the whole process.
#[derive(Clone)]
pub struct World {
    /// The time of day.
    pub clock: Arc<dyn WallClock>,
    /// Outgoing connections.
    pub network: Arc<dyn Network>,
    /// Where random numbers come from.
    pub entropy: Arc<Entropy>,
}

impl World {
    /// The real one.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            network: Arc::new(TcpNetwork),
            entropy: Arc::new(Entropy::new(getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15))),
        }
    }
}

/// The machine's clock.
pub struct SystemClock;

impl WallClock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The machine's network.
pub struct TcpNetwork;

impl Network for TcpNetwork {
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        })
    }
}

/// A seeded stream of numbers (SplitMix64): for ids and jitter, never for secrets.
pub struct Entropy(AtomicU64);

impl Entropy {
    /// Numbers that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let step = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut z = step.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
