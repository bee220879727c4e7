//! `--proxy-protocol`: a connection begins with a header that announces its client, sent by a proxy.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ecoloop::{CloseReason, Config, Running, Server, SourceLimit, Turn, WhenFull};
use serde_json::json;

use crate::support::{
    Event, Process, Recorder, Scratch, assert_echoes, assert_ended, assert_receives, assert_reset, await_reset,
    await_unread, connect, eventually, half_close, join, pattern, reset,
};

const BAD_HEADER: CloseReason = CloseReason::Failed(ErrorKind::InvalidData);
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n";
const V1_SOURCE: &str = "192.0.2.7:1234";

/// Returns a header of version 2 from an IPv4 address, with `extensions`.
fn v2(source: [u8; 4], port: u16, extensions: &[u8]) -> Vec<u8> {
    let length = u16::try_from(12 + extensions.len()).unwrap().to_be_bytes();
    let [high, low] = port.to_be_bytes();
    let address = [&source[..], &[127, 0, 0, 1], &[high, low], &[0, 80]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], &address, extensions].concat()
}

/// Returns a server that records what its observer sees.
#[track_caller]
fn bind_recording(change: impl FnOnce(&mut Config)) -> (Server<Recorder>, Recorder) {
    let recorder = Recorder::default();
    let mut config = Config::default();
    config.proxy_protocol = true;
    change(&mut config);
    let server = Server::bind("127.0.0.1:0", config).unwrap().with_observer(recorder.clone());
    (server, recorder)
}

#[track_caller]
fn serve_recording(change: impl FnOnce(&mut Config)) -> (Running<Recorder>, Recorder) {
    let (server, recorder) = bind_recording(change);
    (server.spawn().unwrap(), recorder)
}

/// Connects and sends `bytes`.
#[track_caller]
fn connect_sending(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut client = connect(address);
    client.write_all(bytes).unwrap();
    client
}

/// Returns the events of a connection, and the one address that they name.
#[track_caller]
fn events_of_one(recorder: &Recorder) -> (SocketAddr, Vec<Event>) {
    let (mut peers, events): (Vec<_>, Vec<_>) = recorder.take().into_iter().unzip();
    peers.dedup();
    assert_eq!(peers.len(), 1, "{peers:?} {events:?}");
    (peers[0].address, events)
}

#[test]
fn what_follows_a_header_is_echoed_and_the_observer_sees_its_source() {
    let ipv6 = b"PROXY TCP6 2001:db8::7 ::1 1234 80\r\n";
    let longest_v1 = format!("PROXY UNKNOWN {}\r\n", "f".repeat(107 - 16)).into_bytes();
    let longest_v2 = v2([192, 0, 2, 7], 1234, &[b'\n'; 4096 - 28]);
    for (header, source) in [
        (V1, Some(V1_SOURCE)),
        (&v2([192, 0, 2, 7], 1234, b""), Some(V1_SOURCE)),
        (&ipv6[..], Some("[2001:db8::7]:1234")),
        (&longest_v1, None),
        (&longest_v2, Some(V1_SOURCE)),
        (b"PROXY UNKNOWN\r\n", None),
        (LOCAL, None),
    ] {
        let (server, recorder) = serve_recording(|_| ());
        // The header, the message and FIN are one segment, or as few as the system makes of them.
        let mut client = connect_sending(server.local_addr(), &[header, b"hola"].concat());
        half_close(&client);
        assert_receives(&mut client, b"hola");
        assert_ended(&mut client);
        let real = client.local_addr().unwrap();
        server.handle().drain();
        let stats = join(server).stats;
        assert_eq!((stats.accepted, stats.closed.end_of_stream, stats.bytes_in, stats.bytes_out), (1, 1, 4, 4));
        let (address, events) = events_of_one(&recorder);
        assert_eq!(address, source.map_or(real, |source| source.parse().unwrap()));
        let closed = Event::Closed(CloseReason::EndOfStream);
        assert_eq!(events, [Event::Opened, Event::Received(4), Event::Ended, closed]);
    }
}

/// Sends each part, takes a turn of the server after it, and asserts that `message` is echoed.
#[track_caller]
fn assert_takes<'a>(server: &mut Server<Recorder>, parts: impl Iterator<Item = &'a [u8]>, message: &[u8]) {
    let mut client = connect(server.local_addr());
    let mut turn = || assert_eq!(server.turn(Some(Duration::ZERO)).unwrap(), Turn::Running);
    for part in parts {
        client.write_all(part).unwrap();
        turn();
    }
    client.set_nonblocking(true).unwrap();
    let mut echo = Vec::new();
    eventually("the echo", || {
        turn();
        // Fails while there is none.
        let _ = client.read_to_end(&mut echo);
        echo == message
    });
    reset(client);
}

#[test]
fn a_header_may_be_split_anywhere() {
    let (mut server, recorder) = bind_recording(|_| ());
    for header in [V1, &v2([192, 0, 2, 7], 1234, b"\0\0\0")] {
        let bytes = [header, b"hola"].concat();
        assert_takes(&mut server, bytes.chunks(1), b"hola");
        for split in 1..bytes.len() {
            assert_takes(&mut server, [&bytes[..split], &bytes[split..]].into_iter(), b"hola");
        }
    }
    let events = recorder.take();
    assert!(events.iter().all(|(peer, _)| peer.address == V1_SOURCE.parse().unwrap()), "{events:?}");
}

#[test]
fn a_stream_behind_a_header_is_echoed_with_any_limits_of_a_turn() {
    let message = pattern(1_000_000);
    let (server, _) = serve_recording(|config| (config.reads_per_turn, config.buffer_size) = (1, 7));
    let mut client = connect(server.local_addr());
    let mut writer = client.try_clone().unwrap();
    let sent = [V1, &message].concat();
    let thread = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        half_close(&writer);
    });
    assert_receives(&mut client, &message);
    assert_ended(&mut client);
    thread.join().unwrap();
}

#[test]
fn a_bad_or_missing_header_resets_the_connection() {
    let (server, recorder) = serve_recording(|_| ());
    let too_long = v2([192, 0, 2, 7], 1234, &[0; 4096 - 28 + 1]);
    // The last two end within the header, or before it.
    for (bytes, ends) in [(&b"hola"[..], false), (b"PROXY TCP4 ", true), (LOCAL.split_at(15).0, true), (b"", true)]
        .into_iter()
        .chain([(&too_long[..16], false), (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 65536\r\nhola", false)])
        .chain([(&b"PROXY TCP4 0.0.0.0 1.2.3.4 0 80\r\nhola"[..], false)])
    {
        let client = connect_sending(server.local_addr(), bytes);
        if ends {
            half_close(&client);
        }
        let real = client.local_addr().unwrap();
        assert_reset(client);
        eventually("the close", || server.handle().stats().open() == 0);
        assert_eq!(events_of_one(&recorder), (real, vec![Event::Opened, Event::Closed(BAD_HEADER)]), "{bytes:?}");
    }
    let stats = server.handle().stats();
    assert_eq!((stats.accepted, stats.closed.failed, stats.bytes_in, stats.bytes_out), (7, 7, 0, 0));
}

#[test]
fn a_client_that_resets_within_its_header_counts_as_reset() {
    let (server, recorder) = serve_recording(|_| ());
    let client = connect_sending(server.local_addr(), b"PROXY TCP4 ");
    await_unread(&client, 11);
    await_reset(client);
    eventually("the close", || server.handle().stats().closed.reset == 1);
    let (_, events) = events_of_one(&recorder);
    assert_eq!(events, [Event::Opened, Event::Closed(CloseReason::Reset)]);
}

#[test]
fn a_header_that_does_not_come_resets_the_connection_after_5_s_however_slowly_it_arrives() {
    let (server, _) = serve_recording(|_| ());
    let start = Instant::now();
    let silent = connect(server.local_addr());
    let mut other = connect_sending(server.local_addr(), V1);
    assert_echoes(&mut other, b"hola");
    let mut slow = connect_sending(server.local_addr(), b"PROXY UNKNOWN ");
    let sends = (0..).take_while(|_| {
        std::thread::sleep(Duration::from_millis(100));
        slow.write_all(b"f").is_ok()
    });
    assert!(sends.count() < 93, "the header was never refused");
    assert_reset(silent);
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_echoes(&mut other, b"hola");
    assert_eq!(server.handle().stats().closed.failed, 2);
}

#[test]
fn a_shorter_idle_timeout_applies_before_the_header_too() {
    let (server, recorder) = serve_recording(|config| config.idle_timeout = Some(Duration::from_millis(200)));
    let start = Instant::now();
    assert_ended(&mut connect(server.local_addr()));
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    eventually("the close", || server.handle().stats().closed.idle == 1);
    assert_eq!(events_of_one(&recorder).1, [Event::Opened, Event::Closed(CloseReason::Idle)]);
}

#[test]
fn limits_apply_to_the_announced_address() {
    let (server, recorder) = serve_recording(|config| {
        config.allow = vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        config.max_per_source = Some(SourceLimit::new(1));
    });
    let header = |last| v2([192, 0, 2, last], 1234, b"");
    let mut first = connect_sending(server.local_addr(), &header(1));
    assert_echoes(&mut first, b"hola");
    assert_reset(connect_sending(server.local_addr(), &[&header(1), &b"hola"[..]].concat()));
    let mut mapped = connect_sending(server.local_addr(), b"PROXY TCP6 ::ffff:192.0.2.2 ::1 1 1\r\n");
    assert_echoes(&mut mapped, b"hola");
    assert_reset(connect_sending(server.local_addr(), &header(2)));
    // 127.0.0.1 is not allowed: its header announces nobody.
    assert_reset(connect_sending(server.local_addr(), LOCAL));
    assert_reset(connect_sending(server.local_addr(), &v2([198, 51, 100, 1], 1, b"")));
    half_close(&first);
    assert_ended(&mut first);
    eventually("the close", || server.handle().stats().closed.total() == 1);
    let mut next = connect_sending(server.local_addr(), &header(1));
    assert_echoes(&mut next, b"hola");
    let stats = server.handle().stats();
    let refused = stats.refused;
    assert_eq!((stats.accepted, refused.per_source, refused.not_allowed, refused.total()), (3, 2, 2, 4));
    let opened = recorder.take().into_iter().filter(|(_, event)| *event == Event::Opened).count();
    assert_eq!(opened, 3, "the observer saw a refused connection");
}

#[test]
fn a_connection_that_awaits_its_header_counts_towards_max_connections() {
    let (server, _) = serve_recording(|config| (config.max_connections, config.when_full) = (1, WhenFull::Reset));
    let mut waiting = connect_sending(server.local_addr(), b"PROXY ");
    await_unread(&waiting, 6);
    assert_reset(connect(server.local_addr()));
    waiting.write_all(b"UNKNOWN\r\nhola").unwrap();
    assert_receives(&mut waiting, b"hola");
    assert_reset(connect(server.local_addr()));
    drop(waiting);
    eventually("the close", || server.handle().stats().closed.total() == 1);
    // A bad header, and one that is refused, make room too.
    assert_reset(connect_sending(server.local_addr(), b"hola"));
    eventually("the close", || server.handle().stats().closed.total() == 2);
    assert_echoes(&mut connect_sending(server.local_addr(), LOCAL), b"hola");
    assert_eq!(server.handle().stats().refused.max_connections, 2);
}

#[test]
fn a_refused_client_makes_room_for_the_next_that_waits_in_the_backlog() {
    let (server, _) = serve_recording(|config| {
        config.max_connections = 1;
        config.allow = vec!["192.0.2.0/24".parse().unwrap()];
    });
    let first = connect(server.local_addr());
    let mut next = connect_sending(server.local_addr(), &[V1, b"hola"].concat());
    (&first).write_all(LOCAL).unwrap();
    assert_reset(first);
    assert_receives(&mut next, b"hola");
}

#[test]
fn a_drain_ends_connections_that_await_their_headers_and_serves_those_whose_header_has_come() {
    let (server, recorder) = bind_recording(|_| ());
    let address = server.local_addr();
    let mut silent = [connect(address), connect_sending(address, b"PROXY ")];
    let mut announced = connect_sending(address, &[V1, b"hola"].concat());
    server.handle().drain();
    let server = server.spawn().unwrap();
    assert_receives(&mut announced, b"hola");
    for client in silent.iter_mut().chain([&mut announced]) {
        assert_ended(client);
        half_close(client);
    }
    let stats = join(server).stats;
    assert_eq!((stats.accepted, stats.closed.drained, stats.closed.total()), (3, 3, 3));
    let opened = recorder.take().into_iter().filter(|(_, event)| *event == Event::Opened).count();
    assert_eq!(opened, 3);
}

#[test]
fn a_drain_discards_a_part_of_a_header_before_the_client_ends() {
    let (server, _) = bind_recording(|config| config.drain_timeout = Duration::from_secs(60));
    let mut client = connect_sending(server.local_addr(), b"PROXY ");
    await_unread(&client, 6);
    server.handle().drain();
    let server = server.spawn().unwrap();
    assert_ended(&mut client);
    eventually("the read of it", || server.handle().stats().discarded == 6);
    half_close(&client);
    assert_eq!(join(server).stats.closed.drained, 1);
}

#[test]
fn a_stop_closes_a_connection_that_awaits_its_header() {
    let (server, recorder) = serve_recording(|_| ());
    let client = connect_sending(server.local_addr(), b"PROXY ");
    await_unread(&client, 6);
    // It may still be in the backlog.
    assert_reset(connect_sending(server.local_addr(), b"hola"));
    server.handle().stop();
    assert_eq!(join(server).stats.closed.stopped, 1);
    assert_reset(client);
    assert_eq!(recorder.take().last().unwrap().1, Event::Closed(CloseReason::Stopped));
}

#[test]
fn the_log_names_the_announced_client_and_each_bad_header() {
    let report = Scratch::new("proxy");
    let (mut server, address) =
        Process::serve(&["--proxy-protocol", "--allow", "192.0.2.0/24", "--report", report.path()]);
    let mut client = connect_sending(address, V1);
    server.line_with("Connection from: 192.0.2.7:1234");
    assert_echoes(&mut client, b"hola");
    half_close(&client);
    assert_ended(&mut client);
    server.line_with("[192.0.2.7:1234] The client closed the connection");
    let client = connect_sending(address, b"GET / HTTP/1.0\r\n\r\n");
    let real = client.local_addr().unwrap();
    assert_reset(client);
    server.line_with(&format!("[{real}] Connection closed: its PROXY header is bad or missing"));
    assert_reset(connect_sending(address, LOCAL));
    server.line_with("WARN  [ecoloop] reset the connection from 127.0.0.1:");
    let ended = server.terminate();
    let counts = "2 connections accepted, 2 closed (1 end of stream, 1 failed), 1 refused, 4 bytes in, 4 bytes out";
    assert!(ended.summary().contains(counts), "{ended:?}");
    assert_eq!(report.json()["refused"], json!({"max_connections": 0, "per_source": 0, "not_allowed": 1}));
}
