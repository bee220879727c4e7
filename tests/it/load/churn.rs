//! `--mode churn`: each connection is closed and replaced after its messages.

use std::io::Write;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::load::report::{Ended as RunEnded, ErrorName, Phase, Verdict};
use ecoloop::load::{self, Close, Interrupt, Mode, ProgressCell, Run, Step};

use super::faulty_server::{discard, echo, echo_messages, faulty_server, read_message};
use super::{SIZE, assert_clean, assert_sums, config, errors, run, run_on_server};
use crate::support::{eventually, reserve_port};

#[test]
fn churn_replaces_connections() {
    for close in [Close::Fin, Close::Rst] {
        for messages in [None, Some(3)] {
            let (report, stats) = run_on_server(|config| {
                config.mode = Mode::Churn;
                config.connections = 4;
                config.close = close;
                config.messages_per_connection = messages;
                config.duration = Duration::from_millis(200);
            });
            assert_clean(&report);
            let opened = report.connections.opened_total;
            assert!(opened > 4, "{opened}");
            assert_eq!([report.connections.established, report.connections.verified], [opened; 2]);
            assert_eq!(stats.bytes_in, report.messages.verified * SIZE as u64);
            // At the end of the window a connection sends none of its remaining messages.
            let most = opened * messages.unwrap_or(1);
            assert!(
                (most.saturating_sub(4 * 2)..=most).contains(&report.messages.due),
                "{opened} {:?}",
                report.messages
            );
        }
    }
}

#[test]
fn churn_replaces_connections_for_the_whole_window() {
    const WINDOW: Duration = Duration::from_millis(200);
    let time_of_accepts = || {
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let accepts = Arc::clone(&accepted);
        let address = faulty_server(move |_, stream| {
            accepts.lock().unwrap().push(Instant::now());
            // Few threads are enough.
            thread::sleep(Duration::from_millis(5));
            echo(stream)
        });
        let mut config = config(address);
        (config.mode, config.connections, config.duration) = (Mode::Churn, 4, WINDOW);
        let report = run(config);
        assert_clean(&report);
        assert!(report.phases_s.measure >= WINDOW.as_secs_f64(), "{:?}", report.phases_s);
        let accepted = accepted.lock().unwrap();
        *accepted.iter().max().unwrap() - *accepted.iter().min().unwrap()
    };
    // Other programs can keep the generator from its core at the end of the window.
    assert!((0..5).any(|_| time_of_accepts() >= WINDOW * 3 / 4), "no connection is opened in the last quarter");
}

#[test]
fn churn_excludes_the_warmup_from_the_report() {
    let (report, stats) = run_on_server(|config| {
        config.mode = Mode::Churn;
        config.warmup = Duration::from_millis(200);
        config.duration = Duration::from_millis(100);
    });
    assert_clean(&report);
    assert!(report.phases_s.warmup >= 0.2, "{:?}", report.phases_s);
    assert!(report.messages.due * (SIZE as u64) < stats.bytes_in, "{:?} {stats:?}", report.messages);
}

#[test]
fn churn_against_a_closed_port_ends_with_its_window() {
    let (_port, address) = reserve_port();
    let mut config = config(address);
    config.mode = Mode::Churn;
    config.connections = 3;
    config.duration = Duration::from_millis(200);
    let report = run(config);
    let [(Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), count)] = errors(&report)[..] else {
        panic!("{:?}", report.errors);
    };
    assert_eq!((count, report.verdict), (report.connections.opened_total, Verdict::Fail));
}

#[test]
fn an_interrupt_after_the_churn_window_does_not_change_the_held_count() {
    let interrupt = Interrupt::default();
    let of_server = interrupt.clone();
    let address = faulty_server(move |number, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        if number > 0 {
            return discard(stream);
        }
        // Replies after the end of the window of 1 s.
        thread::sleep(Duration::from_millis(1500));
        stream.write_all(&message)?;
        discard(stream)?;
        of_server.set();
        Ok(())
    });
    let mut config = config(address);
    config.mode = Mode::Churn;
    config.connections = 2;
    config.messages_per_connection = Some(2);
    config.duration = Duration::from_secs(1);
    let report = load::run(config, &interrupt, &ProgressCell::default()).unwrap();
    assert_sums(&report);
    assert_eq!((report.ended, report.connections.held), (RunEnded::Interrupted, 2));
    assert_eq!((report.messages.verified, report.messages.unanswered), (3, 1));
}

#[test]
fn connections_that_close_after_the_churn_window_were_held_at_its_end() {
    let (end, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    let address = faulty_server(move |_, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        // Until the window is over.
        let _ = ended.lock().unwrap().recv();
        stream.write_all(&message)?;
        discard(stream)
    });
    let mut config = config(address);
    (config.mode, config.connections, config.messages_per_connection) = (Mode::Churn, 2, Some(2));
    config.duration = Duration::from_secs(1);
    let load = Run::from(config).spawn().unwrap();
    eventually("the end of the window", || load.progress().is_some_and(|progress| progress.step >= Step::Drain));
    drop(end);
    let report = load.join().unwrap();
    assert_sums(&report);
    assert_clean(&report);
    assert_eq!((report.connections.held, report.messages.verified), (2, 4));
}

#[test]
fn churn_reports_no_memory_per_connection() {
    // The process of the test is the server.
    let (report, _) = run_on_server(|config| {
        config.mode = Mode::Churn;
        config.connections = 20;
        config.duration = Duration::from_millis(500);
        config.server_pid = Some(std::process::id());
    });
    assert_eq!(report.server.unwrap().rss_bytes_per_connection, None, "{:?}", report.connections);
}
