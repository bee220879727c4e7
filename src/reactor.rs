//! The readiness loop: what is ready, what is left over, and which key belongs to what.
//!
//! Nothing else touches [`Poll`] or [`Events`]: what follows takes a key and a [`Readiness`], which a test can play without a
//! socket.

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

impl From<&Event> for Readiness {
    /// An error or a closed direction makes the source readable and writable too: the call that is tried then says which.
    #[expect(clippy::inline_always, reason = "so that the hints are not packed into a word, and unpacked again")]
    #[inline(always)]
    fn from(event: &Event) -> Self {
        Self {
            readable: event.is_readable() || event.is_read_closed() || event.is_error(),
            writable: event.is_writable() || event.is_write_closed() || event.is_error(),
            read_closed: event.is_read_closed(),
            priority: event.is_priority(),
        }
    }
}

/// A poll, and the values registered with it, each under the key that is its [`Token`].
///
/// A turn is [`poll`](Self::poll), then what it reported, then [`next_listed`](Self::next_listed) until it answers `None`. So it
/// serves what the poll reported together with those that [`resume`](Self::resume) had put on the list before it, each once.
/// (kqueue(2) makes an event of each direction of a source, which is then served for each.) A turn may have more
/// [rounds](Self::next_round), in which the list is served anew without a poll.
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
/// let batch = reactor.poll(Some(Duration::from_secs(1)))?;
/// for reported in batch.iter() {
///     assert!(reported.key() == key && reported.readiness().readable);
///     if let Some(listener) = reactor.visit(key) {
///         listener.accept()?;
///         // There may be another one.
///         reactor.resume(key);
///     }
/// }
/// reactor.give_back(batch);
/// assert_eq!(reactor.next_listed(), None);
/// assert!(reactor.next_round());
/// assert_eq!(reactor.next_listed(), Some(key));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Reactor<T> {
    poll: Poll,
    events_per_turn: usize,
    /// Those of the last batch that was given back, to be filled again.
    events: Option<Events>,
    /// The last poll brought as many events as it could: more may wait in the kernel.
    batch_full: bool,
    slots: Slab<Slot<T>>,
    /// What those on the list of this round are marked with.
    round: Listed,
    /// Keys on the list: first those of this round, then those put on it since.
    list: Vec<usize>,
    list_served: usize,
    /// How many of `list` belong to this round.
    list_share: usize,
    /// Keys whose value was removed in this turn.
    freed: Vec<usize>,
}

/// What a poll has reported.
#[derive(Debug)]
pub struct Batch(Events);

impl Batch {
    /// Each key, with what its source may be able to do now. Its value may have been removed earlier in this turn.
    pub fn iter(&self) -> impl Iterator<Item = Reported<'_>> {
        self.0.iter().map(Reported)
    }

    /// Whether the poll reported nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct Reported<'a>(&'a Event);

impl Reported<'_> {
    /// Whose source it is.
    #[must_use]
    pub fn key(self) -> usize {
        self.0.token().0
    }

    /// What the source may be able to do.
    #[must_use]
    #[expect(clippy::inline_always, reason = "so that the hints are not packed into a word, and unpacked again")]
    #[inline(always)]
    pub fn readiness(self) -> Readiness {
        self.0.into()
    }
}

/// A value, or the place of one that was removed in this turn.
#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    listed: Listed,
}

/// Whether a key waits on the list to be served, and in which round. Rounds are told apart as even and odd ones: the list holds
/// keys of this one and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    No,
    Even,
    Odd,
}

impl Listed {
    fn next(self) -> Self {
        if self == Self::Even { Self::Odd } else { Self::Even }
    }
}

/// What a connection is registered for, once and for good.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
/// What a connection is registered for, once and for good.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// A read that returns less than it had room for has emptied the stream, so its edge is spent: epoll(7), question 9, says so;
/// kqueue(2) does not. It does not hold once the end of the stream or urgent data was reported.
pub(crate) const SHORT_READ_DRAINS: bool = cfg!(any(target_os = "linux", target_os = "android"));

impl<T> Reactor<T> {
    /// Opens a poll that takes at most `events_per_turn` events a turn.
    ///
    /// # Errors
    ///
    /// - The process or the system is out of descriptors (`epoll_create1(2)`, `kqueue(2)`).
    pub fn new(events_per_turn: usize) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events_per_turn,
            events: None,
            batch_full: false,
            slots: Slab::with_capacity(SLOTS_RESERVED),
            round: Listed::Even,
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
        entry.insert(Slot { value: Some(wrap(source)), listed: Listed::No });
        Ok(key)
    }

    /// The value under `key`, if there is one.
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        self.slots.get_mut(key)?.value.as_mut()
    }

    /// The value under `key`, if there is one, to be served now: it is not served once more for being on the list of this round.
    #[inline]
    pub fn visit(&mut self, key: usize) -> Option<&mut T> {
        let slot = self.slots.get_mut(key)?;
        let value = slot.value.as_mut()?;
        if slot.listed == self.round {
            slot.listed = Listed::No;
        }
        Some(value)
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
        // A key on the list is freed by `next_listed`, when it comes to it.
        if slot.listed == Listed::No {
            self.freed.push(key);
        }
        Some(value)
    }

    /// Puts `key` on the list for the next round or turn, at most once.
    pub fn resume(&mut self, key: usize) {
        if let Some(slot) = self.slots.get_mut(key)
            && slot.value.is_some()
            && slot.listed == Listed::No
        {
            slot.listed = self.round.next();
            self.list.push(key);
        }
    }

    /// Begins a turn: waits for events, at most for `timeout`, and not at all while it [has work](Self::has_work).
    ///
    /// An interrupted wait makes a turn without events: mio does not retry it, and the caller may have a deadline to look at.
    ///
    /// # Errors
    ///
    /// - The poll itself fails (`epoll_wait(2)`), which no peer can cause.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Batch> {
        self.end_turn();
        let timeout = if self.has_work() { Some(Duration::ZERO) } else { timeout };
        let mut events = self.events.take().unwrap_or_else(|| Events::with_capacity(self.events_per_turn));
        match self.poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.batch_full = events.iter().count() == events.capacity();
        Ok(Batch(events))
    }

    /// Takes the room of a batch that is served, to use it again.
    pub fn give_back(&mut self, batch: Batch) {
        self.events = Some(batch.0);
    }

    /// The next key on the list of this round that still has a value, and was not served for an event.
    pub fn next_listed(&mut self) -> Option<usize> {
        while self.list_served < self.list_share {
            let key = self.list[self.list_served];
            self.list_served += 1;
            if let Some(slot) = self.slots.get_mut(key)
                && slot.listed == self.round
            {
                slot.listed = Listed::No;
                if slot.value.is_some() {
                    return Some(key);
                }
                self.freed.push(key);
            }
        }
        None
    }

    /// Begins another round of this turn, for those on the list; answers whether there are any.
    pub fn next_round(&mut self) -> bool {
        self.begin_round();
        !self.list.is_empty()
    }

    /// Whether there is something to do without waiting: keys on the list, or a poll that filled its batch.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.batch_full || self.list_served < self.list.len()
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
        self.freed.shrink_to(KEYS_RESERVED);
        self.list.shrink_to(KEYS_RESERVED);
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

    fn end_turn(&mut self) {
        if !self.freed.is_empty() {
            self.free_keys();
        }
        if !self.list.is_empty() {
            self.begin_round();
        }
    }

    #[cold]
    fn free_keys(&mut self) {
        for key in self.freed.drain(..) {
            self.slots.remove(key);
        }
    }

    /// What is on the list becomes that of this round, first what nobody has come for in the last.
    fn begin_round(&mut self) {
        let (round, next) = (self.round, self.round.next());
        self.list.drain(..self.list_served);
        let left_over = self.list_share - self.list_served;
        if left_over > 0 {
            let mut at = 0;
            self.list.retain(|&key| {
                at += 1;
                at > left_over
                    || self.slots.get_mut(key).is_some_and(|slot| {
                        let is_due = slot.listed == round;
                        if is_due {
                            slot.listed = next;
                        }
                        is_due
                    })
            });
        }
        self.round = next;
        self.list_served = 0;
        self.list_share = self.list.len();
    }
}

impl<T> AsFd for Reactor<T> {
    /// The poll's descriptor: another loop can wait on it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
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
