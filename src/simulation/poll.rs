//! The reactor's poll and the server's clock in tests: the system's, or a model that this thread has set.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use mio::event::Event as SystemEvent;
use mio::{Registry, Token};

use crate::ready::Ready;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    static POLL: RefCell<Option<Box<ModelPoll>>> = const { RefCell::new(None) };
}

/// A modelled poll. It is called with the timeout and with how many reports it may add.
type ModelPoll = dyn FnMut(Option<Duration>, usize, &mut Vec<(usize, Ready)>) -> io::Result<()>;

/// The time of the modelled clock, if this thread has one.
pub(crate) fn now() -> Option<Instant> {
    NOW.get()
}

pub(crate) fn set_now(now: Instant) {
    NOW.set(Some(now));
}

/// While it exists, every poll of this thread is the modelled one. Dropped, it ends the modelled clock too.
pub(crate) struct Modelled;

impl Modelled {
    pub(crate) fn new(
        poll: impl FnMut(Option<Duration>, usize, &mut Vec<(usize, Ready)>) -> io::Result<()> + 'static,
    ) -> Self {
        POLL.set(Some(Box::new(poll)));
        Self
    }
}

impl Drop for Modelled {
    fn drop(&mut self) {
        NOW.set(None);
        POLL.set(None);
    }
}

/// As [`mio::Poll`].
#[derive(Debug)]
pub(crate) struct Poll(mio::Poll);

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        mio::Poll::new().map(Self)
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.0.registry()
    }

    pub(crate) fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.reports.clear();
        let capacity = events.capacity();
        let polled =
            POLL.with_borrow_mut(|poll| poll.as_mut().map(|poll| poll(timeout, capacity, &mut events.reports)));
        polled.unwrap_or_else(|| self.0.poll(&mut events.system, timeout))
    }
}

/// As [`mio::Events`].
#[derive(Debug)]
pub(crate) struct Events {
    system: mio::Events,
    reports: Vec<(usize, Ready)>,
}

impl Events {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { system: mio::Events::with_capacity(capacity), reports: Vec::new() }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.system.capacity()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.system.is_empty() && self.reports.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Event> {
        let system = self.system.iter().map(|event: &SystemEvent| Event(event.token(), event.into()));
        system.chain(self.reports.iter().map(|&(key, ready)| Event(Token(key), ready)))
    }
}

/// As [`mio::event::Event`].
pub(crate) struct Event(Token, Ready);

impl Event {
    pub(crate) fn token(&self) -> Token {
        self.0
    }
}

impl From<Event> for Ready {
    fn from(Event(_, ready): Event) -> Self {
        ready
    }
}
