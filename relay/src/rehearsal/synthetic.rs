//! Mail that is made up: marketing campaigns in bursts over a thin stream of single messages,
//! instances of unequal size, quiet nights; all from a seed. Floor 4.

use super::{
    Span,
    traffic::{Letter, Names, Source, Traffic, source_of},
};
use crate::{config::Config, world::Entropy};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How much is sent in each hour of the day (UTC), of 100 at the busiest.
const HOURS: [u64; 24] =
    [8, 6, 5, 5, 6, 10, 25, 45, 70, 95, 100, 90, 75, 80, 90, 85, 80, 75, 60, 50, 40, 30, 20, 12];
/// Of ten messages so many belong to a campaign.
const CAMPAIGN_SHARE: u64 = 7;
/// About one campaign for so many of an instance's messages, but not more than `CAMPAIGNS`.
const CAMPAIGN_SIZE: u64 = 500;
const CAMPAIGNS: u64 = 12;
/// One message in so many comes on a connection of its own.
const ALONE: u64 = 16;
/// Recipients: four large mailbox providers have most of them, the rest is spread.
const LARGE_DOMAINS: u64 = 4;
const SMALL_DOMAINS: u64 = 60;

/// So many messages over a span, for all instances that a message can be made for. `active` are
/// the parts of the span in which anything is sent, in milliseconds after its beginning.
pub fn synthetic(
    config: &Config,
    span: Span,
    active: &[(u64, u64)],
    count: u64,
    seed: u64,
) -> Traffic {
    let mut sources: Vec<Source> = Vec::new();
    let mut without: Vec<&str> = Vec::new();
    for (index, instance) in config.plan.instances.iter().enumerate() {
        match source_of(config, index) {
            Some(source) => sources.push(source),
            None => without.push(&instance.name),
        }
    }
    let mut notes = Vec::new();
    if !without.is_empty() {
        let names = without.iter().take(10).copied().collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "{} of the instances send nothing, since no message from a client that may relay is \
             theirs: {names}{}",
            without.len(),
            if without.len() > 10 { ", ..." } else { "" }
        ));
    }
    let dice = Dice(Entropy::new(seed));
    let calendar = Calendar::new(span, active);
    let mut names = Names::default();
    for number in 0..LARGE_DOMAINS {
        names.number(&format!("mailbox-{}.example", number + 1));
    }
    for number in 0..SMALL_DOMAINS {
        names.number(&format!("company-{}.example", number + 1));
    }
    let mut letters = Vec::new();
    if !sources.is_empty() && calendar.total() > 0 {
        for (source, share) in (0..).zip(shares(&dice, sources.len(), count)) {
            letters_of(&dice, &calendar, source, share, &mut letters);
        }
    }
    let mut traffic = Traffic { sources, domains: names.all, letters, notes };
    traffic.sort();
    traffic
}

/// Divides messages among instances, unequally: the one of rank r has 1/r of the first one's.
fn shares(dice: &Dice, instances: usize, count: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..instances).collect();
    // Who is large does not follow from the order of the plan.
    for at in (1..instances).rev() {
        let other = dice.below(at as u64 + 1);
        order.swap(at, usize::try_from(other).unwrap_or(at));
    }
    let weights: Vec<u64> = (1..=instances as u64).map(|rank| 1_000_000 / rank + 1).collect();
    let total: u64 = weights.iter().sum();
    let mut shares = vec![0; instances];
    let mut left = count;
    for (instance, weight) in order.iter().zip(weights) {
        let share = u128::from(count) * u128::from(weight) / u128::from(total);
        shares[*instance] = u64::try_from(share).unwrap_or(left).min(left);
        left -= shares[*instance];
    }
    // What rounding left.
    if let Some(largest) = order.first() {
        shares[*largest] += left;
    }
    shares
}

fn letters_of(dice: &Dice, calendar: &Calendar, source: u32, count: u64, out: &mut Vec<Letter>) {
    let bulk = count * CAMPAIGN_SHARE / 10;
    let campaigns = bulk.div_ceil(CAMPAIGN_SIZE).clamp(1, CAMPAIGNS);
    let mut left = bulk;
    for number in 0..campaigns {
        let even = left / (campaigns - number);
        // Half to one and a half of what is even; the last has the rest.
        let size = match number + 1 == campaigns {
            true => left,
            false => (even / 2 + dice.below(even + 1)).min(left),
        };
        left -= size;
        let lasts = 5 * MINUTE + dice.below(25 * MINUTE);
        let (begins, lasts) = calendar.room(calendar.draw(dice), lasts);
        let bytes = size_drawn(dice);
        for _ in 0..size {
            // The messages of a campaign differ by their personal parts only.
            let size = bytes + dice.below(bytes / 16 + 1);
            let at = begins + dice.below(lasts);
            out.push(letter(dice, at, source, size));
        }
    }
    for _ in bulk..count {
        let (at, size) = (calendar.draw(dice), size_drawn(dice));
        out.push(letter(dice, at, source, size));
    }
}

fn letter(dice: &Dice, at: u64, source: u32, size: u64) -> Letter {
    let domain = match dice.below(10) {
        0..7 => dice.below(LARGE_DOMAINS),
        _ => LARGE_DOMAINS + dice.below(SMALL_DOMAINS),
    };
    let domain = u32::try_from(domain).unwrap_or(0);
    Letter { at, source, domain, size, alone: dice.below(ALONE) == 0 }
}

/// 4 KiB to 256 KiB, each doubling as likely.
fn size_drawn(dice: &Dice) -> u64 {
    let base = 4096 << dice.below(6);
    base + dice.below(base)
}

/// The times in which mail is sent.
struct Calendar<'a> {
    /// Its parts, by time.
    active: &'a [(u64, u64)],
    /// Their minutes: beginning, length, and all weights up to its end.
    minutes: Vec<(u64, u64, u64)>,
}

impl<'a> Calendar<'a> {
    fn new(span: Span, active: &'a [(u64, u64)]) -> Self {
        let mut minutes = Vec::new();
        let mut total = 0;
        for &(from, to) in active {
            let mut at = from;
            while at < to {
                let hour = (span.from.0 + at) % DAY / HOUR;
                // A minute that is cut off at the end counts for its part.
                let length = MINUTE.min(to - at);
                total += HOURS[usize::try_from(hour).unwrap_or(0)] * length;
                minutes.push((at, length, total));
                at += length;
            }
        }
        Self { active, minutes }
    }

    fn total(&self) -> u64 {
        self.minutes.last().map_or(0, |(.., total)| *total)
    }

    /// A time, by the weights.
    fn draw(&self, dice: &Dice) -> u64 {
        let drawn = dice.below(self.total());
        let place = self.minutes.partition_point(|(.., total)| *total <= drawn);
        let (begins, length) = self.minutes.get(place).map_or((0, 0), |(at, len, _)| (*at, *len));
        begins + dice.below(length)
    }

    /// Room for something that begins at about this time and lasts so long: within one part.
    fn room(&self, begins: u64, lasts: u64) -> (u64, u64) {
        let part = self.active.iter().find(|(from, to)| (*from..*to).contains(&begins));
        let (from, to) = part.copied().unwrap_or((begins, begins + lasts));
        let begins = begins.min(to.saturating_sub(lasts)).max(from);
        (begins, lasts.min(to - begins))
    }
}

struct Dice(Entropy);

impl Dice {
    /// Less than `limit`; 0 where that is 0.
    fn below(&self, limit: u64) -> u64 {
        // The higher half of a product spreads evenly enough and has no division.
        let product = u128::from(self.0.next()) * u128::from(limit);
        u64::try_from(product >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Timestamp;

    #[test]
    fn shares_are_unequal_and_add_up() {
        let shares = shares(&Dice(Entropy::new(7)), 10, 12_345);
        assert_eq!(shares.iter().sum::<u64>(), 12_345);
        let (least, most) = (shares.iter().min(), shares.iter().max());
        assert!(most > least.map(|least| least * 5).as_ref(), "{shares:?}");
    }

    #[test]
    fn nothing_is_sent_outside_and_little_at_night() {
        let span = Span { from: Timestamp(0), to: Timestamp(2 * DAY) };
        let active = [(HOUR, 12 * HOUR), (DAY, DAY + HOUR)];
        let calendar = Calendar::new(span, &active);
        let dice = Dice(Entropy::new(1));
        let times: Vec<u64> = (0..10_000).map(|_| calendar.draw(&dice)).collect();
        let inside = |at: &&u64| active.iter().any(|(from, to)| (*from..*to).contains(*at));
        assert_eq!(times.iter().filter(inside).count(), times.len());
        let of = |hour: u64| times.iter().filter(|at| **at % DAY / HOUR == hour).count();
        assert!(of(10) > 5 * of(3), "{} at ten, {} at three", of(10), of(3));
        // A campaign is moved, or shortened, to end with its part.
        assert_eq!(calendar.room(12 * HOUR - 1, HOUR), (11 * HOUR, HOUR));
        assert_eq!(calendar.room(DAY + 5, 2 * HOUR), (DAY, HOUR));
    }
}
