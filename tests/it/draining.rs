//! What the server closes: drain, stop, and the idle timeout.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Server, Turn};
use rustix::process::Signal;
use socket2::SockRef;

use crate::support::{
    Event, Process, Recorder, TIMEOUT, TcpState, assert_echoes, assert_ended, assert_receives, assert_reset,
    await_not_listening, await_state, await_unread, connect, connect_narrow, connect_with_buffers, ecoloop, eventually,
    half_close, join, narrow, pattern, reset, stall, turn_until,
};

/// An address of these tests alone: once a drain has released a port, no other test takes it, and no client gets it and
/// connects to itself.
const ADDRESS: &str = "127.0.7.1:0";

/// Longer than any test: what ends earlier ends for another reason.
const NEVER: Duration = Duration::from_secs(3600);

fn bind(drain_timeout: Duration) -> Server {
    let mut config = narrow();
    config.drain_timeout = drain_timeout;
    Server::bind(ADDRESS, config).unwrap()
}

#[test]
fn draining_accepts_queued_connections_and_refuses_new_ones() {
    let server = bind(NEVER);
    let address = server.local_addr();
    let mut waiting: Vec<_> = (0..3).map(|_| connect(address)).collect();
    for client in &mut waiting {
        client.write_all(b"hola").unwrap();
        await_unread(client, 4);
    }
    server.handle().drain();
    let server = server.spawn().unwrap();
    for client in &mut waiting {
        assert_receives(client, b"hola");
    }
    assert_refused(address);
    for client in &waiting {
        half_close(client);
    }
    let stats = join(server).stats;
    // After 100 ms on a loaded machine the server's FIN comes first.
    assert_eq!((stats.accepted, stats.closed.end_of_stream + stats.closed.drained), (3, 3));
}

#[test]
fn draining_accepts_at_most_max_connections_and_the_backlog() {
    let mut two_at_once = Config::default();
    two_at_once.max_connections = 2;
    let mut backlog_of_two = Config::default();
    backlog_of_two.backlog = 2;
    for config in [two_at_once, backlog_of_two] {
        let server = Server::bind(ADDRESS, config).unwrap();
        // The kernel queues one connection more than the backlog (listen(2) on Linux).
        let mut waiting: Vec<_> = (0..3).map(|_| connect(server.local_addr())).collect();
        for client in &waiting {
            await_unread(client, 0);
        }
        server.handle().drain();
        let server = server.spawn().unwrap();
        assert_reset(waiting.pop().unwrap());
        for client in &mut waiting {
            assert_echoes(client, b"hola");
            half_close(client);
        }
        assert_eq!(join(server).stats.accepted, 2);
    }
}

#[test]
fn draining_without_connections_finishes_in_one_turn() {
    let mut server = bind(NEVER);
    server.handle().drain();
    assert_eq!(server.turn(Some(TIMEOUT)).unwrap(), Turn::Finished);
    assert_refused(server.local_addr());
    // Further turns return the same.
    assert_eq!(server.turn(Some(TIMEOUT)).unwrap(), Turn::Finished);
    assert_eq!(server.report().stats.accepted, 0);
}

#[test]
fn draining_closes_a_connection_after_100_ms_of_silence() {
    let server = bind(NEVER);
    let mut client = connect(server.local_addr());
    let server = server.spawn().unwrap();
    assert_echoes(&mut client, b"hola");
    let start = Instant::now();
    server.handle().drain();
    assert_ended(&mut client);
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
    half_close(&client);
    let stats = join(server).stats;
    assert_eq!((stats.closed.drained, stats.closed.total()), (1, 1));
}

/// The idle timeout counts silence too, at another pace.
#[test]
fn silence_before_the_drain_does_not_count() {
    let mut config = Config::default();
    config.drain_timeout = NEVER;
    config.idle_timeout = Some(Duration::from_millis(200));
    let mut server = Server::bind(ADDRESS, config).unwrap();
    let mut client = connect(server.local_addr());
    // More visits than end a silent connection in a drain, and fewer than the idle timeout needs.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        assert_eq!(server.turn(Some(TIMEOUT)).unwrap(), Turn::Running);
    }
    let start = Instant::now();
    server.handle().drain();
    let server = server.spawn().unwrap();
    assert_ended(&mut client);
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
    half_close(&client);
    assert_eq!(join(server).stats.closed.drained, 1);
}

/// On one thread, so that a loaded machine delays the client no longer than the server.
#[test]
fn draining_keeps_echoing_active_connections() {
    let recorder = Recorder::default();
    let mut server = bind(NEVER).with_observer(recorder.clone());
    let mut client = connect(server.local_addr());
    await_unread(&client, 0);
    server.handle().drain();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        client.write_all(b"hola").unwrap();
        turn_until(&mut server, |_| recorder.take().iter().any(|(_, event)| *event == Event::Received(4)));
        assert_receives(&mut client, b"hola");
    }
    let server = server.spawn().unwrap();
    assert_ended(&mut client);
    half_close(&client);
    assert_eq!(join(server).stats.closed.drained, 1);
}

#[test]
fn draining_flushes_pending_output_before_closing() {
    let server = bind(NEVER).spawn().unwrap();
    let mut other = connect(server.local_addr());
    let mut client = connect_narrow(server.local_addr());
    let message = pattern(2 << 20);
    let sent = stall(&client, &message, &mut other, &server.handle());
    half_close(&client);
    server.handle().drain();
    // Once another connection is closed, 100 ms of silence have passed for this one too.
    assert_ended(&mut other);
    half_close(&other);
    assert_receives(&mut client, &message[..sent]);
    assert_ended(&mut client);
    let stats = join(server).stats;
    assert_eq!((stats.closed.drained, stats.closed.end_of_stream, stats.discarded), (1, 1, 0));
}

/// Without a drain, a client that does not read for the stall timeout is reset: by the kernel, if the server has nothing pending.
#[test]
#[cfg(target_os = "linux")]
fn the_stall_timeout_ends_no_client_in_a_drain() {
    let mut config = narrow();
    // More than `stall` takes on a loaded machine.
    (config.drain_timeout, config.stall_timeout) = (NEVER, Some(Duration::from_secs(10)));
    let server = Server::bind(ADDRESS, config).unwrap().spawn().unwrap();
    let mut other = connect(server.local_addr());
    let mut client = connect_narrow(server.local_addr());
    let message = pattern(2 << 20);
    let sent = stall(&client, &message, &mut other, &server.handle());
    half_close(&other);
    server.handle().drain();
    // No event tells that nothing happens. The kernel's timeout is an eighth longer.
    std::thread::sleep(Duration::from_secs(13));
    half_close(&client);
    assert_receives(&mut client, &message[..sent]);
    assert_ended(&mut client);
    let closed = join(server).stats.closed;
    assert_eq!((closed.stalled, closed.failed, closed.end_of_stream), (0, 0, 2));
}

/// Closing with unread input would send RST, and the client would lose what it has not read yet.
#[test]
fn input_after_the_servers_fin_is_discarded_and_no_output_is_lost() {
    let server = bind(NEVER).spawn().unwrap();
    let stats = || server.handle().stats();
    // More than the client's receive buffer holds and less than the server's send buffer: part of it waits in the kernel.
    let mut client = connect_with_buffers(server.local_addr(), 16 * 1024);
    let message = pattern(64_000);
    client.write_all(&message).unwrap();
    eventually("the echo written", || stats().bytes_out == message.len() as u64);
    server.handle().drain();
    await_state(&client, TcpState::FinWait1);

    client.write_all(b"too late").unwrap();
    eventually("eight bytes discarded", || stats().discarded == 8);
    assert_receives(&mut client, &message);
    assert_ended(&mut client);
    client.write_all(b"much too late").unwrap();
    half_close(&client);
    let stats = join(server).stats;
    assert_eq!((stats.bytes_in, stats.bytes_out, stats.discarded), (64_021, 64_000, 21));
    assert_eq!((stats.closed.drained, stats.closed.total()), (1, 1));
    assert!(SockRef::from(&client).take_error().unwrap().is_none());
}

#[test]
fn a_reset_after_the_servers_fin_counts_as_a_reset() {
    let server = bind(NEVER).spawn().unwrap();
    let mut client = connect(server.local_addr());
    assert_echoes(&mut client, b"hola");
    server.handle().drain();
    assert_ended(&mut client);
    reset(client);
    let closed = join(server).stats.closed;
    assert_eq!((closed.reset, closed.total()), (1, 1));
}

#[test]
fn the_drain_timeout_closes_the_remaining_connections() {
    let drain_timeout = Duration::from_millis(300);
    let server = bind(drain_timeout).spawn().unwrap();
    let mut holds = connect(server.local_addr());
    assert_echoes(&mut holds, b"hola");
    let stalls = connect_narrow(server.local_addr());
    stall(&stalls, &pattern(2 << 20), &mut holds, &server.handle());
    let start = Instant::now();
    server.handle().drain();
    let closed = join(server).stats.closed;
    assert!(start.elapsed() >= drain_timeout, "{:?}", start.elapsed());
    assert_eq!((closed.cut, closed.total()), (2, 2));
    assert_ended(&mut holds);
}

#[test]
fn stop_closes_all_connections_immediately() {
    for drains_first in [false, true] {
        let server = bind(NEVER).spawn().unwrap();
        let mut clients: [_; 3] = std::array::from_fn(|_| connect(server.local_addr()));
        for client in &mut clients {
            assert_echoes(client, b"hola");
        }
        let stalls = connect_narrow(server.local_addr());
        stall(&stalls, &pattern(2 << 20), &mut clients[0], &server.handle());
        if drains_first {
            server.handle().drain();
            for client in &mut clients {
                assert_ended(client);
            }
        }
        server.handle().stop();
        let address = server.local_addr();
        let closed = join(server).stats.closed;
        assert_eq!((closed.stopped, closed.total()), (4, 4));
        assert_refused(address);
        for client in &mut clients {
            assert_ended(client);
        }
    }
}

#[test]
fn sigint_and_sigterm_drain() {
    for signal in [Signal::INT, Signal::TERM] {
        let (server, address) = serve(NEVER);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        server.signal(signal);
        assert_ended(&mut client);
        assert_refused(address);
        drop(client);
        let ended = server.wait();
        assert!(ended.summary().contains("1 connection accepted, 1 closed (1 drained)"), "{}", ended.summary());
    }
}

#[test]
fn a_second_signal_stops() {
    let [int, term] = [Signal::INT, Signal::TERM];
    for (first, second) in [(int, int), (term, term), (int, term), (term, int)] {
        let (mut server, address) = serve(NEVER);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        server.signal(first);
        assert_ended(&mut client);
        server.signal_until_ended(second);
        let ended = server.wait();
        assert!(ended.summary().contains("1 connection accepted, 1 closed (1 stopped)"), "{}", ended.summary());
    }
}

#[test]
fn the_exit_status_is_0_after_the_drain_timeout() {
    let (server, address) = serve(Duration::from_millis(200));
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    let ended = server.terminate();
    assert!(ended.summary().contains("1 connection accepted, 1 closed (1 cut)"), "{}", ended.summary());
    assert_ended(&mut client);
}

/// On one thread, so that a loaded machine delays the client no longer than the server.
#[test]
fn the_idle_timeout_closes_only_idle_connections() {
    let idle_timeout = Duration::from_millis(200);
    let mut config = Config::default();
    config.idle_timeout = Some(idle_timeout);
    let recorder = Recorder::default();
    let mut server = Server::bind(ADDRESS, config).unwrap().with_observer(recorder.clone());
    let start = Instant::now();
    let mut moves = connect(server.local_addr());
    let mut silent = connect(server.local_addr());
    let silent_address = silent.local_addr().unwrap();

    let mut closed = Vec::new();
    let mut echo = |server: &mut Server<_>, closed: &mut Vec<_>| {
        moves.write_all(b"a").unwrap();
        turn_until(server, |_| {
            let events = recorder.take();
            closed.extend(events.iter().filter(|(_, event)| matches!(event, Event::Closed(_))));
            events.iter().any(|(_, event)| *event == Event::Received(1))
        });
        assert_receives(&mut moves, b"a");
    };
    // A loaded machine may take longer than the timeout and its eighth.
    while closed.is_empty() || start.elapsed() < idle_timeout * 4 {
        assert!(start.elapsed() < TIMEOUT, "{:?}", server.report());
        echo(&mut server, &mut closed);
        if closed.is_empty() {
            assert_eq!(server.report().stats.open(), 2);
        } else {
            assert!(start.elapsed() >= idle_timeout);
        }
    }
    let closed: Vec<_> = closed.into_iter().map(|(peer, event)| (peer.address, event)).collect();
    assert_eq!(closed, [(silent_address, Event::Closed(CloseReason::Idle))]);
    assert_ended(&mut silent);

    // Without traffic the other connection is closed too.
    turn_until(&mut server, |_| recorder.take().iter().any(|(_, event)| *event == Event::Closed(CloseReason::Idle)));
    assert_ended(&mut moves);
    assert_eq!(server.report().stats.closed.idle, 2);
}

#[test]
fn the_longest_timeouts_close_nothing() {
    let mut config = Config::default();
    config.idle_timeout = Some(Duration::MAX);
    config.drain_timeout = Duration::MAX;
    let server = Server::bind("127.0.0.1:0", config).unwrap().spawn().unwrap();
    let mut client = connect(server.local_addr());
    assert_echoes(&mut client, b"hola");
    server.handle().drain();
    assert_ended(&mut client);
    drop(client);
    assert_eq!(server.join().unwrap().stats.closed.drained, 1);
}

/// Starts the binary on [`ADDRESS`].
#[track_caller]
fn serve(drain_timeout: Duration) -> (Process, SocketAddr) {
    let drain_timeout = format!("{}ms", drain_timeout.as_millis());
    let mut server = Process::start(ecoloop(&[ADDRESS, "--drain-timeout", &drain_timeout]));
    let address = server.listening();
    (server, address)
}

#[track_caller]
fn assert_refused(address: SocketAddr) {
    await_not_listening(address);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}
