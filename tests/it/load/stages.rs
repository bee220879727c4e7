//! Rates in stages, and arrivals at random.

use std::time::Duration;

use ecoloop::load::report::{Messages, StageFigures};
use ecoloop::load::{ArrivalProcess, Config, Mode, RateStage, Report};

use super::faulty_server::{discard, echo_messages, faulty_server};
use super::{assert_clean, assert_opened, assert_sums, config, document, run, run_command, run_on_server};
use crate::support::{half_close, reserve_port, serve};

fn stage(from: f64, to: f64, milliseconds: u64) -> RateStage {
    RateStage { from, to, duration: Duration::from_millis(milliseconds) }
}

/// A ramp, a plateau, a pause, and a ramp down: their integrals are 100, 200, 0 and 100.
fn ramps() -> Vec<RateStage> {
    vec![stage(0.0, 1000.0, 200), stage(1000.0, 1000.0, 200), stage(0.0, 0.0, 100), stage(1000.0, 0.0, 200)]
}

fn due(stages: &[StageFigures]) -> Vec<u64> {
    stages.iter().map(|stage| stage.messages.due).collect()
}

/// Asserts that the stages together have the messages of the window, and each a latency for every one.
#[track_caller]
fn assert_stages_add_up(report: &Report) {
    let mut sum = Messages::default();
    for stage in &report.stages {
        let messages = stage.messages;
        assert_eq!(messages.due, messages.unsent + messages.verified + messages.unanswered + messages.failed);
        let latencies = (stage.latency_us.count, stage.latency_us.censored);
        assert_eq!(latencies, (messages.due, messages.due - messages.verified), "{messages:?}");
        sum += messages;
    }
    assert_eq!(sum, report.messages);
    let lateness: u64 = report.stages.iter().map(|stage| stage.lateness_us.count).sum();
    assert_eq!(lateness, report.lateness_us.count);
    let max = |of: fn(&StageFigures) -> Option<u64>| report.stages.iter().filter_map(of).max();
    assert_eq!(max(|stage| stage.latency_us.max), report.latency_us.max);
}

#[test]
fn each_stage_has_the_messages_of_its_integral() {
    let (report, stats) = run_on_server(|config| {
        (config.connections, config.stages) = (3, ramps());
    });
    assert_clean(&report);
    assert_stages_add_up(&report);
    assert_eq!(due(&report.stages), [100, 200, 0, 100]);
    // And the first one of each connection, which only verifies it.
    assert_eq!(stats.bytes_in, (400 + 3) * report.config.size);
    let ends: Vec<_> = report.stages.iter().map(|stage| (stage.from, stage.to, stage.seconds)).collect();
    assert_eq!(ends, [(0.0, 1000.0, 0.2), (1000.0, 1000.0, 0.2), (0.0, 0.0, 0.1), (1000.0, 0.0, 0.2)]);
    // 400 messages in 0.7 s.
    assert!((report.config.rate.unwrap() - 4000.0 / 7.0).abs() < 1e-6, "{:?}", report.config);
    assert!(report.phases_s.measure >= 0.7, "{:?}", report.phases_s);
    // Replies after the window are in no rate.
    let arrived: f64 = report.stages.iter().map(|stage| stage.rate_per_s.unwrap() * stage.seconds).sum();
    assert!((arrived - report.rate_per_s.unwrap() * report.phases_s.measure).abs() < 0.5, "{arrived}");
}

#[test]
fn what_is_never_sent_belongs_to_the_stage_in_which_it_was_due() {
    let address = faulty_server(|_, stream| {
        echo_messages(stream, 1 + 40)?;
        half_close(stream);
        discard(stream)
    });
    let mut config = config(address);
    config.stages = ramps();
    let report = run(config);
    assert_stages_add_up(&report);
    assert_eq!(due(&report.stages), [100, 200, 0, 100]);
    let verified: Vec<_> = report.stages.iter().map(|stage| stage.messages.verified).collect();
    assert_eq!(verified[1..], [0, 0, 0], "of 40: {verified:?}");
    let errors: u64 = report.stages.iter().map(|stage| stage.errors).sum();
    assert_eq!((errors, report.errors[0].count), (1, 1));
    // Their ages at the end, which is that of the last message.
    let max = |index: usize| report.stages[index].latency_us.max.unwrap();
    assert!(max(3) >= 150_000 && max(1) > max(3), "{} and {}", max(1), max(3));
}

#[test]
fn without_a_connection_every_message_of_each_stage_is_due() {
    let (_port, address) = reserve_port();
    let mut config = config(address);
    config.stages = ramps();
    let report = run(config.clone());
    assert_stages_add_up(&report);
    assert_eq!(due(&report.stages), [100, 200, 0, 100]);
    // One by one, they would take minutes.
    config.stages = vec![stage(0.0, 1e9, 10_000), stage(1e9, 0.0, 10_000)];
    let report = run(config);
    assert_stages_add_up(&report);
    assert_eq!(due(&report.stages), [5_000_000_000; 2]);
}

#[test]
fn the_connections_of_churn_are_due_in_stages() {
    let (report, _) = run_on_server(|config| {
        (config.mode, config.connections) = (Mode::Churn, 100);
        config.stages = vec![stage(0.0, 400.0, 200), stage(400.0, 400.0, 200)];
    });
    assert_stages_add_up(&report);
    assert_eq!(due(&report.stages), [40, 80]);
    assert_opened(&report);
}

/// Runs as ranks and alone, where nothing is sent, and returns the messages that are due.
fn due_of_ranks(change: impl Fn(&mut Config)) -> (Vec<Vec<u64>>, Vec<u64>) {
    let (_port, address) = reserve_port();
    let run_as = |rank: Option<String>| {
        let mut config = config(address);
        config.connections = 3;
        config.rank = rank.map(|rank| rank.parse().unwrap());
        change(&mut config);
        run(config)
    };
    let ranks: Vec<_> = (0..3).map(|index| run_as(Some(format!("{index}/3")))).collect();
    let merged = ecoloop::load::merge_ranks(
        ranks.iter().cloned().map(|report| ("rank".to_owned(), report)).collect(),
        &["errors<0".parse().unwrap()],
    );
    let merged = merged.unwrap();
    assert_sums(&merged);
    let alone = run_as(None);
    assert_eq!(due(&merged.stages), due(&alone.stages));
    assert_eq!(merged.messages.due, alone.messages.due);
    let rates = |report: &Report| report.stages.iter().map(|stage| (stage.from, stage.to)).collect::<Vec<_>>();
    assert_eq!(rates(&merged), rates(&alone));
    (ranks.iter().map(|report| due(&report.stages)).collect(), due(&alone.stages))
}

#[test]
fn ranks_stripe_the_messages_of_each_stage() {
    let (ranks, alone) = due_of_ranks(|config| config.stages = ramps());
    // Messages 0 to 99, 100 to 299, and 300 to 399.
    assert_eq!(ranks, [[34, 66, 0, 34], [33, 67, 0, 33], [33, 67, 0, 33]]);
    assert_eq!(alone, [100, 200, 0, 100]);
}

#[test]
fn ranks_stripe_one_poisson_process() {
    let (ranks, alone) = due_of_ranks(|config| {
        (config.stages, config.arrivals) = (ramps(), ArrivalProcess::Poisson);
    });
    // Five standard deviations around 400.
    assert!((300..500).contains(&alone.iter().sum::<u64>()), "{alone:?}");
    let sums: Vec<_> = ranks.iter().map(|rank| rank.iter().sum::<u64>()).collect();
    assert!(sums[0] - sums[2] <= 1 && sums[0] >= sums[1] && sums[1] >= sums[2], "{sums:?}");
}

#[test]
fn poisson_arrivals_are_sent_and_depend_on_the_seed() {
    let run_with = |seed| {
        let (report, stats) = run_on_server(|config| {
            (config.connections, config.seed) = (3, seed);
            (config.rate, config.arrivals) = (Some(2000.0), ArrivalProcess::Poisson);
            config.duration = Duration::from_millis(300);
            config.warmup = Duration::from_millis(50);
        });
        assert_clean(&report);
        assert_eq!(report.config.arrivals, Some(ArrivalProcess::Poisson));
        assert_eq!(report.lateness_us.count, report.messages.due);
        // Five standard deviations around 600.
        assert!((478..722).contains(&report.messages.due), "{:?}", report.messages);
        assert!(stats.bytes_in > (report.messages.due + 3) * report.config.size);
        (report.messages.due, stats.bytes_in)
    };
    assert_eq!(run_with(1), run_with(1));
    assert!(run_with(1) != run_with(2) || run_with(1) != run_with(3));
}

#[test]
fn poisson_arrivals_apply_to_a_number_of_messages_and_to_churn() {
    let (report, _) = run_on_server(|config| {
        (config.connections, config.messages_per_connection) = (3, Some(50));
        (config.rate, config.arrivals, config.warmup) =
            (Some(2000.0), ArrivalProcess::Poisson, Duration::from_millis(20));
    });
    assert_clean(&report);
    assert_eq!(report.messages.verified, 150);
    let (report, _) = run_on_server(|config| {
        (config.mode, config.connections) = (Mode::Churn, 100);
        (config.rate, config.arrivals) = (Some(400.0), ArrivalProcess::Poisson);
        config.duration = Duration::from_millis(300);
    });
    assert_opened(&report);
    // Five standard deviations around 120.
    assert!((65..175).contains(&report.messages.due), "{:?}", report.messages);
}

#[test]
fn a_poisson_process_keeps_the_due_time_of_each_message_in_flight() {
    // Every reply is late, so that many are in flight, and then every connection ends.
    let address = faulty_server(|_, stream| {
        echo_messages(stream, 1)?;
        std::thread::sleep(Duration::from_millis(200));
        echo_messages(stream, 20)?;
        half_close(stream);
        discard(stream)
    });
    let mut config = config(address);
    (config.connections, config.rate, config.arrivals) = (2, Some(1000.0), ArrivalProcess::Poisson);
    config.duration = Duration::from_millis(500);
    let report = run(config);
    let messages = report.messages;
    assert_eq!((messages.verified, messages.due > 40), (40, true), "{messages:?}");
    assert_eq!(report.latency_us.count, messages.due);
    // The first message waited for the server the longest, and was due within 50 ms.
    assert!(report.latency_us.max.unwrap() >= 450_000, "{:?}", report.latency_us);
}

#[test]
fn stages_and_arrivals_are_options() {
    let server = serve(ecoloop::Config::default());
    let address = server.local_addr().to_string();
    let stages = "0..1k@100ms,1k/s@100ms,1k..0@0.1s";
    let arguments = ["-c", "2", "-r", stages, "--fail-if", "unsent[2]>0", "--fail-if", "errors[3]>=0"];
    let (json, report) = document(&run_command(&[&arguments[..], &["--json", "-", &address]].concat()));
    assert_eq!((due(&report.stages), &json["config"]["arrivals"]), (vec![50, 100, 50], &"even".into()));
    assert_eq!(json["stages"][1]["from"], 1000);
    let failed: Vec<_> = report.thresholds.iter().filter(|row| row.failed).map(|row| &row.expr[..]).collect();
    assert_eq!(failed, ["errors[3]>=0"]);
    let ended = run_command(&["-c", "2", "-r", stages, "--arrivals", "poisson", &address]);
    let is_row = |row: &&String| row.starts_with("stage 3 ");
    let row = ended.stdout.iter().find(is_row).unwrap_or_else(|| panic!("{ended:?}"));
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[2..6], ["1,000", "0", "100", "ms"], "{ended:?}");
    assert!(ended.stdout[0].contains("open loop in 3 stages up to 1,000/s"), "{ended:?}");
    assert!(ended.stdout.iter().take(4).any(|line| line.contains("Poisson arrivals")), "{ended:?}");
}

#[test]
fn stages_and_arrivals_that_cannot_be_are_usage_errors_of_one_line() {
    for (arguments, reason) in [
        (&["-r", "1k@1s,2k"][..], "the length of stage \"2k\" is missing: 2k@30s"),
        (&["-r", "1k@0s"], "the length of stage \"1k@0s\": it must be above zero"),
        (&["-r", "1k..x@1s"], "the rate of stage \"1k..x@1s\" must be one such as"),
        (&["-r", "0@1s"], "one must have a rate above 0"),
        (&["-r", "2000M@1s"], "the rate of a stage must be from 0 to 1000M a second"),
        (&["-r", "1k@1s", "-d", "1s"], "--duration cannot be combined with stages of --rate"),
        (&["-r", "1k@1s", "--warmup", "1s"], "--warmup cannot be combined with stages of --rate"),
        (&["-r", "1k@1s", "-m", "5"], "--messages-per-connection and stages of --rate cannot be combined"),
        (&["-r", "1k@1s", "--mode", "hold"], "--rate has no stages in --mode hold"),
        (&["-r", "1k@1s", "--find-rate", "p99<1s"], "--find-rate needs --rate LOW..HIGH"),
        (&["--arrivals", "poisson"], "--arrivals needs --rate"),
        (&["--arrivals", "poisson", "-r", "1", "--mode", "hold"], "--arrivals has no effect in --mode hold"),
        (&["--arrivals", "poisson", "-r", "11M"], "must be at most 10M a second"),
        (&["-r", "1k@1s,2k@1s", "--fail-if", "p99[3]>5ms"], "p99[3]>5ms is on stage 3, and the rate has only 2"),
        (&["-r", "1k", "--fail-if", "p99[1]>5ms"], "p99[1]>5ms is on stage 1, and the rate has no stages"),
        (&["-r", "1k@1s", "--fail-if", "p99[0]>5ms"], "expected the number of a stage, from 1: p99[2]"),
        (&["-r", "1k@1s", "--fail-if", "connections[1]<5"], "connections is of the whole run"),
    ] {
        let ended = run_command(&[arguments, &[":9"]].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr[0].contains(reason), "{reason:?} not in {ended:?}");
    }
}
