#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::super::fake_proc::Files;
use super::*;
use crate::process_start;

/// Keeps the CPU busy until the calling thread has used `time` of it.
fn burn(time: Duration) {
    let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let (until, deadline) = (used() + time, Instant::now() + Duration::from_secs(60));
    while used() < until {
        assert!(Instant::now() < deadline, "the CPU time of a busy thread does not grow");
    }
}

fn thread(files: &Files, id: u32, ns: u64) {
    files.write(&format!("42/task/{id}/schedstat"), &format!("{ns} 159620 2\n"));
}

fn process(files: &Files) -> Process {
    files.write("42/status", "Name:\techo\nTgid:\t42\nPid:\t42\n");
    Process::open_at(files.root(), 42).unwrap()
}

#[test]
fn the_time_of_a_thread_excludes_the_other_threads() {
    const WORK: Duration = Duration::from_millis(100);
    let before = ThreadTime::now().unwrap();
    thread::spawn(|| burn(WORK)).join().unwrap();
    let during = ThreadTime::now().unwrap().since(before);
    assert!(during.run < WORK / 2, "{during:?}");
    burn(WORK);
    // Without the current time slice.
    assert!(ThreadTime::now().unwrap().since(before).run >= WORK / 2);
}

#[test]
fn cpu_time_includes_ended_threads() {
    const WORK: Duration = Duration::from_millis(50);
    let process = Process::open(std::process::id()).unwrap();
    let start = process.cpu_time().unwrap();
    let (report, reported) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let busy = thread::spawn(move || {
        burn(WORK);
        report.send(()).unwrap();
        let _ = wait.recv();
    });
    reported.recv().unwrap();
    // Its last time slice counts only once it waits: read again until it does.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut during = process.cpu_time().unwrap();
    while during < start + WORK {
        assert!(Instant::now() < deadline, "{start:?} {during:?}");
        during = process.cpu_time().unwrap();
    }
    release.send(()).unwrap();
    busy.join().unwrap();
    let after = process.cpu_time().unwrap();
    assert!(after >= during, "{during:?} {after:?}");
}

#[test]
fn cpu_time_includes_ended_threads_whose_id_is_reused() {
    let files = Files::new();
    let process = process(&files);
    let cpu_ns = || process.cpu_time().unwrap().as_nanos();
    thread(&files, 42, 1000);
    thread(&files, 43, 500);
    assert_eq!(cpu_ns(), 1500);
    files.remove("42/task/43");
    thread(&files, 42, 1100);
    assert_eq!(cpu_ns(), 1600);
    thread(&files, 43, 20);
    assert_eq!(cpu_ns(), 1620);
    thread(&files, 43, 30);
    assert_eq!(cpu_ns(), 1630);
}

#[test]
fn unreadable_values_are_none() {
    let files = Files::new();
    let process = process(&files);
    assert_eq!((process.cpu_time(), process.resident_bytes()), (None, None));
    thread(&files, 42, 0);
    files.write("42/smaps_rollup", "");
    assert_eq!((process.cpu_time(), process.resident_bytes()), (None, None), "a kernel that does not count reports 0");
    assert_eq!(SocketStatistics::read_at(files.root()), None);
    files.write("net/sockstat", "sockets: used 232\n");
    assert_eq!(SocketStatistics::read_at(files.root()), None);
}

#[test]
fn resident_memory_grows_with_touched_pages() {
    let process = Process::open(std::process::id()).unwrap();
    assert!(process.cpu_time().is_some());
    let before = process.resident_bytes().unwrap();
    let pages = std::hint::black_box(vec![1_u8; 64 << 20]);
    let after = process.resident_bytes().unwrap();
    drop(pages);
    assert!(after >= before + (32 << 20), "{before} {after}");
}

#[test]
fn an_ended_process_has_no_values() {
    let mut child = process_start::spawn(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()));
    let process = Process::open(child.id()).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!((process.cpu_time(), process.resident_bytes()), (None, None));
}

#[test]
fn an_invalid_pid_is_rejected() {
    // proc(5): no pid is above 4,194,304.
    assert_eq!(Process::open(4_194_305).unwrap_err().to_string(), "there is no process 4194305");
    let unmounted = Files::new();
    let error = Process::open_at(unmounted.root(), 1).unwrap_err().to_string();
    assert_eq!(error, format!("cannot read process 1: {} is not mounted", unmounted.root().display()));

    let (report, reported) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let id = fs::read_link("/proc/thread-self").unwrap();
        report.send(id.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap()).unwrap();
        let _ = wait.recv();
    });
    let id = reported.recv().unwrap();
    let error = Process::open(id).unwrap_err().to_string();
    release.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(error, format!("{id} is a thread of process {}", std::process::id()));
}

#[test]
fn sockets_of_both_families_are_counted() {
    let files = Files::new();
    files.write(
        "net/sockstat",
        "sockets: used 232\nTCP: inuse 207 orphan 1 tw 430 alloc 212 mem 211\nUDP: inuse 3 mem 4\n",
    );
    assert_eq!(SocketStatistics::read_at(files.root()), Some(SocketStatistics { tcp_inuse: 207, tcp_mem_pages: 211 }));
    files.write("net/sockstat6", "TCP6: inuse 5\nUDP6: inuse 6\n");
    assert_eq!(SocketStatistics::read_at(files.root()), Some(SocketStatistics { tcp_inuse: 212, tcp_mem_pages: 211 }));
    assert!(SocketStatistics::read().is_some());
}

#[test]
fn reserved_ports_are_excluded() {
    assert_eq!(parse_ports("32768\t32773\n", "\n").unwrap(), [32768, 32769, 32770, 32771, 32772, 32773]);
    assert_eq!(parse_ports("32768\t32773\n", "80,32769-32771,32773\n").unwrap(), [32768, 32772]);
    assert_eq!(parse_ports("65534 65535", "65535").unwrap(), [65534]);
    assert_eq!(parse_ports("0 2", "").unwrap(), [1, 2], "port 0 means any port");
    assert!(parse_ports("100 200", "1-65535").unwrap().is_empty());
    for (range, reserved) in [("", ""), ("1", ""), ("1 x", ""), ("1 65536", ""), ("1 2", "x"), ("1 2", "3-")] {
        assert_eq!(parse_ports(range, reserved), None, "{range:?} {reserved:?}");
    }
}
