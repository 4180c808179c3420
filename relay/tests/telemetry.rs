//! Metrics from events, and the HTTP address that serves them.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::fixture::{history, received, relay, settled, telemetry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wavegate::conductor::status::Status;
use wavegate::{
    admin,
    event::{Event, Observer, Outcome},
    relay::Relay,
    telemetry::Telemetry,
};

/// The value of one sample, named as in the text.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no sample {sample} in\n{text}")).parse().unwrap()
}

/// Received less all that became of it, for each instance in one scrape; and what is in flight.
fn balances(text: &str) -> BTreeMap<String, (f64, f64)> {
    let mut balances = BTreeMap::<String, (f64, f64)>::new();
    for line in text.lines().filter(|line| line.starts_with("wavegate_recipients_")) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let (name, labels) = sample.split_once('{').unwrap();
        let instance = labels.split('"').nth(1).unwrap();
        let balance = balances.entry(instance.to_owned()).or_default();
        match name {
            "wavegate_recipients_received_total" => balance.0 += value,
            "wavegate_recipients_total" => balance.0 -= value,
            "wavegate_recipients_in_flight" => {
                balance.0 -= value;
                balance.1 = value;
            }
            // What was promised has a sum of its own.
            "wavegate_recipients_accepted_total" | "wavegate_recipients_ended_total" => {}
            other => panic!("{other} is not part of the sum"),
        }
    }
    balances
}

#[test]
fn a_history_is_counted() {
    let telemetry = telemetry();
    let relay = relay(&telemetry);
    history(&telemetry);
    let text = telemetry.render(&relay);
    let acme = |name: &str| value(&text, &format!("wavegate_{name}{{instance=\"acme-prod-1\"}}"));
    assert_eq!(acme("recipients_received_total"), 14.0);
    assert_eq!(acme("recipients_in_flight"), 5.0);
    assert_eq!(acme("messages_received_total"), 4.0);
    assert_eq!(acme("received_bytes_total"), 40_000.0);
    assert_eq!(acme("in_doubt_total"), 1.0);
    assert_eq!(acme("proceed_against_plan_total"), 1.0);
    let expected = [
        ("recipients_total{instance=\"acme-prod-1\",outcome=\"delivered\"}", 3.0),
        ("recipients_total{instance=\"acme-prod-1\",outcome=\"spooled\"}", 2.0),
        ("recipients_total{instance=\"acme-prod-1\",outcome=\"in_doubt\"}", 4.0),
        ("recipients_total{instance=\"(none)\",outcome=\"refused\"}", 1.0),
        ("recipients_total{instance=\"(none)\",outcome=\"deferred\"}", 7.0),
        ("recipients_received_total{instance=\"globex-stage-1\"}", 0.0),
        ("upstream_recipients_total{upstream=\"legacy\",outcome=\"in_doubt\"}", 4.0),
        ("upstream_recipients_total{upstream=\"(none)\",outcome=\"spooled\"}", 2.0),
        ("attempts_retried_total{upstream=\"legacy\"}", 1.0),
        ("gate_seconds_count", 1.0),
        ("gate_seconds_bucket{le=\"0.000005\"}", 0.0),
        ("gate_seconds_bucket{le=\"0.00001\"}", 1.0),
        ("handoff_seconds_count{upstream=\"cloud\"}", 2.0),
        ("handoff_seconds_bucket{upstream=\"cloud\",le=\"0.005\"}", 2.0),
        ("listener_up{listener=\"listener-1\"}", 1.0),
        ("connections{listener=\"listener-1\"}", 1.0),
        ("connections_total{listener=\"listener-1\"}", 2.0),
        ("connections_refused_total{reason=\"too_many_from_client\"}", 1.0),
        ("sessions_ended_total{reason=\"misbehaved\"}", 1.0),
        ("messages_rejected_total{reason=\"nul\"}", 1.0),
        ("messages_rejected_total{reason=\"loop\"}", 2.0),
        ("messages_rejected_total{reason=\"too_large\"}", 0.0),
        ("replies_lost_total{delivered=\"true\"}", 1.0),
        ("replies_lost_total{delivered=\"false\"}", 1.0),
        ("session_panics_total", 1.0),
        ("reloads_total{result=\"done\"}", 1.0),
        ("reloads_total{result=\"refused\"}", 1.0),
        ("reload_last_successful", 0.0),
    ];
    for (sample, expected) in expected {
        assert_eq!(value(&text, &format!("wavegate_{sample}")), expected, "{sample}");
    }
}

#[test]
fn what_others_count_is_read_at_the_scrape() {
    let telemetry = telemetry();
    let relay = relay(&telemetry);
    let _attempt = relay.waves.current().instance(1).begin(relay.waves.now()).unwrap();
    let text = telemetry.render(&relay);
    let expected = [
        ("instance_in_flight{instance=\"globex-stage-1\",state=\"uncommitted\"}", 1.0),
        ("instance_in_flight{instance=\"globex-stage-1\",state=\"in_doubt\"}", 0.0),
        ("instance_phase{instance=\"globex-stage-1\",phase=\"unscheduled\"}", 1.0),
        ("instance_barrier{instance=\"acme-prod-1\"}", 0.0),
        ("instance_window_opens_timestamp_seconds{instance=\"acme-prod-1\"}", 1_768_888_800.0),
        ("instance_window_closes_timestamp_seconds{instance=\"acme-prod-1\"}", 1_768_891_500.0),
        ("upstream_connections{upstream=\"cloud\",state=\"idle\"}", 0.0),
        ("upstream_connections_limit{upstream=\"cloud\"}", 50.0),
        ("upstream_target_up{upstream=\"cloud\",target=\"[::1]:2603\"}", 1.0),
        ("upstream_connections_failed_total{upstream=\"legacy\"}", 0.0),
        ("policy_calls_total{policy=\"freeze\"}", 0.0),
        ("policy_failures_total{policy=\"routing\",kind=\"trap\"}", 0.0),
        ("policy_call_seconds_bucket{policy=\"freeze\",le=\"0.000001\"}", 0.0),
        ("policy_call_seconds_bucket{policy=\"freeze\",le=\"+Inf\"}", 0.0),
        ("limits_keys", 0.0),
        ("limits_waiting", 0.0),
        ("message_memory_bytes", 0.0),
        ("spill_bytes", 0.0),
        ("generation", 1.0),
        ("stopping", 0.0),
        (concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ];
    for (sample, expected) in expected {
        assert_eq!(value(&text, &format!("wavegate_{sample}")), expected, "{sample}");
    }
    assert!(value(&text, "process_resident_memory_bytes") > 1e6);
    assert!(value(&text, "process_open_fds") > 2.0);
    assert!(value(&text, "process_cpu_seconds_total") > 0.0);
    // The process is younger than the moment at which the metrics began, less rounding.
    let began = value(&text, "wavegate_reload_last_success_timestamp_seconds");
    let started = value(&text, "process_start_time_seconds");
    assert!((0.0..3600.0).contains(&(began - started + 2.0)), "{began} {started}");
}

/// Two threads receive and settle while a third scrapes: in every scrape, for every instance,
/// each recipient is somewhere, and never more are in flight than the threads have there.
#[test]
fn every_recipient_is_somewhere_in_every_scrape() {
    const MESSAGES: usize = 20_000;
    const MOST: u64 = 9;
    let telemetry = telemetry();
    let relay = relay(&telemetry);
    let instances = [Some("acme-prod-1"), Some("globex-stage-1"), Some("not-in-the-plan"), None];
    let working = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (telemetry, working) = (&telemetry, &working);
            scope.spawn(move || {
                for message in 0..MESSAGES {
                    let instance = instances[(message + thread) % instances.len()];
                    let outcome = Outcome::ALL[message % Outcome::ALL.len()];
                    let recipients = 1 + message as u64 % MOST;
                    telemetry.observe(&received(instance, recipients));
                    telemetry.observe(&settled(instance, Some("cloud"), recipients, outcome));
                }
                working.fetch_sub(1, Ordering::Release);
            });
        }
        while working.load(Ordering::Acquire) > 0 {
            for (instance, (balance, in_flight)) in balances(&telemetry.render(&relay)) {
                assert_eq!(balance, 0.0, "{instance}");
                assert!((0.0..=2.0 * MOST as f64).contains(&in_flight), "{instance} {in_flight}");
            }
        }
    });
    let last = balances(&telemetry.render(&relay));
    assert_eq!(last.len(), instances.len());
    assert!(last.values().all(|balance| *balance == (0.0, 0.0)), "{last:?}");
    let total: u64 = telemetry.accounts().iter().map(|(_, account)| account.received).sum();
    let sent: u64 = (0..MESSAGES).map(|message| 2 * (1 + message as u64 % MOST)).sum();
    assert_eq!(total, sent);
}

#[test]
fn a_flood_of_names_has_a_bounded_number_of_series() {
    let telemetry = telemetry();
    for number in 0..2000 {
        let listener = &format!("listener-{number}");
        telemetry.observe(&Event::ConnectionOpened { listener });
    }
    let text = telemetry.render(&relay(&telemetry));
    let series = text.lines().filter(|line| line.starts_with("wavegate_connections_total{"));
    assert_eq!(series.count(), 1001);
    assert_eq!(value(&text, "wavegate_connections_total{listener=\"(other)\"}"), 1000.0);
}

struct Admin {
    address: std::net::SocketAddr,
    relay: Arc<Relay>,
    telemetry: Arc<Telemetry>,
    serving: tokio::task::JoinHandle<()>,
}

impl Admin {
    async fn start() -> Self {
        let telemetry = telemetry();
        let relay = relay(&telemetry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = admin::serve(
            listener,
            Arc::clone(&relay),
            Arc::clone(&telemetry),
            Arc::new(Status::default),
        );
        Self { address, relay, telemetry, serving: tokio::spawn(serving) }
    }

    /// Sends bytes and reads all that comes back.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }
}

#[tokio::test]
async fn the_admin_address_answers_and_controls_nothing() {
    let admin = Admin::start().await;
    history(&admin.telemetry);
    let metrics = admin.get("/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert_eq!(value(&metrics, "wavegate_session_panics_total"), 1.0);
    assert!(admin.get("/livez").await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(admin.get("/").await.contains("<title>Wavegate</title>"));
    assert!(admin.get("/reload").await.starts_with("HTTP/1.1 404 "));
    assert!(admin.get("/metrics/").await.starts_with("HTTP/1.1 404 "));
    for path in ["/", "/metrics", "/livez", "/readyz"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
            let answer = admin.raw(&request).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        }
    }
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(10_000));
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    // It may be closed before all of it is written.
    let _ = stream.write_all(large.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    admin.serving.abort();
    assert!(admin.serving.await.unwrap_err().is_cancelled());
    assert!(TcpStream::connect(admin.address).await.is_err());
}

#[tokio::test]
async fn ready_means_bound_and_not_stopping() {
    let admin = Admin::start().await;
    let answer = admin.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with("listener listener-1 is not bound\n"), "{answer}");
    let listener = "listener-1";
    admin.telemetry.observe(&Event::ListenerOpened { listener });
    // A reload binds the next socket before it closes the last.
    admin.telemetry.observe(&Event::ListenerOpened { listener });
    admin.telemetry.observe(&Event::ListenerClosed { listener });
    let answer = admin.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
    let generation = admin.relay.generation();
    let legacy = generation.upstream("legacy").unwrap();
    for _ in 0..legacy.config.eject_after {
        legacy.report_failure(&legacy.targets()[0], "refused");
    }
    let answer = admin.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("ready\nnote: every target of upstream legacy is down\n"), "{answer}");
    admin.relay.stop();
    let answer = admin.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("the relay is stopping\n"), "{answer}");
    assert!(admin.get("/livez").await.starts_with("HTTP/1.1 200 "));
}

/// More slow clients than there are places. Time is simulated: it passes when nobody has
/// anything to do.
#[tokio::test(start_paused = true)]
async fn slow_clients_are_cut_and_others_get_their_turn() {
    let admin = Admin::start().await;
    let begun = tokio::time::Instant::now();
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(admin.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: ").await.unwrap();
        slow.push(stream);
    }
    for stream in &mut slow {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(admin.get("/livez").await.starts_with("HTTP/1.1 200 "));
}
