//! A minimal test runner with the command line of the standard one, as far as cargo and nextest use it.

use std::panic;
use std::process::ExitCode;
use std::time::Instant;

/// One test: its name, and a function that panics if it fails.
pub(crate) type Test = (&'static str, fn());

/// Runs or lists the tests that the command line chooses.
pub(crate) fn main(arguments: &[String], tests: &[Test]) -> ExitCode {
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| {
        let matches = |filter: &&String| {
            if has("--exact") {
                name == filter.as_str()
            } else {
                name.contains(filter.as_str())
            }
        };
        filters.is_empty() || filters.iter().any(matches)
    };
    // No test is ignored.
    let chosen = tests
        .iter()
        .filter(|(name, _)| chosen(name) && !has("--ignored"));
    if has("--list") {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, test) in chosen {
        let start = Instant::now();
        let result = panic::catch_unwind(test);
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!(
            "test {name} ... {word} ({} ms)",
            start.elapsed().as_millis()
        );
        match result {
            Ok(()) => passed += 1,
            Err(_) => failed.push(name),
        }
    }
    println!("\n{passed} passed; {} failed", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
