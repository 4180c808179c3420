//! Passwords of secret keys. Floor 4.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::super::{Failed, exit};

/// Bytes of a password: what minisign reads.
const PASSWORD: usize = 1024;

/// Asks on the terminal; `twice` where a mistake would cost the key.
pub(super) fn asked(twice: bool) -> Result<Zeroizing<String>, Failed> {
    let ask = |prompt| {
        rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|error| {
            let text = format!("no password can be asked for ({error}): give --password-file");
            Failed::new(exit::USAGE, text)
        })
    };
    let password = ask("Password of the secret key: ")?;
    if twice && password != ask("Once more: ")? {
        return Err(Failed::new(exit::DATA, "these are two passwords; try again"));
    }
    checked(password)
}

/// Reads the only line of a file.
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, Failed> {
    let of = |error| Failed::new(exit::NO_INPUT, format!("{}: {error}", path.display()));
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD + 3));
    let file = std::fs::File::open(path).map_err(of)?;
    file.take(PASSWORD as u64 + 3).read_to_string(&mut text).map_err(of)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    checked(Zeroizing::new(line.to_owned()))
}

/// From where it was said to be.
pub(super) fn of(file: Option<&PathBuf>, twice: bool) -> Result<Zeroizing<String>, Failed> {
    file.map_or_else(|| asked(twice), |file| read(file))
}

fn checked(password: Zeroizing<String>) -> Result<Zeroizing<String>, Failed> {
    let wrong = match password.len() {
        0 => {
            "the password is empty: give one, or --no-password where the key is protected \
              otherwise"
        }
        length if length > PASSWORD => "the password is longer than 1024 bytes",
        _ if password.contains(['\0', '\n', '\r']) => "the password is more than one line",
        _ => return Ok(password),
    };
    Err(Failed::new(exit::DATA, wrong))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_password_is_the_only_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let of = |content: &str| {
            std::fs::write(&path, content).unwrap();
            read(&path).map(|text| text.to_string()).map_err(|error| error.to_string())
        };
        let longest = "x".repeat(PASSWORD);
        for (content, text) in
            [("a b", "a b"), ("a\n", "a"), ("a\r\n", "a"), (&format!("{longest}\r\n"), &*longest)]
        {
            assert_eq!(of(content).unwrap(), text);
        }
        for (content, said) in [
            ("", "empty"),
            ("\n", "empty"),
            ("a\nb\n", "more than one line"),
            ("a\0", "more than one line"),
            (&format!("{longest}x"), "longer than"),
        ] {
            assert!(of(content).unwrap_err().contains(said), "{content:?}");
        }
        assert_eq!(read(&folder.path().join("none")).unwrap_err().code, exit::NO_INPUT);
    }
}
