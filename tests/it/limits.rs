//! Limits of the server: timeouts. Limits of the system: memory, descriptors, ports, and the forecasts of them.

#[cfg(target_os = "linux")]
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::time::Duration;

use ecoloop::Config;
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

#[cfg(target_os = "linux")]
use crate::support::connect_with_buffers;
use crate::support::{
    Process, Scratch, assert_echoes, assert_ended, assert_receives, connect, connect_narrow, ecoloop, eventually,
    half_close, limited, narrow, pattern, serve, stall, with_descriptors,
};

/// Address space that is enough for a few connections, in KiB.
const MEMORY_KIB: u64 = 400 << 10;

/// Returns the one line of standard error of a command that must fail for lack of memory.
#[track_caller]
fn memory_refusal(arguments: &[&str]) -> String {
    let ended = Process::start(limited(MEMORY_KIB, &ecoloop(arguments))).wait();
    assert_eq!((ended.status.code(), &ended.stdout[..]), (Some(1), &[][..]), "{ended:?}");
    // Warnings of other limits may precede it.
    let lines: Vec<_> = ended.stderr.iter().filter(|line| !line.contains(") allows ")).collect();
    let [line] = lines[..] else { panic!("not one line: {ended:?}") };
    line.strip_prefix("ecoloop: ").unwrap().to_owned()
}

#[test]
fn a_buffer_that_does_not_fit_in_memory_is_refused() {
    let line = memory_refusal(&["serve", "--buffer-size", "1GiB", "127.0.0.1:0"]);
    let expected = "cannot allocate a buffer_size of 1073741824: out of memory; choose a smaller --buffer-size";
    assert_eq!(line, expected);
    let small = limited(MEMORY_KIB, &ecoloop(&["serve", "--buffer-size", "1MiB", "127.0.0.1:0"]));
    let mut server = Process::start(small);
    assert_echoes(&mut connect(server.listening()), b"hola");
}

#[test]
#[cfg(target_os = "linux")]
fn an_error_for_lack_of_descriptors_names_what_needs_one_and_the_limit_to_raise() {
    for arguments in [&["serve", "127.0.0.1:0"][..], &["load", "-m", "1", "127.0.0.1:1"]] {
        // With fewer the dynamic linker fails, and with more the server starts.
        for limit in 5..=7 {
            let ended = Process::start(with_descriptors(limit, &ecoloop(arguments))).wait();
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            // A forecast may precede it.
            let line = ended.stderr.last().unwrap();
            assert!(line.starts_with("ecoloop: cannot "), "{line}");
            assert!(line.contains(": Too many open files (os error 24); raise the descriptor limit"), "{line}");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn max_connections_that_leaves_too_few_descriptors_is_a_warning() {
    let metrics = ["--metrics", "127.0.0.1:0"];
    for (most, options, kept) in
        [("136", &[][..], None), ("190", &[], Some(64)), ("72", &metrics, None), ("73", &metrics, Some(128))]
    {
        let arguments = [&["--lang", "en", "--max-connections", most, "127.0.0.1:0"], options].concat();
        let mut server = Process::start(with_descriptors(200, &ecoloop(&arguments)));
        let warnings: Vec<_> =
            server.lines_through("on IP ").into_iter().filter(|line| line.contains(" WARN ")).collect();
        let expected = kept.map(|kept| {
            let reason = format!("leaves fewer than {kept} of the 200 descriptors for other files");
            format!("--max-connections {most} {reason}: raise the limit (ulimit -Hn)")
        });
        assert_eq!(warnings.len(), usize::from(expected.is_some()), "{warnings:?}");
        assert!(warnings.iter().zip(&expected).all(|(line, expected)| line.ends_with(expected)), "{warnings:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_that_runs_out_while_serving_ends_one_connection_and_not_the_process() {
    let report = Scratch::new("memory");
    let options = ["--buffer-size", "1MiB", "--drain-timeout", "0s", "--report", report.path()];
    let (mut server, address) = Process::serve(&options);
    assert_echoes(&mut connect(address), b"hola");
    limit_memory(&server, 4 << 20);
    // How much each keeps pending depends on how much was there to read: clients are added until the memory is used up.
    let mut clients = Vec::new();
    let message = pattern(256 << 10);
    eventually("a connection without memory", || {
        if clients.len() < 1024 {
            let client = connect(address);
            client.set_nonblocking(true).unwrap();
            clients.push(client);
        }
        for client in &mut clients {
            // It blocks, or was reset.
            let _ = client.write(&message);
        }
        server.has_line_with("Connection closed: error: out of memory")
    });
    assert_echoes(&mut connect(address), b"adios");
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    let failed = report.json()["closed"]["failed"].as_u64().unwrap();
    assert!((1..=clients.len() as u64).contains(&failed), "{failed}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_delay_that_holds_more_than_fits_in_memory_ends_its_connection_and_not_the_process() {
    let rule = ["--fault", "delay=1h,hold=64MiB,after=1"];
    let (mut server, address) = Process::serve(&[&["--buffer-size", "1MiB"], &rule[..]].concat());
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    limit_memory(&server, 4 << 20);
    let mut delayed = connect(address);
    // Less than it holds at most: only a reset ends the write.
    let error = delayed.write_all(&pattern(32 << 20)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    server.line_with("Connection closed: error: out of memory");
    assert_echoes(&mut first, b"adios");
    half_close(&first);
    assert_ended(&mut first);
    let ended = server.terminate();
    assert!(ended.summary().contains("2 closed (1 end of stream, 1 failed)"), "{}", ended.summary());
}

/// Leaves a running process `bytes` of address space more than it has.
#[cfg(target_os = "linux")]
#[track_caller]
pub(crate) fn limit_memory(process: &Process, bytes: u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = Rlimit { current: Some((kib << 10) + bytes), maximum: getrlimit(Resource::As).maximum };
    prlimit(Some(process.pid()), Resource::As, limit).unwrap();
}

#[test]
fn max_connections_is_logged_once_when_it_is_reached() {
    let (mut server, address) = Process::serve(&["--max-connections", "2"]);
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    let mut second = connect(address);
    let reached = "WARN  [ecoloop] 2 connections are open, the maximum: more wait in the backlog until one closes";
    let before = server.lines_through("the maximum");
    assert_eq!(before.iter().filter(|line| line.contains("WARN")).count(), 1, "{before:?}");
    assert!(before.last().unwrap().ends_with(reached), "{before:?}");
    // Reached again within a minute.
    let mut third = connect(address);
    drop(first);
    assert_echoes(&mut third, b"hola");
    assert_echoes(&mut second, b"hola");
    let ended = server.terminate();
    assert!(!ended.stdout.iter().any(|line| line.contains("WARN")), "{ended:?}");
}

#[test]
fn an_idle_connection_makes_room_for_the_next() {
    let report = Scratch::new("idle");
    let options = ["--idle-timeout", "200ms", "--max-connections", "1", "--report", report.path()];
    let (mut server, address) = Process::serve(&options);
    let mut idle = connect(address);
    assert_echoes(&mut idle, b"hola");
    let mut next = connect(address);
    assert_echoes(&mut next, b"adios");
    assert_ended(&mut idle);
    server.line_with("Connection closed: the idle timeout has expired");
    assert_ended(&mut next);
    assert!(server.terminate().summary().contains("2 connections accepted, 2 closed (2 idle)"));
    assert_eq!(report.json()["closed"]["idle"], 2);
}

#[test]
fn a_client_that_does_not_read_is_reset_and_makes_room_for_the_next() {
    let report = Scratch::new("stalled");
    let limits = ["--stall-timeout", "200ms", "--max-connections", "1", "--report", report.path()];
    let buffers = ["--recv-buffer", "64KiB", "--send-buffer", "64KiB"];
    let (mut server, address) = Process::serve(&[limits.as_slice(), &buffers].concat());
    let mut stalled = connect_narrow(address);
    let mut next = connect(address);
    let error = stalled.write_all(&pattern(16 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    server.line_with("Connection closed: the stall timeout has expired");
    assert_echoes(&mut next, b"hola");
    half_close(&next);
    assert_ended(&mut next);
    let ended = server.terminate();
    assert!(ended.summary().contains("2 closed (1 end of stream, 1 stalled)"), "{}", ended.summary());
    assert_eq!(report.json()["closed"]["stalled"], 1);
}

#[test]
fn the_stall_timeout_closes_no_silent_connection_and_no_client_that_reads_again() {
    let mut config = narrow();
    // More than `stall` takes on a loaded machine.
    config.stall_timeout = Some(Duration::from_secs(10));
    config.idle_timeout = Some(Duration::from_secs(3600));
    let server = serve(config);
    let mut other = connect(server.local_addr());
    assert_echoes(&mut other, b"hola");
    let message = pattern(4 << 20);
    let mut late = connect_narrow(server.local_addr());
    let sent = stall(&late, &message, &mut other, &server.handle());
    assert_receives(&mut late, &message[..sent]);
    let lost = connect_narrow(server.local_addr());
    stall(&lost, &message, &mut other, &server.handle());
    eventually("one connection reset", || server.handle().stats().closed.stalled == 1);
    assert_echoes(&mut late, b"adios");
    assert_echoes(&mut other, b"adios");
    assert_eq!(server.handle().stats().closed.total(), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn a_client_that_acknowledges_nothing_stalls_though_the_kernel_has_all_its_output() {
    const LENGTH: usize = 64 << 10;
    let mut config = Config::default();
    config.stall_timeout = Some(Duration::from_millis(200));
    config.send_buffer = Some(4 * LENGTH);
    let server = serve(config);
    let mut client = connect_with_buffers(server.local_addr(), 4096);
    client.write_all(&pattern(LENGTH)).unwrap();
    let stats = || server.handle().stats();
    eventually("the connection closed", || stats().closed.total() == 1);
    let stats = stats();
    assert_eq!((stats.closed.stalled, stats.bytes_in, stats.bytes_out), (1, LENGTH as u64, LENGTH as u64));
}

#[cfg(feature = "load")]
mod load {
    use std::process::Command;

    use ecoloop::load::Report;
    use ecoloop::load::report::{ErrorName, Phase};
    use serde_json::Value;

    use super::*;
    use crate::few_ports::{LINK, Namespace};
    use crate::support::{Ended, wrapped};

    #[test]
    fn connections_that_do_not_fit_in_memory_are_refused() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        let hint = "out of memory; choose smaller --connections or --pipeline";
        for (options, what) in [
            (&["-c", "5M"][..], "5000000 connections"),
            (&["-p", "130M"], "1 connection with pipeline 130000000"),
            (&["-c", "1000", "-p", "100k"], "1000 connections with pipeline 100000"),
            (&["-c", "5M", "--mode", "hold"], "5000000 connections"),
        ] {
            let line = memory_refusal(&[&["load", "-q", "-d", "100ms"], options, &[&address]].concat());
            assert_eq!(line, format!("cannot allocate {what}: {hint}"), "{options:?}");
        }
        assert_eq!(server.handle().stats().accepted, 0);
        let command = ecoloop(&["load", "-q", "-c", "50", "-p", "16", "-m", "10", &address]);
        let ended = Process::start(limited(MEMORY_KIB, &command)).wait();
        ended.assert_measured();
    }

    #[test]
    fn a_load_stops_at_the_first_shortage_of_descriptors_as_its_warning_says() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        for mode in ["echo", "hold"] {
            let arguments = ["load", "--mode", mode, "-c", "1M", "-d", "100ms", "--json", "-", &address];
            let ended = Process::start(with_descriptors(100, &ecoloop(&arguments))).wait();
            let [line] = &ended.stdout[..] else { panic!("not one line: {ended:?}") };
            let report = Report::from_json(line).unwrap();
            let forecast = format!("allows {} of 1000000 connections", report.connections.established);
            let warning = ended.stderr.iter().find(|line| line.contains("ulimit -Hn (100)")).unwrap();
            assert!(warning.contains(&forecast), "{warning}: not {forecast}");
            let [error] = &report.errors[..] else { panic!("{:?}", report.errors) };
            let rest = 1_000_000 - report.connections.established;
            assert_eq!((error.phase, error.error, error.count), (Phase::Connect, ErrorName::NoDescriptors, rest));
            assert_eq!(report.connections.opened_total, 1_000_000);
        }
    }

    #[test]
    fn churn_goes_on_when_connections_give_their_descriptors_back() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        let arguments = ["load", "--mode", "churn", "-c", "200", "-d", "2s", "--json", "-", &address];
        let ended = Process::start(with_descriptors(100, &ecoloop(&arguments))).wait();
        let report = Report::from_json(&ended.stdout[0]).unwrap();
        assert!(report.connections.verified > 100, "{:?}", report.connections);
    }

    #[test]
    fn a_remote_target_means_the_load_alone() {
        let doctor = |arguments: &[&str]| Process::start(ecoloop(&[&["doctor", "-c", "1"], arguments].concat())).wait();
        let last = |ended: &Ended| ended.stdout.iter().rfind(|line| line.contains("1 connection")).unwrap().clone();
        // TEST-NET-1 of RFC 5737: no machine has it.
        assert!(last(&doctor(&["192.0.2.1:5000"])).contains("for a load"), "{:?}", doctor(&["192.0.2.1:5000"]));
        for targets in [&[][..], &["127.0.0.1:5000"], &["127.0.0.1:5000", "192.0.2.1:5000"]] {
            assert!(last(&doctor(targets)).contains("for a server and its load on this machine"), "{targets:?}");
        }
        // No interface has this address, and its zone is one of this machine.
        assert!(last(&doctor(&["[fe80::dead%lo]:5000"])).contains("for a load"));
        assert!(last(&doctor(&["--for", "serve", "192.0.2.1:5000"])).contains("for a server"));
        assert!(last(&doctor(&["--for", "load", "127.0.0.1:5000"])).contains("for a load"));
    }

    #[test]
    fn doctor_names_a_source_that_is_not_local() {
        let ended = Process::start(ecoloop(&["doctor", "-c", "10", "--source", "192.0.2.1", "127.0.0.1:5000"])).wait();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let has = |text: &str| ended.stdout.iter().any(|line| line.contains(text));
        assert!(has("--source (192.0.2.1 is not local) allows 0 connections"), "{ended:?}");
        assert!(has("ip address add 192.0.2.1/32 dev INTERFACE"), "{ended:?}");
    }

    #[test]
    #[ignore = "needs root: it cuts the link between two network namespaces"]
    fn clients_that_vanish_are_found() {
        let ends = ["near", "far"].map(|end| Namespace::new(end, "20000 29999"));
        let [near, far] = &ends;
        near.link_to(far);
        let mut idle = far.start(&["--lang", "en", "--keepalive", "1s", "10.77.0.2:5000"]);
        let mut in_flight = far.start(&["--lang", "en", "--stall-timeout", "1s", "10.77.0.2:5001"]);
        idle.listening();
        in_flight.listening();
        let _silent = near.start(&["load", "-q", "--mode", "hold", "-c", "1", "-d", "10m", "10.77.0.2:5000"]);
        let _floods = near.start(&["load", "-q", "-c", "4", "-p", "1k", "-s", "10KiB", "-d", "10m", "10.77.0.2:5001"]);
        idle.line_with("Connection from:");
        for _ in 0..4 {
            in_flight.line_with("Connection from:");
        }
        eventually("a flood", || received_bytes(&in_flight) > 1 << 20);
        near.cut_link();
        in_flight.line_with("Connection closed: the stall timeout has expired");
        idle.line_with("Connection closed: error: timed out");
    }

    /// Returns how many bytes have come over the link to the network namespace of a process.
    fn received_bytes(process: &Process) -> u64 {
        let devices = fs::read_to_string(format!("/proc/{}/net/dev", process.pid())).unwrap();
        let figures = devices.lines().find_map(|line| line.trim().strip_prefix(LINK)?.strip_prefix(':')).unwrap();
        figures.split_ascii_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    #[ignore = "needs strace"]
    fn a_limit_that_cannot_be_raised_is_a_warning() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        // The C library reads the limit of the stack twice; then the limit is read, raised, and read again.
        for (when, warning) in [
            ("when=4", "cannot raise the descriptor limit: Operation not permitted (os error 1); it stays at 512"),
            ("when=3+", "cannot raise the descriptor limit: Operation not permitted (os error 1)"),
        ] {
            // `-D`: the traced process is the child, so that dropping it ends it. It outlives a strace that is killed.
            let traced = |arguments: &[&str]| {
                let mut traced = Command::new("sh");
                traced.args(["-c", "ulimit -Sn 512; exec strace \"$@\"", "sh", "-D", "-f", "-qq", "-o", "/dev/null"]);
                traced.args(["-e", &format!("inject=prlimit64:error=EPERM:{when}")]);
                wrapped(traced, &ecoloop(arguments))
            };
            let ended = Process::start(traced(&["load", "-m", "10", "--json", "-", &address])).wait();
            let report: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
            assert!(ended.has_measured() && report["verdict"] != "fail", "{ended:?}");
            assert_eq!(ended.stderr_without_saturation(), [format!("ecoloop: {warning}")]);

            let mut server = Process::start(traced(&["serve", "--lang", "en", "127.0.0.1:0"]));
            let line = server.line_with("descriptor limit");
            assert!(line.contains("WARN") && line.ends_with(warning), "{line}");
            assert_echoes(&mut connect(server.listening()), b"hola");
        }
    }
}

#[test]
fn a_reservation_that_does_not_fit_in_memory_is_an_error() {
    let mut reactor = ecoloop::Reactor::<TcpListener>::new(1).unwrap();
    let error = reactor.try_reserve(usize::MAX / 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    reactor.try_reserve(100).unwrap();
    assert!(reactor.capacity() >= 100);
}
