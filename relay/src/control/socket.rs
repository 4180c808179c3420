//! The control socket: a file that only the user of the relay can open.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net},
    path::{Path, PathBuf},
};

/// Its name in the state directory.
pub const NAME: &str = "control.sock";
/// Bytes of a path that a socket address holds (`sun_path`, with its end).
const PATH_MOST: usize = 107;
/// What stands behind the name until the socket has its mode.
const FRESH: &str = ".new";

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The state directory's path is too long.
    #[error(
        "the path of the control socket {path} is too long ({length} bytes, most are {most}): \
         choose a shorter `relay.state_dir`"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// Another process answers there.
    #[error("another process answers on the control socket {path}")]
    Taken {
        /// The path.
        path: PathBuf,
    },
    /// The machine.
    #[error("the control socket {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound control socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    socket: net::UnixListener,
}

impl Socket {
    /// Binds it. What an earlier process left is taken away, unless somebody answers there.
    pub fn bind(state_dir: &Path) -> Result<Self, SocketError> {
        Self::bind_as(NAME, state_dir)
    }

    /// The same under another name.
    pub fn bind_as(name: &str, state_dir: &Path) -> Result<Self, SocketError> {
        let path = state_dir.join(name);
        let fresh = state_dir.join(format!("{name}{FRESH}"));
        let length = path.as_os_str().len();
        let most = PATH_MOST - FRESH.len();
        if length > most {
            return Err(SocketError::TooLong { path, length, most });
        }
        if net::UnixStream::connect(&path).is_ok() {
            return Err(SocketError::Taken { path });
        }
        let bind = || {
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let socket = net::UnixListener::bind(&fresh)?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
            socket.set_nonblocking(true)?;
            // Nobody can connect before the mode is right, and the old file goes at once.
            fs::rename(&fresh, &path)?;
            Ok(socket)
        };
        match bind() {
            Ok(socket) => Ok(Self { path, socket }),
            Err(source) => Err(SocketError::Io { path, source }),
        }
    }

    /// The listener, within a runtime.
    pub(crate) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.socket.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // One that stays is taken away by the next process.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(NAME);
        // A socket file whose listener is gone.
        drop(net::UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(directory.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(net::UnixStream::connect(&path).is_ok());
        let second = Socket::bind(directory.path());
        assert!(matches!(second, Err(SocketError::Taken { .. })), "{second:?}");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_at_the_limit_is_taken_and_one_past_it_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let room = PATH_MOST - FRESH.len() - NAME.len() - 2 - directory.path().as_os_str().len();
        let (good, long) = ("d".repeat(room), "d".repeat(room + 1));
        for name in [&good, &long] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Socket::bind(&directory.path().join(good)).unwrap();
        let error = Socket::bind(&directory.path().join(long)).unwrap_err();
        assert!(matches!(error, SocketError::TooLong { length: 104, most: 103, .. }), "{error}");
        assert!(error.to_string().contains("shorter `relay.state_dir`"));
    }
}
