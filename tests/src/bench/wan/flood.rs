//! What the emulator itself can carry on this machine, so that it is known what limits the others.
//!
//! Owns the floods and their table. Floor: none.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::{WanOptions, at_least};
use crate::wan::{FAR, NEAR, Wan, Way};

/// Of each flood.
const TIME: Duration = Duration::from_secs(5);
/// Bytes of a datagram: a whole packet.
const SIZE: usize = 1472;
/// Packets a second, or as many bits as fill a gigabit: one of both must be reached.
const PACKETS: f64 = 100_000.0;
const BITS: f64 = 1e9;

/// What passed in one direction.
struct Flow {
    packets: f64,
    bits: f64,
    busy: f64,
}

pub(super) fn run(options: &WanOptions) -> anyhow::Result<(String, bool)> {
    let mut text = String::from(
        "What the emulator carries; \"busy\" is its own part of a processor, in both directions.\n\n\
         | flood | packets/s | Gbit/s | busy | late |\n| --- | ---: | ---: | ---: | ---: |\n",
    );
    let mut best = (0.0_f64, 0.0_f64);
    for (name, flood) in [
        ("datagrams of 1500 bytes", udp as fn(&Wan) -> anyhow::Result<()>),
        ("four connections of TCP", tcp),
    ] {
        let wan = options.network()?;
        let begun = Instant::now();
        flood(&wan)?;
        // What is under way comes out.
        std::thread::sleep(Duration::from_millis(options.rtt));
        let took = begun.elapsed().as_secs_f64();
        let flow = flow(&wan, took);
        let late = wan.overruns()?;
        let line = writeln!(
            text,
            "| {name} | {:.0} | {:.2} | {:.2} | {late} |",
            flow.packets,
            flow.bits / 1e9,
            flow.busy
        );
        debug_assert!(line.is_ok(), "a String takes every write");
        best = (best.0.max(flow.packets), best.1.max(flow.bits));
    }
    let part = (best.0 / PACKETS).max(best.1 / BITS);
    text.push('\n');
    text.push_str(&at_least("part of 100,000 packets or a gigabit a second", part, 1.0));
    Ok((text, true))
}

fn flow(wan: &Wan, took: f64) -> Flow {
    let ways = [Way::Up, Way::Down].map(|way| wan.totals(way));
    let sum = |get: fn(&crate::wan::Totals) -> f64| ways.iter().map(get).sum::<f64>() / took;
    Flow {
        packets: sum(|way| way.packets.passed as f64),
        bits: sum(|way| way.bytes as f64 * 8.0),
        busy: sum(|way| way.busy.as_secs_f64()),
    }
}

/// Both hosts send as much as they can; nobody reads it.
fn udp(wan: &Wan) -> anyhow::Result<()> {
    let near = wan.near.within(|| UdpSocket::bind((NEAR, 0)))?;
    let far = wan.far.within(|| UdpSocket::bind((FAR, 0)))?;
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    let flood = |from: &UdpSocket| -> std::io::Result<()> {
        let (begun, datagram) = (Instant::now(), [0; SIZE]);
        while begun.elapsed() < TIME {
            from.send(&datagram)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| flood(&far));
        flood(&near)?;
        other.join().map_err(|_| anyhow::anyhow!("a flood panicked"))??;
        Ok(())
    })
}

fn tcp(wan: &Wan) -> anyhow::Result<()> {
    let listener = wan.far.within(|| TcpListener::bind((FAR, 0)))?;
    let address = listener.local_addr()?;
    let mut pairs = Vec::new();
    for _ in 0..4 {
        let sender = wan.near.within(|| TcpStream::connect(address))?;
        pairs.push((sender, listener.accept()?.0));
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (mut sender, mut receiver) in pairs {
            // Ends when its receiver has gone.
            scope.spawn(move || while sender.write_all(&[7; 65_536]).is_ok() {});
            scope.spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                while begun.elapsed() < TIME && receiver.read(&mut buffer).is_ok_and(|n| n > 0) {}
            });
        }
    });
    Ok(())
}
