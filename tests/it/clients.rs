//! Common clients: each must receive its echo, and exit.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};

use ecoloop::Config;

use crate::support::{Ended, Process, TIMEOUT, eventually, serve};

/// Starts a client, and returns it with its standard input.
#[track_caller]
fn start(program: &str, arguments: &[&str]) -> (Process, ChildStdin) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    let mut process = Process::start(command);
    let input = process.take_input();
    (process, input)
}

/// Sends a message without a newline, then ends the input. The client must print the message and exit.
#[track_caller]
fn assert_prints_the_echo((process, mut input): (Process, ChildStdin)) {
    input.write_all(b"hello").unwrap();
    drop(input);
    assert_succeeds(&process.wait(), &["hello"]);
}

/// Types lines at a client, and waits for the echo of each. Returns the other lines that the client prints.
#[track_caller]
fn type_lines(process: &mut Process, input: &mut ChildStdin) -> Vec<String> {
    let mut other_lines = Vec::new();
    for line in ["hola", "¿qué tal?", "adiós"] {
        writeln!(input, "{line}").unwrap();
        let mut lines = process.lines_through(line);
        assert_eq!(lines.pop().unwrap(), line);
        other_lines.extend(lines);
    }
    other_lines
}

#[track_caller]
fn assert_succeeds(ended: &Ended, output: &[&str]) {
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, output, "{ended:?}");
}

fn host_and_port(address: SocketAddr) -> [String; 2] {
    [address.ip().to_string(), address.port().to_string()]
}

#[test]
#[ignore = "needs the nc of OpenBSD, which has -N"]
fn nc_receives_the_echo_and_exits() {
    let server = serve(Config::default());
    let [ip, port] = host_and_port(server.local_addr());
    assert_prints_the_echo(start("nc", &["-N", &ip, &port]));
    let (mut client, mut input) = start("nc", &["-N", &ip, &port]);
    assert!(type_lines(&mut client, &mut input).is_empty());
    drop(input);
    assert_succeeds(&client.wait(), &[]);
}

#[test]
#[ignore = "needs socat"]
fn socat_receives_the_echo_and_exits() {
    let server = serve(Config::default());
    let target = format!("TCP:{}", server.local_addr());
    // -t: how long socat waits for the server's FIN after the end of its own input.
    let timeout = TIMEOUT.as_secs().to_string();
    assert_prints_the_echo(start("socat", &["-t", &timeout, "-", &target]));
    let (mut client, mut input) = start("socat", &["-t", &timeout, "-", &target]);
    assert!(type_lines(&mut client, &mut input).is_empty());
    drop(input);
    assert_succeeds(&client.wait(), &[]);
}

#[test]
#[ignore = "needs telnet"]
fn telnet_receives_the_echo() {
    let server = serve(Config::default());
    let [ip, port] = host_and_port(server.local_addr());
    let (mut client, mut input) = start("telnet", &[&ip, &port]);
    let others = type_lines(&mut client, &mut input);
    assert!(others.contains(&format!("Connected to {ip}.")), "{others:?}");
    // telnet exits at the end of its input, with status 1.
    drop(input);
    client.wait();
    let handle = server.handle();
    eventually("no open connection", || handle.stats().open() == 0);
    assert_eq!(handle.stats().closed.end_of_stream, 1);
}

/// Runs a Python client, which must exit with status 0.
#[track_caller]
fn assert_runs_in_python(script: &str) {
    let server = serve(Config::default());
    let [ip, port] = host_and_port(server.local_addr());
    let (client, _input) = start("python3", &["-c", script, &ip, &port]);
    assert_succeeds(&client.wait(), &["echoed"]);
}

#[test]
#[ignore = "needs python3"]
fn python_socket_receives_the_echo() {
    assert_runs_in_python(
        r#"
import socket, sys, threading

message = bytes(range(256)) * 4096
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(b"hola")
    assert sock.recv(4, socket.MSG_WAITALL) == b"hola"

    def send():
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    echo = b"".join(iter(lambda: sock.recv(65536), b""))
    sender.join()
assert echo == message
print("echoed")
"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn python_asyncio_receives_the_echo() {
    assert_runs_in_python(
        r#"
import asyncio, sys

async def client(number):
    reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    for length in (1, 100, 5000):
        message = bytes([number]) * length
        writer.write(message)
        await writer.drain()
        assert await reader.readexactly(length) == message
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()

async def main():
    await asyncio.gather(*(client(number) for number in range(100)))

asyncio.run(main())
print("echoed")
"#,
    );
}
