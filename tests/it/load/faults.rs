//! Connections that misbehave on purpose beside those that are measured.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::load::report::FaultFigures;
use ecoloop::load::{self, Config, Interrupt, Mode, ProgressCell, Report};
use ecoloop::{Config as ServerConfig, Stats};
use socket2::SockRef;

use super::faulty_server::{echo, faulty_server};
use super::{assert_clean, assert_sums, config, document, listen_with_room_for_one, run, run_command};
use crate::support::{TIMEOUT, eventually, join, narrow, serve};

/// Faulted connections of a run.
const FAULTED: u64 = 10;
/// Bytes of a socket's buffers where a server must block at once.
const SMALL_BUFFER: usize = 4096;

/// Settings of a run of 100 connections.
fn faulted(address: SocketAddr, rules: &[&str]) -> Config {
    let mut config = config(address);
    config.connections = 100;
    config.messages_per_connection = Some(5);
    config.faults = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    config
}

/// Runs against a server of this process until `is_over` holds for the figures of the rules, and returns what the server counted.
#[track_caller]
fn run_until(server: ServerConfig, rules: &[&str], is_over: impl Fn(&[FaultFigures]) -> bool) -> (Report, Stats) {
    let server = serve(server);
    let mut config = faulted(server.local_addr(), rules);
    (config.duration, config.messages_per_connection, config.rate) = (TIMEOUT * 2, None, Some(500.0));
    config.recv_buffer = Some(SMALL_BUFFER);
    let interrupt = Interrupt::default();
    let take = |report: Report| {
        // Until the window, an interrupted run has other numbers.
        if report.messages.verified > 0 && is_over(&report.faults) {
            interrupt.set();
        }
    };
    let (progress, interval) = (ProgressCell::default(), Duration::from_millis(20));
    let report = load::run_with_reports(config, &interrupt, &progress, interval, take).unwrap();
    assert_sums(&report);
    server.handle().drain();
    (report, join(server).stats)
}

/// Returns the figures of the only rule.
#[track_caller]
fn figures(report: &Report) -> (&str, [u64; 5]) {
    let [of] = &report.faults[..] else { panic!("{:?}", report.faults) };
    assert_eq!(of.connections, of.open + of.closed + of.reset + of.own_end, "{of:?}");
    (&of.rule, [of.connections, of.open, of.closed, of.reset, of.own_end])
}

#[test]
fn slow_readers_leave_the_messages_of_the_others_alone() {
    for rate in [None, Some(1000.0)] {
        let server = serve(ServerConfig::default());
        let mut config = faulted(server.local_addr(), &["rate=1KiB,every=10"]);
        config.rate = rate;
        let report = run(config);
        assert_clean(&report);
        assert_eq!(figures(&report), ("rate=1KiB,every=10", [FAULTED, FAULTED, 0, 0, 0]));
        let counts = report.connections;
        assert_eq!((counts.requested, counts.established, counts.verified, counts.held), (90, 90, 90, 90));
        assert_eq!((counts.opened_total, report.messages.due, report.connect_us.count), (90, 450, 90));
        let of_others = 90 * 6 * super::SIZE as u64;
        server.handle().drain();
        let stats = join(server).stats;
        // The slow readers sent what the sockets took, and end with what they had not read.
        assert_eq!((stats.accepted, stats.closed.end_of_stream, stats.closed.reset), (100, 90, FAULTED));
        assert!(stats.bytes_in > of_others + FAULTED * 64 * 1024, "{stats:?}");
    }
}

#[test]
fn a_slow_reader_reads_at_most_its_rate() {
    const RATE: u64 = 64 * 1024;
    let began = Instant::now();
    let (sender, written) = std::sync::mpsc::channel();
    let address = faulty_server(move |number, stream| {
        if number != 0 {
            return echo(stream);
        }
        SockRef::from(&*stream).set_send_buffer_size(SMALL_BUFFER)?;
        let mut count = 0;
        while let Ok(n) = stream.write(&[0; 1024]) {
            count += n as u64;
        }
        sender.send((count, began.elapsed())).unwrap();
        Ok(())
    });
    let mut config = faulted(address, &["rate=64KiB,first=1"]);
    (config.connections, config.max_connecting, config.recv_buffer) = (2, 1, Some(SMALL_BUFFER));
    (config.messages_per_connection, config.duration) = (None, Duration::from_secs(1));
    let report = run(config);
    assert_clean(&report);
    assert_eq!(figures(&report).1, [1, 1, 0, 0, 0]);
    let (written, elapsed) = written.recv_timeout(TIMEOUT).unwrap();
    // The buffers of both ends are in it.
    let most = RATE * u64::try_from(elapsed.as_millis()).unwrap() / 1000 + 128 * 1024;
    assert!((1..=most).contains(&written), "{written} bytes in {elapsed:?}");
}

/// Serves `total` connections on one thread: first one message of each that is not among the first `slow`, and then all in turn, with
/// blocking writes.
fn blocking_server(total: usize, slow: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || -> std::io::Result<()> {
        let mut streams: Vec<TcpStream> = listener.incoming().take(total).collect::<Result<_, _>>()?;
        for stream in &streams {
            stream.set_nodelay(true)?;
            SockRef::from(stream).set_send_buffer_size(SMALL_BUFFER)?;
        }
        for stream in &mut streams[slow..] {
            super::faulty_server::echo_messages(stream, 1)?;
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            for stream in &mut streams {
                stream.set_nonblocking(true)?;
                let received = stream.read(&mut buffer);
                stream.set_nonblocking(false)?;
                match received {
                    Ok(n) => stream.write_all(&buffer[..n])?,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    };
    // An error is the end of the run, which is no failure.
    thread::spawn(serve);
    address
}

#[test]
fn a_server_that_blocks_for_a_slow_reader_leaves_the_others_unanswered() {
    let (total, slow) = (20, 2);
    let address = blocking_server(total, slow);
    let mut config = faulted(address, &["rate=1KiB,first=2"]);
    (config.connections, config.max_connecting, config.recv_buffer) = (20, 1, Some(SMALL_BUFFER));
    (config.messages_per_connection, config.timeout) = (Some(1_000_000), Duration::from_secs(1));
    let report = run(config);
    assert_eq!(report.messages.unanswered, (total - slow) as u64, "{:?}", report.messages);
    assert_eq!((report.connections.verified, report.connections.held), ((total - slow) as u64, 0));
    assert_eq!(figures(&report).1, [2, 2, 0, 0, 0]);
}

#[test]
fn connections_reset_or_end_after_their_bytes_or_their_time() {
    // Of each kind, the first rule that chooses a connection holds.
    let rules = [
        "reset=0,first=10",
        "reset=1000,first=20",
        "reset=20ms,first=30",
        "fin=0,after=90",
        "fin=1000,after=80",
        "fin=20ms,after=70",
    ];
    let is_over = |all: &[FaultFigures]| all.iter().all(|of| of.own_end == FAULTED);
    let (report, stats) = run_until(ServerConfig::default(), &rules, is_over);
    assert_eq!((&report.errors[..], report.connections.held), (&[][..], 40));
    for (of, rule) in report.faults.iter().zip(rules) {
        assert_eq!((&of.rule[..], of.connections, of.own_end), (rule, FAULTED, FAULTED), "{of:?}");
    }
    // The measured ones end with the run, with FIN or with RST.
    let closed = stats.closed;
    assert_eq!((stats.accepted, closed.end_of_stream + closed.reset), (100, 100), "{stats:?}");
    assert!(closed.reset >= 3 * FAULTED && closed.end_of_stream >= 3 * FAULTED, "{stats:?}");
}

#[test]
fn a_stall_is_found_by_the_timeouts_of_the_server() {
    // With small buffers, what is on its way does not fit in the sockets.
    let mut server = narrow();
    server.stall_timeout = Some(Duration::from_millis(100));
    let (report, stats) = run_until(server, &["stall=1,first=10"], |of| of[0].reset == FAULTED);
    assert_eq!((&report.errors[..], report.connections.held), (&[][..], 100 - FAULTED));
    assert_eq!(figures(&report).1, [FAULTED, 0, 0, FAULTED, 0]);
    assert_eq!((stats.closed.stalled, stats.accepted), (FAULTED, 100), "{stats:?}");

    // It has never sent a byte. On a loaded machine, others may be silent for as long.
    let mut server = ServerConfig::default();
    server.idle_timeout = Some(Duration::from_millis(500));
    let (report, stats) = run_until(server, &["stall,first=10"], |of| of[0].closed == FAULTED);
    assert_eq!(figures(&report).1, [FAULTED, 0, FAULTED, 0, 0]);
    assert!(stats.closed.idle >= FAULTED && stats.accepted == 100, "{stats:?}");
}

#[test]
fn a_stall_of_some_time_continues_after_it() {
    // The FIN follows bytes that come back after the stall. One that has not sent a byte has nothing but its time to wake it up.
    let rules = ["stall=64,for=50ms,first=10", "fin=4KiB,first=10", "stall=0,for=50ms,after=90", "fin=4KiB,after=90"];
    let server = serve(ServerConfig::default());
    let mut config = faulted(server.local_addr(), &rules);
    (config.duration, config.messages_per_connection) = (TIMEOUT * 2, None);
    let (interrupt, interval) = (Interrupt::default(), Duration::from_millis(20));
    let take = |report: Report| {
        if report.faults.iter().all(|of| of.own_end == FAULTED) {
            interrupt.set();
        }
    };
    let report = load::run_with_reports(config, &interrupt, &ProgressCell::default(), interval, take).unwrap();
    assert!(report.faults.iter().all(|of| (of.connections, of.own_end) == (FAULTED, FAULTED)), "{:?}", report.faults);
    server.handle().stop();
    join(server);
}

#[test]
fn connections_of_hold_and_those_opened_anew_are_measured() {
    let server = serve(ServerConfig::default());
    let mut config = faulted(server.local_addr(), &["rate=1KiB,p=10%", "reset=1KiB,p=10%"]);
    (config.mode, config.messages_per_connection) = (Mode::Hold, None);
    (config.duration, config.reconnect) = (Duration::from_millis(100), true);
    let report = run(config);
    assert_clean(&report);
    let held = report.connections.held;
    assert_eq!(held, report.connections.requested);
    assert_eq!(report.connections.opened_total, held);
    assert!((60..95).contains(&held), "{held} of 100 are measured");
    server.handle().stop();
    // Some are chosen by both rules.
    let both: u64 = report.faults.iter().map(|of| of.connections).sum();
    let accepted = join(server).stats.accepted;
    assert!(accepted == 100 && both >= 100 - held, "{accepted} accepted, {:?}", report.faults);
}

#[test]
fn a_connection_of_a_rule_is_not_among_those_opened_while_it_connects_either() {
    // One has its handshake, and the others go on connecting.
    let (_socket, address) = listen_with_room_for_one();
    let mut config = faulted(address, &["stall,after=1"]);
    config.connections = 3;
    let running = load::Run::from(config).spawn().unwrap();
    let mut progress = None;
    // The first progress is published before any connect, and the next one a tenth of a second later, after all three.
    eventually("the connection without a fault", || {
        progress = running.progress().filter(|progress| progress.open > 0);
        progress.is_some()
    });
    let progress = progress.unwrap();
    assert_eq!((progress.opened, progress.open), (1, 1));
    running.interrupt();
    let report = running.join().unwrap();
    assert_eq!((report.connections.requested, report.connections.opened_total), (1, 1));
    assert_eq!(figures(&report).1, [0; 5]);
}

#[test]
fn faults_are_in_the_report_of_every_process_and_in_the_table() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["-c", "10", "-d", "200ms", "--fault", "rate=1KiB,first=3"];
    let ended = run_command(&[&arguments[..], &[&address]].concat());
    let row = "faults       rate=1KiB,first=3: 3 connections, 3 open";
    assert!(ended.stdout.iter().any(|line| line == row), "{ended:?}");
    let ended = run_command(&[&arguments[..], &["-j", "2", "--json", "-", &address]].concat());
    let (document, report) = document(&ended);
    let expected = serde_json::json!([
        {"rule": "rate=1KiB,first=3", "connections": 3, "open": 3, "closed": 0, "reset": 0, "own_end": 0}
    ]);
    assert_eq!(document["faults"], expected);
    assert_eq!(report.connections.requested, 7);
}

#[test]
fn what_a_client_cannot_do_is_a_usage_error() {
    for (arguments, reason) in [
        (&["--fault", "flip=7"][..], "flip is a fault of a server: a client has rate, stall, reset and fin"),
        (&["--fault", "connect=hang"], "connect is a fault of a server: a client has rate, stall, reset and fin"),
        (&["--fault", "mute,first=1"], "mute is a fault of a server: a client has rate, stall, reset and fin"),
        (
            &["--fault", "stall,at=1s..2s"],
            "at does not apply to a client's stall, which takes p, first, after and every",
        ),
        (
            &["--fault", "rate=1,from=::1"],
            "from does not apply to a client's rate, which takes p, first, after and every",
        ),
        (&["--fault", "stall", "--fault", "reset=1"], "stall and reset=1 cannot act on one connection"),
        (&["--fault", "stall", "--mode", "churn"], "--fault has no effect in --mode churn"),
        (&["--fault", "stall", "--repeat", "--json", "-"], "--fault cannot be combined with --repeat and --find-rate"),
    ] {
        let ended = run_command(&[arguments, &["127.0.0.1:9"]].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.iter().any(|line| line.contains(reason)), "{ended:?}");
    }
}
