//! `[[instance]]`: what it is, whom to tell, and how its mail is recognised. Floor 1.

use wavegate_smtp::Address;

use super::{Known, required_name, unknown, upstream, value_of};
use crate::{
    config::{
        diagnostic::{Located, Place, Report},
        reader::{Section, Value},
        values::{self, quote},
    },
    plan::{Contact, Instance, Matcher},
};

/// Languages of notices, as the first part of a tag (BCP 47).
const LANGUAGES: [&str; 6] = ["en", "fr", "de", "it", "pt", "sv"];
/// Names of header fields in one plan: each is looked for in every message.
const HEADER_NAMES_MAX: usize = 16;
/// Longest name or value of a header (RFC 5322 2.1.1).
const HEADER_MAX: usize = 998;
/// Longest name of a time zone; the longest that there is has 32.
const ZONE_MAX: usize = 64;

/// An instance and where its values stand.
pub(in crate::config) struct DraftInstance {
    pub(in crate::config) instance: Instance,
    pub(in crate::config) place: Place,
    pub(super) name: Option<Place>,
    pub(super) environment: Place,
    pub(super) matcher: Place,
    /// Whether the matcher was read without an error.
    pub(super) matcher_good: bool,
}

/// One `[[instance]]`.
pub(super) fn read(section: Section<'_>, known: &Known) -> DraftInstance {
    let report = section.report();
    let name = required_name(&section, "name", "a name, such as \"acme-prod-1\"");
    let word = |key, wanted| section.parsed(key, wanted, values::name).map(|found| found.value);
    let customer = word("customer", "the name of a customer in quotes");
    let product = required_name(&section, "product", "a product, such as \"campaign-classic\"");
    let environment =
        required_name(&section, "environment", "an environment, such as \"production\"");
    let hosting = word("hosting", "a word in quotes, such as \"managed\"");
    let contacts = read_contacts(&section);
    let before = upstream(&section, "before", known);
    let after = upstream(&section, "after", known);
    let errors = report.errors();
    let example = "how its mail is known, such as { clients = [\"192.0.2.7\"], senders = \
                   [\"mkt.acme.example\"] }";
    let matcher = section.require("match", example);
    let matcher_place = matcher.map_or(section.place(), |value| value.place());
    let matcher = section.section("match").map(|one| read_matcher(one, known)).unwrap_or_default();
    let draft = DraftInstance {
        instance: Instance {
            customer: customer.unwrap_or_else(|| value_of(&name)),
            name: value_of(&name),
            product: value_of(&product),
            environment: value_of(&environment),
            hosting,
            contacts,
            matcher,
            before,
            after,
        },
        place: section.place(),
        name: name.map(|found| found.place),
        environment: environment.map_or(section.place(), |found| found.place),
        matcher: matcher_place,
        matcher_good: report.errors() == errors,
    };
    section.finish();
    draft
}

/// `contacts = [{ email = …, … }]`.
fn read_contacts(section: &Section<'_>) -> Vec<Contact> {
    let mut contacts: Vec<Contact> = Vec::new();
    for one in section.sections("contacts") {
        let wanted = "a mail address, such as \"ada@acme.example\"";
        let email = one.require("email", wanted).and_then(|value| value.parse(wanted, email));
        let text = |found: Option<Located<String>>| found.map(|found| found.value);
        let contact = Contact {
            name: text(one.parsed("name", "a name in quotes", values::line)),
            email: value_of(&email),
            language: text(one.parsed("language", "a language, such as \"fr\"", language))
                .unwrap_or_else(|| "en".to_owned()),
            time_zone: text(one.parsed(
                "time_zone",
                "a time zone, such as \"Europe/Paris\"",
                time_zone,
            ))
            .unwrap_or_else(|| "UTC".to_owned()),
        };
        if let Some(email) = &email
            && contacts.iter().any(|other| other.email.eq_ignore_ascii_case(&email.value))
        {
            one.report().error(&email.place, "is a contact of this instance twice; remove one");
        }
        contacts.push(contact);
        one.finish();
    }
    contacts
}

/// A mail address of a person.
pub(super) fn email(text: &str) -> Result<String, String> {
    match Address::parse(text) {
        Ok(address) if !address.domain().is_empty() => Ok(text.to_owned()),
        _ => Err(format!(
            "{} is not a mail address; write one such as \"ada@acme.example\"",
            quote(text)
        )),
    }
}

fn language(text: &str) -> Result<String, String> {
    let (first, rest) = text.split_once('-').unwrap_or((text, "ZZ"));
    let region = rest.len() == 2 && rest.bytes().all(|b| b.is_ascii_alphabetic());
    if region && LANGUAGES.iter().any(|known| first.eq_ignore_ascii_case(known)) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not a language that notices are written in; use {}, with a region or without",
        quote(text),
        values::one_of(LANGUAGES)
    ))
}

/// The name of a time zone; whether there is such a zone only where a list of them is at hand.
fn time_zone(text: &str) -> Result<String, String> {
    let well_formed = text.len() <= ZONE_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b));
    let zones = jiff::tz::db();
    if well_formed && (text == "UTC" || zones.is_definitively_empty() || zones.get(text).is_ok()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not a time zone; write the name that the IANA list has, such as \"Europe/Paris\"",
        quote(text)
    ))
}

fn read_matcher(section: Section<'_>, known: &Known) -> Matcher {
    let report = section.report();
    let clients = section.list("clients", "\"192.0.2.7\"", values::network);
    let senders = section.list("senders", "\"mkt.acme.example\"", values::sender);
    let listeners = section.list("listeners", "\"listener-1\"", values::name);
    let headers = section.get("headers").map(|value| read_headers(&value, report));
    if let Some(users) = section.get("users") {
        users.error(
            "is no criterion in this version; use `clients`, `senders`, `listeners` or `headers`",
        );
    }
    for listener in listeners.iter().flatten() {
        if let Some(known) = &known.listeners
            && !known.contains(&listener.value)
        {
            report.error(&listener.place, unknown("listener", &listener.value, known));
        }
    }
    for key in ["clients", "senders", "listeners"] {
        if let Some(value) = section.empty_list(key) {
            value.error("is empty, so that nothing could match; leave it out for any");
        }
    }
    if section.is_empty() {
        let place = section.place();
        report
            .error(&place, "has no criterion; give `clients`, `senders`, `listeners` or `headers`");
    }
    section.finish();
    let values = |list: Option<Vec<Located<String>>>| {
        list.into_iter().flatten().map(|found| found.value).collect()
    };
    Matcher {
        clients: clients.into_iter().flatten().map(|found| found.value).collect(),
        senders: values(senders),
        listeners: values(listeners),
        headers: headers.unwrap_or_default(),
    }
}

/// `headers = { "X-Instance" = "acme-prod-1" }`.
fn read_headers(value: &Value<'_>, report: &Report) -> Vec<(String, String)> {
    let wanted = "a table of names and values, such as { \"X-Instance\" = \"acme-prod-1\" }";
    let Some(members) = value.members(wanted) else { return Vec::new() };
    if members.is_empty() {
        value.error("is empty, so that nothing could match; leave it out for any");
    }
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, value) in members {
        // RFC 5322 2.2: printable ASCII but the colon.
        let good = !name.is_empty()
            && name.len() <= HEADER_MAX
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        let name = match good {
            true => name.to_ascii_lowercase(),
            false => {
                let name = quote(name);
                value.error(format!(
                    "{name} is not the name of a header field; use letters, digits and \"-\""
                ));
                continue;
            }
        };
        let Some(found) = value.parse("a value in quotes, such as \"acme-prod-1\"", header_value)
        else {
            continue;
        };
        match headers.iter().any(|(other, _)| *other == name) {
            true => report.error(&found.place, "is in this table twice; remove one"),
            false => headers.push((name, found.value)),
        }
    }
    headers.sort_unstable();
    headers
}

/// What a field's value is compared with: decoded, unfolded, without white space around.
fn header_value(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && text.len() <= HEADER_MAX
        && text.trim() == text
        && !text.chars().any(char::is_control);
    if good {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} can be no value of a header field; write 1 to {HEADER_MAX} bytes on one line, without \
         white space around",
        quote(text)
    ))
}

/// Not too many names of headers.
pub(super) fn check_headers(instances: &[DraftInstance], report: &Report) {
    let mut names: Vec<&str> = Vec::new();
    for draft in instances {
        for (name, _) in &draft.instance.matcher.headers {
            if names.contains(&name.as_str()) {
                continue;
            }
            names.push(name);
            if names.len() == HEADER_NAMES_MAX + 1 {
                let message = format!(
                    "uses the {}th name of a header in this plan, and each is looked for in every \
                     message; use {HEADER_NAMES_MAX} names at most",
                    names.len()
                );
                report.error(&draft.matcher, message);
                return;
            }
        }
    }
}
