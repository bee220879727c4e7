//! `HAProxy` and nginx: with the PROXY protocol in front of `serve` and behind `load`, and reloaded during a load that reconnects.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::Config;
use ecoloop::load::{self, Interrupt, ProgressCell};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::{
    Ended, Process, TIMEOUT, assert_echoes, assert_ended, connect, connect_from, ecoloop, eventually, half_close,
    is_listening, serve,
};

/// A proxy that runs in the foreground, with its configuration.
struct Proxy {
    process: Process,
    /// Where it listens, on IPv4. On the same port it listens on `::1`.
    address: SocketAddr,
    _directory: TempDir,
}

const HAPROXY: &str = "\
defaults
    mode tcp
    timeout connect 30s
    timeout client 30s
    timeout server 30s
listen echo
    bind 127.0.0.1:PORT BIND
    bind [::1]:PORT BIND
    server echo SERVER OPTIONS
";

/// It serves a stream, and has no worker processes, which would outlive it.
const NGINX: &str = "\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid DIRECTORY/pid;
error_log stderr;
events {}
stream {
    server {
        listen 127.0.0.1:PORT BIND;
        listen [::1]:PORT BIND;
        proxy_pass SERVER;
        OPTIONS
    }
}
";

/// Starts `HAProxy` with `bind` options, in front of `server`, which has `options`.
#[track_caller]
fn haproxy(bind: &str, server: SocketAddr, options: &str) -> Proxy {
    start(&["haproxy", "-db", "-f"], HAPROXY, bind, server, options)
}

/// Starts nginx with `listen` options, in front of `server`.
#[track_caller]
fn nginx(listen: &str, server: SocketAddr, directives: &str) -> Proxy {
    start(&["nginx", "-c"], NGINX, listen, server, directives)
}

/// Starts a proxy on a port that was free, until one still is.
#[track_caller]
fn start(command: &[&str], template: &str, bind: &str, server: SocketAddr, options: &str) -> Proxy {
    let mut proxy = None;
    eventually("a free port", || {
        let directory = TempDir::new().unwrap();
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let config = template
            .replace("PORT", &address.port().to_string())
            .replace("BIND", bind)
            .replace("SERVER", &server.to_string())
            .replace("OPTIONS", options)
            .replace("DIRECTORY", directory.path().to_str().unwrap());
        let path = directory.path().join("config");
        fs::write(&path, config).unwrap();
        let mut program = Command::new(command[0]);
        program.args(&command[1..]).arg(path);
        let mut process = Process::start(program);
        eventually("the proxy", || is_listening(address) || process.has_ended());
        if process.has_ended() {
            eprintln!("{:?}", process.wait());
            return false;
        }
        proxy = Some(Proxy { process, address, _directory: directory });
        true
    });
    proxy.unwrap()
}

/// Asserts that the log of a server behind a proxy names the clients of both families, and that they receive their echo.
#[track_caller]
fn assert_announces_clients(mut server: Process, proxy: Proxy) {
    let ipv6 = SocketAddr::from(("::1".parse::<std::net::Ipv6Addr>().unwrap(), proxy.address.port()));
    let connects: [&dyn Fn() -> TcpStream; 2] = [&|| connect_from([127, 0, 0, 9], proxy.address), &|| connect(ipv6)];
    for connect in connects {
        // Not before the line of the client before it was read: the proxy may connect the two in either order.
        let mut client = connect();
        assert_echoes(&mut client, b"hola");
        server.line_with(&format!("Connection from: {}", client.local_addr().unwrap()));
        half_close(&client);
        assert_ended(&mut client);
    }
    drop(proxy.process);
    let ended = server.terminate();
    assert!(!ended.stdout.iter().any(|line| line.contains("bad or missing")), "{ended:?}");
    assert!(ended.summary().contains(", 8 bytes in, 8 bytes out, "), "{ended:?}");
}

/// Asserts that a load through `proxy` passes with a header, and that the proxy requires one.
#[track_caller]
fn assert_requires_a_header(proxy: &Proxy) {
    let load = |arguments: &[&str], address: SocketAddr| -> Ended {
        let address = address.to_string();
        Process::start(ecoloop(&[&["load", "-c", "3", "-m", "100"], arguments, &[&address]].concat())).wait()
    };
    let ipv6 = SocketAddr::from(("::1".parse::<std::net::Ipv6Addr>().unwrap(), proxy.address.port()));
    for address in [proxy.address, ipv6] {
        for version in ["v1", "v2"] {
            let ended = load(&["--proxy-protocol", version], address);
            ended.assert_measured();
            assert!(ended.stdout.iter().any(|line| line.contains("300 due: 300 verified")), "{version}: {ended:?}");
        }
        assert_eq!(load(&[], address).status.code(), Some(1));
    }
}

#[test]
#[ignore = "needs haproxy"]
fn serve_takes_the_headers_of_haproxy() {
    // The probes are the proxy's own connections: `LOCAL`.
    for options in ["send-proxy", "send-proxy-v2", "send-proxy-v2 check inter 100ms"] {
        let (mut server, address) = Process::serve(&["--proxy-protocol"]);
        let proxy = haproxy("", address, options);
        if options.contains("check") {
            server.line_with("Connection from: 127.0.0.1:");
        }
        assert_announces_clients(server, proxy);
    }
}

#[test]
#[ignore = "needs haproxy"]
fn serve_takes_the_longest_headers_of_haproxy() {
    let (server, address) = Process::serve(&["--proxy-protocol"]);
    let options = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id";
    assert_announces_clients(server, haproxy("", address, options));
}

#[test]
#[ignore = "needs nginx, and its module for streams"]
fn serve_takes_the_headers_of_nginx() {
    let (server, address) = Process::serve(&["--proxy-protocol"]);
    assert_announces_clients(server, nginx("", address, "proxy_protocol on; proxy_half_close on;"));
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_takes_the_headers_of_load() {
    let (_server, address) = Process::serve(&[]);
    assert_requires_a_header(&haproxy("accept-proxy", address, ""));
}

#[test]
#[ignore = "needs nginx, and its module for streams"]
fn nginx_takes_the_headers_of_load() {
    let (_server, address) = Process::serve(&[]);
    assert_requires_a_header(&nginx("proxy_protocol", address, ""));
}

/// The master process of a proxy, which forwards its signals to its workers. Ends with them when dropped.
struct Master(Process);

impl Drop for Master {
    fn drop(&mut self) {
        // SIGKILL, with which a process is dropped, leaves the workers.
        let deadline = Instant::now() + TIMEOUT;
        while !self.0.has_ended() && Instant::now() < deadline {
            self.0.signal(Signal::TERM);
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Reloads a proxy in front of a server with `signal`, while a load goes through it. Its old connections are closed.
#[track_caller]
fn assert_measures_a_reload(command: &[&str], template: &str, signal: Signal) {
    const CONNECTIONS: u64 = 10;
    let server = serve(Config::default());
    let proxy = start(command, template, "", server.local_addr(), "");
    let (address, master) = (proxy.address, Master(proxy.process));
    let before = server.handle().stats().accepted;
    let mut config = load::Config::new(vec![address]);
    (config.connections, config.rate) = (10, Some(500.0));
    (config.reconnect, config.duration) = (true, TIMEOUT);
    let interrupt = Interrupt::default();
    let run = {
        let interrupt = interrupt.clone();
        thread::spawn(move || load::run(config, &interrupt, &ProgressCell::default()).unwrap())
    };
    let handle = server.handle();
    let bytes = |count: u64| {
        let from = handle.stats().bytes_in;
        eventually("messages through the proxy", || handle.stats().bytes_in >= from + 64 * count);
    };
    eventually("the connections of the load", || handle.stats().open() >= CONNECTIONS);
    bytes(100);
    master.0.signal(signal);
    eventually("new connections", || handle.stats().accepted >= before + 2 * CONNECTIONS);
    eventually("the end of the old connections", || handle.stats().open() <= CONNECTIONS);
    bytes(100);
    interrupt.set();
    let report = run.join().unwrap();
    let outages = report.outages.as_ref().unwrap();
    assert!(outages.count >= CONNECTIONS && outages.recovered == outages.count, "{outages:?}");
    assert_eq!(report.connections.held, CONNECTIONS, "{:?}", report.connections);
    let messages = report.messages;
    let sum = messages.unsent + messages.verified + messages.unanswered + messages.failed;
    assert_eq!((messages.due, &report.verify.findings[..]), (sum, &[][..]), "{messages:?}");
    assert!(messages.verified >= 200, "{messages:?}");
}

#[test]
#[ignore = "needs haproxy"]
fn load_measures_a_reload_of_haproxy() {
    // An old worker would otherwise serve its connections until their clients close them.
    let template = format!("global\n    hard-stop-after 100ms\n{HAPROXY}");
    assert_measures_a_reload(&["haproxy", "-W", "-db", "-f"], &template, Signal::USR2);
}

#[test]
#[ignore = "needs nginx, and its module for streams"]
fn load_measures_a_reload_of_nginx() {
    let template = NGINX.replace("master_process off;", "worker_processes 1;\nworker_shutdown_timeout 100ms;");
    assert_measures_a_reload(&["nginx", "-c"], &template, Signal::HUP);
}
