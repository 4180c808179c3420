//! The outside world as the relay sees it: time, entropy, network, names. Floor 1.
//!
//! Everything above takes these from a [`World`], so that the whole relay also runs under
//! simulated time over a network in memory (`memory`). Monotonic time is
//! `tokio::time::Instant`, which tests can pause; nothing else may be asked for the time.

mod hickory;
pub mod memory;
pub mod resolver;
pub mod opening;
pub mod stream;
pub mod timer;
pub mod tls;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use hickory::HickoryResolvers;
pub use opening::{Opening, Openings};
pub use resolver::{Resolver, ResolverSettings, Resolvers};
pub use stream::Stream;
pub use timer::Deadline;
pub use tls::TlsError;

use crate::plan::Timestamp;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The time of day.
pub trait WallClock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The time since the machine was started, which nobody sets: what the time of day is held
/// against.
pub trait BootClock: Send + Sync {
    /// Milliseconds since the machine was started, those in which it was suspended included; none
    /// where it does not say.
    fn since_boot(&self) -> Option<u64>;

    /// Which start of the machine.
    fn boot_id(&self) -> [u8; 16];
}

/// Outgoing connections. (Listening sockets are made by `listener`, which also takes streams.)
pub trait Network: Send + Sync {
    /// Connects to `address`. The caller bounds the time, and keeps the opening, where there is one,
    /// until the other side has greeted.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<(Stream, Option<Opening>)>>;
}

/// Everything from outside, shared by the whole process.
#[derive(Clone)]
pub struct World {
    /// The time of day.
    pub clock: Arc<dyn WallClock>,
    /// The time since the machine was started.
    pub boot: Arc<dyn BootClock>,
    /// Outgoing connections.
    pub network: Arc<dyn Network>,
    /// Who says what names stand for.
    pub names: Arc<dyn Resolvers>,
    /// Those of them that are being opened.
    pub openings: Arc<Openings>,
    /// Where random numbers come from.
    pub entropy: Arc<Entropy>,
}

impl World {
    /// The real one.
    pub fn real() -> Self {
        let openings = Arc::new(Openings::default());
        Self {
            clock: Arc::new(SystemClock),
            boot: Arc::new(SystemBoot),
            network: Arc::new(TcpNetwork(Arc::clone(&openings))),
            openings,
            names: Arc::new(HickoryResolvers),
            entropy: Arc::new(Entropy::new(getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15))),
        }
    }
}

/// Processor time that the calling thread has taken so far.
#[allow(unsafe_code, reason = "there is no safe way to ask for it")]
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to `time` alone, which lives here.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
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

/// The machine's uptime (CLOCK_BOOTTIME, as the kernel tells it: to 10 ms).
pub struct SystemBoot;

impl BootClock for SystemBoot {
    fn since_boot(&self) -> Option<u64> {
        uptime(&std::fs::read_to_string("/proc/uptime").ok()?)
    }

    fn boot_id(&self) -> [u8; 16] {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut id = [0; 16];
        let digits = text.bytes().filter_map(|byte| char::from(byte).to_digit(16));
        for (at, digit) in digits.take(32).enumerate() {
            id[at / 2] = id[at / 2] << 4 | u8::try_from(digit).unwrap_or(0);
        }
        id
    }
}

/// Milliseconds of `1234.56 7.89`.
fn uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let (seconds, hundredths) = (seconds.parse::<u64>().ok()?, hundredths.parse::<u64>().ok()?);
    seconds.checked_mul(1000)?.checked_add(hundredths.min(99) * 10)
}

/// The machine's network.
pub struct TcpNetwork(Arc<Openings>);

impl Network for TcpNetwork {
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<(Stream, Option<Opening>)>> {
        Box::pin(async move {
            let (stream, opening) = self.0.connect(address)?;
            let stream = tokio::net::TcpStream::from_std(stream)?;
            stream.writable().await?;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            stream.set_nodelay(true)?;
            Ok((Stream::Tcp(stream), Some(opening)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uptime_is_read_to_the_hundredth() {
        assert_eq!(uptime("28303.07 54321.00\n"), Some(28_303_070));
        assert_eq!(uptime("1 2"), None);
        assert_eq!(uptime(""), None);
        let (one, two) = (SystemBoot.since_boot(), SystemBoot.since_boot());
        assert!(one.is_some() && one <= two, "{one:?}, {two:?}");
        assert_eq!(SystemBoot.boot_id(), SystemBoot.boot_id());
    }
}
