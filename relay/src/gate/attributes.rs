//! What policies asked to see of a message beside its core, and the header fields that the plan
//! knows instances by. Floor 3.

use mail_parser::{HeaderName, HeaderValue, MessageParser};

use super::Subject;
use crate::plan::Plan;

/// Longest value of one attribute; the rest is cut off. Policies decide by what is at the
/// front, and the bound keeps a header bomb out of the guest's memory.
const VALUE: usize = 8 * 1024;
/// Most values in all.
const VALUES: usize = 256;

/// Attributes by name, in the order in which they were asked for. Costs nothing where none is.
/// `headers` are the message's fields, if they were parsed already.
pub(super) fn collect(
    needs: &[String],
    subject: &Subject<'_>,
    headers: &mut Option<Vec<(String, String)>>,
) -> Vec<(String, String)> {
    let mut attributes = Vec::new();
    for need in needs {
        match need.as_str() {
            "helo" => push(&mut attributes, need, &subject.source.helo),
            "client-name" => {
                if let Some(name) = &subject.source.name {
                    push(&mut attributes, need, name);
                }
            }
            "last-reply" => {
                if let Some(reply) = subject.last_reply {
                    push(&mut attributes, need, reply);
                }
            }
            "listener" => push(&mut attributes, need, &subject.source.listener),
            "tls" => {
                if let Some(secured) = subject.source.secured {
                    push(&mut attributes, need, secured.version());
                }
            }
            "original-destination" => {
                if let Some(destination) = subject.source.destination {
                    push(&mut attributes, need, &destination.to_string());
                }
            }
            "auth-user" => {
                if let Some(user) = &subject.source.user {
                    push(&mut attributes, need, user);
                }
            }
            other => {
                if let Some(wanted) = other.strip_prefix("header:") {
                    let headers = headers.get_or_insert_with(|| parse(subject.headers));
                    for (_, value) in
                        headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted))
                    {
                        push(&mut attributes, need, value);
                    }
                }
            }
        }
    }
    attributes
}

/// Whether any of these attributes, or the plan, needs the header block.
pub fn wants_headers(needs: &[String], plan: &Plan) -> bool {
    plan.wants_headers() || needs.iter().any(|need| need.starts_with("header:"))
}

fn push(attributes: &mut Vec<(String, String)>, name: &str, value: &str) {
    if attributes.len() < VALUES {
        attributes.push((name.to_owned(), cut(value).to_owned()));
    }
}

fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(VALUE)]
}

/// Every header field as decoded text (RFC 2047).
pub(super) fn parse(block: &[u8]) -> Vec<(String, String)> {
    // Without a header of its own the parser would not ask its default: it would parse addresses,
    // dates and ids as such, and leave all else undecoded.
    let parser = MessageParser::new().header_text(HeaderName::Subject).default_header_text();
    let Some(message) = parser.parse_headers(block) else { return Vec::new() };
    message
        .headers()
        .iter()
        .filter_map(|header| match header.value() {
            // Unfolded (RFC 5322 2.2.3): a policy sees one line.
            HeaderValue::Text(text) => Some((header.name().to_owned(), text.to_string())),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]
    use super::*;
    use crate::message::{Secured, Source};
    use std::sync::LazyLock;

    static SOURCE: LazyLock<Source> = LazyLock::new(|| {
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 4711));
        Source { helo: "mta.example".to_owned(), ..Source::new(peer, "in") }
    });

    fn subject(headers: &[u8]) -> Subject<'_> {
        Subject {
            id: "id",
            source: &SOURCE,
            sender: "a@b.example",
            sender_domain: "b.example",
            recipients: &["c@d.example"],
            size: 1,
            on_behalf: None,
            received: None,
            attempts: 0,
            last_reply: None,
            headers,
        }
    }

    fn all(needs: &[String], subject: &Subject<'_>) -> Vec<(String, String)> {
        collect(needs, subject, &mut None)
    }

    fn needs(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn headers_are_decoded_and_given_once_a_field() {
        let block =
            b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nX-Tag: one\r\nx-tag: two\r\n three\r\n\r\n";
        let found =
            all(&needs(&["header:x-tag", "helo", "header:subject", "tls"]), &subject(block));
        let expected = [
            ("header:x-tag", "one"),
            ("header:x-tag", "two three"),
            ("helo", "mta.example"),
            ("header:subject", "Grüße"),
        ];
        let found: Vec<_> = found.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn tls_is_its_version_and_left_out_without_it() {
        let secured = Some(Secured { cipher: 0, resumed: false });
        let source = Source { secured, ..SOURCE.clone() };
        let under_tls = Subject { source: &source, ..subject(b"") };
        let expected = [("tls".to_owned(), "TLSv1.3".to_owned())];
        assert_eq!(all(&needs(&["tls"]), &under_tls), expected);
        assert_eq!(all(&needs(&["tls"]), &subject(b"")), []);
    }

    #[test]
    fn where_a_client_wanted_to_go_is_left_out_where_nobody_knows() {
        let destination = Some("[2001:db8::1]:25".parse().unwrap());
        let source = Source { destination, ..SOURCE.clone() };
        let redirected = Subject { source: &source, ..subject(b"") };
        let name = "original-destination";
        let expected = [(name.to_owned(), "[2001:db8::1]:25".to_owned())];
        assert_eq!(all(&needs(&[name]), &redirected), expected);
        assert_eq!(all(&needs(&[name]), &subject(b"")), []);
    }

    #[test]
    fn a_user_is_who_has_logged_in() {
        let source = Source { user: Some("ada".to_owned()), ..SOURCE.clone() };
        let logged_in = Subject { source: &source, ..subject(b"") };
        let expected = [("auth-user".to_owned(), "ada".to_owned())];
        assert_eq!(all(&needs(&["auth-user"]), &logged_in), expected);
        assert_eq!(all(&needs(&["auth-user"]), &subject(b"")), []);
    }

    #[test]
    fn every_field_is_text_whatever_its_name() {
        let block = b"From: =?utf-8?q?J=C3=B6rg?= <j@a.example>\r\nX-I:\r\n =?utf-8?q?o=6Ee?= \r\n\
            Message-ID: <1@a.example>\r\nList-Id: news <l.a.example>\r\nDate: today\r\n\r\n";
        let names =
            ["header:from", "header:x-i", "header:message-id", "header:list-id", "header:date"];
        let found = all(&needs(&names), &subject(block));
        let found: Vec<_> = found.iter().map(|(_, value)| value.as_str()).collect();
        let expected =
            ["J\u{f6}rg <j@a.example>", "one", "<1@a.example>", "news <l.a.example>", "today"];
        assert_eq!(found, expected);
    }

    #[test]
    fn values_are_bounded_and_cut_between_characters() {
        let mut block = b"X-Long: ".to_vec();
        block.extend("ä".repeat(VALUE).bytes());
        block.extend(b"\r\n\r\n");
        let found = all(&needs(&["header:x-long"]), &subject(&block));
        assert!(found[0].1.len() <= VALUE && found[0].1.len() > VALUE - 4);
        let many = "X-A: b\r\n".repeat(2 * VALUES);
        assert_eq!(all(&needs(&["header:x-a"]), &subject(many.as_bytes())).len(), VALUES);
    }

    #[test]
    fn what_is_not_a_header_gives_nothing() {
        for block in [&b""[..], b"\r\n", b"\xff\xfe\x00", b"no colon here\r\n\r\n"] {
            assert!(all(&needs(&["header:subject"]), &subject(block)).is_empty());
        }
    }
}
