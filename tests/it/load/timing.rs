//! Figures of time: what is the generator's own delay, and what is the server's.

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{ErrorName, Loop, Phase, Verdict};
use ecoloop::load::{self, Interrupt, Mode, ProgressCell, Report, Run, run_with_reports};
use rustix::time::{ClockId, clock_gettime};

use super::faulty_server::{echo, echo_messages, faulty_server, read_message, slow_server};
use super::{
    SHORT_TIMEOUT, SIZE, assert_all_returned, assert_clean, assert_opened, assert_sums, config, document, errors,
    listen_with_room_for_one, run, run_command,
};
use crate::support::{
    CpuQuota, Process, Scratch, TIMEOUT, await_injected, ecoloop, eventually, limited, reserve_port, serve, strace,
    wrapped,
};

const MILLISECOND: u64 = 1000;

// ---- lateness and turn ----

#[test]
fn the_time_in_which_the_generator_is_stopped_is_its_lateness() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["-c", "4", "-r", "1000", "-d", "3s", "--json", "-", &address];
    let process = Process::start(ecoloop(&[&["load"], &arguments[..]].concat()));
    eventually("traffic", || server.handle().stats().bytes_in > 100 * SIZE as u64);
    stop_for(&process, Duration::from_secs(1));
    let ended = process.wait();
    let (json, report) = document(&ended);
    // A third of the messages became due during the stop, with a lateness of up to a second.
    let lateness = &report.lateness_us;
    assert_eq!((report.messages.due, lateness.count), (3000, 3000));
    assert!(lateness.p90.unwrap() > 400 * MILLISECOND, "{lateness:?}");
    assert_eq!(report.schedule.kept, Some(false));
    let warning =
        ended.stderr.iter().find(|line| line.starts_with("ecoloop: the schedule was not kept: lateness p99 "));
    let way_out = "give the generator a free core, lower --rate, or start it with chrt --fifo 10";
    assert!(warning.is_some_and(|line| line.contains("over 1 ms and a tenth") && line.ends_with(way_out)), "{ended:?}");
    assert!(json["generator"]["longest_gap_us"].as_u64().unwrap() > 850 * MILLISECOND, "{}", json["generator"]);
}

#[test]
#[ignore = "needs strace"]
fn slow_sends_are_lateness_and_turn_of_the_generator() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["-c", "4", "-r", "100", "-d", "1s", "--json", "-", &address];
    let (json, report) = document(&run_with("sendto", "delay_enter=20ms", &arguments));
    assert_eq!(report.lateness_us.count, 100);
    assert!(report.lateness_us.p50.unwrap() > 20 * MILLISECOND, "{:?}", report.lateness_us);
    assert_eq!(report.schedule.kept, Some(false));
    assert!(report.generator.turn_us_p99.unwrap() > 20 * MILLISECOND, "{}", json["generator"]);
}

#[test]
#[ignore = "needs strace"]
fn an_interrupted_read_or_write_is_repeated() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for call in ["sendto", "recvfrom"] {
        let arguments = ["-c", "4", "-m", "20", "--json", "-", &address];
        let (_, report) = document(&run_with(call, "error=EINTR:when=1+2", &arguments));
        assert_clean(&report);
        assert_eq!(report.messages.verified, 80, "{call}");
    }
}

#[test]
fn a_healthy_generator_is_late_by_less_than_a_millisecond() {
    const WINDOWS: usize = 40;
    let server = serve(ServerConfig::default());
    for rate in [100.0, 10_000.0] {
        let lateness = || {
            let mut config = config(server.local_addr());
            config.connections = 50;
            config.rate = Some(rate);
            config.duration = Duration::from_millis(500);
            run(config).lateness_us.p50.unwrap()
        };
        // Other programs delay the generator too, by more than a message's interval: the median of one window is enough.
        assert!((0..WINDOWS).any(|_| lateness() < MILLISECOND), "{rate}/s: always late by a millisecond or more");
    }
}

#[test]
fn a_deferred_message_is_late_only_until_it_was_found_due() {
    // Each answer takes as long as ten messages.
    let mut config = config(slow_server(Duration::from_millis(100)));
    config.rate = Some(100.0);
    config.pipeline = Some(1);
    config.duration = Duration::from_millis(500);
    let report = run(config);
    assert_clean(&report);
    assert_eq!((report.messages.due, report.lateness_us.count), (50, 50));
    assert!(report.messages.deferred >= 40, "{:?}", report.messages);
    assert!(report.latency_us.p90.unwrap() > 1000 * MILLISECOND, "{:?}", report.latency_us);
    assert!(2 * report.lateness_us.p50.unwrap() < report.latency_us.p50.unwrap(), "{:?}", report.lateness_us);
}

// ---- connect latency ----

#[test]
fn a_paced_connect_counts_from_when_it_was_due() {
    // The kernel drops the second SYN, which comes again after a second.
    let (listener, address) = listen_with_room_for_one();
    let mut config = config(address);
    config.connections = 3;
    config.max_connecting = 1;
    config.connect_rate = Some(100.0);
    config.messages_per_connection = Some(1);
    let load = Run::from(config).spawn().unwrap();
    eventually("the second connect", || load.progress().is_some_and(|progress| progress.opened == 2));
    thread::spawn(move || {
        for stream in TcpListener::from(listener).incoming() {
            thread::spawn(move || echo(&mut stream.unwrap()));
        }
    });
    let report = load.join().unwrap();
    assert_sums(&report);
    assert_clean(&report);
    // The third connect is due 10 ms after the second, and waits until that one is done.
    assert_eq!(report.connect_us.count, 3);
    assert!(report.connect_us.p50.unwrap() > 800 * MILLISECOND, "{:?}", report.connect_us);
}

#[test]
#[ignore = "needs strace"]
fn a_connect_does_not_count_the_connects_after_it() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["-c", "20", "-m", "1", "--json", "-", &address];
    let (_, report) = document(&run_with("connect", "delay_exit=20ms", &arguments));
    let connect = &report.connect_us;
    assert_eq!(connect.count, 20);
    // Of 20 connects one after the other, half have at most a tenth of the phase each.
    let (p50, all) = (Duration::from_micros(connect.p50.unwrap()), Duration::from_secs_f64(report.phases_s.connect));
    assert!(p50 >= Duration::from_millis(20) && 4 * p50 < all, "{connect:?} in {all:?}");
}

#[test]
#[ignore = "needs strace"]
fn a_turn_is_of_the_window_and_covers_no_connect_before_it() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["-c", "3", "-r", "100", "-d", "500ms", "--json", "-", &address];
    let turn = || {
        let (_, report) = document(&run_with("connect", "delay_exit=500ms", &arguments));
        assert!(report.phases_s.connect > 1.5, "{:?}", report.phases_s);
        report.generator.turn_us_p99.unwrap()
    };
    // Other programs delay the generator too: one run without them is enough.
    assert!((0..5).any(|_| turn() < 300 * MILLISECOND), "always a turn of 300 ms or more");
}

// ---- churn in an open loop ----

#[test]
fn churn_at_a_rate_sees_the_stop_of_a_server() {
    let (server, address) = Process::serve(&[]);
    let mut config = config(address);
    config.mode = Mode::Churn;
    config.connections = 1000;
    config.rate = Some(200.0);
    config.duration = Duration::from_secs(5);
    let report = thread::scope(|scope| {
        let report = scope.spawn(|| load::run(config, &Interrupt::default(), &ProgressCell::default()).unwrap());
        thread::sleep(Duration::from_secs(2));
        stop_for(&server, Duration::from_secs(1));
        report.join().unwrap()
    });
    assert_sums(&report);
    assert_opened(&report);
    assert_eq!((report.r#loop, report.config.rate), (Loop::Open, Some(200.0)));
    let opened = report.connections.opened_total;
    assert_eq!((report.messages.due, report.connect_us.count), (1000, opened));
    assert!((opened..=1000).contains(&report.lateness_us.count), "{:?}", report.lateness_us);
    // A fifth of the connections was due during the stop, and waited up to a second.
    assert!(report.latency_us.p90.unwrap() > 400 * MILLISECOND, "{:?}", report.latency_us);
}

#[test]
fn churn_at_a_rate_counts_a_wait_for_a_place_from_when_the_connection_was_due() {
    let mut config = config(slow_server(Duration::from_millis(100)));
    config.mode = Mode::Churn;
    config.rate = Some(100.0);
    config.duration = Duration::from_secs(1);
    let report = run(config);
    assert_eq!(errors(&report), []);
    let messages = report.messages;
    // One connection at a time, each for a tenth of a second: about ten of the hundred are served.
    assert_eq!((messages.due, messages.unsent + messages.verified), (100, 100), "{messages:?}");
    assert!((2..=11).contains(&messages.verified), "{messages:?}");
    assert!(messages.deferred >= 80, "{messages:?}");
    // The first one did not wait, and the last ones may have no turn before the end of the window.
    assert!((messages.deferred + 1..=100).contains(&report.lateness_us.count), "{:?}", report.lateness_us);
    let waited = report.connect_us.max.unwrap();
    assert!(waited > 300 * MILLISECOND, "{:?}", report.connect_us);
    assert!(3 * report.lateness_us.p50.unwrap() < waited, "{:?}", report.lateness_us);
}

#[test]
fn churn_at_a_rate_sends_the_other_messages_of_a_connection_as_it_answers() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.mode = Mode::Churn;
    config.connections = 1000;
    config.rate = Some(500.0);
    config.warmup = Duration::from_millis(100);
    config.duration = Duration::from_millis(200);
    config.messages_per_connection = Some(3);
    config.thresholds = vec!["rate>200%".parse().unwrap()];
    let report = run(config);
    assert_all_returned(&report);
    // On a loaded machine, the last connections may have no turn before the end of the window.
    let unopened = report.messages.unsent;
    // Connections of the warm-up are not reported, and at the end of the window a connection sends none of its remaining messages.
    assert_eq!((report.connections.opened_total + unopened, report.connect_us.count + unopened), (150, 100));
    assert!((100 - unopened..=100).contains(&report.lateness_us.count), "{:?}", report.lateness_us);
    // 500 connections a second have 1,500 messages.
    assert!(!report.thresholds.last().unwrap().failed, "{:?}", report.thresholds);
    // Of a connection that was not opened, one message is due.
    assert!((200 - unopened..=300).contains(&report.messages.due), "{:?}", report.messages);
}

#[test]
fn churn_at_a_rate_against_a_closed_port_leaves_every_message_unsent() {
    let (_port, address) = reserve_port();
    let mut config = config(address);
    config.mode = Mode::Churn;
    config.rate = Some(100.0);
    config.duration = Duration::from_millis(300);
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), 30)]);
    assert_eq!((report.messages.due, report.messages.unsent), (30, 30));
}

#[test]
fn connect_rate_in_churn_is_a_usage_error_that_names_the_rate() {
    let ended = run_command(&["--mode", "churn", "--connect-rate", "10", "127.0.0.1:1"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr[0].contains("use -r"), "{ended:?}");
}

// ---- pauses of the generator ----

#[test]
fn a_window_does_not_get_longer_because_the_generator_was_stopped_at_its_end() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let process = Process::start(ecoloop(&["load", "-c", "4", "-d", "1s", "--json", "-", &address]));
    eventually("traffic", || server.handle().stats().bytes_in > 100 * SIZE as u64);
    stop_for(&process, Duration::from_millis(2500));
    let (_, report) = document(&process.wait());
    assert!((report.phases_s.measure - 1.0).abs() < 1e-6, "{:?}", report.phases_s);
    assert_eq!(report.timeline.last().unwrap().t, 1);
    // In a wait or in the last turn.
    assert!(report.generator.longest_gap_us.unwrap() > 2300 * MILLISECOND, "{:?}", report.generator);
}

#[test]
fn no_timeout_expires_because_the_generator_was_stopped() {
    static REPLIES: AtomicUsize = AtomicUsize::new(0);
    // Slow replies, so that some connections wait for one when the generator is stopped.
    let address = faulty_server(|_, stream| {
        loop {
            let message = read_message(stream)?;
            thread::sleep(Duration::from_millis(100));
            stream.write_all(&message)?;
            REPLIES.fetch_add(1, Ordering::Relaxed);
        }
    });
    let address = address.to_string();
    // In the stop, seven messages become due on each connection. Together they take 0.7 s, far less than the timeout.
    for pace in [&["-r", "40"][..], &[]] {
        let before = REPLIES.load(Ordering::Relaxed);
        let fixed = ["-c", "20", "-d", "6s", "--timeout", "3s", "--connect-timeout", "3s", "--json", "-", &address];
        let process = Process::start(ecoloop(&[&["load"], pace, &fixed[..]].concat()));
        // More than the first message of each connection.
        eventually("traffic", || REPLIES.load(Ordering::Relaxed) > before + 25);
        stop_for(&process, Duration::from_millis(3500));
        let (_, report) = document(&process.wait());
        assert_eq!((errors(&report), report.connections.held), (vec![], 20), "{pace:?}");
        assert!(report.generator.longest_gap_us.unwrap() > 3300 * MILLISECOND, "{pace:?} {:?}", report.generator);
    }
}

#[test]
fn no_timeout_expires_because_the_generator_was_stopped_twice() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let fixed = ["-c", "1", "-r", "50", "-d", "10s", "--timeout", "5s", "--connect-timeout", "5s", "--json", "-"];
    let process = Process::start(ecoloop(&[&["load"], &fixed[..], &[&target]].concat()));
    let (mut stream, _) = listener.accept().unwrap();
    echo_messages(&mut stream, 20).unwrap();
    // The server does not reply in less than a second of the generator's own time.
    stop_for(&process, Duration::from_millis(5500));
    thread::sleep(Duration::from_millis(50));
    stop_for(&process, Duration::from_millis(200));
    thread::sleep(Duration::from_millis(600));
    echo(&mut stream).unwrap();
    drop(stream);
    let (_, report) = document(&process.wait());
    assert_eq!((errors(&report), report.messages.verified), (vec![], 500));
}

#[test]
fn no_close_times_out_because_the_generator_was_stopped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let arguments = ["load", "-c", "1", "-m", "1", "--timeout", "5s", "--json", "-", &target];
    let process = Process::start(ecoloop(&arguments));
    let (mut stream, _) = listener.accept().unwrap();
    // Until the generator's FIN.
    echo(&mut stream).unwrap();
    stop_for(&process, Duration::from_secs(6));
    thread::sleep(Duration::from_millis(300));
    drop(stream);
    assert_clean(&document(&process.wait()).1);
}

#[test]
fn a_timeout_expires_although_the_generator_was_stopped_before() {
    let (mut server, address) = Process::serve(&[]);
    let target = address.to_string();
    let arguments = ["-c", "3", "-m", "1000000", "--timeout", "500ms", "--json", "-", &target];
    let process = Process::start(ecoloop(&[&["load"], &arguments[..]].concat()));
    for _ in 0..3 {
        server.line_with("Connection from:");
    }
    stop_for(&process, Duration::from_millis(300));
    server.pause();
    let (_, report) = document(&process.wait());
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::Timeout, None, 3)]);
}

// ---- saturation ----

fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

#[test]
fn the_cpu_of_an_embedders_other_threads_is_not_the_generators() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.rate = Some(100.0);
    config.duration = Duration::from_millis(500);
    let done = AtomicBool::new(false);
    let mut own = Duration::ZERO;
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            // Bounded: `done` is never set if the run panics.
            while !done.load(Ordering::Relaxed) && start.elapsed() < TIMEOUT {
                std::hint::spin_loop();
            }
        });
        let before = thread_cpu_time();
        let report = load::run(config, &Interrupt::default(), &ProgressCell::default()).unwrap();
        own = thread_cpu_time().saturating_sub(before);
        done.store(true, Ordering::Relaxed);
        report
    });
    // The generator ran on this thread. On a busy machine the other one may get little, so a limit in percent would tell nothing.
    let counted = report.generator.cpu_percent.unwrap() / 100.0 * report.phases_s.measure;
    assert!(counted <= own.as_secs_f64(), "{counted} s, of {own:?}: {:?}", report.generator);
}

#[test]
#[ignore = "needs root and the control group's cpu controller at /sys/fs/cgroup"]
fn a_generator_that_has_used_up_its_cpu_quota_is_saturated() {
    let server = serve(ServerConfig::default());
    let target = server.local_addr().to_string();
    let fifth = CpuQuota::fifth_of_a_core();
    let is_saturated = || {
        let load = fifth.limited(&ecoloop(&["load", "-c", "50", "-p", "100", "-d", "2s", "--json", "-", &target]));
        let generator = document(&Process::start(load).wait()).1.generator;
        generator.cpu_percent.unwrap() < 40.0 && generator.saturated == Some(true)
    };
    // A server that other programs keep from the CPU has the generator wait for it instead.
    assert!((0..5).any(|_| is_saturated()));
}

// ---- an open loop without a connection ----

#[test]
fn an_open_loop_without_a_connection_leaves_every_message_unsent() {
    let (_port, address) = reserve_port();
    for (messages, due) in [(None, 36_000), (Some(7), 2 * 7)] {
        let mut config = config(address);
        config.connections = 2;
        config.rate = Some(10.0);
        // Nobody waits for it.
        config.duration = Duration::from_secs(3600);
        config.messages_per_connection = messages;
        config.timeout = SHORT_TIMEOUT;
        let report = run(config);
        assert_eq!((report.r#loop, report.verdict), (Loop::Open, Verdict::Fail));
        assert_eq!((report.messages.due, report.messages.unsent), (due, due));
        // Their ages are those at the end of the window, at most the timeout of a second.
        let last = report.latency_us.max.unwrap() / MILLISECOND;
        assert!((last == 1000 || last == 1001) && report.latency_us.p50.unwrap() > 400 * MILLISECOND, "{last}");
    }
    // No name below `invalid` resolves (RFC 6761).
    for mode in ["echo", "churn"] {
        let (_, report) = document(&run_command(&["--mode", mode, "-r", "10", "--json", "-", "no.invalid:5"]));
        assert_eq!((report.r#loop, report.verdict), (Loop::Open, Verdict::Fail));
        assert_eq!(errors(&report), [(Phase::Resolve, ErrorName::Other, None, 1)]);
        let messages = report.messages;
        assert_eq!((messages.due, messages.unsent, messages.deferred), (100, 100, 0));
        assert!(report.latency_us.p50.unwrap() > 4000 * MILLISECOND, "{mode}: {:?}", report.latency_us);
    }
    let ended = run_command(&["-r", "10", &address.to_string()]);
    assert!(ended.stdout.iter().any(|line| line.contains("open loop at 10/s")), "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line.contains("100 due: 0 verified")), "{ended:?}");
    assert!(!ended.stdout.iter().any(|line| line.contains("closed loop")), "{ended:?}");
}

/// An age of each of the seven billion messages would take 240 MB.
#[test]
fn a_long_open_loop_without_a_connection_needs_no_memory_for_its_messages() {
    let (_port, address) = reserve_port();
    let load = ecoloop(&["load", "-r", "1M", "-d", "2h", "--timeout", "1s", "--json", "-", &address.to_string()]);
    let (_, report) = document(&Process::start(limited(200 << 10, &load)).wait());
    assert_eq!((report.messages.due, report.messages.unsent), (7_200_000_000, 7_200_000_000));
    assert_eq!(report.latency_us.count, 7_200_000_000);
    assert!((1000..=1001).contains(&(report.latency_us.p50.unwrap() / MILLISECOND)), "{:?}", report.latency_us);
}

/// Stops a process for `time`.
#[track_caller]
fn stop_for(process: &Process, time: Duration) {
    process.pause();
    thread::sleep(time);
    process.resume();
}

/// Runs a load under strace, with `fault` injected into `call`.
#[track_caller]
fn run_with(call: &str, fault: &str, arguments: &[&str]) -> crate::support::Ended {
    let trace = Scratch::new("strace");
    let load = ecoloop(&[&["load"], arguments].concat());
    let ended = Process::start(wrapped(strace(&format!("{call}:{fault}"), trace.path()), &load)).wait();
    await_injected(&trace);
    ended
}

#[test]
fn a_pause_of_the_caller_in_the_window_is_a_gap() {
    const PAUSE: Duration = Duration::from_millis(300);
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.duration = Duration::from_secs(2);
    let mut has_paused = false;
    let take = |report: Report| {
        if report.timeline.len() == 1 && !has_paused {
            has_paused = true;
            thread::sleep(PAUSE);
        }
    };
    let interval = Duration::from_millis(100);
    let report = run_with_reports(config, &Interrupt::default(), &ProgressCell::default(), interval, take).unwrap();
    assert!(has_paused);
    let longest = report.generator.longest_gap_us.unwrap();
    assert!(u128::from(longest) >= PAUSE.as_micros(), "{longest}");
}
