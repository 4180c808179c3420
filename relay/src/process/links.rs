//! The gateways of the process: their sockets, and what a reload makes of them. Floor 4.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Weak},
};

use super::StartError;
use crate::{
    config::{Config, Diagnostic, Diagnostics, LinkListener},
    event::Event,
    gateway::{self, Acceptance, Gateway, Gateways, Open, Port},
    relay::Relay,
    seen::Seen,
    tls::Loaded,
    upstream::link::incarnation,
    worker::Workers,
};

/// A listener's sockets that nothing comes to yet: one for each worker.
pub(super) struct BoundLink {
    name: String,
    configured: SocketAddr,
    address: SocketAddr,
    sockets: Vec<UdpSocket>,
}

/// Binds all that a configuration wants. Not before a process that is taken over from has given its
/// own up: whatever comes to two of them would be lost to one.
pub(super) fn bind_all(config: &Config) -> Result<Vec<BoundLink>, StartError> {
    let bind = |listener: &LinkListener| {
        bind(listener, config.relay.workers).map_err(|source| StartError::Bind {
            what: format!("listener {}", listener.name),
            address: listener.address,
            source,
        })
    };
    config.links.iter().map(bind).collect()
}

fn bind(listener: &LinkListener, workers: usize) -> std::io::Result<BoundLink> {
    let (address, sockets) = gateway::bind(listener.address, workers)?;
    let (name, configured) = (listener.name.clone(), listener.address);
    Ok(BoundLink { name, configured, address, sockets })
}

/// Who is let in by a listener.
fn acceptance(tls: &Loaded, listener: &LinkListener) -> Result<Acceptance, Diagnostic> {
    let acceptor = tls.link_gateway(&listener.name).ok_or_else(|| {
        let text = "the certificate of a link is not loaded";
        Diagnostic::of_file(format!("listener {}", listener.name), text)
    })?;
    let judge = Arc::clone(acceptor);
    let peer = move |certificates: &[_]| judge.peer(certificates);
    Ok(Acceptance { crypto: Arc::clone(&acceptor.config), peer: Arc::new(peer) })
}

/// The gateways that are open.
pub(super) struct Links {
    relay: Arc<Relay>,
    /// Drawn when the process starts.
    incarnation: [u8; 16],
    gateways: Arc<Gateways>,
    /// Of listeners that have gone too, as long as messages of theirs are on their way: two tables
    /// on the same files would not know of each other.
    seen: HashMap<String, Weak<Seen>>,
}

impl Links {
    pub(super) fn new(relay: &Arc<Relay>) -> Self {
        let incarnation = incarnation(&relay.world);
        let gateways = Arc::<Gateways>::default();
        let told = Arc::clone(&gateways);
        relay.tell_of_gateways(Box::new(move || told.status()));
        let (relay, seen) = (Arc::clone(relay), HashMap::new());
        Self { relay, incarnation, gateways, seen }
    }

    /// Those that are open, for whoever tells of them.
    pub(super) fn gateways(&self) -> Arc<Gateways> {
        Arc::clone(&self.gateways)
    }

    /// Binds what a new configuration has and is not open yet, and makes what can fail: all of it or
    /// nothing.
    pub(super) fn prepare(
        &mut self,
        config: &Config,
        tls: &Loaded,
    ) -> Result<Vec<(Open, Vec<UdpSocket>)>, Diagnostics> {
        let open = self.gateways.open();
        let is_open = |wanted: &&LinkListener| open.iter().any(|one| is_of(one, wanted));
        let wrong = |listener: &LinkListener, error: std::io::Error| {
            let text = format!("cannot listen on {}: {error}", listener.address);
            Diagnostic::of_file(format!("listener {}", listener.name), text)
        };
        let mut fresh = Vec::new();
        let mut failed = Vec::new();
        for listener in &config.links {
            if is_open(&listener) {
                failed.extend(acceptance(tls, listener).err());
                continue;
            }
            let bound =
                bind(listener, config.relay.workers).map_err(|error| wrong(listener, error));
            match bound.and_then(|bound| self.make(bound, listener, config, tls)) {
                Ok(one) => fresh.push(one),
                Err(diagnostic) => failed.push(diagnostic),
            }
        }
        if failed.is_empty() { Ok(fresh) } else { Err(Diagnostics(failed)) }
    }

    /// Makes gateways of what was bound at the start.
    pub(super) fn start(
        &mut self,
        bound: Vec<BoundLink>,
        config: &Config,
        tls: &Loaded,
    ) -> Result<Vec<(Open, Vec<UdpSocket>)>, Diagnostics> {
        let mut fresh = Vec::new();
        for bound in bound {
            let listener = config.links.iter().find(|one| one.name == bound.name);
            let Some(listener) = listener else { continue };
            let made = self.make(bound, listener, config, tls);
            fresh.push(made.map_err(|diagnostic| Diagnostics(vec![diagnostic]))?);
        }
        Ok(fresh)
    }

    fn make(
        &mut self,
        bound: BoundLink,
        listener: &LinkListener,
        config: &Config,
        tls: &Loaded,
    ) -> Result<(Open, Vec<UdpSocket>), Diagnostic> {
        let directory = Gateway::directory(&config.relay.state_dir, &listener.name);
        let wrong = |error: std::io::Error| {
            let text = format!("what the link keeps there cannot be used: {error}");
            Diagnostic::of_file(directory.display(), text)
        };
        let known = self.seen.get(&listener.name).and_then(Weak::upgrade);
        let seen = match known {
            Some(seen) => {
                seen.resize(listener.seen);
                seen
            }
            None => Seen::open(&directory, listener.seen).map_err(wrong)?,
        };
        self.seen.insert(listener.name.clone(), Arc::downgrade(&seen));
        let acceptance = acceptance(tls, listener)?;
        let (relay, incarnation) = (&self.relay, self.incarnation);
        let gateway = Gateway::open(relay, listener, acceptance, &seen, &directory, incarnation);
        let gateway = gateway.map_err(wrong)?;
        let BoundLink { configured, address, sockets, .. } = bound;
        Ok((Open { gateway, configured, address }, sockets))
    }

    /// Serves what is new, changes what stays, and closes what the configuration in force has no
    /// more.
    pub(super) fn turn_to(
        &mut self,
        fresh: Vec<(Open, Vec<UdpSocket>)>,
        workers: Option<&Workers>,
    ) {
        let generation = self.relay.generation();
        let mut open = Vec::new();
        for one in self.gateways.open() {
            let wanted = generation.config.links.iter().find(|wanted| is_of(&one, wanted));
            let terms = wanted.map(|wanted| (wanted, acceptance(&generation.tls, wanted)));
            if let Some((wanted, Ok(acceptance))) = terms {
                one.gateway.change(wanted, acceptance);
                open.push(one);
            } else {
                one.gateway.close();
                self.relay.emit(&Event::ListenerClosed { listener: one.gateway.name() });
            }
        }
        for (one, sockets) in fresh {
            let port = |(worker, socket)| {
                let gateway = Arc::clone(&one.gateway);
                Port { gateway, worker, socket }
            };
            self.relay.emit(&Event::ListenerOpened { listener: one.gateway.name() });
            if let Some(workers) = workers {
                workers.serve((0..).zip(sockets).map(port).collect());
            }
            open.push(one);
        }
        self.gateways.set(open);
    }

    /// Lets nobody in any more; what has begun is finished.
    pub(super) fn close(&self) {
        self.gateways.open().iter().for_each(|one| one.gateway.close());
    }

    /// Nothing is open any more.
    pub(super) fn closed(&self) {
        for one in self.gateways.open() {
            self.relay.emit(&Event::ListenerClosed { listener: one.gateway.name() });
        }
        self.gateways.set(Vec::new());
    }

    /// Where they are reached, by name.
    pub(super) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let open = self.gateways.open();
        open.iter().map(|one| (one.gateway.name().to_owned(), one.address)).collect()
    }
}

fn is_of(open: &Open, listener: &LinkListener) -> bool {
    open.gateway.name() == listener.name && open.configured == listener.address
}
