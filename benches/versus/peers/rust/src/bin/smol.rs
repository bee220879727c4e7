//! smol on one thread: one task and one buffer per connection.

use std::io::Result;

use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use smol::{Async, LocalExecutor};

async fn echo(mut stream: TcpStream, buffer_size: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; buffer_size];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

fn main() -> Result<()> {
    let (address, buffer_size) = ecoloop_peers::arguments()?;
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        let listener = TcpListener::from(Async::try_from(ecoloop_peers::listen(address)?)?);
        loop {
            let (stream, _) = listener.accept().await?;
            executor.spawn(echo(stream, buffer_size)).detach();
        }
    }))
}
