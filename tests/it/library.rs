//! The library: servers on a thread of their own, handles, observers and counters.

mod binding;
mod turns;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Handle, Observer, Peer, Server, Turn};
use socket2::SockRef;

use crate::support::{
    Event, Recorder, TIMEOUT, assert_echoes, assert_ended, await_not_listening, connect, connect_narrow,
    ends_by_itself, eventually, half_close, join, narrow, pattern, reset, serve,
};

/// An address of these tests alone: once a server has released a port, no other test or client takes it.
const ADDRESS: &str = "127.0.7.2:0";

/// A drain timeout that no test reaches.
fn long_drain() -> Config {
    let mut config = Config::default();
    config.drain_timeout = TIMEOUT;
    config
}

#[track_caller]
fn bind(config: Config) -> Server {
    Server::bind(ADDRESS, config).unwrap()
}

/// Reads at most 16 bytes per turn and connection.
fn one_small_read_per_turn() -> Config {
    let mut config = Config::default();
    config.buffer_size = 16;
    config.reads_per_turn = 1;
    config
}

/// Runs turns without a timeout until `condition` holds.
#[track_caller]
fn turn_until<O: Observer>(server: &mut Server<O>, mut condition: impl FnMut(&Server<O>) -> bool) {
    let start = Instant::now();
    while !condition(server) {
        assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}");
        assert_eq!(turn(server), Turn::Running);
    }
}

#[track_caller]
fn turn<O: Observer>(server: &mut Server<O>) -> Turn {
    let handle = server.handle();
    ends_by_itself(move || handle.stop(), || server.turn(None).unwrap())
}

// ---- spawn ----

#[test]
fn dropping_a_running_server_stops_it_and_joins_its_thread() {
    let server = bind(Config::default()).spawn().unwrap();
    let (address, handle) = (server.local_addr(), server.handle());
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    drop(server);
    // `drop` returns after the thread has ended.
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.closed.stopped), (1, 1));
    await_not_listening(address);
    assert_ended(&mut client);
    Server::bind(address, Config::default()).unwrap();
}

#[test]
fn join_returns_the_report_after_a_drain() {
    let server = bind(Config::default()).spawn().unwrap();
    let handle = server.handle();
    let mut client = connect(server.local_addr());
    assert_echoes(&mut client, b"hola");
    half_close(&client);
    assert_ended(&mut client);
    handle.drain();
    let report = join(server);
    assert_eq!(report.stats, handle.stats());
    assert_eq!(report.stats.closed.end_of_stream, 1);
    assert!(report.elapsed > Duration::ZERO);
}

#[test]
fn a_handle_is_send_and_sync_and_outlives_its_server() {
    fn goes_anywhere<T: Clone + Send + Sync + 'static>(_: &T) {}
    fn moves_anywhere<T: Send + 'static>(_: &T) {}
    let server = bind(Config::default());
    moves_anywhere(&server);
    let handle = server.handle();
    goes_anywhere(&handle);
    let running = server.spawn().unwrap();
    moves_anywhere(&running);

    let asked: Vec<_> = (0..4).map(|_| handle.clone()).map(|handle| thread::spawn(move || handle.drain())).collect();
    for thread in asked {
        thread.join().unwrap();
    }
    let report = join(running);
    handle.drain();
    handle.stop();
    assert_eq!(handle.stats(), report.stats);
}

// ---- observers and counters ----

/// Returns the events of one connection that echoes four bytes and is then ended by `end`. A stream that `end` returns stays
/// open.
#[track_caller]
fn events_of_one_connection(config: Config, end: impl FnOnce(TcpStream, &Handle) -> Option<TcpStream>) -> Vec<Event> {
    let recorder = Recorder::default();
    let server = bind(config).with_observer(recorder.clone()).spawn().unwrap();
    let handle = server.handle();
    let mut client = connect(server.local_addr());
    let address = client.local_addr().unwrap();
    assert_echoes(&mut client, b"hola");
    let kept = end(client, &handle);
    eventually("the close", || handle.stats().closed.total() == 1);
    handle.drain();
    join(server);
    drop(kept);

    let events = recorder.take();
    let peer = events[0].0;
    assert_eq!(peer.address, address);
    assert!(events.iter().all(|(of, _)| *of == peer), "{events:?}");
    events.into_iter().map(|(_, event)| event).collect()
}

#[test]
fn the_observer_gets_the_events_in_order_and_the_close_reason() {
    use Event::{Closed as ClosedFor, Ended, Opened, Received};

    let events = events_of_one_connection(Config::default(), |client, _| {
        half_close(&client);
        Some(client)
    });
    assert_eq!(events, [Opened, Received(4), Ended, ClosedFor(CloseReason::EndOfStream)]);

    let events = events_of_one_connection(Config::default(), |client, _| {
        reset(client);
        None
    });
    assert_eq!(events, [Opened, Received(4), ClosedFor(CloseReason::Reset)]);

    let events = events_of_one_connection(long_drain(), |mut client, handle| {
        handle.drain();
        assert_ended(&mut client);
        half_close(&client);
        Some(client)
    });
    assert_eq!(events, [Opened, Received(4), Ended, ClosedFor(CloseReason::Drained)]);

    let mut config = Config::default();
    config.drain_timeout = Duration::ZERO;
    let events = events_of_one_connection(config, |client, handle| {
        handle.drain();
        Some(client)
    });
    assert_eq!(events, [Opened, Received(4), ClosedFor(CloseReason::Cut)]);

    let events = events_of_one_connection(Config::default(), |client, handle| {
        handle.stop();
        Some(client)
    });
    assert_eq!(events, [Opened, Received(4), ClosedFor(CloseReason::Stopped)]);
}

/// The kernel closes a connection whose data stays unacknowledged for `TCP_USER_TIMEOUT` (tcp(7)).
#[test]
#[cfg(target_os = "linux")]
fn tcp_user_timeout_is_reported_as_a_failure() {
    let server = {
        let listener = TcpListener::bind(ADDRESS).unwrap();
        listener.set_nonblocking(true).unwrap();
        SockRef::from(&listener).set_tcp_user_timeout(Some(Duration::from_millis(100))).unwrap();
        Server::from_listener(listener, narrow()).unwrap()
    };
    let recorder = Recorder::default();
    let server = server.with_observer(recorder.clone()).spawn().unwrap();
    let handle = server.handle();
    let client = connect_narrow(server.local_addr());
    let writer = client.try_clone().unwrap();
    let writer = thread::spawn(move || (&writer).write_all(&pattern(4 << 20)).unwrap_err());
    eventually("the close", || handle.stats().closed.total() == 1);
    assert_eq!(handle.stats().closed.failed, 1);
    assert_eq!(recorder.take().last().unwrap().1, Event::Closed(CloseReason::Failed(ErrorKind::TimedOut)));
    // The connection may be closed already.
    let _ = client.shutdown(Shutdown::Both);
    writer.join().unwrap();
}

/// The open keys, and the number of connections in total.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<(BTreeSet<usize>, usize)>>);

impl Observer for Keys {
    fn opened(&mut self, peer: Peer) {
        let mut keys = self.0.lock().unwrap();
        assert!(keys.0.insert(peer.key), "the key {} is in use", peer.key);
        keys.1 += 1;
    }

    fn received(&mut self, peer: Peer, _: &[u8]) {
        assert!(self.0.lock().unwrap().0.contains(&peer.key));
    }

    fn ended(&mut self, peer: Peer) {
        assert!(self.0.lock().unwrap().0.contains(&peer.key));
    }

    fn closed(&mut self, peer: Peer, _: CloseReason) {
        assert!(self.0.lock().unwrap().0.remove(&peer.key));
    }
}

#[test]
fn open_connections_have_distinct_keys() {
    let keys = Keys::default();
    let server = bind(Config::default()).with_observer(keys.clone()).spawn().unwrap();
    let address = server.local_addr();
    let clients: Vec<_> = (0..4)
        .map(|thread| {
            thread::spawn(move || {
                for number in 0..50 {
                    let (mut client, mut other) = (connect(address), connect(address));
                    assert_echoes(&mut client, b"hola");
                    if (number + thread) % 2 == 0 {
                        reset(client);
                    }
                    assert_echoes(&mut other, b"adios");
                }
            })
        })
        .collect();
    for thread in clients {
        thread.join().unwrap();
    }
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 400);
    let keys = keys.0.lock().unwrap();
    assert_eq!((keys.0.len(), keys.1), (0, 400));
}

#[test]
fn an_observer_without_methods_does_not_change_the_echo() {
    struct Silent;
    impl Observer for Silent {}
    let mut server = bind(Config::default()).with_observer(());
    let () = *server.observer();
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    turn_until(&mut server, |server| server.report().stats.bytes_out == 4);

    drop(client);
    let server = bind(Config::default()).with_observer(Silent).spawn().unwrap();
    assert_echoes(&mut connect(server.local_addr()), b"hola");
}

#[test]
fn the_counters_agree_with_the_clients() {
    let server = serve(long_drain());
    let handle = server.handle();
    let mut clients: Vec<_> = (0..6).map(|_| connect(server.local_addr())).collect();
    for (client, length) in clients.iter_mut().zip([1, 10, 100, 1000, 10_000, 100_000]) {
        assert_echoes(client, &pattern(length));
    }
    // Bytes are counted after they are sent.
    eventually("all bytes counted", || handle.stats().bytes_out == 111_111);
    let stats = handle.stats();
    assert_eq!((stats.accepted, stats.open(), stats.closed.total()), (6, 6, 0));
    assert_eq!((stats.bytes_in, stats.discarded), (111_111, 0));

    half_close(&clients[0]);
    half_close(&clients[1]);
    reset(clients.pop().unwrap());
    eventually("three connections closed", || handle.stats().closed.total() == 3);
    assert_eq!(handle.stats().open(), 3);

    handle.drain();
    for client in &mut clients[2..] {
        assert_ended(client);
        client.write_all(b"too late").unwrap();
        half_close(client);
    }
    let stats = join(server).stats;
    assert_eq!((stats.accepted, stats.open(), stats.closed.total()), (6, 0, 6));
    assert_eq!((stats.closed.end_of_stream, stats.closed.reset, stats.closed.drained), (2, 1, 3));
    assert_eq!((stats.bytes_in, stats.bytes_out, stats.discarded), (111_135, 111_111, 24));
}

#[test]
#[cfg(feature = "serde")]
fn the_report_is_serialized_with_the_names_of_the_commands_document() {
    let server = serve(Config::default());
    let mut client = connect(server.local_addr());
    assert_echoes(&mut client, b"hola");
    server.drain();
    assert_ended(&mut client);
    drop(client);
    let mut document = serde_json::to_value(join(server)).unwrap();
    assert!(document.as_object_mut().unwrap().remove("seconds").unwrap().as_f64().unwrap() > 0.0);
    let expected = serde_json::json!({
        "accepted": 1,
        "closed": {
            "end_of_stream": 0, "reset": 0, "failed": 0, "idle": 0, "stalled": 0, "drained": 1, "cut": 0, "stopped": 0, "fault": 0,
        },
        "faults": {
            "delay": 0, "rate": 0, "chunk": 0, "stall": 0, "mute": 0, "reset": 0, "fin": 0,
            "flip": 0, "lose": 0, "duplicate": 0, "swap": 0, "connect": 0,
        },
        "refused": {"max_connections": 0, "per_source": 0, "not_allowed": 0},
        "bytes_in": 4,
        "bytes_out": 4,
        "discarded": 0,
        "accept_errors": {},
    });
    assert_eq!(document, expected);
}
