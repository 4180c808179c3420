//! Clients with sessions that last: each sends its letters in turn, and each letter until it is
//! taken.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream, DuplexStream};
use wavegate::{
    relay::Relay,
    session::{self, Client},
    world::Stream,
};

use super::{
    book::Shared,
    script::{Dice, INSTANCES, MESSAGES, STRANGER, Script},
};

/// Sessions of each instance.
const SESSIONS: u64 = 2;

/// One session's letters: their time and name.
struct Letters {
    address: String,
    from: String,
    letters: Vec<(u64, String)>,
}

/// All letters of a window, by session.
fn clients(script: &Script) -> Vec<Letters> {
    let dice = Dice::new(script.seed ^ 0x5eed);
    let end = script.closes + 60_000;
    let each = MESSAGES.div_ceil(INSTANCES.len() as u64 * SESSIONS);
    let mut clients = Vec::new();
    for (number, name) in (1..).zip(INSTANCES.iter().chain([&STRANGER])) {
        for session in 0..SESSIONS {
            let mut times: Vec<u64> = (0..each).map(|_| dice.below(end)).collect();
            times.sort_unstable();
            let named = |(index, at)| (at, format!("{name}/{session}/{index}"));
            clients.push(Letters {
                address: format!("10.0.{number}.{}", session + 1),
                from: format!("news@{name}.example"),
                letters: times.into_iter().enumerate().map(named).collect(),
            });
        }
    }
    clients
}

/// Enters all letters.
pub fn enter(book: &Shared) {
    let mut book = book.lock().unwrap();
    let all = clients(&book.script).into_iter().flat_map(|client| client.letters);
    book.letters = all.map(|(_, name)| (name, None)).collect();
}

/// Has every sender go on with what was not taken yet.
pub fn start(relay: &Arc<Relay>, book: &Shared) {
    let clients = clients(&book.lock().unwrap().script);
    for mut client in clients {
        client.letters.retain(|(_, name)| book.lock().unwrap().letters[name].is_none());
        tokio::spawn(send_all(Arc::clone(relay), Arc::clone(book), client));
    }
}

async fn send_all(relay: Arc<Relay>, book: Shared, client: Letters) {
    let mut kept = None;
    for (at, name) in &client.letters {
        let now = book.lock().unwrap().now();
        tokio::time::sleep(Duration::from_millis(at.saturating_sub(now))).await;
        loop {
            if kept.is_none() {
                kept = open(&relay, &client.address).await;
            }
            let reply = match &mut kept {
                Some(stream) => post(stream, &client.from, name).await,
                None => None,
            };
            match reply {
                Some(reply) if reply.starts_with("250") => {
                    let mut book = book.lock().unwrap();
                    book.say(&format!("{name}: {reply}"));
                    book.tally.queued += u64::from(reply.contains("queued as"));
                    *book.letters.get_mut(name).unwrap() = Some(reply);
                    break;
                }
                Some(reply) => assert!(reply.starts_with('4'), "{name}: {reply}"),
                None => kept = None,
            }
            tokio::time::sleep(Duration::from_secs(7)).await;
        }
    }
}

async fn open(relay: &Arc<Relay>, address: &str) -> Option<BufStream<DuplexStream>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let peer = format!("{address}:40000").parse().unwrap();
    let client = Client::new(relay, "listener-1", Stream::Memory(far), peer)?;
    tokio::spawn(session::serve(Arc::clone(relay), client));
    let mut stream = BufStream::new(near);
    reply(&mut stream).await?;
    command(&mut stream, "EHLO mta.example").await?;
    Some(stream)
}

/// The last reply; none where the connection broke.
async fn post(stream: &mut BufStream<DuplexStream>, from: &str, name: &str) -> Option<String> {
    let commands = [
        format!("MAIL FROM:<{from}>"),
        "RCPT TO:<user@dest.example>".to_owned(),
        "DATA".to_owned(),
    ];
    for line in commands {
        let reply = command(stream, &line).await?;
        if !reply.starts_with(['2', '3']) {
            return Some(reply);
        }
    }
    command(stream, &format!("Subject: window\r\n\r\nname={name}\r\n.")).await
}

async fn command(stream: &mut BufStream<DuplexStream>, line: &str) -> Option<String> {
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
