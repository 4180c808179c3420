//! How packets go: the socket of the calling worker, and what QUIC is told of the path. Floor 2.
//!
//! An endpoint lives in the runtime that has made it, so each worker has its own, for all links.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, ConnectError, Connecting, EndpointConfig, IdleTimeout, TokioRuntime,
    TransportConfig, VarInt, congestion,
};
use socket2::{Domain, Protocol, Socket, Type};

use wavegate_link::Code;

use super::LinkFault;
use crate::config::{Congestion, LinkUpstream};

/// Bytes of one connection that are on their way or wait for it: what a path of 80 ms holds at 1
/// Gbit/s, and a fifth more. So much memory of messages may be held by each connection at most.
const SEND_WINDOW: u64 = 12 << 20;
/// Bytes of answers that one message may have on their way: most have some hundred.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all messages of a connection.
const RECEIVE_WINDOW: u32 = 4 << 20;
/// A round trip before there was one. Less than QUIC's third of a second: a packet that is lost in
/// the handshake is sent again after three of them.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Bytes that the kernel keeps in each direction: what comes in some milliseconds at full rate. It
/// gives less where `net.core.rmem_max` says so.
const SOCKET_BUFFER: usize = 4 << 20;

/// Time for gateways to hear that a worker ends: a lost packet is not sent again.
const GOODBYE: Duration = Duration::from_millis(500);

thread_local! {
    /// For IPv4 and IPv6.
    static ENDPOINTS: RefCell<[Option<quinn::Endpoint>; 2]> = const { RefCell::new([None, None]) };
    /// Nothing begins here any more.
    static LEFT: Cell<bool> = const { Cell::new(false) };
}

/// What QUIC is told for a link.
pub(super) fn config(link: &LinkUpstream) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(link.idle_timeout).ok();
    config
        .max_idle_timeout(idle.or(Some(IdleTimeout::from(VarInt::MAX))))
        .keep_alive_interval(Some(link.keep_alive))
        // Only the edge opens streams, and there are no datagrams.
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .send_window(SEND_WINDOW)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into())
        .initial_rtt(INITIAL_RTT)
        // A long message must not hold up the short ones behind it.
        .send_fairness(true)
        .enable_segmentation_offload(true);
    match link.congestion {
        Congestion::Cubic => {
            config.congestion_controller_factory(Arc::new(congestion::CubicConfig::default()));
        }
        Congestion::Bbr => {
            config.congestion_controller_factory(Arc::new(congestion::BbrConfig::default()));
        }
    }
    config
}

/// Begins a connection from the calling worker.
pub(super) fn connect(
    config: &ClientConfig,
    address: SocketAddr,
    name: &str,
) -> Result<Connecting, LinkFault> {
    if LEFT.get() {
        return Err(LinkFault::Abandoned);
    }
    ENDPOINTS.with_borrow_mut(|endpoints| {
        let slot = &mut endpoints[usize::from(address.is_ipv6())];
        if let Some(endpoint) = slot {
            match endpoint.connect_with(config.clone(), address, name) {
                // The runtime that it was in, or its socket, is gone.
                Err(ConnectError::EndpointStopping) => {}
                begun => return Ok(begun?),
            }
        }
        let fresh = open(address).map_err(|error| LinkFault::Socket(Arc::new(error)))?;
        let endpoint = slot.insert(fresh);
        Ok(endpoint.connect_with(config.clone(), address, name)?)
    })
}

/// Closes the connections that began from the calling worker, which ends: gateways hear of it at once,
/// not by their idle time-outs.
pub async fn leave() {
    LEFT.set(true);
    let endpoints = ENDPOINTS.with_borrow_mut(std::mem::take);
    let leaving = async {
        for endpoint in endpoints.iter().flatten() {
            endpoint
                .close(VarInt::from_u32(Code::Closed.number()), Code::Closed.as_str().as_bytes());
        }
        for endpoint in endpoints.iter().flatten() {
            endpoint.wait_idle().await;
        }
    };
    let _ = tokio::time::timeout(GOODBYE, leaving).await;
}

fn open(peer: SocketAddr) -> io::Result<quinn::Endpoint> {
    let own: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = Socket::new(Domain::for_address(own), Type::DGRAM, Some(Protocol::UDP))?;
    // As much as the kernel gives.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&own.into())?;
    let runtime = Arc::new(TokioRuntime);
    quinn::Endpoint::new(EndpointConfig::default(), None, socket.into(), runtime)
}
