//! The envelope of a message: everything that is known of it but its content. Floor 0.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use wavegate_smtp::{
    Extension, Extensions, Mail, Rcpt,
    client::envelope_lines,
    command::{Command, parse},
};

use crate::{
    LinkError,
    frame::{Kind, Put, Values, frame},
    limits,
};

/// Where a message came from, as the edge knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client's address.
    pub address: IpAddr,
    /// Its port; 0 where nobody knows it.
    pub port: u16,
    /// Its host name; empty where nobody knows it.
    pub name: String,
    /// What it called itself.
    pub helo: String,
    /// Whether that was by EHLO.
    pub extended: bool,
    /// The TLS suite that it spoke under, by the place in the relay's list, and whether the session
    /// was resumed.
    pub secured: Option<(u8, bool)>,
    /// Who it has logged in as; empty where it has not.
    pub user: String,
    /// Where it wanted to go, before it was redirected.
    pub destination: Option<SocketAddr>,
}

/// An envelope, to be sent.
#[derive(Clone, Copy, Debug)]
pub struct EnvelopeRef<'a, R> {
    /// The edge's id of the message, the same whenever it is sent.
    pub id: [u8; 16],
    /// When the edge received it, in milliseconds since 1970.
    pub received: u64,
    /// Bytes of its content.
    pub size: u64,
    /// Its instance; empty for none.
    pub instance: &'a str,
    /// Where it came from.
    pub client: &'a Client,
    /// The sender.
    pub mail: &'a Mail,
    /// The recipients, at least one.
    pub recipients: R,
}

/// An envelope that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The edge's id of the message, the same whenever it is sent.
    pub id: [u8; 16],
    /// When the edge received it, in milliseconds since 1970.
    pub received: u64,
    /// Bytes of its content.
    pub size: u64,
    /// Its instance; empty for none.
    pub instance: String,
    /// Where it came from.
    pub client: Client,
    /// The sender.
    pub mail: Mail,
    /// The recipients, at least one.
    pub recipients: Vec<Rcpt>,
}

mod flag {
    pub(super) const EXTENDED: u8 = 1;
    pub(super) const SECURED: u8 = 2;
    pub(super) const RESUMED: u8 = 4;
    pub(super) const DESTINATION: u8 = 8;
    pub(super) const ALL: u8 = EXTENDED | SECURED | RESUMED | DESTINATION;
}

impl<'a, R: IntoIterator<Item = &'a Rcpt> + Clone> EnvelopeRef<'a, R> {
    /// Appends its frame. `offered` is what the gateway takes; what it does not take must have been
    /// found out before (`wavegate_smtp::client::check_support`).
    ///
    /// # Errors
    /// If it is longer than a frame may be, or could not be read; nothing is appended then.
    pub fn write(&self, offered: &Extensions, out: &mut Vec<u8>) -> Result<(), LinkError> {
        if !self.id.iter().all(u8::is_ascii_alphanumeric) {
            return Err(LinkError::Value("the id"));
        }
        if self.recipients.clone().into_iter().next().is_none() {
            return Err(LinkError::Value("a list of no recipients"));
        }
        let at = out.len();
        let mut lines = at;
        frame(Kind::Envelope, out, |out| lines = self.write_content(offered, out))?;
        let may_be_wide = self.mail.smtputf8 && offered.has(Extension::SmtpUtf8);
        if !may_be_wide && !out[lines..].is_ascii() {
            out.truncate(at);
            return Err(LinkError::Value("an address beyond ASCII"));
        }
        Ok(())
    }

    /// Where its lines begin.
    fn write_content(&self, offered: &Extensions, out: &mut Vec<u8>) -> usize {
        let Client { address, port, name, helo, extended, secured, user, destination } =
            self.client;
        out.extend_from_slice(&self.id);
        out.put_u64(self.received);
        out.put_u64(self.size);
        out.put_text(self.instance);
        put_address(*address, out);
        out.put_u16(*port);
        let is_resumed = secured.is_some_and(|(_, resumed)| resumed);
        let flags = [
            (*extended, flag::EXTENDED),
            (secured.is_some(), flag::SECURED),
            (is_resumed, flag::RESUMED),
            (destination.is_some(), flag::DESTINATION),
        ];
        out.push(flags.into_iter().filter(|(has, _)| *has).map(|(_, flag)| flag).sum());
        out.push(secured.map_or(0, |(suite, _)| suite));
        [name, helo, user].into_iter().for_each(|text| out.put_text(text));
        if let Some(destination) = destination {
            put_address(destination.ip(), out);
            out.put_u16(destination.port());
        }
        let count = self.recipients.clone().into_iter().count();
        out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
        let lines = out.len();
        envelope_lines(self.mail, self.recipients.clone(), self.size, offered, out);
        lines
    }
}

impl Envelope {
    /// Reads a frame's content. `recipients` bounds how many there may be.
    ///
    /// # Errors
    /// If it is not as it should be.
    pub fn read(content: &[u8], recipients: u32) -> Result<Self, LinkError> {
        let mut values = Values::new(Kind::Envelope, content);
        let id: [u8; 16] = values.array()?;
        if !id.iter().all(u8::is_ascii_alphanumeric) {
            return Err(LinkError::Value("the id"));
        }
        let (received, size) = (values.u64()?, values.u64()?);
        let instance = values.text("the instance")?.to_owned();
        let client = read_client(&mut values)?;
        let count = values.u32()?;
        if count == 0 {
            return Err(LinkError::Value("a list of no recipients"));
        }
        if count > recipients {
            let (length, most) = (u64::from(count), u64::from(recipients));
            return Err(LinkError::TooLarge { what: "a list of recipients", length, most });
        }
        let (mail, recipients) = read_lines(values.rest(), count)?;
        // It is said twice where SMTP has SIZE: who looks at one must not see another.
        if mail.size.is_some_and(|said| said != size) {
            return Err(LinkError::Value("SIZE"));
        }
        Ok(Self { id, received, size, instance, client, mail, recipients })
    }
}

fn read_client(values: &mut Values<'_>) -> Result<Client, LinkError> {
    let address = address(values)?;
    let (port, flags) = (values.u16()?, values.flags(flag::ALL, "the client's flags")?);
    let has = |flag| flags & flag != 0;
    let suite = values.u8()?;
    if !has(flag::SECURED) && (has(flag::RESUMED) || suite != 0) {
        return Err(LinkError::Value("TLS of a client without"));
    }
    let mut text = |what| values.text(what).map(str::to_owned);
    let (name, helo, user) = (text("a host name")?, text("HELO")?, text("a user")?);
    let destination = match has(flag::DESTINATION) {
        true => Some(SocketAddr::new(self::address(values)?, values.u16()?)),
        false => None,
    };
    let secured = has(flag::SECURED).then(|| (suite, has(flag::RESUMED)));
    let extended = has(flag::EXTENDED);
    Ok(Client { address, port, name, helo, extended, secured, user, destination })
}

/// `MAIL` and each `RCPT`, as SMTP has them.
fn read_lines(text: &[u8], count: u32) -> Result<(Mail, Vec<Rcpt>), LinkError> {
    let wrong = LinkError::Value("a line of the envelope");
    let offered = Extensions::full(0);
    // Each ends with CRLF. A CR or LF elsewhere is in none: `parse` takes no control characters.
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').map(|line| {
        line.strip_suffix(b"\r\n").filter(|line| line.len() <= limits::LINE).ok_or(wrong)
    });
    let first = lines.next().ok_or(wrong)??;
    let Ok(Command::Mail(mail)) = parse(first, &offered, false) else { return Err(wrong) };
    // No more is reserved than what is there could hold.
    let mut recipients = Vec::with_capacity((count as usize).min(text.len() / 8));
    for line in lines {
        match parse(line?, &offered, mail.smtputf8) {
            Ok(Command::Rcpt(rcpt)) if recipients.len() < count as usize => recipients.push(rcpt),
            _ => return Err(wrong),
        }
    }
    if recipients.len() == count as usize { Ok((mail, recipients)) } else { Err(wrong) }
}

fn put_address(address: IpAddr, out: &mut Vec<u8>) {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    out.extend_from_slice(&address.octets());
}

fn address(values: &mut Values<'_>) -> Result<IpAddr, LinkError> {
    values.array().map(|octets: [u8; 16]| IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}
