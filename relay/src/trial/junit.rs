//! Results as JUnit's XML, as continuous integration reads it: `testsuites`, a `testsuite` a file,
//! `testcase`s, and `failure` with a `message`. Floor 4.

use std::{fmt::Write as _, time::Duration};

use super::run::{Fault, Report, Tried};

/// The report as one document.
pub fn junit(report: &Report) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all: Vec<&Tried> = report.tried.iter().collect();
    let name = escaped(&report.plugin);
    let _ = writeln!(xml, "<testsuites name=\"{name}\" {}>", counts(&all));
    let mut files: Vec<&str> = all.iter().map(|one| one.case.file.as_str()).collect();
    files.dedup();
    for file in files {
        let cases: Vec<&Tried> = all.iter().copied().filter(|one| one.case.file == file).collect();
        let (file, counts) = (escaped(file), counts(&cases));
        let _ = writeln!(xml, "  <testsuite name=\"{file}\" {counts} skipped=\"0\">");
        for one in cases {
            testcase(&mut xml, &name, one);
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn testcase(xml: &mut String, plugin: &str, one: &Tried) {
    let (name, time) = (escaped(&one.case.name), seconds(one.took));
    let _ = write!(xml, "    <testcase name=\"{name}\" classname=\"{plugin}\" time=\"{time}\"");
    if one.passed() {
        xml.push_str("/>\n");
        return;
    }
    let kind = one.faults.first().map_or("", Fault::kind);
    let lines = one.lines();
    let message = escaped(lines.last().map_or("", String::as_str));
    let text = escaped(&lines.join("\n"));
    let _ =
        writeln!(xml, ">\n      <failure message=\"{message}\" type=\"{kind}\">{text}</failure>");
    xml.push_str("    </testcase>\n");
}

fn counts(cases: &[&Tried]) -> String {
    let failures = cases.iter().filter(|one| !one.passed()).count();
    let time = seconds(cases.iter().map(|one| one.took).sum());
    format!("tests=\"{}\" failures=\"{failures}\" errors=\"0\" time=\"{time}\"", cases.len())
}

fn seconds(time: Duration) -> String {
    format!("{:.6}", time.as_secs_f64())
}

/// Text for an attribute or an element. What XML 1.0 (2.2) has no character for is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // As they stand an attribute would have blanks in their place (3.3.3).
            '\n' | '\r' | '\t' => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_cannot_have_is_written_otherwise() {
        assert_eq!(escaped("a<b> & \"c\"\n\t'd'"), "a&lt;b&gt; &amp; &quot;c&quot;&#10;&#9;'d'");
        assert_eq!(escaped("\u{0}\u{1b}\u{ffff}é"), "\u{fffd}\u{fffd}\u{fffd}é");
        assert_eq!(escaped("]]>"), "]]&gt;");
    }
}
