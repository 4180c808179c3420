//! Faults that the sink plays: at which command, which time, what happens.
//!
//! Owns their syntax (`STAGE:WHEN=ACTION`) and the counting; the session carries them out.
//! Floor: none (pure but for the counters).

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where in a session a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Instead of the greeting.
    Connect,
    /// At EHLO or HELO.
    Ehlo,
    /// At MAIL.
    Mail,
    /// At each RCPT.
    Rcpt,
    /// At the DATA command, or the first BDAT of a message.
    Data,
    /// When the first content bytes have come.
    Body,
    /// At the end of the content.
    End,
    /// At QUIT.
    Quit,
}

/// How many [`Stage`]s there are.
const STAGES: usize = 8;

/// Which occurrences of a stage are meant, counted from 1 over all sessions of a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every one (`*`).
    Always,
    /// The n-th only (`n`).
    At(u64),
    /// The n-th and all that follow (`n+`).
    From(u64),
    /// Every n-th (`%n`).
    Every(u64),
}

/// What happens instead of the normal answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// This reply. A code alone gets a text of its own; 421 also closes (RFC 5321 3.8).
    Reply(String),
    /// The connection is closed without a reply.
    Close,
    /// No reply ever; the connection stays open.
    Silent,
    /// The normal answer, so much later.
    Delay(Duration),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub stage: Stage,
    /// Which time.
    pub when: When,
    /// What.
    pub action: Action,
}

impl FromStr for Fault {
    type Err = String;

    /// For instance `rcpt:2=550`, `end:%10=451 4.3.0 later`, `mail:*=close`, `end:3+=silent`,
    /// `ehlo:1=delay 200`.
    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("{text:?} is not STAGE:WHEN=ACTION, such as rcpt:2=550");
        let (place, action) = text.split_once('=').ok_or_else(shape)?;
        let (stage, when) = place.split_once(':').ok_or_else(shape)?;
        Ok(Self {
            stage: parse_stage(stage)?,
            when: parse_when(when)?,
            action: parse_action(action)?,
        })
    }
}

fn parse_stage(text: &str) -> Result<Stage, String> {
    Ok(match text {
        "connect" => Stage::Connect,
        "ehlo" => Stage::Ehlo,
        "mail" => Stage::Mail,
        "rcpt" => Stage::Rcpt,
        "data" => Stage::Data,
        "body" => Stage::Body,
        "end" => Stage::End,
        "quit" => Stage::Quit,
        _ => {
            return Err(format!(
                "{text:?} is no stage; connect, ehlo, mail, rcpt, data, body, end, quit are"
            ));
        }
    })
}

fn parse_when(text: &str) -> Result<When, String> {
    let number = |digits: &str| match digits.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{text:?} is not *, N, N+ or %N with N from 1")),
    };
    if text == "*" {
        Ok(When::Always)
    } else if let Some(n) = text.strip_prefix('%') {
        Ok(When::Every(number(n)?))
    } else if let Some(n) = text.strip_suffix('+') {
        Ok(When::From(number(n)?))
    } else {
        Ok(When::At(number(text)?))
    }
}

fn parse_action(text: &str) -> Result<Action, String> {
    let bad = || format!("{text:?} is not a reply code from 200, close, silent or delay MILLIS");
    match text {
        "close" => return Ok(Action::Close),
        "silent" => return Ok(Action::Silent),
        _ => {}
    }
    if let Some(millis) = text.strip_prefix("delay ") {
        return Ok(Action::Delay(Duration::from_millis(millis.parse().map_err(|_| bad())?)));
    }
    let bytes = text.as_bytes();
    let coded =
        matches!(bytes, [b'2'..=b'5', b, c, ..] if b.is_ascii_digit() && c.is_ascii_digit());
    match bytes.get(3) {
        None if coded => Ok(Action::Reply(format!("{text} fault"))),
        Some(b' ' | b'-') if coded => Ok(Action::Reply(text.to_owned())),
        _ => Err(bad()),
    }
}

/// The rules in force, with their counters.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<Fault>,
    seen: [AtomicU64; STAGES],
}

impl Faults {
    pub(super) fn new(rules: Vec<Fault>) -> Self {
        Self { rules, seen: Default::default() }
    }

    /// Counts one occurrence of `stage` and gives what the first rule that fits it says.
    pub(super) fn strike(&self, stage: Stage) -> Option<Action> {
        if self.rules.is_empty() {
            return None;
        }
        let n = self.seen[stage as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let fits = |fault: &&Fault| {
            fault.stage == stage
                && match fault.when {
                    When::Always => true,
                    When::At(at) => n == at,
                    When::From(from) => n >= from,
                    When::Every(every) => n.is_multiple_of(every),
                }
        };
        self.rules.iter().find(fits).map(|fault| fault.action.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop here")]
    use super::*;

    #[test]
    fn rules_are_read() {
        let fault: Fault = "rcpt:2=550".parse().unwrap();
        assert_eq!(
            fault,
            Fault {
                stage: Stage::Rcpt,
                when: When::At(2),
                action: Action::Reply("550 fault".into())
            }
        );
        let action = |text: &str| text.parse::<Fault>().unwrap().action;
        assert_eq!(action("end:*=451 4.3.0 later"), Action::Reply("451 4.3.0 later".into()));
        assert_eq!(action("quit:3+=close"), Action::Close);
        assert_eq!(action("ehlo:%5=delay 20"), Action::Delay(Duration::from_millis(20)));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "end", "end:1", "end:0=451", "end:x=451", "foo:1=451", "end:1=99", "end:1=4510"]
        {
            text.parse::<Fault>().expect_err(text);
        }
    }

    #[test]
    fn the_right_occurrences_are_struck() {
        let struck = |rule: &str| {
            let faults = Faults::new(vec![rule.parse().unwrap()]);
            (1..=6).filter(|_| faults.strike(Stage::End).is_some()).count()
        };
        assert_eq!([struck("end:*=451"), struck("end:2=451"), struck("end:2+=451")], [6, 1, 5]);
        assert_eq!([struck("end:%2=451"), struck("mail:*=451")], [3, 0]);
    }
}
