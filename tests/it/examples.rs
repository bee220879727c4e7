//! The programs of `docs/examples`: each does what it says, and ends.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use ecoloop::Config;

use crate::support::{Ended, Process, example, serve};

/// Runs an example to its end.
#[track_caller]
fn run_with(name: &str, arguments: &[impl AsRef<OsStr>]) -> Ended {
    let mut command = example(name);
    command.args(arguments).stdin(Stdio::null());
    Process::start(command).wait()
}

/// Runs an example without arguments, and returns the lines that it prints.
#[track_caller]
fn run(name: &str) -> Vec<String> {
    let ended = run_with(name, &[""; 0]);
    assert!(ended.status.success(), "{name}: {ended:?}");
    ended.stdout
}

#[test]
fn the_unix_socket_echoes_and_leaves_no_file() {
    assert_eq!(run("unix"), ["hola came back", "1 connection, file left: false"]);
}

#[test]
fn the_tls_server_echoes_and_says_goodbye() {
    assert_eq!(run("tls"), ["hola came back over Some(TLSv1_3)", "0 bytes follow"]);
}

#[test]
fn the_reconnecting_client_passes_its_tests() {
    assert_eq!(
        run("test_suite"),
        ["refused: connected later", "refused: gave up", "reset: asked again", "delay: waited"]
    );
}

#[test]
fn turns_beside_other_work_do_both() {
    assert_eq!(run("turns"), ["400 bytes echoed, 5133 primes found"]);
}

#[test]
fn the_nested_servers_echo() {
    for name in ["nested_mio", "nested_tokio", "nested_calloop", "nested_async_io"] {
        assert_eq!(run(name), ["4 bytes echoed"], "{name}");
    }
}

#[test]
fn the_capture_has_a_packet_for_each_event() {
    let directory = tempfile::tempdir().unwrap();
    let ended = run_with("capture", &[directory.path().join("echo.pcapng")]);
    // Three of the handshake, two with data, two FIN and the last acknowledgment.
    assert!(ended.status.success() && ended.stdout == ["8 packets"], "{ended:?}");
}

#[test]
fn the_counts_are_a_line_at_a_time_without_a_terminal() {
    let lines = run("live_counts");
    let (last, counts) = lines.split_last().unwrap();
    assert_eq!(last, "4 connections accepted, 4 closed");
    assert!(!counts.is_empty(), "{lines:?}");
    assert!(counts.iter().all(|line| line.contains(" open, ") && line.contains("B/s out")), "{lines:?}");
}

#[test]
fn the_path_tester_passes_a_path_that_changes_nothing() {
    let lines = run("path_tester");
    let names: Vec<_> = lines.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(names, ["latency", "throughput", "silence", "passed"], "{lines:?}");
    assert!(lines[2].starts_with("silence: 20 of 20 connections alive after 0.2 s"), "{lines:?}");
}

#[test]
fn the_path_tester_fails_a_path_that_alters_a_byte_or_closes_what_is_silent() {
    let mut config = Config::default();
    config.idle_timeout = Some(Duration::from_millis(300));
    config.faults = vec!["flip=1000".parse().unwrap()];
    let server = serve(config);
    let ended = run_with("path_tester", &[server.local_addr().to_string(), "0.3".to_owned(), "2".to_owned()]);
    let output = ended.stdout.join("\n");
    assert_eq!(ended.status.code(), Some(1), "{output}");
    assert!(output.contains("findings of corruption"), "{output}");
    assert!(output.contains("silence: 0 of 20 connections alive") && output.ends_with("failed"), "{output}");
}
