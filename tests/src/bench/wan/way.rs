//! The ways to hand over, and what each needs on both hosts.
//!
//! Owns starting and draining them. Floor: none.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde::Serialize;

use super::WanOptions;
use crate::{
    bench::{
        mta,
        process::{Folder, Process, is_on_disk},
        relay::{Fill, Relay, await_greeting, free_address},
    },
    harness::tls_server,
    sink::{Extensions, Sink, SinkHandle, SinkOptions},
    wan::Host,
};

/// Where the gateway listens; each host has all ports for itself.
const LINK: u16 = 4433;
/// How long everything that was accepted may take to arrive.
const DRAIN: Duration = Duration::from_secs(120);

/// How mail goes over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The relay, by the link.
    Link,
    /// The relay, by SMTP over TLS on one connection.
    #[value(name = "smtp-1")]
    Smtp1,
    /// The same on ten.
    #[value(name = "smtp-10")]
    Smtp10,
    /// The same on a hundred.
    #[value(name = "smtp-100")]
    Smtp100,
    /// Postfix, by SMTP over TLS on one connection.
    #[value(name = "postfix-1")]
    Postfix1,
    /// The same on ten.
    #[value(name = "postfix-10")]
    Postfix10,
    /// The same on a hundred.
    #[value(name = "postfix-100")]
    Postfix100,
}

impl Way {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Link => "wavegate, link",
            Self::Smtp1 => "wavegate, SMTP, 1 connection",
            Self::Smtp10 => "wavegate, SMTP, 10 connections",
            Self::Smtp100 => "wavegate, SMTP, 100 connections",
            Self::Postfix1 => "Postfix, SMTP, 1 connection",
            Self::Postfix10 => "Postfix, SMTP, 10 connections",
            Self::Postfix100 => "Postfix, SMTP, 100 connections",
        }
    }

    /// Connections of SMTP; none: the link.
    pub(super) fn connections(self) -> Option<usize> {
        match self {
            Self::Link => None,
            Self::Smtp1 | Self::Postfix1 => Some(1),
            Self::Smtp10 | Self::Postfix10 => Some(10),
            Self::Smtp100 | Self::Postfix100 => Some(100),
        }
    }

    /// Whether its clients hear 250 before the message has arrived.
    pub(super) fn queues(self) -> bool {
        matches!(self, Self::Postfix1 | Self::Postfix10 | Self::Postfix100)
    }
}

/// Where something is: on a host of the network, or on this machine itself.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) host: Option<&'a Host>,
    /// Its address, as the other end sees it.
    pub(super) address: Ipv4Addr,
}

impl Place<'_> {
    pub(super) fn within<T: Send>(self, act: impl FnOnce() -> T + Send) -> T {
        match self.host {
            Some(host) => host.within(act),
            None => act(),
        }
    }
}

/// A way that is ready.
pub(super) struct Open<'a> {
    /// Where its clients connect to, at the near place.
    pub(super) addr: SocketAddr,
    pub(super) sink: SinkHandle,
    near: Place<'a>,
    edge: Edge,
    /// Behind it, so it ends later.
    gateway: Option<(Relay, Folder)>,
    folder: Folder,
}

enum Edge {
    Relay(Relay),
    Postfix(Process),
}

impl<'a> Open<'a> {
    /// Starts everything of a way, from the far end on.
    pub(super) fn start(
        way: Way,
        options: &WanOptions,
        (near, far): (Place<'a>, Place<'a>),
        record: bool,
    ) -> anyhow::Result<Self> {
        let behind_gateway = way == Way::Link;
        let listen = if behind_gateway { Ipv4Addr::LOCALHOST } else { far.address };
        let sink = SinkOptions {
            listen: SocketAddr::from((listen, 0)),
            extensions: Extensions { chunking: !options.no_chunking, ..Extensions::default() },
            tls: (!behind_gateway).then(|| tls_server("mx")),
            record,
            keep_header: record,
            ..SinkOptions::default()
        };
        let sink = far.within(|| Sink::start(sink))?;
        let gateway = behind_gateway.then(|| gateway(options, far, sink.addr())).transpose()?;
        let folder = Folder::new()?;
        let (addr, edge) = near.within(|| edge(way, options, far, sink.addr(), folder.path()))?;
        Ok(Self { addr, sink, near, edge, gateway, folder })
    }

    /// The root of the edge's processes.
    pub(super) fn edge_id(&self) -> u32 {
        match &self.edge {
            Edge::Relay(relay) => relay.process.id(),
            Edge::Postfix(process) => process.id(),
        }
    }

    /// Waits until `count` messages in all have come to the sink.
    pub(super) fn arrived(&self, count: u64) -> anyhow::Result<()> {
        let all = self.sink.wait_messages(count, DRAIN);
        let came = self.sink.counts().messages;
        anyhow::ensure!(all, "{came} of {count} messages came within {DRAIN:?}");
        Ok(())
    }

    /// Waits until nothing is in the spool of the edge.
    pub(super) fn drain(&self) -> anyhow::Result<()> {
        match &self.edge {
            Edge::Relay(relay) => self.near.within(|| relay.drain(DRAIN)),
            Edge::Postfix(_) => Ok(()),
        }
    }

    /// The event logs of both ends.
    pub(super) fn event_logs(&self) -> impl Iterator<Item = std::path::PathBuf> {
        let gateway = self.gateway.as_ref().map(|(_, folder)| folder);
        gateway.into_iter().chain([&self.folder]).map(|folder| folder.path().join("events.jsonl"))
    }

    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if let Some((gateway, _)) = &mut self.gateway {
            gateway.process.check()?;
        }
        match &mut self.edge {
            Edge::Relay(Relay { process, .. }) | Edge::Postfix(process) => process.check(),
        }
    }
}

fn gateway(
    options: &WanOptions,
    far: Place<'_>,
    sink: SocketAddr,
) -> anyhow::Result<(Relay, Folder)> {
    let folder = Folder::new()?;
    let mut fill = Fill::new(&options.places.configs);
    fill.set("FAR", far.address).set("LINK", LINK);
    fill.set("CONGESTION", &options.congestion);
    let files = ("wan-gateway.toml", "waves.toml");
    let start = || Relay::start(&options.places, folder.path(), sink, &mut fill, files);
    let relay = far.within(start)?;
    Ok((relay, folder))
}

/// Started at the near place.
fn edge(
    way: Way,
    options: &WanOptions,
    far: Place<'_>,
    sink: SocketAddr,
    dir: &Path,
) -> anyhow::Result<(SocketAddr, Edge)> {
    let mut fill = Fill::new(&options.places.configs);
    fill.set("FAR", far.address).set("LINK", LINK);
    fill.set("CONNECTIONS", way.connections().unwrap_or(options.connections));
    fill.set("CONGESTION", &options.congestion);
    if !way.queues() {
        let config = if way == Way::Link { "wan-link.toml" } else { "wan-smtp.toml" };
        let files = (config, "waves.toml");
        let relay = Relay::start(&options.places, dir, sink, &mut fill, files)?;
        return Ok((relay.addr, Edge::Relay(relay)));
    }
    is_on_disk(dir)?;
    let listen = free_address()?;
    fill.set("DIR", dir.display()).ports(listen, sink);
    let files = ("postfix/wan-main.cf", "postfix/wan-master.cf");
    let (command, _) = mta::postfix_with(&fill, dir, files)?;
    let mut process = Process::start(command, dir)?;
    await_greeting("Postfix", &mut process, listen)?;
    Ok((listen, Edge::Postfix(process)))
}

/// Both ends on this machine itself.
pub(super) fn loopback<'a>() -> (Place<'a>, Place<'a>) {
    let place = Place { host: None, address: Ipv4Addr::LOCALHOST };
    (place, place)
}

/// Both ends of a network.
pub(super) fn ends(wan: &crate::wan::Wan) -> (Place<'_>, Place<'_>) {
    let near = Place { host: Some(&wan.near), address: crate::wan::NEAR };
    (near, Place { host: Some(&wan.far), address: crate::wan::FAR })
}
