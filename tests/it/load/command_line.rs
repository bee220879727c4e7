//! Usage errors, output files that cannot be written, and interrupts.

use std::fs;
use std::net::TcpListener;

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{Ended as RunEnded, Verdict};
use rustix::process::Signal;

use super::{SIZE, document, run_command};
use crate::support::{Process, Scratch, ecoloop, eventually, join, reserve_port, serve};

#[test]
fn usage_errors_exit_with_2() {
    let invalid: [&[&str]; 32] = [
        &[],
        &["-d", "1s", "-m", "1"],
        &["--mode", "hold", "-m", "1"],
        &["--mode", "hold", "-p", "3"],
        &["--mode", "churn", "--connect-rate", "1"],
        &["--mode", "echoes"],
        &["--rate", "0"],
        &["--connect-rate", "0"],
        &["--rate", "-1"],
        &["--fail-if", "p99"],
        &["--fail-if", "p>1ms"],
        &["--fail-if", "p99>5"],
        &["--fail-if", "rate<1ms"],
        &["--close", "reset"],
        &["--proxy-protocol", "v3"],
        &["--proxy-protocol"],
        &["-c", "100M"],
        &["-c", "2", "-p", "2000M"],
        &["-d", "0s"],
        &["--connect-timeout", "0s"],
        &["--interval", "0s"],
        &["--rate", "1001M"],
        &["--connect-rate", "999999999999999999999999M"],
        &["--plot", "plot.png"],
        &["--plot", "svg"],
        &["--plot", "plot.svg.html"],
        &["--repeat"],
        &["--repeat", "--json", "file.json"],
        &["--repeat", "--json", "-", "--plot", "file.svg"],
        &["--repeat", "--json", "-", "--mode", "hold"],
        &["--repeat", "--json", "-", "--mode", "churn"],
        &["--repeat", "--json", "-", "--start-at", "2100-01-01T00:00:00Z"],
    ];
    let (_port, address) = reserve_port();
    let address = address.to_string();
    for arguments in invalid {
        let target: &[&str] = if arguments.is_empty() { &[] } else { &[&address] };
        let ended = run_command(&[arguments, target].concat());
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn a_condition_that_needs_an_option_is_a_usage_error_that_names_it() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for (condition, missing) in [
        ("found_rate<5", "--find-rate"),
        ("server_cpu>5us", "--server-pid"),
        ("longest_outage>1s", "--reconnect"),
        ("outages>0", "--reconnect"),
    ] {
        let ended = run_command(&["--fail-if", "p99>1h", "--fail-if", condition, "-j", "2", &address]);
        let expected = format!("error: --fail-if {condition} needs {missing}");
        assert_eq!((ended.status.code(), &ended.stderr[0]), (Some(2), &expected), "{ended:?}");
    }
    let ended = run_command(&["-r", "1..2", "--find-rate", "server_cpu<5us", &address]);
    let expected = "error: --find-rate server_cpu<5us needs --server-pid";
    assert_eq!((ended.status.code(), &ended.stderr[0][..]), (Some(2), expected), "{ended:?}");
    assert_eq!(server.handle().stats().accepted, 0);
    // With its option, each has a value.
    let pid = std::process::id().to_string();
    let of_hold = ["--fail-if", "hold_silent>1", "--fail-if", "lateness_p99>1h", "--mode", "hold", "-d", "10ms"];
    let of_echo = ["-r", "1k", "-d", "2s", "--fail-if", "rate<0%", "--fail-if", "lateness_p99>1h"];
    let of_options = ["--server-pid", &pid, "--fail-if", "server_cpu>1h", "--reconnect", "--fail-if", "outages>0"];
    for arguments in
        [&of_hold[..], &[&of_echo[..], &of_options].concat(), &[&of_echo[..], &["-j", "2", "-c", "2"]].concat()]
    {
        let ended = run_command(&[arguments, &["--json", "-", &address]].concat());
        let (_, report) = document(&ended);
        let requested: Vec<_> = report.thresholds.iter().filter(|threshold| !threshold.default).collect();
        assert!(requested.len() >= 2, "{requested:?}");
        assert!(requested.iter().all(|threshold| threshold.value.is_some() && !threshold.failed), "{requested:?}");
    }
}

/// The server may be on the machine of another generator.
#[test]
fn a_rank_and_merge_take_conditions_on_what_another_generator_measures() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let condition = ["--fail-if", "server_cpu>5us"];
    let rank = ["--rank", "0/2", "-c", "2", "-m", "1", "--json", "-", &address];
    let ended = run_command(&[&rank[..], &condition].concat());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let file = Scratch::new("rank");
    fs::write(file.path(), &ended.stdout[0]).unwrap();
    let merged = Process::start(ecoloop(&[&["merge", "--partial", file.path()], &condition[..]].concat())).wait();
    assert_eq!(merged.status.code(), Some(1), "{merged:?}");
    assert!(merged.stdout.last().unwrap().ends_with("FAIL: server_cpu>5us (no data)"), "{merged:?}");
}

#[test]
fn usage_errors_found_after_parsing_print_the_usage_of_the_subcommand() {
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
fn a_start_time_in_the_past_is_a_warning() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for jobs in [&[][..], &["-j", "2", "-c", "2"]] {
        let arguments = ["--start-at", "2020-01-01T00:00:00+01:00", "-m", "1", "--json", "-", &address];
        let ended = run_command(&[&arguments, jobs].concat());
        document(&ended);
        let [line] = ended.stderr_without_saturation()[..] else { panic!("not one line: {ended:?}") };
        let late = line.strip_prefix("ecoloop: --start-at is ").unwrap();
        let late = late.strip_suffix(" in the past: the run starts now").unwrap();
        // In its two largest units.
        let units: Vec<_> =
            late.split(' ').map(|part| part.trim_start_matches(|first: char| first.is_ascii_digit())).collect();
        assert!(units.len() <= 2 && units[0] == "years", "{late}");
    }
}

#[test]
fn an_output_file_that_cannot_be_created_is_an_error_before_the_first_connect() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let file = Scratch::new("not-a-directory");
    for option in ["--json", "--hgrm", "--plot"] {
        let path = format!("{}/file.svg", file.path());
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
fn two_outputs_with_one_name_are_a_usage_error_that_names_both_options() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("twice.svg").to_str().unwrap().to_owned();
    let dotted = directory.path().join("./twice.svg").to_str().unwrap().to_owned();
    for options in [["--json", "--html"], ["--json", "--hgrm"], ["--plot", "--html"]] {
        let outputs = [options[0], &plain, options[1], &dotted];
        for arguments in
            [&["load", "-m", "1", &address][..], &["load", "-j", "2", "-c", "2", &address], &["merge", "one.json"]]
        {
            let ended = Process::start(ecoloop(&[arguments, &outputs].concat())).wait();
            let expected = format!("error: {} and {} cannot both write to {plain}", options[0], options[1]);
            assert_eq!((ended.status.code(), &ended.stderr[0]), (Some(2), &expected), "{ended:?}");
        }
    }
    assert_eq!((fs::read_dir(&directory).unwrap().count(), server.handle().stats().accepted), (0, 0));
}

#[test]
fn an_interrupted_run_reports_its_results() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
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

#[test]
fn a_run_can_be_interrupted_in_every_phase() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().map(|address| (silent, address.to_string())).unwrap();
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    // Waiting for the first reply, in the warm-up, in hold, and in churn.
    let runs: [&[&str]; 4] = [
        &[&silent.1, "--timeout", "1h"],
        &[&address, "--warmup", "43830000h", "-d", "43830000h", "--timeout", "43830000h"],
        &[&address, "--mode", "hold", "-d", "1h"],
        &[&address, "--mode", "churn", "-d", "1h"],
    ];
    for arguments in runs {
        let before = server.handle().stats().bytes_in;
        let process = Process::start(ecoloop(&[&["load", "--json", "-"], arguments].concat()));
        if arguments[0] == address {
            eventually("the first message", || server.handle().stats().bytes_in > before);
        } else {
            // The connection is established in the backlog, so that only the kernel can tell.
            // The address is compared too: another loopback address may have the same port.
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
