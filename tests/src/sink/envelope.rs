//! Commands as the sink reads them: verb, address, parameters.
//!
//! Owns that little grammar; decides nothing. Floor: none (pure).

use super::Extensions;

/// A command line, without its CRLF.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Hello {
        extended: bool,
        name: &'a str,
    },
    Mail {
        address: &'a str,
        parameters: Vec<&'a str>,
    },
    Rcpt {
        address: &'a str,
        parameters: Vec<&'a str>,
    },
    Data,
    Bdat {
        size: u64,
        last: bool,
    },
    Rset,
    Noop,
    Quit,
    Xforward(&'a str),
    Xclient(&'a str),
    Auth(&'a str),
    /// A verb that is known, with arguments that are not.
    Malformed,
    Unknown,
}

pub(super) fn parse(line: &str) -> Command<'_> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    match verb.to_ascii_uppercase().as_str() {
        "EHLO" if !rest.is_empty() => Command::Hello { extended: true, name: rest },
        "HELO" if !rest.is_empty() => Command::Hello { extended: false, name: rest },
        "MAIL" => path(rest, "FROM:").map_or(Command::Malformed, |(address, parameters)| {
            Command::Mail { address, parameters }
        }),
        "RCPT" => path(rest, "TO:").filter(|(address, _)| !address.is_empty()).map_or(
            Command::Malformed,
            |(address, parameters)| Command::Rcpt { address, parameters },
        ),
        "DATA" if rest.is_empty() => Command::Data,
        "BDAT" => bdat(rest),
        "RSET" => Command::Rset,
        "NOOP" => Command::Noop,
        "QUIT" => Command::Quit,
        "XFORWARD" => Command::Xforward(rest),
        "XCLIENT" => Command::Xclient(rest),
        "AUTH" => Command::Auth(rest),
        "EHLO" | "HELO" | "DATA" => Command::Malformed,
        _ => Command::Unknown,
    }
}

fn path<'a>(rest: &'a str, keyword: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let head = rest.get(..keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let path = rest[keyword.len()..].trim_start().strip_prefix('<')?;
    let (address, parameters) = path.split_once('>')?;
    Some((address, parameters.split_ascii_whitespace().collect()))
}

fn bdat(rest: &str) -> Command<'_> {
    let (size, last) = match rest.split_once(' ') {
        Some((size, last)) if last.eq_ignore_ascii_case("LAST") => (size, true),
        Some(_) => return Command::Malformed,
        None => (rest, false),
    };
    size.parse().map_or(Command::Malformed, |size| Command::Bdat { size, last })
}

/// The first parameter that nothing offered covers.
pub(super) fn not_offered<'a>(parameters: &[&'a str], offered: &Extensions) -> Option<&'a str> {
    let covered = |parameter: &&&str| {
        let keyword = parameter.split('=').next().unwrap_or_default().to_ascii_uppercase();
        !match keyword.as_str() {
            "BODY" if parameter.eq_ignore_ascii_case("BODY=BINARYMIME") => false,
            "BODY" => offered.eightbitmime,
            "SMTPUTF8" => offered.smtputf8,
            "RET" | "ENVID" | "NOTIFY" | "ORCPT" => offered.dsn,
            "SIZE" => offered.size.is_some(),
            _ => false,
        }
    };
    parameters.iter().find(covered).copied()
}

/// The value of SIZE, where it is given.
pub(super) fn declared_size(parameters: &[&str]) -> Option<u64> {
    let value = |parameter: &&str| {
        let (keyword, value) = parameter.split_once('=')?;
        keyword.eq_ignore_ascii_case("SIZE").then(|| value.parse().ok()).flatten()
    };
    parameters.iter().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert_eq!(parse("ehlo a.b"), Command::Hello { extended: true, name: "a.b" });
        let parameters = vec!["BODY=8BITMIME", "SIZE=10"];
        assert_eq!(
            parse("MAIL FROM:<a@b> BODY=8BITMIME SIZE=10"),
            Command::Mail { address: "a@b", parameters }
        );
        assert_eq!(parse("mail from:<>"), Command::Mail { address: "", parameters: vec![] });
        assert_eq!(parse("RCPT TO:<>"), Command::Malformed);
        assert_eq!(parse("MAIL FROM a@b"), Command::Malformed);
        assert_eq!(parse("MAIL"), Command::Malformed);
        assert_eq!(parse("BDAT 10 last"), Command::Bdat { size: 10, last: true });
        assert_eq!(parse("BDAT 10"), Command::Bdat { size: 10, last: false });
        assert_eq!(parse("BDAT -1"), Command::Malformed);
        assert_eq!(parse("BDAT 1 2"), Command::Malformed);
        assert_eq!(parse("XYZZY"), Command::Unknown);
    }

    #[test]
    fn parameters_need_their_extension() {
        let offered = Extensions { dsn: false, size: Some(10), ..Extensions::default() };
        assert_eq!(not_offered(&["BODY=8BITMIME", "size=3", "SMTPUTF8"], &offered), None);
        assert_eq!(not_offered(&["SIZE=3", "NOTIFY=NEVER"], &offered), Some("NOTIFY=NEVER"));
        assert_eq!(not_offered(&["BODY=BINARYMIME"], &offered), Some("BODY=BINARYMIME"));
        assert_eq!(declared_size(&["BODY=7BIT", "size=3"]), Some(3));
    }
}
