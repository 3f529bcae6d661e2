//! Publication of immutable values from the control runtime to the workers: the only file that names `arc_swap`.
//!
//! One writer publishes whole values; readers see the old one or the new one, never a mixture. A worker holds a
//! [`Reader`], whose `current` costs one atomic load while nothing has changed. What it hands out is a [`Held`]: a
//! worker-local handle whose clone is not atomic, so that requests of different workers never share a cache line.
//!
//! It keeps no history and knows nothing of what is published.

use std::{ops::Deref, rc::Rc, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// A value that is replaced as a whole. Clones are handles of the same value.
pub struct Shared<T> {
    value: Arc<ArcSwap<T>>,
    generation: watch::Sender<u64>,
}

/// A worker's view of a [`Shared`].
pub struct Reader<T> {
    value: Arc<ArcSwap<T>>,
    held: Held<T>,
}

/// One published value, kept by a worker for as long as a request or connection needs it.
#[expect(
    clippy::redundant_allocation,
    reason = "the outer count is the worker's own; the inner one is contended"
)]
pub struct Held<T>(Rc<Arc<T>>);

/// Wakes once for any number of publications since the last time.
pub struct Changes(watch::Receiver<u64>);

// === impl Shared ===

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self { value: Arc::new(ArcSwap::from_pointee(value)), generation: watch::Sender::new(0) }
    }

    /// Replaces the value. What readers already hold stays alive until they let go of it.
    pub fn publish(&self, value: impl Into<Arc<T>>) {
        self.value.store(value.into());
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// How often it was replaced.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// The value as of now, for code off the hot path.
    pub fn load(&self) -> Arc<T> {
        self.value.load_full()
    }

    pub fn reader(&self) -> Reader<T> {
        Reader { value: Arc::clone(&self.value), held: Held(Rc::new(self.value.load_full())) }
    }

    /// Publications from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.generation.subscribe())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), generation: self.generation.clone() }
    }
}

// === impl Reader ===

impl<T> Reader<T> {
    /// The newest value. Ask once per request and pass the answer down, so that its parts agree.
    pub fn current(&mut self) -> &Held<T> {
        // A guard protects the pointer without touching the reference count; it is gone before anything can await.
        let newest = self.value.load();
        if !Arc::ptr_eq(&newest, &self.held.0) {
            self.held = Held(Rc::new(Arc::clone(&newest)));
        }
        drop(newest);
        &self.held
    }
}

// === impl Held ===

impl<T> Held<T> {
    /// For code that must outlive the worker's thread.
    pub fn to_arc(&self) -> Arc<T> {
        Arc::clone(&self.0)
    }

    /// Whether both are the same publication.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

// === impl Changes ===

impl Changes {
    /// Waits for a publication. Pending for ever once every [`Shared`] of the value is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_reader_sees_each_publication_and_old_values_stay_whole() {
        let shared = Shared::new(1);
        let mut reader = shared.reader();
        let first = reader.current().clone();
        assert!(first.same(reader.current()));
        shared.publish(2);
        let second = reader.current().clone();
        assert_eq!((*first, *second, *shared.load()), (1, 2, 2));
        assert!(!first.same(&second));
    }

    #[test]
    fn values_are_never_mixed_under_a_storm_of_updates() {
        let shared = Shared::new((0_u64, 0_u64));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                let shared = shared.clone();
                let stop = &stop;
                scope.spawn(move || {
                    let mut reader = shared.reader();
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let value: (u64, u64) = **reader.current();
                        assert_eq!(value.0 * 2, value.1);
                        assert!(value.0 >= last, "time runs forward");
                        last = value.0;
                    }
                });
            }
            for n in 1..20_000 {
                shared.publish((n, n * 2));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[tokio::test]
    async fn changes_wake_once_for_many() {
        let shared = Shared::new(0);
        let mut changes = shared.changes();
        assert!(changes.changed().now_or_never().is_none());
        shared.publish(1);
        shared.publish(2);
        changes.changed().await;
        assert!(changes.changed().now_or_never().is_none());
    }
}
