//! Waking idle sessions when the relay stops. Floor 3.
//!
//! A session that waits for its client looks whether the relay stops only when it is woken. A
//! task's waker stays the same, so each session leaves it once with its worker, and the path of
//! a message knows nothing of it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    task::{Poll, Waker},
};

thread_local! {
    static WAKERS: RefCell<HashMap<u64, Waker>> = RefCell::default();
    static NEXT: Cell<u64> = const { Cell::new(0) };
}

/// A session that will be woken. Registered on the thread that runs it.
pub(super) struct Registered(u64);

impl Registered {
    pub(super) async fn new() -> Self {
        poll_fn(|cx| {
            let number = NEXT.get();
            NEXT.set(number + 1);
            WAKERS.with_borrow_mut(|wakers| wakers.insert(number, cx.waker().clone()));
            Poll::Ready(Self(number))
        })
        .await
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // At the end of a thread its registry may be gone already.
        let _ = WAKERS.try_with(|wakers| wakers.borrow_mut().remove(&self.0));
    }
}

/// Wakes all sessions of the calling thread.
pub fn wake_all() {
    let wakers: Vec<_> = WAKERS.with_borrow(|wakers| wakers.values().cloned().collect());
    wakers.iter().for_each(Waker::wake_by_ref);
}
