//! In another event loop: tokio, by its `AsyncFd`.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ecoloop::{Config, Server, Turn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout_at;

/// Serves until a handle ends the server. It is one task among those of the runtime.
async fn serve(server: &mut Server) -> io::Result<()> {
    // A duplicate of the descriptor stays open as long as tokio waits on it.
    let descriptor = server.as_fd().try_clone_to_owned()?;
    #[expect(deprecated, reason = "its successor is unsafe: it takes descriptors that may be closed while tokio waits")]
    let readiness = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
    while server.turn(Some(Duration::ZERO))? == Turn::Running {
        match server.next_deadline() {
            // Work is left over, and the descriptor does not report it.
            Some(deadline) if deadline <= Instant::now() => tokio::task::yield_now().await,
            Some(deadline) => {
                if let Ok(ready) = timeout_at(deadline.into(), readiness.readable()).await {
                    ready?.clear_ready();
                }
            }
            None => readiness.readable().await?.clear_ready(),
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut server = Server::bind("127.0.0.1:0", Config::default())?;
    let (address, handle) = (server.local_addr(), server.handle());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = tokio::task::spawn_blocking(move || -> io::Result<()> {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"hola")?;
            stream.read_exact(&mut [0; 4])?;
            handle.drain();
            Ok(())
        });
        serve(&mut server).await?;
        client.await??;
        Ok::<_, Box<dyn Error>>(())
    })?;
    println!("{} bytes echoed", server.report().stats.bytes_out);
    Ok(())
}
