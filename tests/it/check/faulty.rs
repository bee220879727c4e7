//! A thread per client, and one fault.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The next client is accepted once the one before has gone.
    OneAtATime,
    WaitsForNewline,
    DropsZeroBytes,
    DropsNotUtf8,
    DecodesEachRead,
    SharesABuffer,
    /// Reads one client until it is empty, and no other meanwhile.
    DrainsOne,
    ForgetsWhatDoesNotFit,
    KeepsAll,
    ClosesAtFin,
    /// FIN ends it while it waits to write.
    ClosesAtFinWhilePaused,
    NeverCloses,
    EndsOnReset,
    ServesFiveHundred,
    /// `listen(5)`, and a millisecond between two accepts.
    ShortQueue,
    SleepsBeforeEachReply,
}

/// What all connections share.
#[derive(Default)]
struct Shared {
    buffer: Mutex<Vec<u8>>,
    turn: Mutex<()>,
    served: Mutex<usize>,
}

/// Starts a server that runs until the process ends, and returns its address.
pub(super) fn serve(fault: Fault) -> SocketAddr {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    if fault == Fault::ClosesAtFinWhilePaused {
        // FIN arrives behind what the server has not read: of that there must be more than it can send at once.
        listener.set_send_buffer_size(4096).unwrap();
    }
    listener.listen(if fault == Fault::ShortQueue { 5 } else { 4096 }).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    spawn(move || accept(&listener, fault));
    address
}

/// Thousands of threads have to fit.
fn spawn(run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().stack_size(128 * 1024).spawn(run).unwrap()
}

fn accept(listener: &TcpListener, fault: Fault) {
    let shared = Arc::new(Shared::default());
    let is_over = Arc::new(Mutex::new(false));
    for stream in listener.incoming().map_while(Result::ok) {
        if *is_over.lock().unwrap() {
            return;
        }
        if fault == Fault::ServesFiveHundred && *shared.served.lock().unwrap() >= 500 {
            continue;
        }
        *shared.served.lock().unwrap() += 1;
        let (shared, is_over) = (Arc::clone(&shared), Arc::clone(&is_over));
        let client = spawn(move || {
            let result = echo(&stream, fault, &shared);
            *shared.served.lock().unwrap() -= 1;
            if fault == Fault::EndsOnReset && result.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) {
                *is_over.lock().unwrap() = true;
            }
        });
        if fault == Fault::OneAtATime {
            client.join().unwrap();
        }
        if fault == Fault::ShortQueue {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn echo(mut stream: &TcpStream, fault: Fault, shared: &Shared) -> io::Result<()> {
    match fault {
        Fault::KeepsAll => return keep_all(stream, Shutdown::Write),
        Fault::ClosesAtFin => return keep_all(stream, Shutdown::Both),
        _ => {}
    }
    let mut buffer = [0; 1024];
    let mut line = Vec::new();
    loop {
        let length = stream.read(&mut buffer)?;
        let data = &mut buffer[..length];
        if length == 0 {
            if fault == Fault::NeverCloses {
                thread::sleep(Duration::from_secs(3600));
            }
            return Ok(());
        }
        match fault {
            Fault::WaitsForNewline => {
                line.extend_from_slice(data);
                if let Some(end) = line.iter().rposition(|&byte| byte == b'\n') {
                    stream.write_all(&line.drain(..=end).collect::<Vec<_>>())?;
                }
            }
            Fault::DropsZeroBytes => write_without(stream, data, |byte| byte == 0)?,
            // Bytes that UTF-8 does not have: no state is needed to find them.
            Fault::DropsNotUtf8 => write_without(stream, data, |byte| byte >= 0xf8)?,
            Fault::DecodesEachRead => stream.write_all(String::from_utf8_lossy(data).as_bytes())?,
            Fault::SharesABuffer if data.starts_with(b"client") => {
                *shared.buffer.lock().unwrap() = data.to_vec();
                // The others' lines arrive meanwhile.
                thread::sleep(Duration::from_millis(50));
                let data = shared.buffer.lock().unwrap().clone();
                stream.write_all(&data)?;
            }
            Fault::DrainsOne => drain(stream, data, shared)?,
            Fault::ForgetsWhatDoesNotFit => {
                stream.set_nonblocking(true)?;
                let written = stream.write(data);
                stream.set_nonblocking(false)?;
                if let Err(error) = written
                    && error.kind() != ErrorKind::WouldBlock
                {
                    return Err(error);
                }
            }
            Fault::ClosesAtFinWhilePaused => {
                if !write_until_fin(stream, data)? {
                    return Ok(());
                }
            }
            Fault::SleepsBeforeEachReply => {
                thread::sleep(Duration::from_millis(1500));
                stream.write_all(data)?;
            }
            _ => stream.write_all(data)?,
        }
    }
}

fn write_without(mut stream: &TcpStream, data: &[u8], is_dropped: impl Fn(u8) -> bool) -> io::Result<()> {
    stream.write_all(&data.iter().copied().filter(|&byte| !is_dropped(byte)).collect::<Vec<_>>())
}

/// Returns whether everything was written before FIN arrived.
fn write_until_fin(mut stream: &TcpStream, mut data: &[u8]) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    while !data.is_empty() {
        match stream.write(data) {
            Ok(length) => data = &data[length..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut waiting = [PollFd::new(stream, PollFlags::OUT | PollFlags::RDHUP)];
                poll(&mut waiting, None)?;
                if waiting[0].revents().contains(PollFlags::RDHUP) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(true)
}

/// Keeps the turn while each read fills the buffer. From a client that floods it reads until nothing comes for longer than a check
/// lasts, so that no other gets a turn in it if the flood pauses, or if all of it fits into the buffers of a client that does not read.
fn drain(mut stream: &TcpStream, data: &[u8], shared: &Shared) -> io::Result<()> {
    let _turn = shared.turn.lock().unwrap();
    stream.write_all(data)?;
    let mut buffer = [0; 1024];
    let mut drained = data.len();
    let mut length = data.len();
    while length == buffer.len() || drained > 64 * 1024 {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            read => read?,
        };
        drained += length;
        stream.write_all(&buffer[..length])?;
    }
    stream.set_read_timeout(None)
}

/// A thread reads without end, and another one writes what is kept. At the end of the input, what is kept is written first, or dropped.
fn keep_all(mut stream: &TcpStream, at_end: Shutdown) -> io::Result<()> {
    let (sender, kept) = mpsc::channel::<Vec<u8>>();
    let mut writer = stream.try_clone()?;
    // Ends at the first error, or once the sender is gone.
    let writing = spawn(move || {
        let _ = kept.iter().try_for_each(|data| writer.write_all(&data));
    });
    let mut buffer = vec![0; 64 * 1024];
    let result = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(length) if sender.send(buffer[..length].to_vec()).is_err() => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    drop(sender);
    if at_end == Shutdown::Both {
        let _ = stream.shutdown(Shutdown::Both);
    }
    writing.join().unwrap();
    result
}
