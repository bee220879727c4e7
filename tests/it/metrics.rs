//! `serve --metrics`: what Prometheus scrapes, and clients that harm nobody.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Process, Scratch, TIMEOUT, assert_echoes, assert_ended, assert_reset, await_not_listening, connect, ecoloop,
    eventually, free_address, half_close, is_listening, limit_descriptors, reserve_port, reset, serial,
    with_descriptors, wrapped,
};

const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Starts a server with metrics, and returns it with its address and that of the metrics.
#[track_caller]
fn serve(arguments: &[&str]) -> (Process, SocketAddr, SocketAddr) {
    let (mut server, address) = Process::serve(&[&["--metrics", "127.0.0.1:0"], arguments].concat());
    let line = server.line_with("Metrics on http://");
    let metrics = line.split_once("http://").unwrap().1.strip_suffix("/metrics").unwrap();
    (server, address, metrics.parse().unwrap())
}

#[test]
#[ignore = "needs root"]
fn a_name_that_resolves_to_one_address_twice_is_bound_once() {
    let address = free_address();
    let mut namespace = Command::new("unshare");
    namespace.args(["-m", "sh", "-c", "mount --bind /proc/self/fd/0 /etc/hosts && exec \"$0\" \"$@\""]);
    let twice = format!("twice.example:{}", address.port());
    let mut command = wrapped(namespace, &ecoloop(&["127.0.0.1:0", "--metrics", &twice]));
    let hosts = Scratch::new("hosts");
    fs::write(hosts.path(), format!("{} twice.example\n", address.ip()).repeat(2)).unwrap();
    command.stdin(File::open(hosts.path()).unwrap());
    let mut server = Process::start(command);
    server.line_with(&format!("Metrics on http://{address}"));
    assert!(request(address, "GET /metrics HTTP/1.0\r\n\r\n").0.contains(" 200 "));
}

/// Sends a request, and returns the head and the body of the response, which ends the connection.
#[track_caller]
fn request(address: SocketAddr, head: &str) -> (String, String) {
    let mut stream = connect(address);
    stream.write_all(head.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[track_caller]
pub(crate) fn get(address: SocketAddr, path: &str) -> (String, String) {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
}

/// Returns the value of a sample, such as `ecoloop_connections`.
#[track_caller]
fn sample(address: SocketAddr, name: &str) -> f64 {
    let body = get(address, "/metrics").1;
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {body}")).parse().unwrap()
}

/// Starts a server that has been used in each way that the metrics show.
#[track_caller]
fn used() -> (Process, SocketAddr) {
    let (server, address, metrics) =
        serve(&["--max-connections", "2", "--when-full", "reset", "--fault", "delay=1ms,first=1"]);
    let mut ended = connect(address);
    assert_echoes(&mut ended, b"hola");
    half_close(&ended);
    assert_ended(&mut ended);
    let mut gone = connect(address);
    assert_echoes(&mut gone, b"adios");
    reset(gone);
    eventually("the reset", || sample(metrics, "ecoloop_connections") == 0.0);
    let mut open = [connect(address), connect(address)];
    for client in &mut open {
        assert_echoes(client, b"hola");
    }
    assert_reset(connect(address));
    // They stay open to the end of the test.
    std::mem::forget(open);
    (server, metrics)
}

#[test]
fn the_metrics_are_what_the_server_has_done() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let begun = now();
    let (server, metrics) = used();
    for (name, value) in [
        ("ecoloop_connections", 2.0),
        ("ecoloop_max_connections", 2.0),
        ("ecoloop_connections_accepted_total", 4.0),
        ("ecoloop_connections_closed_total{reason=\"end_of_stream\"}", 1.0),
        ("ecoloop_connections_closed_total{reason=\"reset\"}", 1.0),
        ("ecoloop_connections_closed_total{reason=\"cut\"}", 0.0),
        ("ecoloop_connections_refused_total{reason=\"max_connections\"}", 1.0),
        ("ecoloop_connections_refused_total{reason=\"not_allowed\"}", 0.0),
        ("ecoloop_bytes_total{direction=\"in\"}", 17.0),
        ("ecoloop_bytes_total{direction=\"out\"}", 17.0),
        ("ecoloop_discarded_bytes_total", 0.0),
        ("ecoloop_log_lines_lost_total", 0.0),
        ("ecoloop_faults_total{kind=\"delay\"}", 1.0),
        ("ecoloop_faults_total{kind=\"mute\"}", 0.0),
        (concat!("ecoloop_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(sample(metrics, name).to_bits(), f64::to_bits(value), "{name}");
    }
    // Each of the accepts, messages and closes took a turn, together less than the test.
    assert!(sample(metrics, "ecoloop_turn_seconds_count") >= 7.0);
    assert_eq!(
        sample(metrics, "ecoloop_turn_seconds_count").to_bits(),
        sample(metrics, "ecoloop_turn_seconds_bucket{le=\"+Inf\"}").to_bits()
    );
    let sum = sample(metrics, "ecoloop_turn_seconds_sum");
    assert!(0.0 < sum && sum < TIMEOUT.as_secs_f64(), "{sum}");
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let field = |name: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    assert_eq!(sample(metrics, "process_threads").to_bits(), field("Threads:").to_bits());
    assert_eq!(sample(metrics, "process_virtual_memory_bytes").to_bits(), (field("VmSize:") * 1024.0).to_bits());
    let open = sample(metrics, "process_open_fds");
    // The connection of the request, and the directory that is read, come and go.
    let expected = f64::from(u32::try_from(server.descriptors().len()).unwrap());
    assert!((open - expected).abs() <= 2.0, "{open}");
    let resident = sample(metrics, "process_resident_memory_bytes") / (field("VmRSS:") * 1024.0);
    assert!((0.5..2.0).contains(&resident), "{resident} of VmRSS");
    let start = sample(metrics, "process_start_time_seconds");
    // The kernel's boot time is in whole seconds.
    assert!((begun - 2.0..now() + 2.0).contains(&start), "{start} of {begun}");
    let cpu = sample(metrics, "process_cpu_seconds_total");
    assert!((0.0..=(now() - begun) * field("Threads:")).contains(&cpu), "{cpu} s");
}

/// A load balancer that stopped sending clients to a full server would send them all to the next one.
#[test]
fn a_full_server_is_healthy_and_its_metrics_show_that_it_is_full() {
    let (_server, address, metrics) = serve(&["--max-connections", "1"]);
    let is_full = || sample(metrics, "ecoloop_connections") >= sample(metrics, "ecoloop_max_connections");
    assert!(!is_full());
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    // The loop stores its counts after the client may have received the echo.
    eventually("a full server", is_full);
    assert!(get(metrics, "/healthz").0.starts_with("HTTP/1.1 200 OK"));
    half_close(&client);
    eventually("the close", || !is_full());
}

/// The default is what the descriptor limit leaves for connections.
#[test]
fn the_maximum_without_the_option_leaves_descriptors_for_the_metrics() {
    let command = ecoloop(&["127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    let mut server = Process::start(with_descriptors(500, &command));
    server.listening();
    let line = server.line_with("/metrics");
    let metrics = line.split("http://").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    assert_eq!(sample(metrics, "ecoloop_max_connections").to_bits(), (500.0_f64 - 128.0).to_bits());
    assert_eq!(sample(metrics, "process_max_fds").to_bits(), 500.0_f64.to_bits());
}

#[test]
fn the_format_is_the_one_that_is_asked_for() {
    let (_server, _, metrics) = serve(&[]);
    let has_type = |head: &str, expected| head.lines().any(|line| line == format!("Content-Type: {expected}"));
    let (head, body) = get(metrics, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && has_type(&head, PLAIN), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(body.contains("# TYPE ecoloop_connections_accepted_total counter\n"), "{body}");
    assert!(!body.contains("# EOF"), "{body}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let (head, body) = request(metrics, &format!("GET /metrics HTTP/1.1\r\n{accept}\r\n\r\n"));
    assert!(has_type(&head, OPENMETRICS), "{head}");
    assert!(body.contains("# TYPE ecoloop_connections_accepted counter\n") && body.ends_with("# EOF\n"), "{body}");
}

#[test]
fn what_is_not_served_has_its_status() {
    let (_server, _, metrics) = serve(&[]);
    for (head, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nhola", "405 Method Not Allowed"),
        ("HEAD /healthz HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("hola\r\n\r\n", "400 Bad Request"),
        (&format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(10_000)), "400 Bad Request"),
    ] {
        let response = request(metrics, head).0;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}: {response}");
        assert!(response.contains("Content-Type: text/plain; charset=utf-8"), "{response}");
    }
}

#[test]
fn a_server_is_healthy_until_it_drains() {
    let (server, address, metrics) = serve(&["--drain-timeout", "1h"]);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    assert_eq!(get(metrics, "/healthz").1, "ok\n");
    server.signal(Signal::TERM);
    await_not_listening(address);
    let (head, body) = get(metrics, "/healthz");
    assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
    assert_eq!(body, "shutting down\n");
    assert_eq!(sample(metrics, "ecoloop_connections").to_bits(), 1f64.to_bits());
    assert_ended(&mut client);
    half_close(&client);
    assert!(server.wait().status.success());
}

#[test]
fn slow_clients_are_closed_at_their_deadline() {
    let (_server, _, metrics) = serve(&[]);
    let start = Instant::now();
    let mut slow = [connect(metrics), connect(metrics)];
    slow[0].write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    for client in &mut slow {
        // FIN, or RST for the input that was sent.
        if let Err(error) = client.read_to_end(&mut Vec::new()) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        // The deadline counts from the accept.
        assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    }
    assert_eq!(get(metrics, "/healthz").1, "ok\n");
}

#[test]
fn a_thousand_silent_clients_delay_neither_a_scrape_nor_the_echo() {
    let _serial = serial();
    let (server, address, metrics) = serve(&[]);
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(TcpStream::connect(metrics).unwrap());
        // Sixty-four, and what a server without metrics has. They are closed within two seconds anyway, so it is counted now.
        let open = server.descriptors().len();
        assert!(open < 64 + 20, "{open} descriptors with {} clients", silent.len());
    }
    assert_echoes(&mut connect(address), b"hola");
    assert_eq!(get(metrics, "/healthz").1, "ok\n");
}

#[test]
fn a_client_that_does_not_read_its_response_or_sends_on_is_closed() {
    let (_server, _, metrics) = serve(&[]);
    let mut client = connect(metrics);
    let mut sent = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
    while sent.is_ok() {
        sent = client.write_all(&[b'x'; 4096]);
    }
    assert_ne!(sent.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(get(metrics, "/healthz").1, "ok\n");
}

#[test]
fn errors_of_accept_are_counted_by_name() {
    let (mut server, address, metrics) = serve(&[]);
    limit_descriptors(&server, Some(1));
    let _waiting = connect(address);
    server.line_with("cannot accept on");
    limit_descriptors(&server, Some(4096));
    assert!(sample(metrics, "ecoloop_accept_errors_total{errno=\"EMFILE\"}") >= 1.0);
}

#[test]
fn lost_log_lines_are_counted() {
    let (_reserved, address) = reserve_port();
    let metrics = free_address();
    let mut command = ecoloop(&["--reuse-port", &address.to_string(), "--metrics", &metrics.to_string()]);
    command.stdout(File::create("/dev/full").unwrap()).stderr(Stdio::piped());
    let _server = Process::adopt(command);
    eventually("the server", || is_listening(address) && is_listening(metrics));
    // Two lines of the start, and that of the metrics.
    let lost = || sample(metrics, "ecoloop_log_lines_lost_total");
    eventually("lost lines", || lost() >= 3.0);
    assert_eq!(lost().to_bits(), 3.0_f64.to_bits());
}

#[test]
fn an_address_in_use_is_one_line_and_nothing_is_served() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let ended = Process::start(ecoloop(&["127.0.0.1:0", "--metrics", &address.to_string()])).wait();
    let line = format!(
        "ecoloop: cannot serve --metrics on {address}: Address already in use (os error 98); choose another port"
    );
    assert_eq!((ended.status.code(), &ended.stderr[..], &ended.stdout[..]), (Some(1), &[line][..], &[][..]));
    let ended = Process::start(ecoloop(&["127.0.0.1:0", "--metrics", "192.0.2.1:9100"])).wait();
    assert!(ended.stderr[0].ends_with("; no interface of this machine has this address (see ip address)"), "{ended:?}");
    let ended = Process::start(ecoloop(&["127.0.0.1:0", "--metrics", "9100"])).wait();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}

/// A dashboard with a name that the server does not have shows nothing, and says nothing.
#[test]
fn the_dashboard_shows_families_that_there_are_and_all_of_ecoloop() {
    let dashboard: Value = serde_json::from_str(include_str!("../../docs/grafana/ecoloop.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = expressions.iter().flat_map(|expression| expression.split(|character| !is_name(character)));
    let shown: BTreeSet<_> =
        words.filter(|word| word.starts_with("ecoloop_") || word.starts_with("process_")).collect();
    let (_server, metrics) = used();
    let body = get(metrics, "/metrics").1;
    let families: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in &shown {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(families.contains(&family), "the dashboard shows {name}");
    }
    for family in families.iter().filter(|family| family.starts_with("ecoloop_") && **family != "ecoloop_build_info") {
        assert!(shown.iter().any(|name| name.starts_with(family)), "the dashboard does not show {family}");
    }
    // A family that a load does not serve.
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let queries: Vec<_> = variables.iter().filter(|variable| variable["type"] == "query").collect();
    assert!(!queries.is_empty());
    for query in queries {
        assert!(query["query"].as_str().unwrap().starts_with("label_values(ecoloop_max_connections"), "{query}");
    }
}

/// Asserts that promtool finds no fault in the metrics at an address.
#[track_caller]
pub(crate) fn assert_promtool_accepts(metrics: SocketAddr) {
    let mut promtool = Command::new("promtool");
    let mut child = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(get(metrics, "/metrics").1.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_metrics_of_a_server() {
    let (_server, metrics) = used();
    assert_promtool_accepts(metrics);
}

#[test]
#[ignore = "needs prometheus, and takes 10 s"]
fn prometheus_scrapes_and_answers_queries() {
    let (_server, metrics) = used();
    let directory = TempDir::new().unwrap();
    let configuration = directory.path().join("prometheus.yml");
    let scrape = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: ecoloop, static_configs: [{{targets: ['{metrics}']}}]}}]\n"
    );
    fs::write(&configuration, scrape).unwrap();
    let web = free_address();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", configuration.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    command.arg(format!("--web.listen-address={web}"));
    let _prometheus = Process::start(command);
    let query = |expression: &str| -> Option<f64> {
        let mut stream = TcpStream::connect(web).ok()?;
        write!(stream, "GET /api/v1/query?query={expression} HTTP/1.0\r\n\r\n").ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        let answer: Value = serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    eventually("ten scrapes", || query("count_over_time(up[1m])").is_some_and(|count| count >= 10.0));
    let is = |expression: &str, value: f64| assert_eq!(query(expression), Some(value), "{expression}");
    is("min_over_time(up[1m])", 1.0);
    is("ecoloop_connections_accepted_total", 4.0);
    is("sum(ecoloop_connections_closed_total)", 2.0);
    is("ecoloop_connections_refused_total{reason=\"max_connections\"}", 1.0);
    is("ecoloop_bytes_total{direction=\"in\"}", 17.0);
    is("ecoloop_build_info", 1.0);
    assert!(query("histogram_quantile(0.99,ecoloop_turn_seconds_bucket)").is_some_and(|seconds| seconds > 0.0));
}
