//! The library: `bind`, `run`, `turn` and its deadline, `spawn`, handles, observers and counters.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Handle, Observer, Peer, Server, SourceLimit, Turn};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{
    Event, Process, Recorder, Scratch, TIMEOUT, assert_echoes, assert_ended, assert_receives, await_unread, connect,
    connect_narrow, ends_by_itself, eventually, half_close, is_listening, join, narrow, pattern, reset, serve,
};

/// An address of these tests alone: once a server has released a port, no other test or client takes it.
const ADDRESS: &str = "127.0.0.3:0";

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

// ---- bind and from_listener ----

#[test]
fn bind_listens_on_every_address_of_a_name() {
    let server = Server::bind(("localhost", 0), Config::default()).unwrap().spawn().unwrap();
    let addresses = server.local_addrs();
    let resolved: BTreeSet<_> = ("localhost", 0).to_socket_addrs().unwrap().map(|address| address.ip()).collect();
    assert_eq!(addresses.iter().map(SocketAddr::ip).collect::<BTreeSet<_>>(), resolved);
    for &address in addresses {
        assert_echoes(&mut connect(address), b"hola");
    }
}

#[test]
fn local_addrs_are_in_the_order_of_bind_with_their_actual_ports() {
    let addresses: [SocketAddr; 2] = ["127.0.0.4:0", ADDRESS].map(|address| address.parse().unwrap());
    let server = Server::bind(&addresses[..], Config::default()).unwrap();
    let bound = server.local_addrs().to_vec();
    assert_eq!(bound.iter().map(SocketAddr::ip).collect::<Vec<_>>(), addresses.map(|address| address.ip()));
    assert!(bound.iter().all(|&address| address.port() != 0 && is_listening(address)));
    assert_eq!(server.local_addr(), bound[0]);

    let running = server.spawn().unwrap();
    assert_eq!(running.local_addrs(), bound);
    assert_eq!(running.local_addr(), bound[0]);
}

#[test]
fn if_one_address_cannot_be_bound_none_is_served() {
    let taken = TcpListener::bind(ADDRESS).unwrap();
    let second = taken.local_addr().unwrap();
    let first = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 4).into(), second.port());
    let error = Server::bind(&[first, second][..], Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().starts_with(&format!("cannot listen on {second}: ")), "{error}");

    assert_eq!(TcpStream::connect(first).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Without SO_REUSEADDR this fails if any socket still has the address.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&first.into()).unwrap();
}

#[test]
fn the_error_of_bind_names_the_address() {
    // An address of the documentation block, which no machine has (RFC 5737).
    let error = Server::bind("192.0.2.1:0", Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    assert!(error.to_string().starts_with("cannot listen on 192.0.2.1:0: "), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn the_error_of_the_system_is_the_source_of_the_one_that_names_the_address() {
    let taken = TcpListener::bind(ADDRESS).unwrap();
    let error = Server::bind(taken.local_addr().unwrap(), Config::default()).unwrap_err();
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap();
    assert_eq!(source.raw_os_error(), Some(98), "EADDRINUSE of Linux");
    assert_eq!(error.to_string(), format!("cannot listen on {}: {source}", taken.local_addr().unwrap()));
}

#[test]
fn bind_without_an_address_is_invalid_input() {
    let error = Server::bind(&[][..], Config::default()).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, "no address to listen on"));
}

#[test]
fn ipv4_and_ipv6_wildcards_share_a_port() {
    // A port that is free for IPv6 may be taken for IPv4.
    let servers = (0..100).find_map(|_| {
        let six = Server::bind((Ipv6Addr::UNSPECIFIED, 0), Config::default()).unwrap();
        match Server::bind((Ipv4Addr::UNSPECIFIED, six.local_addr().port()), Config::default()) {
            Ok(four) => Some((four, six)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::AddrInUse);
                None
            }
        }
    });
    let (four, six) = servers.expect("no port is free for both");
    let (four, six) = (four.spawn().unwrap(), six.spawn().unwrap());
    let port = four.local_addr().port();
    let mut clients = [connect((Ipv4Addr::LOCALHOST, port).into()), connect((Ipv6Addr::LOCALHOST, port).into())];
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    assert_eq!((four.handle().stats().accepted, six.handle().stats().accepted), (1, 1));
}

#[test]
fn two_servers_share_a_port_only_with_reuse_port() {
    let mut config = Config::default();
    config.reuse_port = true;
    let one = bind(config.clone()).spawn().unwrap();
    let address = one.local_addr();
    let other = Server::bind(address, config).unwrap().spawn().unwrap();
    // The kernel chooses the server by a hash of the addresses and ports.
    eventually("a connection on each server", || {
        assert_echoes(&mut connect(address), b"hola");
        one.handle().stats().accepted > 0 && other.handle().stats().accepted > 0
    });
    assert_eq!(Server::bind(address, Config::default()).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn dropping_a_server_closes_its_listener() {
    let server = bind(Config::default());
    let address = server.local_addr();
    assert!(is_listening(address));
    drop(server);
    assert!(!is_listening(address));
}

#[test]
fn from_listener_sets_the_listener_non_blocking() {
    let listener = TcpListener::bind(ADDRESS).unwrap();
    let address = listener.local_addr().unwrap();
    let same = listener.try_clone().unwrap();
    assert!(!SockRef::from(&same).nonblocking().unwrap());
    let server = Server::from_listener(listener, Config::default()).unwrap();
    assert!(SockRef::from(&same).nonblocking().unwrap());
    assert_eq!(server.local_addrs(), [address]);
    let server = server.spawn().unwrap();
    let mut clients = [connect(address), connect(address)];
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    assert_eq!(server.handle().stats().open(), 2);
}

#[test]
#[cfg(target_os = "linux")]
fn from_listener_refuses_a_socket_that_does_not_listen() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&ADDRESS.parse::<SocketAddr>().unwrap().into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let same = socket.try_clone().unwrap();
    let error = Server::from_listener(socket.into(), Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let text = format!("cannot serve {address}: the socket does not listen; call listen(2) before");
    assert_eq!(error.to_string(), text);

    same.listen(16).unwrap();
    let server = Server::from_listener(same.into(), Config::default()).unwrap().spawn().unwrap();
    assert_echoes(&mut connect(server.local_addr()), b"hola");
}

#[test]
fn from_listeners_serves_every_listener_and_needs_one() {
    let listeners = vec![TcpListener::bind(ADDRESS).unwrap(), TcpListener::bind(ADDRESS).unwrap()];
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let server = Server::from_listeners(listeners, Config::default()).unwrap().spawn().unwrap();
    assert_eq!(server.local_addrs(), addresses);
    for address in addresses {
        assert_echoes(&mut connect(address), b"hola");
    }
    let error = Server::from_listeners(Vec::new(), Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

// ---- invalid configurations ----

/// The name of an option, and how to set it to an invalid value.
type InvalidOption = (&'static str, fn(&mut Config));

#[test]
fn a_zero_is_invalid_and_the_error_names_the_option() {
    let zeros: [InvalidOption; 13] = [
        ("buffer_size", |config| config.buffer_size = 0),
        ("backlog", |config| config.backlog = 0),
        ("max_connections", |config| config.max_connections = 0),
        ("reads_per_turn", |config| config.reads_per_turn = 0),
        ("accepts_per_turn", |config| config.accepts_per_turn = 0),
        ("events_per_turn", |config| config.events_per_turn = 0),
        ("recv_buffer", |config| config.recv_buffer = Some(0)),
        ("send_buffer", |config| config.send_buffer = Some(0)),
        ("idle_timeout", |config| config.idle_timeout = Some(Duration::ZERO)),
        ("stall_timeout", |config| config.stall_timeout = Some(Duration::ZERO)),
        ("keepalive", |config| config.keepalive = Some(Duration::from_millis(999))),
        ("max_per_source", |config| config.max_per_source = Some(SourceLimit::new(0))),
        ("accept_rate", |config| config.accept_rate = Some(0.0)),
    ];
    assert_each_is_invalid(&zeros);
}

#[test]
#[cfg(target_pointer_width = "64")]
fn a_value_above_the_systems_range_is_invalid_and_the_error_names_the_option() {
    let too_much: [InvalidOption; 8] = [
        ("buffer_size", |config| config.buffer_size = (1 << 30) + 1),
        ("backlog", |config| config.backlog = 1 << 31),
        ("events_per_turn", |config| config.events_per_turn = (1 << 20) + 1),
        ("recv_buffer", |config| config.recv_buffer = Some(1 << 31)),
        ("send_buffer", |config| config.send_buffer = Some(1 << 31)),
        ("keepalive", |config| config.keepalive = Some(Duration::from_secs(32768))),
        ("accept_rate", |config| config.accept_rate = Some(f64::INFINITY)),
        ("max_per_source", |config| {
            config.max_per_source = Some(SourceLimit { ipv4_prefix: 33, ..SourceLimit::new(1) });
        }),
    ];
    assert_each_is_invalid(&too_much);
}

#[track_caller]
fn assert_each_is_invalid(options: &[InvalidOption]) {
    for (name, change) in options {
        let mut config = Config::default();
        change(&mut config);
        let listener = TcpListener::bind(ADDRESS).unwrap();
        for result in [Server::bind(ADDRESS, config.clone()), Server::from_listener(listener, config)] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().starts_with(&format!("{name} is ")), "{error}");
        }
    }
}

// ---- run, turn, and the deadline ----

#[test]
fn run_returns_after_drain_and_after_stop() {
    for end in [Handle::drain, Handle::stop] {
        let mut server = bind(Config::default());
        let (address, handle) = (server.local_addr(), server.handle());
        let thread = thread::spawn(move || {
            let report = server.run().unwrap();
            // Further runs return the same.
            assert_eq!(server.run().unwrap().stats, report.stats);
            report
        });
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        half_close(&client);
        assert_ended(&mut client);
        assert!(!handle.is_ending());
        assert!(!thread.is_finished());

        end(&handle);
        assert!(handle.is_ending());
        eventually("the return of `run`", || thread.is_finished());
        let stats = thread.join().unwrap().stats;
        assert_eq!((stats.accepted, stats.closed.end_of_stream), (1, 1));
        assert_eq!((stats.bytes_in, stats.bytes_out), (4, 4));
        assert!(!is_listening(address));
    }
}

#[test]
fn turns_with_a_zero_timeout_echo() {
    let mut server = bind(Config::default());
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    half_close(&client);
    let handle = server.handle();
    eventually("the close", || {
        assert_eq!(server.turn(Some(Duration::ZERO)).unwrap(), Turn::Running);
        handle.stats().closed.end_of_stream == 1
    });
    assert_receives(&mut client, b"hola");
    assert_ended(&mut client);
}

#[test]
fn a_turn_returns_at_its_timeout() {
    let mut server = bind(Config::default());
    let handle = server.handle();
    let wait = || server.turn(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(ends_by_itself(move || handle.stop(), wait), Turn::Running);
}

#[test]
fn an_idle_server_has_no_deadline() {
    let mut server = bind(Config::default());
    assert_eq!(server.next_deadline(), None);
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    turn_until(&mut server, |server| server.report().stats.bytes_out == 4);
    assert_eq!(server.next_deadline(), None);
    half_close(&client);
    turn_until(&mut server, |server| server.report().stats.closed.end_of_stream == 1);
    assert_eq!(server.next_deadline(), None);
}

#[test]
fn with_work_left_over_the_deadline_is_now_and_a_turn_does_not_wait() {
    let mut server = bind(one_small_read_per_turn());
    let mut client = connect(server.local_addr());
    client.write_all(&pattern(64)).unwrap();
    await_unread(&client, 64);
    turn_until(&mut server, |server| server.report().stats.bytes_in > 0);
    for echoed in [16, 32, 48, 64] {
        assert_eq!(server.report().stats.bytes_out, echoed);
        assert!(server.next_deadline().is_some_and(|at| at <= Instant::now()));
        assert_eq!(turn(&mut server), Turn::Running);
    }
    // The last read has returned `WouldBlock`.
    assert_eq!(server.next_deadline(), None);
    assert_receives(&mut client, &pattern(64));
}

/// On a socket that does not listen any more, accept(2) fails with EINVAL.
#[test]
#[cfg(target_os = "linux")]
fn a_failed_accept_is_retried_at_the_deadline() {
    let open = |address: SocketAddr| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket
    };
    // The end of listening frees a port that the system has chosen, not one that was asked for. Another socket keeps it meanwhile.
    let keeper = open(ADDRESS.parse().unwrap());
    let socket = open(keeper.local_addr().unwrap().as_socket().unwrap());
    socket.listen(16).unwrap();
    let mut server = Server::from_listener(socket.try_clone().unwrap().into(), Config::default()).unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    let start = Instant::now();
    turn_until(&mut server, |server| server.next_deadline().is_some());
    let first = server.next_deadline().unwrap();
    assert!(first > start && first <= Instant::now() + Duration::from_millis(100));

    // There is no event: only the deadline ends the turn, and the accept fails again.
    turn_until(&mut server, |server| server.next_deadline() != Some(first));
    assert!(Instant::now() >= first);
    assert!(server.next_deadline() > Some(first));

    socket.listen(16).unwrap();
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    turn_until(&mut server, |server| server.report().stats.bytes_out == 4);
    assert_receives(&mut client, b"hola");
    assert_eq!(server.next_deadline(), None);
}

/// The data has arrived before the first turn, so that a loaded machine cannot make the connection idle before its echo.
#[test]
fn with_an_idle_timeout_the_deadline_is_the_next_idle_check() {
    let mut config = Config::default();
    config.idle_timeout = Some(Duration::from_millis(40));
    let recorder = Recorder::default();
    let mut server = bind(config).with_observer(recorder.clone());
    assert_eq!(server.next_deadline(), None, "there is no connection to check");
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    await_unread(&client, 4);
    turn_until(&mut server, |server| server.report().stats.accepted == 1);
    assert!(server.next_deadline().is_some_and(|at| at <= Instant::now() + Duration::from_millis(10)));

    let handle = server.handle();
    let client = thread::spawn(move || {
        assert_receives(&mut client, b"hola");
        assert_ended(&mut client);
        // Without a connection there is no deadline that would end the turn.
        handle.stop();
    });
    while turn(&mut server) == Turn::Running {}
    client.join().unwrap();
    let events: Vec<_> = recorder.take().into_iter().map(|(_, event)| event).collect();
    assert_eq!(events, [Event::Opened, Event::Received(4), Event::Closed(CloseReason::Idle)]);
}

#[test]
fn while_draining_the_deadline_is_the_next_idle_check() {
    let mut server = bind(long_drain());
    let mut client = connect(server.local_addr());
    turn_until(&mut server, |server| server.report().stats.accepted == 1);
    server.handle().drain();
    assert_eq!(turn(&mut server), Turn::Running);
    assert!(server.next_deadline().is_some_and(|at| at <= Instant::now() + Duration::from_millis(50)));

    let client = thread::spawn(move || assert_ended(&mut client));
    while turn(&mut server) == Turn::Running {}
    client.join().unwrap();
    assert_eq!(server.report().stats.closed.drained, 1);
}

#[test]
fn while_draining_the_deadline_is_the_drain_timeout_if_that_is_earlier() {
    let mut config = Config::default();
    config.drain_timeout = Duration::from_millis(1);
    let mut server = bind(config);
    let _client = connect(server.local_addr());
    turn_until(&mut server, |server| server.report().stats.accepted == 1);
    server.handle().drain();
    assert_eq!(turn(&mut server), Turn::Running);
    assert!(server.next_deadline().is_some_and(|at| at <= Instant::now() + Duration::from_millis(1)));
    while turn(&mut server) == Turn::Running {}
    assert_eq!(server.report().stats.closed.cut, 1);
}

#[test]
fn a_finished_server_stays_finished_and_has_no_deadline() {
    let mut config = one_small_read_per_turn();
    config.drain_timeout = Duration::ZERO;
    let mut server = bind(config);
    let mut client = connect(server.local_addr());
    client.write_all(&pattern(64)).unwrap();
    await_unread(&client, 64);
    turn_until(&mut server, |server| server.report().stats.bytes_in > 0);
    server.handle().drain();
    // The drain timeout expires with work left over.
    while turn(&mut server) == Turn::Running {}
    assert_eq!(server.report().stats.closed.cut, 1);
    for timeout in [None, Some(Duration::ZERO), Some(TIMEOUT)] {
        assert_eq!(server.next_deadline(), None);
        assert_eq!(server.turn(timeout).unwrap(), Turn::Finished);
    }
}

// ---- nested in another loop ----

/// An edge-triggered outer loop, which runs a turn only when the server's descriptor is ready or its deadline has passed.
struct Outer {
    poll: Poll,
    events: Events,
}

impl Outer {
    fn around<O: Observer>(server: &Server<O>) -> Self {
        let poll = Poll::new().unwrap();
        let descriptor = server.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE).unwrap();
        Self { poll, events: Events::with_capacity(8) }
    }

    /// Polls once, then runs turns with a zero timeout until no work is left over.
    #[track_caller]
    fn turn<O: Observer>(&mut self, server: &mut Server<O>) -> Turn {
        let deadline = server.next_deadline();
        let wait = deadline.map_or(TIMEOUT, |at| at.saturating_duration_since(Instant::now()));
        self.poll.poll(&mut self.events, Some(wait)).unwrap();
        assert!(deadline.is_some() || !self.events.is_empty(), "the poll has timed out");
        loop {
            let turn = server.turn(Some(Duration::ZERO)).unwrap();
            if turn == Turn::Finished || server.next_deadline().is_none_or(|at| at > Instant::now()) {
                return turn;
            }
        }
    }

    #[track_caller]
    fn turn_until<O: Observer>(&mut self, server: &mut Server<O>, condition: impl Fn(&Server<O>) -> bool) {
        let start = Instant::now();
        while !condition(server) {
            assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}");
            assert_eq!(self.turn(server), Turn::Running);
        }
    }
}

#[test]
fn a_nested_server_reads_all_data_of_one_outer_edge() {
    let mut server = bind(one_small_read_per_turn());
    let mut outer = Outer::around(&server);
    for _ in 0..3 {
        let mut client = connect(server.local_addr());
        let message = pattern(1024);
        client.write_all(&message).unwrap();
        await_unread(&client, message.len());
        let before = server.report().stats;
        outer.turn_until(&mut server, |server| server.report().stats.bytes_in > before.bytes_in);
        // 64 turns follow one event of the outer loop.
        assert_eq!(server.report().stats.bytes_out, before.bytes_out + 1024);
        assert_receives(&mut client, &message);

        half_close(&client);
        let closed = before.closed.end_of_stream + 1;
        outer.turn_until(&mut server, |server| server.report().stats.closed.end_of_stream == closed);
        assert_ended(&mut client);
    }
}

#[test]
fn a_nested_server_accepts_all_connections_of_one_outer_edge() {
    let mut config = Config::default();
    config.accepts_per_turn = 1;
    config.events_per_turn = 2;
    let mut server = bind(config);
    let mut clients: Vec<_> = (0..10).map(|_| connect(server.local_addr())).collect();
    for client in &mut clients {
        client.write_all(b"hola").unwrap();
        await_unread(client, 4);
    }
    let mut outer = Outer::around(&server);
    outer.turn_until(&mut server, |server| server.report().stats.accepted == 10);
    outer.turn_until(&mut server, |server| server.report().stats.bytes_out == 40);
    for client in &mut clients {
        assert_receives(client, b"hola");
    }
}

#[test]
fn a_nested_server_drains() {
    let mut server = bind(long_drain());
    let (address, handle) = (server.local_addr(), server.handle());
    let client = thread::spawn(move || {
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        handle.drain();
        assert_ended(&mut client);
    });
    let mut outer = Outer::around(&server);
    let start = Instant::now();
    while outer.turn(&mut server) == Turn::Running {
        assert!(start.elapsed() < TIMEOUT, "no end within {TIMEOUT:?}");
    }
    client.join().unwrap();
    assert_eq!(server.report().stats.closed.drained, 1);
}

#[test]
fn a_nested_server_stops() {
    let mut server = bind(Config::default());
    let handle = server.handle();
    let mut outer = Outer::around(&server);
    let mut client = connect(server.local_addr());
    outer.turn_until(&mut server, |server| server.report().stats.accepted == 1);
    let thread = thread::spawn(move || handle.stop());
    while outer.turn(&mut server) == Turn::Running {}
    thread.join().unwrap();
    // A finished server has closed its sockets before it is dropped.
    assert!(!is_listening(server.local_addr()));
    assert_ended(&mut client);
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
    assert!(!is_listening(address));
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

/// Busy-polls without end, and never blocks.
fn busy_polling() -> Config {
    let mut config = long_drain();
    config.spin = Duration::MAX;
    config
}

#[test]
fn a_busy_polling_server_echoes_and_stops() {
    let server = bind(busy_polling()).spawn().unwrap();
    assert_echoes(&mut connect(server.local_addr()), b"hola");
    let handle = server.handle();
    eventually("the close", || handle.stats().closed.end_of_stream + handle.stats().closed.reset == 1);
    handle.stop();
    join(server);
}

#[test]
fn a_busy_polling_turn_returns_at_its_timeout() {
    let mut server = bind(busy_polling());
    let handle = server.handle();
    let timeout = Duration::from_millis(20);
    let start = Instant::now();
    let turn = ends_by_itself(move || handle.stop(), || server.turn(Some(timeout)).unwrap());
    assert_eq!(turn, Turn::Running);
    assert!(start.elapsed() >= timeout);
}

#[test]
#[ignore = "needs strace"]
fn a_busy_polling_turn_without_a_wait_polls_once() {
    const TURNS: usize = 100;
    const IN_CHILD: &str = "ECOLOOP_TEST_TURNS";
    if env::var_os(IN_CHILD).is_some() {
        let mut server = bind(busy_polling());
        for _ in 0..TURNS {
            assert_eq!(server.turn(Some(Duration::ZERO)).unwrap(), Turn::Running);
        }
        return;
    }
    let trace = Scratch::new("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=epoll_wait,epoll_pwait", "-o", trace.path()]);
    command.arg(env::current_exe().unwrap()).env(IN_CHILD, "");
    command.args(["--exact", "--include-ignored", "library::a_busy_polling_turn_without_a_wait_polls_once"]);
    let ended = Process::start(command).wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(fs::read_to_string(trace.path()).unwrap().matches("wait(").count(), TURNS);
}

#[test]
fn after_busy_polling_a_turn_blocks_until_an_event() {
    let mut config = long_drain();
    config.spin = Duration::from_millis(1);
    let mut server = bind(config);
    let mut client = connect(server.local_addr());
    turn_until(&mut server, |server| server.report().stats.accepted == 1);
    thread::scope(|scope| {
        let sender = scope.spawn(|| client.write_all(b"hola"));
        turn_until(&mut server, |server| server.report().stats.bytes_out == 4);
        sender.join().unwrap().unwrap();
    });
    assert_receives(&mut client, b"hola");
}
