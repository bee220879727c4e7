#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use ecoloop::load::statistics::Estimate;

use super::comparison::Verdict;
use super::markdown::{fill, not_first, number, overview, sections};
use super::*;
use crate::peers::{CONTROL, ECOLOOP, FLOOR};
use crate::workloads::Comparison;

/// Returns fifteen rounds whose CPU times per message differ by up to a half; each candidate is a multiple of the floor.
fn result(candidates: &[(&str, f64)], control: f64) -> WorkloadResult {
    let workload = workloads::all().into_iter().find(|workload| workload.name == "50x64").unwrap();
    let reference = [(FLOOR, 1.0), (CONTROL, control)];
    let candidates = reference.iter().chain(candidates).map(|&(name, multiple)| {
        let mut candidate = Candidate::new(name, &workload.metrics);
        for round in 0..15_u32 {
            let cpu = multiple * (4.0 + f64::from(round % 5) / 2.0 + f64::from(round % 3) / 1000.0);
            let report = serde_json::json!({ "server": { "cpu_us_per_message": cpu }, "rate_per_s": 1e6 / cpu });
            candidate.record(&workload.metrics, &report);
        }
        candidate
    });
    WorkloadResult {
        name: workload.name.to_owned(),
        title: workload.title.clone(),
        load: workload.load.clone(),
        buffer_bytes: workload.buffer_bytes,
        rate_per_s: None,
        baseline: FLOOR.to_owned(),
        control: Some(CONTROL.to_owned()),
        sessions: 1,
        rounds: 15,
        candidates: candidates.collect(),
        metrics: workload.metrics,
        skipped: vec![Skipped { name: "libnone".to_owned(), reason: "the command cc is missing".to_owned() }],
    }
}

fn document(workloads: Vec<WorkloadResult>) -> Document {
    let machine = Machine { cpu: "a CPU".to_owned(), cores: 2, kernel: "6.1".to_owned() };
    let mut document = Document::new("2026-01-01T00:00:00Z".to_owned(), 400, machine);
    let peers = [
        (ECOLOOP, IoModel::Readiness),
        (FLOOR, IoModel::Readiness),
        (CONTROL, IoModel::Readiness),
        ("ahead", IoModel::Completion),
    ];
    document.peers = peers
        .map(|(name, kind)| PeerInfo { name: name.to_owned(), kind, version: "1".to_owned(), run: "x".to_owned() })
        .into();
    document.workloads = workloads;
    document
}

fn verdicts(result: &WorkloadResult, metric: usize) -> Vec<Option<Verdict>> {
    result.candidates[2..].iter().map(|candidate| result.verdict(&result.metrics[metric], candidate)).collect()
}

#[test]
fn ratios_cancel_noise_that_a_round_shares() {
    let result = result(&[(ECOLOOP, 1.10)], 1.001);
    let metric = &result.metrics[0];
    let ecoloop = result.candidate(ECOLOOP).unwrap();
    let value = Estimate::of(&ecoloop.values(metric)).unwrap().interval.unwrap();
    assert!(value[1] / value[0] > 1.1, "{value:?}");
    let ratio = result.ratio_to_baseline(metric, ecoloop).unwrap().interval.unwrap();
    assert!((1.0999..1.1001).contains(&ratio[0]) && ratio[1] < 1.1001, "{ratio:?}");
}

#[test]
fn difference_within_the_control_interval_is_no_difference() {
    let others = [(ECOLOOP, 1.10), ("ahead", 1.05), ("near", 1.105), ("behind", 1.2)];
    // The ratio of "near" to ecoloop is 1.0045, and that of the control to the floor is 1.01.
    let result = result(&others, 1.01);
    let expected = [None, Some(Verdict::Better), Some(Verdict::NoDifference), Some(Verdict::Worse)];
    assert_eq!(verdicts(&result, 0), expected, "CPU, where less is better");
    assert_eq!(verdicts(&result, 1), expected, "messages per second, where more is better");
}

#[test]
fn a_difference_smaller_than_that_of_two_sessions_is_none() {
    let result = result(&[(ECOLOOP, 1.0), ("near", 0.992), ("ahead", 0.985), ("behind", 1.015)], 1.0);
    let expected = [None, Some(Verdict::NoDifference), Some(Verdict::Better), Some(Verdict::Worse)];
    assert_eq!(verdicts(&result, 0), expected);
}

#[test]
fn wide_control_interval_makes_verdicts_unresolved() {
    let mut result = result(&[(ECOLOOP, 1.10), ("ahead", 0.5)], 1.0);
    assert!(result.is_resolved(&result.metrics[0]));
    let control = result.candidates[1].samples.get_mut("cpu_us_per_message").unwrap();
    for (round, sample) in control.iter_mut().enumerate() {
        *sample = sample.map(|value| if round % 2 == 0 { value * 1.03 } else { value });
    }
    assert_eq!(verdicts(&result, 0), [None, Some(Verdict::Unresolved)]);
    assert_eq!(verdicts(&result, 1), [None, Some(Verdict::Better)], "each metric has its own control");
    let table = result.table();
    assert!(table.contains("A/A control, CPU, µs per message: 1.000 to 1.030, **unresolved**."), "{table}");
    assert!(not_first(&document(vec![result])).contains("- CPU, µs per message: unresolved in 50x64."));
}

#[test]
fn too_few_rounds_make_verdicts_unresolved() {
    let mut result = result(&[(ECOLOOP, 1.1), ("ahead", 0.5)], 1.0);
    for samples in result.candidates.iter_mut().flat_map(|candidate| candidate.samples.values_mut()) {
        samples.truncate(5);
    }
    assert_eq!(verdicts(&result, 0), [None, Some(Verdict::Unresolved)]);
}

#[test]
fn missing_sample_affects_only_its_round() {
    let mut result = result(&[(ECOLOOP, 1.1), ("ahead", 0.5)], 1.0);
    for at in [0, 4, 7] {
        result.candidates[3].samples.get_mut("cpu_us_per_message").unwrap()[at] = None;
    }
    let ratio = result.ratio_to_baseline(&result.metrics[0], &result.candidates[3]).unwrap();
    assert!((ratio.median - 0.5).abs() < 1e-4, "{ratio:?}");
}

#[test]
fn range_metrics_are_compared_by_their_ranges() {
    let mut result = result(&[(ECOLOOP, 1.0), ("same", 1.0), ("ahead", 0.5)], 1.0);
    result.metrics[0].comparison = Comparison::Range;
    assert_eq!(verdicts(&result, 0), [None, Some(Verdict::NoDifference), Some(Verdict::Better)]);
    // Both ranges are 4 to 6 times the multiple. 1.55 is above ecoloop's range, but not by the 10% of the second control.
    let control = |control| {
        let mut result = self::result(&[(ECOLOOP, 1.0), ("behind", 1.55)], control);
        result.metrics[0].comparison = Comparison::Range;
        verdicts(&result, 0)[1]
    };
    assert_eq!((control(1.0), control(1.1)), (Some(Verdict::Worse), Some(Verdict::NoDifference)));
}

#[test]
fn tables_are_the_same_after_write_and_read() {
    let mut document = document(vec![result(&[(ECOLOOP, 1.10), ("ahead", 0.9)], 1.0)]);
    let folder = std::env::temp_dir().join(format!("versus-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("benchmarks.json");
    document.write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let again = Document::read(&path);
    fs::write(&path, text.replace(SCHEMA, "other/1")).unwrap();
    let other = Document::read(&path);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(sections(&again.unwrap()), sections(&document));
    assert!(other.is_err());
    let json: Value = serde_json::from_str(&text).unwrap();
    let ahead = json["summary"].as_array().unwrap().iter().find(|line| line["name"] == "ahead").unwrap();
    assert_eq!(ahead["verdict"], "better");
    assert_eq!(ahead["value"]["interval"].as_array().unwrap().len(), 2);
}

#[test]
fn tables_list_better_and_skipped_servers() {
    let document = document(vec![result(&[(ECOLOOP, 1.10), ("ahead", 0.9)], 1.0)]);
    assert_eq!(
        not_first(&document),
        "- 50x64, CPU, µs per message: behind ahead.\n- 50x64, messages per second: behind ahead.\n"
    );
    let table = document.workloads[0].table();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows[1].starts_with("| ahead | 4.50 | 0.900 (0.900 to 0.900) | better |"), "{table}");
    assert!(table.contains("\n- libnone: the command cc is missing."));
    let bars = |line: &str| line.matches('|').count();
    let lines = table.lines().filter(|line| line.starts_with('|'));
    assert!(lines.clone().all(|line| bars(line) == bars(rows[0])), "{table}");
    assert!(overview(&document).contains("| ahead | 0.90 |"));
}

#[test]
fn page_is_filled_between_its_marks() {
    let page = "a\n<!-- begin: one -->\nold\n<!-- end: one -->\nb\n";
    let sections = [("one", "new\n".to_owned()), ("two", "elsewhere\n".to_owned())];
    let filled = fill(page, &sections).unwrap();
    assert_eq!(filled, "a\n<!-- begin: one -->\nnew\n<!-- end: one -->\nb\n");
    assert_eq!(fill(&filled, &sections).unwrap(), filled);
    assert_eq!(fill("no marks\n", &sections).unwrap(), "no marks\n");
    assert_eq!(fill(page, &sections[1..]).unwrap_err(), "unknown section \"one\"");
    assert_eq!(fill("<!-- begin: one -->\n", &sections).unwrap_err(), "section \"one\" has no end mark");
}

#[test]
fn numbers_have_three_significant_digits() {
    let numbers =
        [(0.0, "0"), (0.0312, "0.031"), (5.314, "5.31"), (53.14, "53.1"), (531.4, "531"), (1_234_567.8, "1,234,568")];
    for (value, text) in numbers {
        assert_eq!(number(value), text);
    }
    assert_eq!(number(999.7), "1,000");
}

#[test]
fn pictures_name_every_server_and_workload() {
    let document = document(vec![result(&[(ECOLOOP, 1.10), ("ahead", 0.9)], 1.0)]);
    let pictures = crate::plot::pictures(&document).unwrap();
    let [("cpu", svg)] = &pictures[..] else { unreachable!("{} pictures", pictures.len()) };
    for word in [ECOLOOP, FLOOR, "ahead", "50x64", "a CPU, 2 cores", "2026-01-01"] {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn new_result_replaces_the_earlier_one() {
    let named = |name: &str, rounds| WorkloadResult { name: name.to_owned(), rounds, ..result(&[], 1.0) };
    let earlier = document(vec![named("1x64", 1), named("50x64", 1), named("churn", 1)]);
    let mut later = document(Vec::new());
    later.keep(earlier).unwrap();
    later.add_workload(named("50x64", 2));
    let order: Vec<_> = later.workloads.iter().map(|result| (result.name.as_str(), result.rounds)).collect();
    assert_eq!(order, [("1x64", 1), ("50x64", 2), ("churn", 1)]);

    let mut elsewhere = document(Vec::new());
    "another CPU".clone_into(&mut elsewhere.machine.cpu);
    assert!(elsewhere.keep(later).is_err());
}
