//! The server as a service of systemd: passed sockets, and messages to the service manager.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::SockRef;
use tempfile::TempDir;

use crate::support::{
    Process, TIMEOUT, assert_echoes, assert_ended, connect, connect_eventually, ecoloop, half_close, limit_descriptors,
    reserve_port, strace, wrapped,
};

/// Returns a command that runs the binary with two sockets passed, as systemd passes them (`sd_listen_fds(3)`).
fn with_passed(sockets: [OwnedFd; 2], arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$0\" \"$@\""]);
    let mut command = wrapped(shell, &ecoloop(arguments));
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
fn a_passed_socket_does_not_keep_the_stall_timeout_of_an_earlier_server() {
    let (unit, address) = listener();
    for (arguments, user_timeout) in
        [(&["serve", "-q", "--stall-timeout", "8s"][..], Some(Duration::from_secs(9))), (&["serve", "-q"], None)]
    {
        let sockets = [unit.try_clone().unwrap().into(), listener().0.into()];
        let _server = Process::adopt(with_passed(sockets, arguments));
        assert_echoes(&mut connect(address), b"hola");
        assert_eq!(SockRef::from(&unit).tcp_user_timeout().unwrap(), user_timeout, "{arguments:?}");
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
fn a_fault_that_would_change_passed_sockets_is_a_usage_error() {
    for rule in ["connect=hang", "connect=refuse,at=1s..2s"] {
        let sockets = [listener().0.into(), listener().0.into()];
        let ended = Process::adopt(with_passed(sockets, &["serve", "--fault", rule])).wait();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr[0].contains("cannot be used with the sockets of LISTEN_FDS"), "{ended:?}");
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
    let mut command = Command::new("systemd-socket-activate");
    for address in addresses {
        command.arg(format!("--listen={address}"));
    }
    let mut server = Process::start(wrapped(command, &ecoloop(&["serve"])));
    // Only a connection starts the server.
    let mut first = connect_eventually(addresses[1]);
    assert_eq!([server.listening(), server.listening()], addresses);
    assert_echoes(&mut first, b"hola");
    assert_echoes(&mut connect(addresses[0]), b"adios");
    drop(first);
    assert!(server.terminate().summary().contains("2 connections accepted"));
}

/// The unit names the installed binary, which `verify` looks for: here it is the test's.
#[test]
#[ignore = "needs systemd-analyze"]
fn the_unit_files_are_valid_and_expose_little() {
    let directory = TempDir::new().unwrap();
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/systemd");
    for name in ["ecoloop.service", "ecoloop.socket"] {
        let unit = fs::read_to_string(format!("{units}/{name}")).unwrap();
        let unit = unit.replace("/usr/local/bin/ecoloop", env!("CARGO_BIN_EXE_ecoloop"));
        fs::write(directory.path().join(name), unit).unwrap();
    }
    let service = fs::read_to_string(directory.path().join("ecoloop.service")).unwrap();
    assert!(service.lines().any(|line| line == "StartLimitIntervalSec=0"), "systemd would close the sockets");
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).current_dir(directory.path()).stdin(Stdio::null());
        Process::start(command).wait()
    };
    let verified = analyze(&["verify", "./ecoloop.service", "./ecoloop.socket"]);
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    // In tenths: an exposure above 1.5 fails.
    let rated = analyze(&["security", "--offline=yes", "--threshold=15", "./ecoloop.service"]);
    assert!(rated.status.success(), "{rated:?}");
}

/// The service manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, directory }
    }

    /// Returns a command that runs the server as a service of this manager.
    fn service(&self, arguments: &[&str]) -> Command {
        let mut command = ecoloop(&[&["127.0.0.1:0"], arguments].concat());
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        command
    }

    /// Waits for the next message.
    #[track_caller]
    fn receive(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Waits for a message that contains `line`.
    #[track_caller]
    fn receive_line(&self, line: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.receive().lines().any(|received| received == line) {
            assert!(Instant::now() < deadline, "no {line}");
        }
    }
}

#[test]
fn the_service_manager_receives_readiness_connections_and_the_shutdown() {
    let manager = Manager::new();
    let mut server = Process::start(manager.service(&["--drain-timeout", "1h"]));
    assert_eq!(manager.receive(), "READY=1\n");
    assert_eq!(manager.receive(), "STATUS=0 connections\n");
    let address = server.listening();
    let mut clients = [connect(address), connect(address)];
    manager.receive_line("STATUS=2 connections");
    clients[0].write_all(b"hola").unwrap();
    half_close(&clients[0]);
    manager.receive_line("STATUS=1 connection");
    server.signal(Signal::TERM);
    manager.receive_line("STOPPING=1");
    assert_ended(&mut clients[1]);
    half_close(&clients[1]);
    assert!(server.wait().summary().contains("2 closed (1 end of stream, 1 drained)"));
}

#[test]
fn a_shutdown_at_once_is_reported_before_the_end() {
    let manager = Manager::new();
    let server = Process::start(manager.service(&["-q"]));
    manager.receive_line("READY=1");
    server.signal(Signal::TERM);
    manager.receive_line("STOPPING=1");
    assert!(server.wait().status.success());
}

#[test]
fn an_idle_loop_feeds_the_watchdog_at_half_its_time() {
    let manager = Manager::new();
    let mut command = manager.service(&["-q"]);
    command.env("WATCHDOG_USEC", "600000");
    let start = Instant::now();
    let _server = Process::start(command);
    manager.receive_line("READY=1");
    for _ in 0..3 {
        manager.receive_line("WATCHDOG=1");
    }
    assert!(start.elapsed() >= Duration::from_millis(3 * 300), "{:?}", start.elapsed());
}

#[test]
fn a_server_without_a_free_descriptor_feeds_its_watchdog() {
    let manager = Manager::new();
    let mut command = manager.service(&[]);
    command.env("WATCHDOG_USEC", "600000");
    let mut server = Process::start(command);
    let address = server.listening();
    manager.receive_line("WATCHDOG=1");
    limit_descriptors(&server, Some(1));
    let _waiting = connect(address);
    server.line_with("cannot accept on");
    manager.socket.set_nonblocking(true).unwrap();
    while manager.socket.recv(&mut [0; 64]).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    manager.receive_line("WATCHDOG=1");
    manager.receive_line("WATCHDOG=1");
}

#[test]
#[cfg(any(target_os = "linux", target_os = "android"))]
fn a_manager_with_an_abstract_name_or_that_starts_anew_is_told() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    let name = format!("ecoloop-test-notify-{}", std::process::id());
    let bind = || {
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Manager { socket, directory: TempDir::new().unwrap() }
    };
    let manager = bind();
    let mut command = ecoloop(&["127.0.0.1:0", "-q"]);
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let server = Process::start(command);
    manager.receive_line("READY=1");
    manager.receive_line("STATUS=0 connections");
    drop(manager);
    let manager = bind();
    server.signal(Signal::TERM);
    manager.receive_line("STOPPING=1");
    assert!(server.wait().status.success());
}

#[test]
fn without_watchdog_or_as_that_of_another_process_nothing_feeds_it() {
    for variables in [&[][..], &[("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "1")]] {
        let manager = Manager::new();
        let mut command = manager.service(&[]);
        command.envs(variables.iter().copied());
        let mut server = Process::start(command);
        let mut client = connect(server.listening());
        assert_echoes(&mut client, b"hola");
        server.signal(Signal::TERM);
        // After 100 ms of silence: time to feed the watchdog a hundred times.
        assert_ended(&mut client);
        drop(client);
        assert!(server.wait().status.success());
        manager.socket.set_nonblocking(true).unwrap();
        let (mut messages, mut buffer) = (String::new(), [0; 1024]);
        while let Ok(length) = manager.socket.recv(&mut buffer) {
            messages += str::from_utf8(&buffer[..length]).unwrap();
        }
        assert!(messages.contains("STOPPING=1") && !messages.contains("WATCHDOG"), "{variables:?}: {messages}");
    }
}

/// strace delays the waits of the main thread, and does not follow the others.
#[test]
#[ignore = "needs strace"]
fn a_loop_that_hangs_does_not_feed_the_watchdog_until_it_turns_again() {
    let manager = Manager::new();
    let mut service = manager.service(&["-q"]);
    service.env("WATCHDOG_USEC", "200000");
    let mut server = Process::start(wrapped(strace("epoll_wait:delay_exit=6s:when=20", "/dev/null"), &service));
    manager.receive_line("WATCHDOG=1");
    // The 20th wait takes 6 s. Without reports, nothing arrives for 2 s.
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let start = Instant::now();
    while manager.socket.recv(&mut [0; 1024]).is_ok() {
        assert!(start.elapsed() < TIMEOUT, "a loop that hangs feeds the watchdog");
    }
    manager.socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    manager.receive_line("WATCHDOG=1");
    server.signal_until_ended(Signal::TERM);
}

#[test]
fn a_service_manager_that_does_not_read_does_not_hold_up_the_server() {
    let manager = Manager::new();
    let filler = UnixDatagram::unbound().unwrap();
    filler.connect(manager.directory.path().join("notify")).unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send(b"STATUS=full").is_ok() {}
    let mut command = manager.service(&[]);
    command.env("WATCHDOG_USEC", "2000");
    let mut server = Process::start(command);
    let address = server.listening();
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    drop(client);
    server.line_with("The client closed the connection");
    assert!(server.terminate().summary().contains("1 closed (1 end of stream)"));
}

#[test]
fn a_notify_socket_that_is_not_there_is_one_line() {
    let manager = Manager::new();
    let mut command = manager.service(&[]);
    command.env("NOTIFY_SOCKET", "/nonexistent/notify").env("WATCHDOG_USEC", "2000");
    let mut server = Process::start(command);
    let address = server.listening();
    let warning = "cannot send READY=1 to NOTIFY_SOCKET /nonexistent/notify: No such file or directory (os error 2)";
    let line = server.line_with("NOTIFY_SOCKET");
    assert!(line.ends_with(&format!("WARN  [ecoloop] {warning}")), "{line}");
    assert_echoes(&mut connect(address), b"hola");
    let ended = server.terminate();
    assert!(!ended.stdout.iter().any(|line| line.contains("NOTIFY_SOCKET")), "{ended:?}");
    assert!(ended.status.success());
}
