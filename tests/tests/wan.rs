//! The emulator of wide area networks: delay, jitter, loss, rate, reordering and cuts are what was
//! asked for, by traffic of our own between its two hosts.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(clippy::disallowed_methods, reason = "what is measured of the network is in real time")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use wavegate_tests::{
    harness::until,
    wan::{Conditions, FAR, NEAR, Wan, Way},
};

/// A packet that has not come within this does not come.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes of IP and UDP before those of a datagram.
const HEADERS: usize = 28;

fn udp(wan: &Wan, address: Ipv4Addr) -> UdpSocket {
    let host = if address == NEAR { &wan.near } else { &wan.far };
    let socket = host.within(|| UdpSocket::bind((address, 0)).unwrap());
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket
}

/// A number, and filling, as a datagram of this size.
fn numbered(number: u32, size: usize) -> Vec<u8> {
    let mut datagram = vec![0; size];
    datagram[..4].copy_from_slice(&number.to_be_bytes());
    datagram
}

/// Sends so many datagrams with this pause between them from the near host to the far one: the
/// numbers of those that came, and when the last did after the first was sent. None goes out that is
/// more than `ahead` before the last that came: a receiver without a processor would lose some.
fn one_way(
    wan: &Wan,
    count: u32,
    size: usize,
    (pause, ahead): (Duration, u32),
) -> (Vec<u32>, Duration) {
    let (from, to) = (udp(wan, NEAR), udp(wan, FAR));
    from.connect(to.local_addr().unwrap()).unwrap();
    let seen = AtomicU32::new(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut came, mut last) = (Vec::new(), Duration::ZERO);
            let mut buffer = [0; 2048];
            while let Ok(length) = to.recv(&mut buffer) {
                assert_eq!(length, size);
                came.push(u32::from_be_bytes(buffer[..4].try_into().unwrap()));
                seen.fetch_max(came[came.len() - 1], Ordering::SeqCst);
                last = begun.elapsed();
            }
            (came, last)
        });
        for number in 0..count {
            let turn = pause * number;
            while begun.elapsed() < turn
                || number.saturating_sub(seen.load(Ordering::SeqCst)) > ahead
            {
                thread::sleep(Duration::from_micros(50));
            }
            from.send(&numbered(number, size)).unwrap();
        }
        receiver.join().unwrap()
    })
}

/// Round trips of datagrams, one after the other, sorted.
fn round_trips(wan: &Wan, count: u32) -> Vec<Duration> {
    let (near, far) = (udp(wan, NEAR), udp(wan, FAR));
    near.connect(far.local_addr().unwrap()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            for _ in 0..count {
                let (length, who) = far.recv_from(&mut buffer).unwrap();
                far.send_to(&buffer[..length], who).unwrap();
            }
        });
        let mut took = Vec::new();
        for number in 0..count {
            let begun = Instant::now();
            near.send(&numbered(number, 64)).unwrap();
            near.recv(&mut [0; 64]).unwrap();
            took.push(begun.elapsed());
        }
        took.sort();
        took
    })
}

/// The first rate within this range, in bytes a second, at which one TCP connection is carried for a
/// second; else that of the tenth second. How fast it comes to its speed is the kernel's affair.
fn tcp_rate(wan: &Wan, wanted: Range<f64>) -> f64 {
    let listener = wan.far.within(|| TcpListener::bind((FAR, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let mut sender = wan.near.within(|| TcpStream::connect(address).unwrap());
    let (mut receiver, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || while sender.write_all(&[7; 65_536]).is_ok() {});
        let mut buffer = vec![0; 1 << 16];
        let mut carry = || {
            let (begun, mut bytes) = (Instant::now(), 0);
            while begun.elapsed() < ms(1000) {
                bytes += receiver.read(&mut buffer).unwrap();
            }
            bytes as f64 / begun.elapsed().as_secs_f64()
        };
        let mut rate = 0.0;
        for _ in 0..10 {
            rate = carry();
            if wanted.contains(&rate) {
                break;
            }
        }
        // Closed with bytes unread: the sender hears a reset, and ends.
        drop(receiver);
        rate
    })
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_round_trip_takes_what_it_should_and_jitter_spreads_it() {
    let Some(wan) = Wan::require(Conditions::round_trip(ms(80)), 1) else { return };
    let took = round_trips(&wan, 25);
    // Never less; what is more is the machine's.
    assert!(took[0] >= ms(80), "{took:?}");
    assert!(took[12] < ms(85), "the median of {took:?}");
    wan.set(Conditions { jitter: ms(10), ..Conditions::round_trip(ms(80)) });
    let took = round_trips(&wan, 40);
    assert!(took[0] >= ms(60) && took[20] < ms(95), "{took:?}");
    // A triangle from 60 to 100 ms: a fifth is below 72.6, a fifth above 87.4.
    assert!(took[31] - took[8] > ms(7), "spread: {took:?}");
    assert_eq!(wan.overruns().unwrap(), 0);
}

#[test]
fn loss_is_what_was_asked_for_in_the_direction_that_was_asked_for() {
    let Some(wan) = Wan::require(Conditions::default(), 2) else { return };
    wan.set_way(Way::Up, Conditions { loss: 0.01, ..Conditions::default() });
    let count = 20_000;
    let (came, _) = one_way(&wan, count, 200, (Duration::ZERO, 100));
    let lost = count as usize - came.len();
    // Five standard deviations around 200.
    assert!((130..270).contains(&lost), "{lost} of {count}");
    assert!(came.is_sorted(), "order is kept");
    let up = wan.totals(Way::Up).packets;
    assert_eq!((up.lost, up.passed), (lost as u64, came.len() as u64));
    assert_eq!(wan.totals(Way::Down).packets.lost, 0);
    assert_eq!(wan.overruns().unwrap(), 0);
}

#[test]
fn a_rate_is_kept_for_datagrams_and_for_tcp() {
    // 20 Mbit/s, with a queue of 100 ms.
    let slow =
        Conditions { rate: Some(20_000_000), queue: 250_000, ..Conditions::round_trip(ms(20)) };
    let Some(wan) = Wan::require(slow, 3) else { return };
    // Twice of what passes, for a second.
    let size = 1472;
    let (came, last) = one_way(&wan, 3333, size, (Duration::from_micros(300), u32::MAX));
    let up = wan.totals(Way::Up).packets;
    let bits = ((up.passed - 1) * (size + HEADERS) as u64 * 8) as f64;
    let rate = bits / (last - ms(10)).as_secs_f64();
    assert!((19.0e6..20.5e6).contains(&rate), "{rate} bit/s; {} came by {last:?}", came.len());
    assert!(up.full > 1000 && up.passed >= came.len() as u64, "{up:?}");
    assert_eq!(up.full, 3333 - up.passed, "the rest was dropped before the bottleneck");
    // Of 1500 bytes 1448 are content.
    let content = 1448.0 / 1500.0 / 8.0;
    let wanted = 17.5e6 * content..21.0e6 * content;
    let rate = tcp_rate(&wan, wanted.clone());
    assert!(wanted.contains(&rate), "{} bit/s by TCP", rate / content);
}

#[test]
fn some_come_late_and_none_is_lost() {
    let mixed = Conditions { reorder: 0.05, late: ms(3), ..Conditions::round_trip(ms(10)) };
    let Some(wan) = Wan::require(mixed, 4) else { return };
    let (came, _) = one_way(&wan, 4000, 100, (Duration::from_micros(250), 100));
    assert_eq!(came.len(), 4000);
    let overtaken = came.windows(2).filter(|pair| pair[1] < pair[0]).count();
    // Some of 200 are late side by side; more so where the sender had to catch up.
    assert!((90..240).contains(&overtaken), "{overtaken}");
}

#[test]
fn a_cut_stops_everything_and_its_end_lets_it_pass() {
    let Some(wan) = Wan::require(Conditions::round_trip(ms(20)), 5) else { return };
    let (near, far) = (udp(&wan, NEAR), udp(&wan, FAR));
    near.connect(far.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 64];
    near.send(b"before").unwrap();
    assert_eq!(far.recv(&mut buffer).unwrap(), 6);
    // What is under way is lost too.
    near.send(b"under way").unwrap();
    wan.cut();
    near.send(b"cut").unwrap();
    let silent = far.recv(&mut buffer).unwrap_err();
    assert!(matches!(silent.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silent}");
    wan.mend();
    near.send(b"after").unwrap();
    assert_eq!(far.recv(&mut buffer).unwrap(), 5);
    // Counted once the emulator has nothing else to do.
    until("the counts", || (wan.totals(Way::Up).packets.cut == 2).then_some(()));
}

#[test]
fn nothing_of_it_is_left_behind() {
    let links = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let room = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    // Whether a process or thread is in this namespace, or a descriptor or a mount holds it.
    let held = |room: &Path| {
        let is_it = |path: PathBuf| std::fs::read_link(path).is_ok_and(|link| link == room);
        let number = room.to_str().unwrap().trim_start_matches("net:").trim_matches(['[', ']']);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let entries = |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten();
        let own = entries("/proc/self/fd").any(|fd| is_it(fd.path()));
        own || mounts.contains(&format!("net:[{number}]"))
            || entries("/proc").any(|process| is_it(process.path().join("ns/net")))
    };
    let Some(wan) = Wan::require(Conditions::default(), 6) else { return };
    assert!(wan.near.within(links).contains("wan0:"));
    assert!(!links().contains("wan0:"), "nothing of it is on this host");
    let (near, far) = (wan.near.within(room), wan.far.within(room));
    assert!(held(&near) && held(&far));
    // No name holds it, so the kernel removes it with this process however that ends.
    drop(wan);
    assert!(!held(&near) && !held(&far));
}
