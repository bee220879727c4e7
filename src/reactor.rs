//! The readiness loop: [`Poll`], a slab of values keyed by their [`Token`], and the run queue. It knows no protocol.
//!
//! The whole idea, without errors and types:
//!
//! ```text
//! fn wait(timeout) {
//!     for key in freed.drain()  { slab.remove(key) }
//!     if !run_queue.is_empty()  { timeout = 0 }
//!     reported = poll.wait(timeout)                     // the one place where the thread sleeps
//! }
//!
//! fn serve(passes, handler) {
//!     for (key, ready) in reported { serve_one(key, ready) }
//!     for pass in 1..=passes {
//!         for key in what run_queue holds now { serve_one(key, nothing new) }
//!     }
//! }
//!
//! fn serve_one(key, ready) {
//!     match handler.ready(key, slab[key], ready) {
//!         Wait     => {}                                // drained: the next edge brings the key back
//!         Again    => run_queue.push(key)               // not drained: no edge will bring it back
//!         Act(act) => handler.act(self, key, act)       // accept, close: what needs more than this value
//!     }
//! }
//!
//! fn remove(key) { freed.push(key) }                    // its events may still be among the reported ones
//! ```
//!
//! What the code below adds:
//!
//! - **Each key once a pass.** What is reported for a queued key is kept with it, until the queue reaches it.
//! - **A handler may panic.** What it was not called for is served by the next call of [`serve`](Reactor::serve).
//! - **A full batch** may leave events in the kernel, so the next wait does not sleep.
//! - **The [`Waker`]** has a token outside the slab: it ends a wait, and reaches no handler.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::event::Source;
#[cfg(not(all(any(test, fuzzing), target_os = "linux")))]
use mio::{Events, Poll};
use mio::{Interest, Token, Waker};
use slab::Slab;

use crate::error::cannot;
use crate::memory;
use crate::ready::Ready;
#[cfg(all(any(test, fuzzing), target_os = "linux"))]
use crate::simulation::{Events, Poll};

/// The [`Waker`]'s token, outside every slab.
const WAKE: Token = Token(usize::MAX);

/// Most calls of the handler in one [`Reactor::serve`] that makes more than one pass.
///
/// Under it another wait costs under 1 % of what the calls cost, and over it what is newly ready would wait for too many of them.
const CALLS_MAX: usize = 128;

/// Values that there is room for at the start. The pages of this one block cost memory only once they are used; a slab that grows from
/// nothing leaves its earlier blocks to the allocator, 10 bytes a connection at 10,000 (docs/benchmarks-tried.md).
const INITIAL_CAPACITY: usize = 4096;
/// Most bytes of that room: larger values get theirs as they come.
const INITIAL_BYTES_MAX: usize = 16 << 20;

/// Largest number of events that a wait can take.
pub(crate) const EVENTS_MAX: usize = 1 << 20;

/// What a connection is registered for, once: readable, writable and, where the system reports it, urgent data.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
/// What a connection is registered for, once: readable and writable.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// What follows when a [`Handler`] has served a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next<A> {
    /// The edge is drained: a call returned `WouldBlock`. The key is served again at its next event.
    Wait,
    /// The edge is not drained: the key is served again without an event.
    Again,
    /// The next step needs the whole reactor: [`Handler::act`] is called with this.
    Act(A),
}

/// What a [`Reactor`] calls for each key that is ready.
pub trait Handler<T> {
    /// A step that needs more than the key's own value, such as accepting or closing.
    type Act;

    /// Serves the value under `key`. `ready` is what was reported since the last call: [`Ready::NONE`] if the key was only queued.
    fn ready(&mut self, key: usize, value: &mut T, ready: Ready) -> Next<Self::Act>;

    /// Takes the step that [`ready`](Self::ready) returned. It may insert, remove and resume any key, and must not call
    /// [`wait`](Reactor::wait) or [`serve`](Reactor::serve): the pass that calls it is not over.
    fn act(&mut self, reactor: &mut Reactor<T>, key: usize, act: Self::Act) -> Next<Infallible>;
}

/// A poll, and the values registered with it, each under the key that is its [`Token`].
///
/// A turn is [`wait`](Self::wait), then [`serve`](Self::serve).
///
/// # Draining readiness
///
/// Sources are registered edge-triggered. An edge that is not drained is not reported again, so a handler that stops before
/// `WouldBlock` returns [`Next::Again`]: see [mio: "Draining readiness"].
///
/// # Keys
///
/// The key of a removed value is used again after the next [`wait`](Self::wait) or [`shrink_to_fit`](Self::shrink_to_fit) at the
/// earliest, so an event that was reported for the old value cannot reach a new one.
///
/// That holds for a removed value whose source is dropped, or deregistered, before that wait. One that stays registered calls the
/// handler for the next value of its key:
///
/// ```
/// # use ecoloop::{INTEREST, Reactor};
/// # use ecoloop::mio::net::UnixStream;
/// # let mut reactor = Reactor::new(64)?;
/// # let (stream, _peer) = UnixStream::pair()?;
/// # let key = reactor.insert(stream, INTEREST, |stream| stream)?;
/// if let Some(mut stream) = reactor.remove(key) {
///     reactor.deregister(&mut stream)?;
///     // The stream is yours, and the key is free.
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Examples
///
/// Accepts every connection that waits:
///
/// ```
/// use std::convert::Infallible;
/// use std::io::ErrorKind;
/// use std::time::Duration;
///
/// use ecoloop::mio::{Interest, net::TcpListener};
/// use ecoloop::{Handler, Next, Reactor, Ready};
///
/// struct Count(u32);
///
/// impl Handler<TcpListener> for Count {
///     type Act = Infallible;
///
///     fn ready(&mut self, _: usize, listener: &mut TcpListener, _: Ready) -> Next<Infallible> {
///         match listener.accept() {
///             Ok(_) => self.0 += 1,
///             Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
///             Err(error) => eprintln!("accept: {error}"),
///         }
///         Next::Again
///     }
///
///     fn act(&mut self, _: &mut Reactor<TcpListener>, _: usize, never: Infallible) -> Next<Infallible> {
///         match never {}
///     }
/// }
///
/// let mut reactor = Reactor::new(64)?;
/// let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
/// let address = listener.local_addr()?;
/// reactor.insert(listener, Interest::READABLE, |listener| listener)?;
///
/// let _client = std::net::TcpStream::connect(address)?;
/// let mut count = Count(0);
/// while count.0 == 0 {
///     reactor.wait(Some(Duration::from_secs(1)))?;
///     reactor.serve(1, &mut count);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [mio: "Draining readiness"]: https://docs.rs/mio/latest/mio/struct.Poll.html#draining-readiness
#[derive(Debug)]
pub struct Reactor<T> {
    poll: Poll,
    /// The events of the last wait.
    events: Events,
    /// How many of them were served, and whether any is left.
    events_served: usize,
    events_left: bool,
    /// The last wait took as many events as it could.
    batch_full: bool,
    slots: Slab<Slot<T>>,
    /// Keys to serve without an event.
    run_queue: VecDeque<usize>,
    /// Keys whose value was removed since the last wait.
    freed: Vec<usize>,
}

/// A value, or the place of one that was removed since the last wait.
#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    /// `Some` while the key is in the run queue, with what was reported for it since it was queued.
    queued: Option<Ready>,
}

impl<T> Reactor<T> {
    /// Opens a poll whose waits take at most `events_per_wait` events each.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: `events_per_wait` is 0 or above 1,048,576.
    /// - The process or the system is out of descriptors (`epoll_create1(2)`, `kqueue(2)`).
    pub fn new(events_per_wait: usize) -> io::Result<Self> {
        if !(1..=EVENTS_MAX).contains(&events_per_wait) {
            let reason = format!("events_per_wait is {events_per_wait}: it must be from 1 to {EVENTS_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(Self {
            poll: Poll::new().map_err(|error| cannot("open a poll", error))?,
            events: Events::with_capacity(events_per_wait),
            events_served: 0,
            events_left: false,
            batch_full: false,
            slots: Slab::with_capacity(INITIAL_CAPACITY.min(INITIAL_BYTES_MAX / size_of::<Slot<T>>())),
            run_queue: VecDeque::new(),
            freed: Vec::new(),
        })
    }

    /// Returns the waker, which ends a wait from another thread. Keep it as long as the reactor.
    ///
    /// # Errors
    ///
    /// - The process or the system is out of descriptors (`eventfd(2)`).
    ///
    /// # Panics
    ///
    /// At a second call, in a build with debug assertions: mio allows one waker a poll.
    pub fn waker(&self) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), WAKE).map_err(|error| cannot("open the waker of a poll", error))
    }

    /// Registers `source`, stores the value that `wrap` makes of it, and returns its key.
    ///
    /// # Errors
    ///
    /// - The system refuses the registration (`epoll_ctl(2)`).
    /// - `OutOfMemory`: there is no room for one more value, and the system has not enough memory for more.
    ///
    /// `source` is dropped then, and no key is taken.
    pub fn insert<S: Source>(
        &mut self,
        mut source: S,
        interest: Interest,
        wrap: impl FnOnce(S) -> T,
    ) -> io::Result<usize> {
        if self.slots.len() == self.slots.capacity() {
            // The slab would end the process.
            self.try_reserve(1)?;
        }
        let entry = self.slots.vacant_entry();
        let key = entry.key();
        self.poll.registry().register(&mut source, Token(key), interest)?;
        entry.insert(Slot { value: Some(wrap(source)), queued: None });
        Ok(key)
    }

    /// Returns the value under `key`, if there is one.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        self.slots.get_mut(key)?.value.as_mut()
    }

    /// Iterates over every key and its value.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.slots.iter_mut().filter_map(|(key, slot)| Some((key, slot.value.as_mut()?)))
    }

    /// Takes the value out, and frees its key at the next [`wait`](Self::wait).
    ///
    /// Its source stays registered. Drop it, which closes its descriptor and so takes it out of the poll, or
    /// [`deregister`](Self::deregister) it first if you keep it or a duplicate of its descriptor (dup(2)): until then, what it is ready
    /// for is reported for its old key.
    pub fn remove(&mut self, key: usize) -> Option<T> {
        let value = self.slots.get_mut(key)?.value.take()?;
        self.freed.push(key);
        Some(value)
    }

    /// Replaces the value under `key`. The source stays registered.
    pub(crate) fn replace(&mut self, key: usize, change: impl FnOnce(T) -> T) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.value = slot.value.take().map(change);
        }
    }

    /// Queues `key` to be served without an event, at most once.
    pub fn resume(&mut self, key: usize) {
        self.report(key, Ready::NONE);
    }

    /// Queues `key` to be served as if `ready` had been reported.
    pub(crate) fn report(&mut self, key: usize, ready: Ready) {
        let Some(Slot { value: Some(_), queued }) = self.slots.get_mut(key) else { return };
        if let Some(reported) = queued {
            *reported = *reported | ready;
        } else {
            *queued = Some(ready);
            self.run_queue.push_back(key);
        }
    }

    /// Waits for events, at most for `timeout` (`None`: without limit), and not at all while [`has_pending`](Self::has_pending).
    /// Returns whether an event was reported or a key is queued.
    ///
    /// While events of an earlier wait are left to serve, the call returns without waiting, and keeps them. An interrupted wait returns
    /// without events: mio does not retry it, and the caller may have a deadline to look at.
    ///
    /// # Errors
    ///
    /// - The poll itself fails (`epoll_wait(2)`), which no peer can cause.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        debug_assert!(self.events.capacity() > 0, "a handler must not wait");
        if self.events_left {
            return Ok(true);
        }
        if !self.freed.is_empty() {
            self.free_keys();
        }
        self.events_served = 0;
        let timeout = if self.has_pending() { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.events_left = !self.events.is_empty();
        self.batch_full = false;
        Ok(self.events_left || !self.run_queue.is_empty())
    }

    /// Serves every reported key, and up to `passes` times what the run queue holds when the pass begins; 0 is taken for 1. If the last
    /// wait took as many events as it could, there is one pass, over as many queued keys at most.
    ///
    /// Keys that are queued during a pass, by [`Next::Again`] or [`resume`](Self::resume), are served in the next pass, or in the next
    /// call. If the handler panics, the keys that it was not called for are left for the next call.
    ///
    /// # Fairness
    ///
    /// Before a key that becomes ready is served, the handler is called at most twice as often as there are other keys that are ready,
    /// or 128 times and once for each of them if that is more.
    #[inline(never)]
    pub fn serve<H: Handler<T>>(&mut self, passes: usize, handler: &mut H) {
        debug_assert!(self.events.capacity() > 0, "a handler must not serve");
        let queued = self.run_queue.len();
        let batch = Batch::take_from(self);
        let mut events = batch.events.iter();
        // After a panic of the handler. `skip` would cost every event a test.
        for _ in 0..batch.reactor.events_served {
            events.next();
        }
        for event in events {
            // At most the capacity of the batch: a check for overflow would cost a message four instructions.
            batch.reactor.events_served = batch.reactor.events_served.wrapping_add(1);
            batch.reactor.serve_one(event.token().0, event.into(), handler);
        }
        batch.reactor.events_left = false;
        drop(batch);
        self.batch_full = self.events_served == self.events.capacity();
        // More keys may be ready in the kernel: they must not wait for the whole queue at each batch.
        let queued = if self.batch_full { queued.min(self.events_served) } else { queued };
        if !self.run_queue.is_empty() {
            self.serve_queued(queued, passes, handler);
        }
    }

    /// Serves the first `queued` keys of the run queue in the first pass, and in each pass that follows all that are there.
    #[inline(never)]
    fn serve_queued<H: Handler<T>>(&mut self, mut queued: usize, passes: usize, handler: &mut H) {
        let mut calls = self.events_served + queued;
        self.serve_pass(queued, handler);
        for _ in 1..passes {
            queued = self.run_queue.len();
            calls += queued;
            if queued == 0 || self.batch_full || calls > CALLS_MAX {
                return;
            }
            self.serve_pass(queued, handler);
        }
    }

    /// Apart from the loop over the passes, whose variables would take registers that a message needs.
    #[inline(never)]
    fn serve_pass<H: Handler<T>>(&mut self, queued: usize, handler: &mut H) {
        for _ in 0..queued {
            let Some(key) = self.run_queue.pop_front() else { return };
            if let Some(ready) = self.slots.get_mut(key).and_then(|slot| slot.queued.take()) {
                self.serve_one(key, ready, handler);
            }
        }
    }

    #[expect(clippy::inline_always, reason = "as a call it costs a message a tenth more instructions")]
    #[inline(always)]
    fn serve_one<H: Handler<T>>(&mut self, key: usize, ready: Ready, handler: &mut H) {
        let Some(Slot { value: Some(value), queued }) = self.slots.get_mut(key) else { return };
        if let Some(reported) = queued {
            // Its turn comes when the queue reaches it.
            *reported = *reported | ready;
            return;
        }
        match handler.ready(key, value, ready) {
            Next::Wait => {}
            Next::Again => {
                *queued = Some(Ready::NONE);
                self.run_queue.push_back(key);
            }
            Next::Act(act) => self.act(key, act, handler),
        }
    }

    #[cold]
    fn act<H: Handler<T>>(&mut self, key: usize, act: H::Act, handler: &mut H) {
        match handler.act(self, key, act) {
            Next::Wait => {}
            Next::Again => self.resume(key),
            Next::Act(never) => match never {},
        }
    }

    /// Returns whether there is something to do without waiting: events that were not served, queued keys, or a wait that took as
    /// many events as it could, so that more may be in the kernel.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.batch_full || self.events_left || !self.run_queue.is_empty()
    }

    /// Reserves room for `additional` values, so that the slab does not grow while they are inserted.
    ///
    /// # Errors
    ///
    /// - `OutOfMemory`: the system has not enough memory.
    pub fn try_reserve(&mut self, additional: usize) -> io::Result<()> {
        // The slab has no reservation that can fail. It at least doubles, and an entry is at most a word larger than its value.
        let count = (self.slots.len().saturating_add(additional)).max(2 * self.slots.capacity());
        memory::check(count.saturating_mul(size_of::<(Slot<T>, usize)>()))?;
        self.slots.reserve(additional);
        Ok(())
    }

    /// Returns how many values there is room for before the slab grows.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// Frees the memory beyond the last key in use, and the keys of removed values, unless an event that was reported for one may be
    /// left to serve. Visits every entry of the slab.
    pub fn shrink_to_fit(&mut self) {
        let slots = &mut self.slots;
        self.run_queue.retain(|&key| slots.get(key).is_some_and(|slot| slot.value.is_some()));
        for &key in &self.freed {
            if let Some(slot) = slots.get_mut(key) {
                slot.queued = None;
            }
        }
        if !self.events_left {
            self.free_keys();
        }
        self.freed.shrink_to_fit();
        self.run_queue.shrink_to_fit();
        self.slots.shrink_to_fit();
    }

    /// Registers the source in the value under `key` again, so that what it is ready for is reported as a new edge.
    ///
    /// # Errors
    ///
    /// - The system refuses it (`epoll_ctl(2)`).
    pub(crate) fn reregister<S: Source>(
        &mut self,
        key: usize,
        interest: Interest,
        source: impl FnOnce(&mut T) -> Option<&mut S>,
    ) -> io::Result<()> {
        let value = self.slots.get_mut(key).and_then(|slot| slot.value.as_mut());
        value.and_then(source).map_or(Ok(()), |source| self.poll.registry().reregister(source, Token(key), interest))
    }

    /// Returns the number of events that the last [`wait`](Self::wait) reported.
    #[must_use]
    pub fn event_count(&self) -> usize {
        self.events.iter().count()
    }

    /// Takes a source out of the poll, before it is dropped or while it is still used.
    ///
    /// # Errors
    ///
    /// - The source is not registered here (`epoll_ctl(2)`).
    pub fn deregister(&self, source: &mut impl Source) -> io::Result<()> {
        self.poll.registry().deregister(source)
    }

    /// Frees the keys of removed values. One that is in the run queue stays until the queue has come to it.
    #[cold]
    fn free_keys(&mut self) {
        let slots = &mut self.slots;
        self.freed.retain(|&key| {
            let is_queued = slots.get(key).is_some_and(|slot| slot.queued.is_some());
            if !is_queued {
                slots.remove(key);
            }
            is_queued
        });
    }
}

/// The events of a reactor, taken out while they are served. Dropped, also by a panic of the handler, it returns them.
struct Batch<'a, T> {
    reactor: &'a mut Reactor<T>,
    events: Events,
}

impl<'a, T> Batch<'a, T> {
    fn take_from(reactor: &'a mut Reactor<T>) -> Self {
        // Without a capacity it allocates nothing.
        let events = std::mem::replace(&mut reactor.events, Events::with_capacity(0));
        Self { reactor, events }
    }
}

impl<T> Drop for Batch<'_, T> {
    fn drop(&mut self) {
        std::mem::swap(&mut self.reactor.events, &mut self.events);
    }
}

impl<T> AsFd for Reactor<T> {
    /// Returns the poll's descriptor: another loop can wait on it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

/// A source that no poll reports: a test reports its readiness.
#[cfg(any(test, fuzzing))]
pub(crate) struct Silent;

#[cfg(any(test, fuzzing))]
impl Source for Silent {
    fn register(&mut self, _: &mio::Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn reregister(&mut self, _: &mio::Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _: &mio::Registry) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, not(debug_assertions)))]
impl<T> Reactor<T> {
    /// Returns the bytes of an entry of the slab. Slab's own enum is private: this one has the same fields.
    pub(crate) fn entry_size() -> usize {
        #[expect(dead_code, reason = "only its size is asked for")]
        enum Entry<V> {
            Vacant(usize),
            Occupied(V),
        }
        size_of::<Entry<Slot<T>>>()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use mio::net::UnixStream;

    use super::*;

    /// Counts the calls of the handler. A value is whether its key is served again.
    struct Calls(usize);

    impl Handler<bool> for Calls {
        type Act = Infallible;

        fn ready(&mut self, _: usize, again: &mut bool, _: Ready) -> Next<Infallible> {
            self.0 += 1;
            if *again { Next::Again } else { Next::Wait }
        }

        fn act(&mut self, _: &mut Reactor<bool>, _: usize, never: Infallible) -> Next<Infallible> {
            match never {}
        }
    }

    #[test]
    fn after_the_first_pass_a_serve_makes_as_many_as_fit_into_128_calls() {
        for (ready, queued) in [(0, 1), (0, 3), (0, 64), (0, 65), (0, 200), (5, 1), (28, 50), (29, 50)] {
            let mut reactor = Reactor::new(64).unwrap();
            let mut open = Vec::new();
            for _ in 0..ready {
                let (near, far) = UnixStream::pair().unwrap();
                let keep = |near| {
                    open.push((near, far));
                    false
                };
                reactor.insert(near, INTEREST, keep).unwrap();
            }
            for _ in 0..queued {
                let key = reactor.insert(Silent, INTEREST, |_| true).unwrap();
                reactor.resume(key);
            }
            assert!(reactor.wait(Some(Duration::ZERO)).unwrap());
            assert_eq!(reactor.event_count(), ready);

            let mut calls = Calls(0);
            reactor.serve(1000, &mut calls);
            let passes = ((128 - ready) / queued).max(1);
            assert_eq!(calls.0, ready + passes * queued, "{ready} events, {queued} queued");
        }
    }
}
