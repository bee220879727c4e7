//! glommio on one thread and `io_uring`: one task and one buffer per connection. Its `bind` fixes the backlog at 1024.

use std::io::Result;

use glommio::LocalExecutor;
use glommio::net::{TcpListener, TcpStream};
use smol::io::{AsyncReadExt, AsyncWriteExt};

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
    LocalExecutor::default().run(async {
        let listener = TcpListener::bind(address)?;
        loop {
            let stream = listener.accept().await?;
            glommio::spawn_local(echo(stream, buffer_size)).detach();
        }
    })
}
