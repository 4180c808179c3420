//! Commands that a client sends.
//!
//! Owns their syntax: from one line without its CRLF to a value, and which
//! parameters fit the extensions offered. Owns no state of the session, so
//! nothing here knows whether a command comes at the right time.
//!
//! Floor 0.

use std::fmt;

use crate::address::{self, Address, AddressError, ReversePath};
use crate::extensions::{Extension, Extensions};
use crate::params::{self, BodyType, Notify, Ret};
use crate::reply::{Enhanced, Reply};

/// MAIL: the sender and what holds for the whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The sender.
    pub sender: ReversePath,
    /// SIZE as declared (RFC 1870).
    pub size: Option<u64>,
    /// BODY as declared (RFC 6152).
    pub body: Option<BodyType>,
    /// SMTPUTF8 was declared (RFC 6531).
    pub smtputf8: bool,
    /// RET (RFC 3461).
    pub ret: Option<Ret>,
    /// ENVID, still as xtext (RFC 3461).
    pub envid: Option<Box<str>>,
}

impl Mail {
    /// A sender without parameters.
    pub fn new(sender: ReversePath) -> Mail {
        Mail { sender, size: None, body: None, smtputf8: false, ret: None, envid: None }
    }
}

/// RCPT: one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rcpt {
    /// The recipient.
    pub recipient: Address,
    /// NOTIFY (RFC 3461).
    pub notify: Option<Notify>,
    /// ORCPT, still as xtext (RFC 3461).
    pub orcpt: Option<Box<str>>,
}

impl Rcpt {
    /// A recipient without parameters.
    pub fn new(recipient: Address) -> Rcpt {
        Rcpt { recipient, notify: None, orcpt: None }
    }
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO or EHLO with the client's name.
    Helo {
        /// EHLO.
        extended: bool,
        /// As the client gave it: printable ASCII without spaces.
        name: &'a str,
    },
    /// MAIL.
    Mail(Mail),
    /// RCPT.
    Rcpt(Rcpt),
    /// DATA.
    Data,
    /// BDAT: the size of the chunk that follows, and whether it is the last.
    Bdat(u64, bool),
    /// RSET.
    Rset,
    /// NOOP, whatever follows it.
    Noop,
    /// VRFY.
    Vrfy,
    /// EXPN.
    Expn,
    /// HELP.
    Help,
    /// QUIT.
    Quit,
    /// STARTTLS.
    StartTls,
    /// AUTH, with its arguments.
    Auth(Hidden<'a>),
    /// XCLIENT, with its arguments.
    Xclient(&'a [u8]),
    /// A request of HTTP.
    Http,
}

/// Bytes that may hold a password, so that nobody is shown them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hidden<'a>(pub(crate) &'a [u8]);

impl fmt::Debug for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

/// What is wrong with a command; the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such command, or bytes that no command has.
    #[error("not a command")]
    Unrecognised,
    /// Bytes that no command has.
    #[error("bytes that no command has")]
    Bytes,
    /// Arguments that the command does not have, or none where it needs one.
    #[error("wrong arguments")]
    Arguments,
    /// A sender that is none.
    #[error("bad sender address: {0}")]
    Sender(AddressError),
    /// A recipient that is none.
    #[error("bad recipient address: {0}")]
    Recipient(AddressError),
    /// An address beyond ASCII without SMTPUTF8 (RFC 6531 3.5).
    #[error("a non-ASCII address without SMTPUTF8")]
    NeedsUtf8,
    /// A parameter that was not offered (RFC 5321 4.1.1.11).
    #[error("a parameter that is not offered")]
    UnknownParameter,
    /// A parameter with a bad value, or given twice.
    #[error("a parameter with a bad value")]
    BadParameter,
    /// BDAT of which nobody knows what follows.
    #[error("malformed BDAT")]
    Bdat,
}

impl CommandError {
    /// The answer to it.
    pub fn reply(self) -> &'static Reply {
        static UNRECOGNISED: Reply = Reply::fixed(500, Enhanced(5, 5, 2), "Command not recognised");
        static BYTES: Reply =
            Reply::fixed(500, Enhanced(5, 5, 2), "Command with bytes that are not allowed");
        static ARGUMENTS: Reply = Reply::fixed(501, Enhanced(5, 5, 4), "Bad arguments");
        static SENDER: Reply = Reply::fixed(501, Enhanced(5, 1, 7), "Bad sender address");
        static RECIPIENT: Reply = Reply::fixed(501, Enhanced(5, 1, 3), "Bad recipient address");
        static UTF8: Reply = Reply::fixed(501, Enhanced(5, 5, 2), "Address is not UTF-8");
        static NEEDS_UTF8: Reply =
            Reply::fixed(553, Enhanced(5, 6, 7), "Non-ASCII address without SMTPUTF8");
        static UNKNOWN: Reply =
            Reply::fixed(555, Enhanced(5, 5, 4), "Parameter not recognised or not offered");
        static BAD: Reply = Reply::fixed(501, Enhanced(5, 5, 4), "Bad parameter value");
        static BDAT: Reply = Reply::fixed(521, Enhanced(5, 5, 4), "Malformed BDAT, closing");
        match self {
            CommandError::Unrecognised => &UNRECOGNISED,
            CommandError::Bytes => &BYTES,
            CommandError::Arguments => &ARGUMENTS,
            CommandError::Sender(AddressError::NotUtf8)
            | CommandError::Recipient(AddressError::NotUtf8) => &UTF8,
            CommandError::Sender(_) => &SENDER,
            CommandError::Recipient(_) => &RECIPIENT,
            CommandError::NeedsUtf8 => &NEEDS_UTF8,
            CommandError::UnknownParameter => &UNKNOWN,
            CommandError::BadParameter => &BAD,
            CommandError::Bdat => &BDAT,
        }
    }
}

/// Reads one line without its CRLF. `smtputf8` says whether the transaction
/// that is open declared it.
///
/// # Errors
/// If it is not a command, or one with something wrong in it.
pub fn parse<'a>(
    line: &'a [u8],
    offered: &Extensions,
    smtputf8: bool,
) -> Result<Command<'a>, CommandError> {
    let (verb, arguments) = match line.iter().position(|byte| *byte == b' ') {
        Some(at) => (&line[..at], line[at..].trim_ascii()),
        None => (line, &b""[..]),
    };
    // BDAT first: whatever is wrong with it, nobody knows what follows it.
    if verb.eq_ignore_ascii_case(b"BDAT") && offered.has(Extension::Chunking) {
        return bdat(arguments);
    }
    let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
    if line.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
        return Err(CommandError::Bytes);
    }
    let paths = is("MAIL") || is("RCPT");
    let may_be_wide = paths && offered.has(Extension::SmtpUtf8);
    if !(may_be_wide || line.is_ascii()) {
        return Err(CommandError::Bytes);
    }
    if is("MAIL") {
        return mail(arguments, offered).map(Command::Mail);
    } else if is("RCPT") {
        return rcpt(arguments, offered, smtputf8).map(Command::Rcpt);
    }
    let bare = |command| match arguments {
        [] => Ok(command),
        _ => Err(CommandError::Arguments),
    };
    match verb.to_ascii_uppercase().as_slice() {
        b"EHLO" => helo(arguments, true),
        b"HELO" => helo(arguments, false),
        b"DATA" => bare(Command::Data),
        b"RSET" => bare(Command::Rset),
        b"QUIT" => bare(Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"VRFY" => Ok(Command::Vrfy),
        b"EXPN" => Ok(Command::Expn),
        b"HELP" => Ok(Command::Help),
        b"STARTTLS" => bare(Command::StartTls),
        b"AUTH" => Ok(Command::Auth(Hidden(arguments))),
        b"XCLIENT" => Ok(Command::Xclient(arguments)),
        b"GET" | b"POST" | b"CONNECT" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"PATCH"
        | b"TRACE" | b"PRI" => Ok(Command::Http),
        _ => Err(CommandError::Unrecognised),
    }
}

fn helo(arguments: &[u8], extended: bool) -> Result<Command<'_>, CommandError> {
    let valid = matches!(arguments.len(), 1..=255) && !arguments.contains(&b' ');
    match std::str::from_utf8(arguments) {
        Ok(name) if valid => Ok(Command::Helo { extended, name }),
        _ => Err(CommandError::Arguments),
    }
}

/// `BDAT 86 LAST` (RFC 3030 2).
fn bdat(arguments: &[u8]) -> Result<Command<'static>, CommandError> {
    let (number, last) = match arguments.iter().position(|byte| *byte == b' ') {
        None => (arguments, false),
        Some(at) if arguments[at..].trim_ascii_start().eq_ignore_ascii_case(b"LAST") => {
            (&arguments[..at], true)
        }
        Some(_) => return Err(CommandError::Bdat),
    };
    // A size that does not fit is malformed: it must never wrap around.
    let size = Some(number)
        .filter(|digits| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .ok_or(CommandError::Bdat)?;
    Ok(Command::Bdat(size, last))
}

/// What follows `FROM:` or `TO:`. Spaces behind the colon are not in the
/// grammar but common.
fn path_of<'a>(arguments: &'a [u8], keyword: &[u8]) -> Result<&'a [u8], CommandError> {
    match arguments.split_at_checked(keyword.len()) {
        Some((word, rest)) if word.eq_ignore_ascii_case(keyword) => Ok(rest.trim_ascii_start()),
        _ => Err(CommandError::Arguments),
    }
}

fn mail(arguments: &[u8], offered: &Extensions) -> Result<Mail, CommandError> {
    let path = path_of(arguments, b"FROM:")?;
    let (sender, rest) = address::reverse_path(path).map_err(CommandError::Sender)?;
    let mut mail = Mail::new(sender);
    let mut auth = None;
    for parameter in parameters(rest)? {
        let (keyword, value) = parameter?;
        let is = |name: &str| keyword.eq_ignore_ascii_case(name);
        if is("SIZE") && offered.size().is_some() {
            set(&mut mail.size, params::size(required(value)?))?;
        } else if is("BODY") && offered.has(Extension::EightBitMime) {
            set(&mut mail.body, BodyType::parse(required(value)?))?;
        } else if is("SMTPUTF8") && offered.has(Extension::SmtpUtf8) {
            if value.is_some() || mail.smtputf8 {
                return Err(CommandError::BadParameter);
            }
            mail.smtputf8 = true;
        } else if is("RET") && offered.has(Extension::Dsn) {
            set(&mut mail.ret, Ret::parse(required(value)?))?;
        } else if is("ENVID") && offered.has(Extension::Dsn) {
            let value = required(value)?;
            set(&mut mail.envid, params::is_envid(value).then(|| value.into()))?;
        } else if is("AUTH") && offered.has(Extension::Auth) {
            // RFC 4954 5: as if it were `<>`, which is what is not said onwards.
            set(&mut auth, params::is_auth(required(value)?).then_some(()))?;
        } else {
            return Err(CommandError::UnknownParameter);
        }
    }
    if !mail.smtputf8 && !mail.sender.is_ascii() {
        return Err(CommandError::NeedsUtf8);
    }
    Ok(mail)
}

fn rcpt(arguments: &[u8], offered: &Extensions, smtputf8: bool) -> Result<Rcpt, CommandError> {
    let path = path_of(arguments, b"TO:")?;
    let (recipient, rest) = address::forward_path(path).map_err(CommandError::Recipient)?;
    let mut rcpt = Rcpt::new(recipient);
    for parameter in parameters(rest)? {
        let (keyword, value) = parameter?;
        let is = |name: &str| keyword.eq_ignore_ascii_case(name);
        if is("NOTIFY") && offered.has(Extension::Dsn) {
            set(&mut rcpt.notify, Notify::parse(required(value)?))?;
        } else if is("ORCPT") && offered.has(Extension::Dsn) {
            let value = required(value)?;
            let valid = params::is_orcpt(value) && (smtputf8 || value.is_ascii());
            set(&mut rcpt.orcpt, valid.then(|| value.into()))?;
        } else {
            return Err(CommandError::UnknownParameter);
        }
    }
    if !smtputf8 && !rcpt.recipient.is_ascii() {
        return Err(CommandError::NeedsUtf8);
    }
    Ok(rcpt)
}

type Parameter<'a> = (&'a str, Option<&'a str>);

/// `KEYWORD=value` and `KEYWORD`, parted by spaces (RFC 5321 4.1.2).
fn parameters(
    text: &[u8],
) -> Result<impl Iterator<Item = Result<Parameter<'_>, CommandError>>, CommandError> {
    if !matches!(text.first(), None | Some(b' ')) {
        return Err(CommandError::Arguments);
    }
    let words = text.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    Ok(words.map(|word| {
        let word = std::str::from_utf8(word).map_err(|_| CommandError::Bytes)?;
        Ok(match word.split_once('=') {
            Some((keyword, value)) => (keyword, Some(value)),
            None => (word, None),
        })
    }))
}

fn required(value: Option<&str>) -> Result<&str, CommandError> {
    value.ok_or(CommandError::BadParameter)
}

/// Sets a parameter once; `None` is a value that does not fit.
fn set<T>(parameter: &mut Option<T>, value: Option<T>) -> Result<(), CommandError> {
    if parameter.is_some() || value.is_none() {
        return Err(CommandError::BadParameter);
    }
    *parameter = value;
    Ok(())
}
