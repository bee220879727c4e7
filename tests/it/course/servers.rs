//! The servers of the last chapters: what they do, and what `check` finds in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;

use ecoloop::check::{Grade, Grader};
use ecoloop::transport::AnyAddress;
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::{Block, Page, root};
use crate::support::{
    Process, assert_ended, assert_receives, connect, ecoloop, eventually, example, half_close, limited, pattern, reset,
};
use crate::trace::{drawn, steps};

/// Returns the calls by which a server moves something, as strace sees them. Its clients act while it is stopped, so that each of
/// its waits finds all that they have done.
#[track_caller]
fn calls_for_two_batches(server: &[&str]) -> (Vec<String>, String) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("server.strace");
    let mut command = Command::new("strace");
    // -D: the server is the child of this process, and strace is not.
    command.args(["-D", "-f", "-ttt", "-T", "-yy", "-o"]).arg(&file).args(server);
    let mut server = Process::start(command);
    let line = server.line_with("127.0.0.1");
    let port = line.rsplit([':', ' ']).next().unwrap().parse().unwrap();
    let connect = || connect(([127, 0, 0, 1], port).into());

    server.pause();
    let (mut large, mut small, mut ending, gone) = (connect(), connect(), connect(), connect());
    large.write_all(&pattern(3000)).unwrap();
    small.write_all(b"ping").unwrap();
    ending.write_all(b"x").unwrap();
    half_close(&ending);
    reset(gone);
    server.resume();
    assert_receives(&mut large, &pattern(3000));
    assert_receives(&mut small, b"ping");
    assert_receives(&mut ending, b"x");
    assert_ended(&mut ending);

    // The server may still be on its way to its wait: one client, so that the order does not depend on that.
    server.pause();
    large.write_all(&pattern(2048)).unwrap();
    half_close(&large);
    server.resume();
    assert_receives(&mut large, &pattern(2048));
    assert_ended(&mut large);
    half_close(&small);
    assert_ended(&mut small);
    server.signal_until_ended(Signal::KILL);

    // strace may write the last line after the server's end.
    let mut trace = String::new();
    eventually("the end of the trace", || {
        trace = fs::read_to_string(&file).unwrap();
        trace.contains("+++ killed by SIGKILL +++")
    });
    let moves = |step: &String| ["accept", "read", "write", "close"].contains(&step.split(' ').nth(1).unwrap());
    let steps = steps(&drawn(&trace)).into_iter().filter(|step| moves(step) && !step.ends_with("EAGAIN"));
    // The client has the FIN before the last close has returned.
    (steps.map(|step| step.trim_end_matches(" unfinished").to_owned()).collect(), trace)
}

#[test]
#[ignore = "needs strace"]
fn the_loop_of_the_course_and_ecoloop_make_the_same_calls_for_the_same_edges() {
    let small_loop = example("loop");
    let (small_loop, trace) = calls_for_two_batches(&[small_loop.get_program().to_str().unwrap(), "127.0.0.1:0"]);
    let (ecoloop, trace_of_ecoloop) =
        calls_for_two_batches(&[env!("CARGO_BIN_EXE_ecoloop"), "serve", "--lang", "en", "127.0.0.1:0"]);
    let expected = [
        // Everybody is accepted, and has one read. Only then does the first client have its second one.
        "accept 0",
        "accept 1",
        "accept 2",
        "accept 3",
        "read 0 1024",
        "write 0 1024",
        "read 1 4",
        "write 1 4",
        "read 2 1",
        "write 2 1",
        "read 3 ECONNRESET",
        "close 3",
        "read 0 1024",
        "write 0 1024",
        "read 2 0",
        "close 2",
        "read 0 952",
        "write 0 952",
        // The second batch: two reads, and the end.
        "read 0 1024",
        "write 0 1024",
        "read 0 1024",
        "write 0 1024",
        "read 0 0",
        "close 0",
        "read 1 0",
        "close 1",
    ];
    assert_eq!(small_loop, expected.map(|step| format!("0 {step}")), "{trace}");
    assert_eq!(ecoloop, small_loop, "{trace_of_ecoloop}");
}

/// Starts a server of the course, with 60 MB of address space: one of them takes all that it gets.
#[track_caller]
fn start_server(program: &str) -> (Process, String) {
    let mut command = example(program);
    command.arg("127.0.0.1:0");
    let mut server = Process::start(limited(60_000, &command));
    let address = server.line_with("Listening on ").rsplit_once(' ').unwrap().1.to_owned();
    (server, address)
}

/// Returns the results of the checks of these levels, by name. Each level has a server of its own beside the others: what takes long in
/// a check is waiting, up to 8 s for an answer that never comes.
#[track_caller]
fn grades(program: &str, levels: &[u8]) -> BTreeMap<&'static str, Grade> {
    let graded = |level: u8| {
        let (server, address) = start_server(program);
        let mut grader = Grader::new([address.parse::<AnyAddress>().unwrap()]);
        grader.pid = Some(server.pid().as_raw_nonzero().get().unsigned_abs());
        grader.checks.retain(|check| check.level() == level);
        grader.run(&AtomicBool::new(false), |_| ()).unwrap().results
    };
    thread::scope(|scope| {
        let levels: Vec<_> = levels.iter().map(|&level| scope.spawn(move || graded(level))).collect();
        let results = levels.into_iter().flat_map(|level| level.join().unwrap());
        results.map(|graded| (graded.check.name(), graded.grade)).collect()
    })
}

/// The levels without thousands of connections.
const FEW_CONNECTIONS: [u8; 7] = [1, 2, 3, 4, 5, 6, 8];

#[test]
fn the_small_loop_fails_two_checks_alone() {
    for (name, grade) in grades("loop", &FEW_CONNECTIONS) {
        if ["descriptors", "drain"].contains(&name) {
            assert_eq!(grade, Grade::Fails, "{name}");
        } else {
            // A loaded machine may make an answer late.
            assert!([Grade::Ok, Grade::Late].contains(&grade), "{name}: {grade:?}");
        }
    }
}

#[test]
fn the_mended_server_passes_the_checks() {
    let grades = grades("mended_server", &FEW_CONNECTIONS);
    assert_eq!(grades.len(), 24);
    for (name, grade) in grades {
        assert!([Grade::Ok, Grade::Late].contains(&grade), "{name}: {grade:?}");
    }
}

#[test]
#[ignore = "opens ten thousand connections"]
fn the_mended_server_passes_the_checks_with_many_clients() {
    let grades = grades("mended_server", &[7]);
    assert_eq!(grades.len(), 3);
    for (name, grade) in grades {
        assert!([Grade::Ok, Grade::Late].contains(&grade), "{name}: {grade:?}");
    }
}

/// Keeps this thread, and the processes that it starts, on one core.
fn use_one_core() {
    let allowed = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&core| allowed.is_set(core)).unwrap());
    sched_setaffinity(None, &one).unwrap();
}

/// What `check` prints of the first server is what the exam shows, except what came: that depends on when the server ended.
#[test]
fn the_checks_find_the_five_faults_of_the_first_server_as_the_exam_shows() {
    let is_word = |line: &&str| line.starts_with("    ") && !line.starts_with("     ");
    let without_what_came = |lines: &[&str]| -> Vec<String> {
        let came =
            lines.iter().position(|line| line.starts_with("    happened") || line.starts_with("    pasó")).unwrap();
        let next = came + 1 + lines[came + 1..].iter().position(is_word).unwrap();
        [&lines[..came], &lines[next..]].concat().iter().map(|line| (*line).to_owned()).collect()
    };
    let grade_as_shown = |page: &Page, block: &Block<'_>, language: &str| {
        let arguments = block.lines[0].strip_prefix("$ ecoloop ").unwrap();
        let shown = without_what_came(&block.lines[1..]);
        let mut printed = Vec::new();
        // A machine that holds up one of the two may let a flood pass, or make a loss late.
        for _ in 0..5 {
            let (server, address) = start_server("first_server");
            let pid = server.pid().to_string();
            let arguments = arguments.replace("$!", &pid).replace("127.0.0.1:5000", &address);
            let arguments: Vec<_> = arguments.split(' ').collect();
            let mut check = ecoloop(&arguments);
            check.env("LANG", language);
            let ended = Process::start(check).wait();
            let lines: Vec<_> = ended.stdout.iter().map(String::as_str).collect();
            if ["FAILS", "FALLA"].iter().any(|word| lines[1].ends_with(word)) {
                printed = without_what_came(&lines);
                break;
            }
        }
        assert_eq!(printed, shown, "{}: {}", page.path.display(), block.lines[0]);
    };
    let exam = root().join("docs/course/17-exam");
    let pages =
        [("README.md", "en"), ("README.es.md", "es")].map(|(name, language)| (Page::read(exam.join(name)), language));
    let blocks: Vec<_> = pages
        .iter()
        .flat_map(|(page, language)| page.blocks().into_iter().map(move |block| (page, block, *language)))
        .filter(|(_, block, _)| block.lines[0].contains(" --only "))
        .collect();
    assert_eq!(blocks.len(), 10);
    thread::scope(|scope| {
        for (page, block, language) in blocks {
            scope.spawn(move || {
                if block.lines[0].contains("flood") {
                    // A server on a core of its own may be faster than its client, and come to an end.
                    use_one_core();
                }
                grade_as_shown(page, &block, language);
            });
        }
    });
}
