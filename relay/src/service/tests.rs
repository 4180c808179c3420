//! Which socket goes to whom, and what is said of the others.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;

use super::*;
use crate::conductor::status::{Alert, WaveStatus};

/// A socket as it was passed.
fn passed(name: &str, socket: TcpListener) -> Passed {
    let address = socket.local_addr().unwrap();
    Passed { name: name.into(), address, socket }
}

fn listening() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn service(sockets: Vec<Passed>) -> Service {
    Service { sockets, ..Service::none() }
}

/// Listeners `in` and `out` at these addresses, and an admin address.
fn config(at_in: SocketAddr, at_out: SocketAddr) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    let text = format!(
        "[relay]\nhostname = 'a.example'\n[[listener]]\nname = 'in'\naddress = '{at_in}'\n\
         [[listener]]\nname = 'out'\naddress = '{at_out}'\n[[upstream]]\nname = 'up'\n\
         targets = ['127.0.0.1:9']\n[admin]\naddress = '127.0.0.1:0'\n"
    );
    std::fs::write(&path, text).unwrap();
    crate::config::read(&path).unwrap()
}

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[test]
fn a_socket_goes_to_its_name_or_else_to_its_address() {
    let (named, by_address, admin) = (listening(), listening(), listening());
    let at = |socket: &TcpListener| socket.local_addr().unwrap();
    let (at_named, at_address, at_admin) = (at(&named), at(&by_address), at(&admin));
    let config = config(free(), at_address);
    let service = service(vec![
        passed("wavegate.socket", by_address),
        passed("in", named),
        passed("admin", admin),
    ]);
    service.check(&config).unwrap();
    let bound = |name, address| service.bind(&config, name, address).unwrap();
    let taken = bound("in", free());
    assert_eq!((taken.address, taken.configured), (at_named, free()));
    assert_eq!(bound("out", at_address).address, at_address);
    assert_eq!(bound("admin", free()).address, at_admin);
    // One that goes and comes back finds its own again.
    drop(taken);
    assert_eq!(bound("in", free()).address, at_named);
    // A client that connected before gets in, and accepting does not block.
    let client = std::net::TcpStream::connect(at_named).unwrap();
    let again = bound("in", free());
    let peer = loop {
        match again.socket.accept() {
            Ok((_, peer)) => break peer,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    };
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(again.socket.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn what_was_not_passed_is_bound() {
    let config = config(free(), free());
    let service = Service::none();
    service.check(&config).unwrap();
    let (first, second) = (
        service.bind(&config, "in", free()).unwrap(),
        service.bind(&config, "out", free()).unwrap(),
    );
    assert_ne!(first.address, second.address);
}

#[test]
fn a_socket_that_nothing_wants_is_an_error() {
    let (stranger, first, twin) = (listening(), listening(), listening());
    let at = stranger.local_addr().unwrap();
    let config = config(free(), free());
    let service =
        service(vec![passed("wavegate.socket", stranger), passed("in", first), passed("in", twin)]);
    let said = service.check(&config).unwrap_err().to_string();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("socket \"wavegate.socket\": "), "{said}");
    assert!(lines[0].contains(&format!("passes it for {at}, and nothing wants it")), "{said}");
    assert!(lines[0].contains("in at 127.0.0.1:0, out at 127.0.0.1:0, admin at"), "{said}");
    assert!(lines[0].contains("FileDescriptorName="), "{said}");
    assert!(lines[1].starts_with("socket \"in\": "), "{said}");
}

#[test]
fn the_status_is_one_line_of_what_matters() {
    assert_eq!(line(2, 0, &Status::default()), "2 clients, 0 messages in the spool");
    let wave = |id: &str, phase: &str| WaveStatus {
        id: id.into(),
        phase: phase.into(),
        ..WaveStatus::default()
    };
    let mut status = Status { held_all: Some("x\ny".into()), ..Status::default() };
    status.waves = vec![wave("w0", "migrated"), wave("w1", "frozen"), wave("w2", "scheduled")];
    status.alerts = vec![Alert { since: String::new(), wave: None, text: "a\nb".into() }];
    assert_eq!(
        line(0, 7, &status),
        "0 clients, 7 messages in the spool, wave w1 frozen, everything is held, 1 alerts"
    );
    status.waves.extend(["a", "b", "c", "d"].map(|id| wave(id, "releasing")));
    let text = line(0, 7, &status);
    assert!(text.contains("wave w1 frozen, wave a releasing, wave b releasing and 2 waves more"));
}
