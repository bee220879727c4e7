//! The server as a service of systemd: passed sockets.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use crate::support::{Process, assert_echoes, connect, connect_eventually, ecoloop, reserve_port};

/// Returns a command that runs the binary with two sockets passed, as systemd passes them (`sd_listen_fds(3)`).
fn with_passed(sockets: [OwnedFd; 2], arguments: &[&str]) -> Command {
    let binary = ecoloop(arguments);
    let mut command = Command::new("sh");
    let script = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    command.args(["-c", script]).arg(binary.get_program()).args(binary.get_args());
    for name in ["LC_ALL", "LC_MESSAGES", "LANG"] {
        command.env_remove(name);
    }
    let [first, second] = sockets;
    command.stdin(first).stdout(second).stderr(Stdio::piped());
    command
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn every_passed_socket_is_served() {
    let ((first, one), (second, other)) = (listener(), listener());
    let _server = Process::adopt(with_passed([first.into(), second.into()], &["serve", "-q"]));
    for address in [one, other] {
        assert_echoes(&mut connect(address), b"hola");
    }
}

#[test]
fn an_address_beside_passed_sockets_is_a_usage_error() {
    for arguments in [&["127.0.0.1:0"][..], &["serve", ":0"]] {
        let ended = Process::adopt(with_passed([listener().0.into(), listener().0.into()], arguments)).wait();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr[0].contains("ADDR cannot be used with them"), "{ended:?}");
    }
}

#[test]
fn a_passed_socket_that_does_not_listen_for_tcp_is_refused() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (peer, address) = listener();
    let connected = TcpStream::connect(address).unwrap();
    for (socket, reason) in [(udp.into(), "fd 4 is not a valid tcp socket"), (connected.into(), "fd 4 does not listen")]
    {
        let ended = Process::adopt(with_passed([listener().0.into(), socket], &["serve"])).wait();
        let line = format!("ecoloop: cannot serve a socket of LISTEN_FDS: {reason}; pass listening TCP sockets");
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(1), &[line][..]), "{ended:?}");
    }
    drop(peer);
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_socket_activate_starts_the_server_at_the_first_connection() {
    let reserved = [reserve_port(), reserve_port()];
    let addresses = [reserved[0].1, reserved[1].1];
    let binary = ecoloop(&["serve"]);
    let mut command = Command::new("systemd-socket-activate");
    for address in addresses {
        command.arg(format!("--listen={address}"));
    }
    let mut server = Process::start({
        command.arg(binary.get_program()).args(binary.get_args());
        command
    });
    // Only a connection starts the server.
    let mut first = connect_eventually(addresses[1]);
    assert_eq!([server.listening(), server.listening()], addresses);
    assert_echoes(&mut first, b"hola");
    assert_echoes(&mut connect(addresses[0]), b"adios");
    drop(first);
    assert!(server.terminate().summary().contains("2 connections accepted"));
}
