//! In another event loop: async-io, which is the one of smol, on polling. Server and client share one thread.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use ecoloop::{Config, Handle, Server, Turn};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt, future};

/// Serves until a handle ends the server. It is one future among those of the thread.
async fn serve(server: &mut Server) -> io::Result<()> {
    // A duplicate of the descriptor stays open as long as polling waits on it.
    let readiness = Async::new(server.as_fd().try_clone_to_owned()?)?;
    while server.turn(Some(Duration::ZERO))? == Turn::Running {
        match server.next_deadline() {
            // Work is left over, and the descriptor does not report it.
            Some(deadline) if deadline <= Instant::now() => future::yield_now().await,
            Some(deadline) => {
                let timer = async {
                    Timer::at(deadline).await;
                    Ok(())
                };
                readiness.readable().or(timer).await?;
            }
            None => readiness.readable().await?,
        }
    }
    Ok(())
}

async fn ask(address: SocketAddr, handle: Handle) -> io::Result<()> {
    let mut stream = Async::<TcpStream>::connect(address).await?;
    stream.write_all(b"hola").await?;
    stream.read_exact(&mut [0; 4]).await?;
    handle.drain();
    Ok(())
}

fn main() -> io::Result<()> {
    let mut server = Server::bind("127.0.0.1:0", Config::default())?;
    let client = ask(server.local_addr(), server.handle());
    async_io::block_on(future::try_zip(serve(&mut server), client))?;
    println!("{} bytes echoed", server.report().stats.bytes_out);
    Ok(())
}
