//! The load generator as a library: a run on a thread, the report as an assertion prints it, and windows of other settings.

use std::net::SocketAddr;
use std::time::Duration;

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{Ended as RunEnded, Verdict};
use ecoloop::load::{ArrivalProcess, Config, Interrupt, ProgressCell, Run, Session, Step};

use super::{SIZE, assert_clean, assert_sums, config};
use crate::support::{TIMEOUT, eventually, join, reserve_port, serve};

#[test]
fn a_run_takes_its_settings_and_counts_what_the_server_counts() {
    let server = serve(ServerConfig::default());
    let run = Run::new([server.local_addr()]).connections(3).rate(100.0).size(100).duration(Duration::from_millis(500));
    let report = run.fail_if("p99>1m").unwrap().spawn().unwrap().join().unwrap();
    assert_sums(&report);
    assert_clean(&report);
    assert_eq!((report.connections.requested, report.config.rate, report.config.size), (3, Some(100.0), 100));
    assert_eq!((report.messages.due, report.messages.verified), (50, 50));
    assert!(report.thresholds.iter().any(|threshold| threshold.expr == "p99>1m" && !threshold.failed));
    assert_eq!((report.failed(), report.passed()), (false, report.verdict == Verdict::Pass));
    server.handle().drain();
    // Each connection is verified by a first message.
    assert_eq!(join(server).stats.bytes_in, (3 + 50) * 100);
}

#[test]
fn a_failed_report_prints_what_was_run_what_came_and_which_threshold_failed() {
    let server = serve(ServerConfig::default());
    let run = Run::new([server.local_addr()]).connections(2).rate(100.0).duration(Duration::from_millis(100));
    let report = run.fail_if("rate<1M").unwrap().spawn().unwrap().join().unwrap();
    assert_eq!((report.failed(), report.passed()), (true, false));
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("FAIL: echo, 2 of 2 connections to {}", server.local_addr()));
    assert_eq!(lines[1], "messages: 10 due, 10 verified, 0 unsent, 0 unanswered, 0 failed");
    assert!(lines[2].starts_with(&format!("latency: p50 {} µs, p99 ", report.latency_us.p50.unwrap())), "{text}");
    let rate = report.rate_per_s.unwrap();
    assert_eq!(&lines[3..], [format!("failed: rate<1M ({rate})")], "{text}");
}

#[test]
fn a_report_of_a_refused_run_prints_its_errors() {
    let (_reserved, address) = reserve_port();
    let report = Run::new([address]).duration(Duration::from_millis(10)).spawn().unwrap().join().unwrap();
    let text = report.to_string();
    assert!(text.starts_with(&format!("FAIL: echo, 0 of 1 connections to {address}\n")), "{text}");
    assert!(text.contains("\nerror: connect refused (ECONNREFUSED): 1\n"), "{text}");
    assert!(text.contains("\nfailed: connections<1 (0)\n"), "{text}");
}

#[test]
fn a_run_can_be_watched_and_interrupted() {
    let server = serve(ServerConfig::default());
    let load = Run::new([server.local_addr()]).duration(TIMEOUT * 100).spawn().unwrap();
    eventually("progress of the window", || load.progress().is_some_and(|progress| progress.step == Step::Measure));
    assert!(!load.is_finished());
    load.interrupt();
    eventually("the end of the run", || load.is_finished());
    let report = load.join().unwrap();
    assert_eq!((report.ended, report.verdict), (RunEnded::Interrupted, Verdict::Interrupted));
    assert!(report.to_string().starts_with("INTERRUPTED: echo, 1 of 1 connections"), "{report}");
}

#[test]
fn a_dropped_run_ends_and_closes_its_connections() {
    let server = serve(ServerConfig::default());
    let load = Run::new([server.local_addr()]).connections(4).duration(TIMEOUT * 100).spawn().unwrap();
    eventually("the connections", || server.handle().stats().open() == 4);
    drop(load);
    eventually("their end", || server.handle().stats().open() == 0);
}

#[test]
fn invalid_settings_are_refused_before_the_thread_starts() {
    let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let error = Run::new([address]).size(0).spawn().unwrap_err();
    assert_eq!(error.to_string(), "size, pipeline and messages_per_connection must be at least 1");
    assert!(Run::new([address]).fail_if("p99").is_err());
    let mut config = Config::new(vec![address]);
    config.timeout = Duration::ZERO;
    assert_eq!(Run::from(config).spawn().unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn a_session_changes_rate_and_size_between_windows() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    (config.connections, config.rate) = (7, Some(100.0));
    config.duration = Duration::from_millis(200);
    let mut session = Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap();
    let mut bytes = 7 * SIZE as u64;
    for (due, size) in [(20_u32, SIZE), (60, 1000), (10, 1), (40, 64 * 1024), (40, 7)] {
        let rate = f64::from(due) * 5.0;
        let due = u64::from(due);
        session.set_rate(rate).unwrap();
        session.set_size(size).unwrap();
        let report = session.measure().unwrap();
        assert_sums(&report);
        assert_clean(&report);
        assert_eq!((report.config.rate, report.config.size), (Some(rate), size as u64));
        assert_eq!((report.messages.due, report.messages.verified), (due, due));
        bytes += due * size as u64;
        eventually("the server's count", || server.handle().stats().bytes_out == bytes);
        assert_eq!(report.connections.opened_total, 7);
    }
    assert_eq!(session.close().unwrap().errors, []);
}

/// The due times of random arrivals are kept with the messages, which the size numbers anew.
#[test]
fn a_session_with_poisson_arrivals_changes_its_size_between_windows() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    (config.connections, config.rate) = (2, Some(400.0));
    config.arrivals = ArrivalProcess::Poisson;
    config.duration = Duration::from_millis(200);
    let mut session = Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap();
    for size in [SIZE, 1000, 7, 64 * 1024] {
        session.set_size(size).unwrap();
        let report = session.measure().unwrap();
        assert_sums(&report);
        assert_clean(&report);
        assert!(report.messages.due > 0);
        assert_eq!((report.messages.verified, report.latency_us.count), (report.messages.due, report.messages.due));
    }
    assert_eq!(session.close().unwrap().errors, []);
}

#[test]
fn a_session_refuses_what_a_run_refuses() {
    let server = serve(ServerConfig::default());
    let closed_loop = config(server.local_addr());
    let mut session = Session::connect(closed_loop, &Interrupt::default(), &ProgressCell::default()).unwrap();
    let error = session.set_rate(10.0).unwrap_err();
    assert_eq!(error.to_string(), "the session began without a constant rate");
    assert_eq!(session.set_size(0).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    session.close().unwrap();
}
