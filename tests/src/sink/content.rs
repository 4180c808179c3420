//! The content of a message as it comes in: where DATA ends, whether its lines are proper.
//!
//! Owns the end of data (RFC 5321 4.1.1.4, only CRLF.CRLF) and the check of line ends; knows
//! nothing of sessions. Floor: none (pure).

use memchr::memmem;

/// The end of data; its first CRLF belongs to the content.
const END: &[u8] = b"\r\n.\r\n";

/// Where a piece of DATA stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes of content at the front.
    pub(super) content: usize,
    /// Bytes to take from the buffer: the content and, when it ended, the final line.
    pub(super) taken: usize,
    /// The data has ended.
    pub(super) ended: bool,
}

/// Finds the end of data in `buffer`; `first` says that the content begins there.
/// Without an end, a tail that may be the start of one is left in the buffer.
pub(super) fn data(buffer: &[u8], first: bool) -> Piece {
    // The CRLF of the DATA line ends an empty content: ".CRLF" alone.
    if first && buffer.starts_with(b".\r\n") {
        return Piece { content: 0, taken: 3, ended: true };
    }
    match memmem::find(buffer, END) {
        Some(at) => Piece { content: at + 2, taken: at + END.len(), ended: true },
        None => {
            let taken = buffer.len().saturating_sub(END.len() - 1);
            Piece { content: taken, taken, ended: false }
        }
    }
}

/// Takes the doubled dots out again (RFC 5321 4.5.2).
pub(super) fn unstuff(stuffed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(stuffed.len());
    let mut rest = stuffed.strip_prefix(b".").unwrap_or(stuffed);
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        plain.extend_from_slice(&rest[..at + 2]);
        rest = &rest[at + 3..];
    }
    plain.extend_from_slice(rest);
    plain
}

/// The content after the header block: behind the first empty line; nothing without one.
pub(super) fn body(content: &[u8]) -> &[u8] {
    match memmem::find(content, b"\r\n\r\n") {
        Some(at) => &content[at + 4..],
        None => &[],
    }
}

/// Watches that every CR stands before an LF, every LF behind a CR, and CRLF at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LineCheck {
    after_cr: bool,
    at_line_start: bool,
    broken: bool,
}

impl LineCheck {
    pub(super) fn feed(&mut self, piece: &[u8]) {
        for at in memchr::memchr2_iter(b'\r', b'\n', piece) {
            let after_cr = if at == 0 { self.after_cr } else { piece[at - 1] == b'\r' };
            let before_lf = at + 1 == piece.len() || piece[at + 1] == b'\n';
            self.broken |= if piece[at] == b'\n' { !after_cr } else { !before_lf };
        }
        if let (Some(&first), Some(&last)) = (piece.first(), piece.last()) {
            self.broken |= self.after_cr && first != b'\n';
            self.after_cr = last == b'\r';
            self.at_line_start = last == b'\n';
        }
    }

    /// Whether all of it was lines that end in CRLF.
    pub(super) fn is_proper(&self) -> bool {
        self.at_line_start && !self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `stream` in pieces of `step` bytes; gives the content and what is left.
    fn receive(stream: &[u8], step: usize) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut content, mut buffer, mut first) = (Vec::new(), Vec::new(), true);
        let mut pieces = stream.chunks(step);
        loop {
            let piece = data(&buffer, first);
            content.extend_from_slice(&buffer[..piece.content]);
            buffer.drain(..piece.taken);
            first &= piece.taken == 0;
            if piece.ended {
                buffer.extend(pieces.flatten());
                return (content, buffer, true);
            }
            match pieces.next() {
                Some(more) => buffer.extend_from_slice(more),
                None => return (content, buffer, false),
            }
        }
    }

    #[test]
    fn the_end_is_found_wherever_the_stream_is_cut() {
        let stream = b"a\r\n..b\r\n\r\n.\r\nQUIT\r\n";
        for step in 1..=stream.len() {
            let (content, rest, ended) = receive(stream, step);
            assert!(ended);
            assert_eq!((&content[..], &rest[..]), (&b"a\r\n..b\r\n\r\n"[..], &b"QUIT\r\n"[..]));
            let (content, rest, ended) = receive(b".\r\nQUIT\r\n", step);
            assert_eq!((&content[..], &rest[..], ended), (&b""[..], &b"QUIT\r\n"[..], true));
        }
    }

    #[test]
    fn other_shapes_do_not_end_it() {
        for shape in ["\n.\n", "\r\n.\n", "\n.\r\n", "\r\n.\r\r\n", "\r.\r", "\r\n.x\r\n"] {
            let stream = format!("a{shape}b\r\n");
            assert!(!receive(stream.as_bytes(), 3).2, "{shape:?}");
        }
    }

    #[test]
    fn dots_come_out() {
        assert_eq!(unstuff(b"..a\r\n...\r\nb.\r\n"), b".a\r\n..\r\nb.\r\n");
        assert_eq!(unstuff(b""), b"");
        assert_eq!(body(b"A: b\r\n\r\nhi\r\n"), b"hi\r\n");
        assert_eq!(body(b"A: b\r\n"), b"");
    }

    #[test]
    fn bare_line_ends_are_seen_wherever_the_stream_is_cut() {
        let proper = |text: &[u8], step: usize| {
            let mut check = LineCheck::default();
            text.chunks(step).for_each(|piece| check.feed(piece));
            check.is_proper()
        };
        for step in 1..8 {
            assert!(proper(b"a\r\n\r\nbc\r\n", step));
            for bad in [&b"a\nb\r\n"[..], b"a\rb\r\n", b"a\r\r\nb\r\n", b"a\r\nb", b"\n", b"a\r"] {
                assert!(!proper(bad, step), "{bad:?} by {step}");
            }
        }
    }
}
