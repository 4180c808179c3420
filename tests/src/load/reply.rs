//! The reply parser of the load generator: strict, so that a relay's malformed reply is an error.
//!
//! Owns the grammar of RFC 5321 4.2 over a buffer; reads nothing itself. Floor: none (pure).

/// A reply that is not ended by then is refused: EHLO replies are the longest that we expect.
pub const MAX_REPLY: usize = 16 * 1024;

/// A complete reply at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The code, 200 to 599.
    pub code: u16,
    /// How many bytes of the buffer it took, the last CRLF included.
    pub len: usize,
}

/// What is wrong with a reply: always the server's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadReply {
    /// Not three digits in 200 to 599, then a space, a hyphen or the end of the line.
    Syntax,
    /// Lines of one reply with different codes (RFC 5321 4.2.1).
    MixedCodes,
    /// A line that ends in a bare LF.
    BareLineFeed,
    /// More than [`MAX_REPLY`] bytes.
    TooLong,
}

/// Reads one reply; `None` when it is not complete yet.
pub fn parse(buffer: &[u8]) -> Result<Option<Reply>, BadReply> {
    let mut start = 0;
    let mut first = None;
    while let Some(newline) = memchr::memchr(b'\n', &buffer[start..]) {
        let end = start + newline;
        if newline == 0 || buffer[end - 1] != b'\r' {
            return Err(BadReply::BareLineFeed);
        }
        let (code, more) = line(&buffer[start..end - 1])?;
        if *first.get_or_insert(code) != code {
            return Err(BadReply::MixedCodes);
        }
        start = end + 1;
        if start > MAX_REPLY {
            return Err(BadReply::TooLong);
        }
        if !more {
            return Ok(Some(Reply { code, len: start }));
        }
    }
    if buffer.len() > MAX_REPLY { Err(BadReply::TooLong) } else { Ok(None) }
}

/// The keywords of an EHLO reply, upper case, with their parameters.
pub fn keywords(reply: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(reply)
        .lines()
        .skip(1)
        .filter_map(|line| line.get(4..))
        .map(|text| text.trim().to_ascii_uppercase())
        .collect()
}

/// The code of a line and whether another line follows.
fn line(line: &[u8]) -> Result<(u16, bool), BadReply> {
    let &[a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ref rest @ ..] = line else {
        return Err(BadReply::Syntax);
    };
    let code = [a, b, c].iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.first() {
        Some(b'-') => Ok((code, true)),
        Some(b' ') | None => Ok((code, false)),
        Some(_) => Err(BadReply::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str) -> Option<(u16, usize)> {
        parse(text.as_bytes()).expect("well formed").map(|reply| (reply.code, reply.len))
    }

    #[test]
    fn one_line_and_nothing_of_the_next() {
        assert_eq!(ok("250 2.1.0 ok\r\n354 go\r\n"), Some((250, 14)));
        assert_eq!(ok("250\r\n"), Some((250, 5)));
    }

    #[test]
    fn several_lines() {
        let text = "250-a.example\r\n250-PIPELINING\r\n250 SIZE 10\r\n";
        assert_eq!(ok(text), Some((250, text.len())));
        assert_eq!(keywords(text.as_bytes()), ["PIPELINING", "SIZE 10"]);
        for cut in 0..text.len() {
            assert_eq!(ok(&text[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn malformed_replies_are_named() {
        let bad = |text: &str| parse(text.as_bytes()).expect_err("malformed");
        assert_eq!(bad("250 ok\n"), BadReply::BareLineFeed);
        assert_eq!(bad("\n"), BadReply::BareLineFeed);
        assert_eq!(bad("hello\r\n"), BadReply::Syntax);
        assert_eq!(bad("150 ok\r\n"), BadReply::Syntax);
        assert_eq!(bad("2500 ok\r\n"), BadReply::Syntax);
        assert_eq!(bad("\r\n"), BadReply::Syntax);
        assert_eq!(bad("250-a\r\n251 b\r\n"), BadReply::MixedCodes);
        assert_eq!(bad(&"250-a\r\n".repeat(MAX_REPLY / 7 + 1)), BadReply::TooLong);
        assert_eq!(bad(&"a".repeat(MAX_REPLY + 1)), BadReply::TooLong);
    }
}
