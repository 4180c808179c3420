//! Writing strangers' text where it can do no harm.
//!
//! Owns which characters may stand in a notification, how long a text may get, and the encodings
//! that a notification uses. Owns nothing that is said.
//!
//! Floor 0.

use std::fmt::Write as _;

use wavegate_smtp::{Address, limits};

use crate::plan::Timestamp;

/// Longest line, line end not counted (RFC 5322 2.1.1).
pub(super) const LINE: usize = 998;

/// Where a line is broken that has no better place; leaves room for what stands before.
const HARD: usize = 900;

/// What marks a text that was cut.
const CUT: &str = "...";

/// The character, or `?` for one that could break a line, hide text or turn its order.
pub(super) fn visible(c: char, ascii: bool) -> char {
    match c {
        '\t' => ' ',
        // Line and paragraph separators; directional marks, overrides and isolates.
        '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}' => '?',
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
        c if c.is_control() => '?',
        c if ascii && !c.is_ascii() => '?',
        c => c,
    }
}

/// The text in one line of visible characters, one space between words, at most `most` bytes.
pub(super) fn clean(text: &str, ascii: bool, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    for c in text.chars().map(|c| visible(c, ascii)) {
        if c == ' ' && (out.is_empty() || out.ends_with(' ')) {
            continue;
        }
        if out.len() + c.len_utf8() + CUT.len() > most {
            out.push_str(CUT);
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

/// A name for a field, or a host name: printable ASCII without spaces.
pub(super) fn host(name: &str) -> String {
    let name: String = name
        .chars()
        .take(limits::DOMAIN)
        .map(|c| if c.is_ascii_alphanumeric() || "-._:[]".contains(c) { c } else { '-' })
        .collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// An address as a header field has it. SMTP takes some dots that RFC 5322 3.4.1 does not; in
/// quotes it does, and means the same.
pub(super) fn mailbox(address: &Address, host: &str) -> String {
    let local = address.local();
    let domain = if address.domain().is_empty() { host } else { address.domain() };
    let quoted = local.starts_with('"') || local.split('.').all(|atom| !atom.is_empty());
    let quote = if quoted { "" } else { "\"" };
    let text = format!("<{quote}{local}{quote}@{domain}>");
    text.chars().map(|c| visible(c, false)).collect()
}

/// The date as header fields have it, in UTC (RFC 5322 3.3).
pub(super) fn date(time: Timestamp) -> String {
    let time = i64::try_from(time.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.unwrap_or(jiff::Timestamp::MAX).to_zoned(jiff::tz::TimeZone::UTC);
    time.strftime("%a, %-d %b %Y %H:%M:%S +0000").to_string()
}

/// The `Message-ID` of a header block, if it is a plain one.
pub(super) fn message_id(header: &[u8]) -> Option<&str> {
    const NAME: &[u8] = b"message-id:";
    let mut lines =
        header.split(|byte| *byte == b'\n').take_while(|line| !line.trim_ascii().is_empty());
    let line = lines
        .find(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))?;
    let value = &line[NAME.len()..];
    // It may stand on the next line, being long.
    let value = match value.trim_ascii() {
        b"" => lines.next().filter(|next| next.starts_with(b" ") || next.starts_with(b"\t"))?,
        _ => value,
    };
    let value = std::str::from_utf8(value.trim_ascii()).ok()?;
    let inner = value.strip_prefix('<')?.strip_suffix('>')?;
    let plain = inner.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>".contains(&byte));
    // One line must hold it, and nobody sorts by one that is longer.
    (plain && inner.contains('@') && inner.len() <= 400).then_some(value)
}

/// Undoes xtext (RFC 3461 4). What is not valid stays as it is.
pub(super) fn xtext(value: &str) -> String {
    let bytes = value.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'+', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// An address as `utf-8` has it (RFC 6533 3): as characters, or all in ASCII. `quoted` says that
/// its ASCII part has the form already.
pub(super) fn utf8_address(address: &str, ascii: bool, quoted: bool) -> String {
    let mut out = String::with_capacity(address.len());
    for c in address.chars() {
        let special = matches!(c, ' ' | '\\' | '+' | '=') && !quoted;
        if special || visible(c, ascii) != c {
            let _ = write!(out, "\\x{{{:02X}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Appends a field. A value that no line can hold is folded; a space can not be part of one that
/// gets this long.
pub(super) fn field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    for piece in pieces(value) {
        out.push(b' ');
        out.extend_from_slice(piece.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// The text in pieces that a line can hold.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (piece, after) = text.split_at(text.floor_char_boundary(HARD));
        rest = (!after.is_empty()).then_some(after);
        Some(piece)
    })
}

/// Appends words in lines of about 72 characters, each indented.
pub(super) fn wrap(indent: usize, text: &str, out: &mut String) {
    const WIDTH: usize = 72;
    let mut width = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()).flat_map(pieces) {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            out.push_str("\r\n");
            width = 0;
        }
        if width == 0 {
            out.extend(std::iter::repeat_n(' ', indent));
            width = indent;
        } else {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
    }
    out.push_str("\r\n");
}

/// Whether it can be sent as it is: printable ASCII, whole line ends, no line too long.
pub(super) fn is_plain(text: &[u8]) -> bool {
    let mut line = 0;
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' if bytes.next_if_eq(&b'\n').is_some() => line = 0,
            b'\t' | b' '..=b'~' => line += 1,
            _ => return false,
        }
        if line > LINE {
            return false;
        }
    }
    true
}

/// Appends it as quoted-printable (RFC 2045 6.7). Only CRLF is a line end; all else that is not
/// printable is encoded, so that decoding gives the same bytes.
pub(super) fn quoted_printable(text: &[u8], out: &mut Vec<u8>) {
    const WIDTH: usize = 76;
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut width = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
            width = 0;
            at += 2;
            continue;
        }
        let byte = text[at];
        at += 1;
        let last = at == text.len() || text[at..].starts_with(b"\r\n");
        // Blanks at the end of a line may get lost on the way.
        let literal = match byte {
            b' ' | b'\t' => !last,
            b'!'..=b'~' => byte != b'=',
            _ => false,
        };
        // One column is for the `=` of a line that goes on.
        if width + if literal { 1 } else { 3 } > WIDTH - 1 {
            out.extend_from_slice(b"=\r\n");
            width = 0;
        }
        if literal {
            out.push(byte);
            width += 1;
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'=', DIGITS[high], DIGITS[low]]);
            width += 3;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn text_is_one_line_within_its_bound() {
        assert_eq!(clean(" a\t\r\nb  c\u{202e}\u{85} ", false, 100), "a ??b c??");
        assert_eq!(clean("für", true, 100), "f?r");
        assert_eq!(clean("abcdef", false, 9), "abcdef");
        assert_eq!(clean("abcdefg", false, 9), "abcdef...");
        assert_eq!(clean("äääää", false, 8), "ää...");
    }

    #[test]
    fn xtext_is_undone() {
        assert_eq!(xtext("Bob+2B1+3D"), "Bob+1=");
        assert_eq!(xtext("a+2"), "a+2");
        assert_eq!(xtext("a+zz+"), "a+zz+");
        assert_eq!(xtext("+0D+0A"), "\r\n");
    }

    #[test]
    fn utf8_addresses_have_both_forms() {
        assert_eq!(utf8_address("用+a@例", true, false), "\\x{7528}\\x{2B}a@\\x{4F8B}");
        assert_eq!(utf8_address("用+a@例", false, false), "用\\x{2B}a@例");
        assert_eq!(utf8_address("é\\x{2B}@a", true, true), "\\x{E9}\\x{2B}@a");
        assert_eq!(utf8_address("a\u{85}b@é", false, false), "a\\x{85}b@é");
    }

    #[test]
    fn mailboxes_are_what_rfc_5322_takes() {
        let shown = |text: &str| mailbox(&Address::parse(text).unwrap(), "relay.example");
        assert_eq!(shown("a.b@x.example"), "<a.b@x.example>");
        assert_eq!(shown("a..b.@x.example"), "<\"a..b.\"@x.example>");
        assert_eq!(shown("\"a b\"@x.example"), "<\"a b\"@x.example>");
        assert_eq!(shown("postmaster"), "<postmaster@relay.example>");
    }

    #[test]
    fn message_ids_are_found() {
        let found = |header: &str| message_id(header.as_bytes()).map(str::to_owned);
        assert_eq!(found("A: b\r\nMESSAGE-id: <a@b>\r\n").as_deref(), Some("<a@b>"));
        assert_eq!(found("Message-ID:\r\n <a@b>\r\n").as_deref(), Some("<a@b>"));
        assert_eq!(found("A: b\r\n\r\nMessage-ID: <a@b>\r\n"), None);
        assert_eq!(found("Message-ID: <a@b> <c@d>\r\n"), None);
        assert_eq!(found("Message-ID: <a\r@b>\r\n"), None);
        let long = |inner: usize| format!("Message-ID: <{}@b>\r\n", "a".repeat(inner - 2));
        assert!(found(&long(400)).is_some() && found(&long(401)).is_none());
    }

    #[test]
    fn quoted_printable_is_as_rfc_2045_has_it() {
        let encoded = |text: &[u8]| {
            let mut out = Vec::new();
            quoted_printable(text, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(encoded("é = 1 \r\n\tx\t".as_bytes()), "=C3=A9 =3D 1=20\r\n\tx=09");
        assert_eq!(encoded(b"a\rb\nc\0"), "a=0Db=0Ac=00");
        assert_eq!(encoded(&[b'a'; 80]), format!("{}=\r\n{}", "a".repeat(75), "a".repeat(5)));
        assert_eq!(encoded(&[0xff; 26]), format!("{}=\r\n=FF", "=FF".repeat(25)));
    }

    #[test]
    fn plain_is_what_a_line_can_carry() {
        assert!(is_plain(b"") && is_plain(b"a\tb\r\nc") && is_plain(&[b'a'; LINE]));
        assert!(!is_plain(&[b'a'; LINE + 1]));
        for text in [&b"a\r"[..], b"a\nb", b"\r\r\n", b"\0", b"\xc3\xa9", b"\x7f"] {
            assert!(!is_plain(text), "{text:?}");
        }
    }

    #[test]
    fn the_last_date_is_a_date() {
        assert_eq!(date(Timestamp(1_768_888_800_123)), "Tue, 20 Jan 2026 06:00:00 +0000");
        assert!(date(Timestamp(u64::MAX)).contains(" 9999 "));
    }
}
