//! Files that are taken, and what is said of those that are not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, os::unix::fs::PermissionsExt as _};

use wavegate_smtp::Secret;

use super::*;

/// `secret`, as cheap as can be.
const CHEAP: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$";

fn cheap(password: &str) -> String {
    let argon2 = Argon2::from(Params::new(8, 1, 1, None).unwrap());
    let hash: PasswordHash =
        argon2.hash_password_with_salt(password.as_bytes(), b"somesalt").unwrap();
    let text = hash.to_string();
    assert!(text.starts_with(CHEAP), "{text}");
    text
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn said(text: &str) -> Vec<String> {
    let file = file(text);
    let found = read(file.path()).err().unwrap_or_default();
    let shown = format!("{}:", file.path().display());
    found.iter().map(|one| one.to_string().replace(&shown, "")).collect()
}

fn login(user: &str, password: &str) -> Login {
    Login { user: user.into(), password: Secret::new(password.into()) }
}

#[test]
fn who_is_in_it_and_knows_the_password() {
    let text = format!(
        "# users\n\nada:{}\r\nbob@acme.example:{}\n",
        cheap("secret"),
        cheap("p\u{e4}ss w\u{f6}rd")
    );
    let users = read(file(&text).path()).unwrap();
    assert!(users.verify(&login("ada", "secret")));
    assert!(users.verify(&login("bob@acme.example", "p\u{e4}ss w\u{f6}rd")));
    for (user, password) in [
        ("ada", "Secret"),
        ("Ada", "secret"),
        ("bob@acme.example", "secret"),
        // The password of the one that is looked at for those that are not there.
        ("eve", "secret"),
    ] {
        assert!(!users.verify(&login(user, password)), "{user}");
    }
    let nobody = read(file("# none\n").path()).unwrap();
    assert!(!nobody.verify(&login("ada", "secret")));
}

#[test]
fn what_the_command_prints_is_taken() {
    let hash = hash(b"secret").unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    let users = read(file(&format!("ada:{hash}\n")).path()).unwrap();
    assert!(users.verify(&login("ada", "secret")));
    assert!(!users.verify(&login("ada", "secreT")));
    assert_ne!(super::hash(b"secret").unwrap(), hash, "a salt of its own");
}

#[test]
fn each_mistake_is_named_with_its_line_and_without_the_hash() {
    let good = cheap("secret");
    let tail = good.strip_prefix(CHEAP).unwrap();
    let dear = |params: &str| format!("ada:$argon2id$v=19${params}$c29tZXNhbHQ${tail}");
    for (line, expected) in [
        ("ada".to_owned(), "is not `name:hash`"),
        (format!(":{good}"), "has no name of a user"),
        (format!(" ada:{good}"), "has no name of a user"),
        (format!("a\u{7}da:{good}"), "has no name of a user"),
        (format!("{}:{good}", "a".repeat(256)), "has no name of a user"),
        ("ada:secret".to_owned(), "has no hash for user \"ada\""),
        ("ada:".to_owned(), "has no hash for user \"ada\""),
        ("ada:$6$c29tZXNhbHQ$aaaaaaaaaaaaaaaa".to_owned(), "for user \"ada\""),
        (good.replace("$argon2id", "ada:$argon2i"), "another hash than argon2id"),
        ("ada:$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ".to_owned(), "another hash than argon2id"),
        (dear("m=65537,t=1,p=1"), "too dear to look at (m=65537, t=1, p=1)"),
        (dear("m=8,t=11,p=1"), "too dear to look at"),
        (dear("m=256,t=1,p=17"), "too dear to look at"),
        (dear("m=1,t=1,p=1"), "that is none"),
    ] {
        let found = said(&format!("# one\n{line}\nbob:{good}\n"));
        let [found] = &found[..] else { panic!("{line}: {found:?}") };
        assert!(found.starts_with("2: ") && found.contains(expected), "{line}: {found}");
        assert!(!found.contains(tail) && !found.contains("secret"), "{found}");
    }
    let twice = said(&format!("ada:{good}\nada:{good}\n"));
    assert_eq!(twice, ["2: has user \"ada\" a second time; remove one"]);
    assert_eq!(said(&"wrong\n".repeat(50)).len(), MISTAKES);
}

#[test]
fn hashes_at_the_bounds_are_taken() {
    let hash = cheap("secret");
    let tail = hash.strip_prefix(CHEAP).unwrap();
    let at = format!("ada:$argon2id$v=19$m={MEMORY_KIB},t={ROUNDS},p={LANES}$c29tZXNhbHQ${tail}");
    assert_eq!(said(&at), [""; 0]);
}

#[test]
fn others_must_not_read_it() {
    let file = file("");
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let found = read(file.path()).unwrap_err();
    assert!(found[0].message.contains("is open to others (mode 644)"), "{}", found[0]);
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(read(file.path()).is_ok());
    assert!(read(Path::new("/nowhere/users")).unwrap_err()[0].message.contains("cannot be read"));
    fs::write(file.path(), b"\xff\n").unwrap();
    assert!(read(file.path()).unwrap_err()[0].message.contains("is not UTF-8"));
    fs::write(file.path(), "#\n".repeat(1 << 19) + "#").unwrap();
    let found = read(file.path()).unwrap_err();
    assert!(found[0].message.contains("larger than 1 MiB"), "{}", found[0]);
}
