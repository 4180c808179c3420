//! Putting a session under TLS. Floor 3.

use std::{future::poll_fn, sync::Arc, task::Poll};

use super::{Broken, Next, Session};
use crate::{
    budget::{self, Level},
    event::{Event, TlsFailure},
    message::Source,
    tls::Acceptor,
    world::TlsError,
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the handshake took too long (limits.tls_timeout)")]
    Late,
    #[error(transparent)]
    Tls(TlsError),
}

impl HandshakeError {
    fn failure(&self) -> TlsFailure {
        match self {
            Self::Late => TlsFailure::Timeout,
            Self::Tls(error) => error.failure(),
        }
    }
}

impl Session {
    /// What TLS sessions of the listener begin with now; nothing where memory is at its end.
    pub(super) fn acceptor(&self) -> Option<Arc<Acceptor>> {
        if self.relay.budget.level() == Level::Full {
            return None;
        }
        self.relay.look().tls.acceptor(&self.listener.name).cloned()
    }

    /// Says what is left to be said in the clear, and takes the TLS handshake. Where it fails
    /// nobody could understand another word.
    pub(super) async fn secure(&mut self, acceptor: &Acceptor) -> Result<Next, Broken> {
        self.flush().await?;
        self.tls = budget::HANDSHAKE;
        self.weigh(0);
        self.deadline.set(self.relay.look().config.limits.tls_timeout);
        let begun = self.stream.begin_server_tls(Arc::clone(&acceptor.config));
        let shaken = match begun {
            Ok(()) => {
                poll_fn(|cx| match self.stream.poll_handshake(cx) {
                    Poll::Ready(result) => Poll::Ready(result.map_err(HandshakeError::Tls)),
                    Poll::Pending => self.poll_deadline(cx).map(|_| Err(HandshakeError::Late)),
                })
                .await
            }
            Err(error) => Err(HandshakeError::Tls(error)),
        };
        let listener = &self.listener.name;
        let told = match (shaken, self.stream.secured()) {
            (Ok(()), Some(secured)) => {
                self.relay.emit(&Event::TlsBegun { listener, secured });
                self.server.secured();
                // What was said before it is forgotten (RFC 3207 4.2).
                let source = Arc::make_mut(&mut self.source);
                *source = Source { secured: Some(secured), ..source.unsaid() };
                self.tls = budget::SECURED;
                self.weigh(0);
                self.deadline.set(self.patience());
                return Ok(Next::Read);
            }
            (Ok(()), None) => unreachable!("a handshake agrees on a suite"),
            (Err(error), _) => error,
        };
        let (client, failure, error) = (self.source.client, told.failure(), &*told.to_string());
        if !self.relay.is_stopping() {
            self.relay.emit(&Event::TlsFailed { listener, client, failure, error });
        }
        Err(Broken::Gone)
    }
}
