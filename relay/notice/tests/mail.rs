//! The mail and the calendar entry, read again by others: `mail-parser`, and an unfolding of the
//! calendar that is written here. First as they should be, then with values that try to break out.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use mail_parser::{Message, MessageParser, MimeHeaders, PartType};
use proptest::prelude::*;
use support::{MESSAGE_ID, READERS, at, full, least, notice};
use wavegate_notice::{Draft, LINE_LIMIT, Notice, NoticeError};

const HEADERS: [&str; 11] = [
    "From",
    "To",
    "Reply-To",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Auto-Submitted",
    "Content-Language",
    "Content-Type",
    "",
];

fn mail(notice: &Notice) -> Vec<u8> {
    notice.render_eml(MESSAGE_ID).unwrap()
}

fn parsed(raw: &[u8]) -> Message<'_> {
    MessageParser::default().parse(raw).unwrap()
}

/// What holds of every mail, whatever was put into it.
fn check_mail(notice: &Notice) {
    let raw = mail(notice);
    assert!(raw.is_ascii());
    let text = std::str::from_utf8(&raw).unwrap();
    for line in text.split_terminator("\r\n") {
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
        // RFC 5322 2.1.1.
        assert!(line.len() <= 998, "{line:?}");
    }
    assert!(text.ends_with("\r\n"));
    let head = text.split("\r\n\r\n").next().unwrap();
    let names = head.split("\r\n").filter(|line| !line.starts_with(' '));
    let names: Vec<&str> = names.map(|line| line.split(':').next().unwrap()).collect();
    let expected = HEADERS.into_iter().filter(|name| !name.is_empty());
    let expected: Vec<&str> =
        expected.filter(|name| *name != "Reply-To" || names.contains(name)).collect();
    assert_eq!(names, expected);

    let message = parsed(&raw);
    let letter = message.body_text(0).unwrap();
    let page = message.body_html(0).unwrap().replace("\r\n", "\n");
    let entry = message.attachment(0).unwrap();
    assert_eq!(message.parts.len(), 5, "mixed, alternative, text, HTML, calendar");
    assert_eq!(message.attachment_count(), 1);
    let PartType::Text(entry) = &entry.body else { panic!("{:?}", entry.body) };
    // The parser hands out lines as they are.
    assert_eq!(*entry, notice.calendar());
    // The mail says besides that the calendar entry is attached.
    let said = notice.render_text();
    let letter = letter.replace("\r\n", "\n");
    let (body, _) = said.split_once("\n--\n").unwrap();
    assert!(letter.starts_with(body), "{letter}\nis not\n{body}");
    let in_page = notice.render_html();
    let (body, _) = in_page.split_once("<td class=\"pad line\"").unwrap();
    assert!(page.starts_with(body));
    check_page(&page);
    check_page(&in_page);
    check_calendar(&notice.calendar());
    serde_json::from_str::<serde_json::Value>(&notice.render_json()).unwrap();
}

/// Every tag is one that the page is made of, and they nest; nothing else has a `<`.
fn check_page(page: &str) {
    const TAGS: [&str; 21] = [
        "html", "head", "title", "style", "body", "div", "table", "tr", "td", "th", "p", "h1",
        "h2", "h3", "ul", "li", "strong", "bdi", "span", "a", "br",
    ];
    let mut open = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
    while let Some((before, after)) = rest.split_once('<') {
        if open.last() == Some(&"style") {
            assert!(!before.contains("url(") && !before.contains("@import"), "{before}");
        } else {
            assert!(!before.contains('>'), "{before:?}");
        }
        let (tag, then) = after.split_once('>').unwrap();
        rest = then;
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed));
            continue;
        }
        let name = tag.split([' ', '\n']).next().unwrap();
        if name == "meta" || name == "br" {
            continue;
        }
        assert!(TAGS.contains(&name), "{tag:?}");
        // Attributes are as many as quotes come in pairs, and only these.
        let mut attributes = tag[name.len()..].split('"');
        while let Some(attribute) = attributes.next() {
            let Some(value) = attributes.next() else {
                assert_eq!(attribute, "", "{tag:?}");
                break;
            };
            let attribute = attribute.trim().strip_suffix('=').unwrap();
            assert!(!attribute.starts_with("on") && attribute != "src", "{tag:?}");
            assert!(!(attribute == "style" && value.contains("url(")), "{tag:?}");
            if attribute == "href" {
                assert!(value.starts_with("https://") || value.starts_with("mailto:"), "{tag:?}");
            }
        }
        open.push(name);
    }
    assert!(open.is_empty(), "{open:?}");
}

/// Unfolded content lines (RFC 5545 3.1): name with parameters, and value.
fn content(calendar: &str) -> Vec<(String, String)> {
    assert!(calendar.ends_with("\r\n"));
    for line in calendar.split_terminator("\r\n") {
        assert!(line.len() <= 75 && !line.contains(['\r', '\n']), "{line:?}");
    }
    let whole = calendar.replace("\r\n ", "");
    let split = |line: &str| {
        let mut quoted = false;
        let colon = line.find(|c| {
            quoted ^= c == '"';
            c == ':' && !quoted
        });
        let (name, value) = line.split_at(colon.unwrap());
        (name.to_owned(), value[1..].to_owned())
    };
    whole.split_terminator("\r\n").map(split).collect()
}

/// RFC 5545 3.3.11, backwards; a bare comma or semicolon is an error.
fn unescaped(value: &str) -> String {
    let mut text = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next().unwrap() {
                'n' => text.push('\n'),
                c @ ('\\' | ',' | ';') => text.push(c),
                c => panic!("\\{c} in {value}"),
            },
            ',' | ';' => panic!("bare {c} in {value}"),
            c => text.push(c),
        }
    }
    text
}

fn check_calendar(calendar: &str) {
    const NAMES: [&str; 21] = [
        "BEGIN",
        "VERSION",
        "PRODID",
        "CALSCALE",
        "METHOD",
        "BEGIN",
        "UID",
        "DTSTAMP",
        "SEQUENCE",
        "DTSTART",
        "DTEND",
        "SUMMARY",
        "DESCRIPTION",
        "ORGANIZER",
        "CONTACT",
        "URL",
        "STATUS",
        "CLASS",
        "TRANSP",
        "END",
        "END",
    ];
    let lines = content(calendar);
    let names: Vec<&str> = lines.iter().map(|(name, _)| name.split(';').next().unwrap()).collect();
    let optional = |name: &&str| ["ORGANIZER", "URL"].contains(name);
    let expected: Vec<&str> =
        NAMES.into_iter().filter(|name| !optional(name) || names.contains(name)).collect();
    assert_eq!(names, expected);
    for (name, value) in &lines {
        if ["SUMMARY", "DESCRIPTION", "CONTACT"].contains(&name.split(';').next().unwrap()) {
            unescaped(value);
        }
    }
}

fn value(calendar: &str, name: &str) -> String {
    let lines = content(calendar);
    let found = lines.iter().find(|(is, _)| is.split(';').next() == Some(name));
    found.unwrap_or_else(|| panic!("no {name}")).1.clone()
}

#[test]
fn a_mail_has_what_it_should() {
    for (language, zone) in READERS {
        let notice = notice(&full(language, zone));
        check_mail(&notice);
        let raw = mail(&notice);
        let message = parsed(&raw);
        let address = |list: Option<&mail_parser::Address<'_>>| {
            let first = list.unwrap().first().unwrap();
            (first.name().map(str::to_owned), first.address().unwrap().to_owned())
        };
        let named = |name: &str, address: &str| (Some(name.to_owned()), address.to_owned());
        assert_eq!(address(message.from()), named("Example Mail", "migration@example.net"));
        assert_eq!(address(message.to()), named("Ada Löfgren", "ada@acme.example"));
        assert_eq!(address(message.reply_to()), (None, "care@example.net".to_owned()));
        assert_eq!(message.subject().unwrap(), notice.subject().replace('\u{a0}', " "));
        assert_eq!(message.message_id().unwrap(), MESSAGE_ID);
        assert_eq!(message.date().unwrap().to_rfc3339(), "2025-12-15T09:30:00Z");
        let header = |name: &'static str| message.header_raw(name).unwrap().trim().to_owned();
        assert_eq!(header("Auto-Submitted"), "auto-generated");
        assert_eq!(header("Content-Language"), language);
        assert_eq!(header("MIME-Version"), "1.0");
        let attachment = message.attachment(0).unwrap();
        assert_eq!(attachment.attachment_name(), Some("window.ics"));
        let kind = attachment.content_type().unwrap();
        assert_eq!((kind.ctype(), kind.subtype()), ("text", Some("calendar")));
        assert_eq!(kind.attribute("method"), Some("PUBLISH"));
        assert!(notice.render_html().contains(&format!("<html lang=\"{language}\">")));
    }
}

#[test]
fn a_mail_without_sender_or_with_a_bad_id_is_refused() {
    let sendable = notice(&full("en", "UTC"));
    for bad in ["", "a", "a@", "<a@b>", "a b@c", "a@b\r\nBcc: c@d", "a@b>"] {
        assert_eq!(sendable.render_eml(bad), Err(NoticeError::MessageId(bad.into())));
    }
    assert_eq!(notice(&least("en")).render_eml(MESSAGE_ID), Err(NoticeError::NoSender));
    check_page(&notice(&least("en")).render_html());
    check_calendar(&notice(&least("en")).calendar());
}

#[test]
fn a_calendar_entry_has_what_it_should() {
    for (language, zone) in READERS {
        let calendar = notice(&full(language, zone)).calendar();
        for (name, is) in [
            ("METHOD", "PUBLISH"),
            ("SEQUENCE", "0"),
            ("DTSTAMP", "20251215T093000Z"),
            ("DTSTART", "20260120T060000Z"),
            ("DTEND", "20260120T064500Z"),
            ("ORGANIZER", "mailto:migration@example.net"),
            ("URL", "https://care.example.net/"),
        ] {
            assert_eq!(value(&calendar, name), is, "{language}");
        }
        let description = unescaped(&value(&calendar, "DESCRIPTION"));
        for told in ["\n- acme-prod-1 (campaign-classic, hosted)\n", "prod-01", "40\u{a0}"] {
            assert!(description.contains(told), "{description}");
        }
    }
}

#[test]
fn a_later_notice_replaces_the_entry_and_another_one_does_not() {
    let first = full("en", "UTC");
    let uid = |draft: &Draft| value(&notice(draft).calendar(), "UID");
    let mut later = first.clone();
    later.wave.sequence = 3;
    later.wave.closes = at("2026-01-20T07:00:00Z");
    later.contact.language = "de".into();
    later.contact.email = "Ada@ACME.example".into();
    later.instances.pop();
    later.program.sender = None;
    assert_eq!(uid(&first), uid(&later));
    let calendar = notice(&later).calendar();
    assert_eq!(value(&calendar, "SEQUENCE"), "3");
    assert_eq!(value(&calendar, "DTEND"), "20260120T070000Z");
    assert!(notice(&later).subject().starts_with("Geändert: "));

    let (mut other_wave, mut other_contact) = (first.clone(), first.clone());
    other_wave.wave.id = "prod-02".into();
    other_contact.contact.email = "bob@acme.example".into();
    assert_ne!(uid(&first), uid(&other_wave));
    assert_ne!(uid(&first), uid(&other_contact));
    // It must be the same tomorrow.
    assert_eq!(uid(&first), "e096cb26ae614e478a79e4f56ca38577@notice.wavegate");
}

/// Puts one value wherever free words may stand.
fn everywhere(words: &str) -> Draft {
    let mut draft = full("en", "UTC");
    draft.program.name = words.into();
    draft.program.provider = words.into();
    draft.wave.id = words.into();
    draft.wave.environment = words.into();
    draft.contact.name = words.into();
    for instance in &mut draft.instances {
        instance.name = words.into();
        instance.product = words.into();
        instance.hosting = words.into();
    }
    for scope in &mut draft.scope {
        scope.product = words.into();
        scope.hosting = words.into();
    }
    draft.stages[0].environment = words.into();
    draft
}

fn display_names(notice: &Notice) -> [String; 2] {
    let raw = mail(notice);
    let message = parsed(&raw);
    [message.from(), message.to()].map(|list| list.unwrap().first().unwrap().name().unwrap().into())
}

#[test]
fn hostile_names_stay_names() {
    let long = "x".repeat(LINE_LIMIT);
    for (words, line) in [
        ("a\r\nBcc: victim@example.net", "a Bcc: victim@example.net"),
        ("a\r\n\r\n<h1>body</h1>", "a <h1>body</h1>"),
        ("\nEND:VEVENT\nBEGIN:VALARM", "END:VEVENT BEGIN:VALARM"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("\" onmouseover=\"alert(1)", "\" onmouseover=\"alert(1)"),
        ("'><img src=x>&amp;", "'><img src=x>&amp;"),
        ("Ada \"The\" O'Neil, \\ <x@y>; (c)", "Ada \"The\" O'Neil, \\ <x@y>; (c)"),
        ("=?UTF-8?Q?=0D=0ABcc:_x?=", "=?UTF-8?Q?=0D=0ABcc:_x?="),
        ("--=_notice-parts--", "--=_notice-parts--"),
        ("株式会社 Łódź עברית 👩\u{200d}💻", "株式会社 Łódź עברית 👩\u{200d}💻"),
        ("\u{202e}gnp.exe", "gnp.exe"),
        ("^n^'\"", "^n^'\""),
        (&long, &long),
        (&"x".repeat(LINE_LIMIT + 1), &format!("{}…", "x".repeat(LINE_LIMIT - 1))),
    ] {
        let notice = notice(&everywhere(words));
        check_mail(&notice);
        assert_eq!(display_names(&notice), [line, line], "{words:?}");
        let calendar = notice.calendar();
        let description = unescaped(&value(&calendar, "DESCRIPTION"));
        assert!(description.contains(&format!("\n- {line} ({line}, {line})\n")), "{description}");
        let json: serde_json::Value = serde_json::from_str(&notice.render_json()).unwrap();
        assert_eq!(json["instances"][0]["name"], line);
        assert_eq!(json["wave"], line);
    }
}

#[test]
fn empty_words_leave_no_hole() {
    let mut draft = full("en", "UTC");
    draft.program.name = String::new();
    draft.contact.name = "\r\n".into();
    draft.wave.environment = " ".into();
    draft.instances[0].product = String::new();
    draft.instances[1].hosting = String::new();
    draft.scope[2].product = String::new();
    draft.stages[0].environment = String::new();
    let notice = notice(&draft);
    check_mail(&notice);
    let text = notice.render_text();
    for told in ["Dear customer,", "- acme-prod-1 (hosted)", "- acme-prod-2 (campaign-classic)"] {
        assert!(text.contains(told), "{text}");
    }
    assert!(!text.contains("()") && !text.contains("Programme") && !text.contains("Environment:"));
    assert!(!text.contains("campaign-managed"));
    let raw = mail(&notice);
    assert_eq!(parsed(&raw).to().unwrap().first().unwrap().name(), None);
}

/// Columns of a text line; wide signs have two.
fn is_too_wide(line: &str) -> bool {
    unicode_width::UnicodeWidthStr::width(line) > 72
}

#[test]
fn text_is_wrapped() {
    let drafts = READERS.map(|(language, zone)| full(language, zone));
    let drafts = drafts.into_iter().chain([everywhere(&"株".repeat(300)), everywhere("x y z")]);
    for draft in drafts {
        let text = notice(&draft).render_text();
        let wide: Vec<&str> = text.lines().filter(|line| is_too_wide(line)).collect();
        assert!(wide.is_empty(), "{wide:#?}");
        assert!(text.lines().all(|line| line == line.trim_end_matches(' ')), "{text}");
    }
}

fn language() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["en", "fr", "de", "it", "pt-BR", "sv"])
}

/// Any words, and words that are made of what means something somewhere.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[\\PC\\r\\n\\t]{0,600}",
        "([<>\"'&=?_,;:\\\\\r\n@()^ .a-é]|--|=_|BEGIN:|\\]\\]>|<!--|</td>|%0a|\u{202e}){0,40}",
    ]
}

proptest! {
    // What was found is told with its values and becomes a case above; no file keeps it.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_words_the_mail_is_sound(
        language in language(),
        words in prop::array::uniform9(words()),
        sequence in any::<u32>(),
        count in 1_usize..5,
    ) {
        let mut draft = full(language, "America/New_York");
        let [name, provider, id, environment, contact, instance, product, hosting, stage] = words;
        draft.program.name = name;
        draft.program.provider = provider;
        draft.wave.id = id;
        draft.wave.environment = environment;
        draft.wave.sequence = sequence;
        draft.contact.name = contact;
        draft.instances = vec![support::instance(&instance, &product, &hosting); count];
        draft.scope[0].product = product;
        draft.scope[0].hosting = hosting;
        draft.stages[1].environment = stage;
        match Notice::new(&draft) {
            Ok(notice) => check_mail(&notice),
            Err(error) => prop_assert!(matches!(error, NoticeError::Missing(_)), "{error}"),
        }
    }

    #[test]
    fn whatever_the_addresses_nothing_breaks_out(
        sender in any::<String>(),
        email in "[!-~]{1,20}@[!-~]{1,20}",
        care in "(https://|http://|mailto:|javascript:)?[ -~\r\n]{0,40}",
    ) {
        let mut draft = full("en", "UTC");
        for change in [
            (|d: &mut Draft, [s, _, _]: [&str; 3]| d.program.sender = Some(s.into()))
                as fn(&mut Draft, [&str; 3]),
            |d, [_, e, _]| d.contact.email = e.into(),
            |d, [_, _, c]| d.program.care = c.into(),
        ] {
            let before = draft.clone();
            change(&mut draft, [&sender, &email, &care]);
            match Notice::new(&draft) {
                Ok(notice) if !care.starts_with("http:") => check_mail(&notice),
                Ok(_) => {}
                Err(_) => draft = before,
            }
        }
    }

    #[test]
    fn whatever_the_time_it_can_be_written(
        language in language(),
        opens in 0_i64..253_370_764_800,
        length in 1_i64..200_000,
        zone in prop::sample::select(vec!["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Asia/Kathmandu"]),
    ) {
        let mut draft = full(language, zone);
        draft.wave.opens = jiff::Timestamp::from_second(opens).unwrap();
        draft.wave.closes = jiff::Timestamp::from_second(opens + length).unwrap();
        check_mail(&notice(&draft));
    }
}
