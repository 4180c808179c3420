//! Who lets whom in: real handshakes of QUIC over loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use quinn::crypto::rustls::QuicClientConfig;
use tokio_rustls::rustls::{ClientConfig, version::TLS13};

use super::*;
use crate::config::{Congestion, LinkListener, LinkPeer, LinkUpstream};

const NOW: Timestamp = Timestamp(1_768_888_800_000);
/// While `expired.pem` was good.
const THEN: Timestamp = Timestamp(1_580_000_000_000);
const GATEWAY: &str = "gateway.example";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/link"));
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = folder.path().join(entry.file_name());
            fs::copy(entry.path(), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        }
    }

    fn pin(&self, name: &str) -> Pin {
        pin_of_file(&self.path(&format!("{name}.pem"))).unwrap()
    }

    fn certificates(&self, name: &str) -> Vec<CertificateDer<'static>> {
        let path = self.path(&format!("{name}.pem"));
        CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
    }

    /// Who shows `name`, and believes the authority.
    fn edge(&self, name: &str) -> LinkUpstream {
        LinkUpstream {
            identity: self.files(name),
            trust: Trust { ca: Some(self.path("ca.pem")), ..Trust::default() },
            name: None,
            streams: 1,
            fallback: None,
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(8),
            congestion: Congestion::Bbr,
        }
    }

    /// Who believes the authority.
    fn gateway(&self) -> LinkListener {
        LinkListener {
            name: "link".to_owned(),
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            identity: self.files("gateway"),
            trust: Trust { ca: Some(self.path("ca.pem")), ..Trust::default() },
            peers: Vec::new(),
            connections: 1,
            streams: 1,
            seen: 2,
            idle_timeout: Duration::from_secs(8),
            congestion: Congestion::Bbr,
            upstreams: Vec::new(),
        }
    }

    /// Who lets in these peers only, by their pins.
    fn pinned(&self, peers: &[(&str, &[&str])]) -> LinkListener {
        let peer = |(name, keys): &(&str, &[&str])| LinkPeer {
            name: (*name).to_owned(),
            pins: keys.iter().map(|key| self.pin(key)).collect(),
        };
        let peers: Vec<_> = peers.iter().map(peer).collect();
        let pins = peers.iter().flat_map(|peer| peer.pins.clone()).collect();
        LinkListener { trust: Trust { pins, ..Trust::default() }, peers, ..self.gateway() }
    }
}

fn accept(link: &LinkListener) -> Arc<LinkAcceptor> {
    gateway(link, NOW, None, &mut Vec::new()).unwrap()
}

fn connect(link: &LinkUpstream, now: Timestamp) -> Arc<LinkConnector> {
    edge(link, now, None, &mut Vec::new()).unwrap()
}

/// Who the gateway has let in, or why one of the two did not go on.
fn meet(edge: &LinkUpstream, gateway: &LinkListener) -> Result<String, String> {
    // `expired.pem` is shown by one that has run since it was good.
    let edge = connect(edge, THEN);
    handshake(Arc::clone(&edge.config), &edge.server_name(Some(GATEWAY), LOOPBACK), gateway)
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::main(flavor = "current_thread")]
async fn handshake(
    edge: Arc<QuicClientConfig>,
    name: &str,
    gateway: &LinkListener,
) -> Result<String, String> {
    let acceptor = accept(gateway);
    let config = quinn::ServerConfig::with_crypto(Arc::clone(&acceptor.config) as _);
    let server = quinn::Endpoint::server(config, gateway.address).unwrap();
    let client = quinn::Endpoint::client(gateway.address).unwrap();
    let config = quinn::ClientConfig::new(edge);
    let to = server.local_addr().unwrap();
    let connecting = client.connect_with(config, to, name).unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    // The edge is done before the gateway has judged it; its connection must live until then.
    let (edge, gateway) = tokio::join!(connecting, accepting);
    let edge = edge.map_err(|error| error.to_string());
    let connection = match gateway {
        Ok(connection) => connection,
        Err(gateway) => return Err(edge.err().unwrap_or_else(|| gateway.to_string())),
    };
    let shown = connection.peer_identity().unwrap();
    let shown = shown.downcast::<Vec<CertificateDer<'static>>>().unwrap();
    Ok(acceptor.peer(&shown).unwrap())
}

fn refused(edge: &LinkUpstream, gateway: &LinkListener, why: &str) {
    let error = meet(edge, gateway).unwrap_err();
    assert!(error.contains(why), "{error}");
}

#[test]
fn who_the_authority_vouches_for_is_known_by_the_first_host_name() {
    let folder = Folder::new();
    let gateway = folder.gateway();
    assert_eq!(meet(&folder.edge("edge"), &gateway).unwrap(), "edge-1.example");
    refused(&folder.edge("stranger"), &gateway, "UnknownIssuer");
    refused(&folder.edge("nameless"), &gateway, "no DNS name");
    refused(&folder.edge("expired"), &gateway, "expired");
    // Where peers are listed it is one of them.
    let peer = |name: &str| LinkPeer { name: name.to_owned(), pins: Vec::new() };
    let listed = LinkListener { peers: vec![peer("edge-2.example")], ..gateway };
    refused(&folder.edge("edge"), &listed, "\"edge-1.example\", which is none of `peers`");
    assert_eq!(meet(&folder.edge("revoked"), &listed).unwrap(), "edge-2.example");
}

#[test]
fn who_is_revoked_stays_out_by_an_old_list_too() {
    let folder = Folder::new();
    for (crl, warned) in [("crl.pem", 0), ("old-crl.pem", 1)] {
        let mut link = folder.gateway();
        link.trust.crl = Some(folder.path(crl));
        let mut warnings = Vec::new();
        let acceptor = gateway(&link, NOW, None, &mut warnings).unwrap();
        assert_eq!(warnings.len(), warned, "{warnings:?}");
        assert!(warnings.iter().all(|one| one.message.contains("was to be renewed by 2021-01-01")));
        refused(&folder.edge("revoked"), &link, "Revoked");
        assert_eq!(meet(&folder.edge("edge"), &link).unwrap(), "edge-1.example");
        // A connection that was open before the list came is found too.
        assert_eq!(
            accept(&folder.gateway()).peer(&folder.certificates("revoked")).unwrap(),
            "edge-2.example"
        );
        assert_eq!(acceptor.peer(&folder.certificates("revoked")), None);
        assert_eq!(acceptor.peer(&folder.certificates("edge")).unwrap(), "edge-1.example");
    }
    // An edge looks as well.
    let mut link = folder.edge("edge");
    link.trust.crl = Some(folder.path("crl.pem"));
    let posing = LinkListener { identity: folder.files("revoked"), ..folder.gateway() };
    link.name = Some("edge-2.example".to_owned());
    refused(&link, &posing, "Revoked");
}

#[test]
fn a_gateway_has_the_name_that_was_asked_for() {
    let folder = Folder::new();
    let gateway = folder.gateway();
    let named = |name: &str| LinkUpstream { name: Some(name.to_owned()), ..folder.edge("edge") };
    assert_eq!(meet(&named("gateway"), &gateway).unwrap(), "edge-1.example");
    refused(&named("other.example"), &gateway, "not valid for name");
    // Another edge is no gateway, though it is the authority's.
    let posing = LinkListener { identity: folder.files("edge-new"), ..folder.gateway() };
    refused(&folder.edge("edge"), &posing, "not valid for name");
    let connector = connect(&folder.edge("edge"), NOW);
    assert_eq!(connector.server_name(None, LOOPBACK), "127.0.0.1");
    assert_eq!(connector.server_name(Some("a.example"), LOOPBACK), "a.example");
    assert_eq!(connect(&named("gateway"), NOW).server_name(Some("a.example"), LOOPBACK), "gateway");
}

#[test]
fn a_pinned_key_is_believed_whatever_else_it_says() {
    let folder = Folder::new();
    let by_pin = |own: &str, gateway: &str| {
        let trust = Trust { pins: vec![folder.pin(gateway)], ..Trust::default() };
        LinkUpstream { trust, ..folder.edge(own) }
    };
    let gateway = folder.pinned(&[("one", &["expired"]), ("two", &["stranger", "nameless"])]);
    assert_eq!(meet(&by_pin("expired", "gateway"), &gateway).unwrap(), "one");
    assert_eq!(meet(&by_pin("stranger", "gateway"), &gateway).unwrap(), "two");
    assert_eq!(meet(&by_pin("nameless", "gateway"), &gateway).unwrap(), "two");
    // Made by itself, as `openssl req -x509` does: an authority, to whom looks closely.
    let made = folder.pinned(&[("three", &["alone"])]);
    let made = LinkListener { identity: folder.files("alone"), ..made };
    assert_eq!(meet(&by_pin("alone", "alone"), &made).unwrap(), "three");
    let unknown = folder.pin("edge").to_string();
    refused(&by_pin("edge", "gateway"), &gateway, &unknown);
    let unknown = folder.pin("gateway").to_string();
    refused(&by_pin("stranger", "edge"), &gateway, &unknown);
    // Either is enough, where both are given.
    let both = Trust { ca: Some(folder.path("ca.pem")), ..gateway.trust.clone() };
    let mut gateway = LinkListener { trust: both, ..gateway };
    assert_eq!(meet(&by_pin("stranger", "gateway"), &gateway).unwrap(), "two");
    refused(&by_pin("edge", "gateway"), &gateway, "which is none of `peers`");
    gateway.peers.push(LinkPeer { name: "edge-1.example".to_owned(), pins: Vec::new() });
    assert_eq!(meet(&by_pin("edge", "gateway"), &gateway).unwrap(), "edge-1.example");
    let mut both = folder.edge("edge");
    both.trust.pins = vec![folder.pin("stranger")];
    let strange = LinkListener { identity: folder.files("stranger"), ..gateway };
    assert_eq!(meet(&both, &strange).unwrap(), "edge-1.example");
}

#[test]
fn a_key_is_exchanged_while_both_are_pinned() {
    let folder = Folder::new();
    let (old, new) = (folder.edge("edge"), folder.edge("edge-new"));
    let before = folder.pinned(&[("one", &["edge"])]);
    let between = folder.pinned(&[("one", &["edge", "edge-new"])]);
    let after = folder.pinned(&[("one", &["edge-new"])]);
    assert_eq!(meet(&old, &before).unwrap(), "one");
    refused(&new, &before, "none of those that are pinned");
    assert_eq!(meet(&old, &between).unwrap(), "one");
    assert_eq!(meet(&new, &between).unwrap(), "one");
    refused(&old, &after, "none of those that are pinned");
    assert_eq!(meet(&new, &after).unwrap(), "one");
    let open = folder.certificates("edge");
    assert_eq!(accept(&between).peer(&open).as_deref(), Some("one"));
    assert_eq!(accept(&after).peer(&open), None);
    assert_eq!(accept(&after).peer(&[]), None);
    assert_eq!(accept(&after).peer(&[CertificateDer::from(vec![0x30, 0x80])]), None);
}

#[test]
fn nobody_comes_in_without_a_certificate_or_with_another_protocol() {
    let folder = Folder::new();
    let roots = roots(&folder.path("ca.pem"), &mut blake3::Hasher::new()).unwrap();
    let build = |protocol: &[u8]| {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(Arc::clone(&roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(QuicClientConfig::try_from(config).unwrap())
    };
    let said =
        |protocol: &[u8]| handshake(build(protocol), GATEWAY, &folder.gateway()).unwrap_err();
    let error = said(wavegate_link::ALPN);
    assert!(error.contains("peer sent no certificates"), "{error}");
    for other in [&b"wavegate-link/2"[..], b"h3"] {
        let error = said(other);
        assert!(error.contains("known protocol"), "{error}");
    }
}

#[test]
fn each_fault_of_a_file_is_named_with_its_remedy() {
    let folder = Folder::new();
    let said = |link: &LinkListener| {
        let found = gateway(link, NOW, None, &mut Vec::new()).err().unwrap_or_default();
        let all: Vec<_> = found.iter().map(ToString::to_string).collect();
        all.join("\n").replace(&format!("{}/", folder.0.path().display()), "")
    };
    let crl = |name: &str| {
        let mut link = folder.gateway();
        link.trust.crl = Some(folder.path(name));
        said(&link)
    };
    assert!(crl("none.pem").starts_with("none.pem: the revoked certificates cannot be read"));
    assert!(crl("ca.pem").starts_with("ca.pem: has no list of revoked certificates in PEM"));
    assert_eq!(
        crl("stranger-crl.pem"),
        "stranger-crl.pem: has no list of an authority in ca.pem; give one of each, one after another"
    );
    fs::write(
        folder.path("odd.pem"),
        "-----BEGIN X509 CRL-----\nMAMCAQE=\n-----END X509 CRL-----\n",
    )
    .unwrap();
    assert!(crl("odd.pem").starts_with("odd.pem: has a list that cannot be read"));
    let both = ["crl.pem", "stranger-crl.pem"].map(|name| fs::read(folder.path(name)).unwrap());
    fs::write(folder.path("both.pem"), both.concat()).unwrap();
    assert_eq!(crl("both.pem"), "");
    let expired = LinkListener { identity: folder.files("expired"), ..folder.gateway() };
    assert!(said(&expired).starts_with("expired.pem: has expired on 2021-01-01T00:00:01Z"));
    fs::set_permissions(folder.path("gateway.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(said(&folder.gateway()).contains("gateway.key: the key is open to others (mode 644)"));
}

#[test]
fn what_did_not_change_is_the_same() {
    let folder = Folder::new();
    let link = LinkUpstream { identity: folder.files("expired"), ..folder.edge("edge") };
    let mut warnings = Vec::new();
    let first = edge(&link, THEN, None, &mut warnings).unwrap();
    assert!(Arc::ptr_eq(&first, &edge(&link, NOW, Some(&first), &mut warnings).unwrap()));
    assert!(warnings.iter().any(|one| one.message.contains("has expired")));
    let other = LinkUpstream { streams: 2, ..link.clone() };
    assert!(Arc::ptr_eq(&first, &edge(&other, THEN, Some(&first), &mut warnings).unwrap()));
    let other = LinkUpstream { name: Some("other.example".to_owned()), ..link.clone() };
    assert!(!Arc::ptr_eq(&first, &edge(&other, THEN, Some(&first), &mut warnings).unwrap()));

    let mut link = folder.gateway();
    link.trust.crl = Some(folder.path("crl.pem"));
    let first = gateway(&link, NOW, None, &mut warnings).unwrap();
    let same = |link: &LinkListener| {
        let next = gateway(link, NOW, Some(&first), &mut Vec::new()).unwrap();
        Arc::ptr_eq(&first, &next)
    };
    assert!(same(&LinkListener { streams: 2, ..link.clone() }));
    let peers = vec![LinkPeer { name: "edge-1.example".to_owned(), pins: Vec::new() }];
    assert!(!same(&LinkListener { peers, ..link.clone() }));
    fs::copy(folder.path("old-crl.pem"), folder.path("crl.pem")).unwrap();
    assert!(!same(&link));
}

#[test]
fn a_pin_is_what_openssl_makes_of_the_key() {
    // openssl x509 -in edge.pem -pubkey -noout | openssl pkey -pubin -outform der |
    //     openssl dgst -sha256 -binary | base64
    let pin = Folder::new().pin("edge");
    assert_eq!(pin.to_string(), "sha256/iLuHA7OtNJm9ILHZjfXJ+AIqsVxkh78AfSxyiMTCU6s=");
}
