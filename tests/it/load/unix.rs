//! Loads over Unix sockets.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ecoloop::load::report::{ErrorName, Phase, Verdict};
use ecoloop::load::{Close, Config, Mode, ProxyVersion, Run};
use ecoloop::transport::{AnyAddress, UnixAddress};
use ecoloop::{Config as ServerConfig, Server};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{SIZE, assert_clean, assert_sums, config, document, errors, metrics, reconnect, run, run_command};
use crate::support::{Ended, Process, Scratch, ecoloop, eventually, serve};
use crate::unix::{abandon_socket, new_path};

fn unix(path: impl AsRef<Path>) -> UnixAddress {
    UnixAddress::new(path).unwrap()
}

/// Returns the settings of a run of four connections.
fn of_four(address: impl Into<AnyAddress>) -> Config {
    let mut config = config(address);
    (config.connections, config.duration) = (4, Duration::from_millis(100));
    config
}

#[test]
fn both_ends_agree_on_a_path_and_on_a_name_in_every_mode() {
    let (_directory, path) = new_path();
    let name = format!("@ecoloop-load-{}", std::process::id());
    for place in [path.display().to_string(), name] {
        for (at, (mode, rate)) in [
            (Mode::Echo, None),
            (Mode::Echo, Some(500.0)),
            (Mode::Hold, None),
            (Mode::Churn, None),
            (Mode::Churn, Some(200.0)),
        ]
        .into_iter()
        .enumerate()
        {
            // A process that another test starts has the listening socket of the server before, until its exec.
            let text = format!("{place}-{at}");
            let server = Server::bind_unix(&text, ServerConfig::default()).unwrap().spawn().unwrap();
            let mut config = of_four(server.local_addr());
            (config.mode, config.rate) = (mode, rate);
            let report = run(config);
            // On a loaded machine the last connections of a schedule may not begin.
            assert_eq!((&report.errors[..], &report.verify.findings[..]), (&[][..], &[][..]), "{mode:?}");
            assert_eq!((report.messages.unanswered, report.messages.failed), (0, 0), "{:?}", report.messages);
            assert_eq!(report.config.targets, [AnyAddress::from(unix(&text))]);
            assert!(report.messages.verified > 0);
            server.handle().drain();
            let stats = server.join().unwrap().stats;
            assert_eq!((stats.accepted, stats.closed.end_of_stream), (report.connections.opened_total, stats.accepted));
            assert_eq!(stats.bytes_in, stats.bytes_out);
            // The first message of a connection is not in the report of an echo.
            assert!(stats.bytes_in >= report.messages.verified * SIZE as u64, "{stats:?}");
        }
    }
}

#[test]
fn a_run_of_the_library_takes_a_servers_address() {
    let (_directory, path) = new_path();
    let server = Server::bind_unix(&path, ServerConfig::default()).unwrap().spawn().unwrap();
    let run = Run::new([server.local_addr()]).connections(2).rate(100.0).duration(Duration::from_millis(100));
    let report = run.spawn().unwrap().join().unwrap();
    assert_clean(&report);
    assert!(report.to_string().contains(&format!("to unix:{}", path.display())), "{report}");
}

/// Listens on a path with room for one connection.
fn listen_with_room_for_one(path: &Path) -> UnixListener {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
    // The kernel queues one connection more than the backlog (listen(2) on Linux).
    socket.listen(0).unwrap();
    socket.into()
}

/// Echoes until the client's end.
fn echo(mut stream: UnixStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// Echoes `count` messages, and closes the connection.
fn echo_messages(mut stream: UnixStream, count: usize) -> io::Result<()> {
    let mut message = [0; SIZE];
    for _ in 0..count {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
    Ok(())
}

#[test]
fn a_connect_waits_while_the_backlog_is_full() {
    let (_directory, path) = new_path();
    let listener = listen_with_room_for_one(&path);
    let _first = UnixStream::connect(&path).unwrap();
    let load = Run::from(of_four(unix(&path))).spawn().unwrap();
    // All have found a full backlog: nobody accepts.
    eventually("four connects", || load.progress().is_some_and(|progress| progress.opened == 4));
    thread::spawn(move || listener.incoming().for_each(|stream| drop(thread::spawn(|| echo(stream.unwrap())))));
    let report = load.join().unwrap();
    assert_sums(&report);
    assert_clean(&report);
    assert_eq!(report.connections.held, 4);
}

#[test]
fn a_full_backlog_is_a_connect_timeout() {
    let (_directory, path) = new_path();
    let _listener = listen_with_room_for_one(&path);
    let _first = UnixStream::connect(&path).unwrap();
    let mut config = of_four(unix(&path));
    config.connect_timeout = Duration::from_millis(200);
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::Timeout, Some("EAGAIN"), 4)]);
    assert_eq!(report.errors[0].targets[0].target, AnyAddress::from(unix(&path)));
}

#[test]
fn an_interrupt_ends_connects_that_wait() {
    let (_directory, path) = new_path();
    let _listener = listen_with_room_for_one(&path);
    let _first = UnixStream::connect(&path).unwrap();
    let load = Run::from(of_four(unix(&path))).spawn().unwrap();
    eventually("four connects", || load.progress().is_some_and(|progress| progress.opened == 4));
    load.interrupt();
    let report = load.join().unwrap();
    assert_eq!((report.verdict, report.connections.established), (Verdict::Interrupted, 0));
}

#[test]
fn a_connect_fails_at_once_where_nobody_listens() {
    let (_directory, path) = new_path();
    let target = format!("unix:{}", path.display());
    let load = || {
        let ended = run_command(&["-c", "2", "-d", "100ms", &target]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        ended
    };
    let has = |lines: &[String], words: &str| lines.iter().any(|line| line.contains(words));
    let ended = load();
    assert!(has(&ended.stdout, "connect other (ENOENT): 2,"), "{ended:?}");
    assert!(has(&ended.stderr, "connect ENOENT 2 times: there is no such file; start the server first"), "{ended:?}");
    // A file that a killed server has left.
    abandon_socket(&path);
    let ended = load();
    assert!(has(&ended.stdout, "connect refused (ECONNREFUSED): 2,"), "{ended:?}");
}

#[test]
#[ignore = "needs root, which every permission admits, and runuser"]
fn a_socket_without_permission_is_an_error_with_its_remedy() {
    let (directory, path) = new_path();
    let _server = Server::bind_unix(&path, ServerConfig::default()).unwrap().spawn().unwrap();
    let target = format!("unix:{}", path.display());
    // The other user can reach neither the program of the tests nor the directory.
    let program = directory.path().join("ecoloop");
    fs::copy(ecoloop(&[]).get_program(), &program).unwrap();
    let set_mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    set_mode(directory.path(), 0o755);
    let load = |options: &[&str]| {
        let mut command = Command::new("runuser");
        command.args(["-u", "nobody", "--"]).arg(&program).args(["load", "-d", "100ms", "-c", "2"]).args(options);
        command.arg(&target);
        Process::start(command).wait()
    };
    set_mode(&path, 0o755);
    let ended = load(&[]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let has = |lines: &[String], words: &str| lines.iter().any(|line| line.contains(words));
    assert!(has(&ended.stdout, "connect other (EACCES): 2,"), "{ended:?}");
    let advice = "a client needs the permission to write to the file of the Unix socket (--unix-mode of serve), and to";
    assert!(has(&ended.stderr, advice), "{ended:?}");
    set_mode(&path, 0o777);
    assert_clean(&document(&load(&["--json", "-"])).1);
}

#[test]
fn replies_before_a_servers_close_are_counted() {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            thread::spawn(move || echo_messages(stream, 3));
        }
    });
    let mut config = of_four(unix(&path));
    config.messages_per_connection = Some(5);
    let report = run(config);
    // Over TCP a client sends its fourth message, and then reads the end of the stream. Here the write fails, or is a reset if it came
    // just before the close. The first message of a connection is not in the report.
    let is_end = |error| matches!(error, ErrorName::ClosedEarly | ErrorName::Reset);
    let errors = errors(&report);
    assert!(errors.iter().all(|&(phase, error, ..)| phase == Phase::Receive && is_end(error)), "{errors:?}");
    assert_eq!(errors.iter().map(|&(.., count)| count).sum::<u64>(), 4);
    assert_eq!((report.messages.due, report.messages.verified), (12, 8), "{:?}", report.messages);
}

#[test]
fn a_close_with_unread_bytes_is_a_reset() {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            thread::spawn(move || stream.read_exact(&mut [0; 1]));
        }
    });
    let report = run(of_four(unix(&path)));
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::Reset, Some("ECONNRESET"), 4)]);
}

#[test]
fn tcp_and_unix_targets_share_the_connections() {
    let (_directory, path) = new_path();
    let _unix_server = Server::bind_unix(&path, ServerConfig::default()).unwrap().spawn().unwrap();
    let tcp_server = serve(ServerConfig::default());
    let mut config = of_four(tcp_server.local_addr());
    config.targets.push(vec![unix(&path).into()]);
    config.messages_per_connection = Some(10);
    let report = run(config);
    assert_clean(&report);
    let figures: Vec<_> = report.targets.iter().map(|of| (of.target.is_unix(), of.figures.messages)).collect();
    assert_eq!(figures, [(false, 20), (true, 20)]);
}

#[test]
fn what_tcp_alone_has_is_refused() {
    let (_directory, path) = new_path();
    let mut config = of_four(unix(&path));
    config.close = Close::Rst;
    assert_eq!(config.validate().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let target = format!("unix:{}", path.display());
    for (arguments, reason) in [
        (&["--source", "127.0.0.1"][..], "a connection to a Unix socket has no source address: leave out the sources"),
        (&["--source", "127.0.0.1", "127.0.0.1:9"], "a connection to a Unix socket has no source address"),
        (&["--close", "rst"], "a connection to a Unix socket cannot be closed with RST: TCP alone has it"),
        (&["--fault", "reset=1s"], "the fault reset cannot be used with a Unix socket: TCP alone has RST"),
        (&["--nagle"], "--nagle cannot be used with a Unix socket: TCP alone has Nagle's algorithm"),
        (&["-4"], "is not an IPv4 address"),
        (&["--metrics", &target], "a Unix socket cannot be used here"),
    ] {
        let ended = run_command(&[arguments, &[&target[..]]].concat());
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr[0].contains(reason), "{arguments:?}: {ended:?}");
    }
}

/// Runs against `ecoloop serve` with options of its own.
#[track_caller]
fn run_on_command(server_options: &[&str], options: &[&str]) -> (Value, Ended) {
    let (_directory, path) = new_path();
    let target = format!("unix:{}", path.display());
    let mut server = Process::start(ecoloop(&[server_options, &[&target]].concat()));
    server.line_with("Waiting for connections...");
    let pid = server.pid().to_string();
    let ended = run_command(&[&["--server-pid", &pid, "--json", "-"], options, &[&target]].concat());
    let (json, report) = document(&ended);
    assert_clean(&report);
    assert_eq!(json["config"]["targets"], serde_json::json!([target]));
    assert_eq!(json["server"]["pid"].to_string(), pid);
    (json, ended)
}

#[test]
fn options_apply_to_unix_sockets() {
    let (json, _) = run_on_command(&[], &["-c", "2", "-r", "0..200@100ms,200@100ms"]);
    let stages = json["stages"].as_array().unwrap();
    let due: Vec<_> = stages.iter().map(|stage| stage["messages"]["due"].as_u64().unwrap()).collect();
    assert_eq!(due, [10, 20]);
    let (json, _) = run_on_command(&[], &["-c", "2", "--reconnect", "-d", "200ms"]);
    assert_eq!(json["outages"]["count"], 0);
    let (json, _) =
        run_on_command(&[], &["-c", "4", "--fault", "stall,first=1", "--fault", "fin=1,after=3", "-d", "200ms"]);
    let faults = json["faults"].as_array().unwrap();
    assert!(faults.len() == 2 && faults.iter().all(|fault| fault["connections"] == 1), "{faults:?}");
    let (json, _) = run_on_command(&[], &["-c", "2", "-r", "50..100", "--find-rate", "p99<10s", "--window", "100ms"]);
    let probe = &json["search"]["probes"][0];
    assert_eq!(probe["rate"], 50.0);
    assert_eq!(probe["passed"], true, "{probe}");
    assert!(probe["p50_us"].as_u64() > Some(0), "{probe}");
    let (json, _) = run_on_command(&[], &["-c", "4", "-j", "2", "-d", "200ms"]);
    assert_eq!(json["connections"]["held"], 4);
    for version in ["v1", "v2"] {
        run_on_command(&["--proxy-protocol"], &["-c", "2", "--proxy-protocol", version, "-d", "100ms"]);
    }
}

#[test]
fn a_connection_to_a_unix_socket_is_opened_anew() {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().map(Result::unwrap).enumerate() {
            // The second message is in the window.
            thread::spawn(move || if number == 0 { echo_messages(stream, 2) } else { echo(stream) });
        }
    });
    let mut config = config(unix(&path));
    (config.connections, config.reconnect) = (1, true);
    let report = reconnect::start(config, 1).join().unwrap();
    assert_sums(&report);
    let outages = report.outages.as_ref().unwrap();
    assert_eq!((outages.count, outages.recovered, report.connections.opened_total), (1, 1, 2), "{outages:?}");
}

#[test]
fn the_metrics_of_a_load_on_a_unix_socket_are_those_of_its_report() {
    let (_directory, path) = new_path();
    let server = Server::bind_unix(&path, ServerConfig::default()).unwrap().spawn().unwrap();
    let target = format!("unix:{}", path.display());
    // It is ended once it was scraped.
    let (load, metrics) = metrics::start(&["-c", "2", "-r", "200", "-d", "1h", &target]);
    let mut verified = None;
    eventually("replies", || {
        verified = metrics::sample(metrics, "ecoloop_load_messages_total{outcome=\"verified\"}");
        verified > Some(0.0)
    });
    assert_eq!(metrics::sample(metrics, "ecoloop_load_connections"), Some(2.0));
    assert_eq!(metrics::sample(metrics, "ecoloop_load_errors_total"), Some(0.0));
    let (json, _) = document(&load.terminate());
    assert!(json["messages"]["verified"].as_f64() >= verified, "{verified:?}: {json}");
    server.handle().drain();
    assert_eq!(server.join().unwrap().stats.accepted, 2);
}

#[test]
fn a_header_without_addresses_is_sent_in_the_library_too() {
    let (_directory, path) = new_path();
    let mut server_config = ServerConfig::default();
    server_config.proxy_protocol = true;
    let _server = Server::bind_unix(&path, server_config).unwrap().spawn().unwrap();
    let mut config = of_four(unix(&path));
    config.proxy_protocol = Some(ProxyVersion::V2);
    assert_clean(&run(config));
}

#[test]
fn reports_of_unix_sockets_are_merged_and_compared() {
    let (_directory, path) = new_path();
    let target = format!("unix:{}", path.display());
    let mut server = Process::start(ecoloop(&[&target]));
    server.line_with("Waiting for connections...");
    let files = [Scratch::new("one.json"), Scratch::new("other.json")];
    let start = humantime::format_rfc3339(std::time::SystemTime::now() + Duration::from_millis(500)).to_string();
    let runs = files.each_ref().map(|file| {
        Process::start(ecoloop(&["load", "-q", "-d", "300ms", "--start-at", &start, "--json", file.path(), &target]))
    });
    for ended in runs.map(Process::wait) {
        ended.assert_measured();
    }
    let merged = Process::start(ecoloop(&["merge", "--json", "-", files[0].path(), files[1].path()])).wait();
    let (json, report) = document(&merged);
    assert_eq!(json["config"]["targets"], serde_json::json!([target]));
    let due = files.each_ref().map(|file| file.json()["messages"]["due"].as_u64().unwrap());
    assert_eq!(report.messages.due, due.iter().sum::<u64>(), "{due:?}");

    let live = ["compare", "--live", "--windows", "3", "-d", "50ms", "--json", "-", &target, &target];
    let ended = Process::start(ecoloop(&live)).wait();
    ended.assert_measured();
    let json: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
    let side = serde_json::json!({"targets": [target], "windows": 3, "left_out": 0, "errors": 0});
    assert_eq!((&json["old"], &json["new"]), (&side, &side), "{json}");
    server.terminate();
}

#[test]
fn a_client_half_closes_a_unix_socket() {
    let (_directory, path) = new_path();
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        let mut buffer = [0; SIZE];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => {
                    stream.write_all(&buffer[..n]).unwrap();
                    all.extend_from_slice(&buffer[..n]);
                }
            }
        }
        // What comes after the client's FIN is found.
        stream.write_all(b"extra").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        all.len()
    });
    let mut config = of_four(unix(&path));
    (config.connections, config.messages_per_connection) = (1, Some(2));
    let report = run(config);
    assert_eq!(server.join().unwrap(), 3 * SIZE);
    assert_eq!(report.verify.extra_bytes, 5, "{:?}", report.verify);
    assert_eq!((report.verify.findings[0].local, &report.verify.findings[0].peer), (None, &report.config.targets[0]));
}
