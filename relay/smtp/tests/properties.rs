//! Properties of the protocol core on random input.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Embedder, Seen, config, split};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use wavegate_smtp::address::forward_path;
use wavegate_smtp::reply::ReplyReader;
use wavegate_smtp::{
    Address, AuthOffer, Client, Enhanced, Extensions, Limits, MessageFault, Reply, ServerConfig,
    stuff,
};

/// Pieces of which contents are made that lie near the interesting cases.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = select(vec![
        &b"\r\n"[..],
        b"\r\n",
        b"\r\n.",
        b"\r\n.\r",
        b".",
        b"..",
        b"\r",
        b"\n",
        b"\0",
        b"a",
        b"Subject: x\r\n",
        b"Received: y\r\n",
        b"\xc3\xa9",
        b"some words in a line",
    ]);
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// As [`content`], but only what a relay takes.
fn valid_content() -> impl Strategy<Value = Vec<u8>> {
    let piece = select(vec![&b"\r\n"[..], b"\r\n.", b".", b"..", b"a", b"\xc3\xa9", b"R: x\r\n"]);
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), vec(1usize..40, 1..12)]
}

const ENVELOPE: &[u8] = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@y.example>\r\n";

fn limits() -> Limits {
    Limits { message_line: 60, header_block: 120, received_lines: 3, ..Limits::default() }
}

fn greeted() -> Embedder {
    let config = config(Extensions::full(200), limits());
    let mut embedder = Embedder::new(ServerConfig { auth: AuthOffer::Anytime, ..config });
    embedder.server.trust();
    embedder.feed(b"EHLO c\r\n");
    embedder.take_output();
    embedder
}

/// What DATA must make of the bytes behind the 354, said in the plainest way.
/// Nothing if the message does not end.
fn reference(stream: &[u8]) -> Option<(Result<Vec<u8>, MessageFault>, usize)> {
    let mut whole = b"\r\n".to_vec();
    whole.extend_from_slice(stream);
    let end = whole.windows(5).position(|window| window == b"\r\n.\r\n")?;
    let stuffed = &whole[2.min(end)..end];
    let mut body = Vec::new();
    if end > 0 {
        for line in split_lines(stuffed) {
            body.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            body.extend_from_slice(b"\r\n");
        }
    }
    Some((judge(&body).map_or(Ok(body), Err), end + 3))
}

fn split_lines(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(2).position(|window| window == b"\r\n") {
        lines.push(&bytes[from..from + at]);
        from += at + 2;
    }
    lines.push(&bytes[from..]);
    lines
}

fn judge(body: &[u8]) -> Option<MessageFault> {
    let lines = split_lines(body);
    let header = lines.iter().take_while(|line| !line.is_empty());
    let header_size = header.clone().map(|line| line.len() + 2).sum::<usize>() + 2;
    let received = header.filter(|line| line.to_ascii_lowercase().starts_with(b"received:"));
    if body.len() > 200 {
        Some(MessageFault::TooLarge)
    } else if body.contains(&0) {
        Some(MessageFault::Nul)
    } else if lines.iter().any(|line| line.contains(&b'\r') || line.contains(&b'\n')) {
        Some(MessageFault::BareLineEnd)
    } else if lines.iter().any(|line| line.len() > 60) {
        Some(MessageFault::LongLine)
    } else if header_size.min(body.len()) > 120 {
        Some(MessageFault::LargeHeader)
    } else if received.count() > 3 {
        Some(MessageFault::Loop)
    } else {
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn data_is_what_the_reference_says(stream in content(), lengths in lengths()) {
        let mut embedder = greeted();
        embedder.feed(ENVELOPE);
        embedder.feed(b"DATA\r\n");
        embedder.take_output();
        embedder.seen.clear();
        let mut stream = stream;
        stream.extend_from_slice(b"\r\n.\r\n");
        let (expected, end) = reference(&stream).unwrap();
        for piece in split(&stream[..end], &lengths) {
            prop_assert!(embedder.feed(piece));
        }
        prop_assert_eq!(embedder.seen.len(), 1);
        let output = embedder.take_output();
        match (&embedder.seen[0], expected) {
            (Seen::Message(body, facts), Ok(wanted)) => {
                prop_assert_eq!(body, &wanted);
                let lines = split_lines(&wanted);
                let header = lines.iter().position(|line| line.is_empty()).unwrap();
                let header: usize = lines[..=header].iter().map(|line| line.len() + 2).sum();
                prop_assert_eq!(facts.size, wanted.len() as u64);
                prop_assert_eq!(facts.header_size, header.min(wanted.len()) as u64);
                prop_assert_eq!(facts.eight_bit, !wanted.is_ascii());
                prop_assert_eq!(facts.leading_dot, lines.iter().any(|line| line.starts_with(b".")));
                prop_assert!(facts.ends_with_crlf);
            }
            (Seen::Dropped(fault), Err(wanted)) => {
                prop_assert_eq!(*fault, wanted);
                let mut reply = Vec::new();
                wanted.reply().write(&mut reply);
                prop_assert_eq!(output, reply);
            }
            (seen, wanted) => prop_assert!(false, "{:?} for {:?}", seen, wanted),
        }
        // In step: the next command is one.
        prop_assert!(embedder.feed(b"NOOP\r\n"));
        prop_assert_eq!(embedder.take_output(), b"250 2.0.0 Ok\r\n");
    }

    #[test]
    fn chunks_are_what_was_sent(
        chunks in vec(content(), 1..5),
        lengths in lengths(),
    ) {
        let mut embedder = greeted();
        let mut stream = ENVELOPE.to_vec();
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.iter().enumerate() {
            let suffix = if index == last { " LAST" } else { "" };
            stream.extend_from_slice(format!("BDAT {}{suffix}\r\n", chunk.len()).as_bytes());
            stream.extend_from_slice(chunk);
        }
        for piece in split(&stream, &lengths) {
            prop_assert!(embedder.feed(piece));
        }
        let sent = chunks.concat();
        let given = |seen: &&Seen| matches!(seen, Seen::Message(..) | Seen::Dropped(_));
        match (embedder.seen.iter().find(given), judge(&sent)) {
            (Some(Seen::Message(body, facts)), None) => {
                prop_assert_eq!(body, &sent);
                prop_assert_eq!(facts.ends_with_crlf, sent.is_empty() || sent.ends_with(b"\r\n"));
            }
            (Some(Seen::Dropped(fault)), Some(wanted)) => prop_assert_eq!(*fault, wanted),
            (seen, wanted) => prop_assert!(false, "{:?} for {:?}", seen, wanted),
        }
        embedder.take_output();
        prop_assert!(embedder.feed(b"NOOP\r\n"));
        prop_assert_eq!(embedder.take_output(), b"250 2.0.0 Ok\r\n");
    }

    #[test]
    fn any_split_of_commands_gives_one_history(
        groups in vec(command_group(), 0..12),
        lengths in lengths(),
    ) {
        let mut whole = greeted();
        let mut cut = greeted();
        'session: for group in &groups {
            let go_on = whole.feed(group);
            for piece in split(group, &lengths) {
                if !cut.feed(piece) {
                    prop_assert!(!go_on);
                    break 'session;
                }
            }
            prop_assert!(go_on);
            prop_assert_eq!(whole.server.is_receiving_message(), cut.server.is_receiving_message());
        }
        prop_assert_eq!(&whole.seen, &cut.seen);
        prop_assert_eq!(whole.take_output(), cut.take_output());
    }

    #[test]
    fn a_login_is_what_was_said(
        user in "[^\\pC]{1,20}",
        password in vec(1u8..=255, 1..60),
        acting in any::<bool>(),
        way in 0..4,
        lengths in lengths(),
    ) {
        let text = |bytes: &[u8]| base64(bytes);
        let acting = if acting { user.as_str() } else { "" };
        let whole = text(&[acting.as_bytes(), user.as_bytes(), &password].join(&0));
        let (name, secret) = (text(user.as_bytes()), text(&password));
        let lines = match way {
            0 => vec![format!("AUTH PLAIN {whole}")],
            1 => vec!["auth plain".to_owned(), whole],
            2 => vec![format!("AUTH LOGIN {name}"), secret],
            _ => vec!["AUTH LOGIN".to_owned(), name, secret],
        };
        let mut embedder = greeted();
        for line in &lines {
            for piece in split(format!("{line}\r\n").as_bytes(), &lengths) {
                prop_assert!(embedder.feed(piece));
            }
        }
        let Some(Seen::Auth(login)) = embedder.seen.last() else {
            return Err(TestCaseError::fail("no login"));
        };
        prop_assert_eq!((&*login.user, login.password.expose()), (&*user, &*password));
        prop_assert!(embedder.take_output().ends_with(b"235 2.7.0 Authentication succeeded\r\n"));
    }

    #[test]
    fn no_bytes_make_the_server_panic(
        fragments in vec(
            prop_oneof![command_group(), exchange(), content(), vec(any::<u8>(), 0..40)],
            0..20,
        ),
        lengths in lengths(),
    ) {
        let mut embedder = greeted();
        for piece in split(&fragments.concat(), &lengths) {
            if !embedder.feed(piece) {
                break;
            }
        }
        let output = embedder.take_output();
        prop_assert!(!output.contains(&0));
        prop_assert!(output.is_empty() || output.ends_with(b"\r\n"));
    }

    #[test]
    fn no_bytes_make_the_client_panic(
        fragments in vec(
            prop_oneof![
                select(vec![&b"220 x\r\n"[..], b"250 x\r\n", b"250-x\r\n", b"354 x\r\n", b"421 x\r\n"])
                    .prop_map(<[u8]>::to_vec),
                vec(any::<u8>(), 0..8),
            ],
            0..12,
        ),
        lengths in lengths(),
    ) {
        let mut client = Client::new("relay.example".into());
        for piece in split(&fragments.concat(), &lengths) {
            if client.receive(piece).is_err() {
                break;
            }
            while client.poll().is_some() {}
            client.written(client.output().len());
        }
    }

    #[test]
    fn stuffing_is_undone(body in valid_content(), cuts in lengths(), lengths in lengths()) {
        let mut body = body;
        body.extend_from_slice(b"\r\n");
        body.truncate(body.len() - usize::from(body.ends_with(b"\r\n\r\n")) * 2);
        let mut stuffed = Vec::new();
        let mut line_start = true;
        for segment in split(&body, &cuts) {
            for piece in stuff::pieces(segment, line_start) {
                stuffed.extend_from_slice(piece);
            }
            line_start = segment.ends_with(b"\n");
        }
        stuffed.extend_from_slice(stuff::END);
        let generous = config(Extensions::full(0), Limits::default());
        let mut embedder = Embedder::new(generous);
        embedder.feed(b"HELO c\r\n");
        embedder.feed(ENVELOPE);
        embedder.feed(b"DATA\r\n");
        for piece in split(&stuffed, &lengths) {
            embedder.feed(piece);
        }
        prop_assert_eq!(embedder.messages(), vec![body.as_slice()]);
    }

    #[test]
    fn replies_read_back_as_they_were(
        code in 200u16..600,
        detail in prop::option::of((0u16..1000, 0u16..1000)),
        text in vec("(2\\.0\\.0|5\\.1\\.1 ?)?[ -~äé]{0,20}", 1..5),
        lengths in lengths(),
    ) {
        let class = u8::try_from(code / 100).unwrap();
        // A 3xx has no enhanced code (RFC 3463 2).
        let enhanced = detail.filter(|_| class != 3).map(|(a, b)| Enhanced(class, a, b));
        let reply = Reply::new(code, enhanced, text.join("\n")).unwrap();
        let mut wire = Vec::new();
        reply.write(&mut wire);
        let mut reader = ReplyReader::default();
        let mut read = None;
        for piece in split(&wire, &lengths) {
            prop_assert_eq!(&read, &None);
            let (used, found) = reader.read(piece).unwrap();
            prop_assert_eq!(used, piece.len());
            read = found;
        }
        let read = read.unwrap();
        let mut again = Vec::new();
        read.write(&mut again);
        prop_assert_eq!(&again, &wire);
        prop_assert_eq!(read.enhanced(), reply.enhanced());
    }

    #[test]
    fn no_bytes_get_into_a_reply_unseen(bytes in vec(any::<u8>(), 0..60)) {
        let mut wire = b"250 ".to_vec();
        wire.extend(bytes.iter().filter(|byte| **byte != b'\n'));
        wire.extend_from_slice(b"\r\n");
        let (_, reply) = ReplyReader::default().read(&wire).unwrap();
        let mut written = Vec::new();
        reply.unwrap().write(&mut written);
        let line = written.strip_suffix(b"\r\n").unwrap();
        prop_assert!(line.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\t'));
        prop_assert!(std::str::from_utf8(line).is_ok());
    }

    #[test]
    fn any_text_for_a_reply_is_refused_or_safe(text in any::<String>()) {
        if let Ok(reply) = Reply::new(550, None, text) {
            let mut wire = Vec::new();
            reply.write(&mut wire);
            let (used, read) = ReplyReader::default().read(&wire).unwrap();
            prop_assert_eq!((used, read), (wire.len(), Some(reply)));
        }
    }

    #[test]
    fn addresses_keep_their_text(text in "[<]?[a-z@.:,\"\\\\\\[\\]ä -]{0,12}@?[a-z.]{0,6}[>]?") {
        let _ = forward_path(text.as_bytes());
        if let Ok(address) = Address::parse(&text) {
            prop_assert_eq!(address.as_str(), &text);
            let path = format!("<{text}> x");
            let (again, rest) = forward_path(path.as_bytes()).unwrap();
            prop_assert_eq!((again, rest), (address.clone(), &b" x"[..]));
            if !address.domain().is_empty() {
                prop_assert_eq!(format!("{}@{}", address.local(), address.domain()), text);
            }
        }
    }

    #[test]
    fn any_bytes_for_an_address(bytes in vec(any::<u8>(), 0..40)) {
        let mut path = b"<".to_vec();
        path.extend_from_slice(&bytes);
        path.push(b'>');
        if let Ok((address, _)) = forward_path(&path) {
            prop_assert!(address.as_str().bytes().all(|byte| byte >= b' ' && byte != 0x7f));
        }
    }
}

/// Base64 in the plainest way.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<bool> =
        bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte & (0x80 >> bit) != 0)).collect();
    let sextets = bits.chunks(6);
    let mut text: String = sextets
        .map(|bits| {
            let padded = bits.iter().copied().chain(std::iter::repeat(false)).take(6);
            char::from(ALPHABET[padded.fold(0, |value, bit| value << 1 | usize::from(bit))])
        })
        .collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

/// Lines of AUTH, each good where it stands.
fn exchange() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        &b"AUTH LOGIN\r\n"[..],
        b"AUTH LOGIN YWRh\r\n",
        b"AUTH PLAIN\r\n",
        b"AUTH PLAIN =\r\n",
        b"YWRh\r\n",
        b"AGFkYQBzZWNyZXQ=\r\n",
        b"*\r\n",
        b"\r\n",
    ]);
    line.prop_map(<[u8]>::to_vec)
}

/// What a client sends without waiting: DATA and EHLO stand last in it, as
/// what follows them at once is refused.
fn command_group() -> impl Strategy<Value = Vec<u8>> {
    let inner = select(vec![
        &b"MAIL FROM:<a@x.example>\r\n"[..],
        b"MAIL FROM:<> SIZE=1000\r\n",
        b"RCPT TO:<b@y.example>\r\n",
        b"RCPT TO:<b@y.example>\r\n",
        b"BDAT 3\r\nabc",
        b"BDAT 0 LAST\r\n",
        b"BDAT 7 LAST\r\nx\r\n.\r\ny",
        b"BDAT 500\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"FOO\r\n",
        b"a\rb\nc\r\n",
        b".\r\n",
        b"Subject: x\r\n\r\n",
        b"\xff\r\n",
    ]);
    let last = select(vec![
        &b""[..],
        b"DATA\r\n",
        b"EHLO c\r\n",
        b"HELO c\r\n",
        b"\r\n.\r\n",
        b"RC",
        b"AUTH PLAIN AGFkYQBzZWNyZXQ=\r\n",
        b"AUTH PLAIN AGFkYQBzZWNyZXQ\r\n",
        b"XCLIENT ADDR=192.0.2.1 LOGIN=ada\r\n",
        b"XCLIENT ADDR=192.0.2\r\n",
    ]);
    (vec(inner, 0..6), last).prop_map(|(inner, last)| {
        let mut group = inner.concat();
        group.extend_from_slice(last);
        group
    })
}
