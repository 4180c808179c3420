//! Plans and what is said of them, as of some time, with and without a lock.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fmt::Write as _, path::Path};

use crate::{
    config::{Checks, LockGuard, PlanSource, When, check_kept, lock_of, read_plan, values},
    plan::{Announcement, Plan, ProbeFailure, Release, Timestamp},
};

/// Plans and everything that is said of them.
const CASES: &str = include_str!("tests/cases.txt");

fn time(text: &str) -> Timestamp {
    values::time(text).unwrap()
}

/// Reads `waves.toml` of a directory.
fn read(dir: &Path, now: &str, checks: Checks) -> Result<Plan, String> {
    let source = PlanSource::Plan(dir.join("waves.toml"));
    match read_plan(&source, When { now: time(now), checks }) {
        Ok(found) => Ok(Plan::clone(&found.plan)),
        Err(found) => Err(found.to_string().replace(&format!("{}/", dir.display()), "")),
    }
}

/// What is said of a case's files, a line each.
fn said(input: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = input.split("--- ").skip(1);
    let (now, checks) = parts.next().unwrap().trim().split_once(' ').unwrap();
    for part in parts {
        let (name, text) = part.split_once('\n').unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let checks = match checks {
        "plan" => Checks::Plan,
        "relay" => Checks::Relay,
        "values" => Checks::Values,
        other => panic!("{other}"),
    };
    let source = PlanSource::Plan(dir.path().join("waves.toml"));
    let found = match read_plan(&source, When { now: time(now), checks }) {
        Ok(file) => file.warnings,
        Err(found) => found.0,
    };
    let place = format!("{}/", dir.path().display());
    found.iter().map(|one| format!("{one}\n").replace(&place, "")).collect()
}

#[test]
fn what_is_said_of_plans() {
    let mut all = String::new();
    for case in CASES.split("=== ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let (input, _) = rest.split_once("--- said\n").unwrap();
        writeln!(all, "=== {name}\n{input}--- said\n{}", said(input)).unwrap();
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/plan/tests/cases.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(golden, &all).unwrap();
    }
    let golden = std::fs::read_to_string(golden).unwrap();
    if let Some((is, was)) = all.lines().zip(golden.lines()).find(|(is, was)| is != was) {
        panic!("with BLESS=1 the file is written anew\n said: {is}\nfile: {was}");
    }
    assert_eq!(all.len(), golden.len());
}

const FULL: &str = r#"
freeze_lead = "2min"
[program]
name = "Sending infrastructure upgrade"
provider = "Example Mail"
contact = "https://care.example.net/"
sender = "migration@example.net"
destination = "cloud"
[[environment]]
name = "production"
earliest = 2024-01-01
notice = "30d"
duration = { fixed = "15min", each = "5min", parallel = 4 }
[[instance]]
name = "acme-1"
customer = "acme"
product = "classic"
environment = "production"
hosting = "managed"
contacts = [{ email = "ada@acme.example" }, { name = "Bo", email = "bo@acme.example", language = "sv", time_zone = "Europe/Stockholm" }]
match = { headers = { "X-Instance" = "acme-1", "A" = "b" } }
[[instance]]
name = "acme-2"
customer = "acme"
product = "classic"
environment = "production"
match = { clients = ["192.0.2.1"] }
[[wave]]
id = "w"
environment = "production"
select = { customer = "acme" }
opens = "2026-03-01T06:00:00Z"
release = "on-complete"
probe_failure = "roll-back"
"#;

const NOW: &str = "2026-01-01T12:00:00Z";

fn directory(plan: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("waves.toml"), plan).unwrap();
    dir
}

#[test]
fn a_full_plan_is_understood() {
    let dir = directory(FULL);
    let plan = read(dir.path(), NOW, Checks::Plan).unwrap();
    let program = plan.program.as_ref().unwrap();
    assert_eq!(
        (program.name.as_str(), program.reply_to.as_deref()),
        ("Sending infrastructure upgrade", None)
    );
    let production = plan.environment("production").unwrap();
    assert_eq!(production.earliest, Some(time("2024-01-01T00:00:00Z")));
    assert_eq!(production.notice_ms, 30 * 86_400_000);
    let [first, second] = &plan.instances[..] else { panic!("{:?}", plan.instances) };
    assert_eq!((first.customer.as_str(), first.hosting.as_deref()), ("acme", Some("managed")));
    let [ada, bo] = &first.contacts[..] else { panic!("{:?}", first.contacts) };
    assert_eq!((ada.language.as_str(), ada.time_zone.as_str(), &ada.name), ("en", "UTC", &None));
    assert_eq!((bo.language.as_str(), bo.time_zone.as_str()), ("sv", "Europe/Stockholm"));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(first.matcher.headers, [header("a", "b"), header("x-instance", "acme-1")]);
    assert_eq!(second.contacts, []);
    let [wave] = &plan.waves[..] else { panic!("{:?}", plan.waves) };
    assert_eq!(wave.instances, [0, 1]);
    assert_eq!(wave.window.closes, time("2026-03-01T06:20:00Z"), "15 min and 5 min");
    assert_eq!((wave.release, wave.probe_failure), (Release::OnComplete, ProbeFailure::RollBack));
    assert_eq!(wave.announced, None);
    assert_eq!(plan.estimate_ms(wave), Some(20 * 60_000));
}

#[test]
fn of_several_waves_the_latest_counts() {
    let second = "[[wave]]\nid = \"again\"\nenvironment = \"production\"\ninstances = \
                  [\"acme-1\"]\nopens = \"2026-06-01T06:00:00Z\"\n";
    let dir = directory(&format!("{FULL}{second}"));
    let said = read(dir.path(), "2026-03-01T06:19:59Z", Checks::Relay).unwrap_err();
    assert!(said.contains("is in the wave at waves.toml:"), "{said}");
    let plan = read(dir.path(), "2026-03-01T06:20:00Z", Checks::Relay).unwrap();
    assert_eq!(plan.wave(0).unwrap().window.wave, "again");
    assert_eq!(plan.wave(1).unwrap().window.wave, "w");
}

#[test]
fn the_digest_is_of_what_is_understood() {
    let digest =
        |plan: &str| read(directory(plan).path(), NOW, Checks::Relay).unwrap().digest().to_owned();
    let full = digest(FULL);
    assert!(full.len() == 16 && full.bytes().all(|b| b.is_ascii_hexdigit()), "{full}");
    assert_eq!(full, digest(&format!("# a comment\n{FULL}")));
    let spelled = FULL
        .replace("\"2min\"", "\"120s\"")
        .replace("select = { customer = \"acme\" }", "instances = [\"acme-2\", \"acme-1\"]")
        .replace("2026-03-01T06:00:00Z", "2026-03-01T07:00:00+01:00");
    assert_eq!(full, digest(&spelled), "spelled in another way");
    let mut seen = vec![full];
    for (from, to) in [
        ("2min", "3min"),
        ("Example Mail", "Example"),
        ("\"cloud\"", "\"unnamed\""),
        ("30d", "29d"),
        ("2024-01-01", "2024-01-02"),
        ("parallel = 4", "parallel = 2"),
        ("managed", "hosted"),
        ("language = \"sv\"", "language = \"de\""),
        ("\"A\" = \"b\"", "\"A\" = \"c\""),
        ("192.0.2.1", "192.0.2.2"),
        ("on-complete", "at-close"),
        ("roll-back", "extend"),
        ("06:00:00Z", "06:00:01Z"),
    ] {
        let changed = FULL.replace(from, to);
        assert_ne!(changed, FULL, "{from}");
        let digest = digest(&changed);
        assert!(!seen.contains(&digest), "{from}");
        seen.push(digest);
    }
}

fn announce(dir: &Path, plan: &Plan) -> Announcement {
    let announcement =
        Announcement::new(&plan.waves[0], &plan.instances, time(NOW), "ada \"the\" lead".into());
    let announcement = Announcement { reason: Some("agreed: ü".into()), ..announcement };
    let guard = LockGuard::take(&dir.join("waves.toml")).unwrap();
    guard.write(std::slice::from_ref(&announcement)).unwrap();
    announcement
}

#[test]
fn what_is_announced_is_read_back_and_in_the_digest() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = directory(FULL);
    let mode = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(dir.path().join("waves.toml"), mode).unwrap();
    let before = read(dir.path(), NOW, Checks::Plan).unwrap();
    let announcement = announce(dir.path(), &before);
    let after = read(dir.path(), NOW, Checks::Plan).unwrap();
    assert_eq!(after.announced, [announcement]);
    assert_eq!(after.waves[0].announced, Some(time(NOW)));
    assert_ne!(after.digest(), before.digest());
    let lock = lock_of(&dir.path().join("waves.toml"));
    assert_eq!(lock.metadata().unwrap().permissions().mode() & 0o777, 0o640, "as the plan");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else stays");
}

#[test]
fn a_lock_that_cannot_be_written_leaves_the_old_one() {
    let dir = directory(FULL);
    let plan = read(dir.path(), NOW, Checks::Plan).unwrap();
    let guard = LockGuard::take(&dir.path().join("waves.toml")).unwrap();
    let lock = dir.path().join("waves.lock");
    std::fs::create_dir(&lock).unwrap();
    assert!(guard.write(&plan.announced).is_err(), "a directory is not replaced");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing half-written stays");
    let said = read(dir.path(), NOW, Checks::Plan).unwrap_err();
    assert!(said.contains("waves.lock is not a regular file"), "{said}");
}

#[test]
fn the_lock_cannot_be_taken_away_under_a_running_relay() {
    let dir = directory(FULL);
    let plain = read(dir.path(), NOW, Checks::Relay).unwrap();
    announce(dir.path(), &plain);
    let announced = read(dir.path(), NOW, Checks::Relay).unwrap();
    let lock = Path::new("waves.lock");
    let closes = announced.waves[0].window.closes;
    let early = closes.saturating_sub_ms(1);
    assert_eq!(check_kept(&plain, &announced, early, lock), Ok(()));
    assert_eq!(check_kept(&announced, &announced, early, lock), Ok(()));
    assert_eq!(check_kept(&announced, &plain, closes, lock), Ok(()), "what is over may go");
    let said = check_kept(&announced, &plain, early, lock).unwrap_err().to_string();
    assert_eq!(
        said,
        "waves.lock: no longer says that wave \"w\" was announced 2026-01-01T12:00:00Z by ada \
         \"the\" lead for 2026-03-01T06:00:00Z to 2026-03-01T06:20:00Z; put the file back as it \
         was, or, where it was taken back for good, restart"
    );
    let mut moved = announced.clone();
    moved.announced[0].closes = closes.saturating_add_ms(1);
    assert!(check_kept(&announced, &moved, early, lock).is_err());
}

#[test]
fn a_plan_that_has_the_name_of_its_lock_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waves.lock");
    std::fs::write(&path, FULL).unwrap();
    let when = When { now: time(NOW), checks: Checks::Relay };
    let said = read_plan(&PlanSource::Plan(path), when).unwrap_err().to_string();
    assert!(said.contains("name the plan waves.toml"), "{said}");
}
