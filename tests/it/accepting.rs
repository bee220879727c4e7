//! Accepting: several addresses, bursts, limits, and a lack of descriptors.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use ecoloop::{Config, Server};
#[cfg(target_os = "linux")]
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Resource, getrlimit, pidfd_getfd, pidfd_open};
#[cfg(target_os = "linux")]
use socket2::SockRef;

#[cfg(target_os = "linux")]
use crate::support::limit_descriptors;
use crate::support::{
    Process, assert_echoes, assert_ended, assert_receives, await_unread, connect, eventually, far_end, half_close,
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
    let mut answered: Vec<_> = server.local_addrs().iter().map(|&address| connect(address)).collect();
    for client in &mut answered {
        assert_echoes(client, b"hola");
    }
    let mut waiting: Vec<_> = (0..4).map(|number| connect(server.local_addrs()[number % 2])).collect();
    for client in &mut waiting {
        client.write_all(b"adios").unwrap();
        await_unread(client, 5);
    }
    // By these round trips the loop has had the others' connects before it.
    for client in &mut answered {
        assert_echoes(client, b"hola");
    }
    assert_eq!(stats().accepted, 2);

    for client in &answered {
        half_close(client);
    }
    eventually("two more, as two have gone", || (stats().closed.total(), stats().accepted) == (2, 4));
    // Which two is not promised, only that nobody waits without a reason, and nobody is forgotten.
    let (answered, waiting): (Vec<_>, Vec<_>) =
        waiting.into_iter().partition(|client| far_end(client).is_some_and(|end| end.is_accepted));
    assert_eq!((answered.len(), waiting.len()), (2, 2));
    for mut client in answered.into_iter().chain(waiting) {
        assert_receives(&mut client, b"adios");
        half_close(&client);
        assert_ended(&mut client);
    }
    eventually("the end of all", || stats().closed.end_of_stream == 6);
}

#[test]
#[cfg(target_os = "linux")]
fn accepting_resumes_when_the_descriptor_limit_is_raised() {
    let (server, answered, mut waiting) = run_out_of_descriptors(3, 5);
    limit_descriptors(&server, getrlimit(Resource::Nofile).maximum);
    for client in &mut waiting {
        assert_receives(client, b"hola");
    }
    drop((answered, waiting));
    let ended = server.terminate();
    assert!(ended.summary().contains("8 connections accepted, 8 closed (8 end of stream)"), "{}", ended.summary());
    assert_eq!(shortages_said(&ended.stdout), 0, "said once, and once more: {:?}", ended.stdout);
}

#[test]
#[cfg(target_os = "linux")]
fn accepting_resumes_when_a_descriptor_is_freed() {
    let (server, answered, mut waiting) = run_out_of_descriptors(3, 5);
    for (left, next) in answered.into_iter().zip(&mut waiting) {
        drop(left);
        assert_receives(next, b"hola");
    }
    assert!(waiting[3..].iter().all(|client| !far_end(client).unwrap().is_accepted));
    for index in 3..5 {
        half_close(&waiting[index - 3]);
        assert_receives(&mut waiting[index], b"hola");
    }
    drop(waiting);
    let ended = server.terminate();
    assert!(ended.summary().contains("8 connections accepted, 8 closed (8 end of stream)"), "{}", ended.summary());
    assert_eq!(shortages_said(&ended.stdout), 0, "said once, and once more: {:?}", ended.stdout);
}

/// A server whose descriptors are enough for the first clients answered, while the others have connected, and sent `hola`.
///
/// It has said so, once so far, and has tried again several times.
#[cfg(target_os = "linux")]
#[track_caller]
fn run_out_of_descriptors(enough_for: usize, too_many: usize) -> (Process, Vec<TcpStream>, Vec<TcpStream>) {
    let (mut server, address) = Process::serve(&[]);
    let open = server.descriptors();
    let limit = (0..).filter(|number| !open.contains(number)).nth(enough_for);
    limit_descriptors(&server, limit);

    let mut answered: Vec<_> = (0..enough_for).map(|_| connect(address)).collect();
    for client in &mut answered {
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
    eventually("several tries", || waits(&server) >= before + 4);
    assert_echoes(&mut answered[0], b"hola");
    assert!(waiting.iter().all(|client| !far_end(client).unwrap().is_accepted));
    (server, answered, waiting)
}

/// How often the loop has waited: it runs on the main thread.
#[cfg(target_os = "linux")]
#[track_caller]
fn waits(server: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    switches.trim().parse().unwrap()
}

#[cfg(target_os = "linux")]
fn shortages_said(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains("cannot accept")).count()
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs pidfd_getfd(2), which containers often refuse"]
fn accepted_sockets_have_the_configured_options() {
    let given = ["--recv-buffer", "24KiB", "--send-buffer", "48KiB"];
    for (arguments, nodelay, sizes) in [
        (&[][..], true, None),
        (&["--nagle"], false, None),
        // Linux doubles them, for its own bookkeeping (socket(7)).
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

/// The process's descriptor of the other end of `client`.
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
    copies.find(has_address).expect("the other end")
}
