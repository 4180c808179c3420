//! Exim on both sides of the relay: what it sends arrives as it was, what the relay sends it delivers as
//! it was, and each hears what the other said.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::unistd::User;
use wavegate_tests::{
    harness::{Config, PATIENCE, Relay, free, sink, until},
    sink::Extensions,
    tool::{self, MAIL},
};

/// An Exim of its own: the system's, if there is one, is not touched.
struct Exim {
    program: PathBuf,
    folder: tempfile::TempDir,
    addr: SocketAddr,
    daemon: Child,
}

impl Exim {
    /// Starts one that sends what is for `example.org` on to `next`. None if Exim is to be skipped.
    fn start(next: SocketAddr, chunking: bool) -> Option<Self> {
        let program = tool::require("exim4")?;
        let user = User::from_name("Debian-exim").unwrap().expect("the user that Exim runs as");
        let folder = tempfile::Builder::new().prefix("wavegate-exim-").tempdir().unwrap();
        let dir = folder.path();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["spool", "mail"] {
            fs::create_dir(dir.join(name)).unwrap();
            chown(dir.join(name), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let addr = free();
        let config = include_str!("exim/exim.conf")
            .replace("@PROGRAM@", program.to_str().unwrap())
            .replace("@DIR@", dir.to_str().unwrap())
            .replace("@LISTEN@", &addr.port().to_string())
            .replace("@CHUNKING@", if chunking { "*" } else { ":" })
            .replace("@NEXT@", &next.port().to_string());
        fs::write(dir.join("exim.conf"), config).unwrap();
        let daemon = exim(&program, dir)
            .args(["-bdf", "-q1s"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("output")).unwrap())
            .spawn()
            .unwrap();
        let mut started = Self { program, folder, addr, daemon };
        until("Exim listens", || {
            if let Some(status) = started.daemon.try_wait().unwrap() {
                panic!("Exim ended: {status}\n{}", started.logs());
            }
            TcpStream::connect(addr).ok()
        });
        Some(started)
    }

    fn logs(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name));
        ["output", "spool/mainlog", "spool/paniclog"]
            .map(|name| read(name).unwrap_or_default())
            .concat()
    }

    /// Gives it a message for a recipient, as a local program does.
    fn submit(&self, to: &str) {
        let mut child = exim(&self.program, self.folder.path())
            .args(["-i", "-f", "news@mkt.acme.example", to])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(MAIL.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.logs());
    }

    /// The messages that it delivered.
    fn delivered(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.folder.path().join("mail/new")) else {
            return Vec::new();
        };
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }
}

impl Drop for Exim {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn exim(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-C").arg(folder.join("exim.conf"));
    command
}

#[test]
fn what_exim_sends_arrives_as_it_was() {
    for chunking in [false, true] {
        let sink = sink(Extensions { chunking, ..Extensions::default() }, &[]);
        let relay = Relay::start(&Config::to(&[sink.addr()]));
        relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
        let Some(exim) = Exim::start(relay.addr(), chunking) else { return };
        exim.submit("customer@example.org");
        assert!(sink.wait_messages(1, PATIENCE), "{}", exim.logs());
        let content = sink.messages().pop().unwrap().content.unwrap();
        let expected = MAIL.replace('\n', "\r\n");
        assert!(content.ends_with(expected.as_bytes()), "{}", content.escape_ascii());
        assert_eq!(sink.counts().violations, 0);
        // Exim writes the end of its next hop's reply down.
        until("Exim's log", || exim.logs().contains("C=\"250").then_some(()));
    }
}

#[test]
fn what_the_relay_sends_exim_delivers_as_it_was() {
    for chunking in [false, true] {
        let Some(exim) = Exim::start(free(), chunking) else { return };
        for handoff in ["direct", "queued"] {
            let config = Config::to(&[exim.addr]).upstream(&format!("handoff = \"{handoff}\""));
            let relay = Relay::start(&config);
            relay.wait_offer("8BITMIME", |lines| lines.iter().any(|line| line == "8BITMIME"));
            let before = exim.delivered().len();
            let mut client = relay.hello();
            client.expect("MAIL FROM:<news@mkt.acme.example> BODY=8BITMIME", "250");
            client.expect("RCPT TO:<ada@here.example>", "250");
            client.expect("DATA", "354");
            client.send(MAIL.replace('\n', "\r\n").replace("\r\n.", "\r\n.."));
            client.send(".\r\n");
            let reply = client.expect_reply("250");
            let own = reply.contains("wavegate");
            assert_eq!(own, handoff == "queued", "{reply}");
            let mail = until("Exim delivers", || {
                exim.delivered().into_iter().find(|_| exim.delivered().len() > before)
            });
            assert!(mail.ends_with(MAIL), "{mail}");
        }
    }
}

#[test]
fn each_hears_what_the_other_refuses() {
    let refusing = sink(Extensions::default(), &["end:1=550 5.7.1 not this one"]);
    let relay = Relay::start(&Config::to(&[refusing.addr()]).upstream("handoff = \"direct\""));
    let Some(exim) = Exim::start(relay.addr(), false) else { return };
    exim.submit("customer@example.org");
    until("Exim bounces", || exim.logs().contains("550 5.7.1 not this one").then_some(()));
    for verify in ["none", "rcpt"] {
        let lines = format!("handoff = \"direct\"\nverify = \"{verify}\"");
        let relay = Relay::start(&Config::to(&[exim.addr]).upstream(&lines));
        let mut client = relay.hello();
        client.expect("MAIL FROM:<news@mkt.acme.example>", "250");
        let reply = client.command("RCPT TO:<nobody@here.example>");
        let refused = match verify {
            "rcpt" => reply,
            _ => {
                assert!(reply.starts_with("250"), "{reply}");
                client.expect("DATA", "354");
                client.send("x\r\n.\r\n");
                client.reply()
            }
        };
        assert_eq!(refused, "550 no such user here");
    }
}
