//! The memory of a peak, and the size of a slab entry. Turns for the tests of the modules too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::config::TRIM_THRESHOLD;
use super::{Config, Server, Turn};
#[cfg(all(not(debug_assertions), target_pointer_width = "64"))]
use crate::Reactor;

/// Longer than anything takes that a test waits for.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs turns until `condition` holds. Panics after [`TIMEOUT`].
#[track_caller]
pub(super) fn turn_until(server: &mut Server, mut condition: impl FnMut(&Server) -> bool) {
    let start = Instant::now();
    while !condition(server) {
        assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}");
        // A short wait: a deadline may have made the condition true before the poll.
        assert_eq!(server.turn(Some(Duration::from_millis(10))).unwrap(), Turn::Running);
    }
}

#[test]
fn the_memory_of_a_peak_is_returned_when_its_last_connections_are_idle() {
    let config = Config { idle_timeout: Some(Duration::from_secs(1)), ..Config::default() };
    let mut server = Server::bind("127.0.0.1:0", config).unwrap();
    let clients: Vec<_> = (0..TRIM_THRESHOLD).map(|_| TcpStream::connect(server.local_addr()).unwrap()).collect();
    let handle = server.handle();
    turn_until(&mut server, |_| handle.stats().accepted == clients.len() as u64);
    let event_loop = server.event_loop_mut();
    assert!(event_loop.reactor.capacity() > TRIM_THRESHOLD);
    let start = Instant::now();
    while handle.stats().open() > 0 {
        assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}");
        let timeout = event_loop.run_timers(Some(TIMEOUT));
        if handle.stats().open() > 0 {
            event_loop.reactor.wait(timeout).unwrap();
            event_loop.reactor.serve(1, &mut event_loop.echo);
        }
    }
    // The wait that follows has no deadline.
    assert!(event_loop.reactor.capacity() < TRIM_THRESHOLD);
}

#[test]
fn the_memory_of_a_peak_is_returned_when_its_last_client_has_gone() {
    let mut server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let clients: Vec<_> = (0..TRIM_THRESHOLD).map(|_| TcpStream::connect(server.local_addr()).unwrap()).collect();
    let handle = server.handle();
    turn_until(&mut server, |_| handle.stats().accepted == clients.len() as u64);
    assert!(server.event_loop().reactor.capacity() > TRIM_THRESHOLD);
    drop(clients);
    turn_until(&mut server, |_| handle.stats().open() == 0);
    assert!(server.event_loop().reactor.capacity() < TRIM_THRESHOLD);
}

/// An idle connection costs its entry. In debug builds mio's sockets are larger.
#[test]
#[cfg(all(not(debug_assertions), target_pointer_width = "64"))]
fn an_entry_of_the_slab_takes_at_most_56_bytes() {
    let bytes = Reactor::<super::echo::Entry<crate::transport::Socket>>::entry_size();
    assert!(bytes <= 56, "{bytes} bytes");
}
