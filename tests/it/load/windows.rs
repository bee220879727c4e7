//! Several windows over the same connections: `Session` and `--repeat`.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{Ended as RunEnded, ErrorName, Phase, Verdict};
use ecoloop::load::{Config, Interrupt, Mode, ProgressCell, Report, Session, run_with_reports};
use rustix::process::Signal;

use super::faulty_server::{discard, echo, echo_messages, faulty_server};
use super::{
    CONNECTIONS, FAULTY_CONNECTION, SHORT_TIMEOUT, SIZE, assert_clean, assert_sums, config, document, errors, run,
};
use crate::support::{Process, TIMEOUT, ecoloop, eventually, half_close, join, reserve_port, serve};

#[test]
fn the_rate_has_the_replies_to_messages_of_the_warm_up() {
    let mut delayed = ServerConfig::default();
    delayed.faults = vec!["delay=1s".parse().unwrap()];
    let server = serve(delayed);
    for mode in [Mode::Echo, Mode::Churn] {
        let mut config = config(server.local_addr());
        config.mode = mode;
        (config.warmup, config.duration) = (Duration::from_millis(500), Duration::from_secs(1));
        let report = run(config);
        // Sent in the warm-up, it comes back in the middle of the window, and the next one after it.
        assert_eq!((report.messages.due, report.messages.verified), (1, 1), "{mode:?}");
        let replies = report.rate_per_s.unwrap() * report.phases_s.measure;
        assert!((replies - 1.0).abs() < 1e-6, "{mode:?}: {replies}");
    }
}

#[test]
fn an_interrupted_window_has_the_time_that_it_lasted() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.duration = TIMEOUT * 2;
    let (interrupt, mut lasted) = (Interrupt::default(), 0.0);
    let take = |report: Report| {
        lasted = report.phases_s.measure;
        if lasted >= 0.05 {
            interrupt.set();
        }
    };
    let interval = Duration::from_millis(20);
    let report = run_with_reports(config, &interrupt, &ProgressCell::default(), interval, take).unwrap();
    let seconds = report.phases_s.measure;
    assert!(lasted >= 0.05 && (lasted..TIMEOUT.as_secs_f64()).contains(&seconds), "{lasted} s, and then {seconds} s");
}

#[test]
fn windows_share_only_their_connections() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.connections = 5;
    config.pipeline = Some(3);
    config.messages_per_connection = Some(40);
    let mut session = connect_session(config);
    let mut runs = BTreeSet::new();
    for window in 1..=4 {
        let report = session.measure().unwrap();
        assert_sums(&report);
        assert_clean(&report);
        assert_eq!((report.messages.due, report.messages.verified), (200, 200));
        let connections = report.connections;
        let counts =
            [connections.requested, connections.established, connections.verified, connections.held].map(|n| n == 5);
        assert_eq!((counts, connections.opened_total), ([true; 4], 5));
        assert_eq!(report.connect_us.count, 5);
        assert_eq!((report.phases_s.connect, report.phases_s.close), (0.0, 0.0));
        let seconds = report.phases_s.measure;
        assert!((report.rate_per_s.unwrap() * seconds - 200.0).abs() < 1e-6, "{:?} in {seconds} s", report.rate_per_s);
        assert!(seconds >= 1.0 || report.timeline[0].rate >= 200, "{:?}", report.timeline);
        assert!(runs.insert(report.run_id), "a run's name comes twice");
        assert_eq!(server.handle().stats().bytes_in, (5 + window * 200) * SIZE as u64);
    }
    assert_eq!(session.close().unwrap().errors, []);
    server.handle().drain();
    let stats = join(server).stats;
    assert_eq!((stats.accepted, stats.closed.end_of_stream), (5, 5));
}

#[test]
fn each_window_of_an_open_loop_has_its_own_schedule() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    // 150 messages do not divide evenly by 7 connections, so that each window starts from other counts.
    config.connections = 7;
    config.rate = Some(1000.0);
    config.warmup = Duration::from_millis(50);
    config.duration = Duration::from_millis(150);
    let mut session = connect_session(config);
    for _ in 0..3 {
        let before = Instant::now();
        let report = session.measure().unwrap();
        assert_sums(&report);
        assert_clean(&report);
        assert_eq!((report.messages.due, report.lateness_us.count), (150, 150));
        // A message is due within its window: no latency exceeds the window, and none is zero.
        assert!(report.latency_us.max.unwrap() <= u64::try_from(before.elapsed().as_micros()).unwrap());
        assert!(report.latency_us.mean.unwrap() > 1.0, "{:?}", report.latency_us.mean);
    }
}

#[test]
fn nothing_is_sent_and_no_timeout_expires_between_windows() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.connections = 3;
    config.duration = Duration::from_millis(50);
    config.timeout = SHORT_TIMEOUT;
    let mut session = connect_session(config);
    assert_clean(&session.measure().unwrap());
    let before = server.handle().stats();
    // There is no event to wait for: its absence is the property.
    thread::sleep(SHORT_TIMEOUT + SHORT_TIMEOUT / 4);
    let after = server.handle().stats();
    assert_eq!((before.bytes_in, before.closed), (after.bytes_in, after.closed));
    let report = session.measure().unwrap();
    assert_clean(&report);
    assert!(report.phases_s.measure < SHORT_TIMEOUT.as_secs_f64(), "{:?}", report.phases_s);
}

#[test]
fn a_connection_closed_between_windows_is_an_error_of_the_next_window() {
    let (end, ended) = mpsc::channel::<()>();
    let (sender, half_closed) = mpsc::channel();
    let both = Mutex::new((ended, sender));
    let address = faulty_server(move |number, stream| {
        if number != FAULTY_CONNECTION {
            return echo(stream);
        }
        echo_messages(stream, 1 + 4)?;
        let (ended, sender) = &*both.lock().unwrap();
        let _ = ended.recv();
        half_close(stream);
        sender.send(()).unwrap();
        discard(stream)
    });
    let mut config = config(address);
    config.connections = u32::try_from(CONNECTIONS).unwrap();
    config.max_connecting = 1;
    config.messages_per_connection = Some(4);
    let mut session = connect_session(config);
    assert_clean(&session.measure().unwrap());
    end.send(()).unwrap();
    half_closed.recv_timeout(TIMEOUT).unwrap();
    let report = session.measure().unwrap();
    assert_sums(&report);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::ClosedEarly, None, 1)]);
    assert_eq!((report.connections.held, report.connections.established, report.verdict), (2, 3, Verdict::Fail));
    // In the next window it is no error again, but it is still missing.
    let report = session.measure().unwrap();
    assert_eq!((errors(&report), report.messages.verified), (vec![], 8));
    assert_eq!((report.connections.held, report.verdict), (2, Verdict::Fail));
}

#[test]
fn a_session_requires_echo_mode() {
    let (_port, address) = reserve_port();
    for mode in [Mode::Hold, Mode::Churn] {
        let mut config = config(address);
        config.mode = mode;
        let refused = Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
fn repeat_measures_a_window_per_input_line_until_end_of_file() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let (mut process, mut input) = repeat(&["-c", "3", "-m", "7", "--fail-if", "max<1h", &address]);
    // Every connection is verified before the first line of input.
    eventually("the first messages", || server.handle().stats().bytes_out == 3 * SIZE as u64);
    let mut documents = Vec::new();
    for _ in 0..3 {
        input.write_all(b"go\n").unwrap();
        // The document is printed while the connections and the input are open.
        documents.push(Report::from_json(&process.line_with("ecoloop.load/1")).unwrap());
    }
    assert_eq!((server.handle().stats().accepted, server.handle().stats().open()), (3, 3));
    drop(input);
    let ended = process.wait();
    assert_eq!((ended.status.code(), &ended.stdout[..]), (Some(1), &[][..]), "{ended:?}");
    assert_eq!(ended.stderr_without_saturation(), [""; 0]);
    for report in &documents {
        assert_sums(report);
        assert_eq!((report.messages.verified, report.connections.held), (21, 3));
        let failed: Vec<_> = report
            .thresholds
            .iter()
            .filter(|threshold| threshold.failed)
            .map(|threshold| &threshold.expr[..])
            .collect();
        assert_eq!((failed, report.verdict), (vec!["max<1h"], Verdict::Fail));
    }
    server.handle().drain();
    let stats = join(server).stats;
    assert_eq!((stats.accepted, stats.closed.end_of_stream, stats.bytes_in), (3, 3, (3 + 3 * 21) * SIZE as u64));
}

#[test]
fn a_finding_at_the_close_of_a_repeated_load_is_printed_and_fails_it() {
    let address = faulty_server(|_, stream| {
        echo(stream)?;
        stream.write_all(b"x")
    });
    let (mut process, mut input) = repeat(&["-m", "2", &address.to_string()]);
    input.write_all(b"\n").unwrap();
    let report = Report::from_json(&process.line_with("ecoloop.load/1")).unwrap();
    assert_clean(&report);
    drop(input);
    let ended = process.wait();
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(1), 0), "{ended:?}");
    let error = format!("ecoloop: after the last window: verify bad_bytes: 1, to {address}");
    let lines = ended.stderr_without_saturation();
    assert!(lines[0].starts_with(&error), "{ended:?}");
    let finding = "ecoloop: after the last window: extra at byte 192 of connection 0, ";
    assert!(lines[1].starts_with(finding), "{ended:?}");
}

#[test]
fn a_repeated_load_without_a_window_prints_its_errors_and_a_hint() {
    let (_reserved, address) = reserve_port();
    let (process, input) = repeat(&["-c", "2", &address.to_string()]);
    drop(input);
    let ended = process.wait();
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(1), 0), "{ended:?}");
    let hint = "ecoloop: connect refused 2 times: no server listens there, or a firewall rejects the connection";
    let error = format!("ecoloop: connect refused (ECONNREFUSED): 2, to {address}");
    assert_eq!(ended.stderr, [&error, hint]);
}

#[test]
fn a_repeated_load_can_be_interrupted_in_a_window_and_between_windows() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for signal in [Signal::INT, Signal::TERM] {
        let before = server.handle().stats().bytes_in;
        let (process, mut input) = repeat(&["-d", "1h", &address]);
        input.write_all(b"\n").unwrap();
        eventually("traffic", || server.handle().stats().bytes_in > before + 100 * SIZE as u64);
        process.signal(signal);
        let (_, report) = document(&process.wait());
        assert_eq!((report.ended, report.verdict), (RunEnded::Interrupted, Verdict::Interrupted));

        let (mut process, mut input) = repeat(&["-m", "1", &address]);
        input.write_all(b"\n").unwrap();
        process.line_with("ecoloop.load/1");
        process.signal(signal);
        let ended = process.wait();
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(130), 0), "{ended:?}");
    }
}

#[track_caller]
fn connect_session(config: Config) -> Session {
    Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap()
}

/// Starts `ecoloop load --repeat`, and returns it with its standard input.
#[track_caller]
fn repeat(arguments: &[&str]) -> (Process, ChildStdin) {
    let mut command = ecoloop(&[&["load", "--repeat", "--json", "-"], arguments].concat());
    command.stdin(Stdio::piped());
    let mut process = Process::start(command);
    let input = process.take_input();
    (process, input)
}
