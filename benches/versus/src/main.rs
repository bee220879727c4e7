//! Measures ecoloop side by side with other echo servers: see docs/benchmarks.md.

mod generators;
mod measure;
mod peers;
mod plot;
mod processes;
mod report;
mod statistics;
mod tools;
mod workloads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use measure::Settings;
use report::{Described, Document, Machine, markdown};
use workloads::Workload;

/// Of this package, where the commands of `peers.toml` run.
const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// Runs echo servers in turn on one core with `ecoloop load` on another, and writes what each costs: tables on standard
/// output, a JSON file, and beside that the page and the pictures that are made of it.
#[derive(Parser)]
struct Options {
    /// Also the peers that are left out by default
    #[arg(long)]
    all: bool,
    /// Install the Debian packages that the peers need
    #[arg(long)]
    install: bool,
    /// How often each workload is measured with new servers and new connections
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = clap::value_parser!(u16).range(1..))]
    sittings: u16,
    /// Slices of each server in a sitting; an interval takes six of all sittings
    #[arg(long, value_name = "COUNT", default_value = "25", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// These peers alone, and the floor and its copy
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// These workloads alone
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    workloads: Vec<String>,
    /// How long a slice is measured; some workloads stretch it
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = humantime::parse_duration)]
    slice: Duration,
    /// Where the result goes, written anew after each workload [default: docs/benchmarks.json of the repository]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep what the result has of other workloads
    #[arg(long)]
    add: bool,
    /// Make the tables, the page and the pictures of this file again, without measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "install", "sittings", "rounds", "only", "workloads", "slice", "json", "add"])]
    tables: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    if let Some(file) = &options.tables {
        // The file is the user's, wherever the peers are.
        return publish(&Document::read(file)?, file);
    }
    let workloads = select(&options.workloads)?;
    let json = options.json.clone().unwrap_or_else(|| Path::new(FOLDER).join("../../docs/benchmarks.json"));
    let json = std::path::absolute(json).map_err(|error| format!("--json: {error}"))?;
    // Before an hour of measuring, not after it.
    if !json.parent().is_some_and(Path::is_dir) {
        return Err(format!("cannot write {}: its folder does not exist", json.display()));
    }
    prepare()?;
    let list = fs::read_to_string("peers.toml").map_err(|error| format!("cannot read peers.toml: {error}"))?;
    let peers = peers::select(&list, options.all, &options.only)?;
    if options.install {
        peers::install(&peers)?;
    }
    peers::build_clients(Path::new("../.."))?;
    let (peers, left_out) = peers::build(peers)?;

    let start = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let slice_ms = options.slice.as_millis().try_into().map_err(|_| "--slice is too long")?;
    let mut document = Document::new(start, slice_ms, machine()?);
    if options.add {
        document.keep(Document::read(&json)?)?;
    }
    document.left_out = left_out;
    for peer in &peers {
        let (name, run) = (peer.name.clone(), peer.run.clone());
        document.describe(Described { name, kind: peer.kind, version: peer.version(), run });
    }
    let settings = Settings { sittings: options.sittings.into(), rounds: options.rounds.into(), slice: options.slice };
    let mut failed = Vec::new();
    for workload in &workloads {
        match measure::measure(workload, &peers, &settings) {
            Ok(measured) => document.add(measured),
            Err(why) => failed.push(format!("{}: {why}", workload.name)),
        }
        processes::check_interrupt()?;
        document.write(&json)?;
    }
    publish(&document, &json)?;
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join("; "))) }
}

fn select(names: &[String]) -> Result<Vec<Workload>, String> {
    let all = workloads::all();
    if let Some(unknown) = names.iter().find(|&name| all.iter().all(|workload| workload.name != name)) {
        let names: Vec<_> = all.iter().map(|workload| workload.name).collect();
        return Err(format!("no workload is named {unknown:?}; there are {}", names.join(", ")));
    }
    let is_wanted = |workload: &Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// Servers and load generators inherit the folder, and the descriptors that they may open.
fn prepare() -> Result<(), String> {
    processes::watch_signals()?;
    std::env::set_current_dir(FOLDER).map_err(|error| format!("cannot change to {FOLDER}: {error}"))?;
    fs::create_dir_all("target").map_err(|error| format!("cannot create target: {error}"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err("two cores are needed, one for the server and one for the load".to_owned());
    }
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .map_err(|error| format!("cannot raise the descriptor limit: {error}"))
}

fn machine() -> Result<Machine, String> {
    const FILE: &str = "/proc/cpuinfo";
    let text = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let name =
        text.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    Ok(Machine {
        cpu: name.unwrap_or_else(|| "an unnamed CPU".to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}

/// The tables; beside the JSON file the pictures, and the page if there is one.
fn publish(document: &Document, json: &Path) -> Result<(), String> {
    let parts = markdown::parts(document);
    for (_, content) in &parts {
        println!("{content}");
    }
    let images = json.with_file_name("images");
    fs::create_dir_all(&images).map_err(|error| format!("cannot create {}: {error}", images.display()))?;
    for (name, svg) in plot::pictures(document)? {
        report::replace_file(&images.join(format!("benchmarks-{name}.svg")), &svg)?;
    }
    let page = json.with_extension("md");
    if !fs::exists(&page).unwrap_or(false) {
        return Ok(());
    }
    let text = fs::read_to_string(&page).map_err(|error| format!("cannot read {}: {error}", page.display()))?;
    let text = markdown::fill(&text, &parts).map_err(|error| format!("{}: {error}", page.display()))?;
    report::replace_file(&page, &text)
}
