//! `Reactor` by itself: which keys a turn serves, when a key is free again, and what counts as work left over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use ecoloop::{Batch, INTEREST, Reactor, Readiness, Reported};
use mio::event::Source;
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{TIMEOUT, ends_by_itself};

const WRITABLE: Readiness = Readiness { readable: false, writable: true, read_closed: false, priority: false };

/// A source of which no poll knows. It registers, or refuses to.
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

/// Begins a turn in which nothing is reported.
#[track_caller]
fn poll<T>(reactor: &mut Reactor<T>) {
    let batch = reactor.poll(Some(Duration::ZERO)).unwrap();
    assert!(batch.is_empty(), "{batch:?}");
    reactor.give_back(batch);
}

/// A turn: whoever is served, with what was reported.
#[track_caller]
fn turn<T>(reactor: &mut Reactor<T>) -> Vec<(usize, Readiness)> {
    let batch = reactor.poll(Some(Duration::ZERO)).unwrap();
    let served = serve(reactor, &batch);
    reactor.give_back(batch);
    served
}

fn serve<T>(reactor: &mut Reactor<T>, batch: &Batch) -> Vec<(usize, Readiness)> {
    let mut served = Vec::new();
    for reported in batch.iter() {
        if reactor.visit(reported.key()).is_some() {
            served.push((reported.key(), reported.readiness()));
        }
    }
    served.extend(std::iter::from_fn(|| reactor.next_listed()).map(|key| (key, Readiness::default())));
    served
}

/// Polls for as long as it takes, which must be less than for ever.
#[track_caller]
fn turn_without_timeout<T>(reactor: &mut Reactor<T>) -> Vec<(usize, Readiness)> {
    let waker = reactor.waker().unwrap();
    let batch = ends_by_itself(move || waker.wake().unwrap(), || reactor.poll(None).unwrap());
    let served = serve(reactor, &batch);
    reactor.give_back(batch);
    served
}

#[test]
fn what_is_resumed_in_a_turn_is_served_in_the_next() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    reactor.resume(key);
    poll(&mut reactor);
    assert_eq!(reactor.next_listed(), Some(key));
    reactor.resume(key);
    reactor.resume(key);
    assert_eq!(reactor.next_listed(), None);

    poll(&mut reactor);
    assert_eq!(reactor.next_listed(), Some(key));
    assert_eq!(reactor.next_listed(), None);
    assert!(!reactor.has_work());
}

#[test]
fn what_is_resumed_in_a_round_is_served_in_the_next() {
    let mut reactor = reactor();
    let (one, other) = (insert(&mut reactor, ()), insert(&mut reactor, ()));
    reactor.resume(one);
    reactor.resume(other);
    poll(&mut reactor);
    assert_eq!(reactor.next_listed(), Some(one));
    reactor.resume(one);
    assert_eq!(reactor.next_listed(), Some(other));
    assert_eq!(reactor.next_listed(), None);

    assert!(reactor.next_round());
    assert_eq!(reactor.next_listed(), Some(one));
    assert_eq!(reactor.next_listed(), None);
    assert!(!reactor.next_round());
}

#[test]
fn those_whom_a_round_has_not_come_to_are_served_in_the_next_and_before_the_others() {
    let mut reactor = reactor();
    let keys = [insert(&mut reactor, ()), insert(&mut reactor, ()), insert(&mut reactor, ())];
    for key in keys {
        reactor.resume(key);
    }
    poll(&mut reactor);
    assert_eq!(reactor.next_listed(), Some(keys[0]));
    reactor.resume(keys[0]);
    assert!(reactor.next_round());
    assert_eq!(reactor.next_listed(), Some(keys[1]));
    // Not once more, for being listed from before.
    reactor.resume(keys[2]);
    poll(&mut reactor);
    assert_eq!(std::iter::from_fn(|| reactor.next_listed()).collect::<Vec<_>>(), [keys[2], keys[0]]);
    assert!(!reactor.has_work());
}

#[test]
fn a_key_freed_in_a_turn_is_not_used_again_before_the_next() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    reactor.resume(key);
    poll(&mut reactor);
    assert_eq!(reactor.next_listed(), Some(key));
    assert_eq!(reactor.remove(key), Some("old"));
    assert_ne!(insert(&mut reactor, "new"), key);
    assert_eq!(reactor.next_listed(), None);
    assert!(!reactor.next_round());
    assert_ne!(insert(&mut reactor, "newer"), key);

    poll(&mut reactor);
    assert_eq!(insert(&mut reactor, "newest"), key);
}

#[test]
fn an_event_of_the_batch_in_hand_for_a_closed_key_reaches_nobody() {
    let mut reactor = reactor();
    let ((one, _far_one), (other, _far_other)) = (insert_pair(&mut reactor), insert_pair(&mut reactor));
    let batch = reactor.poll(Some(Duration::ZERO)).unwrap();
    let reported: Vec<_> = batch.iter().map(Reported::key).collect();
    assert_eq!(reported.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([one, other]), "the premise");
    assert!(reactor.visit(reported[0]).is_some());
    assert!(reactor.remove(reported[1]).is_some());
    let (newcomer, _far) = insert_pair(&mut reactor);
    assert_ne!(newcomer, reported[1]);
    assert!(reactor.visit(reported[1]).is_none());
    assert!(reactor.get_mut(reported[1]).is_none());
    assert!(reactor.remove(reported[1]).is_none());
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
    assert!(reactor.visit(key).is_none());
    let mut keys = vec![insert(&mut reactor, "new")];
    assert_eq!(reactor.next_listed(), None);
    poll(&mut reactor);
    keys.push(insert(&mut reactor, "new"));
    assert_eq!(reactor.next_listed(), None);
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
    assert_eq!(reactor.next_listed(), None);

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
    assert_eq!(turn_without_timeout(&mut reactor), [(key, Readiness::default())]);
}

#[test]
fn after_a_full_batch_the_poll_does_not_wait() {
    let mut reactor = Reactor::new(2).unwrap();
    let pairs = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
    let (near, _far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let keys: BTreeSet<_> =
        near.into_iter().map(|stream| reactor.insert(stream, Interest::WRITABLE, |stream| stream).unwrap()).collect();

    let mut served: BTreeSet<_> = turn_without_timeout(&mut reactor).into_iter().map(|(key, _)| key).collect();
    assert_eq!(served.len(), 2);
    assert!(reactor.has_work());
    served.extend(turn(&mut reactor).into_iter().map(|(key, _)| key));
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
    assert_eq!(turn(&mut reactor), [(newcomer, WRITABLE)]);
    (&far).write_all(b"x").unwrap();
    assert_eq!(turn(&mut reactor), []);
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
    let batch = reactor.poll(Some(TIMEOUT)).unwrap();
    assert!(!batch.is_empty());
    assert_eq!(serve(&mut reactor, &batch), []);
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
    outer.poll(&mut events, Some(TIMEOUT)).unwrap();
    assert!(!events.is_empty());
    assert_eq!(turn(&mut reactor), [(key, WRITABLE)]);
}

#[test]
fn an_event_and_the_list_serve_a_key_once() {
    let mut reactor = reactor();
    let (key, mut far) = insert_pair(&mut reactor);
    assert_eq!(turn(&mut reactor), [(key, WRITABLE)]);

    reactor.resume(key);
    far.write_all(b"hola").unwrap();
    let served = turn(&mut reactor);
    assert_eq!(served, [(key, Readiness { readable: true, ..WRITABLE })]);
    assert!(!reactor.has_work());
}

/// A batch that is lost, as by a panic of whoever serves it, takes nothing with it but its events.
#[test]
fn the_next_poll_does_without_the_room_of_a_batch_that_is_not_given_back() {
    let mut reactor = reactor();
    let (key, mut far) = insert_pair(&mut reactor);
    drop(reactor.poll(Some(Duration::ZERO)).unwrap());
    far.write_all(b"hola").unwrap();
    assert_eq!(turn(&mut reactor), [(key, Readiness { readable: true, ..WRITABLE })]);
}

// ---- any order of calls ----

#[derive(Clone, Copy, Debug)]
enum Call {
    Poll,
    NextRound,
    NextListed,
    Insert,
    /// These take a key that is open or was.
    Visit(usize),
    Remove(usize),
    Resume(usize),
}

/// What a reactor is to do, with nothing done for speed: each value is told apart from those that had its key before.
#[derive(Default)]
struct Model {
    /// The values, by key. Each is a number that is used once.
    open: BTreeMap<usize, usize>,
    inserted: usize,
    /// Freed since the last poll.
    freed: BTreeSet<usize>,
    /// Keys and values on the list of this round, and of the next.
    due: VecDeque<(usize, usize)>,
    due_next: VecDeque<(usize, usize)>,
}

impl Model {
    fn play(&mut self, reactor: &mut Reactor<usize>, call: Call) {
        match call {
            Call::Poll => {
                poll(reactor);
                self.freed.clear();
                self.begin_round();
            }
            Call::NextRound => {
                self.begin_round();
                // One that was removed may yet be on the list.
                let is_due = !self.due.is_empty();
                assert!(reactor.next_round() || !is_due);
            }
            Call::NextListed => {
                let next = self.due.pop_front();
                assert_eq!(reactor.next_listed(), next.map(|(key, _)| key));
                assert_eq!(next.and_then(|(key, _)| reactor.get_mut(key).copied()), next.map(|(_, value)| value));
            }
            Call::Insert => {
                let key = insert(reactor, self.inserted);
                assert!(!self.freed.contains(&key), "a key was used again in the turn that freed it");
                assert_eq!(self.open.insert(key, self.inserted), None, "a key was given twice");
                self.inserted += 1;
            }
            Call::Visit(key) => {
                let value = self.open.get(&key).copied();
                assert_eq!(reactor.visit(key).copied(), value);
                self.due.retain(|&(_, listed)| Some(listed) != value);
            }
            Call::Remove(key) => {
                let value = self.open.remove(&key);
                assert_eq!(reactor.remove(key), value);
                if let Some(value) = value {
                    self.freed.insert(key);
                    self.due.retain(|&(_, listed)| listed != value);
                    self.due_next.retain(|&(_, listed)| listed != value);
                }
            }
            Call::Resume(key) => {
                reactor.resume(key);
                let Some(&value) = self.open.get(&key) else { return };
                if !self.due.iter().chain(&self.due_next).any(|&(_, listed)| listed == value) {
                    self.due_next.push_back((key, value));
                }
            }
        }
    }

    fn begin_round(&mut self) {
        self.due.append(&mut self.due_next);
    }
}

fn calls() -> impl Strategy<Value = Call> {
    let key = 0..6_usize;
    prop_oneof![
        2 => Just(Call::Poll),
        2 => Just(Call::NextRound),
        4 => Just(Call::NextListed),
        3 => Just(Call::Insert),
        2 => key.clone().prop_map(Call::Visit),
        3 => key.clone().prop_map(Call::Remove),
        5 => key.prop_map(Call::Resume),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_of_calls_a_key_is_served_for_its_own_value_and_once_a_round(calls in vec(calls(), 0..80)) {
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
        assert_eq!(reactor.next_listed(), None);
        assert!(!reactor.has_work());
        reactor.shrink_to_fit();
        assert_eq!(reactor.capacity(), 0);
    }
}
