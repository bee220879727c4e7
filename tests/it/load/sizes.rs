//! Messages of different sizes.

use ecoloop::load::Mode;
use ecoloop::load::report::FindingKind;

use super::faulty_server::faulty_server;
use super::{assert_clean, config, document, run, run_command, run_on_server};
use crate::support::serve;

/// The smallest and the largest size, and the bytes of two messages in a row.
const SIZES: (usize, usize, u64) = (1, 300, 301);

#[test]
fn every_message_of_any_size_is_verified_in_both_loops_and_each_mode() {
    for (mode, rate, pipeline) in
        [(Mode::Echo, None, Some(7)), (Mode::Echo, Some(2000.0), None), (Mode::Churn, None, None)]
    {
        let (report, stats) = run_on_server(|config| {
            (config.size, config.size_max) = (SIZES.0, Some(SIZES.1));
            (config.mode, config.rate, config.pipeline, config.connections) = (mode, rate, pipeline, 3);
            config.messages_per_connection = Some(if mode == Mode::Churn { 10 } else { 9 });
            config.duration = std::time::Duration::from_millis(100);
        });
        assert_clean(&report);
        // With the first message, ten on each connection that ran to its end.
        if mode == Mode::Echo {
            assert_eq!((report.messages.verified, stats.bytes_in), (3 * 9, 3 * 5 * SIZES.2));
        } else {
            assert!(report.messages.verified > 0 && stats.bytes_in > 0);
        }
        assert_eq!((report.config.size, report.config.size_max), (1, Some(300)));
    }
}

#[test]
fn a_wrong_byte_in_a_message_of_any_size_is_found() {
    let address = faulty_server(|_, stream| {
        use std::io::{Read, Write};
        let mut place = 0;
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            if (place..place + length).contains(&5000) {
                buffer[5000 - place] ^= 1;
            }
            place += length;
            stream.write_all(&buffer[..length])?;
        }
    });
    let mut config = config(address);
    (config.size, config.size_max, config.messages_per_connection) = (SIZES.0, Some(SIZES.1), Some(1000));
    let report = run(config);
    let finding = &report.verify.findings[0];
    assert_eq!((finding.kind, finding.offset), (FindingKind::Flipped, 5000));
}

#[test]
fn a_range_of_sizes_is_an_option() {
    let server = serve(ecoloop::Config::default());
    let address = server.local_addr().to_string();
    let (json, _) = document(&run_command(&["-s", "64..4KiB", "-m", "5", "--json", "-", &address]));
    assert_eq!((&json["config"]["size"], &json["config"]["size_max"]), (&64.into(), &4096.into()));
    let ended = run_command(&["-s", "64..4KiB", "-m", "5", &address]);
    assert!(ended.stdout[0].contains("64 B to 4 KiB a message"), "{ended:?}");
    let ended = run_command(&["-s", "65..64", &address]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr[0].contains("the first size must be at most the second"), "{ended:?}");
}
