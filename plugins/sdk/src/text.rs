//! Small text helpers that policies share: domains, patterns, replies. Owns no decision.

use crate::types::Reply;

/// The most that the contract lets a reply's text have, in bytes.
pub const MAX_REPLY: usize = 400;

/// The domain of an address as given; empty where there is none, as in the empty reverse path.
pub fn domain_of(address: &str) -> &str {
    // The last `@`: a quoted local part may have others (RFC 5321 4.1.2).
    address.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// True where `text` is what `pattern` says, without regard to the case of ASCII letters. `*`
/// stands for any text, also none; all else for itself.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // The last star, and how much of the text it has taken: the only place to go back to, so
    // the time is at most the product of the lengths.
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|byte| byte.eq_ignore_ascii_case(&text[t])) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// True where one of the patterns matches, or there are none: what is not asked for is met.
pub fn matches_any(patterns: &[String], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, text))
}

/// A `451` reply: the sender keeps the message and comes again.
pub fn defer(enhanced: &str, text: &str) -> Reply {
    Reply { code: 451, enhanced: enhanced.to_owned(), text: printable(text) }
}

/// A `550` reply: the message is refused for good.
pub fn refuse(enhanced: &str, text: &str) -> Reply {
    Reply { code: 550, enhanced: enhanced.to_owned(), text: printable(text) }
}

/// The text as a reply may carry it: printable ASCII (RFC 5321 4.2.1), not too long.
fn printable(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) { c } else { '?' }).take(MAX_REPLY).collect()
}

/// True for what may stand in the text of a reply.
pub fn is_printable(c: char) -> bool {
    c == ' ' || c.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_what_follows_the_last_at() {
        assert_eq!(domain_of("a@Example.com"), "Example.com");
        assert_eq!(domain_of("\"a@b\"@c.example"), "c.example");
        assert_eq!(domain_of("postmaster"), "");
        assert_eq!(domain_of(""), "");
    }

    #[test]
    fn patterns() {
        let yes = [
            ("", ""),
            ("*", ""),
            ("*", "a"),
            ("a", "A"),
            ("*.example", "mkt.EXAMPLE"),
            ("a*b*c", "aXbXbYc"),
            ("a**", "a"),
            ("*ab", "aab"),
            ("\u{e9}*", "\u{e9}t\u{e9}"),
        ];
        let no = [("", "a"), ("a", ""), ("a", "ab"), ("*a", "ab"), ("a*b", "a"), ("?", "a")];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_stars_takes_bounded_time() {
        assert!(!matches(&"*a".repeat(100), &"a".repeat(99)));
        assert!(!matches(&("*a".repeat(500) + "b"), &"a".repeat(10_000)));
    }

    #[test]
    fn a_reply_is_one_printable_line() {
        let reply = defer("4.7.0", "one\r\ntwo \u{e9}");
        assert_eq!((reply.code, reply.text.as_str()), (451, "one??two ?"));
        assert_eq!(refuse("5.7.1", &"x".repeat(1000)).text.len(), MAX_REPLY);
    }
}
