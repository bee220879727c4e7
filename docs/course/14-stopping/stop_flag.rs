//! Another thread asks the loop to stop. `broken` sets a flag. `fixed` sets it and wakes the loop.
//!
//!     cargo run --example stop_flag -- broken

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let mut poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), Token(usize::MAX))?); // lives as long as the poll
    let is_stopped = Arc::new(AtomicBool::new(false));

    let (flag, waker_of_stopper, is_fixed) = (is_stopped.clone(), waker.clone(), case != "broken");
    let stopper = thread::spawn(move || -> io::Result<Instant> {
        thread::sleep(Duration::from_millis(100)); // the loop is in its wait now
        flag.store(true, Ordering::Release);
        if is_fixed {
            waker_of_stopper.wake()?;
        }
        Ok(Instant::now())
    });

    let mut events = Events::with_capacity(8);
    while !is_stopped.load(Ordering::Acquire) {
        poll.poll(&mut events, Some(Duration::from_secs(1)))?;
    }
    let end = Instant::now();
    let asked = stopper.join().map_err(|_| io::ErrorKind::Other)??;
    let ms = end.saturating_duration_since(asked).as_millis();
    println!("The loop has stopped {} after it was asked to.", if ms < 400 { "right" } else { "long" });
    drop(waker);

    println!(r#"{{"case": "{case}", "stopped_after_ms": {ms}}}"#);
    Ok(())
}
