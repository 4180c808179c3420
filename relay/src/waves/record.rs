//! Lives of waves as bytes: values of the spool, one a wave. A version byte and `postcard`; what
//! is not known is refused, never guessed at.

use super::Record;

/// Values of waves have this in front of the wave's id.
const PREFIX: &[u8] = b"wave/";
/// The version that is written.
const VERSION: u8 = 1;

/// Why a life cannot be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A later version of the relay wrote it.
    #[error("written by a later version of the relay (format {0}, known is {VERSION})")]
    Version(u8),
    /// It is damaged.
    #[error("damaged")]
    Damaged,
}

/// The key that a wave's life is kept under.
pub fn key(wave: &str) -> Vec<u8> {
    [PREFIX, wave.as_bytes()].concat()
}

/// Whether a value is the life of a wave.
pub fn is_record(key: &[u8]) -> bool {
    key.starts_with(PREFIX)
}

impl Record {
    /// The bytes to write down.
    pub fn encode(&self) -> Vec<u8> {
        match postcard::to_extend(self, vec![VERSION]) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a vector takes everything: {error}"),
        }
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| RecordError::Damaged),
            Some((&version, _)) => Err(RecordError::Version(version)),
            None => Err(RecordError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan::Timestamp, waves::Stage};

    #[test]
    fn a_life_comes_back_as_it_was() {
        let record = Record {
            wave: "prod-01".into(),
            members: vec!["acme".into(), "globex".into()],
            opens: Timestamp(1_768_888_800_000),
            stage: Stage::Checked,
            barrier_at: Some(Timestamp(3)),
            completed: Some(false),
            sure: true,
            ..Record::default()
        };
        assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
        assert!(record.encode().len() < 80, "small");
        assert!(is_record(&key("prod-01")) && !is_record(b"account/prod-01"));
    }

    #[test]
    fn what_is_damaged_or_of_later_is_refused() {
        let bytes = Record::default().encode();
        for cut in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..cut]), Err(RecordError::Damaged), "{cut}");
        }
        let later = [&[2], &bytes[1..]].concat();
        assert_eq!(Record::decode(&later), Err(RecordError::Version(2)));
    }
}
