//! The program between two devices: a thread a direction, which takes packets from one and writes
//! them to the other when they are due.
//!
//! Owns threads and clocks; what becomes of a packet is `path`'s. Floor: none.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::prctl,
    time::{ClockId, clock_gettime},
};

use super::{
    Conditions, Way,
    host::MTU,
    path::{Counts, Direction},
};

/// Packets that are taken before what is due is looked for again.
const BATCH: usize = 64;
/// Buffers that are kept for the next packets.
const SPARE: usize = 10_000;
/// The kernel may let a sleeper sleep so much longer than asked (50 us by default), in nanoseconds.
const SLACK: u64 = 1;
/// While packets are under way it looks this often for what comes and what is due, not at each:
/// waking up costs more than a packet. So much later than asked for they come out, at most
/// twice: 1 ms of a round trip on average.
const NAP: Duration = Duration::from_micros(500);
/// The version of what is wanted that ends the thread.
const END: u64 = u64::MAX;
/// As nice(1) has it.
const NICE: i32 = -15;

/// What is wanted of one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) conditions: Conditions,
    pub(super) cut: bool,
}

/// Packets of one direction so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By what became of them.
    pub packets: Counts,
    /// Bytes that came out, headers of IP included.
    pub bytes: u64,
    /// Packets that came out and that the far host did not take: it has gone.
    pub refused: u64,
    /// Processor time of the emulator in this direction.
    pub busy: Duration,
}

/// Both directions. Dropping it ends them.
pub(super) struct Emulator {
    ways: [Side; 2],
}

/// What the thread of a direction is steered by.
struct Side {
    shared: Arc<Shared>,
    /// A byte wakes the thread where it has nothing to do, and so does its end.
    wake: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    version: AtomicU64,
    totals: Mutex<Totals>,
}

impl Emulator {
    /// Starts it between the near end and the far one.
    pub(super) fn start(
        [near, far]: [File; 2],
        conditions: Conditions,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let [near, far] = [Arc::new(near), Arc::new(far)];
        let up = Side::start("wan-up", [&near, &far], conditions, seed)?;
        let down = Side::start("wan-down", [&far, &near], conditions, !seed)?;
        Ok(Self { ways: [up, down] })
    }

    fn side(&self, way: Way) -> &Side {
        match way {
            Way::Up => &self.ways[0],
            Way::Down => &self.ways[1],
        }
    }

    /// Changes what is wanted; it is so from the next packet on.
    pub(super) fn change(&self, way: Way, change: impl FnOnce(&mut Wanted)) {
        let side = self.side(way);
        change(&mut side.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        side.shared.version.fetch_add(1, Ordering::SeqCst);
        if let Some(mut wake) = side.wake.as_ref() {
            let _thread_is_gone = wake.write_all(b"!");
        }
    }

    pub(super) fn totals(&self, way: Way) -> Totals {
        *self.side(way).shared.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Side {
    fn start(
        name: &str,
        [from, to]: [&Arc<File>; 2],
        conditions: Conditions,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted { conditions, cut: false }),
            version: AtomicU64::new(0),
            totals: Mutex::default(),
        });
        let (woken, wake) = io::pipe()?;
        let mover = Mover {
            from: Arc::clone(from),
            to: Arc::clone(to),
            woken,
            shared: Arc::clone(&shared),
            version: 0,
            begun: Instant::now(),
            direction: Direction::new(conditions, seed),
            spare: Vec::new(),
            bytes: 0,
            refused: 0,
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || mover.run());
        let thread = thread.context("no thread for the path")?;
        Ok(Self { shared, wake: Some(wake), thread: Some(thread) })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.shared.version.store(END, Ordering::SeqCst);
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed; there is nothing to add to it here.
            let _panicked = thread.join();
        }
    }
}

/// One thread's own.
struct Mover {
    from: Arc<File>,
    to: Arc<File>,
    woken: PipeReader,
    shared: Arc<Shared>,
    version: u64,
    begun: Instant,
    direction: Direction<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    bytes: u64,
    refused: u64,
}

impl Mover {
    fn run(mut self) {
        // Without it packets are late by up to the default, which is no error.
        let _default = prctl::set_timerslack(SLACK);
        hurry();
        loop {
            self.obey();
            self.give();
            if self.take() == BATCH {
                continue;
            }
            self.publish();
            if self.version == END {
                return;
            }
            match self.direction.next() {
                Some(_) => std::thread::sleep(NAP),
                None => self.wait(),
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes over what is wanted, where that has changed.
    fn obey(&mut self) {
        let version = self.shared.version.load(Ordering::SeqCst);
        if version != self.version {
            self.version = version;
            if version == END {
                return;
            }
            let wanted = *self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            self.direction.set(wanted.conditions);
            self.direction.set_cut(wanted.cut);
        }
    }

    /// Writes what is due.
    fn give(&mut self) {
        let now = self.now();
        while let Some(packet) = self.direction.come_out(now) {
            match (&*self.to).write(&packet) {
                Ok(written) => self.bytes += written as u64,
                Err(_) => self.refused += 1,
            }
            self.keep(packet);
        }
    }

    /// Takes packets; how many.
    fn take(&mut self) -> usize {
        for taken in 0..BATCH {
            let mut packet = self.spare.pop().unwrap_or_else(|| vec![0; MTU]);
            packet.resize(MTU, 0);
            match (&*self.from).read(&mut packet) {
                Ok(length) => {
                    packet.truncate(length);
                    if let Err((packet, _)) = self.direction.offer(self.now(), packet, length) {
                        self.keep(packet);
                    }
                }
                Err(_) => {
                    self.keep(packet);
                    return taken;
                }
            }
        }
        BATCH
    }

    fn keep(&mut self, packet: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(packet);
        }
    }

    fn publish(&self) {
        let busy =
            clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
        let packets = self.direction.counts();
        let totals = Totals { packets, bytes: self.bytes, refused: self.refused, busy };
        *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }

    /// Until a packet comes, or something else is wanted.
    fn wait(&mut self) {
        let mut waited = [
            PollFd::new(self.from.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        // A signal is somebody else's: look again.
        let _interrupted = poll(&mut waited, PollTimeout::NONE);
        if waited[1].any() == Some(true) {
            let _version_says_what = self.woken.read(&mut [0; 64]);
        }
    }
}

/// Before all that shares the machine with the path: a network does not wait for a processor.
#[allow(unsafe_code, reason = "the C library's call, with numbers only")]
fn hurry() {
    // SAFETY: there is no memory in it. On Linux, 0 is the calling thread.
    let _not_allowed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}
