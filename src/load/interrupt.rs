//! Ends runs from another thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mio::Waker;

/// Ends one or several runs early, from any thread. Each reports what it has measured until then.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    is_set: AtomicBool,
    /// The wakers of the runs that are not over.
    wakers: Mutex<Vec<Weak<Waker>>>,
}

impl Interrupt {
    /// Ends the runs.
    pub fn set(&self) {
        // Before the wake: a run looks for it after its wait.
        self.0.is_set.store(true, Ordering::Release);
        for waker in self.wakers().iter().filter_map(Weak::upgrade) {
            // If it fails, the run sees the flag when it next wakes up, after at most 0.1 s.
            let _ = waker.wake();
        }
    }

    /// Returns whether the runs were told to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// Registers the waker of a run.
    pub(super) fn register(&self, waker: &Arc<Waker>) {
        let mut wakers = self.wakers();
        wakers.retain(|waker| waker.strong_count() > 0);
        wakers.push(Arc::downgrade(waker));
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Weak<Waker>>> {
        // The list is whole even if a thread panicked while it held the lock.
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::*;

    #[test]
    fn an_interrupt_wakes_every_run_that_is_not_over() {
        let interrupt = Interrupt::default();
        let register = || {
            let poll = Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
            interrupt.register(&waker);
            (poll, waker)
        };
        let mut runs = vec![register()];
        drop(register());
        runs.push(register());
        assert_eq!(interrupt.wakers().len(), 2, "a run that is over leaves nothing behind");
        assert!(!interrupt.is_set());
        interrupt.set();
        assert!(interrupt.is_set());
        for (poll, _) in &mut runs {
            let mut events = Events::with_capacity(1);
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert_eq!(events.iter().map(mio::event::Event::token).collect::<Vec<_>>(), [Token(0)]);
        }
    }
}
