//! `portcullis policy`: the policy compiler's view of policy files.

use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;

use anyhow::anyhow;
use jail::Arch;
use jail::policy;
use jail::policy::Action;
use jail::policy::Diagnostic;
use jail::policy::Explanation;
use jail::policy::Policy;
use jail::policy::RuleInfo;
use jail::policy::SyscallInfo;
use serde::Serialize;

use super::args::policy::ArchChoice;
use super::args::policy::PolicyCommand;
use super::args::policy::PolicyOptions;
use super::failure::Failure;
use super::output::print;
use super::output::print_json;
use super::table::Align;
use super::table::Table;

/// What `policy check --json` prints.
#[derive(Debug, Serialize)]
struct CheckReport {
    /// Whether nothing is wrong.
    ok: bool,
    /// Everything that is wrong.
    errors: Vec<Diagnostic>,
}

/// Runs `portcullis policy`.
///
/// # Errors
/// A policy has mistakes, or can't be read.
pub fn run(command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check { files, options } => check(&files, &options),
        PolicyCommand::Show { file, options } => {
            let rules = policy::show(&file, arch(&options, &file)).map_err(mistakes)?;
            answer(&options, &rules, || rules_text(&rules))
        }
        PolicyCommand::Syscalls { file, options } => {
            let syscalls = policy::syscalls(&file, arch(&options, &file)).map_err(mistakes)?;
            answer(&options, &syscalls, || syscalls_text(&syscalls))
        }
        PolicyCommand::Explain {
            file,
            syscall,
            arguments,
            options,
        } => explain(&file, &syscall, &arguments, &options),
    }
}

fn check(files: &[PathBuf], options: &PolicyOptions) -> Result<(), Failure> {
    let errors: Vec<Diagnostic> = files
        .iter()
        .flat_map(|file| policy::check(std::slice::from_ref(file), arch(options, file)))
        .collect();
    let count = errors.len();
    if options.json {
        print_json(&CheckReport {
            ok: errors.is_empty(),
            errors,
        })?;
    } else if count > 0 {
        print(&lines(&errors))?;
    } else {
        print(&format!(
            "{}: nothing wrong\n",
            counted(files.len(), "file")
        ))?;
    }
    if count > 0 {
        return Err(Failure::new(anyhow!(
            "{} in {}",
            counted(count, "mistake"),
            counted(files.len(), "file")
        )));
    }
    Ok(())
}

fn explain(
    file: &Path,
    syscall: &str,
    arguments: &[u64],
    options: &PolicyOptions,
) -> Result<(), Failure> {
    let arch = arch(options, file);
    let policy = Policy::load(file, arch).map_err(mistakes)?;
    let explanation = policy::explain(&policy, syscall, arguments)
        .map_err(|error| Failure::usage(anyhow!(error)).advise("see portcullis policy syscalls"))?;
    answer(options, &explanation, || explanation_text(&explanation))
}

fn answer<T: Serialize>(
    options: &PolicyOptions,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    if options.json {
        print_json(value)?;
    } else {
        print(&text())?;
    }
    Ok(())
}

/// The architecture that was asked for, that the file's folder is named after, or this machine's.
fn arch(options: &PolicyOptions, file: &Path) -> Arch {
    let from_folder = || {
        let folder = file.parent()?.file_name()?.to_str()?;
        Arch::ALL.into_iter().find(|arch| arch.name() == folder)
    };
    match options.arch {
        Some(ArchChoice::X86_64) => Arch::X86_64,
        Some(ArchChoice::Aarch64) => Arch::Aarch64,
        Some(ArchChoice::Riscv64) => Arch::Riscv64,
        None => from_folder().unwrap_or(Arch::NATIVE),
    }
}

/// A failure that shows the first mistake, and where to see the others.
fn mistakes(errors: Vec<Diagnostic>) -> Failure {
    let more = errors.len().saturating_sub(1);
    let failure = match errors.into_iter().next() {
        Some(first) => Failure::new(first),
        None => Failure::new(anyhow!("the policy can't be read")),
    };
    match more {
        0 => failure,
        _ => failure.advise(format!(
            "portcullis policy check shows {} more",
            counted(more, "mistake")
        )),
    }
}

fn lines(errors: &[Diagnostic]) -> String {
    errors.iter().fold(String::new(), |mut text, error| {
        let _ = writeln!(text, "{error}");
        text
    })
}

fn rules_text(rules: &[RuleInfo]) -> String {
    let mut table = Table::new(&[("from", Align::Left), ("rule", Align::Left)]);
    for rule in rules {
        let origin = &rule.origin;
        table.row([
            format!("{}:{}", origin.file, origin.line),
            rule.rule.clone(),
        ]);
    }
    table.to_string()
}

fn syscalls_text(syscalls: &[SyscallInfo]) -> String {
    let mut table = Table::new(&[
        ("number", Align::Right),
        ("name", Align::Left),
        ("answer", Align::Left),
    ]);
    for info in syscalls {
        let rule = match (&info.errno, &info.tests) {
            (Some(errno), _) => format!("returns {errno}"),
            (None, None) => "allowed".to_owned(),
            (None, Some(tests)) => {
                let alternatives: Vec<String> =
                    tests.iter().map(|tests| tests.join(" && ")).collect();
                format!("allowed if {}", alternatives.join(" || "))
            }
        };
        table.row([
            info.syscall.number.to_string(),
            info.syscall.name.to_string(),
            rule,
        ]);
    }
    table.to_string()
}

fn explanation_text(explanation: &Explanation) -> String {
    let name = &explanation.syscall.name;
    let mut text = match &explanation.action {
        Action::Allow => format!("{name} is allowed"),
        Action::Errno { errno } => format!("{name} returns {errno}"),
        Action::Violation => format!("{name} violates the policy"),
    };
    match (&explanation.rule, &explanation.passed_by) {
        (None, _) => text.push_str(": no rule names it"),
        (Some(_), Some(test)) => {
            let _ = write!(text, " by {test}");
        }
        (Some(_), None) if explanation.action == Action::Violation => {
            text.push_str(": no alternative of its rule holds");
        }
        (Some(_), None) => {}
    }
    text.push('\n');
    if let Some(rule) = &explanation.rule {
        let _ = writeln!(
            text,
            "{}:{}: {}",
            rule.origin.file, rule.origin.line, rule.rule
        );
    }
    text
}

/// `1 file`, `2 files`.
fn counted(number: usize, noun: &str) -> String {
    super::ctl::count(number as u64, noun)
}
