//! Any bytes as replies: no panic, and what is read has no control characters
//! and is written as it reads back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_smtp::reply::ReplyReader;

fuzz_target!(|data: &[u8]| {
    let mut reader = ReplyReader::default();
    let mut input = data;
    while let Ok((used, Some(reply))) = reader.read(input) {
        input = &input[used..];
        assert!(reply.lines().all(|line| line.chars().all(|c| c == '\t' || !c.is_control())));
        let mut wire = Vec::new();
        reply.write(&mut wire);
        let again = ReplyReader::default().read(&wire);
        assert_eq!(again, Ok((wire.len(), Some(reply))));
    }
});
