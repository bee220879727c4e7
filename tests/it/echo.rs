//! Readable, pending, writable, drained, end of stream: what comes in goes out.

use std::io::Write;
use std::thread;

use ecoloop::Config;

use crate::support::{assert_echoes, assert_ended, assert_receives, connect, half_close, pattern, serve};

#[test]
fn every_message_comes_back_whole() {
    let server = serve(Config::default());
    let mut client = connect(server.local_addr());
    for length in [1, 64, 1023, 1024, 1025, 3000, 100_000] {
        assert_echoes(&mut client, &pattern(length));
    }
    half_close(&client);
    assert_ended(&mut client);
}

#[test]
fn megabytes_pending_at_a_half_close_all_come_back() {
    let server = serve(Config::default());
    let mut client = connect(server.local_addr());
    let message = pattern(16 << 20);
    let mut writer = client.try_clone().unwrap();
    let sent = message.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        half_close(&writer);
    });
    assert_receives(&mut client, &message);
    assert_ended(&mut client);
    writer.join().unwrap();
}
