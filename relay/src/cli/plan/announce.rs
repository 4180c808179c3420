//! `wavegate plan announce`: writes into the lock that customers were told of a wave. Floor 4.

use std::{io, path::Path};

use serde::Serialize;

use super::{AnnounceArgs, Announced, announced, now, wave};
use crate::{
    cli::{
        Failed, exit,
        output::{count, json},
    },
    config::{Checks, LockGuard, lock_of},
    plan::{Announcement, Plan, Timestamp, Wave, in_words},
};

/// What was done. Stable as JSON: fields may be added.
#[derive(Debug, Serialize)]
struct Done {
    wave: String,
    /// False where it had been announced already.
    changed: bool,
    lock: String,
    opens: String,
    closes: String,
    instances: Vec<String>,
    announced: Announced,
    digest: String,
}

/// Announces and prints.
pub(super) fn announce(args: &AnnounceArgs, out: &mut dyn io::Write) -> anyhow::Result<u8> {
    let now = now(None);
    // Read twice: where the plan is says what to lock, and under the lock it may be another.
    let path = args.from.read(now, Checks::Relay)?.path;
    let guard = LockGuard::take(&path).map_err(|error| not_written(&path, &error))?;
    let plan = args.from.read(now, Checks::Relay)?.plan;
    let wave = wave(&plan, &args.wave)?;
    let (announcement, changed) = match announced(&plan, wave) {
        // A plan that says otherwise was refused when it was read.
        Some(there) => (there.clone(), false),
        None => (announcement(&plan, wave, args, now)?, true),
    };
    let mut all = plan.announced.clone();
    if changed {
        all.push(announcement.clone());
        guard.write(&all).map_err(|error| not_written(&path, &error))?;
    }
    drop(guard);
    let digest = args.from.read(now, Checks::Relay)?.plan.digest().to_owned();
    let done = Done {
        wave: announcement.wave.clone(),
        changed,
        lock: lock_of(&path).display().to_string(),
        opens: announcement.opens.to_string(),
        closes: announcement.closes.to_string(),
        announced: Announced::of(&announcement),
        instances: announcement.instances,
        digest,
    };
    match args.json {
        true => json(out, &done)?,
        false => done.print(out)?,
    }
    Ok(0)
}

/// The announcement of a wave, if it may be made now.
fn announcement(
    plan: &Plan,
    wave: &Wave,
    args: &AnnounceArgs,
    now: Timestamp,
) -> Result<Announcement, Failed> {
    let (id, window) = (&wave.window.wave, &wave.window);
    if window.is_over(now) {
        let message =
            format!("wave {id} is over since {}; there is nothing to announce", window.closes);
        return Err(Failed::new(exit::CONFIG, message));
    }
    let notice = plan.environment(&wave.environment).map_or(0, |one| one.notice_ms);
    let late = now.saturating_add_ms(notice) > window.opens;
    if late && !args.late {
        let opens = match window.opens.0.checked_sub(now.0).filter(|ms| *ms > 0) {
            Some(left) => format!("opens in {}", in_words(left)),
            None => "is open already".to_owned(),
        };
        let message = format!(
            "wave {id} {opens}, and environment {:?} asks for {} of notice; let it open later, or, \
             if its customers agreed, add `--late --reason TEXT`",
            wave.environment,
            in_words(notice)
        );
        return Err(Failed::new(exit::CONFIG, message));
    }
    let announcement = Announcement::new(wave, &plan.instances, now, login_name());
    Ok(Announcement { reason: args.reason.clone(), late, ..announcement })
}

fn not_written(plan: &Path, error: &io::Error) -> Failed {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => exit::PERMISSION,
        _ => exit::IO,
    };
    let lock = lock_of(plan);
    Failed::new(code, format!("{}: {error}; nothing was announced", lock.display()))
}

/// Who asks: for root by `sudo` the user behind it, else the name of the user, else its number.
pub(in crate::cli) fn login_name() -> String {
    let user = rustix::process::getuid();
    let of = |name: &str| std::env::var(name).ok();
    let behind = user.is_root().then(|| of("SUDO_USER")).flatten();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = || name_in(&users, user.as_raw());
    let name = behind.or_else(named).or_else(|| of("LOGNAME")).or_else(|| of("USER"));
    let is_name = |name: &String| {
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic())
    };
    name.filter(is_name).unwrap_or_else(|| format!("user {}", user.as_raw()))
}

/// The name that a list of users (passwd(5)) has for a number.
fn name_in(users: &str, number: u32) -> Option<String> {
    let mut found = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(number)).then(|| name.to_owned())
    });
    found.next()
}

impl Done {
    fn print(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let Announced { at, by, .. } = &self.announced;
        let of = count(self.instances.len(), "instance");
        let (opens, closes) = (&self.opens, &self.closes);
        match self.changed {
            true => writeln!(
                out,
                "wave {} is announced: {of}, from {opens} to {closes}\n{} has it, and goes with \
                 the plan to every host",
                self.wave, self.lock
            ),
            false => writeln!(
                out,
                "wave {} was announced {at} by {by}: {of}, from {opens} to {closes}; nothing to do",
                self.wave
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_by_their_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\nada:x:1000:100::/home/ada:/bin/sh\n";
        assert_eq!(name_in(users, 1000).as_deref(), Some("ada"));
        assert_eq!(name_in(users, 100), None, "a group is no user");
        assert_eq!(name_in("", 0), None);
    }
}
