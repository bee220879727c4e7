//! The capture of `docs/examples/capture.rs`, read by tshark.

use std::fmt::Write;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use ecoloop::{Config, Server};

use crate::support::{assert_echoes, assert_ended, connect, half_close, pattern, reset};

#[path = "../../docs/examples/capture.rs"]
mod example;

/// Returns the lines that tshark prints about the capture.
#[track_caller]
fn tshark(file: &Path, arguments: &[&str]) -> Vec<String> {
    let output = Command::new("tshark").arg("-r").arg(file).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Returns what each end of a stream has sent, the client first.
#[track_caller]
fn payloads(file: &Path, stream: u32) -> [String; 2] {
    let mut payloads = [String::new(), String::new()];
    for line in tshark(file, &["-q", "-z", &format!("follow,tcp,raw,{stream}")]) {
        let (end, digits) = line.strip_prefix('\t').map_or((0, &line[..]), |digits| (1, digits));
        // Not a line of the frame around them.
        if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            payloads[end] += digits;
        }
    }
    payloads
}

fn hex(data: &[u8]) -> String {
    data.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[test]
#[ignore = "needs tshark"]
fn tshark_finds_the_bytes_of_each_connection_and_no_fault_in_its_packets() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("echo.pcapng");
    let capture = example::Capture::new(BufWriter::new(File::create(&file).unwrap())).unwrap();
    let mut config = Config::default();
    config.buffer_size = 4096;
    let server = Server::bind(["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()].as_slice(), config);
    let server = server.unwrap().with_observer(capture).spawn().unwrap();

    let message = pattern(20_000);
    let mut first = connect(server.local_addrs()[0]);
    assert_echoes(&mut first, &message);
    assert_echoes(&mut first, b"hola");
    half_close(&first);
    assert_ended(&mut first);
    let mut second = connect(server.local_addrs()[1]);
    assert_echoes(&mut second, b"adios");
    reset(second);
    let (report, mut capture) = server.shutdown().unwrap();
    assert_eq!((report.stats.closed.end_of_stream, report.stats.closed.reset), (1, 1));
    capture.flush().unwrap();

    let sent = hex(&[&message, &b"hola"[..]].concat());
    assert_eq!(payloads(&file, 0), [sent.clone(), sent]);
    assert_eq!(payloads(&file, 1), [hex(b"adios"), hex(b"adios")]);
    // Of a gap, a repetition, an acknowledgment of nothing, a wrong length or a wrong sum it makes a remark.
    let faults = "tcp.analysis.flags || _ws.malformed || tcp.checksum.status == 0 || ip.checksum.status == 0";
    let checked = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-Y"];
    assert_eq!(tshark(&file, &[&checked[..], &[faults]].concat()), [""; 0]);
    let flags = |stream: u32| {
        let filter =
            format!("tcp.stream == {stream} && (tcp.flags.syn == 1 || tcp.flags.fin == 1 || tcp.flags.reset == 1)");
        tshark(&file, &["-Y", &filter, "-T", "fields", "-e", "tcp.flags"])
    };
    assert_eq!(flags(0), ["0x0002", "0x0012", "0x0011", "0x0011"]);
    assert_eq!(flags(1), ["0x0002", "0x0012", "0x0014"]);
}
