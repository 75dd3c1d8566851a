//! The benchmark of the request path: Portcullis beside what the kernel alone costs, in interleaved rounds.
//!
//! `portcullis bench` shows it on a user's machine; `cargo bench --bench request_path` is the same at full length. The limits
//! are written with bare system calls, and the driver is the same for all.

mod bare;
mod cases;
mod counters;
mod limits;
mod portcullis;
mod report;
mod roles;
mod scale;
mod subjects;
mod workload;

use std::collections::BTreeMap;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use clap::Args;

use self::cases::Case;
use self::cases::Length;
use self::report::CaseReport;
use self::report::ProcessCount;
use self::report::Report;
use self::report::SubjectReport;
pub use self::roles::RoleArgs;
pub use self::roles::run as run_role;
use self::subjects::Subject;

/// The command line of `portcullis bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Rounds of each case; the subjects of a case take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Runs 50,000 pairs a round instead of 10,000.
    #[arg(long)]
    full: bool,
    /// Runs only the cases whose title, such as "one at a time, one core", contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Runs only these subjects, beside the limit of each case.
    #[arg(long, value_name = "SUBJECT,…", value_delimiter = ',')]
    subjects: Vec<Subject>,
    /// Also counts system calls a pair, in runs of their own (needs `perf` and root).
    #[arg(long)]
    count: bool,
    /// Measures what grows instead: many devices, many mappings, start, memory, a guest that reads.
    #[arg(long, conflicts_with_all = ["full", "only", "subjects", "count"])]
    scale: bool,
    /// Prints one JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

/// Runs the benchmark and prints what it found on standard output; progress goes to standard error.
///
/// # Errors
/// If a process can't be started or placed, ends early, or a request of the workload is refused.
pub fn run(arguments: &BenchArgs) -> Result<()> {
    if arguments.scale {
        return scale::run(arguments.rounds, arguments.json);
    }
    let length = if arguments.full {
        Length::Full
    } else {
        Length::Short
    };
    let cases: Vec<Case> = cases::all(length)
        .into_iter()
        .filter(|case| {
            arguments
                .only
                .as_deref()
                .is_none_or(|text| case.title().contains(text))
        })
        .collect();
    ensure!(
        !cases.is_empty(),
        "no case has {:?} in its title",
        arguments.only.as_deref().unwrap_or_default()
    );
    let mut report = Report {
        cpus: std::thread::available_parallelism()?.get(),
        kernel: kernel(),
        version: env!("CARGO_PKG_VERSION"),
        rounds: usize::from(arguments.rounds),
        cases: Vec::new(),
    };
    for case in cases {
        eprintln!("{}", case.title());
        report.cases.push(measure(case, arguments)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

fn kernel() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}

fn measure(case: Case, arguments: &BenchArgs) -> Result<CaseReport> {
    let mut rounds: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for _ in 0..arguments.rounds {
        for &subject in case.subjects {
            let chosen = &arguments.subjects;
            if !chosen.is_empty() && subject != case.limit && !chosen.contains(&subject) {
                continue;
            }
            let run = subjects::run(subject, case.placement, &case.workload, false)?;
            rounds.entry(subject).or_default().push(run.measured);
        }
    }
    let limit = rounds
        .get(&case.limit)
        .context("a case runs its own limit")?
        .clone();
    let mut measured = Vec::new();
    for (subject, rounds) in rounds {
        let mut counted = Vec::new();
        if arguments.count {
            let run = subjects::run(subject, case.placement, &case.workload, true)?;
            counted.extend(
                run.counters
                    .into_iter()
                    .map(|(process, counters)| ProcessCount {
                        process,
                        pairs: run.measured.pairs,
                        counters,
                    }),
            );
        }
        measured.push(SubjectReport::new(subject, rounds, &limit, counted));
    }
    Ok(CaseReport {
        case,
        subjects_measured: measured,
    })
}
