//! Ranks that meet at a barrier: `load --barrier`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{fs, process, thread};

use ecoloop::load::Report;
use ecoloop::load::report::{Ended as RunEnded, Verdict};
use ecoloop::transport::AnyAddress;
use ecoloop::{Config, Running, Server};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Ended, Process, TIMEOUT, ecoloop, eventually, free_address, reserve_port, serve};
use crate::unix::new_path;

/// A run of several ranks against one server.
struct Run {
    server: Running,
    barrier: String,
    directory: TempDir,
    count: u32,
    arguments: Vec<String>,
}

impl Run {
    fn new(count: u32, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (server, directory) = (serve(Config::default()), TempDir::new().unwrap());
        // The ranks have to know it before rank 0 listens.
        Self { server, barrier: free_address().to_string(), directory, count, arguments }
    }

    /// Starts a rank, whose server is `target` and which meets the others at `barrier`.
    fn start_at(&self, index: u32, target: impl Into<AnyAddress>, barrier: &str) -> Process {
        let target: AnyAddress = target.into();
        let (rank, target, file) = (format!("{index}/{}", self.count), target.to_string(), self.file());
        let mut arguments = vec!["load", "--rank", &rank, "--barrier", barrier, "--json", &file, &target];
        arguments.extend(self.arguments.iter().map(String::as_str));
        Process::start(ecoloop(&arguments))
    }

    fn start(&self, index: u32) -> Process {
        self.start_at(index, self.server.local_addr(), &self.barrier)
    }

    fn file(&self) -> String {
        self.directory.path().join("all.json").to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn report(&self) -> Report {
        Report::from_json(&fs::read_to_string(self.file()).unwrap()).unwrap()
    }

    /// Waits until the server has echoed what every rank sends in the window: more than the first message of each connection.
    #[track_caller]
    fn wait_for_window(&self) {
        eventually("the window", || self.server.handle().stats().bytes_out > 64 * 100);
    }

    /// Waits until rank 0 listens, and returns a connection to it.
    #[track_caller]
    fn stranger(&self) -> TcpStream {
        let mut stream = None;
        eventually("rank 0 listens", || {
            stream = TcpStream::connect(&self.barrier).ok();
            stream.is_some()
        });
        stream.unwrap()
    }
}

/// Asserts that a process ended with a status, and with a line on standard error that contains `words`.
#[track_caller]
fn assert_ended(ended: &Ended, status: i32, words: &str) {
    assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.contains(words)), "{words}: {ended:?}");
}

#[test]
fn all_ranks_start_together_and_rank_0_alone_writes_the_results() {
    let run = Run::new(3, &["-q", "-c", "9", "-r", "900", "-d", "300ms"]);
    let others = [2, 1].map(|index| run.start(index));
    // The others retry, and a stranger changes nothing.
    let first = run.start(0);
    let mut strangers = [0; 3].map(|_| run.stranger());
    strangers[0].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    strangers[1].write_all(&vec![b'x'; 1 << 20]).ok();
    let first = first.wait();
    for other in others {
        let ended = other.wait();
        assert_eq!((ended.status.code(), &ended.stdout[..], &ended.stderr[..]), (Some(0), &[][..], &[][..]));
    }
    let report = run.report();
    assert_eq!(report.messages.due, 270);
    assert_eq!((report.connections.held, report.rank, report.config.rate), (9, None, Some(900.0)));
    let status = if report.verdict == Verdict::Inconclusive { 3 } else { 0 };
    assert_eq!(first.status.code(), Some(status), "{first:?}: {:?}", report.thresholds);
    assert_eq!(fs::read_dir(run.directory.path()).unwrap().count(), 1);
}

#[test]
fn ranks_share_servers_on_unix_sockets() {
    let (_directory, path) = new_path();
    let by_path = Server::bind_unix(path, Config::default()).unwrap().spawn().unwrap();
    let name = format!("@ecoloop-barrier-{}", process::id());
    let by_name = Server::bind_unix(name, Config::default()).unwrap().spawn().unwrap();
    let (first, second) = (by_path.local_addr(), by_name.local_addr());
    let run = Run::new(2, &["-q", "-c", "8", "-r", "400", "-d", "300ms", &second.to_string()]);
    for rank in [0, 1].map(|index| run.start_at(index, first.clone(), &run.barrier)) {
        let ended = rank.wait();
        ended.assert_measured();
    }
    let report = run.report();
    assert_eq!((report.messages.due, report.messages.verified, report.connections.held), (120, 120, 8));
    let expected = [(first.into(), 60), (second.into(), 60)];
    let targets: Vec<_> = report.targets.iter().map(|of| (of.target.clone(), of.figures.messages)).collect();
    assert_eq!(targets, expected);
    for server in [by_path, by_name] {
        server.handle().drain();
        assert_eq!(server.join().unwrap().stats.accepted, 4);
    }
}

#[test]
fn a_rank_that_dies_before_it_is_ready_ends_all() {
    let run = Run::new(3, &["-c", "3", "-d", "60s", "--timeout", "60s"]);
    // A server that echoes nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ranks = [0, 2].map(|index| run.start(index));
    let dying = run.start_at(1, silent.local_addr().unwrap(), &run.barrier);
    let _connection = silent.accept().unwrap();
    eventually("the others are connected", || run.server.handle().stats().bytes_out == 2 * 64);
    dying.signal(Signal::KILL);
    for rank in ranks {
        assert_ended(&rank.wait(), 1, "ecoloop: rank 1 (127.0.0.1:");
    }
    assert_eq!(run.report().verdict, Verdict::Interrupted);
}

#[test]
fn a_rank_that_dies_after_it_is_ready_ends_all() {
    let run = Run::new(3, &["-c", "3", "-d", "60s"]);
    let (relay, lines) = relay(run.barrier.clone(), |line| line);
    let [first, dying] = [run.start(0), run.start_at(1, run.server.local_addr(), &relay.to_string())];
    while lines.recv_timeout(TIMEOUT).unwrap() != "\"ready\"" {}
    dying.signal(Signal::KILL);
    assert_ended(&first.wait(), 1, ") is lost: it is gone");
}

#[test]
fn a_rank_that_dies_in_the_window_ends_all_and_what_the_others_measured_is_kept() {
    let run = Run::new(3, &["-c", "3", "-r", "300", "-d", "60s", "--label", "k=v"]);
    let [first, dying, other] = [0, 1, 2].map(|index| run.start(index));
    run.wait_for_window();
    dying.signal(Signal::KILL);
    assert_ended(&first.wait(), 1, "ecoloop: rank 1 (127.0.0.1:");
    assert_ended(&other.wait(), 1, ") is lost: ");
    let report = run.report();
    assert_eq!((report.ended, report.verdict), (RunEnded::Interrupted, Verdict::Interrupted));
    assert_eq!((report.connections.requested, report.run_id.split('+').count()), (2, 2));
    assert!(report.messages.verified > 0);
}

#[test]
fn an_interrupted_rank_ends_all_and_rank_0_reports() {
    let run = Run::new(2, &["-c", "2", "-r", "200", "-d", "60s"]);
    let [first, other] = [0, 1].map(|index| run.start(index));
    run.wait_for_window();
    other.signal(Signal::INT);
    assert_ended(&first.wait(), 130, "ecoloop: rank 1 (127.0.0.1:");
    assert_eq!(other.wait().status.code(), Some(0));
    let report = run.report();
    assert_eq!((report.verdict, report.connections.requested), (Verdict::Interrupted, 2));
}

#[test]
fn a_rank_that_never_comes_and_a_rank_0_that_never_comes_end_all() {
    let run = Run::new(3, &["-c", "3", "-d", "60s", "--barrier-timeout", "5s"]);
    let ranks = [0, 1].map(|index| run.start(index));
    for rank in ranks {
        assert_ended(&rank.wait(), 1, "rank 2 of 3 did not come within 5s (--barrier-timeout)");
    }
    let alone = Run::new(2, &["-c", "2", "--barrier-timeout", "300ms"]);
    let reason = format!(
        "cannot join the barrier: rank 0 was not there within 300ms (--barrier-timeout): cannot connect to {}",
        alone.barrier
    );
    assert_ended(&alone.start(1).wait(), 1, &reason);
}

/// Its words are nearly as long as a rank reads.
#[test]
fn a_stranger_that_says_that_it_is_a_rank_does_not_lose_the_others() {
    let run = Run::new(3, &["-c", "3", "-d", "60s", "--barrier-timeout", "2s"]);
    let ranks = [0, 1].map(|index| run.start(index));
    let mut stranger = run.stranger();
    let version = "x".repeat(16_300);
    let hello = format!("{{\"ecoloop\":\"{version}\",\"rank\":{{\"index\":2,\"count\":3}}}}\n");
    stranger.write_all(hello.as_bytes()).unwrap();
    let mut reply = String::new();
    BufReader::new(stranger).read_line(&mut reply).unwrap();
    assert!(reply.starts_with("{\"refused\":\"its version is xxx"), "{reply}");
    for rank in ranks {
        assert_ended(&rank.wait(), 1, "rank 2 of 3 did not come within 2s (--barrier-timeout); rank 2 (127.");
    }
}

#[test]
fn a_barrier_timeout_above_a_day_is_a_usage_error() {
    let barrier = ["--rank", "0/2", "--barrier", "127.0.0.1:9", "--barrier-timeout", "25h", "127.0.0.1:9"];
    let ended = Process::start(ecoloop(&[&["load"], &barrier[..]].concat())).wait();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr[0].ends_with("it must be at most 24h"), "{ended:?}");
}

#[test]
fn a_rank_that_is_not_ready_in_time_ends_all() {
    let run = Run::new(2, &["-c", "2", "-d", "60s", "--timeout", "60s", "--barrier-timeout", "5s"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let late = run.start_at(1, silent.local_addr().unwrap(), &run.barrier);
    assert_ended(&run.start(0).wait(), 1, "): not ready within 5s (--barrier-timeout) of rank 0");
    assert_ended(&late.wait(), 1, "): not ready within 5s (--barrier-timeout) of rank 0");
}

#[test]
fn a_rank_keeps_its_report_if_rank_0_dies_in_the_window() {
    let run = Run::new(2, &["-c", "2", "-r", "200", "-d", "60s"]);
    let [first, other] = [0, 1].map(|index| run.start(index));
    run.wait_for_window();
    first.signal(Signal::KILL);
    assert_ended(&other.wait(), 1, &format!("ecoloop: rank 0 ({}) is lost: ", run.barrier));
    let report = Report::from_json(&fs::read_to_string(run.file() + ".rank1").unwrap()).unwrap();
    assert_eq!((report.verdict, report.rank.unwrap().index), (Verdict::Interrupted, 1));
    assert!(report.messages.verified > 0);
}

/// The barrier's timeout is for what a rank waits for, and rank 0 still connects, or still closes.
#[test]
fn a_rank_waits_longer_than_the_timeout_for_a_rank_0_that_runs() {
    const TIME: Duration = Duration::from_secs(5);
    let runs = [(TIME, Duration::ZERO), (Duration::ZERO, TIME)].map(|(before_reply, before_close)| {
        let run = Run::new(2, &["-q", "-c", "2", "-d", "100ms", "--barrier-timeout", "2s"]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slow = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            thread::sleep(before_reply);
            io::copy(&mut &stream, &mut &stream).unwrap();
            thread::sleep(before_close);
        });
        let first = run.start_at(0, slow, &run.barrier);
        drop(run.stranger());
        let other = run.start(1);
        (run, first, other)
    });
    for (run, first, other) in runs {
        let (first, other) = (first.wait(), other.wait());
        first.assert_measured();
        assert_eq!((other.status.code(), &other.stderr[..]), (Some(0), &[][..]));
        assert_eq!(run.report().connections.held, 2);
        assert_eq!(fs::read_dir(run.directory.path()).unwrap().count(), 1);
    }
}

#[test]
fn rank_0_waits_for_a_rank_whose_messages_take_longer_than_its_own() {
    let run = Run::new(2, &["-q", "-c", "2", "-m", "300", "--barrier-timeout", "2s"]);
    let mut slow = Config::default();
    slow.faults = vec!["delay=10ms".parse().unwrap()];
    let slow = serve(slow);
    let [first, other] = [run.start(0), run.start_at(1, slow.local_addr(), &run.barrier)];
    let (first, other) = (first.wait(), other.wait());
    first.assert_measured();
    assert_eq!((other.status.code(), &other.stderr[..]), (Some(0), &[][..]));
    let report = run.report();
    assert_eq!((report.messages.due, report.messages.verified), (600, 600));
}

#[test]
fn rank_0_waits_for_the_window_of_the_others_if_it_has_no_connection_itself() {
    let (_port, dead) = reserve_port();
    let run = Run::new(2, &["-c", "2", "-d", "3s", "--barrier-timeout", "2s"]);
    let [first, other] = [run.start_at(0, dead, &run.barrier), run.start(1)];
    let (first, other) = (first.wait(), other.wait());
    assert_eq!((first.status.code(), other.status.code()), (Some(1), Some(0)), "{first:?} {other:?}");
    let report = run.report();
    assert_eq!((report.ended, report.verdict), (RunEnded::Complete, Verdict::Fail));
    assert_eq!((report.connections.requested, report.connections.held), (2, 1));
}

/// Returns a server that echoes the first message alone.
fn server_of_one_message() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut message = [0; 64];
        stream.read_exact(&mut message).unwrap();
        stream.write_all(&message).unwrap();
        io::copy(&mut stream, &mut io::sink())
    });
    address
}

#[test]
fn a_rank_that_is_ended_because_it_is_late_is_in_the_report() {
    let run = Run::new(2, &["-c", "2", "-d", "100ms", "--timeout", "60s", "--barrier-timeout", "2s"]);
    let [first, late] = [run.start(0), run.start_at(1, server_of_one_message(), &run.barrier)];
    for rank in [first, late] {
        assert_ended(&rank.wait(), 1, "): without a report within 2s (--barrier-timeout) of rank 0");
    }
    let report = run.report();
    assert_eq!((report.verdict, report.connections.requested), (Verdict::Interrupted, 2));
    assert_eq!(report.messages.unanswered, 1);
    assert_eq!(fs::read_dir(run.directory.path()).unwrap().count(), 1);
}

#[test]
fn a_rank_0_that_is_interrupted_while_it_waits_for_reports_has_those_of_all() {
    let run = Run::new(2, &["-c", "2", "-m", "100", "--timeout", "60s"]);
    let [first, other] = [run.start(0), run.start_at(1, server_of_one_message(), &run.barrier)];
    eventually("rank 0 has ended", || run.server.handle().stats().closed.end_of_stream == 1);
    first.signal(Signal::INT);
    assert_ended(&first.wait(), 130, "ecoloop: rank 0 was interrupted");
    assert_ended(&other.wait(), 0, "ecoloop: rank 0 was interrupted");
    let report = run.report();
    assert_eq!((report.verdict, report.connections.requested), (Verdict::Interrupted, 2));
    assert_eq!((report.messages.verified, report.messages.unanswered), (100, 1));
}

#[test]
fn a_rank_whose_report_comes_too_late_keeps_it() {
    let run = Run::new(2, &["-c", "2", "-r", "200", "-d", "2s", "--barrier-timeout", "2s"]);
    let [first, late] = [0, 1].map(|index| run.start(index));
    run.wait_for_window();
    late.signal(Signal::STOP);
    assert_ended(&first.wait(), 1, "): without a report within 2s (--barrier-timeout) of rank 0");
    assert_eq!(run.report().connections.requested, 1);
    late.signal(Signal::CONT);
    assert_ended(&late.wait(), 1, &format!("ecoloop: rank 0 ({}) is lost: ", run.barrier));
    let report = Report::from_json(&fs::read_to_string(run.file() + ".rank1").unwrap()).unwrap();
    assert_eq!((report.rank.unwrap().index, report.messages.verified > 0), (1, true));
}

#[test]
fn another_program_at_the_barrier_is_named() {
    let run = Run::new(2, &["-c", "2", "--barrier-timeout", "5s"]);
    for (reply, reason) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], "is not rank 0, but another program: it said \"HTTP/1.1 400 Bad"),
        (b"", "is not rank 0, but another program: it says nothing"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let barrier = listener.local_addr().unwrap();
        let rank = run.start_at(1, run.server.local_addr(), &barrier.to_string());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(reply).unwrap();
        assert_ended(&rank.wait(), 1, reason);
    }
    // It gets its own greeting back.
    let rank = run.start_at(1, run.server.local_addr(), &run.server.local_addr().to_string());
    assert_ended(&rank.wait(), 1, "is not rank 0, but another program: it said \"{\\\"ecoloop\\\"");
    // And rank 0 has no port.
    let rank = run.start_at(0, run.server.local_addr(), &run.server.local_addr().to_string());
    assert_ended(&rank.wait(), 1, "as rank 0: Address already in use");
}

#[test]
fn two_runs_on_one_port_end_one_of_them() {
    let one = Run::new(3, &["-c", "3", "-r", "300", "-d", "300ms", "-q"]);
    let two = Run { barrier: one.barrier.clone(), ..Run::new(3, &["-c", "3", "-r", "600", "-d", "300ms"]) };
    let mut ranks = vec![one.start(0)];
    drop(one.stranger());
    assert_ended(&two.start(0).wait(), 1, "another run or program has this port");
    assert_ended(&two.start(1).wait(), 1, "refused this rank: its --rate is 600.0, and 300.0 here");
    // Nothing else tells apart two runs with the same settings.
    let same =
        Run { barrier: one.barrier.clone(), ..Run::new(3, &["-c", "3", "-r", "300", "-d", "300ms", "--seed", "2"]) };
    assert_ended(&same.start(1).wait(), 1, "refused this rank: its --seed is 2, and 1 here");
    ranks.push(one.start(1));
    eventually("two ranks are connected", || one.server.handle().stats().bytes_out == 2 * 64);
    assert_ended(&one.start(1).wait(), 1, "refused this rank: rank 1 is there already (127.0.0.1:");
    ranks.push(one.start(2));
    for rank in ranks {
        let ended = rank.wait();
        ended.assert_measured();
    }
    assert_eq!(one.report().messages.due, 90);
}

/// Passes the lines of one rank on to rank 0 and back, as `change` makes them, until one of both ends, and returns all of them.
fn relay(rank_zero: String, change: impl Fn(String) -> String + Send + 'static) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (said, lines) = mpsc::channel();
    thread::spawn(move || {
        let (rank, _) = listener.accept().unwrap();
        let mut zero = None;
        eventually("rank 0 listens", || {
            zero = TcpStream::connect(&rank_zero).ok();
            zero.is_some()
        });
        let zero = zero.unwrap();
        let pass = |from: TcpStream,
                    mut to: TcpStream,
                    change: Box<dyn Fn(String) -> String + Send>,
                    said: mpsc::Sender<_>| {
            move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    let line = change(line);
                    // Before the other side can reply.
                    said.send(line.clone()).unwrap();
                    if to.write_all((line + "\n").as_bytes()).is_err() {
                        break;
                    }
                }
                // The other direction has the socket too. It fails if the other side has gone.
                let _ = to.shutdown(Shutdown::Write);
            }
        };
        let back = pass(zero.try_clone().unwrap(), rank.try_clone().unwrap(), Box::new(|line| line), said.clone());
        thread::spawn(back);
        pass(rank, zero, Box::new(change), said)();
    });
    (address, lines)
}

#[test]
fn no_clock_is_compared_and_nobody_speaks_in_the_window() {
    let run = Run::new(2, &["-q", "-c", "2", "-r", "200", "-d", "500ms"]);
    let an_hour_late = |line: String| {
        let Ok(Value::Object(message)) = serde_json::from_str(&line) else { return line };
        let Some(report) = message.get("report") else { return line };
        let start = report["start"].as_str().unwrap();
        line.replace(start, "2020-01-01T00:00:00.000Z")
    };
    let (relay, lines) = relay(run.barrier.clone(), an_hour_late);
    let [first, other] = [run.start(0), run.start_at(1, run.server.local_addr(), &relay.to_string())];
    first.wait().assert_measured();
    assert_eq!(other.wait().status.code(), Some(0));
    let report = run.report();
    assert_eq!(report.messages.due, 100);
    assert!(report.phases_s.measure < TIMEOUT.as_secs_f64(), "{:?}", report.phases_s);
    let said: Vec<String> = lines.iter().map(|line| line.chars().take_while(|&c| c != ':').collect()).collect();
    assert_eq!(said, ["{\"ecoloop\"", "{\"welcome\"", "\"ready\"", "\"start\"", "{\"report\"", "\"done\""]);
}

#[test]
fn a_rank_of_another_version_is_refused_by_name() {
    let run = Run::new(2, &["-c", "2", "-d", "60s", "--barrier-timeout", "2s"]);
    let version = format!("\"{}\"", env!("CARGO_PKG_VERSION"));
    let (relay, _lines) = relay(run.barrier.clone(), move |line| line.replace(&version, "\"0.1.9\""));
    let [first, other] = [run.start(0), run.start_at(1, run.server.local_addr(), &relay.to_string())];
    let reason = format!("its version is 0.1.9, and {} here", env!("CARGO_PKG_VERSION"));
    assert_ended(&other.wait(), 1, &reason);
    let ended = first.wait();
    assert_ended(&ended, 1, "rank 1 of 2 did not come within 2s");
    assert_ended(&ended, 1, &reason);
}

#[test]
fn the_barrier_needs_a_rank_and_a_time() {
    for (arguments, reason) in [
        (&["--barrier", "127.0.0.1:1"][..], "  --rank <R/N|auto>"),
        (&["--rank", "0/1", "--barrier", "127.0.0.1:1", "--barrier-timeout", "0s"], "must be above zero"),
        (
            &["--rank", "0/1", "--barrier", "127.0.0.1:1", "--start-at", "2026-11-22T08:00:00Z"],
            "--start-at and --barrier",
        ),
        (&["--rank", "0/1", "--barrier-timeout", "1s"], "--barrier-timeout needs --barrier or --jobs"),
        (&["--barrier-timeout", "1s"], "--barrier-timeout needs --barrier or --jobs"),
    ] {
        let ended = Process::start(ecoloop(&[&["load", ":1"], arguments].concat())).wait();
        assert_ended(&ended, 2, reason);
    }
}
