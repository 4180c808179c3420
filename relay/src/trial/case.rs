//! Cases and the files that they stand in. Floor 4.
//!
//! A file is TOML or JSON: what all its cases begin with, then `case`s with what each has
//! otherwise. Tables are merged, member by member; everything else is replaced. Every mistake is
//! reported with its file and case.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::{
    expect::{self, Expected, Problem, Subject},
    question::{question, transaction},
};
use crate::{config, decision::record::Question};

/// Bytes of a file of cases: what people write is far smaller.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Cases in all: each is asked several times.
const MAX_CASES: usize = 10_000;
/// Mistakes that are told; the others are like them.
const MAX_MISTAKES: usize = 50;
/// What `[[policy]]` gives a policy where it does not say otherwise, and allows it.
const MEMORY: usize = 16 << 20;
const MEMORY_BOUNDS: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
const TIMEOUT: Duration = Duration::from_millis(50);
const TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// The upstreams there are, where a case does not say: those of an instance that says nothing.
const UPSTREAMS: [&str; 2] = ["legacy", "cloud"];
/// Members of a file and of a case.
const COMMON: [&str; 10] = [
    "ask",
    "settings",
    "upstreams",
    "tables",
    "memory",
    "timeout",
    "transaction",
    "upstream",
    "recipients",
    "outcome",
];

/// One question with the answer that is right.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file that it stands in, as it was named.
    pub file: String,
    /// Its line, where the file is TOML.
    pub line: Option<usize>,
    /// Its name, once in a file.
    pub name: String,
    /// How its file is written.
    pub notation: Notation,
    /// How the policy is configured.
    pub setup: Setup,
    /// What is asked and expected.
    pub check: Check,
    /// `expect`, as it stands there.
    pub expect: Value,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// TOML.
    Toml,
    /// JSON.
    Json,
}

/// What a relay's configuration gives a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setup {
    /// Settings as JSON text.
    pub settings: String,
    /// Names of all upstreams.
    pub upstreams: Vec<String>,
    /// Tables by name.
    pub tables: BTreeMap<String, BTreeMap<String, String>>,
    /// Bytes of one instance's memory.
    pub memory: usize,
    /// Bound of one call. It is counted in fuel, so that it is the same on every machine.
    pub timeout: Duration,
}

/// What a case checks.
#[derive(Clone, Debug)]
pub enum Check {
    /// An answer.
    Answer {
        /// The question.
        question: Box<Question>,
        /// What is right.
        expected: Expected,
    },
    /// That the settings are refused, with these problems.
    Refused(Vec<Problem>),
}

/// What is wrong with a file of cases, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: String,
    /// Line of the case, or of the mistake; none where it is not known.
    pub line: Option<usize>,
    /// Name of the case; none where it is about the whole file.
    pub case: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(case) = &self.case {
            write!(f, ": case {case:?}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with the cases: their author's fault. Or they cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Mistakes {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There are none: nothing would be tested.
    #[error("{}: no cases: write them into files that end in .toml or .json", .0.display())]
    None(PathBuf),
    /// What is in them is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<Mistake>),
}

/// Reads the cases of a file, or of all files of a directory that end in `.toml` or `.json`, in
/// the order of their names.
pub fn read(path: &Path) -> Result<Vec<Case>, Mistakes> {
    let mut cases = Vec::new();
    let mut mistakes = Vec::new();
    for file in files(path)? {
        let text = text(&file).map_err(|error| Mistakes::Read { path: file.clone(), error })?;
        match parse(&file.display().to_string(), &text, notation(&file)) {
            Ok(found) => cases.extend(found),
            Err(found) => mistakes.extend(found),
        }
        if cases.len() > MAX_CASES {
            mistakes.push(Mistake {
                file: file.display().to_string(),
                line: None,
                case: None,
                message: format!("with it there are more than {MAX_CASES} cases: give fewer files"),
            });
            break;
        }
    }
    if !mistakes.is_empty() {
        mistakes.truncate(MAX_MISTAKES);
        return Err(Mistakes::Wrong(mistakes));
    }
    if cases.is_empty() { Err(Mistakes::None(path.to_owned())) } else { Ok(cases) }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Mistakes> {
    let failed = |error| Mistakes::Read { path: path.to_owned(), error };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let known = file.extension().is_some_and(|ending| ending == "toml" || ending == "json");
        if known && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn text(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {} MiB", MAX_FILE >> 20)));
    }
    Ok(text)
}

fn notation(file: &Path) -> Notation {
    match file.extension().is_some_and(|ending| ending == "json") {
        true => Notation::Json,
        false => Notation::Toml,
    }
}

/// The cases of one file.
fn parse(file: &str, text: &str, notation: Notation) -> Result<Vec<Case>, Vec<Mistake>> {
    let mistake = |line, case: Option<&str>, message| Mistake {
        file: file.to_owned(),
        line,
        case: case.map(str::to_owned),
        message,
    };
    let document = match notation {
        Notation::Toml => from_toml(text),
        Notation::Json => from_json(text),
    };
    let (mut defaults, cases) =
        document.map_err(|(line, message)| vec![mistake(line, None, message)])?;
    // Said once, and not again for each case.
    if let Err(message) = check_defaults(&defaults) {
        return Err(vec![mistake(None, None, message)]);
    }
    defaults.remove("case");
    let mut found: Vec<Case> = Vec::new();
    let mut mistakes = Vec::new();
    for (index, (line, own)) in cases.into_iter().enumerate() {
        let name = own.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let wanted = "has no name: say in one line what is right, such as name = \"mail in a \
                          window is held\"";
            mistakes.push(mistake(line, None, format!("case {} {wanted}", index + 1)));
            continue;
        }
        if found.iter().any(|known| known.name == name) {
            mistakes.push(mistake(line, Some(&name), "is there twice: one name, one case".into()));
            continue;
        }
        match case(&defaults, own) {
            Ok((setup, check, expect)) => {
                let file = file.to_owned();
                found.push(Case { file, line, name, notation, setup, check, expect });
            }
            Err(message) => mistakes.push(mistake(line, Some(&name), message)),
        }
    }
    if mistakes.is_empty() { Ok(found) } else { Err(mistakes) }
}

type Document = (Map<String, Value>, Vec<(Option<usize>, Map<String, Value>)>);
type Wrong = (Option<usize>, String);

const NO_CASES: &str = "has no cases: write each as [[case]] with name and expect";

fn from_toml(text: &str) -> Result<Document, Wrong> {
    let line_of =
        |at: usize| text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
    let root = DeTable::parse(text).map_err(|error| {
        let line = error.span().map(|span| line_of(span.start));
        (line, format!("not TOML: {}", error.message()))
    })?;
    let mut defaults = Map::new();
    let mut cases = Vec::new();
    for (key, value) in root.get_ref() {
        let line = Some(line_of(value.span().start));
        if key.get_ref() != "case" {
            let value = json(value.get_ref()).map_err(|message| (line, message))?;
            defaults.insert(key.get_ref().to_string(), value);
            continue;
        }
        let list = value.get_ref().as_array().ok_or((line, NO_CASES.to_owned()))?;
        for one in list {
            let line = Some(line_of(one.span().start));
            match json(one.get_ref()).map_err(|message| (line, message))? {
                Value::Object(members) => cases.push((line, members)),
                _ => return Err((line, "a case is a table: begin it with [[case]]".to_owned())),
            }
        }
    }
    if cases.is_empty() { Err((None, NO_CASES.to_owned())) } else { Ok((defaults, cases)) }
}

fn from_json(text: &str) -> Result<Document, Wrong> {
    let root: Value = serde_json::from_str(text)
        .map_err(|error| (Some(error.line()), format!("not JSON: {error}")))?;
    let Value::Object(mut defaults) = root else {
        return Err((None, "is no object with a member \"case\"".to_owned()));
    };
    let wrong = || (None, "has no cases: write them as objects in a list, \"case\"".to_owned());
    let Some(Value::Array(list)) = defaults.remove("case") else { return Err(wrong()) };
    let cases = list.into_iter().map(|one| match one {
        Value::Object(members) => Ok((None, members)),
        _ => Err((None, "a case is an object with name and expect".to_owned())),
    });
    let cases = cases.collect::<Result<Vec<_>, _>>()?;
    if cases.is_empty() { Err(wrong()) } else { Ok((defaults, cases)) }
}

/// A value of TOML as JSON; times become strings, as the relay's configuration makes them.
fn json(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::from(&**text),
        DeValue::Boolean(yes) => Value::from(*yes),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::from)
            .map_err(|_| format!("{number} is out of bounds; use a 64-bit number"))?,
        DeValue::Float(number) => {
            let finite = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            let wrong = || format!("{number} has no JSON form; use a finite number");
            Value::Number(finite.ok_or_else(wrong)?)
        }
        DeValue::Array(list) => {
            let list = list.iter().map(|one| json(one.get_ref()));
            Value::Array(list.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let members = table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().to_string(), json(value.get_ref())?)));
            Value::Object(members.collect::<Result<_, String>>()?)
        }
    })
}

/// Tables member by member; everything else as a whole.
fn merge(into: &mut Map<String, Value>, own: Map<String, Value>) {
    for (key, value) in own {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(there)), Value::Object(value)) => merge(there, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn check_defaults(defaults: &Map<String, Value>) -> Result<(), String> {
    known(defaults, &COMMON)?;
    setup(defaults)?;
    transaction(defaults).map(drop)
}

fn known(members: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    let Some(unknown) = members.keys().find(|key| !known.contains(&key.as_str())) else {
        return Ok(());
    };
    let hint = match config::nearest(unknown, known.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("there are {}", known.join(", ")),
    };
    Err(format!("there is no member {unknown:?}; {hint}"))
}

/// One case with what its file begins with.
fn case(
    defaults: &Map<String, Value>,
    mut own: Map<String, Value>,
) -> Result<(Setup, Check, Value), String> {
    own.remove("name");
    let wanted = "has no expect: say what is right, such as expect = \"proceed\"";
    let expect = own.remove("expect").ok_or(wanted)?;
    known(&own, &COMMON)?;
    let mut members = defaults.clone();
    merge(&mut members, own.clone());
    let setup = setup(&members)?;
    if let Some(problems) = expect::problems(&expect)? {
        return Ok((setup, Check::Refused(problems), expect));
    }
    let asked = members.get("ask").map(expect::ask).transpose()?;
    // Where the case itself says what came of an attempt, it is asked about that.
    let about_outcome = own.contains_key("outcome") || asked == Some(Subject::Observe);
    let (ask, expected) = expect::parse(&expect, asked, about_outcome)?;
    let question = question(ask, &members, &setup)?;
    Ok((setup, Check::Answer { question: Box::new(question), expected }, expect))
}

fn setup(members: &Map<String, Value>) -> Result<Setup, String> {
    let settings = match members.get("settings") {
        None => "{}".to_owned(),
        Some(settings @ Value::Object(_)) => settings.to_string(),
        Some(_) => return Err("settings must be a table, as in [[policy]]".to_owned()),
    };
    let upstreams = match members.get("upstreams") {
        None => UPSTREAMS.map(str::to_owned).to_vec(),
        Some(names) => typed::<Vec<String>>("upstreams", names)?,
    };
    if upstreams.is_empty() {
        return Err("upstreams is empty: a relay has at least one".to_owned());
    }
    let tables = members.get("tables").map(|tables| typed("tables", tables)).transpose()?;
    let memory = match members.get("memory") {
        None => MEMORY,
        Some(size) => {
            let size = match size {
                Value::Number(bytes) => config::size(&bytes.to_string()),
                size => config::size(&typed::<String>("memory", size)?),
            };
            let bytes = size.map_err(|wrong| format!("memory: {wrong}"))?;
            if !MEMORY_BOUNDS.contains(&bytes) {
                return Err("memory must be 1 MiB to 1 GiB, as in [[policy]]".to_owned());
            }
            usize::try_from(bytes).unwrap_or(MEMORY)
        }
    };
    let timeout = match members.get("timeout") {
        None => TIMEOUT,
        Some(text) => {
            let text: String = typed("timeout", text)?;
            config::duration(&text).map_err(|wrong| format!("timeout: {wrong}"))?
        }
    };
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err("timeout must be 1 ms to 10 s, as in [[policy]]".to_owned());
    }
    Ok(Setup { settings, upstreams, tables: tables.unwrap_or_default(), memory, timeout })
}

pub(super) fn typed<'a, T: Deserialize<'a>>(what: &str, value: &'a Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| format!("{what}: {error}"))
}

#[cfg(test)]
mod tests;
