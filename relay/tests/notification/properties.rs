//! What holds for any notification, whatever strangers put into it.

use mail_parser::{MessageParser, MimeHeaders, PartType};
use proptest::{collection::vec, option, prelude::*, sample::select};
use wavegate::{
    message::MessageId,
    notification::{
        Notification, Original, Outcome, Recipient, Remote, Survey, Terms, Transport, due,
        notification,
    },
};
use wavegate_smtp::{
    Address, Enhanced, Mail, Rcpt, Reply, ReversePath,
    params::{Notify, Ret},
};

use super::{ARRIVED, NOW, bytes, terms};

/// Pieces of hostile text.
fn hostile() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "\r\n",
        "\r",
        "\n",
        "\0",
        "\r\n\r\n",
        "\r\nBcc: x@y",
        "\r\n--=_",
        "--",
        ".",
        "\r\n.\r\n",
        " ",
        "\t",
        "word",
        "=",
        "+",
        "+0D+0A",
        "+00",
        "\\x{D}",
        ";",
        "<a@b>",
        "(",
        "\"",
        "\u{85}",
        "\u{2028}",
        "\u{202e}",
        "é",
        "用户",
        "\u{1f600}",
        "550 ",
        "Action: delivered",
    ]);
    let pieces = vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    prop_oneof![8 => pieces.clone(), 1 => (pieces, 1_usize..200).prop_map(|(text, n)| text.repeat(n))]
}

fn address() -> impl Strategy<Value = Address> {
    let local =
        select(vec!["a", "a..b.", "\"a b\\\" <c@d>;\"", "é", "用户+tag=x", "a\u{85}b\u{2028}"]);
    let long = (1_usize..60, local.clone()).prop_map(|(n, text)| {
        text.trim_matches('"').replace(['\\', '"', ' ', '<', '>', '@', ';'], "").repeat(n)
    });
    let domain = select(vec!["x.example", "例子.example", "[192.0.2.1]", "m_x.example"]);
    (prop_oneof![local.prop_map(str::to_owned), long], domain)
        .prop_filter_map("no address", |(local, domain)| {
            Address::parse(&format!("{local}@{domain}")).ok()
        })
}

fn any_reply() -> impl Strategy<Value = Reply> {
    (200_u16..600, hostile(), any::<bool>()).prop_filter_map(
        "no reply",
        |(code, text, enhanced)| {
            let text: String = text.chars().filter(|c| !c.is_control() || *c == '\n').collect();
            let class = u8::try_from(code / 100).ok()?;
            let enhanced = (enhanced && class != 3).then_some(Enhanced(class, 999, 1));
            Reply::new(code, enhanced, text).ok()
        },
    )
}

#[derive(Clone, Debug)]
struct One {
    rcpt: Rcpt,
    outcome: u8,
    reply: Reply,
    text: String,
    remote: Option<String>,
}

fn one() -> impl Strategy<Value = One> {
    let notify = option::of((any::<bool>(), any::<bool>(), any::<bool>())).prop_map(|wants| {
        wants.map(|(success, failure, delay)| Notify { success, failure, delay })
    });
    let orcpt = option::of((select(vec!["rfc822;", "utf-8;", "x400;", ""]), hostile()))
        .prop_map(|orcpt| orcpt.map(|(kind, text)| format!("{kind}{text}").into()));
    (address(), notify, orcpt, 0_u8..7, any_reply(), hostile(), option::of(hostile())).prop_map(
        |(recipient, notify, orcpt, outcome, reply, text, remote)| One {
            rcpt: Rcpt { recipient, notify, orcpt },
            outcome,
            reply,
            text,
            remote,
        },
    )
}

impl One {
    fn recipient(&self) -> Recipient<'_> {
        let outcome = match self.outcome {
            0 => Outcome::Refused(&self.reply),
            1 => Outcome::Expired(Some(&self.reply)),
            2 => Outcome::Expired(None),
            3 => Outcome::Removed(&self.text),
            4 => Outcome::Delayed { reply: Some(&self.reply), until: Some(NOW) },
            5 => Outcome::Delayed { reply: None, until: None },
            _ => Outcome::Relayed(&self.reply),
        };
        let remote = self.remote.as_deref().map(|name| Remote { name, address: None });
        Recipient { rcpt: &self.rcpt, outcome, remote, last_attempt: Some(NOW) }
    }
}

/// Decodes quoted-printable in the plainest way.
fn decoded(text: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(text).unwrap().replace("=\r\n", "");
    let mut out = Vec::new();
    let mut pieces = text.split('=');
    out.extend_from_slice(pieces.next().unwrap().as_bytes());
    for piece in pieces {
        out.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        out.extend_from_slice(&piece.as_bytes()[2..]);
    }
    out
}

/// The fields of a header block by name; fails where a line is none.
fn names(block: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for line in block.split_terminator("\r\n") {
        if line.starts_with([' ', '\t']) {
            assert!(!names.is_empty() && !line.trim().is_empty(), "{line:?}");
            continue;
        }
        names.push(line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}")).0);
    }
    names
}

/// Whether the names come in this order, each once at most.
fn in_order(names: &[&str], order: &[&str]) {
    let mut order = order.iter();
    for name in names {
        assert!(order.any(|other| other == name), "{name} in {names:?}");
    }
}

/// Header, then the parts as header and body, by the boundary alone.
fn parted(message: &[u8]) -> (String, Vec<(String, Vec<u8>)>) {
    let end = memchr::memmem::find(message, b"\r\n\r\n").unwrap();
    let header = String::from_utf8(message[..end + 2].to_vec()).unwrap();
    let boundary = header.split_once("boundary=\"").unwrap().1.split_once('"').unwrap().0;
    let delimiter = format!("\r\n--{boundary}");
    let body = &message[end + 2..];
    let places: Vec<_> = memchr::memmem::find_iter(body, delimiter.as_bytes()).collect();
    assert_eq!(places.len(), 4);
    assert_eq!(body[places[3] + delimiter.len()..], *b"--\r\n");
    let parts = places.windows(2).map(|pair| {
        let part = body[pair[0] + delimiter.len()..pair[1]].strip_prefix(b"\r\n").unwrap();
        let end = memchr::memmem::find(part, b"\r\n\r\n").unwrap();
        (String::from_utf8(part[..end + 2].to_vec()).unwrap(), part[end + 4..].to_vec())
    });
    let parts = parts.collect();
    (header, parts)
}

/// What holds for the bytes of any notification.
fn check_bytes(made: &Notification, message: &[u8]) {
    let lines: Vec<_> = message.split(|byte| *byte == b'\n').collect();
    let (last, lines) = lines.split_last().unwrap();
    assert!(last.is_empty(), "it ends with a line end");
    for line in lines {
        let line = line.strip_suffix(b"\r").expect("no bare LF");
        assert!(!line.contains(&b'\r') && !line.contains(&0), "no bare CR, no NUL");
        assert!(line.len() <= 998, "{} octets", line.len());
    }
    assert!(made.needs.eight_bit || message.is_ascii());
    let facts = made.facts;
    assert_eq!(facts.size, message.len() as u64);
    assert_eq!(facts.eight_bit, !message.is_ascii());
    assert_eq!(facts.leading_dot, memchr::memmem::find(message, b"\r\n.").is_some());
    let header = memchr::memmem::find(message, b"\r\n\r\n").unwrap() + 4;
    assert_eq!(facts.header_size, header as u64);
    assert_eq!(made.mail.size, Some(facts.size));
    assert_eq!(made.mail.sender, ReversePath::Null);
}

/// What others read of it.
fn check_parsed(message: &[u8]) {
    let parsed = MessageParser::default().parse(message).unwrap();
    let root = &parsed.parts[0];
    let kind = root.content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    let PartType::Multipart(children) = &root.body else { panic!("not a multipart") };
    assert_eq!(children.len(), 3);
}

fn check_fields(header: &str, report: &str, told: usize) {
    in_order(
        &names(header),
        &[
            "Date",
            "From",
            "To",
            "Subject",
            "Message-ID",
            "In-Reply-To",
            "References",
            "Auto-Submitted",
            "MIME-Version",
            "Content-Type",
            "Content-Transfer-Encoding",
        ],
    );
    let groups: Vec<_> = report.split("\r\n\r\n").collect();
    assert_eq!(groups.len(), told + 1);
    in_order(
        &names(groups[0]),
        &["Original-Envelope-Id", "Reporting-MTA", "X-Wavegate-Id", "Arrival-Date"],
    );
    for group in &groups[1..] {
        let names = names(group);
        in_order(
            &names,
            &[
                "Original-Recipient",
                "Final-Recipient",
                "Action",
                "Status",
                "Remote-MTA",
                "Diagnostic-Code",
                "Last-Attempt-Date",
                "Will-Retry-Until",
            ],
        );
        for needed in ["Final-Recipient", "Action", "Status"] {
            assert!(names.contains(&needed), "{needed} in {group}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn any_input_makes_a_sound_one(
        sender in address(),
        envid in option::of(hostile()),
        full: bool,
        all in vec(one(), 1..5),
        (hostname, header, body) in (hostile(), hostile(), hostile()),
        (random, id_bits) in (any::<u128>(), any::<u64>()),
        (eight_bit, smtputf8) in (any::<bool>(), any::<bool>()),
        broken: bool,
    ) {
        let mail = Mail {
            envid: envid.map(Into::into),
            ret: full.then_some(Ret::Full),
            ..Mail::new(ReversePath::Address(sender))
        };
        let mut header = format!("Subject: {header}\r\nMessage-ID: <{body}@b>\r\n").into_bytes();
        if broken {
            header.push(0xff);
        }
        let content = [&header, body.as_bytes()].concat();
        let survey = Survey::of(&content);
        let original = Original {
            id: MessageId::new(ARRIVED, id_bits),
            mail: &mail,
            arrived: ARRIVED,
            header: &header,
            content: Some(&survey),
        };
        let offers = Transport { eight_bit, smtputf8 };
        let terms = Terms { hostname: &hostname, random, offers, ..terms() };
        let recipients: Vec<_> = all.iter().map(One::recipient).collect();
        let told = recipients
            .iter()
            .filter(|one| due(one.rcpt.notify, one.outcome.action()))
            .count();
        let made = notification(&original, &recipients, &terms);
        prop_assert_eq!(made.is_some(), told > 0);
        let Some(made) = made else { return Ok(()) };
        let message = bytes(&made, &content);
        check_bytes(&made, &message);
        check_parsed(&message);
        let (fields, parts) = parted(&message);
        check_fields(&fields, std::str::from_utf8(&parts[1].1).unwrap(), told);
        let (kind, returned) = &parts[2];
        if made.with_content {
            prop_assert_eq!(returned, &content);
        } else {
            let encoded = kind.contains("quoted-printable");
            let returned = if encoded { decoded(returned) } else { returned.clone() };
            let end = match header.starts_with(b"\r\n") {
                true => 0,
                false => memchr::memmem::find(&header, b"\r\n\r\n").map_or(header.len(), |at| at + 2),
            };
            prop_assert_eq!(&returned, &header[..end]);
        }
        if mail.sender.is_ascii() && !made.with_content {
            prop_assert_eq!(made.needs, Transport::default());
        }
    }
}
