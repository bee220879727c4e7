//! `bind`, `from_listener`, and the options that they reject.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use ecoloop::{Config, Server, SourceLimit};
use socket2::{Domain, SockRef, Socket, Type};

use super::{ADDRESS, bind};
use crate::support::{assert_echoes, await_not_listening, connect, eventually, is_listening};

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
    let addresses: [SocketAddr; 2] = ["127.0.0.1:0", ADDRESS].map(|address| address.parse().unwrap());
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
    // No other test uses this address.
    let first = SocketAddr::new(Ipv4Addr::new(127, 0, 7, 3).into(), second.port());
    let error = Server::bind(&[first, second][..], Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().starts_with(&format!("cannot listen on {second}: ")), "{error}");

    assert_eq!(TcpStream::connect(first).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Without SO_REUSEADDR this fails while any socket has the address: also the copy of a process that another test starts.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    eventually("the release of the address", || socket.bind(&first.into()).is_ok());
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
fn an_address_that_does_not_resolve_is_named_as_that() {
    let error = Server::bind("127.0.0.1", Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().starts_with("cannot resolve the address: "), "{error}");
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
    await_not_listening(address);
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
