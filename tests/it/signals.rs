//! Signals of the process: requests, repeats, and what is blocked or ignored.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Process, Scratch, assert_echoes, assert_ended, assert_receives, connect, connect_eventually, ecoloop, eventually,
    half_close, reserve_port, wrapped,
};

/// A repeat within this time is one for the server too, whose interval begins after the test's.
const REPEAT: Duration = Duration::from_millis(290);

/// Asserts that `second`, soon after `first`, does not end the drain that `first` has begun.
fn assert_same_request(first: Signal, second: Signal) {
    // A machine that is too slow for one repeat may do the next in time.
    eventually("a repeat in time", || {
        let (server, address) = Process::serve(&["--drain-timeout", "1h"]);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        let start = Instant::now();
        server.signal(first);
        assert_ended(&mut client);
        server.signal(second);
        if start.elapsed() > REPEAT {
            return false;
        }
        // The drain goes on, until the client's FIN.
        half_close(&client);
        assert!(server.wait().summary().contains("1 closed (1 drained)"));
        true
    });
}

#[test]
fn a_repeat_of_a_signal_is_the_same_request() {
    assert_same_request(Signal::TERM, Signal::TERM);
}

/// A wrapper turns Ctrl-C, which its child has received too, into SIGTERM for the child.
#[test]
fn another_signal_within_the_interval_is_the_same_request() {
    assert_same_request(Signal::INT, Signal::TERM);
}

#[test]
fn sighup_sigpipe_sigstop_and_sigcont_change_nothing() {
    let (server, address) = Process::serve(&["--drain-timeout", "1h"]);
    let mut client = connect(address);
    for signal in [Signal::HUP, Signal::PIPE, Signal::HUP] {
        server.signal(signal);
        assert_echoes(&mut client, b"hola");
    }
    // SIGSTOP and SIGCONT interrupt epoll_wait(2) with EINTR.
    server.pause();
    // A server that drains would refuse it.
    let mut other = connect(address);
    other.write_all(b"while it sleeps").unwrap();
    server.resume();
    assert_receives(&mut other, b"while it sleeps");
    server.signal(Signal::TERM);
    for mut client in [client, other] {
        assert_ended(&mut client);
    }
    let ended = server.wait();
    assert!(ended.summary().contains("2 connections accepted, 2 closed (2 drained)"), "{}", ended.summary());
}

/// SIGHUP is ignored, and starts no interval in which another signal would be ignored too.
#[test]
fn a_signal_right_after_sighup_is_a_request() {
    let (server, address) = Process::serve(&["--drain-timeout", "1h"]);
    server.signal(Signal::HUP);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    server.signal(Signal::TERM);
    assert_ended(&mut client);
    drop(client);
    assert!(server.wait().summary().contains("1 closed (1 drained)"));
}

#[test]
fn sigusr1_logs_the_figures_so_far_and_the_server_goes_on() {
    for (options, words) in [
        (&["-q"][..], "So far: 1 open, 2 connections accepted, 1 closed (1 end of stream), 9 bytes in, 9 bytes out, "),
        (&["--lang", "es"], "Hasta ahora: 1 abierta, 2 conexiones aceptadas, 1 cerrada (1 fin de datos), 9 bytes"),
    ] {
        let (_reserved, address) = reserve_port();
        let address_text = address.to_string();
        let arguments = [&["--reuse-port", &address_text], options].concat();
        let mut server = Process::start(ecoloop(&arguments));
        let mut gone = connect_eventually(address);
        assert_echoes(&mut gone, b"hola");
        half_close(&gone);
        assert_ended(&mut gone);
        let mut client = connect(address);
        assert_echoes(&mut client, b"adios");
        let mut figures = || {
            server.signal(Signal::USR1);
            server.line_with(words.split(':').next().unwrap())
        };
        let expected = format!("INFO  [ecoloop] {words}");
        // The server counts what it has sent after the client may have received it.
        eventually("the figures", || figures().contains(&expected));
        let line = figures();
        assert!(line.contains(&expected), "{line}");
        assert_echoes(&mut client, b"hola");
        half_close(&client);
        assert!(server.terminate().status.success());
    }
}

/// The figures are no request to end: the second SIGTERM is still a repeat.
#[test]
fn sigusr1_between_two_signals_does_not_stop_the_server() {
    eventually("a repeat in time", || {
        let (server, address) = Process::serve(&["--drain-timeout", "1h"]);
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        let start = Instant::now();
        for signal in [Signal::TERM, Signal::USR1, Signal::TERM] {
            server.signal(signal);
            thread::yield_now();
        }
        assert_ended(&mut client);
        if start.elapsed() > REPEAT {
            return false;
        }
        half_close(&client);
        assert!(server.wait().summary().contains("1 closed (1 drained)"));
        true
    });
}

#[test]
fn a_blocked_sigterm_is_unblocked() {
    let (_reserved, address) = reserve_port();
    let mut env = Command::new("env");
    env.args(["--block-signal=TERM", "--block-signal=INT"]);
    let mut server = Process::start(wrapped(env, &ecoloop(&[&address.to_string(), "--reuse-port"])));
    server.listening();
    assert!(server.terminate().summary().contains("0 connections accepted"));
}

/// A server in the background of a terminal, whose process ID is in a file. It ignores the end of the terminal: it is killed if the
/// test fails.
struct Background(Scratch);

impl Background {
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(self.0.path()).ok()?.trim().parse().ok()?)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(pid) = self.pid()
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
fn the_background_of_a_terminal_does_not_stop_the_server() {
    let program = env!("CARGO_BIN_EXE_ecoloop");
    let server = Background(Scratch::new("pid"));
    let shell = format!("stty tostop; {program} 127.0.0.1:0 --lang en & echo $! > {}; wait", server.0.path());
    let mut command = Command::new("script");
    // -m: a job in the background has a process group of its own, and SIGTTOU stops it when it writes.
    command.args(["-qefc", &format!("sh -mc '{shell}'"), "/dev/null"]).stdin(Stdio::null());
    let mut terminal = Process::start(command);
    let address = terminal.listening();
    assert_echoes(&mut connect(address), b"hola");
    kill_process(server.pid().unwrap(), Signal::TERM).unwrap();
    terminal.line_with("Done: 1 connection accepted");
    terminal.wait();
}

/// The resolver waits for a name server that drops what it is sent.
#[test]
#[ignore = "needs root"]
fn until_it_listens_a_signal_ends_the_server_at_once() {
    for (arguments, status) in [(&["name.example:5000"][..], 0), (&["load", "name.example:5000"], 130)] {
        let script = "ip link set lo up && ip route add 192.0.2.0/24 dev lo && mount --bind /proc/self/fd/0 /etc/resolv.conf \
                      && echo ready >&2 && exec \"$0\" \"$@\"";
        let mut namespace = Command::new("unshare");
        namespace.args(["-mn", "sh", "-c", script]);
        let mut command = wrapped(namespace, &ecoloop(arguments));
        let resolver = Scratch::new("resolv.conf");
        fs::write(resolver.path(), "nameserver 192.0.2.1\n").unwrap();
        command.stdin(File::open(resolver.path()).unwrap());
        let process = Process::start(command);
        eventually("the question to the name server", || {
            let sockets = fs::read_to_string(format!("/proc/{}/net/udp", process.pid())).unwrap_or_default();
            sockets.contains("010200C0:0035")
        });
        let start = Instant::now();
        let ended = process.terminate();
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
        // The resolver gives up after 10 s.
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

/// A signal has no default action for process 1 of a PID namespace (`pid_namespaces(7)`).
#[test]
#[ignore = "needs root"]
fn sigterm_ends_a_subcommand_that_is_process_1() {
    let inner = ecoloop(&["strip", "-", "-o", "-"]);
    let mut command = Command::new("unshare");
    command.args(["--fork", "--pid", "--mount-proc"]).arg(inner.get_program()).args(inner.get_args());
    command.stdin(Stdio::piped());
    let mut process = Process::start(command);
    let _input = process.take_input();
    let (parent, mut subcommand) = (process.pid(), None);
    eventually("process 1", || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        subcommand = children.trim().parse().ok().and_then(Pid::from_raw);
        subcommand.is_some()
    });
    // Until it handles them, signals have no effect.
    eventually("the exit of the process", || {
        let _ = kill_process(subcommand.unwrap(), Signal::TERM);
        process.has_ended()
    });
    assert_eq!(process.wait().status.code(), Some(128 + 15));
}

#[cfg(feature = "load")]
mod load {
    use ecoloop::Config;
    use ecoloop::load::Report;
    use ecoloop::load::report::Verdict;
    use rustix::pipe::fcntl_getpipe_size;
    use tempfile::TempDir;

    use super::*;
    use crate::support::serve;

    /// timeout(1) and a wrapper's Ctrl-C deliver a signal twice.
    #[test]
    fn a_repeat_of_a_signal_does_not_cost_the_report() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        for (first, second) in
            [(Signal::INT, Signal::INT), (Signal::INT, Signal::TERM), (Signal::HUP, Signal::TERM)].repeat(4)
        {
            eventually("a repeat in time", || {
                let before = server.handle().stats().bytes_in;
                let process = Process::start(ecoloop(&["load", "-c", "50", "-d", "1h", "--json", "-", &address]));
                eventually("traffic", || server.handle().stats().bytes_in > before + 10_000);
                let start = Instant::now();
                process.signal(first);
                thread::yield_now();
                process.signal(second);
                if start.elapsed() > REPEAT {
                    return false;
                }
                let ended = process.wait();
                assert_eq!(ended.status.code(), Some(130), "{ended:?}");
                assert_eq!(Report::from_json(&ended.stdout[0]).unwrap().verdict, Verdict::Interrupted);
                true
            });
        }
    }

    #[test]
    fn under_nohup_a_load_outlives_its_terminal() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
        let process = Process::start(wrapped(shell, &ecoloop(&["load", "-d", "1h", "--json", "-", &address])));
        eventually("traffic", || server.handle().stats().bytes_in > 0);
        process.signal(Signal::HUP);
        let before = server.handle().stats().bytes_in;
        eventually("more traffic", || server.handle().stats().bytes_in > before + 10_000);
        process.signal(Signal::INT);
        assert_eq!(process.wait().status.code(), Some(130));
    }

    #[test]
    fn a_load_that_is_killed_or_interrupted_twice_leaves_no_temporary_file() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("report.json");
        let files = || fs::read_dir(directory.path()).unwrap().count();
        let start = || {
            let before = server.handle().stats().bytes_in;
            let arguments = ["load", "-d", "1h", "--json", path.to_str().unwrap(), &address];
            let process = Process::start(ecoloop(&arguments));
            eventually("traffic", || server.handle().stats().bytes_in > before + 10_000);
            process
        };
        let process = start();
        process.signal(Signal::KILL);
        process.wait();
        assert_eq!(files(), 0);

        let mut process = start();
        process.signal(Signal::INT);
        process.signal_until_ended(Signal::TERM);
        process.wait();
        // The second may come before or after the report.
        assert_eq!(files(), usize::from(path.exists()));
    }

    #[test]
    fn a_repeated_load_whose_output_nobody_reads_ends_at_the_first_signal() {
        let server = serve(Config::default());
        let address = server.local_addr().to_string();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&vec![b'x'; fcntl_getpipe_size(&writer).unwrap()]).unwrap();
        let mut command = ecoloop(&["load", "--repeat", "--json", "-", "-m", "1", &address]);
        command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped());
        let mut process = Process::adopt(command);
        process.take_input().write_all(b"\n").unwrap();
        // The first message and that of the window.
        eventually("the window", || server.handle().stats().bytes_out == 2 * 64);
        process.signal(Signal::INT);
        let ended = process.wait();
        let words = "ecoloop: cannot write to standard output: its reader does not read";
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(1), &[words.to_owned()][..]), "{ended:?}");
        drop(reader);
    }
}

#[test]
fn a_signal_ends_a_server_whose_trace_nobody_reads() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("trace.json");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let (mut server, address) = Process::serve(&["--trace", fifo.to_str().unwrap()]);
    let mut client = connect(address);
    // Their steps are more than a pipe holds.
    for _ in 0..3000 {
        assert_echoes(&mut client, b"hola");
    }
    half_close(&client);
    assert_ended(&mut client);
    server.signal_until_ended(Signal::TERM);
    assert_eq!(server.wait().status.code(), Some(1));
}
