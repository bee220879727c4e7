//! The reactor's keys and its run queue, against a model.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use super::Input;
use crate::reactor::Silent;
use crate::simulation::Modelled;
use crate::{Handler, INTEREST, Next, Reactor, Ready};

const VALUES_MAX: usize = 64;

/// What the reactor must hold, and what it must serve next.
struct Model<'a> {
    input: Input<'a>,
    /// What the next wait reports.
    events: Rc<Cell<Vec<(usize, Ready)>>>,
    /// The values by key.
    values: BTreeMap<usize, u64>,
    inserted: u64,
    /// Keys whose value was removed, and that must not be given again yet.
    freed: BTreeSet<usize>,
    /// The run queue, and the same keys as a set. It may have keys whose value was removed since.
    queue: VecDeque<usize>,
    queued: BTreeSet<usize>,
    /// What is left of the reports of this call, and of the keys that were queued when it began.
    reports: VecDeque<usize>,
    left: usize,
}

impl Model<'_> {
    fn insert(&mut self, reactor: &mut Reactor<u64>) {
        if self.values.len() == VALUES_MAX {
            return;
        }
        self.inserted += 1;
        let key = reactor.insert(Silent, INTEREST, |_| self.inserted).unwrap();
        assert!(!self.freed.contains(&key), "key {key} was given again before the next wait");
        assert_eq!(self.values.insert(key, self.inserted), None, "key {key} was given twice");
    }

    fn remove(&mut self, reactor: &mut Reactor<u64>, key: usize) {
        assert_eq!(reactor.remove(key), self.values.remove(&key));
        self.freed.insert(key);
    }

    fn enqueue(&mut self, key: usize) {
        if self.queued.insert(key) {
            self.queue.push_back(key);
        }
    }

    /// Inserts, removes or resumes a value.
    fn change(&mut self, reactor: &mut Reactor<u64>, kind: usize) {
        if kind == 0 {
            return self.insert(reactor);
        }
        let index = self.input.below(VALUES_MAX) % self.values.len().max(1);
        let Some(&key) = self.values.keys().nth(index) else { return };
        if kind == 1 {
            self.remove(reactor, key);
        } else {
            reactor.resume(key);
            self.enqueue(key);
        }
    }

    /// Returns the key to be served next: those reported come first, except one that is queued, whose turn comes in the queue.
    fn next(&mut self) -> Option<usize> {
        while let Some(key) = self.reports.pop_front() {
            if self.values.contains_key(&key) && !self.queued.contains(&key) {
                return Some(key);
            }
        }
        while self.left > 0 {
            self.left -= 1;
            let key = self.queue.pop_front()?;
            self.queued.remove(&key);
            if self.values.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    fn wait(&mut self, reactor: &mut Reactor<u64>) {
        reactor.wait(Some(Duration::ZERO)).unwrap();
        self.freed.retain(|key| self.queued.contains(key));
    }

    /// Reports some keys, and has the reactor serve them and its queue.
    fn serve(&mut self, reactor: &mut Reactor<u64>) {
        let reports: Vec<_> =
            (0..self.input.below(4)).map(|_| (self.input.below(VALUES_MAX), Ready::READABLE)).collect();
        self.reports = reports.iter().map(|&(key, _)| key).collect();
        self.events.set(reports);
        self.wait(reactor);
        self.left = self.queue.len();
        reactor.serve(1, self);
        assert_eq!(self.next(), None, "not served in its turn");
    }
}

impl Handler<u64> for Model<'_> {
    type Act = u8;

    fn ready(&mut self, key: usize, value: &mut u64, _: Ready) -> Next<u8> {
        assert_eq!(self.next(), Some(key));
        assert_eq!(self.values.get(&key), Some(&*value), "key {key} has another value");
        match self.input.below(4) {
            0 => {
                self.enqueue(key);
                Next::Again
            }
            1 => Next::Act(self.input.byte()),
            _ => Next::Wait,
        }
    }

    fn act(&mut self, reactor: &mut Reactor<u64>, key: usize, act: u8) -> Next<Infallible> {
        if act & 1 == 0 {
            self.remove(reactor, key);
        } else {
            self.change(reactor, usize::from(act >> 1) % 3);
        }
        Next::Wait
    }
}

/// Plays the input to a reactor without sockets: reported and queued keys are served in their order, each with its own value, and no key
/// is given again while something may be left for it.
pub fn run_queue(data: &[u8]) {
    let mut reactor = Reactor::new(4).unwrap();
    let events = Rc::new(Cell::new(Vec::new()));
    let reported = Rc::clone(&events);
    let _modelled = Modelled::new(move |_, _, reports| {
        reports.append(&mut reported.take());
        Ok(())
    });
    let mut model = Model {
        input: Input(data),
        events,
        values: BTreeMap::new(),
        inserted: 0,
        freed: BTreeSet::new(),
        queue: VecDeque::new(),
        queued: BTreeSet::new(),
        reports: VecDeque::new(),
        left: 0,
    };
    while !model.input.is_empty() {
        match model.input.below(6) {
            kind @ 0..=2 => model.change(&mut reactor, kind),
            3 => model.wait(&mut reactor),
            4 => {
                reactor.shrink_to_fit();
                model.queue.retain(|key| model.values.contains_key(key));
                model.queued.retain(|key| model.values.contains_key(key));
                model.freed.clear();
            }
            _ => model.serve(&mut reactor),
        }
        assert_eq!(reactor.has_pending(), !model.queue.is_empty());
    }
    for (key, value) in model.values {
        assert_eq!(reactor.remove(key), Some(value));
    }
}
