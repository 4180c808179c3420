//! Any bytes from an upstream: no panic, at most one end to a transaction, and
//! nothing of a body is asked for twice.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_smtp::{Address, BodyShape, Client, ClientEvent, Mail, Rcpt, ReversePath, Upgrade};

fuzz_target!(|data: &[u8]| {
    let [cut, data @ ..] = data else { return };
    let Ok(address) = Address::parse("a@x.example") else { return };
    let rcpts = [Rcpt::new(address.clone()), Rcpt::new(address)];
    let shape = BodyShape { size: 9, eight_bit: true, leading_dot: true, ends_with_crlf: true };
    let mut client = Client::new("relay.example".into()).starttls(Upgrade::IfOffered);
    let mut open = false;
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
            open = client.begin(&Mail::new(ReversePath::Null), &rcpts, &shape).is_ok();
        }
    }
});
