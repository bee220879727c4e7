//! Two clients and one loop. `broken` waits for the connections in poll, and for the next client in accept. `fixed` waits for
//! everything in poll.
//!
//!     cargo run --example one_wait -- broken

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let clients = thread::spawn(move || act_as_clients(address));

    let waits = if case == "broken" { wait_in_two_places(&listener)? } else { wait_in_one_place(&listener)? };
    let early = clients.join().map_err(|_| io::ErrorKind::Other)??;
    println!(r#"{{"case": "{case}", "before_second_client": {early}, "waits": {waits}}}"#);
    Ok(())
}

/// Serves two clients until both have closed. A loop of poll, and accept for the next client.
fn wait_in_two_places(listener: &TcpListener) -> io::Result<u32> {
    let mut connections = Vec::new();
    let (mut accepted, mut waits) = (0, 0);
    while accepted < 2 || !connections.is_empty() {
        if accepted < 2 {
            connections.push(listener.accept()?.0); // waits for a client, and for nothing else
            (accepted, waits) = (accepted + 1, waits + 1);
        }
        let mut sockets: Vec<_> = connections.iter().map(|c| PollFd::new(c, PollFlags::IN)).collect();
        poll(&mut sockets, Some(&Duration::ZERO.try_into().unwrap_or_default()))?;
        let is_ready: Vec<bool> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();
        serve(&mut connections, &is_ready)?;
    }
    Ok(waits)
}

/// Serves two clients until both have closed. The listening socket is in the list too.
fn wait_in_one_place(listener: &TcpListener) -> io::Result<u32> {
    let mut connections: Vec<TcpStream> = Vec::new();
    let (mut accepted, mut waits) = (0, 0);
    while accepted < 2 || !connections.is_empty() {
        let mut sockets = vec![PollFd::new(listener, PollFlags::IN)];
        sockets.extend(connections.iter().map(|c| PollFd::new(c, PollFlags::IN)));
        poll(&mut sockets, None)?;
        waits += 1;
        let is_ready: Vec<bool> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();
        serve(&mut connections, &is_ready[1..])?;
        if is_ready[0] {
            connections.push(listener.accept()?.0);
            accepted += 1;
        }
    }
    Ok(waits)
}

/// Reads once from each connection that is ready, and drops those that have ended.
fn serve(connections: &mut Vec<TcpStream>, is_ready: &[bool]) -> io::Result<()> {
    let mut buffer = [0; 1024];
    for index in (0..connections.len()).rev().filter(|index| is_ready[*index]) {
        let count = connections[index].read(&mut buffer)?;
        connections[index].write_all(&buffer[..count])?;
        if count == 0 {
            connections.remove(index);
        }
    }
    Ok(())
}

/// Returns how many bytes the first client had received before the second one connected.
fn act_as_clients(server: SocketAddr) -> io::Result<usize> {
    let mut first = TcpStream::connect(server)?;
    thread::sleep(Duration::from_millis(200));
    first.write_all(b"hola")?;
    first.set_read_timeout(Some(Duration::from_secs(1)))?;
    let early = first.read(&mut [0; 4]).unwrap_or(0);
    println!("The first client sent 4 bytes, and has received {early}.");
    TcpStream::connect(server)?; // and closes
    println!("A second client has connected.");
    first.set_read_timeout(None)?;
    let late = if early == 0 { first.read(&mut [0; 4])? } else { 0 };
    println!("The first client has received {} bytes.", early + late);
    Ok(early)
}
