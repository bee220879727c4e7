//! In another event loop: calloop.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use calloop::generic::Generic;
use calloop::{EventLoop, Interest, Mode, PostAction};
use ecoloop::{Config, Server, Turn};

fn main() -> Result<(), Box<dyn Error>> {
    let mut server = Server::bind("127.0.0.1:0", Config::default())?;
    let (address, handle) = (server.local_addr(), server.handle());
    let client = thread::spawn(move || -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"hola")?;
        stream.read_exact(&mut [0; 4])?;
        handle.drain();
        Ok(())
    });

    let mut event_loop = EventLoop::try_new()?;
    // The source has a duplicate of the descriptor: it may live as long as the loop.
    let source = Generic::new(server.as_fd().try_clone_to_owned()?, Interest::READ, Mode::Level);
    let wake = |_, _: &mut _, (): &mut ()| Ok(PostAction::Continue);
    let registration = event_loop.handle().insert_source(source, wake).map_err(|error| error.error)?;
    while server.turn(Some(Duration::ZERO))? == Turn::Running {
        // Zero while the server has work left: the descriptor does not report it.
        let timeout = server.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        event_loop.dispatch(timeout, &mut ())?;
    }
    event_loop.handle().remove(registration);
    client.join().map_err(|_| "the client has panicked")??;
    println!("{} bytes echoed", server.report().stats.bytes_out);
    Ok(())
}
