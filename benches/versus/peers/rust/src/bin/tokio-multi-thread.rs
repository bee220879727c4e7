//! tokio on one thread per processor: one task and one buffer per connection.

use std::io::Result;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

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
    Builder::new_multi_thread().enable_io().build()?.block_on(async {
        let listener = TcpListener::from_std(ecoloop_peers::listen(address)?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(echo(stream, buffer_size));
        }
    })
}
