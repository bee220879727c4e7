//! Connections that fail without corrupted data.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use ecoloop::Config as ServerConfig;
use ecoloop::load::Mode;
use ecoloop::load::report::{ErrorName, Phase, Verdict};

use super::faulty_server::{
    Fault, assert_messages, discard, echo_messages, end_with_reset, faulty_server, read_message, run_on_faulty_server,
};
use super::{
    CONNECTIONS, ErrorRow, SHORT_TIMEOUT, config, document, errors, listen_with_room_for_one, run, run_command,
};
use crate::support::{
    Ended, Process, Scratch, await_injected, ecoloop, half_close, join, reserve_port, serve, strace, with_descriptors,
    wrapped,
};

#[test]
fn fin_instead_of_a_reply_is_closed_early() {
    let fault: Fault = |stream, _| {
        half_close(stream);
        discard(stream)
    };
    assert_error(fault, (Phase::Receive, ErrorName::ClosedEarly, None, 1), false);
}

#[test]
fn a_reset_within_a_reply_is_reported_as_a_reset() {
    let fault: Fault = |stream, message| {
        stream.write_all(&message[..24])?;
        end_with_reset(stream)
    };
    assert_error(fault, (Phase::Receive, ErrorName::Reset, Some("ECONNRESET"), 1), true);
}

/// Linux hands out what was received before a reset, but a write after the reset fails.
#[test]
fn replies_that_arrived_before_a_reset_count_although_a_write_fails_first() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let process = Process::start(ecoloop(&["load", "-c", "1", "-r", "1000", "-d", "1s", "--json", "-", &target]));
    let (mut stream, _) = listener.accept().unwrap();
    echo_messages(&mut stream, 1).unwrap();
    let replies: Vec<_> = (0..50).flat_map(|_| read_message(&mut stream).unwrap()).collect();
    // Messages become due while it is stopped: it writes before it reads.
    process.pause();
    stream.write_all(&replies).unwrap();
    end_with_reset(&stream).unwrap();
    drop(stream);
    process.resume();
    let (_, report) = document(&process.wait());
    let [error] = &report.errors[..] else { panic!("{:?}", report.errors) };
    assert_eq!((error.error, error.errno.as_deref(), error.count), (ErrorName::Reset, Some("ECONNRESET"), 1));
    assert_eq!((report.messages.verified, report.messages.due), (50, 1000), "{:?}", report.messages);
}

#[test]
fn no_reply_is_reported_as_a_timeout() {
    assert_error(|stream, _| discard(stream), (Phase::Receive, ErrorName::Timeout, None, 1), true);
    let report = run_on_faulty_server(3, |stream, _| discard(stream));
    assert!(report.latency_us.max.unwrap() >= 1_000_000, "{:?}", report.latency_us);
}

#[test]
fn a_partial_reply_is_unanswered_and_not_lost() {
    let fault: Fault = |stream, message| {
        stream.write_all(&message[..24])?;
        discard(stream)
    };
    assert_error(fault, (Phase::Receive, ErrorName::Timeout, None, 1), true);
}

/// Asserts that `fault` is reported as `error`, and not as a finding.
#[track_caller]
fn assert_error(fault: Fault, error: ErrorRow<'_>, is_unanswered: bool) {
    for echoed in [0, 3] {
        let report = run_on_faulty_server(echoed, fault);
        assert_eq!(errors(&report), [error]);
        assert_eq!(report.verify.findings, []);
        assert_eq!(report.connections.held, CONNECTIONS as u64 - 1);
        let messages = report.messages;
        let (missing, zero) =
            if is_unanswered { (messages.unanswered, messages.failed) } else { (messages.failed, messages.unanswered) };
        assert_eq!((missing, zero), (u64::from(echoed > 0), 0), "{messages:?}");
        assert_messages(&report, echoed, missing);
    }
}

#[test]
fn connections_that_are_never_accepted_are_established_and_not_verified() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(listener.local_addr().unwrap());
    config.connections = 3;
    config.duration = Duration::from_millis(100);
    config.timeout = SHORT_TIMEOUT;
    let report = run(config);
    let connections = report.connections;
    assert_eq!([connections.established, connections.verified, connections.held], [3, 0, 0]);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::Timeout, None, 3)]);
    assert_eq!((report.verdict, report.messages.due, report.latency_us.p50), (Verdict::Fail, 0, None));
}

#[test]
fn a_full_backlog_is_reported_as_a_connect_timeout() {
    let (_socket, address) = listen_with_room_for_one();
    let mut config = config(address);
    config.connections = 3;
    config.duration = Duration::from_millis(100);
    (config.timeout, config.connect_timeout) = (SHORT_TIMEOUT, SHORT_TIMEOUT);
    let report = run(config);
    assert_eq!((report.connections.established, report.connections.verified), (1, 0));
    let expected = [(Phase::Connect, ErrorName::Timeout, None, 2), (Phase::Receive, ErrorName::Timeout, None, 1)];
    assert_eq!((report.verdict, errors(&report)), (Verdict::Fail, expected.to_vec()));
}

#[test]
fn a_closed_port_is_reported_as_refused() {
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
fn an_unresolvable_name_is_reported_and_nothing_is_connected() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    // No name below `invalid` resolves (RFC 6761).
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
fn running_out_of_descriptors_is_distinct_from_a_refusal_and_prints_a_hint() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let limited = |address: &str| {
        let load = ecoloop(&["load", "-c", "100", "-m", "2", "--json", "-", address]);
        Process::start(with_descriptors(40, &load)).wait()
    };
    let ended = limited(&address);
    let (_, report) = document(&ended);
    let [(Phase::Connect, ErrorName::NoDescriptors, Some("EMFILE"), count)] = errors(&report)[..] else {
        panic!("{:?}", report.errors);
    };
    let connections = report.connections;
    assert_eq!((report.verdict, connections.held + count, connections.opened_total), (Verdict::Fail, 100, 100));
    // The connections within the limit are not affected.
    assert!(connections.held > 0);
    assert_eq!((report.messages.verified, report.messages.due), (connections.held * 2, connections.held * 2));
    let hint = |ended: &Ended, words: &str| ended.stderr.iter().any(|line| line.contains(words));
    assert!(hint(&ended, "no_descriptors") && hint(&ended, "ulimit -n"), "{ended:?}");

    let (_port, address) = reserve_port();
    let ended = run_command(&["-c", "100", "-m", "2", "--json", "-", &address.to_string()]);
    let (_, report) = document(&ended);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), 100)]);
    assert!(hint(&ended, "refused") && !hint(&ended, "no_descriptors"), "{ended:?}");
}

#[test]
#[ignore = "needs strace"]
fn a_close_after_a_message_that_was_sent_in_part_fails_the_message() {
    // The client's second send(2) and all later ones find the socket full: only what the first call takes is sent.
    const PART: usize = 64 * 1024;
    let address = faulty_server(|_, stream| {
        let mut part = vec![0; PART];
        stream.read_exact(&mut part)?;
        stream.write_all(&part)?;
        half_close(stream);
        discard(stream)
    });
    let load = ecoloop(&["load", "-s", "100KiB", "-m", "1", "--timeout", "1h", "--json", "-", &address.to_string()]);
    let trace = Scratch::new("strace");
    let strace = strace("sendto:error=EAGAIN:when=2+", trace.path());
    let (_, report) = document(&Process::start(wrapped(strace, &load)).wait());
    await_injected(&trace);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::ClosedEarly, None, 1)]);
}

#[test]
fn errors_are_counted_by_target() {
    let server = serve(ServerConfig::default());
    let (_port, closed) = reserve_port();
    let mut config = config(server.local_addr());
    config.targets.push(vec![closed.into()]);
    config.connections = 5;
    config.duration = Duration::from_millis(100);
    let report = run(config);
    let [error] = &report.errors[..] else { panic!("{:?}", report.errors) };
    let targets: Vec<_> = error.targets.iter().map(|one| (one.target.tcp(), one.count)).collect();
    assert_eq!((error.error, error.count, targets), (ErrorName::Refused, 2, vec![(Some(closed), 2)]));
}

#[test]
fn errors_before_the_window_are_in_no_second_of_it() {
    let server = serve(ServerConfig::default());
    let (_port, closed) = reserve_port();
    // Its connections end in the window.
    let closing = faulty_server(|_, stream| {
        echo_messages(stream, 3)?;
        half_close(stream);
        discard(stream)
    });
    let mut config = config(server.local_addr());
    config.targets.extend([vec![closed.into()], vec![closing.into()]]);
    (config.connections, config.duration) = (6, Duration::from_secs(2));
    let report = run(config);
    let expected = [
        (Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), 2),
        (Phase::Receive, ErrorName::ClosedEarly, None, 2),
    ];
    assert_eq!(errors(&report), expected);
    assert_eq!(report.timeline.iter().map(|sample| sample.errors).sum::<u64>(), 2, "{:?}", report.timeline);
}
