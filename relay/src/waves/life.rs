//! The life of one wave: how far it has come, what of that is written down, and what comes next.
//! Pure: time and circumstances come in, steps come out.
//!
//! The clock alone begins a freeze. Only a step that was written down ends one: past `closes`
//! a wave stays frozen until it is `Releasing` on disk, however far the clock goes, or back.

use serde::{Deserialize, Serialize};

use crate::plan::{Phase, Plan, ProbeFailure, Release, Timestamp, Wave, Window};

/// How far a wave has come.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Stage {
    /// Its freezing has not begun.
    #[default]
    Planned,
    /// No attempt starts.
    Freezing,
    /// Nothing leaves.
    Frozen,
    /// Nothing leaves, and the targets of where it goes answer as they should.
    Checked,
    /// What was held is let out.
    Releasing,
    /// What was held has been let out.
    Migrated,
    /// Given up: its mail goes to `before`.
    RolledBack,
    /// A freeze without a plan, of which nothing is left.
    Over,
}

/// What is known of one wave. The part that is on disk is the whole of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub wave: String,
    /// Its environment; empty for a freeze without a plan.
    pub environment: String,
    /// Names of its instances.
    pub members: Vec<String>,
    /// An operator froze one instance without a plan.
    pub ad_hoc: bool,
    /// When freezing begins by the clock.
    pub freezes: Timestamp,
    /// First moment of its window.
    pub opens: Timestamp,
    /// First moment after it, as the plan had it.
    pub planned_closes: Timestamp,
    /// First moment after it, extensions included.
    pub closes: Timestamp,
    /// An operator ends it, and not its time.
    pub on_complete: bool,
    /// Where its targets do not answer it is given up, and not extended.
    pub rolls_back: bool,
    /// How far it has come.
    pub stage: Stage,
    /// When freezing took effect in this relay.
    pub begun_at: Option<Timestamp>,
    /// When nothing was in flight any more.
    pub barrier_at: Option<Timestamp>,
    /// When its mail began to be let out.
    pub released_at: Option<Timestamp>,
    /// When all of that had been let out.
    pub ended_at: Option<Timestamp>,
    /// An operator has completed it; true: although it was not checked.
    pub completed: Option<bool>,
    /// Messages that were held when it was released.
    pub held: u64,
    /// Nothing that was received since `begun_at` can have been attempted: the plan's idea of
    /// whose mail is whose has not changed meanwhile, and the clock was not suspect.
    pub sure: bool,
    /// Tells plans apart by how they recognise mail: of the one in force when it began.
    pub matchers: u64,
}

/// What a step of a wave's life depends on.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The time of day.
    pub now: Timestamp,
    /// Which must not be trusted to end a freeze.
    pub clock_suspect: bool,
    /// Nothing of its instances is in flight, and nothing of them may leave.
    pub is_quiet: bool,
    /// What the probes say.
    pub targets: Targets,
    /// What was held has been let out.
    pub is_drained: bool,
    /// By how much it is extended, in milliseconds.
    pub extension_ms: u64,
}

/// What probes found of where a wave's mail goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// The first round is not over.
    #[default]
    Unknown,
    /// Nobody is to ask, or there is nobody to ask.
    Unasked,
    /// Each answered as it should, when it was last asked.
    Good,
    /// One did not.
    Bad,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Freezing begins.
    Freeze,
    /// The window opens.
    Open,
    /// Nothing is in flight any more.
    Barrier,
    /// Its targets answer.
    Check,
    /// One of its targets answers no more.
    Uncheck,
    /// It closes later.
    Extend(Timestamp),
    /// Its mail is let out.
    Release,
    /// It is given up.
    RollBack,
    /// What was held has been let out.
    End,
}

impl Stage {
    /// The phase of the wave's instances.
    pub fn phase(self) -> Phase {
        match self {
            Self::Planned => Phase::Scheduled,
            Self::Freezing => Phase::Freezing,
            Self::Frozen => Phase::Frozen,
            Self::Checked => Phase::Checked,
            Self::Releasing => Phase::Releasing,
            Self::Migrated | Self::Over => Phase::Migrated,
            Self::RolledBack => Phase::RolledBack,
        }
    }

    /// Whether freezing has begun and was not ended.
    pub fn holds(self) -> bool {
        matches!(self, Self::Freezing | Self::Frozen | Self::Checked)
    }

    /// Whether it has begun and is not over: no plan changes it now.
    pub fn is_running(self) -> bool {
        self.holds() || self == Self::Releasing
    }

    /// Whether the window is open.
    pub fn is_frozen(self) -> bool {
        matches!(self, Self::Frozen | Self::Checked)
    }
}

impl Record {
    /// A wave of the plan, of which nothing has happened.
    pub fn of_plan(plan: &Plan, wave: &Wave) -> Self {
        let Window { wave: id, opens, closes } = &wave.window;
        let name = |index: &usize| plan.instances[*index].name.clone();
        Self {
            wave: id.clone(),
            environment: wave.environment.clone(),
            members: wave.instances.iter().map(name).collect(),
            freezes: opens.saturating_sub_ms(plan.freeze_lead_ms),
            opens: *opens,
            planned_closes: *closes,
            closes: *closes,
            on_complete: wave.release == Release::OnComplete,
            rolls_back: wave.probe_failure == ProbeFailure::RollBack,
            ..Self::default()
        }
    }

    /// A freeze of one instance from `now` on.
    pub fn ad_hoc(id: String, instance: &str, now: Timestamp, closes: Timestamp) -> Self {
        let mut record = Self {
            wave: id,
            members: vec![instance.to_owned()],
            ad_hoc: true,
            freezes: now,
            opens: now,
            planned_closes: closes,
            closes,
            ..Self::default()
        };
        record.take(Step::Freeze, now);
        record.take(Step::Open, now);
        record
    }

    /// The window as it is now.
    pub fn window(&self) -> Window {
        Window { wave: self.wave.clone(), opens: self.opens, closes: self.closes }
    }

    /// Whether this is the life of a plan's wave: of the same id, in the same slot.
    pub fn is_of(&self, wave: &Wave) -> bool {
        !self.ad_hoc && self.wave == wave.window.wave && self.opens == wave.window.opens
    }

    /// The next step, if one is due.
    pub fn next(&self, around: &Circumstances) -> Option<Step> {
        match self.stage {
            Stage::Planned => (around.now >= self.freezes).then_some(Step::Freeze),
            Stage::Freezing | Stage::Frozen | Stage::Checked
                if self.barrier_at.is_none() && around.is_quiet =>
            {
                Some(Step::Barrier)
            }
            Stage::Freezing => (around.now >= self.opens).then_some(Step::Open),
            Stage::Frozen | Stage::Checked => self.next_of_frozen(around),
            Stage::Releasing => around.is_drained.then_some(Step::End),
            Stage::RolledBack => {
                (around.is_drained && self.ended_at.is_none()).then_some(Step::End)
            }
            Stage::Migrated | Stage::Over => None,
        }
    }

    fn next_of_frozen(&self, around: &Circumstances) -> Option<Step> {
        let is_checked = self.stage == Stage::Checked;
        let is_good = matches!(around.targets, Targets::Good | Targets::Unasked);
        if !self.ad_hoc && !is_checked && is_good && self.barrier_at.is_some() {
            return Some(Step::Check);
        }
        if is_checked && around.targets == Targets::Bad {
            return Some(Step::Uncheck);
        }
        let may_go = is_checked || self.ad_hoc;
        match self.completed {
            Some(unchecked) => (may_go || unchecked).then_some(Step::Release),
            None if self.on_complete => None,
            None if around.now < self.closes || around.clock_suspect => None,
            None if may_go => Some(Step::Release),
            // The first answers are on their way.
            None if self.barrier_at.is_some() && around.targets == Targets::Unknown => None,
            None if self.rolls_back => Some(Step::RollBack),
            None => Some(Step::Extend(around.now.saturating_add_ms(around.extension_ms))),
        }
    }

    /// Takes a step.
    pub fn take(&mut self, step: Step, now: Timestamp) {
        match step {
            Step::Freeze => {
                self.stage = Stage::Freezing;
                self.begun_at = Some(now);
                self.sure = true;
            }
            Step::Open => self.stage = Stage::Frozen,
            Step::Barrier => self.barrier_at = Some(now),
            Step::Check => self.stage = Stage::Checked,
            Step::Uncheck => self.stage = Stage::Frozen,
            Step::Extend(until) => self.closes = until,
            Step::Release => {
                self.stage = Stage::Releasing;
                self.released_at = Some(now);
            }
            Step::RollBack => {
                self.stage = Stage::RolledBack;
                self.released_at = Some(now);
                self.ended_at = None;
            }
            Step::End => {
                self.ended_at = Some(now);
                self.stage = match self.stage {
                    Stage::RolledBack => Stage::RolledBack,
                    _ if self.ad_hoc => Stage::Over,
                    _ => Stage::Migrated,
                };
            }
        }
    }

    /// It was over before this relay saw it.
    pub fn was_over(&mut self) {
        self.stage = Stage::Migrated;
        self.ended_at = Some(self.closes);
    }
}

#[cfg(test)]
mod tests;
