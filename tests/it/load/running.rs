//! The report of a run that has not ended.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{Ended as RunEnded, Verdict};
use ecoloop::load::{Interrupt, Mode, ProgressCell, Report, run_with_reports};
use ecoloop::transport::AnyAddress;
use rustix::process::Signal;

use super::faulty_server::{echo, echo_messages, faulty_server, read_message};
use super::{FAULTY_CONNECTION, assert_clean, assert_sums, config};
use crate::support::{Process, Scratch, TIMEOUT, ecoloop, eventually, serve};

#[test]
fn a_run_reports_at_an_interval_and_its_last_report_is_the_same_as_without() {
    for (mode, rate) in [(Mode::Echo, None), (Mode::Echo, Some(1000.0)), (Mode::Hold, None), (Mode::Churn, None)] {
        let server = serve(ServerConfig::default());
        let mut config = config(server.local_addr());
        (config.mode, config.rate, config.connections) = (mode, rate, 3);
        config.duration = Duration::from_millis(2500);
        let mut running: Vec<Report> = Vec::new();
        let interval = Duration::from_millis(100);
        let take = |report| running.push(report);
        let last = run_with_reports(config, &Interrupt::default(), &ProgressCell::default(), interval, take).unwrap();
        assert_sums(&last);
        assert_clean(&last);
        // The last sample is of half a second.
        let timeline: u64 =
            last.timeline.iter().map(|sample| if sample.t == 3 { sample.rate / 2 } else { sample.rate }).sum();
        // The last reply of each connection may come after the window, and the last rate is rounded.
        let after = last.messages.verified.abs_diff(timeline);
        let tolerance = 3 + last.messages.verified / 100;
        assert!(mode != Mode::Echo || after <= tolerance, "{after} {:?} {:?}", last.messages, last.timeline);

        // In the window each follows the end of a second.
        assert!(running.len() >= 2, "{mode:?}: {}", running.len());
        for report in &running {
            assert_sums(report);
            assert_eq!((report.verdict, report.ended), (Verdict::Running, RunEnded::Interrupted), "{mode:?}");
            assert_eq!((&report.run_id, report.start), (&last.run_id, last.start));
            // A second that has latencies has ended. The first messages of `hold` have theirs before the window.
            let has_latencies = mode != Mode::Hold && report.messages.verified > 0;
            assert!(!has_latencies || !report.timeline.is_empty(), "{mode:?}: {:?}", report.messages);
            assert!(mode == Mode::Churn || report.connections.held == 3, "{mode:?}: {:?}", report.connections);
            // None of them was asked again before the window's end.
            let hold = report.hold.as_ref().filter(|_| report.phases_s.drain <= 0.0);
            assert!(hold.is_none_or(|hold| (hold.alive, hold.unasked) == (0, 3)), "{hold:?}");
        }
        let in_window: Vec<_> = running.iter().filter(|report| report.timeline.len() == 1).collect();
        let [report, ..] = in_window[..] else { panic!("{mode:?}: no report of the first second") };
        assert!(report.phases_s.measure >= 1.0 && report.phases_s.measure < 2.5, "{:?}", report.phases_s);
        assert!(mode == Mode::Hold || report.messages.verified > 0, "{mode:?}: {:?}", report.messages);
    }
}

#[test]
fn the_messages_of_a_connection_that_has_ended_have_a_latency_in_a_running_report() {
    let server = serve(ServerConfig::default());
    let closing = AnyAddress::from(faulty_server(|_, stream| {
        echo_messages(stream, 10)?;
        // Its reply is awaited when the connection ends.
        read_message(stream).map(drop)
    }));
    let mut config = config(server.local_addr());
    config.targets.push(vec![closing.clone()]);
    (config.connections, config.rate) = (2, Some(200.0));
    config.duration = Duration::from_millis(1200);
    let mut running: Vec<Report> = Vec::new();
    let interval = Duration::from_millis(100);
    let take = |report| running.push(report);
    let last = run_with_reports(config, &Interrupt::default(), &ProgressCell::default(), interval, take).unwrap();
    assert_sums(&last);
    running.iter().for_each(assert_sums);
    let in_window: Vec<_> = running.iter().filter(|report| report.messages.unsent > 0).collect();
    let [report, ..] = in_window[..] else { panic!("no report after the connection had ended") };
    let of_closing = report.targets.iter().find(|of| of.target == closing).unwrap();
    let (messages, latency) = (of_closing.figures.messages, &of_closing.figures.latency_us);
    assert!(latency.censored > 0 && latency.count == messages + latency.censored, "{of_closing:?}");
}

/// The server holds back the last reply of one connection until a running report has the others alive.
#[test]
fn a_connection_of_hold_is_alive_once_it_has_replied_again() {
    let is_reported = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_reported);
    let address = faulty_server(move |number, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        if number == FAULTY_CONNECTION {
            eventually("the running report", || gate.load(Ordering::Acquire));
        }
        stream.write_all(&message)?;
        echo(stream)
    });
    let mut config = config(address);
    (config.mode, config.connections, config.max_connecting) = (Mode::Hold, 3, 1);
    (config.timeout, config.duration) = (TIMEOUT * 2, Duration::from_millis(200));
    let mut alive = Vec::new();
    let take = |report: Report| {
        assert_sums(&report);
        let hold = report.hold.unwrap();
        alive.push(hold.alive + hold.late);
        assert_eq!(hold.unasked, report.connections.held - hold.alive - hold.late);
        if hold.alive + hold.late == 2 {
            is_reported.store(true, Ordering::Release);
        }
    };
    let interval = Duration::from_millis(10);
    let last = run_with_reports(config, &Interrupt::default(), &ProgressCell::default(), interval, take).unwrap();
    assert_sums(&last);
    assert_clean(&last);
    // The first one is of the window, or of an earlier time.
    assert_eq!((alive.first(), alive.contains(&2)), (Some(&0), true), "{alive:?}");
}

#[test]
#[ignore = "takes a minute"]
fn a_run_that_is_killed_leaves_the_report_of_its_last_minute() {
    let server = serve(ServerConfig::default());
    let file = Scratch::new("running");
    let address = server.local_addr().to_string();
    let process = Process::start(ecoloop(&["load", "-d", "1h", "-r", "100", "--json", file.path(), &address]));
    let start = Instant::now();
    while std::fs::metadata(file.path()).unwrap().len() == 0 {
        assert!(start.elapsed() < Duration::from_secs(120), "no report in two minutes");
        std::thread::sleep(Duration::from_millis(100));
    }
    process.signal(Signal::KILL);
    process.wait();
    assert_eq!(file.json()["verdict"], "running");
    let report = Report::from_json(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
    assert_sums(&report);
    let (seconds, messages) = (report.phases_s.measure, report.messages);
    let verified = f64::from(u32::try_from(messages.verified).unwrap());
    // On a loaded machine, the last messages may be in flight.
    let is_all_due = (seconds * 90.0..=seconds * 100.0 + 1.0).contains(&verified);
    assert!(seconds > 50.0 && is_all_due, "{messages:?} in {seconds} s");
}
