//! Writing a message to an upstream in as few writes as it allows. Floor 3.

use std::time::Duration;

use wavegate_smtp::{BodyForm, stuff};

use crate::{
    body::Body,
    upstream::connection::{Commit, Connection, ConnectionError, WriteError},
};

/// Bytes read from a spill file at once.
const SEGMENT: usize = 64 * 1024;

/// Writes what the state machine has to say, `head`, the body, and what ends it. `time` bounds
/// the wait for the upstream to take each segment (RFC 5321 4.5.3.2.5).
pub(super) async fn message<C: Commit>(
    connection: &mut Connection,
    form: BodyForm,
    head: &[u8],
    body: &Body,
    commit: &mut C,
    time: Duration,
) -> Result<(), WriteError<C::Refusal>> {
    if let Some(bytes) = body.as_memory() {
        let segment = Segment { form, bytes, line_start: true, last: true };
        return segment.write(connection, head, commit, time).await;
    }
    let mut buffer = vec![0; SEGMENT];
    let (mut offset, mut line_start, mut head) = (0, true, head);
    loop {
        let count = body
            .read_full(offset, &mut buffer)
            .map_err(|error| WriteError::Broken(ConnectionError::Io(error)))?;
        let bytes = &buffer[..count];
        offset += count as u64;
        let last = offset >= body.len();
        if count == 0 && !last {
            // A spill file that is shorter than what was written into it: the disk lied. The
            // end of data must not follow.
            let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(WriteError::Broken(ConnectionError::Io(error)));
        }
        Segment { form, bytes, line_start, last }.write(connection, head, commit, time).await?;
        if last {
            return Ok(());
        }
        line_start = bytes.last() == Some(&b'\n');
        head = &[];
    }
}

struct Segment<'a> {
    form: BodyForm,
    bytes: &'a [u8],
    /// Its first byte begins a line.
    line_start: bool,
    /// It is the last one.
    last: bool,
}

impl Segment<'_> {
    async fn write<C: Commit>(
        &self,
        connection: &mut Connection,
        head: &[u8],
        commit: &mut C,
        time: Duration,
    ) -> Result<(), WriteError<C::Refusal>> {
        let mut slices = Vec::with_capacity(4);
        if !head.is_empty() {
            slices.push(head);
        }
        match self.form {
            BodyForm::Data { stuff: true } => {
                slices.extend(stuff::pieces(self.bytes, self.line_start));
            }
            BodyForm::Data { stuff: false } | BodyForm::Chunk => {
                if !self.bytes.is_empty() {
                    slices.push(self.bytes);
                }
            }
        }
        if self.last && matches!(self.form, BodyForm::Data { .. }) {
            slices.push(stuff::END);
        }
        connection.write_slices(&slices, self.last, commit, time).await
    }
}
