//! `Reactor` by itself: which keys a turn serves, when a key is used again, and what is pending.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use ecoloop::{Handler, INTEREST, Next, Reactor, Ready};
use mio::event::Source;
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{TIMEOUT, ends_by_itself};

/// A source that no poll reports. It registers, or refuses to.
struct Silent {
    registers: bool,
}

impl Source for Silent {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        if self.registers { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        unreachable!("a source is registered once")
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

/// What a test does with the whole reactor while a key is served.
type Act<T> = Box<dyn FnOnce(&mut Reactor<T>)>;

/// Records the keys that are served, and asks the test what follows.
struct Recorder<F> {
    served: Vec<(usize, Ready)>,
    next: F,
}

impl<T, F: FnMut(usize) -> Next<Act<T>>> Handler<T> for Recorder<F> {
    type Act = Act<T>;

    fn ready(&mut self, key: usize, _: &mut T, ready: Ready) -> Next<Act<T>> {
        self.served.push((key, ready));
        (self.next)(key)
    }

    fn act(&mut self, reactor: &mut Reactor<T>, _: usize, act: Act<T>) -> Next<Infallible> {
        act(reactor);
        Next::Wait
    }
}

fn reactor<T>() -> Reactor<T> {
    Reactor::new(16).unwrap()
}

#[track_caller]
fn insert<T>(reactor: &mut Reactor<T>, value: T) -> usize {
    reactor.insert(Silent { registers: true }, INTEREST, |_| value).unwrap()
}

fn insert_pair(reactor: &mut Reactor<UnixStream>) -> (usize, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (reactor.insert(near, INTEREST, |stream| stream).unwrap(), far)
}

/// Waits without blocking. Returns whether anything is to be served.
#[track_caller]
fn poll<T>(reactor: &mut Reactor<T>) -> bool {
    reactor.wait(Some(Duration::ZERO)).unwrap()
}

/// Serves one pass, in which every edge is drained.
fn drain<T>(reactor: &mut Reactor<T>) -> Vec<(usize, Ready)> {
    serve(reactor, 1, |_| Next::Wait)
}

fn serve<T>(reactor: &mut Reactor<T>, passes: usize, next: impl FnMut(usize) -> Next<Act<T>>) -> Vec<(usize, Ready)> {
    let mut recorder = Recorder { served: Vec::new(), next };
    reactor.serve(passes, &mut recorder);
    recorder.served
}

fn turn<T>(reactor: &mut Reactor<T>) -> Vec<(usize, Ready)> {
    poll(reactor);
    drain(reactor)
}

/// Waits without a timeout, and fails if that blocks.
#[track_caller]
fn turn_without_timeout<T>(reactor: &mut Reactor<T>) -> Vec<(usize, Ready)> {
    let waker = reactor.waker().unwrap();
    ends_by_itself(move || waker.wake().unwrap(), || reactor.wait(None).unwrap());
    drain(reactor)
}

fn act<T>(act: impl FnOnce(&mut Reactor<T>) + 'static) -> Next<Act<T>> {
    Next::Act(Box::new(act))
}

const NOTHING_NEW: Ready = Ready::NONE;

#[test]
fn a_key_is_queued_at_most_once() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    reactor.resume(key);
    reactor.resume(key);
    assert!(poll(&mut reactor));
    assert_eq!(drain(&mut reactor), [(key, NOTHING_NEW)]);
    assert!(!reactor.has_pending());
    assert!(!poll(&mut reactor));
    assert_eq!(drain(&mut reactor), []);
}

#[test]
fn a_key_whose_edge_is_not_drained_is_served_again_after_the_others() {
    let mut reactor = reactor();
    let (one, other) = (insert(&mut reactor, ()), insert(&mut reactor, ()));
    reactor.resume(one);
    reactor.resume(other);
    let mut calls = 0;
    let served = serve(&mut reactor, 2, |key| {
        calls += 1;
        if key == one && calls < 3 { Next::Again } else { Next::Wait }
    });
    assert_eq!(served, [(one, NOTHING_NEW), (other, NOTHING_NEW), (one, NOTHING_NEW)]);
    assert!(!reactor.has_pending());
}

#[test]
fn passes_bound_how_often_a_key_is_served_and_the_rest_is_left_to_the_next_turn() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    reactor.resume(key);
    assert_eq!(serve(&mut reactor, 3, |_| Next::Again).len(), 3);
    assert!(reactor.has_pending());
    assert_eq!(turn(&mut reactor), [(key, NOTHING_NEW)]);
}

#[test]
fn a_queued_key_is_served_even_with_no_passes() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    reactor.resume(key);
    assert!(poll(&mut reactor));
    assert_eq!(serve(&mut reactor, 0, |_| Next::Wait), [(key, Ready::NONE)]);
    assert!(!reactor.has_pending());
}

#[test]
fn a_key_that_is_resumed_while_another_is_served_is_served_in_the_next_pass() {
    let mut reactor = reactor();
    let (one, other) = (insert(&mut reactor, ()), insert(&mut reactor, ()));
    reactor.resume(one);
    let resume_other =
        |key| if key == one { act(move |reactor: &mut Reactor<()>| reactor.resume(other)) } else { Next::Wait };
    assert_eq!(serve(&mut reactor, 1, resume_other), [(one, NOTHING_NEW)]);
    assert_eq!(turn(&mut reactor), [(other, NOTHING_NEW)]);

    reactor.resume(one);
    assert_eq!(serve(&mut reactor, 2, resume_other), [(one, NOTHING_NEW), (other, NOTHING_NEW)]);
}

#[test]
fn a_key_that_is_reported_and_queued_is_served_once() {
    let mut reactor = reactor();
    let (key, mut far) = insert_pair(&mut reactor);
    assert_eq!(turn(&mut reactor), [(key, Ready::WRITABLE)]);

    reactor.resume(key);
    far.write_all(b"hola").unwrap();
    assert_eq!(turn(&mut reactor), [(key, Ready::READABLE | Ready::WRITABLE)]);
    assert!(!reactor.has_pending());
}

#[test]
fn a_second_wait_loses_no_event() {
    let mut reactor = reactor();
    let (key, mut far) = insert_pair(&mut reactor);
    assert!(poll(&mut reactor));
    far.write_all(b"hola").unwrap();
    assert!(poll(&mut reactor));
    assert!(reactor.has_pending());
    assert_eq!(drain(&mut reactor), [(key, Ready::WRITABLE)]);
    assert_eq!(turn(&mut reactor), [(key, Ready::READABLE | Ready::WRITABLE)]);
}

#[test]
fn a_handler_that_panics_leaves_the_rest_for_the_next_call() {
    let mut reactor = reactor();
    let reported: Vec<_> = (0..3).map(|_| insert_pair(&mut reactor)).collect();
    let queued: Vec<_> = (0..3).map(|_| insert_pair(&mut reactor)).collect();
    let all: BTreeSet<_> = reported.iter().chain(&queued).map(|(key, _)| *key).collect();
    // The second three are queued as well, and have no event left.
    turn(&mut reactor);
    for (_, far) in &reported {
        (&*far).write_all(b"x").unwrap();
    }
    for (key, _) in &queued {
        reactor.resume(*key);
    }
    poll(&mut reactor);

    let mut served = BTreeSet::new();
    for _ in 0..all.len() {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            serve(&mut reactor, 1, |key| {
                assert!(served.insert(key), "served twice");
                panic!("of this key")
            })
        }));
        assert!(panicked.is_err());
        poll(&mut reactor);
    }
    assert_eq!(served, all);
    assert_eq!(drain(&mut reactor), []);
}

#[test]
fn a_key_freed_in_a_turn_is_not_used_again_before_the_next() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    reactor.resume(key);
    poll(&mut reactor);
    let replace = |key| {
        act(move |reactor: &mut Reactor<&str>| {
            assert_eq!(reactor.remove(key), Some("old"));
            assert_ne!(insert(reactor, "new"), key);
        })
    };
    assert_eq!(serve(&mut reactor, 2, replace).len(), 1);
    assert_ne!(insert(&mut reactor, "newer"), key);

    poll(&mut reactor);
    assert_eq!(insert(&mut reactor, "newest"), key);
}

#[test]
fn large_values_have_no_memory_before_they_come() {
    assert!(Reactor::<[u8; 1 << 20]>::new(1).unwrap().capacity() <= 16);
    assert_eq!(Reactor::<u64>::new(1).unwrap().capacity(), 4096);
}

#[test]
fn an_event_for_a_removed_key_reaches_no_handler() {
    let mut reactor = reactor();
    let ((one, _far_one), (other, _far_other)) = (insert_pair(&mut reactor), insert_pair(&mut reactor));
    poll(&mut reactor);
    let mut first = None;
    let served = serve(&mut reactor, 1, |key| {
        first = Some(key);
        let removed = if key == one { other } else { one };
        act(move |reactor: &mut Reactor<UnixStream>| {
            assert!(reactor.remove(removed).is_some());
            let (newcomer, _far) = insert_pair(reactor);
            assert_ne!(newcomer, removed);
            assert!(reactor.get_mut(removed).is_none());
            assert!(reactor.remove(removed).is_none());
        })
    });
    assert_eq!(served, [(first.unwrap(), Ready::WRITABLE)]);
}

#[test]
fn a_key_removed_while_queued_and_used_again_is_not_served_for_the_old_value() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    reactor.resume(key);
    // Between two turns, as an idle connection is closed.
    reactor.remove(key);
    poll(&mut reactor);
    let mut keys = vec![insert(&mut reactor, "new")];
    assert_eq!(drain(&mut reactor), []);
    poll(&mut reactor);
    keys.push(insert(&mut reactor, "new"));
    assert_eq!(drain(&mut reactor), []);
    assert!(keys.contains(&key), "the key was never freed");
}

#[test]
fn resuming_a_removed_key_does_nothing() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, "old");
    reactor.remove(key);
    reactor.resume(key);
    poll(&mut reactor);
    insert(&mut reactor, "new");
    assert_eq!(drain(&mut reactor), []);

    reactor.resume(usize::MAX);
    assert!(!reactor.has_pending());
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
fn a_capacity_of_zero_or_beyond_the_limit_is_invalid_input() {
    for events_per_wait in [0, (1 << 20) + 1, usize::MAX] {
        let error = Reactor::<()>::new(events_per_wait).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&events_per_wait.to_string()), "{error}");
    }
}

#[test]
fn a_wait_does_not_block_while_a_key_is_queued() {
    let mut reactor = reactor();
    let key = insert(&mut reactor, ());
    assert!(!reactor.has_pending());
    reactor.resume(key);
    assert!(reactor.has_pending());
    assert_eq!(turn_without_timeout(&mut reactor), [(key, NOTHING_NEW)]);
}

#[test]
fn a_wait_does_not_block_after_a_full_batch() {
    let mut reactor = Reactor::new(2).unwrap();
    let pairs = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
    let (near, _far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let keys: BTreeSet<_> =
        near.into_iter().map(|stream| reactor.insert(stream, Interest::WRITABLE, |stream| stream).unwrap()).collect();

    let mut served: BTreeSet<_> = turn_without_timeout(&mut reactor).into_iter().map(|(key, _)| key).collect();
    assert_eq!(served.len(), 2);
    assert!(reactor.has_pending());
    served.extend(turn(&mut reactor).into_iter().map(|(key, _)| key));
    assert_eq!(served, keys);
    assert!(!reactor.has_pending());
}

#[test]
fn ready_keys_beyond_many_batches_wait_for_two_calls_per_key() {
    const KEYS: usize = 400;
    let mut reactor = Reactor::new(4).unwrap();
    // Each is ready from the start, and none is ever drained.
    let _far: Vec<_> = (0..KEYS).map(|_| insert_pair(&mut reactor).1).collect();
    let (mut served, mut calls) = (BTreeSet::new(), 0);
    while served.len() < KEYS {
        poll(&mut reactor);
        let keys = serve(&mut reactor, 16, |_| Next::Again);
        calls += keys.len();
        served.extend(keys.into_iter().map(|(key, _)| key));
    }
    assert!(calls <= 2 * KEYS, "{calls} calls before each of {KEYS} keys was served");
}

#[test]
fn a_deregistered_source_is_not_reported() {
    let mut reactor = reactor();
    let (near, far) = UnixStream::pair().unwrap();
    let key = reactor.insert(near, INTEREST, |stream| stream).unwrap();
    let mut near = reactor.remove(key).unwrap();
    reactor.deregister(&mut near).unwrap();
    poll(&mut reactor);
    // Its key is in use again: an event of the old source would reach the new one.
    let (newcomer, _far) = insert_pair(&mut reactor);
    assert_eq!(newcomer, key);
    assert_eq!(turn(&mut reactor), [(newcomer, Ready::WRITABLE)]);
    (&far).write_all(b"x").unwrap();
    assert_eq!(turn(&mut reactor), []);
    reactor.deregister(&mut near).unwrap_err();
}

#[test]
fn the_waker_ends_a_wait_and_reaches_no_handler() {
    let mut reactor = reactor::<()>();
    let waker = reactor.waker().unwrap();
    let thread = thread::spawn(move || {
        waker.wake().unwrap();
        waker
    });
    assert!(reactor.wait(Some(TIMEOUT)).unwrap());
    assert_eq!(drain(&mut reactor), []);
    assert!(!reactor.has_pending());
    drop(thread.join().unwrap());
}

#[test]
fn the_memory_of_keys_at_the_end_of_the_slab_is_returned() {
    let mut reactor = reactor();
    let keys: Vec<_> = (0..100_000).map(|n: u32| insert(&mut reactor, n)).collect();
    assert!(reactor.capacity() >= keys.len());
    for &key in &keys[1..] {
        // Queued keys keep nothing.
        reactor.resume(key);
        reactor.remove(key);
    }
    reactor.shrink_to_fit();
    assert!(reactor.capacity() < keys.len());
    assert_eq!(reactor.iter_mut().collect::<Vec<_>>(), [(keys[0], &mut 0)]);
}

#[test]
fn another_loop_can_wait_on_the_descriptor() {
    let mut reactor = reactor();
    let (mut outer, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
    let descriptor = reactor.as_fd().as_raw_fd();
    outer.registry().register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE).unwrap();
    outer.poll(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty());

    let (key, _far) = insert_pair(&mut reactor);
    outer.poll(&mut events, Some(TIMEOUT)).unwrap();
    assert!(!events.is_empty());
    assert_eq!(turn(&mut reactor), [(key, Ready::WRITABLE)]);
}

// ---- any order of calls ----

#[derive(Clone, Debug)]
enum Call {
    Wait,
    /// Serves up to this many passes. Each key that is served takes the next step.
    Serve(usize, Vec<Step>),
    Change(Change),
}

/// What follows when a key is served.
#[derive(Clone, Copy, Debug)]
enum Step {
    Wait,
    Again,
    Act(Change),
}

/// The keys are open, or were.
#[derive(Clone, Copy, Debug)]
enum Change {
    Insert,
    Remove(usize),
    Resume(usize),
}

/// What a reactor must do. Each value is a number that is used once.
#[derive(Default)]
struct Model {
    open: BTreeMap<usize, usize>,
    inserted: usize,
    /// Keys that were freed since the last wait.
    freed: BTreeSet<usize>,
    /// Queued keys and their values.
    queue: VecDeque<(usize, usize)>,
    /// How many of the queue belong to this pass, and how many passes follow.
    of_this_pass: usize,
    passes_left: usize,
    steps: VecDeque<Step>,
}

impl Model {
    fn play(&mut self, reactor: &mut Reactor<usize>, call: Call) {
        match call {
            Call::Wait => {
                poll(reactor);
                self.freed.clear();
            }
            Call::Serve(passes, steps) => {
                self.steps = steps.into();
                (self.of_this_pass, self.passes_left) = (self.queue.len(), passes - 1);
                reactor.serve(passes, self);
                assert!(self.of_this_pass == 0 && (self.passes_left == 0 || self.queue.is_empty()), "not served");
            }
            Call::Change(change) => self.change(reactor, change),
        }
    }

    fn change(&mut self, reactor: &mut Reactor<usize>, change: Change) {
        match change {
            Change::Insert => {
                let key = insert(reactor, self.inserted);
                assert!(!self.freed.contains(&key), "a key was used again in the turn that freed it");
                assert_eq!(self.open.insert(key, self.inserted), None, "a key was given twice");
                self.inserted += 1;
            }
            Change::Remove(key) => {
                let value = self.open.remove(&key);
                assert_eq!(reactor.remove(key), value);
                let Some(value) = value else { return };
                self.freed.insert(key);
                if let Some(at) = self.queue.iter().position(|&(_, queued)| queued == value) {
                    self.queue.remove(at);
                    self.of_this_pass -= usize::from(at < self.of_this_pass);
                }
            }
            Change::Resume(key) => {
                reactor.resume(key);
                let Some(&value) = self.open.get(&key) else { return };
                if !self.queue.iter().any(|&(_, queued)| queued == value) {
                    self.queue.push_back((key, value));
                }
            }
        }
    }
}

impl Handler<usize> for Model {
    type Act = Change;

    fn ready(&mut self, key: usize, &mut value: &mut usize, ready: Ready) -> Next<Change> {
        if self.of_this_pass == 0 {
            assert!(self.passes_left > 0, "served in a pass too many");
            (self.of_this_pass, self.passes_left) = (self.queue.len(), self.passes_left - 1);
        }
        assert_eq!((self.queue.pop_front(), ready), (Some((key, value)), NOTHING_NEW));
        self.of_this_pass -= 1;
        match self.steps.pop_front().unwrap_or(Step::Wait) {
            Step::Wait => Next::Wait,
            Step::Again => {
                self.queue.push_back((key, value));
                Next::Again
            }
            Step::Act(change) => Next::Act(change),
        }
    }

    fn act(&mut self, reactor: &mut Reactor<usize>, _: usize, change: Change) -> Next<Infallible> {
        self.change(reactor, change);
        Next::Wait
    }
}

fn changes() -> impl Strategy<Value = Change> {
    let key = 0..6_usize;
    prop_oneof![
        3 => Just(Change::Insert),
        3 => key.clone().prop_map(Change::Remove),
        5 => key.prop_map(Change::Resume),
    ]
}

fn calls() -> impl Strategy<Value = Call> {
    let step = prop_oneof![2 => Just(Step::Wait), 2 => Just(Step::Again), 3 => changes().prop_map(Step::Act)];
    prop_oneof![
        2 => Just(Call::Wait),
        2 => (1..4_usize, vec(step, 0..12)).prop_map(|(passes, steps)| Call::Serve(passes, steps)),
        6 => changes().prop_map(Call::Change),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_of_calls_a_key_is_served_for_its_own_value_and_once_a_pass(calls in vec(calls(), 0..80)) {
        let (mut reactor, mut model) = (reactor(), Model::default());
        for call in calls {
            model.play(&mut reactor, call);
            let open: BTreeMap<_, _> = reactor.iter_mut().map(|(key, &mut value)| (key, value)).collect();
            assert_eq!(open, model.open);
        }

        // Nothing is left of removed values.
        for key in model.open.into_keys() {
            reactor.remove(key);
        }
        poll(&mut reactor);
        assert_eq!(drain(&mut reactor), []);
        assert!(!reactor.has_pending());
        reactor.shrink_to_fit();
        assert_eq!(reactor.capacity(), 0);
    }
}
