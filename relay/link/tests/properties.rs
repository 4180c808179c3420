//! Properties of the protocol on random values and bytes: what is written is read, any split gives
//! one history, and no bytes do harm.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::net::{IpAddr, SocketAddr};

use common::{answered, came, message, said, split, write};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
    strategy::Union,
};
use wavegate_link::{
    Answer, Client, Control, Envelope, Hello, How, Offer,
    answer::{For, write_answers},
    control::Side,
};
use wavegate_smtp::{
    Address, Extension, Extensions, Mail, Rcpt, Reply, ReversePath,
    params::{BodyType, Notify, Ret},
};

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), vec(1usize..40, 1..12), Just(vec![usize::MAX / 2])]
}

/// Names and other texts as anybody may give them.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9.-]{0,30}", "\\PC{0,30}", "[a-zü用]{1000,1024}"]
        .prop_map(|text| text[..text.floor_char_boundary(1024)].to_owned())
}

fn ip() -> impl Strategy<Value = IpAddr> {
    // An IPv4 address is one, mapped or not.
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
        .prop_map(|address| address.to_canonical())
}

fn client() -> impl Strategy<Value = Client> {
    let who = (ip(), any::<u16>(), text(), text(), text(), any::<bool>());
    let secured = option::of(any::<(u8, bool)>());
    let destination = option::of((ip(), any::<u16>()).prop_map(SocketAddr::from));
    (who, secured, destination).prop_map(|(who, secured, destination)| {
        let (address, port, name, helo, user, extended) = who;
        Client { address, port, name, helo, extended, secured, user, destination }
    })
}

fn address(wide: bool) -> impl Strategy<Value = Address> {
    let plain = [
        "[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]{1,60}@[a-z0-9]{1,20}\\.example",
        "\"[ -!#-\\[\\]-~]{0,20}\"@[a-z]{1,9}",
        "\"(\\\\[ -~]){1,9}\"@x",
        "[a-z]{1,5}@\\[192\\.0\\.2\\.7\\]|Postmaster|a@\\[IPv6:::1\\]|a@\\[x-tag:some<\\]",
    ];
    let wider: &[_] = if wide { &["[用户ü]{1,9}@例子\\.广告"] } else { &[] };
    let all = plain.iter().chain(wider).map(|one| proptest::string::string_regex(one).unwrap());
    Union::new(all).prop_filter_map("no address", |text| Address::parse(&text).ok())
}

fn rcpt(wide: bool) -> impl Strategy<Value = Rcpt> {
    let notify = any::<[bool; 3]>();
    let notify = notify.prop_map(|[success, failure, delay]| Notify { success, failure, delay });
    let orcpt = match wide {
        false => "rfc822;[a-z!-*,-<>-~]{1,40}".boxed(),
        true => prop_oneof!["rfc822;[a-z]{1,9}(\\+2B)?@x", "utf-8;[用户ü]{1,9}@x"].boxed(),
    };
    (address(wide), option::of(notify), option::of(orcpt)).prop_map(|(recipient, notify, orcpt)| {
        Rcpt { recipient, notify, orcpt: orcpt.map(String::into_boxed_str) }
    })
}

/// Whatever SMTP can say, of a message of so many bytes.
fn envelope(size: u64) -> impl Strategy<Value = Envelope> {
    let of = move |smtputf8: bool| {
        let sender = prop_oneof![
            1 => Just(ReversePath::Null),
            3 => address(smtputf8).prop_map(ReversePath::Address),
        ];
        let body = option::of(select(vec![BodyType::SevenBit, BodyType::EightBitMime]));
        let ret = option::of(select(vec![Ret::Full, Ret::Headers]));
        let envid = option::of("[!-*,-<>-~]{1,100}");
        let mail = (sender, body, ret, envid, option::of(any::<u64>()));
        let mail = mail.prop_map(move |(sender, body, ret, envid, declared)| Mail {
            sender,
            size: declared,
            body,
            smtputf8,
            ret,
            envid: envid.map(String::into_boxed_str),
        });
        (mail, vec(rcpt(smtputf8), 1..20))
    };
    let lines = prop_oneof![of(false), of(true)];
    let id = "[0-9A-Za-z]{16}".prop_map(|id| id.into_bytes().try_into().unwrap());
    (id, any::<u64>(), text(), client(), lines).prop_map(
        move |(id, received, instance, client, lines)| {
            let (mail, recipients) = lines;
            Envelope { id, received, size, instance, client, mail, recipients }
        },
    )
}

/// As it is at the other end: the size is the real one, and 7BIT is what is not declared.
fn arrived(envelope: &Envelope) -> Envelope {
    let mut envelope = envelope.clone();
    envelope.mail.size = Some(envelope.size);
    envelope.mail.body = envelope.mail.body.filter(|body| *body == BodyType::EightBitMime);
    envelope
}

fn reply(codes: &'static [u16]) -> impl Strategy<Value = Reply> {
    let line = prop_oneof!["", "\\PC{0,40}", "[245]\\.[0-9]\\.[0-9]( [a-z]{0,9})?"];
    let text = vec(line, 1..4).prop_map(|lines| lines.join("\n"));
    (select(codes), text).prop_map(|(code, text)| Reply::new(code, None, text).unwrap())
}

/// Answers that are one for each of so many recipients.
fn answers(count: u32) -> impl Strategy<Value = Vec<Answer>> {
    let one = prop_oneof![
        (Just(How::NextHop), reply(&[200, 250, 451, 550, 599])),
        (Just(How::Gateway), reply(&[250, 452, 554])),
        (Just(How::Stored), reply(&[250])),
        (Just(How::InDoubt), reply(&[451])),
    ];
    let one = (one, any::<bool>(), any::<bool>());
    (vec(one, 1..6), vec(any::<Index>(), count as usize), any::<bool>()).prop_map(
        |(all, whose, others)| {
            let last = all.len() - 1;
            let all = all.into_iter().enumerate().map(|(at, ((how, reply), known, forgetful))| {
                let these = (0..).zip(&whose).filter(|(_, one)| one.index(last + 1) == at);
                let these = these.map(|(recipient, _)| recipient).collect();
                let recipients = if others && at == last { For::Others } else { For::These(these) };
                Answer { how, known, forgetful, recipients, reply }
            });
            // An answer for nobody is none.
            all.filter(|answer| answer.recipients != For::These(Vec::new())).collect()
        },
    )
}

fn hello(speaker: Side) -> impl Strategy<Value = Control> {
    let offer = (any::<[bool; 3]>(), any::<u64>(), 1u32..).prop_map(
        |([eight_bit, smtputf8, dsn], size, recipients)| Offer {
            eight_bit,
            smtputf8,
            dsn,
            size,
            recipients,
        },
    );
    ("[!-~]{1,255}", any::<[u8; 16]>(), offer).prop_map(move |(name, incarnation, offer)| {
        let offer = (speaker == Side::Gateway).then_some(offer);
        Control::Hello(Hello { name, incarnation, offer })
    })
}

fn side() -> impl Strategy<Value = Side> {
    select(vec![Side::Edge, Side::Gateway])
}

fn conversation() -> impl Strategy<Value = (Side, Vec<Control>)> {
    side().prop_flat_map(|speaker| {
        let word = match speaker {
            Side::Edge => any::<u64>().prop_map(Control::Ping).boxed(),
            Side::Gateway => {
                prop_oneof![any::<u64>().prop_map(Control::Pong), Just(Control::Stopping)].boxed()
            }
        };
        (Just(speaker), hello(speaker), vec(word, 0..6)).prop_map(|(speaker, hello, words)| {
            (speaker, std::iter::once(hello).chain(words).collect())
        })
    })
}

/// Some changes to bytes: values set, cut out, doubled, and an end before the end.
fn damage() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    vec(any::<(Index, u8, u8)>(), 0..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[(Index, u8, u8)]) -> Vec<u8> {
    for (at, what, value) in damage {
        let at = at.index(bytes.len().max(1)).min(bytes.len());
        match what % 4 {
            0 if at < bytes.len() => bytes[at] = *value,
            1 => bytes.insert(at, *value),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn an_envelope_is_read_as_it_was_written(envelope in envelope(5), lengths in lengths()) {
        let wire = message(&envelope, b"Hello", 2);
        let came = came(split(&wire, &lengths));
        prop_assert_eq!(came.envelope, Some(arrived(&envelope)));
        prop_assert_eq!((&*came.content, came.whole), (&b"Hello"[..], true));
        prop_assert_eq!((came.wrong, came.end), (None, None));
    }

    #[test]
    fn what_is_read_is_written_as_it_came(envelope in envelope(0), damage in damage()) {
        let wire = damaged(message(&envelope, b"", 1), &damage);
        if let Some(envelope) = came([&*wire].into_iter()).envelope {
            let again = write(&envelope);
            let read = came([&*again].into_iter()).envelope;
            prop_assert_eq!(read.as_ref(), Some(&arrived(&envelope)));
            prop_assert_eq!(read.as_ref().map(write), Some(again));
        }
    }

    #[test]
    fn whatever_a_client_is_called_can_be_read(
        client in client(), texts in any::<[String; 4]>(), long in "[\u{80}-\u{9f}a\r\nü]{600,1100}",
    ) {
        let [name, helo, user, instance] = texts;
        for (helo, long) in [(helo, ""), (String::new(), &*long)] {
            let client = Client {
                name: name.clone() + long, helo: helo + long, user: user.clone() + long,
                ..client.clone()
            };
            let envelope = Envelope { client, instance: instance.clone(), ..common::envelope(0) };
            let came = came([&*message(&envelope, b"", 1)].into_iter());
            prop_assert_eq!(came.wrong, None);
            prop_assert!(came.whole);
        }
    }

    #[test]
    fn a_message_has_one_history(
        envelope in envelope(30), content in vec(any::<u8>(), 30), piece in 1usize..31,
        damage in damage(), lengths in lengths(),
    ) {
        let wire = damaged(message(&envelope, &content, piece), &damage);
        let whole = came([&*wire].into_iter());
        prop_assert_eq!(&came(split(&wire, &lengths)), &whole);
        if damage.is_empty() {
            prop_assert_eq!(whole.content, content);
        }
        // A message is never whole without all of its bytes.
        let cut = came([&wire[..wire.len() - 1]].into_iter());
        prop_assert!(!cut.whole || !damage.is_empty());
    }

    #[test]
    fn answers_are_read_as_they_were_written(
        (count, all) in (1u32..12).prop_flat_map(|count| (Just(count), answers(count))),
        lengths in lengths(),
    ) {
        let mut wire = Vec::new();
        write_answers(&all, &mut wire);
        let answers = answered(split(&wire, &lengths), count).unwrap().unwrap();
        prop_assert_eq!(answers.all(), &*all);
        let settled = answers.settled().unwrap();
        let any = (0..count).any(|one| answers.of(one).unwrap().reply.is_positive());
        prop_assert_eq!(settled.reply.is_positive(), any);
        for recipient in 0..count {
            let answer = answers.of(recipient).unwrap();
            let named = |answer: &Answer| matches!(&answer.recipients, For::These(these) if these.contains(&recipient));
            prop_assert!(named(answer) || !all.iter().any(named) && answer.recipients == For::Others);
            prop_assert_eq!(settled.for_recipient(recipient), &answer.reply);
            for how in How::ALL {
                prop_assert_eq!(answers.with(how).any(|one| one == recipient), answer.how == how);
            }
        }
        prop_assert_eq!(answers.of(count), None);
    }

    #[test]
    fn answers_have_one_history(
        all in answers(4), damage in damage(), behind in vec(any::<u8>(), 0..9), lengths in lengths(),
    ) {
        let mut wire = Vec::new();
        write_answers(&all, &mut wire);
        let mut wire = damaged(wire, &damage);
        wire.extend(behind);
        let whole = answered([&*wire].into_iter(), 4);
        prop_assert_eq!(answered(split(&wire, &lengths), 4), whole);
    }

    #[test]
    fn a_control_stream_is_read_as_it_was_written(
        (speaker, words) in conversation(), damage in damage(), lengths in lengths(),
    ) {
        let mut wire = Vec::new();
        words.iter().for_each(|word| word.write(&mut wire));
        prop_assert_eq!(said(split(&wire, &lengths), speaker), (words, None));
        let wire = damaged(wire, &damage);
        let whole = said([&*wire].into_iter(), speaker);
        prop_assert_eq!(said(split(&wire, &lengths), speaker), whole);
    }

    #[test]
    fn no_bytes_do_harm(
        kind in select(vec![1u8, 2, 4, 16, 17, 18, 32, 33]), length in select(vec![0u32, 1, 8, 40, 300, u32::MAX]),
        bytes in vec(any::<u8>(), 0..400), speaker in side(), lengths in lengths(),
    ) {
        let mut wire = vec![kind];
        wire.extend(length.to_be_bytes());
        wire.extend(bytes);
        prop_assert_eq!(came(split(&wire, &lengths)), came([&*wire].into_iter()));
        prop_assert_eq!(answered(split(&wire, &lengths), 3), answered([&*wire].into_iter(), 3));
        prop_assert_eq!(said(split(&wire, &lengths), speaker), said([&*wire].into_iter(), speaker));
    }

    #[test]
    fn an_offer_is_what_extensions_say(
        has in any::<[bool; 3]>(), size in option::of(0u64..1000), recipients in 1u32..,
    ) {
        let ours = [Extension::EightBitMime, Extension::SmtpUtf8, Extension::Dsn];
        let all = ours.into_iter().zip(has).filter(|(_, has)| *has);
        let all = all.fold(Extensions::NONE.with_size(size), |all, (one, _)| all.with(one));
        let offer = Offer::new(&all, recipients);
        let back = offer.extensions();
        for extension in ours {
            prop_assert_eq!(back.has(extension), all.has(extension));
        }
        // The link's own, whatever the gateway's SMTP has.
        let always = [Extension::Pipelining, Extension::Chunking, Extension::EnhancedStatusCodes];
        prop_assert!(always.into_iter().all(|one| back.has(one)));
        for never in [Extension::StartTls, Extension::Auth, Extension::Xclient] {
            prop_assert!(!back.has(never));
        }
        prop_assert_eq!(back.size_limit(), all.size_limit());
        prop_assert!(back.size().is_some());
        prop_assert_eq!(Offer::new(&back, recipients), offer);
    }
}
