//! The lock: what was announced of a plan's waves, in a file beside the plan. Owns the file, its
//! keys, and that a plan says no other than it; who may announce what is the command line's
//! business. Floor 1.
//!
//! The file is named after the plan (`waves.lock` of `waves.toml`), is written by
//! `wavegate plan announce` and travels with the plan to every host.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    diagnostic::{Diagnostic, Diagnostics, Place, Report},
    plan::{Drafts, is_estimated},
    reader::{self, Document, Section},
    values::{self, quote},
};
use crate::{
    config::plan::DraftWave,
    plan::{Announcement, Difference, Plan, Timestamp},
};

/// The largest lock: that of the largest plan.
const LOCK_MAX: u64 = 16 << 20;
/// Names of instances that one message lists.
const NAMES_SHOWN: usize = 3;

/// What the file says at its top.
const HEAD: &str = "\
# What was announced, and when: written by `wavegate plan announce`. It belongs to the plan and
# goes with it to every host. A wave that stands here keeps its window and its instances.
";

/// An announcement and where it stands.
pub(super) struct Entry {
    pub(super) announcement: Announcement,
    pub(super) place: Place,
    /// Whether it was read without an error.
    good: bool,
}

/// Where the lock of a plan is.
pub fn lock_of(plan: &Path) -> PathBuf {
    plan.with_extension("lock")
}

/// Reads the lock of a plan; without a file nothing was announced. `shown` is how the plan is
/// called in messages.
pub(super) fn read(plan: &Path, shown: &Path, report: &Report) -> Vec<Entry> {
    let (path, shown) = (lock_of(plan), lock_of(shown));
    let place = Place::of_file(&shown.display().to_string());
    if path == plan {
        report.error(&place, "is the name of the plan's lock too; name the plan waves.toml");
        return Vec::new();
    }
    let is_missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    if path.symlink_metadata().is_err_and(is_missing) {
        return Vec::new();
    }
    let Some(text) = reader::read_text(&path, LOCK_MAX, &place, report) else {
        return Vec::new();
    };
    let document = Document::new(&shown.display().to_string(), &text, report);
    let Some(table) = document.parse() else { return Vec::new() };
    let root = Section::root(&document, &table);
    let entries: Vec<_> = root.sections("announced").into_iter().map(read_entry).collect();
    root.finish();
    super::plan::repeated(
        entries.iter().map(|one| (one.announcement.wave.as_str(), &one.place)),
        |wave, place, other| {
            let (wave, other) = (quote(wave), other.short());
            report.error(place, format!("{wave} is also announced at {other}; remove one"));
        },
    );
    entries
}

fn read_entry(section: Section<'_>) -> Entry {
    let required = |key, example: &str, parse: fn(&str) -> Result<String, String>| {
        let found = section.require(key, example).and_then(|value| value.parse(example, parse));
        found.map(|found| found.value).unwrap_or_default()
    };
    let time = |key| {
        let example = "a time, such as \"2026-01-20T06:00:00Z\"";
        let found = section.require(key, example)?.parse(example, values::time);
        found.map(|found| found.value)
    };
    let errors = section.report().errors();
    let place = section.place();
    let id = section.get("id").map_or_else(|| place.clone(), |value| value.place());
    section.require("instances", "the names of its instances");
    let names = section.list("instances", "\"acme-prod-1\"", values::name).unwrap_or_default();
    let mut instances: Vec<String> = names.into_iter().map(|found| found.value).collect();
    instances.sort_unstable();
    let announcement = Announcement {
        wave: required("id", "the id of a wave", values::name),
        environment: required("environment", "its environment", values::name),
        opens: time("opens").unwrap_or_default(),
        closes: time("closes").unwrap_or_default(),
        instances,
        at: time("at").unwrap_or_default(),
        by: required("by", "who announced it", values::line),
        reason: section.parsed("reason", "a text", values::line).map(|found| found.value),
        late: section.boolean("late", false),
    };
    let good = section.report().errors() == errors;
    section.finish();
    Entry { announcement, place: id, good }
}

/// Notes in each wave when it was announced.
pub(super) fn note(lock: &[Entry], waves: &mut [DraftWave]) {
    for draft in waves {
        let of_wave = |entry: &&Entry| entry.announcement.wave == draft.wave.window.wave;
        draft.wave.announced = lock.iter().find(of_wave).map(|entry| entry.announcement.at);
    }
}

/// Refuses a plan that says otherwise than what was announced. A wave that is over may go.
pub(super) fn check(
    lock: &[Entry],
    drafts: &Drafts<'_>,
    plan: &Place,
    now: Timestamp,
    report: &Report,
) {
    let instances: Vec<_> = drafts.instances.iter().map(|one| one.instance.clone()).collect();
    for entry in lock.iter().filter(|entry| entry.good) {
        let announced = &entry.announcement;
        let told = format!("announced {announced} ({})", entry.place.short());
        let mut of_id = drafts.waves.iter().filter(|draft| draft.id() == announced.wave);
        let Some(draft) = of_id.next() else {
            if !announced.is_over(now) {
                let message = format!(
                    "wave {} is not here, and was {told} for {} to {} with {}; put it back: its \
                     customers were told",
                    quote(&announced.wave),
                    announced.opens,
                    announced.closes,
                    some(&announced.instances)
                );
                report.error(&Place { at: None, key: String::new(), ..plan.clone() }, message);
            }
            continue;
        };
        if !draft.has_window() {
            continue; // said of its times
        }
        let differences = announced.differences(&draft.wave, &instances);
        let moved = differences.iter().any(|one| matches!(one, Difference::Opens(_)));
        for difference in differences {
            // An end that is not given moves with the beginning.
            if moved && is_estimated(draft) && matches!(difference, Difference::Closes(_)) {
                continue;
            }
            let (place, message) = describe(&difference, draft, drafts, &told);
            report.error(place, message);
        }
    }
}

/// What to say of a difference, and where.
fn describe<'a>(
    difference: &Difference,
    draft: &'a DraftWave,
    drafts: &'a Drafts<'_>,
    told: &str,
) -> (&'a Place, String) {
    match difference {
        Difference::Environment(was) => (
            draft.environment.as_ref().unwrap_or(&draft.place),
            format!("was {told} for environment {}; put that back", quote(was)),
        ),
        Difference::Opens(was) => (
            draft.opens.as_ref().unwrap_or(&draft.place),
            format!("was {told} to open at {was}, which cannot be changed; put that back"),
        ),
        Difference::Closes(was) if is_estimated(draft) => (
            draft.end(),
            format!(
                "would close at {} by the estimate, and was {told} to close at {was}; add \
                 `closes = \"{was}\"`",
                draft.wave.window.closes
            ),
        ),
        Difference::Closes(was) => (
            draft.end(),
            format!("was {told} to close at {was}, which cannot be changed; put that back"),
        ),
        Difference::Members { added, missing } => {
            let of_name = |name: &String| {
                let members = draft.wave.instances.iter().zip(&draft.members);
                let mut named =
                    members.filter(|(index, _)| drafts.instances[**index].instance.name == *name);
                named.next().map(|(_, place)| place)
            };
            let place = added.first().and_then(of_name).unwrap_or(&draft.place);
            let mut what = Vec::new();
            if !missing.is_empty() {
                what.push(format!("with {}, which it lacks: put that back", some(missing)));
            }
            if !added.is_empty() {
                what.push(format!(
                    "without {}: put that in another wave{}",
                    some(added),
                    if draft.select.is_some() {
                        ", and name this wave's own in `instances` instead of `select`"
                    } else {
                        ""
                    }
                ));
            }
            (place, format!("was {told} {}", what.join("; and ")))
        }
    }
}

/// `instances "a", "b" and 7 more`.
fn some(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(|name| quote(name)).collect();
    let kind = if names.len() == 1 { "instance" } else { "instances" };
    match names.len() - shown.len() {
        0 => format!("{kind} {}", shown.join(", ")),
        more => format!("{kind} {} and {more} more", shown.join(", ")),
    }
}

/// Refuses to take back, by a reload, what the plan in force has as announced: a lock that was
/// not deployed with its plan, or was edited.
pub fn check_kept(old: &Plan, new: &Plan, now: Timestamp, lock: &Path) -> Result<(), Diagnostics> {
    let mut found = Vec::new();
    for was in old.announced.iter().filter(|was| !was.is_over(now)) {
        if new.announced.iter().any(|is| is.is_same_slot(was)) {
            continue;
        }
        let message = format!(
            "no longer says that wave {} was announced {was} for {} to {}; put the file back as it \
             was, or, where it was taken back for good, restart",
            quote(&was.wave),
            was.opens,
            was.closes
        );
        found.push(Diagnostic::of_file(lock.display(), message));
    }
    if found.is_empty() { Ok(()) } else { Err(Diagnostics(found)) }
}

/// Keeps others from announcing at the same time, until it is dropped.
#[derive(Debug)]
pub struct LockGuard {
    directory: File,
    path: PathBuf,
    /// Whose permissions a new lock gets.
    plan: PathBuf,
}

impl LockGuard {
    /// Waits for whoever announces in the same directory.
    pub fn take(plan: &Path) -> io::Result<Self> {
        let path = lock_of(plan);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new(".")))?;
        rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(Self { directory, path, plan: plan.to_owned() })
    }

    /// Writes the lock anew. When this returns without an error it is on disk, whole; with one,
    /// the old file is there, whole.
    pub fn write(&self, announced: &[Announcement]) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut beside = tempfile::Builder::new()
            .prefix(".waves.lock.")
            .tempfile_in(parent.unwrap_or(Path::new(".")))?;
        beside.write_all(render(announced).as_bytes())?;
        // Whoever may read the plan may read its lock.
        let like = std::fs::metadata(&self.path).or_else(|_| std::fs::metadata(&self.plan))?;
        let mode = like.permissions().mode() & 0o666;
        beside.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        beside.as_file().sync_all()?;
        beside.persist(&self.path).map_err(|error| error.error)?;
        self.directory.sync_all()
    }
}

fn render(announced: &[Announcement]) -> String {
    let mut text = HEAD.to_owned();
    let string = |text: &str| toml::Value::String(text.to_owned()).to_string();
    for one in announced {
        let names: Vec<String> = one.instances.iter().map(|name| string(name)).collect();
        let Announcement { wave, environment, opens, closes, at, by, .. } = one;
        text += &format!(
            "\n[[announced]]\nid = {}\nenvironment = {}\nopens = \"{opens}\"\ncloses = \
             \"{closes}\"\ninstances = [{}]\nat = \"{at}\"\nby = {}\n",
            string(wave),
            string(environment),
            names.join(", "),
            string(by)
        );
        if let Some(reason) = &one.reason {
            text += &format!("reason = {}\n", string(reason));
        }
        if one.late {
            text += "late = true\n";
        }
    }
    text
}
