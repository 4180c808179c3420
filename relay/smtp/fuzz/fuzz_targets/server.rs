//! Any bytes, in any split, to a server whose steps are answered at once: no
//! panic, every line of output ends in CRLF, and a message that is taken has
//! no bare line end and no NUL.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use wavegate_smtp::{AuthOffer, Enhanced, Extensions, Limits, Reply, Server, ServerConfig, StartTls, Step};

static TAKEN: Reply = Reply::fixed(250, Enhanced(2, 0, 0), "Taken");
static WRONG: Reply = Reply::fixed(535, Enhanced(5, 7, 8), "Wrong");

fn config() -> ServerConfig {
    ServerConfig {
        hostname: "relay.example".to_owned(),
        extensions: Extensions::full(1000),
        limits: Limits { message_line: 64, header_block: 256, login_line: 64, ..Limits::default() },
        may_relay: false,
        starttls: StartTls::Offered,
        mark: "",
        auth: AuthOffer::Anytime,
        auth_required: false,
    }
}

fn session(server: &mut Server, mut input: &[u8], body: &mut Vec<u8>) -> bool {
    loop {
        let (used, step) = server.step(input);
        input = &input[used..];
        match step {
            Step::NeedInput => return true,
            Step::Close(_) => return false,
            Step::Body(span) => body.extend_from_slice(span),
            Step::End(facts) => {
                assert_eq!(facts.size, body.len() as u64);
                assert!(!body.contains(&0));
                let text = body.split(|byte| *byte == b'\n');
                let lines = text.clone().count();
                for (index, line) in text.enumerate() {
                    let bare = line.strip_suffix(b"\r").unwrap_or(line);
                    assert!(!bare.contains(&b'\r'));
                    assert!(index + 1 == lines || line.ends_with(b"\r"));
                }
                body.clear();
                server.reply(&TAKEN);
            }
            Step::Dropped(_) | Step::Reset => body.clear(),
            Step::StartTls => {
                body.clear();
                server.accept();
                server.written(server.output().len());
                server.secured();
            }
            Step::Xclient(told) => {
                body.clear();
                let logged_in = matches!(told.login, wavegate_smtp::Told::Is(_));
                server.accept_xclient(Arc::new(config()), logged_in);
            }
            // Every other login fails, so that both ends of it are seen.
            Step::Auth(login) if login.password.expose().len() % 2 == 0 => server.reply(&WRONG),
            Step::Auth(_) => server.accept(),
            Step::Helo(_) | Step::Mail(_) | Step::Rcpt(_) | Step::Data => {
                body.clear();
                server.accept();
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [cut, data @ ..] = data else { return };
    let config = ServerConfig { may_relay: cut % 2 == 0, ..config() };
    let mut server = Server::new(Arc::new(config));
    server.trust();
    server.greet();
    let mut body = Vec::new();
    for piece in data.chunks(usize::from(*cut).max(1)) {
        if !session(&mut server, piece, &mut body) {
            break;
        }
    }
    assert!(server.output().is_empty() || server.output().ends_with(b"\r\n"));
    assert!(!server.output().contains(&0));
});
