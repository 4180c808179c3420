//! The part that returns the message, or its header.
//!
//! Owns how much of it goes back (RFC 3461 4.3), and in which media type and encoding it can.
//! Does not own the message: where it goes back whole, its bytes follow what is written here.
//!
//! Floor 0.

use wavegate_smtp::params::Ret;

use super::{Action, HEADER, Original, Terms, Transport, text};

/// What is known of a message's content from its bytes going by once.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    size: u64,
    line: u64,
    longest: u64,
    last: u8,
    eight_bit: bool,
    leading_dot: bool,
    /// A CR or LF alone, or a NUL.
    broken: bool,
}

impl Default for Survey {
    fn default() -> Self {
        // As if a line had ended before: the first byte begins one.
        Survey {
            size: 0,
            line: 0,
            longest: 0,
            last: b'\n',
            eight_bit: false,
            leading_dot: false,
            broken: false,
        }
    }
}

impl Survey {
    /// Of a message that is in memory.
    pub fn of(content: &[u8]) -> Survey {
        let mut survey = Survey::default();
        survey.read(content);
        survey
    }

    /// Takes the next bytes.
    pub fn read(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        for &byte in bytes {
            self.broken |= byte == 0 || (self.last == b'\r') != (byte == b'\n');
            self.eight_bit |= !byte.is_ascii();
            self.leading_dot |= byte == b'.' && self.last == b'\n';
            match byte {
                b'\n' => self.line = 0,
                b'\r' => {}
                _ => self.line += 1,
            }
            self.longest = self.longest.max(self.line);
            self.last = byte;
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// It has bytes beyond ASCII.
    pub fn eight_bit(&self) -> bool {
        self.eight_bit
    }

    /// A line starts with a dot.
    pub fn leading_dot(&self) -> bool {
        self.leading_dot
    }

    /// Whether a part that cannot be encoded can hold it (RFC 2046 5.2.1, RFC 2045 2.7, 2.8).
    fn is_sound(&self) -> bool {
        !self.broken && self.last != b'\r' && self.longest <= text::LINE as u64
    }
}

/// The part.
pub(super) struct Returned {
    /// All of it, or only its own header if the message follows.
    pub(super) head: Vec<u8>,
    /// The message follows.
    pub(super) content: bool,
    /// The header was too large and is not whole.
    pub(super) cut: bool,
    /// What this part needs.
    pub(super) needs: Transport,
}

/// Decides what goes back and writes it. `global` says that the notification needs SMTPUTF8 in
/// any case.
pub(super) fn returned(
    original: &Original<'_>,
    worst: Action,
    terms: &Terms<'_>,
    global: bool,
) -> Returned {
    let (block, cut) = header_block(original.header);
    if let Some((kind, needs)) = whole(original, worst, terms, global, block) {
        let encoding = if needs.eight_bit { "8bit" } else { "7bit" };
        return Returned {
            head: part("Message", kind, encoding),
            content: true,
            cut: false,
            needs,
        };
    }
    let (head, needs) = header(block, global);
    Returned { head, content: false, cut, needs }
}

/// The media type if the message goes back whole, and what that needs.
fn whole(
    original: &Original<'_>,
    worst: Action,
    terms: &Terms<'_>,
    global: bool,
    block: &[u8],
) -> Option<(&'static str, Transport)> {
    let content = original.content?;
    // RFC 3461 4.3: RET=FULL is for failures only.
    let wanted = original.mail.ret == Some(Ret::Full) && worst == Action::Failed;
    if !wanted || content.size() > terms.whole || !content.is_sound() {
        return None;
    }
    if !content.eight_bit() {
        return Some(("message/rfc822", Transport::default()));
    }
    if block.is_ascii() {
        let needs = Transport { eight_bit: true, smtputf8: false };
        return (global || terms.offers.eight_bit).then_some(("message/rfc822", needs));
    }
    // RFC 6532 3.7; what is not UTF-8 has no media type but as encoded header.
    let needs = Transport { eight_bit: true, smtputf8: true };
    let possible = global || (terms.offers.eight_bit && terms.offers.smtputf8);
    (possible && std::str::from_utf8(block).is_ok()).then_some(("message/global", needs))
}

/// The header alone.
///
/// RFC 6522 4 lets a broken one be encoded, and RFC 6533 4 an international one, so that it
/// comes back as it was and needs no extension.
fn header(block: &[u8], global: bool) -> (Vec<u8>, Transport) {
    if text::is_plain(block) {
        let mut head = part("Message header", "text/rfc822-headers", "7bit");
        head.extend_from_slice(block);
        return (head, Transport::default());
    }
    let international = !block.is_ascii() && std::str::from_utf8(block).is_ok();
    if international && global && is_plain_but_utf8(block) {
        let mut head = part("Message header", "message/global-headers", "8bit");
        head.extend_from_slice(block);
        return (head, Transport { eight_bit: true, smtputf8: true });
    }
    let kind = if international { "message/global-headers" } else { "text/rfc822-headers" };
    let mut head = part("Message header", kind, "quoted-printable");
    text::quoted_printable(block, &mut head);
    (head, Transport::default())
}

/// Whether each line is short and its bytes beyond ASCII are all that is not plain.
fn is_plain_but_utf8(block: &[u8]) -> bool {
    let masked: Vec<u8> =
        block.iter().map(|byte| if byte.is_ascii() { *byte } else { b'x' }).collect();
    text::is_plain(&masked)
}

/// The part's own header.
fn part(description: &str, kind: &str, encoding: &str) -> Vec<u8> {
    format!(
        "Content-Description: {description}\r\n\
         Content-Type: {kind}\r\n\
         Content-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    .into_bytes()
}

/// The fields up to the empty line, at most [`HEADER`] bytes; whether any were left off.
fn header_block(header: &[u8]) -> (&[u8], bool) {
    let end = match header.starts_with(b"\r\n") {
        true => 0,
        false => memchr::memmem::find(header, b"\r\n\r\n").map_or(header.len(), |at| at + 2),
    };
    let block = &header[..end];
    if block.len() <= HEADER {
        return (block, false);
    }
    let block = &block[..HEADER];
    // Before the last field that is not whole. One that fills all is cut where it may be.
    let fields = memchr::memmem::rfind_iter(block, b"\r\n")
        .map(|at| at + 2)
        .find(|at| block.get(*at).is_some_and(|byte| !matches!(byte, b' ' | b'\t')));
    (&block[..fields.unwrap_or_else(|| whole_characters(block))], true)
}

/// The length less that of a character, or a line end, that was cut.
fn whole_characters(block: &[u8]) -> usize {
    match std::str::from_utf8(block) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ if block.ends_with(b"\r") => block.len() - 1,
        _ => block.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survey_is_the_same_however_it_is_split() {
        let content = b"A: b\r\n\r\n.\xc3\xa9 long line\r\nend";
        let whole = Survey::of(content);
        let mut split = Survey::default();
        content.iter().for_each(|byte| split.read(&[*byte]));
        assert_eq!(format!("{whole:?}"), format!("{split:?}"));
        assert!(whole.eight_bit() && whole.leading_dot() && whole.is_sound());
        assert_eq!((whole.size(), whole.longest), (content.len() as u64, 13));
    }

    #[test]
    fn what_no_part_can_hold_is_not_sound() {
        for content in [&b"a\rb"[..], b"a\nb", b"\n", b"a\r", b"\r\r\n", b"a\0"] {
            assert!(!Survey::of(content).is_sound(), "{content:?}");
        }
        assert!(Survey::of(&[b'a'; text::LINE]).is_sound());
        assert!(!Survey::of(&[b'a'; text::LINE + 1]).is_sound());
        assert!(Survey::of(b"").is_sound() && !Survey::of(b"a").leading_dot());
    }

    #[test]
    fn the_header_block_ends_where_it_ends() {
        assert_eq!(header_block(b"A: b\r\n\r\nbody"), (&b"A: b\r\n"[..], false));
        assert_eq!(header_block(b"\r\nbody"), (&b""[..], false));
        assert_eq!(header_block(b"A: b"), (&b"A: b"[..], false));
    }

    #[test]
    fn a_large_header_is_cut_between_fields() {
        let first = b"A: b\r\n".repeat(HEADER / 6);
        let at = [&first[..], &b"B: ".repeat(10)[..HEADER - first.len()]].concat();
        assert_eq!(header_block(&at), (&at[..], false));
        let past = [&first[..], b"B: c\r\n d\r\n"].concat();
        assert_eq!(header_block(&past), (&first[..], true));
        // One field that fills all of it: no character is cut in two.
        let one = "é".repeat(HEADER);
        let odd = format!("A:{one}");
        assert_eq!(header_block(odd.as_bytes()).0.len(), HEADER);
        let even = format!("A: {one}");
        assert_eq!(header_block(even.as_bytes()).0.len(), HEADER - 1);
    }
}
