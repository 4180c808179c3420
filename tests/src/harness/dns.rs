//! A small DNS server on loopback, over UDP: it answers what a test has written down, or says
//! SERVFAIL, or nothing.
//!
//! Owns its own reading and writing of RFC 1035, so that no library is on both sides. It knows A,
//! AAAA and MX. Floor: none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

const A: u16 = 1;
const MX: u16 = 15;
const AAAA: u16 = 28;

/// How it is with the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    #[default]
    Well,
    /// It says SERVFAIL.
    Fails,
    /// It says nothing.
    Silent,
}

#[derive(Default)]
struct Table {
    mood: Mood,
    /// Records by name: type, seconds, and what stands in them. A name without any exists, and has
    /// none.
    names: HashMap<String, Vec<(u16, u32, Vec<u8>)>>,
    asked: u64,
}

/// The server. It ends when this is dropped.
pub struct Dns {
    addr: SocketAddr,
    table: Arc<Mutex<Table>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts one that knows no name.
    pub fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = socket.local_addr().unwrap();
        let (table, ends) = (Arc::new(Mutex::new(Table::default())), Arc::default());
        let (known, over): (_, Arc<AtomicBool>) = (Arc::clone(&table), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(answer) = known.lock().unwrap().answer(&buffer[..count]) {
                    let _gone_is_gone = socket.send_to(&answer, from);
                }
            }
        });
        Self { addr, table, ends, thread: Some(thread) }
    }

    /// `[resolver]` of a relay that asks it, with these lines.
    pub fn resolver(&self, lines: &str) -> String {
        format!("[resolver]\nservers = [\"{}\"]\n{lines}\n", self.addr)
    }

    /// A host has these addresses for so many seconds.
    pub fn host(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        let record = |address: &IpAddr| match address {
            IpAddr::V4(address) => (A, ttl, address.octets().to_vec()),
            IpAddr::V6(address) => (AAAA, ttl, address.octets().to_vec()),
        };
        self.lock().names.insert(name.to_owned(), addresses.iter().map(record).collect());
    }

    /// A domain has these mail exchangers for so many seconds.
    pub fn exchangers(&self, domain: &str, hosts: &[(u16, &str)], ttl: u32) {
        let record = |(preference, host): &(u16, &str)| {
            (MX, ttl, [&preference.to_be_bytes()[..], &encoded(host)].concat())
        };
        self.lock().names.insert(domain.to_owned(), hosts.iter().map(record).collect());
    }

    /// A name does not exist.
    pub fn remove(&self, name: &str) {
        self.lock().names.remove(name);
    }

    /// How it is with it from now on.
    pub fn is(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    /// Questions so far.
    pub fn asked(&self) -> u64 {
        self.lock().asked
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
            let _wakes_it = socket.send_to(&[0], self.addr);
        }
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

impl Table {
    /// The answer to one question (RFC 1035 4.1).
    fn answer(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        self.asked += 1;
        if self.mood == Mood::Silent {
            return None;
        }
        let (name, end) = decoded(query, 12)?;
        let wanted = u16::from_be_bytes(query.get(end..end + 2)?.try_into().ok()?);
        let question = query.get(12..end + 4)?;
        let known = self.names.get(&name);
        let records: Vec<_> = known.into_iter().flatten().filter(|one| one.0 == wanted).collect();
        let code = match (self.mood, known) {
            (Mood::Fails, _) => 2,
            (_, None) => 3,
            _ => 0,
        };
        let records = if code == 0 { records } else { Vec::new() };
        let count = u16::try_from(records.len()).ok()?;
        let mut answer = query.get(..2)?.to_vec();
        // An answer, recursion desired and available; one question, no other section.
        answer.extend([0x81, 0x80 | code, 0, 1]);
        answer.extend(count.to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(question);
        for (kind, ttl, data) in records {
            // The name of the question, class IN.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]);
            answer.extend(ttl.to_be_bytes());
            answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }
}

/// The name at `at`, and what comes after it. Questions are not compressed.
fn decoded(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = bytes.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()][..], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}
