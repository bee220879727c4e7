#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::comparison::Verdict;
use super::markdown::{fill, not_first, number, overview, parts};
use super::*;
use crate::peers::{CONTROL, FLOOR, OURS};
use crate::statistics::Estimate;
use crate::workloads::Comparison;

/// Servers whose CPU a message is these multiples of what the round costs, in fifteen rounds that differ by a half.
fn measured(contestants: &[(&str, f64)], control: f64) -> Measured {
    let workload = workloads::all().into_iter().find(|workload| workload.name == "50x64").unwrap();
    let reference = [(FLOOR, 1.0), (CONTROL, control)];
    let contestants = reference.iter().chain(contestants).map(|&(name, multiple)| {
        let mut contestant = Contestant::new(name, &workload.figures);
        for round in 0..15_u32 {
            let cpu = multiple * (4.0 + f64::from(round % 5) / 2.0 + f64::from(round % 3) / 1000.0);
            let slice = serde_json::json!({ "server": { "cpu_us_per_message": cpu }, "rate_per_s": 1e6 / cpu });
            contestant.push(&workload.figures, &slice);
        }
        contestant
    });
    Measured {
        name: workload.name.to_owned(),
        title: workload.title.clone(),
        load: workload.load.clone(),
        buffer_bytes: workload.buffer_bytes,
        rate_per_s: None,
        baseline: FLOOR.to_owned(),
        control: Some(CONTROL.to_owned()),
        sittings: 1,
        rounds: 15,
        contestants: contestants.collect(),
        figures: workload.figures,
        left_out: vec![LeftOut { name: "libnone".to_owned(), why: "there is no cc".to_owned() }],
    }
}

fn document(workloads: Vec<Measured>) -> Document {
    let machine = Machine { cpu: "a CPU".to_owned(), cores: 2, kernel: "6.1".to_owned() };
    let mut document = Document::new("2026-01-01T00:00:00Z".to_owned(), 400, machine);
    let peers =
        [(OURS, Kind::Readiness), (FLOOR, Kind::Readiness), (CONTROL, Kind::Readiness), ("ahead", Kind::Completion)];
    document.peers = peers
        .map(|(name, kind)| Described { name: name.to_owned(), kind, version: "1".to_owned(), run: "x".to_owned() })
        .into();
    document.workloads = workloads;
    document
}

fn verdicts(measured: &Measured, figure: usize) -> Vec<Option<Verdict>> {
    measured.contestants[2..].iter().map(|contestant| measured.verdict(&measured.figures[figure], contestant)).collect()
}

#[test]
fn noise_that_rounds_share_is_in_no_ratio() {
    let measured = measured(&[(OURS, 1.10)], 1.001);
    let figure = &measured.figures[0];
    let ours = measured.contestant(OURS).unwrap();
    let value = Estimate::of(&ours.values(figure)).unwrap().interval.unwrap();
    assert!(value[1] / value[0] > 1.1, "{value:?}");
    let ratio = measured.to_baseline(figure, ours).unwrap().interval.unwrap();
    assert!((1.0999..1.1001).contains(&ratio[0]) && ratio[1] < 1.1001, "{ratio:?}");
}

#[test]
fn a_difference_inside_the_control_is_none() {
    let others = [(OURS, 1.10), ("ahead", 1.05), ("near", 1.105), ("behind", 1.2)];
    // The ratio of "near" to ecoloop is 1.0045, that of the floor's copy to the floor 1.01.
    let measured = measured(&others, 1.01);
    let expected = [None, Some(Verdict::Better), Some(Verdict::NoDifference), Some(Verdict::Worse)];
    assert_eq!(verdicts(&measured, 0), expected, "CPU, where less is better");
    assert_eq!(verdicts(&measured, 1), expected, "messages a second, where more is");
}

#[test]
fn a_difference_of_less_than_two_sittings_have_is_none() {
    let measured = measured(&[(OURS, 1.0), ("near", 0.992), ("ahead", 0.985), ("behind", 1.015)], 1.0);
    let expected = [None, Some(Verdict::NoDifference), Some(Verdict::Better), Some(Verdict::Worse)];
    assert_eq!(verdicts(&measured, 0), expected);
}

#[test]
fn a_wide_control_leaves_all_unresolved() {
    let mut measured = measured(&[(OURS, 1.10), ("ahead", 0.5)], 1.0);
    assert!(measured.is_resolved(&measured.figures[0]));
    let control = measured.contestants[1].samples.get_mut("cpu_us_per_message").unwrap();
    for (round, sample) in control.iter_mut().enumerate() {
        *sample = sample.map(|value| if round % 2 == 0 { value * 1.03 } else { value });
    }
    assert_eq!(verdicts(&measured, 0), [None, Some(Verdict::Unresolved)]);
    assert_eq!(verdicts(&measured, 1), [None, Some(Verdict::Better)], "each figure has its own control");
    let table = measured.table();
    assert!(table.contains("Control, CPU, µs a message: 1.000 to 1.030, **unresolved**."), "{table}");
    assert!(not_first(&document(vec![measured])).contains("- 50x64, CPU, µs a message: unresolved."));
}

#[test]
fn too_few_rounds_are_unresolved() {
    let mut measured = measured(&[(OURS, 1.1), ("ahead", 0.5)], 1.0);
    for samples in measured.contestants.iter_mut().flat_map(|contestant| contestant.samples.values_mut()) {
        samples.truncate(5);
    }
    assert_eq!(verdicts(&measured, 0), [None, Some(Verdict::Unresolved)]);
}

#[test]
fn slices_that_are_missing_are_left_out_of_their_round_alone() {
    let mut measured = measured(&[(OURS, 1.1), ("ahead", 0.5)], 1.0);
    for at in [0, 4, 7] {
        measured.contestants[3].samples.get_mut("cpu_us_per_message").unwrap()[at] = None;
    }
    let ratio = measured.to_baseline(&measured.figures[0], &measured.contestants[3]).unwrap();
    assert!((ratio.median - 0.5).abs() < 1e-4, "{ratio:?}");
}

#[test]
fn values_are_compared_by_their_ranges() {
    let mut measured = measured(&[(OURS, 1.0), ("same", 1.0), ("ahead", 0.5)], 1.0);
    measured.figures[0].comparison = Comparison::Range;
    assert_eq!(verdicts(&measured, 0), [None, Some(Verdict::NoDifference), Some(Verdict::Better)]);
    // The ranges are 4 to 6: 1.55 times that is above it, but not above the tenth by which the copies differ.
    let control = |control| {
        let mut measured = self::measured(&[(OURS, 1.0), ("behind", 1.55)], control);
        measured.figures[0].comparison = Comparison::Range;
        verdicts(&measured, 0)[1]
    };
    assert_eq!((control(1.0), control(1.1)), (Some(Verdict::Worse), Some(Verdict::NoDifference)));
}

#[test]
fn the_file_says_all_that_the_tables_do() {
    let mut document = document(vec![measured(&[(OURS, 1.10), ("ahead", 0.9)], 1.0)]);
    let folder = std::env::temp_dir().join(format!("versus-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("benchmarks.json");
    document.write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let again = Document::read(&path);
    fs::write(&path, text.replace(SCHEMA, "other/1")).unwrap();
    let other = Document::read(&path);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(parts(&again.unwrap()), parts(&document));
    assert!(other.is_err());
    let json: Value = serde_json::from_str(&text).unwrap();
    let ahead = json["summary"].as_array().unwrap().iter().find(|line| line["name"] == "ahead").unwrap();
    assert_eq!(ahead["verdict"], "better");
    assert_eq!(ahead["value"]["interval"].as_array().unwrap().len(), 2);
}

#[test]
fn tables_name_who_is_ahead_and_who_is_missing() {
    let document = document(vec![measured(&[(OURS, 1.10), ("ahead", 0.9)], 1.0)]);
    assert_eq!(
        not_first(&document),
        "- 50x64, CPU, µs a message: behind ahead.\n- 50x64, messages a second: behind ahead.\n"
    );
    let table = document.workloads[0].table();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows[1].starts_with("| ahead | 4.50 | 0.900 (0.900 to 0.900) | better |"), "{table}");
    assert!(table.contains("\n- libnone: there is no cc."));
    let bars = |line: &str| line.matches('|').count();
    let lines = table.lines().filter(|line| line.starts_with('|'));
    assert!(lines.clone().all(|line| bars(line) == bars(rows[0])), "{table}");
    assert!(overview(&document).contains("| ahead | 0.90 |"));
}

#[test]
fn a_page_is_filled_between_its_marks() {
    let page = "a\n<!-- begin: one -->\nold\n<!-- end: one -->\nb\n";
    let filled = fill(page, &[("one", "new\n".to_owned())]).unwrap();
    assert_eq!(filled, "a\n<!-- begin: one -->\nnew\n<!-- end: one -->\nb\n");
    assert_eq!(fill(&filled, &[("one", "new\n".to_owned())]).unwrap(), filled);
    assert_eq!(fill(page, &[("two", String::new())]).unwrap_err(), "there is no place for two");
}

#[test]
fn numbers_have_three_digits() {
    let numbers =
        [(0.0, "0"), (0.0312, "0.031"), (5.314, "5.31"), (53.14, "53.1"), (531.4, "531"), (1_234_567.8, "1,234,568")];
    for (value, text) in numbers {
        assert_eq!(number(value), text);
    }
    assert_eq!(number(999.7), "1,000");
}

#[test]
fn pictures_name_every_server_and_workload() {
    let document = document(vec![measured(&[(OURS, 1.10), ("ahead", 0.9)], 1.0)]);
    let pictures = crate::plot::pictures(&document).unwrap();
    let [("cpu", svg)] = &pictures[..] else { unreachable!("{} pictures", pictures.len()) };
    for word in [OURS, FLOOR, "ahead", "50x64", "a CPU, 2 cores", "2026-01-01"] {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn what_is_measured_anew_stands_in_place_of_what_was() {
    let named = |name: &str, rounds| Measured { name: name.to_owned(), rounds, ..measured(&[], 1.0) };
    let earlier = document(vec![named("1x64", 1), named("50x64", 1), named("churn", 1)]);
    let mut later = document(Vec::new());
    later.keep(earlier).unwrap();
    later.add(named("50x64", 2));
    let order: Vec<_> = later.workloads.iter().map(|measured| (measured.name.as_str(), measured.rounds)).collect();
    assert_eq!(order, [("1x64", 1), ("50x64", 2), ("churn", 1)]);

    let mut elsewhere = document(Vec::new());
    "another CPU".clone_into(&mut elsewhere.machine.cpu);
    assert!(elsewhere.keep(later).is_err());
}
