//! A server without free descriptors, and a client that waits. `broken` asks the level again and again. `forgets` has edges, and
//! forgets the client. `fixed` has edges, and tries again after 100 ms.
//!
//!     cargo run --example no_descriptors -- broken

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const RETRY: Duration = Duration::from_millis(100);

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let flags = if case == "broken" { EventFlags::IN } else { EventFlags::IN | EventFlags::ET };
    epoll::add(&epoll, &listener, EventData::new_u64(0), flags)?;
    let _client = TcpStream::connect(listener.local_addr()?)?;
    let mut held = take_every_descriptor()?;

    let start = Instant::now();
    let (mut failures, mut served) = (0, false);
    let mut retry_at = None;
    // A client that is forgotten is not served, however long this takes.
    let limit = Duration::from_secs(if case == "forgets" { 1 } else { 30 });
    while !served && start.elapsed() < limit {
        let mut events = Vec::with_capacity(8);
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&timeout))?;
        let is_due = retry_at.is_some_and(|at| Instant::now() >= at);
        if !events.is_empty() || is_due {
            match listener.accept() {
                Ok(_) => served = true,
                Err(error) if error.raw_os_error() == Some(24) => failures += 1, // EMFILE
                Err(error) => return Err(error),
            }
            if case == "fixed" {
                retry_at = Some(Instant::now() + RETRY);
            }
        }
        if start.elapsed() > Duration::from_millis(500) {
            held.clear(); // somebody else in the program closes its files
        }
    }
    println!("The client is served: {}.", if served { "yes" } else { "no" });

    println!(r#"{{"case": "{case}", "failures": {failures}, "served": {served}}}"#);
    Ok(())
}

/// Opens files until the process has no descriptor left. Its limit is lowered first, or this could take a while.
fn take_every_descriptor() -> io::Result<Vec<File>> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum })?;
    let mut held = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
    }
    Ok(held)
}
