//! Accepting: several addresses, bursts, `max_connections`, and running out of descriptors.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
#[cfg(target_os = "linux")]
use std::time::Duration;

use ecoloop::{Config, Server};
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Resource, getrlimit, pidfd_getfd, pidfd_open};
#[cfg(target_os = "linux")]
use socket2::SockRef;

#[cfg(target_os = "linux")]
use crate::support::limit_descriptors;
use crate::support::{
    Process, assert_echoes, assert_ended, assert_receives, await_unread, connect, eventually, half_close, server_end,
};

#[test]
fn every_listening_address_accepts() {
    let addresses: [SocketAddr; 3] = ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"].map(|address| address.parse().unwrap());
    let server = Server::bind(&addresses[..], Config::default()).unwrap().spawn().unwrap();
    assert_eq!(server.local_addrs().len(), 3);
    let mut clients: Vec<_> = server.local_addrs().iter().map(|&address| connect(address)).collect();
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    assert_eq!(server.handle().stats().open(), 3);
}

#[test]
fn more_connects_than_accepts_per_turn_are_all_accepted() {
    let mut config = Config::default();
    config.accepts_per_turn = 4;
    let addresses: [SocketAddr; 2] = ["127.0.0.1:0", "127.0.0.1:0"].map(|address| address.parse().unwrap());
    let server = Server::bind(&addresses[..], config).unwrap();
    let mut clients: Vec<_> = (0..60).map(|number| connect(server.local_addrs()[number % addresses.len()])).collect();
    let server = server.spawn().unwrap();
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    assert_eq!(server.handle().stats().accepted, 60);
}

#[test]
fn connections_above_max_connections_wait_in_the_backlog() {
    let mut config = Config::default();
    config.max_connections = 2;
    let addresses: [SocketAddr; 2] = ["127.0.0.1:0", "127.0.0.1:0"].map(|address| address.parse().unwrap());
    let server = Server::bind(&addresses[..], config).unwrap().spawn().unwrap();
    let stats = || server.handle().stats();
    let mut accepted: Vec<_> = server.local_addrs().iter().map(|&address| connect(address)).collect();
    for client in &mut accepted {
        assert_echoes(client, b"hola");
    }
    let mut waiting: Vec<_> = (0..4).map(|number| connect(server.local_addrs()[number % 2])).collect();
    for client in &mut waiting {
        client.write_all(b"adios").unwrap();
        await_unread(client, 5);
    }
    // During these round trips the loop has polled, with the queued connections waiting.
    for client in &mut accepted {
        assert_echoes(client, b"hola");
    }
    assert_eq!(stats().accepted, 2);

    for client in &accepted {
        half_close(client);
    }
    eventually("two closed and two more accepted", || (stats().closed.total(), stats().accepted) == (2, 4));
    // Which of the queued connections come first is not specified.
    let (accepted, waiting): (Vec<_>, Vec<_>) =
        waiting.into_iter().partition(|client| server_end(client).is_some_and(|end| end.is_accepted));
    assert_eq!((accepted.len(), waiting.len()), (2, 2));
    for mut client in accepted.into_iter().chain(waiting) {
        assert_receives(&mut client, b"adios");
        half_close(&client);
        assert_ended(&mut client);
    }
    eventually("six connections closed", || stats().closed.end_of_stream == 6);
}

#[test]
fn at_max_connections_listening_addresses_take_turns() {
    let mut config = Config::default();
    config.max_connections = 1;
    let addresses: [SocketAddr; 2] = ["127.0.0.1:0", "127.0.0.1:0"].map(|address| address.parse().unwrap());
    let server = Server::bind(&addresses[..], config).unwrap().spawn().unwrap();
    let [crowded, other] = [server.local_addrs()[0], server.local_addrs()[1]];
    let is_accepted = |client: &TcpStream| server_end(client).is_some_and(|end| end.is_accepted);
    let mut crowd: Vec<_> = (0..10).map(|_| connect(crowded)).collect();
    eventually("one connection accepted", || crowd.iter().any(is_accepted));
    let single = connect(other);

    // Each close admits one connection.
    let mut closed = 0;
    while !is_accepted(&single) {
        let accepted = crowd.iter().position(is_accepted).unwrap();
        drop(crowd.remove(accepted));
        closed += 1;
        eventually("the next connection accepted", || is_accepted(&single) || crowd.iter().any(is_accepted));
    }
    assert!(closed <= 2, "{closed} connections of the other address came first");
}

#[test]
#[cfg(target_os = "linux")]
fn accepting_resumes_when_the_descriptor_limit_is_raised() {
    let (server, accepted, mut waiting) = run_out_of_descriptors(3, 5);
    limit_descriptors(&server, getrlimit(Resource::Nofile).maximum);
    for client in &mut waiting {
        assert_receives(client, b"hola");
    }
    drop((accepted, waiting));
    let ended = server.terminate();
    assert!(ended.summary().contains("8 connections accepted, 8 closed (8 end of stream)"), "{}", ended.summary());
    assert_eq!(descriptor_warnings(&ended.stdout), 0, "logged more than once: {:?}", ended.stdout);
}

#[test]
#[cfg(target_os = "linux")]
fn accepting_resumes_when_a_descriptor_is_freed() {
    let (server, accepted, mut waiting) = run_out_of_descriptors(3, 5);
    for (left, next) in accepted.into_iter().zip(&mut waiting) {
        drop(left);
        assert_receives(next, b"hola");
    }
    assert!(waiting[3..].iter().all(|client| !server_end(client).unwrap().is_accepted));
    for index in 3..5 {
        half_close(&waiting[index - 3]);
        assert_receives(&mut waiting[index], b"hola");
    }
    drop(waiting);
    let ended = server.terminate();
    assert!(ended.summary().contains("8 connections accepted, 8 closed (8 end of stream)"), "{}", ended.summary());
    assert_eq!(descriptor_warnings(&ended.stdout), 0, "logged more than once: {:?}", ended.stdout);
}

/// Starts a server with descriptors for the first `enough_for` clients. `too_many` more have connected and sent `hola`.
///
/// Returns once the server has logged the shortage and has retried several times.
#[cfg(target_os = "linux")]
#[track_caller]
fn run_out_of_descriptors(enough_for: usize, too_many: usize) -> (Process, Vec<TcpStream>, Vec<TcpStream>) {
    let (mut server, address) = Process::serve(&[]);
    let open = server.descriptors();
    let limit = (0..).filter(|number| !open.contains(number)).nth(enough_for);
    limit_descriptors(&server, limit);

    let mut accepted: Vec<_> = (0..enough_for).map(|_| connect(address)).collect();
    for client in &mut accepted {
        assert_echoes(client, b"hola");
    }
    let mut waiting: Vec<_> = (0..too_many).map(|_| connect(address)).collect();
    for client in &mut waiting {
        client.write_all(b"hola").unwrap();
        await_unread(client, 4);
    }
    let line = server.line_with("cannot accept on");
    assert!(line.contains(" WARN ") && line.contains("Too many open files"), "{line}");
    let before = waits(&server);
    eventually("four retries", || waits(&server) >= before + 4);
    assert_echoes(&mut accepted[0], b"hola");
    assert!(waiting.iter().all(|client| !server_end(client).unwrap().is_accepted));
    (server, accepted, waiting)
}

/// Returns how many times the loop, which is the main thread, has blocked.
#[cfg(target_os = "linux")]
#[track_caller]
fn waits(server: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    switches.trim().parse().unwrap()
}

#[cfg(target_os = "linux")]
fn descriptor_warnings(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains("cannot accept")).count()
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs pidfd_getfd(2), which containers often refuse"]
fn accepted_sockets_have_the_configured_timeouts() {
    let (server, address) = Process::serve(&["--keepalive", "30s", "--stall-timeout", "8s"]);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    let socket = descriptor_of(&server, &client);
    let socket = SockRef::from(&socket);
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(30));
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(9)));
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs pidfd_getfd(2), which containers often refuse"]
fn accepted_sockets_have_the_configured_options() {
    let given = ["--recv-buffer", "24KiB", "--send-buffer", "48KiB"];
    for (arguments, nodelay, sizes) in [
        (&[][..], true, None),
        (&["--nagle"], false, None),
        // Linux doubles the sizes (socket(7)).
        (&given, true, Some((48 * 1024, 96 * 1024))),
    ] {
        let (server, address) = Process::serve(arguments);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        let socket = descriptor_of(&server, &client);
        let socket = SockRef::from(&socket);
        assert_eq!(socket.tcp_nodelay().unwrap(), nodelay);
        let sizes_now = (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap());
        if let Some(sizes) = sizes {
            assert_eq!(sizes_now, sizes);
        }
    }
}

/// Returns a copy of the server's socket of `client`.
#[cfg(target_os = "linux")]
#[track_caller]
fn descriptor_of(server: &Process, client: &TcpStream) -> OwnedFd {
    let process = pidfd_open(server.pid(), PidfdFlags::empty()).unwrap();
    let address = client.local_addr().unwrap();
    let has_address = |descriptor: &OwnedFd| {
        SockRef::from(descriptor).peer_addr().is_ok_and(|peer| peer.as_socket() == Some(address))
    };
    let numbers = server.descriptors();
    let mut copies = numbers
        .iter()
        .map(|&number| pidfd_getfd(&process, i32::try_from(number).unwrap(), PidfdGetfdFlags::empty()).unwrap());
    copies.find(has_address).expect("the server's socket")
}
