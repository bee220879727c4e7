//! Servers that break the echo on purpose.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ecoloop::load::Report;
use ecoloop::load::report::{Ended as RunEnded, Verdict};
use socket2::SockRef;

use super::{CONNECTIONS, FAULTY_CONNECTION, SHORT_TIMEOUT, SIZE, config, run};

/// Messages per connection, without the first, which is not reported.
pub(super) const MESSAGES: u64 = 20;

/// Spawns a server that calls `reply` with the number and the stream of each connection, on one thread per connection.
pub(super) fn faulty_server(
    reply: impl Fn(usize, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reply = Arc::new(reply);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let reply = Arc::clone(&reply);
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            // An error is the client's close, which is no failure.
            thread::spawn(move || reply(number, &mut stream));
        }
    });
    address
}

/// Spawns a server that echoes each message after `delay`, one at a time on each connection.
pub(crate) fn slow_server(delay: Duration) -> SocketAddr {
    faulty_server(move |_, stream| {
        loop {
            let message = read_message(stream)?;
            thread::sleep(delay);
            stream.write_all(&message)?;
        }
    })
}

/// What the server does with the faulty connection from the first message that it does not echo.
pub(super) type Fault = fn(&mut TcpStream, Vec<u8>) -> std::io::Result<()>;

/// Runs against a server that echoes every connection except one, on which it echoes `echoed` messages before the fault.
#[track_caller]
pub(super) fn run_on_faulty_server(echoed: usize, fault: Fault) -> Report {
    let address = faulty_server(move |number, stream| {
        if number != FAULTY_CONNECTION {
            return echo(stream);
        }
        echo_messages(stream, echoed)?;
        let message = read_message(stream)?;
        fault(stream, message)
    });
    let mut config = config(address);
    config.connections = u32::try_from(CONNECTIONS).unwrap();
    // One connect at a time, so that client and server number the connections alike.
    config.max_connecting = 1;
    config.messages_per_connection = Some(MESSAGES);
    config.timeout = SHORT_TIMEOUT;
    let report = run(config);
    assert_eq!(report.verdict, Verdict::Fail);
    assert_eq!(report.connections.established, CONNECTIONS as u64);
    assert_eq!(report.ended, RunEnded::Complete);
    report
}

/// The faulty connection must have had `echoed` messages echoed and `missing` not. Its first message is not reported.
#[track_caller]
pub(super) fn assert_messages(report: &Report, echoed: usize, missing: u64) {
    let of_others = (CONNECTIONS as u64 - 1) * MESSAGES;
    assert_eq!(report.messages.verified, of_others + (echoed as u64).saturating_sub(1), "{:?}", report.messages);
    assert_eq!(report.messages.due, report.messages.verified + missing, "{:?}", report.messages);
    assert!(missing <= 1, "{:?}", report.messages);
}

/// Echoes `count` messages.
pub(super) fn echo_messages(stream: &mut TcpStream, count: usize) -> std::io::Result<()> {
    for _ in 0..count {
        let message = read_message(stream)?;
        stream.write_all(&message)?;
    }
    Ok(())
}

/// Echoes until FIN.
pub(super) fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// Reads until FIN, without a reply.
pub(super) fn discard(stream: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(stream, &mut std::io::sink()).map(drop)
}

/// Makes the close send RST.
pub(super) fn end_with_reset(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

pub(super) fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; SIZE];
    stream.read_exact(&mut message)?;
    Ok(message)
}
