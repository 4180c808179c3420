//! What is read of any bytes as an envelope or as answers is written and read again as the same, and
//! written once more as the same bytes. The first byte says which of the two.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_link::{Answering, Envelope, EnvelopeRef, answer::write_answers};
use wavegate_smtp::{Extensions, params::BodyType};

fn write(envelope: &Envelope) -> Vec<u8> {
    let Envelope { id, received, size, instance, client, mail, recipients } = envelope;
    let (id, received, size) = (*id, *received, *size);
    let mut out = Vec::new();
    EnvelopeRef { id, received, size, instance, client, mail, recipients }
        .write(&Extensions::full(0), &mut out)
        .expect("what was read can be written");
    out
}

fn an_envelope(data: &[u8]) {
    let Ok(mut envelope) = Envelope::read(data, 1000) else { return };
    let wire = write(&envelope);
    let again = Envelope::read(&wire[5..], 1000);
    // SIZE is always said, 7BIT never.
    envelope.mail.size = Some(envelope.size);
    envelope.mail.body = envelope.mail.body.filter(|body| *body == BodyType::EightBitMime);
    assert_eq!(again.as_ref(), Ok(&envelope));
    assert_eq!(write(&envelope), wire);
    // All but the lines is byte for byte what came.
    let lines = |bytes: &[u8]| bytes.windows(2).position(|two| two == b"\r\n").unwrap_or(0);
    let head = lines(data).min(lines(&wire[5..])).min(54);
    assert_eq!(data[..head], wire[5..5 + head]);
}

fn answers(data: &[u8]) {
    let Ok(Some(answers)) = Answering::new(20).receive(data) else { return };
    let mut wire = Vec::new();
    write_answers(answers.all(), &mut wire);
    let again = Answering::new(20).receive(&wire);
    assert_eq!(again.as_ref(), Ok(&Some(answers)));
    let mut once_more = Vec::new();
    write_answers(again.ok().flatten().as_ref().map_or(&[], |one| one.all()), &mut once_more);
    assert_eq!(once_more, wire);
}

fuzz_target!(|data: &[u8]| {
    match data {
        [0..128, data @ ..] => an_envelope(data),
        [_, data @ ..] => answers(data),
        [] => {}
    }
});
