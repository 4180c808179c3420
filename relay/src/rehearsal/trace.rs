//! Mail as it once was: a trace in CSV or JSON Lines. Floor 4.
//!
//! A line is a message: `time` (RFC 3339, or seconds after the beginning of the rehearsal),
//! `instance` or `sender` and `client` (and perhaps `listener`), `recipient_domain`, and `size`
//! in bytes. CSV begins with a line that names its columns, in any order; a file whose first
//! character is `{` is JSON Lines with the same names as keys. Nothing in a file is trusted:
//! every line is bounded, and what is wrong is named with file and line.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read},
    net::IpAddr,
};

use serde::Deserialize;
use wavegate_smtp::Address;

use super::{
    Span,
    traffic::{Letter, Names, Source, Traffic, attribute, listener_for, source_of},
};
use crate::{config::Config, world::Entropy};

/// The longest line. Three addresses of the longest kind and much room.
const LINE: u64 = 8 * 1024;
/// Messages in a trace: each takes some 150 bytes of memory in a rehearsal.
pub const LETTERS: usize = 5_000_000;
/// The largest size that is believed.
const SIZE: u64 = 1 << 40;
/// Wrong lines that are told one by one.
const TOLD: usize = 20;
/// One message in so many comes on a connection of its own.
const ALONE: u64 = 16;
/// Names of columns and keys.
const COLUMNS: [&str; 7] =
    ["time", "instance", "sender", "client", "listener", "recipient_domain", "size"];

/// Why a trace is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// There are wrong lines in it.
    #[error("{}", told(.wrong, *.more))]
    Wrong {
        /// The first of them, each with file and line.
        wrong: Vec<String>,
        /// How many there are beyond these.
        more: u64,
    },
}

fn told(wrong: &[String], more: u64) -> String {
    let mut text = wrong.join("\n");
    if more > 0 {
        text += &format!("\nand {more} more wrong lines");
    }
    text
}

/// One line, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    time: Option<Time>,
    instance: Option<String>,
    sender: Option<String>,
    client: Option<String>,
    listener: Option<String>,
    recipient_domain: Option<String>,
    size: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
}

/// Reads a trace that is called `file` in messages.
pub fn read(
    config: &Config,
    span: Span,
    file: &str,
    input: impl Read,
    seed: u64,
) -> Result<Traffic, TraceError> {
    let mut reader = Reader {
        config,
        span,
        dice: Entropy::new(seed),
        of_instance: HashMap::new(),
        numbers: HashMap::new(),
        names: Names::default(),
        traffic: Traffic::default(),
        outside: 0,
    };
    let mut lines = Lines { input: io::BufReader::new(input), number: 0, bytes: Vec::new() };
    let mut wrong = Vec::new();
    let mut more = 0;
    let mut form = None;
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(source) => return Err(TraceError::Read { file: file.to_owned(), source }),
        };
        let number = line.number;
        let found = line.text.and_then(|text| {
            if text.trim().is_empty() {
                return Ok(());
            }
            match &form {
                None if text.trim_start().starts_with('{') => {
                    form = Some(Form::Json);
                    reader.json(text)
                }
                None => {
                    form = Some(Form::Csv(columns(text)?));
                    Ok(())
                }
                Some(Form::Json) => reader.json(text),
                Some(Form::Csv(columns)) => reader.csv(columns, text),
            }
        });
        if let Err(problem) = found {
            match wrong.len() < TOLD {
                true => wrong.push(format!("{file}:{number}: {problem}")),
                false => more += 1,
            }
            // Without its columns nothing of a file can be understood.
            if form.is_none() {
                break;
            }
        }
        if reader.traffic.letters.len() > LETTERS {
            wrong.push(format!(
                "{file}:{number}: more than {LETTERS} messages; give a shorter trace"
            ));
            break;
        }
    }
    if wrong.is_empty() && reader.traffic.letters.is_empty() {
        wrong.push(reader.nothing(file));
    }
    match wrong.is_empty() {
        true => Ok(reader.finish()),
        false => Err(TraceError::Wrong { wrong, more }),
    }
}

enum Form {
    Json,
    /// The columns by position, as indexes into `COLUMNS`.
    Csv(Vec<usize>),
}

/// The lines of a file, each bounded.
struct Lines<R> {
    input: R,
    number: u64,
    bytes: Vec<u8>,
}

struct Line<'a> {
    number: u64,
    text: Result<&'a str, String>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.bytes.clear();
        self.number += 1;
        if self.input.by_ref().take(LINE + 1).read_until(b'\n', &mut self.bytes)? == 0 {
            return Ok(None);
        }
        let number = self.number;
        if self.bytes.len() as u64 > LINE && self.bytes.last() != Some(&b'\n') {
            self.skip()?;
            let text = Err(format!("is longer than {LINE} bytes"));
            return Ok(Some(Line { number, text }));
        }
        let text = std::str::from_utf8(&self.bytes)
            .map(|text| text.trim_end_matches(['\r', '\n']).trim_start_matches('\u{feff}'))
            .map_err(|_| "is not UTF-8".to_owned());
        Ok(Some(Line { number, text }))
    }

    /// Goes to the end of a line that is too long.
    fn skip(&mut self) -> io::Result<()> {
        loop {
            let held = self.input.fill_buf()?;
            if held.is_empty() {
                return Ok(());
            }
            let (used, ended) = match memchr::memchr(b'\n', held) {
                Some(at) => (at + 1, true),
                None => (held.len(), false),
            };
            self.input.consume(used);
            if ended {
                return Ok(());
            }
        }
    }
}

fn columns(text: &str) -> Result<Vec<usize>, String> {
    let mut found = Vec::new();
    for name in fields(text)? {
        let name = name.trim().to_owned();
        let Some(column) = COLUMNS.iter().position(|one| *one == name) else {
            return Err(format!(
                "{name:?} is no column; the first line names columns, of: {}",
                COLUMNS.join(", ")
            ));
        };
        if found.contains(&column) {
            return Err(format!("the column {name:?} is there twice"));
        }
        found.push(column);
    }
    Ok(found)
}

/// The fields of a line of CSV (RFC 4180): commas between them, quotes around what has some.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        let field;
        match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut left = quoted;
                loop {
                    let end = left.find('"').ok_or("a quote is not closed")?;
                    value.push_str(&left[..end]);
                    left = &left[end + 1..];
                    match left.strip_prefix('"') {
                        Some(more) => {
                            value.push('"');
                            left = more;
                        }
                        None => break,
                    }
                }
                (field, rest) = (value, left);
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (field, rest) = (rest[..end].to_owned(), &rest[end..]);
            }
        }
        found.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(found),
            None => return Err("something follows a closing quote".to_owned()),
        }
    }
}

struct Reader<'a> {
    config: &'a Config,
    span: Span,
    dice: Entropy,
    /// Numbers of sources that were asked for by instance.
    of_instance: HashMap<String, u32>,
    numbers: HashMap<Source, u32>,
    names: Names,
    traffic: Traffic,
    /// Messages of another time.
    outside: u64,
}

impl Reader<'_> {
    fn json(&mut self, text: &str) -> Result<(), String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        self.take(raw)
    }

    fn csv(&mut self, columns: &[usize], text: &str) -> Result<(), String> {
        let fields = fields(text)?;
        if fields.len() != columns.len() {
            return Err(format!("has {} fields, not {}", fields.len(), columns.len()));
        }
        let mut raw = Raw::default();
        for (column, value) in columns.iter().zip(fields) {
            let value = value.trim().to_owned();
            if value.is_empty() {
                continue;
            }
            match COLUMNS[*column] {
                "time" => {
                    raw.time = Some(value.parse().map_or(Time::Text(value), Time::Seconds));
                }
                "instance" => raw.instance = Some(value),
                "sender" => raw.sender = Some(value),
                "client" => raw.client = Some(value),
                "listener" => raw.listener = Some(value),
                "recipient_domain" => raw.recipient_domain = Some(value),
                _ => {
                    let size = value.parse();
                    raw.size = Some(size.map_err(|_| format!("size: {value:?} is no number"))?);
                }
            }
        }
        self.take(raw)
    }

    fn take(&mut self, raw: Raw) -> Result<(), String> {
        let at = self.time(raw.time.ok_or("has no `time`")?)?;
        let size = raw.size.ok_or("has no `size`")?;
        if size > SIZE {
            return Err(format!("size: {size} is more than any message has"));
        }
        let domain = raw.recipient_domain.ok_or("has no `recipient_domain`")?;
        Address::parse(&format!("user@{domain}"))
            .map_err(|error| format!("recipient_domain: {domain:?}: {error}"))?;
        let source = match (raw.instance, raw.sender, raw.client) {
            (Some(name), None, None) if raw.listener.is_none() => self.instance(name)?,
            (None, Some(sender), Some(client)) => self.origin(sender, &client, raw.listener)?,
            _ => {
                return Err("needs `instance`, or `sender` and `client` (and perhaps `listener`) \
                            without it"
                    .to_owned());
            }
        };
        let domain = self.names.number(&domain);
        let alone = self.dice.next().is_multiple_of(ALONE);
        match at {
            Some(at) => {
                self.traffic.letters.push(Letter { at, source, domain, size, alone });
            }
            None => self.outside += 1,
        }
        Ok(())
    }

    /// Milliseconds after the beginning; none outside of the rehearsal.
    fn time(&self, time: Time) -> Result<Option<u64>, String> {
        let length = self.span.length_ms();
        let ms = match time {
            Time::Seconds(seconds) => {
                if !(0.0..=1e12).contains(&seconds) {
                    return Err(format!(
                        "time: {seconds} is no number of seconds after the beginning"
                    ));
                }
                #[allow(clippy::cast_possible_truncation, reason = "its bounds were looked at")]
                #[allow(clippy::cast_sign_loss, reason = "its bounds were looked at")]
                let ms = (seconds * 1000.0).round() as u64;
                Some(ms)
            }
            Time::Text(text) => {
                let time: jiff::Timestamp = text.parse().map_err(|_| {
                    format!(
                        "time: {text:?} is neither RFC 3339 with an offset nor a number of seconds"
                    )
                })?;
                let ms = u64::try_from(time.as_millisecond()).ok();
                ms.and_then(|ms| ms.checked_sub(self.span.from.0))
            }
        };
        Ok(ms.filter(|ms| *ms < length))
    }

    fn instance(&mut self, name: String) -> Result<u32, String> {
        if let Some(number) = self.of_instance.get(&name) {
            return Ok(*number);
        }
        let mut all = self.config.plan.instances.iter();
        let Some(index) = all.position(|one| one.name == name) else {
            return Err(format!("instance: the plan has no {name:?}"));
        };
        let Some(source) = source_of(self.config, index) else {
            return Err(format!(
                "instance: no message from a client that may relay is {name:?}'s; give `sender` \
                 and `client`"
            ));
        };
        let number = self.number(source);
        self.of_instance.insert(name, number);
        Ok(number)
    }

    fn origin(
        &mut self,
        sender: String,
        client: &str,
        listener: Option<String>,
    ) -> Result<u32, String> {
        let client: IpAddr =
            client.parse().map_err(|_| format!("client: {client:?} is no IP address"))?;
        if sender != "<>" {
            Address::parse(&sender).map_err(|error| format!("sender: {sender:?}: {error}"))?;
        }
        let listener = listener.unwrap_or_else(|| listener_for(self.config, client));
        if !self.config.listeners.iter().any(|one| one.name == listener) {
            return Err(format!("listener: there is no {listener:?}"));
        }
        let sender = if sender == "<>" { String::new() } else { sender };
        let mut source = Source { instance: None, client, listener, sender, headers: Vec::new() };
        source.instance = attribute(&self.config.plan, &source);
        Ok(self.number(source))
    }

    fn number(&mut self, source: Source) -> u32 {
        let next = u32::try_from(self.traffic.sources.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(source.clone()).or_insert(next);
        if number == next {
            self.traffic.sources.push(source);
        }
        number
    }

    /// What to say of a trace without messages.
    fn nothing(&self, file: &str) -> String {
        let Span { from, to } = self.span;
        match self.outside {
            0 => format!("{file}: has no messages"),
            count => format!(
                "{file}: all of its {count} messages are outside of {from} to {to}; give --from and \
                 --to, or write times as seconds after the beginning"
            ),
        }
    }

    fn finish(mut self) -> Traffic {
        if self.outside > 0 {
            let Span { from, to } = self.span;
            self.traffic.notes.push(format!(
                "{} messages of the trace are outside of {from} to {to} and were left out",
                self.outside
            ));
        }
        self.traffic.domains = self.names.all;
        self.traffic.sort();
        self.traffic
    }
}
