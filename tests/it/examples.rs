//! The programs of `docs/examples`: each does what it says, and ends.

use std::ffi::OsStr;
use std::process::Stdio;

use crate::support::{Ended, Process, example};

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
