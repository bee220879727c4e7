//! `--mode hold`: which connections are alive at the end.

use std::io::Write;
use std::thread;
use std::time::Duration;

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{ErrorName, Loop, Phase, Verdict};
use ecoloop::load::{Mode, Report};
use rustix::process::Signal;
use serde_json::Value;

use super::faulty_server::{Fault, discard, echo, echo_messages, end_with_reset, faulty_server, read_message};
use super::{
    CONNECTIONS, FAULTY_CONNECTION, SHORT_TIMEOUT, SIZE, assert_clean, config, document, errors,
    listen_with_room_for_one, run, run_on_server,
};
use crate::support::{Process, ecoloop, eventually, half_close, serve};

#[test]
fn hold_sends_one_message_at_the_start_and_one_at_the_end() {
    let (report, stats) = run_on_server(|config| {
        config.mode = Mode::Hold;
        config.connections = 20;
        config.duration = Duration::from_millis(100);
    });
    assert_clean(&report);
    let hold = report.hold.unwrap();
    // The latency is that of the last messages alone.
    assert_eq!((report.latency_us.count, hold.first_us.count), (20, 20));
    assert_eq!([hold.alive, hold.late, hold.reset, hold.closed, hold.silent], [20, 0, 0, 0, 0]);
    assert_eq!((report.messages.due, stats.bytes_in), (40, 40 * SIZE as u64));
    assert_eq!((report.r#loop, report.config.rate), (Loop::Closed, Some(10_000.0)));
}

#[test]
fn a_late_reply_counts_as_held_and_late() {
    let report = hold_on_faulty_server(|stream, message| {
        thread::sleep(LATE);
        stream.write_all(&message)?;
        echo(stream)
    });
    assert_eq!(outcomes(&report), [2, 1, 0, 0, 0]);
    assert_clean(&report);
    assert!(report.latency_us.max.unwrap() >= 1_000_000);
}

#[test]
fn a_first_reply_is_never_late() {
    let address = faulty_server(|_, stream| {
        let message = read_message(stream)?;
        thread::sleep(LATE);
        stream.write_all(&message)?;
        echo(stream)
    });
    let mut config = config(address);
    config.mode = Mode::Hold;
    config.connections = 1;
    config.duration = Duration::from_millis(50);
    let report = run(config);
    assert_eq!(outcomes(&report), [1, 0, 0, 0, 0]);
    assert!(report.hold.unwrap().first_us.max.unwrap() >= 1_000_000);
}

#[test]
fn each_hold_outcome_is_counted_once() {
    let closed: Fault = |stream, _| {
        half_close(stream);
        discard(stream)
    };
    assert_eq!(outcomes(&hold_on_faulty_server(closed)), [2, 0, 0, 1, 0]);
    let is_reset: Fault = |stream, _| end_with_reset(stream);
    assert_eq!(outcomes(&hold_on_faulty_server(is_reset)), [2, 0, 1, 0, 0]);
    assert_eq!(outcomes(&hold_on_faulty_server(|stream, _| discard(stream))), [2, 0, 0, 0, 1]);
}

#[test]
fn a_connect_timeout_has_no_hold_outcome() {
    let (_socket, address) = listen_with_room_for_one();
    let mut config = config(address);
    config.mode = Mode::Hold;
    config.connections = 3;
    config.duration = Duration::from_millis(50);
    (config.timeout, config.connect_timeout) = (SHORT_TIMEOUT, SHORT_TIMEOUT);
    let report = run(config);
    let timeouts = [(Phase::Connect, ErrorName::Timeout, None, 2), (Phase::Receive, ErrorName::Timeout, None, 1)];
    assert_eq!(errors(&report), timeouts);
    assert_eq!(outcomes(&report), [0, 0, 0, 0, 1]);
}

#[test]
fn a_late_connection_that_then_closes_is_counted_once() {
    // The other connection's reply comes later, so that the measurement is not over when the faulty connection closes.
    let address = faulty_server(move |number, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        thread::sleep(if number == FAULTY_CONNECTION { LATE } else { LATE * 2 });
        stream.write_all(&message)?;
        if number == FAULTY_CONNECTION {
            half_close(stream);
            return discard(stream);
        }
        echo(stream)
    });
    let mut config = config(address);
    config.mode = Mode::Hold;
    config.connections = 2;
    config.max_connecting = 1;
    config.duration = Duration::from_millis(50);
    let report = run(config);
    assert_eq!(outcomes(&report), [0, 1, 0, 1, 0]);
    assert_eq!((report.connections.held, report.verdict), (1, Verdict::Fail));
}

#[test]
fn a_reset_after_the_measurement_does_not_change_the_hold_outcome() {
    let report = hold_on_faulty_server(|stream, message| {
        stream.write_all(&message)?;
        discard(stream)?;
        end_with_reset(stream)
    });
    assert_eq!(outcomes(&report)[0], 3, "{:?}", report.hold);
    assert_eq!(outcomes(&report)[1..], [0; 4], "{:?}", report.hold);
}

#[test]
fn an_interrupted_hold_reports_its_connections_as_unasked() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let process = Process::start(ecoloop(&["load", "--mode", "hold", "-c", "5", "-d", "1h", "--json", "-", &address]));
    eventually("the first messages", || server.handle().stats().bytes_in == 5 * SIZE as u64);
    process.signal(Signal::INT);
    let (json, report) = document(&process.wait());
    let hold = report.hold.unwrap();
    // The signal can come before the client has read every first reply.
    assert_eq!((hold.alive, hold.unasked), (0, report.connections.held));
    assert_eq!((report.latency_us.count, &json["hold"]["closed_after_s"]), (0, &Value::Null));
}

#[test]
fn the_time_after_which_a_server_closes_idle_connections_is_reported() {
    const IDLE: Duration = Duration::from_millis(300);
    let address = faulty_server(|number, stream| {
        echo_messages(stream, 1)?;
        if number == FAULTY_CONNECTION {
            return echo(stream);
        }
        thread::sleep(IDLE);
        half_close(stream);
        discard(stream)
    });
    let mut config = config(address);
    config.mode = Mode::Hold;
    config.connections = 3;
    config.max_connecting = 1;
    config.duration = Duration::from_millis(800);
    let report = run(config);
    assert_eq!(outcomes(&report), [1, 0, 0, 2, 0]);
    let after = report.hold.unwrap().closed_after_s.unwrap();
    assert!(after.min >= 0.29 && after.min <= after.p50.unwrap() && after.p50.unwrap() <= after.max, "{after:?}");
    assert!(after.max < 0.8, "{after:?}");
}

/// After the window too: the last reply ends the silence.
#[test]
fn the_time_until_a_server_closes_counts_from_the_last_reply() {
    const WINDOW: Duration = Duration::from_millis(1200);
    let address = faulty_server(|number, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        if number == FAULTY_CONNECTION {
            stream.write_all(&message)?;
            half_close(stream);
            return discard(stream);
        }
        // The measurement lasts until the other connection has closed.
        thread::sleep(Duration::from_millis(500));
        stream.write_all(&message)?;
        echo(stream)
    });
    let mut config = config(address);
    (config.mode, config.connections, config.max_connecting) = (Mode::Hold, 2, 1);
    config.duration = WINDOW;
    let report = run(config);
    assert_eq!(outcomes(&report), [1, 0, 0, 1, 0]);
    let after = report.hold.unwrap().closed_after_s.unwrap();
    assert!(after.max < 1.0, "{after:?}");
}

#[test]
fn a_reset_in_place_of_the_last_reply_counts_the_whole_silence() {
    let report = hold_on_faulty_server(|stream, _| end_with_reset(stream));
    let after = report.hold.unwrap().closed_after_s.unwrap();
    assert!(after.min >= 0.05, "{after:?}");
}

#[test]
fn wrong_bytes_are_an_outcome_too() {
    let report = hold_on_faulty_server(|stream, mut message| {
        message[3] ^= 1;
        stream.write_all(&message)?;
        echo(stream)
    });
    assert_eq!((outcomes(&report), report.connections.established), ([2, 0, 0, 0, 0], 3));
    assert_eq!(report.hold.unwrap().failed, 1);
}

/// Longer than 1 s, from which on a reply is late.
const LATE: Duration = Duration::from_millis(1100);

/// Holds connections. On one of them the server has `fault` in place of the last echo.
#[track_caller]
fn hold_on_faulty_server(fault: Fault) -> Report {
    let address = faulty_server(move |number, stream| {
        if number != FAULTY_CONNECTION {
            return echo(stream);
        }
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        fault(stream, message)
    });
    let mut config = config(address);
    config.mode = Mode::Hold;
    config.connections = u32::try_from(CONNECTIONS).unwrap();
    config.max_connecting = 1;
    config.timeout = Duration::from_secs(3);
    config.duration = Duration::from_millis(50);
    run(config)
}

fn outcomes(report: &Report) -> [u64; 5] {
    let hold = report.hold.as_ref().unwrap();
    [hold.alive, hold.late, hold.reset, hold.closed, hold.silent]
}
