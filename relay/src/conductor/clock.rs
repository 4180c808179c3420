//! Whether the time of day is to be believed: held against the machine's uptime, which nobody
//! sets. Pure.
//!
//! The two part only when somebody sets the wall clock: what slews one slews the other. The last
//! moment at which they agreed is written down with each step of a wave, so that a relay that was
//! restarted on the same boot of the machine remembers it.

use serde::{Deserialize, Serialize};

/// How far they may be apart, in milliseconds: more than a leap second and a slow look.
pub(super) const APART: u64 = 2000;
/// The version that is written.
const VERSION: u8 = 1;

/// What both clocks showed at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reading {
    /// Which start of the machine.
    pub(super) boot_id: [u8; 16],
    /// Milliseconds since 1970.
    pub(super) wall: u64,
    /// Milliseconds since the machine was started.
    pub(super) boot: u64,
}

/// What a look changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// They have parted, by so many milliseconds.
    Parted(i64),
    /// They agree again.
    Agree,
}

/// The clocks as they were looked at so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    agreed: Option<Reading>,
    suspect: bool,
}

impl Watch {
    /// With what an earlier process wrote down, if it was this machine's boot.
    pub(super) fn new(kept: Option<&[u8]>, boot_id: [u8; 16]) -> Self {
        let read = |bytes: &[u8]| match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes::<Reading>(rest).ok(),
            _ => None,
        };
        let agreed = kept.and_then(read).filter(|reading| reading.boot_id == boot_id);
        Self { agreed, suspect: false }
    }

    /// Both were read.
    pub(super) fn look(&mut self, now: Reading) -> Change {
        let Some(then) = self.agreed.filter(|then| then.boot_id == now.boot_id) else {
            return self.accept(now);
        };
        let expected = then.wall.saturating_add(now.boot.saturating_sub(then.boot));
        let apart = now.wall.cast_signed().saturating_sub(expected.cast_signed());
        if apart.unsigned_abs() <= APART {
            return self.accept(now);
        }
        if std::mem::replace(&mut self.suspect, true) {
            Change::None
        } else {
            Change::Parted(apart)
        }
    }

    /// The wall clock is right: they agree, or an operator says so.
    pub(super) fn accept(&mut self, now: Reading) -> Change {
        self.agreed = Some(now);
        if std::mem::take(&mut self.suspect) { Change::Agree } else { Change::None }
    }

    /// Whether no window may end by the wall clock.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// What to write down: when they agreed last.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        postcard::to_extend(&self.agreed?, vec![VERSION]).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn at(wall: u64, boot: u64) -> Reading {
        Reading { boot_id: [1; 16], wall, boot }
    }

    #[test]
    fn a_step_of_more_than_two_seconds_is_suspect_until_it_is_taken_back() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(at(1_000_000, 5000)), Change::None);
        assert_eq!(watch.look(at(1_003_000, 6000)), Change::None, "two seconds");
        assert_eq!(watch.look(at(1_004_000, 7000)), Change::None);
        assert_eq!(watch.look(at(1_007_001, 8000)), Change::Parted(2001));
        assert_eq!(watch.look(at(1_008_001, 9000)), Change::None, "still");
        assert!(watch.is_suspect());
        assert_eq!(watch.look(at(1_007_000, 10_000)), Change::Agree);
        assert!(!watch.is_suspect());
        assert_eq!(watch.look(at(900_000, 11_000)), Change::Parted(-108_000));
    }

    #[test]
    fn an_operator_may_say_that_it_is_right() {
        let mut watch = Watch::default();
        watch.look(at(1_000_000, 5000));
        watch.look(at(5_000_000, 6000));
        assert_eq!(watch.accept(at(5_001_000, 7000)), Change::Agree);
        assert_eq!(watch.look(at(5_002_000, 8000)), Change::None);
        assert_eq!(watch.look(at(1_004_000, 9000)), Change::Parted(-3_999_000));
    }

    #[test]
    fn a_step_while_the_relay_was_down_is_noticed() {
        let mut watch = Watch::default();
        watch.look(at(1_000_000, 5000));
        let kept = watch.encode().unwrap();
        let mut next = Watch::new(Some(&kept), [1; 16]);
        assert_eq!(next.look(at(1_600_000, 65_000)), Change::Parted(540_000));
        let mut rebooted = Watch::new(Some(&kept), [2; 16]);
        assert_eq!(rebooted.look(Reading { boot_id: [2; 16], ..at(9, 9) }), Change::None);
        let mut damaged = Watch::new(Some(&[1, 2]), [1; 16]);
        assert_eq!(damaged.look(at(9, 9)), Change::None);
    }
}
