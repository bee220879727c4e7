//! `load --proxy-protocol`: each connection begins with a header, which is no message.

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{Mode, Verdict};
use ecoloop::load::{Config, ProxyVersion};

use super::{CONNECTIONS, assert_clean, config, document, run, run_command};
use crate::support::{Process, join, serve};

/// Returns the settings of a short run against `server`, which does not expire on a loaded machine.
fn short(mode: Mode, version: ProxyVersion, server: &ecoloop::Running) -> Config {
    let mut config = config(server.local_addr());
    (config.mode, config.proxy_protocol) = (mode, Some(version));
    config.connections = 3;
    config.duration = std::time::Duration::from_millis(100);
    config
}

#[test]
fn a_header_precedes_the_messages_of_every_connection_in_every_mode() {
    for mode in [Mode::Echo, Mode::Hold, Mode::Churn] {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let mut server_config = ServerConfig::default();
            server_config.proxy_protocol = true;
            let server = serve(server_config);
            let report = run(short(mode, version, &server));
            assert_clean(&report);
            assert_eq!(report.config.proxy_protocol, Some(version));
            server.handle().drain();
            let stats = join(server).stats;
            // Each connection had a header, and no byte of it is in the stream.
            assert_eq!(stats.closed.end_of_stream, report.connections.opened_total, "{stats:?}");
            assert_eq!(stats.bytes_in, stats.bytes_out);
            assert_eq!(stats.bytes_in % report.config.size, 0);
        }
    }
}

#[test]
fn a_server_that_does_not_take_the_header_out_is_found() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let server = serve(ServerConfig::default());
        let report = run(short(Mode::Echo, version, &server));
        assert_eq!((report.verdict, report.verify.findings.len()), (Verdict::Fail, CONNECTIONS), "{report:?}");
        assert!(report.verify.findings.iter().all(|finding| finding.offset == 0), "{:?}", report.verify);
        let received = &report.verify.findings[0].received.text;
        let expected = if version == ProxyVersion::V1 { "PROXY TCP4 127.0" } else { "......." };
        assert!(received.starts_with(expected), "{received}");
    }
}

#[test]
fn the_command_line_sends_a_header_and_its_report_says_so() {
    for version in ["v1", "v2"] {
        let (mut server, address) = Process::serve(&["--proxy-protocol"]);
        let arguments = ["--proxy-protocol", version, "--source", "127.0.0.9", "-m", "10", "--json", "-"];
        let (json, report) = document(&run_command(&[&arguments[..], &[&address.to_string()]].concat()));
        assert_clean(&report);
        assert_eq!(json["config"]["proxy_protocol"], version);
        server.line_with("Connection from: 127.0.0.9:");
        let ended = run_command(&["--proxy-protocol", version, "-m", "1", &address.to_string()]);
        assert!(ended.stdout.iter().any(|line| line.contains(&format!("PROXY header {version}"))), "{ended:?}");
    }
    let (mut server, address) = Process::serve(&["--proxy-protocol"]);
    let ended = run_command(&["-m", "1", &address.to_string()]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    server.line_with("Connection closed: its PROXY header is bad or missing");
}
