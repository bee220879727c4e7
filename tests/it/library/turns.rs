//! `run`, `turn` and its deadline: in a loop of its own, nested in another, and busy-polling.

use std::env;
use std::fs;
use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Handle, Observer, Server, Turn};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use super::{ADDRESS, bind, long_drain, one_small_read_per_turn, turn, turn_until};
use crate::support::{
    Event, Process, Recorder, Scratch, TIMEOUT, assert_echoes, assert_ended, assert_receives, await_not_listening,
    await_unread, connect, ends_by_itself, eventually, half_close, join, pattern,
};

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
        await_not_listening(address);
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

/// Returns the deadline, which must not be *now*: that is another time at each call.
#[track_caller]
fn timer_deadline<O: Observer>(server: &Server<O>) -> Instant {
    let deadline = server.next_deadline().unwrap();
    assert_eq!(server.next_deadline(), Some(deadline), "the deadline is now");
    deadline
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
    assert!(timer_deadline(&server) <= Instant::now() + Duration::from_millis(10));

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
    assert!(timer_deadline(&server) <= Instant::now() + Duration::from_millis(50));

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
    let before_drain = Instant::now();
    server.handle().drain();
    assert_eq!(turn(&mut server), Turn::Running);
    let timeout = Duration::from_millis(1);
    let deadline = timer_deadline(&server);
    assert!(deadline >= before_drain + timeout && deadline <= Instant::now() + timeout);
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
    await_not_listening(server.local_addr());
    assert_ended(&mut client);
}

// ---- busy polling ----

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
    command.args(["--exact", "--include-ignored", "library::turns::a_busy_polling_turn_without_a_wait_polls_once"]);
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
