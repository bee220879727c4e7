//! Verification: each kind of corruption is found, at its offset and on its connection.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use ecoloop::load::report::{ErrorName, Finding, FindingKind, Phase, Verdict};
use ecoloop::load::{Config, Mode, Report, Run};
use socket2::SockRef;

use super::faulty_server::{
    Fault, MESSAGES, assert_messages, discard, echo, echo_messages, faulty_server, read_message, run_on_faulty_server,
};
use super::{
    CONNECTIONS, ErrorRow, FAULTY_CONNECTION, SIZE, assert_clean, assert_sums, config, document, errors, run,
    run_command,
};
use crate::support::{Process, TIMEOUT, await_unread, ecoloop, half_close};

#[test]
fn a_flipped_byte_is_found() {
    let fault: Fault = |stream, mut message| {
        message[5] ^= 0x10;
        stream.write_all(&message)?;
        echo(stream)
    };
    assert_found(fault, FindingKind::Flipped, 5, [1, 0, 0]);
}

#[test]
fn missing_bytes_before_later_ones_are_lost() {
    let fault: Fault = |stream, mut message| {
        message.drain(16..24);
        stream.write_all(&message)?;
        echo(stream)
    };
    assert_found(fault, FindingKind::Lost, 16, [0, 8, 0]);
}

#[test]
fn a_repeated_message_is_duplicated() {
    let fault: Fault = |stream, message| {
        stream.write_all(&message.repeat(2))?;
        echo(stream)
    };
    assert_found(fault, FindingKind::Duplicated, SIZE, [0, 0, SIZE as u64]);
}

#[test]
fn swapped_words_are_reordered() {
    let fault: Fault = |stream, mut message| {
        let (left, right) = message.split_at_mut(32);
        left[8..16].swap_with_slice(&mut right[..8]);
        stream.write_all(&message)?;
        echo(stream)
    };
    let report = run_on_faulty_server(3, fault);
    let [finding] = &report.verify.findings[..] else { panic!("{:?}", report.verify) };
    assert_finding(finding, &report, FindingKind::Reordered, FAULTY_CONNECTION, 3 * SIZE + 8);
    let report = run_on_faulty_server(0, fault);
    let [finding] = &report.verify.findings[..] else { panic!("{:?}", report.verify) };
    assert_finding(finding, &report, FindingKind::Reordered, FAULTY_CONNECTION, 8);
}

#[test]
fn an_additional_byte_is_extra() {
    let fault: Fault = |stream, mut message| {
        message.push(0);
        stream.write_all(&message)?;
        echo(stream)
    };
    assert_found(fault, FindingKind::Extra, SIZE, [0, 0, 1]);
}

#[test]
fn an_additional_byte_after_the_last_message_is_extra() {
    let report = run_on_faulty_server(0, |stream, message| {
        stream.write_all(&message)?;
        echo(stream)?;
        stream.write_all(b"x")
    });
    let [finding] = &report.verify.findings[..] else { panic!("{:?} {:?}", report.verify, report.errors) };
    assert_finding(
        finding,
        &report,
        FindingKind::Extra,
        FAULTY_CONNECTION,
        (1 + usize::try_from(MESSAGES).unwrap()) * SIZE,
    );
    assert_eq!(report.verify.extra_bytes, 1);
    assert_eq!(report.messages.verified, MESSAGES * CONNECTIONS as u64);
    // The connection was held until the end of the measurement.
    assert_eq!(report.connections.held, CONNECTIONS as u64);
}

#[test]
fn a_partial_reply_before_fin_is_truncated() {
    let fault: Fault = |stream, message| {
        stream.write_all(&message[..24])?;
        half_close(stream);
        discard(stream)
    };
    assert_found(fault, FindingKind::Truncated, 24, [0, 40, 0]);
}

#[test]
fn replies_swapped_between_two_connections_are_foreign() {
    for echoed in [0, 3, 3] {
        // Each of the two connections gets the other's message.
        let ((to_one, of_one), (to_two, of_two)) = (mpsc::channel(), mpsc::channel());
        let ends = BTreeMap::from([(FAULTY_CONNECTION, (to_two, of_one)), (FAULTY_CONNECTION + 1, (to_one, of_two))]);
        let ends = Mutex::new(ends);
        let address = faulty_server(move |number, stream| {
            let end = ends.lock().unwrap().remove(&number);
            if let Some((other, own)) = end {
                echo_messages(stream, echoed)?;
                other.send(read_message(stream)?).unwrap();
                stream.write_all(&own.recv().unwrap())?;
            }
            echo(stream)
        });
        let mut config = config(address);
        config.connections = 4;
        // Slow connects, so that client and server number the connections alike, and yet all are open together.
        config.max_connecting = 4;
        config.connect_rate = Some(20.0);
        config.messages_per_connection = Some(MESSAGES);
        let report = run(config);
        assert_eq!((report.verdict, errors(&report)), (Verdict::Fail, bad_bytes(2)));
        let mut findings = report.verify.findings.clone();
        findings.sort_by_key(|finding| finding.connection);
        let [one, two] = &findings[..] else { panic!("{findings:?}") };
        assert_finding(one, &report, FindingKind::Foreign, FAULTY_CONNECTION, echoed * SIZE);
        assert_finding(two, &report, FindingKind::Foreign, FAULTY_CONNECTION + 1, echoed * SIZE);
        assert_eq!(report.verify.wrong_bytes / (2 * SIZE as u64 - 8), 1, "{:?}", report.verify);
        assert_eq!((report.connections.held, report.verify.connections_failed), (2, 2));
    }
}

/// A read stops at the urgent mark: it is short, and yet more data follows.
#[test]
fn data_after_urgent_data_in_a_reply_is_read() {
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
    // If the load generator closes early, its report says why.
    let _ = echo(&mut stream);
    drop(stream);
    let (_, report) = document(&process.wait());
    assert_clean(&report);
}

/// Asserts that `fault` is found on its connection, and that no other connection is affected.
#[track_caller]
fn assert_found(fault: Fault, kind: FindingKind, offset_in_message: usize, bytes: [u64; 3]) {
    for echoed in [0, 3, 3, 3] {
        let report = run_on_faulty_server(echoed, fault);
        let [finding] = &report.verify.findings[..] else { panic!("{:?} {:?}", report.verify, report.errors) };
        assert_finding(finding, &report, kind, FAULTY_CONNECTION, echoed * SIZE + offset_in_message);
        let verify = &report.verify;
        assert_eq!([verify.wrong_bytes, verify.lost_bytes, verify.extra_bytes], bytes, "{verify:?}");
        assert_eq!((verify.connections_failed, errors(&report)), (1, bad_bytes(1)));
        assert_eq!(report.connections.held, CONNECTIONS as u64 - 1);
        // A message that came back right before the fault is verified.
        let verified = echoed + offset_in_message / SIZE;
        assert_eq!(report.connections.verified, CONNECTIONS as u64 - u64::from(verified == 0));
        assert_messages(&report, verified, report.messages.failed);
    }
}

#[track_caller]
fn assert_finding(finding: &Finding, report: &Report, kind: FindingKind, connection: usize, offset: usize) {
    assert_eq!((finding.kind, finding.connection, finding.offset), (kind, connection as u64, offset as u64));
    assert_eq!(finding.peer, report.config.targets[0]);
    assert!(finding.local.is_some_and(|local| finding.peer != local && local.port() != 0), "{finding:?}");
}

/// Returns the errors of a run in which `connections` connections had a finding, and none another error.
fn bad_bytes(connections: u64) -> Vec<ErrorRow<'static>> {
    vec![(Phase::Verify, ErrorName::BadBytes, None, connections)]
}

#[test]
fn a_finding_has_the_bytes_expected_and_received() {
    let report = run_on_faulty_server(3, |stream, mut message| {
        message[9..13].copy_from_slice(b"\0 hi");
        stream.write_all(&message)?;
        echo(stream)
    });
    let [finding] = &report.verify.findings[..] else { panic!("{:?}", report.verify) };
    let (expected, received) = (&finding.expected, &finding.received);
    assert_eq!([expected.hex.len(), received.hex.len()], [32, 32]);
    assert_eq!([expected.text.len(), received.text.len()], [16, 16]);
    assert!(received.hex.starts_with("00206869") && received.text.starts_with(". hi"), "{received:?}");
    // The bytes after the wrong ones are right.
    assert_eq!(expected.hex[8..], received.hex[8..]);
    assert!(finding.at_s > 0.0 && finding.at_s < TIMEOUT.as_secs_f64(), "{}", finding.at_s);
}

#[test]
fn a_server_that_speaks_first_is_asked_whether_it_echoes() {
    let address = faulty_server(|_, stream| {
        stream.write_all(b"220 mail.example.com ESMTP\r\n")?;
        discard(stream)
    });
    let ended = run_command(&["-d", "100ms", &address.to_string()]);
    let table = ended.stdout.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    assert!(table.contains("is this an echo server? it sent \"220 mail.example"), "{ended:?}");
}

/// Interrupts a run once the server has written its wrong bytes, and returns the report.
fn interrupt_after(is_written: &mpsc::Receiver<()>, mut config: Config) -> Report {
    config.timeout = TIMEOUT * 100;
    let run = Run::from(config).spawn().unwrap();
    is_written.recv_timeout(TIMEOUT).unwrap();
    run.interrupt();
    let report = run.join().unwrap();
    assert_sums(&report);
    report
}

/// Wrong bytes wait for others that decide in which way they are wrong.
#[test]
fn wrong_bytes_before_an_interrupt_are_found() {
    let (written, is_written) = mpsc::channel();
    let address = faulty_server(move |_, stream| {
        echo_messages(stream, 2)?;
        let mut message = read_message(stream)?;
        message[5] ^= 0x10;
        stream.write_all(&message)?;
        // Until the client has read them.
        await_unread(stream, 0);
        written.send(()).unwrap();
        discard(stream)
    });
    let mut config = config(address);
    (config.pipeline, config.duration) = (Some(10), TIMEOUT * 100);
    let report = interrupt_after(&is_written, config);
    let [finding] = &report.verify.findings[..] else { panic!("{:?} {:?}", report.verify, report.errors) };
    assert_finding(finding, &report, FindingKind::Flipped, 0, 2 * SIZE + 5);
    assert_eq!((report.verify.wrong_bytes, errors(&report)), (1, bad_bytes(1)));
    let messages = report.messages;
    assert_eq!((messages.verified, messages.failed), (1, messages.due - 1), "{messages:?}");
    assert_eq!(report.verdict, Verdict::Interrupted);
}

#[test]
fn wrong_bytes_before_an_interrupt_are_the_one_outcome_of_a_held_connection() {
    let (written, is_written) = mpsc::channel();
    let address = faulty_server(move |number, stream| {
        if number != FAULTY_CONNECTION {
            return echo(stream);
        }
        echo_messages(stream, 1)?;
        let mut message = read_message(stream)?;
        message[5] ^= 0x10;
        stream.write_all(&message[..SIZE / 2])?;
        await_unread(stream, 0);
        written.send(()).unwrap();
        discard(stream)
    });
    let mut config = config(address);
    (config.mode, config.duration) = (Mode::Hold, Duration::from_millis(50));
    (config.connections, config.max_connecting) = (3, 1);
    let report = interrupt_after(&is_written, config);
    assert_eq!((report.verify.connections_failed, errors(&report)), (1, bad_bytes(1)));
    let hold = report.hold.unwrap();
    assert_eq!((report.connections.held, hold.failed), (2, 1), "{hold:?}");
}
