//! When a certificate begins and ends (RFC 5280 4.1.2.5). Own code, because nothing else of a
//! certificate is looked at here, and rustls tells of its dates only when somebody else's is
//! checked.

use std::ops::Range;

use jiff::{civil, tz::TimeZone};

use crate::plan::Timestamp;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version of a certificate, which those of X.509 v1 leave out.
const VERSION: u8 = 0xa0;

/// From its first moment to the one after its last; none where it is no certificate.
pub(super) fn of(certificate: &[u8]) -> Option<Range<Timestamp>> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (signed, _) = expect(certificate, SEQUENCE)?;
    let rest = expect(signed, VERSION).map_or(signed, |(_, rest)| rest);
    let (_serial, rest) = expect(rest, INTEGER)?;
    let (_algorithm, rest) = expect(rest, SEQUENCE)?;
    let (_issuer, rest) = expect(rest, SEQUENCE)?;
    let (validity, _) = expect(rest, SEQUENCE)?;
    let (first, rest) = element(validity)?;
    let (last, _) = element(rest)?;
    // The last second is part of it.
    Some(time(first)?..time(last)?.saturating_add_ms(1000))
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = of(&bytes);
            let heads = [SEQUENCE, 0x82, 0, 190, SEQUENCE, 0x81, 180, VERSION, 1, 0, INTEGER, 1, 7];
            for (at, head) in heads.into_iter().enumerate().take(bytes.len()) {
                bytes[at] = head;
            }
            let _ = of(&bytes);
        }
    }
}
