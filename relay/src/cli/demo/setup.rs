//! The files of the demonstration: configuration and plan, in a directory that goes away with
//! it. Floor 4.

use std::{fmt::Write, fs, io, net::SocketAddr, path::PathBuf, sync::Arc};

use tempfile::TempDir;

use super::report::{Account, Ledger};
use crate::plan::Timestamp;

const HOUR_MS: u64 = 3_600_000;

/// A sending instance.
pub(super) struct Instance {
    pub(super) name: &'static str,
    pub(super) domain: &'static str,
    environment: &'static str,
    wave: Wave,
}

/// What the plan has for an instance.
#[derive(Clone, Copy)]
enum Wave {
    /// The window of this demonstration.
    Now,
    None,
    /// A window that was over before.
    Past,
}

/// The three of the demonstration.
pub(super) const INSTANCES: [Instance; 3] = [
    Instance {
        name: "acme-prod-1",
        domain: "mkt.acme.example",
        environment: "production",
        wave: Wave::Now,
    },
    Instance {
        name: "globex-prod-1",
        domain: "news.globex.example",
        environment: "production",
        wave: Wave::None,
    },
    Instance {
        name: "initech-stage-1",
        domain: "mail.initech.example",
        environment: "staging",
        wave: Wave::Past,
    },
];

/// First moment of a window, and the first after it.
pub(super) type Window = (Timestamp, Timestamp);

/// The window of a demonstration that begins now: its middle third.
pub(super) fn window(now: Timestamp, seconds: u32) -> Window {
    let third = u64::from(seconds) * 1000 / 3;
    (now.saturating_add_ms(third), now.saturating_add_ms(2 * third))
}

/// An account for each instance, with the window that its mail has to keep to.
pub(super) fn ledger(window: Window, now: Timestamp) -> Arc<Ledger> {
    let accounts = INSTANCES.iter().map(|instance| {
        let window = match instance.wave {
            Wave::Now => Some(window),
            Wave::None => None,
            Wave::Past => Some(past(now)),
        };
        Account::new(instance.name, window)
    });
    Arc::new(Ledger::new(accounts.collect()))
}

fn past(now: Timestamp) -> Window {
    (now.saturating_sub_ms(2 * HOUR_MS), now.saturating_sub_ms(HOUR_MS))
}

/// The directory with the files.
pub(super) struct Site {
    directory: TempDir,
    began: Timestamp,
}

impl Site {
    /// Writes a configuration with these sinks as upstreams, and a plan in which the window of
    /// the demonstration is not announced yet.
    pub(super) fn new(legacy: SocketAddr, cloud: SocketAddr, now: Timestamp) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("wavegate-demo-").tempdir()?;
        let site = Self { directory, began: now };
        fs::write(site.config(), config(legacy, cloud))?;
        fs::write(site.plan(), plan(None, past(now)))?;
        Ok(site)
    }

    /// The configuration file.
    pub(super) fn config(&self) -> PathBuf {
        self.directory.path().join("relay.toml")
    }

    fn plan(&self) -> PathBuf {
        self.directory.path().join("waves.toml")
    }

    /// Puts the window into the plan.
    pub(super) fn announce(&self, window: Window) -> io::Result<()> {
        fs::write(self.plan(), plan(Some(window), past(self.began)))
    }
}

fn config(legacy: SocketAddr, cloud: SocketAddr) -> String {
    format!(
        r#"[relay]
hostname = "edge-1.example.net"
state_dir = "state"
plan = "waves.toml"
[limits]
shutdown_timeout = "2s"
[[listener]]
address = "127.0.0.1:0"
[[upstream]]
name = "legacy"
targets = ["{legacy}"]
[[upstream]]
name = "cloud"
targets = ["{cloud}"]
[migration]
before = "legacy"
after = "cloud"
[[policy]]
plugin = "builtin:freeze"
[[policy]]
plugin = "builtin:routing"
[[policy]]
plugin = "builtin:throttle"
settings = {{ limits = [{{ per = ["upstream", "recipient-domain"], rate = "5000/s", burst = 500 }}] }}
[admin]
address = "127.0.0.1:0"
"#
    )
}

fn plan(now: Option<Window>, past: Window) -> String {
    let mut text = "freeze_lead = \"1s\"\n".to_owned();
    let mut waves = String::new();
    for Instance { name, domain, environment, wave } in &INSTANCES {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "[[instance]]\nname = \"{name}\"\nproduct = \"campaign-classic\"\nenvironment = \
             \"{environment}\"\nmatch = {{ clients = [\"127.0.0.1/32\"], senders = [\"{domain}\"] }}"
        );
        let window = match wave {
            Wave::Now => now,
            Wave::None => None,
            Wave::Past => Some(past),
        };
        if let Some((opens, closes)) = window {
            let _ = writeln!(
                waves,
                "[[wave]]\nid = \"wave-{name}\"\nenvironment = \"{environment}\"\ninstances = \
                 [\"{name}\"]\nopens = \"{opens}\"\ncloses = \"{closes}\""
            );
        }
    }
    text + &waves
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{config, plan::Phase};

    #[test]
    fn the_files_are_good_and_say_what_the_ledger_expects() {
        let now = Timestamp(1_768_888_800_123);
        let address = "127.0.0.1:2601".parse().unwrap();
        let site = Site::new(address, address, now).unwrap();
        let before = config::read(&site.config()).unwrap();
        assert_eq!(before.plan.phase(0, now), Phase::Unscheduled);
        let window = window(now, 12);
        site.announce(window).unwrap();
        let config = config::read(&site.config()).unwrap();
        let plan = &config.plan;
        assert_eq!(window.0.0 - now.0, 4000);
        assert_eq!(plan.phase(0, now), Phase::Scheduled);
        assert_eq!(plan.phase(0, window.0.saturating_sub_ms(1000)), Phase::Freezing);
        assert_eq!(plan.phase(0, window.0), Phase::Frozen);
        assert_eq!(plan.phase(0, window.1), Phase::Migrated);
        assert_eq!(plan.phase(1, now), Phase::Unscheduled);
        assert_eq!(plan.phase(2, now), Phase::Migrated);
    }
}
