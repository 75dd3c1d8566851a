//! Turns a policy into filters for the kernel.
//!
//! `seccompiler` writes the instructions. How its model meets the language: comparisons are of 64 bits; `in M` is a masked comparison
//! with 0; `& M` becomes one alternative for each bit of M; `return ERRNO` becomes a filter of its own, one for each errno, installed
//! before the main one, since the kernel takes the strictest answer of all filters.

use std::collections::BTreeMap;
use std::path::Path;

use remain::sorted;
use seccompiler::BackendError;
use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpArgLen;
use seccompiler::SeccompCmpOp;
use seccompiler::SeccompCondition;
use seccompiler::SeccompFilter;
use seccompiler::SeccompRule;
use seccompiler::TargetArch;

use super::Atom;
use super::Diagnostic;
use super::Operator;
use super::Origin;
use super::Policy;
use super::Problem;
use super::Test;
use crate::arch::Arch;
use crate::violation::Violation;

/// The filters of one policy, in the order in which they are installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filters {
    pub(crate) arch: Arch,
    pub(crate) violation: Violation,
    pub(crate) programs: Vec<BpfProgram>,
}

/// A policy for a kind of process that can't be used.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum FiltersError {
    /// The policy has errors.
    #[error("{}", list(.0))]
    Policy(Vec<Diagnostic>),
}

fn list(diagnostics: &[Diagnostic]) -> String {
    let lines: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Filters {
    /// The filters for a kind of process (`device`, `backend`, ...): from `folder` if there is one, from this program otherwise.
    ///
    /// Reads files: call it before [`enter`](crate::enter).
    ///
    /// # Errors
    /// [`FiltersError::Policy`] if the policy can't be read or has errors.
    pub fn for_process(
        kind: &str,
        folder: Option<&Path>,
        violation: Violation,
    ) -> Result<Self, FiltersError> {
        let policy = match folder {
            Some(folder) => Policy::load(&folder.join(format!("{kind}.policy")), Arch::NATIVE),
            None => Policy::built_in(kind, Arch::NATIVE),
        };
        policy
            .map_err(FiltersError::Policy)?
            .compile(violation)
            .map_err(|diagnostic| FiltersError::Policy(vec![diagnostic]))
    }

    /// The architecture that the filters check for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// What a violation leads to.
    pub fn violation(&self) -> Violation {
        self.violation
    }

    /// The programs, in the order in which they are installed.
    pub fn programs(&self) -> &[BpfProgram] {
        &self.programs
    }
}

impl Policy {
    /// Compiles the policy; a call that it does not allow leads to `violation`.
    ///
    /// # Errors
    /// [`Problem::FilterTooLarge`] if the kernel would not take it.
    pub fn compile(&self, violation: Violation) -> Result<Filters, Diagnostic> {
        let mut programs = Vec::new();
        for (errno, numbers) in self.errnos() {
            let rules = numbers.into_iter().map(|n| (n, Vec::new())).collect();
            let action = SeccompAction::Errno(u32::from(errno));
            programs.push(self.program(rules, SeccompAction::Allow, action)?);
        }
        let rules = self.main_rules()?;
        let refuse = match violation {
            Violation::Trap | Violation::Log => SeccompAction::Trap,
            Violation::Kill => SeccompAction::KillProcess,
        };
        let mut main = self.program(rules, refuse, SeccompAction::Allow)?;
        if violation == Violation::Log {
            ask_supervisor(&mut main);
        }
        programs.push(main);
        Ok(Filters {
            arch: self.arch,
            violation,
            programs,
        })
    }

    fn errnos(&self) -> BTreeMap<u16, Vec<i64>> {
        let mut errnos: BTreeMap<u16, Vec<i64>> = BTreeMap::new();
        for rule in &self.rules {
            if let Test::Errno { value, .. } = rule.test {
                let number = i64::from(rule.syscall.number);
                errnos.entry(value).or_default().push(number);
            }
        }
        errnos
    }

    /// Calls that get an errno pass the main filter: its answer for others is stricter than an errno and would win.
    fn main_rules(&self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, Diagnostic> {
        let mut rules = BTreeMap::new();
        for rule in &self.rules {
            let chain = match &rule.test {
                Test::Always | Test::Errno { .. } => Vec::new(),
                Test::Any(alternatives) => alternatives
                    .iter()
                    .flat_map(|conjunction| conjunctions(conjunction))
                    .map(|conditions| SeccompRule::new(conditions).map_err(backend))
                    .collect::<Result<_, _>>()
                    .map_err(|problem| rule.origin.clone().with(problem))?,
            };
            rules.insert(i64::from(rule.syscall.number), chain);
        }
        Ok(rules)
    }

    fn program(
        &self,
        rules: BTreeMap<i64, Vec<SeccompRule>>,
        otherwise: SeccompAction,
        on_match: SeccompAction,
    ) -> Result<BpfProgram, Diagnostic> {
        let target = match self.arch {
            Arch::X86_64 => TargetArch::x86_64,
            Arch::Aarch64 => TargetArch::aarch64,
            Arch::Riscv64 => TargetArch::riscv64,
        };
        SeccompFilter::new(rules, otherwise, on_match, target)
            .and_then(BpfProgram::try_from)
            .map_err(|error| self.start().with(backend(error)))
    }

    fn start(&self) -> Origin {
        match self.rules.last() {
            Some(rule) => rule.origin.clone(),
            None => Origin {
                file: "".into(),
                line: 1,
                column: 1,
            },
        }
    }
}

impl Origin {
    fn with(self, problem: Problem) -> Diagnostic {
        Diagnostic {
            origin: self,
            problem,
        }
    }
}

/// The alternatives that a conjunction becomes: the product of the bits of all its `&`.
fn conjunctions(atoms: &[Atom]) -> Vec<Vec<SeccompCondition>> {
    let mut products = vec![Vec::new()];
    for atom in atoms {
        let choices = conditions(atom);
        products = products
            .iter()
            .flat_map(|product: &Vec<SeccompCondition>| {
                choices.iter().map(|choice| {
                    let mut longer = product.clone();
                    longer.push(choice.clone());
                    longer
                })
            })
            .collect();
        if products.len() > MAX_INSTRUCTIONS {
            // The kernel would not take it; let the compiler say so without making the whole product.
            products.truncate(MAX_INSTRUCTIONS);
        }
    }
    products
}

/// More alternatives than the kernel takes instructions.
const MAX_INSTRUCTIONS: usize = 4096;

/// The conditions of which one has to hold for `atom` to hold.
fn conditions(atom: &Atom) -> Vec<SeccompCondition> {
    let condition = |operator, value| {
        SeccompCondition::new(atom.argument, SeccompCmpArgLen::Qword, operator, value)
            .expect("the parser takes arg0 to arg5 only")
    };
    let value = atom.value;
    let operator = match atom.operator {
        Operator::Equal => SeccompCmpOp::Eq,
        Operator::NotEqual => SeccompCmpOp::Ne,
        Operator::Less => SeccompCmpOp::Lt,
        Operator::LessOrEqual => SeccompCmpOp::Le,
        Operator::Greater => SeccompCmpOp::Gt,
        Operator::GreaterOrEqual => SeccompCmpOp::Ge,
        Operator::NoOtherBit => return vec![condition(SeccompCmpOp::MaskedEq(!value), 0)],
        Operator::AnyBit => {
            return (0..u64::BITS)
                .map(|bit| 1_u64 << bit)
                .filter(|bit| value & bit != 0)
                .map(|bit| condition(SeccompCmpOp::MaskedEq(bit), bit))
                .collect();
        }
    };
    vec![condition(operator, value)]
}

fn backend(error: BackendError) -> Problem {
    match error {
        BackendError::FilterTooLarge(size) => Problem::FilterTooLarge(size),
        other => Problem::Compile(other),
    }
}

/// Makes the program ask a supervisor instead of sending a signal. `seccompiler` does not know that action.
fn ask_supervisor(program: &mut BpfProgram) {
    for instruction in program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRAP {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
}

/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests;
