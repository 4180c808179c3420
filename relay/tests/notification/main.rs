//! Notifications as a whole: golden ones, read back by others, and what holds for any.
//!
//! The golden ones are in `golden/`, with LF for CRLF and what each needs in front. Where
//! one differs, the failure says where the new form is, to be read and taken over.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod properties;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use wavegate::{
    message::MessageId,
    notification::{
        HEADER, LISTED, Notification, Original, Outcome, Recipient, Remote, Survey, Terms,
        Transport, WHOLE, notification,
    },
    plan::Timestamp,
};
use wavegate_smtp::{
    Address, Enhanced, Mail, Rcpt, Reply, ReversePath,
    params::{Notify, Ret},
};

const ARRIVED: Timestamp = Timestamp(1_768_888_800_123);
const NOW: Timestamp = Timestamp(1_768_892_460_000);
const HEADERS: &[u8] = b"Received: from app.example ([192.0.2.7])\r\n\
    \tby relay.example with ESMTP id 1; Tue, 20 Jan 2026 06:00:00 +0000\r\n\
    From: Ann <ann@app.example>\r\n\
    To: bob@example.org\r\n\
    Subject: Minutes\r\n\
    Message-ID: <1@app.example>\r\n";

fn terms() -> Terms<'static> {
    Terms {
        hostname: "relay.example",
        now: NOW,
        random: 0x0123_4567_89ab_cdef_0011_2233_4455_6677,
        whole: WHOLE,
        offers: Transport { eight_bit: true, smtputf8: false },
    }
}

fn id() -> MessageId {
    MessageId::new(ARRIVED, 7)
}

fn mail(sender: &str) -> Mail {
    Mail::new(ReversePath::Address(Address::parse(sender).unwrap()))
}

fn rcpt(recipient: &str) -> Rcpt {
    Rcpt::new(Address::parse(recipient).unwrap())
}

fn reply(code: u16, enhanced: Option<Enhanced>, text: &str) -> Reply {
    Reply::new(code, enhanced, text.to_owned()).unwrap()
}

fn remote(name: &str) -> Option<Remote<'_>> {
    Some(Remote { name, address: Some("192.0.2.25".parse().unwrap()) })
}

fn tried<'a>(rcpt: &'a Rcpt, outcome: Outcome<'a>) -> Recipient<'a> {
    Recipient { rcpt, outcome, remote: remote("mx.example.org"), last_attempt: Some(NOW) }
}

fn original<'a>(mail: &'a Mail, header: &'a [u8]) -> Original<'a> {
    Original { id: id(), mail, arrived: ARRIVED, header, content: None }
}

fn bytes(notification: &Notification, content: &[u8]) -> Vec<u8> {
    let content = if notification.with_content { content } else { b"" };
    [&notification.head, content, &notification.tail].concat()
}

/// All golden notifications, by name.
fn golden() -> Vec<(&'static str, Notification, Vec<u8>)> {
    vec![refused(), given_up(), delayed(), relayed(), whole(), utf8_recipient(), utf8_sender()]
}

type Golden = (&'static str, Notification, Vec<u8>);

/// Two failures with one reply each, and one that nobody wants to hear of.
fn refused() -> Golden {
    let mail =
        Mail { envid: Some("QQ+2B314".into()), ret: Some(Ret::Headers), ..mail("ann@app.example") };
    let bob =
        Rcpt { orcpt: Some("rfc822;Bob+2Bwork@example.org".into()), ..rcpt("bob@example.org") };
    let carol = rcpt("\"carol smith\"@example.org");
    let never = Rcpt { notify: Some(Notify::default()), ..rcpt("never@example.org") };
    let unknown =
        reply(550, Some(Enhanced(5, 1, 1)), "No such user here\nSee https://example.org/550");
    let rules = reply(
        554,
        None,
        "Your message looks like one that nobody here has asked for, and this line is long",
    );
    let recipients = [
        tried(&bob, Outcome::Refused(&unknown)),
        tried(&carol, Outcome::Refused(&rules)),
        tried(&never, Outcome::Refused(&unknown)),
    ];
    let made = notification(&original(&mail, HEADERS), &recipients, &terms()).unwrap();
    ("refused", made, Vec::new())
}

/// Expired with a reply and without, removed, and refused by the relay itself.
fn given_up() -> Golden {
    let mail = mail("ann@app.example");
    let [full, silent, spam, policy] =
        ["full@example.org", "silent@example.net", "spam@example.org", "policy@example.org"]
            .map(rcpt);
    let later = reply(452, Some(Enhanced(4, 2, 2)), "Mailbox full");
    let refused = reply(550, Some(Enhanced(5, 7, 1)), "Not during the migration");
    let recipients = [
        tried(&full, Outcome::Expired(Some(&later))),
        Recipient { remote: remote("192.0.2.25"), ..tried(&silent, Outcome::Expired(None)) },
        Recipient {
            remote: None,
            last_attempt: None,
            ..tried(&spam, Outcome::Removed("sent by a broken script, see ticket 12"))
        },
        Recipient {
            remote: None,
            last_attempt: None,
            ..tried(&policy, Outcome::Refused(&refused))
        },
    ];
    let made = notification(&original(&mail, HEADERS), &recipients, &terms()).unwrap();
    ("given-up", made, Vec::new())
}

fn delayed() -> Golden {
    let mail = Mail { ret: Some(Ret::Full), ..mail("ann@app.example") };
    let bob = rcpt("bob@example.org");
    let later = reply(451, Some(Enhanced(4, 7, 1)), "Greylisted, come back later");
    let outcome =
        Outcome::Delayed { reply: Some(&later), until: Some(NOW.saturating_add_ms(86_400_000)) };
    let content = [HEADERS, b"\r\nHello\r\n"].concat();
    let survey = Survey::of(&content);
    // RET=FULL is for failures only.
    let original = Original { content: Some(&survey), ..original(&mail, HEADERS) };
    let made = notification(&original, &[tried(&bob, outcome)], &terms()).unwrap();
    ("delayed", made, content)
}

fn relayed() -> Golden {
    let mail = mail("ann@app.example");
    let success = Some(Notify { success: true, ..Notify::default() });
    let bob = Rcpt { notify: success, ..rcpt("bob@example.org") };
    let silent = rcpt("carol@example.org");
    let taken = reply(250, Some(Enhanced(2, 6, 0)), "Queued");
    let recipients =
        [tried(&bob, Outcome::Relayed(&taken)), tried(&silent, Outcome::Relayed(&taken))];
    let made = notification(&original(&mail, HEADERS), &recipients, &terms()).unwrap();
    ("relayed", made, Vec::new())
}

fn whole() -> Golden {
    let mail = Mail { ret: Some(Ret::Full), ..mail("a..b@app.example") };
    let bob = rcpt("bob@example.org");
    let large = reply(552, Some(Enhanced(5, 3, 4)), "Too large");
    let content = [HEADERS, "\r\nGrüße\r\n.\r\nwithout a line end".as_bytes()].concat();
    let survey = Survey::of(&content);
    let original = Original { content: Some(&survey), ..original(&mail, HEADERS) };
    let made = notification(&original, &[tried(&bob, Outcome::Refused(&large))], &terms()).unwrap();
    ("whole", made, content)
}

/// A header, a recipient and a reply beyond ASCII for a sender within it: all in 7 bit.
fn utf8_recipient() -> Golden {
    let mail = Mail { smtputf8: true, ..mail("ann@app.example") };
    let (recipient, header) = beyond_ascii();
    let unknown = reply(550, Some(Enhanced(5, 1, 1)), "用户 ist unbekannt");
    let outcome = Outcome::Refused(&unknown);
    let made =
        notification(&original(&mail, header.as_bytes()), &[tried(&recipient, outcome)], &terms())
            .unwrap();
    ("utf8-recipient", made, Vec::new())
}

fn utf8_sender() -> Golden {
    let mail = Mail { smtputf8: true, ..mail("änn@app.example") };
    let (recipient, header) = beyond_ascii();
    let unknown = reply(550, Some(Enhanced(5, 1, 1)), "用户 ist unbekannt");
    let outcome = Outcome::Refused(&unknown);
    let made =
        notification(&original(&mail, header.as_bytes()), &[tried(&recipient, outcome)], &terms())
            .unwrap();
    ("utf8-sender", made, Vec::new())
}

fn beyond_ascii() -> (Rcpt, String) {
    let orcpt = Some("utf-8;用户\\x{2B}a@例子.example".into());
    let recipient = Rcpt { orcpt, ..rcpt("用户@例子.example") };
    (recipient, String::from_utf8(HEADERS.to_vec()).unwrap().replace("Minutes", "Grüße"))
}

#[test]
fn golden_ones_are_as_they_were() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/notification/golden");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("notifications");
    fs::create_dir_all(&made).unwrap();
    let mut wrong = Vec::new();
    for (name, notification, content) in golden() {
        let text = String::from_utf8(bytes(&notification, &content)).unwrap();
        let Transport { eight_bit, smtputf8 } = notification.needs;
        let text =
            format!("8BITMIME {eight_bit}, SMTPUTF8 {smtputf8}\n\n{text}").replace("\r\n", "\n");
        let path = made.join(name).with_extension("txt");
        fs::write(&path, &text).unwrap();
        if fs::read_to_string(kept.join(name).with_extension("txt")).ok().as_ref() != Some(&text) {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "not as in {}: {wrong:?}", kept.display());
    assert_eq!(fs::read_dir(kept).unwrap().count(), golden().len());
}

#[test]
fn python_reads_them() {
    const SCRIPT: &str = r#"
import sys, email, email.policy
message = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.SMTP)
for part in message.walk():
    assert not part.defects, part.defects
assert message.get_content_type() == "multipart/report"
assert message.get_param("report-type") == "delivery-status"
text, report, original = message.iter_parts()
assert text.get_content_type() == "text/plain"
assert "relay.example" in text.get_content()
print(report.get_content_type(), original.get_content_type())
if report.get_content_type() == "message/delivery-status":
    groups = [dict(group) for group in report.get_payload()]
    assert groups[0]["Reporting-MTA"] == "dns; relay.example"
    print(*[group["Action"] + " " + group["Status"] for group in groups[1:]], sep="\n")
"#;
    let mut said = Vec::new();
    for (name, notification, content) in golden() {
        let spawned = Command::new("python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut python = match spawned {
            Ok(python) => python,
            Err(error) => {
                let skip = std::env::var("WAVEGATE_SKIP").unwrap_or_default();
                let skipped = skip.split([',', ' ']).any(|name| name == "python3");
                assert!(skipped, "python3 cannot be run: {error}; or set WAVEGATE_SKIP=python3");
                return;
            }
        };
        python.stdin.take().unwrap().write_all(&bytes(&notification, &content)).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        said.push(format!("{name}: {}", String::from_utf8_lossy(&output.stdout).trim()));
    }
    assert_eq!(
        said.join("\n"),
        "refused: message/delivery-status text/rfc822-headers\nfailed 5.1.1\nfailed 5.0.0\n\
         given-up: message/delivery-status text/rfc822-headers\nfailed 4.4.7\nfailed 4.4.7\n\
         failed 5.0.0\nfailed 5.7.1\n\
         delayed: message/delivery-status text/rfc822-headers\ndelayed 4.7.1\n\
         relayed: message/delivery-status text/rfc822-headers\nrelayed 2.6.0\n\
         whole: message/delivery-status message/rfc822\nfailed 5.3.4\n\
         utf8-recipient: message/delivery-status message/global-headers\nfailed 5.1.1\n\
         utf8-sender: message/global-delivery-status message/global-headers"
    );
}

#[test]
fn none_where_none_is_wanted() {
    let refusal = reply(550, None, "no");
    let bob = rcpt("bob@example.org");
    let of = |mail: &Mail, rcpt: &Rcpt, outcome| {
        notification(&original(mail, HEADERS), &[tried(rcpt, outcome)], &terms()).is_some()
    };
    let refused = Outcome::Refused(&refusal);
    assert!(of(&mail("ann@app.example"), &bob, refused));
    assert!(!of(&Mail::new(ReversePath::Null), &bob, refused), "<> never hears of anything");
    for notify in [Notify::default(), Notify { success: true, delay: true, failure: false }] {
        let rcpt = Rcpt { notify: Some(notify), ..bob.clone() };
        assert!(!of(&mail("ann@app.example"), &rcpt, refused), "{notify:?}");
    }
    assert!(!of(&mail("ann@app.example"), &bob, Outcome::Relayed(&refusal)));
    assert!(notification(&original(&mail("a@b"), HEADERS), &[], &terms()).is_none());
}

#[test]
fn the_whole_message_goes_back_only_where_it_can() {
    let refusal = reply(550, None, "no");
    let bob = rcpt("bob@example.org");
    let with = |ret, header: &str, body: &[u8], terms: &Terms<'_>| {
        let mail = Mail { ret, ..mail("ann@app.example") };
        let content = [header.as_bytes(), b"\r\n", body].concat();
        let survey = Survey::of(&content);
        let original = Original { content: Some(&survey), ..original(&mail, header.as_bytes()) };
        let made =
            notification(&original, &[tried(&bob, Outcome::Refused(&refusal))], terms).unwrap();
        (made.with_content, made.needs.eight_bit, made.needs.smtputf8)
    };
    let terms =
        |eight_bit, smtputf8| Terms { offers: Transport { eight_bit, smtputf8 }, ..terms() };
    let none = terms(false, false);
    let (full, plain, utf8) = (Some(Ret::Full), "A: b\r\n", "A: é\r\n");
    let header_only = (false, false, false);
    assert_eq!(with(full, plain, b"x", &none), (true, false, false));
    assert_eq!(with(None, plain, b"x", &none), header_only);
    assert_eq!(with(Some(Ret::Headers), plain, b"x", &none), header_only);
    assert_eq!(with(full, plain, b"\xff", &none), header_only);
    assert_eq!(with(full, plain, b"\xff", &terms(true, false)), (true, true, false));
    assert_eq!(with(full, utf8, b"x", &terms(true, false)), header_only);
    assert_eq!(with(full, utf8, b"x", &terms(true, true)), (true, true, true));
    assert_eq!(with(full, plain, &[b'x'; 998], &none), (true, false, false));
    assert_eq!(with(full, plain, &[b'x'; 999], &none), header_only);
    let exactly = Terms { whole: 9, ..none };
    assert_eq!(with(full, plain, b"x", &exactly), (true, false, false), "at the bound");
    assert_eq!(with(full, plain, b"xy", &exactly), header_only, "one past it");
}

#[test]
fn people_read_of_a_hundred_and_programs_of_all() {
    let refusal = reply(550, None, "no");
    let mail = mail("ann@app.example");
    let all: Vec<_> = (0..=LISTED).map(|n| rcpt(&format!("r{n}@example.org"))).collect();
    let count = |most: usize| {
        let recipients: Vec<_> =
            all.iter().take(most).map(|rcpt| tried(rcpt, Outcome::Refused(&refusal))).collect();
        let made = notification(&original(&mail, HEADERS), &recipients, &terms()).unwrap();
        let text = String::from_utf8(made.head).unwrap();
        let times = |word: &str| text.matches(word).count();
        (times("\r\n  <r"), times("And 1 more"), times("\r\nFinal-Recipient:"))
    };
    assert_eq!(count(LISTED), (LISTED, 0, LISTED));
    assert_eq!(count(LISTED + 1), (LISTED, 1, LISTED + 1));
}

#[test]
fn a_header_beyond_the_bound_is_cut_and_it_says_so() {
    let refusal = reply(550, None, "no");
    let mail = mail("ann@app.example");
    let bob = rcpt("bob@example.org");
    let header = b"A: b\r\n".repeat(HEADER);
    let recipients = [tried(&bob, Outcome::Refused(&refusal))];
    let made = notification(&original(&mail, &header), &recipients, &terms()).unwrap();
    assert!(made.head.len() < HEADER + 4096);
    assert!(memchr::memmem::find(&made.head, b"Its header is long").is_some());
}
