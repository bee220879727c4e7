//! `load --metrics`: the running figures, beside those of the report.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ecoloop::Config as ServerConfig;
use serde_json::Value;

use super::faulty_server::{echo, echo_messages, faulty_server};
use super::{document, run_command};
use crate::metrics::{assert_promtool_accepts, get};
use crate::support::{Process, ecoloop, eventually, join, serve};

/// Starts a load with metrics, and returns it with their address.
#[track_caller]
pub(super) fn start(arguments: &[&str]) -> (Process, SocketAddr) {
    let common = ["load", "--metrics", "127.0.0.1:0", "--json", "-"];
    let mut load = Process::start(ecoloop(&[&common, arguments].concat()));
    let line = load.error_with("metrics on http://");
    let address = line.split_once("http://").unwrap().1.strip_suffix("/metrics").unwrap();
    (load, address.parse().unwrap())
}

/// Returns the value of a sample, if there is one.
pub(super) fn sample(metrics: SocketAddr, name: &str) -> Option<f64> {
    let body = get(metrics, "/metrics").1;
    let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}

/// Runs against a server that holds back the last message of each of four connections, and asserts the figures of that time.
#[track_caller]
fn assert_metrics_until_the_last_messages(arguments: &[&str]) {
    let released = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&released);
    let server = faulty_server(move |_, stream| {
        // The first one is not of the window.
        echo_messages(stream, 10)?;
        eventually("the scrape", || gate.load(Ordering::Acquire));
        echo(stream)
    });
    let server = server.to_string();
    let (load, metrics) = start(&[&["-c", "4", "-m", "10", "--timeout", "1h", &server], arguments].concat());
    let messages = |outcome: &str| format!("ecoloop_load_messages_total{{outcome=\"{outcome}\"}}");
    eventually("all messages but the last", || sample(metrics, &messages("verified")) == Some(36.0));
    let expected = [
        ("ecoloop_load_connections", 4.0),
        ("ecoloop_load_connections_requested", 4.0),
        ("ecoloop_load_connections_opened_total", 4.0),
        ("ecoloop_load_messages_due_total", 40.0),
        (&messages("unanswered"), 0.0),
        (&messages("unsent"), 0.0),
        (&messages("failed"), 0.0),
        ("ecoloop_load_messages_deferred_total", 0.0),
        ("ecoloop_load_errors_total", 0.0),
        ("ecoloop_load_step{step=\"measure\"}", 1.0),
        ("ecoloop_load_step{step=\"done\"}", 0.0),
        (concat!("ecoloop_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ];
    for (name, value) in expected {
        assert_eq!(sample(metrics, name), Some(value), "{name}");
    }
    released.store(true, Ordering::Release);
    let (json, _) = document(&load.wait());
    assert_eq!((&json["messages"]["due"], &json["messages"]["verified"]), (&Value::from(40), &Value::from(40)));
    assert_eq!(json["connections"]["opened_total"], 4);
}

#[test]
fn the_metrics_are_what_the_report_will_have() {
    assert_metrics_until_the_last_messages(&[]);
}

#[test]
fn the_metrics_of_jobs_are_their_sums() {
    assert_metrics_until_the_last_messages(&["-j", "2"]);
}

#[test]
fn connections_with_faults_are_not_among_those_requested_of_one_process_or_of_jobs() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    for jobs in [&[][..], &["-j", "2"]] {
        // It is ended once it was scraped.
        let (load, metrics) = start(&[&["-c", "6", "-d", "1h", "--fault", "stall,first=3", &address], jobs].concat());
        let mut requested = None;
        eventually("the first progress", || {
            requested = sample(metrics, "ecoloop_load_connections_requested");
            requested.is_some()
        });
        assert_eq!(requested, Some(3.0), "{jobs:?}");
        // All have begun.
        eventually("the window", || sample(metrics, "ecoloop_load_step{step=\"measure\"}") == Some(1.0));
        let (json, _) = document(&load.terminate());
        assert_eq!(json["connections"]["requested"], 3, "{jobs:?}");
    }
}

#[test]
fn the_latency_of_the_last_second_is_that_of_the_timeline() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    // It is ended once it was scraped.
    let (load, metrics) = start(&["-c", "2", "-r", "200", "-d", "1h", &address]);
    let mut scraped = None;
    eventually("the first second", || {
        let body = get(metrics, "/metrics").1;
        let value = |name: &str| {
            let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            // Microseconds are whole.
            Some((line.parse::<f64>().unwrap() * 1e6).round())
        };
        scraped = value("ecoloop_load_latency_p50_seconds").zip(value("ecoloop_load_latency_p99_seconds"));
        scraped.is_some()
    });
    let (json, _) = document(&load.terminate());
    let timeline = json["timeline"].as_array().unwrap();
    let seconds: Vec<_> = timeline.iter().map(|second| second["p50"].as_f64().zip(second["p99"].as_f64())).collect();
    assert!(seconds.contains(&scraped), "{scraped:?} in {seconds:?}");
}

#[test]
fn metrics_that_cannot_be_served_are_refused_before_the_first_connect() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = serve(ServerConfig::default());
    let (metrics, address) = (taken.local_addr().unwrap().to_string(), server.local_addr().to_string());
    let ended = run_command(&["--metrics", &metrics, &address]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr[0].contains(&format!("cannot serve --metrics on {metrics}: ")), "{ended:?}");
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_metrics_of_a_load() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let (load, metrics) = start(&["-c", "2", "-r", "200", "-d", "1m", &address]);
    eventually("the first second", || sample(metrics, "ecoloop_load_latency_p99_seconds").is_some());
    assert_promtool_accepts(metrics);
    let (json, _) = document(&load.terminate());
    assert_eq!(json["ended"], "interrupted");
}
