//! The project's own checks: `cargo xtask check` runs what CI runs, `cargo xtask tidy` the checks that no other tool does,
//! `cargo xtask soak` the test of endurance.
//!
//! It deliberately changes nothing: a check that fails says what to do.

#![forbid(unsafe_code)]

mod metadata;
mod soak;
mod steps;
mod tidy;

use std::process::ExitCode;

use anyhow::Context;
use anyhow::Result;

use self::soak::Soak;

const USAGE: &str = "usage: cargo xtask check   format, lints, tests, docs, licences and tidy; runs all, reports all
       cargo xtask tidy    file lengths, file docs, SAFETY reasons, policies, dependency arrows, doc paths, licences
       cargo xtask soak --minutes N [--seed S]
                           devices come and go, misbehave and are killed; fails if anything is left over";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => workspace().and_then(|root| steps::check(&root)),
        ["tidy"] => workspace().and_then(|root| tidy::run(&root)),
        ["soak", ref arguments @ ..] => {
            Soak::parse(arguments).and_then(|soak| workspace().and_then(|root| soak.run(&root)))
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the workspace's root folder: the parent of this package's.
fn workspace() -> Result<std::path::PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set: run this as `cargo xtask`")?;
    let package = std::path::PathBuf::from(package);
    let root = package
        .parent()
        .context("the xtask package has no parent folder")?;
    Ok(root.to_path_buf())
}
