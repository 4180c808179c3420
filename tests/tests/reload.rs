//! Reloads: under load, of everything, of what is bad. No session is dropped by one, no message
//! refused because of one.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]
#![allow(
    clippy::disallowed_methods,
    reason = "what drives the relay from outside has the real time"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use wavegate_tests::harness::{Client, Config, Relay, plan_of_held, recording, until, variant};
use wavegate_tests::load::{self, LoadOptions, Transfer};

const FREEZE: &[u8] = include_bytes!("../../plugins/dist/freeze.wasm");
/// Where the builds differ: the words that held mail gets.
const WORDS: &str = "instance  is being upgraded";

fn held(client: &mut Client) -> String {
    client.envelope("a@held.example", "b@example.org");
    client.expect("DATA", "354");
    client.send("x\r\n.\r\n");
    client.reply()
}

#[test]
fn two_hundred_reloads_under_load_each_with_another_build() {
    let sink = recording_without_content();
    let config = Config::to(&[sink.addr()]).relay("plan = \"waves.toml\"").section(
        "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"freeze.wasm\"\n\
         settings = { in_window = \"defer\" }\n\
         [[policy]]\nplugin = \"builtin:routing\"\n",
    );
    let builds: Vec<_> = (0..20).map(|number| variant(FREEZE, WORDS, number)).collect();
    let files: [(&str, &[u8]); 2] =
        [("freeze.wasm", &builds[19]), ("waves.toml", plan_of_held().leak().as_bytes())];
    let mut relay = Relay::start_with(&config.to_string(), &files);
    let mut idle: Vec<_> = (0..20).map(|_| relay.hello()).collect();
    // A transaction that stands open over all reloads.
    let mut open = relay.hello();
    open.begin_data();
    open.send("Subject: open\r\n\r\nfirst half, ");
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let mut loads = Vec::new();
        for (pipelining, per_session) in [(false, None), (true, Some(3))] {
            let (stop, target) = (&stop, relay.addr());
            loads.push(scope.spawn(move || {
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    let options = LoadOptions {
                        sessions: 4,
                        pipelining,
                        per_session,
                        transfer: if pipelining { Transfer::Bdat } else { Transfer::Data },
                        body_size: 2000,
                        time_limit: Duration::from_secs(20),
                        ..LoadOptions::new(target, 400)
                    };
                    let report = load::run(&options).unwrap();
                    assert!(report.is_clean(), "{report}");
                    sent += report.accepted;
                }
                sent
            }));
        }
        let mut asker = relay.hello();
        for number in 0..200 {
            relay.write("freeze.wasm", &builds[number % 20]);
            relay.signal(Signal::SIGHUP);
            let words = format!("is being upgrad{:02}", number % 20);
            until(&format!("reload {number}"), || {
                let said = held(&mut asker);
                assert!(said.starts_with("451 4.7.0"), "{said}");
                if said.contains(&words) {
                    return Some(());
                }
                // A message that was not taken forgives no errors; a fresh session has made none.
                asker = relay.hello();
                None
            });
        }
        stop.store(true, Ordering::SeqCst);
        loads.into_iter().map(|load| load.join().unwrap()).sum::<u64>()
    });
    open.send("second half\r\n.\r\n");
    open.expect_reply("250");
    for client in &mut idle {
        client.expect("NOOP", "250");
        assert!(client.small().starts_with("250"));
    }
    assert_eq!(sink.counts().messages, sent + 21);
    assert_eq!(sink.counts().bad_contents, 0);
    assert_eq!(relay.reloads().1, 0, "a reload was refused");
    assert!(relay.reloads().0 >= 200);
    relay.assert_alive();
}

fn recording_without_content() -> wavegate_tests::sink::SinkHandle {
    let options = wavegate_tests::sink::SinkOptions {
        verify: true,
        ..wavegate_tests::sink::SinkOptions::default()
    };
    wavegate_tests::sink::Sink::start(options).unwrap()
}

#[test]
fn what_is_bad_keeps_the_old_generation() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]).relay("plan = \"waves.toml\"").section(
        "[migration]\nbefore = \"up\"\nafter = \"up\"\n[[policy]]\nplugin = \"freeze.wasm\"\n\
         settings = { in_window = \"defer\" }\n\
         [[policy]]\nplugin = \"builtin:routing\"\n",
    );
    let good = config.to_string();
    let waves = plan_of_held();
    let files: [(&str, &[u8]); 2] = [("freeze.wasm", FREEZE), ("waves.toml", waves.as_bytes())];
    let mut relay = Relay::start_with(&good, &files);
    let mut client = relay.hello();
    let still_works = |client: &mut Client, what: &str| {
        assert!(client.small().starts_with("250"), "{what}");
        let said = held(client);
        assert!(said.contains("held is being upgraded"), "{what}: {said}");
    };
    let mut cut = FREEZE.to_vec();
    cut.truncate(FREEZE.len() / 2);
    let import = replaced(FREEZE, b"wavegate:policy/log@1.0.0", b"wavegate:policy/lag@1.0.0");
    let module = b"\0asm\x01\0\0\0".to_vec();
    let state = good.replace("[relay]\n", "[relay]\nstate_dir = \"elsewhere\"\n");
    let listener = good.replace("127.0.0.1:0", "203.0.113.7:25");
    for (file, bad, named) in [
        ("relay.toml", b"[relay\n".to_vec(), "relay.toml"),
        ("relay.toml", good.replace("hostname", "hostnam").into_bytes(), "hostname"),
        ("relay.toml", good.replace("builtin:routing", "builtin:rooting").into_bytes(), "routing"),
        ("relay.toml", state.into_bytes(), "restart"),
        ("relay.toml", listener.into_bytes(), "203.0.113.7:25"),
        ("relay.toml", Vec::new(), "relay.toml"),
        ("waves.toml", waves.replace("opens", "oopens").into_bytes(), "waves.toml"),
        ("waves.toml", vec![0xff; 100], "waves.toml"),
        ("freeze.wasm", Vec::new(), "freeze"),
        ("freeze.wasm", b"not a component".to_vec(), "freeze"),
        ("freeze.wasm", module, "freeze"),
        ("freeze.wasm", cut, "freeze"),
        ("freeze.wasm", import.unwrap_or_else(|| vec![1]), "freeze"),
    ] {
        let before = std::fs::read(relay.folder().join(file)).unwrap();
        relay.write(file, bad);
        let said = relay.reload_refused();
        assert!(said.contains(named), "{file}: {said}");
        still_works(&mut client, &said);
        // Whoever looks at the files after that, finds them good again.
        relay.write(file, before);
        until("a good reload", || {
            let (made, _) = relay.reloads();
            relay.signal(Signal::SIGHUP);
            until("an answer", || Some(relay.reloads()).filter(|now| now.0 > made).map(|_| ()));
            Some(())
        });
        still_works(&mut client, "after the repair");
    }
    std::fs::remove_file(relay.folder().join("relay.toml")).unwrap();
    relay.reload_refused();
    still_works(&mut client, "without its file");
    relay.assert_alive();
}

/// All places of `from` replaced by as many bytes; none if there is no such place.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<_> = memchr::memmem::find_iter(&bytes, from).collect();
    for &place in &places {
        bytes[place..place + to.len()].copy_from_slice(to);
    }
    (!places.is_empty()).then_some(bytes)
}

#[test]
fn a_changed_file_is_noticed_without_a_signal() {
    let (one, two) = (recording(), recording());
    let relay = Relay::start(&Config::to(&[one.addr()]));
    let mut client = relay.hello();
    assert!(client.small().starts_with("250"));
    relay.write("relay.toml", Config::to(&[two.addr()]).to_string());
    until("mail goes to the other upstream", || {
        assert!(client.small().starts_with("250"));
        (two.counts().messages > 0).then_some(())
    });
    // Written in place as well, as editors do.
    let sent = one.counts().messages;
    let back = Config::to(&[one.addr()]).to_string();
    std::fs::write(relay.folder().join("relay.toml"), back).unwrap();
    until("mail goes to the first upstream again", || {
        assert!(client.small().starts_with("250"));
        (one.counts().messages > sent).then_some(())
    });
}

#[test]
fn listeners_come_and_go_and_sessions_stay() {
    let sink = recording();
    let config = Config::to(&[sink.addr()]);
    let relay = Relay::start(&config);
    let spare = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = spare.local_addr().unwrap();
    drop(spare);
    let more = format!("[[listener]]\nname = \"second\"\naddress = \"{second}\"\n");
    relay.write("relay.toml", config.clone().section(&more).to_string());
    relay.reload();
    let mut client = until("the second listener", || {
        std::net::TcpStream::connect(second).is_ok().then(|| Client::greeted(second))
    });
    client.expect("EHLO client.example", "250");
    assert!(client.small().starts_with("250"));
    client.begin_data();
    relay.write("relay.toml", config.to_string());
    relay.reload();
    until("nobody listens", || std::net::TcpStream::connect(second).err());
    // What was connected stays so, in the middle of a message too.
    client.send("x\r\n.\r\n");
    client.expect_reply("250");
    assert!(client.small().starts_with("250"));
    assert!(relay.hello().small().starts_with("250"));
    assert_eq!(sink.counts().messages, 4);
}

const HOSTILE: &[u8] = include_bytes!("../guests/hostile.wasm");

/// Bad policies come with other changes, in several reloads; they alone go, and go again.
#[test]
fn policies_that_fail_go_back_and_nothing_else_does() {
    let (one, other) = (recording(), recording());
    let old = Config::to(&[one.addr()]).admin().section("[[policy]]\nplugin = \"old.wasm\"");
    let relay = Relay::start_with(&old.to_string(), &[("old.wasm", FREEZE), ("new.wasm", HOSTILE)]);
    assert!(relay.hello().small().starts_with("250"));
    let spare = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = spare.local_addr().unwrap();
    drop(spare);
    let bad = Config::to(&[other.addr()]).admin().section(&format!(
        "[[policy]]\nplugin = \"new.wasm\"\nsettings = {{ do = \"trap\" }}\n\
         [[listener]]\nname = \"second\"\naddress = \"{second}\"\n"
    ));
    relay.write("relay.toml", bad.to_string());
    relay.reload();
    relay.write("relay.toml", format!("# The same, one line further down.\n{bad}"));
    relay.reload();
    // The component of before is not there any more.
    std::fs::remove_file(relay.folder().join("old.wasm")).unwrap();
    let mut client = relay.hello();
    let mut goes_back = |before: usize| {
        until("it goes back, and what was held goes", || {
            assert!(client.small().starts_with("250"));
            let times = relay.log().matches("went back to the policies of generation").count();
            let is_empty = relay.metrics().sum("spool_recipients", &[]) == 0.0;
            (times > before && is_empty).then_some(times)
        })
    };
    let times = goes_back(0);
    assert!(std::net::TcpStream::connect(second).is_ok(), "the listener stays");
    relay.reload();
    goes_back(times);
    assert_eq!(one.counts().messages, 1, "and all went to the other upstream");
    assert!(!relay.log().contains("panicked"), "{}", relay.log());
}
