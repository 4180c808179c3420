//! The senders of a storm: what they send, and that they send it until they are told something
//! final.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream, DuplexStream};
use wavegate::{
    relay::Relay,
    session::{self, Client},
    world::Stream,
};

use super::{
    record::Record,
    settings::{Dice, INSTANCES},
    weather::HOUR,
};

/// Mail that no instance matches has this number.
pub const STRANGER: usize = 3;

#[derive(Clone, Debug)]
pub struct Letter {
    pub at: u64,
    /// Index of the instance.
    pub instance: usize,
    client: String,
    pub from: String,
    pub to: Vec<String>,
    size: u64,
    /// At its first attempt the client does not wait for the reply.
    hangs_up: bool,
    /// What it was told in the end: 250, or 5xx.
    pub told: Option<String>,
}

impl Letter {
    pub fn is_promised(&self) -> bool {
        self.told.as_ref().is_some_and(|told| told.starts_with('2'))
    }
}

/// Refused for ever, whoever asks.
pub fn is_refused(recipient: &str) -> bool {
    recipient.starts_with("nobody")
}

/// Refused for ever at the end of its data.
pub fn is_spam(recipient: &str) -> bool {
    recipient.starts_with("spam")
}

/// The mail of an hour.
pub fn letters(dice: &Dice) -> Vec<Letter> {
    let count = dice.between(150, 450);
    // One instance sends many times what the others do.
    let loud = dice.below(3);
    let letter = |number| {
        let instance = match dice.below(10) {
            0..=4 => loud,
            5 => STRANGER as u64,
            _ => dice.below(3),
        };
        let instance = usize::try_from(instance).unwrap();
        let null = dice.chance(100);
        let domain = INSTANCES
            .get(instance)
            .map_or("nobody.example".into(), |name| format!("{name}.example"));
        let network = if instance == STRANGER { dice.between(1, 5) } else { instance as u64 + 1 };
        let recipients = if dice.chance(700) { 1 } else { dice.between(2, 5) };
        let spam = dice.chance(30);
        let to = (0..recipients).map(|index| {
            let kind = match dice.below(20) {
                _ if spam => "spam",
                0 => "nobody",
                1 => "busy",
                _ => "user",
            };
            let null = if null { "-null" } else { "" };
            format!("{kind}-{number}-{index}{null}@dest.example")
        });
        Letter {
            at: dice.below(HOUR - 60_000),
            instance,
            client: format!("10.0.{network}.1"),
            to: to.collect(),
            from: if null { String::new() } else { format!("news-{number}@{domain}") },
            size: *dice.of(&[&0, &0, &3_000, &3_000, &100_000]),
            hangs_up: dice.chance(30),
            told: None,
        }
    };
    (0..count).map(letter).collect()
}

/// Has every sender who was told nothing final yet go on.
pub fn start(relay: &Arc<Relay>, record: &Record) {
    let letters: Vec<(usize, Letter)> = {
        let book = record.lock();
        let open = book.letters.iter().enumerate().filter(|(_, letter)| letter.told.is_none());
        open.map(|(number, letter)| (number, letter.clone())).collect()
    };
    for (number, letter) in letters {
        tokio::spawn(send(Arc::clone(relay), record.clone(), number, letter));
    }
}

async fn send(relay: Arc<Relay>, record: Record, number: usize, mut letter: Letter) {
    let begin = letter.at.saturating_sub(record.now()).max(number as u64 % 7 * 100);
    tokio::time::sleep(Duration::from_millis(begin)).await;
    loop {
        let reply = post(&relay, &letter).await;
        match reply {
            Some(reply) if reply.starts_with('2') || reply.starts_with('5') => {
                let mut book = record.lock();
                let now = book.now();
                book.lines.push(format!("{now} letter {number}: {reply}"));
                book.tally.spooled += u64::from(reply.contains("queued as"));
                book.letters[number].told = Some(reply);
                return;
            }
            Some(reply) => {
                let mut book = record.lock();
                book.tally.not_spooled += u64::from(reply.contains(" 4.3."));
            }
            None => {}
        }
        letter.hangs_up = false;
        tokio::time::sleep(Duration::from_millis(20_000 + number as u64 % 50 * 400)).await;
    }
}

/// One attempt; the last reply, or none where the connection broke or was left.
async fn post(relay: &Arc<Relay>, letter: &Letter) -> Option<String> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let peer = format!("{}:40000", letter.client).parse().unwrap();
    let client = Client::new(relay, "listener-1", Stream::Memory(far), peer)?;
    tokio::spawn(session::serve(Arc::clone(relay), client));
    let mut stream = BufStream::new(near);
    let mut said = reply(&mut stream).await?;
    let mut commands = vec!["EHLO mta.example".to_owned(), format!("MAIL FROM:<{}>", letter.from)];
    commands.extend(letter.to.iter().map(|recipient| format!("RCPT TO:<{recipient}>")));
    commands.push("DATA".to_owned());
    for command in commands {
        said = order(&mut stream, &command).await?;
        if !said.starts_with(['2', '3']) {
            return Some(said);
        }
    }
    let mut body = format!("Subject: storm\r\nFrom: <{}>\r\n\r\n", letter.from);
    for _ in 0..letter.size / 80 {
        body += &"x".repeat(78);
        body += "\r\n";
    }
    stream.write_all(body.as_bytes()).await.ok()?;
    if letter.hangs_up {
        stream.write_all(b".\r\n").await.ok()?;
        stream.flush().await.ok()?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        return None;
    }
    said = order(&mut stream, ".").await.unwrap_or(said);
    // 354 is what was said before: the connection broke.
    (!said.starts_with('3')).then_some(said)
}

async fn order(stream: &mut BufStream<DuplexStream>, line: &str) -> Option<String> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await.ok()?;
    stream.flush().await.ok()?;
    reply(stream).await
}

async fn reply(stream: &mut BufStream<DuplexStream>) -> Option<String> {
    let mut reply = String::new();
    loop {
        let begin = reply.len();
        if stream.read_line(&mut reply).await.ok()? == 0 {
            return None;
        }
        if reply.as_bytes().get(begin + 3) == Some(&b' ') {
            return Some(reply.trim_end().to_owned());
        }
    }
}
