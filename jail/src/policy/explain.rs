//! What the command line shows of a policy: errors, effective rules, syscalls, and the answer for one call.

use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;

use super::Diagnostic;
use super::Origin;
use super::Policy;
use super::Rule;
use super::Test;
use crate::arch::Arch;
use crate::arch::Syscall;
use crate::violation::Violation;

/// What a call gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "action")]
pub enum Action {
    /// The kernel makes it.
    Allow,
    /// The kernel does not make it; the caller gets an errno.
    Errno {
        /// The errno's name.
        errno: String,
    },
    /// The kernel does not make it; the caller has violated the policy.
    Violation,
}

/// The answer for one call, and the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The call.
    pub syscall: Syscall,
    /// What it gets.
    #[serde(flatten)]
    pub action: Action,
    /// The rule for this syscall, `None` if there is none.
    pub rule: Option<RuleInfo>,
    /// In a rule with tests: the alternative that let the call pass.
    pub passed_by: Option<String>,
}

/// One rule after includes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleInfo {
    /// Where it is.
    #[serde(flatten)]
    pub origin: Origin,
    /// The line.
    pub rule: String,
}

impl From<&Rule> for RuleInfo {
    fn from(rule: &Rule) -> Self {
        Self {
            origin: rule.origin.clone(),
            rule: rule.text.clone(),
        }
    }
}

/// One syscall that a policy names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SyscallInfo {
    /// Number and name.
    #[serde(flatten)]
    pub syscall: Syscall,
    /// The tests of its arguments, `None` if every call passes.
    pub tests: Option<Vec<Vec<String>>>,
    /// The errno that every call gets instead of being made.
    pub errno: Option<String>,
}

/// The text is neither the name nor the number of a syscall of the architecture.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{arch} has no syscall `{text}`")]
pub struct UnknownSyscall {
    /// What was asked for.
    pub text: String,
    /// For which architecture.
    pub arch: Arch,
}

/// Everything that is wrong with the policies in `paths`, including that they don't compile.
pub fn check(paths: &[PathBuf], arch: Arch) -> Vec<Diagnostic> {
    paths
        .iter()
        .flat_map(|path| match Policy::load(path, arch) {
            Ok(policy) => policy.compile(Violation::Trap).err().into_iter().collect(),
            Err(diagnostics) => diagnostics,
        })
        .collect()
}

/// The effective rules of the policy in `path`, in the order of the files.
///
/// # Errors
/// Everything that is wrong with it.
pub fn show(path: &Path, arch: Arch) -> Result<Vec<RuleInfo>, Vec<Diagnostic>> {
    Policy::load(path, arch).map(|policy| policy.rules().iter().map(RuleInfo::from).collect())
}

/// The syscalls that the policy in `path` names, by number.
///
/// # Errors
/// Everything that is wrong with it.
pub fn syscalls(path: &Path, arch: Arch) -> Result<Vec<SyscallInfo>, Vec<Diagnostic>> {
    Policy::load(path, arch).map(|policy| policy.syscalls())
}

/// What the policy answers to `syscall` (a name or a number) with `arguments`; missing ones are 0.
///
/// # Errors
/// [`UnknownSyscall`] if the policy's architecture has no such syscall.
pub fn explain(
    policy: &Policy,
    syscall: &str,
    arguments: &[u64],
) -> Result<Explanation, UnknownSyscall> {
    let arch = policy.arch();
    let known = match syscall.parse() {
        Ok(number) => arch.syscall(number),
        Err(_) => arch.syscall_by_name(syscall),
    };
    let syscall = known.ok_or_else(|| UnknownSyscall {
        text: syscall.to_owned(),
        arch,
    })?;
    let mut six = [0; 6];
    for (slot, value) in six.iter_mut().zip(arguments) {
        *slot = *value;
    }
    Ok(policy.decide(syscall, &six))
}

impl Policy {
    /// The syscalls that the policy names, by number.
    pub fn syscalls(&self) -> Vec<SyscallInfo> {
        let mut all: Vec<_> = self.rules.iter().map(syscall_info).collect();
        all.sort_by_key(|info| info.syscall);
        all
    }

    /// What a call of `syscall` with `arguments` gets, read from the rules and not from the filter.
    pub fn decide(&self, syscall: Syscall, arguments: &[u64; 6]) -> Explanation {
        let Some(rule) = self.rule(syscall.number) else {
            return Explanation {
                syscall,
                action: Action::Violation,
                rule: None,
                passed_by: None,
            };
        };
        let (action, passed_by) = match &rule.test {
            Test::Always => (Action::Allow, None),
            Test::Errno { name, .. } => (
                Action::Errno {
                    errno: name.clone(),
                },
                None,
            ),
            Test::Any(alternatives) => {
                let passing = alternatives.iter().find(|conjunction| {
                    conjunction
                        .iter()
                        .all(|atom| atom.holds(arguments[usize::from(atom.argument)]))
                });
                match passing {
                    Some(conjunction) => {
                        let texts: Vec<_> = conjunction.iter().map(|a| a.text.as_str()).collect();
                        (Action::Allow, Some(texts.join(" && ")))
                    }
                    None => (Action::Violation, None),
                }
            }
        };
        Explanation {
            syscall,
            action,
            rule: Some(rule.into()),
            passed_by,
        }
    }
}

fn syscall_info(rule: &Rule) -> SyscallInfo {
    let texts =
        |conjunction: &Vec<super::Atom>| conjunction.iter().map(|a| a.text.clone()).collect();
    SyscallInfo {
        syscall: rule.syscall,
        tests: match &rule.test {
            Test::Any(alternatives) => Some(alternatives.iter().map(texts).collect()),
            Test::Always | Test::Errno { .. } => None,
        },
        errno: match &rule.test {
            Test::Errno { name, .. } => Some(name.clone()),
            Test::Always | Test::Any(_) => None,
        },
    }
}
