//! How a mail writes what is not plain ASCII: headers (RFC 2047) and bodies (RFC 2045). Knows
//! nothing of notices.

/// What a header line may have, without its CRLF (RFC 2047 2 for encoded words; RFC 5322 2.1.1
/// would like 78).
const HEADER: usize = 76;

const HEAD: &str = "=?UTF-8?B?";
const TAIL: &str = "?=";
/// RFC 2047 2: an encoded word.
const WORD: usize = 75;

/// RFC 2045 6.7 (5) and 6.8.
const BODY: usize = 76;

/// Header lines, each ended by CRLF.
#[derive(Default)]
pub(crate) struct Headers(String);

impl Headers {
    /// A header whose value is known to be harmless: fixed, or parsed.
    pub(crate) fn raw(mut self, name: &str, value: &str) -> Self {
        assert!(
            value.bytes().all(|byte| matches!(byte, b' '..=b'~')),
            "{name} is not made of printable ASCII"
        );
        self.0.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    pub(crate) fn text(mut self, name: &str, text: &str) -> Self {
        let start = name.len() + 2;
        let fits = start + text.len() <= HEADER;
        let value = if fits && is_plain(text) { text.to_owned() } else { words(text, start) };
        self.0.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// A display name, where there is one, and an address.
    pub(crate) fn mailbox(mut self, name: &str, display: &str, address: &str) -> Self {
        if display.is_empty() {
            return self.raw(name, address);
        }
        let start = name.len() + 2;
        let quoted = format!("\"{}\"", display.replace('\\', "\\\\").replace('"', "\\\""));
        let fits = start + quoted.len() <= HEADER;
        let display = if fits && is_plain(display) { quoted } else { words(display, start) };
        self.0.push_str(&format!("{name}: {display}\r\n <{address}>\r\n"));
        self
    }

    pub(crate) fn end(mut self) -> String {
        self.0.push_str("\r\n");
        self.0
    }
}

/// Means itself in a header; what looks like an encoded word does not.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && !text.contains("=?")
}

/// Encoded words, one a line; the first begins in column `start`. Each has whole characters
/// (RFC 2047 5).
fn words(text: &str, start: usize) -> String {
    let room = |columns: usize| (columns.min(WORD) - HEAD.len() - TAIL.len()) / 4 * 3;
    let mut words = Vec::new();
    let mut rest = text;
    let mut limit = room(HEADER - start);
    while !rest.is_empty() {
        let cut = rest.floor_char_boundary(limit);
        words.push(format!("{HEAD}{}{TAIL}", base64(&rest.as_bytes()[..cut])));
        rest = &rest[cut..];
        limit = room(HEADER - 1);
    }
    words.join("\r\n ")
}

/// RFC 2045 6.7. Lines of `text` end with LF; those of the result with CRLF.
pub(crate) fn quoted_printable(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 5 / 4);
    for line in text.split_terminator('\n') {
        let mut width = 0;
        let bytes = line.as_bytes();
        for (at, &byte) in bytes.iter().enumerate() {
            let is_last = at + 1 == bytes.len();
            let plain = match byte {
                b'=' => false,
                // Rule 3: a space at the end of a line would get lost.
                b' ' | b'\t' => !is_last,
                _ => byte.is_ascii_graphic(),
            };
            let own = if plain { 1 } else { 3 };
            // One column is left for the mark of a soft line break.
            if width + own > BODY - 1 {
                encoded.push_str("=\r\n");
                width = 0;
            }
            if plain {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("={byte:02X}"));
            }
            width += own;
        }
        encoded.push_str("\r\n");
    }
    encoded
}

/// RFC 2045 6.8, in lines.
pub(crate) fn base64_lines(bytes: &[u8]) -> String {
    bytes.chunks(BODY / 4 * 3).map(|chunk| base64(chunk) + "\r\n").collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = (0..3)
            .fold(0_u32, |bits, at| bits << 8 | chunk.get(at).map_or(0, |&byte| u32::from(byte)));
        for digit in 0..4 {
            if digit > chunk.len() {
                encoded.push('=');
            } else {
                let sextet = bits >> (18 - 6 * digit) & 0x3f;
                encoded.push(char::from(DIGITS[sextet as usize]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        // RFC 4648 10.
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xff, 0xef, 0xfe]), "/+/+");
    }

    #[test]
    fn quoted_printable_keeps_lines_short_and_spaces_whole() {
        assert_eq!(quoted_printable("a = b\n\nend \n"), "a =3D b\r\n\r\nend=20\r\n");
        assert_eq!(quoted_printable("ü"), "=C3=BC\r\n");
        let fits = "x".repeat(75);
        assert_eq!(quoted_printable(&fits), format!("{fits}\r\n"));
        assert_eq!(quoted_printable(&format!("{fits}y")), format!("{fits}=\r\ny\r\n"));
        let umlauts = quoted_printable(&"ü".repeat(100));
        assert!(umlauts.lines().all(|line| line.len() <= BODY), "{umlauts}");
    }

    #[test]
    fn headers_are_plain_where_they_can_be() {
        let header = |text: &str| Headers::default().text("Subject", text).end();
        assert_eq!(header("Upgrade"), "Subject: Upgrade\r\n\r\n");
        assert_eq!(header("Größe"), "Subject: =?UTF-8?B?R3LDtsOfZQ==?=\r\n\r\n");
        assert_eq!(header("=?x"), "Subject: =?UTF-8?B?PT94?=\r\n\r\n");
        let long = header(&"株".repeat(200));
        assert!(long.lines().all(|line| line.len() <= HEADER), "{long}");
        assert!(
            long.lines().skip(1).all(|line| line.is_empty() || line.starts_with(' ')),
            "{long}"
        );
    }

    #[test]
    fn a_name_is_quoted_or_encoded() {
        let to = |display: &str| Headers::default().mailbox("To", display, "a@b.example").end();
        assert_eq!(to(""), "To: a@b.example\r\n\r\n");
        assert_eq!(to("Ada, \"x\" \\"), "To: \"Ada, \\\"x\\\" \\\\\"\r\n <a@b.example>\r\n\r\n");
        assert_eq!(to("Zoë"), "To: =?UTF-8?B?Wm/Dqw==?=\r\n <a@b.example>\r\n\r\n");
    }

    #[test]
    #[should_panic(expected = "printable ASCII")]
    fn a_raw_header_never_breaks_out() {
        Headers::default().raw("X", "a\r\nBcc: b");
    }
}
