//! Fault injection: what clients see, what is counted, and how such connections end.

#[cfg(feature = "load")]
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ecoloop::fault::{Connect, Effect, Fault, Kind, Moment};
use ecoloop::transport::bind_tcp;
use ecoloop::{CloseReason, Config, Observer, Peer, Running, Server};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::{
    Event, Process, Recorder, Scratch, TIMEOUT, assert_echoes, assert_ended, assert_receives, assert_reset, connect,
    connect_from, connect_narrow, ecoloop, eventually, half_close, join, narrow, pattern, reset, serve,
};

/// Returns a configuration with these rules.
fn faulty(rules: &[&str]) -> Config {
    let mut config = Config::default();
    config.faults = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    config
}

/// Sends `data` and FIN, and returns everything that comes back, or the error that follows it.
#[track_caller]
fn exchange(address: SocketAddr, data: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let mut client = connect(address);
    client.write_all(data).unwrap();
    // Fails if a fault has reset the connection.
    let _ = client.shutdown(Shutdown::Write);
    read_all(&mut client)
}

/// Reads to the end of the stream, or to an error.
fn read_all(client: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut received = Vec::new();
    let ended = client.read_to_end(&mut received);
    (received, ended.err().map(|error| error.kind()))
}

/// Returns the counts that are not zero.
fn counts(server: &Running) -> Vec<(&'static str, u64)> {
    server.handle().stats().faults.iter().filter(|&(_, count)| count > 0).collect()
}

#[track_caller]
fn await_closed<O>(server: &Running<O>, count: u64) {
    eventually("the close", || server.handle().stats().closed.total() == count);
}

#[test]
fn each_option_works_from_the_command_line() {
    let report = Scratch::new("faults");
    let rules = ["--fault", "flip=3,every=2", "--fault", "lose=2,after=2", "--fault-seed", "7"];
    let (mut server, address) = Process::serve(&[&rules[..], &["-v", "--report", report.path()]].concat());
    assert_eq!(exchange(address, b"abcdef").0, b"abcdef");
    assert_eq!(exchange(address, b"abcdef").0, b"abbdeg");
    let line = server.line_with("Fault:");
    assert!(line.contains("] [127.0.0.1:") && line.ends_with("] Fault: flip=3,every=2"), "{line}");
    assert_eq!(exchange(address, b"abcdef").0, b"ace");
    assert_eq!(exchange(address, b"abcdef").0, b"abe");
    let lines = server.lines_through("Fault: lose=2,after=2");
    assert!(!lines.iter().any(|line| line.contains("flip")), "{lines:?}");
    let ended = server.terminate();
    assert!(ended.summary().contains("4 closed (4 end of stream)"), "{ended:?}");
    let faults = report.json()["faults"].clone();
    assert_eq!((&faults["flip"], &faults["lose"], &faults["delay"]), (&json!(3), &json!(6), &json!(0)));
    assert_eq!(faults.as_object().unwrap().len(), Kind::ALL.len());
}

#[test]
fn a_seed_chooses_the_connections_of_a_percentage() {
    let chosen = |seed: &str| {
        let (server, address) = Process::serve(&["--fault", "reset=0,p=40%", "--fault-seed", seed]);
        let chosen: Vec<_> = (0..30).map(|_| exchange(address, b"").1.is_some()).collect();
        drop(server);
        chosen
    };
    let first = chosen("1");
    assert!(first.contains(&true) && first.contains(&false), "{first:?}");
    assert_eq!(first, chosen("1"));
    assert_ne!(first, chosen("2"));
}

#[test]
fn an_error_names_the_wrong_part_and_what_would_be_right() {
    for (rules, expected) in [
        (
            &["dealy=5ms"][..],
            "\"dealy\" is not a kind of fault: expected delay, rate, chunk, stall, mute, reset, fin, flip, lose, \
          duplicate, swap or connect",
        ),
        (&[""], "\"\" is not a kind of fault: expected delay,"),
        (&["delay"], "delay needs a value: a time or a range, such as delay=5ms or delay=5ms..20ms"),
        (&["delay=5"], "delay=5: expected a time or a range, such as delay=5ms or delay=5ms..20ms"),
        (&["delay=20ms..5ms"], "delay: the range must begin with the shorter delay"),
        (&["delay=0s"], "delay: the delay must be above zero, and at most 1h"),
        (&["delay=2h"], "delay: the delay must be above zero, and at most 1h"),
        (&["delay=5ms,hold=0"], "delay: hold must be from 1 to 1GiB"),
        (&["rate=0"], "rate: at least 1 byte a second must come back"),
        (&["chunk=0"], "chunk: the size must be at least 1"),
        (&["stall=x"], "stall=x: expected bytes, such as stall=4KiB, or none: stall"),
        (&["stall,for=0s"], "stall: for must be above zero, and at most 8760h"),
        (&["reset"], "reset needs a value: bytes or a time, such as reset=4KiB or reset=2s"),
        (&["flip=0"], "flip: the number of bytes must be at least 1"),
        (&["flip=1.5"], "flip=1.5: expected every how many bytes, such as flip=1000"),
        (&["connect=never"], "connect=never: expected hang, refuse, reset or a time, such as connect=100ms"),
        (&["flip=8,hold=1KiB"], "hold is a key of delay: flip takes p, first, after, every, from and at"),
        (&["mute,gap=1ms"], "gap is a key of chunk: mute takes p,"),
        (&["delay=5ms,for=1s"], "for is a key of stall: delay takes hold, p, first, after, every, from and at"),
        (&["mute,color=red"], "\"color\" is not a key: mute takes p, first, after, every, from and at"),
        (
            &["reset=1KiB,reset=2KiB"],
            "reset is a kind of fault, and a rule has one kind: write reset as a rule of its own",
        ),
        (&["mute,p=5"], "p=5: expected a value such as p=5%"),
        (&["mute,p=101%"], "p must be from 0% to 100%"),
        (&["mute,p"], "p needs a value: p=5%"),
        (&["mute,first=0"], "first must be at least 1: the first connection has the number 1"),
        (&["mute,first=-1"], "first=-1: expected a value such as first=3"),
        (&["mute,first=3,first=4"], "first is given twice"),
        (&["mute,first=3,after=3"], "first and after exclude each other: no connection is chosen"),
        (&["mute,from=10.0.0.0/33"], "from=10.0.0.0/33: expected a value such as from=10.0.0.0/8"),
        (&["mute,at=10s"], "at=10s: expected a value such as at=10s..20s"),
        (&["mute,at=20s..10s"], "at must end after it begins"),
        (&["connect=hang,p=5%"], "p does not apply to connect=hang, which takes at"),
        (&["connect=reset,first=5"], "first does not apply to connect=reset, which takes p and at"),
        (&["mute", "flip=3"], "mute and flip=3 cannot act on one connection: choose different ones"),
        (&["flip=3", "mute=1KiB"], "flip=3 and mute=1KiB cannot act on one connection"),
        (&["mute=100", "reset=200"], "mute=100 and reset=200 cannot act on one connection"),
        (&["fin=4", "reset=8"], "fin=4 and reset=8 cannot act on one connection"),
        (&["stall", "delay=1ms"], "stall and delay=1ms cannot act on one connection"),
    ] {
        let arguments: Vec<_> = rules.iter().flat_map(|rule| ["--fault", *rule]).collect();
        let ended = Process::start(ecoloop(&[&["serve"], &arguments[..], &["127.0.0.1:0"]].concat())).wait();
        assert_eq!(ended.status.code(), Some(2), "{rules:?}: {ended:?}");
        assert!(ended.stderr[0].contains(expected), "{rules:?}: {:?}", ended.stderr);
    }
}

#[test]
fn a_seed_without_a_rule_is_a_usage_error() {
    let ended = Process::start(ecoloop(&["serve", "--fault-seed", "7", "127.0.0.1:0"])).wait();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.contains("--fault <RULE>")), "{ended:?}");
}

#[test]
fn rules_that_choose_different_connections_may_exclude_each_other() {
    let server = serve(faulty(&["mute,first=1", "flip=1,after=1", "lose=2,after=1,from=192.0.2.0/24"]));
    assert_eq!(exchange(server.local_addr(), b"abc"), (Vec::new(), None));
    assert_eq!(exchange(server.local_addr(), b"abc"), (b"`cb".to_vec(), None));
    await_closed(&server, 2);
    assert_eq!(counts(&server), [("mute", 1), ("flip", 3)]);
}

#[test]
fn a_rule_that_did_not_come_to_pass_is_not_counted() {
    let rules = ["delay=1ms", "reset=10", "stall=8,for=1ms", "chunk=30", "flip=40,first=1", "swap=3"];
    let server = serve(faulty(&rules[..1]));
    half_close(&connect(server.local_addr()));
    await_closed(&server, 1);
    assert_eq!(counts(&server), []);
    let server = serve(faulty(&rules[1..]));
    assert_eq!(exchange(server.local_addr(), b"abc").0, b"abc");
    await_closed(&server, 1);
    assert_eq!(counts(&server), []);
    assert_eq!(server.handle().stats().closed.end_of_stream, 1);
}

#[test]
fn exactly_so_many_bytes_come_back_before_a_reset_even_to_a_slow_reader() {
    const BYTES: usize = 300 << 10;
    let mut config = narrow();
    config.send_buffer = Some(1 << 20);
    config.faults = faulty(&["reset=300KiB"]).faults;
    let server = serve(config);
    let message = pattern(BYTES);
    let mut client = connect_narrow(server.local_addr());
    client.write_all(&message).unwrap();
    // The system has everything, and cannot send it all: a reset now would destroy the rest.
    eventually("everything written", || server.handle().stats().bytes_out == BYTES as u64);
    let mut echo = vec![0; BYTES];
    client.read_exact(&mut echo).unwrap();
    assert!(echo == message);
    assert_reset(client);
    await_closed(&server, 1);
    assert_eq!((counts(&server), server.handle().stats().closed.fault), (vec![("reset", 1)], 1));
}

#[test]
fn a_fin_comes_after_its_bytes_and_the_rest_is_thrown_away() {
    let server = serve(faulty(&["fin=5"]));
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    assert_receives(&mut client, b"hola");
    client.write_all(b"adios").unwrap();
    assert_receives(&mut client, b"a");
    assert_ended(&mut client);
    client.write_all(b"more").unwrap();
    half_close(&client);
    await_closed(&server, 1);
    let stats = server.handle().stats();
    assert_eq!((stats.closed.fault, stats.bytes_in, stats.bytes_out, stats.discarded), (1, 13, 5, 4));
    assert_eq!(counts(&server), [("fin", 1)]);
}

#[test]
fn a_muted_connection_reads_everything_and_answers_fin_with_fin() {
    let server = serve(faulty(&["mute=3"]));
    let message = pattern(4 << 20);
    let (echo, error) = exchange(server.local_addr(), &message);
    assert_eq!((&echo[..], error), (&message[..3], None));
    await_closed(&server, 1);
    let stats = server.handle().stats();
    assert_eq!((stats.closed.end_of_stream, stats.bytes_in, stats.bytes_out), (1, 4 << 20, 3));
}

#[test]
fn a_stall_closes_the_window_and_ends_after_its_time() {
    let mut config = narrow();
    config.faults = faulty(&["stall=100,for=2s"]).faults;
    let server = serve(config);
    let message = pattern(4 << 20);
    let mut client = connect_narrow(server.local_addr());
    let start = Instant::now();
    client.write_all(&message[..1000]).unwrap();
    assert_receives(&mut client, &message[..100]);
    client.set_nonblocking(true).unwrap();
    let mut sent = 1000;
    eventually("a closed window", || {
        while let Ok(length) = client.write(&message[sent..]) {
            sent += length;
        }
        client.read(&mut [0; 1]).unwrap_err().kind() == ErrorKind::WouldBlock && sent > 64 << 10
    });
    client.set_nonblocking(false).unwrap();
    assert_receives(&mut client, &message[100..sent]);
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_echoes(&mut client, b"hola");
    assert_eq!(counts(&server), [("stall", 1)]);
}

#[test]
fn no_more_than_hold_bytes_are_read_while_they_are_delayed() {
    let server = serve(faulty(&["delay=1h,hold=3000"]));
    let mut client = connect(server.local_addr());
    client.write_all(&pattern(10_000)).unwrap();
    eventually("the bytes read", || server.handle().stats().bytes_in == 3000);
    let mut other = connect(server.local_addr());
    other.write_all(b"hola").unwrap();
    eventually("the other client served", || server.handle().stats().bytes_in == 3004);
    assert_eq!(server.handle().stats().bytes_out, 0);
}

#[test]
fn a_delay_is_never_early_and_counts_connections() {
    let server = serve(faulty(&["delay=30ms", "chunk=3,gap=1ms"]));
    let mut client = connect(server.local_addr());
    for _ in 0..3 {
        let start = Instant::now();
        assert_echoes(&mut client, b"hola y adios");
        assert!(start.elapsed() >= Duration::from_millis(33), "{:?}", start.elapsed());
    }
    eventually("everything counted", || server.handle().stats().bytes_out == 36);
    assert_eq!(counts(&server), [("delay", 1), ("chunk", 1)]);
}

#[test]
fn a_drain_ends_stalled_and_delayed_connections_orderly() {
    let mut config = faulty(&["stall=4,first=2", "delay=1h,after=2"]);
    config.drain_timeout = TIMEOUT;
    let server = Server::bind("127.0.0.1:0", config).unwrap().spawn().unwrap();
    let [mut stalled, mut silent, mut delayed] = [(); 3].map(|()| {
        let client = connect(server.local_addr());
        (&client).write_all(b"hola y adios").unwrap();
        client
    });
    assert_receives(&mut stalled, b"hola");
    assert_receives(&mut silent, b"hola");
    eventually("everything read", || server.handle().stats().bytes_in == 36);
    server.handle().drain();
    assert_ended(&mut stalled);
    assert_receives(&mut delayed, b"hola y adios");
    assert_ended(&mut delayed);
    assert_ended(&mut silent);
    drop((stalled, delayed, silent));
    let report = join(server);
    assert_eq!((report.stats.closed.drained, report.stats.closed.total()), (3, 3));
}

#[test]
fn stop_and_the_timeouts_close_connections_with_faults() {
    // Of the fourth, what is read takes more room twice than is left.
    let mut config = faulty(&["stall,first=2", "delay=1h,hold=4,after=2", "duplicate=1,after=3"]);
    config.idle_timeout = Some(Duration::from_millis(200));
    let server = serve(config);
    let mut clients = [(); 4].map(|()| connect(server.local_addr()));
    for client in &mut clients[1..] {
        client.write_all(b"hola").unwrap();
    }
    await_closed(&server, 4);
    assert_eq!(server.handle().stats().closed.idle, 4);
    assert_ended(&mut clients[0]);

    let server = serve(faulty(&["stall"]));
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    eventually("the accept", || server.handle().stats().accepted == 1);
    server.handle().stop();
    assert_eq!(join(server).stats.closed.stopped, 1);
}

#[test]
fn a_client_that_does_not_read_is_stalled_whatever_delays_its_echo() {
    let mut config = narrow();
    config.stall_timeout = Some(Duration::from_millis(300));
    config.faults = faulty(&["delay=500ms,hold=1MiB"]).faults;
    let server = serve(config);
    let mut client = connect_narrow(server.local_addr());
    // Waits longer than the timeout for its echo, but reads it.
    let mut slow = connect(server.local_addr());
    assert_echoes(&mut slow, b"hola");
    let error = client.write_all(&pattern(16 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    eventually("the close", || server.handle().stats().closed.stalled == 1);
    assert_echoes(&mut slow, b"adios");
}

#[test]
fn a_stalled_client_that_resets_is_closed() {
    let server = serve(faulty(&["stall"]));
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    eventually("the stall", || counts(&server) == [("stall", 1)]);
    reset(client);
    await_closed(&server, 1);
    assert_eq!(server.handle().stats().closed.reset, 1);
}

#[test]
fn connects_time_out_while_they_hang_and_then_succeed() {
    let start = Instant::now();
    let (server, address) = Process::serve(&["--fault", "connect=hang,at=0s..2s"]);
    // More than a backlog of 0 completes.
    for _ in 0..5 {
        let connected = TcpStream::connect_timeout(&address, Duration::from_millis(50)).map_err(|error| error.kind());
        // On a loaded machine the hang may be over.
        let may_be_over = start.elapsed() >= Duration::from_secs(2);
        assert!(may_be_over || matches!(connected, Err(ErrorKind::TimedOut)), "{connected:?}");
    }
    eventually("a connect", || TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok());
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_echoes(&mut connect(address), b"hola");
    drop(server);
}

#[test]
fn a_hang_at_the_start_lets_no_client_through() {
    let server = serve(faulty(&["connect=hang"]));
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            assert!(socket.connect(&server.local_addr().into()).is_err());
            socket
        })
        .collect();
    let error = TcpStream::connect_timeout(&server.local_addr(), Duration::from_millis(1500)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(clients.iter().all(|client| client.peer_addr().is_err()), "a handshake was completed");
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
fn connects_are_refused_in_their_time_and_open_connections_are_not_concerned() {
    let mut config = faulty(&["connect=refuse,at=1s..2s"]);
    config.drain_timeout = TIMEOUT;
    let server = serve(config);
    let mut before = connect(server.local_addr());
    assert_echoes(&mut before, b"hola");
    eventually("a refused connect", || {
        TcpStream::connect(server.local_addr()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    assert_echoes(&mut before, b"hola");
    eventually("a connect", || TcpStream::connect(server.local_addr()).is_ok());
    assert_echoes(&mut connect(server.local_addr()), b"hola");
    assert_echoes(&mut before, b"adios");
}

/// The server could not open a socket of the embedder's again as it was: on both IP versions, say, or kept open by a copy.
#[test]
fn rules_that_close_or_filter_the_listening_sockets_need_a_server_that_opened_them() {
    for rule in ["connect=refuse", "connect=hang"] {
        let config = faulty(&[rule]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, copy) = (listener.local_addr().unwrap(), listener.try_clone().unwrap());
        let error = Server::from_listener(listener, config.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{rule}");
        assert_eq!(
            error.to_string(),
            "connect=hang and connect=refuse need listening sockets that Server::bind has opened"
        );
        // It is as it was.
        drop(TcpStream::connect(address).unwrap());
        drop(copy);
        let listeners = bind_tcp(&["127.0.0.1:0".parse().unwrap()], &config).unwrap();
        assert_eq!(Server::from_transport(listeners, config).unwrap_err().to_string(), error.to_string());
    }
}

#[test]
fn a_server_that_refuses_from_the_start_keeps_its_port_and_drains() {
    let server = serve(faulty(&["connect=refuse"]));
    let address = server.local_addr();
    assert_ne!(address.port(), 0);
    for _ in 0..5 {
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
fn a_fault_that_ends_while_the_server_starts_ends() {
    for rule in ["connect=refuse,at=0s..1us", "connect=hang,at=0s..1us"] {
        let server = serve(faulty(&[rule]));
        eventually(rule, || TcpStream::connect_timeout(&server.local_addr(), Duration::from_secs(2)).is_ok());
        assert_echoes(&mut connect(server.local_addr()), b"hola");
    }
}

#[test]
fn connects_are_reset_after_the_handshake_and_counted() {
    let report = Scratch::new("resets");
    let options = ["--fault", "connect=reset,p=50%", "-v", "--report", report.path()];
    let (mut server, address) = Process::serve(&options);
    let resets = (0..40).filter(|_| exchange(address, b"").1 == Some(ErrorKind::ConnectionReset)).count();
    assert!((5..35).contains(&resets), "{resets} of 40");
    let line = server.line_with("DEBUG [ecoloop] reset the connection from 127.0.0.1:");
    assert!(line.ends_with(": connect=reset,p=50%"), "{line}");
    server.terminate();
    let report = report.json();
    assert_eq!((&report["faults"]["connect"], &report["accepted"]), (&json!(resets), &json!(40 - resets)));
}

#[test]
fn connections_are_accepted_one_at_a_time() {
    let server = Server::bind("127.0.0.1:0", faulty(&["connect=100ms"])).unwrap();
    let start = Instant::now();
    let mut clients: Vec<_> = (0..5).map(|_| connect(server.local_addr())).collect();
    // All of them wait before the first is accepted.
    let server = server.spawn().unwrap();
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    assert_eq!(counts(&server), [("connect", 4)]);
}

#[test]
fn rules_choose_by_the_source() {
    let server = serve(faulty(&["reset=0,from=127.0.0.8/30"]));
    let from = |last| {
        let mut client = connect_from([127, 0, 0, last], server.local_addr());
        let _ = client.shutdown(Shutdown::Write);
        read_all(&mut client).1
    };
    assert_eq!([7, 8, 11, 12].map(from).map(|error| error.is_some()), [false, true, true, false]);
    assert_eq!(counts(&server), [("reset", 2)]);
}

#[test]
fn rules_choose_by_the_address_in_a_proxy_header_once_it_is_complete() {
    let (server, address) =
        Process::serve(&["--proxy-protocol", "--fault", "flip=1,from=192.0.2.7", "--fault", "lose=1,every=3"]);
    let mut waiting = connect(address);
    for (source, expected) in [("192.0.2.7", &b"bc"[..]), ("192.0.2.8", b"cb"), ("192.0.2.9", b"")] {
        let header = format!("PROXY TCP4 {source} 127.0.0.1 1234 80\r\ncb");
        assert_eq!(exchange(address, header.as_bytes()), (expected.to_vec(), None), "{source}");
    }
    // It was accepted first, and is the fourth that is served.
    waiting.write_all(b"PROXY TCP4 192.0.2.8 127.0.0.1 1234 80\r\n").unwrap();
    assert_echoes(&mut waiting, b"hola");
    drop(server);
}

#[test]
fn the_library_takes_typed_rules_and_tells_the_observer() {
    #[derive(Clone, Default)]
    struct Rules(Recorder, std::sync::Arc<std::sync::Mutex<Vec<String>>>);

    impl Observer for Rules {
        fn faulted(&mut self, _: Peer, fault: &Fault) {
            self.1.lock().unwrap().push(fault.to_string());
        }

        fn closed(&mut self, peer: Peer, reason: CloseReason) {
            self.0.closed(peer, reason);
        }
    }

    let mut fault = Fault::new(Effect::Reset(Moment::Bytes(2)));
    fault.selector.first = Some(1);
    let mut config = Config::default();
    config.faults = vec![fault, Fault::new(Effect::Flip { every: 2 })];
    let rules = Rules::default();
    let server = Server::bind("127.0.0.1:0", config).unwrap().with_observer(rules.clone()).spawn().unwrap();
    assert_eq!(exchange(server.local_addr(), b"abc").0, b"ac");
    assert_eq!(exchange(server.local_addr(), b"abc"), (b"acc".to_vec(), None));
    await_closed(&server, 2);
    assert_eq!(*rules.1.lock().unwrap(), ["reset=2,first=1", "flip=2", "flip=2"]);
    let reasons: Vec<_> = rules.0.take().into_iter().map(|(_, event)| event).collect();
    assert_eq!(reasons, [Event::Closed(CloseReason::Fault), Event::Closed(CloseReason::EndOfStream)]);

    let mut config = Config::default();
    config.faults = vec![Fault::new(Effect::Flip { every: 0 })];
    let error = Server::bind("127.0.0.1:0", config).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::InvalidInput, "flip: the number of bytes must be at least 1")
    );
    assert_eq!(
        "connect=250ms".parse::<Fault>().unwrap().effect,
        Effect::Connect(Connect::Every(Duration::from_millis(250)))
    );
}

#[cfg(feature = "load")]
mod load {
    use std::fs;

    use super::*;

    /// Returns the rows of the table in `docs/faults.md`: rule, what a client sees, what `load` reports.
    fn rows() -> Vec<[String; 3]> {
        let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md")).unwrap();
        let table = page.lines().skip_while(|line| !line.starts_with("| rule |")).skip(2);
        let cells = |line: &str| line.trim_matches(['|', ' ']).split(" | ").map(str::to_owned).collect::<Vec<_>>();
        let rows = table.take_while(|line| line.starts_with("| `")).map(|line| cells(line).try_into().unwrap());
        rows.map(|[rule, client, load]: [String; 3]| [rule.trim_matches('`').to_owned(), client, load]).collect()
    }

    #[test]
    fn help_faults_and_the_documentation_have_the_same_table_of_every_kind() {
        let ended = Process::start(ecoloop(&["serve", "--help-faults"])).wait();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        let lines = ended.stdout.iter().skip_while(|line| !line.starts_with("RULE  ")).skip(1);
        let lines: Vec<[String; 3]> = lines
            .take_while(|line| !line.is_empty())
            .map(|line| {
                let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned);
                cells.collect::<Vec<_>>().try_into().unwrap()
            })
            .collect();
        assert_eq!(lines, rows());
        for &kind in Kind::ALL {
            let is_kind = |rule: &str| rule.parse::<Fault>().unwrap().kind() == kind;
            assert!(lines.iter().any(|[rule, ..]| is_kind(rule)), "{} is missing", kind.name());
        }
    }

    #[test]
    fn load_reports_of_each_rule_what_the_documentation_says_and_nothing_else() {
        let rows = rows();
        // A few at a time: they wait more than they compute.
        for rows in rows.chunks(5) {
            std::thread::scope(|scope| {
                for [rule, _, expected] in rows {
                    scope.spawn(move || assert_reports(rule, expected));
                }
            });
        }
    }

    fn assert_reports(rule: &str, expected: &str) {
        let (report, json) = (Scratch::new("served"), Scratch::new("load"));
        let (server, address) = Process::serve(&["--fault", rule, "--report", report.path()]);
        // Where nothing is to time out, nothing does on a loaded machine. A lost byte is certain once no other follows.
        let timeout = match expected {
            "finding lost" => "3s",
            _ if expected.ends_with("timeout") => "1s",
            _ => "20s",
        };
        let options = ["-c", "4", "-p", "8", "-d", "1s", "--timeout", timeout, "--connect-timeout", timeout];
        let target = address.to_string();
        let ended =
            Process::start(ecoloop(&[&["load", "-q"], &options[..], &["--json", json.path(), &target]].concat()))
                .wait();
        let load = json.json();
        let errors: BTreeSet<_> = load["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| format!("{} {}", error["phase"].as_str().unwrap(), error["error"].as_str().unwrap()))
            .collect();
        let findings = load["verify"]["findings"].as_array().unwrap();
        let findings: BTreeSet<_> = findings.iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
        let at_least = |value: f64, words: &str| {
            let millis: f64 = words.strip_suffix(" ms").unwrap().parse().unwrap();
            assert!(value >= millis / 1e3, "{rule}: {value} s instead of {words}");
            assert!(errors.is_empty() && findings.is_empty(), "{rule}: {errors:?}, {findings:?}");
            assert_ne!(ended.status.code(), Some(1), "{rule}: {load}");
        };
        let latency_s = |name: &str| load["latency_us"][name].as_f64().unwrap() / 1e6;
        match expected.split_once(" of at least ").unwrap_or((expected, "")) {
            ("latency", time) => at_least(latency_s("p50"), time),
            ("maximum latency", time) => at_least(latency_s("max"), time),
            ("connect phase", time) => at_least(load["phases_s"]["connect"].as_f64().unwrap(), time),
            (words, _) => {
                let (what, name) = words.split_once(' ').unwrap();
                if what == "finding" {
                    assert_eq!(findings, BTreeSet::from([name]), "{rule}");
                    assert_eq!(errors, BTreeSet::from(["verify bad_bytes".to_owned()]), "{rule}");
                } else {
                    // A reset is found by whatever the generator does next.
                    let is_expected = |error: &String| error == name || name == "reset" && error.ends_with(" reset");
                    assert!(!errors.is_empty() && errors.iter().all(is_expected), "{rule}: {errors:?}");
                    assert!(findings.is_empty(), "{rule}: {findings:?}");
                }
                assert_eq!(ended.status.code(), Some(1), "{rule}");
            }
        }
        server.terminate();
        let kind = rule.parse::<Fault>().unwrap().kind();
        let faults = report.json()["faults"].clone();
        for (name, count) in faults.as_object().unwrap() {
            // The server does not see clients that cannot connect.
            let is_counted = name == kind.name() && rule != "connect=hang" && rule != "connect=refuse";
            assert_eq!(count.as_u64().unwrap() > 0, is_counted, "{rule}: {faults}");
        }
    }
}
