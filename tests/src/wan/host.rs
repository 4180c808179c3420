//! A host: a network namespace that has no name, and its end of the path.
//!
//! Owns making them. A namespace is held by this program's file descriptor and by the processes in
//! it, so it goes with them, after `kill -9` too, and its devices with it. Floor: none.

use std::{
    fs::{self, File, OpenOptions},
    net::Ipv4Addr,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    process::Command,
};

use anyhow::Context as _;
use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
};

/// The device's name on its host.
const DEVICE: &str = "wan0";
/// Largest packet.
pub(super) const MTU: usize = 1500;
/// Packets that may wait for the emulator's thread while it has no processor: 50 ms of a full
/// gigabit. More would hide that it is too slow.
const WAITING: &str = "5000";

/// Of the namespace that reads or writes it.
const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

/// One host.
pub struct Host(File);

impl Host {
    /// A host with nothing but itself.
    pub(super) fn new() -> anyhow::Result<Self> {
        let make = || -> anyhow::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
            // It would speak by itself, of routers and groups, which would be counted too.
            fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
            ip(&["link", "set", "lo", "up"])?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        Ok(Self(std::thread::scope(|scope| joined(scope.spawn(make)))?))
    }

    /// Does something on this host. Sockets, threads and processes that it makes are and stay there.
    ///
    /// # Panics
    /// If `act` does, or if this process may not enter the host that it made.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let act = || {
            let entered = setns(&self.0, CloneFlags::CLONE_NEWNET);
            assert!(entered.is_ok(), "a host that was made here cannot be entered: {entered:?}");
            act()
        };
        std::thread::scope(|scope| joined(scope.spawn(act)))
    }

    /// Makes its end of the path: what is sent to `peer` is read from the file, what is written to it
    /// arrives here.
    pub(super) fn device(&self, own: Ipv4Addr, peer: Ipv4Addr) -> anyhow::Result<File> {
        self.within(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")
                .context("no TUN devices: /dev/net/tun")?;
            attach(&file)?;
            let (own, peer) = (own.to_string(), format!("{peer}/32"));
            ip(&["addr", "add", &own, "peer", &peer, "dev", DEVICE])?;
            let mtu = MTU.to_string();
            ip(&["link", "set", DEVICE, "mtu", &mtu, "txqueuelen", WAITING, "up"])?;
            Ok(file)
        })
    }

    /// Congestion control of TCP connections that are opened from now on. Linux lets a namespace choose
    /// among those of its `tcp_allowed_congestion_control`.
    pub(super) fn set_tcp(&self, congestion: &str) -> anyhow::Result<()> {
        let written = self.within(|| fs::write(CONGESTION, congestion));
        written.with_context(|| format!("TCP may not have {congestion} here"))
    }

    /// What it is now.
    pub(super) fn tcp(&self) -> anyhow::Result<String> {
        Ok(self.within(|| fs::read_to_string(CONGESTION))?.trim().to_owned())
    }

    /// Packets that were not taken from its device in time.
    pub(super) fn overruns(&self) -> anyhow::Result<u64> {
        self.within(|| {
            let text = fs::read_to_string("/proc/thread-self/net/dev")?;
            let line = text
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'));
            // Eight columns of what was received, then bytes, packets, errors and drops of what was
            // sent.
            let drops = line.and_then(|line| line.split_whitespace().nth(11)?.parse().ok());
            drops.context("the device has no figures")
        })
    }
}

/// Makes the device behind an opened `/dev/net/tun`: bare IP packets. Without `IFF_VNET_HDR` and
/// `TUNSETOFFLOAD` the kernel cuts segments to the MTU and sums them up before they get here.
#[allow(unsafe_code, reason = "the C library's call, given a structure that is ours")]
fn attach(file: &File) -> anyhow::Result<()> {
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (place, byte) in name.iter_mut().zip(DEVICE.bytes()) {
        *place = libc::c_char::try_from(byte)?;
    }
    let ifru_flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags };
    let request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: TUNSETIFF reads an `ifreq`, which lives until the call is over.
    let made = unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) };
    made.context("no TUN device can be made: this needs root")?;
    Ok(())
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip cannot be run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ip {}: {said}", arguments.join(" "));
    Ok(())
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
