#![allow(clippy::unwrap_used, reason = "tests")]
use minisign::KeyPair;

use super::*;

const WASM: &[u8] = b"these bytes are what is signed";

fn pair() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn signed(pair: &KeyPair, bytes: &[u8]) -> Vec<u8> {
    let made = minisign::sign(None, &pair.sk, bytes, Some("timestamp:1\tfile:a.wasm"), None);
    made.unwrap().to_bytes()
}

fn trusting(keys: &[(&str, &KeyPair)], required: bool) -> TrustedKeys {
    let keys = keys.iter().map(|(name, pair)| ((*name).to_owned(), pair.pk.clone())).collect();
    TrustedKeys { keys, required }
}

fn said(keys: &TrustedKeys, bytes: &[u8], signature: Option<&[u8]>) -> Result<Signed, String> {
    keys.judge(bytes, signature, "a.wasm.minisig").map_err(|error| error.to_string())
}

#[test]
fn who_signed_is_told() {
    let (alice, bob) = (pair(), pair());
    let keys = trusting(&[("bob", &bob), ("alice", &alice)], true);
    let Ok(Signed::By { name, id, comment }) = said(&keys, WASM, Some(&signed(&alice, WASM)))
    else {
        panic!("alice's signature is refused")
    };
    assert_eq!(name, "alice");
    assert_eq!(id, key_id(alice.pk.keynum()));
    assert!(comment.contains("file:a.wasm"), "{comment}");
    assert!(!comment.contains('\t'), "what a terminal obeys is escaped: {comment}");
}

#[test]
fn without_a_trusted_signature_it_depends_on_what_is_required() {
    let (alice, mallory) = (pair(), pair());
    let by_mallory = signed(&mallory, WASM);
    let lax = trusting(&[("alice", &alice)], false);
    assert_eq!(said(&lax, WASM, None), Ok(Signed::Not));
    let id = key_id(mallory.pk.keynum());
    assert_eq!(said(&lax, WASM, Some(&by_mallory)), Ok(Signed::Unknown { id: id.clone() }));
    let strict = lax.required();
    let error = said(&strict, WASM, None).unwrap_err();
    assert!(error.contains("a.wasm.minisig is not there"), "{error}");
    assert!(error.contains("wavegate plugin sign"), "{error}");
    let error = said(&strict, WASM, Some(&by_mallory)).unwrap_err();
    assert!(error.contains(&id) && error.contains("alice ("), "{error}");
    assert!(error.contains("plugins.trusted_keys"), "{error}");
}

#[test]
fn a_wrong_signature_of_a_trusted_key_is_refused_though_none_is_required() {
    let (alice, mallory) = (pair(), pair());
    let keys = trusting(&[("alice", &alice)], false);
    let good = signed(&alice, WASM);
    let mut other = WASM.to_vec();
    other[0] ^= 1;
    let error = said(&keys, &other, Some(&good)).unwrap_err();
    assert!(error.contains("is not the signature of this plugin by the key alice"), "{error}");
    // Mallory says that it was alice, and so in the comment too.
    let text = String::from_utf8(good.clone()).unwrap();
    for (from, to) in [("file:a.wasm", "file:b.wasm"), ("timestamp:1", "timestamp:2")] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        assert!(said(&keys, WASM, Some(changed.as_bytes())).is_err(), "{from}");
    }
    let mut forged = minisign::sign(None, &mallory.sk, WASM, None, None).unwrap().to_string();
    let ours = text.lines().nth(1).unwrap();
    let theirs = forged.lines().nth(1).unwrap().to_owned();
    forged = forged.replace(&theirs, ours);
    assert!(said(&keys, WASM, Some(forged.as_bytes())).is_err());
}

#[test]
fn no_bytes_make_it_panic_and_none_but_the_right_ones_are_taken() {
    let alice = pair();
    let keys = trusting(&[("alice", &alice)], true);
    let good = signed(&alice, WASM);
    assert!(said(&keys, WASM, Some(&good)).is_ok());
    let untrusted = good.iter().position(|byte| *byte == b'\n').unwrap();
    let end = good.iter().rposition(|byte| !byte.is_ascii_whitespace()).unwrap();
    for at in 0..good.len() {
        let mut cut = good.clone();
        cut.truncate(at);
        assert!(at > end || said(&keys, WASM, Some(&cut)).is_err(), "cut at {at}");
        for with in [b'A', b'=', b'\n', 0, 0xff] {
            let mut changed = good.clone();
            changed[at] = with;
            let taken = said(&keys, WASM, Some(&changed)).is_ok();
            // The first comment is not signed; line ends and spaces around do not count.
            assert!(!taken || at <= untrusted || at > end || good[at] == with, "{at}: {with}");
        }
    }
    for bad in [&b""[..], b"\n\n\n\n", &[0xff; 300], &vec![b'a'; SIGNATURE_MAX + 1]] {
        let error = said(&keys, WASM, Some(bad)).unwrap_err();
        assert!(error.contains("no signature of minisign"), "{error}");
    }
}

#[test]
fn a_signature_at_the_limit_is_read_and_one_past_it_is_not() {
    let alice = pair();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wasm.minisig");
    assert!(read_signature(&path).unwrap().is_none());
    let made = |extra: usize| {
        let note = "x".repeat(extra);
        minisign::sign(None, &alice.sk, WASM, None, Some(&note)).unwrap().to_bytes()
    };
    let room = SIGNATURE_MAX - made(0).len();
    let keys = trusting(&[("alice", &alice)], true);
    std::fs::write(&path, made(room)).unwrap();
    let read = read_signature(&path).unwrap();
    assert!(said(&keys, WASM, read.as_deref()).is_ok());
    std::fs::write(&path, made(room + 1)).unwrap();
    assert!(read_signature(&path).unwrap_err().to_string().contains("larger than 8 KiB"));
    assert!(read_signature(folder.path()).unwrap_err().to_string().contains("regular file"));
}

#[test]
fn keys_are_read_from_text_and_files_and_what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (alice, bob) = (pair(), pair());
    let file = folder.path().join("bob.pub");
    std::fs::write(&file, bob.pk.to_box().unwrap().to_bytes()).unwrap();
    let key = |name: &str, key: KeySource| TrustedKey {
        name: name.to_owned(),
        key,
        place: "relay.toml:3".to_owned(),
    };
    let text = |pair: &KeyPair| KeySource::Text(pair.pk.to_base64());
    let load = |trusted_keys: Vec<TrustedKey>| {
        let config = PluginsConfig { trusted_keys, require_signatures: true };
        TrustedKeys::load(&config).map_err(|found| found.to_string())
    };
    let keys = load(vec![key("alice", text(&alice)), key("bob", KeySource::File(file.clone()))]);
    let keys = keys.unwrap();
    assert!(said(&keys, WASM, Some(&signed(&bob, WASM))).is_ok());
    std::fs::write(&file, "no key").unwrap();
    let missing = KeySource::File(folder.path().join("none.pub"));
    let found = load(vec![
        key("alice", text(&alice)),
        key("twin", text(&alice)),
        key("bob", KeySource::File(file)),
        key("gone", missing),
        key("odd", KeySource::Text("RW".repeat(28))),
    ])
    .unwrap_err();
    for wanted in [
        "trusted_keys.twin: has the same id as alice",
        "trusted_keys.bob: ",
        "bob.pub is no public key",
        "trusted_keys.gone: cannot read",
        "relay.toml:3",
    ] {
        assert!(found.contains(wanted), "{wanted}: {found}");
    }
}
