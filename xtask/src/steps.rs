//! `cargo xtask check`: every step runs, whatever the others did, and the end is one table.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;

use crate::tidy;

/// A command of cargo's that must end with 0.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        arguments: &["fmt", "--all", "--check"],
        environment: &[],
    },
    Step {
        name: "clippy",
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
        environment: &[],
    },
    Step {
        name: "test",
        arguments: &["test", "--workspace", "--locked"],
        environment: &[],
    },
    Step {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps", "--locked"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
];

/// Runs every step in the workspace at `root` and returns whether all passed.
///
/// # Errors
/// If cargo cannot be started or a file cannot be read.
pub(crate) fn check(root: &Path) -> Result<bool> {
    let mut results = Vec::new();
    for step in STEPS {
        println!("== {}", step.name);
        let status = Command::new(env!("CARGO"))
            .args(step.arguments)
            .envs(step.environment.iter().copied())
            .current_dir(root)
            .status()
            .with_context(|| format!("cargo {}", step.arguments.join(" ")))?;
        results.push((step.name, status.success()));
    }
    println!("== tidy");
    results.push(("tidy", tidy::run(root)?));

    println!();
    for (name, passed) in &results {
        println!("{name:<8} {}", if *passed { "ok" } else { "FAILED" });
    }
    Ok(results.iter().all(|(_, passed)| *passed))
}
