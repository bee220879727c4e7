//! `ecoloop load`, against this crate's own server and against servers that lie.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ecoloop::load::report::{Ended as RunEnded, ErrorName, Finding, FindingKind, Loop, Phase, Verdict};
use ecoloop::load::{self, Close, Config, Interrupt, Mode, ProgressCell, Report, Session, Step};
use ecoloop::{Config as ServerConfig, Stats};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{
    Ended, Process, Scratch, TIMEOUT, await_unread, ecoloop, eventually, half_close, join, reserve_port, serve,
};

/// Bytes of a message.
const SIZE: usize = 64;
/// What a liar waits out, where only time can tell.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The connections of a run against a liar, and the one among them that is lied to.
const CONNECTIONS: usize = 3;
const VICTIM: usize = 1;

fn config(address: SocketAddr) -> Config {
    let mut config = Config::new(vec![address]);
    config.timeout = ANSWER_TIMEOUT;
    config.connect_timeout = ANSWER_TIMEOUT;
    config.size = SIZE;
    config
}

/// Runs to the end, which must come, and checks what holds of every report.
#[track_caller]
fn run(config: Config) -> Report {
    let (sender, report) = mpsc::channel();
    let interrupt = Interrupt::default();
    thread::spawn(move || sender.send(Box::new(load::run(config, &interrupt, &ProgressCell::default()).unwrap())));
    let report = report.recv_timeout(TIMEOUT).expect("the end of the run");
    assert_sums(&report);
    *report
}

/// Every message that was due is accounted for once, and so is every latency.
#[track_caller]
fn assert_sums(report: &Report) {
    let messages = report.messages;
    let sum = messages.unsent + messages.verified + messages.unanswered + messages.failed;
    assert_eq!(messages.due, sum, "{messages:?}");
    assert_eq!(report.latency_us.count, messages.verified + messages.unanswered, "{messages:?}");
    assert_eq!(report.latency_us.censored, messages.unanswered, "{messages:?}");
    if let Some(hold) = report.hold {
        assert_eq!(hold.alive + hold.late, report.connections.held, "{hold:?}");
        // A connection has one outcome, or none where it never connected or was lied to.
        let outcomes = hold.alive + hold.late + hold.reset + hold.closed + hold.silent;
        assert!(outcomes <= report.connections.requested, "{hold:?}");
    }
}

#[track_caller]
fn assert_clean(report: &Report) {
    assert_eq!((&report.errors[..], &report.verify.findings[..]), (&[][..], &[][..]));
    let messages = report.messages;
    assert_eq!((messages.unsent, messages.unanswered, messages.failed), (0, 0, 0));
    assert_eq!((report.verdict, report.ended), (Verdict::Pass, RunEnded::Complete), "{:?}", report.thresholds);
}

type ErrorRow<'a> = (Phase, ErrorName, Option<&'a str>, u64);

fn errors(report: &Report) -> Vec<ErrorRow<'_>> {
    report.errors.iter().map(|row| (row.phase, row.error, row.errno.as_deref(), row.count)).collect()
}

/// The errors of a run in which so many connections ended by a finding, and none otherwise.
fn bad_bytes(connections: u64) -> Vec<ErrorRow<'static>> {
    vec![(Phase::Verify, ErrorName::BadBytes, None, connections)]
}

// ---- Against this crate's own server.

/// Runs against a server of this process, whose counters must agree with the report.
#[track_caller]
fn run_on_server(change: impl FnOnce(&mut Config)) -> (Report, Stats) {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    // Nothing here may depend on how busy the machine is.
    config.timeout = TIMEOUT;
    config.connect_timeout = TIMEOUT;
    change(&mut config);
    let report = run(config);
    server.handle().drain();
    let stats = join(server).stats;
    assert_eq!(stats.accepted, report.connections.opened_total);
    assert_eq!(stats.bytes_in, stats.bytes_out);
    (report, stats)
}

/// In an echo without warm-up, the first message of each connection is the only one that is not reported.
#[track_caller]
fn assert_all_bytes_seen(report: &Report, stats: Stats) {
    let messages = report.messages.verified + report.connections.established;
    assert_eq!(stats.bytes_in, messages * report.config.size);
}

#[test]
fn a_closed_loop_for_a_time_is_clean() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 7;
        config.duration = Duration::from_millis(200);
    });
    assert_clean(&report);
    assert_all_bytes_seen(&report, stats);
    let connections = report.connections;
    assert_eq!([connections.requested, connections.established, connections.verified, connections.held], [7; 4]);
    assert_eq!((report.mode, report.r#loop), (Mode::Echo, Loop::Closed));
    assert_eq!((report.schedule.kept, report.lateness_us.count, report.lateness_us.p99), (None, 0, None));
    assert!(report.messages.verified > 0);
    assert_eq!(report.connect_us.count, 7);
    assert!(report.phases_s.measure >= 0.2);
}

#[test]
fn every_connection_sends_its_number_of_messages_at_any_depth() {
    for pipeline in [1, 3, 64] {
        let (report, stats) = run_on_server(|config| {
            config.connections = 5;
            config.pipeline = Some(pipeline);
            config.messages_per_connection = Some(40);
        });
        assert_clean(&report);
        assert_all_bytes_seen(&report, stats);
        assert_eq!((report.messages.due, report.messages.verified), (200, 200));
        assert_eq!(report.config.pipeline, Some(pipeline));
    }
}

#[test]
fn messages_larger_than_every_buffer_come_back_right() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 2;
        config.size = 5_000_001;
        config.pipeline = Some(2);
        config.messages_per_connection = Some(3);
    });
    assert_clean(&report);
    assert_all_bytes_seen(&report, stats);
    assert_eq!(report.messages.verified, 6);
}

#[test]
fn an_open_loop_sends_what_is_due_and_no_more() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 3;
        config.rate = Some(1000.0);
        config.duration = Duration::from_millis(300);
    });
    assert_clean(&report);
    assert_all_bytes_seen(&report, stats);
    assert_eq!((report.messages.due, report.messages.verified), (300, 300));
    assert_eq!((report.r#loop, report.config.pipeline, report.config.rate), (Loop::Open, None, Some(1000.0)));
    assert_eq!(report.lateness_us.count, 300);
    let lateness_p99 = report.lateness_us.p99.unwrap();
    assert_eq!(report.schedule.kept, Some(lateness_p99 <= 1000), "lateness of {lateness_p99} us at p99, all sent");
}

#[test]
fn an_open_loop_with_a_depth_and_a_number_of_messages_ends_by_itself() {
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
fn messages_of_the_warm_up_are_left_out_of_the_report() {
    let (report, stats) = run_on_server(|config| {
        config.connections = 2;
        config.rate = Some(1000.0);
        config.warmup = Duration::from_millis(200);
        config.duration = Duration::from_millis(100);
    });
    assert_clean(&report);
    assert_eq!(report.messages.due, 100);
    // And the first message of each connection.
    assert_eq!(stats.bytes_in, (300 + 2) * SIZE as u64);
    assert!(report.phases_s.warmup >= 0.2);
}

#[test]
fn the_warm_up_uses_up_no_messages_of_a_connection() {
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
fn the_warm_up_is_not_in_the_lateness() {
    let (report, _) = run_on_server(|config| {
        config.rate = Some(1000.0);
        config.warmup = Duration::from_millis(200);
        config.duration = Duration::from_millis(100);
    });
    assert_eq!((report.lateness_us.count, report.messages.due), (100, 100));
}

#[test]
fn hold_sends_one_message_at_each_end() {
    let (report, stats) = run_on_server(|config| {
        config.mode = Mode::Hold;
        config.connections = 20;
        config.duration = Duration::from_millis(100);
    });
    assert_clean(&report);
    let hold = report.hold.unwrap();
    assert_eq!([hold.alive, hold.late, hold.reset, hold.closed, hold.silent], [20, 0, 0, 0, 0]);
    assert_eq!((report.messages.due, stats.bytes_in), (40, 40 * SIZE as u64));
}

#[test]
fn churn_connects_anew_for_the_whole_window() {
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
            // At the end of the window a connection goes on with none of its other messages.
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
fn messages_of_the_warm_up_are_left_out_in_churn_too() {
    let (report, stats) = run_on_server(|config| {
        config.mode = Mode::Churn;
        config.warmup = Duration::from_millis(200);
        config.duration = Duration::from_millis(100);
    });
    assert_clean(&report);
    assert!(report.phases_s.warmup >= 0.2, "{:?}", report.phases_s);
    assert!(report.messages.due * (SIZE as u64) < stats.bytes_in, "{:?} {stats:?}", report.messages);
}

// ---- Against liars.

/// A server whose connections are each given to `answer`, on a thread of their own, with their number.
fn liar(answer: impl Fn(usize, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let answer = Arc::clone(&answer);
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            // That the client goes away ends it, and is no failure.
            thread::spawn(move || answer(number, &mut stream));
        }
    });
    address
}

/// Echoes so many messages.
fn echo_messages(stream: &mut TcpStream, count: usize) -> std::io::Result<()> {
    for _ in 0..count {
        let message = read_message(stream)?;
        stream.write_all(&message)?;
    }
    Ok(())
}

/// Echoes to the end.
fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// Reads to the end, and answers nothing.
fn swallow(stream: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(stream, &mut std::io::sink()).map(drop)
}

/// Lets the close that follows send RST.
fn end_with_reset(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; SIZE];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// What a liar does with the connection once it has the message that it lies about.
type Lie = fn(&mut TcpStream, Vec<u8>) -> std::io::Result<()>;

/// Messages of a connection, besides the first.
const MESSAGES: u64 = 20;

/// Runs against a server that echoes all but one message of the victim, of which it has echoed `right` before.
#[track_caller]
fn run_on_liar(right: usize, lie: Lie) -> Report {
    let address = liar(move |number, stream| {
        if number != VICTIM {
            return echo(stream);
        }
        echo_messages(stream, right)?;
        let message = read_message(stream)?;
        lie(stream, message)
    });
    let mut config = config(address);
    config.connections = u32::try_from(CONNECTIONS).unwrap();
    // One after the other, so that both ends number them alike.
    config.max_connecting = 1;
    config.messages_per_connection = Some(MESSAGES);
    let report = run(config);
    assert_eq!(report.verdict, Verdict::Fail);
    assert_eq!(report.connections.established, CONNECTIONS as u64);
    assert_eq!(report.ended, RunEnded::Complete);
    report
}

/// The lie must be found on the victim alone, and the others not suffer from it.
#[track_caller]
fn assert_found(lie: Lie, kind: FindingKind, offset_in_message: usize, bytes: [u64; 3]) {
    for right in [0, 3, 3, 3] {
        let report = run_on_liar(right, lie);
        let [finding] = report.verify.findings[..] else { panic!("{:?} {:?}", report.verify, report.errors) };
        assert_is(&finding, &report, kind, VICTIM, right * SIZE + offset_in_message);
        let verify = &report.verify;
        assert_eq!([verify.wrong_bytes, verify.lost_bytes, verify.extra_bytes], bytes, "{verify:?}");
        assert_eq!((verify.connections_failed, errors(&report)), (1, bad_bytes(1)));
        assert_eq!(report.connections.held, CONNECTIONS as u64 - 1);
        // Of a message that came back right before the lie, that is known.
        let whole = right + offset_in_message / SIZE;
        assert_eq!(report.connections.verified, CONNECTIONS as u64 - u64::from(whole == 0));
        assert_victims_messages(&report, whole, report.messages.failed);
    }
}

#[track_caller]
fn assert_is(finding: &Finding, report: &Report, kind: FindingKind, connection: usize, offset: usize) {
    assert_eq!((finding.kind, finding.connection, finding.offset), (kind, connection as u64, offset as u64));
    assert_eq!(finding.peer, report.config.targets[0]);
    assert!(finding.local.is_some_and(|local| local != finding.peer && local.port() != 0), "{finding:?}");
}

/// The victim was answered `whole` messages, and one more is `missing`, unless that is its first, which is not reported.
#[track_caller]
fn assert_victims_messages(report: &Report, whole: usize, missing: u64) {
    let of_others = (CONNECTIONS as u64 - 1) * MESSAGES;
    assert_eq!(report.messages.verified, of_others + (whole as u64).saturating_sub(1), "{:?}", report.messages);
    assert_eq!(report.messages.due, report.messages.verified + missing, "{:?}", report.messages);
    assert!(missing <= 1, "{:?}", report.messages);
}

#[test]
fn a_flipped_byte_is_found() {
    let lie: Lie = |stream, mut message| {
        message[5] ^= 0x10;
        stream.write_all(&message)?;
        echo(stream)
    };
    assert_found(lie, FindingKind::Flipped, 5, [1, 0, 0]);
}

#[test]
fn dropped_bytes_are_lost_once_later_ones_have_come() {
    let lie: Lie = |stream, mut message| {
        message.drain(16..24);
        stream.write_all(&message)?;
        echo(stream)
    };
    assert_found(lie, FindingKind::Lost, 16, [0, 8, 0]);
}

#[test]
fn a_message_that_comes_twice_is_duplicated() {
    let lie: Lie = |stream, message| {
        stream.write_all(&message.repeat(2))?;
        echo(stream)
    };
    assert_found(lie, FindingKind::Duplicated, SIZE, [0, 0, SIZE as u64]);
}

#[test]
fn swapped_words_are_reordered() {
    let lie: Lie = |stream, mut message| {
        let (left, right) = message.split_at_mut(32);
        left[8..16].swap_with_slice(&mut right[..8]);
        stream.write_all(&message)?;
        echo(stream)
    };
    let report = run_on_liar(3, lie);
    let [finding] = report.verify.findings[..] else { panic!("{:?}", report.verify) };
    assert_is(&finding, &report, FindingKind::Reordered, VICTIM, 3 * SIZE + 8);
    let report = run_on_liar(0, lie);
    let [finding] = report.verify.findings[..] else { panic!("{:?}", report.verify) };
    assert_is(&finding, &report, FindingKind::Reordered, VICTIM, 8);
}

#[test]
fn one_byte_more_is_extra() {
    let lie: Lie = |stream, mut message| {
        message.push(0);
        stream.write_all(&message)?;
        echo(stream)
    };
    assert_found(lie, FindingKind::Extra, SIZE, [0, 0, 1]);
}

#[test]
fn one_byte_more_behind_the_last_message_is_extra() {
    let report = run_on_liar(0, |stream, message| {
        stream.write_all(&message)?;
        echo(stream)?;
        stream.write_all(b"x")
    });
    let [finding] = report.verify.findings[..] else { panic!("{:?} {:?}", report.verify, report.errors) };
    assert_is(&finding, &report, FindingKind::Extra, VICTIM, (1 + usize::try_from(MESSAGES).unwrap()) * SIZE);
    assert_eq!(report.verify.extra_bytes, 1);
    assert_eq!(report.messages.verified, MESSAGES * CONNECTIONS as u64);
    // It was held all the time that was measured.
    assert_eq!(report.connections.held, CONNECTIONS as u64);
}

#[test]
fn half_an_answer_before_the_end_is_truncated() {
    let lie: Lie = |stream, message| {
        stream.write_all(&message[..24])?;
        half_close(stream);
        swallow(stream)
    };
    assert_found(lie, FindingKind::Truncated, 24, [0, 40, 0]);
}

#[test]
fn answers_of_two_connections_that_are_crossed_are_foreign() {
    for right in [0, 3, 3] {
        // The message of each of the two goes to the other.
        let ((to_one, of_one), (to_two, of_two)) = (mpsc::channel(), mpsc::channel());
        let ends = BTreeMap::from([(VICTIM, (to_two, of_one)), (VICTIM + 1, (to_one, of_two))]);
        let ends = Mutex::new(ends);
        let address = liar(move |number, stream| {
            let end = ends.lock().unwrap().remove(&number);
            if let Some((other, own)) = end {
                echo_messages(stream, right)?;
                other.send(read_message(stream)?).unwrap();
                stream.write_all(&own.recv().unwrap())?;
            }
            echo(stream)
        });
        let mut config = config(address);
        config.connections = 4;
        // Both must be open at once, and yet be numbered alike at both ends.
        config.max_connecting = 4;
        config.connect_rate = Some(20.0);
        config.messages_per_connection = Some(MESSAGES);
        let report = run(config);
        assert_eq!((report.verdict, errors(&report)), (Verdict::Fail, bad_bytes(2)));
        let mut findings = report.verify.findings.clone();
        findings.sort_by_key(|finding| finding.connection);
        let [one, two] = findings[..] else { panic!("{findings:?}") };
        assert_is(&one, &report, FindingKind::Foreign, VICTIM, right * SIZE);
        assert_is(&two, &report, FindingKind::Foreign, VICTIM + 1, right * SIZE);
        assert_eq!(report.verify.wrong_bytes / (2 * SIZE as u64 - 8), 1, "{:?}", report.verify);
        assert_eq!((report.connections.held, report.verify.connections_failed), (2, 2));
    }
}

/// An end without a wrong byte is an error, and no finding.
#[track_caller]
fn assert_error(lie: Lie, error: ErrorRow<'_>, is_unanswered: bool) {
    for right in [0, 3] {
        let report = run_on_liar(right, lie);
        assert_eq!(errors(&report), [error]);
        assert_eq!(report.verify.findings, []);
        assert_eq!(report.connections.held, CONNECTIONS as u64 - 1);
        let messages = report.messages;
        let (missing, none) =
            if is_unanswered { (messages.unanswered, messages.failed) } else { (messages.failed, messages.unanswered) };
        assert_eq!((missing, none), (u64::from(right > 0), 0), "{messages:?}");
        assert_victims_messages(&report, right, missing);
    }
}

#[test]
fn an_end_instead_of_an_answer_is_closed_early() {
    let lie: Lie = |stream, _| {
        half_close(stream);
        swallow(stream)
    };
    assert_error(lie, (Phase::Receive, ErrorName::ClosedEarly, None, 1), false);
}

#[test]
fn a_reset_within_an_answer_is_a_reset() {
    let lie: Lie = |stream, message| {
        stream.write_all(&message[..24])?;
        end_with_reset(stream)
    };
    assert_error(lie, (Phase::Receive, ErrorName::Reset, Some("ECONNRESET"), 1), true);
}

#[test]
fn silence_is_a_timeout() {
    assert_error(|stream, _| swallow(stream), (Phase::Receive, ErrorName::Timeout, None, 1), true);
    let report = run_on_liar(3, |stream, _| swallow(stream));
    assert!(report.latency_us.max.unwrap() >= 1_000_000, "{:?}", report.latency_us);
}

#[test]
fn an_answer_whose_end_does_not_come_is_not_lost_but_unanswered() {
    let lie: Lie = |stream, message| {
        stream.write_all(&message[..24])?;
        swallow(stream)
    };
    assert_error(lie, (Phase::Receive, ErrorName::Timeout, None, 1), true);
}

#[test]
fn a_server_that_never_accepts_lets_all_be_established_and_none_verified() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(listener.local_addr().unwrap());
    config.connections = 3;
    config.duration = Duration::from_millis(100);
    let report = run(config);
    let connections = report.connections;
    assert_eq!([connections.established, connections.verified, connections.held], [3, 0, 0]);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::Timeout, None, 3)]);
    assert_eq!((report.verdict, report.messages.due, report.latency_us.p50), (Verdict::Fail, 0, None));
}

#[test]
fn a_full_backlog_is_a_timeout_of_the_connect() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    // One more than the backlog fits in (listen(2) on Linux).
    socket.listen(0).unwrap();
    let mut config = config(socket.local_addr().unwrap().as_socket().unwrap());
    config.connections = 3;
    config.duration = Duration::from_millis(100);
    let report = run(config);
    assert_eq!((report.connections.established, report.connections.verified), (1, 0));
    let expected = [(Phase::Connect, ErrorName::Timeout, None, 2), (Phase::Receive, ErrorName::Timeout, None, 1)];
    assert_eq!((report.verdict, errors(&report)), (Verdict::Fail, expected.to_vec()));
}

#[test]
fn a_port_without_a_listener_refuses() {
    for mode in [Mode::Echo, Mode::Hold] {
        let (_port, address) = reserve_port();
        let mut config = config(address);
        config.mode = mode;
        config.connections = 3;
        config.duration = Duration::from_millis(100);
        let report = run(config);
        assert_eq!(errors(&report), [(Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), 3)]);
        assert_eq!((report.verdict, report.connections.established, report.connect_us.p50), (Verdict::Fail, 0, None));
    }
}

#[test]
fn churn_on_a_port_without_a_listener_ends_with_its_window() {
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

/// Holds connections of which the victim's last message is answered by `lie`.
#[track_caller]
fn hold_on_liar(lie: Lie) -> Report {
    let address = liar(move |number, stream| {
        if number != VICTIM {
            return echo(stream);
        }
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        lie(stream, message)
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
    let hold = report.hold.unwrap();
    [hold.alive, hold.late, hold.reset, hold.closed, hold.silent]
}

/// Over the second from which on an answer is late.
const LATE: Duration = Duration::from_millis(1100);

#[test]
fn a_late_answer_leaves_a_connection_held_and_late() {
    let report = hold_on_liar(|stream, message| {
        thread::sleep(LATE);
        stream.write_all(&message)?;
        echo(stream)
    });
    assert_eq!(outcomes(&report), [2, 1, 0, 0, 0]);
    assert_clean(&report);
    assert!(report.latency_us.max.unwrap() >= 1_000_000);
}

#[test]
fn every_outcome_of_hold_is_counted_once() {
    let closed: Lie = |stream, _| {
        half_close(stream);
        swallow(stream)
    };
    assert_eq!(outcomes(&hold_on_liar(closed)), [2, 0, 0, 1, 0]);
    let is_reset: Lie = |stream, _| end_with_reset(stream);
    assert_eq!(outcomes(&hold_on_liar(is_reset)), [2, 0, 1, 0, 0]);
    assert_eq!(outcomes(&hold_on_liar(|stream, _| swallow(stream))), [2, 0, 0, 0, 1]);
}

#[test]
fn a_connect_that_times_out_has_no_outcome_of_hold() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    // One more than the backlog fits in (listen(2) on Linux).
    socket.listen(0).unwrap();
    let mut config = config(socket.local_addr().unwrap().as_socket().unwrap());
    config.mode = Mode::Hold;
    config.connections = 3;
    config.duration = Duration::from_millis(50);
    let report = run(config);
    let timeouts = [(Phase::Connect, ErrorName::Timeout, None, 2), (Phase::Receive, ErrorName::Timeout, None, 1)];
    assert_eq!(errors(&report), timeouts);
    assert_eq!(outcomes(&report), [0, 0, 0, 0, 1]);
}

#[test]
fn what_churn_held_at_the_end_of_its_window_is_not_counted_anew_by_an_interrupt() {
    let interrupt = Interrupt::default();
    let of_server = interrupt.clone();
    let address = liar(move |number, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        if number > 0 {
            return swallow(stream);
        }
        // After the window, which is over for both at once.
        thread::sleep(Duration::from_millis(1500));
        stream.write_all(&message)?;
        swallow(stream)?;
        of_server.set();
        Ok(())
    });
    let mut config = config(address);
    config.mode = Mode::Churn;
    config.connections = 2;
    config.messages_per_connection = Some(2);
    config.timeout = TIMEOUT;
    config.duration = Duration::from_secs(1);
    let report = load::run(config, &interrupt, &ProgressCell::default()).unwrap();
    assert_sums(&report);
    assert_eq!((report.ended, report.connections.held), (RunEnded::Interrupted, 2));
    assert_eq!((report.messages.verified, report.messages.unanswered), (3, 1));
}

#[test]
fn a_connection_that_was_late_and_then_ended_is_not_counted_twice() {
    // The others' answers come later still, so that the measurement is not over when the victim ends.
    let address = liar(move |number, stream| {
        echo_messages(stream, 1)?;
        let message = read_message(stream)?;
        thread::sleep(if number == VICTIM { LATE } else { LATE * 2 });
        stream.write_all(&message)?;
        if number == VICTIM {
            half_close(stream);
            return swallow(stream);
        }
        echo(stream)
    });
    let mut config = config(address);
    config.mode = Mode::Hold;
    config.connections = 2;
    config.max_connecting = 1;
    config.timeout = TIMEOUT;
    config.duration = Duration::from_millis(50);
    let report = run(config);
    assert_eq!(outcomes(&report), [0, 1, 0, 1, 0]);
    assert_eq!((report.connections.held, report.verdict), (1, Verdict::Fail));
}

#[test]
fn no_more_are_closed_at_once_than_are_connected_at_once() {
    static CLOSING: AtomicUsize = AtomicUsize::new(0);
    static CLOSING_MOST: AtomicUsize = AtomicUsize::new(0);
    let address = liar(|_, stream| {
        echo(stream)?;
        CLOSING_MOST.fetch_max(CLOSING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(600));
        CLOSING.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let mut config = config(address);
    config.connections = 8;
    config.max_connecting = 2;
    config.duration = Duration::from_millis(50);
    // Less than all of them take, and more than each: those whose turn has yet to come are not late.
    config.timeout = Duration::from_secs(2);
    let report = run(config);
    assert_clean(&report);
    assert_eq!(CLOSING_MOST.load(Ordering::SeqCst), 2);
    assert!(report.phases_s.close >= 2.4, "{:?}", report.phases_s);
}

#[test]
fn a_reset_after_the_measurement_does_not_take_back_that_a_connection_was_alive() {
    let report = hold_on_liar(|stream, message| {
        stream.write_all(&message)?;
        swallow(stream)?;
        end_with_reset(stream)
    });
    assert_eq!(outcomes(&report)[0], 3, "{:?}", report.hold);
    assert_eq!(outcomes(&report)[1..], [0; 4], "{:?}", report.hold);
}

#[test]
fn an_open_loop_does_not_move_messages_to_another_connection() {
    let address = liar(|number, stream| {
        if number != VICTIM {
            return echo(stream);
        }
        echo_messages(stream, 3)?;
        read_message(stream)?;
        half_close(stream);
        swallow(stream)
    });
    let mut config = config(address);
    config.connections = 2;
    config.max_connecting = 1;
    config.rate = Some(200.0);
    config.duration = Duration::from_millis(500);
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::ClosedEarly, None, 1)]);
    let messages = report.messages;
    // Half of what is due is the victim's, of which two came back.
    assert_eq!((messages.due, messages.verified), (100, 50 + 2), "{messages:?}");
    assert_eq!(messages.unanswered, 0);
    assert_eq!((report.schedule.kept, report.verdict), (Some(false), Verdict::Fail));
}

#[test]
fn what_is_due_after_the_last_connection_has_ended_stays_unsent() {
    let address = liar(|_, stream| {
        echo_messages(stream, 3)?;
        read_message(stream)?;
        half_close(stream);
        swallow(stream)
    });
    let mut config = config(address);
    config.rate = Some(200.0);
    config.duration = Duration::from_millis(500);
    let report = run(config);
    let messages = report.messages;
    // Those that went out before the end was known have failed.
    assert_eq!((messages.due, messages.verified, messages.failed + messages.unsent), (100, 2, 98), "{messages:?}");
    assert!(messages.failed > 0 && messages.unanswered == 0, "{messages:?}");
    // The rate is that of the window, not of the part in which somebody answered.
    assert!(report.phases_s.measure >= 0.49, "{:?}", report.phases_s);
    assert!(report.rate_per_s.unwrap() < 5.0, "{:?}", report.rate_per_s);
}

// ---- Any schedule of answers.

/// What a server does with what it reads next.
#[derive(Clone, Copy, Debug)]
enum Act {
    Echo,
    Delay(u64),
    Drop,
    Half,
    Flip,
    Twice,
    Close,
    Reset,
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => Just(Act::Echo),
        4 => (0..40_u64).prop_map(Act::Delay),
        1 => (200..400_u64).prop_map(Act::Delay),
        1 => Just(Act::Drop),
        1 => Just(Act::Half),
        1 => Just(Act::Flip),
        1 => Just(Act::Twice),
        1 => Just(Act::Close),
        1 => Just(Act::Reset),
    ]
}

/// Plays the acts, each on what one read brings, then echoes.
fn play(stream: &mut TcpStream, acts: &[Act]) -> std::io::Result<()> {
    let mut buffer = [0; 1000];
    for act in acts {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        let data = &mut buffer[..n];
        match *act {
            Act::Echo => stream.write_all(data)?,
            Act::Delay(milliseconds) => {
                thread::sleep(Duration::from_millis(milliseconds));
                stream.write_all(data)?;
            }
            Act::Drop => {}
            Act::Half => stream.write_all(&data[..n / 2])?,
            Act::Flip => {
                data[n / 2] ^= 1;
                stream.write_all(data)?;
            }
            Act::Twice => stream.write_all(&data.repeat(2))?,
            Act::Close => return Ok(()),
            Act::Reset => return end_with_reset(stream),
        }
    }
    echo(stream)
}

fn configs() -> impl Strategy<Value = Config> {
    let mode = prop::sample::select(&[Mode::Echo, Mode::Echo, Mode::Hold, Mode::Churn]);
    let rate = prop::option::of(100.0..5000.0_f64);
    let messages = prop::option::of(1..60_u64);
    let close = prop::sample::select(&[Close::Fin, Close::Rst]);
    let shape = (1..6_u32, prop::option::of(1..9_u32), 1..200_usize, 0..80_u64);
    (mode, rate, messages, close, shape).prop_map(|(mode, rate, messages, close, shape)| {
        let mut config = Config::new(vec![]);
        config.mode = mode;
        config.rate = rate.filter(|_| mode != Mode::Churn);
        config.messages_per_connection = messages.filter(|_| mode != Mode::Hold);
        config.close = close;
        config.connections = shape.0;
        config.pipeline = shape.1;
        config.size = shape.2;
        config.warmup = Duration::from_millis(shape.3);
        config.duration = Duration::from_millis(150);
        config.timeout = Duration::from_millis(150);
        config.connect_timeout = Duration::from_secs(1);
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_becomes_of_the_answers_each_message_is_accounted_for(
        config in configs(), scripts in vec(vec(acts(), 0..12), 1..6)
    ) {
        let mut config = config;
        config.targets = vec![liar(move |number, stream| play(stream, &scripts[number % scripts.len()]))];
        // `run` checks the sums, and that it ends.
        let report = run(config);
        prop_assert!(report.connections.held <= report.connections.verified);
        prop_assert!(report.connections.verified <= report.connections.established);
        prop_assert!(report.connections.established <= report.connections.opened_total);
        let bad = !report.errors.is_empty() || !report.verify.findings.is_empty() || report.messages.unanswered > 0;
        prop_assert!(!bad || report.verdict == Verdict::Fail);
    }
}

// ---- Several windows over the same connections.

#[track_caller]
fn connect_session(config: Config) -> Session {
    Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap()
}

#[test]
fn windows_share_their_connections_and_nothing_else() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.timeout = TIMEOUT;
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
        assert_eq!(report.timeline.iter().map(|point| point.rate).sum::<u64>(), 200);
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
    config.timeout = TIMEOUT;
    // No lane has as many messages as the next one, so that each window starts from other counts.
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
        // A message is due in its window: neither before it began, nor after it was answered.
        assert!(report.latency_us.max.unwrap() <= u64::try_from(before.elapsed().as_micros()).unwrap());
        assert!(report.latency_us.mean.unwrap() > 1.0, "{:?}", report.latency_us.mean);
    }
}

#[test]
fn nothing_is_sent_and_nothing_expires_between_windows() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.connections = 3;
    config.duration = Duration::from_millis(50);
    let mut session = connect_session(config);
    assert_clean(&session.measure().unwrap());
    let before = server.handle().stats();
    // That nothing comes of it, only time can tell.
    thread::sleep(ANSWER_TIMEOUT + ANSWER_TIMEOUT / 4);
    let after = server.handle().stats();
    assert_eq!((before.bytes_in, before.closed), (after.bytes_in, after.closed));
    let report = session.measure().unwrap();
    assert_clean(&report);
    assert!(report.phases_s.measure < ANSWER_TIMEOUT.as_secs_f64(), "{:?}", report.phases_s);
}

#[test]
fn a_connection_that_ends_between_windows_is_an_error_of_the_next() {
    let (end, ended) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let both = Mutex::new((ended, tell));
    let address = liar(move |number, stream| {
        if number != VICTIM {
            return echo(stream);
        }
        echo_messages(stream, 1 + 4)?;
        let (ended, tell) = &*both.lock().unwrap();
        let _ = ended.recv();
        half_close(stream);
        tell.send(()).unwrap();
        swallow(stream)
    });
    let mut config = config(address);
    config.connections = u32::try_from(CONNECTIONS).unwrap();
    config.max_connecting = 1;
    config.messages_per_connection = Some(4);
    let mut session = connect_session(config);
    assert_clean(&session.measure().unwrap());
    end.send(()).unwrap();
    told.recv_timeout(TIMEOUT).unwrap();
    let report = session.measure().unwrap();
    assert_sums(&report);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::ClosedEarly, None, 1)]);
    assert_eq!((report.connections.held, report.connections.established, report.verdict), (2, 3, Verdict::Fail));
    // It is no error of the one after it, in which it is missing all the same.
    let report = session.measure().unwrap();
    assert_eq!((errors(&report), report.messages.verified), (vec![], 8));
    assert_eq!((report.connections.held, report.verdict), (2, Verdict::Fail));
}

#[test]
fn other_modes_have_no_connections_that_outlast_a_window() {
    let (_port, address) = reserve_port();
    for mode in [Mode::Hold, Mode::Churn] {
        let mut config = config(address);
        config.mode = mode;
        let refused = Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    }
}

// ---- The command line.

/// The exit status that goes with a verdict.
fn status(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Fail => 1,
        Verdict::Interrupted => 130,
    }
}

#[track_caller]
fn run_command(arguments: &[&str]) -> Ended {
    Process::start(ecoloop(&[&["load"], arguments].concat())).wait()
}

/// The one document that standard output holds.
#[track_caller]
fn document(ended: &Ended) -> (Value, Report) {
    let [line] = &ended.stdout[..] else { panic!("not one line: {ended:?}") };
    let report = Report::from_json(line).unwrap();
    assert_sums(&report);
    assert_eq!(ended.status.code(), Some(status(report.verdict)), "{ended:?}");
    (serde_json::from_str(line).unwrap(), report)
}

#[track_caller]
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn wrong_use_has_an_exit_status_of_its_own() {
    let wrong: [&[&str]; 26] = [
        &[],
        &["-d", "1s", "-m", "1"],
        &["--mode", "hold", "-m", "1"],
        &["--mode", "churn", "--rate", "1"],
        &["--mode", "echoes"],
        &["--rate", "0"],
        &["--connect-rate", "0"],
        &["--rate", "-1"],
        &["--fail-if", "p99"],
        &["--fail-if", "p98>1ms"],
        &["--fail-if", "p99>5"],
        &["--fail-if", "rate<1ms"],
        &["--close", "reset"],
        &["-c", "100M"],
        &["-c", "2", "-p", "2000M"],
        &["-d", "0s"],
        &["--connect-timeout", "0s"],
        &["--interval", "0s"],
        &["--rate", "1001M"],
        &["--connect-rate", "999999999999999999999999M"],
        &["--repeat"],
        &["--repeat", "--json", "file.json"],
        &["--repeat", "--json", "-", "--plot", "file.svg"],
        &["--repeat", "--json", "-", "--mode", "hold"],
        &["--repeat", "--json", "-", "--mode", "churn"],
        &["--repeat", "--json", "-", "--start-at", "2100-01-01T00:00:00Z"],
    ];
    let (_port, address) = reserve_port();
    let address = address.to_string();
    for arguments in wrong {
        let target: &[&str] = if arguments.is_empty() { &[] } else { &[&address] };
        let ended = run_command(&[arguments, target].concat());
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn json_on_standard_output_is_one_document_with_the_fields_of_the_contract() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let pid = std::process::id().to_string();
    let ended = run_command(&[
        "-c",
        "3",
        "-r",
        "200",
        "-d",
        "1100ms",
        "--label",
        "a=b",
        "--seed",
        "7",
        "--server-pid",
        &pid,
        "--json",
        "-",
        &address,
    ]);
    let (json, report) = document(&ended);
    assert_clean(&report);
    assert!(!ended.stderr.iter().any(|line| line.contains('\x1b')), "{ended:?}");
    let expected = "schema version run_id start ended verdict mode loop config phases_s connections hold messages rate_per_s \
                    latency_us connect_us lateness_us schedule errors verify generator server sockstat timeline thresholds";
    assert_eq!(keys(&json), expected.split_ascii_whitespace().collect());
    let summary = "count censored clipped mean p50 p90 p99 p99_9 p99_99 max hdr_v2";
    let of = [
        ("config", "targets sources size pipeline rate seed labels"),
        ("phases_s", "connect warmup measure drain close"),
        ("connections", "requested established verified held opened_total"),
        ("messages", "due unsent verified unanswered failed deferred"),
        ("latency_us", summary),
        ("connect_us", summary),
        ("lateness_us", summary),
        ("schedule", "kept"),
        ("verify", "wrong_bytes lost_bytes extra_bytes connections_failed findings"),
        ("generator", "cpu_us_per_message cpu_percent turn_us_p99 saturated"),
        ("server", "pid cpu_us_per_message rss_bytes_per_connection"),
        ("sockstat", "scope tcp_inuse tcp_mem_pages"),
    ];
    for (name, expected) in of {
        assert_eq!(keys(&json[name]), expected.split_ascii_whitespace().collect(), "{name}");
    }
    assert_eq!(keys(&json["timeline"][0]), ["t", "rate", "open", "errors", "p50", "p99"].into());
    assert_eq!(keys(&json["thresholds"][0]), ["expr", "default", "value", "failed"].into());
    assert_eq!(
        (&json["schema"], &json["ended"], &json["loop"]),
        (&"ecoloop.load/1".into(), &"complete".into(), &"open".into())
    );
    assert_eq!(
        (&json["hold"], &json["config"]["pipeline"], &json["config"]["labels"]["a"]),
        (&Value::Null, &Value::Null, &"b".into())
    );
    assert_eq!(
        (&json["config"]["rate"], &json["config"]["seed"], &json["verdict"]),
        (&200.into(), &7.into(), &"pass".into())
    );
    // Memory of fewer than a thousand connections says nothing of one.
    assert_eq!(json["server"]["rss_bytes_per_connection"], Value::Null);
    assert_eq!(json["sockstat"]["scope"], "namespace");
}

#[test]
fn findings_and_errors_stand_in_the_document_by_their_names() {
    let address = liar(|number, stream| {
        let mut message = read_message(stream)?;
        if number == 0 {
            message[9] ^= 1;
            stream.write_all(&message)?;
            return echo(stream);
        }
        half_close(stream);
        swallow(stream)
    });
    let ended = run_command(&["-c", "2", "--max-connecting", "1", "-m", "1", "--json", "-", &address.to_string()]);
    let (json, report) = document(&ended);
    assert_eq!(report.verdict, Verdict::Fail);
    let finding = &json["verify"]["findings"][0];
    assert_eq!(keys(finding), ["kind", "connection", "local", "peer", "offset"].into());
    let told = (&finding["kind"], &finding["connection"], &finding["offset"], &finding["peer"]);
    assert_eq!(told, (&"flipped".into(), &0.into(), &9.into(), &address.to_string().into()));
    let errors = serde_json::json!([
        {"phase": "receive", "error": "closed_early", "errno": null, "count": 1},
        {"phase": "verify", "error": "bad_bytes", "errno": null, "count": 1},
    ]);
    assert_eq!(json["errors"], errors);
    // Nothing was measured, which is not the same as zero.
    assert_eq!((&json["latency_us"]["p50"], &json["latency_us"]["mean"]), (&Value::Null, &Value::Null));
}

#[test]
fn an_interrupted_run_reports_what_it_has_seen() {
    for signal in [Signal::INT, Signal::TERM] {
        let server = serve(ServerConfig::default());
        let address = server.local_addr().to_string();
        let process = Process::start(ecoloop(&["load", "-c", "3", "-d", "1h", "--json", "-", &address]));
        eventually("traffic", || server.handle().stats().bytes_in > 100 * SIZE as u64);
        process.signal(signal);
        let ended = process.wait();
        assert_eq!(ended.status.code(), Some(130), "{ended:?}");
        let (_, report) = document(&ended);
        assert_eq!((report.ended, report.verdict), (RunEnded::Interrupted, Verdict::Interrupted));
        assert!(report.messages.verified > 0);
        assert_eq!((report.verify.findings.len(), report.connections.held), (0, 3));
    }
}

/// A read stops at the mark: short, and yet not the last.
#[test]
fn urgent_data_in_an_answer_hides_nothing_behind_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let process = Process::start(ecoloop(&["load", "-m", "1", "--json", "-", &address]));
    let (mut stream, _) = listener.accept().unwrap();
    let message = read_message(&mut stream).unwrap();
    process.pause();
    let (before, after) = message.split_at(SIZE / 2);
    stream.write_all(before).unwrap();
    assert_eq!(SockRef::from(&stream).send_out_of_band(b"!").unwrap(), 1);
    stream.write_all(after).unwrap();
    await_unread(&stream, SIZE + 1);
    process.resume();
    // Where the load generator gives up, its report says why.
    let _ = echo(&mut stream);
    drop(stream);
    let (_, report) = document(&process.wait());
    assert_clean(&report);
}

/// `ecoloop load --repeat`, and its standard input.
#[track_caller]
fn repeat(arguments: &[&str]) -> (Process, ChildStdin) {
    let mut command = ecoloop(&[&["load", "--repeat", "--json", "-"], arguments].concat());
    command.stdin(Stdio::piped());
    let mut process = Process::start(command);
    let input = process.take_input();
    (process, input)
}

#[test]
fn a_line_of_standard_input_asks_for_a_window_and_its_end_for_the_end() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let (mut process, mut input) = repeat(&["-c", "3", "-m", "7", "--fail-if", "max<1h", &address]);
    // All are connected and verified before the first is asked for.
    eventually("the first messages", || server.handle().stats().bytes_out == 3 * SIZE as u64);
    let mut documents = Vec::new();
    for _ in 0..3 {
        input.write_all(b"go\n").unwrap();
        // It comes while the connections are open, and the input too.
        documents.push(Report::from_json(&process.line_with("ecoloop.load/1")).unwrap());
    }
    assert_eq!((server.handle().stats().accepted, server.handle().stats().open()), (3, 3));
    drop(input);
    let ended = process.wait();
    assert_eq!((ended.status.code(), &ended.stdout[..], &ended.stderr[..]), (Some(1), &[][..], &[][..]));
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
fn what_only_the_close_shows_is_told_and_fails_the_run() {
    let address = liar(|_, stream| {
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
    assert_eq!(ended.stderr[0], "ecoloop: after the last window: verify bad_bytes: 1");
    let finding = "ecoloop: after the last window: extra at byte 192 of connection 0, ";
    assert!(ended.stderr[1].starts_with(finding), "{ended:?}");
}

#[test]
fn a_repeated_load_without_a_window_says_what_failed_and_what_to_do() {
    let (_reserved, address) = reserve_port();
    let (process, input) = repeat(&["-c", "2", &address.to_string()]);
    drop(input);
    let ended = process.wait();
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(1), 0), "{ended:?}");
    let remedy = "ecoloop: connect refused 2 times: nobody listens there, or its backlog is full";
    assert_eq!(ended.stderr, ["ecoloop: connect refused (ECONNREFUSED): 2", remedy]);
}

#[test]
fn a_repeated_load_is_interrupted_in_a_window_and_between_them() {
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

#[test]
fn the_connects_are_told_of_while_they_last() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.connections = 1000;
    // Ten seconds for all: there is time to see some.
    config.connect_rate = Some(100.0);
    let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
    let run = {
        let (interrupt, progress) = (interrupt.clone(), progress.clone());
        thread::spawn(move || load::run(config, &interrupt, &progress).unwrap())
    };
    let mut seen = None;
    eventually("a few connections", || {
        seen = progress.take().or(seen);
        seen.is_some_and(|progress| progress.open > 1)
    });
    interrupt.set();
    assert_eq!((seen.unwrap().step, run.join().unwrap().ended), (Step::Connect, RunEnded::Interrupted));
}

#[test]
fn a_run_is_interrupted_in_every_step() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.to_string())).unwrap();
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    // While it waits for the first message, in the warm-up, in a hold, and in churn.
    let runs: [&[&str]; 4] = [
        &[&silent.1, "--timeout", "1h"],
        &[&address, "--warmup", "5000y", "-d", "5000y", "--timeout", "5000y"],
        &[&address, "--mode", "hold", "-d", "1h"],
        &[&address, "--mode", "churn", "-d", "1h"],
    ];
    for arguments in runs {
        let before = server.handle().stats().bytes_in;
        let process = Process::start(ecoloop(&[&["load", "--json", "-"], arguments].concat()));
        if arguments[0] == address {
            eventually("the first message", || server.handle().stats().bytes_in > before);
        } else {
            // Its end of the connection is established at once, without anybody to see it but the kernel.
            // Another loopback address may have the same port.
            let end = format!("0100007F:{:04X} ", silent.0.local_addr().unwrap().port());
            eventually("a connection", || {
                fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(|row| row.contains(&end)).count() == 3
            });
        }
        process.signal(Signal::INT);
        let (_, report) = document(&process.wait());
        assert_eq!((report.ended, report.verdict), (RunEnded::Interrupted, Verdict::Interrupted), "{arguments:?}");
    }
}

#[test]
fn a_gate_that_falls_fails_the_run_and_one_that_holds_does_not() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let gated = |threshold: &str| {
        let ended = run_command(&["-m", "10", "--fail-if", threshold, "--json", "-", &address]);
        let (_, report) = document(&ended);
        let thresholds: Vec<_> = report.thresholds.iter().filter(|row| !row.default).collect();
        let [row] = thresholds[..] else { panic!("{thresholds:?}") };
        assert_eq!(row.expr, threshold);
        assert_eq!(report.verdict == Verdict::Fail, row.failed, "{:?}", report.thresholds);
        (report.verdict, row.value)
    };
    for threshold in ["p99<1h", "max>0us", "connections<2", "rate<1M", "errors>=0", "mean<1h", "connect_p99<1h"] {
        assert!(matches!(gated(threshold), (Verdict::Fail, Some(_))), "{threshold}");
    }
    for threshold in ["p99>1h", "max<0us", "connections<1", "rate>100M/s", "unanswered>0", "p99.99>=1h"] {
        assert!(matches!(gated(threshold), (Verdict::Pass, Some(_))), "{threshold}");
    }
    // A closed loop has no lateness: what has no value falls.
    assert_eq!(gated("lateness_p99>1h"), (Verdict::Fail, None));
}

#[test]
fn a_gate_takes_the_place_of_the_one_that_stands_but_never_of_the_findings() {
    let closing = || {
        liar(|number, stream| {
            if number != VICTIM {
                return echo(stream);
            }
            echo_messages(stream, 3)?;
            half_close(stream);
            swallow(stream)
        })
    };
    let flipping = liar(|number, stream| {
        echo_messages(stream, 3)?;
        let mut message = read_message(stream)?;
        message[0] ^= u8::from(number == VICTIM);
        stream.write_all(&message)?;
        echo(stream)
    });
    let verdict = |address: SocketAddr, thresholds: &[&str]| {
        let address = address.to_string();
        let mut arguments = vec!["-c", "3", "-m", "10", "--json", "-", &address];
        arguments.extend(thresholds.iter().flat_map(|threshold| ["--fail-if", threshold]));
        document(&run_command(&arguments)).1.verdict
    };
    // The liars number their connections over their whole life: there is a victim in the first run alone.
    assert_eq!(verdict(closing(), &[]), Verdict::Fail);
    assert_eq!(verdict(closing(), &["errors>1"]), Verdict::Fail);
    assert_eq!(verdict(closing(), &["errors>1", "connections<2"]), Verdict::Pass);
    assert_eq!(verdict(flipping, &["errors>1", "connections<1", "unanswered>9"]), Verdict::Fail);
}

#[test]
fn an_output_that_cannot_be_created_ends_it_before_any_connect() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let missing = Scratch::new("load-missing");
    for option in ["--json", "--hgrm", "--plot"] {
        let path = format!("{}/file.svg", missing.path());
        let ended = run_command(&["-m", "1", option, &path, &address]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
        assert!(line.starts_with(&format!("ecoloop: cannot create {path}: ")), "{line}");
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
fn a_file_of_json_comes_beside_the_table() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let file = Scratch::new("load-json");
    let ended = run_command(&["-m", "5", "--json", file.path(), &address]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(file.json()["messages"]["verified"], 5);
    assert!(!ended.stdout.is_empty());
    assert!(!ended.stdout.iter().chain(&ended.stderr).any(|line| line.contains('\x1b')), "{ended:?}");
    let ended = run_command(&["-m", "5", "--quiet", &address]);
    assert_eq!((ended.status.code(), ended.stdout.len()), (Some(0), 0), "{ended:?}");
}

#[test]
fn wrong_use_that_the_parser_cannot_see_prints_the_usage_of_the_subcommand() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for (arguments, usage) in [
        (&["load", "-d", "1s", "-m", "1"][..], "Usage: ecoloop load [OPTIONS] <ADDR>..."),
        (&["load", "--source", "::1"], "Usage: ecoloop load [OPTIONS] <ADDR>..."),
        (&["doctor", "-c", "1", "--source", "::1"], "Usage: ecoloop doctor [OPTIONS] --connections <COUNT> [ADDR]..."),
    ] {
        let ended = Process::start(ecoloop(&[arguments, &[&address]].concat())).wait();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.iter().any(|line| line == usage), "{ended:?}");
    }
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
fn a_name_that_does_not_resolve_is_in_the_report_and_nothing_is_connected() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    // RFC 6761: no such name ever resolves.
    let ended =
        run_command(&["-c", "3", "--start-at", "2999-01-01T00:00:00Z", "--json", "-", "no.invalid:5", &address]);
    let (_, report) = document(&ended);
    assert_eq!(errors(&report), [(Phase::Resolve, ErrorName::Other, None, 1)]);
    assert_eq!((report.verdict, report.connections.requested, report.connections.opened_total), (Verdict::Fail, 3, 0));
    assert_eq!((report.rate_per_s, report.generator.cpu_percent), (None, None));
    let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
    assert!(line.starts_with("ecoloop: cannot resolve no.invalid:5: "), "{line}");
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
fn what_never_measured_claims_no_window_and_no_share_of_a_core() {
    let (_port, address) = reserve_port();
    let ended = run_command(&["-d", "7s", &address.to_string()]);
    let settings = format!("run          echo, closed loop, 1 connection, 64 B a message, 1 in flight, to {address}");
    assert_eq!(ended.stdout[0], settings);
    let generator = ended.stdout.iter().find(|line| line.starts_with("generator ")).unwrap();
    assert!(generator.starts_with("generator    - CPU a message, - of a core, "), "{generator}");
    let advice = "ecoloop: connect refused 1 time: nobody listens there, or its backlog is full";
    assert_eq!(ended.stderr, [advice]);
}

#[test]
fn connections_come_from_the_sources_that_are_given() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let of_server = Arc::clone(&seen);
    let address = liar(move |_, stream| {
        of_server.lock().unwrap().push(stream.peer_addr()?);
        echo(stream)
    });
    let sources = ["--source", "127.0.0.2-127.0.0.3", "--source", "127.0.0.9"];
    let target = address.to_string();
    let ended = run_command(&[&["-c", "6", "-m", "3", "--json", "-", &target], &sources[..]].concat());
    let (_, report) = document(&ended);
    assert_clean(&report);
    let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.9"].map(|address| address.parse::<IpAddr>().unwrap());
    assert_eq!(report.config.sources, addresses);
    let seen = seen.lock().unwrap();
    for source in addresses {
        let ports: BTreeSet<_> = seen.iter().filter(|peer| peer.ip() == source).map(SocketAddr::port).collect();
        assert_eq!(ports.len(), 2, "{seen:?}");
    }
}

#[test]
fn who_reads_a_part_of_the_output_gets_no_complaint() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for arguments in [&["doctor", "-c", "1"][..], &["load", "-m", "1", &address]] {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let ended = ecoloop(arguments).stdout(writer).output().unwrap();
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), &b""[..]), "{arguments:?}");
    }
}

#[test]
fn runs_that_start_together_are_merged_on_the_command_line() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let start = SystemTime::now() + Duration::from_secs(1);
    let start_at = humantime::format_rfc3339_millis(start).to_string();
    let files = [Scratch::new("merge-one"), Scratch::new("merge-two")];
    let runs = files.each_ref().map(|file| {
        let options = ["-q", "-c", "2", "-r", "100", "-d", "2s", "--start-at", &start_at, "--json", file.path()];
        Process::start(ecoloop(&[&["load"], &options[..], &[&address]].concat()))
    });
    for run in runs {
        let ended = run.wait();
        assert_eq!((ended.status.code(), ended.stdout), (Some(0), vec![]), "{:?}", ended.stderr);
    }
    let reports = files.each_ref().map(|file| Report::from_json(&file.json().to_string()).unwrap());
    for report in &reports {
        // The time is given in milliseconds.
        let late = report.start.duration_since(start - Duration::from_millis(1)).unwrap();
        assert!(late < TIMEOUT, "{late:?}");
    }

    let merge = |arguments: &[&str]| Process::start(ecoloop(&[&["merge"], arguments].concat())).wait();
    let [one, two] = files.each_ref().map(Scratch::path);
    let ended = merge(&["--json", "-", "--fail-if", "p99>1h", one, two]);
    let (_, merged) = document(&ended);
    assert_eq!(
        (merged.messages.due, merged.connections.held, merged.verdict),
        (400, 4, Verdict::Pass),
        "{:?}",
        merged.thresholds
    );
    assert_eq!(merged.run_id, format!("{}+{}", reports[0].run_id, reports[1].run_id));
    assert_eq!(merge(&["-q", "--fail-if", "connections<5", one, two]).status.code(), Some(1));
    let refused = merge(&[one, one]);
    let expected = format!("ecoloop: cannot merge {one}: run {:?} is also in {one}", reports[0].run_id);
    assert_eq!((refused.status.code(), refused.stderr), (Some(1), vec![expected]));
}

#[test]
fn a_file_without_an_end_is_not_read_for_ever() {
    let ended = Process::start(ecoloop(&["merge", "/dev/zero"])).wait();
    let expected = "ecoloop: cannot read /dev/zero: it is longer than a report may be, 64 MiB";
    assert_eq!((ended.status.code(), ended.stderr), (Some(1), vec![expected.to_owned()]));
}

#[test]
fn running_out_of_descriptors_is_told_apart_from_a_refusal_and_names_the_remedy() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let limited = |address: &str| {
        let load = ecoloop(&["load", "-c", "100", "-m", "2", "--json", "-", address]);
        let mut command = Command::new("sh");
        // Both the soft limit and the hard one, which it would raise itself to.
        command.args(["-c", "ulimit -n 40; exec \"$0\" \"$@\""]).arg(load.get_program()).args(load.get_args());
        Process::start(command).wait()
    };
    let ended = limited(&address);
    let (_, report) = document(&ended);
    let [(Phase::Connect, ErrorName::NoDescriptors, Some("EMFILE"), count)] = errors(&report)[..] else {
        panic!("{:?}", report.errors);
    };
    let connections = report.connections;
    assert_eq!((report.verdict, connections.held + count, connections.opened_total), (Verdict::Fail, 100, 100));
    // Those that are open are as good as ever.
    assert!(connections.held > 0);
    assert_eq!((report.messages.verified, report.messages.due), (connections.held * 2, connections.held * 2));
    let remedy = |ended: &Ended, words: &str| ended.stderr.iter().any(|line| line.contains(words));
    assert!(remedy(&ended, "no_descriptors") && remedy(&ended, "ulimit -n"), "{ended:?}");

    let (_port, address) = reserve_port();
    let start = Instant::now();
    let ended = run_command(&["-c", "100", "-m", "2", "--json", "-", &address.to_string()]);
    let (_, report) = document(&ended);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), 100)]);
    assert!(remedy(&ended, "refused") && !remedy(&ended, "no_descriptors"), "{ended:?}");
    assert!(start.elapsed() < TIMEOUT);
}
