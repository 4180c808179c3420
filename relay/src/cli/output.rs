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

/// What stands behind the outcome of an order.
pub(super) fn dry_run_note(is_dry_run: bool) -> &'static str {
    if is_dry_run { " (dry run: nothing is changed)" } else { "" }
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

/// Seconds, as people say them.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What came from outside has nothing that a terminal obeys.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { '?' } else { one }).collect()
}

/// Columns as wide as what is in them. The last one is not filled up.
pub(super) fn table(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
