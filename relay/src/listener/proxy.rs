//! The header by which a proxy in front of the relay says who its client is: the PROXY protocol,
//! versions 1 and 2. Floor 4.
//!
//! Owns what stands before the first byte of SMTP, and reads not a byte more. Who may say it is
//! `[[listener]] proxies`: from anybody else it is no header but a wrong command.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// How long a proxy may take for its header. It sends it at once; a lost packet costs 3 s.
const WAIT: Duration = Duration::from_secs(10);
/// The longest header of version 1, its line end included.
const V1_MAX: usize = 107;
/// The longest header of version 2. Addresses need 52 bytes; the rest is what proxies may add.
const V2_MAX: usize = 4096;
/// Every header has as many bytes: `PROXY UNKNOWN` and a line end.
const SHORTEST: usize = 15;
/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2 before its addresses: the signature, version and command, family, length.
const V2_HEAD: usize = 16;

/// Why there is no client. All but the first two are mistakes of the proxy, or of `proxies`.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It went, or the connection broke.
    #[error("the connection ended before a PROXY header was there")]
    Ended(#[source] io::Error),
    /// It took too long.
    #[error("no PROXY header came within {WAIT:?}; let the proxy send one")]
    Late,
    /// What came is none.
    #[error("what came is no PROXY header; let the proxy send one, or take it out of `proxies`")]
    None,
    /// It is longer than any.
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    /// It is one, and wrong.
    #[error("the PROXY header is wrong: {0}")]
    Wrong(&'static str),
}

/// Reads a header. None where the proxy speaks for itself (a check of its own, `LOCAL`) or does
/// not know the client by an address (`UNKNOWN`).
pub async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, HeaderError> {
    tokio::time::timeout(WAIT, read(stream)).await.unwrap_or(Err(HeaderError::Late))
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, HeaderError> {
    let mut begin = [0; SHORTEST];
    stream.read_exact(&mut begin).await.map_err(HeaderError::Ended)?;
    if begin.starts_with(SIGNATURE) {
        read_v2(stream, &begin).await
    } else if begin.starts_with(b"PROXY ") {
        read_v1(stream, &begin).await
    } else {
        Err(HeaderError::None)
    }
}

/// The rest of a line comes byte by byte: what stands behind it is not ours.
async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    begin: &[u8],
) -> Result<Option<SocketAddr>, HeaderError> {
    let mut line = Vec::with_capacity(V1_MAX);
    line.extend_from_slice(begin);
    while !line.ends_with(b"\r\n") {
        if line.len() == V1_MAX {
            return Err(HeaderError::TooLong(V1_MAX));
        }
        line.push(stream.read_u8().await.map_err(HeaderError::Ended)?);
    }
    parse_v1(&line[..line.len() - 2])
}

fn parse_v1(line: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let line = str::from_utf8(line).map_err(|_| HeaderError::Wrong("it is not ASCII"))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        // What follows is to be ignored.
        return Ok(None);
    }
    let rest: Vec<_> = words.collect();
    let &[source, destination, port, to_port] = &rest[..] else {
        return Err(HeaderError::Wrong("it has not four fields behind the family"));
    };
    let (source, _destination) = match family {
        Some("TCP4") => (ip::<Ipv4Addr>(source)?, ip::<Ipv4Addr>(destination)?),
        Some("TCP6") => (ip::<Ipv6Addr>(source)?, ip::<Ipv6Addr>(destination)?),
        _ => return Err(HeaderError::Wrong("the family is not TCP4, TCP6 or UNKNOWN")),
    };
    number(to_port)?;
    Ok(Some(SocketAddr::new(source, number(port)?)))
}

fn ip<T: FromStr + Into<IpAddr>>(text: &str) -> Result<IpAddr, HeaderError> {
    let address = text.parse::<T>();
    address.map(Into::into).map_err(|_| HeaderError::Wrong("an address is none of its family"))
}

fn number(text: &str) -> Result<u16, HeaderError> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let port = text.parse().ok().filter(|_| plain);
    port.ok_or(HeaderError::Wrong("a port is not a number from 0 to 65535"))
}

async fn read_v2(
    stream: &mut (impl AsyncRead + Unpin),
    begin: &[u8; SHORTEST],
) -> Result<Option<SocketAddr>, HeaderError> {
    let last = stream.read_u8().await.map_err(HeaderError::Ended)?;
    let [.., command, family, high] = *begin;
    let length = usize::from(u16::from_be_bytes([high, last]));
    if V2_HEAD + length > V2_MAX {
        return Err(HeaderError::TooLong(V2_MAX));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.map_err(HeaderError::Ended)?;
    parse_v2(command, family, &rest)
}

fn parse_v2(command: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    if command >> 4 != 2 {
        return Err(HeaderError::Wrong("it is neither version 1 nor 2"));
    }
    match command & 0xf {
        0 => return Ok(None),
        1 => {}
        _ => return Err(HeaderError::Wrong("the command is neither LOCAL nor PROXY")),
    }
    let short = HeaderError::Wrong("it is shorter than its addresses");
    match family {
        0x11 => {
            let Some((source, rest)) = rest.split_first_chunk::<4>() else { return Err(short) };
            let Some(&[_, _, _, _, high, low, _, _]) = rest.first_chunk::<8>() else {
                return Err(short);
            };
            Ok(Some((*source, u16::from_be_bytes([high, low])).into()))
        }
        0x21 => {
            let Some((source, rest)) = rest.split_first_chunk::<16>() else { return Err(short) };
            let Some([_destination @ .., high, low, _, _]) = rest.first_chunk::<20>() else {
                return Err(short);
            };
            Ok(Some((*source, u16::from_be_bytes([*high, *low])).into()))
        }
        // Unspecified, or a Unix socket: the client has no address.
        0x00 | 0x31 => Ok(None),
        _ => Err(HeaderError::Wrong("the family is not TCP over IPv4 or IPv6")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops where its surroundings fail")]

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{config::UpstreamIdentity, message::Source, upstream::identity::proxy_header};

    /// What becomes of these bytes, and how many stay for who reads next.
    async fn of(bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, usize) {
        let (mut near, mut far) = tokio::io::duplex(1 << 17);
        near.write_all(bytes).await.unwrap();
        drop(near);
        let said = receive(&mut far).await.map_err(|error| error.to_string());
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        (said, rest.len())
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    fn some(text: &str) -> Result<Option<SocketAddr>, String> {
        Ok(Some(text.parse().unwrap()))
    }

    #[tokio::test]
    async fn version_1() {
        for (header, client) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\r\n", some("192.0.2.7:56324")),
            ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", some("255.255.255.255:65535")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 1 25\r\n", some("[2001:db8::7]:1")),
            ("PROXY UNKNOWN\r\n", Ok(None)),
            ("PROXY UNKNOWN ff:: whatever 1\r\n", Ok(None)),
        ] {
            assert_eq!(of(format!("{header}EHLO x\r\n").as_bytes()).await, (client, 8), "{header}");
        }
    }

    #[tokio::test]
    async fn version_2_with_what_proxies_add() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 0, 25];
        let mut six = [0_u8; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        (six[15], six[33]) = (7, 1);
        let added = [&four[..], &[0x04, 0, 2, 1, 2]].concat();
        for (header, client) in [
            (v2(0x21, 0x11, &four), some("192.0.2.7:56324")),
            (v2(0x21, 0x11, &added), some("192.0.2.7:56324")),
            (v2(0x21, 0x21, &six), some("[2001:db8::7]:1")),
            (v2(0x20, 0x00, &[]), Ok(None)),
            (v2(0x20, 0x11, &four), Ok(None)),
            (v2(0x21, 0x31, &[b'/'; 216]), Ok(None)),
            (v2(0x21, 0x11, &[0; V2_MAX - V2_HEAD]), some("0.0.0.0:0")),
        ] {
            let whole = [&header[..], b"EHLO x\r\n"].concat();
            assert_eq!(of(&whole).await, (client, 8), "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn wrong_ones() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 0, 25];
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(V1_MAX));
        for (header, said) in [
            (&b"EHLO client.example\r\n"[..], "no PROXY header"),
            (b"proxy TCP4 192.0.2.7 198.51.100.1 1 25\r\n", "no PROXY header"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", "four fields"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 25 \r\n", "four fields"),
            (b"PROXY TCP4  192.0.2.7 198.51.100.1 1 25\r\n", "four fields"),
            (b"PROXY UDP4 192.0.2.7 198.51.100.1 1 25\r\n", "the family"),
            (b"PROXY TCP4 2001:db8::7 198.51.100.1 1 25\r\n", "an address"),
            (b"PROXY TCP4 192.0.2.7 198.51.100 1 25\r\n", "an address"),
            (b"PROXY TCP6 192.0.2.7 2001:db8::7 1 25\r\n", "an address"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 25\r\n", "a port"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 +25\r\n", "a port"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 01 25\r\n", "a port"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1  25\r\n", "a port"),
            (b"PROXY TCP4 192.0.2.7\xff 198.51.100.1 1 25\r\n", "not ASCII"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 25\n", "ended before"),
            (long.as_bytes(), "longer than 107 bytes"),
            (&v2(0x11, 0x11, &four), "neither version"),
            (&v2(0x2f, 0x11, &four), "neither LOCAL nor PROXY"),
            (&v2(0x21, 0x12, &four), "the family"),
            (&v2(0x21, 0x11, &four[..11]), "shorter"),
            (&v2(0x21, 0x21, &[0; 35]), "shorter"),
            (&v2(0x21, 0x11, &[0; V2_MAX - V2_HEAD + 1]), "longer than 4096 bytes"),
            (&v2(0x21, 0x11, &four)[..27], "ended before"),
            (b"PROXY", "ended before"),
            (b"", "ended before"),
        ] {
            let error = of(header).await.0.unwrap_err();
            assert!(error.contains(said), "{}: {error}", header.escape_ascii());
        }
    }

    proptest::proptest! {
        /// What upstreams are told is what is read here.
        #[test]
        fn our_own_headers_are_read_as_they_were_meant(
            client: IpAddr,
            port: u16,
            target: SocketAddr,
            destination: Option<SocketAddr>,
        ) {
            let source = SocketAddr::new(client, port);
            let source = Source { destination, ..Source::new(source, "listener-1") };
            let meant = SocketAddr::new(client.to_canonical(), port);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.unwrap();
            for way in [UpstreamIdentity::ProxyV1, UpstreamIdentity::ProxyV2] {
                for (source, read) in [(Some(&source), Some(meant)), (None, None)] {
                    let header = proxy_header(way, source, target);
                    let whole = [&header[..], b"EHLO x\r\n"].concat();
                    proptest::prop_assert_eq!(runtime.block_on(of(&whole)), (Ok(read), 8));
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_says_nothing_is_not_waited_for_long() {
        let (mut near, mut far) = tokio::io::duplex(64);
        near.write_all(b"PROXY TCP4 ").await.unwrap();
        let begun = tokio::time::Instant::now();
        assert!(matches!(receive(&mut far).await, Err(HeaderError::Late)));
        assert_eq!(begun.elapsed(), WAIT);
    }
}
