//! The window as a reader's clock shows it. Owns the arithmetic; the words are the languages'.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, Time},
    tz::{Offset, TimeZone},
};

/// From when to when nothing is sent; never empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    opens: Timestamp,
    closes: Timestamp,
}

/// A window in one time zone.
pub(crate) struct Range {
    pub(crate) from: Side,
    pub(crate) to: Side,
    /// The zone's offset differs between the ends, so each end says its own.
    pub(crate) shifts: bool,
}

/// One end of it.
pub(crate) struct Side {
    pub(crate) date: Date,
    pub(crate) time: Time,
    /// What stands behind the time: ` (CET, UTC+1)`, ` UTC`; empty where the other end says it.
    pub(crate) zone: String,
}

/// A language's own name of a zone, from its IANA name and its abbreviation.
pub(crate) type ZoneName = fn(&str, &str) -> Option<&'static str>;

impl Window {
    pub(crate) fn new(opens: Timestamp, closes: Timestamp) -> Option<Self> {
        (opens < closes).then_some(Self { opens, closes })
    }

    pub(crate) fn opens(&self) -> Timestamp {
        self.opens
    }

    pub(crate) fn closes(&self) -> Timestamp {
        self.closes
    }

    pub(crate) fn length(&self) -> SignedDuration {
        self.closes.duration_since(self.opens)
    }

    pub(crate) fn range(&self, zone: &TimeZone, name: ZoneName) -> Range {
        let (mut from, to) = (Side::of(self.opens, zone, name), Side::of(self.closes, zone, name));
        let shifts = zone.to_offset(self.opens) != zone.to_offset(self.closes);
        if !shifts {
            from.zone.clear();
        }
        Range { from, to, shifts }
    }
}

impl Range {
    pub(crate) fn within_a_day(&self) -> bool {
        self.from.date == self.to.date
    }
}

impl Side {
    fn of(at: Timestamp, zone: &TimeZone, name: ZoneName) -> Self {
        let local = at.to_zoned(zone.clone());
        Self { date: local.date(), time: local.time(), zone: zone_label(at, zone, name) }
    }
}

/// The zone says the same as UTC by name, so that nothing need be said twice.
pub(crate) fn is_utc(zone: &TimeZone, at: Timestamp) -> bool {
    let info = zone.to_offset_info(at);
    info.offset() == Offset::UTC && info.abbreviation() == "UTC"
}

fn zone_label(at: Timestamp, zone: &TimeZone, name: ZoneName) -> String {
    if is_utc(zone, at) {
        return " UTC".to_owned();
    }
    let info = zone.to_offset_info(at);
    let offset = offset_label(info.offset());
    let abbreviation = info.abbreviation();
    let named = name(zone.iana_name().unwrap_or_default(), abbreviation);
    // Zones without an established abbreviation have digits for one ("-03"), which the offset says.
    let lettered = abbreviation.bytes().all(|byte| byte.is_ascii_alphabetic());
    match named.or(lettered.then_some(abbreviation)) {
        Some(named) => format!(" ({named},\u{a0}{offset})"),
        None => format!(" ({offset})"),
    }
}

fn offset_label(offset: Offset) -> String {
    let seconds = offset.seconds();
    let (sign, minutes) = (if seconds < 0 { '−' } else { '+' }, seconds.abs() / 60);
    match minutes % 60 {
        0 => format!("UTC{sign}{}", minutes / 60),
        rest => format!("UTC{sign}{}:{rest:02}", minutes / 60),
    }
}

/// What a language calls the units, each as (one, many), and what it puts before the last.
pub(crate) struct Units {
    pub(crate) day: (&'static str, &'static str),
    pub(crate) hour: (&'static str, &'static str),
    pub(crate) minute: (&'static str, &'static str),
    pub(crate) and: &'static str,
}

impl Units {
    /// "1 hour 5 minutes". Begun minutes count: who waits is told too long rather than too short.
    pub(crate) fn duration(&self, duration: SignedDuration) -> String {
        let seconds = duration.as_secs() + i64::from(duration.subsec_nanos() > 0);
        let minutes = (seconds + 59) / 60;
        let parts: Vec<String> = [
            (minutes / 1440, self.day),
            (minutes % 1440 / 60, self.hour),
            (minutes % 60, self.minute),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, (one, many))| format!("{count}\u{a0}{}", if count == 1 { one } else { many }))
        .collect();
        match parts.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, first)) => format!("{}{}{last}", first.join(" "), self.and),
            None => format!("0\u{a0}{}", self.minute.1),
        }
    }
}
