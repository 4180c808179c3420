//! Reads TOML with the place of everything, and reports all that is wrong instead of the first.
//! Owns the walk over a document; what a key means is its caller's. Floor 1.
//!
//! A `Section` remembers which keys were asked for: `finish` reports the others.

use std::{
    cell::RefCell, fmt::Display, fs::File, io::Read, ops::RangeInclusive, path::Path, rc::Rc,
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    diagnostic::{Located, Place, Report},
    values::{self, nearest, one_of, quote},
};

/// Syntax errors reported of one file: after the first few they are consequences.
const SYNTAX_ERRORS_MAX: usize = 10;
/// The largest text of which more than the first syntax error is looked for.
const RECOVER_MAX: usize = 1 << 20;
/// Columns beyond this one are counted in bytes, so that one endless line costs no more.
const COLUMN_MAX: usize = 4096;

/// Reads a text file of at most `max` bytes. What is wrong is reported at `named_at`.
pub(super) fn read_text(
    path: &Path,
    max: u64,
    named_at: &Place,
    report: &Report,
) -> Option<String> {
    let shown = path.display();
    let fail = |message: String| {
        report.error(named_at, message);
        None
    };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    match std::fs::metadata(path) {
        Err(error) => {
            return fail(format!(
                "cannot read {shown}: {error}; check the path and its permissions"
            ));
        }
        Ok(found) if !found.is_file() => {
            return fail(format!("{shown} is not a regular file; name a TOML file"));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return fail(format!("cannot read {shown}: {error}; check its permissions"));
    }
    if bytes.len() as u64 > max {
        return fail(format!("{shown} is larger than {}; make it smaller", values::show_size(max)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            fail(format!("{shown} is not UTF-8 (line {line}); save it as UTF-8"))
        }
    }
}

/// One file's text and how to find a place in it.
pub(super) struct Document<'a> {
    file: Rc<str>,
    text: &'a str,
    line_starts: Vec<usize>,
    report: &'a Report,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &str, text: &'a str, report: &'a Report) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        let line_starts = std::iter::once(0).chain(newlines).collect();
        Self { file: file.into(), text, line_starts, report }
    }

    /// The document's tables, unless its syntax is wrong.
    pub(super) fn parse(&self) -> Option<Spanned<DeTable<'a>>> {
        let first = match DeTable::parse(self.text) {
            Ok(table) => return Some(table),
            Err(first) => first,
        };
        // A large text that is not TOML at all would have millions.
        let errors = match self.text.len() {
            ..=RECOVER_MAX => DeTable::parse_recoverable(self.text).1,
            _ => vec![first],
        };
        for error in errors.iter().take(SYNTAX_ERRORS_MAX) {
            let at = error.span().map_or(self.text.len(), |span| span.start);
            let place = self.place(at, String::new());
            self.report.error(&place, format!("not TOML: {}", error.message()));
        }
        None
    }

    /// The place of a key such as `instance[1].contacts[0].email`; where it is missing, of what
    /// lacks it.
    pub(super) fn find(&self, root: &Spanned<DeTable<'_>>, key: &str) -> Place {
        let mut found: Option<&Spanned<DeValue<'_>>> = None;
        for part in key.split('.') {
            let element = part.strip_suffix(']').and_then(|part| part.split_once('['));
            let (name, index) = element.map_or((part, None), |(name, index)| (name, Some(index)));
            let table = match found {
                Some(value) => value.get_ref().as_table(),
                None => Some(root.get_ref()),
            };
            let Some(value) = table.and_then(|table| table.get(name)) else { break };
            found = Some(value);
            if let Some(index) = index {
                let element = value.get_ref().as_array().zip(index.parse::<usize>().ok());
                let Some(element) = element.and_then(|(list, index)| list.get(index)) else {
                    break;
                };
                found = Some(element);
            }
        }
        match found {
            Some(value) => self.place(value.span().start, key.to_owned()),
            None => Place { file: self.file.clone(), at: None, key: key.to_owned() },
        }
    }

    fn place(&self, at: usize, key: String) -> Place {
        let line = self.line_starts.partition_point(|start| *start <= at).max(1);
        let start = self.line_starts[line - 1];
        let column = match self.text.get(start..at) {
            Some(before) if before.len() <= COLUMN_MAX => before.chars().count(),
            _ => at.saturating_sub(start),
        };
        Place { file: self.file.clone(), at: Some((line, column + 1)), key }
    }
}

/// A value, where it stands and what it is called.
#[derive(Clone)]
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    value: &'a Spanned<DeValue<'a>>,
    key: String,
}

impl<'a> Value<'a> {
    pub(super) fn place(&self) -> Place {
        self.document.place(self.value.span().start, self.key.clone())
    }

    pub(super) fn get(&self) -> &'a DeValue<'a> {
        self.value.get_ref()
    }

    pub(super) fn error(&self, message: impl Into<String>) {
        self.document.report.error(&self.place(), message);
    }

    /// Reports that the value has the wrong type.
    pub(super) fn wrong_type(&self, wanted: &str) {
        let is = self.get().type_str();
        let article = if is.starts_with(['a', 'i']) { "an" } else { "a" };
        self.error(format!("must be {wanted}, not {article} {is}"));
    }

    /// A string.
    pub(super) fn text(&self, wanted: &str) -> Option<&'a str> {
        let text = self.get().as_str();
        if text.is_none() {
            self.wrong_type(wanted);
        }
        text
    }

    /// A string that `parse` understands.
    pub(super) fn parse<T>(
        &self,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        match parse(self.text(wanted)?) {
            Ok(value) => Some(Located { value, place: self.place() }),
            Err(message) => {
                self.error(message);
                None
            }
        }
    }

    /// The elements of an array.
    pub(super) fn elements(&self, wanted: &str) -> Option<Vec<Value<'a>>> {
        let Some(array) = self.get().as_array() else {
            self.wrong_type(wanted);
            return None;
        };
        let element = |(index, value)| Value {
            document: self.document,
            value,
            key: format!("{}[{index}]", self.key),
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// The members of a table, with the place of each key.
    pub(super) fn members(&self, wanted: &str) -> Option<Vec<(&'a str, Value<'a>)>> {
        let Some(table) = self.get().as_table() else {
            self.wrong_type(wanted);
            return None;
        };
        let member = |(key, value): (&'a Spanned<_>, _)| {
            let name: &'a std::borrow::Cow<'a, str> = key.get_ref();
            let key = format!("{}.{}", self.key, show_key(name));
            (&**name, Value { document: self.document, value, key })
        };
        Some(table.iter().map(member).collect())
    }

    fn section(&self) -> Option<Section<'a>> {
        let table = self.get().as_table()?;
        Some(Section {
            document: self.document,
            table,
            at: self.value.span().start,
            key: self.key.clone(),
            asked: RefCell::default(),
        })
    }

    pub(super) fn integer(&self) -> Option<i128> {
        let number = self.get().as_integer()?;
        i128::from_str_radix(number.as_str(), number.radix()).ok()
    }
}

/// A table whose keys are known.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    table: &'a DeTable<'a>,
    at: usize,
    key: String,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub(super) fn root(document: &'a Document<'a>, table: &'a Spanned<DeTable<'a>>) -> Self {
        let table = table.get_ref();
        Self { document, table, at: 0, key: String::new(), asked: RefCell::default() }
    }

    pub(super) fn place(&self) -> Place {
        self.document.place(self.at, self.key.clone())
    }

    pub(super) fn report(&self) -> &'a Report {
        self.document.report
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
        let value = self.table.get(key)?;
        Some(Value { document: self.document, value, key: self.path(key) })
    }

    /// The list of a key, if it is there and empty.
    pub(super) fn empty_list(&self, key: &'static str) -> Option<Value<'a>> {
        self.get(key).filter(|value| value.get().as_array().is_some_and(|list| list.is_empty()))
    }

    /// The value of a key that must be there.
    pub(super) fn require(&self, key: &'static str, example: &str) -> Option<Value<'a>> {
        let found = self.get(key);
        if found.is_none() {
            let place = Place { key: self.path(key), ..self.place() };
            self.report().error(&place, format!("missing; give {example}"));
        }
        found
    }

    /// `[key]`.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a>> {
        let value = self.get(key)?;
        let section = value.section();
        if section.is_none() {
            let path = &value.key;
            value.wrong_type(&format!("a table: `[{path}]`"));
        }
        section
    }

    /// `[[key]]`.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let wanted = format!("a list of tables: `[[{}]]`", value.key);
        let elements = value.elements(&wanted).unwrap_or_default();
        let section = |value: &Value<'a>| {
            let section = value.section();
            if section.is_none() {
                value.wrong_type("a table");
            }
            section
        };
        elements.iter().filter_map(section).collect()
    }

    /// A string that `parse` understands, if the key is there.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        self.get(key)?.parse(wanted, parse)
    }

    /// A list of strings that `parse` understands, none twice. None where the key is missing or
    /// not a list.
    pub(super) fn list<T: PartialEq>(
        &self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        let value = self.get(key)?;
        let wanted_list = format!("a list of strings such as [{wanted}]");
        let mut seen = std::collections::HashMap::new();
        let mut list: Vec<Located<T>> = Vec::new();
        for element in value.elements(&wanted_list)? {
            let Some(found) = element.parse(&format!("a string such as {wanted}"), &parse) else {
                continue;
            };
            let text = element.get().as_str().unwrap_or_default().to_lowercase();
            if seen.insert(text, ()).is_some() {
                element.error("is in this list twice; remove one");
            }
            list.push(found);
        }
        Some(list)
    }

    pub(super) fn boolean(&self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(key) else {
            return default;
        };
        value.get().as_bool().unwrap_or_else(|| {
            value.wrong_type("true or false");
            default
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        what: &str,
        choices: &[(&str, T)],
    ) -> Option<Located<T>> {
        let names = || choices.iter().map(|(name, _)| *name);
        self.parsed(key, &one_of(names()), |text| {
            match choices.iter().find(|(name, _)| *name == text) {
                Some((_, choice)) => Ok(*choice),
                None => Err(format!("{} is not {what}; use {}", quote(text), one_of(names()))),
            }
        })
    }

    pub(super) fn duration(
        &self,
        key: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let wanted = "a duration in quotes, such as \"60s\"";
        let found = self.parsed(key, wanted, values::duration);
        found.map_or(default, |found| self.within(found, &bounds, values::show_duration))
    }

    /// A size in bytes.
    pub(super) fn size(&self, key: &'static str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.get(key) else {
            return default;
        };
        let found = match value.integer() {
            Some(number) => match u64::try_from(number) {
                Ok(value_) => Some(Located { value: value_, place: value.place() }),
                Err(_) => {
                    self.out_of_bounds(&value.place(), number, &bounds, values::show_size);
                    None
                }
            },
            None => value.parse("a size, such as \"256KiB\" or 262144", values::size),
        };
        found.map_or(default, |found| self.within(found, &bounds, values::show_size))
    }

    pub(super) fn integer(
        &self,
        key: &'static str,
        default: usize,
        bounds: RangeInclusive<usize>,
    ) -> usize {
        let Some(value) = self.get(key) else {
            return default;
        };
        let Some(number) = value.integer() else {
            value.wrong_type(&format!(
                "a whole number from {} to {}",
                bounds.start(),
                bounds.end()
            ));
            return default;
        };
        match usize::try_from(number) {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                self.out_of_bounds(&value.place(), number, &bounds, |n| n.to_string());
                default
            }
        }
    }

    fn within<T: PartialOrd + Copy>(
        &self,
        found: Located<T>,
        bounds: &RangeInclusive<T>,
        show: fn(T) -> String,
    ) -> T {
        if !bounds.contains(&found.value) {
            self.out_of_bounds(&found.place, show(found.value), bounds, show);
        }
        found.value
    }

    fn out_of_bounds<T: Copy>(
        &self,
        place: &Place,
        value: impl Display,
        bounds: &RangeInclusive<T>,
        show: fn(T) -> String,
    ) {
        let (low, high) = (show(*bounds.start()), show(*bounds.end()));
        self.report().error(place, format!("{value} is out of bounds; use {low} to {high}"));
    }

    /// Reports every key that nothing asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if asked.contains(&name) {
                continue;
            }
            let place = self.document.place(key.span().start, self.path(&show_key(name)));
            let hint = match nearest(name, asked.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known here: {}", asked.join(", ")),
            };
            self.report().error(&place, format!("unknown key; {hint}"));
        }
    }

    fn path(&self, key: &str) -> String {
        if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) }
    }
}

/// A key as it stands in a path: quoted where it is not a bare key.
fn show_key(key: &str) -> String {
    let bare = !key.is_empty()
        && key.len() <= 60
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { quote(key) }
}
