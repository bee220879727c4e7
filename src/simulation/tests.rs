//! Simulations from seeds. A failure prints its seed and the shortest script that fails.

use std::any::Any;
use std::env;
use std::panic;

use super::simulate;
use crate::splitmix::splitmix64;

/// Attempts to shorten a script.
const ATTEMPTS_MAX: usize = 3000;

/// Returns the script of a seed.
fn script(seed: u64) -> Vec<u8> {
    let numbers = (1..).map(|place| splitmix64(splitmix64(seed) ^ place));
    let length = 40 + usize::try_from(splitmix64(seed) % 1200).unwrap();
    numbers.flat_map(u64::to_le_bytes).take(length).collect()
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Plays a script. A panic of the server is a failure like any other.
fn attempt(script: &[u8]) -> Result<usize, String> {
    panic::catch_unwind(|| simulate(script, &mut None)).unwrap_or_else(|payload| Err(text(&*payload)))
}

/// Returns the beginning of a failure's text, which tells it from others.
fn kind(failure: &str) -> &str {
    failure.split(|letter: char| letter.is_ascii_digit()).next().unwrap_or_default()
}

/// Returns a script that fails in the same way: without some of its pieces, and with smaller bytes.
fn shrink(mut script: Vec<u8>, failure: &str) -> Vec<u8> {
    let (mut attempts, mut size) = (0, script.len());
    let mut fails = |script: &[u8]| {
        attempts += 1;
        attempts < ATTEMPTS_MAX && attempt(script).is_err_and(|other| kind(&other) == kind(failure))
    };
    while size > 0 {
        let mut start = 0;
        while start < script.len() {
            let end = script.len().min(start + size);
            let shorter = [&script[..start], &script[end..]].concat();
            if fails(&shorter) { script = shorter } else { start += size }
        }
        size /= 2;
    }
    for place in 0..script.len() {
        for smaller in [0, script[place] / 2, script[place].saturating_sub(1)] {
            let mut other = script.clone();
            other[place] = smaller;
            if smaller < script[place] && fails(&other) {
                script = other;
                break;
            }
        }
    }
    script
}

/// Returns what happens in a script that fails.
fn story(script: &[u8]) -> String {
    let mut trace = Some(Vec::new());
    let played = panic::catch_unwind(panic::AssertUnwindSafe(|| simulate(script, &mut trace)));
    let failure = played.map_or_else(|payload| text(&*payload), |result| format!("{result:?}"));
    format!("{}\n{failure}", trace.unwrap_or_default().join("\n"))
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.replace('_', "").parse().unwrap())
}

/// `SIMULATION_SEED` is the first seed, and `SIMULATION_TURNS` the number of turns, at least one script's.
#[test]
fn the_server_keeps_its_promises_whatever_clients_kernel_and_clock_do() {
    let first = number("SIMULATION_SEED", 1);
    let turns_wanted = number("SIMULATION_TURNS", if cfg!(debug_assertions) { 50_000 } else { 1_000_000 });
    let mut turns = 0;
    for seed in first.. {
        match attempt(&script(seed)) {
            Ok(played) => turns += played as u64,
            Err(failure) => {
                let shortest = shrink(script(seed), &failure);
                let failures = format!("{failure}\n\nthe shortest script, {shortest:?}:\n{}", story(&shortest));
                panic!(
                    "seed {seed} fails: {failures}\n\nto repeat it: SIMULATION_SEED={seed} SIMULATION_TURNS=1 cargo test --lib simulation"
                );
            }
        }
        if turns >= turns_wanted {
            println!("{turns} turns, seeds {first} to {seed}");
            return;
        }
    }
}
