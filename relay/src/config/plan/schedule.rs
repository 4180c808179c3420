//! Whether windows are what their environments allow: bounds, estimate, notice, and the order
//! of environments. Of a wave that is over nothing is asked any more. Floor 1.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    DAY_MS,
    environment::{self, DraftEnvironment},
    instance::DraftInstance,
    wave::{Closes, DraftWave},
};
use crate::{
    config::{Checks, When, diagnostic::Report, lock, values::quote},
    plan::{Environment, Timestamp, in_words},
};

/// A plan as it was read.
pub(in crate::config) struct Drafts<'a> {
    pub(in crate::config) environments: &'a [DraftEnvironment],
    pub(in crate::config) instances: &'a [DraftInstance],
    pub(in crate::config) waves: &'a [DraftWave],
    pub(in crate::config) lock: &'a [lock::Entry],
}

/// One wave and its environment.
struct Slot<'a> {
    wave: &'a DraftWave,
    environment: &'a DraftEnvironment,
    report: &'a Report,
}

/// Checks all waves that are not over.
pub(super) fn check(drafts: &Drafts<'_>, when: When, report: &Report) {
    let open = |wave: &&DraftWave| wave.has_window() && !wave.wave.window.is_over(when.now);
    for wave in drafts.waves.iter().filter(open) {
        let of_name = |one: &&DraftEnvironment| one.environment.name == wave.wave.environment;
        let Some(environment) = drafts.environments.iter().find(of_name) else { continue };
        let slot = Slot { wave, environment, report };
        slot.check_earliest();
        if !slot.check_estimate() {
            slot.check_bounds();
        }
        slot.check_notice(drafts.lock, when);
    }
    check_order(drafts, when.now, report);
}

impl Slot<'_> {
    fn limits(&self) -> &Environment {
        &self.environment.environment
    }

    /// `"production" (waves.toml:12)`.
    fn name(&self) -> String {
        format!("{} ({})", quote(&self.limits().name), self.environment.place.short())
    }

    fn check_earliest(&self) {
        let (Some(earliest), Some(place)) = (self.limits().earliest, &self.wave.opens) else {
            return;
        };
        if self.wave.wave.window.opens < earliest {
            let message = format!(
                "is before {earliest}, when environment {} begins; give a later time",
                self.name()
            );
            self.report.error(place, message);
        }
    }

    /// Whether it was found that the estimate does not fit.
    fn check_estimate(&self) -> bool {
        let Some(model) = self.limits().duration else { return false };
        let window = &self.wave.wave.window;
        let instances = self.wave.wave.instances.len();
        let estimate = model.estimate_ms(instances);
        let longest = self.limits().window_max_ms.unwrap_or(DAY_MS).min(DAY_MS);
        if estimate <= window.length_ms() && estimate <= longest {
            return false;
        }
        let needs = format!(
            "{instances} instance{} take an estimated {}",
            if instances == 1 { "" } else { "s" },
            in_words(estimate)
        );
        let message = if estimate > longest {
            let split = match self.limits().split(instances, longest).map(|parts| parts.len()) {
                Some(parts) => {
                    let id = self.wave.id();
                    format!("split it into {parts} waves (`wavegate plan estimate {id}` says how)")
                }
                None => "raise its bound".to_owned(),
            };
            let longest = in_words(longest);
            format!("{needs}, and environment {} allows {longest}; {split}", self.name())
        } else {
            let length = in_words(window.length_ms());
            let needed = window.opens.saturating_add_ms(estimate);
            format!("{needs}, and the window has {length}; give {needed} or later")
        };
        self.report.error(self.wave.end(), message);
        true
    }

    fn check_bounds(&self) {
        let window = &self.wave.wave.window;
        let Environment { window_min_ms: min, window_max_ms: max, .. } = *self.limits();
        let length = window.length_ms();
        let wanted = if let Some(min) = min.filter(|min| length < *min) {
            (min, "at least", "or later")
        } else if let Some(max) = max.filter(|max| length > *max) {
            (max, "at most", "or earlier")
        } else {
            return;
        };
        let (bound, most, or) = wanted;
        let message = format!(
            "makes a window of {}, and environment {} allows {most} {}; give {} {or}",
            in_words(length),
            self.name(),
            in_words(bound),
            window.opens.saturating_add_ms(bound)
        );
        self.report.error(self.wave.end(), message);
    }

    fn check_notice(&self, lock: &[lock::Entry], when: When) {
        let Some(place) = &self.wave.opens else { return };
        let (opens, notice) = (self.wave.wave.window.opens, self.limits().notice_ms);
        let asks = format!("environment {} asks for {}", self.name(), in_words(notice));
        if let Some(entry) = lock.iter().find(|entry| entry.announcement.wave == self.wave.id()) {
            let announced = entry.announcement.at;
            if !entry.announcement.late && announced.saturating_add_ms(notice) > opens {
                let early = in_words(opens.0.saturating_sub(announced.0));
                let message = format!(
                    "was announced {early} before ({}), and {asks} of notice; its customers had \
                     less",
                    entry.place.short()
                );
                self.report.warn(place, message);
            }
            return;
        }
        // Without a notice nobody asks for announcements.
        if notice == 0 || when.now.saturating_add_ms(notice) <= opens {
            return;
        }
        let id = self.wave.id();
        let is = match opens.0.checked_sub(when.now.0).filter(|ms| *ms > 0) {
            Some(left) => format!("is in {} and not announced", in_words(left)),
            None => "has come and was not announced".to_owned(),
        };
        let earliest = whole_minute(when.now.saturating_add_ms(notice));
        let message = format!(
            "{is}, and {asks} of notice; give {earliest} or later, or tell all its customers and \
             record it: `wavegate plan announce {id} --late --reason …`"
        );
        match when.checks {
            Checks::Plan => self.report.error(place, message),
            Checks::Relay | Checks::Values => self.report.warn(place, message),
        }
    }
}

/// The next whole minute.
fn whole_minute(time: Timestamp) -> Timestamp {
    Timestamp(time.0.div_ceil(60_000).saturating_mul(60_000))
}

/// A customer's waves open after those of his in the environments that come before.
fn check_order(drafts: &Drafts<'_>, now: Timestamp, report: &Report) {
    // For each environment and customer the instance that is done last, and in which wave.
    let mut last: HashMap<(&str, &str), (&DraftWave, &DraftInstance)> = HashMap::new();
    let mut waits: HashMap<(&str, &str), &DraftInstance> = HashMap::new();
    let mut in_wave = vec![false; drafts.instances.len()];
    for wave in drafts.waves.iter().filter(|wave| wave.has_window()) {
        for index in &wave.wave.instances {
            in_wave[*index] = true;
            let draft = &drafts.instances[*index];
            let key = (draft.instance.environment.as_str(), draft.instance.customer.as_str());
            let closes = |wave: &DraftWave| wave.wave.window.closes;
            let latest = last.entry(key).or_insert((wave, draft));
            if closes(wave) > closes(latest.0) {
                *latest = (wave, draft);
            }
        }
    }
    for (draft, _) in drafts.instances.iter().zip(&in_wave).filter(|(_, in_wave)| !**in_wave) {
        let key = (draft.instance.environment.as_str(), draft.instance.customer.as_str());
        waits.entry(key).or_insert(draft);
    }
    let open = |wave: &&DraftWave| wave.has_window() && !wave.wave.window.is_over(now);
    for wave in drafts.waves.iter().filter(open) {
        let Some(place) = &wave.opens else { continue };
        // One finding for each wave that is in the way, however many customers they share.
        let mut early: BTreeMap<&str, (&DraftWave, Vec<&DraftInstance>)> = BTreeMap::new();
        let mut missing: Vec<&DraftInstance> = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for index in &wave.wave.instances {
            let customer = drafts.instances[*index].instance.customer.as_str();
            if !seen.insert(customer) {
                continue;
            }
            for before in environment::chain(drafts.environments, &wave.wave.environment) {
                if let Some((other, instance)) = last.get(&(before, customer))
                    && other.wave.window.closes > wave.wave.window.opens
                {
                    early.entry(other.id()).or_insert((other, Vec::new())).1.push(instance);
                }
                missing.extend(waits.get(&(before, customer)).copied());
            }
        }
        for (id, (other, instances)) in early {
            let message = format!(
                "is before wave {} ({}) closes at {}, which upgrades {}; give that time or later",
                quote(id),
                other.place.short(),
                other.wave.window.closes,
                of_customers(&instances)
            );
            report.error(place, message);
        }
        if !missing.is_empty() {
            let message = format!(
                "is planned, and {} {} in no wave yet, which comes before",
                of_customers(&missing),
                if missing.len() == 1 { "is" } else { "are" }
            );
            report.warn(place, message);
        }
    }
}

/// `"acme-stage-1" of customer "acme" and 3 more`.
fn of_customers(instances: &[&DraftInstance]) -> String {
    let Some(first) = instances.first() else { return String::new() };
    let first = &first.instance;
    let mut text = quote(&first.name);
    if first.name != first.customer {
        text += &format!(" of customer {}", quote(&first.customer));
    }
    if let more @ 1.. = instances.len() - 1 {
        text += &format!(" and {more} more");
    }
    text
}

/// What an estimated end is called in a message.
pub(in crate::config) fn is_estimated(wave: &DraftWave) -> bool {
    matches!(wave.closes, Closes::Estimated(_))
}
