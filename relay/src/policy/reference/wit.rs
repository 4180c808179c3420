//! WIT as Markdown: each interface with its functions and types, each with its comment. Floor 2.
//!
//! It reads the part of WIT that the contract is written in, an item a line, and a released
//! contract never changes. What it does not know is a bug here, found by the test.

use std::fmt::Write as _;

/// A type and what is said of it, or a function.
struct Item {
    /// `record`, `variant`, `enum`, `type` or `func`.
    kind: &'static str,
    name: String,
    /// Behind the name of a type or function.
    is: String,
    doc: Vec<String>,
    members: Vec<Member>,
}

struct Member {
    name: String,
    is: String,
    doc: Vec<String>,
}

/// The comment of the package, and all its interfaces; worlds only name these.
pub(super) fn markdown(wit: &str) -> (String, String) {
    let mut package = String::new();
    let mut text = String::new();
    let mut doc = Vec::new();
    let mut lines = wit.lines().map(str::trim).filter(|line| !line.is_empty());
    while let Some(line) = lines.next() {
        if let Some(words) = line.strip_prefix("///") {
            doc.push(words.trim().to_owned());
        } else if line.starts_with("package ") {
            package = paragraphs(&std::mem::take(&mut doc));
        } else if let Some(name) = block(line, "interface ") {
            let items = interface(&mut lines);
            write_interface(&mut text, name, &std::mem::take(&mut doc), &items);
        } else if block(line, "world ").is_some() {
            doc.clear();
            assert!(lines.any(|line| line == "}"), "a world ends");
        } else {
            unknown(line);
        }
    }
    (package, text.trim_end().to_owned())
}

/// The items up to the end of an interface.
fn interface<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Item> {
    let mut items = Vec::new();
    let mut doc = Vec::new();
    while let Some(line) = lines.next().filter(|line| *line != "}") {
        if let Some(words) = line.strip_prefix("///") {
            doc.push(words.trim().to_owned());
            continue;
        }
        if line.starts_with("use ") {
            continue;
        }
        let doc = std::mem::take(&mut doc);
        let mut item = item(line, doc).unwrap_or_else(|| unknown(line));
        if line.ends_with('{') {
            item.members = members(lines);
        }
        items.push(item);
    }
    items
}

fn item(line: &str, doc: Vec<String>) -> Option<Item> {
    let members = Vec::new();
    for kind in ["record", "variant", "enum"] {
        let Some(rest) = line.strip_prefix(kind).and_then(|rest| rest.strip_prefix(' ')) else {
            continue;
        };
        let (name, inside) = rest.split_once('{')?;
        let cases = inside.trim_end_matches('}').split(',').map(str::trim);
        let cases = cases.filter(|case| !case.is_empty()).map(|case| member(case, Vec::new()));
        return Some(Item {
            kind,
            name: name.trim().to_owned(),
            is: String::new(),
            doc,
            members: cases.collect(),
        });
    }
    let line = line.strip_suffix(';')?;
    let (kind, (name, is)) = match line.strip_prefix("type ") {
        Some(rest) => ("type", rest.split_once(" = ")?),
        None => ("func", line.split_once(": ").filter(|(_, is)| is.starts_with("func("))?),
    };
    Some(Item { kind, name: name.to_owned(), is: is.to_owned(), doc, members })
}

/// Members up to the end of a record or variant.
fn members<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Member> {
    let mut members = Vec::new();
    let mut doc = Vec::new();
    for line in lines.take_while(|line| *line != "}") {
        match line.strip_prefix("///") {
            Some(words) => doc.push(words.trim().to_owned()),
            None => members.push(member(line.trim_end_matches(','), std::mem::take(&mut doc))),
        }
    }
    members
}

/// `name: type`, `name(type)` or `name`.
fn member(text: &str, doc: Vec<String>) -> Member {
    let (name, is) = match text.split_once(": ") {
        Some(parts) => parts,
        None => text.split_once('(').unwrap_or((text, "")),
    };
    let is = if text.contains(": ") { is } else { is.trim_end_matches(')') };
    Member { name: name.to_owned(), is: is.to_owned(), doc }
}

fn write_interface(text: &mut String, name: &str, doc: &[String], items: &[Item]) {
    let _ = write!(text, "### {name}\n\n{}", paragraphs(doc));
    let (functions, types): (Vec<_>, Vec<_>) = items.iter().partition(|item| item.kind == "func");
    for item in functions {
        let _ =
            write!(text, "```wit\n{}: {}\n```\n\n{}", item.name, item.is, paragraphs(&item.doc));
    }
    for item in types {
        let is = if item.is.is_empty() { String::new() } else { format!(" = `{}`", item.is) };
        let _ = write!(text, "**{} `{}`**{is}\n\n{}", item.kind, item.name, paragraphs(&item.doc));
        if item.members.is_empty() {
            continue;
        }
        let what = if item.kind == "record" { "member" } else { "case" };
        let _ = write!(text, "| {what} | type | |\n| --- | --- | --- |\n");
        for Member { name, is, doc } in &item.members {
            let is = if is.is_empty() { String::new() } else { format!("`{is}`") };
            let _ = writeln!(text, "| `{name}` | {is} | {} |", doc.join(" ").replace('|', "\\|"));
        }
        text.push('\n');
    }
}

/// Lines of a comment as they stand; an empty one parts paragraphs.
fn paragraphs(doc: &[String]) -> String {
    if doc.is_empty() { String::new() } else { format!("{}\n\n", doc.join("\n")) }
}

fn block<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.strip_prefix(kind)?.strip_suffix('{').map(str::trim)
}

/// The contract is ours.
fn unknown(line: &str) -> ! {
    panic!("policy.wit has what its reference does not know: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIT: &str = "/// A package.\n///\n/// Of ours.\npackage a:b@1.0.0;\n\n/// Types.\ninterface t {\n  \
        use o.{p};\n  /// A time.\n  type time = u64;\n  /// A thing.\n  record thing {\n    /// Its name, a | b.\n    \
        /// Always.\n    name: option<string>,\n    at: time,\n  }\n  enum level { low, high }\n  variant way {\n    \
        none,\n    /// Some.\n    some(list<thing>),\n  }\n  /// Asks.\n  ask: func(thing: thing) -> way;\n}\n\n\
        world w {\n  export t;\n}\n";

    #[test]
    fn every_item_is_there_with_its_comment() {
        let (package, text) = markdown(WIT);
        assert_eq!(package, "A package.\n\nOf ours.\n\n");
        let expected = "### t\n\nTypes.\n\n```wit\nask: func(thing: thing) -> way\n```\n\nAsks.\n\n\
            **type `time`** = `u64`\n\nA time.\n\n\
            **record `thing`**\n\nA thing.\n\n| member | type | |\n| --- | --- | --- |\n\
            | `name` | `option<string>` | Its name, a \\| b. Always. |\n| `at` | `time` |  |\n\n\
            **enum `level`**\n\n| case | type | |\n| --- | --- | --- |\n| `low` |  |  |\n| `high` |  |  |\n\n\
            **variant `way`**\n\n| case | type | |\n| --- | --- | --- |\n| `none` |  |  |\n\
            | `some` | `list<thing>` | Some. |";
        assert_eq!(text, expected);
    }

    #[test]
    #[should_panic(expected = "does not know: resource r;")]
    fn what_it_does_not_know_is_not_left_out() {
        markdown("interface t {\n  resource r;\n}\n");
    }
}
