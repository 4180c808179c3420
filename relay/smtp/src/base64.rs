//! Base64, as AUTH has it on both sides of a session.
//!
//! Owns nothing of what is said in it, but leaves no copy of what it decodes: that is mostly a
//! password.
//!
//! Floor 0.

use zeroize::{Zeroize as _, Zeroizing};

/// RFC 4648 4, padded.
pub(crate) fn encode(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let byte = |at: usize| u32::from(piece.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= piece.len() { digit } else { b'=' });
        }
    }
    out
}

/// Strict base64 (RFC 4648 4): padded, nothing beside the alphabet, no bits set
/// that mean nothing (3.5), so that a text has one spelling.
pub(crate) fn decode(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3));
    for chunk in text[..text.len() - padding].chunks(4) {
        let mut bits: u32 = 0;
        for byte in chunk {
            bits = bits << 6 | u32::from(sextet(*byte)?);
        }
        bits <<= 6 * (4 - chunk.len());
        let mut bytes = bits.to_be_bytes();
        let count = chunk.len() - 1;
        if bytes[1 + count..].iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend_from_slice(&bytes[1..=count]);
        bytes.zeroize();
    }
    Some(out)
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Option<Vec<u8>> {
        decode(text.as_bytes()).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn it_has_one_spelling() {
        // RFC 4648 10.
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decoded(text), Some(bytes.as_bytes().to_vec()), "{text}");
            assert_eq!(encode(bytes.as_bytes()), text.as_bytes());
        }
        assert_eq!(decoded("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
        assert_eq!(encode(&[0xfb, 0xff, 0xbf]), b"+/+/");
        for text in [
            "Zg",
            "Zg=",
            "Z===",
            "====",
            "=",
            "==",
            "Zh==",
            "Zm9=",
            "Zg==Zg==",
            "Zm 9v",
            "Zm9v\r",
            "Zm-_",
            "Zg==\n",
            "=m9v",
            "Z=9v",
            "\u{e9}m9v",
        ] {
            assert_eq!(decoded(text), None, "{text}");
        }
    }
}
