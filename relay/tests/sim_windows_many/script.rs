//! What happens around a window, and when: a pure function of the seed.

use wavegate::{plan::Timestamp, world::Entropy};

use crate::sim::START;

/// All in the wave.
pub const INSTANCES: [&str; 5] = ["acme", "globex", "hooli", "initech", "umbrella"];
/// The one of them that a plan may lose.
pub const LOST: &str = INSTANCES[2];
/// In no wave.
pub const STRANGER: &str = "stark";
/// Messages of a window, at least.
pub const MESSAGES: u64 = 500;

/// A seeded choice.
pub struct Dice(Entropy);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Entropy::new(seed))
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.0.next() % limit
    }

    pub fn between(&self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    /// Whether something happens that does so `percent` times of a hundred.
    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What an upstream's targets do, in points of a dialogue in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    pub late: u64,
    /// The longest delay of what is late, in milliseconds.
    pub delay: u64,
    pub close: u64,
    pub defer: u64,
    /// The reply to the end of data comes after minutes.
    pub never: u64,
}

/// How the relay ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Clean,
    Kill,
    PowerLoss,
}

#[derive(Clone, Debug)]
pub enum Change {
    Restart(Restart),
    /// The disk does not sync from here on: what is written may be there after a crash, and the
    /// relay was told that it is not.
    BreakDisk,
    HealDisk,
    Reload(Reload),
    Extend(u64),
    Complete(bool),
    RollBack,
    Freeze,
    StepClock(i64),
    /// An operator says that the clock is right.
    TrustClock,
    /// The second target of the new infrastructure takes nobody's mail, or does again.
    Refuse(bool),
    BreakConnections,
}

/// What a new plan says of the wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    Same,
    Moved,
    Gone,
    WithoutAnInstance,
}

#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    pub lead: u64,
    pub opens: u64,
    pub closes: u64,
    pub rolls_back: bool,
    pub on_complete: bool,
    pub probes: bool,
    /// Of the old and of the new infrastructure.
    pub moods: [Mood; 2],
    pub changes: Vec<(u64, Change)>,
}

/// Wall time of a moment of the simulation, as long as nobody steps the clock.
pub fn wall(ms: u64) -> Timestamp {
    Timestamp(START.0 + ms)
}

impl Script {
    pub fn draw(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let lead = dice.between(1, 30) * 1000;
        let opens = dice.between(60, 300) * 1000;
        let closes = opens + dice.between(30, 400) * 1000;
        let mood = || Mood {
            late: dice.below(200),
            delay: [50, 2000, 20_000][usize::try_from(dice.below(3)).unwrap()],
            close: if dice.chance(40) { dice.below(30) } else { 0 },
            defer: if dice.chance(50) { dice.below(80) } else { 0 },
            never: if dice.chance(30) { dice.below(10) } else { 0 },
        };
        let mut script = Self {
            seed,
            lead,
            opens,
            closes,
            rolls_back: dice.chance(20),
            on_complete: dice.chance(15),
            probes: dice.chance(80),
            moods: [mood(), Mood { never: 0, ..mood() }],
            changes: Vec::new(),
        };
        script.draw_changes(&dice);
        script
    }

    /// A moment, mostly close to one at which something is decided.
    fn moment(&self, dice: &Dice) -> u64 {
        let edge = match dice.below(5) {
            0 => self.opens - self.lead,
            1 => self.opens,
            2 | 3 => self.closes,
            _ => return dice.between(self.opens.saturating_sub(60_000), self.closes + 60_000),
        };
        edge + dice.below(40) - 20
    }

    fn draw_changes(&mut self, dice: &Dice) {
        let mut changes = Vec::new();
        for _ in 0..dice.between(2, 9) {
            let at = self.moment(dice);
            let restart = match dice.below(3) {
                0 => Restart::Clean,
                1 => Restart::Kill,
                _ => Restart::PowerLoss,
            };
            match dice.below(16) {
                0..=3 => changes.push((at, Change::Restart(restart))),
                4 | 5 => {
                    // The crash comes when a step may have been written and had no effect.
                    changes.push((at, Change::BreakDisk));
                    let crash = at + dice.below(60);
                    if dice.chance(70) {
                        let restart =
                            if dice.chance(50) { Restart::Kill } else { Restart::PowerLoss };
                        changes.push((crash, Change::Restart(restart)));
                    }
                    changes.push((crash + dice.between(1, 30_000), Change::HealDisk));
                }
                6 | 7 => {
                    let reload = match dice.below(4) {
                        0 => Reload::Same,
                        1 => Reload::Moved,
                        2 => Reload::Gone,
                        _ => Reload::WithoutAnInstance,
                    };
                    changes.push((at, Change::Reload(reload)));
                }
                8 => changes.push((at, Change::Extend(dice.between(1, 120_000)))),
                9 => changes.push((at, Change::Complete(dice.chance(30)))),
                10 if dice.chance(50) => changes.push((at, Change::RollBack)),
                10 | 11 => changes.push((at, Change::Freeze)),
                12 => {
                    let size = dice.between(3000, 400_000).cast_signed();
                    let size = if dice.chance(50) { size } else { -size };
                    changes.push((at, Change::StepClock(size)));
                    let end = at + dice.between(1000, 120_000);
                    let undo = [Change::StepClock(-size), Change::TrustClock];
                    changes.push((end, undo[usize::from(dice.chance(40))].clone()));
                }
                13 | 14 => {
                    changes.push((at, Change::Refuse(true)));
                    changes.push((at + dice.between(1000, 400_000), Change::Refuse(false)));
                }
                _ => changes.push((at, Change::BreakConnections)),
            }
        }
        changes.sort_by_key(|(at, _)| *at);
        self.changes = changes;
    }

    /// The texts of `relay.toml` and `waves.toml`.
    pub fn text(&self, reload: Reload) -> (String, String) {
        let upstream = "final_timeout = '60s'\nretry_first = '5s'\nretry_max = '20s'\n\
                        eject_for = '1s'\neject_max = '5s'\nconnections = 10\n";
        let relay = format!(
            "[relay]\nhostname = 'edge-1.example.net'\nplan = 'waves.toml'\n\
             [limits]\ncommand_timeout = '1h'\ndata_timeout = '1h'\ndirect_deadline = '5s'\n\
             [[listener]]\naddress = '127.0.0.1:2525'\nallow = ['10.0.0.0/8']\n\
             [[upstream]]\nname = 'legacy'\ntargets = ['127.0.0.1:2601']\n{upstream}\
             [[upstream]]\nname = 'cloud'\ntargets = ['127.0.0.1:2602', '127.0.0.1:2603']\n\
             {upstream}\
             [migration]\nbefore = 'legacy'\nafter = 'cloud'\nprobe = {}\nextend_by = '30s'\n\
             probe_every = '5s'\n\
             [[policy]]\nplugin = 'builtin:freeze'\n[[policy]]\nplugin = 'builtin:routing'\n",
            self.probes
        );
        let mut plan = format!("freeze_lead = '{}s'\n", self.lead / 1000);
        let lost = |name: &str| reload == Reload::WithoutAnInstance && name == LOST;
        for (number, name) in (1..).zip(INSTANCES.iter().chain([&STRANGER])) {
            if !lost(name) {
                plan += &format!(
                    "[[instance]]\nname = '{name}'\nproduct = 'p'\nenvironment = 'prod'\n\
                     match = {{ clients = ['10.0.{number}.0/24'], senders = ['{name}.example'] }}\n"
                );
            }
        }
        if reload == Reload::Gone {
            return (relay, plan);
        }
        let members = INSTANCES.iter().filter(|name| !lost(name)).map(|name| format!("'{name}'"));
        let members: Vec<String> = members.collect();
        let by = if reload == Reload::Moved { 3_600_000 } else { 0 };
        plan += &format!(
            "[[wave]]\nid = 'w'\nenvironment = 'prod'\ninstances = [{}]\nopens = '{}'\n\
             closes = '{}'\nrelease = '{}'\nprobe_failure = '{}'\n",
            members.join(", "),
            wall(self.opens + by),
            wall(self.closes + by),
            if self.on_complete { "on-complete" } else { "at-close" },
            if self.rolls_back { "roll-back" } else { "extend" }
        );
        (relay, plan)
    }
}
