//! Redirected traffic, with real rules in network namespaces: a client, a host that forwards and on
//! which the relay runs, and two servers behind it, over IPv4 and IPv6.
#![allow(clippy::unwrap_used, reason = "a test may stop here")]

#[path = "redirect/net.rs"]
mod net;

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use net::{CLOUD, Host, Net, ONE_4, ONE_6, RELAY_4, TWO_4, TWO_6, within};
use wavegate_tests::{
    harness::{
        Client, Metrics, PATIENCE, Relay, binary, faults_of, http_get, now_ms, rfc3339, sink_at,
        until,
    },
    sink::{Extensions, SinkHandle},
    tool,
};

/// Who the tests run as, and so the relay.
const RELAY_USER: &str = "root";
/// Somebody else on the relay's host.
const NOBODY: u32 = 65534;

const LISTENER: &str = "[relay]\nhostname = \"edge-1.example.net\"\nplan = \"waves.toml\"\n\
    [[listener]]\naddress = \"[::]:2525\"\nmode = \"redirect\"\n\
    allow = [\"10.77.1.0/24\", \"fd77:1::/64\", \"127.0.0.0/8\", \"::1\"]\n";

/// Today's flow is that of the clients; `cloud` is where it moves.
fn config(more: &str) -> String {
    format!(
        "{LISTENER}[[upstream]]\nname = \"today\"\ntype = \"original-destination\"\n{more}\n\
         [[upstream]]\nname = \"cloud\"\ntargets = [\"{CLOUD}\"]\n\
         [migration]\nbefore = \"today\"\nafter = \"cloud\"\n\
         [[policy]]\nplugin = \"builtin:freeze\"\n[[policy]]\nplugin = \"builtin:routing\"\n\
         [admin]\naddress = \"127.0.0.1:8025\"\n"
    )
}

const INSTANCES: &str = "[[instance]]\nname = \"acme\"\nproduct = \"classic\"\n\
    environment = \"production\"\nmatch = { senders = [\"acme.example\"] }\n\
    [[instance]]\nname = \"globex\"\nproduct = \"classic\"\n\
    environment = \"production\"\nmatch = { senders = [\"globex.example\"] }\n";

/// Two waves that are open now, one for each instance.
fn waves() -> String {
    let (opens, closes) = (rfc3339(now_ms() - 1000), rfc3339(now_ms() + 3_600_000));
    let wave = |id: &str, instance: &str| {
        format!(
            "[[wave]]\nid = \"{id}\"\nenvironment = \"production\"\ninstances = [\"{instance}\"]\n\
             opens = \"{opens}\"\ncloses = \"{closes}\"\n"
        )
    };
    format!("{INSTANCES}{}{}", wave("back", "acme"), wave("forth", "globex"))
}

/// The relay on its host.
fn start(net: &Net, more: &str, plan: &str) -> Relay {
    let (config, plan) = (config(more), plan.to_owned());
    within(&net.relay, move || Relay::start_with(&config, &[("waves.toml", plan.as_bytes())]))
}

/// `wavegate host rules` on the relay's host: its exit code and what it said.
fn rules(net: &Net, relay: &Relay, more: &str) -> (i32, String) {
    let config = relay.folder().join("relay.toml");
    within(&net.relay, move || {
        let mut command = Command::new(binary());
        command.args(["host", "rules", "--config"]).arg(config).args(more.split_whitespace());
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    })
}

#[track_caller]
fn apply(net: &Net, relay: &Relay, user: &str) {
    let (code, said) = rules(net, relay, &format!("--apply --user {user}"));
    assert!(code == 0 && said.contains("is in force"), "{code} {said}");
}

/// A server that takes everything at port 25, and says by its name who it is.
fn server(host: &Host, extensions: Extensions) -> SinkHandle {
    within(host, move || sink_at("[::]:25".parse().unwrap(), extensions, &[]))
}

fn plain() -> Extensions {
    Extensions { chunking: true, ..Extensions::default() }
}

/// A connection of the client to an address and port 25, greeted by the relay.
fn redirected(net: &Net, to: &str) -> Client {
    let to = to.parse().unwrap();
    within(&net.client, move || Client::greeted(to))
}

/// Who greets somebody that connects from this host.
fn greeting(host: &Host, to: &str) -> String {
    let to = to.parse().unwrap();
    within(host, move || Client::connect(to).reply())
}

const RELAY: &str = "220 edge-1.example.net";

/// Sends a message; the final reply.
fn send(net: &Net, to: &str, from: &str, subject: &str) -> String {
    let mut client = redirected(net, to);
    client.expect("EHLO client.example", "250");
    client.envelope(from, "b@x.example");
    client.expect("DATA", "354");
    client.send(format!("Subject: {subject}\r\n\r\nhello\r\n.\r\n"));
    client.reply()
}

/// Messages with this subject.
fn with_subject(sink: &SinkHandle, subject: &str) -> Vec<String> {
    let contents = sink.messages().into_iter().filter_map(|message| message.content);
    let texts = contents.map(|content| String::from_utf8(content).unwrap());
    texts.filter(|text| text.contains(&format!("Subject: {subject}\r\n"))).collect()
}

/// One scrape.
fn metrics(net: &Net) -> Metrics {
    let admin = "127.0.0.1:8025".parse().unwrap();
    within(&net.relay, move || Metrics::new(http_get(admin, "/metrics").unwrap().1))
}

#[test]
fn today_s_flow_goes_through_the_relay_to_the_very_server_that_was_wanted() {
    let Some(net) = Net::make("flow") else { return };
    let one = server(&net.one, Extensions { dsn: true, size: Some(123_456), ..plain() });
    let two = server(&net.two, Extensions { eightbitmime: true, size: Some(654_321), ..plain() });
    let cloud = within(&net.two, || sink_at(CLOUD.parse().unwrap(), Extensions::default(), &[]));
    let relay = start(&net, "extensions = []", INSTANCES);
    // Without rules nobody comes here.
    assert!(!greeting(&net.client, ONE_4).starts_with(RELAY));
    apply(&net, &relay, RELAY_USER);
    for (to, wanted, other) in
        [(ONE_4, &one, &two), (ONE_6, &one, &two), (TWO_4, &two, &one), (TWO_6, &two, &one)]
    {
        let before = other.counts().messages;
        let said = send(&net, to, "a@acme.example", to);
        assert!(said.starts_with("250"), "{to}: {said}");
        let [message] = &with_subject(wanted, to)[..] else { panic!("{to}: not there") };
        let from = if to.contains('[') { "([IPv6:fd77:1::2])" } else { "([10.77.1.2])" };
        assert!(message.starts_with(&format!("Received: from client.example {from}")), "{message}");
        assert_eq!(other.counts().messages, before, "{to}");
    }
    // Nobody else's port, and nobody else's address.
    assert!(!greeting(&net.client, CLOUD).starts_with(RELAY));
    assert_eq!(cloud.counts().messages, 0);
    // What the server says is what the client hears.
    one.set_faults(faults_of(&["rcpt:*=550 5.1.1 no such user"]));
    let said = send(&net, ONE_4, "a@acme.example", "refused");
    assert!(said.starts_with("550 5.1.1"), "{said}");
    // One name in the figures, with each destination as a target.
    let metrics = metrics(&net);
    assert_eq!(metrics.sum("upstream_target_up", &["upstream=\"today\""]), 4.0);
    let delivered = ["upstream=\"today\"", "outcome=\"delivered\""];
    assert_eq!(metrics.sum("upstream_recipients_total", &delivered), 4.0);
}

#[test]
fn ehlo_offers_at_once_what_the_server_offers() {
    let Some(net) = Net::make("ehlo") else { return };
    let eight = |eightbitmime, dsn, size| Extensions { eightbitmime, dsn, size, ..plain() };
    let one = server(&net.one, eight(false, true, Some(123_456)));
    let _two = server(&net.two, eight(true, false, Some(65_432)));
    let text = config("").replace("mode = ", "upstreams = [\"today\"]\nmode = ");
    let relay = within(&net.relay, move || {
        Relay::start_with(&text, &[("waves.toml", INSTANCES.as_bytes())])
    });
    apply(&net, &relay, RELAY_USER);
    for (to, has, lacks) in
        [(ONE_4, ["DSN", "SIZE 123456"], "8BITMIME"), (TWO_6, ["8BITMIME", "SIZE 65432"], "DSN")]
    {
        let offered = redirected(&net, to).ehlo();
        for word in has {
            assert!(offered.iter().any(|line| line == word), "{to}: {offered:?}");
        }
        assert!(!offered.iter().any(|line| line == lacks), "{to}: {offered:?}");
    }
    // A server that is not there costs its client no session, and its mail stays with it.
    one.stop();
    let mut client = redirected(&net, ONE_6);
    client.expect("EHLO client.example", "250");
    assert!(client.small().starts_with("451 4.4.1"));
}

#[test]
fn the_host_s_own_mail_is_redirected_but_for_the_relay_s() {
    let Some(net) = Net::make("local").filter(|_| tool::require("curl").is_some()) else { return };
    let one = server(&net.one, plain());
    let _two = server(&net.two, plain());
    let relay = start(&net, "extensions = []", INSTANCES);
    apply(&net, &relay, RELAY_USER);
    // The tests' user is the relay's.
    assert!(!greeting(&net.relay, ONE_4).starts_with(RELAY));
    assert!(!greeting(&net.relay, ONE_6).starts_with(RELAY));
    let mail = relay.folder().join("mail.eml");
    for (to, mark) in [("10.77.2.2", "four"), ("[fd77:2::2]", "six")] {
        let mail = mail.clone();
        within(&net.relay, move || {
            fs::write(&mail, format!("Subject: {mark}\r\n\r\nx\r\n")).unwrap();
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--max-time", "20", "--mail-from", "a@acme.example"]);
            curl.args(["--mail-rcpt", "b@x.example", "--upload-file", "-"]);
            curl.arg(format!("smtp://{to}/host.example")).uid(NOBODY);
            let output = curl.stdin(fs::File::open(&mail).unwrap()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
        let [message] = &with_subject(&one, mark)[..] else { panic!("{mark}: not there") };
        // Through the relay, and from the address that it would have come from.
        assert!(message.contains("by edge-1.example.net with"), "{message}");
        let from = if mark == "six" { "[IPv6:fd77:2::1]" } else { "[10.77.2.1]" };
        assert!(message.contains(from), "{message}");
    }
}

#[test]
fn loops_and_direct_connections_are_refused() {
    let Some(net) = Net::make("loop") else { return };
    let one = server(&net.one, plain());
    let relay = start(&net, "extensions = []", INSTANCES);
    apply(&net, &relay, RELAY_USER);
    for (host, to) in
        [(&net.client, RELAY_4), (&net.relay, "127.0.0.1:2525"), (&net.relay, "[::1]:2525")]
    {
        let said = greeting(host, to);
        assert!(said.starts_with("421 4.4.6"), "{to}: {said}");
    }
    let refused = metrics(&net).value("connections_refused_total{reason=\"not_redirected\"}");
    assert_eq!(refused, 3.0);
    // Rules that do not leave the relay out hand its own connections back to it.
    apply(&net, &relay, "nobody");
    let said = send(&net, ONE_4, "a@acme.example", "round");
    assert!(said.starts_with("451 4.4.1") && said.contains("came back to this relay"), "{said}");
    assert!(relay.log().contains("leave its user out of the rules"), "{}", relay.log());
    assert_eq!(metrics(&net).value("connections_refused_total{reason=\"loop\"}"), 1.0);
    assert_eq!(one.counts().messages, 0);
    // Put right, it goes on as soon as somebody has found that out.
    apply(&net, &relay, RELAY_USER);
    until("mail goes again", || {
        send(&net, ONE_4, "a@acme.example", "straight").starts_with("250").then_some(())
    });
}

#[test]
fn an_upstream_that_is_this_relay_is_a_loop() {
    let Some(net) = Net::make("self") else { return };
    let own = "10.77.2.1:2526";
    let text = config("extensions = []")
        .replace("before = \"today\"", "before = \"cloud\"")
        .replace(&format!("\"{CLOUD}\"]"), &format!("\"{own}\"]\nhandoff = \"direct\""))
        + "[[listener]]\nname = \"plain\"\naddress = \"0.0.0.0:2526\"\n";
    let relay =
        within(&net.relay, || Relay::start_with(&text, &[("waves.toml", INSTANCES.as_bytes())]));
    let mut client = within(&net.relay, || Client::greeted("127.0.0.1:2526".parse().unwrap()));
    client.expect("EHLO client.example", "250");
    let said = client.small();
    assert!(said.starts_with("451 4.4.1") && said.contains("came back to this relay"), "{said}");
    assert!(metrics(&net).value("connections_refused_total{reason=\"loop\"}") >= 1.0);
    // Others on this host, whose port and address may be like those of its own connections.
    assert!(greeting(&net.relay, own).starts_with(RELAY));
    assert!(relay.log().contains("reason=\"loop\""), "{}", relay.log());
}

#[test]
fn rules_are_printed_applied_and_taken_away() {
    let Some(net) = Net::make("rules") else { return };
    let one = server(&net.one, plain());
    let relay = start(&net, "extensions = []", INSTANCES);
    let (code, text) = rules(&net, &relay, "");
    assert!(code == 0 && text.contains("meta skuid \"wavegate\" return"), "{code} {text}");
    assert!(!greeting(&net.client, ONE_4).starts_with(RELAY), "printing changes nothing");
    for _ in 0..2 {
        apply(&net, &relay, RELAY_USER);
        assert!(greeting(&net.client, ONE_4).starts_with(RELAY));
    }
    let listed = |net: &Net| {
        within(&net.relay, || {
            let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        })
    };
    assert_eq!(listed(&net), "table inet wavegate\n");
    let (code, said) = rules(&net, &relay, "--apply --user no-such-user");
    assert!(code == 64 && said.contains("there is no user no-such-user"), "{code} {said}");
    assert!(greeting(&net.client, ONE_4).starts_with(RELAY), "all or nothing");
    let (code, said) = rules(&net, &relay, "--remove");
    assert!(code == 0 && said.contains("is gone"), "{code} {said}");
    let (code, said) = rules(&net, &relay, "--remove");
    assert!(code == 0 && said.contains("there was no table"), "{code} {said}");
    assert_eq!(listed(&net), "");
    assert!(!greeting(&net.client, ONE_4).starts_with(RELAY));
    assert_eq!(one.counts().messages, 0);
}

#[test]
fn a_wave_moves_an_instance_and_what_goes_back_goes_where_it_wanted_to() {
    let Some(net) = Net::make("wave") else { return };
    let one = server(&net.one, plain());
    let two = server(&net.two, plain());
    let cloud = within(&net.two, || sink_at(CLOUD.parse().unwrap(), Extensions::default(), &[]));
    let mut relay = start(&net, "extensions = []", &waves());
    apply(&net, &relay, RELAY_USER);
    for (to, from) in [
        (ONE_4, "a@acme.example"),
        (TWO_6, "a@acme.example"),
        (ONE_6, "a@globex.example"),
        (TWO_4, "a@globex.example"),
    ] {
        let said = send(&net, to, from, &format!("{from} to {to}"));
        assert!(said.starts_with("250 2.0.0 wavegate: queued as "), "{said}");
        let id = said.trim().rsplit(' ').next().unwrap();
        let (code, shown) = order(&relay, &format!("queue show {id}"));
        assert!(code == 0 && shown.contains(to), "{shown}");
    }
    let mail = || (one.counts().messages, two.counts().messages, cloud.counts().messages);
    assert_eq!(mail(), (0, 0, 0));
    // Where they wanted to go is in the spool.
    relay = within(&net.relay, move || {
        relay.terminate();
        relay.restart();
        relay
    });
    until("both waves can end", || {
        let checked =
            |wave: &str| order(&relay, &format!("wave show {wave}")).1.contains("checked");
        (checked("back") && checked("forth")).then_some(())
    });
    let (code, said) = order(&relay, "wave complete forth --reason done");
    assert_eq!(code, 0, "{said}");
    assert!(cloud.wait_messages(2, PATIENCE));
    assert_eq!(mail(), (0, 0, 2));
    let (code, said) = order(&relay, "wave rollback back --reason later");
    assert_eq!(code, 0, "{said}");
    assert!(one.wait_messages(1, PATIENCE) && two.wait_messages(1, PATIENCE));
    assert_eq!(with_subject(&one, &format!("a@acme.example to {ONE_4}")).len(), 1);
    assert_eq!(with_subject(&two, &format!("a@acme.example to {TWO_6}")).len(), 1);
    // New mail does the same.
    assert!(send(&net, TWO_4, "a@acme.example", "back").starts_with("250"));
    assert_eq!(with_subject(&two, "back").len(), 1);
    assert!(send(&net, TWO_4, "a@globex.example", "forth").starts_with("250"));
    assert!(cloud.wait_messages(3, PATIENCE));
    assert_eq!(mail(), (1, 2, 3));
}

#[test]
fn notifications_and_mail_that_was_not_redirected_go_to_the_fallback() {
    let Some(net) = Net::make("fallback") else { return };
    let one = server(&net.one, plain());
    one.set_faults(faults_of(&["rcpt:*=550 5.1.1 no such user"]));
    let cloud = within(&net.two, || sink_at(CLOUD.parse().unwrap(), Extensions::default(), &[]));
    let text = config("extensions = []\nfallback = \"cloud\"\nhandoff = \"queued\"")
        + "[[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:2526\"\n";
    let relay =
        within(&net.relay, || Relay::start_with(&text, &[("waves.toml", INSTANCES.as_bytes())]));
    apply(&net, &relay, RELAY_USER);
    // Of an instance, and of none.
    for (number, sender) in [(1, "a@acme.example"), (2, "a@nobody.example")] {
        let said = send(&net, ONE_4, sender, "refused");
        assert!(said.starts_with("250 2.0.0 wavegate: queued as "), "{said}");
        assert!(cloud.wait_messages(number, PATIENCE));
        let notification = cloud.messages().pop().unwrap();
        assert_eq!((&*notification.from, &*notification.to[0].address), ("", sender));
    }
    let mut client = within(&net.relay, || Client::greeted("127.0.0.1:2526".parse().unwrap()));
    client.expect("EHLO client.example", "250");
    assert!(client.small().starts_with("250"));
    assert!(cloud.wait_messages(3, PATIENCE));
    assert_eq!(one.counts().messages, 0);
}

/// An order, as an operator gives it.
fn order(relay: &Relay, line: &str) -> (i32, String) {
    let mut command = Command::new(binary());
    let command = command.args(line.split(' ')).arg("--config");
    let output = command.arg(relay.folder().join("relay.toml")).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}
