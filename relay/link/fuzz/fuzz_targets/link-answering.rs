//! Any bytes as answers, in any split: no panic, bounded, one history, and what is settled has one
//! reply for each recipient. The first byte says how it is cut, the second how many there are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wavegate_link::{Answering, Answers, How, LinkError, limits};

fn read(data: &[u8], cut: usize, count: u32) -> Result<Option<Answers>, LinkError> {
    let mut answering = Answering::new(count);
    let mut answers = None;
    for piece in data.chunks(cut) {
        let read = answering.receive(piece)?;
        assert!(read.is_none() || answers.is_none());
        answers = answers.or(read);
        assert!(answering.weight() <= limits::ANSWER + 5 + limits::ANSWERS);
    }
    Ok(answers)
}

fuzz_target!(|data: &[u8]| {
    let [cut, count, data @ ..] = data else { return };
    let count = u32::from(*count).max(1);
    let read_ = read(data, usize::from(*cut).max(1), count);
    assert_eq!(read_, read(data, usize::MAX, count));
    let Ok(Some(answers)) = read_ else { return };
    assert!(answers.all().len() <= count as usize + 1);
    let Some(settled) = answers.settled() else { panic!("there is a recipient") };
    for recipient in 0..count {
        let Some(answer) = answers.of(recipient) else { panic!("no answer for {recipient}") };
        assert_eq!(settled.for_recipient(recipient), &answer.reply);
        assert!(answer.how != How::Stored || answer.reply.is_positive());
        assert!(answer.how != How::InDoubt || answer.reply.is_negative());
    }
    assert!(answers.of(count).is_none());
});
