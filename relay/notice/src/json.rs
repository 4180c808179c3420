//! The notice for other programs: the facts in forms that programs read, and all texts.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::Serialize;

use crate::{Destination, Notice, letter::Letter, line::Line, notice::Instance, text::Environment};

impl Notice {
    /// The notice as one JSON object, indented, ends with LF. Times are RFC 3339.
    pub fn render_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(&self.json()).unwrap_or_else(|error| {
            unreachable!("strings, numbers and lists are always JSON: {error}")
        });
        json.push('\n');
        json
    }

    fn json(&self) -> Json<'_> {
        Json {
            language: self.language.tag(),
            program: self.program.as_ref().map(Line::as_str),
            provider: self.provider.as_str(),
            care: self.care.shown(),
            sender: self.sender.as_ref().map(|sender| sender.as_str()),
            reply_to: self.reply_to.as_ref().map(|reply_to| reply_to.as_str()),
            destination: match self.destination {
                Destination::Cloud => "cloud",
                Destination::Unnamed => "unnamed",
            },
            wave: self.wave.as_str(),
            sequence: self.sequence,
            environment: environment(&self.environment),
            opens: self.window.opens(),
            closes: self.window.closes(),
            opens_local: local(self.window.opens(), &self.zone),
            closes_local: local(self.window.closes(), &self.zone),
            time_zone: self.zone.iana_name(),
            window_seconds: self.window.length().as_secs(),
            estimate_seconds: self.estimate.as_ref().map(SignedDuration::as_secs),
            notice_seconds: self.notice.as_ref().map(SignedDuration::as_secs),
            announced: self.announced,
            issued: self.issued,
            contact: Contact {
                name: self.contact.as_ref().map(Line::as_str),
                email: self.email.as_str(),
            },
            instances: self.instances.iter().map(instance).collect(),
            letter: Letter::of(self),
            text: self.render_text(),
        }
    }
}

#[derive(Serialize)]
struct Json<'a> {
    language: &'static str,
    program: Option<&'a str>,
    provider: &'a str,
    care: &'a str,
    sender: Option<&'a str>,
    reply_to: Option<&'a str>,
    destination: &'static str,
    wave: &'a str,
    sequence: u32,
    environment: Option<&'a str>,
    opens: Timestamp,
    closes: Timestamp,
    opens_local: String,
    closes_local: String,
    time_zone: Option<&'a str>,
    window_seconds: i64,
    estimate_seconds: Option<i64>,
    notice_seconds: Option<i64>,
    announced: Option<Timestamp>,
    issued: Timestamp,
    contact: Contact<'a>,
    instances: Vec<Named<'a>>,
    letter: Letter,
    text: String,
}

#[derive(Serialize)]
struct Contact<'a> {
    name: Option<&'a str>,
    email: &'a str,
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
    product: Option<&'a str>,
    hosting: Option<&'a str>,
}

fn instance(instance: &Instance) -> Named<'_> {
    Named {
        name: instance.name.as_str(),
        product: instance.product.as_ref().map(Line::as_str),
        hosting: instance.hosting.as_ref().map(Line::as_str),
    }
}

fn environment(environment: &Environment) -> Option<&str> {
    match environment {
        Environment::Production => Some("production"),
        Environment::Staging => Some("staging"),
        Environment::Development => Some("development"),
        Environment::Named(name) => Some(name.as_str()),
        Environment::Unsaid => None,
    }
}

fn local(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
