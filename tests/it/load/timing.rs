//! Figures of time: what is the generator's own delay, and what is the server's.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ecoloop::Config as ServerConfig;

use super::{config, document, run};
use crate::support::{Process, ecoloop, serve};

// ---- saturation ----

#[test]
fn the_cpu_of_an_embedders_other_threads_is_not_the_generators() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.rate = Some(100.0);
    config.duration = Duration::from_millis(500);
    let done = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let report = run(config);
        done.store(true, Ordering::Relaxed);
        report
    });
    assert!(report.generator.cpu_percent.unwrap() < 40.0, "{:?}", report.generator);
}

#[test]
#[ignore = "needs root and the control group's cpu controller at /sys/fs/cgroup"]
fn a_generator_that_has_used_up_its_cpu_quota_is_saturated() {
    let server = serve(ServerConfig::default());
    let target = server.local_addr().to_string();
    let (root, limits) = if Path::new("/sys/fs/cgroup/cpu").is_dir() {
        ("/sys/fs/cgroup/cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "20000")][..])
    } else {
        ("/sys/fs/cgroup", &[("cpu.max", "20000 100000")][..])
    };
    let group = Path::new(root).join(format!("ecoloop-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    for (file, value) in limits {
        fs::write(group.join(file), value).unwrap();
    }
    let load = ecoloop(&["load", "-c", "50", "-p", "100", "-d", "2s", "--json", "-", &target]);
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\"/cgroup.procs; exec \"$@\""]).arg(&group);
    command.arg(load.get_program()).args(load.get_args());
    let ended = Process::start(command).wait();
    fs::remove_dir(&group).unwrap();
    let (_, report) = document(&ended);
    assert!(report.generator.cpu_percent.unwrap() < 40.0, "{:?}", report.generator);
    assert_eq!(report.generator.saturated, Some(true), "{:?}", report.generator);
}
