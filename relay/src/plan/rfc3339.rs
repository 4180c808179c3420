//! Times in files for people: RFC 3339 in UTC; a number is milliseconds since 1970. For serde's
//! `with`. Floor 0.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

use super::Timestamp;

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Ms(u64),
    Text(String),
}

impl Written {
    fn read<E: Error>(self) -> Result<Timestamp, E> {
        let text = match self {
            Self::Ms(ms) => return Ok(Timestamp(ms)),
            Self::Text(text) => text,
        };
        let time: jiff::Timestamp = text.parse().map_err(|_| {
            let example = "2026-03-01T22:00:00Z";
            E::custom(format!("{text:?} is no time; write it as {example}, or in milliseconds"))
        })?;
        let ms = u64::try_from(time.as_millisecond());
        ms.map(Timestamp).map_err(|_| E::custom(format!("{text:?} is before 1970")))
    }
}

/// Writes a time; as a number what no calendar has, such as a policy's "never".
pub fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    match i64::try_from(time.0).map(jiff::Timestamp::from_millisecond) {
        Ok(Ok(_)) => to.collect_str(time),
        _ => to.serialize_u64(time.0),
    }
}

/// Reads a time.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    Written::deserialize(from)?.read()
}

/// The same for a time that may be absent.
pub mod option {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, Written};

    /// Writes a time.
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    /// Reads a time.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        Option::<Written>::deserialize(from)?.map(Written::read).transpose()
    }
}
