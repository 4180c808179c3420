//! Dot-stuffing of a body that goes out by DATA (RFC 5321 4.5.2).
//!
//! Owns where dots are doubled. Copies nothing: the pieces overlap by the one
//! dot. A body without a line that starts with a dot
//! ([`crate::BodyFacts::leading_dot`]) goes out as it is.
//!
//! Floor 0.

use memchr::memmem;

/// Ends the body after its last CRLF.
pub const END: &[u8] = b".\r\n";

/// The slices to write for one segment of a body, in order. `line_start` says
/// that the segment begins a line: it is the first, or the one before it ended
/// in LF.
pub fn pieces(segment: &[u8], line_start: bool) -> Pieces<'_> {
    Pieces { rest: segment, line_start }
}

/// See [`pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    /// The rest may begin with a dot that was not doubled yet.
    line_start: bool,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let dot = match std::mem::replace(&mut self.line_start, false) {
            true if self.rest[0] == b'.' => Some(0),
            _ => memmem::find(self.rest, b"\n.").map(|at| at + 1),
        };
        let Some(dot) = dot else { return Some(std::mem::take(&mut self.rest)) };
        // Up to and with the dot; the next piece begins with it again.
        let piece = &self.rest[..=dot];
        self.rest = &self.rest[dot..];
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuffed(segments: &[&str]) -> String {
        let mut out = Vec::new();
        let mut line_start = true;
        for segment in segments {
            for piece in pieces(segment.as_bytes(), line_start) {
                out.extend_from_slice(piece);
            }
            line_start = segment.ends_with('\n');
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn doubles_leading_dots_only() {
        assert_eq!(stuffed(&["a.b\r\n.\r\n..\r\nc\r\n"]), "a.b\r\n..\r\n...\r\nc\r\n");
        assert_eq!(stuffed(&[".a\r\n", ".b\r\n.", ".c\r\n"]), "..a\r\n..b\r\n...c\r\n");
        assert_eq!(stuffed(&["."]), "..");
        assert_eq!(stuffed(&[""]), "");
    }
}
