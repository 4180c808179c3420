//! Log lines of events. Floor 4.
//!
//! What somebody outside can cause is written at most so many times a second; the next line
//! says how many were left out, and a counter counts them. What came from outside is escaped.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use wavegate_smtp::Reply;

use crate::{
    event::{End, Event, Outcome, Refused, WaveStep},
    message::MessageId,
    plan::Timestamp,
};

/// Lines a second of one kind: enough to see what goes on, far too few to fill a disk.
const PER_SECOND: u32 = 10;
/// Characters of a value that are written: more than any reply line has (RFC 5321 4.5.3.1.5).
const VALUE: usize = 1000;

/// A loop is a mistake in the host's rules.
const LOOP: &str = "a connection of this relay came back to it and was refused: leave its user out of \
                    the rules that redirect (wavegate host rules --user)";

/// Writes events down.
#[derive(Default)]
pub(super) struct Log {
    refused: Bound,
    rejected: Bound,
    settled: Bound,
    in_doubt: Bound,
    against_plan: Bound,
    policies: Bound,
    lost: Bound,
    panics: Bound,
    ended: Bound,
    tls: Bound,
    logins: Bound,
    unreadable: Bound,
    suppressed: AtomicU64,
}

/// One line of a settled message; the level must be known when this is compiled.
macro_rules! settled {
    ($level:ident, $suppressed:expr, $event:expr) => {
        if let Event::Settled { instance, id, upstream, recipients, outcome, reply, elapsed, .. } =
            $event
        {
            tracing::$level!(
                %id,
                instance = instance.unwrap_or("-"),
                upstream = upstream.unwrap_or("-"),
                recipients,
                reply = %Clean(&reply.to_string()),
                seconds = elapsed.as_secs_f64(),
                suppressed = $suppressed,
                "{}",
                outcome.as_str()
            );
        }
    };
}

impl Log {
    /// Lines left out so far.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed.load(Relaxed)
    }

    /// A recipient that was not delivered is worth a line.
    #[allow(clippy::too_many_arguments, reason = "the fields of one event")]
    fn ended(
        &self,
        instance: Option<&str>,
        id: &MessageId,
        upstream: Option<&str>,
        recipient: &str,
        end: End,
        reply: Option<&Reply>,
        age: Duration,
    ) {
        let instance = instance.unwrap_or("-");
        let upstream = upstream.unwrap_or("-");
        let (recipient, seconds) = (Clean(recipient), age.as_secs_f64());
        let reply = reply.map(ToString::to_string).unwrap_or_default();
        let reply = Clean(&reply);
        let end = end.as_str();
        match self.admit(&self.ended) {
            Some(suppressed) if end != End::Delivered.as_str() => {
                tracing::info!(%id, instance, upstream, %recipient, %reply, seconds, suppressed, "{end}");
            }
            _ => {
                tracing::debug!(%id, instance, upstream, %recipient, %reply, seconds, "{end}");
            }
        }
    }

    /// Whoever looks for one message finds it also where a flood is left out.
    fn in_doubt(&self, instance: Option<&str>, id: &MessageId, upstream: &str, error: &str) {
        const WORDS: &str = "the upstream's reply was lost: the message may arrive twice";
        let instance = instance.unwrap_or("-");
        let error = Clean(error);
        match self.admit(&self.in_doubt) {
            Some(suppressed) => {
                tracing::warn!(%id, instance, upstream, %error, suppressed, "{WORDS}");
            }
            None => tracing::debug!(%id, instance, upstream, %error, "{WORDS}"),
        }
    }

    /// Writes an event down, if it is worth a line.
    pub(super) fn write(&self, event: &Event<'_>) {
        match event {
            Event::Settled {
                outcome: Outcome::Deferred | Outcome::Refused | Outcome::Bounced,
                ..
            } => match self.admit(&self.settled) {
                Some(suppressed) => settled!(info, suppressed, event),
                None => settled!(debug, None::<u64>, event),
            },
            // One in doubt has its own line.
            Event::Settled { .. } => settled!(debug, None::<u64>, event),
            Event::InDoubt { instance, id, upstream, error, .. } => {
                self.in_doubt(*instance, id, upstream, error);
            }
            Event::Ended { instance, id, upstream, recipient, end, reply, age, .. } => {
                self.ended(*instance, id, *upstream, recipient, *end, *reply, *age);
            }
            Event::Released { instance, messages } => {
                tracing::info!(instance, messages, "a window has ended: its mail is released");
            }
            Event::HeldTooLong { instance, messages, age } => {
                let instance = instance.unwrap_or("-");
                let hours = age.as_secs() / 3600;
                tracing::warn!(
                    instance,
                    messages,
                    hours,
                    "mail is held for too long (spool.max_hold)"
                );
            }
            Event::Unreadable { slot, error } => {
                if let Some(suppressed) = self.admit(&self.unreadable) {
                    let error = Clean(error);
                    tracing::error!(slot, %error, suppressed, "a spooled message cannot be read");
                }
            }
            Event::ReplyLost { id, delivered: true } => {
                if let Some(suppressed) = self.admit(&self.lost) {
                    tracing::warn!(
                        %id,
                        suppressed,
                        "the client did not get the reply to a delivered message: it may arrive \
                         twice"
                    );
                }
            }
            Event::ReplyLost { id, delivered: false } => {
                tracing::debug!(%id, "the client did not get the reply");
            }
            Event::ListenerOpened { listener } => tracing::debug!(listener, "a listener opens"),
            Event::ListenerClosed { listener } => tracing::info!(listener, "no longer listening"),
            Event::LinkOpened { upstream, target, gateway } => {
                tracing::debug!(upstream, %target, gateway = %Clean(gateway), "a link is connected");
            }
            Event::LinkLost { upstream, target, error } => {
                let error = Clean(error);
                tracing::warn!(upstream, %target, %error, "a connection of a link is lost");
            }
            Event::ConnectionRefused { client, reason } => {
                if let Some(suppressed) = self.admit(&self.refused) {
                    let words = match reason {
                        Refused::Loop => LOOP,
                        _ => "a client was turned away",
                    };
                    tracing::warn!(%client, reason = reason.as_str(), suppressed, "{words}");
                }
            }
            Event::TransactionRefused { client, reason } => {
                if let Some(suppressed) = self.admit(&self.refused) {
                    let reason = reason.as_str();
                    tracing::warn!(%client, reason, suppressed, "a client is to come back later");
                }
            }
            Event::SessionEnded { client, reason } => {
                tracing::debug!(%client, reason = reason.as_str(), "a session was ended");
            }
            Event::TlsFailed { listener, client, failure, error } => {
                if let Some(suppressed) = self.admit(&self.tls) {
                    let (reason, error) = (failure.as_str(), Clean(error));
                    tracing::info!(listener, %client, reason, %error, suppressed, "no TLS");
                }
            }
            Event::LoginFailed { listener, client, user, failure } => {
                if let Some(suppressed) = self.admit(&self.logins) {
                    let (reason, user) = (failure.as_str(), Clean(user));
                    tracing::warn!(listener, %client, %user, reason, suppressed, "a login failed");
                }
            }
            Event::LoggedIn { listener, client, user } => {
                tracing::debug!(listener, %client, user = %Clean(user), "a login");
            }
            Event::MessageRejected { client, fault } => {
                if let Some(suppressed) = self.admit(&self.rejected) {
                    tracing::info!(%client, %fault, suppressed, "a message was rejected");
                }
            }
            Event::AttemptRetried { upstream, error } => {
                tracing::debug!(upstream, error = %Clean(error), "an attempt is made again");
            }
            Event::RecipientVerified { upstream, id, reply } => {
                tracing::debug!(%id, upstream, %reply, "a recipient was asked about");
            }
            Event::RecipientUnverified { upstream, id, error } => {
                let error = Clean(error);
                tracing::debug!(%id, upstream, %error, "a recipient could not be asked about");
            }
            Event::Received { instance, id, recipients, size, via, .. } => {
                let instance = instance.unwrap_or("-");
                let (edge, edge_id) = via.map_or(("-", "-"), |via| (via.edge, via.id));
                tracing::trace!(%id, instance, recipients, size, edge, edge_id, "received");
            }
            Event::TlsBegun { .. }
            | Event::ConnectionOpened { .. }
            | Event::ConnectionClosed { .. }
            | Event::GateAnswered { .. } => {}
            event => self.write_trouble(event),
        }
    }

    /// What an operator should look at, and reloads.
    fn write_trouble(&self, event: &Event<'_>) {
        match event {
            Event::ProceedAgainstPlan { instance } => {
                if let Some(suppressed) = self.admit(&self.against_plan) {
                    tracing::warn!(
                        instance,
                        suppressed,
                        "a policy would let mail of a frozen instance go; it is held"
                    );
                }
            }
            Event::PolicyFailed { policy, error } => {
                if let Some(suppressed) = self.admit(&self.policies) {
                    let error = Clean(error);
                    tracing::warn!(policy, %error, suppressed, "the fail mode was applied");
                }
            }
            Event::SessionPanicked => {
                if let Some(suppressed) = self.admit(&self.panics) {
                    tracing::error!(suppressed, "a panic ended a session: please report it");
                }
            }
            Event::Wave { wave, step } => write_step(wave, step),
            Event::Ordered { wave, order, by, reason, changed } => {
                let (by, reason) = (Clean(by), Clean(reason));
                tracing::warn!(wave, order, %by, %reason, changed, "an operator ordered");
            }
            Event::ClockSuspect { apart_ms } => {
                tracing::error!(apart_ms, "the wall clock was stepped: no window ends by it");
            }
            Event::ClockAgrees => tracing::info!("the clocks agree again"),
            Event::Reloaded { generation } => {
                tracing::info!(generation, "a new generation is in force");
            }
            Event::Plugin { policy, digest, stage, why } => {
                let why = Clean(why);
                tracing::warn!(policy, digest, stage, %why, "a roll-out of a plugin");
            }
            Event::Operator { action, reason, selection, messages, recipients, refused, ids } => {
                let (reason, selection) = (Clean(reason), Clean(selection));
                let ids: Vec<&str> = ids.iter().map(MessageId::as_str).collect();
                let ids = ids.join(" ");
                tracing::warn!(
                    action, %reason, %selection, messages, recipients, refused, ids,
                    "an operator changed the queue"
                );
            }
            Event::ReloadRefused { error } => {
                // A line for each finding, whose words are those of files; the last one says what
                // follows from them all.
                for line in error.lines() {
                    let error = Clean(line);
                    if line.contains(": warning: ") {
                        tracing::warn!(%error, "found at the reload");
                    } else {
                        tracing::error!(%error, "found at the reload");
                    }
                }
                let findings = error.lines().count();
                tracing::error!(findings, "reload refused, the old one stays");
            }
            event => tracing::debug!(?event),
        }
    }

    fn admit(&self, bound: &Bound) -> Option<u64> {
        let admitted = bound.admit(Instant::now());
        if admitted.is_none() {
            self.suppressed.fetch_add(1, Relaxed);
        }
        admitted
    }
}

/// Steps of waves are few, and each is worth its line.
fn write_step(wave: &str, step: &WaveStep<'_>) {
    let name = step.as_str();
    match step {
        WaveStep::NotWritten { error } => {
            let error = Clean(error);
            tracing::error!(wave, %error, "how far waves have come cannot be written down");
        }
        WaveStep::ProbesFailed { failed, probes, first } => {
            let first = Clean(first);
            tracing::warn!(wave, failed, probes, %first, "targets do not answer as they should");
        }
        WaveStep::Blocked { uncommitted, in_doubt } => {
            tracing::warn!(wave, uncommitted, in_doubt, "attempts are still in flight");
        }
        WaveStep::Extended { until } => {
            tracing::warn!(wave, until = %Timestamp(*until), "the window is extended");
        }
        WaveStep::RolledBack { messages } => tracing::warn!(wave, messages, "{name}"),
        WaveStep::Releasing { messages } => tracing::info!(wave, messages, "{name}"),
        WaveStep::Barrier { after_ms } => tracing::info!(wave, after_ms, "{name}"),
        WaveStep::Drained { after_ms } => tracing::info!(wave, after_ms, "{name}"),
        WaveStep::Freezing { instances } => tracing::info!(wave, instances, "{name}"),
        WaveStep::Frozen | WaveStep::Checked => tracing::info!(wave, "{name}"),
        WaveStep::WasOver => {
            tracing::info!(wave, "its window was over before it was seen: it counts as migrated");
        }
    }
}

/// Lets so many through a second.
#[derive(Default)]
struct Bound(Mutex<Second>);

#[derive(Default)]
struct Second {
    began: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Bound {
    /// Whether one more may be written at `now`: with how many were left out before it.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |began| now.saturating_duration_since(began) >= Duration::from_secs(1);
        if second.began.is_none_or(over) {
            second.began = Some(now);
            second.written = 0;
        }
        if second.written == PER_SECOND {
            second.suppressed += 1;
            return None;
        }
        second.written += 1;
        Some(std::mem::take(&mut second.suppressed))
    }
}

/// Text from outside: on one line, with nothing in it that a terminal obeys, and not too long.
struct Clean<'a>(&'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for (written, character) in self.0.chars().enumerate() {
            if written == VALUE {
                return f.write_str("...");
            }
            // Line and paragraph separators, and what turns the direction of text around.
            let turns = matches!(
                character,
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            );
            if character.is_control() || turns || character == '\\' {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_a_second_and_a_count() {
        let bound = Bound::default();
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| bound.admit(start).is_some()).count();
        assert_eq!(admitted, PER_SECOND as usize);
        assert_eq!(bound.admit(start + Duration::from_millis(999)), None);
        assert_eq!(bound.admit(start + Duration::from_secs(1)), Some(991));
        assert_eq!(bound.admit(start + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn text_from_outside_cannot_make_lines_or_move_the_cursor() {
        let hostile = "550 no\r\nERROR all is lost\u{1b}[2J\u{9b}1m\u{202e}\\n\u{2028}caf\u{e9}";
        let clean = Clean(hostile).to_string();
        let expected = "550 no\\r\\nERROR all is lost\\u{1b}[2J\\u{9b}1m\\u{202e}\\\\n\\u{2028}\
                        caf\u{e9}";
        assert_eq!(clean, expected);
    }

    #[test]
    fn a_long_value_is_cut() {
        assert_eq!(Clean(&"x".repeat(VALUE)).to_string(), "x".repeat(VALUE));
        assert_eq!(Clean(&"x".repeat(VALUE + 1)).to_string(), "x".repeat(VALUE) + "...");
    }
}
