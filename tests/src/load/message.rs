//! The messages that the load generator sends, made once before the run.
//!
//! Owns content and its two encodings; knows nothing of sessions. Floor: none (pure).

/// A message as DATA sends it and as BDAT sends it.
#[derive(Clone, Debug)]
pub struct Message {
    /// The content itself: what BDAT carries.
    pub plain: Vec<u8>,
    /// With dots doubled and the final `.` line (RFC 5321 4.5.2): what follows a 354.
    pub stuffed: Vec<u8>,
}

/// A message of exactly `size` bytes (at least the header's), with CRLF at the end of every line.
/// One line in 50 begins with a dot, so that whoever forgets the dots is found out.
pub fn build(size: usize, sender: &str) -> Message {
    let mut plain = format!(
        "From: Campaign <news@{sender}>\r\nTo: customer@example.net\r\nSubject: load\r\n\
         Message-ID: <load@{sender}>\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=us-ascii\r\n\r\n"
    )
    .into_bytes();
    let mut line = 0;
    while plain.len() + 74 + 2 <= size {
        let text = if line % 50 == 1 { b'.' } else { b'a' + line % 26 };
        plain.extend_from_slice(&[text; 1]);
        plain.extend_from_slice(&[b'a' + line % 26; 71]);
        plain.extend_from_slice(b"\r\n");
        line = (line + 1) % 250;
    }
    if let Some(rest) = size.checked_sub(plain.len() + 2) {
        plain.resize(plain.len() + rest, b'z');
        plain.extend_from_slice(b"\r\n");
    }
    Message { stuffed: stuff(&plain), plain }
}

/// Doubles the dot at the start of every line and adds the end of data.
fn stuff(plain: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(plain.len() + plain.len() / 64 + 3);
    for line in plain.split_inclusive(|&byte| byte == b'\n') {
        if line[0] == b'.' {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.extend_from_slice(b".\r\n");
    stuffed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_exact_and_lines_are_whole() {
        for size in [300, 301, 373, 374, 375, 376, 10_240, 100_001] {
            let message = build(size, "mkt.acme.example");
            assert_eq!(message.plain.len(), size);
            assert!(message.plain.ends_with(b"\r\n"));
            assert!(message.stuffed.ends_with(b"\r\n.\r\n"));
        }
    }

    #[test]
    fn dots_are_doubled() {
        assert_eq!(stuff(b".a\r\n..\r\nb.\r\n"), b"..a\r\n...\r\nb.\r\n.\r\n");
        let message = build(10_240, "a.example");
        assert!(message.stuffed.len() > message.plain.len() + 3, "some line begins with a dot");
    }
}
