//! Man pages and completions.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::{TempDir, tempdir};

use crate::support::{Ended, Process, Scratch, ecoloop};

/// Writes the pages to a directory that does not exist yet.
#[track_caller]
fn pages() -> (TempDir, String) {
    let parent = tempdir().unwrap();
    let directory = parent.path().join("share/man1").to_str().unwrap().to_owned();
    let ended = Process::start(ecoloop(&["man", &directory])).wait();
    assert!(ended.status.success() && ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended:?}");
    (parent, directory)
}

#[track_caller]
fn stdout(arguments: &[&str]) -> Vec<String> {
    let ended = Process::start(ecoloop(arguments)).wait();
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

/// Returns the subcommands that `--help` lists.
#[track_caller]
fn subcommands() -> Vec<String> {
    let help = stdout(&["--help"]);
    let list = help.iter().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.map(|line| line.split_whitespace().next().unwrap().to_owned());
    names.filter(|name| name != "help").collect()
}

/// Asserts that the page has the usage, each option and each line of the examples that the help has.
#[track_caller]
fn assert_same_as_help(page: &str, arguments: &[&str]) {
    let help = stdout(&[arguments, &["--help"]].concat());
    let page = fs::read_to_string(page).unwrap().replace("\\-", "-").replace("\\*(Aq", "'");
    let options = help.iter().filter_map(|line| line.trim_start().split(' ').find(|word| word.starts_with("--")));
    // The help has an ellipsis after an option that can be repeated.
    let options = options.map(|option| option.trim_end_matches("..."));
    let examples = help.iter().skip_while(|line| *line != "Examples:").skip(1).map(String::as_str);
    let usage = help.iter().filter_map(|line| line.strip_prefix("Usage: "));
    let expected: Vec<_> = usage.chain(options).chain(examples).collect();
    assert!(expected[0].starts_with("ecoloop ") && expected.contains(&"--help"), "{help:?}");
    for expected in expected {
        assert!(page.contains(expected), "{arguments:?}: {expected:?} is missing in {page}");
    }
}

#[test]
fn each_page_has_the_options_and_examples_of_the_help() {
    let (_parent, directory) = pages();
    assert_same_as_help(&format!("{directory}/ecoloop.1"), &[]);
    let subcommands = subcommands();
    assert!(subcommands.iter().any(|name| name == "serve") && subcommands.iter().any(|name| name == "man"));
    for name in &subcommands {
        assert_same_as_help(&format!("{directory}/ecoloop-{name}.1"), &[name]);
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), subcommands.len() + 1);
}

#[test]
fn a_directory_that_cannot_be_created_is_named() {
    let file = Scratch::new("ecoloop-man");
    let ended = Process::start(ecoloop(&["man", file.path()])).wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr, [format!("ecoloop: cannot create {}: File exists (os error 17)", file.path())]);
}

#[test]
#[ignore = "needs man"]
fn man_formats_each_page_without_a_warning() {
    let (_parent, directory) = pages();
    let mut formatted = 0;
    for page in fs::read_dir(&directory).unwrap() {
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(page.unwrap().path());
        man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80").stdin(Stdio::null());
        let ended = Process::start(man).wait();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        assert!(ended.stdout.iter().any(|line| line == "EXAMPLES"), "{ended:?}");
        formatted += 1;
    }
    assert_eq!(formatted, subcommands().len() + 1);
}

/// Writes the completions of a shell to `directory`, as the file `name`.
#[track_caller]
fn write_completions(shell: &str, directory: &Path, name: &str) {
    let script = stdout(&["completions", shell]);
    fs::write(directory.join(name), script.join("\n")).unwrap();
}

/// Runs a script of a shell in `directory`, without the configuration of the user.
#[track_caller]
fn run(shell: &str, arguments: &[&str], directory: &Path) -> Ended {
    let mut command = Command::new(shell);
    command.args(arguments).current_dir(directory).env("HOME", directory).env("TERM", "dumb").stdin(Stdio::null());
    let ended = Process::start(command).wait();
    assert!(ended.status.success(), "{ended:?}");
    ended
}

#[test]
#[ignore = "needs bash"]
fn bash_completes_options_and_their_values() {
    let directory = tempdir().unwrap();
    write_completions("bash", directory.path(), "ecoloop");
    let script = "source ./ecoloop
        COMP_WORDS=(ecoloop serve --bu) COMP_CWORD=2
        _ecoloop ecoloop --bu serve
        echo \"${COMPREPLY[@]}\"
        COMP_WORDS=(ecoloop serve --when-full '') COMP_CWORD=3
        _ecoloop ecoloop '' --when-full
        echo \"${COMPREPLY[@]}\"";
    assert_eq!(run("bash", &["--norc", "-c", script], directory.path()).stdout, ["--buffer-size", "wait reset"]);
}

#[test]
#[ignore = "needs fish"]
fn fish_completes_options_and_their_values() {
    let directory = tempdir().unwrap();
    write_completions("fish", directory.path(), "ecoloop.fish");
    let script = "source ecoloop.fish
        complete -C 'ecoloop serve --bu'
        complete -C 'ecoloop serve --when-full '";
    let ended = run("fish", &["--no-config", "-c", script], directory.path());
    let words: Vec<_> = ended.stdout.iter().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(words, ["--buffer-size", "reset", "wait"]);
}

/// zsh completes only at a terminal.
#[test]
#[ignore = "needs zsh"]
fn zsh_completes_an_option_at_a_terminal() {
    let directory = tempdir().unwrap();
    write_completions("zsh", directory.path(), "_ecoloop");
    // It waits for what follows `--bu`, which the terminal does not echo.
    let script = "zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell 'fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D'
        zpty -n -w shell $'ecoloop serve --bu\\t'
        zpty -r shell line '*ffer-size*' && echo completed
        zpty -d shell";
    assert_eq!(run("zsh", &["-f", "-c", script], directory.path()).stdout, ["completed"]);
}
