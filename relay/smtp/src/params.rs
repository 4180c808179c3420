//! Values of MAIL and RCPT parameters.
//!
//! Owns their types, their syntax (RFC 1870, 3461, 6152) and how they are
//! written. Which parameter may stand where, and whether its extension was
//! offered, is [`crate::command`]'s.
//!
//! Floor 0.

use crate::limits;

/// BODY (RFC 6152). BINARYMIME is not offered, so it is no value here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// `7BIT`.
    SevenBit,
    /// `8BITMIME`.
    EightBitMime,
}

impl BodyType {
    pub(crate) fn parse(value: &str) -> Option<BodyType> {
        if value.eq_ignore_ascii_case("8BITMIME") {
            Some(BodyType::EightBitMime)
        } else if value.eq_ignore_ascii_case("7BIT") {
            Some(BodyType::SevenBit)
        } else {
            None
        }
    }
}

/// RET (RFC 3461 4.3): how much of the message a bounce returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// All of it.
    Full,
    /// Its header.
    Headers,
}

impl Ret {
    pub(crate) fn parse(value: &str) -> Option<Ret> {
        if value.eq_ignore_ascii_case("FULL") {
            Some(Ret::Full)
        } else if value.eq_ignore_ascii_case("HDRS") {
            Some(Ret::Headers)
        } else {
            None
        }
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Ret::Full => "FULL",
            Ret::Headers => "HDRS",
        }
    }
}

/// NOTIFY (RFC 3461 4.1): when the sender wants to hear of a recipient. All
/// false is `NEVER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    /// When it was delivered.
    pub success: bool,
    /// When it cannot be delivered.
    pub failure: bool,
    /// When it takes long.
    pub delay: bool,
}

impl Notify {
    pub(crate) fn parse(value: &str) -> Option<Notify> {
        let mut notify = Notify::default();
        if value.eq_ignore_ascii_case("NEVER") {
            return Some(notify);
        }
        for word in value.split(',') {
            let flag = if word.eq_ignore_ascii_case("SUCCESS") {
                &mut notify.success
            } else if word.eq_ignore_ascii_case("FAILURE") {
                &mut notify.failure
            } else if word.eq_ignore_ascii_case("DELAY") {
                &mut notify.delay
            } else {
                return None;
            };
            *flag = true;
        }
        Some(notify)
    }

    /// Appends it as it is written.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        let words = [(self.success, "SUCCESS"), (self.failure, "FAILURE"), (self.delay, "DELAY")];
        let mut first = true;
        for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(word.as_bytes());
        }
        if first {
            out.extend_from_slice(b"NEVER");
        }
    }
}

/// Whether it is xtext (RFC 3461 4): printable, `+` and `=` only as `+XX`
/// with upper-case digits.
fn is_xtext(value: &str) -> bool {
    let bytes = value.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => {
                let hex = |offset: usize| {
                    matches!(bytes.get(at + offset), Some(b'0'..=b'9' | b'A'..=b'F'))
                };
                if !(hex(1) && hex(2)) {
                    return false;
                }
                at += 2;
            }
            b'=' => return false,
            b'!'..=b'~' => {}
            _ => return false,
        }
        at += 1;
    }
    true
}

/// What xtext stands for (RFC 3461 4).
pub(crate) fn xtext(value: &str) -> Option<Vec<u8>> {
    // An older encoding has `=` as it is.
    if !value.split('=').all(is_xtext) {
        return None;
    }
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        out.push(match byte {
            b'+' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?,
            other => other,
        });
    }
    Some(out)
}

/// Whether it is an AUTH value of MAIL (RFC 4954 3): xtext, or `<>` for nobody.
pub(crate) fn is_auth(value: &str) -> bool {
    value == "<>" || !value.is_empty() && value.len() <= limits::AUTH_PARAMETER && is_xtext(value)
}

/// Whether it is an ENVID value (RFC 3461 4.4).
pub(crate) fn is_envid(value: &str) -> bool {
    !value.is_empty() && value.len() <= limits::ENVID && is_xtext(value)
}

/// Whether it is an ORCPT value: a type, `;`, xtext (RFC 3461 4.2). The type
/// `utf-8` may hold the characters themselves (RFC 6533 3).
pub(crate) fn is_orcpt(value: &str) -> bool {
    let Some((kind, address)) = value.split_once(';') else { return false };
    let kind_valid = !kind.is_empty()
        && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    if !kind_valid || address.is_empty() || value.len() > limits::ORCPT {
        return false;
    }
    if kind.eq_ignore_ascii_case("utf-8") {
        return address.chars().all(|c| !c.is_control() && c != '=' && c != ' ');
    }
    is_xtext(address)
}

/// A SIZE value: up to 20 digits (RFC 1870 3). What does not fit is as large
/// as can be, so that it is refused as too large.
pub(crate) fn size(value: &str) -> Option<u64> {
    let valid = matches!(value.len(), 1..=20) && value.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| value.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("99999999999999999999"), Some(u64::MAX));
        assert_eq!(size("999999999999999999999"), None);
        assert_eq!(size("-1"), None);
        assert!(is_envid("QQ314159") && is_envid("a+2Bb") && !is_envid("a+2bb"));
        assert!(!is_envid("") && !is_envid("a+2") && !is_envid("a=b") && !is_envid("a b"));
        assert!(is_envid(&"a".repeat(limits::ENVID)) && !is_envid(&"a".repeat(limits::ENVID + 1)));
        assert!(is_auth("<>") && is_auth("ada+3Dx@example.com") && !is_auth("") && !is_auth("a=b"));
        let long = |count| is_auth(&"a".repeat(count));
        assert!(long(limits::AUTH_PARAMETER) && !long(limits::AUTH_PARAMETER + 1));
        assert_eq!(xtext("a+2Bb=c").as_deref(), Some(&b"a+b=c"[..]));
        assert_eq!((xtext("a+2"), xtext("+zz"), xtext("a b")), (None, None, None));
        assert!(is_orcpt("rfc822;Bob+2B1@example.com") && !is_orcpt("rfc822") && !is_orcpt(";a"));
        assert!(is_orcpt("utf-8;\u{7528}@example") && !is_orcpt("rfc822;\u{7528}@example"));
        let mut out = Vec::new();
        let both = Notify { success: true, delay: true, failure: false };
        assert_eq!(Notify::parse("delay,SUCCESS"), Some(both));
        both.write(&mut out);
        Notify::default().write(&mut out);
        assert_eq!(out, b"SUCCESS,DELAYNEVER");
        assert_eq!(Notify::parse("NEVER,DELAY"), None);
        assert_eq!(Notify::parse(""), None);
    }
}
