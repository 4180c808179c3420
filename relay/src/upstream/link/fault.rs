//! What goes wrong between the relay and a gateway, and what that says of it. Floor 2.

use std::{io, sync::Arc, time::Duration};

use quinn::{ConnectionError as Lost, ReadError, VarInt, WriteError};
use wavegate_link::{Code, LinkError};
use wavegate_smtp::Unsupported;

/// Why a connection or a stream was of no use. Can be told to all that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkFault {
    /// Our own: there is no socket to send from.
    #[error("no UDP socket: {0}")]
    Socket(Arc<io::Error>),
    /// Our own: certificate and key of `link` are not there.
    #[error("its certificates could not be loaded")]
    NoIdentity,
    /// Our own: it could not even be begun.
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    /// The connection is over.
    #[error("{}", lost(.0))]
    Lost(#[from] Lost),
    /// The gateway does not answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The gateway does not keep to the protocol.
    #[error("it does not keep to the protocol: {0}")]
    Protocol(#[from] LinkError),
    /// The gateway gave up one message.
    #[error("it gave the message up: {}", code(*.0))]
    Reset(VarInt),
    /// The gateway takes no more of one message.
    #[error("it takes no more of the message: {}", code(*.0))]
    Stopped(VarInt),
    /// The gateway has begun anew and does not take such a message any more.
    #[error("it does not take the message any more: {0}")]
    Unsupported(#[from] Unsupported),
    /// Whoever was connecting has ended.
    #[error("nobody connects any more")]
    Abandoned,
}

impl LinkFault {
    /// Whether nobody answers there: no more can be expected of a message that is sent now.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Late(_) | Self::Lost(Lost::TimedOut))
    }

    /// Whether the gateway does not want us any more: it would not let us in again.
    pub fn is_dismissal(&self) -> bool {
        let Self::Lost(Lost::ApplicationClosed(close)) = self else { return false };
        close.error_code == VarInt::from_u32(Code::NotTrusted.number())
    }
}

impl From<ReadError> for LinkFault {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code),
            ReadError::ConnectionLost(lost) => Self::Lost(lost),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Lost(Lost::LocallyClosed),
        }
    }
}

impl From<WriteError> for LinkFault {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Stopped(code),
            WriteError::ConnectionLost(lost) => Self::Lost(lost),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Lost(Lost::LocallyClosed)
            }
        }
    }
}

/// The name of a code; the number of one that has none.
fn code(number: VarInt) -> String {
    let number = number.into_inner();
    Code::of(number).map_or_else(|| format!("code {number}"), |code| code.as_str().to_owned())
}

fn lost(error: &Lost) -> String {
    match error {
        // Its words are not shown: there is no saying what is in them.
        Lost::ApplicationClosed(close) => {
            format!("the gateway closed the connection: {}", code(close.error_code))
        }
        Lost::TimedOut => "nothing is heard of it any more".to_owned(),
        Lost::Reset => "the gateway does not know the connection any more".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_by_name() {
        let reset = LinkFault::Reset(VarInt::from_u32(Code::Busy.number()));
        assert_eq!(reset.to_string(), "it gave the message up: busy");
        let unknown = LinkFault::Stopped(VarInt::from_u32(77));
        assert_eq!(unknown.to_string(), "it takes no more of the message: code 77");
        assert!(LinkFault::Lost(Lost::TimedOut).is_silence() && !reset.is_silence());
    }
}
