//! What happens in a storm, and when: a pure function of the seed.

use wavegate_spool::Kind;

use super::settings::{Dice, Settings};

/// How long the storm lasts, in milliseconds.
pub const HOUR: u64 = 3_600_000;
/// Ports of the upstreams' targets: of `legacy`, and two of `cloud`.
pub const PORTS: [u16; 3] = [2601, 2602, 2603];

/// How an upstream's target behaves, in points of a dialogue in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    pub late: u64,
    /// The longest delay of what is late, in milliseconds.
    pub delay: u64,
    pub close: u64,
    pub defer: u64,
    pub refuse: u64,
    /// The reply to the end of data comes after an hour.
    pub never: u64,
}

#[derive(Clone, Debug)]
pub enum Change {
    Mood(usize, Mood),
    /// Connections to a target are refused, or taken again.
    Listen(usize, bool),
    /// All connections to a target break.
    Break(usize),
    Reload(Box<Settings>),
    HoldAll(bool),
    /// Operations of this kind (or any that change something) fail: so many, after so many.
    Disk {
        kind: Option<Kind>,
        after: u64,
        times: u64,
        short: bool,
    },
    HealDisk,
    Restart(Restart),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Clean,
    Kill,
    PowerLoss,
}

/// All changes of an hour, in order, and the settings at its beginning.
pub fn forecast(dice: &Dice) -> (Settings, Vec<(u64, Change)>) {
    let first = Settings::draw(dice);
    let mut settings = first.clone();
    let mut changes = Vec::new();
    let mut now = 0;
    loop {
        now += dice.between(1, 240_000);
        if now >= HOUR {
            break;
        }
        let target = usize::try_from(dice.below(3)).unwrap();
        let (change, undo) = match dice.below(20) {
            0..=6 => (Change::Mood(target, mood(dice)), None),
            7..=8 => (Change::Listen(target, false), Some(Change::Listen(target, true))),
            9 => (Change::Break(target), None),
            10..=11 => {
                settings.redraw(dice);
                (Change::Reload(Box::new(settings.clone())), None)
            }
            12 => {
                settings.replan(dice, now);
                (Change::Reload(Box::new(settings.clone())), None)
            }
            13 => (Change::HoldAll(true), Some(Change::HoldAll(false))),
            14..=16 => (disk(dice), Some(Change::HealDisk)),
            17 => (Change::Restart(Restart::Clean), None),
            18 => (Change::Restart(Restart::Kill), None),
            _ => (Change::Restart(Restart::PowerLoss), None),
        };
        changes.push((now, change));
        if let Some(undo) = undo {
            changes.push((now + dice.between(1, 240_000), undo));
        }
    }
    changes.sort_by_key(|(time, _)| *time);
    (first, changes)
}

fn mood(dice: &Dice) -> Mood {
    let some = |most| if dice.chance(400) { dice.below(most) } else { 0 };
    Mood {
        late: some(500),
        delay: *dice.of(&[&100, &3_000, &30_000]),
        close: some(100),
        defer: some(200),
        refuse: some(50),
        never: some(50),
    }
}

fn disk(dice: &Dice) -> Change {
    let kinds =
        [None, None, Some(Kind::Write), Some(Kind::Sync), Some(Kind::SyncDir), Some(Kind::Open)];
    let kind = kinds[usize::try_from(dice.below(6)).unwrap()];
    let times = *dice.of(&[&1, &3, &1_000_000]);
    Change::Disk { kind, after: dice.below(20), times, short: dice.chance(300) }
}
