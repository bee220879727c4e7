//! The readiness loop: what is ready, what is left over, and which key belongs to what.
//!
//! Nothing else touches [`Poll`] or [`Events`]. What follows takes a key and a [`Readiness`], so a test can play edges
//! through [`Reactor::note`] without a socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::event::{Event, Source};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

/// The [`Waker`]'s token, outside every slab.
const WAKE: Token = Token(usize::MAX);

/// Room for so many keys is reserved at the start, and its pages stay untouched until they are used. It is more than 128 KiB,
/// which glibc maps apart from its heap, and so grows without copying (mallopt(3), `M_MMAP_THRESHOLD`).
pub(crate) const SLOTS_RESERVED: usize = 4096;

/// Likewise of each list of keys: 128 KiB. One that grew in the heap, among what comes and goes, would keep the memory below it
/// from being given back.
const KEYS_RESERVED: usize = 16 * 1024;

/// epoll(7) makes one event of all that has happened to a source; kqueue(2) makes one for each direction.
const ONE_EVENT_A_SOURCE: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// What a source may be able to do now.
///
/// A hint, as all readiness is: what `read` and `write` return is the truth ([mio: "Readiness operations"]).
///
/// [mio: "Readiness operations"]: https://docs.rs/mio/latest/mio/struct.Poll.html#readiness-operations
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent hints, named as mio names them")]
pub struct Readiness {
    /// A read may return bytes, the end of the stream, or an error.
    pub readable: bool,
    /// A write may take bytes, or return an error.
    pub writable: bool,
    /// The peer has ended its direction: behind the bytes that wait stands the end of the stream.
    pub read_closed: bool,
    /// Urgent data stands in the stream, and a read stops at it (Linux and Android alone report it).
    pub priority: bool,
}

impl Readiness {
    /// Adds what `other` reports.
    fn merge(&mut self, other: Self) {
        self.readable |= other.readable;
        self.writable |= other.writable;
        self.read_closed |= other.read_closed;
        self.priority |= other.priority;
    }
}

impl From<&Event> for Readiness {
    /// An error or a closed direction makes the source readable and writable too: the call that is tried then says which.
    fn from(event: &Event) -> Self {
        let failed = event.is_error();
        Self {
            readable: event.is_readable() || event.is_read_closed() || failed,
            writable: event.is_writable() || event.is_write_closed() || failed,
            read_closed: event.is_read_closed(),
            priority: event.is_priority(),
        }
    }
}

/// A poll, and the values registered with it, each under the key that is its [`Token`].
///
/// A turn is [`poll`](Self::poll), then [`next`](Self::next) until it answers `None`. It serves what the poll reported
/// together with those that [`resume`](Self::resume) had put on the list before it, each once.
///
/// Sources are registered edge-triggered, so an edge that is not drained is never announced again: whoever stops before
/// `WouldBlock` calls [`resume`](Self::resume).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ecoloop::{INTEREST, Reactor, Readiness};
///
/// let mut reactor = Reactor::new(64)?;
/// let listener = mio::net::TcpListener::bind("127.0.0.1:0".parse()?)?;
/// let address = listener.local_addr()?;
/// let key = reactor.insert(listener, INTEREST, |listener| listener)?;
///
/// let _client = std::net::TcpStream::connect(address)?;
/// reactor.poll(Some(Duration::from_secs(1)))?;
/// assert!(matches!(reactor.next(), Some((ready, Readiness { readable: true, .. })) if ready == key));
/// assert!(reactor.next().is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Reactor<T> {
    poll: Poll,
    events: Events,
    /// The last poll filled `events`: more may wait in the kernel.
    batch_full: bool,
    slots: Slab<Slot<T>>,
    /// The events of this turn, out of the reach of the next poll, and how many of them are served.
    batch: Vec<Event>,
    batch_served: usize,
    /// Keys on the list: first those of this turn, then those put on it since.
    list: Vec<usize>,
    list_served: usize,
    /// How many of `list` belong to this turn.
    list_share: usize,
    /// Keys whose value was removed in this turn.
    freed: Vec<usize>,
}

/// A value, or the place of one that was removed in this turn, with what was noted for it.
#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    noted: Readiness,
    listed: Listed,
}

/// Whether a key waits on the list to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    No,
    ThisTurn,
    NextTurn,
}

/// What a connection is registered for, once and for good.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
/// What a connection is registered for, once and for good.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

impl<T> Reactor<T> {
    /// Opens a poll that takes at most `events_per_turn` events a turn.
    ///
    /// # Errors
    ///
    /// - The process or the system is out of descriptors (`epoll_create1(2)`, `kqueue(2)`).
    pub fn new(events_per_turn: usize) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(events_per_turn),
            batch_full: false,
            slots: Slab::with_capacity(SLOTS_RESERVED),
            batch: Vec::with_capacity(events_per_turn),
            batch_served: 0,
            list: Vec::with_capacity(KEYS_RESERVED),
            list_served: 0,
            list_share: 0,
            freed: Vec::with_capacity(KEYS_RESERVED),
        })
    }

    /// The one waker of this poll: it ends a wait from another thread. It must live as long as the reactor.
    ///
    /// # Errors
    ///
    /// - The process or the system is out of descriptors (`eventfd(2)`).
    ///
    /// # Panics
    ///
    /// At the second call on some systems: mio allows one waker a poll.
    pub fn waker(&self) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), WAKE)
    }

    /// Registers `source`, and keeps what `wrap` makes of it under the key that is returned.
    ///
    /// # Errors
    ///
    /// - The system refuses the registration (`epoll_ctl(2)`): `source` is dropped, and no key is taken.
    pub fn insert<S: Source>(
        &mut self,
        mut source: S,
        interest: Interest,
        wrap: impl FnOnce(S) -> T,
    ) -> io::Result<usize> {
        let entry = self.slots.vacant_entry();
        let key = entry.key();
        self.poll.registry().register(&mut source, Token(key), interest)?;
        entry.insert(Slot { value: Some(wrap(source)), noted: Readiness::default(), listed: Listed::No });
        Ok(key)
    }

    /// The value under `key`, if there is one.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        self.slots.get_mut(key)?.value.as_mut()
    }

    /// Every key with its value.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.slots.iter_mut().filter_map(|(key, slot)| Some((key, slot.value.as_mut()?)))
    }

    /// Takes the value out. Its key is not used again before this turn has ended, so that no event of the batch in hand can
    /// reach a newcomer.
    ///
    /// Dropping a socket closes its descriptor, which takes it out of the poll.
    pub fn remove(&mut self, key: usize) -> Option<T> {
        let slot = self.slots.get_mut(key)?;
        let value = slot.value.take()?;
        // A key on the list is freed by `next`, when it comes to it.
        if slot.listed == Listed::No {
            self.freed.push(key);
        }
        Some(value)
    }

    /// Puts `key` on the list for the next turn, at most once.
    pub fn resume(&mut self, key: usize) {
        self.note(key, Readiness::default());
    }

    /// Adds what was reported for `key`, and puts it on the list, at most once.
    ///
    /// [`poll`](Self::poll) does this for each event; a test does it in its place.
    pub fn note(&mut self, key: usize, readiness: Readiness) {
        note(&mut self.slots, &mut self.list, key, readiness);
    }

    /// Begins a turn: waits for events, at most for `timeout`, and not at all while something is on the list.
    ///
    /// An interrupted wait makes a turn without events: mio does not retry it, and the caller may have a deadline to look at.
    ///
    /// # Errors
    ///
    /// - The poll itself fails (`epoll_wait(2)`), which no peer can cause.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.end_turn();
        let timeout = if self.has_work() { Some(Duration::ZERO) } else { timeout };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.batch.extend(self.events.iter().cloned());
        self.batch_full = self.batch.len() == self.events.capacity();
        if !ONE_EVENT_A_SOURCE {
            self.list_batch();
        }
        for &key in &self.list {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.listed = Listed::ThisTurn;
            }
        }
        self.list_share = self.list.len();
        Ok(())
    }

    /// The next key of this turn that still has a value, with all that was noted for it.
    #[expect(clippy::should_implement_trait, reason = "an iterator would borrow the reactor for the whole turn")]
    pub fn next(&mut self) -> Option<(usize, Readiness)> {
        while let Some(event) = self.batch.get(self.batch_served) {
            self.batch_served += 1;
            // The waker's key is in no slab: it ends the wait, and that is all.
            let key = event.token().0;
            if let Some(slot) = self.slots.get_mut(key)
                && slot.value.is_some()
            {
                let mut readiness = Readiness::from(event);
                if slot.listed == Listed::ThisTurn {
                    slot.listed = Listed::No;
                    readiness.merge(std::mem::take(&mut slot.noted));
                }
                return Some((key, readiness));
            }
        }
        while self.list_served < self.list_share {
            let key = self.list[self.list_served];
            self.list_served += 1;
            if let Some(slot) = self.slots.get_mut(key)
                && slot.listed == Listed::ThisTurn
            {
                slot.listed = Listed::No;
                if slot.value.is_some() {
                    return Some((key, std::mem::take(&mut slot.noted)));
                }
                self.freed.push(key);
            }
        }
        None
    }

    /// Whether there is something to do without waiting: keys on the list, or a poll that filled its batch.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.batch_full || self.list_served < self.list.len()
    }

    /// Whether the last poll brought an event, or there is something on the list.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || !self.list.is_empty()
    }

    /// Makes room for `additional` keys at once, so that the slab does not grow while they come.
    pub fn reserve(&mut self, additional: usize) {
        self.slots.reserve(additional);
    }

    /// How many keys there is room for before the slab grows.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }

    /// Ends the turn and gives back the memory of keys that are no longer used, as far as they lie at the end of the slab.
    pub fn shrink_to_fit(&mut self) {
        self.end_turn();
        self.freed.shrink_to_fit();
        self.list.shrink_to_fit();
        self.slots.shrink_to_fit();
    }

    /// Takes a source out of the poll, before it is dropped or while it lives on.
    ///
    /// # Errors
    ///
    /// - The source is not registered here (`epoll_ctl(2)`).
    pub fn deregister(&self, source: &mut impl Source) -> io::Result<()> {
        self.poll.registry().deregister(source)
    }

    /// Each step is taken only where there is something to do: they are a large part of a turn with a single event.
    fn end_turn(&mut self) {
        while let Some(key) = self.freed.pop() {
            self.slots.remove(key);
        }
        if self.list_served > 0 {
            self.list.drain(..self.list_served);
            self.list_served = 0;
        }
        // An event that the caller has not come for is not announced again.
        self.list_batch();
    }

    /// Puts on the list what is left of the batch.
    fn list_batch(&mut self) {
        for event in &self.batch[self.batch_served..] {
            note(&mut self.slots, &mut self.list, event.token().0, event.into());
        }
        self.batch.clear();
        self.batch_served = 0;
    }
}

impl<T> AsFd for Reactor<T> {
    /// The poll's descriptor: another loop can wait on it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

fn note<T>(slots: &mut Slab<Slot<T>>, list: &mut Vec<usize>, key: usize, readiness: Readiness) {
    if let Some(slot) = slots.get_mut(key)
        && slot.value.is_some()
    {
        slot.noted.merge(readiness);
        if slot.listed == Listed::No {
            slot.listed = Listed::NextTurn;
            list.push(key);
        }
    }
}

#[cfg(all(test, not(debug_assertions)))]
impl<T> Reactor<T> {
    /// Bytes of an entry of the slab, whose own enum is private: this is its like.
    pub(crate) fn entry_size() -> usize {
        #[expect(dead_code, reason = "only its size is asked for")]
        enum Entry<V> {
            Vacant(usize),
            Occupied(V),
        }
        size_of::<Entry<Slot<T>>>()
    }
}
