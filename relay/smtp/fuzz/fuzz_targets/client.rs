//! Any bytes from an upstream: no panic, at most one end to a transaction, and
//! nothing of a body is asked for twice. The first byte says how its words are cut, and what is
//! done before the first message.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_smtp::{
    Address, BodyShape, Client, ClientEvent, Credentials, Identity, Mail, Rcpt, ReversePath,
    Upgrade,
};

const IDENTITY: Identity<'_> = Identity {
    client: std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)),
    port: Some(4711),
    name: Some("mta.example"),
    helo: Some("mta.example"),
    extended: true,
    ident: Some("01HX"),
    login: None,
    destination: None,
};

fuzz_target!(|data: &[u8]| {
    let [cut, data @ ..] = data else { return };
    let Ok(address) = Address::parse("a@x.example") else { return };
    let rcpts = [Rcpt::new(address.clone()), Rcpt::new(address)];
    let shape = BodyShape { size: 9, eight_bit: true, leading_dot: true, ends_with_crlf: true };
    let mut client = Client::new("relay.example".into()).starttls(Upgrade::IfOffered);
    let (mut open, mut first) = (false, true);
    let Some(credentials) = Credentials::new("relay", "secret") else { return };
    for piece in data.chunks(usize::from(*cut).max(1)) {
        if client.receive(piece).is_err() {
            assert!(client.is_closed());
            return;
        }
        while let Some(event) = client.poll() {
            match event {
                ClientEvent::SendBody(_) => {
                    assert!(open);
                    client.body_sent();
                }
                ClientEvent::Settled(settled) => {
                    assert!(open);
                    open = false;
                    assert!(settled.for_recipient(0).code() >= 200);
                }
                ClientEvent::StartTls => {
                    client.written(client.output().len());
                    client.secured();
                }
                _ => {}
            }
        }
        client.written(client.output().len());
        if client.is_ready() {
            match (std::mem::take(&mut first), cut & 3) {
                (true, 1) => client.log_in(&credentials, None),
                (true, 2) => client.speak_for(&IDENTITY),
                _ => {
                    let mail = Mail::new(ReversePath::Null);
                    open = client.begin_from(Some(&IDENTITY), &mail, &rcpts, &shape).is_ok();
                }
            }
        }
    }
});
