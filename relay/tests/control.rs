//! Control as programs meet it: waves that answer as they are told to, the routes on an address,
//! the token, TLS, keys of requests, and the audit log.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use crate::fixture;
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use wavegate::{
    api::{self, Doors, Keys},
    audit::{self, Audit},
    conductor::{
        order::{Command, Obeyed, Order, Refusal},
        status::{Status, WaveStatus},
    },
    config::{ApiConfig, TlsFiles},
    control::{Control, Waves},
    world::{BoxFuture, SystemClock},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Waves that note what they are ordered, and answer by the wave's name.
struct Double {
    orders: Mutex<Vec<Order>>,
    audit: PathBuf,
    /// Lines of the audit log when an order came.
    lines: Mutex<Vec<usize>>,
    /// An order takes a place, and waits for one where there is none.
    places: Semaphore,
    begun: Semaphore,
}

fn wave(id: &str) -> WaveStatus {
    WaveStatus {
        id: id.to_owned(),
        phase: "frozen".into(),
        closes: "2026-01-20T06:45:00Z".into(),
        ..WaveStatus::default()
    }
}

impl Waves for Double {
    fn status(&self) -> Status {
        let waves = ["w1", "gone"].map(wave).to_vec();
        Status { host: "edge-1.example.net".into(), waves, ..Status::default() }
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Obeyed, Refusal>> {
        Box::pin(async move {
            let lines = fs::read_to_string(&self.audit).map_or(0, |text| text.lines().count());
            self.lines.lock().unwrap().push(lines);
            self.begun.add_permits(1);
            self.places.acquire().await.unwrap().forget();
            self.orders.lock().unwrap().push(order.clone());
            let id = match &order.command {
                Command::Freeze { instance, .. } => {
                    return match &**instance {
                        "acme-prod-1" => Ok(obeyed("freeze-acme-prod-1")),
                        other => Err(Refusal::NoInstance(other.to_owned())),
                    };
                }
                Command::Extend { wave, .. }
                | Command::Complete { wave, .. }
                | Command::RollBack { wave }
                | Command::Release { wave } => wave.clone(),
            };
            match &*id {
                "w1" => Ok(obeyed("w1")),
                "gone" => Err(Refusal::NotNow {
                    wave: id,
                    phase: "migrated".into(),
                    why: "nothing can be extended".into(),
                }),
                "full" => Err(Refusal::Spool("disk full".into())),
                _ => Err(Refusal::NoWave(id)),
            }
        })
    }
}

fn obeyed(id: &str) -> Obeyed {
    Obeyed { changed: true, what: format!("done to {id}"), wave: wave(id) }
}

struct Site {
    directory: tempfile::TempDir,
    double: Arc<Double>,
    doors: Arc<Doors>,
    address: SocketAddr,
    tls: bool,
    config: ApiConfig,
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api").join(name)
}

/// A file of a secret: its mode is not what a checkout makes it.
fn secret(directory: &Path, name: &str, text: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

impl Site {
    async fn start(tls: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let relay = fixture::relay(&fixture::telemetry());
        let double = Arc::new(Double {
            orders: Mutex::default(),
            audit: directory.path().join(audit::NAME),
            lines: Mutex::default(),
            places: Semaphore::new(1000),
            begun: Semaphore::new(0),
        });
        let token_file = secret(directory.path(), "api.token", TOKEN.as_bytes());
        let key = secret(directory.path(), "key", &fs::read(beside("server.key")).unwrap());
        let files = TlsFiles { certificate: beside("server.pem"), key };
        let address = "127.0.0.1:0".parse().unwrap();
        let config = ApiConfig { address, token_file, tls: tls.then_some(files), insecure: false };
        let doors = Doors::new(Keys::load(&config).map_err(|wrong| wrong.to_string()).unwrap());
        let audit = Arc::new(Audit::new(directory.path(), Arc::new(SystemClock)));
        let control = Control::new(relay, Arc::clone(&double) as _, audit);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(api::serve(listener, Arc::clone(&doors), control));
        Self { directory, double, doors, address, tls, config }
    }

    /// One request; the whole answer.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut answer = String::new();
        if self.tls {
            let mut stream =
                client().connect("localhost".try_into().unwrap(), stream).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        } else {
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.read_to_string(&mut answer).await.unwrap();
        }
        answer
    }

    /// A request with the token and more headers: status, headers and body.
    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String, Value) {
        let length = body.len();
        let answer = self
            .raw(&format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
                 Content-Length: {length}\r\n{headers}\r\n{body}"
            ))
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, head, said) = self.ask("POST", path, "", &body.to_string()).await;
        if status != 200 {
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            assert_eq!(said["status"], status);
        }
        (status, said)
    }

    fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.double.audit).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn orders(&self) -> Vec<Order> {
        self.double.orders.lock().unwrap().clone()
    }
}

/// A client that trusts the authority of the tests.
fn client() -> tokio_rustls::TlsConnector {
    use tokio_rustls::rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject},
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(beside("ca.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

#[tokio::test]
async fn an_order_is_given_once_and_stands_in_the_log_before_and_after() {
    let site = Site::start(false).await;
    let until = json!({ "reason": "slow copy", "until": "2026-01-20T08:00:00+01:00" });
    let (status, said) = site.post("/v1/waves/w1/extend", until).await;
    assert_eq!(
        (status, &said["what"], &said["wave"]["id"]),
        (200, &json!("done to w1"), &json!("w1"))
    );
    let orders = site.orders();
    assert_eq!(orders.len(), 1);
    let until = wavegate::plan::Timestamp(1_768_892_400_000);
    assert_eq!(orders[0].command, Command::Extend { wave: "w1".into(), until });
    assert_eq!((&*orders[0].by, &*orders[0].reason), ("127.0.0.1", "slow copy"));
    assert_eq!(*site.double.lines.lock().unwrap(), [1], "written before it was given");
    let log = site.log();
    assert_eq!(log.len(), 2);
    let told = |line: &Value| {
        ["state", "by", "action", "of", "with", "reason"]
            .map(|key| line[key].as_str().unwrap().to_owned())
    };
    let with = "until=2026-01-20T07:00:00Z";
    assert_eq!(told(&log[0]), ["ordered", "127.0.0.1", "extend", "w1", with, "slow copy"]);
    assert_eq!(told(&log[1]), ["done", "127.0.0.1", "extend", "w1", with, "slow copy"]);
    assert_eq!(log[1]["result"], "done to w1");
    assert!(log[0]["from"].as_str().unwrap().starts_with("API, 127.0.0.1:"));
}

#[tokio::test]
async fn orders_are_read_as_they_are_meant() {
    let site = Site::start(false).await;
    let by = json!({ "reason": "x", "by_ms": 900_000 });
    assert_eq!(site.post("/v1/waves/w1/extend", by).await.0, 200);
    let unchecked = json!({ "reason": "x", "unchecked": true });
    assert_eq!(site.post("/v1/waves/w1/complete", unchecked).await.0, 200);
    assert_eq!(site.post("/v1/waves/w1/rollback", json!({ "reason": "x" })).await.0, 200);
    assert_eq!(site.post("/v1/waves/w1/release", json!({ "reason": "x" })).await.0, 200);
    let freeze = json!({ "reason": "x", "instance": "acme-prod-1", "for_ms": 1_800_000 });
    assert_eq!(site.post("/v1/freezes", freeze).await.0, 200);
    let wave = || "w1".to_owned();
    let until = wavegate::plan::Timestamp(1_768_892_400_000);
    let commands: Vec<Command> = site.orders().into_iter().map(|order| order.command).collect();
    let expected = [
        Command::Extend { wave: wave(), until },
        Command::Complete { wave: wave(), unchecked: true },
        Command::RollBack { wave: wave() },
        Command::Release { wave: wave() },
        Command::Freeze { instance: "acme-prod-1".into(), for_ms: 1_800_000 },
    ];
    assert_eq!(commands, expected);
}

#[tokio::test]
async fn refusals_have_codes_and_stand_in_the_log() {
    let site = Site::start(false).await;
    let reason = json!({ "reason": "x" });
    let cases = [
        (
            "/v1/waves/gone/complete",
            409,
            "not_now",
            "wave gone is migrated: nothing can be extended",
        ),
        ("/v1/waves/none/complete", 404, "no_such_wave", "there is no wave \"none\""),
        ("/v1/waves/full/complete", 503, "not_written", "nothing was changed: disk full"),
    ];
    for (path, status, code, words) in cases {
        let (got, said) = site.post(path, reason.clone()).await;
        assert_eq!((got, &said["code"]), (status, &json!(code)), "{path}");
        assert!(said["detail"].as_str().unwrap().contains(words), "{said}");
    }
    let freeze = json!({ "reason": "x", "instance": "nobody", "for_ms": 1 });
    assert_eq!(site.post("/v1/freezes", freeze).await.1["code"], "no_such_instance");
    let log = site.log();
    assert_eq!(log.len(), 8);
    assert!(log.iter().skip(1).step_by(2).all(|line| line["state"] == "refused"), "{log:?}");
    assert_eq!(log[1]["result"], cases[0].3);
}

#[tokio::test]
async fn what_is_not_well_formed_is_no_order() {
    let site = Site::start(false).await;
    let long = "x".repeat(501);
    let cases = [
        ("/v1/waves/w1/complete", json!({ "reason": " " }), 400),
        ("/v1/waves/w1/complete", json!({ "reason": long }), 400),
        ("/v1/waves/w1/complete", json!({}), 400),
        ("/v1/waves/w1/complete", json!({ "reason": "x", "more": 1 }), 400),
        ("/v1/waves/w1/complete", json!({ "reason": "x", "until": "2026-01-20T07:00:00Z" }), 400),
        ("/v1/waves/w1/rollback", json!({ "reason": "x", "unchecked": true }), 400),
        ("/v1/waves/w1/extend", json!({ "reason": "x" }), 400),
        (
            "/v1/waves/w1/extend",
            json!({ "reason": "x", "by_ms": 1, "until": "2026-01-20T07:00:00Z" }),
            400,
        ),
        ("/v1/waves/w1/extend", json!({ "reason": "x", "until": "noon" }), 400),
        ("/v1/waves/none/extend", json!({ "reason": "x", "by_ms": 1 }), 404),
        ("/v1/waves/w1/destroy", json!({ "reason": "x" }), 404),
        ("/v1/freezes", json!({ "reason": "x", "instance": "acme-prod-1", "for_ms": 0 }), 400),
        (
            "/v1/freezes",
            json!({ "reason": "x", "instance": "acme-prod-1", "for_ms": 86_400_001 }),
            400,
        ),
        ("/v1/nothing", json!({}), 404),
        ("/v1/status", json!({}), 405),
    ];
    for (path, body, status) in cases {
        assert_eq!(site.post(path, body.clone()).await.0, status, "{path} {body}");
    }
    assert_eq!(site.orders(), []);
    assert!(site.log().is_empty(), "{:?}", site.log());
}

#[tokio::test]
async fn a_dry_run_leaves_no_trace_and_a_log_that_fails_stops_everything() {
    let site = Site::start(false).await;
    let dry = json!({ "reason": "x", "dry_run": true });
    assert_eq!(site.post("/v1/waves/w1/complete", dry.clone()).await.0, 200);
    assert!(site.orders()[0].dry_run && site.log().is_empty());
    // A directory in its place: not even root can write that.
    fs::create_dir(&site.double.audit).unwrap();
    for (path, body) in [
        ("/v1/waves/w1/complete", json!({ "reason": "x" })),
        ("/v1/freezes", json!({ "reason": "x", "instance": "acme-prod-1", "for_ms": 1 })),
        ("/v1/queue/hold", json!({ "reason": "x", "all": true })),
    ] {
        let (status, said) = site.post(path, body).await;
        assert_eq!((status, &said["code"]), (503, &json!("audit_failed")), "{path}");
        assert!(said["detail"].as_str().unwrap().contains("nothing was changed"), "{said}");
    }
    let hold = json!({ "reason": "x" }).to_string();
    assert_eq!(site.ask("PUT", "/v1/hold-all", "", &hold).await.0, 503);
    assert_eq!(site.ask("GET", "/v1/hold-all", "", "").await.2["all_held"], Value::Null);
    assert_eq!(site.orders().len(), 1, "the dry run only");
    assert_eq!(site.post("/v1/waves/w1/complete", dry).await.0, 200, "looking needs no log");
}

#[tokio::test]
async fn changes_of_the_queue_are_in_the_log() {
    let site = Site::start(false).await;
    let all = json!({ "reason": "look", "all": true });
    assert_eq!(site.post("/v1/queue/hold", all).await.0, 200);
    let why = json!({ "reason": "stop" }).to_string();
    assert_eq!(site.ask("PUT", "/v1/hold-all", "", &why).await.0, 200);
    assert_eq!(site.ask("DELETE", "/v1/hold-all", "", &why).await.0, 200);
    let log = site.log();
    let actions: Vec<&str> = log.iter().map(|line| line["action"].as_str().unwrap()).collect();
    let twice = ["queue hold", "hold-all", "release-all"].map(|one| [one; 2]).concat();
    assert_eq!(actions, twice);
    assert_eq!(log[1]["result"], "0 messages, 0 recipients, 0 not: ");
}

#[tokio::test]
async fn a_key_makes_a_request_once() {
    let site = Site::start(false).await;
    let body = json!({ "reason": "x" }).to_string();
    let key = "Idempotency-Key: 7f1b\r\n";
    let path = "/v1/waves/w1/complete";
    let (status, head, first) = site.ask("POST", path, key, &body).await;
    assert!(status == 200 && !head.contains("idempotency-replayed"), "{head}");
    let (status, head, again) = site.ask("POST", path, key, &body).await;
    assert_eq!((status, again), (200, first));
    assert!(head.contains("idempotency-replayed: true"), "{head}");
    assert_eq!(site.orders().len(), 1);
    assert_eq!(site.log().len(), 2);
    // A refusal is an answer too; a failure of the relay's own is not.
    let other = "Idempotency-Key: refused\r\n";
    for _ in 0..2 {
        assert_eq!(site.ask("POST", "/v1/waves/gone/complete", other, &body).await.0, 409);
    }
    assert_eq!(site.orders().len(), 2);
    let third = "Idempotency-Key: failed\r\n";
    for _ in 0..2 {
        assert_eq!(site.ask("POST", "/v1/waves/full/complete", third, &body).await.0, 503);
    }
    assert_eq!(site.orders().len(), 4);
    // The same key for something else is a mistake.
    let another = json!({ "reason": "y" }).to_string();
    assert_eq!(site.ask("POST", path, key, &another).await.2["code"], "key_reused");
    let (_, _, said) = site.ask("POST", "/v1/waves/w1/release", key, &body).await;
    assert_eq!(said["code"], "key_reused");
    for bad in ["", &"k".repeat(256)] {
        let header = format!("Idempotency-Key: {bad}\r\n");
        assert_eq!(site.ask("POST", path, &header, &body).await.0, 400);
    }
    assert_eq!(site.orders().len(), 4);
}

#[tokio::test]
async fn an_order_goes_on_though_who_gave_it_has_gone() {
    let site = Site::start(false).await;
    let double = &site.double;
    double.places.forget_permits(1000);
    let body = json!({ "reason": "x" }).to_string();
    let key = "Idempotency-Key: left\r\n";
    {
        let asking = site.ask("POST", "/v1/waves/w1/complete", key, &body);
        tokio::select! {
            _ = asking => panic!("it cannot be answered yet"),
            begun = double.begun.acquire() => begun.unwrap().forget(),
        }
    }
    let (status, _, said) = site.ask("POST", "/v1/waves/w1/complete", key, &body).await;
    assert_eq!((status, &said["code"]), (409, &json!("in_progress")));
    double.places.add_permits(1);
    loop {
        let (status, head, _) = site.ask("POST", "/v1/waves/w1/complete", key, &body).await;
        if status == 200 {
            assert!(head.contains("idempotency-replayed: true"), "{head}");
            break;
        }
        assert_eq!(status, 409);
    }
    assert_eq!(site.orders().len(), 1);
    assert_eq!(site.log().len(), 2);
}

#[tokio::test]
async fn a_thousand_keys_are_kept_and_the_oldest_goes() {
    let site = Site::start(false).await;
    let ask = async |number: usize| {
        let key = format!("Idempotency-Key: k{number}\r\n");
        let dry = json!({ "reason": "x", "dry_run": true }).to_string();
        site.double.places.add_permits(1);
        let (status, head, _) = site.ask("POST", "/v1/waves/w1/complete", &key, &dry).await;
        assert_eq!(status, 200);
        head.contains("idempotency-replayed")
    };
    for number in 0..1001 {
        assert!(!ask(number).await, "{number}");
    }
    assert!(ask(1).await && ask(1000).await);
    assert!(!ask(0).await, "the first was forgotten");
}

#[tokio::test]
async fn nothing_is_answered_without_the_token() {
    let site = Site::start(false).await;
    let paths = ["/v1/status", "/v1/waves", "/v1/openapi.json", "/v1/queue", "/nothing", "/"];
    for path in paths {
        for header in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp4\r\n"] {
            let answer = site.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
            assert!(answer.contains("www-authenticate: Bearer realm=\"wavegate\""), "{answer}");
            assert!(answer.contains("\"code\":\"unauthorized\""), "{answer}");
        }
    }
    let claim = "POST /v1/waves/w1/complete HTTP/1.1\r\nHost: x\r\nWavegate-By: root\r\n\
                 Content-Length: 14\r\n\r\n{\"reason\":\"x\"}";
    assert!(site.raw(claim).await.starts_with("HTTP/1.1 401 "));
    assert_eq!(site.orders(), []);
    let (status, _, said) = site.ask("GET", "/v1/status", "", "").await;
    assert_eq!((status, &said["host"]), (200, &json!("edge-1.example.net")));
    assert_eq!(site.ask("GET", "/v1/waves/w1", "", "").await.2["id"], "w1");
    assert_eq!(site.ask("GET", "/v1/waves", "", "").await.2["waves"][1]["id"], "gone");
    assert_eq!(site.ask("GET", "/v1/openapi.json", "", "").await.2["openapi"], "3.1.0");
    // A client of the network cannot say for whom it asks.
    let by = "Wavegate-By: root\r\n";
    let body = json!({ "reason": "x" }).to_string();
    assert_eq!(site.ask("POST", "/v1/waves/w1/complete", by, &body).await.0, 200);
    assert_eq!(site.orders()[0].by, "127.0.0.1");
}

#[tokio::test]
async fn bodies_are_bounded() {
    let site = Site::start(false).await;
    let large = json!({ "reason": "x".repeat(1 << 20) }).to_string();
    let (status, _, said) = site.ask("POST", "/v1/waves/w1/complete", "", &large).await;
    assert_eq!((status, &said["code"]), (413, &json!("too_large")));
}

#[tokio::test]
async fn tls_is_spoken_and_keys_change_while_it_runs() {
    let mut site = Site::start(true).await;
    let (status, _, said) = site.ask("GET", "/v1/status", "", "").await;
    assert_eq!((status, &said["host"]), (200, &json!("edge-1.example.net")));
    // In the clear nothing is answered.
    site.tls = false;
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    let clear = format!("GET /v1/status HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    stream.write_all(clear.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    site.tls = true;
    let next = "fedcba9876543210fedcba9876543210";
    secret(site.directory.path(), "api.token", next.as_bytes());
    site.doors.change(Keys::load(&site.config).map_err(|wrong| wrong.to_string()).unwrap());
    assert_eq!(site.ask("GET", "/v1/status", "", "").await.0, 401);
}

#[test]
fn files_of_tls_that_are_wrong_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let token_file = secret(directory.path(), "api.token", TOKEN.as_bytes());
    let good = secret(directory.path(), "key", &fs::read(beside("server.key")).unwrap());
    let empty = secret(directory.path(), "empty", b"");
    let open = directory.path().join("open");
    fs::copy(&good, &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let said = |certificate: PathBuf, key: &Path| {
        let tls = Some(TlsFiles { certificate, key: key.to_owned() });
        let address = "127.0.0.1:0".parse().unwrap();
        let config = ApiConfig { address, token_file: token_file.clone(), tls, insecure: false };
        Keys::load(&config).err().map(|wrong| wrong.to_string()).unwrap_or_default()
    };
    assert_eq!(said(beside("server.pem"), &good), "");
    assert!(said(beside("server.pem"), &open).contains("open to others (mode 644)"));
    assert!(said(beside("server.pem"), &empty).contains("has no key in PEM"));
    assert!(said(empty.clone(), &good).contains("has no certificate in PEM"));
    assert!(said(beside("ca.pem"), &good).contains("cannot be used with"), "another's key");
    assert!(said(directory.path().join("none"), &good).contains("cannot be read"));
}

/// More connections than there are places, which say nothing: they are cut, and others get in.
#[tokio::test(start_paused = true)]
async fn silent_clients_are_cut_and_others_get_their_turn() {
    for tls in [false, true] {
        let site = Site::start(tls).await;
        let begun = tokio::time::Instant::now();
        let mut silent = Vec::new();
        for _ in 0..80 {
            silent.push(TcpStream::connect(site.address).await.unwrap());
        }
        for stream in &mut silent {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        }
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        assert_eq!(site.ask("GET", "/v1/status", "", "").await.0, 200);
    }
}
