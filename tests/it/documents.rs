//! Documents that name what is elsewhere in the project.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[track_caller]
fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// Returns the first cell of each row of the tables of crates.
fn first_cells(document: &str) -> BTreeSet<String> {
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| crate |"));
    rows.map(|row| row.split('|').nth(1).unwrap().trim().to_owned()).collect()
}

#[test]
fn each_dependency_has_a_row_and_each_row_is_a_dependency() {
    let mut is_dependency = false;
    let mut dependencies = BTreeSet::new();
    // The package of the crate has the manifest as it was written under the other name: cargo writes its own.
    let manifest = ["Cargo.toml.orig", "Cargo.toml"].into_iter().find(|name| path(name).exists()).unwrap();
    for line in read(manifest).lines() {
        if line.starts_with('[') {
            is_dependency = line.ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| is_dependency && !line.starts_with('#')) {
            dependencies.insert(name.to_owned());
        }
    }
    assert!(dependencies.contains("mio") && dependencies.contains("procfs") && dependencies.contains("divan"));
    assert_eq!(first_cells(&read("docs/dependencies.md")), dependencies);
}

#[test]
fn the_tests_and_files_that_the_threat_model_names_are_there() {
    let document = read("SECURITY.md");
    let rows = document.lines().filter(|line| line.starts_with("| ") && line.matches('|').count() == 4);
    let holders: Vec<_> = rows.flat_map(|row| row.split('|').nth(3).unwrap().split('`').skip(1).step_by(2)).collect();
    assert!(holders.len() > 10, "{holders:?}");
    for holder in holders {
        if let Some((theme, test)) = holder.split_once("::") {
            let source = read(&format!("tests/it/{theme}.rs"));
            assert!(source.contains(&format!("\nfn {test}() {{")), "no test {holder}");
        } else {
            assert!(path(holder).is_file(), "no file {holder}");
        }
    }
}
