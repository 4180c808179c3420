//! How commands print: aligned labels, and JSON. Floor 4.

use std::{
    fmt,
    io::{self, Write},
};

use serde::Serialize;

/// Width of a label.
const LABEL: usize = 12;

/// `  label       text`; an empty label goes on with the one above.
pub(super) fn field(out: &mut dyn Write, label: &str, text: impl fmt::Display) -> io::Result<()> {
    writeln!(out, "  {label:<LABEL$}{text}")
}

/// One JSON document.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// `1 error`, `2 errors`.
pub(super) fn count(count: usize, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// `a, b`; a dash for none.
pub(super) fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "-".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
