//! A message file as the relay would receive it. Floor 4.

use std::{fs::File, io::Read, path::Path};

use wavegate_smtp::{
    BodyFacts, Limits,
    body::{ChunkReceiver, Progress},
};

use super::{Failed, exit};

/// The header block, and the size of the whole.
#[derive(Debug, Default)]
pub(super) struct MessageFile {
    pub(super) headers: Vec<u8>,
    pub(super) size: u64,
}

/// Reads a message and judges it as the relay does.
pub(super) fn read(path: &Path, max_size: u64) -> Result<MessageFile, Failed> {
    let shown = path.display();
    let unreadable = |error| Failed::new(exit::NO_INPUT, format!("{shown}: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    // One byte too many is enough to know.
    file.take(max_size.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    parse(&bytes, max_size).map_err(|why| Failed::new(exit::DATA, format!("{shown}: {why}")))
}

fn parse(bytes: &[u8], max_size: u64) -> Result<MessageFile, String> {
    let bytes = with_crlf(bytes);
    let facts = judge(&bytes, max_size)?;
    let header = usize::try_from(facts.header_size).unwrap_or(bytes.len()).min(bytes.len());
    Ok(MessageFile { headers: bytes[..header].to_vec(), size: facts.size })
}

/// What a relay that takes messages of this size finds; the error says why it would refuse.
pub(super) fn judge(bytes: &[u8], max_size: u64) -> Result<BodyFacts, String> {
    let limits = Limits::default();
    let mut receiver = ChunkReceiver::default();
    let size = bytes.len() as u64;
    if !receiver.begin(size, max_size) {
        return Err(format!("the message has more than {max_size} bytes (limits.message_size)"));
    }
    let mut rest = bytes;
    loop {
        let (used, progress) = receiver.receive(rest, &limits);
        rest = &rest[used..];
        if rest.is_empty() || progress == Progress::End {
            break;
        }
    }
    receiver
        .finish(&limits, max_size)
        .map_err(|fault| format!("{fault}; the relay would answer {}", fault.reply()))
}

/// Files on disk mostly end their lines in LF alone. One that has no CRLF at all is turned into
/// what would be sent; any other is taken as it is.
fn with_crlf(bytes: &[u8]) -> Vec<u8> {
    if memchr::memchr(b'\r', bytes).is_some() {
        return bytes.to_vec();
    }
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 32);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match line.split_last() {
            Some((b'\n', text)) => {
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            _ => out.extend_from_slice(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn line_ends_of_files_become_those_of_mail() {
        let unix = parse(b"A: b\n\nbody\n", 100).unwrap();
        let mail = parse(b"A: b\r\n\r\nbody\r\n", 100).unwrap();
        assert_eq!(unix.headers, b"A: b\r\n\r\n");
        assert_eq!((&unix.headers, unix.size), (&mail.headers, mail.size));
        assert_eq!(mail.size, 14);
    }

    #[test]
    fn what_the_relay_refuses_is_refused() {
        assert!(parse(b"A: b\r\n\r\nbare\n", 100).unwrap_err().contains("answer 550"));
        assert!(parse(b"A: b\n\nnul\0\n", 100).unwrap_err().contains("answer 550"));
        assert!(parse(&[b'a'; 101], 100).unwrap_err().contains("100 bytes"));
        parse(&[b'a'; 100], 100).unwrap();
        parse(b"", 100).unwrap();
    }

    #[test]
    fn a_file_that_is_missing_is_told() {
        assert_eq!(read(Path::new("no/such/file"), 100).unwrap_err().code, exit::NO_INPUT);
    }
}
