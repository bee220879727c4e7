//! Several generators that share a run: `load --rank`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::{fs, thread};

use ecoloop::Config;
use ecoloop::load::Report;
use ecoloop::load::report::{FindingKind, Verdict};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Ended, Process, TIMEOUT, ecoloop, eventually, reserve_port, serve};

/// The environment variables that launchers set.
const LAUNCHERS: [&str; 12] = [
    "JOB_COMPLETION_INDEX",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "PARALLEL_SEQ",
    "AWS_BATCH_JOB_ARRAY_INDEX",
    "AWS_BATCH_JOB_ARRAY_SIZE",
    "CLOUD_RUN_TASK_INDEX",
    "CLOUD_RUN_TASK_COUNT",
];

/// Returns the command of a load on `address` that writes its report to standard output.
fn load(address: SocketAddr, arguments: &[&str]) -> Command {
    ecoloop(&[&["load", "--json", "-", &address.to_string()], arguments].concat())
}

#[track_caller]
fn report(ended: &Ended) -> Report {
    let [document] = &ended.stdout[..] else { panic!("not one document: {ended:?}") };
    Report::from_json(document).unwrap()
}

/// Runs each of `count` ranks one after another, and returns their reports. Each exits with status 0.
#[track_caller]
fn run_ranks(address: SocketAddr, count: u32, arguments: &[&str]) -> Vec<Report> {
    let run = |index| {
        let rank = format!("{index}/{count}");
        let ended = Process::start(load(address, &[&["--rank", &rank], arguments].concat())).wait();
        assert!(ended.status.success(), "{ended:?}");
        report(&ended)
    };
    (0..count).map(run).collect()
}

fn due(reports: &[Report]) -> Vec<u64> {
    reports.iter().map(|report| report.messages.due).collect()
}

#[test]
fn ranks_divide_the_totals_and_together_are_due_what_one_generator_is() {
    let arguments = ["-c", "7", "--max-connecting", "8", "-r", "997.3", "-d", "300ms", "--warmup", "11ms"];
    let server = serve(Config::default());
    let one = Process::start(load(server.local_addr(), &arguments)).wait();
    let reports = run_ranks(server.local_addr(), 3, &arguments);
    let requested: Vec<_> = reports.iter().map(|report| report.connections.requested).collect();
    assert_eq!(requested, [3, 2, 2]);
    assert_eq!(due(&reports).iter().sum::<u64>(), report(&one).messages.due);
    for (index, rank) in reports.iter().enumerate() {
        assert!((rank.config.rate.unwrap() - 997.3 / 3.0).abs() < 1e-6);
        assert_eq!(rank.origin.as_ref().unwrap().options.max_connecting, [3, 3, 2][index]);
        assert_eq!(rank.config.labels["rank"], index.to_string());
        let rank = rank.rank.unwrap();
        assert_eq!((rank.index as usize, rank.count), (index, 3));
    }
    assert_eq!(report(&one).rank, None);
}

#[test]
fn each_rank_has_every_nth_message() {
    // Nothing listens there: all messages are due, and none is sent.
    let (_port, address) = reserve_port();
    // Due at 0, 100, 200, ... ms: of three ranks, the first one's at 0, the second's at 100 ms, the third's at 200 ms, and so on.
    for (duration, expected) in [("50ms", [1, 0, 0]), ("150ms", [1, 1, 0]), ("250ms", [1, 1, 1]), ("350ms", [2, 1, 1])]
    {
        let reports = run_ranks(address, 3, &["-c", "3", "-r", "10", "-d", duration]);
        assert_eq!(due(&reports), expected, "{duration}");
    }
    // In churn, each rank has every Nth connection.
    let server = serve(Config::default());
    let reports = run_ranks(server.local_addr(), 2, &["--mode", "churn", "-c", "8", "-r", "10", "-d", "250ms"]);
    assert_eq!(due(&reports), [2, 1]);
}

#[test]
fn a_rank_that_fails_exits_with_0_once_its_report_is_written() {
    let (_port, address) = reserve_port();
    let reports = run_ranks(address, 1, &["-d", "100ms"]);
    assert_eq!(reports[0].connections.established, 0);
    let ended = Process::start(load(address, &["--rank", "0/1", "-d", "100ms", "--hgrm", "/nonexistent/file"])).wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
}

#[test]
fn sources_are_dealt_out() {
    let server = serve(Config::default());
    for (sources, expected) in [
        ("127.0.0.11-127.0.0.15", [&["127.0.0.11", "127.0.0.13", "127.0.0.15"][..], &["127.0.0.12", "127.0.0.14"]]),
        ("127.0.0.11", [&["127.0.0.11"], &["127.0.0.11"]]),
    ] {
        let reports = run_ranks(server.local_addr(), 2, &["-c", "6", "-m", "1", "--source", sources]);
        for (report, expected) in reports.iter().zip(expected) {
            let sources: Vec<_> = report.config.sources.iter().map(ToString::to_string).collect();
            assert_eq!(sources, expected);
            assert_eq!(report.connections.verified, 3);
        }
    }
}

#[test]
fn few_connections_of_many_ranks_use_every_target() {
    let servers = [0; 3].map(|_| serve(Config::default()));
    let addresses: Vec<_> = servers.iter().map(|server| server.local_addr().to_string()).collect();
    let arguments = ["-c", "3", "-m", "1", &addresses[1], &addresses[2]];
    run_ranks(servers[0].local_addr(), 3, &arguments);
    assert_eq!(servers.map(|server| server.handle().stats().accepted), [1; 3]);
}

/// A proxy in front of an echo server that sends to each of two clients what the other has sent.
fn crossing_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut clients = [0; 2].map(|_| {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream
        });
        let mut messages = [[0; 64]; 2];
        for (client, message) in clients.iter_mut().zip(&mut messages) {
            client.read_exact(message).unwrap();
        }
        for (client, message) in clients.iter_mut().zip(messages.iter().rev()) {
            client.write_all(message).unwrap();
        }
        // Until both have closed.
        for client in &mut clients {
            let _ = client.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[test]
fn bytes_that_cross_between_ranks_are_foreign() {
    let address = crossing_server();
    let ranks = ["0/2", "1/2"]
        .map(|rank| Process::start(load(address, &["--rank", rank, "-c", "2", "-m", "1", "--timeout", "30s"])));
    for (index, rank) in ranks.into_iter().enumerate() {
        let ended = rank.wait();
        let report = report(&ended);
        let findings: Vec<_> =
            report.verify.findings.iter().map(|finding| (finding.kind, finding.connection, finding.offset)).collect();
        // Connections are numbered over all ranks.
        assert_eq!(findings, [(FindingKind::Foreign, index as u64, 0)], "{ended:?}");
    }
}

#[test]
fn the_rank_comes_from_the_launcher() {
    let (_port, address) = reserve_port();
    let run = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = load(address, &[&["-c", "3", "-d", "50ms"], arguments].concat());
        for name in LAUNCHERS {
            command.env_remove(name);
        }
        Process::start({
            command.envs(environment.iter().copied());
            command
        })
        .wait()
    };
    for (environment, arguments) in [
        (&[("JOB_COMPLETION_INDEX", "1")][..], &["--rank", "auto", "--ranks", "3"][..]),
        (&[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "3")], &["--rank", "auto"]),
        (&[("PARALLEL_SEQ", "2")], &["--rank", "auto", "--ranks", "3"]),
    ] {
        let ended = run(environment, arguments);
        let rank = report(&ended).rank.unwrap();
        assert_eq!((rank.index, rank.count), (1, 3), "{environment:?}");
    }
    for (environment, arguments, reason) in [
        (&[][..], &["--rank", "auto"][..], "none is set; expected one of JOB_COMPLETION_INDEX with --ranks"),
        (&[("PMI_RANK", "1")], &["--rank", "auto"], "PMI_RANK is set, and PMI_SIZE is not"),
        (&[("JOB_COMPLETION_INDEX", "1")], &["--rank", "auto"], "JOB_COMPLETION_INDEX is set, and --ranks is not"),
        (&[], &["--rank", "0/3", "--ranks", "3"], "--ranks is for --rank auto"),
        (&[], &["--ranks", "3"], "  --rank <R/N|auto>"),
        (&[], &["--rank", "3/3"], "expected R/N with R from 0 to N - 1"),
        (&[], &["--rank", "0/4"], "connections must be at least one for each rank"),
        (&[], &["--rank", "0/3", "--label", "rank=7"], "--label rank=... cannot"),
        (&[], &["--rank", "0/3", "--barrier", "127.0.0.1:0"], "--barrier needs a port above 0"),
    ] {
        let ended = run(environment, arguments);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr[0].contains(reason) || ended.stderr[1].contains(reason), "{reason}: {ended:?}");
    }
}

#[test]
fn the_name_of_a_file_can_contain_the_rank_and_merge_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(Config::default());
    let file = |rank: &str, end: &str| directory.path().join(format!("run-{rank}.{end}")).to_str().unwrap().to_owned();
    let name = |rank: &str| file(rank, "json");
    for rank in ["0/2", "1/2"] {
        let address = server.local_addr().to_string();
        let files = ["--json", &name("{rank}"), "--html", &file("{rank}", "html")];
        let arguments = ["load", "-q", "--rank", rank, "-c", "3", "-m", "10", &address];
        let ended = Process::start(ecoloop(&[&arguments[..], &files].concat())).wait();
        assert!(ended.status.success(), "{ended:?}");
        let page = fs::read_to_string(file(&rank[..1], "html")).unwrap();
        assert!(page.contains(&format!("<td>{} of 2, from 0</td>", &rank[..1])), "{page}");
    }
    // The two ran one after another.
    let apart = Process::start(ecoloop(&["merge", &name("0"), &name("1")])).wait();
    assert!(apart.stderr[0].contains("the measured window overlaps"), "{apart:?}");
    let refused = Process::start(ecoloop(&["merge", &name("1")])).wait();
    assert!(refused.stderr[0].contains("rank 0 of 2 is missing"), "{refused:?}");
    let usage = Process::start(load(server.local_addr(), &["--hgrm", "run-{rank}.hgrm"])).wait();
    assert_eq!(usage.status.code(), Some(2));
    assert!(usage.stderr[0].contains("{rank} in the name of a file needs --rank"), "{usage:?}");
}

/// Starts a run of two processes that lasts until it is ended, with a file for its report.
fn start_jobs(address: SocketAddr, file: &str, arguments: &[&str]) -> Process {
    let address = address.to_string();
    Process::start(ecoloop(&[&["load", "-j", "2", "-c", "4", "--json", file, &address], arguments].concat()))
}

/// Returns the processes that `parent` has started.
#[track_caller]
fn children(parent: &Process) -> Vec<Pid> {
    let pid = parent.pid();
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
}

#[test]
fn jobs_share_a_run_with_one_report_and_one_progress() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("all.json");
    let server = serve(Config::default());
    let arguments = ["-r", "400", "-d", "2500ms", "--interval", "100ms", "--fail-if", "p50>1h", "--timeout", "30s"];
    let ended = start_jobs(server.local_addr(), file.to_str().unwrap(), &arguments).wait();
    let report = Report::from_json(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((report.messages.due, report.messages.verified), (1000, 1000));
    assert_eq!((report.connections.held, report.rank, report.run_id.split('+').count()), (4, None, 2));
    ended.assert_measured();
    assert_eq!(ended.stdout.iter().filter(|line| line.starts_with("result ")).count(), 1, "{ended:?}");
    // Of both processes, after the second one has said how far it is.
    assert!(ended.stderr.iter().any(|line| line.starts_with("ecoloop: measure, 4/4 open, 0 errors")), "{ended:?}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(server.handle().stats().accepted, 4);
}

#[test]
fn an_interrupt_ends_all_jobs_and_the_report_is_that_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("all.json");
    let server = serve(Config::default());
    let run = start_jobs(server.local_addr(), file.to_str().unwrap(), &["-q", "-r", "400", "-d", "60s"]);
    eventually("the window", || server.handle().stats().bytes_out > 64 * 100);
    let jobs = children(&run);
    assert_eq!(jobs.len(), 1);
    run.signal(Signal::INT);
    let ended = run.wait();
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert!(!ended.stderr.iter().any(|line| line.contains("interrupted")), "{ended:?}");
    let report = Report::from_json(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((report.verdict, report.connections.requested), (Verdict::Interrupted, 4));
    assert!(!fs::exists(format!("/proc/{}", jobs[0])).unwrap(), "the other process has exited");
}

#[test]
fn a_job_that_is_killed_ends_all_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("all.json");
    let server = serve(Config::default());
    let run = start_jobs(server.local_addr(), file.to_str().unwrap(), &["-q", "-r", "400", "-d", "60s"]);
    eventually("the window", || server.handle().stats().bytes_out > 64 * 100);
    kill_process(children(&run)[0], Signal::KILL).unwrap();
    let ended = run.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.starts_with("ecoloop: rank 1 (127.0.0.1:")), "{ended:?}");
    let report = Report::from_json(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((report.verdict, report.connections.requested), (Verdict::Interrupted, 2));
}

#[test]
fn jobs_end_by_themselves_if_the_first_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("all.json").to_str().unwrap().to_owned();
    let server = serve(Config::default());
    let run = start_jobs(server.local_addr(), &file, &["-r", "400", "-d", "60s"]);
    eventually("the window", || server.handle().stats().bytes_out > 64 * 100);
    run.signal(Signal::KILL);
    run.wait();
    // What it has measured is kept.
    eventually("the report of the other process", || {
        fs::read_to_string(format!("{file}.rank1")).is_ok_and(|report| Report::from_json(&report).is_ok())
    });
}

/// The second process connects to a server that never replies.
#[test]
fn jobs_wait_for_each_other_for_the_barrier_timeout() {
    let server = serve(Config::default());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = silent.local_addr().unwrap().to_string();
    let arguments = ["-j", "2", "-c", "2", "-d", "60s", "--timeout", "60s", "--barrier-timeout", "2s", &second];
    let ended = Process::start(load(server.local_addr(), &arguments)).wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.iter().any(|line| line.contains(" within 2s (--barrier-timeout)")), "{ended:?}");
}

#[test]
fn the_number_of_jobs_is_at_most_that_of_the_connections() {
    let server = serve(Config::default());
    let address = server.local_addr();
    let ended = Process::start(load(address, &["-j", "auto", "-m", "3"])).wait();
    assert_eq!((report(&ended).connections.held, report(&ended).run_id.contains('+')), (1, false));
    for (arguments, reason) in [
        (&["-j", "2"][..], "--jobs 2 needs --connections of at least 2: each process has one or more"),
        (&["-j", "0"], "expected a number of at least 1, or auto"),
        (&["-j", "2", "-c", "2", "--rank", "0/2"], "--jobs cannot be combined with --rank and --barrier"),
        (&["-j", "2", "-c", "2", "--repeat"], "--repeat cannot be combined with --rank and --jobs"),
    ] {
        let ended = Process::start(load(address, arguments)).wait();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr[0].contains(reason), "{reason}: {ended:?}");
    }
}
