//! `wavegate plan notice`: what each contact of a wave is told, printed or written to files; with
//! `--send`, told. Owns the arguments and how notices look on standard output and in a directory;
//! the words are those of `wavegate-notice`. Floor 4.
//!
//! `letters` makes notices of the plan, `send` decides who gets one, `post` hands them to a relay,
//! `record` remembers what was sent.

mod letters;
mod post;
mod record;
mod send;

use std::{
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use wavegate_notice::{Language, Notice};

use self::{
    letters::{Addressee, Letters},
    post::Target,
    record::{Record, RecordError},
};
use super::{From, announced, now, wave};
use crate::{
    cli::{Failed, exit, output::list, time},
    config::{Checks, Diagnostic, Diagnostics, PlanFile},
    plan::{Timestamp, Wave},
};

/// Exit code where not everybody is told, and trying again would not help: the wave has no contact,
/// or somebody must look at what became of a notice.
const NOT_TOLD: u8 = 1;
/// Addresses that a message lists.
const LISTED: usize = 10;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct NoticeArgs {
    #[command(flatten)]
    from: From,
    /// In this language (en, fr, de, it, pt-BR, sv); by default each contact's own.
    #[arg(long, value_name = "TAG", value_parser = language)]
    lang: Option<Language>,
    /// As what.
    #[arg(long, value_enum, default_value_t = Format::Text, conflicts_with = "send")]
    format: Format,
    /// Only to this address; can be given several times.
    #[arg(long, value_name = "ADDRESS")]
    contact: Vec<String>,
    /// Write a file for each into this directory.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "send")]
    out: Option<PathBuf>,
    /// As of when, in RFC 3339; by default now.
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "send")]
    at: Option<Timestamp>,
    /// Hand each to the relay as mail, and remember that beside the plan. What was sent is not
    /// sent again.
    #[arg(long)]
    send: bool,
    /// The relay to hand them to; by default the first listener of --config.
    #[arg(long, value_name = "HOST:PORT", value_parser = Target::parse, requires = "send")]
    relay: Option<Target>,
    /// Once more to those who have it: it replaces what they got.
    #[arg(long, requires = "send")]
    again: bool,
    /// Although it is later than the environment asks for; needs a reason.
    #[arg(long, requires_all = ["send", "reason"])]
    late: bool,
    /// Why it is late: kept with what was sent.
    #[arg(long, value_name = "TEXT", value_parser = crate::config::one_line, requires = "late")]
    reason: Option<String>,
    /// The wave.
    #[arg(value_name = "WAVE")]
    wave: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Plain text.
    Text,
    /// A page.
    Html,
    /// A mail, with text, page and calendar entry.
    Eml,
    /// Facts and texts, for programs.
    Json,
    /// The calendar entry alone.
    Ics,
}

/// One notice and for whom it is.
struct Ready {
    to: Addressee,
    notice: Notice,
    message_id: String,
}

/// Prints, writes or sends the notices of a wave.
pub(super) fn notice(args: &NoticeArgs, out: &mut dyn Write) -> anyhow::Result<u8> {
    let now = now(args.at);
    let file = args.from.read(now, Checks::Relay)?;
    let wave = wave(&file.plan, &args.wave)?;
    let chosen = choose(&file, wave, &args.contact)?;
    if chosen.is_empty() {
        let said = format!("wave {} has no contact at all: nobody is told of it", args.wave);
        return Err(Failed::new(NOT_TOLD, said).into());
    }
    let needs_sender = args.send || args.format == Format::Eml;
    let letters =
        Letters::new(&file, wave, args.lang, now, needs_sender).map_err(|found| wrong(&found))?;
    if args.send {
        return send::send(args, &file, wave, &letters, chosen, out);
    }
    let announcement = announced(&file.plan, wave);
    let record = Record::read(&file.path, announcement).map_err(|error| failed(&error))?;
    let ready =
        ready(&letters, chosen, |key| record.sequence(key)).map_err(|found| wrong(&found))?;
    match &args.out {
        Some(directory) => write_files(&ready, wave, args.format, directory, &file.path, out)?,
        None => print(&ready, args.format, out)?,
    }
    Ok(0)
}

fn language(tag: &str) -> Result<Language, String> {
    Language::parse(tag).map_err(|error| error.to_string())
}

fn wrong(found: &Diagnostics) -> Failed {
    Failed::new(exit::CONFIG, format!("the plan:\n{found}"))
}

fn failed(error: &RecordError) -> Failed {
    let code = match &error {
        RecordError::Io(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
            exit::PERMISSION
        }
        RecordError::Io(..) => exit::IO,
        RecordError::Busy(_) => exit::TEMPORARY,
        RecordError::Broken(..) | RecordError::Name(_) => exit::CONFIG,
    };
    Failed::new(code, error.to_string())
}

/// A warning; where it cannot be told, the rest is done all the same.
fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "wavegate: warning: {text}");
}

/// The addressees of a wave, or those of them that were named.
fn choose(file: &PlanFile, wave: &Wave, named: &[String]) -> Result<Vec<Addressee>, Failed> {
    let (mut all, warnings) = letters::addressees(&file.plan, wave);
    warnings.iter().for_each(|warning| warn(warning));
    let named: Vec<String> = named.iter().map(|name| name.to_ascii_lowercase()).collect();
    if let Some(unknown) = named.iter().find(|name| all.iter().all(|one| one.key != **name)) {
        let mut there: Vec<&str> =
            all.iter().take(LISTED).map(|one| one.contact.email.as_str()).collect();
        if all.len() > LISTED {
            there.push("...");
        }
        let id = &wave.window.wave;
        let said = format!("wave {id} has no contact {unknown:?}; there are: {}", list(&there));
        return Err(Failed::new(exit::USAGE, said));
    }
    all.retain(|one| named.is_empty() || named.contains(&one.key));
    Ok(all)
}

/// All notices, or all that keeps any of them from being made.
fn ready(
    letters: &Letters<'_>,
    chosen: Vec<Addressee>,
    sequence: impl Fn(&str) -> u32,
) -> Result<Vec<Ready>, Diagnostics> {
    let mut wrong: Vec<Diagnostic> = Vec::new();
    let mut ready = Vec::new();
    for to in chosen {
        let sequence = sequence(&to.key);
        match letters.notice(&to, sequence) {
            Ok(notice) => {
                let message_id = letters.message_id(&to, sequence);
                ready.push(Ready { to, notice, message_id });
            }
            // What all share is wrong once.
            Err(error) if wrong.contains(&error) => {}
            Err(error) => wrong.push(error),
        }
    }
    if wrong.is_empty() { Ok(ready) } else { Err(Diagnostics(wrong)) }
}

impl Ready {
    fn render(&self, format: Format) -> Result<Vec<u8>, Failed> {
        Ok(match format {
            Format::Text => self.notice.render_text().into_bytes(),
            Format::Html => self.notice.render_html().into_bytes(),
            Format::Json => self.notice.render_json().into_bytes(),
            Format::Ics => self.notice.calendar().into_bytes(),
            Format::Eml => self.mail()?,
        })
    }

    fn mail(&self) -> Result<Vec<u8>, Failed> {
        let mail = self.notice.render_eml(&self.message_id);
        mail.map_err(|error| Failed::new(exit::CONFIG, format!("the plan: {error}")))
    }

    /// `address (language): instances`.
    fn heading(&self) -> String {
        let Addressee { contact, instances, .. } = &self.to;
        format!("{} ({}): {}", contact.email, self.notice.language(), list(instances))
    }
}

/// All on standard output. A single page, mail or calendar entry comes as it is, so that it can be
/// piped.
fn print(ready: &[Ready], format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    if format == Format::Json {
        let all: Vec<String> =
            ready.iter().map(|one| one.notice.render_json().trim_end().to_owned()).collect();
        writeln!(out, "[\n{}\n]", all.join(",\n"))?;
        return Ok(());
    }
    let heads = ready.len() > 1 || format == Format::Text;
    for (number, one) in ready.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        if heads {
            writeln!(out, "==> {} <==", one.heading())?;
        }
        out.write_all(&one.render(format)?)?;
    }
    Ok(())
}

/// One file each, whole or not at all. Whoever may read the plan may read them.
fn write_files(
    ready: &[Ready],
    wave: &Wave,
    format: Format,
    directory: &Path,
    plan: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let failed = |path: &Path, error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => exit::PERMISSION,
            _ => exit::IO,
        };
        Failed::new(code, format!("{}: {error}", path.display()))
    };
    let put = |path: &Path, bytes: &[u8]| {
        let mode = std::fs::metadata(plan)?.permissions().mode() & 0o666;
        let mut beside = tempfile::Builder::new().prefix(".notice.").tempfile_in(directory)?;
        beside.write_all(bytes)?;
        beside.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        beside.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for one in ready {
        let path = directory.join(file_name(&wave.window.wave, &one.to, format));
        put(&path, &one.render(format)?).map_err(|error| failed(&path, error))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

/// `WAVE~CUSTOMER~ADDRESS.ENDING`: different for different ones, whatever they are.
fn file_name(wave: &str, to: &Addressee, format: Format) -> String {
    let ending = match format {
        Format::Text => "txt",
        Format::Html => "html",
        Format::Eml => "eml",
        Format::Json => "json",
        Format::Ics => "ics",
    };
    let [wave, customer, contact] = [wave, &to.customer, &to.key].map(part);
    format!("{wave}~{customer}~{contact}.{ending}")
}

/// Longest part of a file name; three of them and an ending fit into 255 bytes.
const PART_MAX: usize = 72;

/// What is no letter, digit or one of `@._-` becomes `_`; what was changed has a digest behind it, so that
/// it stays different from all others.
fn part(text: &str) -> String {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "@._-".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && text.len() <= PART_MAX && text.chars().all(is_good) {
        return text.to_owned();
    }
    let kept = text.chars().map(|c| if is_good(c) { c } else { '_' });
    let kept: String =
        kept.skip_while(|c| !c.is_ascii_alphanumeric()).take(PART_MAX - 17).collect();
    let digest = blake3::hash(text.as_bytes()).to_hex();
    format!("{kept}+{}", &digest[..16])
}

#[cfg(test)]
mod tests;
