//! A network of four hosts, each a network namespace: a client behind the relay's host, and two
//! servers on its other side.

use std::{
    fs::{self, File},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, setns};
use wavegate_tests::tool;

/// The servers, as clients name them.
pub(crate) const ONE_4: &str = "10.77.2.2:25";
pub(crate) const ONE_6: &str = "[fd77:2::2]:25";
pub(crate) const TWO_4: &str = "10.77.3.2:25";
pub(crate) const TWO_6: &str = "[fd77:3::2]:25";
/// Where mail moves to, on the second server's host.
pub(crate) const CLOUD: &str = "10.77.3.2:2600";
/// The relay's own port, as its clients could name it.
pub(crate) const RELAY_4: &str = "10.77.1.1:2525";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One host, by the name of its namespace.
pub(crate) struct Host(String);

/// All of them. They go when it is dropped.
pub(crate) struct Net {
    pub(crate) client: Host,
    pub(crate) relay: Host,
    pub(crate) one: Host,
    pub(crate) two: Host,
}

impl Net {
    /// None where this machine is to do without (`nft` or `ip` in `WAVEGATE_SKIP`).
    pub(crate) fn make(name: &str) -> Option<Self> {
        tool::require("ip")?;
        tool::require("nft")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let host = |role: &str| {
            let host = Host(format!("wg-{name}-{}-{number}-{role}", std::process::id()));
            ip(&["netns", "add", &host.0]);
            ip(&["-n", &host.0, "link", "set", "lo", "up"]);
            host
        };
        let net = Self {
            client: host("client"),
            relay: host("relay"),
            one: host("one"),
            two: host("two"),
        };
        within(&net.relay, || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        for (host, network) in [(&net.client, 1), (&net.one, 2), (&net.two, 3)] {
            net.connect(host, network);
        }
        Some(net)
    }

    /// A cable between a host and the relay's, which it sends everything by.
    fn connect(&self, host: &Host, network: u8) {
        let (near, far) = (&host.0, &self.relay.0);
        let cable = format!("wg{network}");
        let ends = ["link", "add", "up0", "netns", near, "type", "veth", "peer", "name", &cable];
        ip(&[&ends[..], &["netns", far]].concat());
        for (netns, link, last) in [(near, "up0", 2), (far, &*cable, 1)] {
            let (four, six) =
                (format!("10.77.{network}.{last}/24"), format!("fd77:{network}::{last}/64"));
            ip(&["-n", netns, "addr", "add", &four, "dev", link]);
            // Nobody else has it: there is nothing to be detected for a second.
            ip(&["-n", netns, "addr", "add", &six, "dev", link, "nodad"]);
            ip(&["-n", netns, "link", "set", link, "up"]);
        }
        ip(&["-n", near, "route", "add", "default", "via", &format!("10.77.{network}.1")]);
        ip(&["-n", near, "-6", "route", "add", "default", "via", &format!("fd77:{network}::1")]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
}

/// Does something on a host. Sockets, threads and processes that it makes are and stay there.
pub(crate) fn within<T: Send>(host: &Host, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{}", host.0)).unwrap();
    let act = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        act()
    };
    let done = std::thread::scope(|scope| scope.spawn(act).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
