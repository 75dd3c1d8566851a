//! Seccomp policies in the common subset of minijail's policy language, and their compiler.
//!
//! The language is the part that minijail's two readers (the C parser of `minijail0 -S` and the Python compiler) take with the same
//! meaning; anything else is refused with `file:line:column: reason`.
//!
//! ```text
//! file  := lines      line := blank | '#' comment on its own line | '@include ./name.policy' | rule
//! rule  := NAME ': ' ( '1' | 'return ERRNO' | dnf )        one rule per syscall over all included files
//! dnf   := conj { ' || ' conj }      conj := atom { ' && ' atom }
//! atom  := 'arg'0-5 ' ' op ' ' value                       exactly single spaces
//! op    := == != < <= > >= & in                            unsigned, 64 bits
//! value := term { '|' term }   term := ['~'] ( number | CONSTANT )
//! ```
//!
//! `argN & M` is true if any bit of M is set, `argN in M` if no bit outside M is set. A syscall without a rule gets the default action.

mod builtin;
mod compile;
mod constants;
mod diagnostic;
mod explain;
#[cfg(test)]
mod interpreter;
mod load;
mod parse;

pub use builtin::BUILT_IN;
pub use builtin::BuiltIn;
pub use compile::Filters;
pub use compile::FiltersError;
pub use diagnostic::Diagnostic;
pub use diagnostic::Origin;
pub use diagnostic::Problem;
pub use explain::Action;
pub use explain::Explanation;
pub use explain::RuleInfo;
pub use explain::SyscallInfo;
pub use explain::UnknownSyscall;
pub use explain::check;
pub use explain::explain;
pub use explain::show;
pub use explain::syscalls;

use crate::arch::Arch;
use crate::arch::Syscall;

/// A policy that was read, with all its includes, for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    arch: Arch,
    /// In the order of the files, includes in their place.
    rules: Vec<Rule>,
}

impl Policy {
    /// The architecture whose numbers the policy uses.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The rules, in the order of the files.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule of syscall `number`.
    pub fn rule(&self, number: u32) -> Option<&Rule> {
        self.rules.iter().find(|r| r.syscall.number == number)
    }
}

/// What a policy says about one syscall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The syscall.
    pub syscall: Syscall,
    /// What it takes to pass.
    pub test: Test,
    /// Where the rule is.
    pub origin: Origin,
    /// The line.
    pub text: String,
}

/// What it takes to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `1`: every call passes.
    Always,
    /// `return ERRNO`: no call is made, all get this errno.
    Errno {
        /// Its name.
        name: String,
        /// Its number.
        value: u16,
    },
    /// Alternatives of conjunctions.
    Any(Vec<Vec<Atom>>),
}

/// One comparison of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atom {
    /// 0 to 5.
    pub argument: u8,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub value: u64,
    /// As it is written.
    pub text: String,
}

impl Atom {
    /// True if `argument` passes.
    pub fn holds(&self, argument: u64) -> bool {
        match self.operator {
            Operator::Equal => argument == self.value,
            Operator::NotEqual => argument != self.value,
            Operator::Less => argument < self.value,
            Operator::LessOrEqual => argument <= self.value,
            Operator::Greater => argument > self.value,
            Operator::GreaterOrEqual => argument >= self.value,
            Operator::AnyBit => argument & self.value != 0,
            Operator::NoOtherBit => argument & !self.value == 0,
        }
    }
}

/// An operator of an [`Atom`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `&`
    AnyBit,
    /// `in`
    NoOtherBit,
}
