//! The course in `docs/course`: its programs show what its chapters claim, and its chapters agree with the programs, with the source of
//! ecoloop, and with each other in both languages.

#[cfg(feature = "load")]
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use serde_json::Value;

use crate::support::{Process, assert_echoes, connect, example};

/// Returns the lines that a program of the course prints. It runs once for all tests: most of its time is silence.
#[track_caller]
fn run(program: &str, case: &str) -> Vec<String> {
    type Runs = BTreeMap<(String, String), Arc<OnceLock<Vec<String>>>>;
    static RUNS: Mutex<Runs> = Mutex::new(BTreeMap::new());
    let result = RUNS.lock().unwrap().entry((program.to_owned(), case.to_owned())).or_default().clone();
    result.get_or_init(|| run_anew(program, case)).clone()
}

#[track_caller]
fn run_anew(program: &str, case: &str) -> Vec<String> {
    let mut command = example(program);
    command.arg(case).stdin(Stdio::null());
    let ended = Process::start(command).wait();
    assert!(ended.status.success(), "{program} {case}: {ended:?}");
    ended.stdout
}

/// Runs programs side by side: what takes long in them is silence.
fn run_together(runs: &[(&str, &str)]) {
    thread::scope(|scope| {
        for &(program, case) in runs {
            scope.spawn(move || run(program, case));
        }
    });
}

/// Runs a program of the course, and returns the facts of its last line.
#[track_caller]
fn facts(program: &str, case: &str) -> Value {
    let facts: Value = serde_json::from_str(run(program, case).last().unwrap()).unwrap();
    assert_eq!(facts["case"], case);
    facts
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_first_program_receives_hola_and_a_closed_port_refuses() {
    assert_eq!(facts("hello", "fixed")["received"], 4);
    assert_eq!(facts("hello", "broken")["received"], 0);
}

/// The words of the notes, and those of the Python server that the notes explain, with one client that sends hola and closes.
#[test]
#[ignore = "needs python3"]
fn the_notes_server_prints_what_the_notes_print() {
    let mut server = Command::new("python3");
    server.args(["-u", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/blocking_server.py"), "0"]);
    let mut server = Process::start(server);
    let start = server.line_with("con puerto");
    let waiting = server.line_with("Esperando conexiones..."); // it prints its port before it listens
    let port: u16 = start.rsplit(' ').next().unwrap().parse().unwrap();
    let mut client = connect(([127, 0, 0, 1], port).into());
    assert_echoes(&mut client, b"hola");
    drop(client);
    let mut printed = vec![start, waiting];
    while printed.len() < 7 {
        printed.push(server.line_with(""));
    }

    let mut lines = run("notes_server", "fixed");
    assert_eq!(lines.pop().unwrap(), r#"{"case": "fixed", "received": 4}"#);
    let words = |line: &String| without_figures(line).replace("0.0.0.0", "127.0.0.1");
    assert_eq!(lines.iter().map(words).collect::<Vec<_>>(), printed.iter().map(words).collect::<Vec<_>>());
    assert_eq!(run("notes_server", "broken")[4], "El cliente ha cerrado la conexion de forma abrupta");
}

#[test]
fn the_second_client_waits_until_the_first_has_closed() {
    let broken = facts("second_client", "broken");
    assert_eq!((&broken["while_first_is_connected"], &broken["in_the_end"]), (&0.into(), &3.into()));
    let fixed = facts("second_client", "fixed");
    assert_eq!((&fixed["while_first_is_connected"], &fixed["in_the_end"]), (&3.into(), &3.into()));
}

#[test]
fn a_backlog_of_five_holds_six_clients_and_the_next_retries_after_a_second() {
    assert_eq!(facts("backlog", "broken")["connected"], 6);
    // On a loaded machine the client may begin only once the queue is free.
    let has_a_second = |lines: &[String]| {
        let facts: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        (0.9..1.9).contains(&facts["next_connected_after_s"].as_f64().unwrap())
    };
    let is_shown = has_a_second(&run("backlog", "broken"));
    assert!(
        is_shown || (0..4).any(|_| has_a_second(&run_anew("backlog", "broken"))),
        "no run had a second between two SYNs"
    );
    assert_eq!(facts("backlog", "fixed")["connected"], 20);
}

#[test]
fn two_messages_arrive_as_one() {
    assert_eq!(facts("two_messages", "broken")["received"], 1);
    assert_eq!(facts("two_messages", "fixed")["received"], 2);
}

#[test]
fn a_letter_that_the_buffer_splits_ends_a_server_that_decodes() {
    assert_eq!(facts("split_letter", "broken")["received"], 0);
    assert_eq!(facts("split_letter", "fixed")["received"], 1025);
}

#[test]
fn a_thread_for_each_client_costs_eight_kilobytes_and_the_loop_less_than_one() {
    let broken = facts("thread_each", "broken");
    assert_eq!(broken["threads"], 500);
    assert!(broken["bytes"].as_u64().unwrap() > 8192, "{broken}");
    assert!(broken["address_bytes"].as_u64().unwrap() > 2 << 20, "{broken}");
    let fixed = facts("thread_each", "fixed");
    assert_eq!(fixed["threads"], 0);
    assert!(fixed["bytes"].as_u64().unwrap() < 1024, "{fixed}");
}

#[test]
fn a_loop_that_never_waits_makes_a_thousand_calls_for_each_message() {
    let broken = facts("busy_loop", "broken");
    assert_eq!(broken["useful"], 4);
    assert!(broken["calls"].as_u64().unwrap() > 4000, "{broken}");
    let fixed = facts("busy_loop", "fixed");
    assert_eq!(fixed["useful"], 4);
    assert!(fixed["calls"].as_u64().unwrap() <= 20, "{fixed}");
}

#[test]
fn a_loop_that_waits_in_two_places_serves_the_first_client_when_the_second_comes() {
    assert_eq!(facts("one_wait", "broken")["before_second_client"], 0);
    let fixed = facts("one_wait", "fixed");
    assert_eq!(fixed["before_second_client"], 4);
    assert!(fixed["waits"].as_u64().unwrap() < 20, "{fixed}");
}

#[test]
fn poll_of_5000_sockets_takes_over_20_times_as_long_as_epoll() {
    let (poll, epoll) = (facts("price", "broken"), facts("price", "fixed"));
    let ratio = poll["wait_us"].as_f64().unwrap() / epoll["wait_us"].as_f64().unwrap();
    assert!(ratio > 20.0, "{poll} {epoll}");
}

#[test]
fn a_log_that_waits_hangs_every_client_after_64_kilobytes() {
    let broken = facts("blocked_log", "broken");
    let bytes = broken["log_bytes"].as_u64().unwrap();
    assert!((60_000..70_000).contains(&bytes), "{broken}");
    assert_eq!(broken["other_is_served"], false);
    let fixed = facts("blocked_log", "fixed");
    assert_eq!((&fixed["served"], &fixed["other_is_served"]), (&100.into(), &true.into()));
}

#[test]
fn one_of_two_loops_that_were_told_of_a_client_waits_in_accept() {
    let broken = facts("hint", "broken");
    assert_eq!((&broken["accepted"], &broken["stuck"]), (&1.into(), &1.into()));
    let fixed = facts("hint", "fixed");
    assert_eq!((&fixed["accepted"], &fixed["would_block"], &fixed["stuck"]), (&1.into(), &1.into(), &0.into()));
}

#[test]
fn after_an_edge_what_is_left_is_not_reported_again() {
    let programs = ["level_and_edge", "read_once", "accept_once", "end_once"];
    run_together(&programs.map(|program| [(program, "broken"), (program, "fixed")]).concat());
    assert_eq!(facts("level_and_edge", "broken")["reads"], serde_json::json!([1024]));
    assert_eq!(facts("level_and_edge", "fixed")["reads"], serde_json::json!([1024, 1024, 952]));
    let broken = facts("read_once", "broken");
    assert_eq!((&broken["of_3000"], &broken["after_one_more"]), (&1024.into(), &1024.into()));
    let fixed = facts("read_once", "fixed");
    assert_eq!((&fixed["of_3000"], &fixed["after_one_more"]), (&3000.into(), &1.into()));
    assert_eq!(facts("accept_once", "broken")["accepted"], 1);
    assert_eq!(facts("accept_once", "fixed")["accepted"], 2);
    assert_eq!(facts("end_once", "broken")["is_ended"], false);
    assert_eq!(facts("end_once", "fixed")["is_ended"], true);
}

#[test]
fn write_all_returns_when_the_kernel_has_the_bytes() {
    let broken = facts("sendall_returns", "broken");
    assert_eq!((&broken["written"], &broken["read_at_return"]), (&200_000.into(), &0.into()));
    assert_eq!(facts("sendall_returns", "fixed")["read_at_end"], 200_000);
    assert_eq!(facts("two_polite_programs", "broken")["finished"], 0);
    assert_eq!(facts("two_polite_programs", "fixed")["finished"], 2);
}

#[test]
fn of_four_servers_only_the_one_that_pauses_neither_loses_nor_hoards_nor_hangs() {
    let broken = facts("four_servers", "broken");
    let of = |server: &str, fact: &str| broken[server][fact].as_u64().unwrap();
    assert!(of("forget", "received") < 2 << 20, "{broken}");
    assert!(of("hoard", "received") == 2 << 20 && of("hoard", "kept") > 1 << 20, "{broken}");
    assert!(of("insist", "useless") == 10_000, "{broken}");
    let fixed = &facts("four_servers", "fixed")["pause"];
    assert_eq!((&fixed["received"], &fixed["useless"]), (&(2 << 20).into(), &0.into()));
    assert!(fixed["kept"].as_u64().unwrap() <= 1024, "{fixed}");
}

#[test]
fn a_connection_that_sends_or_else_reads_hangs_after_a_pause() {
    run_together(&[("resume", "broken"), ("resume", "fixed")]);
    let broken = facts("resume", "broken");
    assert!(broken["received"].as_u64().unwrap() < 100_000, "{broken}");
    assert_eq!(facts("resume", "fixed")["received"], 150_000);
    assert!(facts("left_on", "broken")["wakes"].as_u64().unwrap() > 5000);
    assert!(facts("left_on", "fixed")["wakes"].as_u64().unwrap() <= 6);
}

#[test]
fn a_key_that_is_freed_in_the_batch_lets_an_old_event_hit_a_new_client() {
    assert_eq!(facts("stale_event", "broken")["c_stays"], false);
    assert_eq!(facts("stale_event", "fixed")["c_stays"], true);
}

#[test]
fn closing_with_unread_bytes_destroys_what_is_on_its_way() {
    let broken = facts("close_unread", "broken");
    assert!(broken["received"].as_u64().unwrap() < 100_000, "{broken}");
    assert_eq!(broken["end"], "connection reset");
    let fixed = facts("close_unread", "fixed");
    assert_eq!((&fixed["received"], &fixed["end"]), (&100_000.into(), &"end of stream".into()));
}

#[test]
fn the_second_write_to_a_dead_connection_fails() {
    assert_eq!(facts("dead_peer", "broken")["results"], serde_json::json!(["3 bytes", "broken pipe"]));
    assert_eq!(facts("dead_peer", "fixed")["results"], serde_json::json!(["0 bytes"]));
    assert_eq!(facts("address_in_use", "broken")["second_bind"], "address in use");
    assert_eq!(facts("address_in_use", "fixed")["second_bind"], "ok");
}

#[test]
fn a_ping_behind_a_flood_waits_for_one_read_if_they_take_turns() {
    assert!(facts("flood", "broken")["ping_is_read"].as_u64().unwrap() > 100);
    assert_eq!(facts("flood", "sixteen")["ping_is_read"], 17);
    assert_eq!(facts("flood", "fixed")["ping_is_read"], 2);
}

#[test]
fn without_descriptors_the_level_spins_the_edge_forgets_and_the_clock_serves() {
    assert!(facts("no_descriptors", "broken")["failures"].as_u64().unwrap() > 1000);
    let forgets = facts("no_descriptors", "forgets");
    assert_eq!((&forgets["failures"], &forgets["served"]), (&1.into(), &false.into()));
    let fixed = facts("no_descriptors", "fixed");
    assert!(fixed["failures"].as_u64().unwrap() < 10, "{fixed}");
    assert_eq!(fixed["served"], true);
}

#[test]
fn a_flag_without_a_waker_is_seen_when_the_wait_is_over() {
    let [broken, fixed] =
        ["broken", "fixed"].map(|case| facts("stop_flag", case)["stopped_after_ms"].as_u64().unwrap());
    assert!(broken >= 400 && fixed < broken, "{broken} {fixed}");
}

#[test]
fn a_closed_loop_hides_a_stall_and_nagle_costs_a_delayed_ack() {
    let ms = |facts: &Value, name: &str| facts[name].as_f64().unwrap();
    run_together(&[("omission", "fixed"), ("nagle", "broken")]);
    let (broken, fixed) = (facts("omission", "broken"), facts("omission", "fixed"));
    assert!(ms(&broken, "max_ms") >= 195.0 && ms(&fixed, "p90_ms") > 100.0, "{broken} {fixed}");
    assert!(ms(&broken, "p99_ms") < ms(&fixed, "p90_ms"), "{broken} {fixed}");
    let [broken, fixed] = ["broken", "fixed"].map(|case| ms(&facts("nagle", case), "median_ms"));
    assert!(broken > 35.0 && fixed < broken, "{broken} {fixed}");
}

/// A twin prints what its program prints, with other figures where it is a matter of speed.
#[test]
#[ignore = "needs python3"]
fn the_python_twins_show_what_their_programs_show() {
    let files =
        chapters().into_iter().flat_map(|chapter| fs::read_dir(chapter).unwrap()).map(|entry| entry.unwrap().path());
    let twins: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "py")).collect();
    assert_eq!(twins.len(), 4);
    for (twin, case) in twins.iter().flat_map(|twin| [(twin, "broken"), (twin, "fixed")]) {
        let name = twin.file_stem().unwrap().to_str().unwrap();
        let mut command = Command::new("python3");
        command.arg(twin).arg(case).stdin(Stdio::null());
        let ended = Process::start(command).wait();
        let printed: Vec<_> = ended.stdout.iter().map(|line| line.replace("sendall", "write_all")).collect();
        let words = |line: &str| without_figures(line).replace(|c: char| c.is_ascii_digit(), "").replace('N', "");
        let expected = run(name, case);
        let expected_words: Vec<_> = expected.iter().map(|line| words(line)).collect();
        assert_eq!(printed.iter().map(|line| words(line)).collect::<Vec<_>>(), expected_words, "{name} {case}");

        let facts = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
        let (mut twin, mut program) = (facts(printed.last().unwrap()), facts(expected.last().unwrap()));
        for facts in [&mut twin, &mut program] {
            facts.as_object_mut().unwrap().remove("waits");
            if let Some(calls) = facts.as_object_mut().unwrap().remove("calls") {
                assert_eq!(calls.as_u64().unwrap() > 1000, case == "broken", "{name} {case}: {calls}");
            }
        }
        assert_eq!(twin, program, "{name} {case}");
    }
}

/// A page of the course.
struct Page {
    path: PathBuf,
    text: String,
}

/// A fenced block of a page: its language and its lines.
struct Block<'a> {
    language: &'a str,
    lines: Vec<&'a str>,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines();
        while let Some(line) = lines.next() {
            if let Some(language) = line.strip_prefix("```") {
                let lines = lines.by_ref().take_while(|line| *line != "```").collect();
                blocks.push(Block { language, lines });
            }
        }
        blocks
    }

    /// Returns the lines outside fenced blocks.
    fn prose(&self) -> Vec<&str> {
        let mut is_prose = true;
        self.text
            .lines()
            .filter(|line| {
                let is_fence = line.starts_with("```");
                is_prose ^= is_fence;
                is_prose && !is_fence
            })
            .collect()
    }

    /// Returns the level of each heading.
    fn headings(&self) -> Vec<usize> {
        let level = |line: &&str| line.bytes().take_while(|byte| *byte == b'#').count();
        self.prose().iter().map(level).filter(|level| *level > 0).collect()
    }

    /// Returns the targets of the links and pictures.
    fn links(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
    }

    fn commands(&self) -> Vec<&str> {
        self.blocks().into_iter().flat_map(|block| block.lines).filter_map(|line| line.strip_prefix("$ ")).collect()
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}", self.path.display())
    }
}

/// Returns the folders of the chapters, in order.
fn chapters() -> Vec<PathBuf> {
    let mut chapters: Vec<_> = fs::read_dir(root().join("docs/course"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("images"))
        .collect();
    chapters.sort();
    assert!(!chapters.is_empty());
    chapters
}

/// Returns each page in English and in Spanish.
fn pairs() -> Vec<(Page, Page)> {
    let course = chapters().into_iter().chain([root().join("docs/course")]).map(|folder| folder.join("README"));
    course
        .chain([root().join("docs/course/teaching"), root().join("docs/glossary")])
        .map(|page| (Page::read(page.with_extension("md")), Page::read(page.with_extension("es.md"))))
        .collect()
}

fn pages() -> Vec<Page> {
    pairs().into_iter().flat_map(|(english, spanish)| [english, spanish]).collect()
}

#[test]
fn both_languages_have_the_same_headings_pictures_programs_and_commands() {
    for (english, spanish) in pairs() {
        assert_eq!(english.headings(), spanish.headings(), "headings of {}", english.path.display());
        assert_eq!(english.commands(), spanish.commands(), "commands of {}", english.path.display());
        let pictures = |page: &Page| -> Vec<String> {
            let is_picture = |link: &String| Path::new(link).extension().is_some_and(|extension| extension == "svg");
            page.links().into_iter().filter(is_picture).map(|link| link.replace(".es.", ".")).collect()
        };
        assert_eq!(pictures(&english), pictures(&spanish), "pictures of {}", english.path.display());
    }
}

#[test]
fn every_link_of_the_course_leads_to_a_file() {
    for page in pages() {
        for link in page.links().iter().filter(|link| !link.starts_with("https://") && !link.starts_with('#')) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = page.path.parent().unwrap().join(file);
            if !path.exists() {
                page.fail(&format!("{link} does not exist"));
            }
            if !anchor.is_empty() && !anchors(&path).contains(anchor) {
                page.fail(&format!("{link} names no heading"));
            }
        }
    }
}

#[test]
fn every_word_of_the_glossary_is_linked_from_a_chapter() {
    for (glossary, page) in [("glossary.md", "README.md"), ("glossary.es.md", "README.es.md")] {
        let links = chapters().into_iter().flat_map(|chapter| Page::read(chapter.join(page)).links());
        let prefix = format!("../../{glossary}#");
        let linked: BTreeSet<_> = links.filter_map(|link| Some(link.strip_prefix(&prefix)?.to_owned())).collect();
        let glossary = Page::read(root().join("docs").join(glossary));
        let words: BTreeSet<_> =
            glossary.prose().iter().filter(|line| line.starts_with("## ")).map(|line| anchor_of(line)).collect();
        assert_eq!(words.difference(&linked).collect::<Vec<_>>(), Vec::<&String>::new(), "{}", glossary.path.display());
    }
}

/// Returns the anchors of a page's headings, as GitHub makes them.
fn anchors(path: &Path) -> BTreeSet<String> {
    let page = Page::read(path.to_owned());
    let prose = page.prose();
    prose.iter().filter(|line| line.starts_with('#')).map(|line| anchor_of(line)).collect()
}

fn anchor_of(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// How the pages run a program.
const RUN: &str = "cargo run --quiet --example ";

/// A console block whose commands are all programs of the course shows what they print, numbers with a decimal point apart.
#[test]
fn the_sessions_of_the_chapters_print_what_the_pages_show() {
    let pages = pages();
    let commands = pages.iter().flat_map(Page::commands);
    let runs: BTreeSet<_> = commands.filter_map(|command| command.strip_prefix(RUN)?.split_once(" -- ")).collect();
    run_together(&runs.into_iter().collect::<Vec<_>>());
    let mut ran = 0;
    for page in &pages {
        for block in page.blocks().iter().filter(|block| block.language == "console") {
            let mut lines = block.lines.iter().peekable();
            while let Some(line) = lines.next() {
                let Some(arguments) = line.strip_prefix("$ ").and_then(|line| line.strip_prefix(RUN)) else { continue };
                let (program, case) = arguments.split_once(" -- ").unwrap_or_else(|| page.fail(line));
                let mut shown = Vec::new();
                while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                    shown.push(without_figures(line));
                }
                let printed: Vec<_> = run(program, case).iter().map(|line| without_figures(line)).collect();
                assert_eq!(shown, printed, "{}: {line}", page.path.display());
                ran += 1;
            }
        }
    }
    assert!(ran > 0);
}

/// Returns the line without what differs from run to run: numbers with a decimal point or from 10,000 up, such as times and ports, and
/// the numbers of the facts, which have tests of their own.
fn without_figures(line: &str) -> String {
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    let is_facts = line.starts_with('{');
    let mut text = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[start..].find(|c| !is_digit(c)).map_or(rest.len(), |length| start + length);
        let number = &rest[start..end];
        let is_fixed = !is_facts && number.parse::<u64>().is_ok_and(|number| number < 10_000);
        text.push_str(&rest[..start]);
        text.push_str(if is_fixed || number.matches('.').count() > 1 { number } else { "N" });
        rest = &rest[end..];
    }
    text + rest
}

/// A Rust block that begins with `// FILE` shows consecutive lines of that file.
#[test]
fn the_excerpts_of_the_chapters_are_in_the_source() {
    let mut excerpts = 0;
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language == "rust") {
            let Some(file) = block.lines.first().and_then(|line| line.strip_prefix("// ")) else { continue };
            let source =
                fs::read_to_string(root().join(file)).unwrap_or_else(|error| page.fail(&format!("{file}: {error}")));
            let excerpt: Vec<_> = block.lines[1..].iter().map(|line| line.trim()).collect();
            let source: Vec<_> = source.lines().map(str::trim).collect();
            if !source.windows(excerpt.len()).any(|lines| lines == excerpt) {
                page.fail(&format!("{file} does not have the lines of the excerpt:\n{}", excerpt.join("\n")));
            }
            excerpts += 1;
        }
    }
    assert!(excerpts > 0);
}

/// Each line of a diff is a line of one of the chapter's programs.
#[test]
fn the_diffs_of_the_chapters_are_of_their_programs() {
    for chapter in chapters() {
        let sources: BTreeSet<String> = fs::read_dir(&chapter)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "rs" || extension == "py"))
            .flat_map(|path| {
                fs::read_to_string(path).unwrap().lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
            })
            .collect();
        for page in ["README.md", "README.es.md"].map(|name| Page::read(chapter.join(name))) {
            for line in page.blocks().iter().filter(|block| block.language == "diff").flat_map(|block| &block.lines) {
                let code = line.get(1..).unwrap_or_default().trim();
                if !sources.contains(code) {
                    page.fail(&format!("no program of the chapter has the line `{code}`"));
                }
            }
        }
    }
}

/// Each file that a page names in backticks exists, and so does each function or type that it names right after, as in
/// `src/server.rs`, `turn`.
#[test]
fn the_files_and_functions_that_the_course_names_exist() {
    for page in pages() {
        let prose = page.prose().join(" ");
        let spans: Vec<_> = prose.split('`').collect();
        for (index, span) in spans.iter().enumerate().skip(1).step_by(2).filter(|(_, span)| span.starts_with("src/")) {
            let path = root().join(span);
            let Ok(source) = fs::read_to_string(&path) else { page.fail(&format!("{span} is no file")) };
            if let [between, name] = spans.get(index + 1..=index + 2).unwrap_or_default()
                && *between == ", "
            {
                let is_defined = ["fn", "struct", "enum", "trait", "const"].iter().any(|kind| {
                    source.contains(&format!("{kind} {name}("))
                        || source.contains(&format!("{kind} {name}<"))
                        || source.contains(&format!("{kind} {name} "))
                        || source.contains(&format!("{kind} {name}:"))
                });
                if !is_defined {
                    page.fail(&format!("{span} defines no {name}"));
                }
            }
        }
    }
}

#[test]
fn every_chapter_is_in_the_index_in_order() {
    for name in ["README.md", "README.es.md"] {
        let page = Page::read(root().join("docs/course").join(name));
        let links = page.links();
        let mut rest = links.iter();
        for chapter in chapters() {
            let folder = chapter.file_name().unwrap().to_str().unwrap();
            let link = format!("{folder}/{name}");
            if !rest.any(|entry| *entry == link) {
                page.fail(&format!("{link} is not in the index, or not in its place"));
            }
        }
    }
}

/// What students paste into a search box has all its words in one entry of the index, and that leads to the answer in ten lines.
#[test]
fn a_symptom_leads_to_its_answer() {
    let questions = [
        (
            "my epoll server hangs with large messages",
            "mi servidor con epoll se cuelga con mensajes grandes",
            "WouldBlock",
        ),
        (
            "my server hangs on messages over 1024 bytes",
            "mi servidor se cuelga con mensajes de más de 1024 bytes",
            "WouldBlock",
        ),
        ("Address already in use python socket", "Address already in use python socket", "SO_REUSEADDR"),
        (
            "second client waits until the first disconnects",
            "el segundo cliente espera hasta que el primero se desconecta",
            "thread::spawn",
        ),
        (
            "BrokenPipeError socket server dies",
            "BrokenPipeError servidor de sockets se muere",
            "except (BrokenPipeError",
        ),
        ("100% CPU non blocking accept", "100% CPU accept no bloqueante", "select.poll"),
    ];
    for (language, name) in ["README.md", "README.es.md"].into_iter().enumerate() {
        let index = Page::read(root().join("docs/course").join(name));
        let entries: Vec<_> = index.text.split("\n### ").skip(1).collect();
        for (english, spanish, answer) in questions {
            let question = [english, spanish][language];
            let has_all_words = |entry: &&&str| {
                let entry = entry.to_lowercase();
                question.to_lowercase().split(' ').all(|word| entry.contains(word))
            };
            let found: Vec<_> = entries.iter().filter(has_all_words).collect();
            let [entry] = &found[..] else { panic!("{name}: {question}: {found:?}") };
            let link = entry.split("](").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
            let (file, anchor) = link.split_once('#').unwrap();
            let chapter = Page::read(root().join("docs/course").join(file));
            let lines = chapter.text.lines().skip_while(|line| !line.starts_with('#') || anchor_of(line) != anchor);
            let first: Vec<_> = lines.skip(1).take(10).collect();
            assert!(first.iter().any(|line| line.contains(answer)), "{name}: {question}: {link}: {first:?}");
        }
    }
}

#[test]
fn the_loop_of_the_course_has_as_many_lines_as_its_chapter_says_and_at_most_70() {
    let chapter = root().join("docs/course/16-the-loop");
    let program = fs::read_to_string(chapter.join("loop.rs")).unwrap();
    let is_code = |line: &&str| !(line.trim().is_empty() || line.trim_start().starts_with("//"));
    let count = program.lines().filter(is_code).count();
    assert!(count <= 70, "{count}");
    for page in ["README.md", "README.es.md"].map(|name| Page::read(chapter.join(name))) {
        let mut lines = page.text.lines().skip_while(|line| !line.starts_with("$ grep -c"));
        assert_eq!(lines.nth(1), Some(count.to_string().as_str()), "{}", page.path.display());
    }
}

#[test]
fn a_program_of_the_course_has_at_most_120_lines() {
    for chapter in chapters() {
        for path in fs::read_dir(&chapter).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let count = fs::read_to_string(&path).unwrap().lines().count();
                assert!(count <= 120, "{} has {count} lines", path.display());
            }
        }
    }
}
