//! The page that says which test holds which promise.

use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../docs/reliability.md");

/// Returns the text of every file of Rust under `folder`, by its path.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    files
}

#[test]
fn each_test_that_holds_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [sources(&root.join("src")), sources(&root.join("tests/it"))].concat();
    let promises = PAGE.lines().skip_while(|line| *line != "| promise | test |").skip(2);
    let promises: Vec<_> = promises.take_while(|line| line.starts_with('|')).collect();
    assert!(promises.len() > 20, "{} promises", promises.len());
    for promise in promises {
        let tests = promise.split('`').skip(1).step_by(2).filter(|name| name.contains("::"));
        assert!(tests.clone().count() > 0, "no test holds: {promise}");
        for name in tests {
            let (module, test) = name.rsplit_once("::").unwrap();
            let place = module.replace("::", "/");
            // The module of the tests may be in the file that it tests.
            let places = [&place[..], place.strip_suffix("/tests").unwrap_or(&place)];
            let is_there = |(path, text): &(PathBuf, String)| {
                let file = path.with_extension("");
                places.iter().any(|place| file.ends_with(place)) && text.contains(&format!("fn {test}("))
            };
            assert!(files.iter().any(is_there), "{name} does not exist");
        }
    }
}
