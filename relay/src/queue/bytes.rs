//! The bytes of a message on their way into the spool, never copied together.

use std::sync::Arc;

use wavegate_spool::NewBody;

use crate::{parcel::Message, spool::part};

/// The bytes of a message as the spool takes them. A spool in memory cannot take a real file.
pub(super) fn body_of(message: &Arc<Message>, in_memory: bool) -> NewBody {
    /// The body of a message, where it is in memory.
    struct InMemory(Arc<Message>);
    impl AsRef<[u8]> for InMemory {
        fn as_ref(&self) -> &[u8] {
            self.0.parcel.body.as_memory().unwrap_or_default()
        }
    }
    struct Head(Arc<Message>);
    impl AsRef<[u8]> for Head {
        fn as_ref(&self) -> &[u8] {
            &self.0.head
        }
    }
    let file = message.parcel.body.as_file();
    if let Some(path) = file
        && in_memory
        && let Ok(body) = std::fs::read(path)
    {
        return NewBody::Parts(vec![part(Head(Arc::clone(message))), part(body)]);
    }
    match file {
        Some(path) => NewBody::File {
            path: path.to_owned(),
            head: message.head.clone(),
            len: message.parcel.body.len(),
        },
        None => NewBody::Parts(vec![
            part(Head(Arc::clone(message))),
            part(InMemory(Arc::clone(message))),
        ]),
    }
}
