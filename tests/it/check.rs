//! `ecoloop check`: what it finds, and what it leaves alone.

mod faulty;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::{fs, thread};

use ecoloop::check::Language::{English, Spanish};
use ecoloop::check::{self, Grade, Grader};
use ecoloop::transport::UnixAddress;
use rustix::process::Signal;
use serde_json::Value;
use socket2::SockRef;

use self::faulty::Fault;
use crate::support::{Ended, Process, Scratch, ecoloop, eventually, reserve_port, serial};
use crate::unix::new_path;

/// Runs checks of levels 1 to 6 against a server with a fault: those named must fail, and no other.
#[track_caller]
fn assert_only_fails(fault: Fault, expected: &[&str]) {
    assert_only_fails_at(faulty::serve(fault), &format!("{fault:?}"), expected);
}

#[track_caller]
fn assert_only_fails_at(address: SocketAddr, fault: &str, expected: &[&str]) {
    assert_fails_no_other_at(address, fault, expected);
    assert_fails_at(address, fault, expected);
}

#[track_caller]
fn assert_fails_no_other_at(address: SocketAddr, fault: &str, expected: &[&str]) {
    let mut grader = Grader::new(vec![address]);
    grader.checks.retain(|check| check.level() <= 6 && !expected.contains(&check.name()));
    for graded in grader.run(&AtomicBool::new(false), |_| ()).unwrap().results {
        assert_ne!(graded.grade, Grade::Fails, "{fault}: {graded:?}");
        // A check that did not run has found nothing.
        assert_eq!(graded.grade == Grade::Skipped, graded.check.needs_pid(), "{fault}: {graded:?}");
    }
}

#[track_caller]
fn assert_fails_at(address: SocketAddr, fault: &str, expected: &[&str]) {
    let mut grader = Grader::new(vec![address]);
    grader.checks.retain(|check| expected.contains(&check.name()));
    assert_eq!(grader.checks.len(), expected.len(), "{expected:?}");
    // A fault that is silence would cost the whole time of each check. A silence under 2 s is late, and no failure.
    grader.check_timeout = Duration::from_secs(4);
    for graded in grader.run(&AtomicBool::new(false), |_| ()).unwrap().results {
        assert_eq!(graded.grade, Grade::Fails, "{fault}: {graded:?}");
    }
}

#[test]
fn a_thread_per_client_fails_nothing() {
    assert_only_fails(Fault::None, &[]);
}

#[test]
fn one_client_at_a_time_is_found() {
    assert_only_fails(Fault::OneAtATime, &["second-client", "several-clients", "silent-reader", "flood"]);
}

#[test]
fn waiting_for_a_newline_is_found() {
    let (address, fault) = (faulty::serve(Fault::WaitsForNewline), "waits for a newline");
    // What the server takes before FIN decides whether `fin-with-data` ends inside of a line.
    assert_fails_no_other_at(address, fault, &["one-byte", "fin-with-data"]);
    assert_fails_at(address, fault, &["one-byte"]);
}

#[test]
fn dropped_zero_bytes_are_found() {
    assert_only_fails(Fault::DropsZeroBytes, &["binary"]);
}

#[test]
fn dropped_bytes_that_are_not_utf8_are_found() {
    assert_only_fails(Fault::DropsNotUtf8, &["not-utf8"]);
}

#[test]
fn decoding_each_read_is_found() {
    assert_only_fails(Fault::DecodesEachRead, &["border", "not-utf8"]);
}

#[test]
fn a_buffer_that_clients_share_is_found() {
    assert_only_fails(Fault::SharesABuffer, &["several-clients"]);
}

#[test]
fn draining_one_client_is_found() {
    // It writes to the silent client in its turn.
    assert_only_fails(Fault::DrainsOne, &["silent-reader", "flood"]);
}

#[test]
fn forgetting_what_does_not_fit_is_found() {
    // Both offer more than fits.
    assert_only_fails(Fault::ForgetsWhatDoesNotFit, &["all-comes-back", "fin-with-data"]);
}

#[test]
fn closing_at_fin_is_found() {
    assert_only_fails(Fault::ClosesAtFin, &["fin-with-data"]);
}

#[test]
fn closing_at_fin_with_pending_output_is_found() {
    assert_only_fails(Fault::ClosesAtFinWhilePaused, &["fin-with-data"]);
}

#[test]
fn never_closing_is_found() {
    assert_only_fails(Fault::NeverCloses, &["empty", "half-close", "fin-with-data"]);
}

#[test]
fn silence_is_found_in_a_check_that_is_shorter_than_a_silence() {
    let (_server, address) = Process::serve(&["--fault", "mute=0"]);
    let mut grader = Grader::new(vec![address]).only(["echo"]).unwrap();
    grader.check_timeout = Duration::from_secs(1);
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Fails, "{results:?}");
}

#[test]
fn a_server_that_ends_is_found_and_the_rest_skipped() {
    let mut grader = Grader::new(vec![faulty::serve(Fault::EndsOnReset)]);
    grader.checks.retain(|check| check.level() <= 5);
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    let at = results.iter().position(|graded| graded.check.name() == "reset").unwrap();
    assert!(results[..at].iter().all(|graded| graded.grade != Grade::Fails), "{results:?}");
    assert_eq!(results[at].grade, Grade::Fails);
    let rest = &results[at + 1..];
    assert!(rest.iter().all(|graded| graded.grade == Grade::Skipped) && !rest.is_empty(), "{rest:?}");
}

#[test]
fn memory_that_grows_is_found() {
    let mut grader = Grader::new(vec![faulty::serve(Fault::KeepsAll)]);
    // The server is in this process.
    grader.pid = Some(std::process::id());
    grader.checks.retain(|check| check.name() == "memory");
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Fails, "{results:?}");
    let words = results[0].came(English).unwrap();
    assert!(words.contains("its memory grew by "), "{words}");
}

#[test]
fn a_server_in_this_process_is_neither_stopped_nor_ended() {
    let mut grader = Grader::new(vec![faulty::serve(Fault::None)])
        .only(["pause", "gone-before-accept", "descriptors", "drain"])
        .unwrap();
    grader.pid = Some(std::process::id());
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    let words: Vec<_> = results.iter().map(|graded| graded.came(English)).collect();
    assert_eq!(words, vec![Some("the server is in the process of this check".to_owned()); 4]);
}

#[test]
fn five_hundred_clients_are_not_a_thousand() {
    let _serial = serial();
    let mut grader = Grader::new(vec![faulty::serve(Fault::ServesFiveHundred)]);
    grader.checks.retain(|check| check.name() == "thousand");
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Fails, "{results:?}");
    let words = results[0].came(English).unwrap();
    assert!(words.starts_with("500 of 1000 clients"), "{words}");
}

#[test]
fn a_short_accept_queue_makes_a_burst_late() {
    let _serial = serial();
    let mut grader = Grader::new(vec![faulty::serve(Fault::ShortQueue)]);
    grader.checks.retain(|check| check.name() == "burst");
    grader.check_timeout = Duration::from_secs(4);
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Late, "{results:?}");
}

#[test]
fn a_reply_after_its_time_is_late() {
    let mut grader = Grader::new(vec![faulty::serve(Fault::SleepsBeforeEachReply)]);
    grader.checks.retain(|check| check.name() == "echo");
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Late, "{results:?}");
    let words = results[0].came(English).unwrap();
    assert!(words.starts_with("all right, but one wait took "), "{words}");
}

#[test]
fn a_reply_to_the_client_after_a_check_is_late_too() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        // The first connect of the run, the check, and the client after it.
        for delay_ms in [0, 0, 1500] {
            let (stream, _) = listener.accept().unwrap();
            thread::sleep(Duration::from_millis(delay_ms));
            // Ends at the client's FIN.
            let _ = io::copy(&mut &stream, &mut &stream);
        }
    });
    let grader = Grader::new([address]).only(["echo"]).unwrap();
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Late, "{results:?}");
    let words = results[0].came(English).unwrap();
    assert!(words.starts_with("all right, but one wait took "), "{words}");
}

#[test]
fn ecoloop_passes_every_check() {
    let (server, address) = Process::serve(&[]);
    let json = Scratch::new("json");
    let pid = server.pid().to_string();
    let ended = run(&["--pid", &pid, "--json", json.path(), &address.to_string()]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(server.wait().status.success(), "the last check shuts it down gracefully");
    let document = json.json();
    let checks = document["checks"].as_array().unwrap();
    let names: Vec<_> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, check::all().map(check::Check::name).collect::<Vec<_>>());
    for (check, row) in checks.iter().zip(&ended.stdout[1..]) {
        let result = check["result"].as_str().unwrap();
        // A loaded machine may make an answer late.
        assert!(["ok", "late"].contains(&result), "{check}");
        assert!((1..=8).contains(&check["level"].as_u64().unwrap()), "{check}");
        if ended.stdout.len() == checks.len() + 2 {
            let columns: Vec<_> = row.split_ascii_whitespace().collect();
            assert_eq!(columns[..2], [check["name"].as_str().unwrap(), &check["level"].to_string()], "{row}");
        }
    }
    assert!(ended.stdout.last().unwrap().starts_with("27 checks: "), "{ended:?}");
}

#[test]
fn a_server_on_a_unix_socket_passes_with_its_process() {
    let (_directory, path) = new_path();
    let target = format!("unix:{}", path.display());
    let mut server = Process::start(ecoloop(&[&target]));
    server.line_with("Waiting for connections...");
    let json = Scratch::new("json");
    let pid = server.pid().to_string();
    let ended = run(&["--pid", &pid, "--json", json.path(), &target]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(server.wait().status.success(), "the last check shuts it down gracefully");
    let document = json.json();
    assert_eq!(document["target"], target);
    for check in document["checks"].as_array().unwrap() {
        if check["name"] == "burst" {
            assert_eq!(check["result"], "skipped");
            assert_eq!(check["came"], "TCP alone has SYNs: the client of a Unix socket waits");
        } else {
            // A loaded machine may make an answer late.
            assert!(["ok", "late"].contains(&check["result"].as_str().unwrap()), "{check}");
        }
    }
}

#[test]
fn a_unix_socket_without_a_server_or_with_another_process_is_an_error() {
    let (_directory, path) = new_path();
    let target = format!("unix:{}", path.display());
    let ended = run(&[&target]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let reason = format!("cannot connect to {target}: No such file or directory");
    assert!(ended.stderr[0].contains(&reason), "{ended:?}");
    assert!(ended.stderr[0].ends_with("; start the server first, or give its address"), "{ended:?}");
    let (tcp, _) = Process::serve(&[]);
    let pid = tcp.pid().to_string();
    let ended = run(&["--pid", &pid, &target]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr[0].contains(&format!("process {pid} listens on no Unix socket")), "{ended:?}");
}

/// A client that finds the backlog full waits: it is no failure of the server.
#[test]
fn a_short_backlog_of_a_unix_socket_fails_nothing() {
    let _serial = serial();
    let (_directory, path) = new_path();
    let mut config = ecoloop::Config::default();
    config.backlog = 1;
    let _server = ecoloop::Server::bind_unix(&path, config).unwrap().spawn().unwrap();
    let mut grader = Grader::new([UnixAddress::new(&path).unwrap()]);
    grader.checks.retain(|check| check.name() == "thousand" || check.level() <= 2);
    for graded in grader.run(&AtomicBool::new(false), |_| ()).unwrap().results {
        assert!([Grade::Ok, Grade::Late].contains(&graded.grade), "{graded:?}");
    }
}

/// Serves each client on a Unix socket with `serve`, and returns what came in a check, in English and in Spanish.
#[track_caller]
fn came_on_unix(name: &str, serve: fn(UnixStream) -> io::Result<()>) -> [String; 2] {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || listener.incoming().for_each(|stream| drop(serve(stream.unwrap()))));
    let one_check = Grader::new([UnixAddress::new(&path).unwrap()]).only([name]).unwrap();
    let report = one_check.run(&AtomicBool::new(false), |_| ()).unwrap();
    let [graded] = &report.results[..] else { panic!("{report}") };
    assert_eq!(graded.grade, Grade::Fails, "{report}");
    [English, Spanish].map(|language| graded.came(language).unwrap())
}

#[test]
fn the_words_of_a_failure_on_a_unix_socket_are_not_those_of_tcp() {
    let reads_a_byte = |mut stream: UnixStream| stream.read_exact(&mut [0]);
    for name in ["echo", "reset", "reset-storm", "vanished", "fin-with-data"] {
        for words in came_on_unix(name, reads_a_byte) {
            assert!(!words.contains("RST"), "{name}: {words}");
        }
    }
    let [en, es] = came_on_unix("reset", reads_a_byte);
    assert_eq!(
        en,
        "the server closed without reading all, after 0 of 5 bytes had come back; afterwards a new client is not served"
    );
    assert!(es.starts_with("el servidor cerró sin leer todo, tras devolver 0 de 5 bytes; "), "{es}");

    let echoes_what_it_does_not_read = |mut stream: UnixStream| {
        let mut data = [MaybeUninit::uninit(); 1024];
        SockRef::from(&stream).peek(&mut data)?;
        stream.write_all(b"hola\n")
    };
    let words = came_on_unix("half-close", echoes_what_it_does_not_read);
    let expected = [
        "everything came back, but at the end the server closed without reading all",
        "volvió todo, pero al final el servidor cerró sin leer todo",
    ];
    assert_eq!(words, expected);

    // The next write of the client fails with EPIPE.
    let reads_once = |mut stream: UnixStream| {
        let mut data = [0; 16 << 10];
        let length = stream.read(&mut data)?;
        stream.shutdown(Shutdown::Read)?;
        stream.write_all(&data[..length])
    };
    let [en, _] = came_on_unix("megabyte", reads_once);
    assert!(en.starts_with("the server closed after 0 of 16384 bytes"), "{en}");
}

#[test]
fn what_was_sent_to_a_unix_socket_is_not_what_tcp_alone_has() {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let target = format!("unix:{}", path.display());
    for name in ["reset", "reset-storm", "vanished"] {
        for (language, word) in [("en", "close"), ("es", "cierr")] {
            let [json, junit] = [Scratch::new("json"), Scratch::new("xml")];
            let outputs = ["--json", json.path(), "--junit", junit.path()];
            let ended = run(&[&["--only", name, "--lang", language], &outputs[..], &[&target]].concat());
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            for text in [ended.stdout.join("\n"), json.json().to_string(), fs::read_to_string(junit.path()).unwrap()] {
                assert!(!text.contains("RST") && text.contains(word), "{name}: {text}");
            }
        }
    }
}

#[test]
fn a_storm_is_2000_connections_half_of_which_have_sent_a_line_and_500_that_are_served() {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    // What a client has sent before it closes can be read afterwards.
    let serve = move || {
        let mut lengths = Vec::new();
        for stream in listener.incoming() {
            let (mut stream, mut buffer) = (stream.unwrap(), [0; 16]);
            let length = stream.read(&mut buffer).unwrap();
            if &buffer[..length] == b"end" {
                break;
            }
            // Fails if the client has gone.
            let _ = stream.write_all(&buffer[..length]);
            lengths.push(length);
        }
        lengths
    };
    let server = thread::spawn(serve);
    let grader = Grader::new([UnixAddress::new(&path).unwrap()]).only(["reset-storm"]).unwrap();
    let report = grader.run(&AtomicBool::new(false), |_| ()).unwrap();
    assert!(report.passed(), "{report}");
    UnixStream::connect(&path).unwrap().write_all(b"end").unwrap();
    let lengths = server.join().unwrap();
    // With the first connect of the run, and the client after the check.
    assert_eq!(lengths.len(), 1 + 2000 + 500 + 1);
    assert_eq!(lengths.iter().filter(|&&length| length == b"hola\n".len()).count(), 1000 + 500 + 1);
}

#[test]
fn descriptors_run_out_for_8_clients_which_are_served_a_second_later() {
    let (server, address) = Process::serve(&[]);
    let mut grader = Grader::new([address]).only(["descriptors"]).unwrap();
    grader.pid = Some(server.pid().as_raw_nonzero().get().unsigned_abs());
    let report = grader.run(&AtomicBool::new(false), |_| ()).unwrap();
    assert!(report.passed() && report.count(Grade::Skipped) == 0, "{report}");
    let ended = server.terminate();
    // With the first connect of the run, the one that was open before, and the client after the check.
    assert!(ended.summary().contains("Done: 11 connections accepted"), "{ended:?}");
}

/// Its state while it is stopped is not that of a process that is not traced. With -D the child is the server.
#[test]
#[ignore = "needs strace"]
fn a_server_under_strace_can_be_stopped() {
    let inner = ecoloop(&["127.0.0.1:0", "--lang", "en"]);
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-o", "/dev/null"]).arg(inner.get_program()).args(inner.get_args());
    let mut server = Process::start(command);
    let mut grader = Grader::new([server.listening()]).only(["pause", "gone-before-accept", "drain"]).unwrap();
    grader.pid = Some(server.pid().as_raw_nonzero().get().unsigned_abs());
    let report = grader.run(&AtomicBool::new(false), |_| ()).unwrap();
    assert!(report.passed() && report.count(Grade::Skipped) == 0, "{report}");
    assert!(server.wait().status.success());
}

/// Starts `faulty.py`, and expects these results of level 8 and of the storm of resets.
#[track_caller]
fn assert_grades_process(fault: &str, failing: &[&str], skipped: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/check/faulty.py");
    let mut command = Command::new("python3");
    command.args([script, fault]);
    let mut server = Process::start(command);
    let port: u16 = server.line_with("").parse().unwrap();
    let mut grader = Grader::new([SocketAddr::from((Ipv4Addr::LOCALHOST, port))]);
    grader.pid = Some(server.pid().as_raw_nonzero().get().unsigned_abs());
    grader.checks.retain(|check| check.level() == 8 || ["echo", "memory", "reset-storm"].contains(&check.name()));
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    let is_expected = |name| failing.contains(&name) || skipped.contains(&name);
    let expected = results.iter().filter(|graded| is_expected(graded.check.name())).count();
    assert_eq!(expected, failing.len() + skipped.len(), "{fault}: {results:?}");
    for graded in results {
        let name = graded.check.name();
        if failing.contains(&name) {
            assert_eq!(graded.grade, Grade::Fails, "{fault}: {graded:?}");
        } else if skipped.contains(&name) {
            assert_eq!(graded.grade, Grade::Skipped, "{fault}: {graded:?}");
        } else {
            assert!([Grade::Ok, Grade::Late].contains(&graded.grade), "{fault}: {graded:?}");
        }
    }
}

#[test]
#[ignore = "needs python3"]
fn a_python_loop_without_a_fault_passes_with_its_process() {
    assert_grades_process("none", &[], &[]);
}

#[test]
#[ignore = "needs python3"]
fn what_a_server_does_without_descriptors_is_found() {
    assert_grades_process("dies", &["descriptors"], &["drain"]);
    assert_grades_process("spins", &["descriptors"], &[]);
    // It accepts no client any more.
    assert_grades_process("forgets", &["descriptors"], &["drain"]);
}

#[test]
#[ignore = "needs python3"]
fn descriptors_that_stay_open_are_found() {
    assert_grades_process("closes-nothing", &["reset-storm"], &[]);
}

#[test]
#[ignore = "needs python3"]
fn what_a_server_does_at_sigterm_is_found() {
    assert_grades_process("ends-at-once", &["drain"], &[]);
    assert_grades_process("ignores-sigterm", &["drain"], &[]);
}

/// Runs checks of levels 1 to 6 against `ecoloop serve --fault`: those named must fail, and no other.
#[track_caller]
fn assert_fault_of_ecoloop_only_fails(rule: &str, expected: &[&str]) {
    let (_server, address) = Process::serve(&["--fault", rule]);
    assert_only_fails_at(address, rule, expected);
}

/// These send more than 100,000 bytes on a connection, and look at what comes back.
const LARGE: [&str; 3] = ["megabyte", "all-comes-back", "fin-with-data"];

#[test]
fn bytes_that_ecoloop_changes_on_purpose_are_found() {
    assert_fault_of_ecoloop_only_fails("flip=100000", &LARGE);
    for rule in ["lose=100000", "duplicate=100000", "swap=100000"] {
        let (_server, address) = Process::serve(&["--fault", rule]);
        assert_fails_at(address, rule, &LARGE);
    }
}

#[test]
fn silence_of_ecoloop_on_purpose_is_found() {
    assert_fault_of_ecoloop_only_fails("stall=100000", &LARGE);
    assert_fault_of_ecoloop_only_fails("mute=100000", &LARGE);
}

#[test]
fn connections_that_ecoloop_ends_on_purpose_are_found() {
    // The others with so many bytes are ended while they send.
    let sending = [&LARGE[..], &["silent-reader", "vanished", "flood"]].concat();
    assert_fault_of_ecoloop_only_fails("reset=100000", &sending);
    assert_fault_of_ecoloop_only_fails("fin=100000", &[&LARGE[..], &["flood"]].concat());
}

#[test]
fn a_slow_echo_that_is_right_is_late() {
    let (_server, address) = Process::serve(&["--fault", "rate=64KiB"]);
    let mut grader = Grader::new(vec![address]);
    grader.checks.retain(|check| check.name() == "megabyte");
    grader.check_timeout = Duration::from_secs(3);
    let results = grader.run(&AtomicBool::new(false), |_| ()).unwrap().results;
    assert_eq!(results[0].grade, Grade::Late, "{results:?}");
    let words = results[0].came(English).unwrap();
    assert_eq!(words, "all that came was right, but the time of this check was over");
}

#[test]
fn faults_that_change_no_byte_fail_nothing() {
    assert_fault_of_ecoloop_only_fails("delay=1ms", &[]);
    assert_fault_of_ecoloop_only_fails("chunk=700", &[]);
}

#[test]
fn levels_and_names_select() {
    let (server, address) = Process::serve(&[]);
    let names = |arguments: &[&str]| {
        let address = address.to_string();
        let ended = run(&[arguments, &["--json", "-", &address]].concat());
        assert!(ended.status.success(), "{ended:?}");
        let document: Value = serde_json::from_str(&ended.stdout.join("\n")).unwrap();
        let checks = document["checks"].as_array().unwrap().clone();
        checks.iter().map(|check| format!("{} {}", check["name"], check["level"]).replace('"', "")).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&["--level", "2"]),
        ["echo 1", "one-byte 1", "binary 1", "empty 1", "megabyte 1", "second-client 2", "several-clients 2"]
    );
    assert_eq!(names(&["--only", "reset", "--only", "echo"]), ["echo 1", "reset 5"]);
    assert_eq!(names(&["--only", "reset", "--only", "echo", "--level", "1"]), ["echo 1"]);
    assert!(server.terminate().status.success());
    for wrong in [&["--only", "nope"][..], &["--level", "0"], &["--level", "9"], &["--only", "reset", "--level", "1"]] {
        let ended = run(&[wrong, &[&address.to_string()]].concat());
        assert_eq!(ended.status.code(), Some(2), "{wrong:?}: {ended:?}");
    }
}

#[test]
fn a_run_on_a_thread_returns_the_report_of_the_command() {
    let address = faulty::serve(Fault::DropsZeroBytes);
    let checks = Grader::new(vec![address]).only(["echo", "binary", "reset"]).unwrap().up_to_level(1).spawn().unwrap();
    assert_eq!(checks.progress().total, 2);
    let report = checks.join().unwrap();
    assert_eq!((report.passed(), report.failed(), report.count(Grade::Fails)), (false, true, 1), "{report}");
    let text = report.to_string();
    assert!(text.starts_with("FAIL: ") && text.contains("1 failed") && text.contains(&address.to_string()), "{text}");
    assert!(text.ends_with("\nbinary fails: byte 0 differs: 0x00 was sent, 0x01 came back"), "{text}");

    let ended = run(&["--only", "echo", "--only", "binary", "--lang", "en", "--json", "-", &address.to_string()]);
    let without_seconds = |mut document: Value| {
        for check in document["checks"].as_array_mut().unwrap() {
            assert!(check.as_object_mut().unwrap().remove("seconds").unwrap().as_f64().unwrap() > 0.0);
        }
        document
    };
    assert_eq!(
        without_seconds(serde_json::to_value(&report).unwrap()),
        without_seconds(serde_json::from_str(&ended.stdout.join("\n")).unwrap())
    );
}

#[test]
fn an_interrupted_run_on_a_thread_neither_passes_nor_fails() {
    // The system accepts the connection, and nobody replies.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let checks = Grader::new(vec![silent.local_addr().unwrap()]).spawn().unwrap();
    assert!(!checks.is_finished());
    checks.interrupt();
    eventually("the end of the run", || checks.is_finished());
    let report = checks.join().unwrap();
    assert_eq!((report.interrupted, report.passed(), report.failed()), (true, false, false), "{report}");
    assert!(report.to_string().starts_with("INTERRUPTED: 0 ok"), "{report}");
}

#[test]
fn a_name_of_no_check_is_an_error() {
    let error = Grader::new(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1))]).only(["reset", "resets"]).unwrap_err();
    assert_eq!(error.to_string(), "there is no check \"resets\"");
}

#[test]
fn a_failure_is_explained_in_both_languages() {
    let address = faulty::serve(Fault::DropsZeroBytes).to_string();
    for (language, row, label, words) in [
        ("en", "binary                  1  FAILS", "happened", "byte 0 differs: 0x00 was sent, 0x01 came back"),
        ("es", "binary                  1  FALLA", "pasó", "el byte 0 no es el mismo: salió 0x00 y volvió 0x01"),
    ] {
        let junit = Scratch::new("junit");
        let ended = run(&["--only", "binary", "--lang", language, "--junit", junit.path(), &address]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stdout.contains(&row.to_owned()), "{ended:?}");
        assert!(ended.stdout.contains(&format!("    {label:12}{words}")), "{ended:?}");
        assert!(ended.stdout.iter().any(|line| line.contains(" 3: ")), "the chapter: {ended:?}");
        let junit = fs::read_to_string(junit.path()).unwrap();
        assert!(junit.contains(&format!("<failure message=\"{words}\">")), "{junit}");
        assert!(junit.contains("tests=\"1\" failures=\"1\""), "{junit}");
    }
}

#[test]
fn a_document_on_standard_output_replaces_the_table() {
    let address = faulty::serve(Fault::None).to_string();
    let ended = run(&["--only", "echo", "--only", "memory", "--junit", "-", &address]);
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout[0].starts_with("<?xml "), "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line.contains("<skipped message=\"needs --pid\"/>")), "{ended:?}");
    let ended = run(&["--json", "-", "--junit", "-", &address]);
    let reason = "error: --json and --junit cannot both write to standard output";
    assert_eq!((ended.status.code(), &ended.stderr[0][..]), (Some(2), reason), "{ended:?}");
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let (_reserved, address) = reserve_port();
    let address = address.to_string();
    let ended = run(&[&address]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let [line] = &ended.stderr[..] else { panic!("{ended:?}") };
    assert!(line.starts_with(&format!("ecoloop: cannot connect to {address}: Connection refused")), "{line}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn a_process_that_does_not_listen_is_refused() {
    let address = faulty::serve(Fault::None).to_string();
    // The process of a test that only sleeps.
    let mut command = Command::new("sleep");
    command.arg("60");
    let sleeper = Process::start(command);
    let pid = sleeper.pid().to_string();
    let ended = run(&["--pid", &pid, &address]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let expected = format!("ecoloop: process {pid} listens on no TCP port: give the process ID of the server");
    assert_eq!(ended.stderr, [expected]);
}

#[test]
fn an_interrupted_run_prints_what_was_graded_and_leaves_the_server_as_it_was() {
    let (server, address) = Process::serve(&[]);
    let pid = server.pid().to_string();
    let before = prlimit_of(&server);
    // The signals of Ctrl-C and of Ctrl-\.
    for signal in [Signal::INT, Signal::QUIT] {
        let mut check = Process::start(ecoloop(&[
            "check",
            "--pid",
            &pid,
            "--only",
            "echo",
            "--only",
            "descriptors",
            "--only",
            "drain",
            &address.to_string(),
        ]));
        check.line_with("echo");
        eventually("a lowered limit", || prlimit_of(&server) != before);
        check.signal(signal);
        let ended = check.wait();
        assert_eq!(ended.status.code(), Some(130), "{ended:?}");
        assert_eq!(ended.stdout, ["1 check: 1 ok, 0 failed, 0 late, 0 skipped"]);
        assert_eq!(prlimit_of(&server), before);
    }
    assert!(server.terminate().status.success());
}

#[test]
fn the_documentation_lists_every_check() {
    let page = include_str!("../../docs/check.md");
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let expected = check::all().map(|check| format!("| `{}` | {} | ", check.name(), check.proves().get(English)));
    for (row, expected) in rows.iter().zip(expected) {
        assert!(row.starts_with(&expected), "{row}\n{expected}");
    }
    assert_eq!(rows.len(), check::all().count());
    let connections = check::all().map(check::Check::connections).max();
    assert_eq!(connections, Some(10_000), "the help names this number");
}

#[test]
fn large_numbers_are_written_alike_in_both_languages() {
    let mut large = BTreeSet::new();
    for words in check::all().flat_map(|check| [check.proves(), check.sends(), check.matters()]) {
        let [en, es] = [English, Spanish].map(|language| {
            let words = words.get(language).split(' ').map(|word| word.trim_end_matches(','));
            words.filter(|word| word.contains(',')).collect::<Vec<_>>()
        });
        assert_eq!(en, es);
        large.extend(en);
    }
    assert_eq!(large, BTreeSet::from(["10,000", "16,000"]));
}

/// Returns the descriptor limits of a server, as the kernel prints them.
fn prlimit_of(server: &Process) -> String {
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned()
}

#[track_caller]
fn run(arguments: &[&str]) -> Ended {
    Process::start(ecoloop(&[&["check"], arguments].concat())).wait()
}
