//! Configurations of the relay, as short as a test can say them.
//!
//! Owns the sections that every test needs; the lines a test cares about it gives itself.
//! Floor: none (pure, but that a plan is made for now).

use std::fmt;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A configuration file in the making.
#[derive(Clone, Debug, Default)]
pub struct Config {
    relay: String,
    limits: String,
    listener: String,
    upstreams: Vec<(String, Vec<SocketAddr>, String)>,
    rest: String,
}

impl Config {
    /// One upstream, `up`, with these targets; no policies.
    pub fn to(targets: &[SocketAddr]) -> Self {
        Self::default().and_upstream("up", targets, "")
    }

    /// Lines of `[relay]`.
    pub fn relay(mut self, lines: &str) -> Self {
        add(&mut self.relay, lines);
        self
    }

    /// Lines of `[limits]`.
    pub fn limits(mut self, lines: &str) -> Self {
        add(&mut self.limits, lines);
        self
    }

    /// Lines of the listener.
    pub fn listener(mut self, lines: &str) -> Self {
        add(&mut self.listener, lines);
        self
    }

    /// Lines of the upstream given last.
    pub fn upstream(mut self, lines: &str) -> Self {
        if let Some((_, _, last)) = self.upstreams.last_mut() {
            add(last, lines);
        }
        self
    }

    /// Another upstream.
    pub fn and_upstream(mut self, name: &str, targets: &[SocketAddr], lines: &str) -> Self {
        self.upstreams.push((name.into(), targets.to_vec(), format!("{lines}\n")));
        self
    }

    /// With the pages for monitors, see [`super::Relay::get`].
    pub fn admin(self) -> Self {
        self.section("[admin]\naddress = \"127.0.0.1:0\"")
    }

    /// Whole sections.
    pub fn section(mut self, text: &str) -> Self {
        add(&mut self.rest, text);
        self
    }
}

/// A plan: the instance `held`, known by senders of `held.example`, is in its window now and for an
/// hour; all other mail is of no instance.
pub fn plan_of_held() -> String {
    let now = now_ms();
    format!(
        "[[instance]]\nname = \"held\"\nproduct = \"classic\"\nenvironment = \"production\"\n\
         match = {{ senders = [\"held.example\"] }}\n[[wave]]\nid = \"w\"\n\
         environment = \"production\"\ninstances = [\"held\"]\nopens = \"{}\"\ncloses = \"{}\"\n",
        rfc3339(now),
        rfc3339(now + 3_600_000)
    )
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Milliseconds since 1970 as plans write times.
pub fn rfc3339(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Days to a date, by the cycle of 400 years that begins on 1 March.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let (day, month) = (doy - (153 * ((5 * doy + 2) / 153) + 2) / 5 + 1, (5 * doy + 2) / 153);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (seconds, ms) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

fn add(to: &mut String, lines: &str) {
    to.push_str(lines);
    to.push('\n');
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[relay]\nhostname = \"edge-1.example.net\"\n{}", self.relay)?;
        writeln!(f, "[limits]\n{}", self.limits)?;
        writeln!(f, "[[listener]]\naddress = \"127.0.0.1:0\"\n{}", self.listener)?;
        for (name, targets, lines) in &self.upstreams {
            let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
            writeln!(f, "[[upstream]]\nname = \"{name}\"\ntargets = {targets:?}\n{lines}")?;
        }
        f.write_str(&self.rest)
    }
}
