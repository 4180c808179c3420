//! Configurations of the relay, as short as a test can say them.
//!
//! Owns the sections that every test needs; the lines a test cares about it gives itself.
//! Floor: none (pure, but that a plan is made for now).

use std::fmt;
use std::net::SocketAddr;

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
    let day = 24 * 3600;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let hour = |offset: u64| {
        // Of 2026-01-01 the seconds are known; a window may be a day long at most.
        let since = now.as_secs() - 1_767_225_600 + offset;
        let (mut days, mut year) = (since / day, 2026);
        let length = |year: u64| 365 + u64::from(year.is_multiple_of(4));
        while days >= length(year) {
            days -= length(year);
            year += 1;
        }
        let mut month = 0;
        let months = [31, 27 + length(year) - 364, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        while days >= months[month] {
            days -= months[month];
            month += 1;
        }
        let (hour, minute) = (since % day / 3600, since % 3600 / 60);
        format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:00Z", month + 1, days + 1)
    };
    format!(
        "[[instance]]\nname = \"held\"\nproduct = \"classic\"\nenvironment = \"production\"\n\
         match = {{ senders = [\"held.example\"] }}\n[[wave]]\nid = \"w\"\n\
         environment = \"production\"\ninstances = [\"held\"]\nopens = \"{}\"\ncloses = \"{}\"\n",
        hour(0),
        hour(3600)
    )
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
