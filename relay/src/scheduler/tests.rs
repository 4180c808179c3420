#![allow(clippy::unwrap_used, reason = "tests")]

mod fairness;
mod model;
mod scale;
mod transitions;

use std::num::NonZeroU32;

use super::*;
use crate::message::MessageId;

const NOW: Timestamp = Timestamp(1_000_000);

fn at(ms: u64) -> Timestamp {
    NOW.saturating_add_ms(ms)
}

/// A message received now.
fn entry(instance: InstanceKey, received: Timestamp) -> Entry {
    Entry {
        id: MessageId::new(received, 0),
        instance,
        received,
        size: 10_000,
        held_ms: 0,
        progress: Progress { recipients: 2, attempts: 0, upstream: None },
    }
}

fn upstream(name: &str) -> Wait {
    Wait::Upstream(name.into())
}

fn pace(rate: u32) -> Pace {
    Pace { rate: NonZeroU32::new(rate), start: rate, ramp_ms: 0 }
}

/// All that can be taken now.
fn drain(scheduler: &mut Scheduler, now: Timestamp) -> Vec<Slot> {
    std::iter::from_fn(|| scheduler.take(now)).collect()
}
