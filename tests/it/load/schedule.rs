//! The schedule: which messages are due, when, and which of them the report counts.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::Stats;
use ecoloop::load::report::{ErrorName, Loop, Phase, Verdict};
use ecoloop::load::{self, ArrivalProcess, Config, Interrupt, Mode, ProgressCell, Report, Step};
use socket2::Socket;

use super::faulty_server::{discard, echo, echo_messages, faulty_server, read_message};
use super::{FAULTY_CONNECTION, SIZE, assert_clean, assert_sums, config, errors, run, run_on_server};
use crate::support::{TIMEOUT, eventually, half_close, reserve_port};

#[test]
fn a_closed_loop_with_a_duration_passes() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 7;
        config.duration = Duration::from_millis(200);
    });
    assert_clean(&report);
    assert_all_bytes_seen(&report, &stats);
    let connections = report.connections;
    assert_eq!([connections.requested, connections.established, connections.verified, connections.held], [7; 4]);
    assert_eq!((report.mode, report.r#loop), (Mode::Echo, Loop::Closed));
    assert_eq!((report.schedule.kept, report.lateness_us.count, report.lateness_us.p99), (None, 0, None));
    assert!(report.messages.verified > 0);
    assert_eq!(report.connect_us.count, 7);
    assert!(report.phases_s.measure >= 0.2);
}

#[test]
fn every_connection_sends_messages_per_connection_at_any_pipeline() {
    for pipeline in [1, 3, 64] {
        let (report, stats) = run_on_server(|config| {
            config.connections = 5;
            config.pipeline = Some(pipeline);
            config.messages_per_connection = Some(40);
        });
        assert_clean(&report);
        assert_all_bytes_seen(&report, &stats);
        assert_eq!((report.messages.due, report.messages.verified), (200, 200));
        assert_eq!(report.config.pipeline, Some(pipeline));
    }
}

#[test]
fn messages_larger_than_the_socket_buffers_are_verified() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 2;
        config.size = 5_000_001;
        config.pipeline = Some(2);
        config.messages_per_connection = Some(3);
    });
    assert_clean(&report);
    assert_all_bytes_seen(&report, &stats);
    assert_eq!(report.messages.verified, 6);
}

#[test]
fn an_open_loop_sends_exactly_the_due_messages() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 3;
        config.rate = Some(1000.0);
        config.duration = Duration::from_millis(300);
    });
    assert_clean(&report);
    assert_all_bytes_seen(&report, &stats);
    assert_eq!((report.messages.due, report.messages.verified), (300, 300));
    assert_eq!((report.r#loop, report.config.pipeline, report.config.rate), (Loop::Open, None, Some(1000.0)));
    assert_eq!(report.lateness_us.count, 300);
    let (lateness, latency) = (report.lateness_us.p99.unwrap(), report.latency_us.p99.unwrap());
    let kept = lateness <= 1000 || latency >= 10 * lateness;
    assert_eq!(report.schedule.kept, Some(kept), "lateness of {lateness} us, latency of {latency} us at p99");
}

#[test]
fn an_open_loop_with_messages_per_connection_completes() {
    let (report, _) = run_on_server(|config| {
        config.connections = 3;
        config.rate = Some(5000.0);
        config.pipeline = Some(1);
        config.messages_per_connection = Some(50);
    });
    assert_clean(&report);
    assert_eq!(report.messages.verified, 150);
}

#[test]
fn the_report_excludes_the_warmup() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 2;
        config.rate = Some(1000.0);
        config.warmup = Duration::from_millis(200);
        config.duration = Duration::from_millis(100);
    });
    assert_clean(&report);
    assert_eq!(report.messages.due, 100);
    // The server has received the warm-up and the first message of each connection too.
    assert_eq!(stats.bytes_in, (300 + 2) * SIZE as u64);
    assert!(report.phases_s.warmup >= 0.2);
}

#[test]
fn warmup_messages_do_not_count_towards_messages_per_connection() {
    for rate in [None, Some(700.0)] {
        let (report, stats) = run_on_server(|config| {
            config.connections = 3;
            config.rate = rate;
            config.warmup = Duration::from_millis(200);
            config.messages_per_connection = Some(10);
        });
        assert_clean(&report);
        assert_eq!((report.messages.due, report.messages.verified), (30, 30));
        assert!(stats.bytes_in > (30 + 3) * SIZE as u64, "{stats:?}");
        assert!(report.phases_s.warmup >= 0.2, "{:?}", report.phases_s);
    }
}

#[test]
fn lateness_excludes_the_warmup() {
    let (report, _) = run_on_server(|config| {
        config.rate = Some(1000.0);
        config.warmup = Duration::from_millis(200);
        config.duration = Duration::from_millis(100);
    });
    assert_eq!((report.lateness_us.count, report.messages.due), (100, 100));
}

/// Asserts that the server has received the reported messages, and the first one of each connection, which is not reported.
#[track_caller]
fn assert_all_bytes_seen(report: &Report, stats: &Stats) {
    let messages = report.messages.verified + report.connections.established;
    assert_eq!(stats.bytes_in, messages * report.config.size);
}

#[test]
fn an_open_loop_does_not_move_messages_to_another_connection() {
    let address = faulty_server(|number, stream| {
        if number != FAULTY_CONNECTION {
            return echo(stream);
        }
        echo_messages(stream, 3)?;
        read_message(stream)?;
        half_close(stream);
        discard(stream)
    });
    let mut config = config(address);
    config.connections = 2;
    config.max_connecting = 1;
    config.rate = Some(200.0);
    config.duration = Duration::from_millis(500);
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::ClosedEarly, None, 1)]);
    let messages = report.messages;
    // Half of the due messages belong to the faulty connection, which echoes two of them.
    assert_eq!((messages.due, messages.verified), (100, 50 + 2), "{messages:?}");
    assert_eq!(messages.unanswered, 0);
    assert_eq!(report.verdict, Verdict::Fail);
    // What is unsent because its connection has ended is not the generator's doing: lateness alone decides.
    assert!(messages.unsent > 0, "{messages:?}");
    let (lateness, latency) = (report.lateness_us.p99.unwrap(), report.latency_us.p99.unwrap());
    assert_eq!(report.schedule.kept, Some(lateness <= 1000 || latency >= 10 * lateness));
}

#[test]
fn messages_due_after_the_last_connection_closed_are_unsent() {
    let address = faulty_server(|_, stream| {
        echo_messages(stream, 3)?;
        read_message(stream)?;
        half_close(stream);
        discard(stream)
    });
    let mut config = config(address);
    config.rate = Some(200.0);
    config.duration = Duration::from_millis(500);
    let report = run(config);
    let messages = report.messages;
    // Messages sent before the generator has seen the close have failed.
    assert_eq!((messages.due, messages.verified, messages.failed + messages.unsent), (100, 2, 98), "{messages:?}");
    assert!(messages.failed > 0 && messages.unanswered == 0, "{messages:?}");
    // The sample of the window has the ages of the lost messages too: half of them were due in its first half.
    let [sample] = &report.timeline[..] else { panic!("{:?}", report.timeline) };
    assert!(sample.p50.unwrap() >= 200_000, "{sample:?}");
    // The rate is over the whole window, and not over the time until the close.
    assert!(report.phases_s.measure >= 0.49, "{:?}", report.phases_s);
    assert!(report.rate_per_s.unwrap() < 5.0, "{:?}", report.rate_per_s);
}

#[test]
fn messages_without_a_reply_count_in_the_latency_with_their_age_at_the_end() {
    let closing = || {
        faulty_server(|_, stream| {
            echo_messages(stream, 1 + 40)?;
            half_close(stream);
            discard(stream)
        })
    };
    let run_with = |timeout| {
        let mut config = config(closing());
        config.rate = Some(200.0);
        config.duration = Duration::from_secs(1);
        config.timeout = timeout;
        run(config)
    };
    // 40 of 200 come back. The others are due every 5 ms from 0.2 s on, and have an age of 0.8 s at most.
    let report = run_with(Duration::from_secs(10));
    let latency = report.latency_us;
    assert_eq!((latency.count, latency.censored), (200, 160), "{:?}", report.messages);
    let (p50, p90, max) = (latency.p50.unwrap(), latency.p90.unwrap(), latency.max.unwrap());
    assert!((290_000..=310_000).contains(&p50), "{p50}");
    assert!((690_000..=710_000).contains(&p90), "{p90}");
    assert!((790_000..=810_000).contains(&max), "{max}");
    // Less than the median without it, and as much more than an echo takes as that allows.
    let latency = run_with(Duration::from_millis(250)).latency_us;
    assert_eq!((latency.count, latency.censored), (200, 160));
    let (p50, max) = (latency.p50.unwrap(), latency.max.unwrap());
    assert!((250_000..=250_200).contains(&p50) && (250_000..=250_200).contains(&max), "{latency:?}");
}

#[test]
fn a_latency_threshold_fails_when_messages_stay_unsent() {
    let address = faulty_server(|_, stream| {
        echo_messages(stream, 1 + 20)?;
        half_close(stream);
        discard(stream)
    });
    let mut config = config(address);
    config.rate = Some(100.0);
    config.duration = Duration::from_millis(500);
    config.thresholds = ["p99>150ms", "errors>9", "connections<0"].map(|text| text.parse().unwrap()).into();
    let report = run(config);
    let failed: Vec<_> = report.thresholds.iter().filter(|row| row.failed).map(|row| &row.expr[..]).collect();
    assert_eq!(failed, ["p99>150ms"], "{:?}", report.latency_us);
}

#[test]
fn the_rate_counts_the_replies_that_arrive_in_the_window() {
    const DELAY: Duration = Duration::from_millis(400);
    // Echoes what it reads after the delay, and reads on meanwhile, as a long link does.
    let address = faulty_server(|_, stream| {
        let (sender, delayed) = mpsc::channel::<(Instant, Vec<u8>)>();
        let mut writer = stream.try_clone()?;
        thread::spawn(move || -> std::io::Result<()> {
            for (due, data) in delayed {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                writer.write_all(&data)?;
            }
            Ok(())
        });
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => _ = sender.send((Instant::now() + DELAY, buffer[..n].to_vec())),
            }
        }
    });
    let mut config = config(address);
    config.rate = Some(100.0);
    config.warmup = Duration::from_secs(1);
    config.duration = Duration::from_millis(1500);
    // A loaded machine can delay the replies further, beyond the window's end.
    let is_perfect = |report: &Report| {
        assert_clean(report);
        assert_eq!(report.messages.verified, 150);
        let is_rate = |rate: f64| (97.0..=103.0).contains(&rate);
        let rates: Vec<_> = report.timeline.iter().map(|sample| sample.rate).collect();
        // Without the replies to messages of the warm-up it would be 73.
        is_rate(report.rate_per_s.unwrap()) && rates.len() == 2 && rates.iter().all(|rate| (90..=110).contains(rate))
    };
    let reports: Vec<_> = (0..5).map(|_| run(config.clone())).take_while(|report| !is_perfect(report)).collect();
    assert!(reports.len() < 5, "{:?}", reports.last().map(|report| (report.rate_per_s, &report.timeline)));
}

/// Returns the settings of a run that never has a connection: its port is closed, or in churn one of its targets has no address.
fn without_connections(mode: Mode) -> (Socket, Config) {
    let (port, address) = reserve_port();
    let mut config = config(address);
    (config.mode, config.unresolved) = (mode, u32::from(mode == Mode::Churn));
    (port, config)
}

#[test]
fn an_open_loop_without_a_connection_ends_when_it_is_interrupted() {
    for mode in [Mode::Echo, Mode::Churn] {
        let (_port, mut config) = without_connections(mode);
        (config.rate, config.arrivals) = (Some(1e6), ArrivalProcess::Poisson);
        config.duration = Duration::from_secs(24 * 3600);
        let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
        let (sender, report) = mpsc::channel();
        let run = {
            let (interrupt, progress) = (interrupt.clone(), progress.clone());
            move || sender.send(Box::new(load::run(config, &interrupt, &progress).unwrap()))
        };
        thread::spawn(run);
        eventually("the window", || progress.latest().is_some_and(|progress| progress.step == Step::Measure));
        interrupt.set();
        let report = report.recv_timeout(TIMEOUT).expect("the run has not ended");
        assert_sums(&report);
        assert_eq!((report.verdict, report.messages.unsent), (Verdict::Interrupted, report.messages.due), "{mode:?}");
        assert!(report.messages.due < 24 * 3_600_000_000, "{mode:?}: {:?}", report.messages);
    }
}

#[test]
fn an_open_loop_without_a_connection_counts_all_that_it_planned() {
    for mode in [Mode::Echo, Mode::Churn] {
        let (_port, mut config) = without_connections(mode);
        (config.rate, config.duration) = (Some(1000.0), Duration::from_secs(5));
        (config.timeout, config.warmup) = (Duration::from_secs(2), Duration::from_millis(100));
        let start = Instant::now();
        let report = run(config);
        assert!(start.elapsed() < Duration::from_secs(4), "it waited for the window");
        assert_eq!((report.messages.due, report.messages.unsent), (5000, 5000), "{mode:?}");
        // Those of the last two seconds have not reached the timeout.
        let latency = &report.latency_us;
        assert!(latency.p50.unwrap() >= 2_000_000 && latency.mean.unwrap() < 1_700_000.0, "{mode:?}: {latency:?}");
    }
}
