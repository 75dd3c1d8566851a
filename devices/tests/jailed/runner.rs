//! Runs the tests one after the other: they count processes and descriptors of this one.

use std::env;
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

/// A test's name, and a function that panics where it fails and says why where it can't run here.
pub(crate) type Test = (&'static str, fn() -> Result<(), Skip>);

/// Why a test can't run on this machine.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

/// Serves the options by which cargo and nextest call a test program.
pub(crate) fn main(arguments: &[String], tests: &[Test]) -> ExitCode {
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let words: Vec<_> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| {
        let fits = |word: &&String| name == **word || (!has("--exact") && name.contains(*word));
        !has("--ignored") && (words.is_empty() || words.iter().any(fits))
    };
    let tests = tests.iter().filter(|(name, _)| wanted(name));
    if has("--list") {
        tests.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failures = 0;
    for (name, test) in tests {
        let start = Instant::now();
        let outcome = match panic::catch_unwind(test) {
            Ok(Ok(())) => "ok".to_owned(),
            Ok(Err(Skip(reason))) => {
                // Where everything must run, what can't is a failure.
                failures += usize::from(env::var_os("CI").is_some());
                format!("skipped: {reason}")
            }
            Err(_) => {
                failures += 1;
                "FAILED".to_owned()
            }
        };
        println!("test {name} ... {outcome} ({:?})", start.elapsed());
    }
    println!("\n{failures} failed");
    if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
