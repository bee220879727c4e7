//! The public interface of the library is that of `tests/public_api.txt`.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/public_api.txt");
const RENEW: &str = "RENEW_PUBLIC_API";

/// Returns every public item, one a line, without the methods of derived traits.
fn public_items() -> String {
    let mut rustdoc = Command::new(env!("CARGO"));
    rustdoc.current_dir(env!("CARGO_MANIFEST_DIR")).env("RUSTDOC", "tests/rustdoc-json");
    rustdoc.args(["rustdoc", "--quiet", "--lib", "--all-features", "--", "-Zunstable-options", "--output-format=json"]);
    assert!(rustdoc.status().unwrap().success());
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("doc/ecoloop.json");
    let api = public_api::Builder::from_rustdoc_json(json).omit_blanket_impls(true).omit_auto_trait_impls(true);
    let api = api
        .omit_auto_derived_impls(true)
        .build()
        .expect("a rustdoc whose JSON the crate public-api reads: that of Rust 1.95");
    api.items().fold(String::new(), |mut text, item| {
        writeln!(text, "{item}").unwrap();
        text
    })
}

#[test]
#[ignore = "needs the rustdoc of Rust 1.95, whose JSON the crate public-api reads"]
fn the_public_interface_is_that_of_the_file() {
    let items = public_items();
    if env::var_os(RENEW).is_some() {
        fs::write(FILE, &items).unwrap();
    }
    let kept = fs::read_to_string(FILE).unwrap();
    let missing = |from: &str, of: &str| -> Vec<String> {
        from.lines().filter(|line| !of.lines().any(|other| other == *line)).map(str::to_owned).collect()
    };
    let (gone, new) = (missing(&kept, &items), missing(&items, &kept));
    assert!(
        kept == items,
        "gone: {gone:#?}\nnew: {new:#?}\nIf this is meant: {RENEW}=1 cargo test --test it -- --ignored public_api::"
    );
}
