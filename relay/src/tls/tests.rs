//! Certificates that are taken, and what is said of those that are not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::config::TlsMode;

const NOW: Timestamp = Timestamp(1_768_888_800_000);

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls"));
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = folder.path().join(entry.file_name());
        fs::copy(entry.path(), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

fn of(folder: &Path, pairs: &[(&str, &str)]) -> ListenerTls {
    let files = |(certificate, key): &(&str, &str)| TlsFiles {
        certificate: folder.join(certificate),
        key: folder.join(key),
    };
    ListenerTls {
        mode: TlsMode::StartTls,
        certificates: pairs.iter().map(files).collect(),
        min_version: TlsVersion::V12,
        required: false,
        clients: None,
    }
}

/// What is said, without the folder.
fn said(folder: &Path, pairs: &[(&str, &str)], now: Timestamp) -> Vec<String> {
    let mut warnings = Vec::new();
    let errors = acceptor(&of(folder, pairs), now, None, &mut warnings).err().unwrap_or_default();
    let all = errors.iter().chain(&warnings).map(ToString::to_string);
    all.map(|line| line.replace(&format!("{}/", folder.display()), "")).collect()
}

#[test]
fn good_ones_are_taken() {
    let folder = folder();
    let pairs = [("mx.pem", "mx.key"), ("other.pem", "other.key")];
    let mut warnings = Vec::new();
    let acceptor = acceptor(&of(folder.path(), &pairs), NOW, None, &mut warnings).unwrap();
    assert_eq!(warnings, []);
    let [(first, until), (_, _)] = &acceptor.certificates[..] else { panic!("two") };
    assert!(first.ends_with("mx.pem"));
    assert_eq!(until.to_string(), "2120-01-01T00:00:01Z");
}

#[test]
fn each_fault_is_named_with_its_file_and_remedy() {
    let folder = folder();
    let path = folder.path();
    let one = |certificate: &str, key: &str| said(path, &[(certificate, key)], NOW).join("\n");
    assert_eq!(
        one("mx.pem", "other.key"),
        format!(
            "other.key: is not the key of {}/mx.pem; give the two that were made together",
            path.display()
        )
        .replace(&format!("{}/", path.display()), "")
    );
    assert!(one("none.pem", "mx.key").starts_with("none.pem: the certificate cannot be read"));
    assert!(one("mx.pem", "none.key").starts_with("none.key: the key cannot be read"));
    assert_eq!(one("mx.key", "mx.key"), "mx.key: has no certificate in PEM");
    assert!(one("mx.pem", "mx.pem").starts_with("mx.pem: has no key in PEM"));
    assert_eq!(
        one("expired.pem", "expired.key"),
        "expired.pem: has expired on 2021-01-01T00:00:01Z; renew it"
    );
    fs::write(path.join("torn.pem"), "-----BEGIN CERTIFICATE-----\nMIIB\n").unwrap();
    assert!(one("torn.pem", "mx.key").starts_with("torn.pem: is not PEM"));
    fs::write(
        path.join("odd.pem"),
        "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let text = one("odd.pem", "mx.key");
    assert!(text.starts_with("odd.pem: has no certificate that can be read"), "{text}");
    fs::set_permissions(path.join("mx.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        one("mx.pem", "mx.key"),
        "mx.key: the key is open to others (mode 644); chmod it to 600 or 640"
    );
    // All that is wrong, at once.
    let pairs = [("none.pem", "other.key"), ("mx.pem", "other.key"), ("other.pem", "other.key")];
    assert_eq!(said(path, &pairs, NOW).len(), 2);
}

#[test]
fn dates_count_to_the_second() {
    let folder = folder();
    let said = |at: u64| said(folder.path(), &[("expired.pem", "expired.key")], Timestamp(at));
    let (begins, ends) = (1_577_836_800_000, 1_609_459_201_000);
    assert_eq!(
        said(begins - 1),
        ["expired.pem: is not valid before 2020-01-01T00:00:00Z; look at the clock, or renew it"]
    );
    assert_eq!(said(begins), [""; 0]);
    assert_eq!(said(ends - SOON_MS - 1), [""; 0]);
    let soon = ["expired.pem: warning: expires on 2021-01-01T00:00:01Z; renew it"];
    assert_eq!(said(ends - SOON_MS), soon);
    assert_eq!(said(ends - 1), soon);
    assert_eq!(said(ends), ["expired.pem: has expired on 2021-01-01T00:00:01Z; renew it"]);
}

#[test]
fn what_is_in_force_and_did_not_change_stays_even_where_it_expires() {
    let folder = folder();
    let tls = of(folder.path(), &[("expired.pem", "expired.key")]);
    let mut warnings = Vec::new();
    let (valid, late) = (Timestamp(1_580_000_000_000), NOW);
    let first = acceptor(&tls, valid, None, &mut warnings).unwrap();
    let same = acceptor(&tls, late, Some(&first), &mut warnings).unwrap();
    assert!(Arc::ptr_eq(&first, &same));
    assert!(warnings.iter().any(|one| !one.is_error() && one.message.contains("has expired")));
    // Other settings, or other bytes, are something new.
    let other = ListenerTls { min_version: TlsVersion::V13, ..tls.clone() };
    assert!(acceptor(&other, late, Some(&first), &mut warnings).is_err());
    let other = acceptor(&other, valid, Some(&first), &mut warnings).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    fs::copy(folder.path().join("mx.pem"), folder.path().join("expired.pem")).unwrap();
    fs::copy(folder.path().join("mx.key"), folder.path().join("expired.key")).unwrap();
    let renewed = acceptor(&tls, late, Some(&first), &mut warnings).unwrap();
    assert!(!Arc::ptr_eq(&first, &renewed));
}
