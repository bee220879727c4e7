//! A standard output that cannot be written costs log lines, and nothing else.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::io::ioctl_fionbio;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use rustix::process::Signal;
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, prlimit};

use crate::support::{
    Ended, Process, Scratch, assert_echoes, assert_ended, await_not_listening, connect, connect_eventually, ecoloop,
    eventually, half_close, reserve_port, wrapped,
};

/// Messages of one [`load`]: with `-v` their lines exceed a pipe and the queue together.
const MESSAGES: usize = 2000;
const MESSAGE: [u8; 1000] = [b'x'; 1000];
/// Messages whose lines fit in the queue: a machine that gives the writer no CPU loses none.
const QUEUED_MESSAGES: usize = 400;
const CLIENTS: usize = 4;

/// Lines of a server with `-v` that served one [`load`]: its start, its clients one by one, their messages, its end.
const LINES: usize = 2 + MESSAGES + CLIENTS * 4 + 1;

/// Has every message echoed.
#[track_caller]
fn load(address: SocketAddr) {
    send(address, MESSAGES);
}

#[track_caller]
fn send(address: SocketAddr, messages: usize) {
    for _ in 0..CLIENTS {
        let mut client = connect_eventually(address);
        for _ in 0..messages / CLIENTS {
            assert_echoes(&mut client, &MESSAGE);
        }
        half_close(&client);
        assert_ended(&mut client);
    }
}

/// Connects a client with a message of its own. With `-v` it causes five lines.
#[track_caller]
fn visit(address: SocketAddr) {
    let mut client = connect(address);
    assert_echoes(&mut client, b"is there room?");
    half_close(&client);
    assert_ended(&mut client);
}

/// Runs `command` in a shell, with these redirections.
fn through_shell(command: &Command, redirection: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")]);
    wrapped(shell, command)
}

/// Returns how many lines were lost, from the report of a server that has ended without an error.
#[track_caller]
fn lost_lines(ended: &Ended, report: &Scratch) -> usize {
    assert!(ended.status.success(), "{ended:?}");
    let json = report.json();
    assert!(json["bytes_out"].as_u64().unwrap() >= (QUEUED_MESSAGES * MESSAGE.len()) as u64, "{json}");
    json["log_lines_lost"].as_u64().unwrap().try_into().unwrap()
}

/// Asserts that standard error shows the number of lost lines, and nothing else.
#[track_caller]
fn assert_lost_on_stderr(ended: &Ended, lost: usize) {
    assert_eq!(ended.stderr, [format!("{lost} log lines were lost: standard output did not take them")]);
}

/// Starts a server with `-v`, and returns it, its address, and the pipe that is its standard output.
#[track_caller]
fn serve_into_a_pipe(report: &Scratch) -> (Process, SocketAddr, BufReader<PipeReader>) {
    let (reader, writer) = pipe().unwrap();
    serve_into(report, reader, writer)
}

#[track_caller]
fn serve_into(
    report: &Scratch,
    reader: PipeReader,
    writer: PipeWriter,
) -> (Process, SocketAddr, BufReader<PipeReader>) {
    let mut command = ecoloop(&["127.0.0.1:0", "-v", "--report", report.path()]);
    command.stdout(writer).stderr(Stdio::piped());
    let process = Process::adopt(command);
    let mut reader = BufReader::new(reader);
    let mut start = String::new();
    reader.read_line(&mut start).unwrap();
    let port = start.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    (process, SocketAddr::from(([127, 0, 0, 1], port)), reader)
}

#[test]
fn a_second_signal_while_the_log_waits_for_its_reader_does_not_cost_the_report() {
    let report = Scratch::new("second");
    let (mut process, address, _reader) = serve_into_a_pipe(&report);
    send(address, QUEUED_MESSAGES);
    process.signal(Signal::TERM);
    await_not_listening(address);
    process.signal_until_ended(Signal::TERM);
    let ended = process.wait();
    assert!(lost_lines(&ended, &report) > 0);
}

#[test]
fn a_working_output_loses_no_line() {
    let report = Scratch::new("healthy");
    let (process, address) = Process::serve(&["-v", "--report", report.path()]);
    send(address, QUEUED_MESSAGES);
    let ended = process.terminate();
    assert_eq!(lost_lines(&ended, &report), 0);
    // The first was read for the address.
    assert_eq!(ended.stdout.len(), LINES - MESSAGES + QUEUED_MESSAGES - 1);
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

/// Returns the end of a server with `-v` and these redirections, which has echoed this number of messages.
#[track_caller]
fn serve_redirected(report: &Scratch, redirection: &str, messages: usize) -> Ended {
    let (_reserved, address) = reserve_port();
    let server = ecoloop(&[&address.to_string(), "--reuse-port", "-v", "--report", report.path()]);
    let process = Process::start(through_shell(&server, redirection));
    send(address, messages);
    process.terminate()
}

#[test]
fn a_full_output_costs_every_line_and_nothing_else() {
    let report = Scratch::new("full");
    let ended = serve_redirected(&report, ">/dev/full", MESSAGES);
    assert_eq!(lost_lines(&ended, &report), LINES);
    assert_lost_on_stderr(&ended, LINES);
}

/// It is `/dev/null` by the time that `main` runs.
#[test]
fn a_closed_output_discards_and_loses_nothing() {
    let report = Scratch::new("closed");
    let ended = serve_redirected(&report, ">&-", QUEUED_MESSAGES);
    assert_eq!(lost_lines(&ended, &report), 0);
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn a_reader_that_goes_away_costs_lines_and_nothing_else() {
    let report = Scratch::new("reader-gone");
    let (process, address, reader) = serve_into_a_pipe(&report);
    drop(reader);
    load(address);
    let ended = process.terminate();
    let lost = lost_lines(&ended, &report);
    // A process that another test starts may keep the pipe open for a moment.
    assert!(lost > 0 && lost < LINES, "{lost}");
    assert_lost_on_stderr(&ended, lost);
}

#[test]
fn a_reader_that_does_not_read_costs_lines_and_nothing_else() {
    let report = Scratch::new("unread");
    let (process, address, reader) = serve_into_a_pipe(&report);
    load(address);
    let ended = process.terminate();
    let lost = lost_lines(&ended, &report);
    assert!(lost > 0 && lost < LINES, "{lost}");
    assert_lost_on_stderr(&ended, lost);
    drop(reader);
}

#[test]
fn a_reader_that_resumes_gets_the_queued_lines_and_the_count_of_lost_ones() {
    let report = Scratch::new("read-again");
    let (process, address, reader) = serve_into_a_pipe(&report);
    load(address);
    let (sender, received) = mpsc::channel();
    thread::spawn(move || reader.lines().try_for_each(|line| sender.send(line.unwrap())));
    let (mut lines, mut visits) = (Vec::new(), 0);
    eventually("room for a line", || {
        visit(address);
        visits += 1;
        lines.extend(received.try_iter());
        lines.iter().any(|line: &String| line.ends_with("Received is there room?"))
    });
    let ended = process.terminate();
    lines.extend(received.iter());
    let lost = lost_lines(&ended, &report);
    assert!(lost > 0, "{lost}");
    let words = format!(" WARN  [ecoloop] {lost} log lines were lost: standard output did not take them");
    assert!(lines.last().unwrap().ends_with(&words), "{:?}", lines.last());
    // One more line was read for the address, and the last one, the count, is not in LINES.
    assert_eq!(lines.len() + lost, LINES + 5 * visits);
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn a_non_blocking_output_is_written_whole() {
    let report = Scratch::new("non-blocking");
    let (reader, writer) = pipe().unwrap();
    // Another program that shares the pipe may set this: then a write to a full pipe fails instead of blocking.
    ioctl_fionbio(&writer, true).unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    let (process, address, reader) = serve_into(&report, reader, writer);
    let lines = thread::spawn(move || reader.lines().map(Result::unwrap).collect::<Vec<_>>());
    load(address);
    let ended = process.terminate();
    let lines = lines.join().unwrap();
    // A queue that was full for a moment may have cost some. Each of the others is whole.
    let lost = lost_lines(&ended, &report);
    let count = if lost == 0 { LINES } else { LINES + 1 };
    assert_eq!(1 + lines.len() + lost, count);
    assert!(lines.iter().all(|line| line.starts_with("20") && line.contains(" [ecoloop] ")), "{lines:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

/// A write that passes the limit of the file size is cut there, and the next one fails.
#[test]
#[cfg(target_os = "linux")]
fn a_half_written_line_is_lost_and_does_not_touch_the_next() {
    let (log, report) = (Scratch::new("log"), Scratch::new("half"));
    let mut command = ecoloop(&["127.0.0.1:0", "-v", "--report", report.path()]);
    command.stdout(File::create(log.path()).unwrap()).stderr(Stdio::piped());
    let process = Process::adopt(command);
    let text = || fs::read_to_string(log.path()).unwrap();
    eventually("the start", || text().ends_with("Waiting for connections...\n"));
    let limit = |current| {
        let limit = Rlimit { current, maximum: None };
        prlimit(Some(process.pid()), Resource::Fsize, limit).unwrap();
    };
    let start = text();
    let address = start.lines().next().unwrap().split_once("on IP ").unwrap().1.replace(", port ", ":");
    let length = start.len() + 30;
    limit(Some(length as u64));
    let mut client = connect(address.parse().unwrap());
    assert_echoes(&mut client, b"first");
    eventually("half a line", || text().len() == length);
    limit(None);
    assert_echoes(&mut client, b"second");
    drop(client);
    eventually("the close", || text().ends_with("Waiting for connections...\n"));
    let ended = process.terminate();
    assert!(ended.status.success(), "{ended:?}");
    let text = text();
    let lines: Vec<_> = text.lines().skip(2).collect();
    assert_eq!(lines[0].len(), 30);
    assert!(lines[1..].iter().all(|line| line.starts_with("20") && line.contains(" [ecoloop] ")), "{text}");
    assert!(lines[1..].iter().any(|line| line.ends_with("Received second")), "{text}");
    let lost = report.json()["log_lines_lost"].as_u64().unwrap();
    // The start, the connection, two messages, their end and the close, the wait and the summary: 9. And half of one, and the count.
    assert_eq!(text.lines().count() as u64, 9 - lost + 2, "{text}");
    assert!(lines.last().unwrap().contains(" log line"), "{text}");
}

#[test]
fn with_both_outputs_closed_full_or_unread_the_exit_status_is_0() {
    for (redirection, messages, lost) in [
        (">&- 2>&-", QUEUED_MESSAGES, 0),
        (">/dev/full 2>/dev/full", MESSAGES, LINES),
        (">/dev/full 2>&-", MESSAGES, LINES),
    ] {
        let report = Scratch::new("both");
        let ended = serve_redirected(&report, redirection, messages);
        assert_eq!(lost_lines(&ended, &report), lost, "{redirection}");
    }

    let report = Scratch::new("both-unread");
    let (unread, mut writer) = pipe().unwrap();
    writer.write_all(&vec![b'x'; fcntl_getpipe_size(&writer).unwrap()]).unwrap();
    let (_reserved, address) = reserve_port();
    let mut command = ecoloop(&[&address.to_string(), "--reuse-port", "-v", "--report", report.path()]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let process = Process::adopt(command);
    load(address);
    let ended = process.terminate();
    assert_eq!(lost_lines(&ended, &report), LINES);
    drop(unread);
}

#[test]
fn a_report_for_a_reader_that_has_stopped_fails_at_the_first_signal() {
    let (unread, mut writer) = pipe().unwrap();
    writer.write_all(&vec![b'x'; fcntl_getpipe_size(&writer).unwrap()]).unwrap();
    let (_reserved, address) = reserve_port();
    let mut command = ecoloop(&[&address.to_string(), "--reuse-port", "--report", "-"]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let process = Process::adopt(command);
    assert_echoes(&mut connect_eventually(address), b"hola");
    let ended = process.terminate();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    drop(unread);
}

#[test]
fn the_lines_before_a_failed_start_are_written() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    for _ in 0..20 {
        let options = ["--lang", "en", "--max-connections", "2000M", &taken];
        let ended = Process::start(ecoloop(&options)).wait();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stdout.iter().any(|line| line.contains("descriptors for other files")), "{ended:?}");
    }
}
