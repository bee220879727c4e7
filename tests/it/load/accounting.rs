//! Each message is accounted for exactly once, with any server behavior.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ecoloop::load::report::Verdict;
use ecoloop::load::{ArrivalProcess, Close, Config, Interrupt, Mode, ProgressCell, RateStage, Report, Session};
use ecoloop::transport::AnyAddress;
use proptest::collection::vec;
use proptest::prelude::*;

use super::faulty_server::{echo, end_with_reset, faulty_server};
use super::{assert_sums, run};
use crate::support::TIMEOUT;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_message_is_accounted_for_with_any_server_behavior(
        config in configs(), windows in 1..3_usize, scripts in vec(vec(actions(), 0..12), 1..6)
    ) {
        let mut config = config;
        config.targets = vec![vec![faulty_server(move |number, stream| play(stream, &scripts[number % scripts.len()])).into()]];
        let reports = if windows > 1 && config.mode == Mode::Echo && !config.reconnect {
            measure(config, windows)
        } else {
            vec![run(config)]
        };
        for report in reports {
            assert_sums(&report);
            prop_assert!(report.connections.held <= report.connections.verified);
            prop_assert!(report.connections.verified <= report.connections.established);
            prop_assert!(report.connections.established <= report.connections.opened_total);
            let bad = !report.errors.is_empty() || !report.verify.findings.is_empty() || report.messages.unanswered > 0;
            prop_assert!(!bad || report.verdict == Verdict::Fail);
        }
    }
}

/// What the server does with the data of its next read.
#[derive(Clone, Copy, Debug)]
enum Action {
    Echo,
    Delay(u64),
    Drop,
    Half,
    Flip,
    Twice,
    Close,
    Reset,
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => Just(Action::Echo),
        4 => (0..40_u64).prop_map(Action::Delay),
        1 => (200..400_u64).prop_map(Action::Delay),
        1 => Just(Action::Drop),
        1 => Just(Action::Half),
        1 => Just(Action::Flip),
        1 => Just(Action::Twice),
        1 => Just(Action::Close),
        1 => Just(Action::Reset),
    ]
}

/// Does each action on the data of one read, then echoes.
fn play(stream: &mut TcpStream, actions: &[Action]) -> std::io::Result<()> {
    let mut buffer = [0; 1000];
    for action in actions {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        let data = &mut buffer[..n];
        match *action {
            Action::Echo => stream.write_all(data)?,
            Action::Delay(milliseconds) => {
                thread::sleep(Duration::from_millis(milliseconds));
                stream.write_all(data)?;
            }
            Action::Drop => {}
            Action::Half => stream.write_all(&data[..n / 2])?,
            Action::Flip => {
                data[n / 2] ^= 1;
                stream.write_all(data)?;
            }
            Action::Twice => stream.write_all(&data.repeat(2))?,
            Action::Close => return Ok(()),
            Action::Reset => return end_with_reset(stream),
        }
    }
    echo(stream)
}

fn configs() -> impl Strategy<Value = Config> {
    let mode = prop::sample::select(&[Mode::Echo, Mode::Echo, Mode::Hold, Mode::Churn]);
    let pace = prop_oneof![
        2 => Just((None, Vec::new())),
        2 => (100.0..5000.0_f64).prop_map(|rate| (Some(rate), Vec::new())),
        1 => (0.0..5000.0_f64, 1.0..5000.0_f64).prop_map(|(from, to)| (None, vec![stage(from, to), stage(to, to)])),
    ];
    let arrivals = prop::sample::select(&[ArrivalProcess::Even, ArrivalProcess::Poisson]);
    let messages = prop::option::of(1..60_u64);
    let close = prop::sample::select(&[Close::Fin, Close::Rst]);
    let shape = (1..6_u32, prop::option::of(1..9_u32), 1..200_usize, prop::option::of(0..200_usize), 0..80_u64);
    (mode, pace, arrivals, messages, close, shape, any::<bool>()).prop_map(
        |(mode, (rate, stages), arrivals, messages, close, shape, reconnect)| {
            let mut config = Config::new(Vec::<AnyAddress>::new());
            config.mode = mode;
            config.rate = rate;
            config.stages = if mode == Mode::Hold { Vec::new() } else { stages };
            let has_stages = !config.stages.is_empty();
            let is_open_loop = mode != Mode::Hold && (rate.is_some() || has_stages);
            config.arrivals = if is_open_loop { arrivals } else { ArrivalProcess::Even };
            config.messages_per_connection =
                messages.filter(|_| mode == Mode::Churn || mode == Mode::Echo && !has_stages);
            config.reconnect = reconnect && mode != Mode::Churn && config.messages_per_connection.is_none();
            config.close = close;
            config.connections = shape.0;
            config.pipeline = shape.1;
            config.size = shape.2;
            config.size_max = shape.3.map(|more| shape.2 + more);
            config.warmup = Duration::from_millis(if has_stages { 0 } else { shape.4 });
            config.duration = Duration::from_millis(150);
            config.timeout = Duration::from_millis(150);
            config.connect_timeout = Duration::from_secs(1);
            config
        },
    )
}

fn stage(from: f64, to: f64) -> RateStage {
    RateStage { from, to, duration: Duration::from_millis(75) }
}

/// Measures windows over the same connections within [`TIMEOUT`], and returns the report of each.
fn measure(config: Config, windows: usize) -> Vec<Report> {
    let (sender, reports) = mpsc::channel();
    thread::spawn(move || {
        let mut session = Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap();
        for _ in 0..windows {
            sender.send(session.measure().unwrap()).unwrap();
        }
        session.close().unwrap();
    });
    (0..windows).map(|_| reports.recv_timeout(TIMEOUT).expect("the window has not ended")).collect()
}
