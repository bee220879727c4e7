//! Standard output and the files of a result: full, gone, non-blocking, closed, and where a rename cannot be.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write, pipe};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;

use ecoloop::Config;
use ecoloop::load::Report;
use rustix::io::{ioctl_fionbio, ioctl_fionread};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Ended, Process, Scratch, assert_echoes, assert_ended, connect, ecoloop, eventually, half_close, is_listening,
    reserve_port, serve, wrapped,
};

/// Runs `ecoloop load`, which sends a message, and returns its end.
#[track_caller]
fn load(arguments: &[&str]) -> Ended {
    let server = serve(Config::default());
    let address = server.local_addr().to_string();
    Process::start(ecoloop(&[&["load", "-m", "1"], arguments, &[&address]].concat())).wait()
}

/// Returns a report that `ecoloop load` has written.
#[track_caller]
fn report() -> Scratch {
    let report = Scratch::new("report");
    load(&["-q", "--json", report.path()]).assert_measured();
    report
}

/// A reader of a text for people, such as a pager, may leave early. One of a document has lost it.
#[test]
fn a_full_standard_output_is_an_error_and_a_reader_that_is_gone_only_for_a_document() {
    let server = serve(Config::default());
    let address = server.local_addr().to_string();
    let file = report();
    let (_reserved, serving) = reserve_port();
    let serving_at = serving.to_string();
    let texts: [&[&str]; 11] = [
        &["--help"],
        &["--version"],
        &["load", "--help"],
        &["--help-faults"],
        &["completions", "bash"],
        &["doctor", "-c", "1"],
        &["load", "-m", "1", &address],
        &["load", "-m", "1", "--fail-if", "p99>1us", &address],
        &["merge", file.path()],
        &["compare", file.path(), file.path()],
        &["check", "--level", "1", &address],
    ];
    let documents: [&[&str]; 7] = [
        &["load", "-m", "1", "--json", "-", &address],
        &["load", "-m", "1", "--plot", "/dev/stdout", &address],
        &["merge", "--json", "-", file.path()],
        &["compare", "--json", "-", file.path(), file.path()],
        &["check", "--level", "1", "--json", "-", &address],
        &["check", "--level", "1", "--junit", "-", &address],
        &["serve", "-q", "--reuse-port", "--report", "-", &serving_at],
    ];
    let end = |arguments: &[&str], stdout: Stdio| {
        let mut command = ecoloop(arguments);
        command.stdout(stdout).stderr(Stdio::piped());
        let process = Process::adopt(command);
        if arguments[0] == "serve" {
            eventually("the server", || is_listening(serving));
            process.signal(Signal::TERM);
        }
        let ended = process.wait();
        // A load may be inconclusive, as it may be the next time.
        let code = if ended.has_measured() { Some(0) } else { ended.status.code() };
        (code, ended.stderr_without_saturation().join("\n"))
    };
    let error = |reason| (Some(1), format!("ecoloop: cannot write to standard output: {reason}"));
    for (arguments, is_text) in texts.iter().map(|text| (text, true)).chain(documents.iter().map(|text| (text, false)))
    {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(end(arguments, full.into()), error("No space left on device (os error 28)"), "{arguments:?}");
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let gone = end(arguments, writer.into());
        if is_text {
            // The status is that of the result.
            let whole = end(arguments, Stdio::null());
            assert_eq!(gone, whole, "{arguments:?}");
        } else {
            assert_eq!(gone, error("Broken pipe (os error 32)"), "{arguments:?}");
        }
    }
}

#[test]
fn a_closed_standard_output_discards() {
    let server = serve(Config::default());
    let address = server.local_addr().to_string();
    for arguments in [&["doctor", "-c", "1"][..], &["load", "-m", "1", "--json", "-", &address], &["--version"]] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" >&-"]);
        let ended = Process::start(wrapped(shell, &ecoloop(arguments))).wait();
        ended.assert_measured();
        assert_eq!(ended.stderr_without_saturation(), [""; 0], "{arguments:?}");
    }
}

#[test]
fn a_non_blocking_standard_output_is_written_whole() {
    let server = serve(Config::default());
    let address = server.local_addr().to_string();
    let expected = ecoloop(&["load", "--help"]).output().unwrap().stdout;
    for arguments in [&["load", "--help"][..], &["load", "-m", "1", "--plot", "-", &address]] {
        let (mut reader, writer) = pipe().unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let mut command = ecoloop(arguments);
        command.stdout(writer);
        let process = Process::adopt(command);
        let read = thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).unwrap();
            text
        });
        process.wait().assert_measured();
        let text = read.join().unwrap();
        assert!(text.len() > 4096, "{}", text.len());
        if arguments[1] == "--help" {
            assert!(text == expected, "the help differs");
        } else {
            assert!(text.ends_with(b"</svg>\n"), "the plot is cut");
        }
    }
}

/// A terminal that another program has set to this, which is standard output too.
#[test]
fn a_non_blocking_standard_input_is_waited_for() {
    let text = fs::read_to_string(report().path()).unwrap();
    let server = serve(Config::default());
    let address = server.local_addr().to_string();
    for (arguments, input) in [
        (&["merge", "--json", "-", "-"][..], &text[..]),
        (&["load", "--repeat", "--json", "-", "-m", "1", &address], "\n"),
    ] {
        let (reader, mut writer) = pipe().unwrap();
        ioctl_fionbio(&reader, true).unwrap();
        let mut command = ecoloop(arguments);
        command.stdin(reader);
        let process = Process::start(command);
        let (first, rest) = input.split_at(input.len() / 2);
        writer.write_all(first.as_bytes()).unwrap();
        // Then it waits for the rest: merge has read the first half, and load is connected, while its other thread reads.
        eventually("the wait", || match arguments[0] {
            "merge" => ioctl_fionread(&writer).unwrap() == 0,
            _ => server.handle().stats().bytes_out > 0,
        });
        writer.write_all(rest.as_bytes()).unwrap();
        drop(writer);
        let ended = process.wait();
        ended.assert_measured();
        assert_eq!(ended.stdout.len(), 1, "{ended:?}");
    }
}

#[test]
fn a_dash_is_standard_output_or_input() {
    for (option, content) in [("--json", "\"schema\""), ("--hgrm", "TotalCount"), ("--plot", "<svg ")] {
        let ended = load(&[option, "-"]);
        ended.assert_measured();
        assert!(ended.stdout.join("\n").contains(content), "{ended:?}");
        assert!(!ended.stdout.iter().any(|line| line.starts_with("result")), "a table: {ended:?}");
    }
    let ended = load(&["--json", "-", "--hgrm", "/dev/stdout"]);
    let reason = "error: --json and --hgrm cannot both write to standard output";
    assert_eq!((ended.status.code(), &ended.stderr[0][..]), (Some(2), reason), "{ended:?}");

    let file = report();
    let mut command = ecoloop(&["merge", "--json", "-", "-"]);
    command.stdin(File::open(file.path()).unwrap());
    let ended = Process::start(command).wait();
    assert_eq!(Report::from_json(&ended.stdout[0]).unwrap().messages.verified, 1);

    let (server, _) = Process::serve(&["--report", "-"]);
    let ended = server.terminate();
    let (_, json) = ended.stdout.split_at(ended.stdout.iter().position(|line| line == "{").unwrap());
    assert_eq!(serde_json::from_str::<Value>(&json.join("\n")).unwrap()["accepted"], 0);
}

#[test]
fn standard_output_is_written_through_its_descriptor() {
    let server = serve(Config::default());
    let output = Scratch::new("output");
    let link = TempDir::new().unwrap();
    let link = link.path().join("link");
    std::os::unix::fs::symlink("/dev/stdout", &link).unwrap();
    for name in ["/dev/stdout", "/proc/self/fd/1", link.to_str().unwrap()] {
        let script = "echo before; \"$0\" load -q -m 1 --json \"$1\" \"$2\"; echo after";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_ecoloop"), name, &server.local_addr().to_string()]);
        assert!(shell.stdout(File::create(output.path()).unwrap()).status().unwrap().success());
        let text = fs::read_to_string(output.path()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (3, "before", "after"), "{name}: {text}");
        Report::from_json(lines[1]).unwrap();
    }
}

#[test]
fn a_result_that_cannot_be_put_in_place_is_kept_and_named_and_the_table_is_printed() {
    let server = serve(Config::default());
    let address = server.local_addr().to_string();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("report.json");
    let process = Process::start(ecoloop(&["load", "-d", "1h", "--json", path.to_str().unwrap(), &address]));
    eventually("traffic", || server.handle().stats().bytes_in > 10_000);
    fs::create_dir(&path).unwrap();
    process.signal(Signal::INT);
    let ended = process.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.iter().any(|line| line.contains("INTERRUPTED")), "{ended:?}");
    let line = ended.stderr.last().unwrap();
    let (words, kept) = line.split_once("; what was written is kept in ").unwrap();
    assert_eq!(words, format!("ecoloop: cannot write {}: Is a directory (os error 21)", path.display()));
    Report::from_json(&fs::read_to_string(kept).unwrap()).unwrap();
}

/// A file that is a mount point, of another owner, in a directory that is read-only.
#[test]
#[ignore = "needs root"]
fn a_file_that_cannot_be_replaced_is_written_in_place() {
    let server = serve(Config::default());
    let directory = TempDir::new().unwrap();
    let mounted = Scratch::new("mounted");
    let [own, read_only] = ["own.json", "read-only"].map(|name| directory.path().join(name));
    fs::create_dir(&read_only).unwrap();
    fs::write(read_only.join("report.json"), "").unwrap();
    fs::write(&own, "old").unwrap();
    std::os::unix::fs::chown(&own, Some(1234), Some(1234)).unwrap();
    let script = "d=$1; mount --bind $d/read-only $d/read-only && mount -o remount,bind,ro $d/read-only \
        && mount --bind $3 $d/read-only/report.json && { \"$0\" load -q -m 1 --json $d/read-only/report.json $2; \
        \"$0\" load -q -m 1 --json $d/own.json $2; }";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_ecoloop"), directory.path().to_str().unwrap()]);
    command.args([&server.local_addr().to_string(), mounted.path()]);
    Process::start(command).wait().assert_measured();
    mounted.json();
    Report::from_json(&fs::read_to_string(&own).unwrap()).unwrap();
    let metadata = fs::metadata(&own).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 1234));
}

/// A rolling restart: the reports of both servers have the same name.
#[test]
fn two_servers_that_share_a_report_leave_the_later_one_whole() {
    let report = Scratch::new("shared");
    let (first, address) = Process::serve(&["--report", report.path()]);
    for _ in 0..100 {
        let mut client = connect(address);
        assert_echoes(&mut client, b"a longer report");
        half_close(&client);
        assert_ended(&mut client);
    }
    let (second, _) = Process::serve(&["--report", report.path()]);
    first.terminate();
    assert_eq!(report.json()["accepted"], 100);
    second.terminate();
    assert_eq!(report.json()["accepted"], 0);
}

#[test]
fn an_unlinked_report_is_created_again() {
    let report = Scratch::new("unlinked");
    let (server, _) = Process::serve(&["--report", report.path()]);
    fs::remove_file(report.path()).unwrap();
    assert!(server.terminate().status.success());
    assert_eq!(report.json()["accepted"], 0);
}

#[test]
fn a_fifo_without_a_reader_is_an_error() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo");
    let fifo = fifo.to_str().unwrap();
    assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
    let expected = [format!("ecoloop: cannot open {fifo}: no process reads this FIFO")];
    for arguments in [&["127.0.0.1:0", "--report", fifo][..], &["load", "--json", fifo, "127.0.0.1:1"]] {
        let ended = Process::start(ecoloop(arguments)).wait();
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(1), &expected[..]), "{arguments:?}");
    }
    let name = fifo.to_owned();
    let reader = thread::spawn(move || fs::read_to_string(name).unwrap());
    eventually("the reader", || load(&["-q", "--json", fifo]).has_measured());
    Report::from_json(&reader.join().unwrap()).unwrap();
}
