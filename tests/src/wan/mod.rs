//! A wide area network on one machine: two hosts, and between them a path with delay, jitter, loss,
//! a rate, reordering and outages, the same for TCP and UDP.
//!
//! Owns the hosts (network namespaces without a name: they go with the last process in them, however
//! that ends) and the program between them. What becomes of a packet is decided in [`path`], without
//! I/O; `emulator` moves packets between two TUN devices. Needs root, and `ip` of iproute2.
//! Floor: none. Start reading at [`Wan`].

mod emulator;
mod host;
pub mod path;

use std::net::Ipv4Addr;

use emulator::Emulator;
pub use emulator::Totals;
pub use host::Host;
pub use path::Conditions;

use crate::tool;

/// The near host, where an edge is.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The far host, where the cloud is.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// What tests call the ability to make such a network, in `WAVEGATE_SKIP`.
const NAME: &str = "tun";

/// Two hosts and the path between them. All of it goes when it is dropped.
pub struct Wan {
    /// The one at [`NEAR`].
    pub near: Host,
    /// The one at [`FAR`].
    pub far: Host,
    emulator: Emulator,
}

/// A direction of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the near host to the far one.
    Up,
    /// Back.
    Down,
}

impl Wan {
    /// Makes it, with the same conditions in both directions; `seed` decides what chance decides.
    pub fn make(conditions: Conditions, seed: u64) -> anyhow::Result<Self> {
        let (near, far) = (Host::new()?, Host::new()?);
        let ends = [near.device(NEAR, FAR)?, far.device(FAR, NEAR)?];
        let emulator = Emulator::start(ends, conditions, seed)?;
        Ok(Self { near, far, emulator })
    }

    /// The same for a test; none where this machine is to do without (`ip` or `tun` in
    /// `WAVEGATE_SKIP`).
    ///
    /// # Panics
    /// If it cannot be made and is not to be skipped.
    pub fn require(conditions: Conditions, seed: u64) -> Option<Self> {
        tool::require("ip")?;
        tool::require_able(NAME, || Self::make(conditions, seed).map_err(|error| error.to_string()))
    }

    /// Other conditions from now on, in both directions. What is under way comes as it was to come.
    pub fn set(&self, conditions: Conditions) {
        self.set_way(Way::Up, conditions);
        self.set_way(Way::Down, conditions);
    }

    /// The same in one direction.
    pub fn set_way(&self, way: Way, conditions: Conditions) {
        self.emulator.change(way, |wanted| wanted.conditions = conditions);
    }

    /// Nothing passes any more, and what is under way is lost, until [`Wan::mend`].
    pub fn cut(&self) {
        self.set_cut(true);
    }

    /// The end of a cut.
    pub fn mend(&self) {
        self.set_cut(false);
    }

    fn set_cut(&self, cut: bool) {
        for way in [Way::Up, Way::Down] {
            self.emulator.change(way, |wanted| wanted.cut = cut);
        }
    }

    /// TCP's congestion control on both hosts, for connections that are opened from now on.
    pub fn set_tcp(&self, congestion: &str) -> anyhow::Result<()> {
        self.near.set_tcp(congestion)?;
        self.far.set_tcp(congestion)
    }

    /// What that is.
    pub fn tcp(&self) -> anyhow::Result<String> {
        self.near.tcp()
    }

    /// What became of the packets of one direction so far.
    pub fn totals(&self, way: Way) -> Totals {
        self.emulator.totals(way)
    }

    /// Packets that the kernel dropped because the emulator was too slow to take them: what was
    /// measured meanwhile is not what was asked for.
    pub fn overruns(&self) -> anyhow::Result<u64> {
        Ok(self.near.overruns()? + self.far.overruns()?)
    }
}
