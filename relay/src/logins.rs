//! Logins of clients: who may try how often, and the few places where passwords are looked at.
//! Floor 3.
//!
//! Owns no wire and no reply. A look at a password takes tens of milliseconds of a processor and
//! the memory that its hash asks for, so it never happens on a thread that carries mail, and a
//! few at a time.
//!
//! Users are not part of a generation: one who was taken out stays out, whatever generation comes
//! back.

mod tries;

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use tokio::{sync::Semaphore, time::Instant};
use wavegate_smtp::Login;

use crate::{event::LoginFailure, users::ByListener};
use tries::Tries;

/// Passwords that are looked at at once: with the hashes that `wavegate users hash` makes 38 MiB,
/// with the dearest that are taken 128 MiB.
const AT_ONCE: usize = 2;
/// Clients that wait for that: with usual hashes for about a second. One more is told to come
/// back.
const WAITING: usize = 64;

/// What all listeners share of logins.
pub struct Logins {
    users: ArcSwap<ByListener>,
    tries: Mutex<Tries>,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Logins {
    fn default() -> Self {
        Self {
            users: ArcSwap::default(),
            tries: Mutex::new(Tries::new(Instant::now())),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Logins {
    /// These users count from now on. Who has logged in stays so to the end of the session.
    pub fn replace(&self, users: ByListener) {
        self.users.store(Arc::new(users));
    }

    /// Whether one more try by this client is heard now. To be asked before anything is looked
    /// at.
    pub fn may_try(&self, client: IpAddr, user: &str) -> Result<(), LoginFailure> {
        match self.tries().may(client, user, Instant::now()) {
            true => Ok(()),
            false => Err(LoginFailure::TooMany),
        }
    }

    /// A try has failed: the next ones of this client come later.
    pub fn failed(&self, client: IpAddr, user: &str) {
        self.tries().failed(client, user, Instant::now());
    }

    /// Looks the password up among the users of a listener.
    pub async fn check(&self, listener: &str, credentials: Login) -> Result<(), LoginFailure> {
        let users = self.users.load().get(listener).cloned().ok_or(LoginFailure::Unavailable)?;
        let waiting = Waiting::begin(&self.waiting).ok_or(LoginFailure::Busy)?;
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| LoginFailure::Unavailable)?;
        drop(waiting);
        let looking = tokio::task::spawn_blocking(move || {
            let right = users.verify(&credentials);
            // Only now is the memory free, whether or not somebody still waits for the answer.
            drop(place);
            right
        });
        match looking.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(LoginFailure::Credentials),
            Err(_) => Err(LoginFailure::Unavailable),
        }
    }

    fn tries(&self) -> MutexGuard<'_, Tries> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that waits for a place; counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Relaxed) < WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wavegate_smtp::Secret;

    fn login() -> Login {
        Login { user: "ada".into(), password: Secret::new(b"secret".to_vec()) }
    }

    #[tokio::test]
    async fn so_many_wait_and_one_more_is_told_to_come_back() {
        let logins = Logins::default();
        assert_eq!(logins.check("in", login()).await, Err(LoginFailure::Unavailable));
        logins.replace(ByListener::from([("in".to_owned(), Arc::default())]));
        let all = Arc::clone(&logins.places).acquire_many_owned(2).await;
        let mut line: Vec<_> =
            (0..WAITING).map(|_| Box::pin(logins.check("in", login()))).collect();
        for one in &mut line {
            assert!(futures_pending(one));
        }
        assert_eq!(logins.check("in", login()).await, Err(LoginFailure::Busy));
        // One goes away: there is room for another.
        line.pop();
        let mut other = Box::pin(logins.check("in", login()));
        assert!(futures_pending(&mut other));
        drop(all);
        // In their turn: a place is given to whoever waits longest.
        for one in line {
            assert_eq!(one.await, Err(LoginFailure::Credentials));
        }
        assert_eq!(other.await, Err(LoginFailure::Credentials));
    }

    fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut cx).is_pending()
    }
}
