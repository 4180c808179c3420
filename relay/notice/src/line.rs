//! Words and addresses that others wrote, made harmless once. Owns what may stand in a line, a
//! header or a link; escaping for a format is that format's.

use crate::NoticeError;

/// The longest line of free words, in characters; the rest is cut off and marked. A name longer
/// than this helps no reader, and a mail is read by people.
pub const LINE_LIMIT: usize = 500;

/// The longest mail address, in octets (RFC 5321 4.5.3.1.3: a path of 256 with its brackets).
pub(crate) const ADDRESS_LIMIT: usize = 254;

/// One line of free words: no controls, no line breaks, nothing that turns the direction of the
/// text around it, single spaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line(String);

impl Line {
    pub(crate) fn new(words: &str) -> Self {
        let clean: String = words
            .chars()
            .filter(|&c| !is_invisible(c))
            .map(|c| if c.is_control() || c.is_whitespace() { ' ' } else { c })
            .collect();
        let clean = clean.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        Self(clip(&clean, LINE_LIMIT))
    }

    /// None where nothing is left of it.
    pub(crate) fn some(words: &str) -> Option<Self> {
        let line = Self::new(words);
        (!line.0.is_empty()).then_some(line)
    }

    pub(crate) fn required(words: &str, what: &'static str) -> Result<Self, NoticeError> {
        Self::some(words).ok_or(NoticeError::Missing(what))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// At most `limit` characters, the last an ellipsis where something was cut off.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(limit - 1).collect();
    clipped.push('…');
    clipped
}

/// Characters that show nothing and change how their neighbours show, and those that no document
/// may have. The joiners U+200C and U+200D stay: scripts and emoji need them.
fn is_invisible(c: char) -> bool {
    let code = u32::from(c);
    matches!(code,
        0x00AD | 0x061C | 0x180E | 0x200B | 0x200E..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F
        | 0xFEFF | 0xFDD0..=0xFDEF | 0xFFF9..=0xFFFB | 0xE0000..=0xE0FFF)
        || code & 0xFFFE == 0xFFFE
}

/// A mail address that may stand in any header as it is: dot-atoms (RFC 5322 3.4.1), and domain
/// literals. Quoted local parts and addresses beyond ASCII (RFC 6532) are refused: who has one is
/// told at once, rather than by a bounce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(String);

impl Address {
    pub(crate) fn parse(value: &str, what: &'static str) -> Result<Self, NoticeError> {
        if is_address(value) {
            Ok(Self(value.to_owned()))
        } else {
            Err(NoticeError::Address { what, value: value.to_owned() })
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// RFC 6068 2: what is special in a URL is percent-encoded.
    pub(crate) fn mailto(&self) -> String {
        let mut url = String::from("mailto:");
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"@.-_~+".contains(&byte) {
                url.push(char::from(byte));
            } else {
                url.push_str(&format!("%{byte:02X}"));
            }
        }
        url
    }
}

pub(crate) fn is_address(value: &str) -> bool {
    let Some((local, domain)) = value.rsplit_once('@') else { return false };
    let literal = |domain: &str| {
        domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|inner| {
            !inner.is_empty()
                && inner.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-".contains(&b))
        })
    };
    value.len() <= ADDRESS_LIMIT
        && local.len() <= 64
        && is_dot_atom(local, |byte| b"!#$%&'*+-/=?^_`{|}~".contains(&byte))
        && (is_dot_atom(domain, |byte| byte == b'-') || literal(domain))
}

fn is_dot_atom(text: &str, special: fn(u8) -> bool) -> bool {
    text.split('.').all(|atom| {
        !atom.is_empty() && atom.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
    })
}

/// Where customers turn to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    Url(String),
    Mail(Address),
}

impl Care {
    pub(crate) fn parse(value: &str) -> Result<Self, NoticeError> {
        if value.is_empty() {
            return Err(NoticeError::Missing("the program's contact (customer care)"));
        }
        let bad = || NoticeError::Care(value.to_owned());
        if is_url(value) {
            return Ok(Self::Url(value.to_owned()));
        }
        let address = value.strip_prefix("mailto:").unwrap_or(value);
        Address::parse(address, "customer care").map(Self::Mail).map_err(|_| bad())
    }

    /// As people read it.
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::Url(url) => url,
            Self::Mail(address) => address.as_str(),
        }
    }

    pub(crate) fn link(&self) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Mail(address) => address.mailto(),
        }
    }
}

/// Only what a browser opens as a page, and only characters of RFC 3986: no other scheme gets into
/// a link.
fn is_url(value: &str) -> bool {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&b);
    rest.is_some_and(|rest| {
        rest.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'[')
            && rest.bytes().all(legal)
            && value.len() <= LINE_LIMIT
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_line_is_one_line() {
        for (words, line) in [
            ("acme-prod-1", "acme-prod-1"),
            ("a\r\nBcc: x@example.net", "a Bcc: x@example.net"),
            ("  a \u{a0}\t b\u{2028}c\0 ", "a b c"),
            ("\u{202e}txt.exe\u{2066}\u{feff}\u{ffff}", "txt.exe"),
            ("Zoë 株式会社 👩\u{200d}💻", "Zoë 株式会社 👩\u{200d}💻"),
            ("\r\n\0", ""),
        ] {
            assert_eq!(Line::new(words).as_str(), line);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_marked() {
        let fits = "ä".repeat(LINE_LIMIT);
        assert_eq!(Line::new(&fits).as_str(), fits);
        let cut = Line::new(&"ä".repeat(LINE_LIMIT + 1));
        assert_eq!(cut.as_str().chars().count(), LINE_LIMIT);
        assert!(cut.as_str().ends_with("ä…"));
    }

    #[test]
    fn addresses() {
        for good in ["ada@acme.example", "a.b+c@x-y.example", "o'neil@a.b", "a@[192.0.2.1]", "a@b"]
        {
            assert!(is_address(good), "{good}");
        }
        let long = format!("{}@{}.example", "a".repeat(64), "b".repeat(ADDRESS_LIMIT - 73));
        assert_eq!(long.len(), ADDRESS_LIMIT);
        assert!(is_address(&long));
        assert!(!is_address(&format!("{long}s")));
        for bad in [
            "",
            "ada",
            "@a",
            "a@",
            "a@b@c",
            "a b@c",
            "a@b\r\nBcc: c@d",
            "<a@b>",
            "\"a b\"@c",
            "zoë@acme.example",
            "a@müller.example",
            "a..b@c",
            "a@b.",
            "a@[]",
            "a@[1]x",
            "a,b@c",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn customer_care_is_a_page_or_an_address() {
        let care = |value: &str| Care::parse(value).map(|care| care.link());
        assert_eq!(
            care("https://care.example.net/a?b=c&d").unwrap(),
            "https://care.example.net/a?b=c&d"
        );
        assert_eq!(care("care@example.net").unwrap(), "mailto:care@example.net");
        assert_eq!(care("mailto:a&b?c@example.net").unwrap(), "mailto:a%26b%3Fc@example.net");
        for bad in [
            "javascript:alert(1)",
            "https://",
            "https:// a",
            "https://a/\"onclick=",
            "ftp://a",
            "care",
            "https://a\r\nb",
            "data:text/html,x@y",
            "https:///x",
        ] {
            assert!(matches!(care(bad), Err(NoticeError::Care(_))), "{bad}");
        }
        assert!(matches!(care(""), Err(NoticeError::Missing(_))));
        assert!(care(&format!("https://{}", "a".repeat(LINE_LIMIT - 8))).is_ok());
        assert!(care(&format!("https://{}", "a".repeat(LINE_LIMIT - 7))).is_err());
    }
}
