//! `Reactor` by itself: which keys a turn serves, when a key is free again, and what counts as work left over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use ecoloop::{INTEREST, Reactor, Readiness};
use mio::event::Source;
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{PATIENCE, ends_by_itself};

const READABLE: Readiness = Readiness { readable: true, writable: false, read_closed: false, priority: false };
const WRITABLE: Readiness = Readiness { readable: false, writable: true, read_closed: false, priority: false };

/// A source of which no poll knows: the test notes its edges. It registers, or refuses to.
struct Silent {
    registers: bool,
}

impl Source for Silent {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        if self.registers { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("a source is registered once and for good")
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

fn reactor<T>() -> Reactor<T> {
    Reactor::new(16).unwrap()
}

#[track_caller]
fn insert<T>(reactor: &mut Reactor<T>, value: T) -> usize {
    reactor.insert(Silent { registers: true }, INTEREST, |_| value).unwrap()
}

/// Begins a turn in which nothing happens but what was noted.
#[track_caller]
fn poll<T>(reactor: &mut Reactor<T>) {
    reactor.poll(Some(Duration::ZERO)).unwrap();
}

/// Polls for as long as it takes, which must be less than for ever.
#[track_caller]
fn poll_without_timeout<T>(reactor: &mut Reactor<T>) {
    let waker = reactor.waker().unwrap();
    ends_by_itself(move || waker.wake().unwrap(), || reactor.poll(None).unwrap());
}

#[test]
fn a_turn_serves_a_key_once_with_all_that_was_noted() {
    let none = Readiness::default();
    let mut reactor = reactor();
    let (one, other) = (insert(&mut reactor, ()), insert(&mut reactor, ()));
    // In several events, as kqueue(2) reports what epoll(7) reports in one.
    reactor.note(one, READABLE);
    reactor.resume(other);
    reactor.note(one, WRITABLE);
    reactor.note(one, Readiness { read_closed: true, ..none });
    reactor.note(one, Readiness { priority: true, ..none });
    poll(&mut reactor);
    let all = Readiness { readable: true, writable: true, read_closed: true, priority: true };
    assert_eq!(reactor.next(), Some((one, all)));
    assert_eq!(reactor.next(), Some((other, none)));
    assert_eq!(reactor.next(), None);

    // What was noted is not noted for ever.
    reactor.resume(one);
    poll(&mut reactor);
    assert_eq!(reactor.next(), Some((one, none)));
}

#[test]
fn what_is_resumed_in_a_turn_is_served_in_the_next() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    reactor.resume(key);
    poll(&mut reactor);
    assert_eq!(reactor.next(), Some((key, Readiness::default())));
    reactor.resume(key);
    reactor.resume(key);
    assert_eq!(reactor.next(), None);

    poll(&mut reactor);
    assert_eq!(reactor.next(), Some((key, Readiness::default())));
    assert_eq!(reactor.next(), None);
    assert!(!reactor.has_work());
}

#[test]
fn a_key_freed_in_a_turn_is_not_used_again_before_the_next() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    reactor.note(key, READABLE);
    poll(&mut reactor);
    assert_eq!(reactor.next(), Some((key, READABLE)));
    assert_eq!(reactor.remove(key), Some("old"));
    assert_ne!(insert(&mut reactor, "new"), key);
    assert_eq!(reactor.next(), None);

    poll(&mut reactor);
    assert_eq!(insert(&mut reactor, "newer"), key);
}

#[test]
fn an_event_of_the_batch_in_hand_for_a_closed_key_reaches_nobody() {
    let mut reactor = reactor();
    let (closing, closed) = (insert(&mut reactor, "closing"), insert(&mut reactor, "closed"));
    reactor.note(closing, READABLE);
    reactor.note(closed, READABLE);
    poll(&mut reactor);
    assert_eq!(reactor.next(), Some((closing, READABLE)));
    reactor.remove(closed);
    let newcomer = insert(&mut reactor, "new");
    assert_ne!(newcomer, closed);
    assert_eq!(reactor.get_mut(closed), None);
    assert_eq!(reactor.remove(closed), None);
    assert_eq!(reactor.next(), None);
}

#[test]
fn a_key_closed_while_on_the_list_and_used_again_is_not_served_for_the_old() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    poll(&mut reactor);
    reactor.resume(key);
    // Between two turns, as one that has idled for too long is closed.
    reactor.remove(key);
    poll(&mut reactor);
    let mut keys = vec![insert(&mut reactor, "new")];
    assert_eq!(reactor.next(), None);
    poll(&mut reactor);
    keys.push(insert(&mut reactor, "new"));
    assert_eq!(reactor.next(), None);
    assert!(keys.contains(&key), "the key was never given back");
}

#[test]
fn resuming_a_closed_key_serves_nobody() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    reactor.remove(key);
    reactor.resume(key);
    poll(&mut reactor);
    insert(&mut reactor, "new");
    assert_eq!(reactor.next(), None);

    reactor.resume(usize::MAX);
    assert!(!reactor.has_work());
}

#[test]
fn a_registration_that_fails_takes_no_key() {
    let mut reactor = reactor();
    let error = reactor.insert(Silent { registers: false }, INTEREST, |_| "refused").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    assert_eq!(reactor.iter_mut().count(), 0);
    let key = insert(&mut reactor, "taken");
    assert_eq!(reactor.iter_mut().collect::<Vec<_>>(), [(key, &mut "taken")]);
    assert_eq!(key, 0);
}

#[test]
fn with_a_key_on_the_list_the_poll_does_not_wait() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    assert!(!reactor.has_work());
    reactor.resume(key);
    assert!(reactor.has_work());
    poll_without_timeout(&mut reactor);
    assert_eq!(reactor.next(), Some((key, Readiness::default())));
}

#[test]
fn after_a_full_batch_the_poll_does_not_wait() {
    let mut reactor = Reactor::new(2).unwrap();
    let pairs = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
    let (near, _far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let keys: BTreeSet<_> =
        near.into_iter().map(|stream| reactor.insert(stream, Interest::WRITABLE, |stream| stream).unwrap()).collect();

    poll_without_timeout(&mut reactor);
    let mut served: BTreeSet<_> = std::iter::from_fn(|| reactor.next()).map(|(key, _)| key).collect();
    assert_eq!(served.len(), 2);
    assert!(reactor.has_work());
    poll(&mut reactor);
    served.extend(std::iter::from_fn(|| reactor.next()).map(|(key, _)| key));
    assert_eq!(served, keys);
    assert!(!reactor.has_work());
}

#[test]
fn a_source_that_is_deregistered_falls_silent() {
    let mut reactor = reactor();
    let (near, far) = UnixStream::pair().unwrap();
    let key = reactor.insert(near, INTEREST, |stream| stream).unwrap();
    let mut near = reactor.remove(key).unwrap();
    reactor.deregister(&mut near).unwrap();
    poll(&mut reactor);
    // Its key is another's by now, who would be served for it.
    let (newcomer, _far) = insert_pair(&mut reactor);
    assert_eq!(newcomer, key);
    poll(&mut reactor);
    assert_eq!(reactor.next(), Some((newcomer, WRITABLE)));
    (&far).write_all(b"x").unwrap();
    poll(&mut reactor);
    assert_eq!(reactor.next(), None);
    reactor.deregister(&mut near).unwrap_err();
}

fn insert_pair(reactor: &mut Reactor<UnixStream>) -> (usize, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (reactor.insert(near, INTEREST, |stream| stream).unwrap(), far)
}

#[test]
fn its_waker_ends_a_wait_and_is_nobodys_key() {
    let mut reactor = reactor::<()>();
    let waker = reactor.waker().unwrap();
    let thread = thread::spawn(move || {
        waker.wake().unwrap();
        waker
    });
    reactor.poll(Some(PATIENCE)).unwrap();
    assert_eq!(reactor.next(), None);
    assert!(!reactor.has_work());
    drop(thread.join().unwrap());
}

#[test]
fn keys_that_are_no_longer_used_give_their_memory_back() {
    let mut reactor = reactor();
    let keys: Vec<_> = (0..100_000).map(|n: u32| insert(&mut reactor, n)).collect();
    assert!(reactor.capacity() >= keys.len());
    for &key in &keys[1..] {
        reactor.remove(key);
    }
    reactor.shrink_to_fit();
    assert!(reactor.capacity() < keys.len());
    assert_eq!(reactor.iter_mut().collect::<Vec<_>>(), [(keys[0], &mut 0)]);
}

#[test]
fn another_loop_can_wait_on_its_descriptor() {
    let mut reactor = reactor();
    let (mut outer, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
    let descriptor = reactor.as_fd().as_raw_fd();
    outer.registry().register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE).unwrap();
    outer.poll(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty());

    let (key, _far) = insert_pair(&mut reactor);
    outer.poll(&mut events, Some(PATIENCE)).unwrap();
    assert!(!events.is_empty());
    poll(&mut reactor);
    assert_eq!(reactor.next().map(|(key, _)| key), Some(key));
}

#[test]
fn an_event_and_the_list_serve_a_key_once() {
    let mut reactor = reactor();
    let (key, mut far) = insert_pair(&mut reactor);
    poll(&mut reactor);
    assert_eq!(reactor.next().map(|(key, _)| key), Some(key));

    reactor.note(key, Readiness { priority: true, ..Readiness::default() });
    far.write_all(b"hola").unwrap();
    poll(&mut reactor);
    let (served, readiness) = reactor.next().unwrap();
    assert_eq!((served, readiness.readable, readiness.priority), (key, true, true));
    assert_eq!(reactor.next(), None);
    assert!(!reactor.has_work());
}

#[test]
fn an_event_that_nobody_came_for_is_served_in_the_next_turn() {
    let mut reactor = reactor();
    let ((one, _far_one), (other, _far_other)) = (insert_pair(&mut reactor), insert_pair(&mut reactor));
    poll(&mut reactor);
    let (first, _) = reactor.next().unwrap();

    poll(&mut reactor);
    let (second, readiness) = reactor.next().unwrap();
    assert_eq!(BTreeSet::from([first, second]), BTreeSet::from([one, other]));
    assert!(readiness.writable);
    assert_eq!(reactor.next(), None);
}

// ---- any order of calls ----

#[derive(Clone, Copy, Debug)]
enum Call {
    Poll,
    Next,
    Insert,
    /// These take a key that is open or was.
    Remove(usize),
    Resume(usize),
    Note(usize, Readiness),
}

/// What a reactor is to do, with nothing done for speed: each value is told apart from those that had its key before.
#[derive(Default)]
struct Model {
    /// The values, by key. Each is a number that is used once.
    open: BTreeMap<usize, usize>,
    inserted: usize,
    /// Freed since the last poll.
    freed: BTreeSet<usize>,
    /// Keys and values on the list, with what was noted.
    due: VecDeque<(usize, usize, Readiness)>,
    share: usize,
}

impl Model {
    fn play(&mut self, reactor: &mut Reactor<usize>, call: Call) {
        match call {
            Call::Poll => {
                poll(reactor);
                self.freed.clear();
                self.share = self.due.len();
            }
            Call::Next => {
                let next = if self.share > 0 { self.due.pop_front() } else { None };
                self.share -= usize::from(next.is_some());
                assert_eq!(reactor.next(), next.map(|(key, _, readiness)| (key, readiness)));
                assert_eq!(next.and_then(|(key, ..)| reactor.get_mut(key).copied()), next.map(|(_, value, _)| value));
            }
            Call::Insert => {
                let key = insert(reactor, self.inserted);
                assert!(!self.freed.contains(&key), "a key was used again in the turn that freed it");
                assert_eq!(self.open.insert(key, self.inserted), None, "a key was given twice");
                self.inserted += 1;
            }
            Call::Remove(key) => {
                let value = self.open.remove(&key);
                assert_eq!(reactor.remove(key), value);
                if let Some(value) = value {
                    self.freed.insert(key);
                    let place = self.due.iter().position(|&(_, on_list, _)| on_list == value);
                    self.share -= usize::from(place.is_some_and(|place| place < self.share));
                    self.due.retain(|&(_, on_list, _)| on_list != value);
                }
            }
            Call::Resume(key) => {
                reactor.resume(key);
                self.note(key, Readiness::default());
            }
            Call::Note(key, readiness) => {
                reactor.note(key, readiness);
                self.note(key, readiness);
            }
        }
    }

    fn note(&mut self, key: usize, readiness: Readiness) {
        let Some(&value) = self.open.get(&key) else { return };
        if !self.due.iter().any(|&(_, on_list, _)| on_list == value) {
            self.due.push_back((key, value, Readiness::default()));
        }
        for (_, on_list, noted) in &mut self.due {
            if *on_list == value {
                noted.readable |= readiness.readable;
                noted.writable |= readiness.writable;
            }
        }
    }
}

fn calls() -> impl Strategy<Value = Call> {
    let key = 0..6_usize;
    prop_oneof![
        2 => Just(Call::Poll),
        4 => Just(Call::Next),
        3 => Just(Call::Insert),
        3 => key.clone().prop_map(Call::Remove),
        2 => key.clone().prop_map(Call::Resume),
        3 => (key, prop::sample::select(&[READABLE, WRITABLE])).prop_map(|(key, readiness)| Call::Note(key, readiness)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_of_calls_a_key_is_served_for_its_own_value_and_once_a_turn(calls in vec(calls(), 0..80)) {
        let (mut reactor, mut model) = (reactor(), Model::default());
        for call in calls {
            model.play(&mut reactor, call);
            let open: BTreeMap<_, _> = reactor.iter_mut().map(|(key, &mut value)| (key, value)).collect();
            assert_eq!(open, model.open);
        }

        // Nothing is left behind for those that are closed.
        for key in model.open.into_keys() {
            reactor.remove(key);
        }
        poll(&mut reactor);
        assert_eq!(reactor.next(), None);
        assert!(!reactor.has_work());
        reactor.shrink_to_fit();
        assert_eq!(reactor.capacity(), 0);
    }
}
