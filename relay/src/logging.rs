//! How log lines look: text or JSON, on standard error. Floor 4.
//!
//! Owns their form, not what they say. Each is one line, and what is long in it is cut. Where
//! standard error is the journal, a line begins with its priority, which the journal takes off
//! (sd-daemon(3)), and text has no time: the journal has its own.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext,
        format::{Format, FormatEvent, FormatFields, Full, Writer},
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

use crate::config::LogFormat;

/// Characters of one value in JSON: a line stays below what the journal takes in one piece (48 KiB).
const VALUE: usize = 8000;

/// The resolver's own lines.
const QUIET: &str = "hickory=off";

/// Whether lines are JSON. One a process, as standard error is.
static JSON: AtomicBool = AtomicBool::new(false);

/// Lines look like this from now on.
pub fn set(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Relaxed);
}

/// Begins to log to standard error. To be called once.
pub fn start() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("WAVEGATE_LOG")
        .from_env_lossy();
    // What comes back to a question could be anybody's, as often as he likes: `names` says what
    // matters of it. A longer name in the variable (`hickory_net=debug`) goes before this.
    let filter = match QUIET.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let journal = is_journal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .event_format(Lines {
            journal,
            timed: Format::default(),
            untimed: Format::default().without_time(),
        })
        .init();
}

/// Whether standard error is the journal, and not what somebody has put in its place.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let found = rustix::fs::fstat(io::stderr());
    found.is_ok_and(|found| *stream == *format!("{}:{}", found.st_dev, found.st_ino))
}

struct Lines {
    journal: bool,
    timed: Format<Full, SystemTime>,
    untimed: Format<Full, ()>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        }
        match (JSON.load(Relaxed), self.journal) {
            (true, _) => {
                let mut time = String::new();
                SystemTime.format_time(&mut Writer::new(&mut time))?;
                writeln!(writer, "{}", json(event, &time))
            }
            (false, true) => self.untimed.format_event(context, writer, event),
            (false, false) => self.timed.format_event(context, writer, event),
        }
    }
}

/// As syslog(3) has it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// An event as an object: what is known of every line first, then its own fields.
fn json(event: &Event<'_>, time: &str) -> String {
    let metadata = event.metadata();
    let mut object = Object("{".to_owned());
    object.text("time", time);
    object.text("level", &metadata.level().as_str().to_ascii_lowercase());
    object.text("module", metadata.target());
    event.record(&mut object);
    object.0.push('}');
    object.0
}

/// A JSON object in the making.
struct Object(String);

impl Object {
    fn key(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.string(name);
        self.0.push(':');
    }

    fn text(&mut self, name: &str, value: &str) {
        self.key(name);
        match value.char_indices().nth(VALUE) {
            Some((end, _)) => self.string(&format!("{}...", &value[..end])),
            None => self.string(value),
        }
    }

    fn string(&mut self, text: &str) {
        // A text is never an error.
        self.0.push_str(&serde_json::to_string(text).unwrap_or_default());
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.key(field.name());
        // Nor is writing to a text.
        let _ = write!(self.0, "{value}");
    }
}

impl Visit for Object {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        match value.is_finite() {
            true => self.plain(field, value),
            // JSON has no others.
            false => self.text(field.name(), &value.to_string()),
        }
    }
}
