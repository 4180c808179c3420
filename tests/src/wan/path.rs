//! One direction of a path: what becomes of each packet, and when it comes out.
//!
//! Owns conditions, chance, the queue before the bottleneck and the packets under way. Does no I/O;
//! time is an argument, in nanoseconds from any beginning. Floor: none (pure).

use std::{cmp::Ordering, collections::BinaryHeap, time::Duration};

/// Packets that may be under way at once; what comes beyond is dropped as if by a full queue. It is
/// 1.5 GB/s at 100 ms, so only a mistake reaches it; memory is bounded all the same (150 MB).
pub const UNDER_WAY: usize = 100_000;

/// How a path is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// From one end to the other.
    pub delay: Duration,
    /// It takes up to so much more or less, each packet for itself. Packets keep their order.
    pub jitter: Duration,
    /// The part of packets that is lost, from 0 to 1.
    pub loss: f64,
    /// Bits a second that pass, headers of IP included; none: all.
    pub rate: Option<u64>,
    /// Bytes that may wait for their turn where there is a rate; what comes when it is full is
    /// dropped.
    pub queue: usize,
    /// The part of packets that come later than those behind them.
    pub reorder: f64,
    /// So much later.
    pub late: Duration,
}

impl Default for Conditions {
    /// Nothing in the way.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            rate: None,
            queue: 1 << 20,
            reorder: 0.0,
            late: Duration::from_millis(5),
        }
    }
}

impl Conditions {
    /// A round trip of this length, and nothing else in the way.
    pub fn round_trip(time: Duration) -> Self {
        Self { delay: time / 2, ..Self::default() }
    }
}

/// Why a packet does not come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// By chance.
    Lost,
    /// The queue before the bottleneck was full.
    Full,
    /// The path is cut.
    Cut,
}

/// Packets so far, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came out.
    pub passed: u64,
    /// Were lost by chance.
    pub lost: u64,
    /// Were dropped before the bottleneck.
    pub full: u64,
    /// Were lost because the path was cut.
    pub cut: u64,
}

/// One direction.
#[derive(Debug)]
pub struct Direction<P> {
    conditions: Conditions,
    cut: bool,
    chance: Chance,
    under_way: BinaryHeap<UnderWay<P>>,
    /// When the last byte that was taken has passed the bottleneck.
    free: u64,
    /// No packet that keeps its order comes before this.
    order: u64,
    taken: u64,
    counts: Counts,
}

impl<P> Direction<P> {
    /// With what chance begins from.
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            cut: false,
            chance: Chance(seed),
            under_way: BinaryHeap::new(),
            free: 0,
            order: 0,
            taken: 0,
            counts: Counts::default(),
        }
    }

    /// Other conditions for what comes from now on.
    pub fn set(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// Cuts it, so that all under way is lost, or mends it.
    pub fn set_cut(&mut self, cut: bool) {
        if cut {
            self.counts.cut += self.under_way.len() as u64;
            self.under_way.clear();
        }
        self.cut = cut;
    }

    /// A packet goes in; given back with the reason if it will not come out.
    pub fn offer(&mut self, now: u64, packet: P, bytes: usize) -> Result<(), (P, Dropped)> {
        match self.when(now, bytes) {
            Ok(due) => {
                self.taken += 1;
                self.under_way.push(UnderWay { due, number: self.taken, packet });
                Ok(())
            }
            Err(why) => {
                let count = match why {
                    Dropped::Lost => &mut self.counts.lost,
                    Dropped::Full => &mut self.counts.full,
                    Dropped::Cut => &mut self.counts.cut,
                };
                *count += 1;
                Err((packet, why))
            }
        }
    }

    /// When a packet that goes in now comes out.
    fn when(&mut self, now: u64, bytes: usize) -> Result<u64, Dropped> {
        let Conditions { delay, jitter, loss, rate, queue, reorder, late } = self.conditions;
        if self.cut {
            return Err(Dropped::Cut);
        }
        if self.under_way.len() >= UNDER_WAY {
            return Err(Dropped::Full);
        }
        let mut out = now;
        if let Some(rate) = rate {
            let begins = self.free.max(now);
            if bytes_in(begins - now, rate) + bytes as u64 > queue as u64 {
                return Err(Dropped::Full);
            }
            self.free = begins + time_of(bytes, rate);
            out = self.free;
        }
        // Behind the bottleneck: what is lost has taken its turn there.
        if self.chance.is(loss) {
            return Err(Dropped::Lost);
        }
        let spread = nanos(jitter);
        let jitter = self.chance.below(2 * spread + 1);
        let due = (out + nanos(delay) + jitter).saturating_sub(spread).max(out);
        if self.chance.is(reorder) {
            return Ok(due.max(self.order) + nanos(late));
        }
        self.order = self.order.max(due);
        Ok(self.order)
    }

    /// The next packet that has come out by now.
    pub fn come_out(&mut self, now: u64) -> Option<P> {
        let next = self.under_way.peek()?;
        if next.due > now {
            return None;
        }
        self.counts.passed += 1;
        self.under_way.pop().map(|next| next.packet)
    }

    /// When the next packet comes out.
    pub fn next(&self) -> Option<u64> {
        self.under_way.peek().map(|next| next.due)
    }

    /// What became of all so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}

fn bytes_in(nanos: u64, rate: u64) -> u64 {
    let bytes = u128::from(nanos) * u128::from(rate) / 8_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn time_of(bytes: usize, rate: u64) -> u64 {
    let nanos = bytes as u128 * 8_000_000_000 / u128::from(rate.max(1));
    u64::try_from(nanos).unwrap_or(u64::MAX / 4)
}

/// SplitMix64: one seed, one course of events.
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below this; 0 for 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    /// Whether something of this likelihood happens.
    pub fn is(&mut self, likelihood: f64) -> bool {
        // 53 bits are what a float holds.
        likelihood > 0.0 && ((self.draw() >> 11) as f64) < likelihood * (1_u64 << 53) as f64
    }
}

/// Ordered so that the heap's greatest is what comes out first.
#[derive(Debug)]
struct UnderWay<P> {
    due: u64,
    number: u64,
    packet: P,
}

impl<P> Ord for UnderWay<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl<P> PartialOrd for UnderWay<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for UnderWay<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<P> Eq for UnderWay<P> {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop here")]
    use super::*;

    const MS: u64 = 1_000_000;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Sends packets with this pause between them; when each that comes out does, by number.
    fn send(conditions: Conditions, count: u64, pause: u64, bytes: usize) -> Vec<(u64, u64)> {
        let mut direction = Direction::new(conditions, 7);
        for number in 0..count {
            let _dropped = direction.offer(number * pause, number, bytes);
        }
        let mut out = Vec::new();
        while let Some(at) = direction.next() {
            assert!(at == 0 || direction.come_out(at - 1).is_none(), "not before its time");
            out.push((at, direction.come_out(at).unwrap()));
        }
        let counts = direction.counts();
        assert_eq!(counts.passed, out.len() as u64);
        assert_eq!(counts.passed + counts.lost + counts.full + counts.cut, count);
        out
    }

    #[test]
    fn a_packet_comes_out_after_the_delay_and_in_its_turn() {
        let out = send(Conditions { delay: ms(40), ..Conditions::default() }, 100, MS / 10, 1500);
        let expected: Vec<_> = (0..100).map(|n| (n * MS / 10 + 40 * MS, n)).collect();
        assert_eq!(out, expected);
        // With nothing in the way, at once.
        assert_eq!(send(Conditions::default(), 3, 5, 100), [(0, 0), (5, 1), (10, 2)]);
    }

    #[test]
    fn jitter_is_spread_evenly_and_keeps_the_order() {
        let conditions = Conditions { delay: ms(40), jitter: ms(10), ..Conditions::default() };
        // So far apart that none has to wait for the one before it.
        let out = send(conditions, 10_000, 100 * MS, 100);
        let took: Vec<u64> = out.iter().map(|(at, n)| at - n * 100 * MS).collect();
        assert!(took.iter().all(|took| (30 * MS..=50 * MS).contains(took)));
        let mean = took.iter().sum::<u64>() / 10_000;
        assert!((39_700_000..40_300_000).contains(&mean), "{mean}");
        let low = took.iter().filter(|&&took| took < 35 * MS).count();
        assert!((2300..2700).contains(&low), "{low}");
        let close = send(conditions, 1000, MS / 100, 100);
        assert!(close.is_sorted(), "order is kept");
        // More jitter than delay does not make a packet come before it was sent.
        let early = Conditions { delay: ms(1), jitter: ms(10), ..Conditions::default() };
        assert!(send(early, 1000, 100 * MS, 100).iter().all(|(at, n)| *at >= n * 100 * MS));
    }

    #[test]
    fn loss_is_by_chance_and_by_seed() {
        let conditions = Conditions { loss: 0.01, ..Conditions::default() };
        let out = send(conditions, 100_000, 1000, 100);
        let lost = 100_000 - out.len();
        // Five standard deviations around 1000.
        assert!((840..1160).contains(&lost), "{lost}");
        assert_eq!(out, send(conditions, 100_000, 1000, 100), "one seed, one course of events");
        assert!(send(Conditions { loss: 1.0, ..conditions }, 1000, 1, 1).is_empty());
        assert_eq!(send(Conditions { loss: 0.0, ..conditions }, 1000, 1, 1).len(), 1000);
    }

    #[test]
    fn a_rate_spaces_packets_and_drops_what_does_not_fit_its_queue() {
        // 1500 bytes at 12 Mbit/s take 1 ms.
        let rate = Some(12_000_000);
        let slow = Conditions { rate, queue: 15_000, delay: ms(5), ..Conditions::default() };
        // One at a time never waits.
        let out = send(slow, 10, 2 * MS, 1500);
        assert!(out.iter().all(|(at, n)| *at == n * 2 * MS + 6 * MS), "{out:?}");
        // All at once: ten fit, the last of them comes out after ten times its time.
        let out = send(slow, 50, 0, 1500);
        let expected: Vec<_> = (0..10).map(|n| ((n + 1) * MS + 5 * MS, n)).collect();
        assert_eq!(out, expected);
        // Twice as much as passes, for two seconds: half of it comes, evenly.
        let out = send(slow, 4000, MS / 2, 1500);
        assert!((1990..=2015).contains(&out.len()), "{}", out.len());
        let last = out.last().unwrap().0;
        assert!((2000 * MS..2030 * MS).contains(&last), "{last}");
    }

    #[test]
    fn what_is_late_is_overtaken() {
        let conditions = Conditions { reorder: 0.1, late: ms(3), ..Conditions::default() };
        let out = send(conditions, 10_000, MS, 100);
        let late: Vec<_> = out.iter().filter(|(at, n)| *at == n * MS + 3 * MS).collect();
        assert!((850..1150).contains(&late.len()), "{}", late.len());
        assert!(out.iter().all(|(at, n)| *at == n * MS || *at == n * MS + 3 * MS));
        let overtaken = out.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
        assert!(overtaken > 700, "{overtaken}");
    }

    #[test]
    fn a_cut_loses_what_is_under_way_and_what_comes_until_it_is_mended() {
        let mut direction =
            Direction::new(Conditions { delay: ms(40), ..Conditions::default() }, 1);
        direction.offer(0, 'a', 1).unwrap();
        direction.offer(1, 'b', 1).unwrap();
        assert_eq!(direction.come_out(40 * MS), Some('a'));
        direction.set_cut(true);
        assert_eq!(direction.come_out(50 * MS), None);
        assert_eq!(direction.offer(51 * MS, 'c', 1), Err(('c', Dropped::Cut)));
        direction.set_cut(false);
        direction.offer(52 * MS, 'd', 1).unwrap();
        assert_eq!((direction.next(), direction.come_out(92 * MS)), (Some(92 * MS), Some('d')));
        assert_eq!(direction.counts(), Counts { passed: 2, cut: 2, ..Counts::default() });
    }

    #[test]
    fn conditions_change_under_way_and_memory_is_bounded() {
        let mut direction =
            Direction::new(Conditions { delay: ms(100), ..Conditions::default() }, 1);
        direction.offer(0, 1, 1).unwrap();
        direction.set(Conditions { delay: ms(10), ..Conditions::default() });
        direction.offer(0, 2, 1).unwrap();
        // It keeps its order.
        assert_eq!(
            (direction.come_out(100 * MS), direction.come_out(100 * MS)),
            (Some(1), Some(2))
        );
        for number in 0..UNDER_WAY {
            direction.offer(0, number, 1).unwrap();
        }
        assert_eq!(direction.offer(0, 0, 1), Err((0, Dropped::Full)));
    }
}
