//! Two loops wait for the same listening socket, and one client comes. In `broken` accept can wait. In `fixed` it cannot.
//!
//!     cargo run --example hint -- broken

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(case != "broken")?;
    let address = listener.local_addr()?;

    let (listener, both_have_polled) = (Arc::new(listener), Arc::new(Barrier::new(2)));
    let (sender, results) = channel();
    for _ in 0..2 {
        let (listener, both_have_polled, sender) = (listener.clone(), both_have_polled.clone(), sender.clone());
        thread::spawn(move || one_turn(&listener, &both_have_polled, &sender));
    }
    let _client = TcpStream::connect(address)?;

    let (mut accepted, mut would_block, mut stuck) = (0, 0, 0);
    for _ in 0..2 {
        match results.recv_timeout(Duration::from_secs(1)) {
            Ok(true) => accepted += 1,
            Ok(false) => would_block += 1,
            Err(_) => stuck += 1,
        }
    }
    println!("poll has told both loops that the socket is readable.");
    println!("accept: {accepted} has a client, {would_block} would have to wait, {stuck} has not returned.");

    println!(r#"{{"case": "{case}", "accepted": {accepted}, "would_block": {would_block}, "stuck": {stuck}}}"#);
    Ok(())
}

/// Sends whether accept had a client for it.
fn one_turn(listener: &TcpListener, both_have_polled: &Barrier, sender: &Sender<bool>) -> io::Result<()> {
    poll(&mut [PollFd::new(listener, PollFlags::IN)], None)?;
    both_have_polled.wait();
    let accepted = listener.accept();
    let _ = sender.send(accepted.is_ok()); // main may have gone
    thread::sleep(Duration::from_secs(10)); // keep the connection
    Ok(())
}
