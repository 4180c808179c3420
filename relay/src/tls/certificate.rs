//! What of certificates and lists of revoked ones is looked at here: when they begin and end, whose
//! they are, and their key (RFC 5280 4.1, 5.1). Own code, because rustls tells of these only when
//! somebody else's certificate is checked, or not at all.
//!
//! It judges nothing: what it says of a certificate that nobody has checked is a claim.

use std::ops::Range;

use jiff::{civil, tz::TimeZone};

use crate::plan::Timestamp;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version of a certificate, which those of X.509 v1 leave out.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// A host name among alternative ones (RFC 5280 4.2.1.6).
const DNS_NAME: u8 = 0x82;
/// 2.5.29.17, subjectAltName.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// From its first moment to the one after its last; none where it is no certificate.
pub(super) fn validity(certificate: &[u8]) -> Option<Range<Timestamp>> {
    let (validity, _) = expect(before_validity(certificate)?, SEQUENCE)?;
    let (first, rest) = element(validity)?;
    let (last, _) = element(rest)?;
    // The last second is part of it.
    Some(time(first)?..time(last)?.saturating_add_ms(1000))
}

/// Its SubjectPublicKeyInfo with tag and length, as pins are made of it (RFC 7469 2.4).
pub(super) fn key(certificate: &[u8]) -> Option<&[u8]> {
    let from = before_key(certificate)?;
    let (_, rest) = expect(from, SEQUENCE)?;
    from.get(..from.len() - rest.len())
}

/// The first host name that it is for.
pub(super) fn host(certificate: &[u8]) -> Option<&str> {
    let (_key, mut rest) = expect(before_key(certificate)?, SEQUENCE)?;
    // Before the extensions stand at most two ids that nobody uses.
    let extensions = loop {
        let ((tag, content), following) = element(rest)?;
        if tag == EXTENSIONS {
            break content;
        }
        rest = following;
    };
    let (mut extensions, _) = expect(extensions, SEQUENCE)?;
    while !extensions.is_empty() {
        let (extension, following) = expect(extensions, SEQUENCE)?;
        extensions = following;
        let (object, rest) = expect(extension, OBJECT)?;
        if object != ALTERNATIVE_NAMES {
            continue;
        }
        let rest = expect(rest, BOOLEAN).map_or(rest, |(_critical, rest)| rest);
        let (value, _) = expect(rest, OCTET_STRING)?;
        let (mut names, _) = expect(value, SEQUENCE)?;
        while !names.is_empty() {
            let ((tag, name), following) = element(names)?;
            if tag == DNS_NAME {
                return str::from_utf8(name).ok();
            }
            names = following;
        }
        return None;
    }
    None
}

/// Who has made a list of revoked certificates, as a trust anchor names itself, and when the next
/// one is due.
pub(super) fn list(list: &[u8]) -> Option<(&[u8], Timestamp)> {
    let (list, _) = expect(list, SEQUENCE)?;
    let (signed, _) = expect(list, SEQUENCE)?;
    let (_version, rest) = expect(signed, INTEGER)?;
    let (_algorithm, rest) = expect(rest, SEQUENCE)?;
    let (issuer, rest) = expect(rest, SEQUENCE)?;
    let (_made, rest) = element(rest)?;
    let (due, _) = element(rest)?;
    Some((issuer, time(due)?))
}

fn before_validity(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (signed, _) = expect(certificate, SEQUENCE)?;
    let rest = expect(signed, VERSION).map_or(signed, |(_, rest)| rest);
    let (_serial, rest) = expect(rest, INTEGER)?;
    let (_algorithm, rest) = expect(rest, SEQUENCE)?;
    let (_issuer, rest) = expect(rest, SEQUENCE)?;
    Some(rest)
}

fn before_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_validity, rest) = expect(before_validity(certificate)?, SEQUENCE)?;
    let (_subject, rest) = expect(rest, SEQUENCE)?;
    Some(rest)
}

/// A tag and its content.
type Element<'a> = (u8, &'a [u8]);

/// The content of an element with this tag, and what follows it.
fn expect(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let ((found, content), rest) = element(input)?;
    (found == tag).then_some((content, rest))
}

/// The first element, and what follows it (X.690 8.1).
fn element(input: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let [tag, length, rest @ ..] = input else { return None };
    let (length, rest) = match usize::from(*length) {
        short @ ..=0x7f => (short, rest),
        // 0x80, whose length is not known, is not DER.
        long @ 0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(long - 0x80)?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(((*tag, content), rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time((tag, text): Element<'_>) -> Option<Timestamp> {
    let text = text.strip_suffix(b"Z")?;
    let pairs: Option<Vec<i8>> = text.chunks(2).map(two_digits).collect();
    let (year, rest) = match (tag, &pairs?[..]) {
        // Up to 49 it is of this century.
        (UTC_TIME, [year, rest @ ..]) if *year < 50 => (2000 + i16::from(*year), rest.to_vec()),
        (UTC_TIME, [year, rest @ ..]) => (1900 + i16::from(*year), rest.to_vec()),
        (GENERALIZED_TIME, [century, year, rest @ ..]) => {
            (i16::from(*century) * 100 + i16::from(*year), rest.to_vec())
        }
        _ => return None,
    };
    let [month, day, hour, minute, second] = rest[..] else { return None };
    let at = civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    // The last day of 9999, which stands for no end, is a day too late for the library.
    let at = at.to_zoned(TimeZone::UTC).map_or(jiff::Timestamp::MAX, |at| at.timestamp());
    let at = at.as_millisecond();
    // What began before 1970 is valid since 1970.
    Some(Timestamp(u64::try_from(at).unwrap_or(0)))
}

fn two_digits(pair: &[u8]) -> Option<i8> {
    let [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = pair else { return None };
    i8::try_from((tens - b'0') * 10 + (ones - b'0')).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use ct_codecs::{Base64, Decoder as _};
    use proptest::prelude::*;

    use super::*;

    fn at(tag: u8, text: &str) -> Option<String> {
        time((tag, text.as_bytes())).map(|time| time.to_string())
    }

    #[test]
    fn both_forms_of_time_are_read() {
        assert_eq!(at(UTC_TIME, "491231235959Z").unwrap(), "2049-12-31T23:59:59Z");
        assert_eq!(at(UTC_TIME, "700101000000Z").unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(at(UTC_TIME, "500101000000Z").unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(at(GENERALIZED_TIME, "20500101000000Z").unwrap(), "2050-01-01T00:00:00Z");
        // RFC 5280 4.1.2.5: no well-defined end.
        let end = time((GENERALIZED_TIME, b"99991231235959Z")).unwrap();
        assert!(end > Timestamp(253_402_000_000_000), "{end}");
        for wrong in ["", "Z", "2050010100000Z", "20501301000000Z", "20500101000000", "2050-1-01Z"]
        {
            assert_eq!(at(GENERALIZED_TIME, wrong), None, "{wrong}");
        }
        assert_eq!(at(0x13, "20500101000000Z"), None);
    }

    fn of_pem(text: &str) -> Vec<u8> {
        let lines = text.lines().filter(|line| !line.starts_with('-'));
        Base64::decode_to_vec(lines.collect::<String>(), None).unwrap()
    }

    const EDGE: &str = include_str!("../../tests/link/edge.pem");
    const CRL: &str = include_str!("../../tests/link/old-crl.pem");

    #[test]
    fn names_and_lists_are_read() {
        // A mail address goes before it, another host name follows.
        assert_eq!(host(&of_pem(EDGE)), Some("Edge-1.example"));
        assert_eq!(host(&of_pem(include_str!("../../tests/link/nameless.pem"))), None);
        let crl = of_pem(CRL);
        let (issuer, due) = list(&crl).unwrap();
        assert_eq!(due.to_string(), "2021-01-01T00:00:00Z");
        assert!(issuer.ends_with(b"Link authority"));
        assert_eq!(list(&of_pem(EDGE)), None);
        assert_eq!(validity(&of_pem(CRL)), None);
    }

    fn all(bytes: &[u8]) {
        let _ = (validity(bytes), key(bytes), host(bytes), list(bytes));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            all(&bytes);
            let heads = [SEQUENCE, 0x82, 0, 190, SEQUENCE, 0x81, 180, VERSION, 1, 0, INTEGER, 1, 7];
            for (at, head) in heads.into_iter().enumerate().take(bytes.len()) {
                bytes[at] = head;
            }
            all(&bytes);
        }

        #[test]
        fn nor_do_real_ones_that_were_changed(
            which in 0..2,
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = of_pem(if which == 0 { EDGE } else { CRL });
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            all(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            all(&bytes);
        }
    }
}
