//! Servers on Unix sockets: of the library, and of `serve`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSlice, PipeReader, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::transport::UnixAddress;
use ecoloop::{CloseReason, Config, Peer, Server, SourceLimit, Turn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use crate::support::limit_descriptors;
use crate::support::{
    Event, Process, Recorder, Scratch, TIMEOUT, assert_echoes, assert_receives, connect, ecoloop, eventually, pattern,
};

/// A directory with the path of a socket that is not there yet.
pub(crate) fn new_path() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("echo.sock");
    (directory, path)
}

/// Leaves a socket at `path` that no process listens on, as a server that is killed does. A process that another test starts has a copy
/// of the listener until its exec.
#[track_caller]
pub(crate) fn abandon_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    eventually("the end of listening", || UnixStream::connect(path).is_err());
}

#[track_caller]
fn connect_unix(path: &Path) -> UnixStream {
    with_timeouts(UnixStream::connect(path).unwrap())
}

#[track_caller]
fn connect_abstract(name: &str) -> UnixStream {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.connect(&SockAddr::unix(format!("\0{name}")).unwrap()).unwrap();
    with_timeouts(socket.into())
}

fn with_timeouts(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream
}

#[track_caller]
fn assert_unix_echoes(stream: &mut UnixStream, message: &[u8]) {
    stream.write_all(message).unwrap();
    assert_unix_receives(stream, message);
}

#[track_caller]
fn assert_unix_receives(stream: &mut UnixStream, expected: &[u8]) {
    let mut echo = vec![0; expected.len()];
    stream.read_exact(&mut echo).unwrap();
    assert!(echo == expected, "the echo of {} bytes differs", expected.len());
}

#[track_caller]
fn assert_unix_ended(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[test]
fn a_unix_socket_echoes_and_its_end_is_seen() {
    let (_directory, path) = new_path();
    let recorder = Recorder::default();
    let server = Server::bind_unix(&path, Config::default()).unwrap().with_observer(recorder.clone());
    assert_eq!(server.local_addr().path(), Some(&*path));
    let server = server.spawn().unwrap();
    let mut client = connect_unix(&path);
    let message = pattern(100_000);
    assert_unix_echoes(&mut client, b"hola");
    thread::scope(|scope| {
        let mut writer = client.try_clone().unwrap();
        let sent = &message;
        scope.spawn(move || writer.write_all(sent).unwrap());
        assert_unix_receives(&mut client, &message);
    });
    client.shutdown(Shutdown::Write).unwrap();
    assert_unix_ended(&mut client);
    server.handle().drain();
    let report = server.join().unwrap();
    assert_eq!((report.stats.accepted, report.stats.closed.end_of_stream, report.stats.bytes_out), (1, 1, 100_004));
    let events = recorder.take();
    assert!(events.iter().all(|(peer, _)| peer.address == Peer::NO_ADDRESS));
    assert_eq!(events.last().unwrap().1, Event::Closed(CloseReason::EndOfStream));
}

/// On one thread, so that a loaded machine delays the client no longer than the server.
#[test]
fn a_drain_removes_the_file_and_goes_on_echoing() {
    let (_directory, path) = new_path();
    let mut config = Config::default();
    config.drain_timeout = TIMEOUT;
    let mut server = Server::bind_unix(&path, config).unwrap();
    let handle = server.handle();
    let mut client = connect_unix(&path);
    assert!(is_socket(&path));
    handle.drain();
    let mut turn = || assert_eq!(server.turn(Some(Duration::from_millis(10))).unwrap(), Turn::Running);
    eventually("the removal of the file", || {
        turn();
        !path.exists()
    });
    client.write_all(b"hola").unwrap();
    eventually("the echo", || {
        turn();
        handle.stats().bytes_out == 4
    });
    assert_unix_receives(&mut client, b"hola");

    let server = server.spawn().unwrap();
    assert_unix_ended(&mut client);
    client.write_all(b"discarded").unwrap();
    drop(client);
    assert_eq!(server.join().unwrap().stats.closed.drained, 1);
}

#[test]
fn a_dropped_server_removes_its_file_and_no_other() {
    let (_directory, path) = new_path();
    let first = Server::bind_unix(&path, Config::default()).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Server::bind_unix(&path, Config::default()).unwrap();
    drop(first);
    assert!(is_socket(&path), "the file is the second server's");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced_and_others_are_refused() {
    let (directory, path) = new_path();
    abandon_socket(&path);
    assert!(is_socket(&path), "std leaves the file");
    let server = Server::bind_unix(&path, Config::default()).unwrap();

    let error = Server::bind_unix(&path, Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on unix:{}: a server listens on it; end that server, or choose another path",
            path.display()
        )
    );
    drop(server);

    let file = directory.path().join("notes.txt");
    fs::write(&file, "notes").unwrap();
    let error = Server::bind_unix(&file, Config::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().ends_with("the file exists and is not a socket; remove it, or choose another path"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "notes");
}

#[test]
fn a_full_backlog_is_a_live_server() {
    let (_directory, path) = new_path();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let _waits = connect_unix(&path);
    assert_eq!(Server::bind_unix(&path, Config::default()).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(is_socket(&path));
}

/// The probe of the socket fails, so nothing is known of a server.
#[test]
fn a_socket_that_cannot_be_probed_is_left_alone_with_the_error_of_the_probe() {
    let (_directory, path) = new_path();
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    let error = Server::bind_unix(&path, Config::default()).unwrap_err();
    let text = error.to_string();
    let expected = format!("cannot listen on unix:{}: cannot connect to the socket that is there: ", path.display());
    assert!(text.starts_with(&expected) && text.contains("Protocol wrong type for socket"), "{text}");
    assert_ne!(error.kind(), ErrorKind::AddrInUse);
    assert!(is_socket(&path));
}

#[test]
fn the_file_has_the_configured_mode() {
    let (_directory, path) = new_path();
    for mode in [0o600, 0o666] {
        let mut config = Config::default();
        config.unix_mode = Some(mode);
        let _server = Server::bind_unix(&path, config).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
    }
    let mut config = Config::default();
    config.unix_mode = Some(0o1000);
    assert_eq!(Server::bind_unix(&path, config).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_name_has_no_file() {
    let name = format!("ecoloop-test-{}", std::process::id());
    let _server = Server::bind_unix(format!("@{name}"), Config::default()).unwrap().spawn().unwrap();
    assert_unix_echoes(&mut connect_abstract(&name), b"hola");
    assert_eq!(Server::bind_unix(format!("@{name}"), Config::default()).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert!(!Path::new(&format!("@{name}")).exists());
}

#[test]
fn an_invalid_address_is_refused() {
    for (path, reason) in [
        ("", "the path or the name of the socket is empty"),
        ("@", "the path or the name of the socket is empty"),
        ("a\0b", "the path of a socket cannot have a NUL byte"),
        (&"a".repeat(108), "the path of a socket has at most 107 bytes, and this one 108"),
    ] {
        let error = UnixAddress::new(path).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::InvalidInput, reason.to_owned()));
    }
    assert_eq!(UnixAddress::new("a".repeat(107)).unwrap().to_string(), format!("unix:{}", "a".repeat(107)));
}

/// Sends `data` with a descriptor of the pipe's writing end, and closes that here.
#[track_caller]
fn send_with_descriptor(stream: &UnixStream, data: &[u8]) -> PipeReader {
    let (reader, writer) = io::pipe().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [writer.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(data)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, data.len());
    reader
}

/// A read stops at a descriptor: it is short, and yet more data follows, of which no further event tells.
#[test]
fn a_passed_descriptor_is_closed_and_the_data_around_it_is_echoed() {
    let (_directory, path) = new_path();
    let mut server = Server::bind_unix(&path, Config::default()).unwrap();
    let mut client = connect_unix(&path);
    let mut pipes = Vec::new();
    for _ in 0..20 {
        client.write_all(b"before, ").unwrap();
        pipes.push(send_with_descriptor(&client, b"with, "));
        client.write_all(b"after, ").unwrap();
    }
    // All of it is one edge for the server.
    let handle = server.handle();
    let expected = b"before, with, after, ".repeat(20);
    let deadline = Instant::now() + TIMEOUT;
    while handle.stats().bytes_out < expected.len() as u64 {
        let _ = server.turn(Some(TIMEOUT)).unwrap();
        assert!(Instant::now() < deadline, "{:?}", handle.stats());
    }
    assert_unix_receives(&mut client, &expected);
    for mut pipe in pipes {
        let mut polled = [PollFd::new(&pipe, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&TIMEOUT.try_into().unwrap())).unwrap(), 1, "the descriptor is open");
        assert_eq!(pipe.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn a_client_that_does_not_read_stalls_itself_and_is_reset() {
    let (_directory, path) = new_path();
    let mut config = Config::default();
    config.stall_timeout = Some(Duration::from_millis(200));
    let server = Server::bind_unix(&path, config).unwrap().spawn().unwrap();
    let mut greedy = connect_unix(&path);
    greedy.set_nonblocking(true).unwrap();
    // Until the server reads no more: its own output is stuck.
    let deadline = Instant::now() + TIMEOUT;
    while server.handle().stats().closed.stalled == 0 {
        assert!(Instant::now() < deadline, "not stalled: {:?}", server.handle().stats());
        match greedy.write(&[7; 16384]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => break,
            result => assert!(result.unwrap() > 0),
        }
    }
    assert_unix_echoes(&mut connect_unix(&path), b"hola");
    server.handle().drain();
    assert_eq!(server.join().unwrap().stats.closed.stalled, 1);
}

#[test]
fn limits_of_sources_do_not_concern_a_client_without_an_address() {
    let (_directory, path) = new_path();
    let mut config = Config::default();
    config.allow = vec!["192.0.2.0/24".parse().unwrap()];
    config.max_per_source = Some(SourceLimit::new(1));
    let _server = Server::bind_unix(&path, config).unwrap().spawn().unwrap();
    let (mut first, mut second) = (connect_unix(&path), connect_unix(&path));
    assert_unix_echoes(&mut first, b"hola");
    assert_unix_echoes(&mut second, b"hola");
}

#[test]
fn a_proxy_header_gives_a_client_its_address() {
    let (_directory, path) = new_path();
    let mut config = Config::default();
    config.proxy_protocol = true;
    config.allow = vec!["192.0.2.0/24".parse().unwrap()];
    let recorder = Recorder::default();
    let server = Server::bind_unix(&path, config).unwrap().with_observer(recorder.clone()).spawn().unwrap();
    let mut client = connect_unix(&path);
    client.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\nhola").unwrap();
    assert_unix_receives(&mut client, b"hola");
    drop(client);
    let mut refused = connect_unix(&path);
    refused.write_all(b"PROXY TCP4 203.0.113.1 198.51.100.2 1234 80\r\n").unwrap();
    assert_unix_ended(&mut refused);
    server.handle().drain();
    assert_eq!(server.join().unwrap().stats.refused.not_allowed, 1);
    let events = recorder.take();
    assert_eq!((events[0].1, events[0].0.address.to_string()), (Event::Opened, "192.0.2.1:1234".to_owned()));
}

#[test]
fn faults_act_on_a_unix_socket() {
    let (_directory, path) = new_path();
    let mut config = Config::default();
    config.faults = vec!["delay=20ms,first=1".parse().unwrap(), "fin=2,after=1".parse().unwrap()];
    let server = Server::bind_unix(&path, config).unwrap().spawn().unwrap();
    let mut delayed = connect_unix(&path);
    for part in [&b"delayed"[..], b" and more", b" and the rest"] {
        assert_unix_echoes(&mut delayed, part);
    }
    delayed.shutdown(Shutdown::Write).unwrap();
    assert_unix_ended(&mut delayed);
    let mut ended = connect_unix(&path);
    ended.write_all(b"hola").unwrap();
    assert_unix_receives(&mut ended, b"ho");
    assert_unix_ended(&mut ended);
    drop(ended);
    drop(server);
    for rule in ["connect=refuse", "connect=hang"] {
        let mut config = Config::default();
        config.faults = vec![rule.parse().unwrap()];
        let error = Server::bind_unix(&path, config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{rule}");
        assert!(!path.exists(), "{rule}");
    }
}

#[test]
fn serve_listens_on_tcp_and_on_unix_sockets_together() {
    let (_directory, path) = new_path();
    let name = format!("ecoloop-serve-{}", std::process::id());
    let (unix, abstracted) = (format!("unix:{}", path.display()), format!("unix:@{name}"));
    let (mut process, address) = Process::serve(&["-v", "--unix-mode", "0600", &unix, &abstracted]);
    process.line_with(&format!("Starting server on {unix}"));
    process.line_with(&format!("Starting server on {abstracted}"));
    process.line_with("Waiting for connections...");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_echoes(&mut connect(address), b"by TCP");
    process.line_with("] Received by TCP");
    let mut client = connect_unix(&path);
    assert_unix_echoes(&mut client, b"by path");
    let opened = process.line_with("Connection from: unix#");
    let peer = opened.rsplit(' ').next().unwrap().to_owned();
    process.line_with(&format!("[{peer}] Received by path"));
    assert_unix_echoes(&mut connect_abstract(&name), b"by name");
    process.line_with("] Received by name");
    drop(client);
    process.line_with(&format!("[{peer}] The client closed the connection"));
    let ended = process.terminate();
    assert!(ended.summary().contains("3 connections accepted"), "{ended:?}");
    assert!(!path.exists());
}

#[test]
fn no_tcp_socket_listens_before_each_unix_socket_is_bound() {
    let (directory, path) = new_path();
    let taken = Server::bind_unix(&path, Config::default()).unwrap();
    let unix = format!("unix:{}", path.display());
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = port.local_addr().unwrap().to_string();
    // The error is that of what is bound first.
    let error = |arguments: &[&str]| Process::start(ecoloop(arguments)).wait().stderr.pop().unwrap();
    assert!(error(&[&tcp, &unix]).starts_with(&format!("ecoloop: cannot listen on {unix}: ")));
    drop(taken);
    assert!(error(&[&tcp, &unix]).starts_with(&format!("ecoloop: cannot listen on {tcp}: ")));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the file is left");
}

/// A path may have any byte but NUL: it must neither end a log line nor act on a terminal.
#[test]
fn control_characters_of_a_path_are_escaped_in_the_log_and_replaced_in_an_error() {
    let (directory, _) = new_path();
    let path = directory.path().join("x\u{1e}\n3\u{1b}[2J\u{202e}\u{1e}");
    // The library logs that it replaces it.
    abandon_socket(&path);
    let (address, report) = (format!("unix:{}", path.display()), Scratch::new("escaped"));
    let mut process = Process::start(ecoloop(&[&address, "-v", "--report", report.path()]));
    let escaped = "/x\\u{1e}\\n3\\u{1b}[2J\\u{202e}\\u{1e}";
    process.line_with(&format!("{escaped}: no server listens on this socket"));
    let start = process.line_with("Starting server on unix:");
    assert!(start.ends_with(escaped), "{start:?}");
    process.line_with("Waiting for connections...");
    assert_unix_echoes(&mut connect_unix(&path), b"hola");
    process.line_with("] Received hola");
    let ended = process.terminate();
    assert!(ended.status.success() && ended.summary().contains("1 connection accepted"), "{ended:?}");
    assert_eq!(report.json()["log_lines_lost"], 0);

    fs::write(&path, "").unwrap();
    let refused = Process::start(ecoloop(&[&address])).wait();
    assert_eq!(refused.stderr.len(), 1, "{refused:?}");
    assert!(refused.stderr[0].contains("the file exists and is not a socket"), "{refused:?}");
    assert!(!refused.stderr[0].contains(char::is_control), "{refused:?}");
}

#[test]
fn a_second_signal_stops_and_sigkill_leaves_a_file_that_is_replaced() {
    let (_directory, path) = new_path();
    let unix = format!("unix:{}", path.display());
    let start = || {
        let mut process = Process::start(ecoloop(&[&unix, "--drain-timeout", "1h"]));
        process.line_with("Waiting for connections...");
        process
    };
    let mut process = start();
    let _client = connect_unix(&path);
    process.signal(Signal::TERM);
    eventually("the removal of the file", || !path.exists());
    process.signal_until_ended(Signal::TERM);
    let ended = process.wait();
    assert!(ended.summary().contains("1 closed (1 stopped)"), "{ended:?}");

    let killed = start();
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(is_socket(&path));
    let _replaced = start();
    assert_unix_echoes(&mut connect_unix(&path), b"hola");

    let refused = Process::start(ecoloop(&[&unix])).wait();
    assert_eq!(refused.status.code(), Some(1));
    let reason = "a server listens on it; end that server, or choose another path";
    assert_eq!(refused.stderr, [format!("ecoloop: cannot listen on {unix}: {reason}")]);
}

#[test]
fn serve_refuses_what_unix_sockets_do_not_have() {
    let (directory, path) = new_path();
    let unix = format!("unix:{}", path.display());
    for (arguments, reason) in [
        (&["--fault", "connect=hang", &unix][..], "connect=hang and connect=refuse cannot be used with Unix sockets"),
        (&["--unix-mode", "0600", "127.0.0.1:0"], "--unix-mode needs an ADDR that begins with unix:"),
        (&["--unix-mode", "999", &unix], "expected a mode such as 0660, from 0 to 0777"),
        (&["--metrics", &unix, "127.0.0.1:0"], "a Unix socket cannot be used here"),
        (&["unix:"], "the path or the name of the socket is empty"),
    ] {
        let ended = Process::start(ecoloop(arguments)).wait();
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr[0].contains(reason), "{arguments:?}: {ended:?}");
    }
    File::create(&path).unwrap();
    let ended = Process::start(ecoloop(&[&unix])).wait();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr[0].contains("is not a socket"), "{ended:?}");
    drop(directory);
}

#[test]
#[cfg(target_os = "linux")]
fn a_proxy_header_is_read_without_another_descriptor() {
    let (_directory, path) = new_path();
    let (server, address) = Process::serve(&["--proxy-protocol", &format!("unix:{}", path.display())]);
    let before = server.descriptors().len();
    let mut client = connect(address);
    eventually("the accept", || server.descriptors().len() > before);
    let open = server.descriptors();
    limit_descriptors(&server, (0..1024).find(|number| !open.contains(number)));
    client.write_all(b"PROXY UNKNOWN\r\nhola").unwrap();
    assert_receives(&mut client, b"hola");
}
