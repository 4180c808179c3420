//! Golden transcripts: each file of `transcripts/` is a set of dialogues.
//!
//! ```text
//! == name of a dialogue [: a=limit ...]
//! C: what the client sends; CRLF is added
//! C+ what it sends in the same packet as the line before
//! R: raw bytes with \r \n \0 \xHH escapes, nothing added
//! S: what the server must have answered by now
//! M: a message that was given to the embedder, escaped
//! D: the fault for which a message was dropped
//! T: the TLS handshake that was asked for is done
//! U: a user has logged in, or tried to, with this name and password
//! P: a peer has said this of its client
//! X: the session is closed, and why
//! ```
//!
//! Every dialogue runs as written, and with each packet cut into single
//! bytes; `one-packet` in its settings says that the packets matter.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;

use common::{Embedder, Seen, config};
use wavegate_smtp::{AuthOffer, Enhanced, Extensions, Limits, Reply, ServerConfig, StartTls};

struct Dialogue {
    name: String,
    settings: Vec<String>,
    lines: Vec<(char, Vec<u8>)>,
}

fn parse(text: &str) -> Vec<Dialogue> {
    let mut dialogues: Vec<Dialogue> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix("== ") {
            let (name, settings) = head.split_once(':').unwrap_or((head, ""));
            let settings = settings.split_whitespace().map(str::to_owned).collect();
            dialogues.push(Dialogue { name: name.to_owned(), settings, lines: Vec::new() });
            continue;
        }
        let kind = match &line[..2.min(line.len())] {
            "C:" => 'C',
            "C+" => '+',
            "R:" => 'R',
            "S:" => 'S',
            "M:" => 'M',
            "D:" => 'D',
            "T:" => 'T',
            "U:" => 'U',
            "P:" => 'P',
            "X:" => 'X',
            _ => panic!("not a transcript line: {line}"),
        };
        let content = line.get(3..).unwrap_or("");
        dialogues.last_mut().unwrap().lines.push((kind, unescape(content)));
    }
    dialogues
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chars = text.bytes();
    while let Some(byte) = chars.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match chars.next().unwrap() {
            b'r' => b'\r',
            b'n' => b'\n',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let hex = [chars.next().unwrap(), chars.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            b'*' => {
                // `\*NNNNNc`: a byte, that many times.
                let count = std::iter::repeat_with(|| chars.next().unwrap()).take(5);
                let count = String::from_utf8(count.collect()).unwrap().parse().unwrap();
                let byte = chars.next().unwrap();
                out.extend(std::iter::repeat_n(byte, count));
                continue;
            }
            other => panic!("unknown escape \\{}", other as char),
        });
    }
    out
}

fn configuration(settings: &[String]) -> ServerConfig {
    let mut limits = Limits::default();
    let mut may_relay = true;
    let mut starttls = StartTls::Unavailable;
    let (mut auth, mut auth_required) = (AuthOffer::Unavailable, false);
    let mut extensions = Extensions::full(100_000);
    for setting in settings {
        match setting.split_once('=') {
            Some(("size", size)) => extensions = Extensions::full(size.parse().unwrap()),
            Some(("recipients", count)) => limits.recipients = count.parse().unwrap(),
            Some(("header", size)) => limits.header_block = size.parse().unwrap(),
            Some(("line", size)) => limits.message_line = size.parse().unwrap(),
            None if setting == "no-relay" => may_relay = false,
            None if setting == "starttls" => starttls = StartTls::Offered,
            None if setting == "tls-required" => starttls = StartTls::Required,
            None if setting == "auth" => auth = AuthOffer::UnderTls,
            None if setting == "auth-in-the-clear" => auth = AuthOffer::Anytime,
            None if setting == "auth-required" => auth_required = true,
            None if setting == "bare" => extensions = Extensions::NONE,
            None if setting == "one-packet" || setting == "trusted" => {}
            _ => panic!("unknown setting {setting}"),
        }
    }
    ServerConfig { may_relay, starttls, auth, auth_required, ..config(extensions, limits) }
}

/// Addresses whose domain is a reply code are refused with it, and so are users
/// by that name; all others have the password `secret`.
fn refuse(seen: &Seen) -> Option<Reply> {
    let domain = match seen {
        Seen::Mail(mail) => mail.sender.domain(),
        Seen::Rcpt(rcpt) => rcpt.recipient.domain(),
        Seen::Auth(login) if login.password.expose() != b"secret" => "535",
        Seen::Auth(login) => &login.user,
        _ => return None,
    };
    match domain {
        "550" => Some(Reply::fixed(550, Enhanced(5, 1, 1), "Refused")),
        "454" => Some(Reply::fixed(454, Enhanced(4, 7, 0), "Not now")),
        "535" => Some(Reply::fixed(535, Enhanced(5, 7, 8), "Wrong")),
        "451" => Some(Reply::fixed(451, Enhanced(4, 7, 0), "Refused")),
        "421" => Some(Reply::fixed(421, Enhanced(4, 3, 2), "Refused")),
        _ => None,
    }
}

fn run(dialogue: &Dialogue, whole_packets: bool) {
    let place = format!("{} (whole packets: {whole_packets})", dialogue.name);
    let mut embedder = Embedder::new(configuration(&dialogue.settings));
    embedder.refuse = refuse;
    if dialogue.settings.iter().any(|setting| setting == "trusted") {
        embedder.server.trust();
    }
    embedder.take_output();
    let mut answers: Vec<String> = Vec::new();
    let mut seen_before = 0;
    let mut closed = false;
    let mut at = 0;
    while at < dialogue.lines.len() {
        let (kind, content) = &dialogue.lines[at];
        at += 1;
        match kind {
            'C' | 'R' => {
                assert!(answers.is_empty(), "{place}: not in the transcript: {answers:?}");
                let mut packet = content.clone();
                if *kind == 'C' {
                    packet.extend_from_slice(b"\r\n");
                }
                while let Some(('+', more)) = dialogue.lines.get(at) {
                    packet.extend_from_slice(more);
                    packet.extend_from_slice(b"\r\n");
                    at += 1;
                }
                let size = if whole_packets { packet.len().max(1) } else { 1 };
                for piece in packet.chunks(size) {
                    if closed {
                        break;
                    }
                    closed = !embedder.feed(piece);
                }
                let output = String::from_utf8(embedder.take_output()).unwrap();
                assert!(output.is_empty() || output.ends_with("\r\n"), "{place}");
                answers = output.split_terminator("\r\n").map(str::to_owned).collect();
                answers.reverse();
            }
            'S' => {
                let wanted = String::from_utf8_lossy(content);
                assert_eq!(answers.pop().as_deref(), Some(&*wanted), "{place}, line {at}");
            }
            'M' | 'D' => {
                let fresh = &embedder.seen[seen_before..];
                let found = fresh.iter().position(|seen| match seen {
                    Seen::Message(body, _) => *kind == 'M' && body == content,
                    Seen::Dropped(fault) => {
                        *kind == 'D' && format!("{fault:?}").as_bytes() == content
                    }
                    _ => false,
                });
                let found = found.unwrap_or_else(|| panic!("{place}, line {at}: {fresh:?}"));
                seen_before += found + 1;
            }
            'T' => {
                assert_eq!(embedder.seen.last(), Some(&Seen::StartTls), "{place}, line {at}");
                embedder.server.secured();
            }
            'U' | 'P' => {
                let said = match embedder.seen.last() {
                    Some(Seen::Auth(login)) if *kind == 'U' => {
                        [login.user.as_bytes(), b" ", login.password.expose()].concat()
                    }
                    Some(Seen::Xclient(told)) if *kind == 'P' => {
                        let login = told.login.clone().or(None);
                        let address = told.address.clone().or(None);
                        format!("{address:?} {login:?}").into_bytes()
                    }
                    other => panic!("{place}, line {at}: {other:?}"),
                };
                let said = String::from_utf8(said).unwrap();
                assert_eq!(said, String::from_utf8_lossy(content), "{place}, line {at}");
            }
            'X' => {
                assert!(closed && answers.is_empty(), "{place}: not closed: {answers:?}");
                let Some(Seen::Close(closing)) = embedder.seen.last() else {
                    panic!("{place}: closed, and then more: {:?}", embedder.seen);
                };
                assert_eq!(format!("{closing:?}").as_bytes(), content, "{place}");
            }
            _ => panic!("{place}: a `C+` without a `C:`"),
        }
    }
    assert!(answers.is_empty(), "{place}: not in the transcript: {answers:?}");
    let given = |seen: &&Seen| matches!(seen, Seen::Message(..) | Seen::Dropped(_));
    let rest = embedder.seen[seen_before..].iter().find(given);
    assert_eq!(rest, None, "{place}: not in the transcript");
    assert_eq!(closed, dialogue.lines.last().is_some_and(|last| last.0 == 'X'), "{place}");
}

#[test]
fn transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for dialogue in parse(&text) {
            run(&dialogue, true);
            if !dialogue.settings.iter().any(|setting| setting == "one-packet") {
                run(&dialogue, false);
            }
            count += 1;
        }
    }
    assert!(count > 30, "only {count} dialogues found");
}
