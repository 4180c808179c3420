//! The replies that the relay makes itself. Floor 0.
//!
//! What a next hop said is passed on as it is; so what the relay says is marked, and nobody looks
//! for it in the wrong log.

use wavegate_smtp::{Enhanced, Reply};

/// In front of the text of each negative reply of the relay itself, and of each by which it
/// promises delivery.
pub const MARK: &str = "wavegate: ";

/// Longest text; the rest is cut off.
const TEXT: usize = 400;

/// A reply of one line; what cannot be in one becomes a space.
pub fn relay_reply(code: u16, enhanced: Enhanced, text: &str) -> Reply {
    // Each message has one: the text is written once, into what it needs.
    let mut marked = String::with_capacity(MARK.len() + text.len());
    marked.push_str(MARK);
    marked.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT));
    let fallback = || Reply::fixed(451, Enhanced(4, 3, 0), "wavegate: try again later");
    Reply::new(code, Some(enhanced), marked).unwrap_or_else(|_| fallback())
}

/// A reply of the protocol core, marked as the relay's.
pub fn marked(reply: &Reply) -> Reply {
    let class = u8::try_from(reply.code() / 100).unwrap_or(4);
    let text = reply.lines().collect::<Vec<_>>().join(" ");
    relay_reply(reply.code(), reply.enhanced().unwrap_or(Enhanced(class, 0, 0)), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_relay_says_is_marked_and_bounded() {
        let reply = relay_reply(451, Enhanced(4, 3, 5), "no\r\nroute");
        assert_eq!(reply.to_string(), "451 4.3.5 wavegate: no  route");
        let reply = relay_reply(550, Enhanced(5, 7, 1), &"\u{e4}".repeat(9 * TEXT));
        assert_eq!(reply.lines().map(|line| line.chars().count()).sum::<usize>(), TEXT + 10);
        // Parts that do not fit each other make a reply all the same.
        assert_eq!(relay_reply(250, Enhanced(5, 0, 0), "x").code(), 451);
    }

    #[test]
    fn a_reply_of_the_core_keeps_its_codes() {
        let core = Reply::fixed(552, Enhanced(5, 3, 4), "Message too large");
        assert_eq!(marked(&core).to_string(), "552 5.3.4 wavegate: Message too large");
    }
}
