//! Disks that are full, read-only, damaged or somebody else's: a clear message, and nothing lost
//! that can be read.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use wavegate_tests::harness::{
    Client, Closed, Config, PATIENCE, Relay, Watch, binary, recording, sink_at, until,
};
use wavegate_tests::sink::{Extensions, SinkHandle};
use wavegate_tests::tool::require;

const KNOWN: &str = "extensions = [\"8BITMIME\"]\nhandoff = \"queued\"";
const EAGER: &str = "eject_after = 1\neject_for = \"20ms\"\neject_max = \"50ms\"";
/// What the configuration of the relay is wrong or cannot be used ends with.
const EX_CONFIG: Option<i32> = Some(78);

fn config(target: std::net::SocketAddr) -> Config {
    Config::to(&[target]).upstream(KNOWN).upstream(EAGER).relay("received = false").admin()
}

/// A message with its name in front and at the end, and so many bytes between.
fn message(name: &str, size: usize) -> String {
    let lines = "0123456789 0123456789 0123456789 0123456789 0123456789 01234567\r\n";
    format!("Subject: {name}\r\n\r\n{}end of {name}\r\n", lines.repeat(size / lines.len()))
}

fn send(client: &mut Client, name: &str, size: usize) -> String {
    client.transact((message(name, size) + ".\r\n").as_bytes())
}

#[track_caller]
fn taken(client: &mut Client, name: &str, size: usize) {
    let reply = send(client, name, size);
    assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{name}: {reply}");
}

/// What arrived, by name, with how often; each must be whole.
fn arrived(sink: &SinkHandle) -> BTreeMap<String, usize> {
    let mut arrived = BTreeMap::new();
    for got in sink.messages() {
        let text = String::from_utf8(got.content.unwrap()).unwrap();
        let name = text.lines().next().unwrap().strip_prefix("Subject: ").unwrap();
        let size = text.len() - message(name, 0).len();
        assert!(text == message(name, size), "{name} is not what was sent");
        *arrived.entry(name.to_owned()).or_default() += 1;
    }
    arrived
}

fn once<S: AsRef<str>>(names: &[S]) -> BTreeMap<String, usize> {
    names.iter().map(|name| (name.as_ref().to_owned(), 1)).collect()
}

fn waiting(relay: &Relay, count: f64) {
    relay.wait_metrics("what is left in the spool", |metrics| {
        metrics.sum("spool_recipients", &[]) == count
    });
}

/// Sends until there is no room: the names of what was taken.
fn fill(client: &mut Client, size: usize) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let name = format!("fill-{size}-{}", names.len());
        let reply = send(client, &name, size);
        if reply.starts_with("452 4.3.1") {
            return names;
        }
        assert!(reply.starts_with("250 2.0.0 wavegate: queued as "), "{reply}");
        names.push(name);
        assert!(names.len() < 1000, "it is never full");
    }
}

/// From a full spool whose upstream is down to one that takes mail again.
fn full_and_back(config: &Config, down: Closed) {
    let relay = Relay::start(config);
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    let mut names = fill(&mut client, 200_000);
    assert!(names.len() > 10, "{names:?}");
    // Each time, and for a message that spills too; a small one may still have room.
    assert!(send(&mut client, "more", 200_000).starts_with("452 4.3.1"));
    assert!(send(&mut client, "large", 5_000_000).starts_with("452 4.3.1"));
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    assert!(sink.wait_messages(names.len() as u64, PATIENCE), "{:?}", sink.counts());
    waiting(&relay, 0.0);
    until("there is room again", || {
        let reply = send(&mut client, "after", 200_000);
        reply.starts_with("250").then(|| names.push("after".into()))
    });
    taken(&mut client, "large after", 5_000_000);
    names.push("large after".into());
    assert!(sink.wait_messages(names.len() as u64, PATIENCE));
    waiting(&relay, 0.0);
    assert_eq!(arrived(&sink), once(&names));
    assert_eq!(watch.finish().sum("in_doubt_total", &[]), 0.0);
}

#[test]
fn the_quota_is_reached_and_left_again() {
    let down = Closed::new();
    let config = config(down.addr()).section("[spool]\nquota = \"16MiB\"\nreserve = \"1MiB\"");
    full_and_back(&config, down);
}

/// A file system of its own in memory. Only root can mount it.
struct Disk(TempDir);

impl Disk {
    /// None where it is to be skipped (`mount` in `WAVEGATE_SKIP`).
    fn new(size: &str) -> Option<Self> {
        require("mount")?;
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(&format!("size={size},mode=700"));
        Some(disk)
    }

    fn mount(&self, options: &str) {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said} (not root? name mount in WAVEGATE_SKIP)");
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn state_dir(&self) -> String {
        format!("state_dir = \"{}\"", self.path().join("state").display())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a relay of a failed test may have files open yet.
        let _status = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn the_reserve_of_a_disk_is_reached_and_left_again() {
    let Some(disk) = Disk::new("40M") else { return };
    let down = Closed::new();
    let config = config(down.addr()).relay(&disk.state_dir());
    full_and_back(&config.section("[spool]\nreserve = \"16MiB\""), down);
}

#[test]
fn a_disk_that_others_have_filled_loses_nothing() {
    let Some(disk) = Disk::new("40M") else { return };
    let down = Closed::new();
    let config = config(down.addr()).relay(&disk.state_dir());
    let relay = Relay::start(&config.section("[spool]\nreserve = \"0B\""));
    let watch = Watch::over(&relay, None);
    let mut client = relay.hello();
    let mut names: Vec<String> = (0..20).map(|number| format!("before-{number}")).collect();
    names.iter().for_each(|name| taken(&mut client, name, 50_000));
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 64 << 20]).unwrap_err();
    assert!(send(&mut client, "refused", 50_000).starts_with("452 4.3.1"));
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    // What is delivered cannot be written down, or no attempt is made: neither is a loss.
    until("it says so", || relay.log().contains("spool").then_some(()));
    assert!(send(&mut client, "refused", 50_000).starts_with("452 4.3.1"));
    fs::remove_file(filler).unwrap();
    until("there is room again", || {
        let reply = send(&mut client, "after", 50_000);
        reply.starts_with("250").then(|| names.push("after".into()))
    });
    waiting(&relay, 0.0);
    assert_eq!(arrived(&sink), once(&names));
    assert_eq!(watch.finish().sum("in_doubt_total", &[]), 0.0);
}

#[test]
fn a_read_only_disk_is_said_at_the_start() {
    let Some(disk) = Disk::new("16M") else { return };
    let sink = recording();
    let reserve = "[spool]\nreserve = \"1MiB\"";
    let mut relay = Relay::start(&config(sink.addr()).relay(&disk.state_dir()).section(reserve));
    assert_eq!(relay.terminate().code(), Some(0));
    disk.mount("remount,ro");
    let (code, said) = relay.restart_fails();
    assert_eq!(code, EX_CONFIG, "{said}");
    assert!(said.contains("wavegate: ") && said.contains("state"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    disk.mount("remount,rw");
    relay.restart();
    taken(&mut relay.hello(), "again", 100);
}

/// A relay that has taken these and was ended in order, before it could deliver one.
fn with_mail(names: &[(&str, usize)]) -> (Relay, Closed) {
    let down = Closed::new();
    let mut relay = Relay::start(&config(down.addr()));
    let mut client = relay.hello();
    names.iter().for_each(|(name, size)| taken(&mut client, name, *size));
    drop(client);
    assert_eq!(relay.terminate().code(), Some(0));
    (relay, down)
}

fn spool(relay: &Relay) -> PathBuf {
    relay.folder().join("state/spool")
}

/// The files of the spool whose path in it begins so.
fn files(relay: &Relay, begins: &str) -> Vec<PathBuf> {
    let root = spool(relay);
    let folder = if begins.ends_with('/') { root.join(begins) } else { root.clone() };
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let fits = |path: &PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        path.is_file() && name.starts_with(begins)
    };
    let mut found: Vec<_> = entries.filter(fits).collect();
    found.sort();
    assert!(!found.is_empty(), "no file {begins} in {}", root.display());
    found
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Turns a byte of the only place in these files where `words` stand.
fn flip(paths: &[PathBuf], words: &str) {
    for path in paths {
        let bytes = fs::read(path).unwrap();
        if let Some(at) = memchr::memmem::find(&bytes, words.as_bytes()) {
            return change(path, |bytes| bytes[at] ^= 0x20);
        }
    }
    panic!("{words} are in none of {paths:?}");
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let (mut relay, _down) = with_mail(&[("one", 100)]);
    let journal = files(&relay, "journal").pop().unwrap();
    let good = fs::read(&journal).unwrap();
    change(&journal, |bytes| {
        bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let sum = crc32(&bytes[..60]);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
    });
    let (code, said) = relay.restart_fails();
    assert_eq!(code, EX_CONFIG, "{said}");
    assert!(said.contains("format 2") && said.contains("newer program"), "{said}");
    // The newer program would find it as it was.
    fs::write(&journal, good).unwrap();
    relay.restart();
    waiting(&relay, 1.0);
}

/// CRC-32 as in IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
    let each = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), step);
    !bytes.iter().fold(!0, each)
}

#[test]
fn a_directory_that_another_relay_owns_is_left_to_it() {
    let down = Closed::new();
    let mut owner = Relay::start(&config(down.addr()));
    let mut client = owner.hello();
    taken(&mut client, "one", 100);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let state = format!("state_dir = \"{}\"", owner.folder().join("state").display());
    fs::write(&path, config(down.addr()).relay(&state).to_string()).unwrap();
    let output = Command::new(binary()).args(["run", "--config"]).arg(&path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), EX_CONFIG, "{said}");
    assert!(said.contains("owned by another process") && !said.contains("panicked"), "{said}");
    assert!(said.contains(&owner.id().to_string()), "it says whose: {said}");
    // The owner did not notice: also what it holds in the spill directory is still there.
    taken(&mut client, "two", 5_000_000);
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    assert!(sink.wait_messages(2, PATIENCE));
    waiting(&owner, 0.0);
    assert_eq!(arrived(&sink), once(&["one", "two"]));
    owner.assert_alive();
}

/// Starts it over a damaged spool: all but `lost` arrive once, and the log has these words.
fn all_but(mut relay: Relay, down: Closed, names: &[&str], left: f64, words: &str) {
    let sink = sink_at(down.free(), Extensions::default(), &[]);
    relay.restart();
    let watch = Watch::over(&relay, None);
    assert!(sink.wait_messages(names.len() as u64, PATIENCE), "{:?}", sink.counts());
    waiting(&relay, left);
    until("the log says so", || {
        relay.log().lines().any(|line| line.contains("ERROR") && line.contains(words)).then_some(())
    });
    assert_eq!(arrived(&sink), once(names));
    assert!(!relay.log().contains("panicked"));
    // What cannot be read does no harm to the upstream, and new mail goes on.
    taken(&mut relay.hello(), "new", 100);
    assert!(sink.wait_messages(names.len() as u64 + 1, PATIENCE));
    waiting(&relay, left);
    watch.finish();
}

#[test]
fn a_flipped_byte_in_a_message_keeps_that_one_back() {
    let (relay, down) = with_mail(&[("one", 1000), ("two", 1000), ("three", 1000)]);
    flip(&files(&relay, "seg"), "end of two");
    all_but(relay, down, &["one", "three"], 1.0, "cannot be read");
}

#[test]
fn a_flipped_byte_in_an_envelope_keeps_that_one_back() {
    let (relay, down) = with_mail(&[("one", 1000), ("two", 1000)]);
    // The first record is that of the first message.
    flip(&files(&relay, "seg"), "customer");
    all_but(relay, down, &["two"], 1.0, "cannot be read");
}

#[test]
fn a_flipped_byte_in_a_large_body_keeps_that_one_back() {
    let (relay, down) = with_mail(&[("one", 1000), ("large", 5_000_000), ("three", 1000)]);
    flip(&files(&relay, "bodies/"), "end of large");
    all_but(relay, down, &["one", "three"], 1.0, "cannot be read");
}

#[test]
fn a_large_body_that_is_gone_is_reported() {
    let (relay, down) = with_mail(&[("one", 1000), ("large", 5_000_000)]);
    files(&relay, "bodies/").iter().for_each(|path| fs::remove_file(path).unwrap());
    all_but(relay, down, &["one"], 0.0, "damage in the spool");
}

#[test]
fn a_segment_that_is_cut_off_costs_what_was_cut_off() {
    let (relay, down) = with_mail(&[("one", 1000), ("two", 1000), ("three", 1000)]);
    let segment = files(&relay, "seg").pop().unwrap();
    change(&segment, |bytes| {
        let at = memchr::memmem::find(bytes, b"end of three").unwrap();
        bytes.truncate(at);
    });
    all_but(relay, down, &["one", "two"], 0.0, "damage in the spool");
}

#[test]
fn a_damaged_journal_costs_no_message() {
    let names = ["one", "two", "three"];
    for place in [0_usize, 20, 80] {
        let (relay, down) = with_mail(&names.map(|name| (name, 1000)));
        let journal = files(&relay, "journal").pop().unwrap();
        change(&journal, |bytes| bytes[place] ^= 1);
        all_but(relay, down, &names, 0.0, "damage in the spool");
    }
    let (relay, down) = with_mail(&names.map(|name| (name, 1000)));
    let journal = files(&relay, "journal").pop().unwrap();
    change(&journal, |bytes| bytes.truncate(bytes.len() - 5));
    all_but(relay, down, &names, 0.0, "damage in the spool");
}
