//! Any bytes as a message's stream, in any split: no panic, nothing kept beyond what came and the
//! bounds, never more content than was announced, one history. The first byte says how it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_link::{Envelope, Incoming, LinkError, Step, limits};

#[derive(Debug, Default, PartialEq)]
struct Came {
    envelope: Option<Envelope>,
    content: Vec<u8>,
    whole: bool,
    end: Option<LinkError>,
}

fn read(data: &[u8], cut: usize) -> Came {
    let (mut incoming, mut came) = (Incoming::new(50, 4096), Came::default());
    let mut fed = 0;
    for mut piece in data.chunks(cut) {
        fed += piece.len();
        loop {
            let Ok((used, step)) = incoming.step(piece) else {
                came.end = incoming.end().err();
                assert!(came.end.is_some() && incoming.step(b"a").is_err());
                return came;
            };
            piece = &piece[used..];
            assert!(incoming.weight() <= (2 * fed).clamp(8, limits::ENVELOPE + 5));
            match step {
                Step::NeedInput => break,
                Step::Envelope(envelope) => {
                    assert!(came.envelope.is_none());
                    assert!(envelope.size <= 4096 && (1..=50).contains(&envelope.recipients.len()));
                    came.envelope = Some(*envelope);
                }
                Step::Data(data) => {
                    assert!(!data.is_empty() && !came.whole);
                    came.content.extend_from_slice(data);
                }
                Step::End => {
                    assert!(!came.whole);
                    came.whole = true;
                }
            }
        }
        assert!(piece.is_empty());
    }
    came.end = incoming.end().err();
    came
}

fuzz_target!(|data: &[u8]| {
    let [cut, data @ ..] = data else { return };
    let came = read(data, usize::from(*cut).max(1));
    assert_eq!(came, read(data, usize::MAX));
    let size = came.envelope.as_ref().map_or(0, |envelope| envelope.size);
    assert!(came.content.len() as u64 <= size);
    assert!(!came.whole || came.content.len() as u64 == size);
});
