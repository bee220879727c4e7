//! Connections that are opened anew when they end.

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ecoloop::load::report::{Outages, Phase, Verdict};
use ecoloop::load::{self, Config, Interrupt, Mode, ProgressCell, Report};
use ecoloop::{Config as ServerConfig, Running, Server};

use super::faulty_server::{discard, echo, echo_messages, end_with_reset, faulty_server};
use super::{SIZE, assert_sums, config, document, run, run_command};
use crate::support::{TIMEOUT, eventually, join, reserve_port, serve};

const CONNECTIONS: u64 = 4;

/// Serves on a reserved port.
fn serve_on(address: SocketAddr) -> Running {
    let mut config = ServerConfig::default();
    config.reuse_port = true;
    Server::bind(address, config).unwrap().spawn().unwrap()
}

fn reconnecting(address: SocketAddr) -> Config {
    let mut config = config(address);
    config.reconnect = true;
    config.connections = u32::try_from(CONNECTIONS).unwrap();
    config
}

/// Starts a run that is interrupted once `recovered` outages are over.
pub(super) fn start(mut config: Config, recovered: u64) -> JoinHandle<Report> {
    config.duration = TIMEOUT * 2;
    let run = move || {
        let interrupt = Interrupt::default();
        let take = |report: Report| {
            if report.outages.is_some_and(|outages| outages.recovered >= recovered) {
                interrupt.set();
            }
        };
        load::run_with_reports(config, &interrupt, &ProgressCell::default(), Duration::from_millis(100), take).unwrap()
    };
    thread::spawn(run)
}

#[track_caller]
fn outages(report: &Report) -> &Outages {
    let outages = report.outages.as_ref().expect("no outages in the report");
    let recovery = &outages.recovery_us;
    assert_eq!((recovery.count, recovery.count - recovery.censored), (outages.count, outages.recovered));
    assert!(outages.attempts >= outages.recovered, "{outages:?}");
    outages
}

#[test]
fn an_outage_lasts_from_the_end_of_a_server_to_the_first_reply_of_the_next_one() {
    for rate in [Some(500.0), None] {
        let (_port, address) = reserve_port();
        let server = serve_on(address);
        let began = Instant::now();
        let mut config = reconnecting(address);
        config.rate = rate;
        let run = start(config, CONNECTIONS);
        let handle = server.handle();
        // More than the first message of each connection: the window has begun.
        eventually("messages of the window", || handle.stats().bytes_in >= 3 * CONNECTIONS * SIZE as u64);
        handle.stop();
        join(server);
        let down = Instant::now();
        eventually("a while", || down.elapsed() >= Duration::from_millis(100));
        let down = down.elapsed();
        let server = serve_on(address);
        let report = run.join().unwrap();
        let elapsed = began.elapsed();
        server.handle().stop();
        let second = join(server).stats;

        assert_sums(&report);
        let outages = outages(&report);
        assert_eq!((outages.count, outages.recovered), (CONNECTIONS, CONNECTIONS), "{outages:?}");
        assert_eq!(report.connections.held, CONNECTIONS);
        assert_eq!(report.connections.verified, 2 * CONNECTIONS);
        assert_eq!(report.connections.opened_total, CONNECTIONS + outages.attempts);
        // One connection of the second server is one recovery.
        assert_eq!(second.accepted, CONNECTIONS);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap();
        // A generator without a CPU sees the end late: by its longest gap, after a message that was due within 2 ms.
        let shortest = outages.recovery_us.p50.unwrap() + report.generator.longest_gap_us.unwrap() + 2000;
        assert!(
            shortest >= micros(down) && outages.longest_us <= micros(elapsed),
            "{outages:?}: {down:?}, {elapsed:?}"
        );
        assert!(outages.recovery_us.max.unwrap() >= outages.longest_us, "{outages:?}");
        // Errors are the ends of the connections and the attempts that were refused.
        let count = |phase| report.errors.iter().filter(|row| row.phase == phase).map(|row| row.count).sum::<u64>();
        assert_eq!(count(Phase::Connect) + count(Phase::Receive) + count(Phase::Send), outages.attempts);
        let messages = report.messages;
        // An open loop goes on while a connection is down.
        assert!(messages.unsent > 0 || rate.is_none(), "{messages:?}");
        assert!(messages.verified > 0 && report.verify.findings.is_empty(), "{messages:?}");
    }
}

/// Two connections end after their first message, with FIN and with RST.
#[test]
fn connections_of_hold_are_opened_anew_however_they_end() {
    eventually("a window in which all recover", || {
        let address = faulty_server(|number, stream| match number {
            0 => echo_messages(stream, 1),
            1 => {
                echo_messages(stream, 1)?;
                end_with_reset(stream)
            }
            _ => echo(stream),
        });
        let mut config = reconnecting(address);
        (config.mode, config.duration) = (Mode::Hold, Duration::from_millis(500));
        let report = run_reconnecting(config);
        let (outages, hold) = (outages(&report), report.hold.as_ref().unwrap());
        assert_eq!((outages.count, hold.closed, hold.reset), (2, 1, 1), "{report:?}");
        assert_eq!(hold.alive + hold.late, CONNECTIONS - 2 + outages.recovered, "{hold:?}");
        assert_eq!(report.connections.held, CONNECTIONS - 2 + outages.recovered);
        outages.recovered == 2
    });
}

/// Runs a load whose sums of mode hold count a connection again once it was opened anew.
fn run_reconnecting(config: Config) -> Report {
    load::run(config, &Interrupt::default(), &ProgressCell::default()).unwrap()
}

#[test]
fn an_outage_by_a_timeout_begins_when_the_message_was_due() {
    let address = faulty_server(|number, stream| {
        if number == 0 {
            echo_messages(stream, 2)?;
            return discard(stream);
        }
        echo(stream)
    });
    let mut config = reconnecting(address);
    config.connections = 1;
    config.timeout = Duration::from_secs(2);
    let report = start(config, 1).join().unwrap();
    assert_sums(&report);
    let outages = outages(&report);
    assert!(outages.count >= 1 && outages.recovered >= 1, "{outages:?}");
    assert!(outages.longest_us >= 2_000_000, "{outages:?}");
    assert!(report.messages.unanswered >= 1, "{:?}", report.messages);
}

/// Runs against a server that stops in the window.
#[track_caller]
fn run_into_stop(rate: Option<f64>) -> Report {
    let mut report = None;
    eventually("a server that stops in the window", || {
        let (_port, address) = reserve_port();
        let server = serve_on(address);
        let handle = server.handle();
        let mut config = reconnecting(address);
        (config.rate, config.duration) = (rate, Duration::from_secs(1));
        let run = thread::spawn(move || run(config));
        let has_begun = || handle.stats().bytes_in >= 3 * CONNECTIONS * SIZE as u64;
        eventually("messages of the window", || has_begun() || run.is_finished());
        handle.stop();
        join(server);
        let ended = run.join().unwrap();
        let is_in_window = outages(&ended).count == CONNECTIONS;
        report = Some(ended);
        is_in_window
    });
    report.unwrap()
}

#[test]
fn a_server_that_stays_dead_is_not_flooded_and_the_window_lasts_to_its_end() {
    for rate in [Some(200.0), None] {
        let report = run_into_stop(rate);
        let outages = outages(&report);
        assert_eq!((outages.count, outages.recovered, report.connections.held), (CONNECTIONS, 0, 0), "{outages:?}");
        assert_eq!(outages.recovery_us.censored, CONNECTIONS);
        assert_eq!(report.verdict, Verdict::Fail);
        let measured = report.phases_s.measure;
        assert!(measured >= 1.0, "{measured}");
        // After 0, 10, 30, 70 and 150 ms, and then every 100 ms.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
        let attempts_max = CONNECTIONS * (5 + (measured * 10.0) as u64);
        assert!((CONNECTIONS..=attempts_max).contains(&outages.attempts), "{outages:?} in {measured} s");
        if rate.is_some() {
            assert_eq!(report.messages.due, 200, "{:?}", report.messages);
        }
    }
}

/// A server that closes each connection after its second message is no reason for a flood either.
#[test]
fn a_connection_that_ends_at_once_waits_before_the_next() {
    let address = faulty_server(|_, stream| echo_messages(stream, 2));
    let mut config = reconnecting(address);
    (config.connections, config.duration) = (1, Duration::from_millis(300));
    let report = run(config);
    let outages = outages(&report);
    assert!(outages.count >= 1, "{outages:?}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
    let most = 1 + (report.phases_s.measure * 100.0) as u64;
    assert!(outages.attempts <= most, "{outages:?} in {} s", report.phases_s.measure);
}

#[test]
fn a_reply_that_only_verifies_a_connection_is_not_in_the_rate() {
    let address = faulty_server(|_, stream| echo_messages(stream, 1));
    let mut config = reconnecting(address);
    // A connection is lost before, or by, a message of the window.
    (config.connections, config.rate, config.duration) = (1, Some(1.0), Duration::from_secs(2));
    let report = run(config);
    assert!(outages(&report).recovered >= 1, "{report:?}");
    assert_eq!((report.messages.verified, report.rate_per_s), (0, Some(0.0)));
}

#[test]
fn a_connection_goes_back_to_its_own_target() {
    let (_port, address) = reserve_port();
    let (steady, server) = (serve(ServerConfig::default()), serve_on(address));
    let mut config = reconnecting(address);
    config.targets.push(vec![steady.local_addr().into()]);
    config.rate = Some(500.0);
    let run = start(config, CONNECTIONS / 2);
    let handle = server.handle();
    eventually("messages of the window", || handle.stats().bytes_in >= 4 * CONNECTIONS * SIZE as u64);
    handle.stop();
    join(server);
    let server = serve_on(address);
    let report = run.join().unwrap();
    assert_sums(&report);
    assert_eq!(outages(&report).count, CONNECTIONS / 2, "{report:?}");
    server.handle().stop();
    steady.handle().stop();
    let accepted = [steady, server].map(|server| join(server).stats.accepted);
    assert_eq!(accepted, [CONNECTIONS / 2, CONNECTIONS / 2]);
}

#[test]
fn outages_are_in_the_report_of_every_process_and_in_the_table() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["--reconnect", "-c", "4", "-d", "100ms"];
    let ended = run_command(&[&arguments[..], &[&address]].concat());
    assert!(ended.stdout.iter().any(|line| line == "outages      none"), "{ended:?}");
    let ended =
        run_command(&[&arguments[..], &["-j", "2", "--fail-if", "outages>0", "--json", "-", &address]].concat());
    let (document, _) = document(&ended);
    assert_eq!(document["outages"]["count"], 0);
    assert_eq!(document["outages"]["recovery_us"]["p50"], serde_json::Value::Null);
    // It replaces the default thresholds on errors and unanswered messages.
    let thresholds: Vec<_> = document["thresholds"].as_array().unwrap().iter().map(|of| &of["expr"]).collect();
    assert_eq!(thresholds, ["connections<4", "findings>0", "verified<1", "outages>0"]);
}

#[test]
fn options_that_reconnect_does_not_go_with_are_usage_errors() {
    for (arguments, reason) in [
        (&["--mode", "churn"][..], "--reconnect has no effect in --mode churn"),
        (&["-m", "5"], "--reconnect and --messages-per-connection cannot be combined"),
        (&["--repeat", "--json", "-"], "--reconnect cannot be combined with --repeat and --find-rate"),
        (&["-r", "1..9", "--find-rate", "p99<1s"], "--reconnect cannot be combined with --repeat and --find-rate"),
    ] {
        let ended = run_command(&[arguments, &["--reconnect", "127.0.0.1:9"]].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.iter().any(|line| line.contains(reason)), "{ended:?}");
    }
}

/// Less than one connection in the longest time that there is.
#[test]
fn the_lowest_connect_rate_allows_one_attempt() {
    let address = faulty_server(|_, stream| echo_messages(stream, 2));
    let mut config = reconnecting(address);
    (config.connections, config.connect_rate) = (1, Some(5e-11));
    config.duration = Duration::from_secs(2);
    let report = run(config);
    assert_eq!(outages(&report).attempts, 1, "{report:?}");
}
