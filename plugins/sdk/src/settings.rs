//! Reading settings: every wrong one is reported with its path, all in one go. Owns the shape of
//! the messages; which settings there are is each policy's.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use crate::hooks::Diagnostic;
use crate::json::Value;

/// What was found wrong so far.
#[derive(Default)]
pub(crate) struct Problems(RefCell<Vec<Diagnostic>>);

/// More problems than this are no help to anybody, and the host bounds answers.
const MAX_PROBLEMS: usize = 100;

impl Problems {
    fn add(&self, path: String, message: String) {
        let mut problems = self.0.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.push(Diagnostic { path, message });
        }
    }

    pub(crate) fn into_inner(self) -> Vec<Diagnostic> {
        self.0.into_inner()
    }
}

/// A table of settings, which knows what it was asked for: what nobody asked for is unknown.
pub struct Table<'a> {
    entries: &'a [(String, Value)],
    asked: RefCell<Vec<&'static str>>,
    path: String,
    problems: &'a Problems,
}

/// One setting that is there.
pub struct Field<'a> {
    value: &'a Value,
    path: String,
    problems: &'a Problems,
}

impl<'a> Table<'a> {
    /// The settings as a whole.
    pub(crate) fn whole_of(value: &'a Value, problems: &'a Problems) -> Option<Self> {
        Field { value, path: String::new(), problems }.table()
    }

    /// The setting of that name, if it is given.
    pub fn get(&self, name: &'static str) -> Option<Field<'a>> {
        self.asked.borrow_mut().push(name);
        let (_, value) = self.entries.iter().find(|(key, _)| key == name)?;
        Some(Field { value, path: self.path_of(name), problems: self.problems })
    }

    /// All settings of the table, by name, where the names are the operator's own.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.entries.iter().map(|(key, value)| {
            (key.as_str(), Field { value, path: self.path_of(key), problems: self.problems })
        })
    }

    /// Reports what is wrong with the table as a whole, such as a setting that is missing.
    pub fn wrong(&self, message: impl Into<String>) {
        self.problems.add(self.path.clone(), message.into());
    }

    /// Reports every key that nobody asked for. Called for the whole settings by the caller of
    /// [`crate::Policy::configure`], for inner tables by who reads them.
    pub fn report_unknown(&self) {
        let asked = self.asked.borrow();
        for (key, _) in self.entries {
            if !asked.contains(&key.as_str()) {
                let message = format!("unknown; known here: {}", asked.join(", "));
                self.problems.add(self.path_of(key), message);
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'a> Field<'a> {
    /// Reports what is wrong with the setting.
    pub fn wrong(&self, message: impl Into<String>) {
        self.problems.add(self.path.clone(), message.into());
    }

    /// A string.
    pub fn text(&self) -> Option<&'a str> {
        match self.value {
            Value::Text(text) => Some(text),
            _ => self.expected("a string"),
        }
    }

    /// A string that is one of those.
    pub fn one_of(&self, known: &[&'static str]) -> Option<&'static str> {
        let text = self.text()?;
        let found = known.iter().find(|&&word| word == text).copied();
        if found.is_none() {
            self.wrong(format!("\"{text}\" is none of: {}", known.join(", ")));
        }
        found
    }

    /// A whole number in that range.
    pub fn whole(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.value {
            Value::Number(text) => text.parse().ok().filter(|number| range.contains(number)),
            _ => None,
        };
        if number.is_some() {
            return number;
        }
        match (*range.start(), *range.end()) {
            (least, u64::MAX) => self.expected(&format!("a whole number, at least {least}")),
            (least, most) => self.expected(&format!("a whole number, {least} to {most}")),
        }
    }

    /// A number with at most three decimals in that range, all in thousandths: `2.5` is 2500.
    pub fn thousandths(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match self.value {
            Value::Number(text) => thousandths(text).filter(|number| range.contains(number)),
            _ => None,
        };
        if number.is_none() {
            let (least, most) = (range.start() / 1000, range.end() / 1000);
            return self.expected(&format!("a number, {least} to {most}, of at most 3 decimals"));
        }
        number
    }

    /// A length of time such as `30s` (units ms, s, min, h, d), in milliseconds, at least one.
    pub fn duration(&self) -> Option<u64> {
        let text = self.text()?;
        let duration = duration(text);
        if duration.is_none() {
            self.wrong(format!("\"{text}\" is no time such as \"30s\" (units ms, s, min, h, d)"));
        }
        duration
    }

    /// A list of anything.
    pub fn list(&self) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = self.value else { return self.expected("a list") };
        let item = |(index, value)| {
            let path = format!("{}[{index}]", self.path);
            Field { value, path, problems: self.problems }
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A list of strings; those that are none are reported and left out.
    pub fn texts(&self) -> Vec<String> {
        let items = self.list().unwrap_or_default();
        items.iter().filter_map(Field::text).map(str::to_owned).collect()
    }

    /// The name of a configured upstream.
    pub fn upstream(&self, upstreams: &[String]) -> Option<String> {
        let name = self.text()?;
        if upstreams.iter().any(|known| known == name) {
            return Some(name.to_owned());
        }
        self.wrong(format!("\"{name}\" is no upstream; there are: {}", upstreams.join(", ")));
        None
    }

    /// Names of configured upstreams.
    pub fn upstreams(&self, upstreams: &[String]) -> Vec<String> {
        let items = self.list().unwrap_or_default();
        items.iter().filter_map(|item| item.upstream(upstreams)).collect()
    }

    /// A table.
    pub fn table(&self) -> Option<Table<'a>> {
        let Value::Table(entries) = self.value else { return self.expected("a table") };
        let asked = RefCell::default();
        Some(Table { entries, asked, path: self.path.clone(), problems: self.problems })
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        let found = match self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.clone(),
            Value::Text(text) => format!("\"{text}\""),
            Value::List(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        };
        self.wrong(format!("must be {what}, not {found}"));
        None
    }
}

/// A decimal number in thousandths. One with an exponent has no place in settings.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let decimals = decimals.trim_end_matches('0');
    if decimals.len() > 3 {
        return None;
    }
    let part: u64 = format!("{decimals:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part)
}

/// A length of time in milliseconds.
pub fn duration(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let count: u64 = text[..digits].parse().ok()?;
    count.checked_mul(unit(&text[digits..])?).filter(|&length| length > 0)
}

/// A unit of time in milliseconds.
pub fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_are_exact() {
        let cases = [
            ("0", Some(0)),
            ("2", Some(2000)),
            ("2.0", Some(2000)),
            ("12.5", Some(12_500)),
            ("0.001", Some(1)),
            ("99.999000", Some(99_999)),
            ("0.0001", None),
            ("-1", None),
            ("1e3", None),
            ("18446744073709551615", None),
        ];
        for (text, expected) in cases {
            assert_eq!(thousandths(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        let cases = [
            ("30s", Some(30_000)),
            ("5min", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("2d", Some(172_800_000)),
            ("250ms", Some(250)),
            ("0s", None),
            ("30", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("30 s", None),
            ("1\u{e9}", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
