//! Whom upstreams hear that mail is from: XFORWARD, XCLIENT, PROXY headers; and the relay's own
//! login at them. Against sinks, Postfix, HAProxy and aiosmtpd.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use wavegate_tests::harness::{
    Client, Config, Haproxy, PATIENCE, Postfix, Relay, assert_promise, faults_of, free, told, until,
};
use wavegate_tests::sink::{Identity, Message, SinkHandle};
use wavegate_tests::tool;

/// Whom the relay believes what a client's address is, and whose mail it takes.
const LISTENER: &str = "allow = [\"192.0.2.0/24\", \"198.51.100.0/24\", \"2001:db8::/32\"]\n\
                        proxies = [\"127.0.0.1\"]";

fn relay_to(target: SocketAddr, lines: &str) -> Relay {
    Relay::start(&Config::to(&[target]).listener(LISTENER).upstream(lines).admin())
}

/// A client with this address and port.
fn client(relay: &Relay, address: &str, port: u16, helo: &str) -> Client {
    let mut client = Client::connect(relay.addr());
    let (family, to) = match address.contains(':') {
        true => ("TCP6", "2001:db8::99"),
        false => ("TCP4", "203.0.113.1"),
    };
    client.send(format!("PROXY {family} {address} {to} {port} 25\r\n"));
    client.expect_reply("220");
    client.expect(&format!("EHLO {helo}"), "250");
    client
}

/// Sends a message that says whose it is.
fn send(client: &mut Client, whose: &str) -> String {
    client.expect("MAIL FROM:<a@example.com>", "250");
    client.expect("RCPT TO:<b@example.org>", "250");
    client.expect("DATA", "354");
    client.send(format!("X-Whose: {whose}\r\n\r\nx\r\n.\r\n"));
    client.reply()
}

fn content(message: &Message) -> String {
    String::from_utf8(message.content.clone().unwrap()).unwrap()
}

/// What a header says of a message whose.
fn whose(message: &Message) -> Vec<String> {
    let content = content(message);
    let line = content.lines().find_map(|line| line.strip_prefix("X-Whose: ")).unwrap();
    line.split(' ').map(str::to_owned).collect()
}

/// That what an upstream was told of a message's client is true.
fn assert_told(way: &str, message: &Message, target: SocketAddr) {
    let told = &message.told;
    let [address, port, helo] = &whose(message)[..] else { panic!("{told:?}") };
    let is_six = address.contains(':');
    match way {
        "proxy-v1" | "proxy-v2" => {
            let to = if is_six { "::".to_owned() } else { target.ip().to_string() };
            assert_eq!(told["PROXY"], format!("{address} {port} {to} {}", target.port()));
            assert_eq!(&message.helo, helo);
        }
        _ => {
            let tag = if is_six { "IPV6:" } else { "" };
            assert_eq!(told["ADDR"], format!("{tag}{address}"), "{told:?}");
            assert_eq!((&told["PORT"], &told["HELO"]), (port, helo));
            assert_eq!(told["PROTO"], "ESMTP");
            assert_eq!(told["NAME"], "[UNAVAILABLE]");
        }
    }
    if way == "xclient" {
        assert_eq!((&message.helo, &*told["LOGIN"]), (helo, "[UNAVAILABLE]"));
    }
    if way == "xforward" {
        assert_eq!((&*message.helo, &*told["SOURCE"]), ("edge-1.example.net", "REMOTE"));
        // One id from hop to hop.
        let id = format!(" id {};", told["IDENT"]);
        assert!(content(message).contains(&id), "{}", content(message));
    }
}

fn sink_for(way: &str) -> SinkHandle {
    let identity = Identity {
        proxy: way.starts_with("proxy"),
        xforward: way == "xforward",
        xclient: way == "xclient",
        ..Identity::default()
    };
    told(identity, &[])
}

/// Many clients at once and in a shuffled order, few connections: each message arrives with its
/// own client's identity.
fn each_with_its_own(way: &str, handoff: &str, seed: u64) {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 12;
    let sink = sink_for(way);
    let lines = format!(
        "identity = \"{way}\"\nhandoff = \"{handoff}\"\nconnections = 2\n\
         retry_first = \"100ms\"\nmessages_per_connection = 7"
    );
    let relay = relay_to(sink.addr(), &lines);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let relay = &relay;
            scope.spawn(move || {
                let mut random = seed * 1000 + thread;
                let mut open: Vec<(Client, String)> = Vec::new();
                for round in 0..ROUNDS {
                    // Knuth's, for MMIX.
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let pick = random >> 33;
                    if open.len() < 3 {
                        let address = match pick % 3 {
                            0 => format!("2001:db8::{:x}", pick % 200 + 1),
                            _ => format!("192.0.2.{}", pick % 5 + 1),
                        };
                        let port = u16::try_from(1000 + thread * 1000 + round).unwrap();
                        let helo = format!("mta{}.example", pick % 4);
                        let client = client(relay, &address, port, &helo);
                        open.push((client, format!("{address} {port} {helo}")));
                    }
                    let at = usize::try_from(pick).unwrap() % open.len();
                    let (client, whose) = &mut open[at];
                    let reply = send(client, whose);
                    assert!(reply.starts_with("250"), "{way} {handoff} {seed}: {reply}");
                    if pick.is_multiple_of(5) {
                        open.swap_remove(at);
                    }
                }
            });
        }
    });
    let all = THREADS * ROUNDS;
    until(&format!("{way}, {handoff}: all have come"), || {
        (sink.counts().messages == all).then_some(())
    });
    for message in sink.messages() {
        assert_told(way, &message, sink.addr());
    }
    assert_eq!(sink.counts().violations, 0);
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("upstream_identity_refused_total", &[]), 0.0);
    assert_eq!(metrics.sum("upstream_connections_failed_total", &[]), 0.0);
    assert_promise(&metrics);
    if way == "xforward" {
        // It needs no connection of its own: two at once, seven messages each, and the probe.
        let most = all.div_ceil(7) + 4;
        assert!(sink.counts().connections <= most, "{:?}", sink.counts());
    }
}

#[test]
fn each_message_arrives_with_its_own_clients_identity_direct() {
    for way in ["xforward", "xclient", "proxy-v1", "proxy-v2"] {
        for seed in 0..3 {
            each_with_its_own(way, "direct", seed);
        }
    }
}

#[test]
fn each_message_arrives_with_its_own_clients_identity_queued() {
    for way in ["xforward", "xclient", "proxy-v1", "proxy-v2"] {
        for seed in 3..5 {
            each_with_its_own(way, "queued", seed);
        }
    }
}

#[test]
fn a_connection_of_a_client_is_used_again_for_him_and_gives_way_to_others() {
    for way in ["xclient", "proxy-v2"] {
        let sink = sink_for(way);
        // What it offers is given, so that no probe is among the sessions.
        let lines = format!(
            "identity = \"{way}\"\nhandoff = \"direct\"\nconnections = 2\n\
             extensions = [\"8BITMIME\", \"PIPELINING\"]"
        );
        let relay = relay_to(sink.addr(), &lines);
        let mut clients: Vec<_> = (1..=3_u16)
            .map(|n| (client(&relay, &format!("192.0.2.{n}"), n, "mta.example"), n))
            .collect();
        let mut mail = |n: usize| {
            let (client, port) = &mut clients[n];
            let whose = format!("192.0.2.{port} {port} mta.example");
            assert!(send(client, &whose).starts_with("250"));
            sink.messages().pop().unwrap().session
        };
        let first = mail(0);
        assert_eq!(mail(0), first, "{way}: the same client, the same session");
        let second = mail(1);
        assert_eq!(first == second, way == "xclient", "an idle session is made another's");
        assert_eq!(mail(1), second);
        mail(2);
        mail(0);
        // At the cap the one that was idle the longest has gone.
        let status = relay.metrics();
        assert!(status.sum("upstream_connections", &["state=\"idle\""]) <= 2.0);
        sink.messages().iter().for_each(|one| assert_told(way, one, sink.addr()));
    }
}

#[test]
fn a_client_that_the_upstream_does_not_want_hears_its_words() {
    for (way, handoff, faults) in [
        (
            "proxy-v2",
            "direct",
            &["connect:1=554 5.7.1 he is blocked", "connect:2=421 4.7.0 too many"][..],
        ),
        (
            "proxy-v1",
            "auto",
            &["connect:1=554 5.7.1 he is blocked", "connect:2=421 4.7.0 too many"],
        ),
        // EHLO is said for the relay first, then for the client, who is no better off with HELO.
        (
            "xclient",
            "direct",
            &[
                "ehlo:2=550 5.7.1 he is blocked",
                "ehlo:3=554 5.7.1 he is blocked",
                "ehlo:5=421 4.7.0 too many",
            ],
        ),
    ] {
        let sink = sink_for(way);
        let lines = format!(
            "identity = \"{way}\"\nhandoff = \"{handoff}\"\nextensions = [\"8BITMIME\"]\n\
             eject_after = 1\ndeferred = \"pass\""
        );
        let relay = relay_to(sink.addr(), &lines);
        sink.set_faults(faults_of(faults));
        let mut client = client(&relay, "192.0.2.66", 1, "mta.example");
        let whose = "192.0.2.66 1 mta.example";
        assert_eq!(send(&mut client, whose), "554 5.7.1 he is blocked", "{way}");
        let reply = send(&mut client, whose);
        assert!(reply.starts_with("451 4.3.2 ") && reply.ends_with("too many"), "{way}: {reply}");
        assert!(send(&mut client, whose).starts_with("250"));
        let metrics = relay.metrics();
        assert_eq!(metrics.sum("upstream_target_up", &[]), 1.0, "it says nothing of the target");
        assert_eq!(metrics.sum("upstream_identity_refused_total", &["what=\"client\""]), 2.0);
        assert_promise(&metrics);
    }
}

#[test]
fn an_upstream_that_offers_nothing() {
    let sink = sink_for("none");
    let relay = relay_to(sink.addr(), "identity = \"xforward\"\nhandoff = \"direct\"");
    let mut one = client(&relay, "192.0.2.1", 1, "mta.example");
    for _ in 0..3 {
        assert!(send(&mut one, "x").starts_with("250"), "it costs no message");
    }
    let refused = |relay: &Relay, what: &str| {
        relay.metrics().sum("upstream_identity_refused_total", &[&format!("what=\"{what}\"")])
    };
    assert_eq!(refused(&relay, "xforward"), 3.0);
    assert_eq!(relay.log().matches("smtpd_authorized_xforward_hosts").count(), 1, "told once");
    // Who decides by who the client is must not decide by who the relay is.
    let relay = relay_to(sink.addr(), "identity = \"xclient\"\neject_after = 1");
    let mut one = client(&relay, "192.0.2.1", 1, "mta.example");
    assert!(send(&mut one, "x").starts_with("250 2.0.0 wavegate: queued"), "it waits");
    relay.wait_metrics("the target is down", |metrics| {
        metrics.sum("upstream_target_up", &[]) == 0.0
    });
    assert!(refused(&relay, "xclient") >= 1.0);
    until("the log says why", || relay.log().contains("does not offer XCLIENT").then_some(()));
    assert_eq!(sink.counts().messages, 3);
}

#[test]
fn postfix_logs_and_decides_by_the_client() {
    let Some(_postfix) = tool::require("postfix") else { return };
    let trusted = "smtpd_peername_lookup = no\nmynetworks = 127.0.0.0/8 192.0.2.0/24\n";
    for (way, lines, logged) in [
        (
            "xforward",
            "smtpd_authorized_xforward_hosts = 127.0.0.1",
            "orig_client=unknown[192.0.2.7]",
        ),
        ("xclient", "smtpd_authorized_xclient_hosts = 127.0.0.1", "client=unknown[192.0.2.7]"),
        ("proxy-v1", "smtpd_upstream_proxy_protocol = haproxy", "client=unknown[192.0.2.7]"),
        ("proxy-v2", "smtpd_upstream_proxy_protocol = haproxy", "client=unknown[192.0.2.7]"),
    ] {
        let postfix = Postfix::start_with("discard:", &format!("{trusted}{lines}\n"));
        let relay = relay_to(
            postfix.addr,
            &format!("identity = \"{way}\"\nhandoff = \"direct\"\nconnections = 1"),
        );
        let mut one = client(&relay, "192.0.2.7", 4711, "seven.example");
        let mut two = client(&relay, "192.0.2.8", 4712, "eight.example");
        for _ in 0..2 {
            for client in [&mut one, &mut two] {
                let reply = send(client, "x");
                let own_words =
                    reply.starts_with("250 2.0.0 Ok: ") && reply.contains(" queued as ");
                assert!(own_words, "{way}: Postfix's: {reply}");
            }
        }
        for who in [logged.to_owned(), logged.replace("192.0.2.7", "192.0.2.8")] {
            until(&format!("{way}: Postfix logs who it was"), || {
                (postfix.log().matches(&who).count() == 2).then_some(())
            });
        }
        // One whom Postfix does not relay for.
        let mut stranger = client(&relay, "198.51.100.9", 4713, "nine.example");
        let reply = send(&mut stranger, "x");
        match way {
            "xforward" => assert!(reply.starts_with("250"), "{reply}"),
            _ => assert!(reply.starts_with("554 5.7.1 "), "{way}: Postfix's: {reply}"),
        }
        assert_eq!(relay.metrics().sum("upstream_identity_refused_total", &[]), 0.0);
    }
}

#[test]
fn haproxy_takes_the_header_and_says_who_it_was() {
    let Some(program) = tool::require("haproxy") else { return };
    for way in ["proxy-v1", "proxy-v2"] {
        let sink = sink_for(way);
        let haproxy = Haproxy::start(&program, sink.addr(), "accept-proxy", "send-proxy-v2");
        let lines = format!("identity = \"{way}\"\nhandoff = \"direct\"");
        let relay = relay_to(haproxy.addr, &lines);
        for address in ["192.0.2.7", "2001:db8::7"] {
            let whose = format!("{address} 4711 mta.example");
            let mut client = client(&relay, address, 4711, "mta.example");
            assert!(send(&mut client, &whose).starts_with("250"));
        }
        sink.messages().iter().for_each(|one| assert_told(way, one, haproxy.addr));
        assert_eq!(sink.counts().messages, 2);
    }
}

/// A sink that takes mail from those only who log in.
fn locked(mechanisms: &'static str) -> SinkHandle {
    let auth = Some(("relay@edge".to_owned(), "correct horse".to_owned()));
    told(Identity { auth, mechanisms, ..Identity::default() }, &[])
}

/// A relay that logs in with this password.
fn relay_with(target: SocketAddr, password: &[u8], lines: &str) -> Relay {
    let lines = format!(
        "eject_after = 5\neject_for = \"10ms\"\neject_max = \"100ms\"\nretry_first = \"100ms\"\n\
         {lines}\n[upstream.auth]\nuser = \"relay@edge\"\nsecret = \"login.key\"\ninsecure = true"
    );
    let config = Config::to(&[target]).upstream(&lines).admin();
    Relay::start_with(&config.to_string(), &[("login.key", password)])
}

fn logins(relay: &Relay, result: &str) -> f64 {
    relay.metrics().sum("upstream_logins_total", &[&format!("result=\"{result}\"")])
}

#[test]
fn the_relay_logs_in_once_a_connection() {
    for mechanisms in ["PLAIN LOGIN", "LOGIN", "PLAIN"] {
        let sink = locked(mechanisms);
        let relay = relay_with(sink.addr(), b"correct horse\n", "handoff = \"direct\"");
        let mut client = relay.hello();
        for _ in 0..5 {
            let reply = client.small();
            assert!(reply.starts_with("250"), "{mechanisms}: {reply}");
        }
        let messages = sink.messages();
        assert!(messages.iter().all(|one| one.told["AUTH"] == "relay@edge"));
        let sessions: BTreeSet<_> = messages.iter().map(|one| one.session).collect();
        assert_eq!(sessions.len(), 1);
        let accepted = logins(&relay, "accepted");
        assert!((1.0..=2.0).contains(&accepted), "the probe and one connection: {accepted}");
        assert_eq!(sink.counts().violations, 0);
        assert!(!relay.log().contains("correct horse"));
    }
}

#[test]
fn a_wrong_password_costs_no_message_and_is_not_tried_again_and_again() {
    let sink = locked("PLAIN");
    let relay = relay_with(sink.addr(), b"wrong horse", "handoff = \"auto\"");
    let mut client = relay.hello();
    for _ in 0..5 {
        let reply = client.small();
        assert!(
            reply.starts_with("250 2.0.0 wavegate: queued"),
            "never its sender's fault: {reply}"
        );
    }
    relay.wait_metrics("the target is down", |metrics| {
        metrics.sum("upstream_target_up", &[]) == 0.0
    });
    until("the log says why", || {
        relay.log().contains("it refused the login of `auth`: 535 5.7.8").then_some(())
    });
    assert!(!relay.log().contains("horse"));
    assert!(logins(&relay, "refused") >= 1.0);
    assert_eq!(logins(&relay, "accepted"), 0.0);
    // The file is watched; an editor adds a line end.
    relay.write("login.key", "correct horse\n");
    assert!(sink.wait_messages(5, PATIENCE), "what waited goes");
    relay.wait_metrics("accepted, and counted anew", |metrics| {
        metrics.sum("upstream_logins_total", &["result=\"accepted\""]) >= 1.0
    });
    assert_eq!(logins(&relay, "refused"), 0.0);
    assert_promise(&relay.metrics());
}

#[test]
fn many_at_once_try_a_wrong_password_once() {
    let sink = locked("LOGIN");
    let relay = relay_with(sink.addr(), b"wrong", "handoff = \"direct\"");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let reply = relay.hello().small();
                assert!(reply.starts_with("451 4."), "{reply}");
            });
        }
    });
    let refused = logins(&relay, "refused");
    assert!((1.0..10.0).contains(&refused), "{refused} of 20 senders and the probes of a while");
}

#[test]
fn where_no_login_is_offered() {
    let sink = sink_for("none");
    let relay = relay_with(sink.addr(), b"correct horse", "handoff = \"direct\"");
    let reply = relay.hello().small();
    assert!(reply.starts_with("451 4."), "{reply}");
    assert!(reply.contains("offers no AUTH that can be used"), "{reply}");
    assert!(logins(&relay, "unavailable") >= 1.0);
}

/// A server of others with AUTH and PROXY headers: Debian's aiosmtpd.
struct Aiosmtpd {
    child: Child,
    addr: SocketAddr,
    folder: tempfile::TempDir,
}

const AIOSMTPD: &str = r#"
import asyncio, sys
from aiosmtpd.smtp import SMTP, AuthResult

class Handler:
    async def handle_PROXY(self, server, session, envelope, proxy):
        return True

    async def handle_DATA(self, server, session, envelope):
        login = session.auth_data.login.decode() if session.auth_data else None
        proxy = session.proxy_data
        who = f"{proxy.src_addr} {proxy.src_port}" if proxy else None
        print(login, who, session.host_name, file=open(sys.argv[2], "a"), flush=True)
        return "250 2.0.0 aiosmtpd has it"

def check(server, session, envelope, mechanism, data):
    good = (data.login, data.password) == (b"relay@edge", b"correct horse")
    return AuthResult(success=good, handled=False, auth_data=data)

async def main():
    host, port = sys.argv[1].split(":")
    options = dict(authenticator=check, auth_required=True, auth_require_tls=False)
    if sys.argv[3] == "proxy":
        options = dict(proxy_protocol_timeout=5)
    make = lambda: SMTP(Handler(), hostname="aio.example", **options)
    server = await asyncio.get_running_loop().create_server(make, host, int(port))
    await server.serve_forever()

asyncio.run(main())
"#;

impl Aiosmtpd {
    fn start(mode: &str) -> Self {
        let (addr, folder) = (free(), tempfile::tempdir().unwrap());
        let said = folder.path().join("said");
        // Debian's Python has Debian's modules.
        let child = Command::new("/usr/bin/python3")
            .args(["-c", AIOSMTPD, &addr.to_string(), said.to_str().unwrap(), mode])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("aiosmtpd listens", || TcpStream::connect(addr).ok());
        Self { child, addr, folder }
    }

    /// Who sent, a line a message.
    fn said(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Aiosmtpd {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn aiosmtpd_lets_the_relay_in_and_hears_of_its_clients() {
    let Some(_aiosmtpd) = tool::require("aiosmtpd") else { return };
    let server = Aiosmtpd::start("auth");
    for mechanism in ["plain", "login"] {
        let lines = format!("handoff = \"direct\"\nauth.mechanism = \"{mechanism}\"");
        let config = Config::to(&[server.addr]).upstream(&format!(
            "{lines}\nauth.user = \"relay@edge\"\nauth.secret = \"login.key\"\nauth.insecure = true"
        ));
        let files = [("login.key", &b"correct horse\n"[..])];
        let relay = Relay::start_with(&config.to_string(), &files);
        assert_eq!(relay.hello().small(), "250 2.0.0 aiosmtpd has it", "{mechanism}");
    }
    assert_eq!(server.said(), ["relay@edge None edge-1.example.net"; 2]);
    let server = Aiosmtpd::start("proxy");
    for way in ["proxy-v1", "proxy-v2"] {
        let lines = format!("identity = \"{way}\"\nhandoff = \"direct\"");
        let relay = relay_to(server.addr, &lines);
        let mut client = client(&relay, "192.0.2.7", 4711, "mta.example");
        assert_eq!(send(&mut client, "x"), "250 2.0.0 aiosmtpd has it", "{way}");
    }
    let said = server.said();
    assert!(said.iter().all(|line| line.contains("192.0.2.7")), "{said:?}");
    assert!(said.iter().all(|line| line.ends_with(" 4711 mta.example")), "{said:?}");
}
