//! Any bytes on a control stream, in any split: no panic, bounded, one history, and what is read is
//! written as it came. The first byte says who speaks and how it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_link::{
    Control, LinkError,
    control::{ControlReader, Side},
    limits,
};

fn read(data: &[u8], cut: usize, speaker: Side) -> (Vec<Control>, Option<LinkError>) {
    let (mut reader, mut said) = (ControlReader::new(speaker), Vec::new());
    for mut piece in data.chunks(cut) {
        while !piece.is_empty() {
            match reader.read(piece) {
                Ok((used, word)) => {
                    assert!(used > 0);
                    piece = &piece[used..];
                    said.extend(word);
                }
                Err(error) => return (said, Some(error)),
            }
            assert!(reader.weight() <= limits::HELLO + 5);
        }
    }
    (said, None)
}

fuzz_target!(|data: &[u8]| {
    let [first, data @ ..] = data else { return };
    let speaker = if first % 2 == 0 { Side::Edge } else { Side::Gateway };
    let (said, wrong) = read(data, usize::from(first / 2).max(1), speaker);
    assert_eq!((&said, &wrong), (&read(data, usize::MAX, speaker).0, &wrong));
    let mut wire = Vec::new();
    said.iter().for_each(|word| word.write(&mut wire));
    // Byte for byte, but for what a later gateway may offer.
    if let Some(Control::Hello(hello)) = said.first()
        && hello.offer.is_some()
    {
        let flags = 5 + 2 + hello.name.len() + 16;
        let known = [0, data[flags + 1] & 7];
        assert_eq!((&wire[..flags], &wire[flags..flags + 2]), (&data[..flags], &known[..]));
        assert_eq!(wire[flags + 2..], data[flags + 2..wire.len()]);
    } else {
        assert_eq!(wire, data[..wire.len()]);
    }
    assert_eq!(read(&wire, usize::MAX, speaker), (said, None));
});
