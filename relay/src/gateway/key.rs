//! The key of a gateway, by which peers learn at once that its process is another one.
//!
//! A process that has no memory of a connection answers its packets with a stateless reset (RFC
//! 9000 10.3), whose token follows from a key and the connection's id. The key outlives the
//! process, so an edge need not wait for its idle time-out when a gateway was started anew. Each
//! worker has its own, derived from that: a token must never come from one that shares a key with
//! the one that has the connection (RFC 9000 21.11).

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig,
    crypto::{CryptoError, HmacKey},
};

/// Bytes of what follows from the key.
const SIGNATURE: usize = 32;
/// Bytes of a connection's id.
const ID: usize = 8;

/// The key.
#[derive(Clone, Copy)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The one in a directory, which is made if it is not there.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("key");
        let mut key = [0; 32];
        match fs::File::open(&path) {
            Ok(mut file) => {
                if file.read_exact(&mut key).is_ok() {
                    return Ok(Self(key));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::create_dir_all(directory)?;
        getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(&key)?;
        Ok(Self(key))
    }

    /// What a worker's endpoint is made with.
    pub(super) fn endpoint(self, worker: usize) -> EndpointConfig {
        let own = blake3::keyed_hash(&self.0, &(worker as u64).to_be_bytes());
        let mut config = EndpointConfig::new(Arc::new(Signing(*own.as_bytes())));
        config.cid_generator(|| Box::new(Ids));
        config
    }
}

/// Makes the tokens.
struct Signing([u8; 32]);

impl HmacKey for Signing {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        let hash = blake3::keyed_hash(&self.0, data);
        out.copy_from_slice(&hash.as_bytes()[..out.len()]);
    }

    fn signature_len(&self) -> usize {
        SIGNATURE
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature: &[u8; SIGNATURE] = signature.try_into().map_err(|_| CryptoError)?;
        // Compared in constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Makes ids. Any would do; they are ours because those that QUIC makes by itself follow from a key
/// that dies with the process, and packets with ids of an earlier one would not be answered.
struct Ids;

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID];
        // Without randomness ids would meet, and QUIC asks for another one then.
        let _ = getrandom::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
