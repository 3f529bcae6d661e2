//! Between the workers, who never wait, and the one task that sends: as many as there may be, and no more.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

/// Takes memory as it is needed, and gives it back with each batch.
#[derive(Debug)]
pub struct Queue<T> {
    most: usize,
    batch: usize,
    /// Boxed, so that little is moved while it is locked: a batch of spans would be a quarter of a megabyte.
    items: Mutex<VecDeque<Box<T>>>,
    /// There is enough for a batch, or nothing more will come.
    enough: Notify,
    closed: AtomicBool,
}

impl<T> Queue<T> {
    pub fn new(most: usize, batch: usize) -> Self {
        Self { most, batch, items: Mutex::default(), enough: Notify::new(), closed: AtomicBool::new(false) }
    }

    /// `false`: it is full.
    pub fn push(&self, item: T) -> bool {
        let item = Box::new(item);
        let mut items = self.items();
        if items.len() >= self.most {
            return false;
        }
        items.push_back(item);
        let enough = items.len() == self.batch;
        drop(items);
        // Only then: waking the other thread for each would cost this one a system call.
        if enough {
            self.enough.notify_one();
        }
        true
    }

    /// Those that have gathered after `delay`, or as soon as they are enough. Empty: none came, or none will come.
    pub async fn batch(&self, delay: Duration) -> Vec<T> {
        if self.waiting() < self.batch && !self.is_closed() {
            tokio::select! {
                () = sleep(delay) => {}
                () = self.enough.notified() => {}
            }
        }
        let mut items = self.items();
        let count = items.len().min(self.batch);
        let rest = items.split_off(count);
        let taken = mem::replace(&mut *items, rest);
        drop(items);
        taken.into_iter().map(|item| *item).collect()
    }

    /// Ends the wait for more.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
        self.enough.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Waits for [`Queue::close`], for whoever is not waiting for a batch.
    pub async fn closed(&self) {
        while !self.is_closed() {
            self.enough.notified().await;
        }
    }

    pub fn waiting(&self) -> usize {
        self.items().len()
    }

    fn items(&self) -> MutexGuard<'_, VecDeque<Box<T>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn batches_come_when_they_are_full_or_late() {
        let queue = Queue::new(5, 2);
        assert_eq!((0..7).filter(|n| queue.push(*n)).count(), 5, "the newest are dropped");
        let began = tokio::time::Instant::now();
        let delay = Duration::from_secs(5);
        assert_eq!(queue.batch(delay).await, [0, 1]);
        assert_eq!(queue.batch(delay).await, [2, 3]);
        assert_eq!(began.elapsed(), Duration::ZERO);
        // That there were enough once is remembered, and ends one wait too early: nothing is lost by that.
        let mut rest = queue.batch(delay).await;
        if rest.is_empty() {
            rest = queue.batch(delay).await;
        }
        assert_eq!(rest, [4]);
        assert!(queue.batch(delay).await.is_empty());
        assert!(began.elapsed() >= delay);
        queue.push(7);
        queue.close();
        let before = tokio::time::Instant::now();
        assert_eq!(queue.batch(delay).await, [7]);
        queue.closed().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
