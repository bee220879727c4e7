//! 5000 sockets, of which one is ready. `broken` asks poll, and `fixed` asks epoll.
//!
//!     cargo run --example price -- broken

use std::io;
use std::net::UdpSocket;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, epoll, poll};

const SOCKETS: u64 = 5000;
const WAITS: u32 = 20;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    rlimit::increase_nofile_limit(SOCKETS + 100)?;
    let sockets: Vec<UdpSocket> = (0..SOCKETS).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    sockets[0].send_to(b"hola", sockets[4999].local_addr()?)?; // so one is readable, and stays so

    let time = if case == "broken" { ask_poll(&sockets)? } else { ask_epoll(&sockets)? };
    println!("{SOCKETS} sockets: each wait took {:.1} microseconds.", time * 1e6);

    println!(r#"{{"case": "{case}", "wait_us": {:.1}}}"#, time * 1e6);
    Ok(())
}

/// Returns the seconds of the shortest wait. The list of all sockets goes to the kernel each time.
fn ask_poll(sockets: &[UdpSocket]) -> io::Result<f64> {
    let mut list: Vec<_> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    shortest(|| {
        assert_eq!(poll(&mut list, None)?, 1);
        Ok(())
    })
}

/// Returns the seconds of the shortest wait. The kernel has the list, and returns only what is ready.
fn ask_epoll(sockets: &[UdpSocket]) -> io::Result<f64> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (token, socket) in (0..).zip(sockets) {
        epoll::add(&epoll, socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(64);
    shortest(|| {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        assert_eq!(events.len(), 1);
        Ok(())
    })
}

/// The shortest of many: what else runs on the machine makes some of them longer.
fn shortest(mut wait: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let mut shortest = f64::INFINITY;
    for _ in 0..WAITS {
        let start = Instant::now();
        wait()?;
        shortest = shortest.min(start.elapsed().as_secs_f64());
    }
    Ok(shortest)
}
