//! `wavegate users`: lines for the file of users. Floor 4.

use std::io::{self, IsTerminal, Read, Write};

use clap::Subcommand;
use wavegate_smtp::login::is_user;
use zeroize::Zeroizing;

use super::{Failed, exit};
use crate::users;

/// Bytes of a password: what a client can say in one line of AUTH.
const PASSWORD: usize = 9000;

#[derive(Debug, Subcommand)]
pub(super) enum UsersCommand {
    /// Print the line of a user: asks for the password, or reads it from standard input.
    Hash {
        /// What the user is called.
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
}

/// A name that the file can have.
pub(super) fn name(text: &str) -> Result<String, String> {
    let good =
        is_user(text) && text.trim() == text && !text.contains(':') && !text.starts_with('#');
    good.then(|| text.to_owned()).ok_or_else(|| {
        "write 1 to 255 bytes, without colons, control characters, a `#` in front and white space \
         around"
            .to_owned()
    })
}

pub(super) fn users(command: &UsersCommand, out: &mut dyn Write) -> anyhow::Result<u8> {
    let UsersCommand::Hash { name } = command;
    let input = io::stdin();
    let password = match input.is_terminal() {
        true => asked()?,
        false => read(&mut input.lock())?,
    };
    let hash = users::hash(password.as_bytes())
        .map_err(|error| Failed::new(exit::OS, error.to_string()))?;
    writeln!(out, "{name}:{hash}")?;
    Ok(0)
}

fn asked() -> anyhow::Result<Zeroizing<String>> {
    let ask = |prompt| rpassword::prompt_password(prompt).map(Zeroizing::new);
    let password = ask("Password: ")?;
    if password != ask("Once more: ")? {
        return Err(Failed::new(exit::DATA, "these are two passwords; try again").into());
    }
    checked(password)
}

/// All of the input but one line end.
fn read(input: &mut dyn Read) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD + 3));
    input.take(PASSWORD as u64 + 3).read_to_string(&mut text)?;
    let end = text.trim_end_matches('\n').len().max(text.len().saturating_sub(1));
    text.truncate(end);
    if text.ends_with('\r') {
        text.pop();
    }
    checked(text)
}

/// One that a client can say (RFC 4616 2).
fn checked(password: Zeroizing<String>) -> anyhow::Result<Zeroizing<String>> {
    let wrong = match password.len() {
        0 => "the password is empty",
        length if length > PASSWORD => "the password is longer than 9000 bytes",
        _ if password.contains(['\0', '\n', '\r']) => "the password is more than one line",
        _ => return Ok(password),
    };
    Err(Failed::new(exit::DATA, wrong).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(input: &str) -> Result<String, String> {
        let read = read(&mut input.as_bytes());
        read.map(|text| text.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_password_is_one_line() {
        assert_eq!(of("secret").unwrap(), "secret");
        assert_eq!(of("secret\n").unwrap(), "secret");
        assert_eq!(of("secret\r\n").unwrap(), "secret");
        assert_eq!(of(" s\u{e9}cret \n").unwrap(), " s\u{e9}cret ");
        let longest = "x".repeat(PASSWORD);
        assert_eq!(of(&format!("{longest}\r\n")).unwrap(), longest);
        for (input, said) in [
            ("", "empty"),
            ("\n", "empty"),
            ("a\nb\n", "more than one line"),
            ("a\n\n", "more than one line"),
            ("a\0b\n", "more than one line"),
            (&format!("{longest}x\n"), "longer than 9000 bytes"),
        ] {
            assert!(of(input).unwrap_err().contains(said), "{input:?}");
        }
    }
}
