//! The window as a calendar entry: RFC 5545, published as RFC 5546 3.2.1 has it.

use jiff::Timestamp;

use crate::{Notice, letter::Entry, line::Care};

/// RFC 5545 3.1: octets a line, without its CRLF.
const FOLD: usize = 75;

impl Notice {
    /// The window as a calendar entry, lines end with CRLF. A later notice of the same wave to the
    /// same contact replaces it: same UID, higher SEQUENCE.
    pub fn calendar(&self) -> String {
        let entry = Entry::of(self);
        let language = self.language.tag();
        let mut lines = Lines::default();
        lines.push("BEGIN:VCALENDAR");
        lines.push("VERSION:2.0");
        lines.push("PRODID:-//Wavegate//Notice//EN");
        lines.push("CALSCALE:GREGORIAN");
        lines.push("METHOD:PUBLISH");
        lines.push("BEGIN:VEVENT");
        lines.push(&format!("UID:{}", self.uid()));
        lines.push(&format!("DTSTAMP:{}", utc(self.issued)));
        // RFC 5545 3.3.8: an integer has 31 bits.
        lines.push(&format!("SEQUENCE:{}", self.sequence.min(i32::MAX.unsigned_abs())));
        lines.push(&format!("DTSTART:{}", utc(self.window.opens())));
        lines.push(&format!("DTEND:{}", utc(self.window.closes())));
        lines.push(&format!("SUMMARY;LANGUAGE={language}:{}", escaped(&entry.summary)));
        let description = escaped(&entry.paragraphs.join("\n\n"));
        lines.push(&format!("DESCRIPTION;LANGUAGE={language}:{description}"));
        if let Some(sender) = &self.sender {
            let name = parameter(self.provider.as_str());
            lines.push(&format!("ORGANIZER;CN=\"{name}\":{}", sender.mailto()));
        }
        lines.push(&format!("CONTACT:{}", escaped(self.care.shown())));
        if let Care::Url(url) = &self.care {
            lines.push(&format!("URL:{url}"));
        }
        lines.push("STATUS:CONFIRMED");
        lines.push("CLASS:PRIVATE");
        // It takes nobody's time: nobody has to attend.
        lines.push("TRANSP:TRANSPARENT");
        lines.push("END:VEVENT");
        lines.push("END:VCALENDAR");
        lines.0
    }

    /// The same for each notice of this wave to this contact, whatever else changes. A digest, so
    /// that it is short and of letters that every calendar keeps.
    fn uid(&self) -> String {
        let email = self.email.as_str().to_ascii_lowercase();
        // 0xff is in no UTF-8, so it parts them.
        let bytes = self.wave.as_str().bytes().chain([0xff]).chain(email.bytes());
        format!("{:032x}@notice.wavegate", fnv(bytes))
    }
}

/// FNV-1a, 128 bits. It must never change: entries in calendars are found by it.
fn fnv(bytes: impl Iterator<Item = u8>) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

fn utc(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// RFC 5545 3.3.11.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | ';' | ',' => escaped.extend(['\\', c]),
            '\n' => escaped.push_str("\\n"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// RFC 6868 3: what a quoted parameter cannot hold.
fn parameter(text: &str) -> String {
    text.replace('^', "^^").replace('"', "^'")
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    /// Folds between characters, never within one.
    fn push(&mut self, line: &str) {
        let mut rest = line;
        let mut room = FOLD;
        while rest.len() > room {
            let cut = rest.floor_char_boundary(room);
            self.0.push_str(&rest[..cut]);
            self.0.push_str("\r\n ");
            rest = &rest[cut..];
            // The space counts.
            room = FOLD - 1;
        }
        self.0.push_str(rest);
        self.0.push_str("\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(line: &str) -> String {
        let mut lines = Lines::default();
        lines.push(line);
        lines.0
    }

    #[test]
    fn lines_fold_at_75_octets_between_characters() {
        let fits = "x".repeat(75);
        assert_eq!(folded(&fits), format!("{fits}\r\n"));
        assert_eq!(folded(&format!("{fits}y")), format!("{fits}\r\n y\r\n"));
        let x = "x".repeat(74);
        assert_eq!(folded(&format!("{x}ü")), format!("{x}\r\n ü\r\n"));
        let long = folded(&"x".repeat(75 + 74 + 1));
        assert_eq!(long.lines().map(str::len).collect::<Vec<_>>(), [75, 75, 2]);
    }

    #[test]
    fn texts_and_parameters_are_escaped() {
        assert_eq!(escaped("a,b;c\\d\ne:\"f\""), "a\\,b\\;c\\\\d\\ne:\"f\"");
        assert_eq!(parameter("a\"b^c"), "a^'b^^c");
    }

    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(fnv("".bytes()), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv("a".bytes()), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(fnv("foobar".bytes()), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }
}
