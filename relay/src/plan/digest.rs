//! The digest of a plan: whether two hosts understand the same of their files. Floor 0.
//!
//! Over what is understood, not over the text: comments, spelling and the order of entries in
//! the file do not count, a changed default does. Every field goes in with its length, so that
//! no two plans are written the same.

use super::{Announcement, Destination, Environment, Instance, Matcher, Parts, Program, Wave};

/// Digits of a digest; it is compared and read aloud, and guards against no attacker.
const DIGITS: usize = 16;

/// The digest of a plan's parts.
pub(super) fn of(parts: &Parts) -> String {
    let Parts { freeze_lead_ms, program, environments, instances, waves, announced } = parts;
    let mut out = Out::default();
    out.number(*freeze_lead_ms);
    out.optional(program.as_ref(), Out::program);
    out.sorted(environments, |one| &one.name, Out::environment);
    out.sorted(instances, |one| &one.name, Out::instance);
    out.sorted(waves, |one| &one.window.wave, |out, wave| out.wave(wave, instances));
    out.sorted(announced, |one| &one.wave, Out::announcement);
    let mut hex = out.0.finalize().to_hex().to_string();
    hex.truncate(DIGITS);
    hex
}

#[derive(Default)]
struct Out(blake3::Hasher);

impl Out {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.number(u64::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn optional_text(&mut self, text: &Option<String>) {
        self.optional(text.as_deref(), Self::text);
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        items.iter().for_each(|item| write(self, item));
    }

    /// In the order of their names, whatever the order in the file.
    fn sorted<T>(
        &mut self,
        items: &[T],
        name: impl Fn(&T) -> &str,
        mut write: impl FnMut(&mut Self, &T),
    ) {
        let mut sorted: Vec<&T> = items.iter().collect();
        sorted.sort_by(|a, b| name(a).cmp(name(b)));
        self.list(&sorted, |out, item| write(out, item));
    }

    fn sorted_texts(&mut self, texts: &[String]) {
        self.sorted(texts, |text| text, |out, text| out.text(text));
    }

    fn program(&mut self, program: &Program) {
        let Program { name, provider, contact, sender, reply_to, destination } = program;
        self.text(name);
        self.text(provider);
        self.optional_text(contact);
        self.optional_text(sender);
        self.optional_text(reply_to);
        self.number(u64::from(*destination == Destination::Cloud));
    }

    fn environment(&mut self, environment: &Environment) {
        let Environment {
            name,
            earliest,
            notice_ms,
            after,
            window_min_ms,
            window_max_ms,
            duration,
        } = environment;
        self.text(name);
        self.optional(*earliest, |out, time| out.number(time.0));
        self.number(*notice_ms);
        self.optional_text(after);
        self.optional(*window_min_ms, Self::number);
        self.optional(*window_max_ms, Self::number);
        self.optional(*duration, |out, duration| {
            out.number(duration.fixed_ms);
            out.number(duration.each_ms);
            out.number(u64::from(duration.parallel));
        });
    }

    fn instance(&mut self, instance: &Instance) {
        let Instance {
            name,
            customer,
            product,
            environment,
            hosting,
            contacts,
            matcher,
            before,
            after,
        } = instance;
        for text in [name, customer, product, environment] {
            self.text(text);
        }
        self.optional_text(hosting);
        self.list(contacts, |out, contact| {
            out.optional_text(&contact.name);
            out.text(&contact.email);
            out.text(&contact.language);
            out.text(&contact.time_zone);
        });
        let Matcher { clients, senders, listeners, headers } = matcher;
        let clients: Vec<String> = clients.iter().map(ToString::to_string).collect();
        self.sorted_texts(&clients);
        self.sorted_texts(senders);
        self.sorted_texts(listeners);
        self.list(headers, |out, (name, value)| {
            out.text(name);
            out.text(value);
        });
        self.optional_text(before);
        self.optional_text(after);
    }

    fn wave(&mut self, wave: &Wave, all: &[Instance]) {
        // When it was announced is said of the lock.
        let Wave { window, environment, instances, before, after, release, probe_failure, .. } =
            wave;
        self.text(&window.wave);
        self.number(window.opens.0);
        self.number(window.closes.0);
        self.text(environment);
        let names: Vec<String> = instances.iter().map(|index| all[*index].name.clone()).collect();
        self.sorted_texts(&names);
        self.optional_text(before);
        self.optional_text(after);
        self.number(*release as u64);
        self.number(*probe_failure as u64);
    }

    fn announcement(&mut self, announcement: &Announcement) {
        let Announcement { wave, environment, opens, closes, instances, at, by, reason, late } =
            announcement;
        self.text(wave);
        self.text(environment);
        for time in [opens, closes, at] {
            self.number(time.0);
        }
        self.list(instances, |out, name| out.text(name));
        self.text(by);
        self.optional_text(reason);
        self.number(u64::from(*late));
    }
}
