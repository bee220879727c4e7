//! What a panic of the observer does: it reaches the caller, and harms no other connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Handle, Observer, Peer, Running, Server, Turn};

use crate::support::{
    Event, Recorder, TIMEOUT, TcpState, assert_ended, assert_receives, await_state, connect, eventually, half_close,
    pattern, turn_until,
};

const ADDRESS: &str = "127.0.0.1:0";

/// Panics with a payload of the test. `resume_unwind` prints nothing, unlike `panic!`.
fn panic_with(payload: &'static str) -> ! {
    panic::resume_unwind(Box::new(payload))
}

/// Panics at the first connection, and tells the test before.
struct PanicsAtOpened(Sender<()>);

impl Observer for PanicsAtOpened {
    fn opened(&mut self, _: Peer) {
        self.0.send(()).unwrap();
        panic_with("observed");
    }
}

/// Returns a server whose observer has panicked.
#[track_caller]
fn panicked() -> Running<PanicsAtOpened> {
    let (sender, panics) = mpsc::channel();
    let server =
        Server::bind(ADDRESS, Config::default()).unwrap().with_observer(PanicsAtOpened(sender)).spawn().unwrap();
    // This may fail: the panic closes every socket.
    let _ = TcpStream::connect(server.local_addr());
    panics.recv_timeout(TIMEOUT).unwrap();
    server
}

#[track_caller]
fn payload_of(run: impl FnOnce() + Send + 'static) -> &'static str {
    thread::spawn(run).join().unwrap_err().downcast_ref::<&str>().unwrap()
}

#[test]
fn join_and_drop_resume_the_panic_of_the_observer() {
    let server = panicked();
    assert_eq!(payload_of(move || drop(server.join())), "observed");
    let server = panicked();
    assert_eq!(payload_of(move || drop(server)), "observed");
}

#[test]
fn a_drop_during_another_panic_does_not_abort_the_process() {
    let server = panicked();
    let payload = payload_of(move || {
        let _server = server;
        panic_with("another");
    });
    assert_eq!(payload, "another");
}

/// Ends the `Running` of its own server at the first connection.
struct EndsItself {
    running: Arc<Mutex<Option<Running<Self>>>>,
    end: fn(Running<Self>),
}

impl Observer for EndsItself {
    fn opened(&mut self, _: Peer) {
        let running = self.running.lock().unwrap().take().unwrap();
        (self.end)(running);
    }
}

#[test]
fn a_running_server_that_is_dropped_or_joined_on_its_own_thread_stops() {
    let join: fn(Running<EndsItself>) = |running| {
        assert_eq!(running.join().unwrap_err().kind(), ErrorKind::Deadlock);
    };
    for end in [drop, join] {
        let running = Arc::new(Mutex::new(None));
        let observer = EndsItself { running: Arc::clone(&running), end };
        let server = Server::bind(ADDRESS, Config::default()).unwrap().with_observer(observer);
        let (address, handle) = (server.local_addr(), server.handle());
        *running.lock().unwrap() = Some(server.spawn().unwrap());
        let mut client = connect(address);
        assert_ended(&mut client);
        eventually("the stop", || handle.stats().closed.stopped == 1);
    }
}

#[test]
fn dropping_a_server_closes_each_connection_as_stopped() {
    let recorder = Recorder::default();
    let mut server = Server::bind(ADDRESS, Config::default()).unwrap().with_observer(recorder.clone());
    let handle = server.handle();
    let clients: Vec<_> = (0..3).map(|_| connect(server.local_addr())).collect();
    turn_until(&mut server, |_| handle.stats().accepted == 3);
    drop(server);
    let stats = handle.stats();
    assert_eq!((stats.closed.stopped, stats.open()), (3, 0));
    let closed = recorder.take().into_iter().filter(|(_, event)| *event == Event::Closed(CloseReason::Stopped));
    let mut peers: Vec<_> = closed.map(|(peer, _)| peer.address).collect();
    let mut addresses: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
    peers.sort();
    addresses.sort();
    assert_eq!(peers, addresses);
}

/// Panics in each call of `closed`, and counts them.
struct PanicsAtClosed(Arc<Mutex<usize>>);

impl Observer for PanicsAtClosed {
    fn closed(&mut self, _: Peer, _: CloseReason) {
        *self.0.lock().unwrap() += 1;
        panic_with("closed");
    }
}

#[test]
fn every_connection_is_closed_though_each_call_of_closed_panics() {
    let ends: [fn(Server<PanicsAtClosed>); 2] = [drop, |mut server| {
        server.handle().stop();
        let stopped = panic::catch_unwind(AssertUnwindSafe(|| server.turn(None).map(drop)));
        assert_eq!(server.turn(None).unwrap(), Turn::Finished);
        panic::resume_unwind(stopped.unwrap_err());
    }];
    for end in ends {
        let calls = Arc::new(Mutex::new(0));
        let mut server =
            Server::bind(ADDRESS, Config::default()).unwrap().with_observer(PanicsAtClosed(Arc::clone(&calls)));
        let handle = server.handle();
        let mut clients: Vec<_> = (0..3).map(|_| connect(server.local_addr())).collect();
        turn_until(&mut server, |_| handle.stats().accepted == 3);
        assert_eq!(payload_of(move || end(server)), "closed");
        assert_eq!((handle.stats().closed.stopped, *calls.lock().unwrap()), (3, 3));
        clients.iter_mut().for_each(assert_ended);
    }
}

/// The calls of an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Waiting,
    Woken,
    Opened,
    Closed,
}

/// Panics at the first calls of one kind, and counts the panics.
#[derive(Clone)]
struct Panics(Rc<RefCell<BTreeMap<Call, u32>>>);

impl Panics {
    /// Panics if calls of this kind are left to.
    fn at(&self, call: Call) {
        let mut left = self.0.borrow_mut();
        if let Some(count) = left.get_mut(&call).filter(|count| **count > 0) {
            *count -= 1;
            drop(left);
            panic_with("caught");
        }
    }
}

impl Observer for Panics {
    fn waiting(&mut self) {
        self.at(Call::Waiting);
    }

    fn woken(&mut self, _: usize) {
        self.at(Call::Woken);
    }

    fn opened(&mut self, _: Peer) {
        self.at(Call::Opened);
    }

    fn closed(&mut self, _: Peer, _: CloseReason) {
        self.at(Call::Closed);
    }
}

/// Takes turns, and catches the panics of each, until `is_over`.
#[track_caller]
fn turn_through_panics(server: &mut Server<Panics>, mut is_over: impl FnMut(&Handle) -> bool) -> Turn {
    let (start, handle) = (Instant::now(), server.handle());
    let mut last = Turn::Running;
    while !is_over(&handle) && last == Turn::Running {
        let waited = Instant::now();
        if let Ok(turn) = panic::catch_unwind(AssertUnwindSafe(|| server.turn(Some(TIMEOUT)))) {
            last = turn.unwrap();
        }
        assert!(waited.elapsed() < TIMEOUT, "a turn has waited for an event that a panic had lost");
        assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}");
    }
    last
}

/// Everything is there before the first turn, so that one event announces it.
#[test]
fn a_panic_that_is_caught_around_a_turn_loses_no_other_connection() {
    const CLIENTS: usize = 5;
    let calls = [Call::Waiting, Call::Woken, Call::Opened, Call::Closed];
    let message = pattern(5000);
    for call in calls {
        for (count, proxy_protocol) in [(3, false), (2, true)] {
            let mut config = Config::default();
            config.proxy_protocol = proxy_protocol;
            config.max_connections = CLIENTS - 1;
            config.drain_timeout = TIMEOUT;
            let panics = Panics(Rc::new(RefCell::new(BTreeMap::from([(call, count)]))));
            let mut server = Server::bind(ADDRESS, config).unwrap().with_observer(panics.clone());
            let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(server.local_addr())).collect();
            let header: &[u8] = if proxy_protocol { b"PROXY UNKNOWN\r\n" } else { b"" };
            for client in &mut clients {
                client.write_all(&[header, &message].concat()).unwrap();
                half_close(client);
            }
            await_state(&clients[CLIENTS - 1], TcpState::CloseWait);
            let _ = turn_through_panics(&mut server, |handle| handle.stats().closed.total() == CLIENTS as u64);
            assert_eq!(panics.0.borrow()[&call], 0, "{call:?}");
            let stats = server.report().stats;
            assert_eq!(stats.bytes_out, (CLIENTS * message.len()) as u64, "{call:?}");
            for client in &mut clients {
                assert_receives(client, &message);
                assert_ended(client);
            }
            server.handle().drain();
            assert_eq!(turn_through_panics(&mut server, |_| false), Turn::Finished);
        }
    }
}

#[test]
fn a_panic_in_a_drain_does_not_keep_the_server_from_its_end() {
    for (call, count) in [(Call::Opened, 2), (Call::Closed, 2), (Call::Woken, 1)] {
        let mut config = Config::default();
        config.drain_timeout = Duration::ZERO;
        let panics = Panics(Rc::new(RefCell::new(BTreeMap::from([(call, count)]))));
        let mut server = Server::bind(ADDRESS, config).unwrap().with_observer(panics.clone());
        let mut clients: Vec<_> = (0..3).map(|_| connect(server.local_addr())).collect();
        // The connections are accepted when the drain begins.
        server.handle().drain();
        assert_eq!(turn_through_panics(&mut server, |_| false), Turn::Finished);
        assert_eq!(panics.0.borrow()[&call], 0, "{call:?}");
        assert_eq!(server.report().stats.closed.cut, 3, "{call:?}");
        clients.iter_mut().for_each(assert_ended);
    }
}
